//! The bytes of frames, when they are asked for.
//!
//! Guarantees: nothing is given out that was not compared with a checksum when it was read. A frame that is compressed, or of
//! which much is wanted, is read whole and held against its own; a few are kept. When a frame that is stored as it stands
//! has been found sound once, digests of its blocks are remembered, and a small part of it is read, and checked,
//! alone. Several threads may ask at the same time. Memory: 16 MiB of frames and 8 MiB of digests, whatever the chain.

use std::ops::Range;
use std::sync::Arc;

use super::kept::Kept;
use super::window::damaged;
use crate::delta::FormatError;
use crate::delta::codec::Codec;
use crate::error::Result;
use crate::extent::Extent;
use crate::history::combine::Input;
use crate::volume::ReadAt;

const KEPT_BYTES: usize = 16 << 20;
const KEPT_DIGEST_BYTES: usize = 8 << 20;
/// What keeping one thing takes besides, more or less.
const ENTRY_BYTES: usize = 256;
/// Bytes that have a digest of their own, counted from the start of the frame.
const BLOCK_BYTES: usize = 4096;
/// A part is small when the frame is at least this many times as long.
const SMALL: u64 = 8;

/// Place of the delta in the chain, and delta offset of the record.
type Key = (usize, u64);

/// The frames that were used last.
pub struct Frames {
    whole: Kept<Key, Arc<Frame>>,
    blocks: Kept<Key, Arc<Blocks>>,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            whole: Kept::new(KEPT_BYTES),
            blocks: Kept::new(KEPT_DIGEST_BYTES),
        }
    }
}

impl Frames {
    /// Fills `buffer` with `part` of the volume, which the frame of `input` whose record stands at `key` holds.
    pub fn fill<V: ReadAt>(
        &self,
        input: &Input<V>,
        key: Key,
        stored_length: u32,
        (part, buffer): (Extent, &mut [u8]),
    ) -> Result<()> {
        let filled = if let Some(frame) = self.whole.get(&key) {
            frame.copy(key.1, part, buffer)
        } else if let Some(blocks) = self.blocks.get(&key).filter(|b| is_small(part, b.extent)) {
            blocks.read(input, key.1, part, buffer)
        } else {
            self.read(input, key, stored_length, part)
                .and_then(|frame| frame.copy(key.1, part, buffer))
        };
        filled.map_err(|error| damaged(input, error))
    }

    /// Reads a frame, and keeps what will help the next one who asks, after one who wanted `part`.
    fn read<V: ReadAt>(
        &self,
        input: &Input<V>,
        key: Key,
        stored_length: u32,
        part: Extent,
    ) -> std::result::Result<Arc<Frame>, FormatError> {
        let (frame, codec) = read(input, key.1, stored_length)?;
        // A frame of a few blocks is read as fast.
        let has_many = frame.extent.length() >= SMALL * BLOCK_BYTES as u64;
        if codec == Codec::None && has_many && is_small(part, frame.extent) {
            let blocks = Blocks::of(&frame);
            let weight = size_of_val(&blocks.digests[..]) + ENTRY_BYTES;
            self.blocks.put(key, Arc::new(blocks), weight);
        }
        let frame = Arc::new(frame);
        let weight = frame.data.len() + ENTRY_BYTES;
        self.whole.put(key, frame.clone(), weight);
        Ok(frame)
    }
}

/// Where `part` is in the frame `extent` whose record stands at `at`.
fn within(extent: Extent, at: u64, part: Extent) -> std::result::Result<Range<usize>, FormatError> {
    let place = |offset: u64| usize::try_from(offset.checked_sub(extent.offset())?).ok();
    match (place(part.offset()), place(part.end())) {
        (Some(start), Some(end)) if part.end() <= extent.end() => Ok(start..end),
        _ => Err(FormatError::OutOfOrder {
            at,
            found: format!("a frame {extent}"),
            expected: format!("one that holds {part}, as when it was read before"),
        }),
    }
}

fn is_small(part: Extent, frame: Extent) -> bool {
    part.length().saturating_mul(SMALL) <= frame.length()
}

/// A frame in memory; `data` is as long as `extent` says.
struct Frame {
    extent: Extent,
    data: Vec<u8>,
}

impl Frame {
    /// Fills `buffer`, which is as long as `part`; the record of this stands at `at`.
    fn copy(
        &self,
        at: u64,
        part: Extent,
        buffer: &mut [u8],
    ) -> std::result::Result<(), FormatError> {
        buffer.copy_from_slice(&self.data[within(self.extent, at, part)?]);
        Ok(())
    }
}

/// What the blocks of a sound frame are, which is stored as it stands.
struct Blocks {
    extent: Extent,
    /// The first bytes of the BLAKE3 digest of each.
    digests: Vec<u64>,
}

impl Blocks {
    fn of(frame: &Frame) -> Self {
        Self {
            extent: frame.extent,
            digests: frame.data.chunks(BLOCK_BYTES).map(digest).collect(),
        }
    }

    /// Fills `buffer`, which is as long as `part`, from the frame whose record stands at `at`.
    fn read<V: ReadAt>(
        &self,
        input: &Input<V>,
        at: u64,
        part: Extent,
        buffer: &mut [u8],
    ) -> std::result::Result<(), FormatError> {
        let Range { start, end } = within(self.extent, at, part)?;
        let first = start - start % BLOCK_BYTES;
        let bytes = within(self.extent, at, self.extent)?.end;
        let last = end.next_multiple_of(BLOCK_BYTES).min(bytes);
        let mut stored = vec![0; last - first];
        input.delta.stored_part(at, first as u64, &mut stored)?;
        let digests = self.digests.iter().skip(first / BLOCK_BYTES);
        for (number, (block, expected)) in stored.chunks(BLOCK_BYTES).zip(digests).enumerate() {
            let found = digest(block);
            if found != *expected {
                return Err(FormatError::Checksum {
                    at,
                    what: "a data frame, which was sound when it was read before,",
                    found: format!("{found:016x} in its block {}", first / BLOCK_BYTES + number),
                    expected: format!("{expected:016x}"),
                });
            }
        }
        buffer.copy_from_slice(&stored[start - first..end - first]);
        Ok(())
    }
}

fn digest(block: &[u8]) -> u64 {
    let digest = blake3::hash(block);
    let first = digest.as_bytes().first_chunk();
    u64::from_le_bytes(first.copied().unwrap_or_default())
}

fn read<V: ReadAt>(
    input: &Input<V>,
    at: u64,
    stored_length: u32,
) -> std::result::Result<(Frame, Codec), FormatError> {
    let mut data = Vec::new();
    let (record, extent) = input
        .delta
        .frame(at, stored_length, &mut Vec::new(), &mut data)?;
    Ok((Frame { extent, data }, record.codec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::codec::{Compression, Compressor};
    use crate::delta::header::tests::header;
    use crate::delta::samples::Samples;
    use crate::delta::stored::StoredDelta;
    use crate::delta::writer::DeltaWriter;
    use crate::error::Error;
    use crate::volume::memory::MemoryVolume;
    use proptest::prelude::*;

    const FRAME: usize = 70_000;

    /// Two frames one after another, and what they hold.
    fn delta(compression: Compression) -> (Vec<u8>, Vec<u8>) {
        let content: Vec<u8> = (0..2 * FRAME).map(|n| (n / 97 * 31) as u8).collect();
        let mut writer =
            DeltaWriter::new(Vec::new(), &header(1 << 30), &Samples::default()).unwrap();
        let mut compressor = Compressor::new(compression).unwrap();
        let mut packed = Vec::new();
        for (number, data) in content.chunks(FRAME).enumerate() {
            let extent = Extent::new((number * FRAME) as u64, FRAME as u64).unwrap();
            match compressor.compress(data, &mut packed) {
                Some(codec) => writer.data(extent, codec, &packed).unwrap(),
                None => writer.data(extent, Codec::None, data).unwrap(),
            }
        }
        (writer.finish().unwrap().1, content)
    }

    fn input(bytes: Vec<u8>) -> Input<MemoryVolume> {
        Input {
            name: "a.delta".to_owned(),
            delta: StoredDelta::open(MemoryVolume::new(bytes)).unwrap(),
        }
    }

    /// Forgets every frame as soon as another one is read.
    fn forgetful() -> Frames {
        Frames {
            whole: Kept::new(0),
            ..Frames::default()
        }
    }

    fn read(frames: &Frames, input: &Input<MemoryVolume>, part: Extent) -> Result<Vec<u8>> {
        let holder = input.delta.frames().map(|frame| frame.unwrap());
        let mut holders = holder.filter(|frame| frame.extent.intersect(part) == Some(part));
        let frame = holders.next().unwrap();
        let mut buffer = vec![0; part.length() as usize];
        let key = (0, frame.at);
        frames.fill(input, key, frame.stored_length, (part, &mut buffer))?;
        Ok(buffer)
    }

    proptest! {
        /// In parts of any size, of frames that are in memory and of such that are not.
        #[test]
        fn parts_are_what_is_in_the_frame(
            parts in prop::collection::vec((0..2usize, 0..FRAME, 1..20_000usize), 1..40),
            packed in any::<bool>(),
        ) {
            let compression = if packed { Compression::Lz4 } else { Compression::None };
            let (bytes, content) = delta(compression);
            let (input, frames) = (input(bytes), forgetful());
            for (frame, start, length) in parts {
                let (start, end) = (frame * FRAME + start, frame * FRAME + (start + length).min(FRAME));
                let part = Extent::from_range(start as u64, end as u64).unwrap();
                prop_assert_eq!(read(&frames, &input, part).unwrap(), &content[start..end]);
            }
        }
    }

    #[test]
    fn a_part_is_checked_each_time_it_is_read() {
        let (mut bytes, content) = delta(Compression::None);
        let frames = forgetful();
        let sound = input(bytes.clone());
        let part = |at: u64| Extent::new(at, 100).unwrap();
        for at in [0, FRAME as u64] {
            read(&frames, &sound, part(at)).unwrap();
        }
        // The disk loses a bit of what was sound a moment ago: byte 9000 of the first frame.
        let first = sound.delta.frames().next().unwrap().unwrap().at as usize;
        bytes[first + crate::delta::record::RECORD_HEADER_BYTES + 9000] ^= 4;
        let damaged = input(bytes);
        let error = read(&frames, &damaged, part(8990)).unwrap_err();
        let place = |source: &FormatError| matches!(source, FormatError::Checksum { at, .. } if *at == first as u64);
        assert!(
            matches!(&error, Error::Damaged { what, source } if what == "a.delta" && place(source)),
            "{error:?}"
        );
        // What lies in other blocks is good.
        assert_eq!(
            read(&frames, &damaged, part(20_000)).unwrap(),
            content[20_000..20_100]
        );
        // And who wants much of the frame reads and checks all of it.
        let much = Extent::new(12_288, 50_000).unwrap();
        assert!(read(&frames, &damaged, much).is_err());
    }
}
