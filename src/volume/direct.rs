//! A file that is open, once more: for direct I/O in large pieces.
//!
//! Guarantees: what is read is what an ordinary read would have found, and what is written what an ordinary read finds: only
//! on filesystems whose direct I/O writes back and drops first what is in memory alone. Nothing comes into the page cache by
//! it. What was written is durable after a sync of the file, like all else. Where it cannot be had (another filesystem, a file
//! that this system does not read and write so) there is no [`Direct`]; of a piece that is small or not aligned, and where
//! something fails, less is read or written than was asked for, and the rest is for the usual way.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, OFlags, StatxFlags, fstatfs, statx};
use rustix::io::Errno;

use super::VolumeIdentity;
use crate::extent::Extent;
use crate::sys::aligned::ALIGNMENT;

/// Less is read as usual: the kernel reads ahead then, which nobody does here; and whoever was told that it is in memory reads
/// less at once ([`super::FROM_MEMORY_BYTES`]), of which nothing is asked once more. And it is written as usual: the kernel
/// puts together what lies side by side.
pub(super) const MIN_BYTES: usize = 512 << 10;

/// `f_type` of ext2 to ext4, XFS, F2FS and Btrfs (`include/uapi/linux/magic.h`). Others may answer a direct read without a
/// look at what is in memory, or have a cache that mincore knows nothing of.
const READ: [u32; 4] = [0xef53, 0x5846_5342, 0xf2f5_2010, BTRFS];
/// The same without Btrfs: what is written there directly is not compressed, whatever the mount says, or is not written
/// directly, for the sake of its checksums.
const WRITTEN: [u32; 3] = [0xef53, 0x5846_5342, 0xf2f5_2010];
const BTRFS: u32 = 0x9123_683e;

/// What it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    Reading,
    Writing,
}

/// Another way to an open file.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    works: AtomicBool,
}

impl Direct {
    /// `None` where there is no such way.
    pub(super) fn to(file: &File, purpose: For) -> Option<Self> {
        let systems = match purpose {
            For::Reading => READ.as_slice(),
            For::Writing => WRITTEN.as_slice(),
        };
        let system = u32::try_from(fstatfs(file).ok()?.f_type).ok()?;
        if !systems.contains(&system) || !may_be_direct(file) {
            return None;
        }
        // By its number: the path may lead to another file by now.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let same = File::options()
            .read(purpose == For::Reading)
            .write(purpose == For::Writing)
            .custom_flags((OFlags::DIRECT | OFlags::NONBLOCK).bits().cast_signed())
            .open(path)
            .ok()?;
        let [one, other] = [file, &same].map(File::metadata);
        if VolumeIdentity::of(&one.ok()?) != VolumeIdentity::of(&other.ok()?) {
            return None;
        }
        Some(Self {
            file: same,
            works: AtomicBool::new(true),
        })
    }

    /// Whether `extent` is large enough, and begins where it may.
    pub(super) fn takes(&self, extent: Extent) -> bool {
        self.works.load(Ordering::Relaxed)
            && extent.length() >= MIN_BYTES as u64
            && extent.offset().is_multiple_of(ALIGNMENT as u64)
    }

    /// Reads the beginning of `buffer` from `offset`, and says how much.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let whole = self.whole_blocks(buffer, offset);
        let buffer = &mut buffer[..whole];
        self.without_interruption(|file| file.read_at(buffer, offset))
    }

    /// Writes the beginning of `data` to `offset`, and says how much. What is said to be written is; of the rest anything
    /// may be.
    pub(super) fn write(&self, data: &[u8], offset: u64) -> usize {
        let data = &data[..self.whole_blocks(data, offset)];
        self.without_interruption(|file| file.write_at(data, offset))
    }

    /// Bytes at the beginning of `memory` that may be read from `offset` or written there.
    fn whole_blocks(&self, memory: &[u8], offset: u64) -> usize {
        let is_taken = Extent::new(offset, memory.len() as u64).is_some_and(|e| self.takes(e));
        if is_taken && memory.as_ptr().addr().is_multiple_of(ALIGNMENT) {
            memory.len() - memory.len() % ALIGNMENT
        } else {
            0
        }
    }

    fn without_interruption(&self, mut work: impl FnMut(&File) -> io::Result<usize>) -> usize {
        loop {
            match work(&self.file) {
                Ok(length) => return length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if let Some(Errno::INVAL | Errno::OPNOTSUPP) = Errno::from_io_error(&error) {
                        self.works.store(false, Ordering::Relaxed);
                    }
                    return 0;
                }
            }
        }
    }
}

/// What takes direct requests may carry them out through the page cache: with the journal for data, encrypted, or compressed.
/// Linux 6.1 and later say so.
fn may_be_direct(file: &File) -> bool {
    let Ok(told) = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return true;
    };
    let is_told = told.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let fits = |bytes: u32| (1..=ALIGNMENT).contains(&(bytes as usize));
    !is_told || (fits(told.stx_dio_mem_align) && fits(told.stx_dio_offset_align))
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]
pub(super) mod tests {
    use super::*;
    use crate::sys::aligned::AlignedBuffer;
    use crate::sys::resident::Resident;
    use crate::volume::WriteAt;
    use crate::volume::file::FileVolume;
    use rustix::fs::{Advice, fadvise, fdatasync};
    use std::io::Write;

    pub(in super::super) const BYTES: usize = (3 << 20) + 5000;
    pub(in super::super) const MIB: u64 = 1 << 20;

    /// A file beside the code, for /tmp may be in memory; `None` if that lies on a filesystem that is read or written as
    /// usual, or may not be written.
    pub(in super::super) fn on_disk(purpose: For) -> Option<(File, Vec<u8>)> {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).ok()?;
        Direct::to(&file, purpose)?;
        // Noise: what can be compressed may be read through the page cache.
        let mut bytes = vec![0; BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        file.write_all(&bytes).unwrap();
        // No more is read than is asked for.
        fadvise(&file, 0, None, Advice::Random).unwrap();
        Some((file, bytes))
    }

    /// Whether any page of a MiB at `offset` is in memory.
    fn is_in_memory(file: &File, offset: u64) -> bool {
        let resident = Resident::of(file, BYTES as u64).unwrap();
        (0..256).any(|page| resident.has(offset + page * 4096) == Some(true))
    }

    #[test]
    fn what_is_written_is_what_an_ordinary_read_finds_and_is_not_kept() {
        let Some((file, mut bytes)) = on_disk(For::Writing) else {
            return;
        };
        let way = Direct::to(&file, For::Writing).unwrap();
        let mut piece = AlignedBuffer::new(1 << 20);
        for round in 0..20_u8 {
            // What is in memory alone, beside it and below it, and what is in memory as it is on the disk.
            let at = (512 << 10) + usize::from(round) * 4096;
            file.write_all_at(&[round; 1 << 20], at as u64).unwrap();
            bytes[at..at + (1 << 20)].fill(round);
            file.read_exact_at(&mut vec![0; 1 << 20], 2 * MIB).unwrap();
            piece.fill(200 - round);
            for offset in [MIB, 2 * MIB] {
                assert_eq!(way.write(&piece, offset), 1 << 20, "at {offset}");
                bytes[offset as usize..][..1 << 20].fill(200 - round);
                assert!(!is_in_memory(&file, offset), "at {offset}");
            }
            let mut found = vec![0; BYTES];
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found == bytes, "round {round}");
        }
        fdatasync(&file).unwrap();
    }

    #[test]
    fn holes_and_a_part_of_a_block_at_the_end_are_written_by_a_volume() {
        let Some((file, bytes)) = on_disk(For::Writing) else {
            return;
        };
        file.set_len(0).unwrap();
        file.set_len(BYTES as u64).unwrap();
        let volume = FileVolume::new(file.try_clone().unwrap()).unwrap();
        let mut piece = AlignedBuffer::new(BYTES - (2 << 20));
        assert!(volume.waits_for_device(Extent::new(2 * MIB, piece.len() as u64).unwrap()));
        piece.copy_from_slice(&bytes[2 << 20..]);
        volume.write_all_at(&piece, 2 * MIB).unwrap();
        assert!(!is_in_memory(&file, 2 * MIB));
        let mut found = vec![0; BYTES];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found[..2 << 20].iter().all(|byte| *byte == 0));
        assert!(found[2 << 20..] == bytes[2 << 20..]);
    }

    #[test]
    fn what_is_small_not_aligned_or_cannot_be_written_is_for_the_usual_way() {
        let Some((file, _)) = on_disk(For::Writing) else {
            return;
        };
        let way = Direct::to(&file, For::Writing).unwrap();
        let buffer = AlignedBuffer::new(1 << 20);
        assert_eq!(way.write(&buffer[..64 << 10], 0), 0);
        assert_eq!(way.write(&buffer[1..], 0), 0);
        assert_eq!(way.write(&buffer, 512), 0);
        assert_eq!(way.write(&buffer, u64::MAX - 4095), 0);
        let small = Extent::new(0, 64 << 10).unwrap();
        let volume = FileVolume::new(file).unwrap();
        assert!(!volume.waits_for_device(small));
        if let Ok(file) = tempfile::tempfile_in("/dev/shm") {
            let volume = FileVolume::new(file).unwrap();
            assert_eq!(volume.writes_at_once(), 1);
            assert!(!volume.waits_for_device(Extent::new(0, MIB).unwrap()));
        }
    }

    #[test]
    fn where_direct_reads_may_not_see_what_is_in_memory_there_is_no_such_way() {
        let proc = File::open("/proc/self/status").unwrap();
        assert!(Direct::to(&proc, For::Reading).is_none());
        // What lives in memory lets itself be opened so.
        if let Ok(mut file) = tempfile::tempfile_in("/dev/shm") {
            file.write_all(&[1; 4096]).unwrap();
            assert!(Direct::to(&file, For::Reading).is_none());
            assert!(Direct::to(&file, For::Writing).is_none());
        }
    }

    #[test]
    fn a_failure_says_that_nothing_was_done_and_what_is_refused_is_not_tried_again() {
        let Some((file, _)) = on_disk(For::Writing) else {
            return;
        };
        let way = Direct::to(&file, For::Writing).unwrap();
        let fails = |errno: Errno| way.without_interruption(|_| Err(errno.into()));
        let piece = Extent::new(0, MIB).unwrap();
        for errno in [Errno::IO, Errno::NOSPC] {
            assert_eq!(fails(errno), 0);
            assert!(way.takes(piece), "{errno:?}");
        }
        let mut calls = 0;
        let done = way.without_interruption(|_| {
            calls += 1;
            (calls == 3).then_some(5).ok_or(Errno::INTR.into())
        });
        assert_eq!((done, calls), (5, 3));
        assert_eq!(fails(Errno::INVAL), 0);
        assert!(!way.takes(piece));
    }
}
