//! The lab itself: real snapshots, another host over ssh, a power cut that loses what was not synced, and a guest that hangs.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::time::Duration;

fn setup() -> lab::Setup {
    lab::Setup::new().program(env!("CARGO_BIN_EXE_lvmsync"))
}

#[test]
fn snapshot_and_ssh() {
    lab::test(
        "snapshot_and_ssh",
        setup().disk("256M").disk("64M"),
        |guest| {
            let of_the_host = guest.sh("ls -d /etc/lvmsync /var/lib/lvmsync 2> /dev/null || true");
            assert_eq!(of_the_host, "", "a guest knows nothing of these");
            guest.volume_group("vg0", 0);
            let data = guest.volume("vg0", "data", "64M");
            guest.sh("lvcreate -qq -s -L 32M -n s1 vg0/data 2>&1");
            assert!(
                guest
                    .sh("dmsetup status vg0-s1")
                    .contains("snapshot 16/65536 16")
            );
            guest.sh(&format!(
            "for n in 1 5 9; do dd if=/dev/zero of={} bs=4k seek=$n count=1 oflag=direct status=none; done",
            data.display()
        ));
            assert!(
                guest
                    .sh("dmsetup status vg0-s1")
                    .contains("snapshot 40/65536 16")
            );

            let far = guest.host("far");
            assert_eq!(guest.sh("ssh far hostname").trim(), "far");
            assert_eq!(
                guest
                    .sh(&format!(
                        "ssh -F {} far 'echo $HOME'",
                        lab::Peer::SSH_CONFIG
                    ))
                    .trim(),
                "/run/lab/home"
            );
            assert!(guest.sh("ssh far 'command -v lvmsync'").contains("lvmsync"));
            far.slow(Duration::from_millis(20), 0.0);
            guest.sh("ssh far true");
            far.fast();
            far.stop();
            let refused = guest.try_sh("ssh far true");
            assert_eq!(refused.status.code(), Some(255));
            assert!(String::from_utf8_lossy(&refused.stderr).contains("refused"));
            far.start();
            guest.sh("ssh far true");
            far.link_down();
            assert_eq!(
                guest
                    .try_sh("ssh -o ConnectTimeout=1 far true")
                    .status
                    .code(),
                Some(255)
            );
        },
    );
}

#[test]
fn power_cut_keeps_what_was_synced() {
    lab::Script::new("power_cut_keeps_what_was_synced", setup().disk("64M"))
        .phase("write", |guest| {
            let disk = guest.disk(0).display();
            guest.sh(&format!(
                "echo kept > block; dd if=block of={disk} conv=fsync,notrunc status=none"
            ));
            // Left open, since the last close of a block device writes out what is in memory.
            let mut open = OpenOptions::new().write(true).open(guest.disk(0)).unwrap();
            open.seek(SeekFrom::Start(1 << 20)).unwrap();
            open.write_all(b"lost").unwrap();
            guest.announce("WRITTEN");
            std::thread::sleep(Duration::from_secs(60));
        })
        .phase("check", |guest| {
            let disk = guest.disk(0).display();
            assert_eq!(guest.sh(&format!("head -c 4 {disk}")), "kept");
            assert_eq!(guest.sh(&format!("cmp -n 4 -i 1M:0 {disk} /dev/zero")), "");
        })
        .drive(|driver| {
            let mut guest = driver.boot("write");
            driver.wait_for(&mut guest, "WRITTEN", Duration::from_secs(30));
            let outcome = guest.cut().expect("a guest that can be cut");
            assert_eq!(outcome.status, None);
            driver.run("check");
        });
}

#[test]
fn a_guest_that_is_waited_for_in_vain_says_what_runs() {
    let name = "a_guest_that_is_waited_for_in_vain_says_what_runs";
    lab::Script::new(name, setup())
        .phase("hang", |guest| {
            guest.announce("ON");
            guest.sh("sleep 1234");
        })
        .drive(|driver| {
            let mut guest = driver.boot("hang");
            driver.wait_for(&mut guest, "ON", Duration::from_secs(30));
            let waited = guest.wait_for("OFF", Duration::from_secs(4));
            assert!(waited.unwrap_err().to_string().contains("time ran out"));
            let log = guest.cut().expect("a guest that can be cut").log;
            let log = std::fs::read_to_string(log).unwrap();
            let told = log.split("sleep 1234").nth(1).unwrap();
            assert!(told.contains("nanosleep"), "{log}");
        });
}
