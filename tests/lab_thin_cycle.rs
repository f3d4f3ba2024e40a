//! Increments of a thin volume while others write and discard: make the new snapshot, then reserve, compare and send, then
//! drop the old one. The copy is right each time, and as thin as what it is a copy of.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lab::Guest;
use lab_kit::thin::{self, held_root, lvm};
use lab_kit::{Random, Tool, assert_same, content, long, seed, setup, wrong_blocks};
use lvmsync::sys::aligned::AlignedBuffer;

const SIZE: u64 = 32 << 20;
const CHUNK: u64 = 64 << 10;
const BLOCK: u64 = 4096;

/// Milliseconds between two writes of one writer: few where what is written between two moments must not be missed.
const SLOW: u64 = 150;
const FAST: u64 = 3;
const STOP: u64 = 0;

struct Load {
    pause: AtomicU64,
    writes: AtomicU64,
    discards: AtomicU64,
}

struct StopAtEnd<'a>(&'a AtomicU64);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(STOP, Ordering::Relaxed);
    }
}

impl Load {
    fn write_until_stopped(&self, seed: u64) {
        const O_DIRECT: i32 = 0o40000;
        let mut options = File::options();
        options.write(true).custom_flags(O_DIRECT);
        let file = options.open("/dev/vg/data").unwrap();
        let mut random = Random::new(seed);
        let mut buffer = AlignedBuffer::new(24 * BLOCK as usize);
        while self.pause.load(Ordering::Relaxed) != STOP {
            let blocks = 1 + random.below(24);
            let offset = random.below(SIZE / BLOCK - blocks + 1) * BLOCK;
            let length = (blocks * BLOCK) as usize;
            buffer[..length].fill(1 + random.below(255) as u8);
            file.write_all_at(&buffer[..length], offset).unwrap();
            self.writes.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(self.pause.load(Ordering::Relaxed)));
        }
    }

    fn discard_until_stopped(&self, seed: u64) {
        let mut random = Random::new(seed);
        while self.pause.load(Ordering::Relaxed) != STOP {
            // Whole chunks, and parts of some.
            let length = 512 * (1 + random.below(24 * CHUNK / 512));
            let offset = 512 * random.below((SIZE - length) / 512);
            let mut command = Command::new("blkdiscard");
            command.args([
                "-o",
                &offset.to_string(),
                "-l",
                &length.to_string(),
                // LVM makes the link in /dev/vg anew with each snapshot, and for a moment there is none.
                "/dev/mapper/vg-data",
            ]);
            assert!(command.status().unwrap().success());
            self.discards.fetch_add(1, Ordering::Relaxed);
            let pause = self.pause.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(pause));
        }
    }

    fn wait_for_writes(&self, more: u64) {
        let until = self.writes.load(Ordering::Relaxed) + more;
        while self.writes.load(Ordering::Relaxed) < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Chunks that are mapped in an active thin volume.
fn mapped_chunks(guest: &Guest, device: &str) -> u64 {
    let status = guest.sh(&format!("dmsetup status {device}"));
    status
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 512
        / CHUNK
}

#[test]
fn thin_increments_under_four_writers_and_a_discarder() {
    let limit = Duration::from_secs(if long() { 400 } else { 120 });
    let setup = setup().disk("512M").disk("128M").time_limit(limit);
    let name = "thin_increments_under_four_writers_and_a_discarder";
    lab::test(name, setup, |guest| {
        let rounds = if long() { 20 } else { 2 };
        cycle(guest, rounds, false);
    });
}

#[test]
fn the_copy_stays_as_thin_as_its_source() {
    let setup = setup().disk("512M").disk("128M");
    let name = "the_copy_stays_as_thin_as_its_source";
    lab::test(name, setup, |guest| cycle(guest, 2, true));
}

fn cycle(guest: &Guest, rounds: u64, stays_thin: bool) {
    let tool = Tool::new(guest);
    thin::group(guest, "vg", 0);
    thin::group(guest, "far", 1);
    thin::pool(guest, "vg/pool", 400, CHUNK >> 10, "");
    thin::pool(guest, "far/pool", 64, CHUNK >> 10, "");
    lvm(
        guest,
        &format!("lvcreate -qq -y -T -V {SIZE}b -n data vg/pool"),
    );
    lvm(
        guest,
        &format!("lvcreate -qq -y -T -V {SIZE}b -n copy far/pool"),
    );
    let random = Random::new(seed(guest)).below(1 << 20);
    let load = Load {
        pause: SLOW.into(),
        writes: 0.into(),
        discards: 0.into(),
    };
    let (mut missed, mut thicker) = (0, 0);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let load = &load;
            scope.spawn(move || load.write_until_stopped(random + seed));
        }
        scope.spawn(|| load.discard_until_stopped(random + 4));
        // Whatever fails must stop the writers, or the scope waits for them for ever.
        let _guard = StopAtEnd(&load.pause);
        load.wait_for_writes(20);
        lvm(guest, "lvcreate -qq -y -s -kn -pr -n s0 vg/data");
        tool.run("send vg/s0 far/copy").ok();
        let mut base = content("/dev/vg/s0");
        assert_same("/dev/far/copy", &base, "the first copy");
        for round in 1..=rounds {
            let (old, new) = (format!("vg/s{}", round - 1), format!("vg/s{round}"));
            load.wait_for_writes(20);
            load.pause.store(FAST, Ordering::Relaxed);
            // The control: what was compared before the new snapshot was made.
            let early = tool.thin_diff(&format!("--from {old} vg/data"));
            load.wait_for_writes(20);
            // Inactive, as LVM makes them, and active.
            let active = round % 2 == 0;
            let options = if active { "-kn -pr" } else { "-pr" };
            lvm(
                guest,
                &format!("lvcreate -qq -y -s {options} -n s{round} vg/data"),
            );
            load.pause.store(SLOW, Ordering::Relaxed);
            let before = load.writes.load(Ordering::Relaxed);
            tool.run(&format!("send --from {old} {new} far/copy")).ok();
            assert!(
                load.writes.load(Ordering::Relaxed) > before,
                "nobody wrote meanwhile"
            );
            assert_eq!(thin::is_active(&new), active);
            if !active {
                lvm(guest, &format!("lvchange -qq -ay -K {new}"));
            }
            let state = content(format!("/dev/{new}"));
            assert_same("/dev/far/copy", &state, &format!("round {round}"));
            for (offset, length, _) in early {
                let range = offset as usize..(offset + length) as usize;
                base[range.clone()].copy_from_slice(&state[range]);
            }
            missed += wrong_blocks(&base, &state);

            let source = mapped_chunks(guest, &new.replace('/', "-"));
            let copy = mapped_chunks(guest, "far-copy");
            assert!(
                !stays_thin || copy <= source,
                "round {round}: {copy} chunks, and {source} in the source"
            );
            thicker += copy.saturating_sub(source);
            lvm(guest, &format!("lvremove -qq -y {old}"));
            if !active {
                lvm(guest, &format!("lvchange -qq -an {new}"));
            }
            base = state;
        }
    });
    assert_eq!(held_root(guest, "vg/pool"), "-");
    guest.announce(&format!(
            "{rounds} rounds, {} writes, {} discards; compared too early, {missed} blocks would have been missed; \
             mapped in the copy only: {thicker} chunks",
            load.writes.load(Ordering::Relaxed),
            load.discards.load(Ordering::Relaxed)
        ));
    assert!(
        missed > 0,
        "the control saw nothing, so this test could not have seen anything either"
    );
}
