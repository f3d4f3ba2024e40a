//! Reads a chain of deltas and writes the one delta that does the same.
//!
//! Guarantees: [`combine`] succeeds only if every byte of every delta was read and every checksum compared; a damaged delta is
//! named, with the offset, and what was written by then has to go. What is
//! written has the effect of the deltas one after another: the newest frame wins, byte by byte, and what a smaller volume
//! in between has cut off is zero where nothing newer says otherwise. Frames that survive whole are copied as they
//! stand. Memory follows the number of surviving pieces.

use std::io::Write;

use super::copying::{Copied, Copying};
use super::heading::{header, samples};
use super::overlay::Overlay;
use super::sizes::{Part, Sizes, refuse_fragment, sizes};
use super::soundness::while_read_whole;
use crate::cancel::Cancel;
use crate::delta::FormatError;
use crate::delta::codec::Compression;
use crate::delta::header::{Header, Source};
use crate::delta::stored::StoredDelta;
use crate::delta::trailer::Counts;
use crate::delta::writer::{DeltaWriter, TRAILER_RECORD_BYTES};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::units::count;
use crate::volume::ReadAt;

/// A delta of the chain.
pub struct Input<V> {
    /// The file, for messages.
    pub name: String,
    /// What is in it.
    pub delta: StoredDelta<V>,
}

/// How a chain is combined, and who listens.
pub struct Options<'a> {
    /// Compress everything anew; otherwise what has to be cut is stored as it was.
    pub compression: Option<Compression>,
    /// Stops the run.
    pub cancel: &'a Cancel,
    /// Hears of progress and warnings.
    pub monitor: &'a dyn Monitor,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Combined {
    /// The header of the result.
    pub header: Header,
    /// Its counts.
    pub counts: Counts,
    /// Its length.
    pub delta_bytes: u64,
    /// Samples in it.
    pub samples: usize,
    /// Data frames that were copied as they stood.
    pub copied_frames: u64,
    /// Data frames that were cut or compressed anew.
    pub made_frames: u64,
}

/// What can be said of a chain by the headers of its deltas: sizes that fit, and nothing that is only a part.
pub fn check<V: ReadAt>(chain: &[&Input<V>]) -> Result<Sizes> {
    for input in chain {
        refuse_fragment(&input.name, input.delta.header())?;
    }
    let parts = parts(chain);
    let sizes = sizes(&parts)?;
    // It refuses what has no header in common.
    header(&parts, &sizes, &Overlay::new(sizes.volume_size), None)?;
    Ok(sizes)
}

/// Writes the combination of `chain`, which is in order, to `out`, called `name` in messages.
pub fn combine<V: ReadAt>(
    chain: &[&Input<V>],
    out: impl Write,
    name: &str,
    options: &Options<'_>,
) -> Result<Combined> {
    let sizes = check(chain)?;
    let overlay = lay(chain, &sizes, options)?;
    let parts = parts(chain);
    let codec = options.compression.map(|codec| codec.to_string());
    let header = header(&parts, &sizes, &overlay, codec)?;
    let samples = samples(&parts, &sizes, &overlay)?;
    if samples.is_empty() && !header.is_full_copy() {
        options.monitor.warn(&format!(
            "{name}: no sampled block is left alone by all of these deltas, so it cannot be seen by the blocks \
             whether a destination is the base"
        ));
    }
    let planned = header.planned;
    let parts_bytes = chain.iter().map(|input| input.delta.bytes());
    let all_bytes = parts_bytes.chain([planned.data_bytes, planned.zero_bytes]);
    options.monitor.plan(all_bytes.fold(0, u64::saturating_add));
    let failed = |error| Error::io(format!("cannot write {name}"), error);
    let writer = DeltaWriter::new(out, &header, &samples).map_err(failed)?;
    let copied = while_read_whole(chain, (options.cancel, options.monitor), |go_on| {
        let mut copying = Copying::new(chain, options, name, writer);
        for piece in overlay.pieces() {
            go_on.check()?;
            copying.piece(piece)?;
            options.monitor.advance(piece.extent().length());
        }
        copying.finish()
    })?;
    let Copied {
        counts,
        copied_frames,
        made_frames,
    } = copied;
    Ok(Combined {
        header,
        counts,
        delta_bytes: counts.trailer_at.saturating_add(TRAILER_RECORD_BYTES),
        samples: samples.len(),
        copied_frames,
        made_frames,
    })
}

fn parts<'a, V: ReadAt>(chain: &[&'a Input<V>]) -> Vec<Part<'a>> {
    let part = |input: &&'a Input<V>| Part {
        name: &input.name,
        header: input.delta.header(),
        samples: input.delta.samples(),
    };
    chain.iter().map(part).collect()
}

/// What is wrong with a delta of the chain.
pub(super) fn damaged<V>(input: &Input<V>) -> impl Fn(FormatError) -> Error {
    let what = input.name.clone();
    move |source| Error::Damaged {
        what: what.clone(),
        source,
    }
}

/// Finds out by the record headers what is there in the end, the newest delta first.
fn lay<V: ReadAt>(chain: &[&Input<V>], sizes: &Sizes, options: &Options<'_>) -> Result<Overlay> {
    let mut overlay = Overlay::new(sizes.volume_size);
    for (number, input) in chain.iter().enumerate().rev() {
        let damaged = damaged(input);
        let place = u32::try_from(number)
            .map_err(|_| Error::Usage("these are too many deltas".to_owned()))?;
        let mut layer = overlay.layer(place);
        for frame in input.delta.frames() {
            options.cancel.check()?;
            layer.frame(&frame.map_err(&damaged)?);
        }
        drop(layer);
        if let Some((start, end)) = sizes.cut_off.get(number).copied().flatten() {
            overlay.zero(start, end);
        }
        let header = input.delta.header();
        if header.source == Source::Full {
            // A full copy says of every byte what it is, also of those that came after it and that nobody wrote.
            overlay.zero(header.volume_size, sizes.volume_size);
        }
    }
    options.monitor.note(&format!(
        "{} of data and zeroes are left",
        count(overlay.pieces().len() as u64, "piece")
    ));
    Ok(overlay)
}
