//! Our reader of thin pool metadata against thin-provisioning-tools: metadata that `thin_restore` made of a random
//! description, and metadata that we built with nodes shared as the kernel shares them, as `thin_delta` sees both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod kill_kit;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use kill_kit::{Random, long, seed, text};
use lvmsync::change_list::{ChangeList, ChangeListBuilder};
use lvmsync::changes::thin::build::PoolBuilder;
use lvmsync::changes::thin::{Root, ThinMetadata, ThinVolume};
use lvmsync::extent::{Kind, MAX_OFFSET};
use lvmsync::volume::memory::MemoryVolume;

/// Thin block to data block and time.
type Mappings = BTreeMap<u64, (u64, u32)>;

fn cases() -> u64 {
    if long() { 500 } else { 50 }
}

/// Debian has them where only root's PATH looks.
fn tool(name: &str) -> PathBuf {
    let usual = Path::new("/usr/sbin").join(name);
    if usual.exists() { usual } else { name.into() }
}

/// The tools, or a word on where to get them.
fn tools_are_there() -> bool {
    let there = |name| Command::new(tool(name)).arg("--version").output().is_ok();
    let both = there("thin_delta") && there("thin_restore");
    if !both {
        println!(
            "thin_metadata: SKIPPED: there is no thin_delta; `cargo xtask test` installs it, or: \
             apt-get install thin-provisioning-tools"
        );
    }
    both
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool(program))
        .args(arguments)
        .output()
        .unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}

/// The extents that `thin_delta` finds, and whether it finds anything that is the same.
fn theirs(delta: &str, block_bytes: u64) -> ChangeList {
    let mut builder = ChangeListBuilder::default();
    for line in delta.lines().map(str::trim) {
        let kind = match line.trim_start_matches('<').split(' ').next() {
            Some("different" | "right_only") => Kind::Data,
            Some("left_only") => Kind::Zero,
            _ => continue,
        };
        let number = |name: &str| -> u64 {
            let (_, after) = line.split_once(&format!("{name}=\"")).expect(line);
            after.split('"').next().unwrap().parse().unwrap()
        };
        let (begin, length) = (number("begin"), number("length"));
        let extent = lvmsync::extent::Extent::new(begin * block_bytes, length * block_bytes);
        builder.push(extent.unwrap(), kind);
    }
    builder.finish()
}

/// All pairs of devices, some of them both ways round, whole and cut at a random size.
fn compare(image: &Path, root: Root, ids: &[u64], random: &mut Random) -> usize {
    let bytes = MemoryVolume::new(std::fs::read(image).unwrap());
    let metadata = ThinMetadata::open(&bytes, root).unwrap();
    let path = image.to_str().unwrap();
    let mut extents = 0;
    for old in ids {
        for new in ids.iter().filter(|new| *new != old) {
            if new < old && !random.one_in(4) {
                continue;
            }
            let (one, other) = (old.to_string(), new.to_string());
            let mut arguments = vec!["--thin1", &one, "--thin2", &other];
            if root == Root::Snapshot {
                arguments.push("--metadata-snap");
            }
            arguments.push(path);
            let theirs = theirs(&run("thin_delta", &arguments), metadata.block_bytes());
            let cut = random.below(metadata.block_bytes() * 3000);
            for size_bytes in [MAX_OFFSET, cut] {
                let volume = |device: u64| ThinVolume {
                    device,
                    size_bytes,
                    external_origin: false,
                };
                let ours = metadata.changes(volume(*old), volume(*new)).unwrap();
                assert_eq!(ours.changes, theirs.clone().clip(size_bytes), "{old} {new}");
                extents += ours.changes.len();
            }
        }
    }
    extents
}

/// A few runs of mappings, each with data of its own.
fn scribble(random: &mut Random, into: &mut Mappings, next_data: &mut u64, time: u32) {
    let most = if random.one_in(4) { 600 } else { 12 };
    let runs = 1 + random.below(most);
    for _ in 0..runs {
        let (begin, length) = (random.below(6000), 1 + random.below(20));
        for block in begin..begin + length {
            if random.one_in(9) {
                into.remove(&block);
            } else {
                into.insert(block, (*next_data, time));
                // Mostly in a row, as an allocator does it.
                *next_data += 1 + u64::from(random.one_in(10));
            }
        }
    }
}

fn describe(block_sectors: u64, devices: &BTreeMap<u64, Mappings>, data_blocks: u64) -> String {
    let mut xml = format!(
        "<superblock uuid=\"\" time=\"9\" transaction=\"7\" flags=\"0\" version=\"2\" \
         data_block_size=\"{block_sectors}\" nr_data_blocks=\"{data_blocks}\">\n"
    );
    for (id, mappings) in devices {
        writeln!(
            xml,
            "<device dev_id=\"{id}\" mapped_blocks=\"{}\" transaction=\"3\" creation_time=\"{}\" snap_time=\"{}\">",
            mappings.len(),
            id % 9,
            id % 9 + 1,
        )
        .unwrap();
        let mut rest = mappings.iter().peekable();
        while let Some((begin, (data, time))) = rest.next() {
            let mut length = 1;
            while rest
                .next_if(|(block, mapped)| {
                    **block == begin + length && **mapped == (data + length, *time)
                })
                .is_some()
            {
                length += 1;
            }
            let mapping = if length == 1 {
                format!("<single_mapping origin_block=\"{begin}\" data_block=\"{data}\"")
            } else {
                format!(
                    "<range_mapping origin_begin=\"{begin}\" data_begin=\"{data}\" length=\"{length}\""
                )
            };
            writeln!(xml, "{mapping} time=\"{time}\"/>").unwrap();
        }
        xml.push_str("</device>\n");
    }
    xml.push_str("</superblock>\n");
    xml
}

#[test]
fn what_thin_restore_writes_differs_as_thin_delta_says() {
    if !tools_are_there() {
        return;
    }
    let seed = seed();
    println!("thin_metadata: LVMSYNC_KILL_SEED={seed}");
    let directory = tempfile::tempdir().unwrap();
    let [xml, image] = ["x.xml", "meta.img"].map(|name| directory.path().join(name));
    let (mut extents, mut mapped) = (0, 0);
    for case in 0..cases() {
        let mut random = Random::new(seed, &format!("restored {case}"));
        let block_sectors = 128 * (1 + random.below(12));
        let mut devices: BTreeMap<u64, Mappings> = BTreeMap::new();
        let mut next_data = 0;
        for device in 0..2 + random.below(3) {
            // Each is an earlier one, written to; now and then one without a past.
            let past = random.below(device + 1) as usize;
            let mut mappings = devices.values().nth(past).cloned().unwrap_or_default();
            if !random.one_in(8) {
                scribble(&mut random, &mut mappings, &mut next_data, device as u32);
            }
            devices.insert(random.below(1 << 24), mappings);
        }
        std::fs::write(&xml, describe(block_sectors, &devices, next_data + 1)).unwrap();
        std::fs::write(&image, []).unwrap();
        let empty = std::fs::File::options().write(true).open(&image).unwrap();
        empty.set_len(8 << 20).unwrap();
        let [from, to] = [&xml, &image].map(|path| path.to_str().unwrap());
        run("thin_restore", &["-i", from, "-o", to]);

        let bytes = MemoryVolume::new(std::fs::read(&image).unwrap());
        let metadata = ThinMetadata::open(&bytes, Root::Live).unwrap();
        assert_eq!(metadata.block_bytes(), block_sectors * 512);
        assert_eq!(metadata.superblock().time, 9);
        assert_eq!(metadata.superblock().transaction_id, 7);
        let mut found = Vec::new();
        metadata
            .devices(|id, details| found.push((id, details)))
            .unwrap();
        assert!(
            found
                .iter()
                .map(|device| device.0)
                .eq(devices.keys().copied())
        );
        for (id, details) in found {
            assert_eq!(metadata.device(id).unwrap(), Some(details));
            assert_eq!(details.transaction_id, 3);
            assert_eq!(u64::from(details.creation_time), id % 9);
            assert_eq!(u64::from(details.snapshotted_time), id % 9 + 1);
            assert_eq!(details.mapped_blocks, devices[&id].len() as u64);
            let mut blocks = Vec::new();
            metadata
                .mapped(id, |run| blocks.extend(run.start..run.start + run.blocks))
                .unwrap();
            assert!(blocks.iter().eq(devices[&id].keys()));
            mapped += blocks.len();
        }
        let ids: Vec<u64> = devices.keys().copied().collect();
        extents += compare(&image, Root::Live, &ids, &mut random);
    }
    println!(
        "thin_metadata: {} pools of thin_restore: {mapped} mapped blocks, {extents} extents as thin_delta's",
        cases()
    );
    assert!(extents > 1000 && mapped > 1000);
}

#[test]
fn shared_nodes_differ_as_thin_delta_says() {
    if !tools_are_there() {
        return;
    }
    let seed = seed();
    println!("thin_metadata: LVMSYNC_KILL_SEED={seed}");
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("meta.img");
    let mut extents = 0;
    for case in 0..cases() {
        let mut random = Random::new(seed, &format!("built {case}"));
        let most = if random.one_in(3) {
            252
        } else {
            4 + random.below(30) as usize
        };
        let mut pool = PoolBuilder::new(128 * (1 + random.below(12)) as u32, most);
        pool.create(1);
        pool.write_new(1, 0..random.below(3000));
        let mut ids = vec![1];
        for id in 2..4 + random.below(2) {
            let origin = ids[random.below(ids.len() as u64) as usize];
            pool.snapshot(id, origin);
            ids.push(id);
            for _ in 0..random.below(40) {
                let id = ids[random.below(ids.len() as u64) as usize];
                let begin = random.below(3500);
                for block in begin..begin + 1 + random.below(30) {
                    if random.one_in(6) {
                        pool.discard(id, block);
                    } else {
                        pool.write(id, block);
                    }
                }
            }
        }
        // Without one, thin_delta looks for space maps, which are not built.
        pool.reserve();
        for block in 0..random.below(500) {
            pool.write(1, block);
        }
        std::fs::write(&image, pool.image()).unwrap();
        extents += compare(&image, Root::Snapshot, &ids, &mut random);
    }
    println!(
        "thin_metadata: {} pools with shared nodes: {extents} extents as thin_delta's",
        cases()
    );
    assert!(extents > 1000);
}
