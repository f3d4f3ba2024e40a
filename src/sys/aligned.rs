//! A heap buffer aligned for direct I/O.
//!
//! Guarantees: the memory starts at a multiple of [`ALIGNMENT`], is zeroed, and keeps its length.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Enough for every logical block size that Linux knows (up to the page size).
pub const ALIGNMENT: usize = 4096;

/// Zeroed bytes at a 4096-byte boundary.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    length: usize,
    allocation: NonNull<u8>,
    layout: Layout,
}

impl AlignedBuffer {
    /// A zeroed buffer of `length` bytes.
    ///
    /// An impossible length ends the process as any failed allocation does; callers cap lengths first.
    pub fn new(length: usize) -> Self {
        // Room to begin at a boundary. An allocation that asks for the boundary itself is zeroed by hand,
        // page fault by page fault; this one comes from the system as zeroes, and pages that nobody uses
        // never become real.
        let Some(layout) = length
            .checked_add(ALIGNMENT)
            .and_then(|room| Layout::from_size_align(room, 1).ok())
        else {
            handle_alloc_error(Layout::new::<u8>())
        };
        // SAFETY: the layout's size is at least `ALIGNMENT`.
        let allocation = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(allocation) else {
            handle_alloc_error(layout)
        };
        let skip = allocation.addr().get().wrapping_neg() % ALIGNMENT;
        // SAFETY: `skip` is less than `ALIGNMENT`, which is what the allocation has beyond `length`.
        let start = unsafe { allocation.add(skip) };
        Self {
            start,
            length,
            allocation,
            layout,
        }
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
        // SAFETY: allocated in `new` with this layout, and freed only here.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
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
        for length in [0, 1, 511, 4096, 1 << 20] {
            let mut buffer = AlignedBuffer::new(length);
            assert_eq!(buffer.len(), length);
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            assert!(buffer.iter().all(|b| *b == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|b| *b == 7));
        }
    }
}
