//! Looking into states below a live logical volume: from a temporary snapshot, which is removed whatever happens.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;
use std::process::Command;

use lab_kit::live::{Bench, Kind, kill, make, setup, temporary, wait_until};
use lab_kit::{Random, content, write};
use rustix::process::Signal;

/// `vg/data` is written to after `mon.delta` was put on it with an undo; a view of that undo over the live volume is
/// that volume with what the delta had changed put back.
fn the_day_before_below_a_live_volume(kind: Kind, name: &str) {
    lab::test(name, setup(), |guest| {
        make(guest, kind);
        let bench = Bench::new(guest);
        let mut random = Random::new(31);
        write("/dev/vg/data", &random.bytes(4 << 20), 0);
        let before = content("/dev/vg/data");
        fs::write(guest.scratch().join("new.img"), &before).unwrap();
        for offset in [0, 1 << 20, 9 << 20] {
            write(
                guest.scratch().join("new.img"),
                &random.bytes(70_000),
                offset,
            );
        }
        bench.tool.run("sync new.img vg/data --undo mon.undo").ok();
        let line = "view mon.undo --base vg/data";
        bench.tool.run(&format!("{line} --to state.img")).ok();
        assert!(fs::read(guest.scratch().join("state.img")).unwrap() == before);
        bench.nothing_left("a file");

        // An export reads the snapshot, not the volume, and nothing is left of it, however it ends.
        for signal in [Signal::INT, Signal::KILL] {
            let mut child = bench
                .tool
                .start(&format!("{line} --force --nbd unix:state.sock"));
            let socket = guest.scratch().join("state.sock");
            wait_until("it listens", || {
                assert!(child.try_wait().unwrap().is_none(), "it ended");
                std::os::unix::net::UnixStream::connect(&socket).is_ok()
            });
            assert!(temporary().is_some());
            write("/dev/vg/data", &random.bytes(200_000), 14 << 20);
            let copied = Command::new("nbdcopy")
                .args(["nbd+unix:///?socket=state.sock", "copied.img"])
                .current_dir(guest.scratch())
                .status();
            assert!(copied.unwrap().success());
            let copied = fs::read(guest.scratch().join("copied.img")).unwrap();
            assert!(copied[..14 << 20] == before[..14 << 20]);
            if signal == Signal::INT {
                assert!(copied == before, "of the moment of the snapshot");
            }
            kill(&child, signal);
            child.wait().unwrap();
            bench.nothing_left(&format!("{signal:?}"));
        }
    });
}

#[test]
fn a_view_below_a_live_thick_volume() {
    the_day_before_below_a_live_volume(Kind::Thick, "a_view_below_a_live_thick_volume");
}

#[test]
fn a_view_below_a_live_thin_volume() {
    the_day_before_below_a_live_volume(Kind::Thin, "a_view_below_a_live_thin_volume");
}

/// An export of the state before a delta, as the kernel's own block device: mounted as it is, and mounted to be written to
/// over an overlay.
#[test]
fn the_kernel_mounts_what_is_exported() {
    lab::test("the_kernel_mounts_what_is_exported", setup(), |guest| {
        make(guest, Kind::Thick);
        let bench = Bench::new(guest);
        guest.sh(
            "modprobe nbd; mkfs.ext4 -q /dev/vg/data; mkdir /mnt/v; mount /dev/vg/data /mnt/v
                  echo monday > /mnt/v/day; head -c 3M /dev/urandom > /mnt/v/much; umount /mnt/v",
        );
        let monday = content("/dev/vg/data");
        fs::write(guest.scratch().join("new.img"), &monday).unwrap();
        guest.sh("mount -o loop new.img /mnt/v; echo tuesday > /mnt/v/day; rm /mnt/v/much; umount /mnt/v");
        bench.tool.run("sync new.img vg/data --undo mon.undo").ok();
        let tuesday = content("/dev/vg/data");
        assert!(tuesday != monday);

        let line = "view mon.undo --base vg/data --nbd unix:state.sock";
        let attached = |options: &str, work: &str| {
            let mut child = bench.tool.start(&format!("{line}{options}"));
            let socket = guest.scratch().join("state.sock");
            wait_until("it listens", || {
                assert!(child.try_wait().unwrap().is_none(), "it ended");
                std::os::unix::net::UnixStream::connect(&socket).is_ok()
            });
            guest.sh("nbd-client -unix state.sock /dev/nbd0 -N ''");
            wait_until("it is attached", || {
                fs::read_to_string("/sys/block/nbd0/size").unwrap().trim() != "0"
            });
            guest.sh(work);
            let seen = content("/dev/nbd0");
            guest.sh("nbd-client -d /dev/nbd0");
            kill(&child, Signal::INT);
            child.wait().unwrap();
            bench.nothing_left(options);
            seen
        };
        let seen = attached(
            "",
            "mount -o ro /dev/nbd0 /mnt/v; grep -qx monday /mnt/v/day
             test $(stat -c %s /mnt/v/much) = 3145728; umount /mnt/v
             ! dd if=/dev/zero of=/dev/nbd0 bs=4096 count=1 conv=fsync 2> /dev/null",
        );
        assert!(seen == monday);
        let written = attached(
            " --overlay over",
            "mount /dev/nbd0 /mnt/v; echo later > /mnt/v/day; rm /mnt/v/much; sync
             head -c 1M /dev/urandom > /mnt/v/other; umount /mnt/v; e2fsck -f -n /dev/nbd0
             blockdev --flushbufs /dev/nbd0; mount -o ro /dev/nbd0 /mnt/v
             grep -qx later /mnt/v/day; test -s /mnt/v/other; umount /mnt/v",
        );
        assert!(written != monday);
        // It was written nowhere else.
        assert!(attached(" --overlay over", "true") == monday);
        assert!(attached("", "true") == monday);
        assert!(content("/dev/vg/data") == tuesday);
    });
}
