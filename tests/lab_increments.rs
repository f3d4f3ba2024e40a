//! Increments while others write: make the new snapshot, then read the old one's table, then drop the old one.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lab_kit::live::{self, Bench, Kind, MIB, kill, wait_until};
use lab_kit::{Random, Run, Tool, assert_same, content, long, setup, write, wrong_blocks};
use lvmsync::sys::aligned::AlignedBuffer;
use rustix::process::Signal;

/// The volume's size. A store of twice the size can never overflow.
const SIZE_MIB: u64 = 12;
const BLOCK: u64 = 4096;

/// Milliseconds between two writes of one writer: few while data is sent and compared, or the whole volume would
/// change in each round and no rule could miss anything; many where the rules differ.
const SLOW: u64 = 120;
const FAST: u64 = 2;
const STOP: u64 = 0;

#[test]
fn increments_under_four_writers() {
    let limit = Duration::from_secs(if long() { 300 } else { 120 });
    let setup = setup().disk("512M").disk("256M").time_limit(limit);
    lab::test("increments_under_four_writers", setup, |guest| {
        let rounds = if long() { 20 } else { 3 };
        let tool = Tool::new(guest);
        guest.volume_group("vg", 0);
        guest.volume_group("backup", 1);
        let size = format!("{SIZE_MIB}M");
        let data = guest.volume("vg", "data", &size);
        let copy = guest.volume("backup", "copy", &size);
        let far_copy = guest.volume("backup", "far", &size);
        guest.host("far");
        write(&data, &Random::new(1).bytes((SIZE_MIB << 20) as usize), 0);

        let pause = AtomicU64::new(SLOW);
        let writes = AtomicU64::new(0);
        let mut wrong_by_old_rule = 0;
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (pause, writes, data) = (&pause, &writes, &data);
                scope.spawn(move || write_until_stopped(pause, writes, data, seed));
            }
            // Whatever fails must stop the writers, or the scope waits for them for ever.
            let _guard = StopAtEnd(&pause);
            snapshot(guest, 0);
            tool.run("send vg/s0 backup/copy").ok();
            tool.run("send vg/s0 far:backup/far -z lz4").ok();
            let mut base = content("/dev/vg/s0");
            assert_same(&copy, &base, "the first copy");
            assert_same(&far_copy, &base, "the first copy over ssh");
            for round in 1..=rounds {
                let (old, new) = (format!("vg/s{}", round - 1), format!("vg/s{round}"));
                wait_for_writes(&writes, 40);
                pause.store(FAST, Ordering::Relaxed);
                // The control: a table that was read before the new snapshot was made.
                let (_, early) = tool.diff(&old, "vg/data");
                snapshot(guest, round);
                pause.store(SLOW, Ordering::Relaxed);
                let state = content(format!("/dev/{new}"));
                for (offset, length) in early {
                    let range = offset as usize..(offset + length) as usize;
                    base[range.clone()].copy_from_slice(&state[range]);
                }
                wrong_by_old_rule += wrong_blocks(&base, &state);

                let before = writes.load(Ordering::Relaxed);
                tool.run(&format!("send --from {old} {new} backup/copy"))
                    .ok();
                assert_same(&copy, &state, &format!("round {round}"));
                tool.run(&format!(
                    "send --from {old} {new} far:/dev/backup/far -z lz4"
                ))
                .ok();
                assert_same(&far_copy, &state, &format!("round {round} over ssh"));
                assert!(
                    writes.load(Ordering::Relaxed) > before,
                    "nobody wrote meanwhile"
                );
                guest.sh(&format!("lvremove -qq -y {old}"));
                base = state;
            }
        });
        eprintln!(
            "{rounds} rounds, {} writes; the table read first would have missed {wrong_by_old_rule} blocks",
            writes.load(Ordering::Relaxed)
        );
        assert!(
            wrong_by_old_rule > 0,
            "the control saw nothing, so this test could not have seen anything either"
        );
    });
}

/// Every write to the origin makes both tables longer, so the list of the run that goes on is not the one of the run that
/// was cut.
/// Two snapshots, and a destination on which there is a moment in which some is overwritten and some is not.
struct Cuts<'a> {
    guest: &'a lab::Guest,
    tool: Tool,
    random: Random,
    old: Vec<u8>,
    new: Vec<u8>,
}

const SLOW_COPY: &str = "/dev/mapper/slow";

impl<'a> Cuts<'a> {
    fn start(guest: &'a lab::Guest, permission: &str) -> Self {
        live::make(guest, Kind::Thick);
        let tool = Bench::new(guest).tool;
        let mut random = Random::new(3);
        let old = random.bytes(24 * MIB);
        write("/dev/vg/data", &old, 0);
        let snapshot =
            format!("lvcreate -qq -s -c 4k -L 30M --permission {permission} vg/data 2>&1 -n");
        guest.sh(&format!("{snapshot} s1"));
        for offset in (MIB..22 * MIB).step_by(2 * MIB) {
            write("/dev/vg/data", &random.bytes(MIB), offset as u64);
        }
        guest.sh(&format!("{snapshot} s2"));
        guest.sh(
            "modprobe dm-delay
             printf '0 8192 linear /dev/there/copy 0\\n8192 40960 delay /dev/there/copy 8192 0 /dev/there/copy 8192 200\\n' > table
             dmsetup create slow < table",
        );
        let new = content("/dev/vg/s2");
        Self {
            guest,
            tool,
            random,
            old,
            new,
        }
    }

    /// Begins, and is cut in the middle; then the origin is written to where it has been and where it has not, and beside
    /// what both snapshots have in their tables. Gives back the command.
    fn cut(&mut self, rest: &str, signal: Signal) -> String {
        self.tool.reset(SLOW_COPY, &self.old);
        // An undo is sure of its base only where that is on record; the far end keeps its records elsewhere.
        for place in ["", "--state-dir /var/lib/lvmsync"] {
            let adopt = format!("state adopt --force {SLOW_COPY} vg/s1 {place}");
            self.tool.run(&adopt).ok();
        }
        let run = format!("send --from vg/s1 vg/s2 {rest} -v");
        let child = self.tool.start(&format!("{run} --bwlimit 8M"));
        wait_until("it is in the middle", || {
            content(SLOW_COPY)[MIB] == self.new[MIB]
        });
        kill(&child, signal);
        let code = Run::of(child).code;
        assert_eq!(code, (signal == Signal::INT).then_some(130), "{rest}");
        for _ in 0..40 {
            let offset = self.random.below(6 * 1024 - 2) * BLOCK;
            let bytes = self.random.bytes(2 * BLOCK as usize);
            write("/dev/vg/data", &bytes, offset);
        }
        // The far end.
        live::settle();
        run
    }

    fn activate_anew(&self) {
        self.guest.sh("vgchange -qq -an vg && vgchange -qq -ay vg");
    }
}

#[test]
fn an_increment_that_was_cut_goes_on_while_its_origin_is_written_to() {
    let name = "an_increment_that_was_cut_goes_on_while_its_origin_is_written_to";
    lab::test(name, live::setup(), |guest| {
        guest.host("far");
        let mut cuts = Cuts::start(guest, "rw");
        for (signal, rest) in [
            (Signal::INT, "/dev/mapper/slow"),
            (Signal::INT, "/dev/mapper/slow --undo undo"),
            (Signal::KILL, "/dev/mapper/slow --undo undo --overwrite"),
            (Signal::KILL, "far:/dev/mapper/slow"),
        ] {
            let run = cuts.cut(rest, signal);
            let said = cuts.tool.run(&run).ok().stderr;
            let goes_on = said.contains("goes on at byte");
            assert!(goes_on || signal == Signal::KILL, "{rest}: {said}");
            assert_same(SLOW_COPY, &cuts.new, rest);
            if rest.contains("undo") {
                cuts.tool.run("apply undo /dev/mapper/slow").ok();
                assert_same(SLOW_COPY, &cuts.old, rest);
            }
        }
        assert_same("/dev/vg/s2", &cuts.new, "the source");
    });
}

/// Whoever writes to a snapshot and activates it anew leaves nothing in the kernel's counters.
#[test]
fn a_snapshot_that_is_activated_anew_goes_on_only_if_nobody_could_write_to_it() {
    let name = "a_snapshot_that_is_activated_anew_goes_on_only_if_nobody_could_write_to_it";
    lab::test(name, live::setup(), |guest| {
        let mut cuts = Cuts::start(guest, "rw");
        let changed = cuts.random.bytes(2 * BLOCK as usize);
        let run = cuts.cut("/dev/mapper/slow --undo undo", Signal::INT);
        // Where it was read already, and where the older one has a copy, so that no table tells.
        write("/dev/vg/s2", &changed, MIB as u64);
        cuts.new[MIB..][..changed.len()].copy_from_slice(&changed);
        cuts.activate_anew();
        let refused = cuts.tool.run(&run);
        refused.ends(5, &["activated anew", "lvmsync apply", "lvcreate -s -pr"]);
        cuts.tool.run("apply undo /dev/mapper/slow").ok();
        assert_same(SLOW_COPY, &cuts.old, "taken back");
        cuts.tool.run(&run).ok();
        assert_same(SLOW_COPY, &cuts.new, "and sent whole");

        let run = cuts.cut(SLOW_COPY, Signal::INT);
        cuts.activate_anew();
        let said = cuts.tool.run(&run).ok().stderr;
        assert!(said.contains("begins anew"), "{said}");
        assert_same(SLOW_COPY, &cuts.new, "begun anew");
        // And when all is done, the same once more.
        cuts.activate_anew();
        let said = cuts.tool.run(&run).ok().stderr;
        assert!(said.contains("nothing was written"), "{said}");

        guest.sh("lvchange -qq --permission r vg/s2");
        let run = cuts.cut("/dev/mapper/slow --undo again", Signal::INT);
        cuts.activate_anew();
        let said = cuts.tool.run(&run).ok().stderr;
        assert!(said.contains("goes on at byte"), "{said}");
        assert_same(SLOW_COPY, &cuts.new, "read-only");
    });
}

/// Chunk sizes change from snapshot to snapshot.
fn snapshot(guest: &lab::Guest, number: usize) {
    let chunk = [4, 16, 8, 64][number % 4];
    guest.sh(&format!(
        "lvcreate -qq -s -c {chunk}k -L {}M -n s{number} vg/data 2>&1",
        SIZE_MIB * 2
    ));
}

struct StopAtEnd<'a>(&'a AtomicU64);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(STOP, Ordering::Relaxed);
    }
}

/// Writes 4 KiB to 64 KiB anywhere in one half of the volume: past the page cache in the first, through it in the
/// second. Both in one place is what Linux itself reports as an error.
fn write_until_stopped(pause: &AtomicU64, writes: &AtomicU64, path: &Path, seed: u64) {
    const O_DIRECT: i32 = 0o40000;
    let direct = seed.is_multiple_of(2);
    let mut options = File::options();
    options.write(true);
    if direct {
        options.custom_flags(O_DIRECT);
    }
    let file = options.open(path).unwrap();
    let half = (SIZE_MIB << 20) / 2;
    let start = if direct { 0 } else { half };
    let mut random = Random::new(seed + 10);
    let mut buffer = AlignedBuffer::new(16 * BLOCK as usize);
    loop {
        let milliseconds = pause.load(Ordering::Relaxed);
        if milliseconds == STOP {
            return;
        }
        let blocks = 1 + random.below(16);
        let offset = start + random.below(half / BLOCK - blocks + 1) * BLOCK;
        let length = (blocks * BLOCK) as usize;
        buffer[..length].fill(random.below(256) as u8);
        file.write_all_at(&buffer[..length], offset).unwrap();
        let count = writes.fetch_add(1, Ordering::Relaxed);
        if !direct && count.is_multiple_of(16) {
            file.sync_data().unwrap();
        }
        std::thread::sleep(Duration::from_millis(milliseconds));
    }
}

fn wait_for_writes(writes: &AtomicU64, more: u64) {
    let until = writes.load(Ordering::Relaxed) + more;
    while writes.load(Ordering::Relaxed) < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}
