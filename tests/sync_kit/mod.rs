//! Two ends of a sync, here or with a session between them, and pairs of volumes for them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use proptest::prelude::*;
use serde_json::Value;

use crate::record_kit::noise;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_lvmsync");

/// Where the two ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Here,
    Push,
    Pull,
}

pub(crate) const WAYS: [Way; 3] = [Way::Here, Way::Push, Way::Pull];

/// Two ends in one directory.
pub(crate) struct Ends {
    directory: tempfile::TempDir,
    way: Way,
}

impl Ends {
    pub(crate) fn new(way: Way) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ends = Self { directory, way };
        ends.shell("exec sh -c \"$*\"");
        ends
    }

    /// What stands for ssh from now on: the command is in `$*`.
    pub(crate) fn shell(&self, script: &str) {
        // Another file: the one before may be running still.
        let shell = self.path("shell.new");
        fs::write(&shell, format!("#!/bin/sh\nshift\n{script}\n")).unwrap();
        fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(shell, self.path("shell")).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn run(&self, verb: &str, more: &[&str]) -> Output {
        self.command(verb, more).output().unwrap()
    }

    pub(crate) fn command(&self, verb: &str, more: &[&str]) -> Command {
        let [source, destination] =
            ["source", "destination"].map(|name| self.path(name).display().to_string());
        let far = |path: &str, is_far: bool| {
            if is_far {
                format!("host:{path}")
            } else {
                path.to_owned()
            }
        };
        let mut command = Command::new(PROGRAM);
        command.arg(verb);
        command.arg(far(&source, self.way == Way::Pull));
        command.arg(far(&destination, self.way == Way::Push));
        if self.way != Way::Here {
            command.args(["-e", self.path("shell").to_str().unwrap()]);
            command.args(["--remote-path", PROGRAM]);
        }
        command.args(more);
        command.env("LVMSYNC_STATE_DIR", self.path("state"));
        command
    }

    /// Syncs, and sees that all is as it should be; what it said in JSON.
    #[track_caller]
    pub(crate) fn sync(&self, more: &[&str]) -> Value {
        let output = self.run("sync", &[&["--json"], more].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        self.is_equal();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[track_caller]
    pub(crate) fn is_equal(&self) {
        let [source, destination] = ["source", "destination"].map(|n| fs::read(self.path(n)));
        assert!(source.unwrap() == destination.unwrap(), "not equal");
        let output = Command::new(PROGRAM)
            .args(["state", "show", "--json"])
            .arg(self.path("destination"))
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .output()
            .unwrap();
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(all[0]["status"], "complete", "{all}");
    }
}

/// How the destination came about.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) source: Vec<u8>,
    pub(crate) destination: Vec<u8>,
}

/// Not every byte.
impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [source, destination] = [self.source.len(), self.destination.len()];
        write!(f, "a pair of {source} and {destination} bytes")
    }
}

pub(crate) fn pair() -> impl Strategy<Value = Pair> {
    let size = prop_oneof![Just(0usize), 1..5000usize, 1..3_500_000usize];
    let change = (any::<prop::sample::Index>(), 1usize..300_000, 0u8..6);
    (
        size,
        prop::collection::vec(change, 0..8),
        0u8..8,
        0usize..200_000,
    )
        .prop_map(|(size, changes, kind, by)| {
            let mut source = noise(size, "source");
            let mut destination = source.clone();
            for (at, length, how) in changes {
                if size == 0 {
                    continue;
                }
                let start = at.index(size);
                let range = start..(start + length).min(size);
                match how {
                    0 => destination[start] ^= 1,
                    1 => source[range].fill(0),
                    2 => destination[range].fill(0),
                    3 => destination[range.clone()].copy_from_slice(&noise(range.len(), "other")),
                    4 => {
                        source[range.clone()].fill(0);
                        destination[range].fill(0);
                    }
                    _ => destination[size - 1] ^= 0x80,
                }
            }
            match kind {
                // Shifted, shorter, longer, and nothing alike.
                0 => destination.rotate_left(by.min(size)),
                1 => destination.truncate(size.saturating_sub(by)),
                2 => destination.extend(noise(by, "tail")),
                3 => destination = noise(size, "nothing alike"),
                _ => {}
            }
            Pair {
                source,
                destination,
            }
        })
}
