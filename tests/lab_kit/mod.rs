//! What the lab tests of whole commands share: running lvmsync, looking at volumes and at what it left behind.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test, and each test file uses its part of this"
)]

pub(crate) mod eras;
pub(crate) mod live;
pub(crate) mod thin;
pub(crate) mod two_rounds;

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lab::{Guest, Setup};
use lvmsync::volume::{ReadAt, Volume};

/// The program under test.
pub(crate) const LVMSYNC: &str = env!("CARGO_BIN_EXE_lvmsync");

/// A guest with lvmsync in the PATH of all its hosts. Full counts may take longer, unless a test says how long.
pub(crate) fn setup() -> Setup {
    let setup = Setup::new().program(LVMSYNC);
    match long() {
        true => setup.time_limit(Duration::from_secs(1200)),
        false => setup,
    }
}

/// Full counts were asked for.
pub(crate) fn long() -> bool {
    std::env::var_os("LVMSYNC_LONG").is_some_and(|value| value == "1")
}

/// The seed of everything random in one test; `LVMSYNC_SEED` repeats one.
pub(crate) fn seed(guest: &Guest) -> u64 {
    let seed = any_seed();
    guest.announce(&format!("LVMSYNC_SEED={seed}"));
    seed
}

/// The same for who drives guests from outside; to be said with what fails.
pub(crate) fn any_seed() -> u64 {
    let asked = std::env::var("LVMSYNC_SEED");
    let seed = asked.ok().and_then(|seed| seed.parse().ok());
    seed.unwrap_or_else(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
        u64::from_str_radix(&text[..8], 16).unwrap()
    })
}

/// Runs lvmsync in one directory.
pub(crate) struct Tool {
    directory: PathBuf,
}

/// How a run ended and what it said.
pub(crate) struct Run {
    arguments: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Tool {
    /// In the scratch directory of `guest`.
    pub(crate) fn new(guest: &Guest) -> Self {
        Self {
            directory: guest.scratch().to_owned(),
        }
    }

    /// Runs `arguments`, separated by blanks, to the end.
    pub(crate) fn run(&self, arguments: &str) -> Run {
        let output = self.command(arguments).output().unwrap();
        Run::new(arguments, &output)
    }

    /// Starts `arguments`; nobody reads what it says before [`Run::of`] does.
    pub(crate) fn start(&self, arguments: &str) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(LVMSYNC);
        command.args(arguments.split_whitespace());
        // Not in the host's own directory, which a guest shares.
        command.env("LVMSYNC_STATE_DIR", self.path("state"));
        command.current_dir(&self.directory).stdin(Stdio::null());
        command
    }

    /// Gives `volume` another content, of which nothing is on record.
    pub(crate) fn reset(&self, volume: &str, content: &[u8]) {
        write(volume, content, 0);
        self.run(&format!("state forget --force {volume}")).ok();
    }

    /// A path in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The changed extents by `diff --json`, and the size that it tells.
    pub(crate) fn diff(&self, old: &str, new: &str) -> (u64, Vec<(u64, u64)>) {
        let run = self.run(&format!("diff --from {old} {new} --json")).ok();
        let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        let extents = json["extents"].as_array().unwrap().iter();
        let extents = extents.map(|extent| {
            assert_eq!(extent["kind"], "data");
            (
                extent["offset"].as_u64().unwrap(),
                extent["length"].as_u64().unwrap(),
            )
        });
        (json["volume_size"].as_u64().unwrap(), extents.collect())
    }

    /// Files that a run should have taken away. The undo of a run that failed is not one of them.
    pub(crate) fn partial_files(&self) -> Vec<String> {
        let names = fs::read_dir(&self.directory).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        let left = |name: &String| name.ends_with(".partial") && !name.starts_with("undo");
        names.filter(left).collect()
    }
}

impl Run {
    pub(crate) fn new(arguments: &str, output: &Output) -> Self {
        Self {
            arguments: arguments.to_owned(),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The end of what [`Tool::start`] started.
    pub(crate) fn of(child: Child) -> Self {
        Self::new("(started)", &child.wait_with_output().unwrap())
    }

    /// It succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.ends(0, &[])
    }

    /// It ended with `code`, and stderr has all of `words`.
    #[track_caller]
    pub(crate) fn ends(self, code: i32, words: &[&str]) -> Self {
        let missing: Vec<_> = words
            .iter()
            .filter(|words| !self.stderr.contains(**words))
            .collect();
        assert!(
            self.code == Some(code) && missing.is_empty(),
            "lvmsync {}\n--- exit code {:?}, expected {code}; stderr misses {missing:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.arguments,
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }
}

/// Everything on a volume or in a file. Devices are read directly: no page cache can lie.
pub(crate) fn content(path: impl AsRef<Path>) -> Vec<u8> {
    let volume = Volume::open(&path).unwrap();
    let mut bytes = vec![0; volume.size_bytes() as usize];
    volume.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The first bytes where two contents differ, and how many blocks of 4 KiB do.
pub(crate) fn wrong_blocks(found: &[u8], expected: &[u8]) -> usize {
    let common = found
        .chunks(4096)
        .zip(expected.chunks(4096))
        .filter(|(found, expected)| found != expected)
        .count();
    common + found.len().abs_diff(expected.len()).div_ceil(4096)
}

/// Fails unless `found` holds exactly `expected`.
#[track_caller]
pub(crate) fn assert_same(found: impl AsRef<Path>, expected: &[u8], when: &str) {
    let bytes = content(&found);
    let wrong = wrong_blocks(&bytes, expected);
    assert_eq!(
        wrong,
        0,
        "{}: {when}: wrong blocks of 4 KiB; sizes {} and {}",
        found.as_ref().display(),
        bytes.len(),
        expected.len()
    );
}

/// Writes to the device itself, past the page cache where it can.
pub(crate) fn write(path: impl AsRef<Path>, bytes: &[u8], offset: u64) {
    let path = path.as_ref();
    let start = Instant::now();
    // LVM makes the links of a group anew whenever a volume of it is changed.
    let file = loop {
        match fs::File::options().write(true).open(path) {
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && start.elapsed() < Duration::from_secs(5) =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => break opened.unwrap(),
        }
    };
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for piece in bytes.chunks_mut(4) {
            let word = (self.below(1 << 32) as u32).to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
        bytes
    }
}

/// The chunks in a classic snapshot's exception table and its chunk size, read from the store at `path` by
/// other code than lvmsync's.
pub(crate) fn exceptions(path: &str) -> (u64, BTreeSet<u64>) {
    let store = content(path);
    let word = |at: usize| u64::from_le_bytes(store[at..at + 8].try_into().unwrap());
    assert_eq!(&store[..4], b"SnAp");
    let chunk = 512 * u32::from_le_bytes(store[12..16].try_into().unwrap()) as usize;
    let mut chunks = BTreeSet::new();
    let mut area = chunk;
    'areas: while area < store.len() {
        for entry in (area..area + chunk).step_by(16) {
            if word(entry + 8) == 0 {
                break 'areas;
            }
            chunks.insert(word(entry));
        }
        area += chunk * (chunk / 16 + 1);
    }
    (chunk as u64, chunks)
}

/// Running lvmsyncs and their guards, other than zombies: their ids with their command lines.
pub(crate) fn lvmsync_processes() -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let mut name = String::new();
        let open = fs::File::open(path.join("comm"));
        if open
            .and_then(|mut file| file.read_to_string(&mut name))
            .is_err()
            || !["lvmsync", "lvmsync-guard"].contains(&name.trim())
        {
            continue;
        }
        // A process whose command line is empty has ended and waits for its parent.
        let line = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        if !line.is_empty() {
            found.push(format!("{}: {}", path.display(), line.replace('\0', " ")));
        }
    }
    found
}

/// How often the device-mapper device `name` is open.
pub(crate) fn open_count(guest: &Guest, name: &str) -> String {
    guest
        .sh(&format!("dmsetup info -c --noheadings -o open {name}"))
        .trim()
        .to_owned()
}
