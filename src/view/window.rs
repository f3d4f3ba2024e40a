//! Which frame of which delta holds what, in one part of the volume.
//!
//! Guarantees: the newest delta wins, byte by byte; what a delta says and cannot be read is marked, and covers what is older.
//! Memory follows the number of frames in the part. As soon as all of the part is covered nothing older is looked at.

use crate::delta::FormatError;
use crate::delta::header::Source;
use crate::delta::lookup::{Found, Lookup};
use crate::delta::stored::StoredFrame;
use crate::error::{Error, Result};
use crate::extent::{Extent, Kind};
use crate::history::combine::Input;
use crate::history::overlay::{Overlay, Piece};
use crate::volume::ReadAt;

/// No frame is that long.
const UNKNOWN: u32 = u32::MAX;

/// A delta of the chain, with its index.
pub struct Layer<'a, V> {
    /// The file, and the delta in it.
    pub input: &'a Input<V>,
    lookup: Lookup,
    /// Where the volume ended before and ends no more: zeroes, should it grow again.
    cut_off: Option<(u64, u64)>,
}

impl<'a, V: ReadAt> Layer<'a, V> {
    /// Reads the index.
    pub fn open(input: &'a Input<V>, cut_off: Option<(u64, u64)>) -> Result<Self> {
        let lookup = Lookup::open(&input.delta).map_err(|error| damaged(input, error))?;
        Ok(Self {
            input,
            lookup,
            cut_off,
        })
    }

    /// Why what it says of `extent` is unknown.
    pub fn fault(&self, extent: Extent) -> Error {
        let fault = self.lookup.fault(&self.input.delta, extent);
        damaged(
            self.input,
            fault.unwrap_or_else(|| FormatError::OutOfOrder {
                at: 0,
                found: format!("frames around {extent} that are sound"),
                expected: "damage, as a moment ago".to_owned(),
            }),
        )
    }
}

/// What is wrong with a delta of the chain.
pub(super) fn damaged<V>(input: &Input<V>, source: FormatError) -> Error {
    let what = input.name.clone();
    match source {
        FormatError::Io(error) => Error::io(format!("cannot read {what}"), error),
        source => Error::Damaged { what, source },
    }
}

/// True where no more is known than that a delta says something here.
pub fn is_unknown(piece: &Piece) -> bool {
    piece.origin().2 == UNKNOWN
}

/// The pieces in `part` of a volume that has `size_bytes` in the end; `layers` are in the order of their states.
pub fn pieces<V: ReadAt>(
    layers: &[Layer<'_, V>],
    part: Extent,
    size_bytes: u64,
) -> Result<Vec<Piece>> {
    let end = part.end().min(size_bytes);
    let mut overlay = Overlay::new(end);
    for (number, layer) in layers.iter().enumerate().rev() {
        let place = u32::try_from(number)
            .map_err(|_| Error::Usage("these are too many deltas".to_owned()))?;
        let mut laying = overlay.layer(place);
        let mut lay = |found| {
            if let Some(frame) = clipped(found, part) {
                laying.frame(&frame);
            }
        };
        layer
            .lookup
            .look(&layer.input.delta, part, &mut lay)
            .map_err(|error| damaged(layer.input, error))?;
        drop(laying);
        if let Some((from, to)) = layer.cut_off {
            overlay.zero(from.max(part.offset()), to.min(end));
        }
        let header = layer.input.delta.header();
        if header.source == Source::Full {
            // It says of every byte what it is, also of those that came after it and that nobody wrote.
            overlay.zero(header.volume_size.max(part.offset()), end);
        }
        let covered: u64 = overlay.pieces().iter().map(|p| p.extent().length()).sum();
        if part.offset().saturating_add(covered) >= end {
            break;
        }
    }
    Ok(overlay.pieces().to_vec())
}

/// Only what lies in `part`.
fn clipped(found: Found, part: Extent) -> Option<StoredFrame> {
    let frame = match found {
        Found::Frame(frame) => frame,
        Found::Unknown(extent) => StoredFrame {
            extent,
            kind: Kind::Data,
            at: 0,
            stored_length: UNKNOWN,
        },
    };
    let extent = frame.extent.intersect(part)?;
    Some(StoredFrame { extent, ..frame })
}
