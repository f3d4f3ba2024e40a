//! Comparing real devices: here and over ssh, mounted, longer, and with an old copy in the page cache.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab_kit::live;
use lab_kit::thin::{is_active, lvm};
use lab_kit::{Random, Tool, assert_same, content, lvmsync_processes, open_count, setup, write};

const SIZE: usize = 8 << 20;

/// Offsets and lengths of the blocks of 4 KiB that differ, neighbours joined.
fn differing(one: &[u8], other: &[u8]) -> serde_json::Value {
    let mut extents: Vec<(usize, usize)> = Vec::new();
    for (number, (a, b)) in one.chunks(4096).zip(other.chunks(4096)).enumerate() {
        match extents.last_mut() {
            _ if a == b => {}
            Some((offset, length)) if *offset + *length == number * 4096 => *length += 4096,
            _ => extents.push((number * 4096, 4096)),
        }
    }
    let object = |(offset, length)| serde_json::json!({"offset": offset, "length": length});
    extents.into_iter().map(object).collect()
}

#[test]
fn devices_are_compared_as_they_are_on_disk() {
    let setup = setup().disk("64M").disk("64M");
    lab::test("devices_are_compared_as_they_are_on_disk", setup, |guest| {
        let tool = Tool::new(guest);
        let mut random = Random::new(23);
        guest.volume_group("vg", 0);
        guest.sh(&format!(
            "vgcreate -qq --yes -s 1M there {}",
            guest.disk(1).display()
        ));
        guest.volume("vg", "data", "8M");
        guest.volume("there", "copy", "8M");
        guest.volume("there", "long", "12M");
        guest.host("far");
        write("/dev/vg/data", &random.bytes(SIZE), 0);
        guest.sh("lvcreate -qq -s -c 4k -L 8M -n s1 vg/data 2>&1");
        for _ in 0..20 {
            let offset = random.below(SIZE as u64 - 9000);
            write("/dev/vg/data", &random.bytes(9000), offset);
        }
        guest.sh("lvcreate -qq -s -c 4k -L 8M -n s2 vg/data 2>&1");
        let (old, new) = (content("/dev/vg/s1"), content("/dev/vg/s2"));

        tool.run("send vg/s1 far:there/copy --verify").ok();
        for copy in ["there/copy", "far:there/copy"] {
            tool.run(&format!("compare vg/s1 {copy}"))
                .ends(0, &["equal: 8.0 MiB"]);
            let run = tool
                .run(&format!("compare vg/s2 {copy} --json"))
                .ends(3, &["different:"]);
            let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
            assert_eq!(json["extents"], differing(&old, &new), "{copy}");
        }
        let sent = tool
            .run("send --from vg/s1 vg/s2 far:there/copy --verify --json")
            .ok();
        assert!(sent.stdout.contains("\"verified\":true"), "{}", sent.stdout);
        assert_same("/dev/there/copy", &new, "sent");
        tool.run("send --from vg/s1 vg/s2 -o x.delta").ok();
        for copy in ["there/copy", "far:there/copy"] {
            tool.run(&format!("compare vg/s2 {copy}"))
                .ends(0, &["equal"]);
            tool.run(&format!("compare vg/s2 {copy} --only x.delta"))
                .ends(0, &["equal"]);
            tool.run(&format!("compare vg/s1 {copy} --only x.delta"))
                .ends(3, &["different"]);
        }

        // A device that is longer is equal; what it has more does not count.
        write("/dev/there/long", &[7; 12 << 20], 0);
        tool.run("send vg/s2 there/long --verify").ok();
        for long in ["there/long", "far:there/long"] {
            let words = ["equal", "longer by 4194304 bytes, which do not count"];
            tool.run(&format!("compare vg/s2 {long}")).ends(0, &words);
        }
        tool.run("compare there/long vg/s2")
            .ends(3, &["shorter by 4194304 bytes"]);

        // What the device holds counts, not what somebody has read of it before: an alias writes below the
        // page cache of a device that is held open.
        let mut held = fs::File::open("/dev/there/copy").unwrap();
        held.read_exact(&mut vec![0; SIZE]).unwrap();
        guest.sh("dmsetup create alias --table \"$(dmsetup table there-copy)\"");
        write("/dev/mapper/alias", &[0x5a; 512], 5 << 20);
        guest.sh("dmsetup remove --retry alias");
        for copy in ["there/copy", "far:there/copy"] {
            let run = tool
                .run(&format!("compare vg/s2 {copy} --json"))
                .ends(3, &[]);
            let extents =
                "\"different_bytes\":4096,\"extents\":[{\"offset\":5242880,\"length\":4096}]";
            assert!(run.stdout.contains(extents), "{}", run.stdout);
        }
        drop(held);

        // One that is mounted may be compared, and stays as it is. The other host has mounts of its own.
        guest.sh("mkfs.ext4 -q /dev/there/long 2>&1; mkdir m; mount /dev/there/long m; sync");
        let words = ["mounted on", "may count as different"];
        tool.run("compare vg/s2 there/long").ends(3, &words);
        tool.run("compare vg/s2 far:there/long").ends(3, &[]);
        guest.sh("umount m; e2fsck -fn /dev/there/long 2>&1");

        tool.run("compare vg/s2 far:there/none")
            .ends(7, &["far: ", "there/none"]);
        // Both hosts share one process table; the far end may take a moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !lvmsync_processes().is_empty() {
            assert!(Instant::now() < deadline, "{:?}", lvmsync_processes());
            std::thread::sleep(Duration::from_millis(50));
        }
        for device in ["vg-s1", "vg-s2", "there-copy", "there-long"] {
            assert_eq!(open_count(guest, device), "0", "{device}");
        }
    });
}

/// Runs `work` while the first block of `device` is written again and again, as it is.
fn while_written(device: &str, work: impl FnOnce()) {
    let block = content(device)[..4096].to_vec();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                write(device, &block, 0);
            }
        });
        // Whatever fails in here, the other thread has to end.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        ended.store(true, Ordering::Relaxed);
        done.unwrap();
    });
}

#[test]
fn a_device_that_is_written_to_is_neither_equal_nor_one_moment() {
    let name = "a_device_that_is_written_to_is_neither_equal_nor_one_moment";
    let setup = setup().disk("64M").disk("64M").disk("64M");
    lab::test(name, setup, |guest| {
        let tool = Tool::new(guest);
        let mut random = Random::new(29);
        guest.volume_group("vg", 0);
        guest.sh(&format!(
            "vgcreate -qq --yes -s 1M there {}",
            guest.disk(1).display()
        ));
        guest.volume("vg", "data", "32M");
        guest.volume("there", "copy", "32M");
        guest.host("far");
        write("/dev/vg/data", &random.bytes(32 << 20), 0);
        tool.run("sync vg/data there/copy").ok();

        let blurred = ["it was written while it was compared", "no moment of it"];
        let both = [
            "compare vg/data there/copy",
            "compare vg/data far:there/copy",
        ];
        for device in ["/dev/vg/data", "/dev/there/copy"] {
            while_written(device, || {
                for words in both {
                    tool.run(words).ends(
                        1,
                        &[device.trim_start_matches("/dev/"), blurred[0], blurred[1]],
                    );
                }
            });
        }
        for words in both {
            tool.run(words).ends(0, &["equal"]);
        }

        // No logical volume, so nobody makes a snapshot of it.
        let disk = guest.disk(2).display().to_string();
        write(&disk, &random.bytes(64 << 20), 0);
        let no_state = [
            "what was sent is no state of it",
            "it was written while it was read",
        ];
        while_written(&disk, || {
            tool.run(&format!("sync {disk} image"))
                .ends(1, &[no_state[0], no_state[1], "--no-snapshot"]);
            tool.run(&format!("sync {disk} far:{0}/image2", "/tmp"))
                .ends(1, &no_state[..1]);
            tool.run(&format!("sync {disk} image --no-snapshot"))
                .ends(0, &no_state);
        });
        tool.run(&format!("sync {disk} image")).ok();
        tool.run(&format!("compare {disk} image"))
            .ends(0, &["equal"]);
        guest.sh(&format!(
            "mkfs.ext4 -q {disk} 2>&1; mkdir m; mount {disk} m; sync"
        ));
        let told = tool.run(&format!("sync {disk} image"));
        assert!(told.stderr.contains("mounted on"), "{}", told.stderr);
        guest.sh("umount m");
    });
}

#[test]
fn a_thin_snapshot_that_is_not_active_is_compared_and_stays_so() {
    let name = "a_thin_snapshot_that_is_not_active_is_compared_and_stays_so";
    lab::test(name, live::setup(), |guest| {
        live::make(guest, live::Kind::Thin);
        guest.host("far");
        let tool = Tool::new(guest);
        let mut random = Random::new(31);
        write("/dev/vg/data", &random.bytes(SIZE), 0);
        // As LVM leaves them: not active, and not to be activated.
        lvm(guest, "lvcreate -qq -s -n s1 vg/data");
        write("/dev/vg/data", &random.bytes(4096), 8192);
        lvm(guest, "lvcreate -qq -s -n s2 vg/data");
        let inactive = |when: &str| {
            assert!(!is_active("vg/s1") && !is_active("vg/s2"), "{when}");
            assert_eq!(tool.held(), [""; 0], "{when}");
        };
        for (source, copy) in [
            ("vg/s1", "there/copy"),
            ("vg/s1", "far:there/copy"),
            ("far:vg/s1", "there/copy"),
        ] {
            tool.run(&format!("sync {source} {copy} --verify")).ok();
            inactive("synced");
            tool.run(&format!("compare {source} {copy}"))
                .ends(0, &["equal"]);
            let other = source.replace("s1", "s2");
            tool.run(&format!("sync {other} {copy} -n"))
                .ends(0, &["4.0 KiB"]);
            tool.run(&format!("compare {other} {copy}"))
                .ends(3, &["different: 4.0 KiB"]);
            inactive("compared");
        }
        tool.run("compare vg/s1 vg/s2").ends(3, &["different"]);
        inactive("both");
    });
}
