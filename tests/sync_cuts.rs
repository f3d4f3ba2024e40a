//! A sync or a comparison that is cut, and one whose volumes change under it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test, and volumes here are small"
)]

mod record_kit;
mod sync_kit;

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::process::{Pid, Signal, kill_process};

use record_kit::{noise, only};
use sync_kit::{Ends, WAYS, Way, pair};

/// Where a run is cut: after so many bytes on the way there or back, or after so many microseconds.
#[derive(Clone, Copy, Debug)]
enum Cut {
    There(usize),
    Back(usize),
    After(u32),
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![
        (1usize..4_000).prop_map(Cut::There),
        (1usize..400_000).prop_map(Cut::There),
        (1usize..5_000).prop_map(Cut::Back),
        (0u32..60_000).prop_map(Cut::After),
    ]
}

/// Runs until it is cut, or to its end if that comes first.
fn run_until(ends: &Ends, cut: Cut) {
    let whole = r#"exec sh -c "$*""#;
    match cut {
        Cut::There(bytes) => ends.shell(&format!(r#"{} | sh -c "$*""#, only(bytes))),
        // Nothing of it holds the line open once it is cut.
        Cut::Back(bytes) => ends.shell(&format!(r#"sh -c "$*" | ({}; kill -9 $$)"#, only(bytes))),
        Cut::After(_) => ends.shell(whole),
    }
    let mut child = ends
        .command("sync", &["--retries", "0", "--timeout", "10"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if let Cut::After(microseconds) = cut {
        sleep(Duration::from_micros(microseconds.into()));
        // SIGKILL.
        let _ = child.kill();
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        matches!(output.status.code(), None | Some(0 | 5 | 7)),
        "{said}"
    );
    ends.shell(whole);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(1024) / 16 + 4))]

    #[test]
    fn any_pair_that_is_cut_anywhere_is_equal_in_the_end(
        pair in pair(),
        way in prop::sample::select(WAYS.to_vec()),
        cuts in prop::collection::vec(cut(), 1..4),
    ) {
        let ends = Ends::new(way);
        fs::write(ends.path("source"), &pair.source).unwrap();
        fs::write(ends.path("destination"), &pair.destination).unwrap();
        for cut in cuts {
            run_until(&ends, cut);
        }
        // The far end of a run that was killed may still have to hear of it.
        let is_locked = || ends.run("sync", &[]).status.code() == Some(5);
        let locked = (0..100).take_while(|_| is_locked());
        locked.for_each(|_| sleep(Duration::from_millis(100)));
        ends.sync(&[]);
    }
}

/// Runs, and after a while a byte of a file is written.
fn with_a_write(ends: &Ends, verb: &str, more: &[&str], (changed, byte): (&str, u8)) -> Output {
    let mut command = ends.command(verb, more);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    sleep(Duration::from_millis(700));
    let file = fs::File::options().write(true).open(ends.path(changed));
    file.unwrap().write_all_at(&[byte], 100).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_file_that_is_written_while_it_is_synced_is_no_state() {
    for way in WAYS {
        let ends = Ends::new(way);
        fs::write(ends.path("source"), noise(6 << 20, "source")).unwrap();
        fs::write(ends.path("destination"), noise(6 << 20, "before")).unwrap();
        let output = with_a_write(
            &ends,
            "sync",
            &["--bwlimit", "3M", "--retries", "0"],
            ("source", 1),
        );
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{way:?} {said}");
        assert!(
            said.contains("it was written while it was read"),
            "{way:?} {said}"
        );
        ends.sync(&[]);
    }
}

#[test]
fn files_that_are_written_while_they_are_compared_are_not_called_equal() {
    // The one here is open when the far end begins, late.
    let ends = Ends::new(Way::Push);
    ends.shell(r#"sleep 2; exec sh -c "$*""#);
    let same = noise(1 << 20, "same");
    for name in ["source", "destination"] {
        fs::write(ends.path(name), &same).unwrap();
    }
    assert_eq!(ends.run("compare", &[]).status.code(), Some(0));
    // The same byte once more is a write as well.
    let output = with_a_write(&ends, "compare", &[], ("source", same[100]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let words = "source: what was found holds for no moment of it";
    assert!(said.contains(words), "{said}");
}

#[test]
fn a_far_file_that_is_written_while_it_is_compared_is_not_called_equal() {
    for (way, name) in [(Way::Push, "destination"), (Way::Pull, "source")] {
        let ends = Ends::new(way);
        let same = noise(1 << 20, "same");
        for name in ["source", "destination"] {
            fs::write(ends.path(name), &same).unwrap();
        }
        // Whatever goes there goes slowly, so that it is open for a while.
        let late = ends.path("late").display().to_string();
        ends.shell(&format!(
            "while dd bs=256 count=1 of={late} status=none; [ -s {late} ]; do cat {late}; sleep 0.2; done | sh -c \"$*\""
        ));
        assert_eq!(ends.run("compare", &[]).status.code(), Some(0));
        let (ended, file) = (AtomicBool::new(false), ends.path(name));
        let output = thread::scope(|scope| {
            scope.spawn(|| {
                let file = fs::File::options().write(true).open(file).unwrap();
                let began = Instant::now();
                while !ended.load(Ordering::Relaxed) && began.elapsed() < Duration::from_secs(100) {
                    file.write_all_at(&same[100..101], 100).unwrap();
                    sleep(Duration::from_millis(20));
                }
            });
            let output = ends.run("compare", &[]);
            ended.store(true, Ordering::Relaxed);
            output
        });
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("written while it was compared"), "{said}");
        assert!(said.contains(&format!("/{name}: what was found")), "{said}");
    }
}

#[test]
fn files_that_differ_differ_whoever_writes_meanwhile() {
    let ends = Ends::new(Way::Push);
    ends.shell(r#"sleep 2; exec sh -c "$*""#);
    fs::write(ends.path("source"), noise(1 << 20, "one")).unwrap();
    fs::write(ends.path("destination"), noise(1 << 20, "other")).unwrap();
    let output = with_a_write(&ends, "compare", &["--json"], ("source", 1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("written while it was compared"), "{said}");
}

/// How far the record of the destination says that all is durable; `None` if no run is under way by it.
fn durable_offset(ends: &Ends) -> Option<u64> {
    let records = fs::read_dir(ends.path("state").join("destinations"));
    let records = records.into_iter().flatten().flatten();
    let texts = records.filter_map(|record| fs::read_to_string(record.path()).ok());
    let offset = |text: String| {
        let (_, record) = text.split_once('\n')?;
        let record: serde_json::Value = serde_json::from_str(record).ok()?;
        record["incomplete"]["durable_offset"].as_u64()
    };
    texts.filter_map(offset).max()
}

#[test]
fn what_one_run_has_settled_the_next_does_not_compare_again() {
    const BYTES: usize = 40 << 20;
    for way in WAYS {
        let ends = Ends::new(way);
        let source = noise(BYTES, "source");
        let mut before = source.clone();
        before.iter_mut().step_by(2000).for_each(|byte| *byte ^= 1);
        fs::write(ends.path("source"), source).unwrap();
        fs::write(ends.path("destination"), before).unwrap();
        let mut command = ends.command("sync", &["--bwlimit", "8M", "--retries", "0"]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while durable_offset(&ends).is_none() && began.elapsed() < Duration::from_secs(60) {
            sleep(Duration::from_millis(20));
        }
        // Some of five.
        sleep(Duration::from_secs(2));
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(130), "{way:?} {said}");
        // The far end may have to hear of it yet.
        while durable_offset(&ends) == Some(0) && began.elapsed() < Duration::from_secs(60) {
            sleep(Duration::from_millis(20));
        }
        let settled = durable_offset(&ends).unwrap();
        assert!(settled > 0, "{way:?}");
        let compared = ends.sync(&[])["compared_bytes"].as_u64().unwrap();
        assert!(
            compared <= BYTES as u64 - settled,
            "{way:?}: {compared}, {settled}"
        );
    }
}

/// A first copy that somebody has changed since it was cut is not finished on top of that: it has no time yet by which that
/// is seen, as a destination that was there before has.
#[test]
fn a_first_copy_that_was_written_to_since_it_was_cut_begins_anew() {
    for (way, writes) in WAYS.iter().flat_map(|way| [(*way, true), (*way, false)]) {
        let ends = Ends::new(way);
        fs::write(ends.path("source"), noise(12 << 20, "source")).unwrap();
        let mut child = ends
            .command("sync", &["--bwlimit", "6M", "--retries", "0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(1200));
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{way:?}");
        let partial = ends.path("destination.partial");
        if writes {
            let file = fs::File::options().write(true).open(partial).unwrap();
            // Past the block at the beginning of what was written, which is looked at.
            file.write_all_at(b"XXXX", 5000).unwrap();
        }
        let summary = ends.sync(&[]);
        let copied = summary["data_bytes"].as_u64().unwrap();
        assert_eq!(copied == 12 << 20, writes, "{way:?}: {copied}");
    }
}

/// Two volumes of 64 MiB that differ at the ends and in between, the first connection of whose comparison is cut after so many
/// bytes from the far end. `again` is run before the second one begins.
fn compared_in_two(way: Way, bytes: usize, again: &str, more: &[&str]) -> (Ends, Output) {
    let ends = Ends::new(way);
    let source = noise(64 << 20, "source");
    let mut other = source.clone();
    for at in [0, 9 << 20, (20 << 20) + 70_000, (64 << 20) - 1] {
        other[at] ^= 1;
    }
    fs::write(ends.path("source"), source).unwrap();
    fs::write(ends.path("destination"), other).unwrap();
    let was_cut = ends.path("was-cut").display().to_string();
    ends.shell(&format!(
        "if [ -e {was_cut} ]; then {again}; exec sh -c \"$*\"; fi; touch {was_cut}\n\
         sh -c \"$*\" | ({}; kill -9 $$)",
        only(bytes)
    ));
    let output = ends.run("compare", &[&["--json", "-v"], more].concat());
    (ends, output)
}

#[test]
fn a_comparison_whose_connection_is_lost_goes_on_where_it_was() {
    for way in [Way::Push, Way::Pull] {
        let (ends, output) = compared_in_two(way, 7000, "true", &["--progress", "json"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{way:?} {said}");
        assert!(said.contains("trying again in 1 s (1 of 6)"), "{said}");
        let went_on = said.split("goes on at byte ").nth(1).unwrap();
        let at: u64 = went_on.split(',').next().unwrap().parse().unwrap();
        assert!(at >= 4 << 20, "{way:?} {said}");
        let all = 64 << 20;
        let progress = format!("\"bytes_done\":{all},\"bytes_total\":{all},");
        assert!(said.contains(&progress), "{way:?} {said}");
        let whole = ends.run("compare", &["--json"]);
        assert_eq!(output.stdout, whole.stdout, "{way:?}");
        assert_eq!(whole.status.code(), Some(3));
    }
}

#[test]
fn a_comparison_is_not_made_again_if_that_is_not_wanted() {
    for way in [Way::Push, Way::Pull] {
        let (_, output) = compared_in_two(way, 7000, "true", &["--retries", "0"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(7), "{way:?} {said}");
    }
}

#[test]
fn what_is_written_between_two_connections_of_a_comparison_is_seen() {
    for (way, far) in [(Way::Push, "destination"), (Way::Pull, "source")] {
        let write = format!(
            "printf xyz | dd of=\"${{0%shell}}{far}\" bs=1 seek=5000 conv=notrunc status=none"
        );
        let (_, output) = compared_in_two(way, 7000, &write, &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{way:?} {said}");
        let words = "it may have been written to since the comparison began: all is compared anew";
        assert!(said.contains(words), "{way:?} {said}");
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        let first = "\"extents\":[{\"offset\":0,\"length\":8192},";
        assert!(found.contains(first), "{way:?} {found}");
    }
    // What is here is open all the time.
    let write = "printf xyz | dd of=\"${0%shell}source\" bs=1 seek=5000 conv=notrunc status=none";
    let (_, output) = compared_in_two(Way::Push, 7000, write, &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("source: what was found holds for no moment of it"),
        "{said}"
    );
}

/// A sync whose first connection is cut after so many bytes of data; what it said in JSON, and on stderr.
fn synced_in_two(ends: &Ends, way: Way, bytes: usize) -> (serde_json::Value, String) {
    let was_cut = ends.path("was-cut").display().to_string();
    let cut = match way {
        Way::Pull => format!("sh -c \"$*\" | ({}; kill -9 $$)", only(bytes)),
        _ => format!("{} | sh -c \"$*\"", only(bytes)),
    };
    let whole = "exec sh -c \"$*\"";
    ends.shell(&format!(
        "if [ -e {was_cut} ]; then {whole}; fi; touch {was_cut}\n{cut}"
    ));
    let output = ends.run("sync", &["--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{way:?} {said}");
    assert!(said.contains("trying again"), "{way:?} {said}");
    ends.is_equal();
    (serde_json::from_slice(&output.stdout).unwrap(), said)
}

#[test]
fn what_all_connections_of_a_sync_carried_is_told() {
    const BYTES: u64 = 30 << 20;
    for way in [Way::Push, Way::Pull] {
        for is_new in [true, false] {
            let ends = Ends::new(way);
            fs::write(ends.path("source"), noise(BYTES as usize, "source")).unwrap();
            if !is_new {
                fs::write(ends.path("destination"), noise(BYTES as usize, "before")).unwrap();
            }
            let (json, said) = synced_in_two(&ends, way, 20_000_000);
            let told = |name: &str| json[name].as_u64().unwrap();
            let [data, sent, wire] = ["data_bytes", "bytes_sent", "wire_bytes"].map(told);
            assert!(data >= BYTES, "{way:?} {is_new} {json}");
            // Of what was cut some may never have left.
            let left = wire + (2 << 20);
            assert!(sent >= data && left >= sent, "{way:?} {is_new} {json}");
            assert!(!said.contains("times as much"), "{way:?} {is_new} {said}");
            if !is_new {
                assert_eq!(told("compared_bytes"), BYTES, "{way:?} {json}");
            }
        }
    }
}

#[test]
fn the_beginning_of_a_copy_is_named_where_the_whole_is_compared() {
    for way in WAYS {
        let ends = Ends::new(way);
        fs::write(ends.path("source"), noise(30 << 20, "source")).unwrap();
        if way == Way::Here {
            let mut command = ends.command("sync", &["--bwlimit", "8M"]);
            let child = command.stderr(Stdio::null()).spawn().unwrap();
            sleep(Duration::from_millis(1500));
            let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
            kill_process(pid, Signal::INT).unwrap();
            child.wait_with_output().unwrap();
        } else {
            let cut = match way {
                Way::Pull => format!("sh -c \"$*\" | ({}; kill -9 $$)", only(20_000_000)),
                _ => format!("{} | sh -c \"$*\"", only(20_000_000)),
            };
            ends.shell(&cut);
            assert_eq!(ends.run("sync", &["--retries", "0"]).status.code(), Some(7));
            ends.shell("exec sh -c \"$*\"");
        }
        // The far end may have to hear of it yet.
        sleep(Duration::from_millis(500));
        let output = ends.run("compare", &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(5), "{way:?} {said}");
        for words in [
            "destination.partial is there, half-written, and on record as incomplete",
            "Finish it: lvmsync sync ",
        ] {
            assert!(said.contains(words), "{way:?} {words} {said}");
        }
        assert!(!said.contains("NEW"), "{way:?} {said}");
        ends.sync(&[]);
    }
}
