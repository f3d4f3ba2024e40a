//! The order of writes, seen from outside: dm-log-writes below the destination and the filesystem of undo and record.
//!
//! Two proofs from one log. The order itself: no write to the destination comes before a flush that made the old
//! content durable in the undo, and none before the record says *incomplete*; *complete* comes after the flush of the
//! last one. And its sense: disks as a power cut leaves them, at any entry and with any part of what was not
//! flushed, are started, and the delta is finished or taken back there.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;
mod write_log;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use lab::{Guest, Script};
use lab_kit::two_rounds::{contents, truth};
use lab_kit::{Random, Run, Tool, content, long, seed, setup, wrong_blocks};
use write_log::{Entry, after_a_cut, parse};

const BLOCK: usize = 4096;
const DELTA: &str = "delta";
/// Both lie on the logged disk.
const UNDO: &str = "/mnt/undo";
const APPLY: &str = "apply delta vg/copy --undo /mnt/undo --state-dir /mnt/state";
const TAKE_BACK: &str = "apply /mnt/undo vg/copy --state-dir /mnt/state";

#[test]
fn every_power_cut_leaves_a_way() {
    // The disk, its log, the disk again from the beginning of the log, and what each start writes there.
    let setup = setup()
        .disk("64M")
        .disk("64M")
        .disk("64M")
        .disk("96M")
        .memory_mib(768)
        .time_limit(Duration::from_secs(if long() { 1800 } else { 180 }));
    // A script, since a power cut is nothing for a machine that others use, and neither is what this makes of LVM.
    Script::new("every_power_cut_leaves_a_way", setup)
        .phase("cuts", all_cuts)
        .drive(|driver| driver.run("cuts"));
}

/// Puts `name` on the disk and starts what is on it.
fn start(guest: &Guest, name: &str, table: &str) {
    guest.sh(&format!(
        "dmsetup create {name} --table '{table}'; vgchange -qq -ay vg 2>&1; mount /dev/vg/keep /mnt"
    ));
}

fn stop(guest: &Guest, name: &str) {
    guest.sh(&format!(
        "umount /mnt; vgchange -qq -an vg 2>&1; dmsetup remove {name}"
    ));
}

fn all_cuts(guest: &Guest) {
    let tool = Tool::new(guest);
    let (old, new, delta) = contents();
    fs::write(tool.path(DELTA), delta).unwrap();
    guest.sh(
        r##"seen='"a|^/dev/mapper/logged$|", "a|^/dev/mapper/cut$|", "r|.*|"'
        sed -i "s#hints=\"none\"#hints=\"none\" global_filter=[$seen]#" /etc/lvm/lvm.conf
        modprobe dm-log-writes
        dmsetup create logged --table "0 131072 linear /dev/ubdb 0"
        vgcreate -qq --yes -s 2M vg /dev/mapper/logged
        lvcreate -qq -y -Wn -Zn -L 22M -n copy vg 2>&1
        lvcreate -qq -y -Wn -Zn -L 32M -n keep vg 2>&1
        mkfs.ext4 -q -b 4096 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0 /dev/vg/keep"##,
    );
    lab_kit::write("/dev/vg/copy", &old, 0);
    let regions = regions(guest);
    guest.sh("vgchange -qq -an vg 2>&1; dmsetup remove logged
         dd if=/dev/ubdb of=/dev/ubdd bs=1M oflag=direct status=none");
    start(guest, "logged", "0 131072 log-writes /dev/ubdb /dev/ubdc");
    guest.sh("dmsetup message logged 0 mark begin");
    tool.run(APPLY).ok();
    // What was promised to be durable is, without any sync of ours.
    guest.sh("dmsetup message logged 0 mark end");
    stop(guest, "logged");

    let entries = parse(&content("/dev/ubdc")).unwrap();
    let mark = |text: &str| {
        entries
            .iter()
            .position(|entry| entry.mark.as_deref() == Some(text))
            .unwrap()
    };
    let run = mark("begin")..mark("end");
    guest.announce(&format!(
        "order: {} entries, the run is {run:?}",
        entries.len()
    ));
    in_order(&entries, run.clone(), &regions, &old);
    power_cuts(guest, &tool, &entries, run, (&old, &new));
}

/// Where on the disk the destination is, and the filesystem with undo and record.
fn regions(guest: &Guest) -> BTreeMap<&'static str, Range<u64>> {
    let region = |name: &'static str| {
        let table = guest.sh(&format!("dmsetup table vg-{name}"));
        let words: Vec<&str> = table.split_whitespace().collect();
        assert_eq!((words.len(), words[2]), (5, "linear"), "{table}");
        let (length, begin): (u64, u64) = (words[1].parse().unwrap(), words[4].parse().unwrap());
        (name, begin * 512..(begin + length) * 512)
    };
    BTreeMap::from(["copy", "keep"].map(region))
}

/// Finds the old content of each block of the destination in what was written elsewhere.
struct Finder {
    /// The bytes to look for, and their block. Four for each block: the filesystem may cut through one of them.
    needles: HashMap<[u8; 16], usize>,
    /// By three bytes: could a needle begin here?
    filter: Vec<bool>,
    found: Vec<u8>,
}

impl Finder {
    fn new(old: &[u8]) -> Self {
        let mut finder = Self {
            needles: HashMap::new(),
            filter: vec![false; 1 << 24],
            found: vec![0; old.len() / BLOCK],
        };
        for (block, bytes) in old.chunks(BLOCK).enumerate() {
            for needle in bytes.chunks(BLOCK / 4) {
                finder.filter[Self::key(needle)] = true;
                finder
                    .needles
                    .insert(needle[..16].try_into().unwrap(), block);
            }
        }
        finder
    }

    fn key(bytes: &[u8]) -> usize {
        usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2])
    }

    /// In the undo, the needles of one frame stand at equal distances.
    fn look(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at + 16 <= bytes.len() {
            let window = &bytes[at..at + 16];
            let could_be = self.filter[Self::key(window)];
            if let Some(block) = could_be.then(|| self.needles.get(window)).flatten() {
                self.found[*block] += 1;
                at += BLOCK / 4;
            } else {
                at += 1;
            }
        }
    }
}

/// The order of what the log has.
fn in_order(
    entries: &[Entry],
    run: Range<usize>,
    regions: &BTreeMap<&str, Range<u64>>,
    old: &[u8],
) {
    let (copy, keep) = (&regions["copy"], &regions["keep"]);
    let mut saved = Finder::new(old);
    let mut not_flushed: Vec<&Entry> = Vec::new();
    let mut incomplete = false;
    let (mut written, mut last_write, mut last_flush, mut complete) = (0, None, None, None);
    for (number, entry) in entries.iter().enumerate().take(run.end).skip(run.start) {
        if entry.flush {
            for kept in not_flushed.drain(..) {
                saved.look(&kept.data);
                incomplete |= record_says(&kept.data) == Some("incomplete");
            }
            last_flush = Some(number);
        }
        if entry.data.is_empty() {
            assert_eq!(
                entry.discarded, 0,
                "entry {number}: nothing is thrown away in this run"
            );
        } else if keep.contains(&entry.offset) {
            not_flushed.push(entry);
            if record_says(&entry.data) == Some("complete") {
                complete = complete.or(Some((number, last_flush)));
            }
        } else if copy.contains(&entry.offset) {
            assert!(
                incomplete,
                "entry {number}: the first write, and the record does not say incomplete"
            );
            assert_eq!(
                complete, None,
                "entry {number}: a write after the record says complete"
            );
            let first = (entry.offset - copy.start) as usize / BLOCK;
            let blocks = entry.data.len() / BLOCK;
            let lost: Vec<usize> = (first..first + blocks)
                .filter(|block| saved.found[*block] < 3)
                .collect();
            assert!(
                lost.is_empty(),
                "entry {number}: blocks {lost:?} are overwritten and saved nowhere"
            );
            written += blocks;
            last_write = Some(number);
        }
    }
    assert_eq!(written, 22 * 860 / 4, "blocks that were seen written");
    let (_, flush) = complete.unwrap_or_else(|| panic!("no record says complete"));
    assert!(
        flush > last_write,
        "complete on record, and no flush of the destination {flush:?} {last_write:?}"
    );
}

/// What a record of the destination says, if this is the page of one.
fn record_says(page: &[u8]) -> Option<&'static str> {
    if !page.starts_with(b"lvmsync state 1") {
        return None;
    }
    let text = String::from_utf8_lossy(page);
    Some(if text.contains(r#""incomplete": null"#) {
        "complete"
    } else {
        "incomplete"
    })
}

/// Starts disks as power cuts would leave them.
fn power_cuts(
    guest: &Guest,
    tool: &Tool,
    entries: &[Entry],
    run: Range<usize>,
    contents: (&[u8], &[u8]),
) {
    let seed = seed(guest);
    let mut random = Random::new(seed);
    let mut cuts: Vec<usize> = if long() {
        (run.start..=run.end).collect()
    } else {
        (0..6)
            .map(|_| run.start + random.below(run.len() as u64) as usize)
            .chain([run.start, run.end])
            .collect()
    };
    cuts.sort_unstable();
    let disk = fs::File::options().write(true).open("/dev/ubdd").unwrap();
    let put =
        |disk: &fs::File, entry: &Entry| disk.write_all_at(&entry.data, entry.offset).unwrap();
    let mut there = 0;
    let mut seen = BTreeMap::new();
    for (number, cut) in cuts.iter().enumerate() {
        let chance = random.below(5);
        let left = after_a_cut(entries, *cut, || random.below(4) < chance);
        let flushed = entries[..*cut]
            .iter()
            .rposition(|entry| entry.flush)
            .map_or(0, |flush| flush + 1);
        for entry in &entries[there..flushed.max(there)] {
            put(&disk, entry);
        }
        disk.sync_all().unwrap();
        there = flushed.max(there);
        guest.sh("dmsetup create cut --table '0 131072 snapshot /dev/ubdd /dev/ubde N 8'");
        {
            let disk = fs::File::options()
                .write(true)
                .open("/dev/mapper/cut")
                .unwrap();
            left.iter()
                .filter(|entry| **entry >= there)
                .for_each(|entry| put(&disk, &entries[*entry]));
            disk.sync_all().unwrap();
        }
        guest.sh("vgchange -qq -ay vg 2>&1; mount /dev/vg/keep /mnt");
        let finish = (number as u64 + random.below(4)).is_multiple_of(2);
        let what = after_cut(
            guest,
            tool,
            contents,
            finish,
            &format!("cut at entry {cut}, seed {seed}"),
        );
        *seen.entry(what).or_insert(0) += 1;
        if number % 20 == 19 {
            guest.announce(&format!(
                "order: {} of {}: {seen:?}",
                number + 1,
                cuts.len()
            ));
        }
        stop(guest, "cut");
    }
    guest.announce(&format!("order: {} cuts: {seen:?}", cuts.len()));
}

/// After a power cut: the record tells the truth, and the delta is finished, or taken back.
fn after_cut(
    guest: &Guest,
    tool: &Tool,
    (old, new): (&[u8], &[u8]),
    finish: bool,
    when: &str,
) -> String {
    let status = truth(tool, "vg/copy", "--state-dir /mnt/state", (old, new), when);
    let files = guest.sh("ls -lA /mnt /mnt/state 2>&1 || :");
    let when = format!("{when}: {status}\n{files}");
    let same = |expected: &[u8], what: &str| {
        assert_eq!(
            wrong_blocks(&content("/dev/vg/copy"), expected),
            0,
            "{when}: {what}"
        );
    };
    let partial = fs::exists(format!("{UNDO}.partial")).unwrap();
    let whole = fs::exists(UNDO).unwrap();
    if finish || status == "none" {
        let run = tool.run(APPLY);
        ends(&run, 0, &when);
        same(new, "finished");
        if long() {
            ends(&tool.run(TAKE_BACK), 0, &when);
            same(old, "finished and taken back");
        }
        return format!("{status}, finished");
    }
    assert!(partial || whole, "{when}: no undo");
    ends(&tool.run(TAKE_BACK), 0, &when);
    same(old, "taken back");
    format!("{status}, taken back")
}

#[track_caller]
fn ends(run: &Run, code: i32, when: &str) {
    assert_eq!(run.code, Some(code), "{when}\n{}{}", run.stdout, run.stderr);
}
