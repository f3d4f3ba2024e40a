//! What one step of a plan becomes: frames of data and zeroes, packed, in one batch that goes round between threads.
//!
//! Guarantees: each frame carries the checksum of what was packed, which is computed where it was read; a batch that is used
//! again keeps its memory and nothing else.

use std::time::{Duration, Instant};

use super::effort::{Effort, Packer};
use super::zeroes;
use crate::blocks::usize_of;
use crate::delta::MAX_FRAME_BYTES;
use crate::delta::codec::Codec;
use crate::error::Result;
use crate::extent::{Extent, Kind};
use crate::sys::aligned::AlignedBuffer;

/// Larger steps get a buffer for the largest, so that it need not grow step by step.
const SMALL_STEP_BYTES: usize = 64 << 10;

/// What was made of one step, or of some in which there was nothing to deliver.
pub(super) struct Batch {
    /// What was read, as far as frames are made of it.
    pub(super) buffer: AlignedBuffer,
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
    /// Forgets the step before.
    pub(super) fn begin(&mut self) {
        self.frames.clear();
        self.packed.clear();
    }

    /// Has room for `length` bytes, at most 1 MiB.
    pub(super) fn make_room(&mut self, length: usize) {
        if self.buffer.len() < length {
            let room = if length <= SMALL_STEP_BYTES {
                SMALL_STEP_BYTES
            } else {
                usize_of(MAX_FRAME_BYTES)
            };
            self.buffer = AlignedBuffer::new(room);
        }
    }

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

    pub(super) fn push_zero(&mut self, extent: Extent) {
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

/// What makes frames of bytes in a batch's buffer.
pub(super) struct Packing<'a> {
    packer: Packer<'a>,
    scratch: Vec<u8>,
    /// How long the step took of that so far.
    compressing: Duration,
}

/// Where a stretch of the volume stands in a buffer.
#[derive(Clone, Copy)]
pub(super) struct Placed {
    /// Volume offset of its first byte.
    pub(super) offset: u64,
    /// Where in the buffer that one is.
    pub(super) start: usize,
}

impl Placed {
    /// Where the byte at `offset` of the volume is.
    pub(super) fn of(self, offset: u64) -> usize {
        self.start + usize_of(offset - self.offset)
    }
}

impl<'a> Packing<'a> {
    pub(super) fn new(effort: &'a Effort) -> Result<Self> {
        Ok(Self {
            packer: Packer::new(effort)?,
            scratch: Vec::new(),
            compressing: Duration::ZERO,
        })
    }

    /// For a step that begins.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.compressing = Duration::ZERO;
        self.packer.prepare()
    }

    /// The step has taken so long, with reading and all.
    pub(super) fn end(&self, took: Duration) {
        self.packer.effort().worked(took, self.compressing);
    }

    /// Frames for `extent`, which is in the buffer where `placed` says.
    pub(super) fn pack(&mut self, extent: Extent, placed: Placed, batch: &mut Batch) {
        let start = placed.of(extent.offset());
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
    }
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
