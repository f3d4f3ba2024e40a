//! A delta in a file: read at random, by what its record headers say.
//!
//! Guarantees: [`StoredDelta::open`] has checked the header, the samples and the trailer, and that the file ends behind
//! the trailer; what stands between is checked only by who reads it: [`StoredDelta::frames`] looks at record headers
//! alone, [`StoredDelta::read_all`] reads everything. A whole payload is given out only after its checksum matched,
//! and only if its frame is still the one that was asked for. Memory does not depend on the delta.

use std::io::{self, Read};

use super::codec::{Codec, decompress};
use super::header::Header;
use super::index::Entry;
use super::reader::DeltaReader;
use super::record::{RECORD_HEADER_BYTES, RecordHeader, RecordType, check_payload};
use super::samples::Samples;
use super::trailer::{Counts, TRAILER_BYTES, Trailer};
use super::writer::TRAILER_RECORD_BYTES;
use super::{FormatError, MAX_FRAME_BYTES};
use crate::extent::{Extent, Kind};
use crate::volume::ReadAt;

/// A frame and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredFrame {
    /// Which bytes of the volume.
    pub extent: Extent,
    /// Data or zero.
    pub kind: Kind,
    /// Delta offset of its record.
    pub at: u64,
    /// Bytes of payload; 0 in a zero frame and in no other.
    pub stored_length: u32,
}

/// A delta in a file.
pub struct StoredDelta<V> {
    pub(super) file: V,
    header: Header,
    samples: Samples,
    pub(super) counts: Counts,
    pub(super) frames_begin: u64,
}

impl<V: ReadAt> StoredDelta<V> {
    /// Reads its beginning and its end.
    pub fn open(file: V) -> Result<Self, FormatError> {
        let reader = DeltaReader::beginning(Sequential::of(&file))?;
        let (header, samples) = (reader.header().clone(), reader.samples().clone());
        let frames_begin = reader.frames_begin();
        drop(reader);
        let counts = read_trailer(&file, frames_begin)?;
        Ok(Self {
            file,
            header,
            samples,
            counts,
            frames_begin,
        })
    }

    /// The file that it is in.
    pub fn file(&self) -> &V {
        &self.file
    }

    /// What the delta is about.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Digests of blocks that it leaves alone.
    pub fn samples(&self) -> &Samples {
        &self.samples
    }

    /// What its trailer counts.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.counts.trailer_at.saturating_add(TRAILER_RECORD_BYTES)
    }

    /// Reads it from its beginning to its end, with every check.
    pub fn read_all(&self) -> Result<DeltaReader<Sequential<'_, V>>, FormatError> {
        DeltaReader::new(Sequential::of(&self.file))
    }

    /// Its frames by their record headers, whose checksums are compared; payloads are not read.
    pub fn frames(&self) -> Frames<'_, V> {
        Frames {
            file: &self.file,
            at: self.frames_begin,
            end: self.frames_stop(),
            volume_size: self.header.volume_size,
            frames_end: 0,
            found: Counts::default(),
            expected: Some(self.counts),
        }
    }

    /// Its frames from an entry of its index on.
    pub fn frames_from(&self, entry: Entry) -> Frames<'_, V> {
        Frames {
            file: &self.file,
            at: entry.delta_offset,
            end: self.frames_stop(),
            volume_size: self.header.volume_size,
            frames_end: entry.volume_offset,
            found: Counts::default(),
            expected: None,
        }
    }

    /// Delta offset behind the last frame.
    pub(super) fn frames_stop(&self) -> u64 {
        match self.counts.index_at {
            0 => self.counts.trailer_at,
            at => at,
        }
    }

    /// Reads a data frame, checks it, and gives what it holds in `data`, with its record and where it lies on the volume. If
    /// it is compressed, `stored` then holds its payload.
    pub fn frame(
        &self,
        at: u64,
        stored_length: u32,
        stored: &mut Vec<u8>,
        data: &mut Vec<u8>,
    ) -> Result<(RecordHeader, Extent), FormatError> {
        let record = self.data_record(at, stored_length)?;
        let (extent, _) = record.frame().ok_or_else(|| FormatError::OutOfOrder {
            at,
            found: record.kind.name().to_owned(),
            expected: "a data frame".to_owned(),
        })?;
        if record.codec == Codec::None {
            self.take_payload(&record, at, data)?;
            return Ok((record, extent));
        }
        self.take_payload(&record, at, stored)?;
        // Its record was checked: no frame is longer.
        data.resize(extent.length().min(MAX_FRAME_BYTES) as usize, 0);
        decompress(record.codec, stored, data).map_err(|reason| FormatError::Payload {
            at,
            codec: record.codec.name(),
            length: record.length,
            reason,
        })?;
        Ok((record, extent))
    }

    fn data_record(&self, at: u64, stored_length: u32) -> Result<RecordHeader, FormatError> {
        let record = record_at(&self.file, at)?;
        // It was so when the frames were listed.
        if record.kind != RecordType::Data || record.stored_length != stored_length {
            return Err(FormatError::OutOfOrder {
                at,
                found: format!(
                    "{} with {} bytes of payload",
                    record.kind.name(),
                    record.stored_length
                ),
                expected: format!("a data frame with {stored_length}, as when it was read before"),
            });
        }
        Ok(record)
    }

    fn take_payload(
        &self,
        record: &RecordHeader,
        at: u64,
        payload: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        payload.resize(record.stored_length as usize, 0);
        self.stored_part(at, 0, payload)?;
        check_payload(record, payload, at)
    }

    /// Reads a part of the payload of the record at `at` as it is stored, `from` bytes into it. Nothing is checked: that
    /// is left to who has read all of it before, and knows what has to be there.
    pub fn stored_part(&self, at: u64, from: u64, part: &mut [u8]) -> Result<(), FormatError> {
        let begins = at.saturating_add(RECORD_HEADER_BYTES as u64);
        read_at(
            &self.file,
            part,
            begins.saturating_add(from),
            "a data frame",
        )
    }
}

/// Reads the end. What it counts is held against what stands there by who reads it all.
fn read_trailer(file: &impl ReadAt, frames_begin: u64) -> Result<Counts, FormatError> {
    let size = file.size_bytes();
    let at = size
        .checked_sub(TRAILER_RECORD_BYTES)
        .filter(|at| *at >= frames_begin)
        .ok_or(FormatError::Truncated {
            at: size,
            inside: "the trailer",
        })?;
    let record = match record_at(file, at) {
        Ok(record) if record.kind == RecordType::Trailer => record,
        Err(error @ FormatError::Io(_)) => return Err(error),
        // A delta that was cut ends with anything.
        _ => {
            return Err(FormatError::Truncated {
                at: size,
                inside: "a delta: there is no trailer at its end",
            });
        }
    };
    let mut payload = [0; TRAILER_BYTES];
    read_at(
        file,
        &mut payload,
        at + RECORD_HEADER_BYTES as u64,
        "the trailer",
    )?;
    check_payload(&record, &payload, at)?;
    let counts = Trailer::decode(&payload).counts;
    let index_at = counts.index_at;
    let wrong = |field, found: u64, expected: String| FormatError::Field {
        at,
        field,
        found: found.to_string(),
        expected,
    };
    if counts.trailer_at != at {
        return Err(wrong(
            "offset of the trailer",
            counts.trailer_at,
            at.to_string(),
        ));
    }
    if index_at != 0 && !(frames_begin..at).contains(&index_at) {
        let expected = format!("{frames_begin} to {at}");
        return Err(wrong("offset of the index", index_at, expected));
    }
    Ok(counts)
}

/// The frames of a stored delta.
pub struct Frames<'a, V> {
    file: &'a V,
    at: u64,
    end: u64,
    volume_size: u64,
    frames_end: u64,
    found: Counts,
    /// All of them; `None` where only some are looked at.
    expected: Option<Counts>,
}

impl<V: ReadAt> Frames<'_, V> {
    fn next_frame(&mut self) -> Result<Option<StoredFrame>, FormatError> {
        loop {
            if self.at >= self.end {
                return self.check_counts().map(|()| None);
            }
            let at = self.at;
            let record = record_at(self.file, at)?;
            let length = RECORD_HEADER_BYTES as u64 + u64::from(record.stored_length);
            self.at = at.saturating_add(length);
            if record.kind == RecordType::Position {
                continue;
            }
            let Some((extent, kind)) = record.frame() else {
                return Err(FormatError::OutOfOrder {
                    at,
                    found: record.kind.name().to_owned(),
                    expected: "a frame".to_owned(),
                });
            };
            if extent.offset() < self.frames_end || extent.end() > self.volume_size {
                return Err(FormatError::OutOfOrder {
                    at,
                    found: format!("a frame {extent}"),
                    expected: format!("one in {} to {}", self.frames_end, self.volume_size),
                });
            }
            self.frames_end = extent.end();
            self.found.frame(&record);
            return Ok(Some(StoredFrame {
                extent,
                kind,
                at,
                stored_length: record.stored_length,
            }));
        }
    }

    fn check_counts(&self) -> Result<(), FormatError> {
        let pair = |counts: &Counts| (counts.data_frames, counts.zero_frames);
        // Where only some are looked at, the last of them still ends where the index begins.
        let expected = self.expected.unwrap_or(self.found);
        if pair(&self.found) == pair(&expected) && self.at == self.end {
            return Ok(());
        }
        let (data, zero) = pair(&self.found);
        let (expected_data, expected_zero) = pair(&expected);
        Err(FormatError::Field {
            at: self.at,
            field: "number of frames",
            found: format!("{data} data and {zero} zero"),
            expected: format!("{expected_data} and {expected_zero}, and the index behind them"),
        })
    }
}

impl<V: ReadAt> Iterator for Frames<'_, V> {
    type Item = Result<StoredFrame, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_frame();
        if !matches!(next, Ok(Some(_))) {
            // What follows an error or the end is nothing.
            self.at = self.end;
            self.expected = None;
        }
        next.transpose()
    }
}

pub(super) fn record_at(file: &impl ReadAt, at: u64) -> Result<RecordHeader, FormatError> {
    let mut bytes = [0; RECORD_HEADER_BYTES];
    read_at(file, &mut bytes, at, "a record header")?;
    RecordHeader::decode(&bytes, at)
}

pub(super) fn read_at(
    file: &impl ReadAt,
    buffer: &mut [u8],
    at: u64,
    inside: &'static str,
) -> Result<(), FormatError> {
    match file.read_exact_at(buffer, at) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(FormatError::Truncated {
            at: file.size_bytes(),
            inside,
        }),
        Err(error) => Err(FormatError::Io(error)),
    }
}

/// Reads what is read at random one piece after another.
pub struct Sequential<'a, V> {
    file: &'a V,
    position: u64,
}

impl<'a, V: ReadAt> Sequential<'a, V> {
    fn of(file: &'a V) -> Self {
        Self { file, position: 0 }
    }
}

impl<V: ReadAt> Read for Sequential<'_, V> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.file.size_bytes().saturating_sub(self.position);
        let length = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        self.file
            .read_exact_at(&mut buffer[..length], self.position)?;
        self.position += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::header::tests::header;
    use crate::delta::writer::DeltaWriter;
    use crate::volume::memory::MemoryVolume;

    fn delta(frames: u64) -> Vec<u8> {
        let mut writer =
            DeltaWriter::new(Vec::new(), &header(1 << 30), &Samples::default()).unwrap();
        for frame in 0..frames {
            let extent = Extent::new(frame * 8192, 4096).unwrap();
            if frame % 3 == 2 {
                writer.zero(extent).unwrap();
            } else {
                writer
                    .data(extent, Codec::None, &vec![frame as u8; 4096])
                    .unwrap();
            }
        }
        writer.finish().unwrap().1
    }

    fn open(bytes: &[u8]) -> Result<StoredDelta<MemoryVolume>, FormatError> {
        StoredDelta::open(MemoryVolume::new(bytes.to_vec()))
    }

    #[test]
    fn frames_are_those_that_a_reader_sees() {
        for frames in [0, 1, 40] {
            let bytes = delta(frames);
            let stored = open(&bytes).unwrap();
            assert_eq!(stored.bytes(), bytes.len() as u64);
            let mut reader = stored.read_all().unwrap();
            for frame in stored.frames() {
                let frame = frame.unwrap();
                let read = reader.next_frame().unwrap().unwrap();
                assert_eq!((frame.extent, frame.kind), (read.extent, read.kind));
                assert_eq!(frame.at, read.at);
                if frame.kind == Kind::Data {
                    let mut payload = Vec::new();
                    let read =
                        stored.frame(frame.at, frame.stored_length, &mut Vec::new(), &mut payload);
                    assert_eq!(read.unwrap().1, frame.extent);
                    assert_eq!(payload, reader.stored_payload().unwrap());
                }
            }
            assert!(reader.next_frame().unwrap().is_none());
        }
    }

    #[test]
    fn a_cut_delta_does_not_open_and_a_damaged_one_says_where() {
        let bytes = delta(6);
        for cut in (0..bytes.len()).step_by(61) {
            assert!(open(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(open(&[&bytes[..], b"x"].concat()).is_err());
        let second = open(&bytes).unwrap().frames().nth(1).unwrap().unwrap();
        let mut bad = bytes.clone();
        bad[second.at as usize + 9] ^= 1;
        let errors: Vec<_> = open(&bad)
            .unwrap()
            .frames()
            .filter_map(Result::err)
            .collect();
        assert!(
            matches!(errors[..], [FormatError::Checksum { at, .. }] if at == second.at),
            "{errors:?}"
        );
        let mut bad = bytes;
        bad[second.at as usize + 40] ^= 1;
        let stored = open(&bad).unwrap();
        assert!(stored.frames().all(|frame| frame.is_ok()));
        let length = second.stored_length;
        let error = stored.frame(second.at, length, &mut Vec::new(), &mut Vec::new());
        assert!(matches!(error, Err(FormatError::Checksum { at, .. }) if at == second.at));
    }
}
