//! The state behind a chain of deltas, as a volume.
//!
//! Guarantees: what is read is what the base would hold once the deltas were applied, one after another; the size is that of
//! the last state, and where the volume has grown there are zeroes unless a delta says otherwise. To open it takes the
//! headers and indexes of the deltas and nothing of their frames. A damaged frame fails the reads that touch it, with
//! the file and the offset. Memory is that of the indexes, of 24 MiB for frames, and
//! of 8 MiB for what is known of parts of the volume.

use std::io;
use std::sync::Arc;

use super::frames::Frames;
use super::kept::Kept;
use super::window::{Layer, is_unknown, pieces};
use crate::delta::header::Source;
use crate::error::{Error, Result};
use crate::extent::{Change, Extent, Kind, MAX_OFFSET};
use crate::history::combine::Input;
use crate::history::overlay::Piece;
use crate::history::sizes::{Part, of_states, refuse_fragment};
use crate::units::Bytes;
use crate::volume::ReadAt;

/// The volume is looked at in parts of this size.
const WINDOW_BYTES: u64 = 4 << 20;
/// Pieces that are remembered, 32 bytes each.
const KEPT_PIECES: usize = 256 << 10;
/// A part without any takes room, too.
const LEAST_PIECES: usize = 16;

/// The volume that the first delta begins from.
pub struct Below<'a> {
    /// It is only read.
    pub volume: &'a dyn ReadAt,
    /// Its name, for messages.
    pub name: &'a str,
}

/// A state.
pub struct View<'a, V> {
    layers: Vec<Layer<'a, V>>,
    below: Option<Below<'a>>,
    /// What lies in the base past this is not of the state.
    below_bytes: u64,
    size_bytes: u64,
    frames: Frames,
    windows: Kept<u64, Arc<Vec<Piece>>>,
}

/// What `chain` needs to be told of its base before that is opened: sizes that fit, nothing that is only a part. Gives the
/// size of the state in bytes.
pub fn check<V: ReadAt>(chain: &[&Input<V>]) -> Result<u64> {
    for input in chain {
        refuse_fragment(&input.name, input.delta.header())?;
    }
    of_states(&parts(chain)).map(|sizes| sizes.volume_size)
}

fn parts<'a, V: ReadAt>(chain: &[&'a Input<V>]) -> Vec<Part<'a>> {
    let part = |input: &&'a Input<V>| Part {
        name: &input.name,
        header: input.delta.header(),
        samples: input.delta.samples(),
    };
    chain.iter().map(part).collect()
}

impl<'a, V: ReadAt> View<'a, V> {
    /// The state that `chain`, which is in order, leads to from `below`. A chain that begins with a full copy needs none.
    pub fn open(chain: &[&'a Input<V>], below: Option<Below<'a>>) -> Result<Self> {
        check(chain)?;
        let sizes = of_states(&parts(chain))?;
        if sizes.volume_size > MAX_OFFSET {
            return Err(Error::Usage(format!(
                "a volume of {} bytes is larger than any",
                sizes.volume_size
            )));
        }
        let cut_offs = sizes.cut_off.into_iter();
        let layers = chain
            .iter()
            .zip(cut_offs)
            .map(|(input, cut_off)| Layer::open(input, cut_off));
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let below_bytes = match (&below, layers.first()) {
            (Some(below), Some(first)) => below_bytes(chain, first, below.volume.size_bytes()),
            _ => 0,
        };
        Ok(Self {
            layers,
            below,
            below_bytes,
            size_bytes: sizes.volume_size,
            frames: Frames::default(),
            windows: Kept::new(KEPT_PIECES),
        })
    }

    /// Fills `buffer` from `offset`.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut rest = buffer;
        let mut result = Ok(());
        self.each(offset, rest.len() as u64, &mut |extent, piece| {
            let length = usize::try_from(extent.length()).unwrap_or(usize::MAX);
            let (now, later) = std::mem::take(&mut rest).split_at_mut(length);
            rest = later;
            result = self.fill(now, extent, piece);
            result.is_ok()
        })?;
        result
    }

    /// What is in `length` bytes from `offset` on, without reading frames: joined, in order, without gaps. What is called
    /// zero reads as zeroes; what is called data may do so, too. At most `most` extents.
    pub fn map(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Change>> {
        let mut found: Vec<Change> = Vec::new();
        let mut result = Ok(());
        let mut note = |extent: Extent, kind| {
            let joined = found.last().filter(|last| last.kind == kind);
            match joined.and_then(|last| Extent::from_range(last.extent.offset(), extent.end())) {
                Some(extent) => {
                    found.pop();
                    found.push(Change { extent, kind });
                }
                None => found.push(Change { extent, kind }),
            }
            // One more than asked for: the last of those that are may go on.
            found.len() <= most
        };
        self.each(offset, length, &mut |extent, piece| match piece {
            Some(piece) => note(extent, piece.kind()),
            None => match self.below_map(extent, &mut note) {
                Ok(more) => more,
                Err(error) => {
                    result = Err(error);
                    false
                }
            },
        })?;
        result?;
        found.truncate(most);
        Ok(found)
    }

    /// What the base does not tell in `length` bytes from `offset` on: what a delta has there, and what is past the base. In
    /// order; all else is in the base what it is in the state.
    pub fn over_base(&self, offset: u64, length: u64) -> Result<Vec<Change>> {
        let mut found = Vec::new();
        self.each(offset, length, &mut |extent, piece| {
            let past = Extent::from_range(extent.offset().max(self.below_bytes), extent.end());
            found.extend(match piece {
                Some(piece) => Some(Change {
                    extent,
                    kind: piece.kind(),
                }),
                None => past.map(|extent| Change {
                    extent,
                    kind: Kind::Zero,
                }),
            });
            true
        })?;
        Ok(found)
    }

    /// The parts of the base in `extent`, data or zero.
    fn below_map(
        &self,
        extent: Extent,
        note: &mut dyn FnMut(Extent, Kind) -> bool,
    ) -> Result<bool> {
        let mut at = extent.offset();
        while at < extent.end() {
            let data = match &self.below {
                Some(below) if at < self.below_bytes => below
                    .volume
                    .next_data(at)
                    .map_err(|error| Error::io(format!("cannot look at {}", below.name), error))?,
                _ => None,
            };
            let end = self.below_bytes.min(extent.end());
            let data = data
                .and_then(|data| Extent::from_range(data.offset().max(at), data.end().min(end)));
            let zero_to = data.map_or(extent.end(), Extent::offset);
            if let Some(zero) = Extent::from_range(at, zero_to)
                && !note(zero, Kind::Zero)
            {
                return Ok(false);
            }
            if let Some(data) = data
                && !note(data, Kind::Data)
            {
                return Ok(false);
            }
            at = data.map_or(extent.end(), Extent::end);
        }
        Ok(true)
    }

    /// Every piece of `length` bytes from `offset` on, and `None` for what the base holds, in order, until `tell` says no.
    fn each(
        &self,
        offset: u64,
        length: u64,
        tell: &mut dyn FnMut(Extent, Option<&Piece>) -> bool,
    ) -> Result<()> {
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= self.size_bytes);
        let Some(end) = end else {
            let past = format!(
                "the state has {} bytes ({})",
                self.size_bytes,
                Bytes(self.size_bytes)
            );
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, past);
            return Err(Error::io(
                format!("cannot read {length} bytes at {offset}"),
                error,
            ));
        };
        let mut at = offset;
        while at < end {
            let window = at / WINDOW_BYTES;
            let window_end = (window + 1).saturating_mul(WINDOW_BYTES).min(end);
            let pieces = self.window(window)?;
            let mut next = pieces.partition_point(|piece| piece.extent().end() <= at);
            while at < window_end {
                let piece = pieces.get(next);
                let starts = piece.map_or(window_end, |piece| piece.extent().offset());
                let (to, piece) = match piece {
                    Some(piece) if starts <= at => (piece.extent().end(), Some(piece)),
                    _ => (starts, None),
                };
                let Some(extent) = Extent::from_range(at, to.min(window_end)) else {
                    break;
                };
                if !tell(extent, piece) {
                    return Ok(());
                }
                at = extent.end();
                next += usize::from(piece.is_some());
            }
        }
        Ok(())
    }

    fn fill(&self, buffer: &mut [u8], extent: Extent, piece: Option<&Piece>) -> Result<()> {
        let Some(piece) = piece else {
            return self.fill_from_below(buffer, extent);
        };
        if piece.kind() == Kind::Zero {
            buffer.fill(0);
            return Ok(());
        }
        let (delta, at, stored_length) = piece.origin();
        let Some(layer) = self.layers.get(delta) else {
            let error = io::ErrorKind::NotFound.into();
            return Err(Error::io("cannot find a delta of the chain", error));
        };
        if is_unknown(piece) {
            return Err(layer.fault(extent));
        }
        let key = (delta, at);
        self.frames
            .fill(layer.input, key, stored_length, (extent, buffer))
    }

    fn fill_from_below(&self, buffer: &mut [u8], extent: Extent) -> Result<()> {
        let held = self.below_bytes.saturating_sub(extent.offset());
        let held = usize::try_from(held)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let (held, past) = buffer.split_at_mut(held);
        past.fill(0);
        match &self.below {
            Some(below) if !held.is_empty() => below
                .volume
                .read_exact_at(held, extent.offset())
                .map_err(|error| Error::io(format!("cannot read {}", below.name), error)),
            _ => Ok(()),
        }
    }

    fn window(&self, number: u64) -> Result<Arc<Vec<Piece>>> {
        if let Some(found) = self.windows.get(&number) {
            return Ok(found);
        }
        let start = number.saturating_mul(WINDOW_BYTES);
        let part = Extent::from_range(
            start,
            start.saturating_add(WINDOW_BYTES).min(self.size_bytes),
        );
        let found = match part {
            Some(part) => pieces(&self.layers, part, self.size_bytes)?,
            None => Vec::new(),
        };
        let found = Arc::new(found);
        let weight = found.len().max(LEAST_PIECES);
        self.windows.put(number, found.clone(), weight);
        Ok(found)
    }
}

/// How much of the base is of the state. A device may be longer than what was put on it; an undo may put back more than the
/// state had in its day, and leaves alone what was there besides.
fn below_bytes<V: ReadAt>(chain: &[&Input<V>], first: &Layer<'_, V>, size_bytes: u64) -> u64 {
    let is_undo = |input: &&Input<V>| input.delta.header().source == Source::Undo;
    let begins = first.input.delta.header().base_size;
    match begins {
        Some(begins) if !chain.iter().any(is_undo) => begins.min(size_bytes),
        _ => size_bytes,
    }
}

impl<V: ReadAt> ReadAt for View<'_, V> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buffer, offset).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => source,
            error => io::Error::other(error),
        })
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Extent>> {
        let mut at = offset;
        while at < self.size_bytes {
            let left = (self.size_bytes - at).min(WINDOW_BYTES);
            for Change { extent, kind } in
                self.map(at, left, usize::MAX).map_err(io::Error::other)?
            {
                if kind == Kind::Data {
                    return Ok(Some(extent));
                }
            }
            at = at.saturating_add(left);
        }
        Ok(None)
    }
}
