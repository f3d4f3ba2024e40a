//! Thin pools that break under a run, at both ends: metadata that runs full, that cannot be written in the middle of a
//! write, that cannot be read; pools that need a check, and pools that the kernel gave up.
//!
//! Each time: the error names the pool and what mends it, no success is reported, the record says incomplete, and what it
//! calls durable is there after the repair. The repair is what the message says, word for word; then the same command
//! completes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use lab::Guest;
use lab_kit::thin::{held_root, is_active, lvm, status};
use lab_kit::{Random, Run, Tool, assert_same, content, long, setup, write};

const MIB: usize = 1 << 20;
const CHUNK: usize = 64 << 10;
const POOL: &str = "vg/pool";
/// The device that the pool's metadata lies on.
const BELOW: &str = "below";
/// Its sectors, and those of the metadata.
const BELOW_SECTORS: u64 = 16 << 11;
const METADATA_SECTORS: u64 = 2 << 11;
/// Where it begins on its disk. Not at 0, or LVM would find the same physical volume on the disk itself.
const DISK_OFFSET: u64 = 2048;

struct Bench<'a> {
    guest: &'a Guest,
    tool: Tool,
    disk: String,
    /// The first sector of the metadata on the device below.
    start: u64,
}

impl<'a> Bench<'a> {
    /// `vg/pool`, with blocks of 64 KiB, and with little metadata, which lies on a device of its own.
    fn new(guest: &'a Guest) -> Self {
        let disk = guest.disk(1).display().to_string();
        guest.sh(&format!(
            "modprobe -a dm-flakey dm-delay dm-dust
             dmsetup create {BELOW} --table '0 {BELOW_SECTORS} linear {disk} {DISK_OFFSET}'"
        ));
        lab_kit::thin::group(guest, "vg", 0);
        for command in [
            format!(
                "pvcreate -qq --metadatacopies 0 /dev/mapper/{BELOW}; vgextend -qq vg /dev/mapper/{BELOW}"
            ),
            format!("lvcreate -qq -y -Wn -Zn -L 2M -n meta vg /dev/mapper/{BELOW}"),
            format!(
                "lvcreate -qq -y -Wn -Zn -L 300M -n pool vg {}",
                guest.disk(0).display()
            ),
            format!(
                "lvconvert -qq -y --type thin-pool -c 64k --poolmetadataspare y --poolmetadata meta {POOL}"
            ),
        ] {
            lvm(guest, &command);
        }
        let table = guest.sh("dmsetup table vg-pool_tmeta");
        let start = table.split_whitespace().nth(4).unwrap().parse().unwrap();
        Self {
            guest,
            tool: Tool::new(guest),
            disk,
            start,
        }
    }

    fn thin(&self, name: &str, size: &str) {
        lvm(
            self.guest,
            &format!("lvcreate -qq -y -Wn -T -V {size} -n {name} {POOL}"),
        );
    }

    fn load(&self, table: &str) {
        self.guest.sh(&format!(
            "printf '%s\\n' '{table}' | dmsetup load {BELOW}
             dmsetup suspend --noflush --nolockfs {BELOW}; dmsetup resume {BELOW}"
        ));
    }

    fn well(&self) {
        self.load(&format!(
            "0 {BELOW_SECTORS} linear {} {DISK_OFFSET}",
            self.disk
        ));
    }

    /// Another target under the metadata, and under nothing else: LVM's label stays readable.
    fn under_metadata(&self, target: impl Fn(u64) -> String) {
        let (start, end) = (self.start, self.start + METADATA_SECTORS);
        let place = |sector: u64| format!("{} {}", self.disk, DISK_OFFSET + sector);
        self.load(&format!(
            "0 {start} linear {}\n{start} {METADATA_SECTORS} {}\n{end} {} linear {}",
            place(0),
            target(DISK_OFFSET + start),
            BELOW_SECTORS - end,
            place(end)
        ));
    }

    fn writes_fail(&self) {
        self.under_metadata(|at| format!("flakey {} {at} 0 1000 1 error_writes", self.disk));
    }

    fn all_fails(&self) {
        self.under_metadata(|_| "error".to_owned());
    }

    /// Reads take so long.
    fn slow(&self, milliseconds: u64) {
        self.under_metadata(|at| format!("delay {0} {at} {milliseconds} {0} {at} 0", self.disk));
    }

    fn free_metadata(&self) -> u64 {
        let words = status(self.guest, POOL);
        let (used, total) = words[1].split_once('/').unwrap();
        total.parse::<u64>().unwrap() - used.parse::<u64>().unwrap()
    }

    /// Leaves at most so many blocks of the metadata. LVM refuses new volumes long before, so these are not LVM's.
    fn fill_metadata(&self, left: u64) {
        lvm(
            self.guest,
            "lvchange -an -S pool_lv=pool vg; lvchange -an vg/pool",
        );
        let (first, second) = (self.start + DISK_OFFSET, METADATA_SECTORS);
        self.guest.sh(&format!(
            "dmsetup create m --table '0 {second} linear {} {first}'; thin_dump /dev/mapper/m > dump.xml",
            self.disk
        ));
        let dump = fs::read_to_string(self.tool.path("dump.xml")).unwrap();
        let mut more = String::new();
        for id in 1000..1010 {
            write!(
                more,
                "<device dev_id=\"{id}\" mapped_blocks=\"3000\" transaction=\"0\" creation_time=\"0\" snap_time=\"0\">\
                 <range_mapping origin_begin=\"0\" data_begin=\"1500\" length=\"3000\" time=\"0\"/></device>"
            )
            .unwrap();
        }
        let full = dump.replace("</superblock>", &format!("{more}</superblock>"));
        fs::write(self.tool.path("full.xml"), full).unwrap();
        self.guest
            .sh("thin_restore -q -i full.xml -o /dev/mapper/m 2>&1; sync; dmsetup remove m");
        lvm(self.guest, "lvchange -ay vg/pool");
        let mut id = 2000;
        while self.free_metadata() > left {
            let some = (self.free_metadata() - left).div_ceil(2);
            self.guest.sh(&format!(
                "for id in $(seq {id} {}); do dmsetup message vg-pool-tpool 0 \"create_thin $id\"; done",
                id + some - 1
            ));
            id += some;
        }
        self.guest.announce(&format!(
            "{} blocks of metadata are free",
            self.free_metadata()
        ));
    }

    /// Runs the commands after these words in what `run` said.
    #[track_caller]
    fn follow(&self, run: &Run, words: &str) {
        let found = run.stderr.lines().find_map(|line| line.split_once(words));
        let (_, command) = found.unwrap_or_else(|| panic!("no `{words}` in {}", run.stderr));
        self.guest.announce(&format!("as it says: {command}"));
        self.guest.sh(&format!("({command}) 2>&1"));
    }

    /// The record of `vg/NAME` says incomplete; how far it is durable.
    #[track_caller]
    fn incomplete(&self, name: &str) -> usize {
        let shown = self.tool.run(&format!("state show vg/{name} --json")).ok();
        let records: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        let record = &records[0];
        assert_eq!(record["status"], "incomplete", "{record:#}");
        record["incomplete"]["durable_offset"].as_u64().unwrap() as usize
    }

    /// `vg/s1` and `vg/s2` of `vg/data`, inactive; what differs between them.
    fn two_states(&self) -> Vec<u8> {
        self.thin("data", "64M");
        let mut random = Random::new(5);
        write("/dev/vg/data", &random.bytes(40 * MIB), 0);
        lvm(self.guest, "lvcreate -qq -y -s -n s1 vg/data");
        for block in (0..640).step_by(7) {
            write("/dev/vg/data", &random.bytes(4096), (block * CHUNK) as u64);
        }
        lvm(
            self.guest,
            "lvcreate -qq -y -s -n s2 vg/data; lvchange -qq -pr vg/s1 vg/s2",
        );
        self.tool.run(DIFF).ok().stdout.into_bytes()
    }

    /// Nothing is held, nothing is active that was not before.
    #[track_caller]
    fn nothing_left(&self, when: &str) {
        assert_eq!(self.tool.held(), [""; 0], "{when}");
        assert!(!is_active("vg/s1") && !is_active("vg/s2"), "{when}");
        assert_eq!(held_root(self.guest, POOL), "-", "{when}");
    }
}

const DIFF: &str = "diff --from vg/s1 vg/s2 --json";
const CHECK: &str = "all of it has to be inactive: ";
const REPAIR: &str = "If they are damaged: ";
const GROW: &str = "Make room for its maps: ";

/// So large, with something in each second block of 64 KiB.
fn scattered(mebibytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; mebibytes * MIB];
    for block in bytes.chunks_mut(2 * CHUNK) {
        block[..4096].copy_from_slice(&random.bytes(4096));
    }
    bytes
}

/// Each piece of 512 bytes is one of the two.
#[track_caller]
fn assert_old_or_new(found: &[u8], old: &[u8], new: &[u8], when: &str) {
    let mut pieces = found.chunks(512).zip(old.chunks(512).zip(new.chunks(512)));
    assert!(
        pieces.all(|(found, (old, new))| found == old || found == new),
        "{when}: neither old nor new"
    );
}

fn machine() -> lab::Setup {
    setup()
        .disk("4G")
        .disk("32M")
        .time_limit(Duration::from_secs(240))
}

#[test]
fn metadata_that_runs_full_is_named_and_the_run_goes_on_after_it_grew() {
    let name = "metadata_that_runs_full_is_named_and_the_run_goes_on_after_it_grew";
    lab::test(name, machine(), |guest| {
        let bench = Bench::new(guest);
        let tool = &bench.tool;
        bench.thin("dest", "96M");
        let whole = scattered(96, 1);
        fs::write(tool.path("whole.img"), &whole).unwrap();
        bench.fill_metadata(2);
        lvm(guest, "lvchange -ay vg/dest");
        let send = "send whole.img vg/dest";
        let full = [
            "thin pool vg/pool is read-only, for its metadata is full",
            "metadata 100 %",
            "lvextend --poolmetadatasize +1G vg/pool",
        ];
        let run = tool.run(send).ends(1, &full);
        assert!(run.stderr.contains("partly written"), "{}", run.stderr);
        let durable = bench.incomplete("dest");
        let found = content("/dev/vg/dest");
        assert!(found[..durable] == whole[..durable]);
        assert_old_or_new(&found, &vec![0; whole.len()], &whole, "full");
        // Before anything is written, or made.
        tool.run(send).ends(5, &full);
        tool.run("send whole.img vg/new --create").ends(5, &full);
        assert!(!guest.try_sh("lvs vg/new").status.success());
        bench.follow(&run, GROW);
        tool.run(send).ok();
        assert_same("/dev/vg/dest", &whole, "after its metadata grew");
    });
}

#[test]
fn full_metadata_that_needs_a_check_first_is_mended_as_the_message_says() {
    let name = "full_metadata_that_needs_a_check_first_is_mended_as_the_message_says";
    lab::test(name, machine(), |guest| {
        let bench = Bench::new(guest);
        let tool = &bench.tool;
        bench.thin("dest", "16M");
        let whole = scattered(16, 2);
        fs::write(tool.path("whole.img"), &whole).unwrap();
        bench.fill_metadata(4);
        lvm(guest, "lvchange -ay vg/dest");
        bench.writes_fail();
        let words = ["needs a check, and its metadata is full", CHECK, GROW];
        tool.run("send whole.img vg/dest").ends(1, &words);
        bench.incomplete("dest");
        bench.well();
        let run = tool.run("send whole.img vg/dest").ends(5, &words);
        // The other way round the kernel refuses.
        bench.follow(&run, CHECK);
        bench.follow(&run, GROW);
        lvm(guest, "lvchange -ay vg/dest");
        tool.run("send whole.img vg/dest").ok();
        assert_same("/dev/vg/dest", &whole, "checked and grown");
    });
}

/// A commit fails while a run writes: the pool rolls back to the last one, so what was written since is gone.
#[test]
fn a_commit_that_fails_in_the_middle_costs_nothing_that_was_called_durable() {
    let name = "a_commit_that_fails_in_the_middle_costs_nothing_that_was_called_durable";
    let setup = machine().memory_mib(768);
    lab::test(name, setup, |guest| {
        let bench = Bench::new(guest);
        let tool = &bench.tool;
        let list = bench.two_states();
        bench.thin("dest", "110M");
        let old = vec![0; 110 * MIB];
        let new = Random::new(3).bytes(110 * MIB);
        fs::write(tool.path("new.img"), &new).unwrap();
        // Slow enough that it is still under way when its first watermark was seen, on a busy machine as well.
        let send = "send new.img vg/dest --bwlimit 12M";
        for round in 0..if long() { 4 } else { 1 } {
            let mut child = tool.start(send);
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
                let shown = tool.run("state show vg/dest").stdout;
                if shown.contains("durable to") && !shown.contains("durable to  byte 0\n") {
                    break;
                }
            }
            // Now, or a moment later.
            std::thread::sleep(Duration::from_millis(70 * round));
            bench.writes_fail();
            let words = ["thin pool vg/pool needs a check", "partly written", CHECK];
            Run::of(child).ends(1, &words);
            let durable = bench.incomplete("dest");
            assert!(durable >= 32 * MIB, "{durable}");
            bench.well();

            // It needs a check: nothing is written to it, nothing is read from its maps.
            assert_eq!(status(guest, POOL)[7], "needs_check");
            let words = ["thin pool vg/pool needs a check", CHECK, REPAIR];
            let run = tool.run(send).ends(5, &words);
            tool.run("send new.img vg/more --create").ends(5, &words);
            for source in [
                DIFF,
                "send --from vg/s1 vg/s2 -o no",
                "send vg/s2 -o no",
                "send vg/data -o no",
            ] {
                tool.run(source).ends(5, &words);
                bench.nothing_left(source);
            }
            assert!(!tool.path("no").exists());
            let doctor = tool.run("doctor");
            assert!(
                doctor.stdout.contains("--clear-needs-check-flag"),
                "{}",
                doctor.stdout
            );

            bench.follow(&run, CHECK);
            lvm(guest, "lvchange -ay vg/dest");
            let found = content("/dev/vg/dest");
            assert!(found[..durable] == new[..durable], "not durable");
            assert_old_or_new(&found, &old, &new, "after the check");
            assert_eq!(tool.run(DIFF).ok().stdout.into_bytes(), list);
            bench.nothing_left("after the check");
            if round % 2 == 0 {
                tool.run(send).ok();
                assert_same("/dev/vg/dest", &new, "the same command");
            }
            guest.announce(&format!("durable to {durable}, and so it was"));
            lvm(guest, "lvremove -qq -y vg/dest");
            bench.thin("dest", "110M");
        }
    });
}

#[test]
fn a_pool_that_failed_is_refused_at_both_ends() {
    let name = "a_pool_that_failed_is_refused_at_both_ends";
    lab::test(name, machine(), |guest| {
        let bench = Bench::new(guest);
        let tool = &bench.tool;
        let list = bench.two_states();
        bench.thin("dest", "32M");
        lvm(guest, "lvcreate -qq -y -s -kn -n s3 vg/data");
        let new = scattered(32, 4);
        fs::write(tool.path("new.img"), &new).unwrap();
        let active = content("/dev/vg/s3");
        bench.all_fails();
        let failed = ["thin pool vg/pool has failed", CHECK, REPAIR];
        tool.run("send new.img vg/dest").ends(1, &failed);
        assert_eq!(status(guest, POOL)[0], "Fail");
        assert_eq!(bench.incomplete("dest"), 0);
        let refused = |words: &[&str]| {
            for command in [
                "send new.img vg/dest",
                "send new.img /dev/vg/dest --create",
                "send new.img vg/new --create",
                DIFF,
                "send --from vg/s1 vg/s2 -o no",
                "send --from vg/s1 vg/s3 -o no",
                "send vg/s2 -o no",
                "send vg/s3 -o no",
            ] {
                tool.run(command).ends(5, words);
                assert_eq!(tool.held(), [""; 0], "{command}");
                assert!(!is_active("vg/s2"), "{command}");
            }
        };
        refused(&failed);
        // Nobody tells the kernel that the disk is well.
        bench.well();
        refused(&failed);
        assert!(!tool.path("no").exists());
        assert!(!guest.try_sh("lvs vg/new").status.success());
        let run = tool.run("send new.img vg/dest").ends(5, &failed);
        bench.follow(&run, CHECK);
        lvm(guest, "lvchange -ay vg/dest vg/s3");
        tool.run("send new.img vg/dest").ok();
        assert_same("/dev/vg/dest", &new, "the same command");
        assert_eq!(tool.run(DIFF).ok().stdout.into_bytes(), list);
        tool.run("send vg/s3 copy.img").ok();
        assert_same(tool.path("copy.img"), &active, "from what was there");
        bench.nothing_left("at the end");
    });
}

/// The blocks of the metadata that are leaves of mappings, and hold many of them.
fn leaves(bench: &Bench<'_>) -> Vec<u64> {
    let bytes = content("/dev/mapper/vg-pool_tmeta");
    let word = |block: &[u8], at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap());
    let is_leaf = |(number, block): &(usize, &[u8])| {
        let itself = u64::from_le_bytes(block[8..16].try_into().unwrap());
        // Flags, entries, bytes of a value.
        word(block, 4) == 2
            && itself == *number as u64
            && word(block, 16) > 60
            && word(block, 24) == 8
    };
    let found: Vec<u64> = bytes
        .chunks(4096)
        .enumerate()
        .filter(is_leaf)
        .map(|(number, _)| number as u64)
        .collect();
    bench.guest.announce(&format!("leaves: {found:?}"));
    found
}

#[test]
fn metadata_that_cannot_be_read_gives_no_list_and_everything_back() {
    let name = "metadata_that_cannot_be_read_gives_no_list_and_everything_back";
    lab::test(name, machine(), |guest| {
        let bench = Bench::new(guest);
        let tool = &bench.tool;
        let list = bench.two_states();
        // Bad places on the disk. The kernel has these blocks in memory and notices nothing.
        let leaves = leaves(&bench);
        bench.load(&format!(
            "0 {BELOW_SECTORS} dust {} {DISK_OFFSET} 4096",
            bench.disk
        ));
        for leaf in leaves {
            let block = (DISK_OFFSET + bench.start) / 8 + leaf;
            guest.sh(&format!(
                "dmsetup message {BELOW} 0 addbadblock {block} > dust 2>&1"
            ));
        }
        guest.sh(&format!("dmsetup message {BELOW} 0 enable > dust 2>&1"));
        for command in [DIFF, "send --from vg/s1 vg/s2 -o no", "send vg/s2 -o no"] {
            let run = tool.run(command);
            let run = run.ends(
                1,
                &["of the metadata", "cannot read block", "Input/output error"],
            );
            assert_eq!(run.stdout, "");
            bench.nothing_left(command);
        }
        assert!(!tool.path("no").exists());
        assert_eq!(status(guest, POOL)[4], "rw");
        bench.well();
        assert_eq!(tool.run(DIFF).ok().stdout.into_bytes(), list);
        bench.nothing_left("after bad places");

        // All of it is gone when the reservation is asked for.
        bench.all_fails();
        let failed = ["vg/pool has failed", CHECK, REPAIR];
        let run = tool.run(DIFF).ends(5, &failed);
        assert_eq!(run.stdout, "");
        assert!(!is_active("vg/s2"));
        bench.well();
        mend(&bench, &run);
        assert_eq!(tool.run(DIFF).ok().stdout.into_bytes(), list);
        bench.nothing_left("after the reservation failed");

        // It goes while it is read, the reservation being held.
        bench.slow(150);
        let child = tool.start(DIFF);
        let deadline = Instant::now() + Duration::from_secs(20);
        while held_root(guest, POOL) == "-" {
            assert!(Instant::now() < deadline);
        }
        bench.all_fails();
        let words = [
            "cannot read block",
            "it is not released",
            "dmsetup message /dev/mapper/vg-pool-tpool 0 release_metadata_snap",
        ];
        let run = Run::of(child).ends(1, &words);
        assert_eq!(run.stdout, "");
        assert!(!is_active("vg/s2"));
        // The record is there, whatever became of the reservation: deactivating the volume makes the kernel commit.
        assert_eq!(tool.held().len(), 1);
        bench.well();
        if status(guest, POOL)[0] == "Fail" {
            let run = tool.run(DIFF).ends(5, &failed);
            mend(&bench, &run);
        }
        let run = tool.run(DIFF).ok();
        guest.announce(&format!("the next run: {}", run.stderr));
        assert_eq!(run.stdout.into_bytes(), list);
        bench.nothing_left("after the release failed");
    });
}

/// As the message says: with a check, and where that finds damage, with a repair first.
fn mend(bench: &Bench<'_>, run: &Run) {
    let commands = run.stderr.lines().find_map(|line| line.split_once(CHECK));
    let (_, commands) = commands.unwrap();
    if bench
        .guest
        .try_sh(&format!("({commands}) 2>&1"))
        .status
        .success()
    {
        bench.guest.announce("a check was enough");
        return;
    }
    let repair = run.stderr.lines().find_map(|line| line.split_once(REPAIR));
    let (repair, _) = repair.unwrap().1.split_once(", and").unwrap();
    let last = commands.rsplit("&&").next().unwrap();
    bench
        .guest
        .announce(&format!("as it says: {repair}; {last}"));
    bench.guest.sh(&format!("({repair} -y && {last}) 2>&1"));
}
