//! A peer that means harm: raw bytes to and from the real program, which is watched meanwhile.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lvmsync::session::handshake::GREETING;
use lvmsync::session::message::{Decoded, Hello, Message, decode};

/// The promise of docs/design.md, and what an empty process takes.
const MEMORY_KIB: u64 = (64 + 16) << 10;
const SECONDS: Duration = Duration::from_secs(90);

/// The program under test, its memory watched and its output read while it is fed.
pub struct Peer {
    pub child: Child,
    pub peak_kib: Arc<AtomicU64>,
    pub stdout: thread::JoinHandle<Vec<u8>>,
    pub stderr: thread::JoinHandle<Vec<u8>>,
    pub started: Instant,
}

pub struct Ended {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub peak_kib: u64,
}

impl Peer {
    pub fn start(command: &mut Command) -> Self {
        let command = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let peak_kib = Arc::new(AtomicU64::new(0));
        let (peak, status) = (
            Arc::clone(&peak_kib),
            format!("/proc/{}/status", child.id()),
        );
        // The kernel's own high-water mark, looked at until the process is gone.
        thread::spawn(move || {
            while let Some(kib) = high_water_kib(&status) {
                peak.fetch_max(kib, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(2));
            }
        });
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self {
            child,
            peak_kib,
            stdout: thread::spawn(move || read_all(stdout)),
            stderr: thread::spawn(move || read_all(stderr)),
            started: Instant::now(),
        }
    }

    /// Writes as far as it is read.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(bytes).and_then(|()| stdin.flush()).is_ok()
    }

    /// Waits for its end; `closing` its input first.
    pub fn end(mut self, closing: bool) -> Ended {
        let held = self.child.stdin.take().filter(|_| !closing);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.started.elapsed() > SECONDS {
                self.child.kill().unwrap();
                panic!(
                    "it did not end: {}",
                    String::from_utf8_lossy(&self.stderr.join().unwrap())
                );
            }
            thread::sleep(Duration::from_millis(5));
        };
        drop(held);
        let ended = Ended {
            code: status.code(),
            stdout: self.stdout.join().unwrap(),
            stderr: String::from_utf8_lossy(&self.stderr.join().unwrap()).into_owned(),
            peak_kib: self.peak_kib.load(Ordering::SeqCst),
        };
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        assert!(
            ended.peak_kib < MEMORY_KIB,
            "{} KiB: {}",
            ended.peak_kib,
            ended.stderr
        );
        ended
    }
}

pub fn high_water_kib(status: &str) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

pub fn read_all(mut input: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = input.read_to_end(&mut bytes);
    bytes
}

impl Ended {
    /// What a server said, its greeting and pings left out.
    pub fn said(&self) -> Vec<Message> {
        let mut rest = self.stdout.strip_prefix(GREETING).unwrap();
        let mut said = Vec::new();
        while let Ok(Decoded::Complete { message, consumed }) = decode(rest) {
            said.push(*message);
            rest = &rest[consumed..];
        }
        said.retain(|message| *message != Message::Ping);
        said
    }

    /// The error that a server reported: its code, which is the process's, and its words.
    pub fn reported(&self) -> String {
        match self.said().pop() {
            Some(Message::Error(failure)) => {
                assert_eq!(self.code, Some(failure.code.into()), "{}", failure.message);
                failure.message
            }
            other => panic!("{other:?}, code {:?}: {}", self.code, self.stderr),
        }
    }
}

pub fn bytes(message: &Message) -> Vec<u8> {
    message.encode().unwrap()
}

pub fn hello() -> Vec<u8> {
    bytes(&Message::Hello(Hello::ours(&[])))
}

pub fn data(stream: &[u8]) -> Vec<u8> {
    stream
        .chunks(1 << 18)
        .flat_map(|chunk| bytes(&Message::Data(chunk.to_vec())))
        .collect()
}
