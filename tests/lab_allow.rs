//! `lvmsync serve --allow` with real logical volumes: one name for each, however it is called.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use lab_kit::{LVMSYNC, Random, Tool, assert_same, content, setup, write};

const SIZE: usize = 4 << 20;

#[test]
fn only_the_allowed_volumes_are_written_whatever_they_are_called() {
    let setup = setup().disk("64M");
    let name = "only_the_allowed_volumes_are_written_whatever_they_are_called";
    lab::test(name, setup, |guest| {
        let tool = Tool::new(guest);
        guest.volume_group("vg", 0);
        guest.volume("vg", "backup-a", "4M");
        guest.volume("vg", "data", "4M");
        guest.sh("lvcreate -qq -s -c 16k -L 8M -n s1 vg/backup-a 2>&1");
        guest.sh("lvcreate -qq -an -y -Zn -L 4M -n backup-off vg 2>&1");
        let mut random = Random::new(3);
        let data = random.bytes(SIZE);
        write("/dev/vg/data", &data, 0);

        // In the place of ssh and its forced command.
        let script = tool.path("forced");
        let text = format!("#!/bin/sh\nexec {LVMSYNC} serve --allow 'vg/backup-*'\n");
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let source = tool.path("source");
        let send = |destination: &str| {
            let (source, script) = (source.display(), script.display());
            tool.run(&format!("send {source} far:{destination} -e {script}"))
        };
        let node = |name: &str| {
            let path = fs::canonicalize(name).unwrap();
            path.display().to_string()
        };
        symlink("/dev/vg/backup-a", tool.path("link")).unwrap();
        symlink("/dev/vg/data", tool.path("trap-backup-a")).unwrap();

        let link = tool.path("link").display().to_string();
        for destination in [
            "vg/backup-a",
            "/dev/vg/backup-a",
            "/dev/mapper/vg-backup--a",
            "/dev/../dev/vg/backup-a",
            &node("/dev/vg/backup-a"),
            &link,
        ] {
            let new = random.bytes(SIZE);
            fs::write(&source, &new).unwrap();
            send(destination).ok();
            assert_same("/dev/vg/backup-a", &new, destination);
        }
        let new = content("/dev/vg/backup-a");
        let trap = tool.path("trap-backup-a").display().to_string();
        for destination in [
            "vg/data",
            "/dev/vg/data",
            "/dev/mapper/vg-data",
            "/dev/vg/backup-a/../data",
            &node("/dev/vg/data"),
            &trap,
            // Hidden parts of an allowed volume.
            "/dev/mapper/vg-backup--a-real",
            "/dev/mapper/vg-s1-cow",
            &node("/dev/mapper/vg-backup--a-real"),
            &guest.disk(0).display().to_string(),
            "vg/none",
            "none/backup-a",
        ] {
            send(destination).ends(5, &["far: ", "this destination is not allowed here"]);
        }
        assert_same("/dev/vg/data", &data, "not allowed");
        assert_same("/dev/vg/backup-a", &new, "not allowed");
        // Allowed, and not there: now it is told why.
        send("vg/backup-off").ends(7, &["backup-off", "lvchange"]);
        send("vg/backup-none").ends(7, &["backup-none"]);
    });
}
