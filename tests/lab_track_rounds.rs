//! Rounds of sends since an era under four writers, with power cuts at any moment: the copy always is one moment of the
//! volume, no block of it is missing, and nothing has to be compared.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use lab::{Guest, Script};
use lab_kit::eras::{DEVICE, send};
use lab_kit::{Random, Tool, any_seed, assert_same, content, long, setup, write};

const MIB: u64 = 1 << 20;
const WRITERS: u64 = 4;
const BLOCK: u64 = 4096;
/// Each writer has as many for itself.
const BLOCKS: u64 = 4 * MIB / BLOCK;

/// The block that a writer writes as its `number`th, counted from one.
fn place(writer: u64, number: u64) -> u64 {
    Random::new(writer << 32 | number).below(BLOCKS)
}

fn offset(writer: u64, block: u64) -> u64 {
    (writer * BLOCKS + block) * BLOCK
}

/// What it writes there.
fn pattern(writer: u64, number: u64) -> Vec<u8> {
    let word = [number.to_le_bytes(), (writer + 1).to_le_bytes()].concat();
    match number {
        0 => vec![0; BLOCK as usize],
        _ => word.repeat(BLOCK as usize / word.len()),
    }
}

/// How far each writer was at the moment that `content` is of. Each writes one block after another, so that is all there is
/// to know: every block must hold what was written to it last by then.
#[track_caller]
fn moment(content: &[u8], when: &str) -> Vec<u64> {
    let how_far = |writer: u64| {
        let block = |block: u64| {
            let at = offset(writer, block) as usize;
            &content[at..at + BLOCK as usize]
        };
        let number = |block: &[u8]| u64::from_le_bytes(*block.first_chunk().unwrap());
        let last = (0..BLOCKS).map(|n| number(block(n))).max().unwrap();
        let mut expected = vec![0; BLOCKS as usize];
        for number in 1..=last {
            expected[place(writer, number) as usize] = number;
        }
        for (n, expected) in (0..).zip(expected) {
            let found = number(block(n));
            assert!(
                block(n) == pattern(writer, expected),
                "{when}: writer {writer} was at {last}: block {n} is of {found} and not of {expected}"
            );
        }
        last
    };
    (0..WRITERS).map(how_far).collect()
}

/// Goes on where the volume says that it was.
fn write_on(writer: u64, from: u64, done: &AtomicBool, acknowledged: &Mutex<Vec<u64>>) {
    for number in from + 1.. {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let at = offset(writer, place(writer, number));
        write(DEVICE, &pattern(writer, number), at);
        acknowledged.lock().unwrap()[writer as usize] = number;
        sleep(Duration::from_millis(10 + 7 * writer));
    }
}

/// What the unit runs, in its order; `lvmsync` is the one that is tested.
fn unit(guest: &Guest, tool: &Tool, key: &str) {
    let text = include_str!("../contrib/lvmsync-track.service");
    let lines = text.lines().filter_map(|line| line.split_once('='));
    for (_, line) in lines.filter(|(found, _)| *found == key) {
        match line.strip_prefix("/usr/local/bin/lvmsync ") {
            Some(arguments) => drop(tool.run(arguments).ok()),
            None => drop(guest.sh(line.trim_start_matches('-'))),
        }
    }
}

/// As a machine does that has the unit.
fn boot(guest: &Guest) -> Tool {
    let tool = Tool::new(guest);
    unit(guest, &tool, "ExecStartPre");
    unit(guest, &tool, "ExecStart");
    let state = tool.path("state");
    let state = state.display();
    guest.sh(&format!("mkdir -p {state}; mount /dev/vg/keep {state}"));
    tool
}

fn make(guest: &Guest) {
    let tool = Tool::new(guest);
    guest.volume_group("vg", 0);
    for (name, size) in [("data", "16M"), ("copy", "16M"), ("keep", "32M")] {
        guest.volume("vg", name, size);
    }
    guest.sh("mkfs.ext4 -q /dev/vg/keep");
    let state = tool.path("state");
    let state = state.display();
    guest.sh(&format!("mkdir -p {state}; mount /dev/vg/keep {state}"));
    tool.run("track enable vg/data --block-size 4K").ok();
    tool.run(&format!("send {DEVICE} vg/copy")).ok();
    guest.sh("sync");
}

/// Rounds without end; how many there were is known outside.
fn rounds(guest: &Guest) {
    let tool = boot(guest);
    let from = moment(&content(DEVICE), "after the boot");
    let acknowledged = Mutex::new(from.clone());
    let done = AtomicBool::new(false);
    guest.announce(&format!("ROUNDS from {from:?}"));
    std::thread::scope(|scope| {
        for (writer, from) in (0..WRITERS).zip(&from) {
            let (done, acknowledged) = (&done, &acknowledged);
            scope.spawn(move || write_on(writer, *from, done, acknowledged));
        }
        let count = guest.shared().join("rounds");
        for number in 0..10_000 {
            let before = acknowledged.lock().unwrap().clone();
            send(&tool, "vg/copy").ok();
            let when = format!("round {number} of this boot");
            let now = moment(&content("/dev/vg/copy"), &when);
            for (before, now) in before.iter().zip(&now) {
                assert!(
                    now >= before,
                    "{when}: {now}, and {before} was there before it"
                );
            }
            let all = fs::read_to_string(&count).unwrap_or_default();
            let all = all.parse().unwrap_or(0) + 1;
            fs::write(&count, format!("{all}")).unwrap();
            guest.announce(&format!("ROUND {number} DONE, of {all}: {now:?}"));
        }
    });
}

#[test]
fn no_block_is_missed_under_writers_whatever_is_cut() {
    let name = "no_block_is_missed_under_writers_whatever_is_cut";
    let wanted = if long() { 100 } else { 3 };
    let mut cuts = 0;
    // Of one boot, which may do half of the rounds.
    let limit = Duration::from_secs(if long() { 3000 } else { 300 });
    Script::new(name, setup().disk("256M").time_limit(limit))
        .phase("make", make)
        .phase("rounds", rounds)
        .phase("end", |guest| {
            let tool = boot(guest);
            send(&tool, "vg/copy").ok();
            assert_same("/dev/vg/copy", &content("/dev/vg/data"), "in the end");
        })
        .drive(|driver| {
            driver.run("make");
            let count = driver.machine().directory().join("rounds");
            let seed = any_seed();
            println!("LVMSYNC_SEED={seed}");
            let mut random = Random::new(seed);
            loop {
                let mut guest = driver.boot("rounds");
                let limit = Duration::from_secs(120);
                driver.wait_for(&mut guest, "ROUNDS from", limit);
                // In the middle of the first one, or after some.
                for number in 0..(cuts % 2) * (1 + random.below(wanted / 2)) {
                    driver.wait_for(&mut guest, &format!("ROUND {number} DONE"), limit);
                }
                sleep(Duration::from_millis(random.below(4000)));
                guest.cut().unwrap();
                cuts += 1;
                let done = fs::read_to_string(&count).unwrap_or_default();
                if done.parse().unwrap_or(0) >= wanted && cuts > 1 {
                    break;
                }
            }
            driver.run("end");
        });
}
