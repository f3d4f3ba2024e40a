//! A directory with volumes, deltas between their states and a program that is run on them; with small deltas, and with
//! large ones that can be cut in the middle.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test, and no test needs all of it"
)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use lvmsync::change_list::ChangeList;
use lvmsync::changes::cow::Layout;
use lvmsync::changes::cow_build::store_of;
use lvmsync::delta::codec::Codec;
use lvmsync::delta::header::{Header, ORIGIN_RUN, Planned, Source, State};
use lvmsync::delta::samples::Samples;
use lvmsync::delta::writer::DeltaWriter;
use lvmsync::extent::{Change, Extent, Kind};
use lvmsync::volume::memory::MemoryVolume;

pub const CHUNK: usize = 4096;

pub struct Dir {
    pub directory: tempfile::TempDir,
}

impl Dir {
    /// `base.img` and its copy `copy.img`, `new.img`, which differs in all chunks but some, and `store.img`.
    pub fn with(chunks: usize) -> Self {
        let dir = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let base = noise(chunks * CHUNK, "base");
        let mut new = base.clone();
        let changed: Vec<usize> = (0..chunks).filter(|chunk| chunk % 16 != 5).collect();
        for chunk in &changed {
            new[chunk * CHUNK..][..CHUNK]
                .iter_mut()
                .for_each(|byte| *byte ^= 0x3c);
        }
        let entries: Vec<(u64, &[u8])> = changed
            .iter()
            .map(|chunk| (*chunk as u64, &[][..]))
            .collect();
        let store = store_of(Layout::new(CHUNK as u64).unwrap(), entries).unwrap();
        for (name, bytes) in [
            ("base.img", &base),
            ("copy.img", &base),
            ("new.img", &new),
            ("store.img", &store),
        ] {
            fs::write(dir.path(name), bytes).unwrap();
        }
        dir
    }

    /// The states s0, s1, … of one volume of a mebibyte, each with a delta `sN.delta` from the one before, which
    /// names them, and `copy.img` in state s0.
    pub fn chain(states: usize) -> (Self, Vec<Vec<u8>>) {
        let dir = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let mut contents = vec![noise(1 << 20, "s0")];
        for number in 1..=states {
            let mut next = contents[number - 1].clone();
            let chunks = [number * 7, number * 7 + 1, 100 + number * 3];
            for chunk in chunks {
                noise(CHUNK, &format!("{number} {chunk}"))
                    .swap_with_slice(&mut next[chunk * CHUNK..][..CHUNK]);
            }
            let delta = delta(number, &contents[number - 1], &next, &chunks);
            fs::write(dir.path(&format!("s{number}.delta")), delta).unwrap();
            contents.push(next);
        }
        fs::write(dir.path("copy.img"), &contents[0]).unwrap();
        (dir, contents)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lvmsync"));
        command
            .current_dir(self.directory.path())
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .args(line.split_whitespace())
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{line}: {}",
            text(&output.stderr)
        );
        text(&output.stdout) + &text(&output.stderr)
    }

    #[track_caller]
    pub fn fails(&self, line: &str, code: i32, words: &[&str]) -> String {
        let output = self.run(line);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        for word in words {
            assert!(said.contains(word), "{line}: no `{word}` in: {said}");
        }
        said
    }

    /// What a command says as JSON.
    #[track_caller]
    pub fn json(&self, line: &str) -> serde_json::Value {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Deltas that are kept until the rest of them comes.
    pub fn spools(&self) -> usize {
        fs::read_dir(self.path("state/spool")).map_or(0, Iterator::count)
    }

    /// What `state show --json` says of one destination.
    pub fn state(&self, name: &str) -> serde_json::Value {
        let output = self.run(&format!("state show {name} --json"));
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        all[0].clone()
    }

    /// A stand-in for ssh: `script` runs before the far end does, whose command line is `$@`.
    pub fn fake_ssh(&self, script: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path("fake-ssh");
        fs::write(&path, format!("#!/bin/sh\nshift\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        format!(
            "-e ./fake-ssh --remote-path {}",
            env!("CARGO_BIN_EXE_lvmsync")
        )
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn noise(length: usize, seed: &str) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(seed.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

pub fn state(number: usize) -> Option<State> {
    Some(State {
        id: format!("lvm:s{number}"),
        name: format!("vg/s{number}"),
    })
}

/// From state `number - 1`.
pub fn delta(number: usize, base: &[u8], target: &[u8], chunks: &[usize]) -> Vec<u8> {
    delta_to((state(number), None), number, base, target, chunks)
}

/// To what is no state of its own, as a live origin: `run` tells one from another.
pub fn nameless(run: &str, number: usize, states: [&[u8]; 2], chunks: &[usize]) -> Vec<u8> {
    let run = Some(format!("{ORIGIN_RUN}{run}"));
    delta_to((None, run), number, states[0], states[1], chunks)
}

/// From state `number - 1` to state `number`, which are as long.
fn header(number: usize, target: &[u8], changes: &ChangeList) -> Header {
    Header {
        volume_size: target.len() as u64,
        base_size: Some(target.len() as u64),
        base: state(number - 1),
        target: state(number),
        source: Source::Cow,
        granularity: CHUNK as u64,
        created: 1_700_000_000,
        codec: "none".to_owned(),
        program: "test".to_owned(),
        planned: Planned::default(),
        list: Some(changes.digest()),
        run: None,
        undo_of: None,
        undo_for: None,
        from_offset: 0,
        required_features: vec![],
        features: vec![],
    }
}

fn delta_to(
    (to, run): (Option<State>, Option<String>),
    number: usize,
    base: &[u8],
    target: &[u8],
    chunks: &[usize],
) -> Vec<u8> {
    let extent = |chunk: &usize| Extent::new((chunk * CHUNK) as u64, CHUNK as u64).unwrap();
    let change = |chunk: &usize| Change {
        extent: extent(chunk),
        kind: Kind::Data,
    };
    let changes: ChangeList = chunks.iter().map(change).collect();
    let header = Header {
        base_size: Some(base.len() as u64),
        target: to,
        run,
        ..header(number, target, &changes)
    };
    let samples = Samples::take(&MemoryVolume::new(base.to_vec()), &changes).unwrap();
    let mut writer = DeltaWriter::new(Vec::new(), &header, &samples).unwrap();
    for chunk in chunks {
        let data = &target[chunk * CHUNK..][..CHUNK];
        writer.data(extent(chunk), Codec::None, data).unwrap();
    }
    writer.finish().unwrap().1
}

/// A filter that passes on so many bytes as they come, and then ends. (`head` waits until it has a block.)
pub fn only(bytes: usize) -> String {
    format!(
        "perl -e '$left = {bytes}; while ($left > 0 and $got = sysread(STDIN, $data, $left)) \
         {{ syswrite(STDOUT, $data); $left -= $got }}'"
    )
}

/// Cut in the middle by a connection that ends, without retries.
pub fn cut(dir: &Dir, options: &str) {
    let ssh = dir.fake_ssh(&format!("{} | sh -c \"$*\"", only(30_000_000)));
    let line =
        format!("send --from cow:store.img new.img far:copy.img {options} --retries 0 {ssh}");
    let here = dir.path("copy.img").display().to_string();
    dir.fails(
        &line.replace("far:copy.img", &format!("far:{here}")),
        7,
        &[],
    );
}

pub const MIB: usize = 1 << 20;

/// A delta from `base` (none: a full copy) to state `number` whose frames of 1 MiB are `frames` of `target`.
pub fn large_delta(
    base: Option<&[u8]>,
    number: usize,
    target: &[u8],
    frames: std::ops::Range<usize>,
) -> Vec<u8> {
    let extent = |frame: usize| Extent::new((frame * MIB) as u64, MIB as u64).unwrap();
    let kind = Kind::Data;
    let changes: ChangeList = frames
        .clone()
        .map(|frame| Change {
            extent: extent(frame),
            kind,
        })
        .collect();
    let header = Header {
        base_size: base.map(|base| base.len() as u64),
        base: base.and_then(|_| state(number - 1)),
        source: if base.is_some() {
            Source::Cow
        } else {
            Source::Full
        },
        ..header(number, target, &changes)
    };
    let samples = base.map_or_else(Samples::default, |base| {
        Samples::take(&MemoryVolume::new(base.to_vec()), &changes).unwrap()
    });
    let mut writer = DeltaWriter::new(Vec::new(), &header, &samples).unwrap();
    for frame in frames {
        let data = &target[frame * MIB..][..MIB];
        writer.data(extent(frame), Codec::None, data).unwrap();
    }
    writer.finish().unwrap().1
}

/// `copy.img` of 24 MiB in state s0; `s1.delta`, which changes its first 22 MiB, and `cut.delta`, its first 20.
pub fn large_chain() -> (Dir, Vec<u8>, Vec<u8>) {
    let dir = Dir {
        directory: tempfile::tempdir().unwrap(),
    };
    let base = noise(24 * MIB, "s0");
    let mut target = noise(24 * MIB, "s1");
    target[22 * MIB..].copy_from_slice(&base[22 * MIB..]);
    let delta = large_delta(Some(&base), 1, &target, 0..22);
    fs::write(dir.path("cut.delta"), &delta[..20 * MIB]).unwrap();
    fs::write(dir.path("s1.delta"), delta).unwrap();
    fs::write(dir.path("copy.img"), &base).unwrap();
    (dir, base, target)
}
