//! Deltas on a snapshot of their destination: shown, merged by the kernel or dropped, over a power cut as well.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use lab::{Guest, Script};

use lab_kit::live::{Bench, Kind, MIB, kill, make, settle, setup};
use lab_kit::{Random, Run, Tool, assert_same, content, long, seed, write};
use rustix::process::Signal;

const DATA: &str = "/dev/vg/data";
const PREVIEW: &str = "/dev/vg/data-preview";
const SHOW: &str = "apply old.undo vg/data --preview";
const COMMIT: &str = "apply --commit vg/data";
const DISCARD: &str = "apply --discard vg/data";

/// `vg/data` holds `new`, and `old.undo` leads from there to `old`; both states have names.
struct States<'a> {
    bench: Bench<'a>,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl<'a> States<'a> {
    fn make(guest: &'a Guest, kind: Kind) -> Self {
        make(guest, kind);
        Self::fill(guest)
    }

    fn fill(guest: &'a Guest) -> Self {
        let bench = Bench::new(guest);
        let mut random = Random::new(7);
        let old = random.bytes(24 * MIB);
        let mut new = old.clone();
        // More than an exception table of 4 KiB chunks has in three areas.
        for number in 0..900 {
            let at = (number * 199_999) % (24 * MIB - 70_000);
            let length =
                [512, 4096, 512, 9000, 512, 70_000][if number % 60 == 0 { 5 } else { number % 5 }];
            new[at..at + length].copy_from_slice(&random.bytes(length));
        }
        new[5 * MIB..7 * MIB].fill(0);
        for (name, state) in [("old", &old), ("new", &new)] {
            fs::write(guest.scratch().join(name), state).unwrap();
            let undo = if name == "new" { "--undo old.undo" } else { "" };
            bench.tool.run(&format!("sync {name} vg/data {undo}")).ok();
        }
        Self { bench, old, new }
    }

    #[track_caller]
    fn holds(&self, expected: &[u8], when: &str) {
        assert_same(DATA, expected, when);
    }

    /// The record of the volume.
    fn record(&self) -> serde_json::Value {
        let shown = self.bench.tool.run("state show vg/data --json").ok().stdout;
        let records: serde_json::Value = serde_json::from_str(&shown).unwrap();
        records[0].clone()
    }
}

/// Everything that one may do with a preview, in one guest.
fn shown_and_dropped_or_merged(kind: Kind, name: &str) {
    let setup = setup().time_limit(Duration::from_secs(180));
    lab::test(name, setup, |guest| {
        let states = States::make(guest, kind);
        let tool = &states.bench.tool;
        let before = states.record();
        let undo = guest.scratch().join("back.undo");

        // Looked at first, made, shown, and dropped.
        tool.run(&format!("{SHOW} -n"))
            .ends(0, &["vg/data-preview would be made"]);
        states.bench.nothing_left("-n");
        let run = tool.run(&format!("{SHOW} --undo back.undo --json")).ok();
        assert!(
            run.stderr.contains("lvmsync apply --commit vg/data"),
            "{}",
            run.stderr
        );
        let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(json["destination"], "vg/data-preview");
        assert_same(PREVIEW, &states.old, "the preview");
        states.holds(&states.new, "shown");
        assert_eq!(states.record(), before, "shown");
        for line in [SHOW.to_owned(), format!("{SHOW} -n")] {
            tool.run(&line)
                .ends(5, &["there is a preview of it already", "--discard"]);
        }
        assert!(undo.exists());
        tool.run(&format!("{DISCARD} -n")).ends(0, &["would be"]);
        assert_same(PREVIEW, &states.old, "would be dropped");
        let user = File::open(PREVIEW).unwrap();
        tool.run(DISCARD).ends(1, &["vg/data-preview"]);
        assert_same(PREVIEW, &states.old, "open, and not dropped");
        drop(user);
        let run = tool.run(&format!("{DISCARD} --json")).ok();
        let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(json["outcome"], "discarded");
        states.holds(&states.new, "dropped");
        assert_eq!(states.record(), before, "dropped");
        assert!(!undo.exists(), "it leads back from nowhere");
        states.bench.nothing_left("dropped");
        states.bench.only_record_of("vg/data", "dropped");
        tool.run(DISCARD).ends(0, &["there is no preview of it"]);
        tool.run(COMMIT)
            .ends(5, &["there is no preview of it", "--preview"]);

        // A run that was stopped leaves nothing, and of one that was killed the next one removes what is left. Only one is
        // at work on a volume.
        for signal in [Signal::INT, Signal::KILL] {
            let child = tool.start(&format!("{SHOW} --undo back.undo"));
            while fs::metadata(PREVIEW).is_err() {
                std::thread::sleep(Duration::from_millis(2));
            }
            if signal == Signal::KILL {
                tool.run(DISCARD).ends(5, &["another lvmsync"]);
            }
            kill(&child, signal);
            let run = Run::of(child);
            settle();
            if signal == Signal::INT {
                run.ends(130, &[]);
                states.bench.nothing_left("stopped");
                assert!(!undo.exists() && tool.partial_files().is_empty());
            } else {
                assert_eq!(run.code, None);
                tool.run(COMMIT).ends(5, &["was cut", "--discard"]);
            }
        }
        tool.run(&format!("{SHOW} --undo back.undo"))
            .ends(0, &["left by a run that was cut"]);
        assert_same(PREVIEW, &states.old, "after a kill");

        // What has the name of its undo by now is somebody else's.
        let old_undo = fs::read(guest.scratch().join("old.undo")).unwrap();
        fs::write(&undo, &old_undo).unwrap();
        tool.run(DISCARD).ends(0, &["kept, for it is not the undo"]);
        assert!(fs::read(&undo).unwrap() == old_undo);
        fs::remove_file(&undo).unwrap();
        tool.run(&format!("{SHOW} --undo back.undo")).ok();

        // In use it is not merged, neither of both.
        for (path, words) in [(DATA, "--allow-in-use"), (PREVIEW, "the preview is in use")] {
            let user = File::open(path).unwrap();
            tool.run(COMMIT).ends(5, &["in use", words]);
            drop(user);
        }
        tool.run(&format!("{COMMIT} -n"))
            .ends(0, &["would be merged"]);
        states.holds(&states.new, "refused");
        assert_eq!(states.record(), before, "refused");

        // Merged, and the state has its name, its undo and its successors.
        tool.run(COMMIT).ok();
        states.holds(&states.old, "merged");
        let record = states.record();
        assert!(record["incomplete"].is_null(), "{record}");
        assert!(!record["holds"].is_null() && record["holds"] != before["holds"]);
        states.bench.nothing_left("merged");
        states.bench.only_record_of("vg/data", "merged");
        tool.run("apply old.undo vg/data")
            .ends(0, &["already; nothing was written"]);
        tool.run(SHOW).ends(5, &["there is nothing to preview"]);
        tool.run("apply back.undo vg/data").ok();
        states.holds(&states.new, "undone");
        assert_eq!(states.record()["holds"], before["holds"]);

        // What was written to the volume after its preview was made is not taken back without a word.
        tool.run(SHOW).ok();
        write(DATA, &states.new[..4096], 0);
        tool.run(COMMIT).ends(
            5,
            &["it was written to after its preview was made", "--force"],
        );
        tool.run(DISCARD).ok();
        // Nor where it was activated anew since, and the kernel counts from zero.
        tool.run(SHOW).ok();
        let is_same = |at: &usize| states.old[*at..at + 4096] == states.new[*at..at + 4096];
        let same = (0..states.new.len()).step_by(4096).find(is_same).unwrap();
        write(DATA, &states.new[same..same + 4096], same as u64);
        guest.sh("vgchange -qq -an vg 2>&1; vgchange -qq -ay vg 2>&1");
        tool.run(COMMIT).ends(
            5,
            &[
                "it was activated anew since its preview was made",
                "--force",
            ],
        );
        tool.run(DISCARD).ok();

        // What somebody wrote to the preview is merged as well, and then it is no state with a name. Until LVM has merged
        // nothing is done with the volume.
        tool.run(SHOW).ok();
        let mut written = states.old.clone();
        written[MIB..MIB + 4096].fill(9);
        write(PREVIEW, &written[MIB..MIB + 4096], MIB as u64);
        let user = File::open(DATA).unwrap();
        for _ in 0..2 {
            tool.run(&format!("{COMMIT} --allow-in-use"))
                .ends(5, &["when it is activated next", "lvchange -an vg/data"]);
        }
        for line in [
            "send vg/data there/copy",
            "sync old vg/data --force --allow-in-use",
            "apply old.undo vg/data --force --allow-in-use",
            "apply old.undo vg/data --preview --allow-in-use",
        ] {
            tool.run(line).ends(5, &["lvmsync apply --commit vg/data"]);
        }
        tool.run(DISCARD)
            .ends(5, &["cannot be stopped", "--commit"]);
        drop(user);
        guest.sh("lvchange -an vg/data && lvchange -ay vg/data");
        tool.run(COMMIT).ok();
        states.holds(&written, "merged with what was written");
        assert!(states.record()["holds"].is_null());
        states.bench.nothing_left("merged later");
    });
}

#[test]
fn a_preview_of_a_thick_volume_is_merged_or_dropped() {
    let name = "a_preview_of_a_thick_volume_is_merged_or_dropped";
    shown_and_dropped_or_merged(Kind::Thick, name);
}

#[test]
fn a_preview_of_a_thin_volume_is_merged_or_dropped() {
    let name = "a_preview_of_a_thin_volume_is_merged_or_dropped";
    shown_and_dropped_or_merged(Kind::Thin, name);
}

/// Chunks of all sizes, exception tables of many areas, pools with blocks of several sizes.
#[test]
fn a_preview_shows_the_same_with_all_chunk_sizes() {
    let setup = setup().time_limit(Duration::from_secs(180));
    lab::test(
        "a_preview_shows_the_same_with_all_chunk_sizes",
        setup,
        |guest| {
            let there_and_back = |states: &States<'_>, options: &str| {
                let tool = &states.bench.tool;
                tool.run(&format!("{SHOW} --undo back.undo {options}")).ok();
                assert_same(PREVIEW, &states.old, options);
                tool.run(COMMIT).ok();
                states.holds(&states.old, options);
                tool.run("apply back.undo vg/data").ok();
                states.holds(&states.new, options);
                fs::remove_file(guest.scratch().join("back.undo")).unwrap();
            };
            let states = States::make(guest, Kind::Thick);
            for chunk in ["4k", "8k", "16k", "32k", "64k"] {
                there_and_back(&states, &format!("--chunk-size {chunk}"));
            }
            states.bench.nothing_left("thick");
            for chunk in [64, 128, 256] {
                guest.sh("vgremove -qq -ff -y vg 2>&1; rm -rf state old.undo");
                lab_kit::thin::group(guest, "vg", 0);
                lab_kit::thin::pool(guest, "vg/pool", 96, chunk, "");
                lab_kit::thin::lvm(guest, "lvcreate -qq -y -T -V 24M -n data vg/pool");
                let states = States::fill(guest);
                there_and_back(&states, "");
                states.bench.nothing_left("thin");
            }
        },
    );
}

/// What does not fit is refused before anything is made, and what overflows all the same is no preview.
#[test]
fn a_preview_without_room_is_refused() {
    lab::test("a_preview_without_room_is_refused", setup(), |guest| {
        let states = States::make(guest, Kind::Thick);
        let tool = &states.bench.tool;
        tool.run(&format!("{SHOW} --snapshot-size 2M"))
            .ends(5, &["the preview is lost", "--snapshot-size"]);
        states.bench.nothing_left("overflowed");
        guest.sh("lvcreate -qq -y -n fill -l 100%FREE vg && lvreduce -qq -y -L -3M vg/fill 2>&1");
        tool.run(SHOW)
            .ends(5, &["has 3.0 MiB free", "vgextend vg", "lvmsync view"]);
        guest.sh("lvremove -qq -y vg/fill");
        states.bench.nothing_left("no room");

        // One that is lost later is not merged; nor is one that is lost while it waits for that.
        let beside = |size: &str| format!("{SHOW} --snapshot-size {size}");
        tool.run(&beside("10M")).ok();
        let preview = File::options().write(true).open(PREVIEW).unwrap();
        let _ = preview.write_all_at(&Random::new(5).bytes(12 * MIB), 0);
        assert!(preview.sync_all().is_err(), "it has room for less");
        drop(preview);
        tool.run(COMMIT)
            .ends(5, &["the preview is lost", "--discard"]);
        tool.run(DISCARD).ok();
        states.holds(&states.new, "the preview was lost");
        tool.run(&beside("10M")).ok();
        let user = File::open(DATA).unwrap();
        tool.run(&format!("{COMMIT} --allow-in-use"))
            .ends(5, &["when it is activated next"]);
        let other = Random::new(6).bytes(20 * MIB);
        write(DATA, &other, 0);
        tool.run(COMMIT).ends(5, &["overflowed", "--discard"]);
        drop(user);
        guest.sh("lvchange -an vg/data && lvchange -ay vg/data");
        tool.run(COMMIT).ends(5, &["overflowed", "--discard"]);
        tool.run(DISCARD).ends(0, &["nothing of it was merged"]);
        let mut expected = states.new.clone();
        expected[..20 * MIB].copy_from_slice(&other);
        states.holds(&expected, "lost before it was merged");
        assert!(states.record()["incomplete"].is_null() && states.record()["holds"].is_null());
        states.bench.nothing_left("lost");

        // A pool that would run full.
        guest.sh("vgremove -qq -ff -y vg 2>&1; rm -rf state old.undo");
        lab_kit::thin::group(guest, "vg", 0);
        lab_kit::thin::pool(guest, "vg/pool", 28, 64, "");
        lab_kit::thin::lvm(guest, "lvcreate -qq -y -T -V 24M -n data vg/pool");
        let states = States::fill(guest);
        let tool = &states.bench.tool;
        tool.run(SHOW)
            .ends(5, &["its thin pool vg/pool", "lvextend -L"]);
        states.bench.nothing_left("the pool");

        // One that has another size by now would give that to the volume.
        guest.sh("lvextend -qq -L +20M vg/pool 2>&1");
        tool.run(SHOW).ok();
        guest.sh("lvextend -qq -L +1M vg/data 2>&1");
        tool.run(COMMIT)
            .ends(5, &["its size was changed", "--discard"]);
        tool.run(DISCARD).ok();
        states.bench.nothing_left("another size");
    });
}

/// The kernel gives a merge up when the disk fails; when that is well again the merge goes on, as the message says.
#[test]
fn a_merge_that_failed_goes_on_when_the_disk_is_well() {
    let name = "a_merge_that_failed_goes_on_when_the_disk_is_well";
    lab::test(name, setup(), |guest| {
        let becomes = |target: &str| {
            guest.sh(&format!(
                "dmsetup reload disk --table '0 327680 {target}'; dmsetup resume disk"
            ))
        };
        guest.sh(r##"seen='"a|^/dev/mapper/disk$|", "r|.*|"'
            sed -i "s#hints=\"none\"#hints=\"none\" global_filter=[$seen]#" /etc/lvm/lvm.conf
            modprobe -a dm-flakey dm-delay
            dmsetup create disk --table '0 327680 linear /dev/ubdb 0'
            vgcreate -qq --yes -s 1M vg /dev/mapper/disk
            lvcreate -qq -y -Wn -Zn -L 24M -n data vg 2>&1"##);
        let states = States::fill(guest);
        let tool = &states.bench.tool;
        tool.run(SHOW).ok();
        becomes("delay /dev/ubdb 0 0 /dev/ubdb 0 5");
        let mut child = tool.start(COMMIT);
        while !guest.sh("dmsetup table vg-data").contains("snapshot-merge") {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
        }
        std::thread::sleep(Duration::from_millis(300));
        becomes("flakey /dev/ubdb 0 0 60 1 error_writes");
        Run::of(child).ends(5, &["could not go on with merging", "in order"]);
        becomes("linear /dev/ubdb 0");
        let run = tool.run(COMMIT).ends(5, &["could not go on with merging"]);
        assert!(!states.record()["incomplete"].is_null());
        // As it says: a new activation, and the same command.
        let (anew, commit) = ("lvchange -an vg/data && lvchange -ay vg/data", COMMIT);
        assert!(run.stderr.contains(anew) && run.stderr.contains(commit));
        guest.sh(anew);
        tool.run(COMMIT).ends(0, &["was merged"]);
        states.holds(&states.old, "merged after all");
        assert!(states.record()["incomplete"].is_null());
        states.bench.nothing_left("merged after all");
    });
}

/// A delta that begins from another state is refused as ever, and so is a volume that is half-written.
#[test]
fn a_preview_is_admitted_as_the_delta_itself() {
    lab::test(
        "a_preview_is_admitted_as_the_delta_itself",
        setup(),
        |guest| {
            let states = States::make(guest, Kind::Thick);
            let tool = &states.bench.tool;
            tool.run("apply old.undo vg/data --undo back.undo").ok();
            // Of two deltas the second is held against what the first one makes of it.
            tool.run("apply back.undo old.undo vg/data --preview").ok();
            assert_same(PREVIEW, &states.old, "there and back");
            tool.run(DISCARD).ok();
            tool.run("apply back.undo back.undo vg/data --preview --undo x")
                .ends(2, &["lvmsync combine"]);
            let mut other = states.old.clone();
            other[16 * MIB..].fill(7);
            fs::write(guest.scratch().join("a"), &other).unwrap();
            other[..MIB].fill(8);
            fs::write(guest.scratch().join("b"), &other).unwrap();
            tool.run("sync a there/copy").ok();
            tool.run("sync b there/copy --undo x.undo").ok();
            tool.run("apply x.undo vg/data --preview")
                .ends(5, &["begins from", "Nothing was written"]);
            tool.run("state forget vg/data").ok();
            tool.run("apply x.undo vg/data --preview --require-record")
                .ends(5, &["no record", "--require-record"]);
            tool.run("state adopt vg/data lvm:another").ok();
            tool.run("apply back.undo vg/data --preview")
                .ends(5, &["begins from"]);
            tool.run("apply back.undo vg/data --preview --force").ok();
            assert_same(PREVIEW, &states.new, "forced");
            tool.run(COMMIT).ok();
            states.holds(&states.new, "forced");
            assert!(states.record()["holds"].is_null(), "{}", states.record());
            for (line, code, words) in [
                ("apply old.undo old --preview", 2, "is no logical volume"),
                ("apply - vg/data --preview", 2, "name files"),
                ("apply old.undo vg/data --commit", 2, "the volume alone"),
                (
                    "apply old.undo vg/none --preview",
                    1,
                    "no logical volume none",
                ),
            ] {
                tool.run(line).ends(code, &[words]);
            }
            guest.sh("lvcreate -qq -s -L 8M -n s1 vg/data");
            tool.run("apply old.undo vg/s1 --preview")
                .ends(5, &["itself a snapshot"]);
            guest.sh("lvremove -qq -y vg/s1; lvcreate -qq -y -L 1M -n data-preview vg");
            tool.run(&format!("{SHOW} --force"))
                .ends(5, &["it is no preview of vg/data"]);
            // What a power cut in the middle of lvcreate leaves: not a snapshot yet, and ours.
            let uuid = guest.sh("lvs --noheadings -o lv_uuid vg/data");
            let tag = format!("lvmsync_preview_of_{}", uuid.trim());
            guest.sh(&format!(
                "lvchange --addtag lvmsync_preview --addtag {tag} vg/data-preview"
            ));
            tool.run(COMMIT).ends(5, &["was cut", "--discard"]);
            tool.run(&format!("{SHOW} --force"))
                .ends(0, &["left by a run that was cut"]);
            tool.run(DISCARD).ok();
            states.bench.nothing_left("refused");
        },
    );
}

/// What outlives a power cut: records, the undo, the contents, and the marker of a volume that is being made new again.
const KEEP: &str = "/keep";

fn kept(line: &str) -> String {
    format!("{line} --state-dir {KEEP}/state").replace("old.undo", &format!("{KEEP}/old.undo"))
}

/// After a boot.
struct Kept {
    tool: Tool,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Kept {
    /// Activates everything, as a boot does, but for a thin snapshot that LVM knows and its pool does not know yet. Is it true
    /// what is on record?
    fn after_boot(guest: &Guest) -> (Self, bool) {
        guest.sh(&format!(
            "vgchange -qq -ay vg 2>&1 || :; vgchange -qq -ay there; mkdir -p {KEEP}; mount /dev/there/keep {KEEP}"
        ));
        let read = |name: &str| fs::read(guest.shared().join(name)).unwrap();
        let kept = Self {
            tool: Tool::new(guest),
            old: read("old"),
            new: read("new"),
        };
        if fs::metadata(format!("{KEEP}/renewing")).is_ok() {
            kept.renew();
        }
        let merges = kept.record()["incomplete"]["source"] == "merge";
        let (is_old, is_new) = (content(DATA) == kept.old, content(DATA) == kept.new);
        let shown = fs::metadata(PREVIEW).is_ok() && content(PREVIEW) == kept.old;
        guest.announce(&format!(
            "TRUE: merges {merges}, old {is_old}, new {is_new}, shown {shown}"
        ));
        // LVM has not been told to merge yet, or the volume shows what it will be, however far that is.
        let is_merged = is_old && (merges || kept.record()["holds"]["id"] == kept.id_of("old"));
        assert!(is_merged || (is_new && (shown || !merges)));
        (kept, merges)
    }

    fn run(&self, line: &str) -> Run {
        self.tool.run(&kept(line))
    }

    fn record(&self) -> serde_json::Value {
        let shown = self.run("state show vg/data --json").ok().stdout;
        let records: serde_json::Value = serde_json::from_str(&shown).unwrap();
        records[0].clone()
    }

    /// A merge that is on record is finished by the same command. Where the cut came before LVM was told, nothing tells of a
    /// thin volume whether it was written to since, and the user says which way it is.
    fn goes_on(&self, kind: Kind, random: &mut Random) {
        let shown = fs::metadata(PREVIEW).is_ok();
        let done = self.run(COMMIT);
        if !(kind == Kind::Thin && shown && done.code == Some(5)) {
            done.ok();
            self.is_merged("merged after the cut");
            return;
        }
        done.ends(5, &["was activated anew", "--discard", "--force"]);
        assert_same(DATA, &self.new, "LVM was not told");
        if random.below(2) == 0 {
            self.run(&format!("{COMMIT} --force")).ok();
            self.is_merged("merged as that says");
            return;
        }
        self.run(DISCARD).ok();
        assert_same(DATA, &self.new, "discarded");
        assert_eq!(self.record()["holds"]["id"], self.id_of("new"));
    }

    fn id_of(&self, state: &str) -> String {
        fs::read_to_string(format!("{KEEP}/id-of-{state}")).unwrap()
    }

    /// The volume as it was before the delta, and that is on record.
    fn renew(&self) {
        fs::write(format!("{KEEP}/renewing"), "").unwrap();
        rustix::fs::sync();
        self.run(DISCARD).ok();
        write(DATA, &self.new, 0);
        let id = self.id_of("new");
        self.run(&format!("state adopt --force vg/data {id}")).ok();
        fs::remove_file(format!("{KEEP}/renewing")).unwrap();
        rustix::fs::sync();
    }

    #[track_caller]
    fn is_merged(&self, when: &str) {
        assert_same(DATA, &self.old, when);
        let record = self.record();
        assert!(record["incomplete"].is_null(), "{when}: {record}");
        assert_eq!(record["holds"]["id"], self.id_of("old"), "{when}");
    }
}

fn make_kept(guest: &Guest, kind: Kind) {
    let states = States::make(guest, kind);
    guest.sh(&format!(
        "lvcreate -qq -y -n keep -L 16M there; mkfs.ext4 -q -b 4096 -J size=4 /dev/there/keep; \
         mkdir -p {KEEP}; mount /dev/there/keep {KEEP}"
    ));
    fs::copy(guest.scratch().join("old.undo"), format!("{KEEP}/old.undo")).unwrap();
    let id = |record: serde_json::Value| record["holds"]["id"].as_str().unwrap().to_owned();
    fs::write(format!("{KEEP}/id-of-new"), id(states.record())).unwrap();
    states.bench.tool.run("apply old.undo vg/data").ok();
    fs::write(format!("{KEEP}/id-of-old"), id(states.record())).unwrap();
    for (name, state) in [("old", &states.old), ("new", &states.new)] {
        fs::write(guest.shared().join(name), state).unwrap();
    }
    let kept = Kept {
        tool: Tool::new(guest),
        old: states.old,
        new: states.new,
    };
    kept.renew();
    guest.sh(&format!("umount {KEEP}; sync"));
}

/// Shown, waiting for its merge, merged: LVM goes on by itself, and the same command says when it is done.
fn reboots(kind: Kind, name: &'static str) {
    Script::new(name, setup().time_limit(Duration::from_secs(120)))
        .phase("make", move |guest| make_kept(guest, kind))
        .phase("show", |guest| {
            let (kept, _) = Kept::after_boot(guest);
            kept.run(SHOW).ok();
            guest.announce("CUT");
            std::thread::sleep(Duration::from_secs(60));
        })
        .phase("shown", |guest| {
            let (kept, _) = Kept::after_boot(guest);
            assert_same(PREVIEW, &kept.old, "shown, after a power cut");
            assert_same(DATA, &kept.new, "shown, after a power cut");
            kept.run(SHOW)
                .ends(5, &["there is a preview of it already"]);
            let _user = File::open(DATA).unwrap();
            kept.run(&format!("{COMMIT} --allow-in-use"))
                .ends(5, &["when it is activated next"]);
            guest.announce("CUT");
            std::thread::sleep(Duration::from_secs(60));
        })
        .phase("merging", |guest| {
            let (kept, merges) = Kept::after_boot(guest);
            assert!(merges);
            // By the kernel's table while it merges, by the record until somebody has looked.
            kept.run("apply old.undo vg/data").ends(5, &["merge"]);
            kept.run(COMMIT).ok();
            kept.is_merged("merged after a power cut");
            guest.announce("CUT");
            std::thread::sleep(Duration::from_secs(60));
        })
        .phase("merged", |guest| {
            let (kept, merges) = Kept::after_boot(guest);
            assert!(!merges && fs::metadata(PREVIEW).is_err());
            kept.is_merged("after the last power cut");
            kept.run(COMMIT).ends(5, &["there is no preview of it"]);
            let volumes = guest.sh("lvs -a --noheadings -o lv_name vg");
            assert!(!volumes.contains("preview"), "{volumes}");
        })
        .drive(|driver| {
            driver.run("make");
            for phase in ["show", "shown", "merging"] {
                let mut guest = driver.boot(phase);
                driver.wait_for(&mut guest, "CUT", Duration::from_secs(60));
                guest.cut().unwrap();
            }
            driver.run("merged");
        });
}

#[test]
fn a_preview_of_a_thick_volume_outlives_power_cuts() {
    let name = "a_preview_of_a_thick_volume_outlives_power_cuts";
    reboots(Kind::Thick, name);
}

#[test]
fn a_preview_of_a_thin_volume_outlives_power_cuts() {
    let name = "a_preview_of_a_thin_volume_outlives_power_cuts";
    reboots(Kind::Thin, name);
}

/// The power is cut at any moment.
fn cuts_at_random(kind: Kind, name: &'static str) {
    let cuts = if long() { 20 } else { 3 };
    Script::new(name, setup().time_limit(Duration::from_secs(300)))
        .phase("make", move |guest| make_kept(guest, kind))
        .phase("run", move |guest| {
            let (kept, merges) = Kept::after_boot(guest);
            let mut random = Random::new(seed(guest));
            if merges {
                kept.goes_on(kind, &mut random);
            }
            let milliseconds = random.below(8000);
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(milliseconds));
                let _ = say("NOW");
            });
            for _ in 0..1000 {
                kept.renew();
                kept.run(SHOW).ok();
                assert_same(PREVIEW, &kept.old, "shown");
                assert_same(DATA, &kept.new, "as it was");
                kept.run(COMMIT).ok();
                kept.is_merged("merged");
            }
        })
        .drive(|driver| {
            driver.run("make");
            let boot = |driver: &mut lab::Driver<'_>| {
                let mut guest = driver.boot("run");
                driver.wait_for(&mut guest, "TRUE: ", Duration::from_secs(60));
                guest
            };
            for number in 0..cuts {
                let mut guest = boot(driver);
                // A guest whose promise was broken ends by itself: its console says how.
                if guest.wait_for("NOW", Duration::from_secs(120)).is_err() {
                    let outcome = guest.wait().unwrap();
                    driver.check("run", &outcome);
                    panic!("it ended well, and was not cut");
                }
                guest.cut().unwrap();
                let _ = say(&format!("power cut {number}"));
            }
            // And after the last one.
            boot(driver).cut().unwrap();
        });
}

#[test]
fn a_power_cut_at_any_moment_leaves_a_thick_volume_as_it_is_on_record() {
    let name = "a_power_cut_at_any_moment_leaves_a_thick_volume_as_it_is_on_record";
    cuts_at_random(Kind::Thick, name);
}

#[test]
fn a_power_cut_at_any_moment_leaves_a_thin_volume_as_it_is_on_record() {
    let name = "a_power_cut_at_any_moment_leaves_a_thin_volume_as_it_is_on_record";
    cuts_at_random(Kind::Thin, name);
}

/// To the test's output.
fn say(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    std::writeln!(std::io::stderr(), "{text}")
}
