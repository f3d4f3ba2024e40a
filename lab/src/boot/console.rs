//! A guest's console: kept whole in memory for whoever waits for a word, written to the log, and shown, if wanted,
//! without what the kernel says before and after the job.

use crate::error::{Result, While};
use std::fs::{File, OpenOptions};
use std::io::{PipeReader, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The init script's words around the job.
const UP: &[u8] = b"lab: up";
const DOWN: &[u8] = b"lab: down";

#[derive(Debug)]
pub(super) struct Console {
    text: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Console {
    pub(super) fn listen(mut reader: PipeReader, log: &Path, show: bool) -> Result<Self> {
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .during(|| format!("cannot open {}", log.display()))?;
        let text = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&text);
        let thread = std::thread::spawn(move || {
            let mut view = show.then(View::default);
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut chunk) {
                // The console is a terminal and ends its lines like one.
                let bytes: Vec<u8> = chunk[..n].iter().copied().filter(|&b| b != b'\r').collect();
                write(&mut log, &bytes);
                shared
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&bytes);
                if let Some(view) = &mut view {
                    write_out(&view.pass(&chunk[..n]));
                }
            }
        });
        Ok(Self { text, thread })
    }

    pub(super) fn has_shown(&self, text: &str) -> bool {
        let shown = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        shown
            .windows(text.len().max(1))
            .any(|window| window == text.as_bytes())
    }

    /// Waits for the last word.
    pub(super) fn finish(self) {
        let _ = self.thread.join();
    }
}

/// A log that cannot be written is no reason to stop a test.
fn write(log: &mut File, bytes: &[u8]) {
    let _ = log.write_all(bytes);
}

fn write_out(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// Passes on what is between the two words, at once and not line by line: progress bars have no line ends.
#[derive(Default)]
struct View {
    inside: bool,
    line: Vec<u8>,
    passed: usize,
}

impl View {
    fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            if self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
            match (self.inside, self.line.as_slice()) {
                (false, UP) => self.inside = true,
                (true, DOWN) => self.inside = false,
                (true, line) => {
                    out.extend_from_slice(&line[self.passed.min(line.len())..]);
                    out.push(b'\n');
                }
                (false, _) => {}
            }
            self.line.clear();
            self.passed = 0;
        }
        if self.inside && !DOWN.starts_with(&self.line) && self.line.last() != Some(&b'\r') {
            out.extend_from_slice(&self.line[self.passed..]);
            self.passed = self.line.len();
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::View;

    #[test]
    fn shows_the_job_alone() {
        let mut view = View::default();
        assert_eq!(view.pass(b"kernel\r\nlab: up\r\nhel"), b"hel");
        assert_eq!(view.pass(b"lo\r"), b"");
        assert_eq!(view.pass(b"\nla"), b"lo\n");
        assert_eq!(view.pass(b"st\rbar"), b"last\rbar");
        assert_eq!(view.pass(b"\r\nlab: down\r\nHalting.\r\n"), b"\n");
    }
}
