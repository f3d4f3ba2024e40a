//! Change lists of real snapshots against the truth: every chunk size, odd volumes, tables full and empty.
//!
//! The truth is twofold: a byte compare of the two states says what the list must have at least, and the
//! exception tables, read by other code, what it must be exactly.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use lab::Guest;
use lab_kit::{Random, Tool, assert_same, content, exceptions, long, setup, write};

const KIB: u64 = 1024;
const CHUNKS: [u64; 8] = [4, 8, 16, 32, 64, 128, 256, 512];

/// A volume group with extents of 1 KiB, so that volumes can have any size.
fn volume_group(guest: &Guest) {
    let disk = guest.disk(0).display().to_string();
    guest.sh(&format!("vgcreate -qq --yes -s 1k vg {disk} 2>&1"));
}

fn snapshot(guest: &Guest, origin: &str, name: &str, chunk_kib: u64, store: &str) {
    guest.sh(&format!(
        "lvcreate -qq -s -c {chunk_kib}k -L {store} -n {name} vg/{origin} 2>&1"
    ));
}

/// Checks what lvmsync lists between two volumes, where `tables` are the stores that may know of changes and
/// `untracked_from` is where the oldest of them ends.
fn check_list(tool: &Tool, old: &str, new: &str, tables: &[&str], untracked_from: u64) {
    let (size, listed) = tool.diff(old, new);
    let (before, after) = (
        content(format!("/dev/{old}")),
        content(format!("/dev/{new}")),
    );
    assert_eq!(size, after.len() as u64, "{old} to {new}");
    for pair in listed.windows(2) {
        let ((offset, length), (next, _)) = (pair[0], pair[1]);
        assert!(
            offset + length < next,
            "sorted, disjoint and coalesced: {pair:?}"
        );
    }

    let sector = 512;
    let sectors = |from: u64, to: u64| (from / sector)..(to.min(size)).div_ceil(sector);
    let found: BTreeSet<u64> = listed
        .iter()
        .flat_map(|(offset, length)| sectors(*offset, offset + length))
        .collect();
    assert!(
        listed
            .iter()
            .all(|(offset, length)| offset + length <= size)
    );
    let differ = |n: &u64| {
        let range = (n * sector) as usize..((n + 1) * sector).min(size) as usize;
        before.get(range.clone()) != after.get(range)
    };
    let differing: BTreeSet<u64> = (0..size.div_ceil(sector)).filter(differ).collect();
    let missing: Vec<_> = differing.difference(&found).collect();
    assert!(
        missing.is_empty(),
        "{old} to {new}: differ, but not listed: {missing:?}"
    );

    let mut known: BTreeSet<u64> = sectors(untracked_from, size).collect();
    for table in tables {
        let (chunk, chunks) = exceptions(&format!("/dev/mapper/vg-{table}-cow"));
        known.extend(
            chunks
                .iter()
                .flat_map(|n| sectors(n * chunk, (n + 1) * chunk)),
        );
    }
    assert!(
        found == known,
        "{old} to {new}: not what is in the tables {tables:?}"
    );
}

#[test]
fn every_chunk_size_on_an_odd_volume() {
    let limit = Duration::from_secs(if long() { 300 } else { 120 });
    let setup = setup().disk("512M").time_limit(limit);
    lab::test("every_chunk_size_on_an_odd_volume", setup, |guest| {
        let tool = Tool::new(guest);
        let mut random = Random::new(7);
        volume_group(guest);
        // Neither a multiple of a chunk nor of a page.
        let size = 5 * 1024 * KIB + 3 * KIB;
        guest.volume("vg", "data", &format!("{}k", size / KIB));
        write("/dev/vg/data", &random.bytes(size as usize), 0);
        for chunk in CHUNKS {
            snapshot(guest, "data", &format!("s{chunk}"), chunk, "12M");
        }
        let base = content("/dev/vg/s4");
        fs::write(tool.path("base"), &base).unwrap();
        // Nothing was written yet: empty tables.
        for chunk in CHUNKS {
            check_list(&tool, &format!("vg/s{chunk}"), "vg/data", &[], size);
        }

        let rounds = if long() { 6 } else { 2 };
        for round in 0..rounds {
            for _ in 0..[20, 300][round % 2] {
                let length = 1 + random.below(20_000);
                let offset = random.below(size - length);
                write("/dev/vg/data", &random.bytes(length as usize), offset);
            }
            write("/dev/vg/data", b"the very end", size - 12);
            let new_chunk = [64, 4][round % 2];
            snapshot(guest, "data", "new", new_chunk, "12M");
            let state = content("/dev/vg/new");
            // What comes after the new snapshot is not in it, and must not be in the copy.
            write("/dev/vg/data", &random.bytes(9000), 1_000_000);
            for chunk in CHUNKS {
                let old = format!("s{chunk}");
                let path = format!("vg/{old}");
                check_list(&tool, &path, "vg/new", &[&old, "new"], size);
                fs::copy(tool.path("base"), tool.path("copy")).unwrap();
                tool.run(&format!("send --from {path} vg/new copy")).ok();
                assert_same(tool.path("copy"), &state, &format!("chunks of {chunk} KiB"));
                // And back: the older one as NEW.
                tool.run(&format!("send --from vg/new {path} copy")).ok();
                assert_same(tool.path("copy"), &base, "back again");
            }
            check_list(&tool, "vg/s8", "vg/data", &["s8"], size);
            guest.sh("lvremove -qq -y vg/new");
        }
    });
}

#[test]
fn tables_of_every_fill() {
    lab::test("tables_of_every_fill", setup().disk("512M"), |guest| {
        let tool = Tool::new(guest);
        let mut random = Random::new(11);
        volume_group(guest);
        guest.volume("vg", "data", "8M");
        guest.volume("vg", "copy", "8M");
        write("/dev/vg/data", &random.bytes(8 << 20), 0);
        tool.run("send vg/data vg/copy").ok();

        // Exceptions of 4 KiB: none, one, an area all but one, full, and one more; two full areas; all.
        let areas = [0, 1, 255, 256, 257, 512, 2048];
        for (number, count) in areas.into_iter().enumerate() {
            let (old, new) = (format!("o{number}"), format!("n{number}"));
            snapshot(guest, "data", &old, 4, "12M");
            // Every second chunk, in no order; everything when there are that many.
            let stride = if count > 1024 { 1 } else { 2 };
            for n in 0..count {
                let chunk = (n * 37 % 1024.max(count)) * stride;
                write("/dev/vg/data", &random.bytes(100), chunk * 4096 + 1000);
            }
            snapshot(guest, "data", &new, 4, "12M");
            let (_, table) = exceptions(&format!("/dev/mapper/vg-{old}-cow"));
            assert_eq!(table.len() as u64, count, "the test's own arithmetic");
            check_list(
                &tool,
                &format!("vg/{old}"),
                &format!("vg/{new}"),
                &[&old, &new],
                8 << 20,
            );
            // The same content as the last state, under another name.
            tool.run(&format!("state adopt vg/copy vg/{old}")).ok();
            tool.run(&format!("send --from vg/{old} vg/{new} vg/copy"))
                .ok();
            let state = content(format!("/dev/vg/{new}"));
            assert_same("/dev/vg/copy", &state, &format!("{count} exceptions"));
            guest.sh(&format!("lvremove -qq -y vg/{old} vg/{new}"));
        }

        // Identical data, rewritten, is listed and changes nothing.
        snapshot(guest, "data", "s1", 16, "12M");
        let before = content("/dev/vg/data");
        write("/dev/vg/data", &before[..100_000], 0);
        snapshot(guest, "data", "s2", 16, "12M");
        assert_eq!(tool.diff("vg/s1", "vg/s2").1, [(0, 7 * 16 * KIB)]);
        tool.run("send --from vg/s1 vg/s2 vg/copy").ok();
        assert_same("/dev/vg/copy", &before, "identical data");

        // Snapshots that were written to themselves, the older and the newer one.
        write("/dev/vg/data", &random.bytes(5000), 3 << 20);
        write("/dev/vg/s1", &random.bytes(5000), 5 << 20);
        write("/dev/vg/s2", &random.bytes(5000), 6 << 20);
        write("/dev/vg/s2", &random.bytes(5000), 5 << 20);
        snapshot(guest, "data", "s3", 4, "12M");
        let state = |name: &str| content(format!("/dev/vg/{name}"));
        for old in ["s1", "s2", "s3"] {
            for new in ["s1", "s2", "s3"] {
                if old == new {
                    continue;
                }
                let (from, to) = (format!("vg/{old}"), format!("vg/{new}"));
                check_list(&tool, &from, &to, &[old, new], 8 << 20);
                fs::write(tool.path("any"), state(old)).unwrap();
                tool.run(&format!("send --from {from} {to} any")).ok();
                assert_same(tool.path("any"), &state(new), &format!("{from} to {to}"));
            }
        }
        let same = tool.run("send --from vg/s1 /dev/mapper/vg-s1 any");
        same.ends(2, &["same snapshot"]);
    });
}

#[test]
fn an_extended_origin() {
    lab::test("an_extended_origin", setup().disk("256M"), |guest| {
        let tool = Tool::new(guest);
        let mut random = Random::new(13);
        volume_group(guest);
        // The last chunk of the old size is partial, and goes on in the new part.
        let (old_size, new_size) = (1027 * KIB, 2051 * KIB);
        guest.volume("vg", "data", "1027k");
        guest.volume("vg", "small", "1027k");
        guest.volume("vg", "large", "3M");
        write("/dev/vg/data", &random.bytes(old_size as usize), 0);
        snapshot(guest, "data", "s1", 16, "4M");
        tool.run("send vg/s1 file").ok();
        tool.run("send vg/s1 vg/small").ok();
        tool.run("send vg/s1 vg/large").ok();
        let old = content("/dev/vg/s1");
        write("/dev/vg/data", &random.bytes(3000), 500_000);
        guest.sh("lvchange -y -an vg/data 2>&1; lvextend -qq -L 2051k vg/data 2>&1; lvchange -y -ay vg/data 2>&1");
        // The kernel tracks none of these.
        write("/dev/vg/data", &random.bytes(2000), old_size - 1000);
        write("/dev/vg/data", &random.bytes(9000), new_size - 9000);
        write("/dev/vg/data", &random.bytes(100), 700_000);
        snapshot(guest, "data", "s2", 8, "4M");
        let new = content("/dev/vg/s2");
        assert_eq!((old.len() as u64, new.len() as u64), (old_size, new_size));

        check_list(&tool, "vg/s1", "vg/s2", &["s1", "s2"], old_size);
        check_list(&tool, "vg/s1", "vg/data", &["s1"], old_size);
        tool.run("send --from vg/s1 vg/s2 file --undo file.undo")
            .ok();
        assert_same(tool.path("file"), &new, "a file grows");
        tool.run("apply file.undo file").ok();
        assert_same(tool.path("file"), &old, "and shrinks when it is undone");
        tool.run("send --from vg/s1 vg/s2 vg/large").ok();
        let large = content("/dev/vg/large");
        assert!(
            large[..new_size as usize] == new,
            "a large device has all of it"
        );
        tool.run("send --from vg/s1 vg/s2 vg/small")
            .ends(5, &["1051648", "2100224", "--allow-smaller"]);
        assert_same("/dev/vg/small", &old, "refused");

        // The way back: the smaller state onto a destination of any size.
        tool.run("send --from vg/s2 vg/s1 vg/large").ok();
        assert!(content("/dev/vg/large")[..old_size as usize] == old);
    });
}
