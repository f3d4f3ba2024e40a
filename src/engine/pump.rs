//! Reads a change list from a volume and delivers it as frames, in order.
//!
//! Guarantees: frames reach the sink in ascending order, whatever thread read them; each carries the
//! checksum that was computed right after it was read; at most `AHEAD` steps a worker are in memory.
//!
//! Every worker walks the same plan and takes each n-th step of it, and the sink's thread asks the workers
//! in turn: the order is kept without a queue to sort, and reads, compression and delivery overlap.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::plan::{Step, steps};
use super::{FrameSink, zeroes};
use crate::cancel::Cancel;
use crate::change_list::ChangeList;
use crate::delta::MAX_FRAME_BYTES;
use crate::delta::codec::{Codec, Compression, Compressor};
use crate::error::{Error, Result};
use crate::extent::{Extent, Kind};
use crate::monitor::Monitor;
use crate::sys::aligned::AlignedBuffer;
use crate::volume::ReadAt;

/// Steps that a worker may be ahead of the sink. Each costs a buffer of up to 1 MiB.
const AHEAD: usize = 2;
/// Larger steps get a buffer for the largest, so that it need not grow step by step.
const SMALL_STEP_BYTES: usize = 64 << 10;
/// More readers do not help a disk, and each costs buffers.
const MAX_WORKERS: usize = 4;

/// What is read and how it is packed.
pub struct PumpOptions<'a> {
    /// Name of the volume for messages.
    pub name: &'a str,
    /// How payloads are compressed.
    pub compression: Compression,
    /// Stops the run.
    pub cancel: &'a Cancel,
    /// Hears of every frame delivered.
    pub monitor: &'a dyn Monitor,
}

/// Delivers all of `changes`, read from `source`, to `sink`.
pub fn pump(
    source: &dyn ReadAt,
    changes: &ChangeList,
    sink: &mut dyn FrameSink,
    options: &PumpOptions<'_>,
) -> Result<()> {
    let workers = worker_count(changes);
    // With one processor nothing is gained by working ahead, and every buffer costs page faults.
    let ahead = if workers == 1 { 1 } else { AHEAD };
    thread::scope(|scope| {
        let mut lanes = Vec::with_capacity(workers);
        for number in 0..workers {
            let (to_sink, from_worker) = sync_channel(ahead);
            let (give_back, buffers) = sync_channel(ahead + 2);
            let worker = Worker {
                source,
                changes,
                number,
                workers,
                buffers,
                to_sink,
            };
            scope.spawn(move || worker.run(options));
            lanes.push((from_worker, give_back));
        }
        let result = deliver(&lanes, sink, options);
        // Dropping the receivers ends the workers, wherever they are.
        drop(lanes);
        result
    })
}

fn worker_count(changes: &ChangeList) -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    if changes.len() < 2 && changes.total_bytes() <= MAX_FRAME_BYTES {
        return 1;
    }
    processors.clamp(1, MAX_WORKERS)
}

/// What a worker made of one step.
struct Batch {
    buffer: AlignedBuffer,
    packed: Vec<u8>,
    frames: Vec<Frame>,
}

struct Frame {
    extent: Extent,
    body: Body,
}

enum Body {
    Zero,
    /// A range of the batch's `buffer`, or of `packed` where it is compressed.
    Data {
        codec: Codec,
        start: usize,
        length: usize,
        crc: u32,
    },
}

type Lane = (Receiver<Result<Batch>>, SyncSender<Batch>);

fn deliver(lanes: &[Lane], sink: &mut dyn FrameSink, options: &PumpOptions<'_>) -> Result<()> {
    // Zeroes that follow each other become one frame, over any number of steps.
    let mut zeroes: Option<Extent> = None;
    for (from_worker, give_back) in lanes.iter().cycle() {
        options.cancel.check()?;
        let Ok(batch) = from_worker.recv() else { break };
        let batch = batch?;
        for frame in &batch.frames {
            match frame.body {
                Body::Zero => match &mut zeroes {
                    Some(run) if run.end() == frame.extent.offset() => {
                        zeroes = Extent::from_range(run.offset(), frame.extent.end());
                    }
                    _ => {
                        if let Some(run) = zeroes.replace(frame.extent) {
                            sink.zero(run)?;
                        }
                    }
                },
                Body::Data {
                    codec,
                    start,
                    length,
                    crc,
                } => {
                    if let Some(run) = zeroes.take() {
                        sink.zero(run)?;
                    }
                    let bytes: &[u8] = if codec == Codec::None {
                        &batch.buffer
                    } else {
                        &batch.packed
                    };
                    sink.data(frame.extent, codec, &bytes[start..start + length], crc)?;
                }
            }
            options.monitor.advance(frame.extent.length());
        }
        // The worker may have ended: then nobody needs the buffer.
        let _ = give_back.try_send(batch);
    }
    match zeroes {
        Some(run) => sink.zero(run),
        None => Ok(()),
    }
}

struct Worker<'a> {
    source: &'a dyn ReadAt,
    changes: &'a ChangeList,
    number: usize,
    workers: usize,
    buffers: Receiver<Batch>,
    to_sink: SyncSender<Result<Batch>>,
}

impl Worker<'_> {
    fn run(self, options: &PumpOptions<'_>) {
        let mut compressor = match Compressor::new(options.compression) {
            Ok(compressor) => compressor,
            Err(error) => {
                let _ = self
                    .to_sink
                    .send(Err(Error::io("cannot start zstd", error)));
                return;
            }
        };
        let mut scratch = Vec::new();
        for step in steps(self.changes, self.source.gap_worth_reading())
            .skip(self.number)
            .step_by(self.workers)
        {
            if options.cancel.is_cancelled() {
                let _ = self.to_sink.send(Err(Error::Interrupted));
                return;
            }
            let batch = self.read(step, &mut compressor, &mut scratch, options);
            let failed = batch.is_err();
            if self.to_sink.send(batch).is_err() || failed {
                return;
            }
        }
    }

    fn read(
        &self,
        step: Step,
        compressor: &mut Compressor,
        scratch: &mut Vec<u8>,
        options: &PumpOptions<'_>,
    ) -> Result<Batch> {
        let mut batch = self.buffers.try_recv().unwrap_or_else(|_| Batch {
            buffer: AlignedBuffer::new(0),
            packed: Vec::new(),
            frames: Vec::new(),
        });
        batch.frames.clear();
        batch.packed.clear();
        let (read, frames) = match step {
            Step::Zero(extent) => {
                batch.frames.push(Frame {
                    extent,
                    body: Body::Zero,
                });
                return Ok(batch);
            }
            Step::Read { read, frames } => (read, frames),
        };
        let length = usize::try_from(read.length()).unwrap_or(0);
        if batch.buffer.len() < length {
            let largest = usize::try_from(MAX_FRAME_BYTES).unwrap_or(length);
            let room = if length <= SMALL_STEP_BYTES {
                SMALL_STEP_BYTES
            } else {
                largest
            };
            batch.buffer = AlignedBuffer::new(room);
        }
        self.source
            .read_exact_at(&mut batch.buffer[..length], read.offset())
            .map_err(|error| {
                let action = format!(
                    "cannot read {} bytes at {} of {}",
                    length,
                    read.offset(),
                    options.name
                );
                Error::io(action, error)
            })?;
        for extent in frames {
            let start = usize::try_from(extent.offset() - read.offset()).unwrap_or(0);
            let end = start + usize::try_from(extent.length()).unwrap_or(0);
            for (range, kind) in zeroes::split(&batch.buffer[start..end]) {
                let at = extent.offset() + range.start as u64;
                let Some(piece) = Extent::new(at, range.len() as u64) else {
                    continue;
                };
                let body = match kind {
                    Kind::Zero => Body::Zero,
                    Kind::Data => {
                        let data = &batch.buffer[start + range.start..start + range.end];
                        pack(
                            data,
                            start + range.start,
                            compressor,
                            scratch,
                            &mut batch.packed,
                        )
                    }
                };
                batch.frames.push(Frame {
                    extent: piece,
                    body,
                });
            }
        }
        Ok(batch)
    }
}

/// Compresses `data`, which stands at `start` of the batch's buffer, where that makes it smaller.
fn pack(
    data: &[u8],
    start: usize,
    compressor: &mut Compressor,
    scratch: &mut Vec<u8>,
    packed: &mut Vec<u8>,
) -> Body {
    match compressor.compress(data, scratch) {
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
