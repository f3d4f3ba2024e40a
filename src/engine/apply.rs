//! Puts frames onto a volume.
//!
//! Guarantees: with an undo, the old content of a region is durable before the region is overwritten; data
//! is made durable every [`SYNC_EVERY_BYTES`] and the caller told up to where; [`Applier::finish`] returns only
//! after a last sync. Order is the caller's: frames are applied as they come, but zeroes that follow each other
//! become one range, for a pool takes back whole blocks alone.

use std::io;
use std::time::{Duration, Instant};

use super::FrameSink;
use super::behind::Behind;
use super::in_flight::{Failure, InFlight};
use super::undo::{DurableWrite, UndoRecorder};
use crate::cancel::Cancel;
use crate::delta::codec::Codec;
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::record::marks::Places;
use crate::sys::aligned::AlignedBuffer;
use crate::volume::WriteAt;

/// Volume data between two syncs.
pub const SYNC_EVERY_BYTES: u64 = 64 << 20;
/// And at least so much time between two that are made behind the back of who writes: what takes less is not worth a
/// sync of volume and record.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// With an undo: volume data that is held until its old content is saved. Each time costs a sync of the
/// undo file.
const HOLD_BYTES: u64 = 16 << 20;
/// What a held frame takes at least: its place in the list and an allocation.
const HELD_FRAME_BYTES: u64 = 128;
/// A run of zeroes this long is written without waiting for its end.
const ZERO_RUN_BYTES: u64 = 1 << 30;

/// What was done to a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Data frames.
    pub data_frames: u64,
    /// Zero frames.
    pub zero_frames: u64,
    /// Bytes written as data.
    pub data_bytes: u64,
    /// Bytes made zero.
    pub zero_bytes: u64,
    /// Bytes past the end of a smaller destination, left out as asked.
    pub skipped_bytes: u64,
    /// Bytes that a longer file had past the end of the volume, and has no more.
    pub cut_bytes: u64,
}

/// How an apply ended.
#[derive(Debug)]
pub enum Ended {
    /// Everything is written and durable.
    Done(Applied, Places),
    /// It is not.
    Failed {
        /// Why.
        error: Error,
        /// The target may have been changed.
        touched: bool,
        /// There is an undo of what was overwritten.
        has_undo: bool,
        /// What was written is durable, and nothing is under way any more.
        is_durable: bool,
    },
}

/// Hears up to which volume offset everything is durable, and of some places that were written.
pub type OnDurable<'a> = &'a mut dyn FnMut(u64, &Applied, &Places) -> Result<()>;

/// Hears up to which volume offset the undo is durable.
pub type OnSaved<'a> = &'a mut dyn FnMut(u64) -> Result<()>;

/// Applies frames to one volume.
pub struct Applier<'a, W: DurableWrite> {
    target: &'a dyn WriteAt,
    name: &'a str,
    undo: Option<UndoRecorder<W>>,
    held: Vec<(Extent, Option<Vec<u8>>)>,
    held_bytes: u64,
    /// Zeroes to be written, whose end may be yet to come. Their old content is saved.
    zeroes: Option<Extent>,
    unsynced_bytes: u64,
    sync_every_bytes: u64,
    /// Syncs on the way are this one's.
    behind: Option<&'a Behind<'a>>,
    /// Writes go through this one.
    in_flight: Option<&'a InFlight>,
    /// When it was asked last.
    asked: Instant,
    applied: Applied,
    /// Volume offset of the end of what was written last.
    written_to: u64,
    /// Where it wrote, for the record.
    places: Places,
    touched: bool,
    /// A sync failed. What was lost then is not lost once more, so the next one may succeed: it proves nothing.
    sync_failed: bool,
    had_undo: bool,
    cancel: &'a Cancel,
    on_durable: OnDurable<'a>,
    on_saved: Option<OnSaved<'a>>,
}

impl<'a, W: DurableWrite> Applier<'a, W> {
    /// Applies to `target`, called `name` in messages; what is past its end is left out and counted.
    pub fn new(
        target: &'a dyn WriteAt,
        name: &'a str,
        undo: Option<UndoRecorder<W>>,
        cancel: &'a Cancel,
        on_durable: OnDurable<'a>,
    ) -> Self {
        Self {
            target,
            name,
            had_undo: undo.is_some(),
            undo,
            held: Vec::new(),
            held_bytes: 0,
            zeroes: None,
            unsynced_bytes: 0,
            sync_every_bytes: SYNC_EVERY_BYTES,
            behind: None,
            in_flight: None,
            asked: Instant::now(),
            applied: Applied::default(),
            written_to: 0,
            places: Places::default(),
            touched: false,
            sync_failed: false,
            cancel,
            on_durable,
            on_saved: None,
        }
    }

    /// With an undo: `on_saved` is told before anything that it saved is overwritten.
    #[must_use]
    pub fn tell_saved(mut self, on_saved: OnSaved<'a>) -> Self {
        self.on_saved = Some(on_saved);
        self
    }

    /// Lets `behind` make durable what was written on the way, and tell of it, so that neither reading nor writing stops
    /// until the disk is done. The last sync is still made here.
    #[must_use]
    pub fn sync_behind(mut self, behind: &'a Behind<'a>) -> Self {
        self.behind = Some(behind);
        self
    }

    /// Lets `in_flight`, which is one of the target's, carry out the writes.
    #[must_use]
    pub fn write_by(mut self, in_flight: Option<&'a InFlight>) -> Self {
        self.in_flight = in_flight;
        self
    }

    /// Writes `data`, whose checksum the caller has seen match.
    pub fn write(&mut self, extent: Extent, data: &[u8]) -> Result<()> {
        let Some(inside) = self.inside(extent) else {
            return Ok(());
        };
        let data = &data[..usize::try_from(inside.length()).unwrap_or(0)];
        if self.undo.is_some() {
            return self.hold(inside, Some(data.to_vec()));
        }
        self.put(inside, Some(data))
    }

    /// The same, of the first bytes of `buffer`, which may be another one of at least its length after this: where a write is
    /// carried out behind the caller's back, to hand the buffer over saves a copy.
    pub fn write_from(&mut self, extent: Extent, buffer: &mut AlignedBuffer) -> Result<()> {
        let length = usize::try_from(extent.length()).unwrap_or(0);
        // A small part of a large buffer would keep all of it from being used again.
        let fills = length > buffer.len() / 2 && extent.end() <= self.target.size_bytes();
        match self.by_in_flight(extent) {
            Some(in_flight) if fills && self.undo.is_none() => {
                self.before_data()?;
                let written = in_flight.write_from(extent, buffer);
                written.map_err(|failure| self.not_written(failure))?;
                self.data_written(extent)
            }
            _ => self.write(extent, &buffer[..length]),
        }
    }

    /// Makes `extent` zero.
    pub fn write_zeroes(&mut self, extent: Extent) -> Result<()> {
        let Some(inside) = self.inside(extent) else {
            return Ok(());
        };
        if self.undo.is_none() {
            return self.put(inside, None);
        }
        // Cut, so that the undo's sync and the hold's bound mean something for long runs, too.
        let mut position = inside.offset();
        while let Some(piece) =
            Extent::from_range(position, inside.end().min(position + HOLD_BYTES))
        {
            self.hold(piece, None)?;
            position = piece.end();
        }
        Ok(())
    }

    /// Up to this volume offset the target is as it should be once what was handed over is written. Told on as
    /// durable now and then, so that a run that writes little does not begin anew.
    pub fn reached(&mut self, offset: u64) -> Result<()> {
        if self.asked.elapsed() < ASK_EVERY {
            return Ok(());
        }
        self.release_held()?;
        self.put_zeroes()?;
        self.drain()?;
        self.asked = Instant::now();
        // What is past the end of a smaller target is there no more than before.
        let inside = offset.min(self.target.size_bytes());
        self.written_to = self.written_to.max(inside);
        match self.behind {
            Some(behind) => {
                let asked = behind.ask(self.written_to, &self.applied, &self.places);
                self.sync_failed |= asked.is_err();
                asked
            }
            None => {
                self.sync()?;
                (self.on_durable)(self.written_to, &self.applied, &self.places)
            }
        }
    }

    /// Makes everything durable and closes the undo. What is held is written only here, so this fails like any
    /// write.
    pub fn finish(&mut self) -> Result<Applied> {
        self.release_held()?;
        self.put_zeroes()?;
        self.end_behind()?;
        self.sync()?;
        if let Some(undo) = self.undo.take() {
            undo.finish()?;
        }
        Ok(self.applied)
    }

    /// Ends an apply, well or badly. After a failure the undo stays as far as it goes, and what was written is made
    /// durable as far as that still works. An undo of a target that was not touched
    /// goes.
    pub fn end(mut self, result: Result<()>) -> Ended {
        let error = match result.and_then(|()| self.finish()) {
            Ok(applied) => return Ended::Done(applied, self.places),
            Err(error) => error,
        };
        let touched = self.touched;
        // The error that ended the run is the one to report, unless it was one of these.
        if let Some(Err((failed, _))) = self.in_flight.map(InFlight::drain) {
            // What was handed over before it is written.
            self.written_to = self.written_to.min(failed.offset());
        }
        let _ = self.end_behind();
        let is_durable = self.target.sync().is_ok() && !self.sync_failed;
        if is_durable && touched {
            // The error that ended the run is the one to report.
            let _ = (self.on_durable)(self.written_to, &self.applied, &self.places);
        }
        let has_undo = match self.undo.take() {
            Some(undo) if !touched && !undo.stays() => {
                undo.discard();
                false
            }
            Some(undo) => {
                // What it saved before each overwrite is durable, whatever this says.
                let _ = undo.leave();
                true
            }
            // It was there, and could not be closed.
            None => self.had_undo,
        };
        Ended::Failed {
            error,
            touched,
            has_undo,
            is_durable,
        }
    }

    /// The part of `extent` that the target has; the rest is counted as skipped.
    fn inside(&mut self, extent: Extent) -> Option<Extent> {
        let inside =
            Extent::from_range(extent.offset(), extent.end().min(self.target.size_bytes()));
        self.applied.skipped_bytes += extent.length() - inside.map_or(0, Extent::length);
        inside
    }

    fn hold(&mut self, extent: Extent, data: Option<Vec<u8>>) -> Result<()> {
        // A frame may be a single byte, and there may be millions of them.
        self.held_bytes += extent.length().max(HELD_FRAME_BYTES);
        self.held.push((extent, data));
        if self.held_bytes >= HOLD_BYTES {
            self.release_held()
        } else {
            Ok(())
        }
    }

    /// Saves the old content of everything held, durably, and only then writes the new.
    fn release_held(&mut self) -> Result<()> {
        let held = std::mem::take(&mut self.held);
        self.held_bytes = 0;
        if held.is_empty() {
            return Ok(());
        }
        if let Some(undo) = &mut self.undo {
            let extents: Vec<Extent> = held.iter().map(|(extent, _)| *extent).collect();
            undo.save(&self.target, self.name, &extents)?;
            if let Some(on_saved) = &mut self.on_saved {
                on_saved(undo.saved_end())?;
            }
        }
        for (extent, data) in held {
            self.put(extent, data.as_deref())?;
        }
        Ok(())
    }

    fn put(&mut self, extent: Extent, data: Option<&[u8]>) -> Result<()> {
        let Some(data) = data else {
            self.cancel.check()?;
            return self.gather_zeroes(extent);
        };
        self.before_data()?;
        match self.by_in_flight(extent) {
            Some(in_flight) => {
                let written = in_flight.write(extent, data);
                written.map_err(|failure| self.not_written(failure))?;
            }
            None => self.write_here(extent, data)?,
        }
        self.data_written(extent)
    }

    /// Who carries out a write of `extent`, if somebody else does.
    fn by_in_flight(&self, extent: Extent) -> Option<&'a InFlight> {
        self.in_flight
            .filter(|_| self.target.waits_for_device(extent))
    }

    fn write_here(&mut self, extent: Extent, data: &[u8]) -> Result<()> {
        // What waits goes past the page cache, and this through it: not more for the filesystem to sort out than need be.
        self.drain()?;
        let written = self.target.write_all_at(data, extent.offset());
        written.map_err(|error| self.not_written((extent, error)))
    }

    fn before_data(&mut self) -> Result<()> {
        self.cancel.check()?;
        self.put_zeroes()?;
        self.touched = true;
        Ok(())
    }

    fn data_written(&mut self, extent: Extent) -> Result<()> {
        self.applied.data_frames += 1;
        self.applied.data_bytes += extent.length();
        self.written(extent, extent.length())
    }

    /// Zeroes that may go on in the next frame.
    fn gather_zeroes(&mut self, extent: Extent) -> Result<()> {
        let run = match self.zeroes {
            Some(run) if run.end() == extent.offset() => {
                Extent::from_range(run.offset(), extent.end())
            }
            _ => {
                self.put_zeroes()?;
                Some(extent)
            }
        };
        self.applied.zero_frames += 1;
        self.applied.zero_bytes += extent.length();
        self.zeroes = run;
        match run {
            Some(run) if run.length() >= ZERO_RUN_BYTES => {
                // Up to the last whole block: the next one may become whole yet.
                let block = self.target.zero_block_bytes().max(1);
                let end = run.end() - run.end() % block;
                let Some(whole) = Extent::from_range(run.offset(), end) else {
                    return Ok(());
                };
                self.zeroes = Extent::from_range(end, run.end());
                self.put_zero_run(whole)
            }
            _ => Ok(()),
        }
    }

    fn put_zeroes(&mut self) -> Result<()> {
        self.zeroes
            .take()
            .map_or(Ok(()), |run| self.put_zero_run(run))
    }

    fn put_zero_run(&mut self, run: Extent) -> Result<()> {
        self.touched = true;
        if let Some(in_flight) = self.in_flight {
            let settled = in_flight.settle(run);
            settled.map_err(|failure| self.not_written(failure))?;
        }
        self.target
            .zero_at(run)
            .map_err(|error| Error::io(format!("cannot zero {run} of {}", self.name), error))?;
        // Zeroes cost the disk little, however many there are.
        self.written(run, 4096)
    }

    /// Everything up to the end of `extent` was handed to the target, at this cost.
    fn written(&mut self, extent: Extent, cost_bytes: u64) -> Result<()> {
        self.written_to = extent.end();
        self.places.note(extent);
        self.unsynced_bytes += cost_bytes;
        if self.unsynced_bytes < self.sync_every_bytes {
            return Ok(());
        }
        if let Some(behind) = self.behind {
            if self.asked.elapsed() < ASK_EVERY {
                return Ok(());
            }
            self.drain()?;
            self.asked = Instant::now();
            self.unsynced_bytes = 0;
            let asked = behind.ask(extent.end(), &self.applied, &self.places);
            self.sync_failed |= asked.is_err();
            return asked;
        }
        self.sync()?;
        (self.on_durable)(extent.end(), &self.applied, &self.places)
    }

    /// From now on syncs are made here alone.
    fn end_behind(&mut self) -> Result<()> {
        let Some(behind) = self.behind.take() else {
            return Ok(());
        };
        let closed = behind.close();
        self.sync_failed |= closed.is_err();
        closed
    }

    /// Everything that was put is written.
    fn drain(&mut self) -> Result<()> {
        let drained = self.in_flight.map_or(Ok(()), InFlight::drain);
        drained.map_err(|failure| self.not_written(failure))
    }

    fn not_written(&self, (extent, error): Failure) -> Error {
        Error::io(format!("cannot write {extent} of {}", self.name), error)
    }

    fn sync(&mut self) -> Result<()> {
        self.drain()?;
        self.unsynced_bytes = 0;
        let synced = self.target.sync();
        self.sync_failed |= synced.is_err();
        synced.map_err(|error| Error::io(format!("cannot make {} durable", self.name), error))
    }
}

impl<W: DurableWrite> FrameSink for Applier<'_, W> {
    fn data(&mut self, extent: Extent, codec: Codec, stored: &[u8], crc: u32) -> Result<()> {
        // Computed in another thread right after the read: catches what happened to the buffer since.
        if codec != Codec::None || crc32c::crc32c(stored) != crc {
            let source = io::Error::other("the data changed in memory between read and write");
            return Err(Error::io(
                format!("cannot write {extent} of {}", self.name),
                source,
            ));
        }
        self.write(extent, stored)
    }

    fn zero(&mut self, extent: Extent) -> Result<()> {
        self.write_zeroes(extent)
    }

    fn position(&mut self, offset: u64) -> Result<()> {
        self.reached(offset)
    }
}

#[cfg(test)]
mod tests;
