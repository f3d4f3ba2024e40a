//! Reads a change list from a volume and delivers it as frames, in order.
//!
//! Guarantees: frames reach the sink in ascending order, whatever thread read them; each carries the
//! checksum that was computed right after it was read; at most `AHEAD` steps a worker are in memory. With
//! another volume to be held against, only what differs from that one reaches the sink.
//!
//! Every worker walks the same plan and takes each n-th step of it, and the sink's thread asks the workers
//! in turn: the order is kept without a queue to sort, and reads, compression and delivery overlap.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use std::time::{Duration, Instant};

use super::FrameSink;
use super::batch::{Batch, Body, Reader};
use super::digester::Side;
use super::effort::{Effort, Waits};
use super::plan::{Step, steps};
use crate::blocks::{PIECE_BYTES, cut};
use crate::cancel::Cancel;
use crate::change_list::ChangeList;
use crate::delta::MAX_FRAME_BYTES;
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::monitor::Monitor;

/// Steps that a worker may be ahead of the sink. Each costs a buffer of up to 1 MiB.
const AHEAD: usize = 2;
/// More readers do not help a disk, and each costs buffers.
const MAX_WORKERS: usize = 4;
/// How often the sink is told how far both volumes are the same.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What is read and how it is packed.
pub struct PumpOptions<'a> {
    /// How payloads are compressed.
    pub effort: &'a Effort,
    /// Stops the run.
    pub cancel: &'a Cancel,
    /// Hears of every step delivered.
    pub monitor: &'a dyn Monitor,
    /// Leave out what is the same in this volume, and say now and then how far it is so.
    pub unlike: Option<Side<'a>>,
}

/// Delivers all of `changes`, read from `source`, to `sink`.
pub fn pump(
    source: Side<'_>,
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
    source: Side<'_>,
    changes: &ChangeList,
    sink: &mut dyn FrameSink,
    options: &PumpOptions<'_>,
) -> Result<()> {
    let mut reader = Reader::new(source, options.unlike, options.effort)?;
    let mut delivery = Delivery::new(sink, options);
    let mut batch = Batch::default();
    for step in plan(changes, source, options) {
        options.cancel.check()?;
        reader.read(step, &mut batch)?;
        delivery.deliver(&batch)?;
    }
    delivery.finish()
}

/// Zeroes that are held against the other volume are read there, so they are cut like everything that is read.
fn plan<'a>(
    changes: &'a ChangeList,
    source: Side<'_>,
    options: &PumpOptions<'_>,
) -> impl Iterator<Item = Step> + use<'a> {
    let compares = options.unlike.is_some();
    steps(changes, source.volume.gap_worth_reading()).flat_map(move |step| match step {
        Step::Zero(extent) if compares => Pieces::Cut(Box::new(cut(extent, PIECE_BYTES))),
        step => Pieces::Whole(Some(step)),
    })
}

/// One step, or what it was cut into.
enum Pieces {
    Whole(Option<Step>),
    Cut(Box<dyn Iterator<Item = Extent>>),
}

impl Iterator for Pieces {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        match self {
            Pieces::Whole(step) => step.take(),
            Pieces::Cut(pieces) => pieces.next().map(Step::Zero),
        }
    }
}

fn worker_count(changes: &ChangeList) -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    if changes.len() < 2 && changes.total_bytes() <= MAX_FRAME_BYTES {
        return 1;
    }
    processors.clamp(1, MAX_WORKERS)
}

/// From a worker, and back for its buffers.
type Lane = (Receiver<Result<Batch>>, SyncSender<Batch>);

fn deliver(lanes: &[Lane], sink: &mut dyn FrameSink, options: &PumpOptions<'_>) -> Result<()> {
    let mut delivery = Delivery::new(sink, options);
    let mut waits = Waits::default();
    for (from_worker, give_back) in lanes.iter().cycle() {
        options.cancel.check()?;
        let start = Instant::now();
        let Ok(batch) = from_worker.recv() else { break };
        let batch = batch?;
        waits.for_workers += start.elapsed();
        let start = Instant::now();
        delivery.deliver(&batch)?;
        waits.for_sink += start.elapsed();
        options.effort.judge(&mut waits);
        // The worker kept its buffer, or may have ended: then nobody needs this one.
        if !batch.frames.is_empty() {
            let _ = give_back.try_send(batch);
        }
    }
    delivery.finish()
}

/// Frames on their way into the sink.
struct Delivery<'a> {
    sink: &'a mut dyn FrameSink,
    options: &'a PumpOptions<'a>,
    /// Zeroes that follow each other become one frame, over any number of steps.
    zeroes: Option<Extent>,
    /// When the sink was told how far all is the same.
    told: Instant,
}

impl<'a> Delivery<'a> {
    fn new(sink: &'a mut dyn FrameSink, options: &'a PumpOptions<'a>) -> Self {
        Self {
            sink,
            options,
            zeroes: None,
            told: Instant::now(),
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
                    let stored = batch.payload(codec, start, length);
                    self.sink.data(frame.extent, codec, stored, crc)?;
                }
            }
        }
        self.options.monitor.advance(batch.covered_bytes);
        if self.options.unlike.is_some() && self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            if let Some(run) = self.zeroes.take() {
                self.sink.zero(run)?;
            }
            self.sink.position(batch.end)?;
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
    source: Side<'a>,
    changes: &'a ChangeList,
    number: usize,
    workers: usize,
    buffers: Receiver<Batch>,
    to_sink: SyncSender<Result<Batch>>,
}

impl Worker<'_> {
    fn run(self, options: &PumpOptions<'_>) {
        let reader = Reader::new(self.source, options.unlike, options.effort);
        let mut reader = match reader {
            Ok(reader) => reader,
            Err(error) => {
                let _ = self.to_sink.send(Err(error));
                return;
            }
        };
        let mut spare = None;
        for step in plan(self.changes, self.source, options)
            .skip(self.number)
            .step_by(self.workers)
        {
            if options.cancel.is_cancelled() {
                let _ = self.to_sink.send(Err(Error::Interrupted));
                return;
            }
            let mut batch = spare
                .take()
                .or_else(|| self.buffers.try_recv().ok())
                .unwrap_or_default();
            let made = reader.read(step, &mut batch).map(|()| {
                if batch.frames.is_empty() {
                    // The buffer stays, warm as it is.
                    let nothing = batch.nothing();
                    spare = Some(batch);
                    nothing
                } else {
                    batch
                }
            });
            let failed = made.is_err();
            if self.to_sink.send(made).is_err() || failed {
                return;
            }
        }
    }
}
