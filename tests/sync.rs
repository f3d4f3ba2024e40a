//! `lvmsync sync`: whatever the two volumes are, the destination is equal in the end, and little of it was written or
//! sent. Here and through a session whose shell is no ssh.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test, and volumes here are small"
)]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use proptest::prelude::*;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lvmsync");
const BLOCK: usize = 4096;

/// Where the two ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Here,
    Push,
    Pull,
}

const WAYS: [Way; 3] = [Way::Here, Way::Push, Way::Pull];

/// Two ends in one directory.
struct Ends {
    directory: tempfile::TempDir,
    way: Way,
}

impl Ends {
    fn new(way: Way) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shell = directory.path().join("shell");
        fs::write(&shell, "#!/bin/sh\nshift\nexec sh -c \"$*\"\n").unwrap();
        fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory, way }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, verb: &str, more: &[&str]) -> Output {
        let [source, destination] =
            ["source", "destination"].map(|name| self.path(name).display().to_string());
        let far = |path: &str, is_far: bool| {
            if is_far {
                format!("host:{path}")
            } else {
                path.to_owned()
            }
        };
        let mut command = Command::new(PROGRAM);
        command.arg(verb);
        command.arg(far(&source, self.way == Way::Pull));
        command.arg(far(&destination, self.way == Way::Push));
        if self.way != Way::Here {
            command.args(["-e", self.path("shell").to_str().unwrap()]);
            command.args(["--remote-path", PROGRAM]);
        }
        command
            .args(more)
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .output()
            .unwrap()
    }

    /// Syncs, and sees that all is as it should be; what it said in JSON.
    #[track_caller]
    fn sync(&self, more: &[&str]) -> Value {
        let output = self.run("sync", &[&["--json"], more].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        self.is_equal();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[track_caller]
    fn is_equal(&self) {
        let [source, destination] = ["source", "destination"].map(|n| fs::read(self.path(n)));
        assert!(source.unwrap() == destination.unwrap(), "not equal");
        let output = Command::new(PROGRAM)
            .args(["state", "show", "--json"])
            .arg(self.path("destination"))
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .output()
            .unwrap();
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(all[0]["status"], "complete", "{all}");
    }
}

fn number(json: &Value, name: &str) -> u64 {
    json[name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name} in {json}"))
}

fn noise(length: usize, word: &str) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(word.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// How the destination came about.
#[derive(Clone, Debug)]
struct Pair {
    source: Vec<u8>,
    destination: Vec<u8>,
}

fn pair() -> impl Strategy<Value = Pair> {
    let size = prop_oneof![Just(0usize), 1..5000usize, 1..3_500_000usize];
    let change = (any::<prop::sample::Index>(), 1usize..300_000, 0u8..6);
    (
        size,
        prop::collection::vec(change, 0..8),
        0u8..8,
        0usize..200_000,
    )
        .prop_map(|(size, changes, kind, by)| {
            let mut source = noise(size, "source");
            let mut destination = source.clone();
            for (at, length, how) in changes {
                if size == 0 {
                    continue;
                }
                let start = at.index(size);
                let range = start..(start + length).min(size);
                match how {
                    0 => destination[start] ^= 1,
                    1 => source[range].fill(0),
                    2 => destination[range].fill(0),
                    3 => destination[range.clone()].copy_from_slice(&noise(range.len(), "other")),
                    4 => {
                        source[range.clone()].fill(0);
                        destination[range].fill(0);
                    }
                    _ => destination[size - 1] ^= 0x80,
                }
            }
            match kind {
                // Shifted, shorter, longer, and nothing alike.
                0 => destination.rotate_left(by.min(size)),
                1 => destination.truncate(size.saturating_sub(by)),
                2 => destination.extend(noise(by, "tail")),
                3 => destination = noise(size, "nothing alike"),
                _ => {}
            }
            Pair {
                source,
                destination,
            }
        })
}

/// Blocks of the source that are not as in the destination.
fn blocks_to_write(pair: &Pair) -> u64 {
    let blocks = pair.source.chunks(BLOCK).enumerate();
    let differs = blocks.filter(|(number, block)| {
        let start = number * BLOCK;
        let theirs = pair.destination.get(start..start + block.len());
        theirs != Some(block)
    });
    differs.count() as u64
}

fn write_sparse(path: &Path, bytes: &[u8]) {
    let file = fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (number, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, (number * BLOCK) as u64).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(512) / 8 + 4))]

    #[test]
    fn any_pair_is_equal_in_the_end(pair in pair(), way in prop::sample::select(WAYS.to_vec()), z in any::<bool>(), sparse in any::<bool>()) {
        let ends = Ends::new(way);
        let write = |name: &str, bytes: &[u8]| {
            if sparse {
                write_sparse(&ends.path(name), bytes);
            } else {
                fs::write(ends.path(name), bytes).unwrap();
            }
        };
        write("source", &pair.source);
        write("destination", &pair.destination);
        let json = ends.sync(if z { &["-z", "auto"] } else { &[] });
        let written = number(&json, "data_bytes") + number(&json, "zero_bytes");
        // A last block that the destination has in part counts whole.
        prop_assert!(written <= (blocks_to_write(&pair) + 1) * BLOCK as u64, "{json}");
        // Again: nothing.
        let json = ends.sync(&[]);
        prop_assert_eq!(number(&json, "data_bytes") + number(&json, "zero_bytes"), 0);
    }
}

#[test]
fn equal_volumes_cost_the_wire_next_to_nothing() {
    let ends = Ends::new(Way::Push);
    let bytes = noise(24 << 20, "equal");
    fs::write(ends.path("source"), &bytes).unwrap();
    fs::write(ends.path("destination"), &bytes).unwrap();
    let json = ends.sync(&[]);
    assert_eq!(number(&json, "compared_bytes"), 24 << 20);
    assert!(number(&json, "wire_bytes") <= (24 << 20) / 2000, "{json}");
}

#[test]
fn scattered_blocks_cost_the_wire_little_more_than_themselves() {
    let ends = Ends::new(Way::Push);
    let bytes = noise(24 << 20, "before");
    fs::write(ends.path("destination"), &bytes).unwrap();
    let mut now = bytes;
    let changed = 40;
    for number in 0..changed {
        let start = number * 149 * BLOCK;
        now[start..start + BLOCK].copy_from_slice(&noise(BLOCK, &number.to_string()));
    }
    fs::write(ends.path("source"), &now).unwrap();
    let json = ends.sync(&[]);
    assert_eq!(number(&json, "data_bytes"), (changed * BLOCK) as u64);
    let most = changed * (BLOCK + 8192) + (24 << 20) / 2000;
    assert!(number(&json, "wire_bytes") <= most as u64, "{json}");
}

#[test]
fn a_new_file_gets_holes_for_zeroes_and_is_not_compared() {
    for way in WAYS {
        let ends = Ends::new(way);
        let mut bytes = vec![0; 16 << 20];
        bytes[5 << 20..6 << 20].copy_from_slice(&noise(1 << 20, "new"));
        fs::write(ends.path("source"), &bytes).unwrap();
        let json = ends.sync(&[]);
        assert!(json["compared_bytes"].is_null(), "{json}");
        assert_eq!(number(&json, "data_bytes"), 1 << 20);
        let blocks = fs::metadata(ends.path("destination")).unwrap().blocks();
        assert!(blocks * 512 < 2 << 20, "{blocks}");
    }
}

#[test]
fn an_undo_brings_back_what_was_there() {
    for way in WAYS {
        let ends = Ends::new(way);
        let before = noise(3_000_000, "before");
        let mut now = before.clone();
        now[1_000_000..1_500_000].fill(0);
        now[2_999_999] ^= 1;
        fs::write(ends.path("destination"), &before).unwrap();
        fs::write(ends.path("source"), &now).unwrap();
        let undo = ends.path("undo").display().to_string();
        ends.sync(&["--undo", &undo]);
        let status = Command::new(PROGRAM)
            .args(["apply", "-q", &undo])
            .arg(ends.path("destination"))
            .env("LVMSYNC_STATE_DIR", ends.path("state"))
            .status()
            .unwrap();
        assert!(status.success());
        assert!(fs::read(ends.path("destination")).unwrap() == before);
    }
}

#[test]
fn a_dry_run_tells_and_writes_nothing() {
    for way in WAYS {
        let ends = Ends::new(way);
        let before = noise(1_000_000, "before");
        let mut now = before.clone();
        now[500_000] ^= 1;
        fs::write(ends.path("destination"), &before).unwrap();
        fs::write(ends.path("source"), &now).unwrap();
        let output = ends.run("sync", &["-n", "--json"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert!(said.contains("would write 4.0 KiB in 1 extent"), "{said}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (number(&json, "data_bytes"), &json["dry_run"]),
            (4096, &true.into())
        );
        assert!(fs::read(ends.path("destination")).unwrap() == before);
        fs::remove_file(ends.path("destination")).unwrap();
        let output = ends.run("sync", &["-n"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let words = "would send 976.5 KiB data and 0 B zero in 1 extent, of 976.5 KiB";
        assert!(output.status.success() && said.contains(words), "{said}");
        assert!(!ends.path("destination").exists());
        assert!(
            !ends.path("state/destinations").exists(),
            "nothing is on record"
        );
    }
}

#[test]
fn a_dry_run_tells_what_would_be_cut_off_and_that_no_undo_would_hold_it() {
    for way in WAYS {
        let ends = Ends::new(way);
        let before = noise(40_000, "before");
        let mut now = before[..20_480].to_vec();
        now[5_000] ^= 1;
        fs::write(ends.path("destination"), &before).unwrap();
        fs::write(ends.path("source"), &now).unwrap();
        let output = ends.run("sync", &["-n", "--json"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let words = "would write 4.0 KiB in 1 extent, and cut off 19.0 KiB at the end";
        assert!(output.status.success() && said.contains(words), "{said}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (number(&json, "data_bytes"), number(&json, "cut_bytes")),
            (4096, 19_520)
        );
        let undo = ends.path("undo").display().to_string();
        for more in [&["-n", "--undo", &undo][..], &["--undo", &undo]] {
            let output = ends.run("sync", more);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(5), "{more:?}: {said}");
            assert!(
                said.contains("an undo would not hold what is cut off"),
                "{said}"
            );
        }
        assert!(fs::read(ends.path("destination")).unwrap() == before);
        // A shorter one gets the rest.
        fs::write(ends.path("destination"), &now[..10_000]).unwrap();
        let output = ends.run("sync", &["-n"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("would write 10.2 KiB"), "{said}");
        ends.sync(&[]);
    }
}

#[test]
fn what_was_written_is_compared_once_more() {
    for way in WAYS {
        let ends = Ends::new(way);
        let mut now = noise(1_000_000, "before");
        fs::write(ends.path("destination"), &now).unwrap();
        now[400_000] ^= 1;
        fs::write(ends.path("source"), &now).unwrap();
        let json = ends.sync(&["--verify"]);
        assert_eq!(json["verified"], true, "{json}");
        // New, too, and shorter than what was there.
        fs::remove_file(ends.path("destination")).unwrap();
        assert_eq!(ends.sync(&["--verify"])["verified"], true);
        fs::write(ends.path("destination"), noise(1_500_000, "longer")).unwrap();
        assert_eq!(ends.sync(&["--verify"])["verified"], true);
    }
}

#[test]
fn collected_beside_or_not_only_what_differs_is_written() {
    for way in WAYS {
        let ends = Ends::new(way);
        let before = noise(3_000_000, "before");
        let mut now = before[..2_500_000].to_vec();
        now[1_000_000] ^= 1;
        fs::write(ends.path("destination"), &before).unwrap();
        fs::write(ends.path("source"), &now).unwrap();
        let json = ends.sync(&["--atomic"]);
        assert_eq!(number(&json, "data_bytes"), 4096, "{json}");
        assert_eq!(number(&json, "compared_bytes"), 2_500_000, "{json}");
    }
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    let ends = Ends::new(Way::Here);
    for option in ["--stdout", "--compat", "-o=x", "--format=proto3"] {
        let output = ends.run("sync", &[option]);
        assert_eq!(output.status.code(), Some(2), "{option}");
    }
}

#[test]
fn an_undo_that_would_not_hold_the_end_of_a_longer_file_is_refused() {
    let ends = Ends::new(Way::Here);
    fs::write(ends.path("destination"), noise(20_000, "longer")).unwrap();
    fs::write(ends.path("source"), noise(10_000, "shorter")).unwrap();
    let undo = ends.path("undo").display().to_string();
    let output = ends.run("sync", &["--undo", &undo]);
    assert_eq!(output.status.code(), Some(5));
    assert!(!ends.path("undo").exists());
    ends.sync(&[]);
}

#[test]
fn of_a_sync_one_end_is_here() {
    for (source, destination, word) in [
        ("a:/x", "b:/y", "one of the two volumes has to be here"),
        ("-a:/x", "/y", "-a"),
    ] {
        let output = Command::new(PROGRAM)
            .args(["sync", "--", source, destination])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn a_stream_for_one_destination_is_refused_for_every_other() {
    use lvmsync::delta::header::{Header, Source};
    use lvmsync::delta::samples::Samples;
    use lvmsync::delta::writer::DeltaWriter;
    let text = r#"{"volume_size": 8192, "source": "full"}"#;
    let header = Header::decode(text.as_bytes(), 0).unwrap().by_comparing();
    assert_eq!(header.source, Source::Compare);
    let mut writer = DeltaWriter::new(Vec::new(), &header, &Samples::default()).unwrap();
    writer.position(4096).unwrap();
    let (_, stream) = writer.finish().unwrap();
    let ends = Ends::new(Way::Here);
    fs::write(ends.path("stream"), stream).unwrap();
    fs::write(ends.path("destination"), [7; 8192]).unwrap();
    for check in [true, false] {
        let output = Command::new(PROGRAM)
            .arg("apply")
            .arg(ends.path("stream"))
            .arg(ends.path("destination"))
            .args(check.then_some("--check"))
            .env("LVMSYNC_STATE_DIR", ends.path("state"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains("lvmsync sync"), "{said}");
    }
    assert_eq!(fs::read(ends.path("destination")).unwrap(), [7; 8192]);
}
