//! Stopping on SIGINT, SIGTERM and SIGHUP without leaving anything behind.
//!
//! Guarantees: after a signal every loop that asks [`Cancel::check`] and every read through
//! [`CancelableReader`] ends with an error, so that destructors run: temporary files go, children end. A
//! run that is stuck all the same is ended after [`GRACE`] or by a second signal, its temporary files removed; unless it does
//! what must not be left half-done, see [`Cancel::hold_on`].
//! A signal that was ignored when we were started (`nohup`) stays ignored.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::error::{Error, ExitCode, Result};

/// How long a cancelled run may take to end by itself.
pub const GRACE: Duration = Duration::from_secs(10);

/// Whether the run was told to stop; cheap to clone and to ask.
#[derive(Clone, Debug)]
pub struct Cancel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    flag: AtomicBool,
    /// Reads as "hung up" once the write end is dropped: what blocked reads wait for beside their input.
    wake: Option<io::PipeReader>,
    hold: Mutex<Option<io::PipeWriter>>,
    /// While there are any, nothing ends the run by force.
    holds: AtomicUsize,
}

impl Cancel {
    /// One that only [`Self::cancel`] sets.
    pub fn new() -> Self {
        let (wake, hold) = io::pipe().map_or((None, None), |(r, w)| (Some(r), Some(w)));
        let inner = Inner {
            flag: AtomicBool::new(false),
            wake,
            hold: Mutex::new(hold),
            holds: AtomicUsize::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// One that is set by the signals that ask a program to stop.
    pub fn on_signals() -> io::Result<Self> {
        let cancel = Self::new();
        // A file that may not grow any further (ulimit -f) is a write that fails, and not the end of the run.
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        let ignored = ignored_signals();
        let wanted = [SIGINT, SIGTERM, SIGHUP]
            .into_iter()
            .filter(|signal| ignored & (1 << (signal - 1)) == 0);
        let mut signals = Signals::new(wanted)?;
        let to_set = cancel.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                if signals.forever().next().is_none() {
                    return;
                }
                to_set.cancel();
                // The run ends by itself, or else when its grace is over, or at a second signal.
                let mut start = Instant::now();
                while start.elapsed() < GRACE {
                    if to_set.inner.holds.load(Ordering::SeqCst) > 0 {
                        start = Instant::now();
                        let _ = signals.pending().count();
                    } else if signals.pending().next().is_some() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                crate::partial_file::remove_unfinished();
                std::process::exit(ExitCode::Interrupted as i32);
            })?;
        Ok(cancel)
    }

    /// Tells the run to stop.
    pub fn cancel(&self) {
        self.inner.flag.store(true, Ordering::SeqCst);
        self.inner
            .hold
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// Until the guard is dropped, and those of others are, the run is told to stop as ever, and is not ended by force: a
    /// service that is stopped must be started again.
    pub fn hold_on(&self) -> HoldsOn {
        self.inner.holds.fetch_add(1, Ordering::SeqCst);
        HoldsOn(self.clone())
    }

    /// True once the run was told to stop.
    pub fn is_cancelled(&self) -> bool {
        self.inner.flag.load(Ordering::SeqCst)
    }

    /// Becomes readable when the run is told to stop.
    pub(crate) fn wake(&self) -> Option<BorrowedFd<'_>> {
        self.inner.wake.as_ref().map(AsFd::as_fd)
    }

    /// Returns when there is something to read from `input`, or its end, or the run is told to stop. False if nothing of that
    /// came within this time.
    pub fn wait_to_read(&self, input: impl AsFd, within: Option<Duration>) -> io::Result<bool> {
        let begun = Instant::now();
        loop {
            let left = within.map(|within| within.saturating_sub(begun.elapsed()));
            let left = left.map(Timespec::try_from).transpose();
            let left = left.map_err(io::Error::other)?;
            let input = PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN);
            let wake = self.wake();
            let wake = wake.map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN));
            let mut waited: Vec<PollFd<'_>> = wake.into_iter().chain([input]).collect();
            match poll(&mut waited, left.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// An error once the run was told to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Sleeps, but not past a cancel.
    pub fn sleep(&self, duration: Duration) {
        const STEP: Duration = Duration::from_millis(50);
        let mut left = duration;
        while !left.is_zero() && !self.is_cancelled() {
            let step = left.min(STEP);
            std::thread::sleep(step);
            left -= step;
        }
    }
}

/// See [`Cancel::hold_on`].
#[derive(Debug)]
pub struct HoldsOn(Cancel);

impl Drop for HoldsOn {
    fn drop(&mut self) {
        self.0.inner.holds.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}

/// The mask of ignored signals that we inherited: bit n-1 for signal n.
fn ignored_signals() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .as_deref()
        .and_then(|status| status.lines().find_map(|line| line.strip_prefix("SigIgn:")))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// A pipe, socket or terminal whose reads end when the run is cancelled.
#[derive(Debug)]
pub struct CancelableReader<R> {
    input: R,
    cancel: Cancel,
}

impl<R: Read + AsFd> CancelableReader<R> {
    /// Wraps `input`.
    pub fn new(input: R, cancel: Cancel) -> Self {
        Self { input, cancel }
    }
}

impl<R: Read + AsFd> Read for CancelableReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.wait_to_read(&self.input, None)?;
        if self.cancel.is_cancelled() {
            // Not `ErrorKind::Interrupted`, which std retries.
            return Err(io::Error::other("interrupted"));
        }
        self.input.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_read_ends_when_cancelled() {
        let (reader, _writer) = io::pipe().unwrap();
        let cancel = Cancel::new();
        let mut input = CancelableReader::new(reader, cancel.clone());
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            cancel.cancel();
        });
        let error = input.read(&mut [0; 8]).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::Interrupted);
    }
}
