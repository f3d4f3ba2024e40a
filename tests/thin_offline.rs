//! `--thin-metadata FILE` from outside: which device of which pool is sent, and what is refused. Neither root nor
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

use lvmsync::changes::thin::build::PoolBuilder;

const BLOCK: u64 = 64 << 10;
const BLOCKS: u64 = 32;

struct Dir {
    directory: tempfile::TempDir,
}

impl Dir {
    /// `meta.img`: thin:1 maps the blocks 0 to 9, and its snapshot thin:2 lacks one of them, which was discarded.
    /// `disk.img`: data for all blocks.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dir = Self { directory };
        let mut pool = PoolBuilder::new((BLOCK / 512) as u32, 12);
        pool.create(1);
        pool.write_new(1, 0..10);
        pool.snapshot(2, 1);
        pool.discard(2, 3);
        fs::write(dir.path("meta.img"), pool.image()).unwrap();
        let data: Vec<u8> = (0..BLOCKS * BLOCK).map(|n| (n / 512) as u8 | 1).collect();
        fs::write(dir.path("disk.img"), data).unwrap();
        dir
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What was said, if it ended with `code` and said all of `words`.
    #[track_caller]
    fn ends(&self, line: &str, code: i32, words: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_lvmsync"))
            .current_dir(self.directory.path())
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .args(line.split_whitespace())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let all = words.iter().all(|word| said.contains(word));
        assert!(
            output.status.code() == Some(code) && all,
            "{line}: {:?}, expected {code} and {words:?}: {said}",
            output.status.code()
        );
        said
    }

    /// The content of a device of the pool: what is not mapped is zero.
    fn content(&self, is_mapped: impl Fn(u64) -> bool) -> Vec<u8> {
        let mut bytes = fs::read(self.path("disk.img")).unwrap();
        for (block, bytes) in (0..).zip(bytes.chunks_mut(BLOCK as usize)) {
            if !is_mapped(block) {
                bytes.fill(0);
            }
        }
        bytes
    }
}

/// Both have the same data, size and block size: what is mapped is all that tells them apart.
#[test]
fn another_device_with_the_same_data_is_not_there_already() {
    let dir = Dir::new();
    let send = |id: u64| {
        format!("send --thin-metadata meta.img thin:{id} --data-source disk.img copy.img")
    };
    dir.ends(&send(1), 0, &[]);
    assert!(fs::read(dir.path("copy.img")).unwrap() == dir.content(|block| block < 10));
    dir.ends(&send(1), 0, &["already"]);
    let said = dir.ends(&send(2), 0, &[]);
    assert!(!said.contains("already"), "{said}");
    let expected = dir.content(|block| block < 10 && block != 3);
    assert!(fs::read(dir.path("copy.img")).unwrap() == expected);
}

#[test]
fn a_volume_that_is_larger_than_its_data_is_refused_before_anything_is_written() {
    let dir = Dir::new();
    let has = BLOCKS * BLOCK;
    let copy = vec![7; has as usize + 4096];
    fs::write(dir.path("copy.img"), &copy).unwrap();
    for what in ["thin:1", "--from thin:1 thin:2"] {
        let send = |size: u64, to: &str| {
            format!(
                "send --thin-metadata meta.img {what} --data-source disk.img --volume-size {size} {to}"
            )
        };
        let sizes = [
            format!("disk.img has {has} bytes"),
            format!("volume has {}", has + 512),
        ];
        for to in ["copy.img", "new.img", "-o out.delta", "copy.img -n"] {
            dir.ends(&send(has + 512, to), 2, &[&sizes[0], &sizes[1]]);
        }
        assert!(fs::read(dir.path("copy.img")).unwrap() == copy);
        let files = fs::read_dir(dir.directory.path()).unwrap().count();
        assert_eq!(files, 3, "nothing was made");
        // All of it, and less.
        for size in [has, has - BLOCK] {
            dir.ends(&send(size, "-o out.delta"), 0, &[]);
            fs::remove_file(dir.path("out.delta")).unwrap();
        }
    }
}
