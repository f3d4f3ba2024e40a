//! Runs that are killed at random moments: sender, receiver, ssh, the link between two hosts; over a real ssh, from a
//! stored delta, from volume to volume. After each the record tells the truth, and the destination is finished or taken back, exactly.
//!
//! Needs sshd, which `cargo xtask test` installs, and root for the links alone. `LVMSYNC_KILL_SEED=N` repeats the choices of a run,
//! though not what the scheduler does.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "tests: what does not hold fails the test, and counts are told"
)]

mod kill_kit;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kill_kit::bench::Bench;
use kill_kit::case::{Blow, Case, Goal, Known, Victim, Way};
use kill_kit::network::{End, Link, Network};
use kill_kit::sshd::Sshd;
use kill_kit::{Random, long, seed};
use rustix::process::Signal;

/// What is sent once more at most: volume data between two syncs, a frame, and what is no data.
const AGAIN_BYTES: u64 = (64 << 20) + (2 << 20);

/// Who is killed, how, in which kind of run.
#[derive(Clone, Copy, Debug)]
struct Kind {
    way: Way,
    victim: Victim,
    signal: Signal,
}

impl Kind {
    fn name(self) -> String {
        let signal = match self.signal {
            _ if self.victim == Victim::Link => "cut",
            Signal::KILL => "SIGKILL",
            _ => "SIGTERM",
        };
        let run = match self.way {
            Way::Far => "increments over ssh",
            Way::Atomic => "atomic increments over ssh",
            Way::FirstCopy => "first copies over ssh",
            Way::Sync => "syncs over ssh",
            Way::Apply => "stored deltas",
            Way::Local => "increments from volume to volume",
        };
        let victim = match self.victim {
            Victim::Sender if self.way.over_ssh() => "sender",
            Victim::Sender => "the program",
            Victim::Receiver => "receiver",
            Victim::Ssh => "ssh",
            Victim::Link => "link",
        };
        format!("{run}, {victim} {signal}")
    }
}

/// What an undisturbed run takes, without an undo and with one.
#[derive(Clone, Copy)]
struct Usual {
    seconds: [f64; 2],
    bytes_sent: u64,
}

/// How the cases of one kind ended.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    runs: u32,
    cut: u32,
    cut_again: u32,
    finished: u32,
    taken_back: u32,
    by_itself: u32,
}

fn usual(bench: &Bench, link: Option<Link<'_>>, way: Way) -> Usual {
    let case = Case::new(bench, link, way, false, "usual");
    let ended = case.run(Goal::Finish { retries: None }, None);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    Usual {
        // With an undo as much is written once more, and read.
        seconds: [ended.seconds, 1.6 * ended.seconds],
        bytes_sent: ended.result["bytes_sent"].as_u64().unwrap(),
    }
}

/// One destination: a run that is killed, perhaps more that are killed, and in the end one state or the other.
fn case(
    case: &Case<'_>,
    bench: &Bench,
    kind: Kind,
    undo: bool,
    usual: &Usual,
    random: &mut Random,
) -> Tally {
    let mut tally = Tally {
        runs: 1,
        ..Tally::default()
    };
    let usual_seconds = usual.seconds[usize::from(undo)];
    let moment = |random: &mut Random| {
        let part = random.below(1050) as f64 / 1000.0;
        Duration::from_secs_f64(usual_seconds * part)
    };
    let goes_on = kind.way.over_ssh()
        && kind.victim != Victim::Sender
        && kind.signal == Signal::KILL
        && random.one_in(4);
    let retries = (!goes_on).then_some(0);
    let (mut goal, mut blows) = (Goal::Finish { retries }, 0);
    let mut known = Known::Nothing;
    loop {
        let strikes = blows == 0 || (blows < 3 && random.one_in(4));
        let blow = strikes.then(|| Blow {
            victim: if goal == Goal::TakeBack {
                Victim::Sender
            } else {
                kind.victim
            },
            signal: kind.signal,
            after: moment(random),
            end: if random.one_in(2) {
                End::Near
            } else {
                End::Far
            },
            back_after: (goal == Goal::Finish { retries: None } || random.one_in(2))
                .then(|| Duration::from_millis(random.below(6000))),
        });
        let before = known;
        let resumes = kind.way.over_ssh() && goal != Goal::TakeBack && !strikes;
        let is_kept = kind.way == Way::Atomic && before == Known::Nothing;
        let resumes = resumes && (is_kept || matches!(before, Known::ToTarget(_)));
        let arrived = if resumes { case.arrived() } else { 0 };
        let ended = case.run(goal, blow);
        blows += 1;
        known = case.check();
        let context = format!("{goal:?} {blow:?} from {before:?} to {known:?}: {ended:?}");
        let is_there = match goal {
            Goal::Finish { .. } => known == Known::Target,
            Goal::TakeBack => known == Known::Base,
        };
        match ended.code {
            Some(0) => assert!(is_there, "no success: {context}"),
            _ if !strikes => panic!("{context}"),
            Some(7 | 130) | None => {}
            _ => panic!("{context}"),
        }
        if goal == (Goal::Finish { retries: None }) && blow.is_some() {
            // It tries again by itself. Only one that was struck before the far end answered gives up.
            assert!(
                ended.code == Some(0) || known == Known::Nothing,
                "{context}"
            );
            tally.by_itself += u32::from(ended.said.contains("trying again") && is_there);
        }
        if kind.way == Way::Atomic && resumes && ended.code == Some(0) {
            let sent = ended.result["bytes_sent"].as_u64().unwrap();
            let left = usual.bytes_sent - bench.data_before(arrived, false);
            assert!(sent <= left + (2 << 20), "{arrived} were kept: {context}");
        } else if let (Known::ToTarget(durable), Some(0), true) = (before, ended.code, resumes) {
            let full = kind.way == Way::FirstCopy;
            let sent = ended.result["bytes_sent"].as_u64().unwrap();
            let left = |from| usual.bytes_sent - bench.data_before(from, full);
            assert!(
                sent <= left(durable) + (2 << 20),
                "more than what is not durable: {context}"
            );
            assert!(
                sent <= left(arrived) + AGAIN_BYTES,
                "{arrived} were there: {context}"
            );
        }
        if strikes {
            *(if blows == 1 {
                &mut tally.cut
            } else {
                &mut tally.cut_again
            }) += u32::from(ended.code != Some(0));
        }
        let can_go_back = undo && !matches!(known, Known::Nothing | Known::Base);
        goal = match (known, goal) {
            // Killed after the last write and before it tidied up.
            (Known::Base, Goal::TakeBack) if strikes && case.has_cut_undo() => Goal::TakeBack,
            (Known::Base, Goal::TakeBack) => {
                case.is_in_order(&bench.base, case.has_whole_undo());
                tally.taken_back += 1;
                return tally;
            }
            (Known::Target, Goal::Finish { .. }) if !can_go_back => {
                // The same command once more says that all is done, whatever was struck.
                let again = case.run(Goal::Finish { retries: Some(0) }, None);
                assert_eq!(again.code, Some(0), "once more: {again:?}");
                case.is_in_order(&bench.target, false);
                tally.finished += 1;
                return tally;
            }
            (Known::Target, _) => {
                if ended.code == Some(0) {
                    case.is_in_order(&bench.target, true);
                    tally.finished += 1;
                }
                Goal::TakeBack
            }
            (Known::ToBase(_), _) => Goal::TakeBack,
            _ if can_go_back && random.one_in(2) => Goal::TakeBack,
            _ => Goal::Finish { retries: Some(0) },
        };
    }
}

/// All `kinds`, so many cases of each, side by side: one after another on each of `lanes`.
fn matrix(benches: &[Bench; 2], kinds: &[Kind], cases: u32, lanes: &[Option<Link<'_>>]) {
    let seed = seed();
    println!("kills: LVMSYNC_KILL_SEED={seed}");
    let mut ways: Vec<Way> = kinds.iter().map(|kind| kind.way).collect();
    ways.dedup();
    let usuals: Mutex<Vec<(Way, [Usual; 2])>> = Mutex::new(
        ways.iter()
            .map(|way| {
                (
                    *way,
                    [0, 1].map(|size| usual(&benches[size], lanes[0], *way)),
                )
            })
            .collect(),
    );
    let tallies = Mutex::new(vec![Tally::default(); kinds.len()]);
    let next = AtomicUsize::new(0);
    let work = |link: Option<Link<'_>>| loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let (kind_number, round) = (number % kinds.len(), number / kinds.len());
        if round >= cases as usize {
            return;
        }
        let kind = kinds[kind_number];
        let mut random = Random::new(seed, &format!("{} {round}", kind.name()));
        let undo = kind.way != Way::FirstCopy && random.one_in(2);
        let size = usize::from(random.one_in(if long() { 3 } else { 6 }));
        let bench = &benches[size];
        // What else the machine does makes a run longer today than a while ago, or shorter.
        let fresh = (number % 25 == 24).then(|| usual(bench, link, kind.way));
        let usual = {
            let mut usuals = usuals.lock().unwrap();
            let known = usuals.iter_mut().find(|(way, _)| *way == kind.way);
            let known = &mut known.unwrap().1[size];
            *known = fresh.unwrap_or(*known);
            *known
        };
        let one = Case::new(bench, link, kind.way, undo, &format!("{seed}-{number}"));
        let run = || case(&one, bench, kind, undo, &usual, &mut random);
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(tally) => tallies.lock().unwrap()[kind_number].add(tally),
            Err(panic) => {
                // The others need not go on.
                next.fetch_add(1 << 30, Ordering::Relaxed);
                let name = kind.name();
                println!("kills: FAILED {name}, case {round}, undo {undo}, seed {seed}");
                if std::env::var_os("LVMSYNC_KILL_KEEP").is_some() {
                    println!("kills: see {}", one.keep().display());
                }
                resume_unwind(panic);
            }
        }
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = lanes
            .iter()
            .map(|link| scope.spawn(move || work(*link)))
            .collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                resume_unwind(panic);
            }
        }
    });
    let (mut runs, mut cut) = (0, 0);
    for (kind, tally) in kinds.iter().zip(tallies.into_inner().unwrap()) {
        println!(
            "kills: {} {}: {} in the middle, {} more on the way; finished {}, taken back {}, went on by itself {}",
            tally.runs,
            kind.name(),
            tally.cut,
            tally.cut_again,
            tally.finished,
            tally.taken_back,
            tally.by_itself
        );
        (runs, cut) = (runs + tally.runs, cut + tally.cut);
    }
    // Moments are chosen by how long an undisturbed run takes, and machines have other work, too.
    // A few may all miss by chance.
    assert!(runs < 8 || 4 * cut >= runs, "only {cut} of {runs} were hit");
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.cut += other.cut;
        self.cut_again += other.cut_again;
        self.finished += other.finished;
        self.taken_back += other.taken_back;
        self.by_itself += other.by_itself;
    }
}

/// Cases of each kind, in the sample and in a long run.
fn cases(sample: u32, in_long: u32) -> u32 {
    let asked = std::env::var("LVMSYNC_KILL_CASES").ok();
    let asked = asked.and_then(|number| number.parse().ok());
    asked.unwrap_or(if long() { in_long } else { sample })
}

/// A volume that is sent between two syncs, and one that takes several.
fn benches(sshd: Option<&Sshd>) -> [Bench; 2] {
    let large = if long() { 160 } else { 96 };
    [20, large].map(|mebibytes| Bench::new(mebibytes, sshd.map(Sshd::rsh)))
}

fn sshd() -> Option<Sshd> {
    let sshd = Sshd::start();
    if sshd.is_none() {
        println!(
            "kills: SKIPPED: there is no sshd; `cargo xtask test` installs it, or: apt-get install openssh-server"
        );
    }
    sshd
}

#[test]
fn killed_increments_over_ssh() {
    let Some(sshd) = sshd() else { return };
    let benches = benches(Some(&sshd));
    let kinds = [
        (Victim::Sender, Signal::KILL),
        (Victim::Receiver, Signal::KILL),
        (Victim::Ssh, Signal::KILL),
        (Victim::Sender, Signal::TERM),
        (Victim::Receiver, Signal::TERM),
    ];
    let kinds = kinds.map(|(victim, signal)| Kind {
        way: Way::Far,
        victim,
        signal,
    });
    matrix(&benches, &kinds, cases(8, 200), &[None; 2]);
}

#[test]
fn killed_atomic_increments_over_ssh() {
    let Some(sshd) = sshd() else { return };
    let benches = benches(Some(&sshd));
    let kinds = [
        (Victim::Sender, Signal::KILL),
        (Victim::Receiver, Signal::KILL),
        (Victim::Ssh, Signal::KILL),
        (Victim::Receiver, Signal::TERM),
    ];
    let kinds = kinds.map(|(victim, signal)| Kind {
        way: Way::Atomic,
        victim,
        signal,
    });
    matrix(&benches, &kinds, cases(1, 50), &[None]);
}

#[test]
fn killed_first_copies_over_ssh() {
    let Some(sshd) = sshd() else { return };
    let benches = benches(Some(&sshd));
    let kinds = [
        (Victim::Sender, Signal::KILL),
        (Victim::Receiver, Signal::KILL),
        (Victim::Ssh, Signal::KILL),
        (Victim::Sender, Signal::TERM),
        (Victim::Receiver, Signal::TERM),
    ];
    let kinds = kinds.map(|(victim, signal)| Kind {
        way: Way::FirstCopy,
        victim,
        signal,
    });
    matrix(&benches, &kinds, cases(2, 50), &[None]);
}

#[test]
fn killed_syncs_over_ssh() {
    let Some(sshd) = sshd() else { return };
    let benches = benches(Some(&sshd));
    let kinds = [
        (Victim::Sender, Signal::KILL),
        (Victim::Receiver, Signal::KILL),
        (Victim::Ssh, Signal::KILL),
        (Victim::Receiver, Signal::TERM),
    ];
    let kinds = kinds.map(|(victim, signal)| Kind {
        way: Way::Sync,
        victim,
        signal,
    });
    matrix(&benches, &kinds, cases(2, 50), &[None]);
}

#[test]
fn cut_links() {
    // Most of the time both ends wait for each other.
    let Some(network) = Network::new(3) else {
        println!("kills: SKIPPED: links are cut in network namespaces, which need root and `ip`");
        return;
    };
    let Some(sshd) = Sshd::start_in(&network) else {
        return;
    };
    let benches = benches(Some(&sshd));
    let lanes: Vec<_> = network.links().map(Some).collect();
    for (way, sample, in_long) in [
        (Way::Far, 4, 200),
        (Way::FirstCopy, 2, 50),
        (Way::Sync, 1, 50),
    ] {
        let kind = Kind {
            way,
            victim: Victim::Link,
            signal: Signal::KILL,
        };
        matrix(&benches, &[kind], cases(sample, in_long), &lanes);
    }
}

#[test]
fn killed_runs_on_this_machine() {
    let benches = benches(None);
    for bench in &benches {
        let made = std::process::Command::new(env!("CARGO_BIN_EXE_lvmsync"))
            .args(["send", "-q", "--from"])
            .arg(format!("cow:{}", bench.path("store.img").display()))
            .arg(bench.path("new.img"))
            .arg("-o")
            .arg(bench.path("x.delta"))
            .status()
            .unwrap();
        assert!(made.success());
    }
    let kind = |(way, signal)| Kind {
        way,
        victim: Victim::Sender,
        signal,
    };
    let kinds = [
        (Way::Apply, Signal::KILL),
        (Way::Apply, Signal::TERM),
        (Way::Local, Signal::KILL),
        (Way::Local, Signal::TERM),
    ];
    matrix(&benches, &kinds.map(kind), cases(4, 50), &[None]);
}
