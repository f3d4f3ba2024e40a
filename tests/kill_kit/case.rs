//! One destination, the runs that are killed while they write to it, and what must hold after each.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lvmsync::delta::resume::SoundPart;
use rustix::process::Signal;

use super::bench::Bench;
use super::network::{End, Link};
use super::processes::{MARK, marked, signal, wait_until_gone};
use super::text;

/// How the data gets to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// An increment over ssh.
    Far,
    /// An increment over ssh that is kept beside until it is whole.
    Atomic,
    /// A first full copy over ssh.
    FirstCopy,
    /// By comparing, over ssh.
    Sync,
    /// A stored delta.
    Apply,
    /// An increment from volume to volume.
    Local,
}

impl Way {
    pub(crate) fn over_ssh(self) -> bool {
        matches!(
            self,
            Self::Far | Self::Atomic | Self::FirstCopy | Self::Sync
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Sender,
    Receiver,
    Ssh,
    /// Nobody: the cable.
    Link,
}

/// Who is killed, how, and how long after the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blow {
    pub(crate) victim: Victim,
    pub(crate) signal: Signal,
    pub(crate) after: Duration,
    /// For a link: which end goes down.
    pub(crate) end: End,
    /// For a link: how long it is down; `None` until nothing of the run is left.
    pub(crate) back_after: Option<Duration>,
}

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// The command itself, so often tried again by itself.
    Finish { retries: Option<u32> },
    /// `apply UNDO DEST`.
    TakeBack,
}

/// What is known of the destination, and was seen to be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// There is no record: nothing was written.
    Nothing,
    Base,
    Target,
    /// On the way to the target; durable up to this byte.
    ToTarget(usize),
    /// On the way back.
    ToBase(usize),
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
    pub(crate) result: serde_json::Value,
    pub(crate) seconds: f64,
}

pub(crate) struct Case<'b> {
    bench: &'b Bench,
    /// The cable between sender and receiver; `None`: the loopback device, or no receiver.
    link: Option<Link<'b>>,
    way: Way,
    undo: bool,
    directory: tempfile::TempDir,
    mark: String,
}

impl<'b> Case<'b> {
    /// A destination in the base state, or none for a first copy.
    pub(crate) fn new(
        bench: &'b Bench,
        link: Option<Link<'b>>,
        way: Way,
        undo: bool,
        mark: &str,
    ) -> Self {
        let case = Self {
            bench,
            link,
            way,
            undo,
            directory: tempfile::tempdir().unwrap(),
            mark: format!("{mark}-{}", std::process::id()),
        };
        if way != Way::FirstCopy {
            fs::write(case.destination(), &bench.base).unwrap();
        }
        let script = format!(
            "#!/bin/sh\nexport LVMSYNC_STATE_DIR='{}' {MARK}='{}'\nexec '{}' \"$@\" {}\n",
            case.path("state").display(),
            case.mark,
            env!("CARGO_BIN_EXE_lvmsync"),
            case.timeout().join(" ")
        );
        fs::create_dir(case.path("run")).unwrap();
        fs::write(case.path("run/far"), script).unwrap();
        fs::set_permissions(case.path("run/far"), fs::Permissions::from_mode(0o755)).unwrap();
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where a link is cut nobody says so: only the silence tells.
    fn timeout(&self) -> &'static [&'static str] {
        if self.link.is_some() {
            &["--timeout", "3"]
        } else {
            &[]
        }
    }

    /// Leaves everything for whoever wants to look.
    pub(crate) fn keep(self) -> PathBuf {
        self.directory.keep()
    }

    fn destination(&self) -> PathBuf {
        self.path(if self.way == Way::FirstCopy {
            "first.img"
        } else {
            "copy.img"
        })
    }

    fn arguments(&self, goal: Goal) -> Vec<String> {
        let shown = |path: PathBuf| path.display().to_string();
        let destination = shown(self.destination());
        let word = |word: &str| word.to_owned();
        let Goal::Finish { retries } = goal else {
            return vec![
                word("apply"),
                shown(self.path("back")),
                destination,
                word("--json"),
            ];
        };
        let mut words = vec![word(match self.way {
            Way::Apply => "apply",
            Way::Sync => "sync",
            _ => "send",
        })];
        if matches!(self.way, Way::Far | Way::Atomic | Way::Local) {
            let store = shown(self.bench.path("store.img"));
            words.extend([word("--from"), format!("cow:{store}")]);
        }
        words.push(shown(self.bench.path(if self.way == Way::Apply {
            "x.delta"
        } else {
            "new.img"
        })));
        if let Some(rsh) = &self.bench.rsh {
            let host = self.link.map(|link| link.far_address());
            let host = host.unwrap_or_else(|| "127.0.0.1".to_owned());
            words.push(format!("{host}:{destination}"));
            words.extend(self.timeout().iter().map(|word| (*word).to_owned()));
            words.extend([word("-e"), rsh.clone()]);
            words.extend([word("--remote-path"), shown(self.path("run/far"))]);
            if let Some(retries) = retries {
                words.extend([word("--retries"), retries.to_string()]);
            }
        } else {
            words.push(destination);
        }
        if self.way == Way::Atomic {
            words.push(word("--atomic"));
        }
        if self.undo {
            words.extend([word("--undo"), shown(self.path("back"))]);
        }
        words.push(word("--json"));
        words
    }

    /// Runs, and strikes meanwhile. When this returns, nothing of it is running any more.
    pub(crate) fn run(&self, goal: Goal, blow: Option<Blow>) -> Ended {
        let start = Instant::now();
        let output = |name: &str| fs::File::create(self.path("run").join(name)).unwrap();
        let mut words = self.link.map_or_else(Vec::new, |link| link.near());
        words.push(env!("CARGO_BIN_EXE_lvmsync").to_owned());
        words.extend(self.arguments(goal));
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .env(MARK, &self.mark)
            .stdin(Stdio::null())
            .stdout(output("stdout"))
            .stderr(output("stderr"))
            .spawn()
            .unwrap();
        if let Some(blow) = blow {
            self.strike(&mut child, blow);
        }
        let deadline = Instant::now() + Duration::from_secs(120);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                let running = marked(&self.mark);
                let _ = child.kill();
                panic!("it does not end: {running:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let seconds = start.elapsed().as_secs_f64();
        wait_until_gone(&self.mark);
        if let Some(link) = self.link {
            link.mend();
        }
        let read = |name: &str| fs::read(self.path("run").join(name)).unwrap();
        Ended {
            code: status.code(),
            said: text(&read("stderr")),
            result: serde_json::from_slice(&read("stdout")).unwrap_or_default(),
            seconds,
        }
    }

    /// Waits for the moment, and for the victim if it has not begun yet.
    fn strike(&self, child: &mut Child, blow: Blow) {
        std::thread::sleep(blow.after);
        if let (Victim::Link, Some(link)) = (blow.victim, self.link) {
            link.cut(blow.end);
            if let Some(pause) = blow.back_after {
                std::thread::sleep(pause);
                link.mend();
            }
            return;
        }
        while child.try_wait().unwrap().is_none() {
            let victim = match blow.victim {
                Victim::Sender => Some(child.id()),
                Victim::Receiver => self.find(|process| process.line.contains(" serve")),
                Victim::Ssh => self.find(|process| process.program == "ssh"),
                Victim::Link => None,
            };
            if victim.is_some_and(|pid| signal(pid, blow.signal)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn find(&self, is_it: impl Fn(&super::processes::Process) -> bool) -> Option<u32> {
        let found = marked(&self.mark).into_iter().find(is_it);
        found.map(|process| process.pid)
    }

    /// The record, held against what is there.
    #[track_caller]
    pub(crate) fn check(&self) -> Known {
        let (base, target) = (&self.bench.base, &self.bench.target);
        let (name, partial) = (self.destination(), partial(&self.destination()));
        let record = self.record();
        let incomplete = &record["incomplete"];
        if self.way == Way::FirstCopy && name.exists() {
            assert!(
                same(&fs::read(&name).unwrap(), target),
                "it has its name too early"
            );
        }
        let found = fs::read(if name.exists() { &name } else { &partial });
        let Ok(found) = found else {
            assert!(self.way == Way::FirstCopy && record.is_null(), "{record}");
            return Known::Nothing;
        };
        if record.is_null() {
            assert!(
                if self.way == Way::FirstCopy {
                    found.is_empty()
                } else {
                    same(&found, base)
                },
                "there is no record, and something was written"
            );
            return Known::Nothing;
        }
        if record["status"] == "complete" {
            let is_target = !record["stream"].is_null() && record["holds"]["id"].is_string()
                || self.way == Way::FirstCopy;
            let expected = if is_target { target } else { base };
            assert!(same(&found, expected), "the record says complete: {record}");
            return if is_target {
                Known::Target
            } else {
                Known::Base
            };
        }
        assert_eq!(record["status"], "incomplete");
        let durable = incomplete["durable_offset"].as_u64().unwrap() as usize;
        let is_back = !incomplete["undo_of"].is_null();
        let expected = if is_back { base } else { target };
        assert!(
            same(&found[..durable], &expected[..durable]),
            "the record says durable up to {durable}: {record}"
        );
        for (number, block) in found.chunks(4096).enumerate() {
            let at = number * 4096;
            let is = |bytes: &Vec<u8>| &bytes[at..at + block.len()] == block;
            let is_new = self.way == Way::FirstCopy && block.iter().all(|byte| *byte == 0);
            assert!(
                is(target) || is(base) && self.way != Way::FirstCopy || is_new,
                "the block at {at} is of neither state"
            );
        }
        let undo = incomplete["undo"].as_str().map(Path::new);
        if self.undo && !is_back {
            let undo = undo.expect("the record names the undo");
            assert!(
                undo.exists() || super::case::partial(undo).exists(),
                "no way back"
            );
        }
        if is_back {
            Known::ToBase(durable)
        } else {
            Known::ToTarget(durable)
        }
    }

    fn record(&self) -> serde_json::Value {
        let name = self.destination();
        if !name.exists() && !partial(&name).exists() {
            return serde_json::Value::Null;
        }
        let output = Command::new(env!("CARGO_BIN_EXE_lvmsync"))
            .args(["state", "show", "--json"])
            .arg(&name)
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        all[0].clone()
    }

    /// Bytes from the start that are in the target state.
    pub(crate) fn arrived(&self) -> usize {
        if self.way == Way::Atomic {
            return self.spooled();
        }
        let (name, partial) = (self.destination(), partial(&self.destination()));
        let found = fs::read(if name.exists() { name } else { partial }).unwrap_or_default();
        let pairs = found.chunks(4096).zip(self.bench.target.chunks(4096));
        pairs.take_while(|(found, target)| found == target).count() * 4096
    }

    /// The delta is kept beside up to this byte of the volume.
    fn spooled(&self) -> usize {
        let entries = fs::read_dir(self.path("state/spool")).into_iter().flatten();
        let kept = entries.flatten().next().map(|entry| entry.path());
        let part = kept.and_then(|path| SoundPart::of(fs::File::open(path).unwrap()).ok());
        part.map_or(0, |part| match part.whole_bytes {
            Some(_) => self.bench.target.len(),
            None => part.frames_end as usize,
        })
    }

    /// The destination is in this state, and nothing lies about.
    #[track_caller]
    pub(crate) fn is_in_order(&self, expected: &[u8], with_undo: bool) {
        let found = fs::read(self.destination()).unwrap();
        assert!(same(&found, expected), "the content is wrong");
        let record = self.record();
        assert_eq!(record["status"], "complete", "{record}");
        let names = |path: PathBuf| {
            let entries = fs::read_dir(path).unwrap().flatten();
            let mut names: Vec<String> = entries
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let destination = self.destination();
        let destination = destination.file_name().unwrap().to_str().unwrap();
        let mut wanted = vec![destination, "run", "state"];
        if with_undo {
            wanted.insert(0, "back");
        }
        assert_eq!(names(self.path("")), wanted, "left behind");
        let mut kept = names(self.path("state"));
        kept.retain(|name| name != "spool" || !names(self.path("state/spool")).is_empty());
        assert_eq!(kept, ["destinations"], "left behind");
        let records = names(self.path("state/destinations"));
        assert!(
            records.len() == 1 && records[0].ends_with(".state"),
            "left behind: {records:?}"
        );
    }

    pub(crate) fn has_cut_undo(&self) -> bool {
        self.path("back.partial").exists()
    }

    /// The undo of a run that was killed before it wrote is left, unfinished, where the run is not finished.
    pub(crate) fn has_whole_undo(&self) -> bool {
        self.path("back").exists()
    }
}

/// Without printing megabytes.
fn same(found: &[u8], expected: &[u8]) -> bool {
    found == expected
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}
