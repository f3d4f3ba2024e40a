//! Reading of a file what the page cache does not have, past it, and writing to one past it.
//!
//! Guarantees: what is read is what an ordinary read would have found, and what is written what an ordinary read finds: only
//! on filesystems whose direct reads and writes write back first what is in memory alone. A piece that the page cache has is
//! read from there; any other comes straight from the disk and is not kept, so that others need not make room for it. What
//! is written is on its way to the disk, and durable after a sync like all else. Where that cannot be had (another filesystem,
//! a file of somebody else's, a piece that is small or not aligned) nothing is read or written here, and the caller does as
//! usual.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{OFlags, fstatfs};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::VolumeIdentity;
use crate::extent::Extent;
use crate::sys::aligned::ALIGNMENT;
use crate::sys::resident::Resident;

/// Less is read as usual: the kernel reads ahead then, which nobody does here; and whoever was told that it is in memory reads
/// less at once ([`super::FROM_MEMORY_BYTES`]), of which nothing is asked once more.
pub(super) const MIN_BYTES: usize = 512 << 10;
/// One page of so many bytes is asked for, and the last. To ask takes as long as to copy 16 KiB.
const SAMPLE_BYTES: usize = 1 << 20;
/// `f_type` of ext2 to ext4, XFS, Btrfs and F2FS (`include/uapi/linux/magic.h`). Others may answer a direct read without a
/// look at what is in memory, or have a cache that mincore knows nothing of.
const COHERENT: [u32; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// Another way to an open file.
#[derive(Debug)]
pub(super) struct PastCache {
    file: File,
    resident: Resident,
    works: AtomicBool,
}

impl PastCache {
    /// For the first `bytes` of `file`; `None` where there is no such way.
    pub(super) fn to(file: &File, bytes: u64) -> Option<Self> {
        // A mapping as large as the file takes no memory, but it takes addresses.
        let scarce = getrlimit(Resource::As).current.is_some();
        if scarce || !is_coherent(file) {
            return None;
        }
        Some(Self {
            file: opened_again(file, File::options().read(true))?,
            resident: Resident::of(file, bytes).ok()?,
            works: AtomicBool::new(true),
        })
    }

    /// Whether `extent` would be read past the page cache. It is asked for by samples.
    pub(super) fn is_the_way(&self, extent: Extent) -> bool {
        self.works.load(Ordering::Relaxed)
            && extent.length() >= MIN_BYTES as u64
            && extent.offset().is_multiple_of(ALIGNMENT as u64)
            && samples(extent).any(|at| self.resident.has(at) == Some(false))
    }

    /// Reads the beginning of `buffer` from `offset`, and says how much. The rest is for the usual way, and so is every error.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let whole = buffer.len() - buffer.len() % ALIGNMENT;
        let is_aligned = buffer.as_ptr().addr().is_multiple_of(ALIGNMENT);
        let extent = Extent::new(offset, whole as u64);
        if !is_aligned || !extent.is_some_and(|extent| self.is_the_way(extent)) {
            return 0;
        }
        loop {
            match self.file.read_at(&mut buffer[..whole], offset) {
                // The next part would not be aligned where the file ends.
                Ok(length) => return length - length % ALIGNMENT,
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

/// A way to write to an open file.
#[derive(Debug)]
pub(super) struct WritePastCache {
    file: File,
    works: AtomicBool,
}

impl WritePastCache {
    /// `None` where there is no such way.
    pub(super) fn to(file: &File) -> Option<Self> {
        if !is_coherent(file) {
            return None;
        }
        Some(Self {
            file: opened_again(file, File::options().write(true))?,
            works: AtomicBool::new(true),
        })
    }

    /// Whether `extent` would be written past the page cache.
    pub(super) fn is_the_way(&self, extent: Extent) -> bool {
        self.works.load(Ordering::Relaxed)
            && extent.length() >= MIN_BYTES as u64
            && extent.offset().is_multiple_of(ALIGNMENT as u64)
    }

    /// Writes the beginning of `data` to `offset`, and says how much. The rest is for the usual way, and so is every error:
    /// what is said to be written here is.
    pub(super) fn write(&self, data: &[u8], offset: u64) -> usize {
        let whole = data.len() - data.len() % ALIGNMENT;
        let is_aligned = data.as_ptr().addr().is_multiple_of(ALIGNMENT);
        let extent = Extent::new(offset, whole as u64);
        if !is_aligned || !extent.is_some_and(|extent| self.is_the_way(extent)) {
            return 0;
        }
        loop {
            match self.file.write_at(&data[..whole], offset) {
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

/// The same file once more, past the page cache.
fn opened_again(file: &File, options: &mut OpenOptions) -> Option<File> {
    // By its number: the path may lead to another file by now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    options.custom_flags((OFlags::DIRECT | OFlags::NONBLOCK).bits().cast_signed());
    let same = options.open(path).ok()?;
    let [one, other] = [file, &same].map(File::metadata);
    (VolumeIdentity::of(&one.ok()?) == VolumeIdentity::of(&other.ok()?)).then_some(same)
}

fn is_coherent(file: &File) -> bool {
    let kind = fstatfs(file).map(|system| u32::try_from(system.f_type));
    matches!(kind, Ok(Ok(kind)) if COHERENT.contains(&kind))
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
    use crate::volume::file::FileVolume;
    use crate::volume::{ReadAt, WriteAt};
    use rustix::fs::{Advice, fadvise, fdatasync};
    use std::io::Write;

    const BYTES: usize = (3 << 20) + 5000;
    const MIB: u64 = 1 << 20;

    /// A file of which nothing is in memory, beside the code, for /tmp may be in memory; `None` if that lies on a filesystem
    /// that is read as usual, or may not be written.
    fn on_disk() -> Option<(File, Vec<u8>)> {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).ok()?;
        if !is_coherent(&file) {
            return None;
        }
        // Noise: what can be compressed may be read through the page cache.
        let mut bytes = vec![0; BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        file.write_all(&bytes).unwrap();
        // No more is read than is asked for.
        fadvise(&file, 0, None, Advice::Random).unwrap();
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

    /// Whether any page of a MiB at `offset` is in memory.
    fn is_in_memory(file: &File, offset: u64) -> bool {
        let resident = Resident::of(file, BYTES as u64).unwrap();
        (0..256).any(|page| resident.has(offset + page * 4096) == Some(true))
    }

    #[test]
    fn what_is_written_is_what_an_ordinary_read_finds_and_is_not_kept() {
        let Some((file, mut bytes)) = on_disk() else {
            return;
        };
        let way = WritePastCache::to(&file).unwrap();
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
        let Some((file, bytes)) = on_disk() else {
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
        let Some((file, _)) = on_disk() else {
            return;
        };
        let way = WritePastCache::to(&file).unwrap();
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
        assert!(!is_coherent(&proc));
        // What lives in memory lets itself be opened so.
        if let Ok(mut file) = tempfile::tempfile_in("/dev/shm") {
            file.write_all(&[1; 4096]).unwrap();
            assert!(!is_coherent(&file));
            assert!(PastCache::to(&file, 4096).is_none());
        }
    }
}
