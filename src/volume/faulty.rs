//! A volume that fails on demand, remembers what was asked of it, and can lose power.
//!
//! Guarantees: every operation is recorded in the order in which it was asked for, failed ones too; an
//! operation that is made to fail does not reach the volume below; a sync that fails loses what it was for; after [`FaultyVolume::crash`] only
//! what was synced is there.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{ReadAt, WriteAt};
use crate::extent::Extent;

/// One operation, as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A read of these bytes; `None` is an empty one.
    Read(Option<Extent>),
    /// A write of these bytes.
    Write(Option<Extent>),
    /// Zeroing of these bytes.
    Zero(Extent),
    /// Setting the size.
    SetSize(u64),
    /// A sync.
    Sync,
}

/// The kinds of operation that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Zeroing.
    Zero,
    /// Changes of size.
    SetSize,
    /// Syncs.
    Sync,
}

impl Op {
    /// Its kind.
    pub fn kind(self) -> OpKind {
        match self {
            Self::Read(_) => OpKind::Read,
            Self::Write(_) => OpKind::Write,
            Self::Zero(_) => OpKind::Zero,
            Self::SetSize(_) => OpKind::SetSize,
            Self::Sync => OpKind::Sync,
        }
    }

    fn extent(self) -> Option<Extent> {
        match self {
            Self::Read(extent) | Self::Write(extent) => extent,
            Self::Zero(extent) => Some(extent),
            Self::SetSize(_) | Self::Sync => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum When {
    /// The operation of this kind with this number, from 0.
    Nth(OpKind, usize),
    /// Each operation of this kind that touches these bytes.
    Touching(OpKind, Extent),
}

/// A wrapper over any writable volume.
#[derive(Debug)]
pub struct FaultyVolume<V> {
    inner: V,
    faults: Vec<(When, i32)>,
    writes_at_once: usize,
    waits_from_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ops: Vec<Op>,
    /// The image that survives, if power can be lost.
    durable: Option<Vec<u8>>,
    unsynced: Vec<Unsynced>,
}

#[derive(Debug)]
enum Unsynced {
    Write(u64, Vec<u8>),
    SetSize(u64),
}

impl<V: WriteAt> FaultyVolume<V> {
    /// A volume without faults, which only records.
    pub fn new(inner: V) -> Self {
        Self {
            inner,
            faults: Vec::new(),
            writes_at_once: 1,
            waits_from_bytes: 0,
            state: Mutex::default(),
        }
    }

    /// Makes the operation of this kind with this number (from 0) fail with `errno`.
    #[must_use]
    pub fn fail_nth(mut self, kind: OpKind, number: usize, errno: i32) -> Self {
        self.faults.push((When::Nth(kind, number), errno));
        self
    }

    /// Makes each operation of this kind that touches `extent` fail with `errno`.
    #[must_use]
    pub fn fail_touching(mut self, kind: OpKind, extent: Extent, errno: i32) -> Self {
        self.faults.push((When::Touching(kind, extent), errno));
        self
    }

    /// Says that so many writes at once are of use. Which of them is the one with a number is then chance.
    #[must_use]
    pub fn with_writes_at_once(mut self, writes: usize) -> Self {
        self.writes_at_once = writes;
        self
    }

    /// Says that only writes of at least so many bytes wait for a device, as it is with a file.
    #[must_use]
    pub fn that_wait_from(mut self, bytes: u64) -> Self {
        self.waits_from_bytes = bytes;
        self
    }

    /// From now on what is not synced can be lost, see [`Self::crash`]. Holds a copy of the volume.
    pub fn lose_unsynced_writes(self) -> io::Result<Self> {
        let mut image =
            vec![0; usize::try_from(self.inner.size_bytes()).map_err(io::Error::other)?];
        self.inner.read_exact_at(&mut image, 0)?;
        self.lock().durable = Some(image);
        Ok(self)
    }

    /// What was asked for so far.
    pub fn ops(&self) -> Vec<Op> {
        self.lock().ops.clone()
    }

    /// The volume below.
    pub fn inner(&self) -> &V {
        &self.inner
    }

    /// What is on the volume after power was lost now: all that was synced and nothing else.
    pub fn crash(&self) -> Vec<u8> {
        self.crash_keeping(|_| false)
    }

    /// The same, with those unsynced writes that happened to get there: `keep` is asked for each by
    /// its number since the last sync. A device may write them in any order.
    pub fn crash_keeping(&self, mut keep: impl FnMut(usize) -> bool) -> Vec<u8> {
        let state = self.lock();
        let mut image = state.durable.clone().unwrap_or_default();
        for (number, change) in state.unsynced.iter().enumerate() {
            if keep(number) {
                change.apply(&mut image);
            }
        }
        image
    }

    /// Loses what was not synced, as a sync that fails does.
    pub fn forget_unsynced(&self) {
        self.lock().unsynced.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an operation and fails if it was to fail.
    fn record(&self, op: Op) -> io::Result<()> {
        let mut state = self.lock();
        let number = state
            .ops
            .iter()
            .filter(|earlier| earlier.kind() == op.kind())
            .count();
        state.ops.push(op);
        let hits = |when: &When| match *when {
            When::Nth(kind, n) => kind == op.kind() && n == number,
            When::Touching(kind, extent) => {
                kind == op.kind()
                    && op
                        .extent()
                        .is_some_and(|own| own.intersect(extent).is_some())
            }
        };
        match self.faults.iter().find(|(when, _)| hits(when)) {
            Some((_, errno)) => Err(io::Error::from_raw_os_error(*errno)),
            None => Ok(()),
        }
    }

    fn remember(&self, change: Unsynced) {
        let mut state = self.lock();
        if state.durable.is_some() {
            state.unsynced.push(change);
        }
    }
}

impl Unsynced {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::SetSize(size) => {
                let size = usize::try_from(*size).unwrap_or(image.len());
                image.resize(size, 0);
            }
            Self::Write(offset, bytes) => {
                let start = usize::try_from(*offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(bytes.len());
                // A write beyond a growth that was lost is lost with it.
                if let Some(place) = image.get_mut(start..end) {
                    place.copy_from_slice(bytes);
                }
            }
        }
    }
}

impl<V: WriteAt> ReadAt for FaultyVolume<V> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.record(Op::Read(Extent::new(offset, buffer.len() as u64)))?;
        self.inner.read_exact_at(buffer, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Extent>> {
        self.inner.next_data(offset)
    }
}

impl<V: WriteAt> WriteAt for FaultyVolume<V> {
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.record(Op::Write(Extent::new(offset, buffer.len() as u64)))?;
        self.inner.write_all_at(buffer, offset)?;
        self.remember(Unsynced::Write(offset, buffer.to_vec()));
        Ok(())
    }

    fn zero_at(&self, extent: Extent) -> io::Result<()> {
        self.record(Op::Zero(extent))?;
        self.inner.zero_at(extent)?;
        let length = usize::try_from(extent.length()).map_err(io::Error::other)?;
        self.remember(Unsynced::Write(extent.offset(), vec![0; length]));
        Ok(())
    }

    fn writes_at_once(&self) -> usize {
        self.writes_at_once
    }

    fn waits_for_device(&self, extent: Extent) -> bool {
        self.writes_at_once > 1 && extent.length() >= self.waits_from_bytes
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        self.record(Op::SetSize(size_bytes))?;
        self.inner.set_size(size_bytes)?;
        self.remember(Unsynced::SetSize(size_bytes));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if let Err(error) = self.record(Op::Sync) {
            // As Linux does it: told once, then forgotten. The next sync does not bring it back.
            self.forget_unsynced();
            return Err(error);
        }
        // Held over the sync, so that a write during it counts as unsynced.
        let mut state = self.lock();
        self.inner.sync()?;
        let unsynced = std::mem::take(&mut state.unsynced);
        if let Some(image) = &mut state.durable {
            unsynced.iter().for_each(|change| change.apply(image));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::memory::MemoryVolume;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent::new(offset, length).unwrap()
    }

    fn volume() -> FaultyVolume<MemoryVolume> {
        FaultyVolume::new(MemoryVolume::new(vec![1; 16]))
    }

    #[test]
    fn operations_are_recorded_in_order_and_fail_by_number() {
        let volume = volume()
            .fail_nth(OpKind::Write, 1, 5)
            .fail_nth(OpKind::Sync, 0, 28);
        volume.write_all_at(b"ab", 0).unwrap();
        assert_eq!(
            volume.write_all_at(b"cd", 2).unwrap_err().raw_os_error(),
            Some(5)
        );
        volume.write_all_at(b"ef", 4).unwrap();
        assert_eq!(volume.sync().unwrap_err().raw_os_error(), Some(28));
        volume.sync().unwrap();
        assert_eq!(&volume.inner().bytes()[..6], b"ab\x01\x01ef");
        let write = |offset| Op::Write(Some(extent(offset, 2)));
        assert_eq!(
            volume.ops(),
            [write(0), write(2), write(4), Op::Sync, Op::Sync]
        );
    }

    #[test]
    fn ranges_can_be_bad() {
        let volume = volume().fail_touching(OpKind::Read, extent(8, 1), 5);
        volume.read_exact_at(&mut [0; 8], 0).unwrap();
        assert!(volume.read_exact_at(&mut [0; 9], 0).is_err());
        assert!(volume.read_exact_at(&mut [0; 1], 8).is_err());
        volume.write_all_at(&[2], 8).unwrap();
    }

    #[test]
    fn power_loss_keeps_what_was_synced() {
        let volume = volume().lose_unsynced_writes().unwrap();
        volume.write_all_at(b"ab", 0).unwrap();
        volume.zero_at(extent(14, 2)).unwrap();
        assert_eq!(volume.crash(), [1; 16]);
        volume.sync().unwrap();
        volume.write_all_at(b"cd", 2).unwrap();
        volume.write_all_at(b"ef", 4).unwrap();
        volume.set_size(20).unwrap();
        let mut synced = vec![1; 16];
        synced[..2].copy_from_slice(b"ab");
        synced[14..].fill(0);
        assert_eq!(volume.crash(), synced);
        synced[4..6].copy_from_slice(b"ef");
        assert_eq!(volume.crash_keeping(|number| number == 1), synced);
        assert_eq!(volume.crash_keeping(|_| true), volume.inner().bytes());
    }
}
