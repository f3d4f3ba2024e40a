//! Our reader of dm-era's metadata against thin-provisioning-tools: metadata that `era_restore` made of a random
//! description, and metadata that we built, as `era_invalidate` and `era_dump` see both.
//!
//! The tool leaves out the current writeset of a device that was not taken down, and before 1.3.3 the era array where
//! there is no writeset; so what we build for it is down, and has a writeset.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod kill_kit;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use kill_kit::{Random, long, seed, text};
use lvmsync::changes::era::build::EraBuilder;
use lvmsync::changes::era::{EraMetadata, Root};
use lvmsync::volume::memory::MemoryVolume;

fn cases() -> u64 {
    if long() { 200 } else { 20 }
}

/// Debian has them where only root's PATH looks.
fn tool(name: &str) -> PathBuf {
    let usual = Path::new("/usr/sbin").join(name);
    if usual.exists() { usual } else { name.into() }
}

/// The tools, or a word on where to get them.
fn tools_are_there() -> bool {
    let there = |name: &str| Command::new(tool(name)).arg("--version").output().is_ok();
    let all = ["era_invalidate", "era_restore", "era_dump"]
        .iter()
        .all(|name| there(name));
    if !all {
        println!(
            "era_metadata: SKIPPED: there is no era_invalidate; `cargo xtask test` installs it, or: \
             apt-get install thin-provisioning-tools"
        );
    }
    all
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

/// The numbers in a line of XML, whatever spaces are around `=`.
fn numbers(line: &str) -> Vec<u64> {
    let words = line.split('"').skip(1).step_by(2);
    words.filter_map(|word| word.parse().ok()).collect()
}

/// The blocks that `era_invalidate` finds.
fn theirs(file: &str, since: u32) -> BTreeSet<u64> {
    let said = run(
        "era_invalidate",
        &["--written-since", &since.to_string(), file],
    );
    let mut blocks = BTreeSet::new();
    for line in said.lines().map(str::trim) {
        match (line.starts_with("<range"), &numbers(line)[..]) {
            (true, [begin, end]) => blocks.extend(*begin..*end),
            (false, [block]) => {
                blocks.insert(*block);
            }
            _ => {}
        }
    }
    blocks
}

fn ours(image: &[u8], since: u32) -> BTreeSet<u64> {
    let image = MemoryVolume::new(image.to_vec());
    let metadata = EraMetadata::open(&image, Root::Live).unwrap();
    let mut blocks = BTreeSet::new();
    metadata
        .written_since(since, |run| blocks.extend(run))
        .unwrap();
    metadata.check_unchanged().unwrap();
    blocks
}

/// What `era_restore` reads.
fn describe(array: &[u32], writesets: &BTreeMap<u32, BTreeSet<u32>>, current: u32) -> String {
    let blocks = array.len();
    let mut xml = format!(
        "<superblock uuid=\"\" block_size=\"128\" nr_blocks=\"{blocks}\" current_era=\"{current}\">\n"
    );
    for (era, bits) in writesets {
        writeln!(xml, "<writeset era=\"{era}\" nr_bits=\"{blocks}\">").unwrap();
        for block in bits {
            writeln!(xml, "<bit block=\"{block}\" value=\"true\"/>").unwrap();
        }
        xml.push_str("</writeset>\n");
    }
    xml.push_str("<era_array>\n");
    for (block, era) in array.iter().enumerate() {
        writeln!(xml, "<era block=\"{block}\" era=\"{era}\"/>").unwrap();
    }
    xml + "</era_array>\n</superblock>\n"
}

#[test]
fn what_era_restore_writes_is_read_as_era_invalidate_reads_it() {
    if !tools_are_there() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("meta.img");
    let xml = directory.path().join("meta.xml");
    let seed = seed();
    for case in 0..cases() {
        let mut random = Random::new(seed, &format!("restore {case}"));
        // Sizes around the ends of words, and of blocks of both kinds of arrays.
        let edge = [64, 1018, 64 * 509, 2036][random.below(4) as usize];
        let blocks = (edge + random.below(5) - 2) as u32;
        let digested = 1 + random.below(4) as u32;
        let current = digested + 3;
        let array: Vec<u32> = (0..blocks)
            .map(|_| random.below(8) as u32)
            .map(|era| if era <= digested { era } else { 0 })
            .collect();
        let mut writesets = BTreeMap::new();
        let mut expected: BTreeMap<u64, u32> = (0..).zip(array.iter().copied()).collect();
        for era in digested + 1..current {
            let written = (0..1 + random.below(60)).map(|_| random.below(u64::from(blocks)) as u32);
            let bits: BTreeSet<u32> = written.collect();
            expected.extend(bits.iter().map(|block| (u64::from(*block), era)));
            writesets.insert(era, bits);
        }
        std::fs::write(&xml, describe(&array, &writesets, current)).unwrap();
        std::fs::write(&file, vec![0; 2 << 20]).unwrap();
        let name = file.to_str().unwrap();
        run("era_restore", &["-i", xml.to_str().unwrap(), "-o", name]);
        let image = std::fs::read(&file).unwrap();
        for since in 1..current {
            let late = expected.iter().filter(|(_, era)| **era >= since);
            let model: BTreeSet<u64> = late.map(|(block, _)| *block).collect();
            let what = format!("seed {seed}, case {case}, {blocks} blocks, since {since}");
            assert_eq!(ours(&image, since), model, "{what}");
            assert_eq!(theirs(name, since), model, "era_invalidate: {what}");
        }
    }
}

#[test]
fn what_we_build_is_sound_for_the_tools() {
    if !tools_are_there() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("meta.img");
    let name = file.to_str().unwrap();
    let seed = seed();
    for case in 0..cases() {
        let mut random = Random::new(seed, &format!("build {case}"));
        let blocks = 1 + random.below(5000) as u32;
        // The tools want nodes that are at least a third full but for the root, as ours are with room for many.
        let mut device = EraBuilder::new(128, blocks, 252);
        for _ in 0..200 {
            match random.below(20) {
                0..17 => device.write(random.below(u64::from(blocks)) as u32),
                17 | 18 => device.checkpoint(),
                _ => device.digest(),
            }
        }
        let current = device.era();
        device.suspend();
        let image = device.image();
        std::fs::write(&file, &image).unwrap();
        for since in 1..=current {
            let what = format!("seed {seed}, case {case}, {blocks} blocks, since {since}");
            assert_eq!(ours(&image, since), theirs(name, since), "{what}");
        }
        let dump = run("era_dump", &["--logical", name]);
        let head = numbers(dump.lines().next().unwrap());
        assert_eq!(head, [128, u64::from(blocks), u64::from(current)], "{dump}");
    }
}
