//! A volume whose pieces that were read last from the device are still in memory: for a closer look, and for whoever sends
//! what was found.
//!
//! Guarantees: a place that is read is what the device gives now, or what it gave when the piece around it was read; memory is
//! 20 buffers of 1 MiB. It is for what nobody writes to meanwhile, such as what of a destination lies behind
//! everything that was sent; and for a source, of which what was compared is what is sent.
//!
//! A disk that has to go back for a block takes as long as for half a MiB that follows, one with an arm as long as for a few.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, PoisonError};

use super::digester::{Side, buffer};
use crate::blocks::{PIECE_BYTES, usize_of};
use crate::extent::Extent;
use crate::sys::aligned::AlignedBuffer;
use crate::volume::ReadAt;

/// Pieces that are kept.
pub(super) const KEPT_PIECES: usize = 20;
/// What is smaller is not worth a buffer of a MiB.
const LEAST_BYTES: u64 = PIECE_BYTES / 8;

/// A volume, and what of it was read last.
pub struct Remembering<'a> {
    side: Side<'a>,
    kept: Mutex<VecDeque<Kept>>,
}

/// A piece, at the beginning of a buffer.
struct Kept {
    piece: Extent,
    bytes: AlignedBuffer,
}

impl<'a> Remembering<'a> {
    /// Nothing of `side` was read yet.
    pub fn of(side: Side<'a>) -> Self {
        Self {
            side,
            kept: Mutex::default(),
        }
    }

    /// The volume, with what is kept of it.
    pub fn side(&self) -> Side<'_> {
        Side {
            volume: self,
            name: self.side.name,
        }
    }

    /// The volume without what is kept of it, if reads of some of `extents` are worth keeping: the page cache does that for
    /// what it has.
    pub(super) fn to_keep(&self, extents: &[Extent]) -> Option<Side<'_>> {
        let long = extents
            .iter()
            .find(|extent| extent.length() >= LEAST_BYTES)?;
        let from_device = self.side.volume.enough_at_once(*long) >= PIECE_BYTES;
        from_device.then_some(self.side)
    }

    /// Keeps `piece`, which `bytes` begins with, and leaves another buffer of the same size there. What is small is not kept.
    pub(super) fn keep(&self, piece: Extent, bytes: &mut AlignedBuffer) {
        if piece.length() < LEAST_BYTES {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|old| old.piece.intersect(piece).is_none());
        let oldest = (kept.len() >= KEPT_PIECES).then(|| kept.pop_front());
        let spare = oldest.flatten().map_or_else(buffer, |oldest| oldest.bytes);
        let bytes = std::mem::replace(bytes, spare);
        kept.push_back(Kept { piece, bytes });
    }

    /// Fills `wanted` from `offset`, if all of it is kept.
    fn recall(&self, mut wanted: &mut [u8], mut offset: u64) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while !wanted.is_empty() {
            let has_it = |kept: &&Kept| (kept.piece.offset()..kept.piece.end()).contains(&offset);
            let Some(Kept { piece, bytes }) = kept.iter().find(has_it) else {
                return false;
            };
            let start = usize_of(offset - piece.offset());
            let length = wanted.len().min(usize_of(piece.end() - offset));
            let Some(found) = bytes.get(start..start + length) else {
                return false;
            };
            let (here, rest) = wanted.split_at_mut(length);
            here.copy_from_slice(found);
            wanted = rest;
            offset += length as u64;
        }
        true
    }
}

impl ReadAt for Remembering<'_> {
    fn size_bytes(&self) -> u64 {
        self.side.volume.size_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.recall(buffer, offset) {
            return Ok(());
        }
        self.side.volume.read_exact_at(buffer, offset)
    }

    fn gap_worth_reading(&self) -> u64 {
        self.side.volume.gap_worth_reading()
    }

    fn enough_at_once(&self, extent: Extent) -> u64 {
        self.side.volume.enough_at_once(extent)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Extent>> {
        self.side.volume.next_data(offset)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]
mod tests {
    use super::*;
    use crate::volume::memory::MemoryVolume;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent::new(offset, length).unwrap()
    }

    /// As if each piece had been read and had held its number.
    fn keep(volume: &Remembering<'_>, piece: Extent, byte: u8) {
        let mut bytes = buffer();
        bytes[..piece.length() as usize].fill(byte);
        volume.keep(piece, &mut bytes);
        assert_eq!(bytes.len() as u64, PIECE_BYTES, "another one for it");
    }

    fn read(volume: &Remembering<'_>, offset: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![99; length as usize];
        volume
            .side()
            .volume
            .read_exact_at(&mut bytes, offset)
            .unwrap();
        bytes
    }

    #[test]
    fn the_last_pieces_come_from_memory_and_all_else_from_the_volume() {
        let device = MemoryVolume::new(vec![0; 40 << 20]);
        let volume = Remembering::of(Side {
            volume: &device,
            name: "v",
        });
        let pieces = KEPT_PIECES as u64 + 3;
        for number in 0..pieces {
            keep(&volume, extent(number * MIB, MIB), number as u8 + 1);
        }
        for number in 0..pieces {
            let expected = if number < 3 { 0 } else { number as u8 + 1 };
            assert_eq!(read(&volume, number * MIB + 5, 100), [expected; 100]);
        }
        assert_eq!(volume.kept.lock().unwrap().len(), KEPT_PIECES);
        let over_two = [[8; 10], [9; 10]].concat();
        assert_eq!(read(&volume, 8 * MIB - 10, 20), over_two);
        assert_eq!(read(&volume, 3 * MIB - 10, 20), [0; 20], "none of a half");
        assert_eq!(read(&volume, pieces * MIB - 10, 20), [0; 20]);
    }

    #[test]
    fn what_was_read_again_is_what_is_remembered_and_what_is_small_is_not() {
        let device = MemoryVolume::new(vec![0; 4 << 20]);
        let volume = Remembering::of(Side {
            volume: &device,
            name: "v",
        });
        keep(&volume, extent(0, MIB), 1);
        keep(&volume, extent(MIB / 2, MIB / 2), 2);
        keep(&volume, extent(MIB, LEAST_BYTES - 1), 3);
        assert_eq!(read(&volume, MIB / 2, 8), [2; 8]);
        assert_eq!(read(&volume, MIB / 2 - 4, 8), [0; 8], "what it lay in");
        assert_eq!(read(&volume, MIB, 8), [0; 8]);
        let whole = [extent(0, MIB)];
        assert!(volume.to_keep(&whole).is_none(), "it is in memory");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(256) / 8 + 1))]

        #[test]
        fn what_is_read_is_what_the_volume_has(
            kept in prop::collection::vec((0u64..3 << 20, 1u64..=MIB), 0..40),
            reads in prop::collection::vec((0u64..3 << 20, 1u64..=MIB), 1..10),
        ) {
            let bytes: Vec<u8> = (0..4 * MIB).map(|n| (n / 97) as u8).collect();
            let device = MemoryVolume::new(bytes.clone());
            let volume = Remembering::of(Side { volume: &device, name: "v" });
            for (offset, length) in kept {
                let mut piece = buffer();
                device.read_exact_at(&mut piece[..length as usize], offset).unwrap();
                volume.keep(extent(offset, length), &mut piece);
            }
            for (offset, length) in reads {
                let expected = &bytes[offset as usize..(offset + length) as usize];
                prop_assert!(read(&volume, offset, length) == expected);
            }
        }
    }
}
