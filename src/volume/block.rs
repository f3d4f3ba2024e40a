//! A block device as a volume, through direct I/O.
//!
//! Guarantees: reads see what is on the device *now*: a mounted filesystem writes past the device's page
//! cache, and device-mapper past that of a snapshot's store, so a buffered read of a live device may be
//! stale. Callers may ask for any offset and length; what is not aligned goes through a bounce buffer.
//! `sync` flushes the device's own cache too.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use rustix::fs::OFlags;

use super::file::write_zeroes;
use super::host::VolumeIdentity;
use super::{ReadAt, WriteAt};
use crate::extent::Extent;
use crate::sys::aligned::{ALIGNMENT, AlignedBuffer};
use crate::sys::device::DeviceNumber;
use crate::sys::ioctl;

/// An open block device.
#[derive(Debug)]
pub struct BlockVolume {
    file: File,
    device: DeviceNumber,
    size_bytes: u64,
    /// Unit of direct I/O: the logical block size. 1 where I/O is buffered and needs no alignment.
    unit: usize,
    /// Unit of zeroing through the device.
    zero_unit: u64,
    /// Whole, aligned blocks of this size read as zeroes after a discard (a thin volume's pool block).
    discard_unit: Option<u64>,
    /// Bounce buffers between calls.
    spare: Mutex<Vec<AlignedBuffer>>,
    /// Two writes to different parts of one logical block must not undo each other.
    edge: Mutex<()>,
}

const BOUNCE_BYTES: usize = 256 << 10;
const MAX_SPARE: usize = 4;
/// Zeroing goes to the kernel in pieces, so that a signal is noticed between them.
const ZERO_PIECE_BYTES: u64 = 1 << 30;

impl BlockVolume {
    /// Takes an open block device. `direct` says that it was opened with `O_DIRECT`.
    pub fn new(file: File, device: DeviceNumber, direct: bool) -> io::Result<Self> {
        let size_bytes = ioctl::size_bytes(&file)?;
        let logical = ioctl::logical_block_bytes(&file)?;
        let unit = usize::try_from(logical)
            .unwrap_or(ALIGNMENT)
            .clamp(512, 1 << 20);
        // A tail shorter than a block cannot be reached with direct I/O.
        let direct = direct && size_bytes.is_multiple_of(unit as u64) && unit <= ALIGNMENT;
        if !direct {
            let flags = rustix::fs::fcntl_getfl(&file)?;
            rustix::fs::fcntl_setfl(&file, flags - OFlags::DIRECT)?;
            ioctl::flush_buffers(&file)?;
        }
        Ok(Self {
            file,
            device,
            size_bytes,
            unit: if direct { unit } else { 1 },
            zero_unit: unit as u64,
            discard_unit: None,
            spare: Mutex::default(),
            edge: Mutex::default(),
        })
    }

    /// The open device.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Zeroes whole blocks of `unit` bytes by discarding them, so that thin stays thin.
    ///
    /// Only right where a discarded block is known to read as zeroes: a thin volume, with its pool's
    /// block size. Ordinary devices promise nothing about discarded ranges.
    pub fn zero_by_discard(&mut self, unit: u64) {
        self.discard_unit = (unit > 0 && unit.is_multiple_of(self.zero_unit)).then_some(unit);
    }

    /// What the system tells of it now.
    pub fn metadata(&self) -> io::Result<std::fs::Metadata> {
        self.file.metadata()
    }

    /// What makes it the same volume as another path.
    pub fn identity(&self) -> VolumeIdentity {
        VolumeIdentity::Block(self.device)
    }

    /// True if I/O goes past the page cache.
    pub fn is_direct(&self) -> bool {
        self.unit > 1
    }

    fn check(&self, offset: u64, length: u64, past: io::ErrorKind) -> io::Result<()> {
        let end = offset.checked_add(length).ok_or(past)?;
        if end > self.size_bytes {
            Err(past.into())
        } else {
            Ok(())
        }
    }

    fn is_aligned(&self, bytes: &[u8], offset: u64) -> bool {
        let unit = self.unit as u64;
        offset.is_multiple_of(unit)
            && (bytes.len() as u64).is_multiple_of(unit)
            && bytes.as_ptr().addr().is_multiple_of(self.unit)
    }

    fn with_bounce<T>(&self, use_it: impl FnOnce(&mut [u8]) -> io::Result<T>) -> io::Result<T> {
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = spare().pop();
        let mut buffer = taken.unwrap_or_else(|| AlignedBuffer::new(BOUNCE_BYTES.max(self.unit)));
        let result = use_it(&mut buffer);
        let mut spare = spare();
        if spare.len() < MAX_SPARE {
            spare.push(buffer);
        }
        result
    }

    /// Reads any range, through the bounce buffer.
    fn read_bounced(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        let unit = self.unit as u64;
        self.with_bounce(|bounce| {
            while !buffer.is_empty() {
                let skip = usize_of(offset % unit)?;
                let wanted = skip
                    .saturating_add(buffer.len())
                    .next_multiple_of(self.unit);
                let bounce = &mut bounce[..wanted.min(BOUNCE_BYTES.max(self.unit))];
                self.file.read_exact_at(bounce, offset - offset % unit)?;
                let here = (bounce.len() - skip).min(buffer.len());
                let (head, rest) = std::mem::take(&mut buffer).split_at_mut(here);
                head.copy_from_slice(&bounce[skip..skip + here]);
                buffer = rest;
                offset += here as u64;
            }
            Ok(())
        })
    }

    /// Writes a part of one logical block: reads it, changes it, writes it back.
    fn write_edge(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let skip = usize_of(offset % self.unit as u64)?;
        let start = offset - skip as u64;
        let _guard = self.edge.lock().unwrap_or_else(PoisonError::into_inner);
        self.with_bounce(|bounce| {
            let block = &mut bounce[..self.unit];
            self.file.read_exact_at(block, start)?;
            block[skip..skip + bytes.len()].copy_from_slice(bytes);
            self.file.write_all_at(block, start)
        })
    }

    /// Zeroes a range that is aligned to the device's blocks.
    fn zero_aligned(&self, extent: Extent) -> io::Result<()> {
        if let Some(unit) = self.discard_unit {
            let (head, middle, tail) = split(extent, unit);
            if let Some(middle) = middle
                && in_pieces(middle, unit, |piece| ioctl::discard(&self.file, piece)).is_ok()
            {
                for edge in [head, tail].into_iter().flatten() {
                    self.zero_out(edge)?;
                }
                return Ok(());
            }
        }
        self.zero_out(extent)
    }

    fn zero_out(&self, extent: Extent) -> io::Result<()> {
        match in_pieces(extent, self.zero_unit, |piece| {
            ioctl::zero_out(&self.file, piece)
        }) {
            Err(error) if is_unsupported(&error) => {
                write_zeroes(extent, |piece, offset| self.write_all_at(piece, offset))
            }
            result => result,
        }
    }
}

impl ReadAt for BlockVolume {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Past the page cache each read waits for the device, about as long as a fast one takes for this much.
    fn gap_worth_reading(&self) -> u64 {
        if self.is_direct() { 64 << 10 } else { 16 << 10 }
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(offset, buffer.len() as u64, io::ErrorKind::UnexpectedEof)?;
        if self.is_aligned(buffer, offset) {
            self.file.read_exact_at(buffer, offset)
        } else {
            self.read_bounced(buffer, offset)
        }
    }
}

impl WriteAt for BlockVolume {
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.check(offset, buffer.len() as u64, io::ErrorKind::StorageFull)?;
        if self.is_aligned(buffer, offset) {
            return self.file.write_all_at(buffer, offset);
        }
        let Some(extent) = Extent::new(offset, buffer.len() as u64) else {
            return Ok(());
        };
        let (head, middle, tail) = split(extent, self.unit as u64);
        let part = |part: Extent| {
            let start = usize_of(part.offset() - offset)?;
            Ok::<_, io::Error>(&buffer[start..start + usize_of(part.length())?])
        };
        for edge in [head, tail].into_iter().flatten() {
            // Without a whole block between them head and tail may be one range over two blocks.
            let mut at = edge;
            loop {
                let block_end = (at.offset() / self.unit as u64 + 1) * self.unit as u64;
                let here = Extent::from_range(at.offset(), at.end().min(block_end)).unwrap_or(at);
                self.write_edge(part(here)?, here.offset())?;
                match Extent::from_range(here.end(), at.end()) {
                    Some(rest) => at = rest,
                    None => break,
                }
            }
        }
        let Some(middle) = middle else { return Ok(()) };
        let bytes = part(middle)?;
        if self.is_aligned(bytes, middle.offset()) {
            return self.file.write_all_at(bytes, middle.offset());
        }
        self.with_bounce(|bounce| {
            let mut position = middle.offset();
            for piece in bytes.chunks(bounce.len()) {
                bounce[..piece.len()].copy_from_slice(piece);
                self.file.write_all_at(&bounce[..piece.len()], position)?;
                position += piece.len() as u64;
            }
            Ok(())
        })
    }

    fn zero_at(&self, extent: Extent) -> io::Result<()> {
        self.check(extent.offset(), extent.length(), io::ErrorKind::StorageFull)?;
        let (head, middle, tail) = split(extent, self.zero_unit);
        for edge in [head, tail].into_iter().flatten() {
            write_zeroes(edge, |piece, offset| self.write_all_at(piece, offset))?;
        }
        middle.map_or(Ok(()), |middle| self.zero_aligned(middle))
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The part before the first multiple of `unit`, the aligned part, and the rest. Where no whole unit
/// fits, all of it is the first part.
fn split(extent: Extent, unit: u64) -> (Option<Extent>, Option<Extent>, Option<Extent>) {
    let first = extent
        .offset()
        .checked_next_multiple_of(unit)
        .unwrap_or(u64::MAX);
    let last = extent.end() - extent.end() % unit;
    if first >= last {
        return (Some(extent), None, None);
    }
    (
        Extent::from_range(extent.offset(), first),
        Extent::from_range(first, last),
        Extent::from_range(last, extent.end()),
    )
}

/// Calls `work` for pieces of `extent` that begin at multiples of `unit` from its start.
fn in_pieces(
    extent: Extent,
    unit: u64,
    mut work: impl FnMut(Extent) -> io::Result<()>,
) -> io::Result<()> {
    let step = ZERO_PIECE_BYTES.max(unit) / unit * unit;
    let mut start = extent.offset();
    while let Some(piece) = Extent::from_range(start, extent.end().min(start.saturating_add(step)))
    {
        work(piece)?;
        start = piece.end();
    }
    Ok(())
}

fn is_unsupported(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::NOTTY, Errno::INVAL, Errno::NOSYS]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn usize_of(n: u64) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same code over an ordinary file that is treated as a device with `unit`-byte blocks.
    fn on_file(bytes: &[u8], unit: usize) -> BlockVolume {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        BlockVolume {
            file,
            device: DeviceNumber::new(0, 0),
            size_bytes: bytes.len() as u64,
            unit,
            zero_unit: unit as u64,
            discard_unit: None,
            spare: Mutex::default(),
            edge: Mutex::default(),
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Read,
        Write(u8),
        Zero,
    }

    fn ops() -> impl Strategy<Value = Vec<(usize, usize, Op)>> {
        let op = prop_oneof![
            Just(Op::Read),
            any::<u8>().prop_map(Op::Write),
            Just(Op::Zero)
        ];
        prop::collection::vec((0usize..40_960, 0usize..20_000, op), 1..20)
    }

    proptest! {
        #[test]
        fn any_offset_and_length_follow_the_model(
            ops in ops(), unit in prop::sample::select(vec![1usize, 512, 4096]), shift in 0usize..3,
        ) {
            let mut model: Vec<u8> = (0..40_960u32).map(|n| (n / 7) as u8).collect();
            let volume = on_file(&model, unit);
            for (offset, length, op) in ops {
                let end = (offset + length).min(model.len());
                let range = offset..end;
                match op {
                    Op::Read => {
                        let mut buffer = vec![0; shift + range.len()];
                        volume.read_exact_at(&mut buffer[shift..], offset as u64).unwrap();
                        prop_assert_eq!(&buffer[shift..], &model[range]);
                    }
                    Op::Write(byte) => {
                        let buffer = vec![byte; shift + range.len()];
                        volume.write_all_at(&buffer[shift..], offset as u64).unwrap();
                        model[range].fill(byte);
                    }
                    Op::Zero => {
                        if let Some(extent) = Extent::from_range(offset as u64, end as u64) {
                            volume.zero_at(extent).unwrap();
                        }
                        model[range].fill(0);
                    }
                }
            }
            let mut all = vec![0; model.len()];
            volume.read_exact_at(&mut all, 0).unwrap();
            prop_assert_eq!(all, model);
        }

        #[test]
        fn a_split_covers_the_extent(
            offset in 0u64..10_000, length in 1u64..10_000, unit in 1u64..3000,
        ) {
            let extent = Extent::new(offset, length).unwrap();
            let (head, middle, tail) = split(extent, unit);
            let parts: Vec<_> = [head, middle, tail].into_iter().flatten().collect();
            prop_assert_eq!(parts[0].offset(), offset);
            prop_assert_eq!(parts.last().unwrap().end(), offset + length);
            prop_assert!(parts.windows(2).all(|w| w[0].end() == w[1].offset()));
            if let Some(middle) = middle {
                prop_assert!(middle.offset() % unit == 0 && middle.end() % unit == 0);
            }
        }
    }

    #[test]
    fn nothing_happens_past_the_end() {
        let volume = on_file(&[1; 8192], 512);
        assert!(volume.write_all_at(&[2; 513], 8192 - 512).is_err());
        assert!(volume.read_exact_at(&mut [0; 2], 8191).is_err());
        assert!(volume.zero_at(Extent::new(8000, 193).unwrap()).is_err());
        assert!(volume.read_exact_at(&mut [0; 1], u64::MAX).is_err());
        let mut all = [0; 8192];
        volume.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(all, [1; 8192]);
    }

    #[test]
    fn large_ranges_go_in_aligned_pieces() {
        let mut pieces = Vec::new();
        let unit = 192 << 10;
        in_pieces(Extent::new(unit, 3 << 30).unwrap(), unit, |piece| {
            pieces.push(piece);
            Ok(())
        })
        .unwrap();
        assert!(pieces.iter().all(|piece| piece.offset() % unit == 0));
        assert_eq!(
            pieces.iter().map(|piece| piece.length()).sum::<u64>(),
            3 << 30
        );
        assert_eq!(pieces.len(), 4);
    }
}
