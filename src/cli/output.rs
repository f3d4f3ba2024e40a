//! The two streams: listings and data on stdout, words on stderr.
//!
//! Guarantees: the only place that prints; a closed pipe ends a listing quietly, and fails a data stream.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;

use crate::error::{Error, ExitCode, Result};

/// Standard input as it is. The library's own `Stdin` has a buffer of its own, and whoever waits for the
/// descriptor to become readable would not see what is in it.
pub(super) fn data_in() -> Result<File> {
    io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(|error| Error::io("cannot use standard input", error))
}

/// Standard output as it is, for data: the library's own looks for line ends in all that it writes.
pub(super) fn data_out() -> Result<File> {
    io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(|error| Error::io("cannot use standard output", error))
}

/// As [`data_out`], for many megabytes.
pub(super) fn stream_out() -> Result<File> {
    let out = data_out()?;
    crate::pipe::widen(&out);
    Ok(out)
}

/// A line for the user on stderr, in one piece: commands that we have started write there, too.
pub(super) fn message(text: &str) {
    // If stderr is gone, nobody can be told.
    let _ = io::stderr()
        .lock()
        .write_all(format!("{text}\n").as_bytes());
}

/// Help and usage errors as clap writes them.
pub(super) fn clap_message(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::Usage
    } else {
        ExitCode::Done
    }
}

/// Writes a listing to stdout. That the reader went away early (`| head`) is its good right.
pub(super) fn listing(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = BufWriter::with_capacity(64 << 10, data_out()?);
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| Error::io("cannot write to standard output", error)),
    }
}

/// Writes one JSON object and a newline to stdout.
pub(super) fn json(value: &impl serde::Serialize) -> Result<()> {
    listing(|out| {
        serde_json::to_writer(&mut *out, value).map_err(io::Error::from)?;
        writeln!(out)
    })
}
