//! The line between two ends: reads and writes that neither wait for ever nor outlive a cancel.
//!
//! Guarantees: a read or write that waits ends with an error when the run is cancelled, when nothing was
//! heard of the far end for the whole timeout, or when a deadline for the session's beginning has passed. A
//! far end that says anything, if only Ping, is never given up, however long a write to it takes. Time in
//! which this process was stopped does not count.
//!
//! Writes wait with `poll` and then write no more than what a pipe with room takes without waiting
//! (`PIPE_BUF`). `O_NONBLOCK` would be simpler, but it belongs to the open file description: on an
//! inherited stdout it would change the stdout of every other process that has it, the shell's too. So only
//! a description that nobody else has gets the flag: that of a pipe which this process made
//! ([`Line::own_writer`]), or one more of a pipe that it inherited ([`Line::shared_writer`]). It takes large writes then.
//!
//! A pipe is made wide when the first large piece goes through it, and not before: what wide pipes hold counts against a
//! limit of their user, and most sessions say little.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::cancel::Cancel;

/// `PIPE_BUF`: a pipe that polls as writable has a free page, which takes this much at once.
const SAFE_PIECE: usize = 4096;
/// What a pipe holds from the beginning. Readers have buffers of this size for anything.
const LARGE_BYTES: usize = 64 << 10;

/// The longest wait before everything is looked at again: the other direction may have heard something.
const STEP: Duration = Duration::from_millis(200);

/// How often an end that has nothing to say pings at most and at least.
const PING_LIMITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(15));

/// How long an end may be silent if one end gives up after `ours` and the other after `theirs`. Four pings
/// fit into the shorter of the two.
pub fn ping_interval(ours: Option<Duration>, theirs: Option<Duration>) -> Duration {
    let (shortest, longest) = PING_LIMITS;
    let timeouts = [ours, theirs];
    let patience = timeouts.into_iter().flatten().min();
    patience.map_or(longest, |patience| (patience / 4).clamp(shortest, longest))
}

/// Why a wait ended: carried by an [`io::Error`] of the kind `TimedOut`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// For how long nothing was heard; or how long the session may take to begin.
    pub waited: Duration,
    /// The session did not begin in time, whatever was heard.
    pub at_the_start: bool,
}

impl Silence {
    /// The one in this error.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Seconds(self.waited);
        if self.at_the_start {
            write!(f, "the session did not begin within {seconds}")
        } else {
            write!(f, "nothing was heard for {seconds}")
        }
    }
}

impl std::error::Error for Silence {}

/// "60 s" or "0.5 s".
pub(super) struct Seconds(pub(super) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.subsec_nanos() == 0 {
            write!(f, "{} s", self.0.as_secs())
        } else {
            write!(f, "{:.1} s", self.0.as_secs_f64())
        }
    }
}

/// What both directions of one session share; cheap to clone.
#[derive(Clone, Debug)]
pub struct Line {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cancel: Cancel,
    timeout: Option<Duration>,
    /// Grows with every read.
    heard: AtomicU64,
    /// Until when the session must have begun.
    begin_by: Mutex<Option<Instant>>,
    /// It was given up: nothing waits any more.
    lost: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

impl Line {
    /// A line that is given up after `timeout` of silence; `None` waits for ever.
    pub fn new(cancel: Cancel, timeout: Option<Duration>) -> Self {
        let shared = Shared {
            cancel,
            timeout,
            heard: AtomicU64::new(0),
            begin_by: Mutex::new(None),
            lost: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// After how much silence this end gives up.
    pub fn timeout(&self) -> Option<Duration> {
        self.shared.timeout
    }

    /// From now on the session has one timeout to begin, whatever is heard meanwhile.
    pub fn begins(&self) {
        self.begins_within(self.shared.timeout);
    }

    /// The same with another limit.
    pub fn begins_within(&self, limit: Option<Duration>) {
        self.set_begin_by(limit.and_then(|limit| Instant::now().checked_add(limit)));
    }

    /// The session has begun.
    pub fn has_begun(&self) {
        self.set_begin_by(None);
    }

    fn set_begin_by(&self, deadline: Option<Instant>) {
        let begin_by = &self.shared.begin_by;
        *begin_by.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }

    /// What comes from the far end.
    pub fn reader<R: Read + AsFd>(&self, input: R) -> LineReader<R> {
        LineReader {
            line: self.clone(),
            input,
            is_wide: false,
        }
    }

    /// What goes there, through a description that other processes may share.
    pub fn writer<W: Write + AsFd>(&self, output: W) -> LineWriter<W> {
        LineWriter {
            line: self.clone(),
            output,
            piece: SAFE_PIECE,
            is_wide: false,
        }
    }

    /// The same for a pipe that is opened once more here, if it can be.
    pub fn shared_writer(&self, output: File) -> LineWriter<File> {
        match opened_once_more(&output) {
            Ok(own) => self.own_writer(own),
            Err(_) => self.writer(output),
        }
    }

    /// What goes there, through a pipe's end that nobody else has.
    pub fn own_writer<W: Write + AsFd>(&self, output: W) -> LineWriter<W> {
        let set = fcntl_getfl(&output)
            .and_then(|flags| fcntl_setfl(&output, flags | OFlags::NONBLOCK))
            .is_ok();
        LineWriter {
            piece: if set { usize::MAX } else { SAFE_PIECE },
            ..self.writer(output)
        }
    }

    /// Returns when `descriptor` is ready, or with the reason why it is not waited for any longer.
    fn wait(&self, descriptor: BorrowedFd<'_>, direction: Direction) -> io::Result<()> {
        let mut waited = Duration::ZERO;
        let mut heard = self.shared.heard.load(Ordering::SeqCst);
        loop {
            let cancelled = self.shared.cancel.is_cancelled();
            if cancelled && direction == Direction::In {
                return Err(interrupted());
            }
            let now = Instant::now();
            let begin_by = self.begin_by();
            if begin_by.is_some_and(|deadline| deadline <= now) {
                return Err(self.give_up(self.shared.timeout.unwrap_or_default(), true));
            }
            // The last words of a run that ends go out if they can at once.
            let ends = cancelled || self.shared.lost.load(Ordering::SeqCst);
            let step = if ends {
                Duration::ZERO
            } else {
                let left = self
                    .shared
                    .timeout
                    .map_or(STEP, |timeout| timeout.saturating_sub(waited));
                let to_begin =
                    begin_by.map_or(STEP, |deadline| deadline.saturating_duration_since(now));
                STEP.min(left).min(to_begin)
            };
            if self.poll(descriptor, direction, step, !ends)? {
                return Ok(());
            }
            if ends {
                return Err(interrupted());
            }
            let now_heard = self.shared.heard.load(Ordering::SeqCst);
            if now_heard == heard {
                // A step that took far longer is one in which we were stopped, and heard nobody.
                waited += now.elapsed().min(2 * STEP);
            } else {
                (heard, waited) = (now_heard, Duration::ZERO);
            }
            if let Some(timeout) = self.shared.timeout.filter(|timeout| waited >= *timeout) {
                return Err(self.give_up(timeout, begin_by.is_some()));
            }
        }
    }

    fn begin_by(&self) -> Option<Instant> {
        let begin_by = &self.shared.begin_by;
        *begin_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when ready; a signal or a cancel ends the wait early.
    fn poll(
        &self,
        descriptor: BorrowedFd<'_>,
        direction: Direction,
        step: Duration,
        wakes: bool,
    ) -> io::Result<bool> {
        let events = match direction {
            Direction::In => PollFlags::IN,
            Direction::Out => PollFlags::OUT,
        };
        let step = Timespec {
            tv_sec: step.as_secs().cast_signed(),
            tv_nsec: step.subsec_nanos().into(),
        };
        let ready = PollFd::from_borrowed_fd(descriptor, events);
        let wake = self.shared.cancel.wake().filter(|_| wakes);
        let result = match wake {
            Some(wake) => {
                let mut both = [ready, PollFd::from_borrowed_fd(wake, PollFlags::IN)];
                poll(&mut both, Some(&step)).map(|_| !both[0].revents().is_empty())
            }
            None => {
                let mut one = [ready];
                poll(&mut one, Some(&step)).map(|_| !one[0].revents().is_empty())
            }
        };
        match result {
            Err(rustix::io::Errno::INTR) => Ok(false),
            result => Ok(result?),
        }
    }

    fn give_up(&self, waited: Duration, at_the_start: bool) -> io::Error {
        self.shared.lost.store(true, Ordering::SeqCst);
        let silence = Silence {
            waited,
            at_the_start,
        };
        io::Error::new(io::ErrorKind::TimedOut, silence)
    }
}

/// A description of the same pipe that is nobody else's.
fn opened_once_more(pipe: &File) -> io::Result<File> {
    let is_fifo = pipe.metadata()?.file_type().is_fifo();
    // The end to read from would become one to write to.
    let is_to_write = fcntl_getfl(pipe)? & OFlags::ACCMODE != OFlags::RDONLY;
    if !(is_fifo && is_to_write) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let itself = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    // Without the flag it would wait for a reader where there is none any more.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(itself)
}

/// Not `ErrorKind::Interrupted`, which std retries.
fn interrupted() -> io::Error {
    io::Error::other("interrupted")
}

/// See [`Line::reader`].
#[derive(Debug)]
pub struct LineReader<R> {
    line: Line,
    input: R,
    is_wide: bool,
}

impl<R: Read + AsFd> Read for LineReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        widen_for(buffer.len(), &mut self.is_wide, &self.input);
        self.line.wait(self.input.as_fd(), Direction::In)?;
        let read = self.input.read(buffer)?;
        self.line.shared.heard.fetch_add(1, Ordering::SeqCst);
        Ok(read)
    }
}

/// See [`Line::writer`].
#[derive(Debug)]
pub struct LineWriter<W> {
    line: Line,
    output: W,
    piece: usize,
    is_wide: bool,
}

fn widen_for(bytes: usize, is_wide: &mut bool, pipe: impl AsFd) {
    if bytes > LARGE_BYTES && !*is_wide {
        *is_wide = true;
        crate::pipe::widen(pipe);
    }
}

impl<W: Write + AsFd> LineWriter<W> {
    /// Nobody else has this description, so it takes large writes.
    #[cfg(test)]
    pub(super) fn is_own(&self) -> bool {
        self.piece == usize::MAX
    }

    /// Writes as soon as there is room.
    fn when_ready(
        &mut self,
        mut write: impl FnMut(&mut W) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            self.line.wait(self.output.as_fd(), Direction::Out)?;
            match write(&mut self.output) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

impl<W: Write + AsFd> Write for LineWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        widen_for(bytes.len(), &mut self.is_wide, &self.output);
        let piece = bytes.get(..self.piece).unwrap_or(bytes);
        self.when_ready(|output| output.write(piece))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let all = parts.iter().map(|part| part.len()).sum();
        widen_for(all, &mut self.is_wide, &self.output);
        if self.piece == usize::MAX {
            return self.when_ready(|output| output.write_vectored(parts));
        }
        // Together they may be larger than a piece.
        let first = parts.iter().find(|part| !part.is_empty());
        self.write(first.map_or(&[], |part| part))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
