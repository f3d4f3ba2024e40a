//! A heap buffer aligned for direct I/O.
//!
//! Guarantees: the memory starts at a multiple of [`ALIGNMENT`], is zeroed, and keeps its length. A large one is half a huge
//! page where the system has huge pages: a request for it is one piece for the device, not 256, which makes direct I/O up to
//! twice as fast. Halves go back to a pool and are never given back to the system: there are as many as were in use at once.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use rustix::mm::{Advice, madvise};

/// Enough for every logical block size that Linux knows (up to the page size).
pub const ALIGNMENT: usize = 4096;
/// What a huge page has on most machines; on others it is just memory.
const HUGE_BYTES: usize = 2 << 20;
/// As large as any read or write of a volume.
const HALF_BYTES: usize = HUGE_BYTES / 2;

/// Zeroed bytes at a 4096-byte boundary.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    length: usize,
    memory: Memory,
}

/// What a buffer gives back.
enum Memory {
    /// An allocation of its own.
    Own(NonNull<u8>, Layout),
    /// The half of a huge page, which begins where the buffer does.
    Half,
}

impl AlignedBuffer {
    /// A zeroed buffer of `length` bytes.
    ///
    /// An impossible length ends the process as any failed allocation does; callers cap lengths first.
    pub fn new(length: usize) -> Self {
        if (HALF_BYTES / 2 + 1..=HALF_BYTES).contains(&length) {
            return Self {
                start: Half::zeroed(length).0,
                length,
                memory: Memory::Half,
            };
        }
        let (allocation, layout, start) = zeroes(length, ALIGNMENT);
        Self {
            start,
            length,
            memory: Memory::Own(allocation, layout),
        }
    }
}

/// Zeroed memory of `length` bytes from a boundary on: the allocation, its layout, and where the boundary is.
fn zeroes(length: usize, boundary: usize) -> (NonNull<u8>, Layout, NonNull<u8>) {
    // Room to begin at a boundary. An allocation that asks for the boundary itself is zeroed by hand,
    // page fault by page fault; this one comes from the system as zeroes, and pages that nobody uses
    // never become real.
    let Some(layout) = length
        .checked_add(boundary)
        .and_then(|room| Layout::from_size_align(room, 1).ok())
    else {
        handle_alloc_error(Layout::new::<u8>())
    };
    // SAFETY: the layout's size is at least `boundary`, which no caller has as 0.
    let allocation = unsafe { alloc_zeroed(layout) };
    let Some(allocation) = NonNull::new(allocation) else {
        handle_alloc_error(layout)
    };
    let skip = allocation.addr().get().wrapping_neg() % boundary;
    // SAFETY: `skip` is less than `boundary`, which is what the allocation has beyond `length`.
    let start = unsafe { allocation.add(skip) };
    (allocation, layout, start)
}

/// `HALF_BYTES` initialised bytes that nobody else has.
struct Half(NonNull<u8>);

// SAFETY: it owns its memory alone, as a `Vec<u8>` does.
unsafe impl Send for Half {}

/// Halves that no buffer has.
static SPARE: Mutex<Vec<Half>> = Mutex::new(Vec::new());

impl Half {
    /// Its first `length` bytes are zeroes, which are no more than it has.
    fn zeroed(length: usize) -> Self {
        let used = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some(half) = used else {
            let [half, other] = Self::two();
            other.give_back();
            return half;
        };
        // SAFETY: `length` is at most `HALF_BYTES`, and nobody else has the half.
        unsafe { half.0.write_bytes(0, length.min(HALF_BYTES)) };
        half
    }

    /// A new huge page.
    fn two() -> [Self; 2] {
        let (_, _, start) = zeroes(HUGE_BYTES, HUGE_BYTES);
        // SAFETY: the range belongs to this allocation, begins at a page, and the advice changes nothing in it. It is advice:
        // where it is not taken these are ordinary pages.
        let _ = unsafe { madvise(start.as_ptr().cast(), HUGE_BYTES, Advice::LinuxHugepage) };
        // SAFETY: both halves lie in the `HUGE_BYTES` from `start`.
        [Half(start), Half(unsafe { start.add(HALF_BYTES) })]
    }

    fn give_back(self) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push(self);
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to at least `length` initialised bytes that live and stay put as long as `self`,
        // and `&self` rules out writes meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        match self.memory {
            // SAFETY: allocated in `zeroes` with this layout, and freed only here.
            Memory::Own(allocation, layout) => unsafe { dealloc(allocation.as_ptr(), layout) },
            Memory::Half => Half(self.start).give_back(),
        }
    }
}

// SAFETY: the buffer owns its memory alone, as a `Vec<u8>` does.
unsafe impl Send for AlignedBuffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuffer {}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_writable() {
        for length in [0, 1, 511, 4096, 1 << 19, 700_001, 1 << 20, (1 << 20) + 1] {
            let mut buffer = AlignedBuffer::new(length);
            assert_eq!(buffer.len(), length);
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            assert!(buffer.iter().all(|b| *b == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|b| *b == 7));
        }
    }

    #[test]
    fn no_two_large_buffers_share_memory_and_used_ones_come_back_as_zeroes() {
        for round in 1..4_u8 {
            let mut buffers: Vec<_> = (0..7).map(|_| AlignedBuffer::new(HALF_BYTES)).collect();
            for (buffer, number) in buffers.iter_mut().zip(0..) {
                assert!(buffer.iter().all(|b| *b == 0));
                buffer.fill(round * 10 + number);
            }
            for (buffer, number) in buffers.iter().zip(0..) {
                assert!(buffer.iter().all(|b| *b == round * 10 + number));
            }
        }
    }

    #[test]
    fn a_large_buffer_is_half_a_huge_page() {
        let [one, other] = Half::two();
        assert_eq!(one.0.addr().get() % HUGE_BYTES, 0);
        assert_eq!(other.0.addr().get(), one.0.addr().get() + HALF_BYTES);
        let buffer = AlignedBuffer::new(HALF_BYTES);
        assert_eq!(buffer.as_ptr() as usize % HALF_BYTES, 0);
    }
}
