//! What stands on a thin volume (a partition, LUKS) as a destination and as a source. lvmsync then only knows a device:
//! nothing is discarded that might not read as zeroes, neighbours in the same pool block stay what they are, and what is
//! no source or no base is refused with the reason.
//!
//! Partitions are mapped as kpartx does it, encryption as cryptsetup does it: through device-mapper.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;
use std::time::Duration;

use lab::Guest;
use lab_kit::thin::{self, lvm};
use lab_kit::{Random, Run, Tool, assert_same, content, long, setup, write};
use rustix::process::{Pid, Signal, kill_process};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const SIZE: usize = 20 * MIB;
const TOP: &str = "/dev/mapper/top";
/// Sectors of the thin volume before what stands on it: no multiple of a pool block, so that both share one.
const BEFORE: usize = 2048 + 24;

/// Data, and long runs of zeroes.
fn image(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = random.bytes(SIZE);
    for (offset, length) in [
        (0, 512 * KIB),
        (3 * MIB + 4 * KIB, 2 * MIB),
        (8 * MIB + 512, 5 * MIB),
        (SIZE - 300 * KIB, 300 * KIB),
    ] {
        bytes[offset..offset + length].fill(0);
    }
    // And what differs from one to the next: more zeroes.
    for _ in 0..6 {
        let at = random.below((SIZE - MIB) as u64 / 4096) as usize * 4096;
        bytes[at..at + 200 * KIB].fill(0);
    }
    bytes
}

/// What may stand on a thin volume.
#[derive(Clone, Copy, Debug)]
enum Layer {
    Partition,
    Crypt { allow_discards: bool },
}

impl Layer {
    fn table(self) -> String {
        let sectors = SIZE / 512;
        match self {
            Self::Partition => format!("0 {sectors} linear /dev/vg/low {BEFORE}"),
            Self::Crypt { allow_discards } => {
                let key = "0123456789abcdef".repeat(8);
                let discards = if allow_discards {
                    "1 allow_discards"
                } else {
                    ""
                };
                format!("0 {sectors} crypt aes-xts-plain64 {key} 0 /dev/vg/low {BEFORE} {discards}")
            }
        }
    }
}

fn open(guest: &Guest, layer: Layer) {
    guest.sh(&format!("dmsetup create top --table '{}'", layer.table()));
}

fn close(guest: &Guest) {
    guest.sh("dmsetup remove top; echo 3 > /proc/sys/vm/drop_caches");
}

/// The thin volume around it has not changed.
#[track_caller]
fn neighbours_are(expected: &[u8], when: &str) {
    let found = content("/dev/vg/low");
    let (start, end) = (BEFORE * 512, BEFORE * 512 + SIZE);
    assert!(found[..start] == expected[..start], "{when}: before it");
    assert!(found[end..] == expected[end..], "{when}: behind it");
}

#[test]
fn what_stands_on_a_thin_volume_gets_its_data_and_its_zeroes() {
    let name = "what_stands_on_a_thin_volume_gets_its_data_and_its_zeroes";
    let setup = setup().disk("256M").time_limit(Duration::from_secs(180));
    lab::test(name, setup, |guest| {
        let tool = Tool::new(guest);
        guest.sh("modprobe -a dm-crypt");
        thin::group(guest, "vg", 0);
        thin::pool(guest, "vg/pool", 64, 64, "");
        let layers = [
            Layer::Partition,
            Layer::Crypt {
                allow_discards: false,
            },
            Layer::Crypt {
                allow_discards: true,
            },
        ];
        for (number, layer) in layers.into_iter().enumerate() {
            let when = |what: &str| format!("{layer:?}: {what}");
            lvm(guest, "lvcreate -qq -y -Wn -T -V 24M -n low vg/pool");
            let around = Random::new(9).bytes(24 * MIB);
            write("/dev/vg/low", &around, 0);
            open(guest, layer);
            let before = content(TOP);
            let (first, second) = (image(1), image(2));
            fs::write(tool.path("first.img"), &first).unwrap();
            fs::write(tool.path("second.img"), &second).unwrap();
            // Not from memory, and through a layer that was made anew.
            let holds = |expected: &[u8], what: &str| {
                assert_same(TOP, expected, &when(what));
                close(guest);
                open(guest, layer);
                assert_same(TOP, expected, &when(&format!("{what}, opened again")));
                neighbours_are(&around, &when(what));
            };
            let undo = format!("undo{number}");
            tool.run(&format!("send first.img {TOP} --undo {undo} --verify"))
                .ok();
            holds(&first, "a full copy");
            tool.run(&format!("send second.img {TOP} --atomic")).ok();
            holds(&second, "another, kept beside first");
            tool.run(&format!("send first.img {TOP}")).ok();
            tool.run(&format!("apply {undo} {TOP}")).ok();
            holds(&before, "its undo");
            if long() {
                for seed in 10..20 {
                    let next = image(seed);
                    fs::write(tool.path("next.img"), &next).unwrap();
                    tool.run(&format!("send next.img {TOP}")).ok();
                    holds(&next, "one of many");
                }
            }
            // All of it unmapped below: what reads as zeroes there is no zero through a cipher.
            guest.sh("blkdiscard -f /dev/vg/low 2> discard || blkdiscard /dev/vg/low");
            fs::write(tool.path("zero.img"), vec![0; SIZE]).unwrap();
            tool.run(&format!("send zero.img {TOP} --force")).ok();
            assert_same(TOP, &vec![0; SIZE], &when("nothing but zeroes"));
            close(guest);
            lvm(guest, "lvremove -qq -y vg/low");
        }
    });
}

#[test]
fn what_stands_on_a_thin_volume_is_a_plain_source_and_no_base() {
    let name = "what_stands_on_a_thin_volume_is_a_plain_source_and_no_base";
    let setup = setup().disk("256M").time_limit(Duration::from_secs(180));
    lab::test(name, setup, |guest| {
        let tool = Tool::new(guest);
        guest.sh("modprobe -a dm-crypt");
        thin::group(guest, "vg", 0);
        thin::pool(guest, "vg/pool", 96, 64, "");
        lvm(guest, "lvcreate -qq -y -Wn -T -V 24M -n low vg/pool");
        lvm(guest, "lvcreate -qq -y -Wn -T -V 24M -n other vg/pool");
        let first = image(1);
        for layer in [
            Layer::Partition,
            Layer::Crypt {
                allow_discards: false,
            },
        ] {
            open(guest, layer);
            write(TOP, &first, 0);
            let _ = fs::remove_file(tool.path("copy.img"));
            tool.run(&format!("send {TOP} copy.img")).ok();
            assert_same(tool.path("copy.img"), &first, "a plain source");
            let reason = ["it is not a logical volume", "no record of what changed"];
            lvm(guest, "lvcreate -qq -y -s -n s1 vg/low");
            for base in [format!("{TOP} vg/low"), format!("{TOP} {TOP}")] {
                tool.run(&format!("send --from {base} -o no"))
                    .ends(1, &reason);
            }
            tool.run(&format!("send --from vg/s1 {TOP} -o no"))
                .ends(1, &["vg/s1 is a thin volume, so NEW must be one"]);
            assert!(!tool.path("no").exists());
            // Onto itself, in both directions.
            tool.run(&format!("send vg/low {TOP}")).ends(5, &[TOP]);
            tool.run(&format!("send {TOP} vg/low")).ends(5, &["vg/low"]);
            assert_same(TOP, &first, "not written");
            lvm(guest, "lvremove -qq -y vg/s1");
            close(guest);
        }
        // Cut in the middle: no source, neither by its own name nor by that of what is below, closed or not.
        fs::write(tool.path("second.img"), image(2)).unwrap();
        for layer in [
            Layer::Crypt {
                allow_discards: false,
            },
            Layer::Partition,
        ] {
            open(guest, layer);
            let before = content(TOP);
            let mut child = tool.start(&format!("send second.img {TOP} --bwlimit 2M --force"));
            while content(TOP) == before {
                assert!(child.try_wait().unwrap().is_none());
                std::thread::sleep(Duration::from_millis(20));
            }
            kill_process(
                Pid::from_raw(child.id().cast_signed()).unwrap(),
                Signal::INT,
            )
            .unwrap();
            Run::of(child).ends(130, &["partly written"]);
            tool.run(&format!("send {TOP} -o no"))
                .ends(5, &["incomplete"]);
            let shared = format!("it shares its data with {TOP}, which is on record as incomplete");
            let below = tool.path("copy.img").display().to_string();
            for _ in 0..2 {
                tool.run("send vg/low -o no")
                    .ends(5, &[&shared, "state forget"]);
                tool.run(&format!("sync vg/low {below}"))
                    .ends(5, &[&shared]);
                tool.run("send vg/other fine.img --force").ok();
                guest.sh("dmsetup remove top || true");
            }
            open(guest, layer);
            tool.run(&format!("send second.img {TOP}")).ok();
            assert_same(TOP, &image(2), "finished");
            tool.run("send vg/low low.img --force").ok();
            close(guest);
        }
        open(guest, Layer::Partition);
        tool.run("send vg/other fine.img").ok();
        tool.run(&format!("send second.img {TOP}")).ok();
        assert_same(TOP, &image(2), "finished");
        tool.run("send vg/low low.img").ok();
        assert_same(tool.path("low.img"), &content("/dev/vg/low"), "below it");
    });
}

#[test]
fn a_pool_that_breaks_below_a_layer_is_named_all_the_same() {
    let name = "a_pool_that_breaks_below_a_layer_is_named_all_the_same";
    let setup = setup().disk("256M").time_limit(Duration::from_secs(180));
    lab::test(name, setup, |guest| {
        let tool = Tool::new(guest);
        guest.sh(
            "modprobe -a dm-crypt; echo 2 > /sys/module/dm_thin_pool/parameters/no_space_timeout",
        );
        thin::group(guest, "vg", 0);
        let whole = Random::new(3).bytes(SIZE);
        fs::write(tool.path("whole.img"), &whole).unwrap();
        for layer in [
            Layer::Partition,
            Layer::Crypt {
                allow_discards: false,
            },
        ] {
            thin::pool(guest, "vg/pool", 12, 64, "");
            lvm(guest, "lvcreate -qq -y -Wn -T -V 24M -n low vg/pool");
            open(guest, layer);
            let send = format!("send whole.img {TOP}");
            let words = ["thin pool vg/pool", "data 100 %", "lvextend -L +SIZE"];
            tool.run(&send).ends(1, &words);
            let state = tool.run(&format!("state show {TOP}")).ok().stdout;
            assert!(state.contains("INCOMPLETE"), "{state}");
            // The same again finds a pool in trouble, before anything is written.
            tool.run(&send).ends(5, &words);
            lvm(guest, "lvextend -qq -L +16M vg/pool");
            tool.run(&send).ok();
            assert_same(TOP, &whole, &format!("{layer:?}: after the pool grew"));
            tool.run(&format!("state forget --force {TOP}")).ok();
            close(guest);
            lvm(guest, "lvremove -qq -y vg/pool");
        }
    });
}
