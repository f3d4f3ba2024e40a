//! Relays what the far end prints, line by line, and keeps the end of it for an error message.
//!
//! Guarantees: a line is shown as soon as it is complete; a line without end takes bounded memory; the
//! last 16 KiB are kept; a flood of lines is not shown to its end; waiting for the end of the output is
//! bounded, because a process that outlives ssh may hold it open.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::remote::OnLine;
use super::text::{sanitise, sanitise_bytes};

/// What is kept for an error message.
const KEPT_BYTES: usize = 16 << 10;
/// A longer line is shown in pieces.
const MAX_LINE_BYTES: u64 = 4 << 10;

/// So many lines of a stream are shown; the end of what follows is still kept for an error message.
const MAX_LINES: u32 = 5000;

/// Relays any number of streams to one listener.
pub(super) struct Relay {
    prefix: String,
    shared: Arc<Shared>,
    /// Each hangs up when its stream has ended.
    running: Vec<Receiver<()>>,
}

struct Shared {
    on_line: Mutex<OnLine>,
    kept: Mutex<VecDeque<u8>>,
}

impl Relay {
    /// Lines go to `on_line` as `host: text`.
    pub(super) fn new(host: &str, on_line: OnLine) -> Self {
        let shared = Shared {
            on_line: Mutex::new(on_line),
            kept: Mutex::default(),
        };
        Self {
            prefix: sanitise(host),
            shared: Arc::new(shared),
            running: Vec::new(),
        }
    }

    /// Relays `input` from now on, on a thread of its own.
    pub(super) fn add<R: Read + Send + 'static>(&mut self, input: R) -> io::Result<()> {
        let (still_running, ended) = channel::<()>();
        let (prefix, shared) = (self.prefix.clone(), Arc::clone(&self.shared));
        std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || {
                relay(input, &prefix, &shared);
                drop(still_running);
            })?;
        self.running.push(ended);
        Ok(())
    }

    /// The last of what was printed, fit to be shown, trimmed. Waits at most `limit` for the rest of it.
    pub(super) fn words(&mut self, limit: Duration) -> String {
        let start = Instant::now();
        for ended in self.running.drain(..) {
            // Nothing is ever sent: this ends with the stream or with the limit.
            let _ = ended.recv_timeout(limit.saturating_sub(start.elapsed()));
        }
        let mut kept = self
            .shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        sanitise_bytes(kept.make_contiguous()).trim().to_owned()
    }
}

fn relay<R: Read>(input: R, prefix: &str, shared: &Shared) {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    let mut lines = 0u32;
    loop {
        line.clear();
        match input
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        {
            let mut kept = shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(&line);
            let surplus = kept.len().saturating_sub(KEPT_BYTES);
            kept.drain(..surplus);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let text = sanitise_bytes(text.strip_suffix(b"\r").unwrap_or(text));
        let on_line = shared
            .on_line
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        lines = lines.saturating_add(1);
        match lines {
            ..=MAX_LINES => on_line(&format!("{prefix}: {text}")),
            line if line == MAX_LINES + 1 => {
                on_line(&format!("{prefix}: [further lines are not shown]"));
            }
            _ => {}
        }
    }
}
