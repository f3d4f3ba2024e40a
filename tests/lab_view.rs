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
