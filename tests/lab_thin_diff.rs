//! What differs between two thin volumes, held against the kernel's own tools, over random histories of real pools; and
//! what is sent, held against what the volume holds. The same from a copy of the metadata.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lab::Guest;
use lab_kit::thin::{self, Known, is_active, list_by_thin_delta, lvm, thin_volumes};
use lab_kit::two_rounds::noise;
use lab_kit::{Random, Tool, content, long, seed, setup, write};

const MIB: u64 = 1 << 20;
/// Chunk sizes of the pools; the second one is no power of two, and does not zero what it hands out.
const POOLS: [(&str, u64, &str); 3] = [("p0", 64, ""), ("p1", 192, "-Zn"), ("p2", 1024, "")];
/// No volume becomes larger.
const LARGEST: u64 = 64 * MIB;

/// What is counted.
#[derive(Default)]
struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    fn add(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }
}

/// A pool and what is in it.
struct Pool<'a> {
    guest: &'a Guest,
    tool: &'a Tool,
    name: &'static str,
    chunk: u64,
    /// Volumes that are written to: origins, and writable snapshots of snapshots.
    live: Vec<String>,
    /// Nobody writes to these.
    snapshots: Vec<String>,
    made: u64,
    /// The snapshot whose content the copy has.
    held: Option<String>,
    copy: &'static str,
}

impl Pool<'_> {
    fn fresh(&mut self, letter: char) -> String {
        self.made += 1;
        format!("{}{letter}{}", self.name, self.made)
    }

    fn new_origin(&mut self, random: &mut Random) {
        let size = match random.below(8) {
            0 => 32 * MIB,
            n => 8 * MIB + n * 128 * 1024,
        };
        let name = self.fresh('o');
        let pool = self.name;
        lvm(
            self.guest,
            &format!("lvcreate -qq -y -T -V {size}b -n {name} vg/{pool}"),
        );
        self.live.push(name);
    }

    /// Some of what may happen to a live volume, and what LVM does at most once.
    fn live_through(&mut self, random: &mut Random, counts: &mut Counts) {
        if self.live.is_empty() || (self.live.len() < 3 && random.below(5) == 0) {
            self.new_origin(random);
        }
        let mut target = self.live[random.below(self.live.len() as u64) as usize].clone();
        self.change_shape(&target, random, counts);
        if !self.live.contains(&target) {
            target.clone_from(&self.live[0]);
        }
        let device = format!("/dev/vg/{target}");
        if random.below(4) == 0 {
            self.files_come_and_go(&device, random, counts);
        }
        for _ in 0..2 + random.below(6) {
            let size = content_size(&device);
            let sectors = size / 512;
            let chunks = |random: &mut Random| (1 + random.below(5)) * self.chunk;
            let length = match random.below(5) {
                0 => 4096,
                1 => 512 * (1 + random.below(40)),
                2 => self.chunk,
                3 => chunks(random),
                _ => (1 + random.below(12)) * 4096,
            };
            let length = length.min(size);
            // As often as not where a chunk begins.
            let mut offset = random.below(sectors - length / 512 + 1) * 512;
            if random.below(2) == 0 {
                offset -= offset % self.chunk;
            }
            if random.below(3) == 0 {
                self.guest
                    .sh(&format!("blkdiscard -o {offset} -l {length} {device}"));
                counts.add("discards", 1);
            } else {
                let seed = random.below(u64::MAX).to_string();
                write(&device, &noise(length as usize, &seed), offset);
                counts.add("writes", 1);
            }
        }
    }

    fn change_shape(&mut self, target: &str, random: &mut Random, counts: &mut Counts) {
        let size = content_size(&format!("/dev/vg/{target}"));
        let step = (1 + random.below(24)) * 128 * 1024;
        // In a sample as well the second snapshot is of a volume that has grown.
        let choice = match self.snapshots.len() {
            1 => 0,
            _ => random.below(7),
        };
        match choice {
            0 | 1 if size + step <= LARGEST => {
                lvm(self.guest, &format!("lvextend -qq -L +{step}b vg/{target}"));
                counts.add("extended", 1);
            }
            2 if size > step + 4 * MIB => {
                lvm(
                    self.guest,
                    &format!("lvreduce -qq -f -y -L -{step}b vg/{target}"),
                );
                counts.add("reduced", 1);
            }
            3 if self.live.len() < 3 && !self.snapshots.is_empty() => {
                let of = &self.snapshots[random.below(self.snapshots.len() as u64) as usize];
                let of = of.clone();
                let name = self.fresh('w');
                lvm(
                    self.guest,
                    &format!("lvcreate -qq -y -s -kn -prw -n {name} vg/{of}"),
                );
                self.live.push(name);
                counts.add("writable snapshots of snapshots", 1);
            }
            4 if self.live.len() > 1 => {
                self.live.retain(|name| name != target);
                lvm(self.guest, &format!("lvremove -qq -y vg/{target}"));
                counts.add("live volumes removed", 1);
                // Its id is free for the next one.
                let target = self.live[0].clone();
                self.change_shape(&target, random, counts);
            }
            _ => {}
        }
    }

    fn files_come_and_go(&self, device: &str, random: &mut Random, counts: &mut Counts) {
        let keep = random.below(4);
        self.guest.sh(&format!(
            "mkfs.ext4 -q -F -b 4096 -O ^has_journal {device}; mount {device} /mnt
             for n in 0 1 2 3 4; do head -c {} /dev/urandom > /mnt/$n || break; done; sync
             rm -f /mnt/{keep} /mnt/4; sync; fstrim /mnt; umount /mnt",
            200_000 + random.below(900_000)
        ));
        counts.add("fstrims", 1);
    }

    /// A snapshot of one of the live volumes, or of a snapshot.
    fn snapshot(&mut self, random: &mut Random, counts: &mut Counts) -> String {
        let name = self.fresh('s');
        let of_snapshot = random.below(6) == 0 && !self.snapshots.is_empty();
        let of = if of_snapshot {
            counts.add("snapshots of snapshots", 1);
            &self.snapshots
        } else {
            &self.live
        };
        let of = &of[random.below(of.len() as u64) as usize];
        let options = ["-kn", "-kn -pr", "", "-pr"][random.below(4) as usize];
        lvm(
            self.guest,
            &format!("lvcreate -qq -y -s {options} -n {name} vg/{of}"),
        );
        counts.add("snapshots", 1);
        self.snapshots.push(name.clone());
        name
    }

    fn compare(&self, old: &str, new: &str, known: &BTreeMap<String, Known>, counts: &mut Counts) {
        let by_kernel = list_by_thin_delta(
            self.guest,
            &format!("vg/{}", self.name),
            known[old],
            known[new],
        );
        let found = self.tool.thin_diff(&format!("--from vg/{old} vg/{new}"));
        assert_eq!(
            found, by_kernel,
            "{old} {:?} → {new} {:?}, chunks of {}; right: the kernel",
            known[old], known[new], self.chunk
        );
        counts.add("pairs compared", 1);
        counts.add("extents", found.len() as u64);
        let zero = found.iter().filter(|(_, _, kind)| kind == "zero");
        counts.add("zero extents", zero.count() as u64);
        for name in [old, new] {
            let active = is_active(&format!("vg/{name}"));
            assert_eq!(active, known[name].active, "{name} is as it was");
        }
    }

    /// Brings the copy to `new` and compares it.
    fn send(&mut self, new: &str, size: u64, random: &mut Random, counts: &mut Counts) {
        let from = self.held.take().map(|old| format!("--from vg/{old}"));
        counts.add(
            if from.is_some() {
                "increments"
            } else {
                "full copies"
            },
            1,
        );
        let from = from.unwrap_or_default();
        let copy = self.copy;
        if random.below(2) == 0 {
            self.tool
                .run(&format!("send {from} vg/{new} -o delta -z lz4"))
                .ok();
            self.tool.run(&format!("apply delta {copy}")).ok();
            std::fs::remove_file(self.tool.path("delta")).unwrap();
            counts.add("through a file", 1);
        } else {
            self.tool.run(&format!("send {from} vg/{new} {copy}")).ok();
        }
        let was_active = is_active(&format!("vg/{new}"));
        if !was_active {
            lvm(self.guest, &format!("lvchange -qq -ay -K vg/{new}"));
        }
        let expected = content(format!("/dev/vg/{new}"));
        if !was_active {
            lvm(self.guest, &format!("lvchange -qq -an vg/{new}"));
        }
        let path = if copy.contains('/') {
            format!("/dev/{copy}").into()
        } else {
            self.tool.path(copy)
        };
        let found = content(path);
        assert_eq!(expected.len() as u64, size);
        let wrong = expected
            .chunks(4096)
            .zip(found.chunks(4096))
            .filter(|(a, b)| a != b)
            .count();
        assert!(
            wrong == 0 && found.len() >= expected.len(),
            "{from} {new}: {wrong} wrong blocks in {copy}"
        );
        counts.add("MiB compared", size / MIB);
        self.held = Some(new.to_owned());
    }

    fn prune(&mut self, random: &mut Random) {
        let mut gone = Vec::new();
        while self.snapshots.len() > 5 {
            let at = random.below(self.snapshots.len() as u64 - 1) as usize;
            if self.held.as_ref() == Some(&self.snapshots[at]) {
                continue;
            }
            gone.push(format!("vg/{}", self.snapshots.remove(at)));
        }
        if !gone.is_empty() && random.below(3) > 0 {
            lvm(self.guest, &format!("lvremove -qq -y {}", gone.join(" ")));
        } else {
            let names = gone.iter().map(|name| name[3..].to_owned());
            self.snapshots.splice(0..0, names);
        }
    }
}

fn content_size(device: &str) -> u64 {
    use lvmsync::volume::{ReadAt, Volume};
    Volume::open(device).unwrap().size_bytes()
}

#[test]
fn random_histories_agree_with_thin_delta() {
    let histories = if long() { 200 } else { 4 };
    let limit = Duration::from_secs(if long() { 3000 } else { 240 });
    let setup = setup().disk("1400M").disk("300M").time_limit(limit);
    let name = "random_histories_agree_with_thin_delta";
    lab::test(name, setup, |guest| {
        let tool = Tool::new(guest);
        let mut random = Random::new(seed(guest));
        let mut counts = Counts::default();
        thin::group(guest, "vg", 0);
        thin::group(guest, "far", 1);
        thin::pool(guest, "far/pool", 160, 64, "");
        lvm(guest, "lvcreate -qq -y -T -V 64M -n thin far/pool");
        guest.volume("far", "thick", "64M");
        let copies = ["copy.img", "far/thick", "far/thin"];
        let mut pools: Vec<Pool<'_>> = Vec::new();
        for ((name, chunk_kib, options), copy) in POOLS.into_iter().zip(copies) {
            thin::pool(guest, &format!("vg/{name}"), 420, chunk_kib, options);
            pools.push(Pool {
                guest,
                tool: &tool,
                name,
                chunk: chunk_kib << 10,
                live: Vec::new(),
                snapshots: Vec::new(),
                made: 0,
                held: None,
                copy,
            });
        }
        let start = Instant::now();
        for number in 0..histories {
            let pool = &mut pools[number % POOLS.len()];
            pool.live_through(&mut random, &mut counts);
            let new = pool.snapshot(&mut random, &mut counts);
            if random.below(12) == 0 {
                pool.held = None;
            }
            let known = thin_volumes(guest, "vg");
            let other = random.below(pool.snapshots.len() as u64) as usize;
            let other = pool.snapshots[other].clone();
            let old = pool.held.clone().unwrap_or_else(|| other.clone());
            if old != new {
                pool.compare(&old, &new, &known, &mut counts);
            }
            if random.below(3) == 0 && other != new && other != old {
                // Backwards, too, and between those that have nothing in common.
                pool.compare(&new, &other, &known, &mut counts);
            }
            pool.send(&new, known[&new].size, &mut random, &mut counts);
            pool.prune(&mut random);
        }
        let seconds = start.elapsed().as_secs();
        guest.announce(&format!(
            "{histories} histories in {seconds} s: {:?}",
            counts.0
        ));
        assert_eq!(tool.held(), [""; 0]);
        for pool in &pools {
            assert_eq!(thin::held_root(guest, &format!("vg/{}", pool.name)), "-");
        }
        offline(guest, &tool, &pools[0]);
    });
}

/// The metadata in a file, or in a device of a pool that is not active, tells the same.
fn offline(guest: &Guest, tool: &Tool, pool: &Pool<'_>) {
    let known = thin_volumes(guest, "vg");
    let mut lists = Vec::new();
    for pair in pool.snapshots.windows(2) {
        let (old, new) = (known[&pair[0]], known[&pair[1]]);
        let live = tool.thin_diff(&format!("--from vg/{} vg/{}", pair[0], pair[1]));
        let arguments = format!(
            "--from thin:{} thin:{} --base-size {} --volume-size {}",
            old.id, new.id, old.size, new.size
        );
        lists.push((arguments, live));
    }
    let tmeta = format!("vg-{}_tmeta", pool.name);
    let (arguments, _) = lists.first().unwrap();
    tool.run(&format!(
        "diff --thin-metadata /dev/mapper/{tmeta} {arguments}"
    ))
    .ends(5, &["in use by the active pool", "lvmsync diff --from"]);
    guest.sh(&format!(
        "lvchange -qq -an vg/{0} $(lvs --noheadings -o lv_full_name -S pool_lv={0} vg) 2>&1
         lvchange -qq -y -ay vg/{0}_tmeta 2>&1; cp /dev/mapper/{tmeta} tmeta.img",
        pool.name
    ));
    for (arguments, live) in &lists {
        for place in [format!("/dev/mapper/{tmeta}"), "tmeta.img".to_owned()] {
            let found = tool.thin_diff(&format!("--thin-metadata {place} {arguments}"));
            assert_eq!(&found, live, "{place} {arguments}");
        }
    }
    guest.sh(&format!("lvchange -qq -an vg/{}_tmeta 2>&1", pool.name));
    guest.announce(&format!(
        "offline: {} pairs, from file and device",
        lists.len()
    ));
}
