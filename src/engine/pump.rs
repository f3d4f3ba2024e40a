//! Reads a change list from a volume and delivers it as frames, in order.
//!
//! Guarantees: frames reach the sink in ascending order, whatever thread read them; each carries the
//! checksum that was computed right after it was read; at most `AHEAD` steps a worker wait in memory. With
//! another volume to be held against, only what differs from that one reaches the sink.
//!
//! Every worker walks the same plan and takes each n-th step of it, and the sink's thread asks the workers
//! in turn: the order is kept without a queue to sort, and reads, compression and delivery overlap. Of steps in which
//! there is nothing to deliver it is told some at a time, for to wake it costs as much as to compare 16 KiB.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use std::time::{Duration, Instant};

use super::FrameSink;
use super::batch::{Batch, Body};
use super::digester::Side;
use super::effort::{Effort, Waits};
use super::plan::{Step, steps};
use super::step_reader::Reader;
use crate::blocks::{PIECE_BYTES, cut};
use crate::cancel::Cancel;
use crate::change_list::ChangeList;
use crate::delta::MAX_FRAME_BYTES;
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::monitor::Monitor;

/// Steps that a worker may be ahead of the sink. Each costs a buffer of up to 1 MiB.
const AHEAD: usize = 2;
/// Steps with nothing to deliver that the sink's thread is told of in one go.
const NOTHING_STEPS: u32 = 16;
/// More readers do not help a disk, and each costs buffers.
const MAX_WORKERS: usize = 4;
/// How often the sink is told how far both volumes are the same.
const TELL_EVERY: Duration = if cfg!(test) {
    Duration::ZERO
} else {
    Duration::from_secs(1)
};

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
    // How many steps of each lane were told of already.
    let mut told = vec![0_u32; lanes.len()];
    for (number, (from_worker, give_back)) in lanes.iter().enumerate().cycle() {
        options.cancel.check()?;
        if let Some(told) = told.get_mut(number).filter(|told| **told > 0) {
            *told -= 1;
            continue;
        }
        let start = Instant::now();
        let Ok(batch) = from_worker.recv() else { break };
        let batch = batch?;
        waits.for_workers += start.elapsed();
        if let Some(told) = told.get_mut(number) {
            *told = batch.steps - 1;
        }
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
        let (mut spare, mut nothing) = (None, None::<Batch>);
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
            let made = reader.read(step, &mut batch);
            let is_nothing = made.is_ok() && batch.frames.is_empty();
            if is_nothing {
                match &mut nothing {
                    Some(before) => before.add_nothing(&batch),
                    None => nothing = Some(batch.nothing()),
                }
            }
            let is_enough = |told: &mut Batch| !is_nothing || told.steps >= NOTHING_STEPS;
            if let Some(told) = nothing.take_if(is_enough)
                && self.to_sink.send(Ok(told)).is_err()
            {
                return;
            }
            if is_nothing {
                // The buffer stays, warm as it is.
                spare = Some(batch);
                continue;
            }
            let failed = made.is_err();
            if self.to_sink.send(made.map(|()| batch)).is_err() || failed {
                return;
            }
        }
        if let Some(told) = nothing {
            // Where nobody wants to hear it, that one knows why.
            let _ = self.to_sink.send(Ok(told));
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]
mod tests {
    use super::*;
    use crate::delta::codec::{Codec, Compression};
    use crate::monitor::Silent;
    use crate::volume::memory::MemoryVolume;

    /// What it is told, in order.
    #[derive(Default)]
    struct Told {
        differing: Vec<u64>,
        position: u64,
        positions: usize,
    }

    impl FrameSink for Told {
        fn data(&mut self, extent: Extent, _: Codec, _: &[u8], _: u32) -> Result<()> {
            assert!(extent.offset() >= self.position, "it was said to be equal");
            self.differing.push(extent.offset());
            Ok(())
        }

        fn zero(&mut self, extent: Extent) -> Result<()> {
            panic!("no zeroes: {extent:?}");
        }

        fn position(&mut self, offset: u64) -> Result<()> {
            assert!(offset >= self.position);
            self.position = offset;
            self.positions += 1;
            Ok(())
        }

        fn waits_for_device(&self) -> bool {
            true
        }
    }

    #[test]
    fn nothing_is_said_to_be_equal_before_all_workers_have_looked() {
        let size = 100 << 20;
        let one = vec![5; size];
        // In the middle of what a worker tells at once, at its ends, and in what the next one has.
        let places: Vec<usize> = [2, 33, 34, 65, 67, 98]
            .iter()
            .map(|piece| piece << 20)
            .collect();
        let mut other = one.clone();
        places.iter().for_each(|place| other[*place] = 6);
        let [one, other] = [one, other].map(MemoryVolume::new);
        let side = |volume| Side { volume, name: "v" };
        let mut told = Told::default();
        let options = PumpOptions {
            effort: &Effort::new(Compression::None),
            cancel: &Cancel::new(),
            monitor: &Silent,
            unlike: Some(side(&other)),
        };
        pump(
            side(&one),
            &ChangeList::whole(size as u64),
            &mut told,
            &options,
        )
        .unwrap();
        let found: Vec<usize> = told
            .differing
            .iter()
            .map(|offset| *offset as usize)
            .collect();
        assert_eq!(found, places);
        assert!(told.positions > 6, "{}", told.positions);
        assert!(told.position <= size as u64);
    }
}
