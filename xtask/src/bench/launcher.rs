//! A small process between the benchmarks and what they measure: `xtask bench-run NOTE PROGRAM [ARGUMENT...]`.
//!
//! Two things need it. A process' peak memory begins, for the kernel, with that of the process that started it, and the
//! benchmarks themselves have had large tables in theirs. And the far end of an ssh session is no child of ours: there
//! the same launcher writes its note beside the near one's.

use crate::Done;
use lab::Error;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// What a command and everything that it waited for took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) time: Duration,
    /// In the program and in the kernel, on all processors.
    pub(crate) cpu: Duration,
    /// Of the largest process, in bytes.
    pub(crate) peak: u64,
}

/// Runs the command, notes what it took, and ends as it did.
pub(crate) fn run(note: &Path, words: &[OsString]) -> Done {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Error::new("bench-run: no program"))?;
    let failed = |e: std::io::Error| Error::new(format!("{}: {e}", program.display()));
    let start = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .status()
        .map_err(failed)?;
    let time = start.elapsed();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|e| failed(e.into()))?;
    let microseconds =
        |time: TimeVal| Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0));
    let taken = Note {
        time,
        cpu: microseconds(usage.user_time()) + microseconds(usage.system_time()),
        peak: u64::try_from(usage.max_rss()).unwrap_or(0) * 1024,
    };
    fs::write(note, taken.text()).map_err(super::failed(note))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

impl Note {
    fn text(&self) -> String {
        format!(
            "{} {} {}\n",
            self.time.as_nanos(),
            self.cpu.as_nanos(),
            self.peak
        )
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_whitespace().map(|field| field.parse().ok());
        let mut next = || fields.next().flatten();
        Some(Self {
            time: Duration::from_nanos(next()?),
            cpu: Duration::from_nanos(next()?),
            peak: next()?,
        })
    }

    /// The note at `path`, which is removed; `None` where there is none.
    pub(crate) fn take(path: &Path) -> Option<Self> {
        let note = Self::parse(&fs::read_to_string(path).ok()?);
        let _ = fs::remove_file(path);
        note
    }
}

#[cfg(test)]
mod tests {
    use super::Note;
    use std::time::Duration;

    #[test]
    fn a_note_reads_back() {
        let note = Note {
            time: Duration::from_millis(1234),
            cpu: Duration::from_micros(77),
            peak: 12 << 20,
        };
        assert_eq!(Note::parse(&note.text()), Some(note));
        assert_eq!(Note::parse("1 2"), None);
        assert_eq!(Note::parse("1 x 3"), None);
    }
}
