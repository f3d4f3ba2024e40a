//! A state written out: some bytes of it to stdout, or all of it to a file.
//!
//! Guarantees: stdout gets the bytes that were asked for, in order, and nothing past a byte that cannot be read; a file takes its
//! name when it is whole and durable; what is zero in the state is a hole in the file, block by block.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use super::super::summary::shown_seconds;
use super::args::Range;
use super::output;
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::extent::Kind;
use crate::monitor::Monitor;
use crate::partial_file::PartialFile;
use crate::units::Bytes;
use crate::view::state::View;
use crate::volume::ReadAt;

/// Read at once.
const PIECE_BYTES: u64 = 1 << 20;
/// What is all zero in a block of this size becomes a hole.
const BLOCK_BYTES: usize = 4096;

/// Writes `range` to stdout.
pub(super) fn cat<V: ReadAt>(view: &View<'_, V>, range: Range, cancel: &Cancel) -> Result<()> {
    let size = view.size_bytes();
    let length = range
        .length
        .unwrap_or_else(|| size.saturating_sub(range.offset));
    let end = range.offset.checked_add(length).filter(|end| *end <= size);
    let Some(end) = end else {
        return Err(Error::Usage(format!(
            "--cat: {}:{length} ends past the state, which has {size} bytes ({})",
            range.offset,
            Bytes(size)
        )));
    };
    let mut out = output::data_out()?;
    let mut buffer = Vec::new();
    let mut at = range.offset;
    while at < end {
        cancel.check()?;
        buffer.resize(piece(at, end), 0);
        view.read(&mut buffer, at)?;
        out.write_all(&buffer)
            .map_err(|error| Error::io("cannot write to standard output", error))?;
        at += buffer.len() as u64;
    }
    Ok(())
}

/// How far to read from `at` on at once.
fn piece(at: u64, end: u64) -> usize {
    usize::try_from(end.saturating_sub(at).min(PIECE_BYTES)).unwrap_or(0)
}

/// What was written.
pub(super) struct Written {
    size_bytes: u64,
    data_bytes: u64,
}

impl Written {
    pub(super) fn sentence(&self, path: &Path, took: Duration) -> String {
        format!(
            "the state is in {}, written in {}: {}, {} of it data",
            path.display(),
            shown_seconds(took),
            Bytes(self.size_bytes),
            Bytes(self.data_bytes)
        )
    }
}

/// A device that holds something else cannot be told from one that is to hold this.
pub(super) fn refuse_device(path: &Path) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(Error::Usage(format!(
            "{} is not a regular file, and --to writes nothing else. To bring a volume to this state: lvmsync combine, \
             and lvmsync apply; or lvmsync sync FILE VOLUME",
            path.display()
        )));
    }
    Ok(())
}

/// Writes all of it to a file.
pub(super) fn write<V: ReadAt>(
    view: &View<'_, V>,
    path: &Path,
    overwrite: bool,
    unchanged: &dyn Fn() -> Result<()>,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Written> {
    let failed = |error| Error::io(format!("cannot write {}", path.display()), error);
    let partial = PartialFile::create(path, overwrite)?;
    let size_bytes = view.size_bytes();
    let file = partial.file().map_err(failed)?;
    file.set_len(size_bytes).map_err(failed)?;
    monitor.plan(size_bytes);
    let mut data_bytes = 0;
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < size_bytes {
        cancel.check()?;
        let length = piece(at, size_bytes);
        for change in view.map(at, length as u64, usize::MAX)? {
            if change.kind == Kind::Zero {
                continue;
            }
            buffer.resize(piece(change.extent.offset(), change.extent.end()), 0);
            view.read(&mut buffer, change.extent.offset())?;
            data_bytes += write_data(file, &buffer, change.extent.offset()).map_err(failed)?;
        }
        monitor.advance(length as u64);
        at += length as u64;
    }
    unchanged()?;
    partial.persist()?;
    Ok(Written {
        size_bytes,
        data_bytes,
    })
}

/// Writes what is not all zero, by blocks of the file, and gives how much that is.
fn write_data(file: &File, data: &[u8], offset: u64) -> io::Result<u64> {
    let mut written = 0;
    let mut at = offset;
    let mut rest = data;
    while !rest.is_empty() {
        let in_block = usize::try_from(at % BLOCK_BYTES as u64).unwrap_or(0);
        let (block, later) = rest.split_at(rest.len().min(BLOCK_BYTES - in_block));
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, at)?;
            written += block.len() as u64;
        }
        at += block.len() as u64;
        rest = later;
    }
    Ok(written)
}
