//! dm-era's record against the truth: random histories of writes, discards, checkpoints, reloads and resizes of a real device.
//! When it is down, what is listed since each era is exactly what was written since the one before it began, and what
//! `era_invalidate` finds, which is right about a record that was closed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::collections::BTreeMap;
use std::time::Duration;

use lab::Guest;
use lab_kit::{Random, Tool, content, long, seed, setup, write};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;
const LARGEST: u64 = 48 * MIB;
const DEVICE: &str = "/dev/mapper/tracked";

/// The era device on top of a volume, and what happened to it.
struct Device<'a> {
    guest: &'a Guest,
    block: u64,
    /// Its size.
    size: u64,
    /// Block to the last era in which it was written.
    written: BTreeMap<u64, u32>,
    /// The size when an era began.
    size_at: BTreeMap<u32, u64>,
    /// The digests of what the blocks of the volume held when an era began.
    held: BTreeMap<u32, Vec<blake3::Hash>>,
}

impl Device<'_> {
    fn table(&self) -> String {
        let (sectors, block) = (self.size / 512, self.block / 512);
        format!("'0 {sectors} era /dev/vg/meta /dev/vg/data {block}'")
    }

    fn start(&mut self) {
        let table = self.table();
        self.guest.sh(&format!(
            "modprobe dm-era; dmsetup create tracked --table {table}"
        ));
        self.era_begins();
    }

    fn grow(&mut self) {
        self.size += 4 * MIB;
        let table = self.table();
        self.guest.sh(&format!(
            "lvextend -qq -L +4M vg/data; dmsetup reload tracked --table {table}; \
             dmsetup suspend tracked && dmsetup resume tracked"
        ));
        self.era_begins();
    }

    fn stop(&self) {
        self.guest.sh("dmsetup remove tracked");
    }

    /// The current era, as the kernel says.
    fn era(&self) -> u32 {
        let status = self.guest.sh("dmsetup status tracked");
        status.split_whitespace().nth(5).unwrap().parse().unwrap()
    }

    fn era_begins(&mut self) {
        let era = self.era();
        self.size_at.insert(era, self.size);
        self.held.insert(era, self.digests());
    }

    fn digests(&self) -> Vec<blake3::Hash> {
        let content = content("/dev/vg/data");
        let block = self.block as usize;
        content.chunks(block).map(blake3::hash).collect()
    }

    fn note(&mut self, offset: u64, length: u64) {
        let era = self.era();
        for block in offset / self.block..(offset + length).div_ceil(self.block) {
            self.written.insert(block, era);
        }
    }

    fn live_through(&mut self, random: &mut Random) {
        for _ in 0..30 {
            let length = 4096 * (1 + random.below(40));
            let offset = random.below((self.size - length) / 4096 + 1) * 4096;
            match random.below(20) {
                10 if self.size < LARGEST => self.grow(),
                0 | 1 => {
                    self.guest.sh("dmsetup message tracked 0 checkpoint");
                    self.era_begins();
                }
                2 | 3 => {
                    self.guest
                        .sh("dmsetup suspend tracked && dmsetup resume tracked");
                    self.era_begins();
                }
                4 | 5 => {
                    self.stop();
                    self.start();
                }
                6 | 7 => {
                    // Of one that spans several blocks dm-era records the first alone (docs/tracking.md).
                    let offset = offset / self.block * self.block;
                    let length = self.block.min(self.size - offset);
                    self.guest
                        .sh(&format!("blkdiscard -o {offset} -l {length} {DEVICE}"));
                    self.note(offset, length);
                }
                _ => {
                    write(DEVICE, &random.bytes(length as usize), offset);
                    self.note(offset, length);
                }
            }
        }
    }

    /// What `era_invalidate` finds.
    fn theirs(&self, since: u32) -> Vec<u64> {
        let line = format!("era_invalidate --written-since {since} /dev/vg/meta");
        let said = self.guest.sh(&line);
        let mut found = Vec::new();
        for line in said.lines().map(str::trim) {
            // Some releases have spaces around `=`.
            let words = line.split('"').skip(1).step_by(2);
            let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
            match (line.starts_with("<range"), &numbers[..]) {
                (true, [begin, end]) => found.extend(*begin..*end),
                (false, [block]) => found.push(*block),
                _ => {}
            }
        }
        found
    }

    /// Holds what is listed since each era against what was written, and against what differs.
    fn check(&self, tool: &Tool) {
        let now = self.digests();
        for (since, before) in &self.held {
            let line =
                format!("diff --era-metadata /dev/vg/meta --from era:{since} /dev/vg/data --json");
            let run = tool.run(&line).ok();
            let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
            let mut listed = Vec::new();
            for extent in json["extents"].as_array().unwrap() {
                let number = |name: &str| extent[name].as_u64().unwrap();
                let (offset, length) = (number("offset"), number("length"));
                let first = offset / self.block;
                listed.extend(first..first + length.div_ceil(self.block));
            }
            // One era more than asked for: what was in flight when it began may be on record there.
            let late = self.written.iter().filter(|(_, era)| **era + 1 >= *since);
            let expected: Vec<u64> = late.map(|(block, _)| *block).collect();
            assert_eq!(listed, expected, "since era {since}");
            // Since era 0 is all that there is, written or not.
            let asked = (since - 1).max(1);
            assert_eq!(self.theirs(asked), expected, "era_invalidate {asked}");
            // A last block that was not whole may have grown.
            let whole = self.size_at.get(since).map_or(0, |size| size / self.block) as usize;
            let pairs = before.iter().take(whole).zip(&now);
            for (number, (before, now)) in (0..).zip(pairs) {
                assert!(
                    before == now || listed.contains(&number),
                    "{number} since {since}"
                );
            }
        }
    }
}

#[test]
fn histories_of_an_era_device() {
    lab::test(
        "histories_of_an_era_device",
        setup()
            .disk("256M")
            .time_limit(Duration::from_secs(if long() { 9000 } else { 180 })),
        |guest| {
            let mut random = Random::new(seed(guest));
            let tool = Tool::new(guest);
            guest.volume_group("vg", 0);
            for round in 0..if long() { 200 } else { 2 } {
                guest.volume("vg", "meta", "8M");
                guest.volume("vg", "data", "24M");
                // A superblock of zeroes is formatted.
                write("/dev/vg/meta", &[0; 4096], 0);
                let mut device = Device {
                    guest,
                    size: SIZE,
                    block: [4096, 64 << 10, 192 << 10][random.below(3) as usize],
                    written: BTreeMap::new(),
                    size_at: BTreeMap::new(),
                    held: BTreeMap::new(),
                };
                device.start();
                device.live_through(&mut random);
                let active = "diff --era-metadata /dev/vg/meta --from era:1 /dev/vg/data";
                tool.run(active)
                    .ends(5, &["in use by the active device tracked"]);
                device.stop();
                device.check(&tool);
                let eras = device.held.len();
                guest.announce(&format!(
                    "round {round}: {eras} eras, {} blocks",
                    device.written.len()
                ));
                guest.sh("lvremove -qq -y vg/data vg/meta");
            }
        },
    );
}
