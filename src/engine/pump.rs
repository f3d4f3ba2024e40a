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
    if workers == 1 && !sink.waits_for_device() {
        return pump_here(source, changes, sink, options);
    }
    // With one processor nothing is gained by working further ahead, and every buffer costs page faults.
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

/// With one processor, and with somebody else to empty what the sink fills, reading ahead saves less than it
/// costs: two switches of threads for each step that is handed over, and page faults for each buffer.
fn pump_here(
    source: &dyn ReadAt,
    changes: &ChangeList,
    sink: &mut dyn FrameSink,
    options: &PumpOptions<'_>,
) -> Result<()> {
    let mut reader = Reader::new(source, options)?;
    let mut delivery = Delivery::new(sink, options);
    let mut batch = Batch::default();
    for step in steps(changes, source.gap_worth_reading()) {
        options.cancel.check()?;
        reader.read(step, &mut batch)?;
        delivery.deliver(&batch)?;
    }
    delivery.finish()
}

fn worker_count(changes: &ChangeList) -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    if changes.len() < 2 && changes.total_bytes() <= MAX_FRAME_BYTES {
        return 1;
    }
    processors.clamp(1, MAX_WORKERS)
}

/// What was made of one step.
struct Batch {
    buffer: AlignedBuffer,
    packed: Vec<u8>,
    frames: Vec<Frame>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            buffer: AlignedBuffer::new(0),
            packed: Vec::new(),
            frames: Vec::new(),
        }
    }
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
    let mut delivery = Delivery::new(sink, options);
    for (from_worker, give_back) in lanes.iter().cycle() {
        options.cancel.check()?;
        let Ok(batch) = from_worker.recv() else { break };
        let batch = batch?;
        delivery.deliver(&batch)?;
        // The worker may have ended: then nobody needs the buffer.
        let _ = give_back.try_send(batch);
    }
    delivery.finish()
}

/// Frames on their way into the sink.
struct Delivery<'a> {
    sink: &'a mut dyn FrameSink,
    options: &'a PumpOptions<'a>,
    /// Zeroes that follow each other become one frame, over any number of steps.
    zeroes: Option<Extent>,
}

impl<'a> Delivery<'a> {
    fn new(sink: &'a mut dyn FrameSink, options: &'a PumpOptions<'a>) -> Self {
        Self {
            sink,
            options,
            zeroes: None,
        }
    }

    fn deliver(&mut self, batch: &Batch) -> Result<()> {
        for frame in &batch.frames {
            match frame.body {
                Body::Zero => match &mut self.zeroes {
                    Some(run) if run.end() == frame.extent.offset() => {
                        self.zeroes = Extent::from_range(run.offset(), frame.extent.end());
                    }
                    _ => {
                        if let Some(run) = self.zeroes.replace(frame.extent) {
                            self.sink.zero(run)?;
                        }
                    }
                },
                Body::Data {
                    codec,
                    start,
                    length,
                    crc,
                } => {
                    if let Some(run) = self.zeroes.take() {
                        self.sink.zero(run)?;
                    }
                    let bytes: &[u8] = if codec == Codec::None {
                        &batch.buffer
                    } else {
                        &batch.packed
                    };
                    let stored = &bytes[start..start + length];
                    self.sink.data(frame.extent, codec, stored, crc)?;
                }
            }
            self.options.monitor.advance(frame.extent.length());
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match self.zeroes {
            Some(run) => self.sink.zero(run),
            None => Ok(()),
        }
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
        let mut reader = match Reader::new(self.source, options) {
            Ok(reader) => reader,
            Err(error) => {
                let _ = self.to_sink.send(Err(error));
                return;
            }
        };
        for step in steps(self.changes, self.source.gap_worth_reading())
            .skip(self.number)
            .step_by(self.workers)
        {
            if options.cancel.is_cancelled() {
                let _ = self.to_sink.send(Err(Error::Interrupted));
                return;
            }
            let mut batch = self.buffers.try_recv().unwrap_or_default();
            let batch = reader.read(step, &mut batch).map(|()| batch);
            let failed = batch.is_err();
            if self.to_sink.send(batch).is_err() || failed {
                return;
            }
        }
    }
}

/// Reads steps, and packs what it read.
struct Reader<'a> {
    source: &'a dyn ReadAt,
    options: &'a PumpOptions<'a>,
    compressor: Compressor,
    scratch: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(source: &'a dyn ReadAt, options: &'a PumpOptions<'a>) -> Result<Self> {
        let compressor = Compressor::new(options.compression)
            .map_err(|error| Error::io("cannot start zstd", error))?;
        Ok(Self {
            source,
            options,
            compressor,
            scratch: Vec::new(),
        })
    }

    fn read(&mut self, step: Step, batch: &mut Batch) -> Result<()> {
        batch.frames.clear();
        batch.packed.clear();
        let (read, frames) = match step {
            Step::Zero(extent) => {
                batch.frames.push(Frame {
                    extent,
                    body: Body::Zero,
                });
                return Ok(());
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
                    self.options.name
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
                            &mut self.compressor,
                            &mut self.scratch,
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
        Ok(())
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
