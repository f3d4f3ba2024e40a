//! A regular file as a volume.
//!
//! Guarantees: holes stay holes (zeroing punches, reading tells where data is); the size changes only
//! through `set_size`; a file opened for writing is locked, so two runs cannot write it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, FallocateFlags, SeekFrom, fadvise, fallocate, seek};
use rustix::io::Errno;

use super::direct::{Direct, For, MIN_BYTES};
use super::host::VolumeIdentity;
use super::past_cache::PastCache;
use super::{FROM_DEVICE_BYTES, FROM_MEMORY_BYTES, ReadAt, WriteAt};
use crate::extent::Extent;

/// An open regular file.
#[derive(Debug)]
pub struct FileVolume {
    file: File,
    size_bytes: AtomicU64,
    identity: VolumeIdentity,
    /// For what the page cache does not have, once it is wanted.
    past_cache: OnceLock<Option<PastCache>>,
    /// For large writes, once somebody writes.
    direct: OnceLock<Option<Direct>>,
}

/// Zeroes are written in pieces of this size where holes cannot be punched.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
/// Data goes into the page cache in pieces of this size. The kernel takes memory for each write in one piece where it can,
/// and in a virtual machine large pieces are what the host was given back: to have them again costs three times the write.
const PIECE_BYTES: usize = 128 << 10;

impl FileVolume {
    /// Takes an open file; its size is looked at once.
    pub fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            size_bytes: AtomicU64::new(metadata.len()),
            identity: VolumeIdentity::of(&metadata),
            past_cache: OnceLock::new(),
            direct: OnceLock::new(),
            file,
        })
    }

    /// What makes it the same volume as another path.
    pub fn identity(&self) -> VolumeIdentity {
        self.identity
    }

    /// Another handle on it.
    pub fn try_clone(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// What the system tells of it now.
    pub fn metadata(&self) -> io::Result<std::fs::Metadata> {
        self.file.metadata()
    }

    /// Writes back what is in memory alone, and gives up the copies there: the next reads come from the disk.
    /// A filesystem that lives in memory, or a page that another program has mapped, keeps them.
    pub fn forget_cached(&self) -> io::Result<()> {
        match rustix::fs::fdatasync(&self.file) {
            // What cannot be written has nothing to write back.
            Ok(()) | Err(Errno::INVAL | Errno::ROFS) => {}
            Err(error) => return Err(error.into()),
        }
        match fadvise(&self.file, 0, None, Advice::DontNeed) {
            Ok(()) | Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn past_cache(&self) -> Option<&PastCache> {
        let way = || PastCache::to(&self.file, self.size_bytes());
        self.past_cache.get_or_init(way).as_ref()
    }

    /// The way for large writes.
    fn direct(&self) -> Option<&Direct> {
        let way = || Direct::to(&self.file, For::Writing);
        self.direct.get_or_init(way).as_ref()
    }

    fn check(&self, offset: u64, length: u64, past: io::ErrorKind) -> io::Result<()> {
        let end = offset.checked_add(length).ok_or(past)?;
        if end > self.size_bytes() {
            Err(past.into())
        } else {
            Ok(())
        }
    }
}

impl ReadAt for FileVolume {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(offset, buffer.len() as u64, io::ErrorKind::UnexpectedEof)?;
        let done = match buffer.len() {
            0..MIN_BYTES => 0,
            _ => self.past_cache().map_or(0, |way| way.read(buffer, offset)),
        };
        self.file
            .read_exact_at(&mut buffer[done..], offset + done as u64)
    }

    fn enough_at_once(&self, extent: Extent) -> u64 {
        match self.past_cache() {
            Some(way) if way.is_the_way(extent) => FROM_DEVICE_BYTES,
            _ => FROM_MEMORY_BYTES,
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Extent>> {
        let size = self.size_bytes();
        if offset >= size {
            return Ok(None);
        }
        // Moves the file's own position, which nothing else here uses.
        let start = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return Ok(Extent::from_range(offset, size));
            }
            Err(error) => return Err(error.into()),
        };
        let end = seek(&self.file, SeekFrom::Hole(start))?;
        Ok(Extent::from_range(start.max(offset), end.min(size)))
    }
}

impl WriteAt for FileVolume {
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.check(offset, buffer.len() as u64, io::ErrorKind::StorageFull)?;
        let done = match buffer.len() {
            0..MIN_BYTES => 0,
            _ => self.direct().map_or(0, |way| way.write(buffer, offset)),
        };
        let places = (offset + done as u64..).step_by(PIECE_BYTES);
        for (piece, at) in buffer[done..].chunks(PIECE_BYTES).zip(places) {
            self.file.write_all_at(piece, at)?;
        }
        Ok(())
    }

    /// What goes past the page cache is waited for, and one write may be made ready while another is under way. More gain
    /// nothing: a filesystem lets one write at a time into what was a hole.
    fn writes_at_once(&self) -> usize {
        match self.direct() {
            Some(_) => 2,
            None => 1,
        }
    }

    fn waits_for_device(&self, extent: Extent) -> bool {
        extent.length() >= MIN_BYTES as u64 && self.direct().is_some_and(|way| way.takes(extent))
    }

    fn zero_at(&self, extent: Extent) -> io::Result<()> {
        self.check(extent.offset(), extent.length(), io::ErrorKind::StorageFull)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match fallocate(&self.file, flags, extent.offset(), extent.length()) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => break,
                Err(error) => return Err(error.into()),
            }
        }
        write_zeroes(extent, |piece, offset| {
            self.file.write_all_at(piece, offset)
        })
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        self.file.set_len(size_bytes)?;
        self.size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Calls `write` with zeroes until `extent` is covered.
pub(super) fn write_zeroes(
    extent: Extent,
    mut write: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut position = extent.offset();
    while position < extent.end() {
        let left = usize::try_from(extent.end() - position).unwrap_or(usize::MAX);
        let piece = &ZEROES[..left.min(ZEROES.len())];
        write(piece, position)?;
        position += piece.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]
mod tests {
    use super::*;

    fn volume(bytes: &[u8]) -> FileVolume {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        FileVolume::new(file).unwrap()
    }

    fn bytes(volume: &FileVolume) -> Vec<u8> {
        let mut bytes = vec![0; volume.size_bytes() as usize];
        volume.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn reads_and_writes_stay_inside() {
        let volume = volume(b"0123456789");
        volume.write_all_at(b"ab", 8).unwrap();
        assert_eq!(bytes(&volume), b"01234567ab");
        let past = volume.write_all_at(b"abc", 8).unwrap_err();
        assert_eq!(past.kind(), io::ErrorKind::StorageFull);
        let past = volume.read_exact_at(&mut [0; 3], 8).unwrap_err();
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        assert!(volume.read_exact_at(&mut [0; 3], u64::MAX).is_err());
        assert!(volume.zero_at(Extent::new(8, 3).unwrap()).is_err());
        assert_eq!(
            bytes(&volume),
            b"01234567ab",
            "nothing was written past the end"
        );
    }

    #[test]
    fn what_is_written_in_pieces_is_one() {
        let data: Vec<u8> = (0..2 * PIECE_BYTES + 300)
            .map(|i| (i % 251) as u8)
            .collect();
        let volume = volume(&vec![0xff; data.len() + 20]);
        volume.write_all_at(&data, 10).unwrap();
        let edge = [0xff; 10];
        assert_eq!(bytes(&volume), [&edge, data.as_slice(), &edge].concat());
    }

    #[test]
    fn zeroing_leaves_the_rest_and_growth_reads_as_zeroes() {
        let volume = volume(&vec![7; 20_000]);
        volume.zero_at(Extent::new(5, 19_990).unwrap()).unwrap();
        let mut expected = vec![0; 20_000];
        expected[..5].fill(7);
        expected[19_995..].fill(7);
        assert_eq!(bytes(&volume), expected);
        volume.set_size(19_999).unwrap();
        assert!(volume.read_exact_at(&mut [0], 19_999).is_err());
        volume.set_size(30_000).unwrap();
        expected.truncate(19_999);
        expected.resize(30_000, 0);
        assert_eq!(bytes(&volume), expected);
        volume.sync().unwrap();
    }

    #[test]
    fn data_is_found_and_never_missed() {
        let volume = volume(&[]);
        volume.set_size(1 << 20).unwrap();
        volume.write_all_at(&[1; 100], 500_000).unwrap();
        let mut covered = Vec::new();
        let mut position = 0;
        while let Some(data) = volume.next_data(position).unwrap() {
            assert!(data.offset() >= position);
            covered.push(data);
            position = data.end();
        }
        let written = Extent::new(500_000, 100).unwrap();
        assert!(
            covered
                .iter()
                .any(|d| d.intersect(written) == Some(written)),
            "{covered:?}"
        );
        assert_eq!(volume.next_data(1 << 20).unwrap(), None);
        assert_eq!(volume.next_data(u64::MAX).unwrap(), None);
    }

    #[test]
    fn what_is_in_memory_is_written_back_before_it_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, vec![3; 100_000]).unwrap();
        let read_only = FileVolume::new(File::open(&path).unwrap()).unwrap();
        read_only.forget_cached().unwrap();
        assert_eq!(bytes(&read_only), vec![3; 100_000]);
    }

    #[test]
    fn zeroes_are_written_in_pieces() {
        let mut seen = Vec::new();
        let extent = Extent::new(3, 200_000).unwrap();
        write_zeroes(extent, |piece, offset| {
            seen.push((offset, piece.len()));
            Ok(())
        })
        .unwrap();
        assert_eq!(
            seen,
            [
                (3, 65_536),
                (65_539, 65_536),
                (131_075, 65_536),
                (196_611, 3_392)
            ]
        );
    }
}
