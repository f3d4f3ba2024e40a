//! `lvmsync sync`: whatever the two volumes are, the destination is equal in the end, and little of it was written or
//! sent. Here and through a session whose shell is no ssh.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test, and volumes here are small"
)]

mod record_kit;
mod sync_kit;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use lvmsync::sys::resident::Resident;
use proptest::prelude::*;
use serde_json::Value;

use record_kit::noise;
use sync_kit::{Ends, PROGRAM, Pair, WAYS, Way, pair};

const BLOCK: usize = 4096;

fn number(json: &Value, name: &str) -> u64 {
    json[name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name} in {json}"))
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
    for way in [Way::Push, Way::Pull] {
        let ends = Ends::new(way);
        let bytes = noise(24 << 20, "equal");
        fs::write(ends.path("source"), &bytes).unwrap();
        fs::write(ends.path("destination"), &bytes).unwrap();
        let json = ends.sync(&[]);
        assert_eq!(number(&json, "compared_bytes"), 24 << 20);
        assert!(number(&json, "wire_bytes") <= (24 << 20) / 2000, "{json}");
    }
}

#[test]
fn scattered_blocks_cost_the_wire_little_more_than_themselves() {
    let before = noise(24 << 20, "before");
    let changed = 40;
    // Half of each block is noise, so compressed it is half as long.
    let mut now = before.clone();
    for number in 0..changed {
        let block = &mut now[number * 149 * BLOCK..][..BLOCK];
        block[..BLOCK / 2].copy_from_slice(&noise(BLOCK / 2, &number.to_string()));
        block[BLOCK / 2..].fill(7);
    }
    for way in [Way::Push, Way::Pull] {
        for (z, each) in [("none", BLOCK), ("zstd", BLOCK / 2 + 64)] {
            let ends = Ends::new(way);
            fs::write(ends.path("destination"), &before).unwrap();
            fs::write(ends.path("source"), &now).unwrap();
            let json = ends.sync(&["-z", z]);
            assert_eq!(number(&json, "data_bytes"), (changed * BLOCK) as u64);
            let most = changed * (each + 8192);
            assert!(
                number(&json, "wire_bytes") <= most as u64,
                "{way:?} {z} {json}"
            );
        }
    }
}

#[test]
fn the_last_byte_of_anything_that_is_compared_at_once_counts() {
    let before = noise(3 << 20, "regions");
    for way in WAYS {
        for region in [4096, 16 << 10, 256 << 10, 1 << 20, 2 << 20, 3 << 20] {
            let ends = Ends::new(way);
            let mut now = before.clone();
            now[region - 1] ^= 1;
            fs::write(ends.path("destination"), &before).unwrap();
            fs::write(ends.path("source"), &now).unwrap();
            let json = ends.sync(&[]);
            assert_eq!(
                number(&json, "data_bytes"),
                BLOCK as u64,
                "{way:?} {region}"
            );
        }
    }
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

/// Who uses an image that is in memory finds it there afterwards. A filesystem that lives in memory gives nothing up anyway.
#[test]
fn a_dry_run_leaves_in_memory_what_is_there() {
    const BYTES: usize = 8 << 20;
    for way in WAYS {
        let ends = Ends::new(way);
        for name in ["source", "destination"] {
            fs::write(ends.path(name), noise(BYTES, "equal")).unwrap();
            fs::File::open(ends.path(name)).unwrap().sync_all().unwrap();
        }
        let output = ends.run("sync", &["-n"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains("equal"), "{said}");
        for name in ["source", "destination"] {
            let file = fs::File::open(ends.path(name)).unwrap();
            let resident = Resident::of(&file, BYTES as u64).unwrap();
            let pages = (0..BYTES as u64).step_by(BLOCK);
            let there = pages.filter(|page| resident.has(*page) == Some(true));
            // Whatever else needs memory meanwhile.
            assert!(there.count() > BYTES / BLOCK / 2, "{way:?} {name}");
        }
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

/// Also where nothing else differs, and where all is collected first.
#[test]
fn what_is_cut_off_at_the_end_is_told() {
    for way in WAYS {
        for more in [&[][..], &["--atomic"]] {
            let ends = Ends::new(way);
            let now = noise(8192, "now");
            let longer = [&now[..], b"tail\n"].concat();
            fs::write(ends.path("source"), &now).unwrap();
            let told = |words: &str, (data, cut): (u64, &Value)| {
                let output = ends.run("sync", &[&["--json"], more].concat());
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success() && said.contains(words), "{said}");
                let json: Value = serde_json::from_slice(&output.stdout).unwrap();
                assert_eq!(
                    (number(&json, "data_bytes"), &json["cut_bytes"]),
                    (data, cut)
                );
                ends.is_equal();
            };
            fs::write(ends.path("destination"), &longer).unwrap();
            told(
                "equal already, and 5 B cut off at the end: ",
                (0, &5.into()),
            );
            told("equal already, nothing was written: ", (0, &Value::Null));
            let mut other = longer;
            other[0] ^= 1;
            fs::write(ends.path("destination"), &other).unwrap();
            let words =
                "4.0 KiB in 1 extent differed and is written now, and 5 B cut off at the end: ";
            told(words, (4096, &5.into()));
        }
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
        for at in [0, 1_000_000, 2_000_000] {
            now[at] ^= 1;
        }
        fs::write(ends.path("destination"), &before).unwrap();
        fs::write(ends.path("source"), &now).unwrap();
        let json = ends.sync(&["--atomic"]);
        let written = (number(&json, "data_bytes"), number(&json, "extents"));
        assert_eq!(written, (3 * 4096, 3), "{json}");
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

#[test]
fn a_new_file_below_dev_is_made_where_files_are() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let here = tempfile::tempdir().unwrap();
    let source = here.path().join("source");
    fs::write(&source, noise(100_000, "source")).unwrap();
    let beside = format!("{}.img", directory.path().display());
    let within = format!("{}/x", directory.path().display());
    for (destination, more) in [(&beside, "-q"), (&within, "-q"), (&beside, "--create")] {
        let output = Command::new(PROGRAM)
            .arg("sync")
            .args([source.to_str().unwrap(), destination, more])
            .env("LVMSYNC_STATE_DIR", here.path())
            .output()
            .unwrap();
        let is_equal = fs::read(&source).ok() == fs::read(destination).ok();
        let _ = fs::remove_file(destination);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && is_equal,
            "{destination} {more}: {said}"
        );
    }
}

#[test]
fn a_file_that_may_not_grow_is_a_write_that_fails() {
    let ends = Ends::new(Way::Here);
    fs::write(ends.path("source"), noise(4 << 20, "source")).unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 2048; exec \"$@\"", "sh", PROGRAM, "sync"])
        .args([ends.path("source"), ends.path("destination")])
        .env("LVMSYNC_STATE_DIR", ends.path("state"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large"), "{said}");
    assert!(said.contains("destination"), "{said}");
}

#[test]
fn an_undo_is_no_stream() {
    let ends = Ends::new(Way::Here);
    for name in ["source", "destination"] {
        fs::write(ends.path(name), noise(8192, name)).unwrap();
    }
    let output = ends.run("sync", &["--undo", "-"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--undo -: an undo is a file"), "{said}");
}
