//! A directory with a volume and its deltas, the command, and an export that runs.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lvmsync::change_list::{ChangeList, ChangeListBuilder};
use lvmsync::delta::codec::Compression;
use lvmsync::delta::header::{Header, Source};
use lvmsync::delta::samples::Samples;
use lvmsync::extent::{Extent, Kind};
use lvmsync::volume::memory::MemoryVolume;
use rustix::process::{Pid, Signal, kill_process};

use crate::model::{Noise, header, state, write_delta};

pub(crate) const SIZE: usize = 6 << 20;
const CHUNK: usize = 4096;

/// `base` in the first of `states`; `mon.delta`, `tue.delta` and `wed.delta` lead on; `full.delta` is the first state.
pub(crate) struct Dir {
    directory: tempfile::TempDir,
    pub(crate) states: Vec<Vec<u8>>,
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Dir {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut noise = Noise::new(9);
        let mut first = vec![0; SIZE];
        for chunk in first.chunks_mut(CHUNK) {
            if noise.below(2) == 0 {
                noise.fill(chunk);
            }
        }
        let mut dir = Self {
            directory,
            states: vec![first],
        };
        for (number, name) in ["mon", "tue", "wed"].into_iter().enumerate() {
            let old = dir.states[number].clone();
            let mut new = old.clone();
            let mut builder = ChangeListBuilder::default();
            for _ in 0..100 {
                let chunk = noise.below((SIZE / CHUNK) as u64) as usize;
                let range = chunk * CHUNK..(chunk + 1) * CHUNK;
                builder.push(
                    Extent::new(range.start as u64, CHUNK as u64).unwrap(),
                    Kind::Data,
                );
                match noise.below(3) {
                    0 => new[range].fill(0),
                    _ => noise.fill(&mut new[range]),
                }
            }
            let changes = builder.finish();
            let samples = Samples::take(&MemoryVolume::new(old.clone()), &changes).unwrap();
            let header = header(number, &old, &new, Compression::Lz4);
            let delta = write_delta(&header, &samples, &changes, &new, 1 << 20, Compression::Lz4);
            dir.write(&format!("{name}.delta"), &delta);
            dir.states.push(new);
        }
        let first = &dir.states[0];
        let full = Header {
            source: Source::Full,
            base: None,
            base_size: None,
            target: Some(state(0)),
            ..header(0, first, first, Compression::None)
        };
        let whole = ChangeList::whole(first.len() as u64);
        let none = Samples::default();
        let delta = write_delta(&full, &none, &whole, first, 1 << 20, Compression::None);
        dir.write("full.delta", &delta);
        dir.write("base", first);
        dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The names of what is there.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        let mut command = match first {
            "lvmsync" => Command::new(env!("CARGO_BIN_EXE_lvmsync")),
            other => Command::new(other),
        };
        command
            .current_dir(self.directory.path())
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .args(words)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, line: &str) -> Output {
        let output = self.command(line).output();
        output.unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[track_caller]
    pub(crate) fn ok(&self, line: &str) -> Vec<u8> {
        let output = self.run(line);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}: {stderr}");
        output.stdout
    }

    /// Expects an exit code and words on stderr.
    #[track_caller]
    pub(crate) fn fails(&self, line: &str, code: i32, words: &[&str]) {
        let output = self.run(line);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{line}: {word} is not in {stderr}");
        }
        assert!(output.stdout.is_empty(), "{line}");
    }

    /// Starts an export, which listens when this returns.
    #[track_caller]
    pub(crate) fn serve(&self, line: &str) -> Serving {
        let mut child = self.command(line).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("qemu-img info") {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "{said}");
            said.push_str(&line);
        }
        let first = said.lines().find(|line| line.contains("nbdinfo")).unwrap();
        let uri = first
            .trim()
            .trim_start_matches("nbdinfo ")
            .trim_matches('\'')
            .to_owned();
        Serving { child, stderr, uri }
    }
}

pub(crate) struct Serving {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    pub(crate) uri: String,
}

impl Serving {
    /// Ends it as nothing else does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as Ctrl-C does, and gives what it said since it began to listen.
    #[track_caller]
    pub(crate) fn end(mut self) -> String {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT).unwrap();
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < Duration::from_secs(8), "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(0), "{said}");
        said
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
