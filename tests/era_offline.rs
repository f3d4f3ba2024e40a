//! `--era-metadata FILE --from era:N` from outside: what is listed and sent, and what is refused. Neither root nor
//! device-mapper is needed here.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use lvmsync::changes::era::build::EraBuilder;

const BLOCK: u64 = 64 << 10;
const BLOCKS: u64 = 32;

struct Dir {
    directory: tempfile::TempDir,
}

impl Dir {
    /// `meta.img`: the blocks 1 to 4 were written in the eras 1 to 4, one in each, and 30 in the last; the first era is
    /// digested. `disk.img`: what a device of 32 blocks holds now. `old.img`: what it held before era 3.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dir = Self { directory };
        let mut device = EraBuilder::new((BLOCK / 512) as u32, BLOCKS as u32, 4);
        for block in 1..4 {
            device.write(block);
            device.checkpoint();
        }
        device.digest();
        device.write(4);
        device.write(30);
        fs::write(dir.path("meta.img"), device.image()).unwrap();
        let data: Vec<u8> = (0..BLOCKS * BLOCK).map(|n| (n / 512) as u8 | 1).collect();
        let mut old = data.clone();
        for block in [3, 4, 30] {
            old[(block * BLOCK) as usize..][..BLOCK as usize].fill(0);
        }
        fs::write(dir.path("disk.img"), data).unwrap();
        fs::write(dir.path("old.img"), old).unwrap();
        dir
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What was said on stdout and stderr, if it ended with `code` and said all of `words`.
    #[track_caller]
    fn ends(&self, line: &str, code: i32, words: &[&str]) -> (String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_lvmsync"))
            .current_dir(self.directory.path())
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .args(line.split_whitespace())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let all = words.iter().all(|word| said.contains(word));
        assert!(
            output.status.code() == Some(code) && all,
            "{line}: {:?}, expected {code} and {words:?}: {said}",
            output.status.code()
        );
        (listed, said)
    }
}

/// The extents of `--json`, in blocks.
fn extents(json: &str) -> Vec<(u64, u64)> {
    let value: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(value["granularity"], BLOCK);
    let extents = value["extents"].as_array().unwrap().iter().map(|extent| {
        assert_eq!(extent["kind"], "data");
        let number = |name: &str| extent[name].as_u64().unwrap() / BLOCK;
        (number("offset"), number("length"))
    });
    extents.collect()
}

#[test]
fn what_was_written_since_an_era_is_listed() {
    let dir = Dir::new();
    let list = |era: u32, more: &str| {
        let line = format!("diff --era-metadata meta.img --from era:{era} disk.img --json {more}");
        extents(&dir.ends(&line, 0, &[]).0)
    };
    // One era more than asked for: what was in flight when it began may be on record there.
    assert_eq!(list(1, ""), [(1, 4), (30, 1)]);
    assert_eq!(list(2, ""), [(1, 4), (30, 1)]);
    assert_eq!(list(4, ""), [(3, 2), (30, 1)]);
    let base = format!("--base-size {}", 31 * BLOCK);
    assert_eq!(list(4, &base), [(3, 2), (30, 2)]);
    let map = "diff --era-metadata meta.img --from era:4 disk.img --map";
    assert!(dir.ends(map, 0, &["chunks of 64"]).0.contains('#'));
}

#[test]
fn what_was_sent_makes_the_old_state_the_new_one() {
    let dir = Dir::new();
    let send = "send --era-metadata meta.img --from era:3 disk.img";
    dir.ends(&format!("{send} -o day.delta"), 0, &[]);
    let (inspected, _) = dir.ends("inspect --json day.delta", 0, &[]);
    assert!(inspected.contains("\"era\""), "{inspected}");
    fs::copy(dir.path("old.img"), dir.path("other.img")).unwrap();
    dir.ends("apply day.delta other.img", 0, &[]);
    dir.ends(&format!("{send} old.img"), 0, &[]);
    let disk = fs::read(dir.path("disk.img")).unwrap();
    assert!(fs::read(dir.path("other.img")).unwrap() == disk);
    assert!(fs::read(dir.path("old.img")).unwrap() == disk);
    // A destination that is not the base shows in the samples.
    fs::write(dir.path("wrong.img"), vec![9; disk.len()]).unwrap();
    dir.ends("apply day.delta wrong.img", 5, &[]);
    dir.ends(&format!("{send} -o meta.img --overwrite"), 2, &["meta.img"]);
}

#[test]
fn what_cannot_be_complete_is_refused_and_names_the_way_out() {
    let dir = Dir::new();
    let diff =
        |file: &str, era: &str, new: &str| format!("diff --era-metadata {file} --from {era} {new}");
    let sync = "lvmsync sync disk.img DEST";
    dir.ends(
        &diff("meta.img", "era:5", "disk.img"),
        4,
        &["has not begun", sync],
    );
    for wrong in [
        "era:0",
        "era:x",
        "era:",
        "era:-1",
        "era:4294967296",
        "thin:1",
        "disk.img",
    ] {
        dir.ends(&diff("meta.img", wrong, "disk.img"), 2, &["era:7"]);
    }
    dir.ends("diff --from era:3 disk.img", 2, &["--era-metadata"]);
    dir.ends(
        "diff --era-metadata meta.img --thin-metadata meta.img --from era:3 disk.img",
        2,
        &[],
    );
    dir.ends(&diff("none.img", "era:3", "disk.img"), 1, &["none.img"]);
    dir.ends(
        &diff("disk.img", "era:3", "disk.img"),
        4,
        &["no usable superblock of dm-era"],
    );
    // A volume that is longer than the record.
    fs::write(
        dir.path("long.img"),
        vec![1; (BLOCKS * BLOCK) as usize + 512],
    )
    .unwrap();
    dir.ends(
        &diff("meta.img", "era:3", "long.img"),
        4,
        &["past the end of the record"],
    );
    // Damage, and half of it.
    let meta = fs::read(dir.path("meta.img")).unwrap();
    fs::write(dir.path("half.img"), &meta[..meta.len() / 2]).unwrap();
    dir.ends(
        &diff("half.img", "era:1", "disk.img"),
        4,
        &["cut short", sync],
    );
    let mut flipped = meta;
    flipped[4096 + 30] ^= 4;
    fs::write(dir.path("flipped.img"), flipped).unwrap();
    dir.ends(
        &diff("flipped.img", "era:1", "disk.img"),
        4,
        &["checksum", sync],
    );
}
