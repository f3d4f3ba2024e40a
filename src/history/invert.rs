//! The undo of a delta that was not applied yet.
//!
//! Guarantees: what is written is what an apply with an undo would have saved, frame by frame; a volume that is not in
//! the state that the delta begins from is refused, as far as its size and the sampled blocks say; nothing is written
//! but the undo, and that is whole only after the delta was read to its end and found sound.

use std::io::{BufReader, Read};

use super::sizes::refuse_fragment;
use crate::cancel::Cancel;
use crate::delta::codec::Compression;
use crate::delta::header::{Header, State};
use crate::delta::proto3::{FirstLine, read_first_line};
use crate::delta::reader::DeltaReader;
use crate::delta::samples::Samples;
use crate::delta::trailer::Counts;
use crate::engine::target::{mismatch, shown_mismatch};
use crate::engine::undo::{DurableWrite, Old, UndoRecorder, Undoes, undo_header};
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::monitor::Monitor;
use crate::volume::ReadAt;

/// Volume data that is saved at once.
const BATCH_BYTES: u64 = 16 << 20;
/// Extents at once: a frame may be a single byte.
const BATCH_EXTENTS: usize = 64 << 10;

/// The volume that the delta is for.
pub struct Base<'a> {
    /// It is only read.
    pub volume: &'a dyn ReadAt,
    /// Its name, for messages.
    pub name: &'a str,
}

/// What is known of the base: which state it holds, and what its undo takes back.
pub struct Known {
    /// The state, where it has an identity.
    pub holds: Option<State>,
    /// The delta, and the volume.
    pub undoes: Undoes,
}

/// Who listens.
pub struct Options<'a> {
    /// Of the undo.
    pub compression: Compression,
    /// Stops the run.
    pub cancel: &'a Cancel,
    /// Hears of progress and warnings.
    pub monitor: &'a dyn Monitor,
}

/// Reads the delta `input`, called `what` in messages, and what `base` holds in its place, and writes the undo. `admit`
/// says what is known of the base, or refuses; `out` is asked for, with the name of the undo, when nothing stands in the
/// way, and `unchanged` before the undo takes its name: is the base still what was read?
pub fn invert<W: DurableWrite>(
    input: impl Read,
    what: &str,
    base: &Base<'_>,
    admit: impl FnOnce(&Header, &Samples) -> Result<Known>,
    (out, undo): (impl FnOnce() -> Result<W>, &str),
    unchanged: &dyn Fn() -> Result<()>,
    options: &Options<'_>,
) -> Result<(Header, Counts)> {
    let damaged = |source| Error::Damaged {
        what: what.to_owned(),
        source,
    };
    let mut input = BufReader::with_capacity(256 << 10, input);
    if read_first_line(&mut input).map_err(damaged)? == FirstLine::Version3 {
        return Err(proto3(what));
    }
    let mut reader = DeltaReader::after_first_line(input).map_err(damaged)?;
    let header = reader.header().clone();
    refuse_fragment(what, &header)?;
    let Known { holds, undoes } = admit(&header, reader.samples())?;
    refuse_other(&header, reader.samples(), base, options)?;
    let size_bytes = base.volume.size_bytes();
    let old = Old {
        size_bytes,
        holds,
        is_other: false,
    };
    // Whatever the delta is put on has its size then.
    let undo_header = undo_header(&header, &undoes, old, size_bytes.max(header.volume_size));
    let samples = reader.samples().below(undo_header.volume_size);
    let mut recorder =
        UndoRecorder::new(out()?, undo, &undo_header, &samples, options.compression)?;
    let planned = header.planned;
    options
        .monitor
        .plan(planned.data_bytes.saturating_add(planned.zero_bytes));
    let mut batch: Vec<Extent> = Vec::new();
    let mut batch_bytes = 0;
    while let Some(frame) = reader.next_frame().map_err(damaged)? {
        // Zeroes may be of any length.
        let mut position = frame.extent.offset();
        while let Some(piece) =
            Extent::from_range(position, frame.extent.end().min(position + BATCH_BYTES))
        {
            options.cancel.check()?;
            position = piece.end();
            batch_bytes += piece.length();
            batch.push(piece);
            if batch_bytes >= BATCH_BYTES || batch.len() >= BATCH_EXTENTS {
                recorder.save(base.volume, base.name, &batch)?;
                options.monitor.advance(batch_bytes);
                batch.clear();
                batch_bytes = 0;
            }
        }
    }
    recorder.save(base.volume, base.name, &batch)?;
    options.monitor.advance(batch_bytes);
    unchanged()?;
    let counts = recorder.finish()?;
    Ok((undo_header, counts))
}

/// A stream of the original lvmsync says nothing of what it is for.
pub fn proto3(what: &str) -> Error {
    Error::refused(
        what,
        "a PROTO[3] stream names neither the state that it begins from nor the one that it leads to",
        "Apply it with lvmsync apply, which can keep an undo.",
    )
}

fn refuse_other(
    header: &Header,
    samples: &Samples,
    base: &Base<'_>,
    options: &Options<'_>,
) -> Result<()> {
    let size = base.volume.size_bytes();
    if let Some(needed) = header.base_size.filter(|needed| *needed > size) {
        return Err(Error::refused(
            base.name,
            format!("it has {size} bytes, and this delta begins from a volume of {needed}"),
            "Name a volume in the state that the delta begins from.",
        ));
    }
    match mismatch(header, samples, base.volume, base.name, options.monitor)? {
        None => Ok(()),
        Some(offset) => Err(Error::refused(
            base.name,
            format!(
                "it is not in the state that this delta begins from, so what it holds is not the way back: {}",
                shown_mismatch(header, offset)
            ),
            "Name a volume in the state that the delta begins from.",
        )),
    }
}
