//! Exports, read and written by clients that others wrote: libnbd's tools and QEMU's.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::{Command, Stdio};

use crate::bench::{Dir, text};

const CHAIN: &str = "lvmsync view mon.delta tue.delta wed.delta --base base";

/// Writes `tests/view` states where clients can compare with them.
fn with_expected(dir: &Dir) {
    dir.write("expected", &dir.states[3]);
}

#[test]
fn nbdinfo_nbdcopy_and_qemu_read_the_state() {
    let dir = Dir::new();
    with_expected(&dir);
    let serving = dir.serve(&format!("{CHAIN} --nbd unix:sock"));
    let found = std::fs::metadata(dir.path("sock")).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.mode() & 0o777, 0o600);
    let uri = &serving.uri;
    let info = text(&dir.ok(&format!("nbdinfo {uri}")));
    for word in [
        "newstyle-fixed",
        "export-size: 6291456",
        "is_read_only: true",
        "base:allocation",
        "can_multi_conn: true",
        "can_cache: true",
    ] {
        assert!(info.contains(word), "{word}: {info}");
    }
    assert!(text(&dir.ok(&format!("nbdinfo --list {uri}"))).contains("export=\"\""));
    dir.ok(&format!("nbdcopy {uri} copied"));
    assert!(dir.read("copied") == dir.states[3]);
    dir.ok(&format!(
        "nbdcopy --synchronous --connections=1 {uri} slowly"
    ));
    assert!(dir.read("slowly") == dir.states[3]);
    dir.ok(&format!("qemu-img compare -f raw -F raw {uri} expected"));
    dir.ok(&format!("qemu-img convert -f raw -O raw {uri} converted"));
    assert!(dir.read("converted") == dir.states[3]);
    // Both maps cover all of it, and what they call zero is zero.
    let map = text(&dir.ok(&format!("nbdinfo --map {uri}")));
    let mut at = 0;
    let mut kinds = [0, 0];
    for line in map.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (start, length): (usize, usize) =
            (words[0].parse().unwrap(), words[1].parse().unwrap());
        assert_eq!(start, at, "{map}");
        at += length;
        let is_zero = words[2] == "3";
        kinds[usize::from(is_zero)] += 1;
        assert!(
            !is_zero || dir.states[3][start..at].iter().all(|byte| *byte == 0),
            "{line}"
        );
    }
    assert_eq!(at, dir.states[3].len());
    assert!(kinds[0] > 10 && kinds[1] > 10, "{kinds:?}");
    let map = text(&dir.ok(&format!("qemu-img map -f raw --output=json {uri}")));
    assert!(
        map.contains("\"zero\": true") && map.contains("\"data\": true"),
        "{map}"
    );
    // A write is refused.
    let write = dir.run(&format!("qemu-io -f raw {uri} -c aio_write"));
    assert!(
        !write.status.success() || text(&write.stderr).contains("read-only"),
        "{write:?}"
    );
    assert!(serving.end().contains("clients served"));
    assert!(!dir.path("sock").exists());
    assert!(dir.read("base") == dir.states[0]);
}

#[test]
fn a_port_is_served_as_well() {
    let dir = Dir::new();
    let serving = dir.serve(&format!("{CHAIN} --nbd tcp:127.0.0.1:0"));
    assert!(serving.uri.starts_with("nbd://127.0.0.1:"));
    dir.ok(&format!("nbdcopy {} copied", serving.uri));
    assert!(dir.read("copied") == dir.states[3]);
    serving.end();
}

#[test]
fn many_clients_at_once_and_no_more_than_were_said() {
    let dir = Dir::new();
    let serving = dir.serve(&format!("{CHAIN} --nbd unix:sock --clients 4"));
    let mut copies: Vec<_> = (0..3)
        .map(|number| {
            dir.command(&format!(
                "nbdcopy --connections=1 {} copy{number}",
                serving.uri
            ))
            .spawn()
            .unwrap()
        })
        .collect();
    for copy in &mut copies {
        assert!(copy.wait().unwrap().success());
    }
    for number in 0..3 {
        assert!(dir.read(&format!("copy{number}")) == dir.states[3]);
    }
    let idle: Vec<_> = (0..4)
        .map(|_| std::os::unix::net::UnixStream::connect(dir.path("sock")).unwrap())
        .collect();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(
        !dir.run(&format!("nbdinfo {}", serving.uri))
            .status
            .success()
    );
    drop(idle);
    std::thread::sleep(std::time::Duration::from_millis(300));
    dir.ok(&format!("nbdinfo {}", serving.uri));
    assert!(serving.end().contains("sent away"));
}

#[test]
fn a_read_that_touches_damage_fails_and_the_export_goes_on() {
    let dir = Dir::new();
    let bytes = dir.read("wed.delta");
    let stored = lvmsync::delta::stored::StoredDelta::open(
        lvmsync::volume::memory::MemoryVolume::new(bytes.clone()),
    )
    .unwrap();
    let frame = stored
        .frames()
        .map(Result::unwrap)
        .find(|frame| frame.stored_length > 0)
        .unwrap();
    let mut bad = bytes;
    bad[frame.at as usize + 33] ^= 1;
    dir.write("wed.delta", &bad);
    let serving = dir.serve(&format!("{CHAIN} --nbd unix:sock"));
    let read = |offset: u64| {
        let mut command = dir.command("qemu-io -r -f raw");
        command
            .arg(&serving.uri)
            .args(["-c", &format!("read {offset} 512")])
            .output()
            .unwrap()
    };
    let failed = read(frame.extent.offset());
    let said = text(&failed.stdout) + &text(&failed.stderr);
    assert!(said.contains("read failed: Input/output error"), "{said}");
    let next = read(frame.extent.end() + 4096);
    assert!(text(&next.stdout).contains("512/512"), "{next:?}");
    let said = serving.end();
    assert!(
        said.contains("wed.delta") && said.contains(&frame.at.to_string()),
        "{said}"
    );
}

#[test]
fn what_is_written_over_the_state_is_read_back_and_lost_at_the_end() {
    let dir = Dir::new();
    let names = dir.names();
    let serving = dir.serve(&format!("{CHAIN} --nbd unix:sock --overlay over"));
    let io = |commands: &[&str]| {
        let mut command = dir.command("qemu-io -f raw");
        command.arg(&serving.uri);
        for text in commands {
            command.args(["-c", text]);
        }
        let output = command.output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(
            output.status.success() && !said.contains("failed"),
            "{said}"
        );
    };
    io(&[
        "write -P 7 1000 70000",
        "write -z 200k 100k",
        "discard 1M 64k",
        "write -f -P 9 6291000 456",
        "flush",
    ]);
    let mut expected = dir.states[3].clone();
    expected[1000..71_000].fill(7);
    expected[200 << 10..300 << 10].fill(0);
    expected[1 << 20..(1 << 20) + (64 << 10)].fill(0);
    expected[6_291_000..6_291_456].fill(9);
    io(&[
        "read -P 7 1000 70000",
        "read -P 0 200k 100k",
        "read -P 9 6291000 456",
    ]);
    dir.ok(&format!("nbdcopy {} copied", serving.uri));
    let found = dir.read("copied");
    // What a discard leaves is open, but it is zeroes here.
    assert!(
        found == expected,
        "differs at {:?}",
        found.iter().zip(&expected).position(|(a, b)| a != b)
    );
    dir.ok(&format!("nbdinfo --map {}", serving.uri));
    // A filesystem is made, filled and checked by others.
    serving.end();
    std::fs::remove_file(dir.path("copied")).unwrap();
    assert_eq!(dir.names(), names);
    assert!(dir.read("base") == dir.states[0]);
    assert!(dir.ok(&format!("{CHAIN} --cat 0:")) == dir.states[3]);
    dir.write("there", b"x");
    dir.fails(
        &format!("{CHAIN} --nbd unix:sock --overlay there"),
        5,
        &["this file exists"],
    );
}

#[test]
fn a_socket_that_was_left_is_taken_over_and_no_other() {
    let dir = Dir::new();
    let mut killed = dir.serve(&format!("{CHAIN} --nbd unix:sock"));
    killed.kill();
    assert!(dir.path("sock").exists());
    let serving = dir.serve(&format!("{CHAIN} --nbd unix:sock"));
    dir.fails(
        &format!("{CHAIN} --nbd unix:sock"),
        5,
        &["another process listens"],
    );
    dir.ok(&format!("nbdinfo {}", serving.uri));
    serving.end();
    dir.write("sock", b"mine");
    dir.fails(&format!("{CHAIN} --nbd unix:sock"), 5, &["no socket"]);
    assert_eq!(dir.read("sock"), b"mine");
}

#[test]
fn the_tools_are_there() {
    for tool in ["nbdinfo", "nbdcopy", "qemu-img", "qemu-io"] {
        let found = Command::new(tool)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        assert!(
            found.is_ok_and(|status| status.success()),
            "{tool}: cargo xtask test installs it"
        );
    }
}
