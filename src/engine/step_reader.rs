//! Reads one step of a plan, and holds it against the other volume if there is one.
//!
//! Guarantees: the frames of a batch ascend and lie in its step. Without another volume they cover the step's extents; with
//! one, every block of 4 KiB in which both differ, and no other. Memory is a buffer of up to 1 MiB, another one for the
//! other volume, and what the frames are packed into.

use std::time::Instant;

use super::batch::{Batch, Packing, Placed};
use super::digester::{Side, buffer};
use super::effort::Effort;
use super::plan::Step;
use crate::blocks::{BLOCK_BYTES, PIECE_BYTES, cut, differing_runs, is_zero, usize_of};
use crate::change_list::ChangeListBuilder;
use crate::error::Result;
use crate::extent::{Extent, Kind};
use crate::sys::aligned::AlignedBuffer;

/// Reads steps, and packs what it read.
pub(super) struct Reader<'a> {
    source: Side<'a>,
    unlike: Option<Unlike<'a>>,
    packing: Packing<'a>,
}

/// The volume that has some of it already.
struct Unlike<'a> {
    side: Side<'a>,
    buffer: AlignedBuffer,
}

impl<'a> Reader<'a> {
    /// Reads `source`; with `unlike`, only what differs from that one becomes frames.
    pub(super) fn new(
        source: Side<'a>,
        unlike: Option<Side<'a>>,
        effort: &'a Effort,
    ) -> Result<Self> {
        Ok(Self {
            source,
            unlike: unlike.map(|side| Unlike {
                side,
                buffer: buffer(),
            }),
            packing: Packing::new(effort)?,
        })
    }

    /// Makes one step, into the room of `batch`.
    pub(super) fn read(&mut self, step: Step, batch: &mut Batch) -> Result<()> {
        batch.begin();
        self.packing.begin()?;
        let start = Instant::now();
        let result = self.make(step, batch);
        self.packing.end(start.elapsed());
        result
    }

    fn make(&mut self, step: Step, batch: &mut Batch) -> Result<()> {
        match step {
            Step::Zero(extent) => {
                (batch.covered_bytes, batch.end) = (extent.length(), extent.end());
                match &mut self.unlike {
                    None => batch.push_zero(extent),
                    Some(unlike) => {
                        for run in unlike.not_zero(extent)? {
                            batch.push_zero(run);
                        }
                    }
                }
                Ok(())
            }
            Step::Read { read, frames } => {
                batch.covered_bytes = frames.iter().map(|frame| frame.length()).sum();
                batch.end = read.end();
                self.read_data(read, &frames, batch)
            }
        }
    }

    fn read_data(&mut self, read: Extent, frames: &[Extent], batch: &mut Batch) -> Result<()> {
        batch.make_room(usize_of(read.length()));
        let from_start = Placed {
            offset: read.offset(),
            start: 0,
        };
        let Some(unlike) = &mut self.unlike else {
            self.source.read(read, &mut batch.buffer)?;
            for extent in frames {
                self.packing.pack(*extent, from_start, batch);
            }
            return Ok(());
        };
        let (mut differing, mut placed) = (Vec::new(), from_start);
        let sides = [self.source.volume, unlike.side.volume];
        let at_once = sides
            .map(|side| side.enough_at_once(read))
            .into_iter()
            .max();
        for piece in cut(read, at_once.unwrap_or(PIECE_BYTES)) {
            let wanted = frames.iter().filter_map(|frame| {
                let start = frame.offset().max(piece.offset());
                Extent::from_range(start, frame.end().min(piece.end()))
            });
            let wanted: Vec<Extent> = wanted.collect();
            // It may lie between two frames.
            if wanted.is_empty() {
                continue;
            }
            let start = placed.of(piece.offset());
            let ours = self.source.read(piece, &mut batch.buffer[start..])?;
            let before = differing.len();
            unlike.differing(piece, &wanted, ours, &mut differing)?;
            if differing.len() == before {
                // Nobody needs it: the next one takes its place, which the processor has at hand.
                for extent in joined(differing.drain(..)) {
                    self.packing.pack(extent, placed, batch);
                }
                placed = Placed {
                    offset: piece.end(),
                    start,
                };
            }
        }
        for extent in joined(differing) {
            self.packing.pack(extent, placed, batch);
        }
        Ok(())
    }
}

impl Unlike<'_> {
    /// Adds what of `frames` is not as in `ours`, which is `read` of the source. What is past the end differs.
    fn differing(
        &mut self,
        read: Extent,
        frames: &[Extent],
        ours: &[u8],
        differing: &mut Vec<Extent>,
    ) -> Result<()> {
        let size_bytes = self.side.volume.size_bytes();
        let theirs = match Extent::from_range(read.offset(), read.end().min(size_bytes)) {
            Some(inside) => self.side.read(inside, &mut self.buffer)?,
            None => &[],
        };
        for frame in frames {
            let place = |at: u64| usize_of(at - read.offset());
            if let Some(inside) = Extent::from_range(frame.offset(), frame.end().min(size_bytes)) {
                let range = place(inside.offset())..place(inside.end());
                differing_runs(inside, &ours[range.clone()], &theirs[range], differing);
            }
            differing.extend(Extent::from_range(
                frame.offset().max(size_bytes),
                frame.end(),
            ));
        }
        Ok(())
    }

    /// The blocks of `extent`, which fits the buffer, that are not zero; joined where they touch.
    fn not_zero(&mut self, extent: Extent) -> Result<Vec<Extent>> {
        let size_bytes = self.side.volume.size_bytes();
        let mut runs = ChangeListBuilder::default();
        let inside = Extent::from_range(extent.offset(), extent.end().min(size_bytes));
        if let Some(inside) = inside.filter(|inside| !self.is_hole(*inside)) {
            let theirs = self.side.read(inside, &mut self.buffer)?;
            for block in cut(inside, BLOCK_BYTES) {
                let start = usize_of(block.offset() - inside.offset());
                if !is_zero(&theirs[start..start + usize_of(block.length())]) {
                    runs.push(block, Kind::Zero);
                }
            }
        }
        if let Some(beyond) = Extent::from_range(extent.offset().max(size_bytes), extent.end()) {
            runs.push(beyond, Kind::Zero);
        }
        Ok(runs.finish().iter().map(|run| run.extent).collect())
    }

    /// Known to be zero without a look. Where that cannot be told, it is read.
    fn is_hole(&self, extent: Extent) -> bool {
        let next = self.side.volume.next_data(extent.offset());
        next.is_ok_and(|data| data.is_none_or(|data| data.offset() >= extent.end()))
    }
}

/// Runs that were found piece by piece.
fn joined(runs: impl IntoIterator<Item = Extent>) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.end() == run.offset() => {
                *last = Extent::from_range(last.offset(), run.end()).unwrap_or(*last);
            }
            _ => joined.push(run),
        }
    }
    joined
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]
mod tests {
    use super::*;
    use crate::delta::codec::Compression;
    use crate::engine::batch::Body;
    use crate::volume::memory::MemoryVolume;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const BLOCK: usize = BLOCK_BYTES as usize;

    /// Blocks of a step of a MiB that differ: most of its pieces have none, or some here and there.
    fn places() -> impl Strategy<Value = Vec<usize>> {
        let block = (0..4_usize, 0..64_usize).prop_map(|(piece, block)| piece * 64 + block);
        prop_oneof![
            prop::collection::vec(block, 0..6),
            prop::collection::vec(0..256_usize, 0..200),
        ]
    }

    proptest! {
        #[test]
        fn what_differs_comes_with_its_bytes_whatever_is_equal_around_it(
            places in places(), offset in 0..3_u64, cut in 0..2000_u64,
        ) {
            let start = offset * BLOCK_BYTES;
            let read = Extent::from_range(start, start + PIECE_BYTES - cut).unwrap();
            // Noise: no block is like another.
            let mut bytes = vec![0; read.end() as usize];
            blake3::Hasher::new().finalize_xof().fill(&mut bytes);
            let ours = bytes.clone();
            let last = read.end() as usize - 1;
            let differing: BTreeSet<usize> =
                places.iter().map(|place| (start as usize + place * BLOCK).min(last)).collect();
            differing.iter().for_each(|place| bytes[*place] ^= 1);
            let mut expected: Vec<usize> = differing.iter().map(|place| place / BLOCK).collect();
            expected.dedup();
            let volumes = [ours.clone(), bytes].map(MemoryVolume::new);
            let [source, unlike] = volumes.each_ref().map(|volume| Side { volume, name: "v" });
            let effort = Effort::new(Compression::None);
            let mut reader = Reader::new(source, Some(unlike), &effort).unwrap();
            let mut batch = Batch::default();
            // What the step before has left must not shine through.
            for _ in 0..2 {
                let step = Step::Read { read, frames: vec![read] };
                reader.read(step, &mut batch).unwrap();
                let mut found = Vec::new();
                for frame in &batch.frames {
                    let Body::Data { codec, start, length, crc } = frame.body else {
                        return Err(TestCaseError::fail("there are no zeroes"));
                    };
                    let stored = batch.payload(codec, start, length);
                    prop_assert_eq!(crc, crc32c::crc32c(stored));
                    let range = frame.extent.offset() as usize..frame.extent.end() as usize;
                    prop_assert!(stored == &ours[range.clone()], "at {:?}", range);
                    found.extend(range.start / BLOCK..range.end.div_ceil(BLOCK));
                }
                prop_assert_eq!(&found, &expected);
            }
        }
    }
}
