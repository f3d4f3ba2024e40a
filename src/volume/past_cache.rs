//! Reading of a file what the page cache does not have, past it.
//!
//! Guarantees: what is read is what an ordinary read would have found: only on filesystems whose direct reads write back
//! first what is in memory alone. A piece that the page cache has is read from there; any other comes straight from the disk
//! and is not kept, so that others need not make room for it. Where that cannot be had (another filesystem, a file of
//! somebody else's, a piece that is small or not aligned) nothing is read here, and the caller reads as usual.

use std::fs::File;

use rustix::process::{Resource, getrlimit};

use super::direct::{Direct, For};
use crate::extent::Extent;
use crate::sys::aligned::ALIGNMENT;
use crate::sys::resident::Resident;

/// One page of so many bytes is asked for, and the last. To ask takes as long as to copy 16 KiB.
const SAMPLE_BYTES: usize = 1 << 20;

/// Another way to an open file.
#[derive(Debug)]
pub(super) struct PastCache {
    direct: Direct,
    resident: Resident,
}

impl PastCache {
    /// For the first `bytes` of `file`; `None` where there is no such way.
    pub(super) fn to(file: &File, bytes: u64) -> Option<Self> {
        // A mapping as large as the file takes no memory, but it takes addresses.
        let scarce = getrlimit(Resource::As).current.is_some();
        if scarce {
            return None;
        }
        Some(Self {
            direct: Direct::to(file, For::Reading)?,
            resident: Resident::of(file, bytes).ok()?,
        })
    }

    /// Whether `extent` would be read past the page cache. It is asked for by samples.
    pub(super) fn is_the_way(&self, extent: Extent) -> bool {
        self.direct.takes(extent) && samples(extent).any(|at| self.resident.has(at) == Some(false))
    }

    /// Reads the beginning of `buffer` from `offset`, and says how much. The rest is for the usual way, and so is every error.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let extent = Extent::new(offset, buffer.len() as u64);
        if !extent.is_some_and(|extent| self.is_the_way(extent)) {
            return 0;
        }
        let length = self.direct.read(buffer, offset);
        // The next part would not be aligned where the file ends.
        length - length % ALIGNMENT
    }
}

/// Places in `extent` that tell of all of it: one in each [`SAMPLE_BYTES`], and its end.
fn samples(extent: Extent) -> impl Iterator<Item = u64> {
    let last = extent.end() - 1;
    (extent.offset()..last).step_by(SAMPLE_BYTES).chain([last])
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]
mod tests {
    use super::*;
    use crate::sys::aligned::AlignedBuffer;
    use crate::volume::ReadAt;
    use crate::volume::direct::{self, tests::BYTES, tests::MIB};
    use crate::volume::file::FileVolume;
    use rustix::fs::{Advice, fadvise, fdatasync};
    use std::os::unix::fs::FileExt;

    /// A file of which nothing is in memory.
    fn on_disk() -> Option<(File, Vec<u8>)> {
        let (file, bytes) = direct::tests::on_disk(For::Reading)?;
        forget(&file);
        Some((file, bytes))
    }

    fn forget(file: &File) {
        fdatasync(file).unwrap();
        fadvise(file, 0, None, Advice::DontNeed).unwrap();
    }

    fn way(file: &File) -> PastCache {
        PastCache::to(file, BYTES as u64).unwrap()
    }

    /// Reads up to a MiB at `offset`.
    fn read(way: &PastCache, offset: u64) -> (usize, AlignedBuffer) {
        let mut buffer = AlignedBuffer::new((BYTES - offset as usize).min(1 << 20));
        (way.read(&mut buffer, offset), buffer)
    }

    #[test]
    fn what_is_not_in_memory_is_read_and_does_not_come_into_it() {
        let Some((file, bytes)) = on_disk() else {
            return;
        };
        let way = way(&file);
        for _ in 0..2 {
            for (offset, expected) in [
                (0, 1 << 20),
                (MIB, 1 << 20),
                (2 * MIB, 1 << 20),
                (3 * MIB, 0),
            ] {
                let (length, buffer) = read(&way, offset);
                assert_eq!(length, expected, "at {offset}");
                assert!(buffer[..length] == bytes[offset as usize..][..length]);
            }
        }
        let none = samples(Extent::new(0, BYTES as u64).unwrap())
            .all(|at| way.resident.has(at) == Some(false));
        assert!(none, "it was left as it was");
    }

    #[test]
    fn the_part_of_a_block_at_the_end_is_for_the_usual_way() {
        let Some((file, bytes)) = on_disk() else {
            return;
        };
        let way = way(&file);
        let mut buffer = AlignedBuffer::new(BYTES - (2 << 20));
        let length = way.read(&mut buffer, 2 * MIB);
        assert_eq!(length, (1 << 20) + 4096);
        assert!(buffer[..length] == bytes[2 << 20..][..length]);
    }

    #[test]
    fn what_is_in_memory_small_or_not_aligned_is_for_the_usual_way() {
        let Some((file, _)) = on_disk() else {
            return;
        };
        let way = way(&file);
        file.read_exact_at(&mut vec![0; 1 << 20], MIB).unwrap();
        assert_eq!(read(&way, MIB).0, 0, "in memory");
        assert_eq!(read(&way, 2 * MIB).0, 1 << 20, "and no more than that is");
        let mut buffer = AlignedBuffer::new(1 << 20);
        assert_eq!(way.read(&mut buffer[..64 << 10], 0), 0);
        assert_eq!(way.read(&mut buffer[1..], 0), 0);
        assert_eq!(way.read(&mut buffer, 512), 0);
        assert_eq!(way.read(&mut buffer, 1 << 30), 0, "past what was asked for");
    }

    #[test]
    fn what_is_in_memory_in_part_is_read_past_it() {
        let Some((file, bytes)) = on_disk() else {
            return;
        };
        let way = way(&file);
        file.read_exact_at(&mut vec![0; 256 << 10], MIB).unwrap();
        let (length, buffer) = read(&way, MIB);
        assert_eq!(length, 1 << 20);
        assert!(buffer[..] == bytes[1 << 20..2 << 20]);
    }

    #[test]
    fn a_volume_is_read_this_way_and_whole() {
        let Some((file, bytes)) = on_disk() else {
            return;
        };
        let volume = FileVolume::new(file.try_clone().unwrap()).unwrap();
        file.read_exact_at(&mut vec![0; 1 << 20], MIB).unwrap();
        let mut all = AlignedBuffer::new(BYTES);
        for (place, piece) in (0..).step_by(1 << 20).zip(all.chunks_mut(1 << 20)) {
            volume.read_exact_at(piece, place).unwrap();
        }
        assert!(all[..] == bytes[..]);
        let way = way(&file);
        for (offset, in_memory) in [(0, false), (MIB, true), (2 * MIB, false)] {
            let piece = Extent::new(offset, MIB).unwrap();
            let found = samples(piece).all(|at| way.resident.has(at) == Some(true));
            assert_eq!(found, in_memory, "at {offset}");
            let at_once = if in_memory { 256 << 10 } else { MIB };
            assert_eq!(volume.enough_at_once(piece), at_once, "at {offset}");
        }
    }

    #[test]
    fn what_was_changed_in_memory_alone_is_what_is_read() {
        let Some((file, mut bytes)) = on_disk() else {
            return;
        };
        let way = way(&file);
        for round in 0..100 {
            // Between the samples.
            let at = (600 << 10) + round * 512;
            file.write_all_at(&[round as u8; 5000], at as u64).unwrap();
            bytes[at..at + 5000].fill(round as u8);
            let (length, buffer) = read(&way, 0);
            assert_eq!(length, 1 << 20);
            assert!(buffer[..] == bytes[..1 << 20], "round {round}");
        }
    }

    #[test]
    fn a_file_that_became_shorter_gives_what_it_has() {
        let Some((file, bytes)) = on_disk() else {
            return;
        };
        let way = way(&file);
        file.set_len(300_000).unwrap();
        let (length, buffer) = read(&way, 0);
        assert_eq!(length, 300_000 - 300_000 % 4096);
        assert!(buffer[..length] == bytes[..length]);
    }
}
