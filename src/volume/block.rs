//! A block device as a volume, through direct I/O.
//!
//! Guarantees: reads see what is on the device *now*: a mounted filesystem writes past the device's page
//! cache, and device-mapper past that of a snapshot's store, so a buffered read of a live device may be
//! stale. Callers may ask for any offset and length; what is not aligned goes through a bounce buffer.
//! `sync` flushes the device's own cache too. Where a pool gives the space, nothing is allocated for zeroes that
//! are zeroes already.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::file::write_zeroes;
use super::host::VolumeIdentity;
use super::open::Provisioning;
use super::{FROM_DEVICE_BYTES, FROM_MEMORY_BYTES, ReadAt, WriteAt};
use crate::blocks::{cut, is_zero};
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
    /// A pool gives its space.
    provisioning: Option<Provisioning>,
    /// Bounce buffers between calls.
    spare: Mutex<Vec<AlignedBuffer>>,
    /// Two writes to different parts of one logical block must not undo each other.
    edge: Mutex<()>,
}

const BOUNCE_BYTES: usize = 256 << 10;
const MAX_SPARE: usize = 4;
/// More gain little: docs/performance.md.
const WRITES_AT_ONCE: usize = 8;
/// Zeroing goes to the kernel in pieces, so that a signal is noticed between them.
const ZERO_PIECE_BYTES: u64 = 1 << 30;
/// What is looked at in one go before it is zeroed.
const LOOK_BYTES: u64 = 1 << 20;
/// With more around it, what is written does not go in one call with the rest of its block.
const MAX_WIDENED_BYTES: u64 = 16 << 20;

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
            provisioning: None,
            spare: Mutex::default(),
            edge: Mutex::default(),
        })
    }

    /// The open device.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Keeps to how a pool gives space. Ordinary devices promise nothing about ranges that were discarded.
    pub fn set_provisioning(&mut self, provisioning: Provisioning) {
        let unit = provisioning.block_bytes;
        self.provisioning =
            (unit > 0 && unit.is_multiple_of(self.zero_unit)).then_some(provisioning);
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

    /// Zeroes, where a pool gives the space: whole blocks are given back, and of the rest only what is not zero is
    /// written.
    fn zero_provisioned(&self, extent: Extent, provisioning: Provisioning) -> io::Result<()> {
        let block_bytes = provisioning.block_bytes;
        let (head, middle, tail) = split(extent, block_bytes);
        let Some(middle) = middle.filter(|_| provisioning.discard_zeroes) else {
            return self.zero_where_needed(extent, block_bytes);
        };
        let discarded = in_pieces(middle, block_bytes, |piece| {
            ioctl::discard(&self.file, piece)
        });
        match discarded {
            Ok(()) => {}
            Err(error) if is_unsupported(&error) => {
                return self.zero_where_needed(extent, block_bytes);
            }
            Err(error) => return Err(error),
        }
        if !self.is_discarded(middle, block_bytes)? {
            self.zero_where_needed(middle, block_bytes)?;
        }
        for edge in [head, tail].into_iter().flatten() {
            self.zero_where_needed(edge, block_bytes)?;
        }
        Ok(())
    }

    /// Whether whole blocks that were discarded with success need no look at all of them.
    ///
    /// The kernel (`bio_discard_limit`, and what came before it) cuts a discard where it thinks the first block begins,
    /// and rounds as if every block size were a power of two. Where it is not, a block may be cut in two parts, neither
    /// of which dm-thin discards, and the answer is success all the same.
    fn is_discarded(&self, extent: Extent, block_bytes: u64) -> io::Result<bool> {
        if !block_bytes.is_power_of_two() {
            return Ok(false);
        }
        // Costs no I/O where it is as it should be.
        let first = Extent::from_range(extent.offset(), extent.offset() + block_bytes);
        let last = Extent::from_range(extent.end() - block_bytes, extent.end());
        for block in [first, last].into_iter().flatten() {
            if !self.reads_zero(block)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks first: what is zero already may be unmapped, and a write would take a block for it.
    fn zero_where_needed(&self, extent: Extent, block_bytes: u64) -> io::Result<()> {
        let many = (LOOK_BYTES / block_bytes)
            .max(1)
            .saturating_mul(block_bytes);
        for piece in cut(extent, many) {
            if self.reads_zero(piece)? {
                continue;
            }
            for block in cut(piece, block_bytes) {
                if !self.reads_zero(block)? {
                    self.zero_written(block)?;
                }
            }
        }
        Ok(())
    }

    /// True if nothing but zeroes is there.
    fn reads_zero(&self, extent: Extent) -> io::Result<bool> {
        let unit = self.unit as u64;
        self.with_bounce(|bounce| {
            let mut position = extent.offset();
            while position < extent.end() {
                let skip = usize_of(position % unit)?;
                let left = usize_of(extent.end() - position)?;
                let wanted = skip.saturating_add(left).next_multiple_of(self.unit);
                let bounce = &mut bounce[..wanted.min(BOUNCE_BYTES.max(self.unit))];
                self.file.read_exact_at(bounce, position - skip as u64)?;
                let here = (bounce.len() - skip).min(left);
                if !is_zero(&bounce[skip..skip + here]) {
                    return Ok(false);
                }
                position += here as u64;
            }
            Ok(true)
        })
    }

    /// Zeroes without a look: the kernel does it, in whole logical blocks.
    fn zero_written(&self, extent: Extent) -> io::Result<()> {
        let (head, middle, tail) = split(extent, self.zero_unit);
        for edge in [head, tail].into_iter().flatten() {
            write_zeroes(edge, |piece, offset| self.write_exact(piece, offset))?;
        }
        middle.map_or(Ok(()), |middle| self.zero_out(middle))
    }

    /// Zeroes a range that is aligned to the device's blocks. Where the device unmaps and guarantees zeroes for it,
    /// it does (this is not a discard, which guarantees nothing); else zeroes are written.
    fn zero_out(&self, extent: Extent) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let unmapped = in_pieces(extent, self.zero_unit, |piece| {
            Ok(fallocate(
                &self.file,
                flags,
                piece.offset(),
                piece.length(),
            )?)
        });
        if unmapped.is_ok() {
            return Ok(());
        }
        match in_pieces(extent, self.zero_unit, |piece| {
            ioctl::zero_out(&self.file, piece)
        }) {
            Err(error) if is_unsupported(&error) => {
                write_zeroes(extent, |piece, offset| self.write_exact(piece, offset))
            }
            result => result,
        }
    }

    /// Writes into blocks whose rest may come to hold anything: a rest that is zero now is written along, with the
    /// same call. A rest that is not zero is there already, and stays.
    fn write_whole_blocks(&self, bytes: &[u8], offset: u64, block_bytes: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let position = offset + done as u64;
            let start = position - position % block_bytes;
            let end = start.saturating_add(block_bytes).min(self.size_bytes);
            let here = usize_of(end - position)?.min(bytes.len() - done);
            let piece = &bytes[done..done + here];
            let rest = [
                Extent::from_range(start, position),
                Extent::from_range(position + here as u64, end),
            ];
            match rest {
                [None, None] => self.write_exact(piece, position)?,
                rest => self.write_with_rest(piece, position, rest)?,
            }
            done += here;
        }
        Ok(())
    }

    /// Writes `piece` with the `rest` of its block, what stands before and behind it, if all of that is zero.
    fn write_with_rest(
        &self,
        piece: &[u8],
        position: u64,
        rest: [Option<Extent>; 2],
    ) -> io::Result<()> {
        let mut widened = (position, position + piece.len() as u64);
        for part in rest.into_iter().flatten() {
            if !self.reads_zero(part)? {
                // Something is there, so the block is: its rest is what it seems to be.
                return self.write_exact(piece, position);
            }
            widened = (widened.0.min(part.offset()), widened.1.max(part.end()));
        }
        let (start, end) = widened;
        if end - start > MAX_WIDENED_BYTES {
            self.write_exact(piece, position)?;
            for part in rest.into_iter().flatten() {
                self.zero_written(part)?;
            }
            return Ok(());
        }
        let mut whole = AlignedBuffer::new(usize_of(end - start)?);
        let skip = usize_of(position - start)?;
        whole[skip..skip + piece.len()].copy_from_slice(piece);
        self.write_exact(&whole, start)
    }

    /// Writes any range, and nothing but that.
    fn write_exact(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
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
}

impl ReadAt for BlockVolume {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn enough_at_once(&self, _: Extent) -> u64 {
        if self.is_direct() {
            FROM_DEVICE_BYTES
        } else {
            FROM_MEMORY_BYTES
        }
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
        match self.provisioning {
            Some(provisioning) if provisioning.stale_rest => {
                self.write_whole_blocks(buffer, offset, provisioning.block_bytes)
            }
            _ => self.write_exact(buffer, offset),
        }
    }

    fn zero_at(&self, extent: Extent) -> io::Result<()> {
        self.check(extent.offset(), extent.length(), io::ErrorKind::StorageFull)?;
        match self.provisioning {
            Some(provisioning) => self.zero_provisioned(extent, provisioning),
            None => self.zero_written(extent),
        }
    }

    fn zero_block_bytes(&self) -> u64 {
        self.provisioning
            .map_or(1, |provisioning| provisioning.block_bytes)
    }

    /// Past the page cache each write waits for the device. Whole blocks of a pool are put together from what is there.
    fn writes_at_once(&self) -> usize {
        match self.provisioning {
            Some(provisioning) if provisioning.stale_rest => 1,
            _ => WRITES_AT_ONCE,
        }
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
            provisioning: None,
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
            pool in prop::option::of((prop::sample::select(vec![4096u64, 12_288, 1 << 20]), any::<bool>())),
        ) {
            let mut model: Vec<u8> = (0..40_960u32).map(|n| if n < 20_000 { (n / 7) as u8 } else { 0 }).collect();
            let mut volume = on_file(&model, unit);
            if let Some((block_bytes, stale_rest)) = pool {
                volume.set_provisioning(Provisioning { block_bytes, discard_zeroes: true, stale_rest });
            }
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

    /// A pool of 24 KiB blocks, played by a sparse file: a file can be asked what it has mapped, and refuses discards.
    fn provisioned(bytes: &[u8], stale_rest: bool) -> BlockVolume {
        let mut volume = on_file(bytes, 512);
        volume.set_provisioning(Provisioning {
            block_bytes: 24 << 10,
            discard_zeroes: true,
            stale_rest,
        });
        volume
    }

    fn mapped(volume: &BlockVolume) -> u64 {
        use std::os::unix::fs::MetadataExt;
        volume.file.sync_all().unwrap();
        volume.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn what_is_zero_already_takes_no_space() {
        let volume = provisioned(&[], false);
        volume.file.set_len(120 << 10).unwrap();
        let volume = BlockVolume {
            size_bytes: 120 << 10,
            ..volume
        };
        for (offset, length) in [(0, 120 << 10), (100, 50_000), (119 << 10, 1024), (7, 9)] {
            volume
                .zero_at(Extent::new(offset, length).unwrap())
                .unwrap();
        }
        assert_eq!(mapped(&volume), 0);
        volume.write_all_at(&[1; 4096], 30 << 10).unwrap();
        volume
            .zero_at(Extent::new(100, 100 << 10).unwrap())
            .unwrap();
        let mut all = vec![9; 120 << 10];
        volume.read_exact_at(&mut all, 0).unwrap();
        assert!(all.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_rest_that_would_be_stale_is_written_along() {
        let volume = provisioned(&[], true);
        volume.file.set_len(120 << 10).unwrap();
        let volume = BlockVolume {
            size_bytes: 100 << 10,
            ..volume
        };
        // Second block, and the last one, which is cut off by the end.
        volume.write_all_at(&[1; 4096], 30 << 10).unwrap();
        assert_eq!(mapped(&volume), 24 << 10);
        volume.write_all_at(&[1; 1], (100 << 10) - 1).unwrap();
        assert_eq!(mapped(&volume), 28 << 10);
        // What is there already is not read as zero, so nothing else is written.
        volume.write_all_at(&[2; 512], 40 << 10).unwrap();
        volume.write_all_at(&[3; 48 << 10], 12 << 10).unwrap();
        assert_eq!(mapped(&volume), (72 << 10) + (4 << 10));
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
