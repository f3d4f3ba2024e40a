//! Deltas written by every released version are read forever.
//!
//! `testdata/formats/vX.Y.Z/` holds deltas as that version wrote them, and `expected.json` that says what
//! they make of a base. Files there are added with a release and never changed. With
//! `LVMSYNC_BLESS=1` this test writes the directory of the current version if there is none.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lvmsync::changes::cow::Layout;
use lvmsync::changes::cow_build::store_of;

const BASE_BYTES: usize = 256 << 10;
/// What every version leaves behind.
const FIXTURES: [&str; 8] = [
    "full.none",
    "full.zstd",
    "increment.none",
    "increment.lz4",
    "increment.zstd",
    "grown.none",
    "undo.none",
    "original.proto3",
];

/// What every release starts from: noise with a zero part, the same for ever.
fn base() -> Vec<u8> {
    let mut bytes = vec![0; BASE_BYTES];
    blake3::Hasher::new()
        .update(b"lvmsync fixture base")
        .finalize_xof()
        .fill(&mut bytes[64 << 10..]);
    bytes
}

/// The target: a text chunk, a zeroed chunk, one with a single byte changed, and for `grown` a tail.
fn target(grown: bool) -> Vec<u8> {
    let mut bytes = base();
    let text = b"what changed since the first snapshot was made\n".repeat(90);
    bytes[4096..8192].copy_from_slice(&text[..4096]);
    bytes[131_072..135_168].fill(0);
    bytes[200_704] ^= 1;
    if grown {
        bytes.resize(BASE_BYTES + 10_240, 0x5a);
    }
    bytes
}

fn formats() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/formats")
}

fn lvmsync(directory: &Path, line: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_lvmsync"))
        .current_dir(directory)
        .env("LVMSYNC_STATE_DIR", directory.join("state"))
        .args(line.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

#[test]
fn every_released_delta_still_makes_what_it_made() {
    let current = formats().join(concat!("v", env!("CARGO_PKG_VERSION")));
    if std::env::var_os("LVMSYNC_BLESS").is_some() && !current.exists() {
        bless(&current);
    }
    let mut versions = 0;
    for version in fs::read_dir(formats()).unwrap() {
        let version = version.unwrap().path();
        let expected: BTreeMap<String, String> =
            serde_json::from_slice(&fs::read(version.join("expected.json")).unwrap()).unwrap();
        let mut names: Vec<String> = fs::read_dir(&version)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "expected.json")
            .collect();
        names.sort();
        assert_eq!(
            names,
            expected.keys().cloned().collect::<Vec<_>>(),
            "every file is covered"
        );
        for (name, result) in expected {
            let scratch = tempfile::tempdir().unwrap();
            let start = if name.starts_with("undo") {
                target(false)
            } else {
                base()
            };
            fs::write(scratch.path().join("copy"), start).unwrap();
            fs::copy(version.join(&name), scratch.path().join("delta")).unwrap();
            lvmsync(scratch.path(), "inspect delta");
            lvmsync(scratch.path(), "apply delta copy");
            let made = fs::read(scratch.path().join("copy")).unwrap();
            assert_eq!(digest(&made), result, "{}/{name}", version.display());
        }
        versions += 1;
    }
    assert!(
        versions > 0 && current.exists(),
        "this version has its fixtures"
    );
}

/// Writes the fixtures of this version.
fn bless(directory: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let entries: [(u64, &[u8]); 3] = [(1, &[]), (49, &[]), (32, &[])];
    fs::write(
        at("store"),
        store_of(Layout::new(4096).unwrap(), entries).unwrap(),
    )
    .unwrap();
    fs::write(at("base"), base()).unwrap();
    fs::write(at("new"), target(false)).unwrap();
    fs::write(at("grown"), target(true)).unwrap();
    lvmsync(scratch.path(), "send new -o full.none");
    lvmsync(scratch.path(), "send new -o full.zstd -z zstd");
    for codec in ["none", "lz4", "zstd"] {
        lvmsync(
            scratch.path(),
            &format!("send --from cow:store new -o increment.{codec} -z {codec}"),
        );
    }
    lvmsync(
        scratch.path(),
        "send --from cow:store new -o original.proto3 --format proto3",
    );
    lvmsync(scratch.path(), "send grown -o grown.none");
    fs::write(at("copy"), base()).unwrap();
    lvmsync(scratch.path(), "apply increment.none copy --undo undo.none");

    fs::create_dir_all(directory).unwrap();
    let mut expected = BTreeMap::new();
    for name in FIXTURES {
        fs::copy(at(name), directory.join(name)).unwrap();
        let made = match name.split('.').next() {
            Some("undo") => base(),
            Some("grown") => target(true),
            _ => target(false),
        };
        expected.insert(name, digest(&made));
    }
    fs::write(
        directory.join("expected.json"),
        serde_json::to_vec_pretty(&expected).unwrap(),
    )
    .unwrap();
}

/// The format as `docs/format.md` says it, read by code that shares nothing with the product's reader.
#[test]
fn a_stranger_can_read_it_by_the_document() {
    let version = formats().join(concat!("v", env!("CARGO_PKG_VERSION")));
    let bytes = fs::read(version.join("increment.zstd")).unwrap();
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(&bytes[..17], b"lvmsync PROTO[4]\n");
    let (mut at, mut seen, mut volume) = (17, String::new(), base());
    let mut index: Vec<(u64, usize)> = Vec::new();
    loop {
        assert_eq!(u32_at(at + 28), crc32c::crc32c(&bytes[at..at + 28]));
        let (kind, codec) = (bytes[at], bytes[at + 1]);
        let (stored, offset, length) = (
            u32_at(at + 4) as usize,
            u64_at(at + 8) as usize,
            u64_at(at + 16) as usize,
        );
        let payload = &bytes[at + 32..at + 32 + stored];
        let crc = if stored > 0 {
            crc32c::crc32c(payload)
        } else {
            0
        };
        assert_eq!(u32_at(at + 24), crc);
        seen.push(char::from(kind));
        match kind {
            b'D' => {
                let data = match codec {
                    0 => payload.to_vec(),
                    2 => zstd::bulk::decompress(payload, length).unwrap(),
                    other => panic!("codec {other}"),
                };
                assert_eq!(data.len(), length);
                volume[offset..offset + length].copy_from_slice(&data);
            }
            b'Z' => volume[offset..offset + length].fill(0),
            b'I' => index.extend(payload.chunks(16).map(|entry| {
                let half = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
                (half(0), half(8) as usize)
            })),
            b'T' => break,
            _ => {}
        }
        at += 32 + stored;
    }
    // The index leads straight to frames.
    assert!(!index.is_empty());
    for (volume_offset, delta_offset) in index {
        assert!(b"DZ".contains(&bytes[delta_offset]));
        assert_eq!(u64_at(delta_offset + 8), volume_offset);
    }
    assert_eq!(seen, "HSDZDIT");
    assert_eq!(bytes.len(), at + 128);
    assert_eq!(u64_at(at + 32 + 56), at as u64);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..at]).update(&bytes[at + 32..at + 96]);
    assert_eq!(hasher.finalize().as_bytes(), &bytes[at + 96..at + 128]);
    assert!(volume == target(false));
}
