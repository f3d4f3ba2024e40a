//! Several writes to one volume at once: while one waits for the device, others are on their way.
//!
//! Guarantees: writes that touch the same blocks are made in the order in which they came; when [`InFlight::drain`]
//! returns without an error, everything that was handed over before is written; after a write failed nothing more is
//! begun, and every call says so: what was handed over before the one that it names is written. Memory is bounded by [`MAX_BYTES`] that wait, and as much that is kept for the next ones.
//!
//! Threads, and not io_uring, which was measured (docs/performance.md): what is left of the waiting is not worth unsafe code,
//! nor a second way for machines where it is switched off.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::extent::Extent;
use crate::sys::aligned::AlignedBuffer;
use crate::volume::WriteAt;

/// Bytes of memory that wait to be written, at most; a single write may be larger.
pub const MAX_BYTES: u64 = 4 << 20;
/// Writes that do not fill whole blocks read what is beside. Devices with larger blocks are written through the page cache,
/// which has a lock for each.
const BLOCK_BYTES: u64 = 4096;

/// A write that failed: where, and why. Of several that were under way it is the first in the volume.
pub type Failure = (Extent, io::Error);

/// Writes to one volume, which threads of [`with`] carry out.
pub struct InFlight {
    at_once: usize,
    state: Mutex<State>,
    /// Something waits to be written, or nothing more will.
    handed_over: Condvar,
    /// Something was written, or failed.
    written: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Extent, AlignedBuffer)>,
    /// What is waiting or being written, in whole blocks.
    under_way: Vec<Extent>,
    /// Of their buffers.
    bytes: u64,
    spare: Vec<AlignedBuffer>,
    failure: Option<(Extent, io::ErrorKind, String)>,
    closed: bool,
    writers: usize,
}

/// Runs `work`, with threads beside it that write to `target` if several at once are of use there.
pub fn with<T>(target: &dyn WriteAt, work: impl FnOnce(Option<&InFlight>) -> T) -> T {
    let at_once = target.writes_at_once();
    if at_once < 2 {
        return work(None);
    }
    let writes = InFlight {
        at_once,
        state: Mutex::default(),
        handed_over: Condvar::new(),
        written: Condvar::new(),
    };
    thread::scope(|scope| {
        let _closes = Closes(&writes);
        for _ in 0..at_once {
            let started = thread::Builder::new()
                .name("writer".to_owned())
                .spawn_scoped(scope, || writes.serve(target));
            if started.is_err() {
                break;
            }
            writes.lock().writers += 1;
        }
        if writes.lock().writers == 0 {
            return work(None);
        }
        work(Some(&writes))
    })
}

impl InFlight {
    /// Hands a write over. What fails may be an earlier one.
    pub fn write(&self, extent: Extent, data: &[u8]) -> Result<(), Failure> {
        let mut buffer = self.make_room(extent, data.len())?;
        buffer[..data.len()].copy_from_slice(data);
        self.hand_over(extent, buffer);
        Ok(())
    }

    /// The same, of the first bytes of `buffer`, in whose place is another one of at least its length, with anything in it.
    pub fn write_from(&self, extent: Extent, buffer: &mut AlignedBuffer) -> Result<(), Failure> {
        let other = self.make_room(extent, buffer.len())?;
        self.hand_over(extent, std::mem::replace(buffer, other));
        Ok(())
    }

    /// Waits until `extent` may be written, and gives a buffer of at least `bytes`. It counts as under way from now on.
    fn make_room(&self, extent: Extent, bytes: usize) -> Result<AlignedBuffer, Failure> {
        let blocks = whole_blocks(extent);
        let mut state = self.wait_while(|state| {
            let is_full =
                state.under_way.len() >= self.at_once || state.bytes + bytes as u64 > MAX_BYTES;
            (is_full && !state.under_way.is_empty()) || overlaps(&state.under_way, blocks)
        })?;
        let spare = state.spare.iter().position(|spare| spare.len() >= bytes);
        let spare = spare.map(|at| state.spare.swap_remove(at));
        state.under_way.push(blocks);
        drop(state);
        Ok(spare.unwrap_or_else(|| AlignedBuffer::new(bytes)))
    }

    fn hand_over(&self, extent: Extent, buffer: AlignedBuffer) {
        let mut state = self.lock();
        state.bytes += buffer.len() as u64;
        state.waiting.push_back((extent, buffer));
        drop(state);
        self.handed_over.notify_one();
    }

    /// Waits until nothing is under way that touches the blocks of `extent`.
    pub fn settle(&self, extent: Extent) -> Result<(), Failure> {
        let blocks = whole_blocks(extent);
        self.wait_while(|state| overlaps(&state.under_way, blocks))
            .map(drop)
    }

    /// Waits until nothing is under way.
    pub fn drain(&self) -> Result<(), Failure> {
        self.wait_while(|state| !state.under_way.is_empty())
            .map(drop)
    }

    fn wait_while(
        &self,
        is_too_early: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'_, State>, Failure> {
        let mut state = self.lock();
        loop {
            if let Some((extent, kind, text)) = &state.failure {
                // Nothing of it may be under way when the caller goes on to report it.
                if state.under_way.is_empty() {
                    return Err((*extent, io::Error::new(*kind, text.clone())));
                }
            } else if !is_too_early(&state) {
                return Ok(state);
            }
            let waited = self.written.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn serve(&self, target: &dyn WriteAt) {
        let mut state = self.lock();
        loop {
            let Some((extent, buffer)) = state.waiting.pop_front() else {
                if state.closed {
                    return;
                }
                let waited = self.handed_over.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let has_failed = state.failure.is_some();
            drop(state);
            let length = usize::try_from(extent.length()).unwrap_or(0);
            let write = || target.write_all_at(&buffer[..length], extent.offset());
            let written = match has_failed {
                true => Ok(()),
                // One that panics must not be waited for for ever.
                false => catch_unwind(AssertUnwindSafe(write)).unwrap_or_else(|_| {
                    Err(io::Error::other("the thread that writes has panicked"))
                }),
            };
            state = self.lock();
            if let Err(error) = written {
                let failure = (extent, error.kind(), error.to_string());
                // Of several the first one in the volume: what is handed over in order is written before that.
                match &state.failure {
                    Some((first, ..)) if first.offset() <= extent.offset() => {}
                    _ => state.failure = Some(failure),
                }
            }
            state.done(extent, buffer);
            self.written.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn done(&mut self, extent: Extent, buffer: AlignedBuffer) {
        let blocks = whole_blocks(extent);
        if let Some(at) = self.under_way.iter().position(|other| *other == blocks) {
            self.under_way.swap_remove(at);
        }
        self.bytes -= buffer.len() as u64;
        let spare: usize = self.spare.iter().map(|spare| spare.len()).sum();
        if (spare + buffer.len()) as u64 <= MAX_BYTES {
            self.spare.push(buffer);
        }
    }
}

fn overlaps(others: &[Extent], blocks: Extent) -> bool {
    others
        .iter()
        .any(|other| other.offset() < blocks.end() && blocks.offset() < other.end())
}

fn whole_blocks(extent: Extent) -> Extent {
    let start = extent.offset() - extent.offset() % BLOCK_BYTES;
    let end = extent.end().checked_next_multiple_of(BLOCK_BYTES);
    Extent::from_range(start, end.unwrap_or(u64::MAX)).unwrap_or(extent)
}

/// Ends the threads however the scope is left.
struct Closes<'a>(&'a InFlight);

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.handed_over.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::ReadAt;
    use crate::volume::memory::MemoryVolume;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    /// Each write takes a while, the first of some blocks longer; the one with this number fails.
    struct Slow {
        volume: MemoryVolume,
        writes: AtomicUsize,
        most: AtomicUsize,
        now: AtomicUsize,
        fails: Option<usize>,
    }

    impl Slow {
        fn new(bytes: usize, fails: Option<usize>) -> Self {
            Self {
                volume: MemoryVolume::new(vec![0; bytes]),
                writes: AtomicUsize::new(0),
                most: AtomicUsize::new(0),
                now: AtomicUsize::new(0),
                fails,
            }
        }
    }

    impl ReadAt for Slow {
        fn size_bytes(&self) -> u64 {
            self.volume.size_bytes()
        }

        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.volume.read_exact_at(buffer, offset)
        }
    }

    impl WriteAt for Slow {
        /// As a device does that has blocks: what is beside is read, and written again.
        fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            let number = self.writes.fetch_add(1, Ordering::SeqCst);
            let extent = Extent::new(offset, buffer.len() as u64).unwrap();
            let blocks = whole_blocks(extent);
            let end = blocks.end().min(self.size_bytes());
            let mut whole = vec![0; usize::try_from(end - blocks.offset()).unwrap()];
            self.volume.read_exact_at(&mut whole, blocks.offset())?;
            thread::sleep(Duration::from_micros(if number.is_multiple_of(3) {
                300
            } else {
                20
            }));
            let at = usize::try_from(offset - blocks.offset()).unwrap();
            whole[at..at + buffer.len()].copy_from_slice(buffer);
            let written = self.volume.write_all_at(&whole, blocks.offset());
            self.now.fetch_sub(1, Ordering::SeqCst);
            if self.fails == Some(number) {
                return Err(io::Error::from_raw_os_error(5));
            }
            written
        }

        fn zero_at(&self, extent: Extent) -> io::Result<()> {
            self.volume.zero_at(extent)
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn writes_at_once(&self) -> usize {
            4
        }
    }

    const BYTES: usize = 64 << 10;

    proptest! {
        #[test]
        fn any_writes_leave_what_one_after_another_leave(
            writes in prop::collection::vec(
                (0..BYTES - 1, 1..9000usize, any::<u8>(), any::<bool>()),
                1..60,
            )
        ) {
            let slow = Slow::new(BYTES, None);
            let mut model = vec![0; BYTES];
            with(&slow, |in_flight| {
                let in_flight = in_flight.unwrap();
                let mut buffer = AlignedBuffer::new(9000);
                for (offset, length, fill, is_handed_over) in writes {
                    let length = length.min(BYTES - offset);
                    model[offset..offset + length].fill(fill);
                    let extent = Extent::new(offset as u64, length as u64).unwrap();
                    if !is_handed_over {
                        in_flight.write(extent, &vec![fill; length]).unwrap();
                        continue;
                    }
                    buffer[..length].fill(fill);
                    in_flight.write_from(extent, &mut buffer).unwrap();
                    assert!(buffer.len() >= 9000);
                }
                in_flight.drain().unwrap();
                let mut found = vec![0; BYTES];
                slow.volume.read_exact_at(&mut found, 0).unwrap();
                assert!(found == model);
            });
        }
    }

    #[test]
    fn several_are_under_way_at_once_and_no_more_than_are_of_use() {
        let slow = Slow::new(1 << 20, None);
        with(&slow, |in_flight| {
            for block in 0..200 {
                let extent = Extent::new(block * 4096, 4096).unwrap();
                in_flight.unwrap().write(extent, &[1; 4096]).unwrap();
            }
            in_flight.unwrap().drain().unwrap();
        });
        assert_eq!(slow.writes.load(Ordering::SeqCst), 200);
        let most = slow.most.load(Ordering::SeqCst);
        assert!((2..=4).contains(&most), "{most}");
    }

    #[test]
    fn after_a_failure_nothing_more_is_written_and_every_call_says_so() {
        let slow = Slow::new(1 << 20, Some(20));
        with(&slow, |in_flight| {
            let in_flight = in_flight.unwrap();
            let failed = (0..200).find_map(|block| {
                let extent = Extent::new(block * 4096, 4096).unwrap();
                in_flight.write(extent, &[1; 4096]).err()
            });
            let (_, error) = failed.unwrap();
            assert!(error.to_string().contains("os error 5"), "{error}");
            let written = slow.writes.load(Ordering::SeqCst);
            assert!(written <= 20 + 8, "{written}");
            for result in [
                in_flight.drain(),
                in_flight.settle(Extent::new(0, 1).unwrap()),
                in_flight.write(Extent::new(0, 1).unwrap(), &[1]),
            ] {
                assert!(result.is_err());
            }
            assert_eq!(slow.writes.load(Ordering::SeqCst), written);
        });
    }

    #[test]
    fn where_one_at_a_time_is_enough_nobody_else_writes() {
        let volume = MemoryVolume::new(vec![0; 10]);
        with(&volume, |in_flight| assert!(in_flight.is_none()));
    }
}
