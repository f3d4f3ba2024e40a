//! Sending to another host over ssh, and everything that can be wrong with it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use lab::Guest;
use lab_kit::{
    Random, Run, Tool, assert_same, content, lvmsync_processes, open_count, setup, write,
};
use rustix::process::{Pid, Signal, kill_process};

/// Small and half empty, because ssh is slow in the lab.
const SIZE: usize = 4 << 20;

/// `vg/data` with `s1` and `s2` here; `there/copy`, in the old state, for the host `far`.
fn states(guest: &Guest) -> (Vec<u8>, Vec<u8>) {
    let mut random = Random::new(17);
    guest.volume_group("vg", 0);
    guest.sh(&format!(
        "vgcreate -qq --yes -s 1M there {}",
        guest.disk(1).display()
    ));
    guest.volume("vg", "data", "4M");
    guest.volume("there", "copy", "4M");
    write("/dev/vg/data", &random.bytes(SIZE / 2), 0);
    guest.sh("lvcreate -qq -s -c 16k -L 8M -n s1 vg/data 2>&1");
    write("/dev/vg/data", &random.bytes(SIZE / 4), SIZE as u64 / 4);
    write("/dev/vg/data", &random.bytes(9000), SIZE as u64 - 9000);
    guest.sh("lvcreate -qq -s -c 16k -L 8M -n s2 vg/data 2>&1");
    let old = content("/dev/vg/s1");
    write("/dev/there/copy", &old, 0);
    (old, content("/dev/vg/s2"))
}

/// A script that stands for a far lvmsync.
fn script(tool: &Tool, name: &str, text: &str) -> String {
    let path = tool.path(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// Both hosts share one process table, so this looks at both ends. The far end may take a moment.
fn nothing_left(guest: &Guest, tool: &Tool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !lvmsync_processes().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", lvmsync_processes());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(tool.partial_files(), [""; 0]);
    for device in ["vg-s1", "vg-s2", "there-copy"] {
        assert_eq!(open_count(guest, device), "0", "{device}");
    }
}

#[test]
fn another_host_gets_every_byte() {
    let setup = setup().disk("64M").disk("64M");
    lab::test("another_host_gets_every_byte", setup, |guest| {
        let tool = Tool::new(guest);
        let (old, new) = states(guest);
        guest.host("far");
        let far_undo = tool.path("far undo").display().to_string();

        write("/dev/there/copy", &[0; SIZE], 0);
        tool.run("send vg/s1 far:there/copy").ok();
        assert_same("/dev/there/copy", &old, "first copy");
        let run = tool
            .run("send --from vg/s1 vg/s2 far:there/copy --progress json --json -z zstd")
            .ok();
        assert_same("/dev/there/copy", &new, "increment");
        let last = run
            .stderr
            .lines()
            .rev()
            .find(|line| line.starts_with('{'))
            .unwrap();
        let progress: serde_json::Value = serde_json::from_str(last).unwrap();
        assert_eq!(progress["bytes_done"], progress["bytes_total"], "{last}");
        let summary: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(summary["volume_size"], SIZE);

        // The undo is written over there; a blank in its name goes through the far shell.
        write("/dev/there/copy", &old, 0);
        let mut send = tool.command("send --from vg/s1 vg/s2 far:there/copy --undo");
        Run::new("send --undo", &send.arg(&far_undo).output().unwrap()).ok();
        assert_same("/dev/there/copy", &new, "with an undo");
        let apply = format!("ssh far lvmsync apply \"'{far_undo}'\" there/copy");
        guest.sh(&format!("{apply} 2>&1"));
        assert_same("/dev/there/copy", &old, "undone at the far end");

        // The original's command line, and through a pipe.
        tool.run("vg/s1 far:/dev/there/copy -r vg/s2").ok();
        assert_same("/dev/there/copy", &new, "the original's words");
        write("/dev/there/copy", &old, 0);
        guest.sh(&format!(
            "{} send --from vg/s1 vg/s2 --stdout 2>log | ssh far lvmsync apply - there/copy 2>log2",
            lab_kit::LVMSYNC
        ));
        assert_same("/dev/there/copy", &new, "through a pipe");

        // The far end's refusals are ours, with its own words; nothing is written.
        write("/dev/there/copy", &vec![7; SIZE], 0);
        tool.run("send --from vg/s1 vg/s2 far:there/copy")
            .ends(5, &["far: ", "--force"]);
        tool.run("send --from vg/s1 vg/s2 far:there/none")
            .ends(7, &["no logical volume none"]);
        guest.volume("there", "small", "1M");
        tool.run("send vg/s2 far:there/small")
            .ends(5, &["far: ", "--allow-smaller"]);
        tool.run("send vg/s2 far:there/small -n")
            .ends(5, &["--allow-smaller"]);
        // The far end has a mount namespace of its own: it cannot see the mount, only that there is one.
        guest.sh("mkfs.ext4 -q /dev/there/small; mount -o ro /dev/there/small /mnt");
        tool.run("send vg/s2 far:there/small --allow-smaller")
            .ends(5, &["in use"]);
        guest.sh("umount /mnt");
        assert_same("/dev/there/copy", &vec![7; SIZE], "refused");
        nothing_left(guest, &tool);
    });
}

#[test]
fn a_far_end_that_cannot_be_used() {
    let setup = setup().disk("64M").disk("64M");
    lab::test("a_far_end_that_cannot_be_used", setup, |guest| {
        let tool = Tool::new(guest);
        let (old, new) = states(guest);
        let far = guest.host("far");
        let send = "send --from vg/s1 vg/s2 far:/dev/there/copy";

        far.stop();
        tool.run(send)
            .ends(7, &["far: ", "cannot connect", "refused"]);
        far.start();
        far.link_down();
        let mut command = tool.command(send);
        let run = command
            .args(["-e", "ssh -o ConnectTimeout=1"])
            .output()
            .unwrap();
        Run::new("host down", &run).ends(7, &["far: ", "cannot connect"]);
        far.link_up();
        tool.run("send vg/s2 nowhere.invalid:x")
            .ends(7, &["nowhere.invalid", "cannot connect"]);
        tool.run(&format!("{send} -e /no/such/ssh"))
            .ends(7, &["/no/such/ssh"]);
        tool.run("send vg/s2 -- -oProxyCommand=true:x").ends(2, &[]);

        // Not there, something else, or it dies at once.
        tool.run(&format!("{send} --remote-path /opt/none/lvmsync"))
            .ends(
                7,
                &[
                    "was not found there",
                    "--remote-path",
                    "/opt/none/lvmsync: No such file",
                ],
            );
        let chatty = script(
            &tool,
            "chatty",
            "#!/bin/sh\necho Welcome to far\nexec cat > /dev/null\n",
        );
        tool.run(&format!("{send} --remote-path {chatty}"))
            .ends(7, &["Welcome to far"]);
        let broken = script(
            &tool,
            "broken",
            "#!/bin/sh\necho out of cheese >&2\nexit 9\n",
        );
        tool.run(&format!("{send} --remote-path {broken}"))
            .ends(7, &["out of cheese", "code 9"]);
        assert_same("/dev/there/copy", &old, "never reached");

        // The original: it takes `serve` for a snapshot. With --compat it gets a stream of its own version.
        let original = script(&tool, "original", ORIGINAL);
        tool.run(&format!("{send} --remote-path {original}"))
            .ends(7, &["original", "--compat"]);
        assert_same("/dev/there/copy", &old, "not understood");
        tool.run(&format!("{send} --remote-path {original} --compat"))
            .ends(0, &["checks nothing"]);
        assert_same("/dev/there/copy", &new, "--compat");
        let failing = script(
            &tool,
            "failing",
            "#!/bin/sh\nhead -c 100 > /dev/null\necho no thanks >&2\nexit 1\n",
        );
        tool.run(&format!("{send} --remote-path {failing} --compat"))
            .ends(7, &["no thanks", "code 1"]);
        nothing_left(guest, &tool);
    });
}

/// What the original does, as far as a sender can tell: a `--apply -` that takes PROTO[3] and nothing else, the
/// words for a missing destination, and exit code 1 for every error.
const ORIGINAL: &str = r#"#!/usr/bin/perl
use strict;
unless (@ARGV >= 3 && $ARGV[0] eq '--apply' && $ARGV[1] eq '-') {
    print STDERR "FATAL ERROR: No destination specified.\n";
    exit 1;
}
my $line = <STDIN>;
if ($line ne "lvmsync PROTO[3]\n") { print STDERR "FATAL ERROR: Handshake failed\n"; exit 1; }
open my $out, '+<:raw', $ARGV[-1] or die;
binmode STDIN;
while ((my $got = read STDIN, my $header, 12)) {
    die 'short header' if $got != 12;
    my ($high, $low, $length) = unpack 'NNN', $header;
    die 'short data' if $length != read STDIN, my $data, $length;
    seek $out, $high * 2**32 + $low, 0 or die;
    print $out $data or die;
}
close $out or die;
"#;

#[test]
fn a_far_end_that_fails_in_the_middle() {
    let setup = setup().disk("64M").disk("64M");
    lab::test("a_far_end_that_fails_in_the_middle", setup, |guest| {
        let tool = Tool::new(guest);
        let (old, new) = states(guest);
        let far = guest.host("far");
        let undo = tool.path("undo");
        let slowly = format!(
            "send --from vg/s1 vg/s2 far:there/copy --bwlimit 200k --retries 0 --undo {}",
            undo.display()
        );
        let far_process = || {
            lvmsync_processes()
                .into_iter()
                .find(|line| line.contains(" serve"))
                .map(|line| {
                    let id = line.trim_start_matches("/proc/").split(':').next().unwrap();
                    Pid::from_raw(id.parse().unwrap()).unwrap()
                })
        };
        let in_the_middle = || {
            let deadline = Instant::now() + Duration::from_secs(15);
            while !(far_process().is_some() && undo.with_extension("partial").exists()) {
                assert!(Instant::now() < deadline, "it never got there");
                std::thread::sleep(Duration::from_millis(20));
            }
            std::thread::sleep(Duration::from_millis(300));
        };
        let undone = || {
            // SIGKILL leaves one without its end. Where the disk had another name, no record says what it is good
            // for.
            if undo.with_extension("partial").exists() {
                tool.run("apply --unfinished undo.partial there/copy --state-dir /var/lib/lvmsync")
                    .ok();
            }
            let _ = fs::remove_file(undo.with_extension("partial"));
            assert_same("/dev/there/copy", &old, "as it was");
        };

        // The far lvmsync is killed, asked to stop, and we are: the other end always notices.
        let child = tool.start(&slowly);
        in_the_middle();
        kill_process(far_process().unwrap(), Signal::KILL).unwrap();
        Run::of(child).ends(7, &["far: ", "the connection was lost"]);
        undone();
        nothing_left(guest, &tool);

        let child = tool.start(&slowly);
        in_the_middle();
        kill_process(far_process().unwrap(), Signal::TERM).unwrap();
        Run::of(child).ends(7, &["far: interrupted"]);
        nothing_left(guest, &tool);
        undone();

        let child = tool.start(&slowly);
        in_the_middle();
        let id = i32::try_from(child.id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::INT).unwrap();
        Run::of(child).ends(130, &["interrupted"]);
        nothing_left(guest, &tool);
        undone();

        // The far disk fails: code 1 and its words are the far end's.
        guest.sh("modprobe dm-flakey
             printf '0 2560 linear /dev/there/copy 0\\n2560 512 flakey /dev/there/copy 2560 0 1000 1 error_writes\\n3072 5120 linear /dev/there/copy 3072\\n' > table
             dmsetup create bad < table");
        let bad = format!(
            "send --from vg/s1 vg/s2 far:/dev/mapper/bad --undo {}",
            undo.display()
        );
        tool.run(&bad).ends(
            7,
            &[
                "far: ",
                "cannot write",
                "/dev/mapper/bad",
                "Input/output error",
                "partly written",
            ],
        );
        assert_eq!(open_count(guest, "bad"), "0");
        assert!(undo.with_extension("partial").exists());
        assert!(content("/dev/there/copy") != old);
        // Mended, it is taken back under the name that it had.
        guest.sh("dmsetup suspend bad
             dmsetup reload bad --table '0 8192 linear /dev/there/copy 0'
             dmsetup resume bad");
        tool.run("apply undo.partial /dev/mapper/bad --state-dir /var/lib/lvmsync")
            .ok();
        guest.sh("dmsetup remove --retry bad");
        nothing_left(guest, &tool);
        undone();

        // A bad line makes it slow, not wrong.
        far.slow(Duration::from_millis(10), 1.0);
        tool.run("send --from vg/s1 vg/s2 far:there/copy -z lz4")
            .ok();
        far.fast();
        assert_same("/dev/there/copy", &new, "delay and loss");
        nothing_left(guest, &tool);
    });
}
