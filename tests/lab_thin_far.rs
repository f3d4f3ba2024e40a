//! Thin volumes as destinations: zeroes arrive unmapped, nothing is mapped for nothing, and nothing stale comes to
//! light. What is mapped is asked of the kernel, never of lvmsync.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use lab::Guest;
use lab_kit::{Random, Tool, assert_same, content, setup, write};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Blocks of the pool that are mapped in the thin volume with this device-mapper name.
fn mapped(guest: &Guest, dm_name: &str, block: usize) -> usize {
    // The kernel counts when it commits.
    guest.sh(&format!(
        "dmsetup suspend {dm_name}; dmsetup resume {dm_name}"
    ));
    let status = guest.sh(&format!("dmsetup status --noflush {dm_name}"));
    let sectors: usize = status.split_whitespace().nth(3).unwrap().parse().unwrap();
    sectors * 512 / block
}

/// How many blocks of `block` bytes hold anything but zeroes.
fn blocks_with_data(bytes: &[u8], block: usize) -> usize {
    let has_data = |block: &&[u8]| block.iter().any(|byte| *byte != 0);
    bytes.chunks(block).filter(has_data).count()
}

fn pool(guest: &Guest, name: &str, size: &str, options: &str) {
    guest.sh(&format!(
        "lvcreate -qq --yes --type thin-pool -L {size} {options} -n {name} vg 2>&1"
    ));
}

fn thin(guest: &Guest, pool: &str, name: &str, size: &str) {
    guest.sh(&format!(
        "lvcreate -qq --yes -Wn -V {size} -T vg/{pool} -n {name} 2>&1"
    ));
}

/// Leaves old content everywhere on the disk that a pool or volume made later gets.
fn soil(guest: &Guest) {
    guest.sh("lvcreate -qq --yes -Wn -Zn -l 100%FREE -n soil vg 2>&1");
    guest.sh("tr '\\0' '\\252' < /dev/zero | dd of=/dev/vg/soil bs=1M iflag=fullblock oflag=direct status=none || true");
    guest.sh("lvremove -qq --yes vg/soil 2>&1");
}

/// 20 MiB with long runs of zeroes, islands in them, and an end that is no multiple of any pool block.
fn image(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; 20 * MIB];
    for (offset, length) in [
        (0, 300 * KIB),
        (5 * MIB + 4 * KIB, 8 * KIB),
        (9 * MIB, 2 * MIB),
        (20 * MIB - 12 * KIB, 8 * KIB),
    ] {
        let data = random.bytes(length);
        bytes[offset..offset + length].copy_from_slice(&data);
    }
    bytes
}

#[test]
fn thin_stays_thin_at_the_destination() {
    lab::test(
        "thin_stays_thin_at_the_destination",
        setup().disk("512M"),
        |guest| {
            guest.volume_group("vg", 0);
            soil(guest);
            let tool = Tool::new(guest);
            let first = image(1);
            let mut second = first.clone();
            // An island goes, 10 MiB become zero over many frames, a new island comes.
            second[300 * KIB - 4 * KIB..300 * KIB].fill(0);
            second[9 * MIB..19 * MIB].fill(0);
            let island = Random::new(7).bytes(4 * KIB);
            second[15 * MIB + 512..15 * MIB + 512 + 4 * KIB].copy_from_slice(&island);
            std::fs::write(tool.path("first.img"), &first).unwrap();
            std::fs::write(tool.path("second.img"), &second).unwrap();
            tool.run("send first.img -o first.delta").ok();
            tool.run("send second.img -o second.delta -z lz4").ok();

            for (number, (chunk, options)) in [
                (64 * KIB, "-c 64k"),
                (192 * KIB, "-c 192k"),
                (2 * MIB, "-c 2m"),
                (192 * KIB, "-c 192k -Zn"),
            ]
            .into_iter()
            .enumerate()
            {
                let (p, lv) = (format!("p{number}"), format!("t{number}"));
                pool(guest, &p, "48M", options);
                thin(guest, &p, &lv, "20M");
                let (path, dm) = (format!("/dev/vg/{lv}"), format!("vg-{lv}"));
                let check = |expected: &[u8], when: &str| {
                    let when = format!("{options}: {when}");
                    assert_same(&path, expected, &when);
                    let found = mapped(guest, &dm, chunk);
                    let least = blocks_with_data(expected, chunk);
                    // Where a block size is no power of two the kernel may keep the first block of each run.
                    let most = least + if chunk.is_power_of_two() { 0 } else { 4 };
                    assert!(
                        (least..=most).contains(&found),
                        "{when}: {found} blocks mapped, {least} with data"
                    );
                };
                tool.run(&format!("send first.img {path}")).ok();
                check(&first, "a full copy");
                tool.run(&format!("apply second.delta {path} --undo undo{number}"))
                    .ok();
                check(&second, "another, as a delta");
                tool.run(&format!("apply undo{number} {path}")).ok();
                check(&first, "its undo");
                tool.run(&format!("send second.img {path} --atomic")).ok();
                check(&second, "kept beside first");
                // What is mapped and zero, as others leave it.
                write(&path, &vec![0; 3 * MIB], 2 * MIB as u64);
                write(&path, &vec![1; MIB], 20 * MIB as u64 - MIB as u64);
                tool.reset(&path, &vec![3; 20 * MIB]);
                tool.run(&format!("send first.img {path} --verify")).ok();
                check(&first, "over what was full");
                guest.sh(&format!("lvremove -qq --yes vg/{p} 2>&1"));
            }
        },
    );
}

#[test]
fn increments_of_a_thick_volume_keep_it_thin() {
    lab::test(
        "increments_of_a_thick_volume_keep_it_thin",
        setup().disk("512M"),
        |guest| {
            guest.volume_group("vg", 0);
            soil(guest);
            pool(guest, "p", "48M", "-c 128k -Zn");
            pool(guest, "q", "48M", "-c 128k");
            thin(guest, "p", "a", "20M");
            thin(guest, "q", "b", "20M");
            guest.volume("vg", "data", "20M");
            let tool = Tool::new(guest);
            let mut now = image(3);
            write("/dev/vg/data", &now, 0);
            guest.sh("lvcreate -qq -s -c 4k -L 24M -n s0 vg/data 2>&1");
            for far in ["a", "b"] {
                tool.run(&format!("send vg/s0 vg/{far}")).ok();
            }
            let mut random = Random::new(5);
            for round in 1..4 {
                for _ in 0..12 {
                    let at = random.below(20 * 256 - 64) as usize * 4 * KIB;
                    let length = (1 + random.below(60) as usize) * 4 * KIB;
                    let bytes = if random.below(2) == 0 {
                        vec![0; length]
                    } else {
                        random.bytes(length)
                    };
                    now[at..at + length].copy_from_slice(&bytes);
                    write("/dev/vg/data", &bytes, at as u64);
                }
                // As much as makes whole blocks zero.
                let at = (2 + 5 * round) * MIB;
                now[at..at + 2 * MIB].fill(0);
                write("/dev/vg/data", &vec![0; 2 * MIB], at as u64);
                let (old, new) = (format!("s{}", round - 1), format!("s{round}"));
                guest.sh(&format!(
                    "lvcreate -qq -s -c 4k -L 24M -n {new} vg/data 2>&1"
                ));
                for far in ["a", "b"] {
                    tool.run(&format!("send --from vg/{old} vg/{new} vg/{far} --verify"))
                        .ok();
                    assert_same(format!("/dev/vg/{far}"), &now, &format!("round {round}"));
                    let most = blocks_with_data(&now, 128 * KIB);
                    let mapped = mapped(guest, &format!("vg-{far}"), 128 * KIB);
                    // A block whose last data went in pieces of several rounds stays mapped: only whole zeroes go.
                    assert!(
                        (most..=most + 30).contains(&mapped),
                        "{far}, round {round}: {mapped} mapped, {most} with data"
                    );
                }
                guest.sh(&format!("lvremove -qq --yes vg/{old} 2>&1"));
            }
        },
    );
}

#[test]
fn where_a_discard_is_no_zero_zeroes_are_written() {
    lab::test(
        "where_a_discard_is_no_zero_zeroes_are_written",
        setup().disk("512M"),
        |guest| {
            guest.volume_group("vg", 0);
            let tool = Tool::new(guest);
            let first = image(1);
            std::fs::write(tool.path("first.img"), &first).unwrap();

            // Unmapped blocks of a volume with an external origin are read from there.
            pool(guest, "p", "64M", "-c 64k");
            guest.volume("vg", "origin", "20M");
            let mut old = Random::new(9).bytes(20 * MIB);
            // The ends of the first range that becomes zero are zero there, too: a look at them alone proves nothing.
            old[256 * KIB..MIB].fill(0);
            old[4 * MIB..6 * MIB].fill(0);
            write("/dev/vg/origin", &old, 0);
            guest.sh("lvchange -an vg/origin; lvchange -qq -pr vg/origin 2>&1; lvcreate -qq -s --thinpool vg/p -n ext vg/origin 2>&1; lvchange -ay -K vg/ext 2>&1");
            assert_same("/dev/vg/ext", &old, "the control");
            tool.run("send first.img vg/ext --undo undo.ext").ok();
            assert_same("/dev/vg/ext", &first, "external origin");
            tool.run("send first.img vg/ext --force").ok();
            assert_same("/dev/vg/ext", &first, "external origin, again");
            tool.run("apply undo.ext vg/ext --force").ok();
            assert_same("/dev/vg/ext", &old, "external origin, undone");

            // A pool that ignores discards.
            pool(guest, "i", "48M", "-c 64k --discards ignore");
            thin(guest, "i", "t", "20M");
            write("/dev/vg/t", &old[..6 * MIB], 0);
            assert!(!guest.try_sh("blkdiscard /dev/vg/t").status.success());
            tool.run("send first.img vg/t").ok();
            assert_same("/dev/vg/t", &first, "ignore_discard");
            // Six MiB were mapped and stay so; of the rest only what holds data.
            let expected = 6 * 16 + blocks_with_data(&first[6 * MIB..], 64 * KIB);
            assert_eq!(mapped(guest, "vg-t", 64 * KIB), expected);

            // The origin of classic snapshots refuses discards, and zeroes that are there cost its snapshots nothing.
            thin(guest, "p", "o", "20M");
            guest.sh("lvcreate -qq -s -c 4k -L 24M -n snap vg/o 2>&1");
            tool.run("send first.img vg/o").ok();
            assert_same("/dev/vg/o", &first, "thick origin");
            assert_same("/dev/vg/snap", &vec![0; 20 * MIB], "its snapshot");
            assert_eq!(
                mapped(guest, "vg-o-real", 64 * KIB),
                blocks_with_data(&first, 64 * KIB)
            );

            // What stands on a thin volume is only known to be a device.
            thin(guest, "p", "low", "21M");
            guest.sh("dmsetup create top --table '0 40960 linear /dev/vg/low 2048'");
            write("/dev/mapper/top", &old, 0);
            tool.run("send first.img /dev/mapper/top").ok();
            assert_same("/dev/mapper/top", &first, "stacked");

            // A device that unmaps and guarantees zeroes: a loop device over a file.
            guest.sh("truncate -s 20M loop.img; losetup /dev/loop0 loop.img");
            write("/dev/loop0", &old, 0);
            tool.run("send first.img /dev/loop0").ok();
            assert_same("/dev/loop0", &first, "loop");
            let used: usize = guest.sh("du -k loop.img | cut -f1").trim().parse().unwrap();
            assert!(used < 4 * KIB, "{used} KiB are left of 20 MiB");
        },
    );
}

#[test]
fn a_destination_volume_is_made_where_there_is_none() {
    lab::test(
        "a_destination_volume_is_made_where_there_is_none",
        setup().disk("512M"),
        |guest| {
            guest.volume_group("vg", 0);
            soil(guest);
            let tool = Tool::new(guest);
            let mut first = image(1);
            // No multiple of an extent.
            first.truncate(19 * MIB + 4 * KIB);
            std::fs::write(tool.path("first.img"), &first).unwrap();
            tool.run("send first.img -o first.delta").ok();
            let lvs = |columns: &str, lv: &str| {
                guest
                    .sh(&format!("lvs --noheadings -o {columns} vg/{lv}"))
                    .trim()
                    .to_owned()
            };
            let exists = |lv: &str| guest.try_sh(&format!("lvs vg/{lv}")).status.success();
            let padded = [&first[..], &vec![0; 20 * MIB - first.len()]].concat();

            tool.run("send first.img vg/x")
                .ends(1, &["no logical volume x"]);
            tool.run("send first.img vg/x --create -n").ok();
            assert!(!exists("x"), "a dry run makes nothing");
            // No pool: thick, and nothing of what was on the disk shows, beyond the end neither.
            tool.run("send first.img vg/x --create --verify").ok();
            assert_eq!(lvs("segtype,lv_tags", "x"), "linear");
            assert_same("/dev/vg/x", &padded, "thick");
            tool.run("send first.img vg/x --create").ok();
            assert_eq!(
                lvs("segtype", "x"),
                "linear",
                "it is there: nothing is made"
            );

            pool(guest, "p", "48M", "-c 64k");
            tool.run("apply first.delta vg/y --create").ok();
            assert_eq!(lvs("pool_lv,lv_tags", "y"), "p");
            assert_same("/dev/vg/y", &padded, "thin");
            assert_eq!(
                mapped(guest, "vg-y", 64 * KIB),
                blocks_with_data(&first, 64 * KIB)
            );
            guest.sh(&format!(
                "LVMSYNC_STATE_DIR=state {} apply - /dev/vg/z --create=thick < first.delta",
                lab_kit::LVMSYNC
            ));
            assert_eq!(lvs("segtype,lv_tags", "z"), "linear");
            assert_same("/dev/vg/z", &padded, "from a pipe");

            pool(guest, "q", "16M", "-c 64k");
            tool.run("send first.img vg/w --create")
                .ends(2, &["--create=thin:p, --create=thin:q"]);
            tool.run("send first.img vg/w --create=thin:none")
                .ends(2, &["its thin pools: p, q"]);
            tool.run("send first.img vg/w --create=thin")
                .ends(2, &["thin:POOL"]);
            tool.run("send first.img nogroup/w --create")
                .ends(1, &["no volume group"]);
            tool.run("send first.img -o o.delta --create").ends(2, &[]);
            tool.run("send first.img vg/w --create=thin:q").ok();
            assert_eq!(lvs("pool_lv", "w"), "q");
            guest.sh("lvchange -an vg/w");
            tool.run("send first.img vg/w --create=thin:q")
                .ends(1, &["lvchange -ay vg/w"]);
        },
    );
}

#[test]
fn a_volume_that_was_made_goes_again_if_nothing_came_of_it() {
    lab::test(
        "a_volume_that_was_made_goes_again_if_nothing_came_of_it",
        setup().disk("256M"),
        |guest| {
            guest.volume_group("vg", 0);
            let tool = Tool::new(guest);
            let mut first = image(1);
            first.truncate(19 * MIB + 4 * KIB);
            std::fs::write(tool.path("first.img"), &first).unwrap();
            tool.run("send first.img -o first.delta").ok();
            let tags = |lv: &str| {
                guest
                    .sh(&format!("lvs --noheadings -o lv_tags vg/{lv}"))
                    .trim()
                    .to_owned()
            };
            let exists = |lv: &str| guest.try_sh(&format!("lvs vg/{lv}")).status.success();
            let padded = [&first[..], &vec![0; 20 * MIB - first.len()]].concat();

            // A delta with a base makes nothing.
            guest.volume("vg", "data", "8M");
            guest.sh("lvcreate -qq -s -c 4k -L 8M -n s1 vg/data 2>&1; lvcreate -qq -s -c 4k -L 8M -n s2 vg/data 2>&1");
            tool.run("send --from vg/s1 vg/s2 vg/v --create=thick")
                .ends(5, &["no full copy", "send NEW DEST --create"]);
            tool.run("send --from vg/s1 vg/s2 -o inc.delta").ok();
            tool.run("apply inc.delta vg/v --create=thick")
                .ends(5, &["no full copy"]);
            assert!(!exists("v"));

            // It fails before the first write: what was made goes. In the middle: it stays and is finished.
            guest.sh("head -c 300 first.delta > cut.delta");
            tool.run("apply cut.delta vg/v --create=thick").ends(6, &[]);
            tool.run("apply first.delta vg/v --create=thick --undo /nowhere/undo")
                .ends(1, &[]);
            assert!(!exists("v"), "nothing was written to it");
            guest.sh("head -c 100000 first.delta > cut.delta");
            tool.run("apply cut.delta vg/v --create=thick")
                .ends(6, &["in the middle of a data frame"]);
            assert!(!exists("v"), "its first frame was cut");
            guest.sh("head -c 400000 first.delta > cut.delta");
            tool.run("apply cut.delta vg/v --create=thick")
                .ends(6, &["partly written"]);
            assert_eq!(tags("v"), "");
            tool.run("apply first.delta vg/v --create=thick").ok();
            assert_same("/dev/vg/v", &padded, "finished");

            // Killed when it was written and had its tag still: whatever refuses the next run, it stays.
            guest.sh("lvchange -qq --addtag lvmsync_new vg/v && lvchange -qq -pr vg/v");
            tool.run("apply first.delta vg/v --create=thick")
                .ends(5, &["read-only"]);
            assert!(exists("v"), "it is on record");
            guest.sh("lvchange -qq -prw vg/v");
            tool.run("apply first.delta vg/v --create=thick").ok();
            assert_eq!(tags("v"), "");
            assert_same("/dev/vg/v", &padded, "still there");

            // Killed between lvcreate and the record: the next run takes it for its own.
            guest.sh("lvcreate -qq --yes -Wn --addtag lvmsync_new -L 20M -n k vg 2>&1");
            tool.run("apply cut.delta vg/k --create --undo /nowhere/undo")
                .ends(1, &[]);
            assert_eq!(tags("k"), "lvmsync_new", "what another run made stays");
            tool.run("apply first.delta vg/k --create").ok();
            assert_eq!(tags("k"), "");
            assert_same("/dev/vg/k", &padded, "left by a killed run");
        },
    );
}

#[test]
fn the_far_end_makes_it_where_it_may() {
    lab::test(
        "the_far_end_makes_it_where_it_may",
        setup().disk("256M").disk("64M"),
        |guest| {
            guest.volume_group("vg", 0);
            let tool = Tool::new(guest);
            let first = image(1);
            std::fs::write(tool.path("first.img"), &first).unwrap();
            pool(guest, "p", "64M", "-c 64k");
            guest.host("far");
            let exists = |lv: &str| guest.try_sh(&format!("lvs vg/{lv}")).status.success();
            tool.run("send first.img far:vg/a --create -n").ok();
            assert!(!exists("a"));
            tool.run("send first.img far:vg/a --create").ok();
            assert_same("/dev/vg/a", &first, "over ssh");
            assert_eq!(
                mapped(guest, "vg-a", 64 * KIB),
                blocks_with_data(&first, 64 * KIB)
            );
            tool.run("send first.img far:vg/a").ok();

            let limited = |permit: &str| {
                let script = format!(
                    "#!/bin/sh\nexec {} serve --allow /dev/vg/ok-\\* {permit}\n",
                    lab_kit::LVMSYNC
                );
                std::fs::write(tool.path("limited"), script).unwrap();
                guest.sh("chmod +x limited");
                format!("--remote-path {}", tool.path("limited").display())
            };
            let path = limited("");
            tool.run(&format!("send first.img far:vg/ok-1 --create {path}"))
                .ends(5, &["--create", "does not permit it"]);
            let path = limited("--permit create");
            tool.run(&format!("send first.img far:vg/no-1 --create {path}"))
                .ends(5, &["not allowed here"]);
            tool.run(&format!("send first.img far:vg/ok-1 --create {path}"))
                .ok();
            assert_same("/dev/vg/ok-1", &first, "with limits");
            assert!(!exists("no-1"));
        },
    );
}

#[test]
fn a_pool_that_runs_full_is_named_and_the_run_goes_on_after_it_grew() {
    lab::test(
        "a_pool_that_runs_full_is_named_and_the_run_goes_on_after_it_grew",
        setup().disk("512M"),
        |guest| {
            guest.volume_group("vg", 0);
            guest.sh("echo 2 > /sys/module/dm_thin_pool/parameters/no_space_timeout");
            let tool = Tool::new(guest);
            let whole = Random::new(2).bytes(24 * MIB);
            std::fs::write(tool.path("whole.img"), &whole).unwrap();
            for (p, policy) in [("e", "y"), ("q", "n")] {
                pool(guest, p, "16M", "-c 64k");
                guest.sh(&format!(
                    "lvchange -qq --errorwhenfull {policy} vg/{p} 2>&1 || true"
                ));
                thin(guest, p, &format!("t{p}"), "24M");
                let send = format!("send whole.img vg/t{p}");
                let name = format!("its thin pool vg/{p}");
                let words = [
                    "may run full",
                    &name,
                    "data 100 %",
                    "lvextend -L +SIZE",
                    "partly written",
                ];
                tool.run(&send).ends(1, &words);
                let state = tool.run(&format!("state show vg/t{p}")).ok().stdout;
                assert!(state.contains("INCOMPLETE"), "{state}");
                // The same again finds a pool in trouble, before anything is written.
                tool.run(&send)
                    .ends(5, &[&name, "out of space", "lvextend"]);
                guest.sh(&format!("lvextend -qq -L +16M vg/{p} 2>&1"));
                tool.run(&send).ok();
                assert_same(format!("/dev/vg/t{p}"), &whole, "after the pool grew");
            }
        },
    );
}

#[test]
fn a_pool_in_trouble_is_refused_and_a_discard_that_did_nothing_is_no_success() {
    lab::test(
        "a_pool_in_trouble_is_refused_and_a_discard_that_did_nothing_is_no_success",
        setup().disk("256M"),
        |guest| {
            use lvmsync::destination::{Destination, DestinationOptions};
            use lvmsync::extent::Extent;

            guest.volume_group("vg", 0);
            pool(guest, "p", "32M", "-c 64k");
            thin(guest, "p", "t", "20M");
            let tool = Tool::new(guest);
            let old = Random::new(4).bytes(20 * MIB);
            write("/dev/vg/t", &old, 0);
            std::fs::write(tool.path("first.img"), image(1)).unwrap();
            let options = DestinationOptions {
                state_dir: Some(tool.path("state")),
                ..DestinationOptions::default()
            };
            let open = Destination::open("/dev/vg/t", &[], &options).unwrap();
            guest.sh("set -- $(dmsetup table vg-p-tpool)
             dmsetup suspend vg-p-tpool
             dmsetup reload vg-p-tpool --table \"$1 $2 $3 $4 $5 $6 $7 1 read_only\"
             dmsetup resume vg-p-tpool");
            // The control: the kernel says that it was done.
            guest.sh("blkdiscard -f -o 1M -l 1M /dev/vg/t");
            assert!(content("/dev/vg/t") == old, "and it was not");
            let extent = Extent::new(2 * MIB as u64, MIB as u64).unwrap();
            let error = open
                .target()
                .volume
                .zero_at(extent)
                .unwrap_err()
                .to_string();
            assert!(error.contains("thin pool vg/p is read-only"), "{error}");
            let error = open.target().volume.sync().unwrap_err().to_string();
            assert!(error.contains("thin pool vg/p is read-only"), "{error}");
            drop(open);
            tool.run("send first.img vg/t")
                .ends(5, &["thin pool vg/p is read-only", "lvchange -an vg/p"]);
            // Blocks that are mapped can be written still, and what did not become zero was.
            let mut expected = old;
            expected[2 * MIB..3 * MIB].fill(0);
            assert_same("/dev/vg/t", &expected, "nothing more was written");
        },
    );
}
