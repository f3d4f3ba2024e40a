//! One step of a plan: read, held against the other volume if there is one, cut into data and zeroes, packed.
//!
//! Guarantees: the frames of a batch ascend and lie in its step; each carries the checksum that was computed right
//! after it was read. Without another volume they cover the step's extents; with one, every block of 4 KiB in which
//! both differ, and no other. Memory is a buffer of up to 1 MiB, another one for the other volume, and what the frames
//! are packed into.

use std::time::{Duration, Instant};

use super::digester::{Side, buffer};
use super::effort::{Effort, Packer};
use super::plan::Step;
use super::zeroes;
use crate::blocks::{BLOCK_BYTES, PIECE_BYTES, cut, differing_runs, is_zero, usize_of};
use crate::change_list::ChangeListBuilder;
use crate::delta::MAX_FRAME_BYTES;
use crate::delta::codec::Codec;
use crate::error::Result;
use crate::extent::{Extent, Kind};
use crate::sys::aligned::AlignedBuffer;

/// Larger steps get a buffer for the largest, so that it need not grow step by step.
const SMALL_STEP_BYTES: usize = 64 << 10;

/// What was made of one step, or of some in which there was nothing to deliver.
pub(super) struct Batch {
    buffer: AlignedBuffer,
    packed: Vec<u8>,
    pub(super) frames: Vec<Frame>,
    /// How many steps it stands for.
    pub(super) steps: u32,
    /// Bytes of the volume that these were about.
    pub(super) covered_bytes: u64,
    /// Volume offset of the end of the first of them: what other workers have is before that of the next.
    pub(super) end: u64,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            buffer: AlignedBuffer::new(0),
            packed: Vec::new(),
            frames: Vec::new(),
            steps: 1,
            covered_bytes: 0,
            end: 0,
        }
    }
}

impl Batch {
    /// The payload of a data frame, which was made by `codec` and stands at `start`.
    pub(super) fn payload(&self, codec: Codec, start: usize, length: usize) -> &[u8] {
        let bytes: &[u8] = if codec == Codec::None {
            &self.buffer
        } else {
            &self.packed
        };
        &bytes[start..start + length]
    }

    /// What is told of a step of which there is nothing to deliver.
    pub(super) fn nothing(&self) -> Self {
        Self {
            covered_bytes: self.covered_bytes,
            end: self.end,
            ..Self::default()
        }
    }

    /// Stands for `next` as well, of which there is nothing to deliver either.
    pub(super) fn add_nothing(&mut self, next: &Self) {
        self.steps += 1;
        self.covered_bytes += next.covered_bytes;
    }

    fn push_zero(&mut self, extent: Extent) {
        let body = Body::Zero;
        self.frames.push(Frame { extent, body });
    }
}

/// A frame, its data somewhere in its batch.
pub(super) struct Frame {
    pub(super) extent: Extent,
    pub(super) body: Body,
}

pub(super) enum Body {
    Zero,
    Data {
        codec: Codec,
        start: usize,
        length: usize,
        crc: u32,
    },
}

/// Reads steps, and packs what it read.
pub(super) struct Reader<'a> {
    source: Side<'a>,
    unlike: Option<Unlike<'a>>,
    packer: Packer<'a>,
    scratch: Vec<u8>,
    compressing: Duration,
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
            packer: Packer::new(effort)?,
            scratch: Vec::new(),
            compressing: Duration::ZERO,
        })
    }

    /// Makes one step, into the room of `batch`.
    pub(super) fn read(&mut self, step: Step, batch: &mut Batch) -> Result<()> {
        batch.frames.clear();
        batch.packed.clear();
        self.packer.prepare()?;
        self.compressing = Duration::ZERO;
        let start = Instant::now();
        let result = self.make(step, batch);
        self.packer
            .effort()
            .worked(start.elapsed(), self.compressing);
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
        let length = usize_of(read.length());
        if batch.buffer.len() < length {
            let room = if length <= SMALL_STEP_BYTES {
                SMALL_STEP_BYTES
            } else {
                usize_of(MAX_FRAME_BYTES)
            };
            batch.buffer = AlignedBuffer::new(room);
        }
        let Some(unlike) = &mut self.unlike else {
            self.source.read(read, &mut batch.buffer)?;
            for extent in frames {
                self.pack(*extent, read, batch)?;
            }
            return Ok(());
        };
        let mut differing = Vec::new();
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
            let start = usize_of(piece.offset() - read.offset());
            let ours = self.source.read(piece, &mut batch.buffer[start..])?;
            unlike.differing(piece, &wanted, ours, &mut differing)?;
        }
        for extent in joined(differing) {
            self.pack(extent, read, batch)?;
        }
        Ok(())
    }

    /// Frames for `extent`, which is in the buffer as part of `read`.
    fn pack(&mut self, extent: Extent, read: Extent, batch: &mut Batch) -> Result<()> {
        let start = usize_of(extent.offset() - read.offset());
        let end = start + usize_of(extent.length());
        for (range, kind) in zeroes::split(&batch.buffer[start..end]) {
            let at = extent.offset() + range.start as u64;
            let Some(piece) = Extent::new(at, range.len() as u64) else {
                continue;
            };
            let body = match kind {
                Kind::Zero => Body::Zero,
                Kind::Data => {
                    let start = start + range.start;
                    let data = &batch.buffer[start..start + range.len()];
                    let began = Instant::now();
                    let (packer, scratch) = (&mut self.packer, &mut self.scratch);
                    let body = pack(data, start, packer, scratch, &mut batch.packed);
                    self.compressing += began.elapsed();
                    body
                }
            };
            batch.frames.push(Frame {
                extent: piece,
                body,
            });
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
fn joined(runs: Vec<Extent>) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::with_capacity(runs.len());
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

/// Compresses `data`, which stands at `start` of the batch's buffer, where that makes it smaller.
fn pack(
    data: &[u8],
    start: usize,
    packer: &mut Packer<'_>,
    scratch: &mut Vec<u8>,
    packed: &mut Vec<u8>,
) -> Body {
    match packer.compress(data, scratch) {
        None => {
            let crc = crc32c::crc32c(data);
            Body::Data {
                codec: Codec::None,
                start,
                length: data.len(),
                crc,
            }
        }
        Some(codec) => {
            let start = packed.len();
            packed.extend_from_slice(scratch);
            Body::Data {
                codec,
                start,
                length: scratch.len(),
                crc: crc32c::crc32c(scratch),
            }
        }
    }
}
