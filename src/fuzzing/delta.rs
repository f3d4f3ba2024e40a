//! Fuzzing of the delta format: records, whole deltas, streams of version 3, headers.
//!
//! Checksums would keep a fuzzer out, since it cannot guess them. So each input is tried twice: as it is, and with its
//! checksums put right, which is what a hostile writer would send.

use std::io::BufReader;

use crate::delta::FormatError;
use crate::delta::codec::Codec;
use crate::delta::header::Header;
use crate::delta::index::{Entry, IndexChecker};
use crate::delta::proto3::{FirstLine, MAGIC_LINE_3, Proto3Reader, Proto3Writer, read_first_line};
use crate::delta::reader::DeltaReader;
use crate::delta::record::{RECORD_HEADER_BYTES, RecordHeader, RecordType};
use crate::delta::samples::Samples;
use crate::delta::trailer::{COUNTED_BYTES, TRAILER_BYTES, Trailer};
use crate::delta::writer::DeltaWriter;
use crate::delta::{MAGIC_LINE, MAX_FRAME_BYTES};
use crate::extent::{Extent, Kind, MAX_OFFSET};

/// A record header, and what follows it as the payload of samples, an index and a trailer.
///
/// Holds: no panic; a header that is read is written the same; it never asks for more than its limit; samples come back
/// the same and in order; an index that is accepted ascends.
pub fn fuzz_record(data: &[u8]) {
    let Some((bytes, payload)) = data.split_first_chunk::<RECORD_HEADER_BYTES>() else {
        return;
    };
    for bytes in [*bytes, with_right_crc(*bytes)] {
        let Ok(header) = RecordHeader::decode(&bytes, 17) else {
            continue;
        };
        assert_eq!(header.encode(), bytes, "read and written");
        assert!(u64::from(header.stored_length) <= MAX_FRAME_BYTES);
        assert_eq!(
            header.frame().is_some(),
            matches!(header.kind, RecordType::Data | RecordType::Zero)
        );
    }
    if let Ok(samples) = Samples::decode(payload, 17) {
        assert_eq!(samples.encode(), payload, "samples read and written");
    }
    if let Some(first) = crate::delta::index::entries(payload).next() {
        let mut checker = IndexChecker::default();
        if checker.payload(payload, 17, first, u64::MAX).is_ok() {
            let all: Vec<Entry> = crate::delta::index::entries(payload).collect();
            assert!(all.is_sorted_by(|a, b| a.volume_offset < b.volume_offset));
            assert!(all.is_sorted_by(|a, b| a.delta_offset < b.delta_offset));
            assert_eq!(checker.entries(), all.len() as u64);
        }
    }
    if let Some(bytes) = payload.get(..TRAILER_BYTES) {
        assert_eq!(
            Trailer::decode(bytes).encode(),
            bytes,
            "a trailer read and written"
        );
    }
}

/// A whole delta.
///
/// Holds: no panic; frames ascend inside the volume; what is read whole, written again and read again is the same, with
/// payloads and without; a reader that skips payloads finds the same frames.
pub fn fuzz_delta(data: &[u8]) {
    for data in [data.to_vec(), with_right_checksums(data)] {
        let skipped = extents_without_payloads(&data);
        let Ok(delta) = read_delta(&data) else {
            continue;
        };
        let extents: Vec<Extent> = delta.frames.iter().map(|(extent, _)| *extent).collect();
        assert_eq!(
            skipped.ok().as_ref(),
            Some(&extents),
            "the same frames without payloads"
        );
        let again = write_delta(&delta);
        assert_eq!(
            read_delta(&again).ok().as_ref(),
            Some(&delta),
            "written and read again"
        );
    }
}

/// A stream of the original.
///
/// Holds: no panic; pieces are short, keep to one mebibyte of the volume each, and hold no more than the input does;
/// what is read, written again and read again is the same.
pub fn fuzz_proto3(data: &[u8]) {
    let with_line = [MAGIC_LINE_3.as_slice(), data].concat();
    for data in [data, &with_line] {
        let Ok(pieces) = read_proto3(data) else {
            continue;
        };
        assert!(pieces.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() <= data.len());
        let again = write_proto3(&pieces);
        assert_eq!(
            read_proto3(&again).ok(),
            Some(pieces),
            "written and read again"
        );
    }
}

/// The JSON of a header.
///
/// Holds: no panic; sizes keep the limit; what is read is written and read the same.
pub fn fuzz_header(data: &[u8]) {
    let Ok(header) = Header::decode(data, 17) else {
        return;
    };
    assert!(header.volume_size <= MAX_OFFSET);
    assert!(header.from_offset <= header.volume_size);
    assert!(header.from_offset == 0 || !header.required_features.is_empty());
    assert_eq!(
        Header::decode(&header.encode(), 17).ok(),
        Some(header),
        "written and read again"
    );
}

/// Frames as values: extent and bytes, `None` where they are zero.
pub(super) type Frames = Vec<(Extent, Option<Vec<u8>>)>;

/// A delta as values: for each frame its extent and bytes, `None` where they are zero.
#[derive(Debug, PartialEq)]
struct Delta {
    header: Header,
    samples: Samples,
    frames: Frames,
}

fn read_delta(data: &[u8]) -> Result<Delta, FormatError> {
    let mut reader = DeltaReader::new(data)?;
    let volume_size = reader.header().volume_size;
    let mut frames: Frames = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        let last_end = frames.last().map_or(0, |(extent, _)| extent.end());
        assert!(frame.extent.offset() >= last_end, "frames ascend");
        assert!(frame.extent.end() <= volume_size, "inside the volume");
        let bytes = match frame.kind {
            Kind::Zero => None,
            Kind::Data => {
                let mut bytes = vec![0; usize::try_from(frame.extent.length()).unwrap_or(0)];
                reader.payload(&mut bytes)?;
                Some(bytes)
            }
        };
        frames.push((frame.extent, bytes));
    }
    assert_eq!(reader.position(), data.len() as u64, "read to the end");
    Ok(Delta {
        header: reader.header().clone(),
        samples: reader.samples().clone(),
        frames,
    })
}

/// The volume's size and the frames of a sound delta of version 4.
pub(super) fn frames_of(data: &[u8]) -> Option<(usize, Frames)> {
    let delta = read_delta(data).ok()?;
    Some((
        usize::try_from(delta.header.volume_size).ok()?,
        delta.frames,
    ))
}

fn extents_without_payloads(data: &[u8]) -> Result<Vec<Extent>, FormatError> {
    let mut reader = DeltaReader::new(data)?;
    let mut extents = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        extents.push(frame.extent);
    }
    Ok(extents)
}

/// What was read has passed every check, so it can be written; if not, the result does not read as the same.
fn write_delta(delta: &Delta) -> Vec<u8> {
    let write = || -> std::io::Result<Vec<u8>> {
        let mut writer = DeltaWriter::new(Vec::new(), &delta.header, &delta.samples)?;
        for (extent, bytes) in &delta.frames {
            match bytes {
                Some(bytes) => writer.data(*extent, Codec::None, bytes)?,
                None => writer.zero(*extent)?,
            }
        }
        Ok(writer.finish()?.1)
    };
    write().unwrap_or_default()
}

fn read_proto3(data: &[u8]) -> Result<Vec<(u64, Vec<u8>)>, FormatError> {
    let mut input = BufReader::new(data);
    if read_first_line(&mut input)? != FirstLine::Version3 {
        return Ok(Vec::new());
    }
    let mut reader = Proto3Reader::after_first_line(input);
    let (mut pieces, mut bytes) = (Vec::new(), Vec::new());
    while let Some(extent) = reader.next_piece(&mut bytes)? {
        assert_eq!(extent.length(), bytes.len() as u64);
        assert_eq!(
            extent.offset() / MAX_FRAME_BYTES,
            (extent.end() - 1) / MAX_FRAME_BYTES
        );
        pieces.push((extent.offset(), bytes.clone()));
    }
    Ok(pieces)
}

fn write_proto3(pieces: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let write = || -> std::io::Result<Vec<u8>> {
        let mut writer = Proto3Writer::new(Vec::new())?;
        for (offset, bytes) in pieces {
            writer.record(*offset, bytes)?;
        }
        writer.finish()
    };
    write().unwrap_or_default()
}

/// The same record header with the checksum that it should have.
fn with_right_crc(mut bytes: [u8; RECORD_HEADER_BYTES]) -> [u8; RECORD_HEADER_BYTES] {
    let crc = crc32c::crc32c(&bytes[..28]);
    bytes[28..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The same delta with right checksums in every record and a right digest in the trailer.
pub(super) fn with_right_checksums(data: &[u8]) -> Vec<u8> {
    let mut fixed = data.to_vec();
    let line = MAGIC_LINE.len();
    if fixed.len() < line {
        return fixed;
    }
    fixed[..line].copy_from_slice(MAGIC_LINE);
    let mut at = line;
    while let Some(header) = fixed[at..].first_chunk::<RECORD_HEADER_BYTES>() {
        let mut header = *header;
        let stored = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let start = at + RECORD_HEADER_BYTES;
        let Some(end) = start.checked_add(stored).filter(|end| *end <= fixed.len()) else {
            break;
        };
        if header[0] == b'T' && stored == TRAILER_BYTES {
            let mut hasher = blake3::Hasher::new();
            hasher
                .update(&fixed[..at])
                .update(&fixed[start..start + COUNTED_BYTES]);
            fixed[start + COUNTED_BYTES..end].copy_from_slice(hasher.finalize().as_bytes());
        }
        let crc = if stored == 0 {
            0
        } else {
            crc32c::crc32c(&fixed[start..end])
        };
        header[24..28].copy_from_slice(&crc.to_le_bytes());
        fixed[at..start].copy_from_slice(&with_right_crc(header));
        at = end;
    }
    fixed
}

#[cfg(test)]
mod tests;
