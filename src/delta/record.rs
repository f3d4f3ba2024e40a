//! The record header: 32 bytes that open everything in a delta after its first line.
//!
//! Pure. Guarantees: what [`RecordHeader::decode`] returns has the right checksum and keeps every limit of
//! `docs/format.md`, so that its `stored_length` may be allocated.

use super::codec::Codec;
use super::{FormatError, MAX_FRAME_BYTES, trailer};
use crate::extent::{Extent, Kind};

/// Bytes of a record header.
pub const RECORD_HEADER_BYTES: usize = 32;
/// Most bytes of payload of a header or samples record.
pub const MAX_CONTROL_BYTES: u32 = 64 << 10;
/// Most bytes of payload of one index record.
pub const MAX_INDEX_BYTES: u32 = 1 << 20;

/// What a record is; the numbers are the format's ASCII letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordType {
    /// `H`
    Header,
    /// `S`
    Samples,
    /// `D`
    Data,
    /// `Z`
    Zero,
    /// `P`
    Position,
    /// `I`
    Index,
    /// `T`
    Trailer,
}

impl RecordType {
    const ALL: [(u8, RecordType); 7] = [
        (b'H', RecordType::Header),
        (b'S', RecordType::Samples),
        (b'D', RecordType::Data),
        (b'Z', RecordType::Zero),
        (b'P', RecordType::Position),
        (b'I', RecordType::Index),
        (b'T', RecordType::Trailer),
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(b, _)| *b == byte)
            .map(|(_, kind)| *kind)
    }

    fn byte(self) -> u8 {
        Self::ALL
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or(0, |(b, _)| *b)
    }

    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            RecordType::Header => "a header",
            RecordType::Samples => "samples",
            RecordType::Data => "a data frame",
            RecordType::Zero => "a zero frame",
            RecordType::Position => "a position",
            RecordType::Index => "an index",
            RecordType::Trailer => "a trailer",
        }
    }
}

/// A record header that keeps the format's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record is.
    pub kind: RecordType,
    /// How the payload is compressed.
    pub codec: Codec,
    /// Bytes of payload that follow.
    pub stored_length: u32,
    /// Volume offset of a frame in bytes, or a position; otherwise 0.
    pub offset: u64,
    /// Bytes of the volume that a frame covers, otherwise 0.
    pub length: u64,
    /// crc32c of the payload as stored; 0 without a payload.
    pub payload_crc: u32,
}

impl RecordHeader {
    /// A record with a payload that is not a frame.
    pub fn control(kind: RecordType, payload: &[u8]) -> Self {
        Self {
            kind,
            codec: Codec::None,
            stored_length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            offset: 0,
            length: 0,
            payload_crc: crc32c::crc32c(payload),
        }
    }

    /// A zero frame.
    pub fn zero(extent: Extent) -> Self {
        Self {
            kind: RecordType::Zero,
            codec: Codec::None,
            stored_length: 0,
            offset: extent.offset(),
            length: extent.length(),
            payload_crc: 0,
        }
    }

    /// A position: up to here nothing more comes.
    pub fn position(offset: u64) -> Self {
        Self {
            kind: RecordType::Position,
            codec: Codec::None,
            stored_length: 0,
            offset,
            length: 0,
            payload_crc: 0,
        }
    }

    /// A data frame whose payload has `stored_length` bytes and this checksum.
    pub fn data(extent: Extent, codec: Codec, stored_length: u32, payload_crc: u32) -> Self {
        Self {
            kind: RecordType::Data,
            codec,
            stored_length,
            offset: extent.offset(),
            length: extent.length(),
            payload_crc,
        }
    }

    /// Extent and kind of a frame; `None` for other records.
    pub fn frame(&self) -> Option<(Extent, Kind)> {
        let kind = match self.kind {
            RecordType::Data => Kind::Data,
            RecordType::Zero => Kind::Zero,
            _ => return None,
        };
        Some((Extent::new(self.offset, self.length)?, kind))
    }

    /// The 32 bytes.
    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[0] = self.kind.byte();
        bytes[1] = self.codec as u8;
        bytes[4..8].copy_from_slice(&self.stored_length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads 32 bytes that stand at delta offset `at`.
    pub fn decode(bytes: &[u8; RECORD_HEADER_BYTES], at: u64) -> Result<Self, FormatError> {
        let expected = u32_at(bytes, 28);
        let found = crc32c::crc32c(&bytes[..28]);
        if found != expected {
            return Err(FormatError::Checksum {
                at,
                what: "a record header",
                found: format!("{found:08x}"),
                expected: format!("{expected:08x}"),
            });
        }
        let field = |field, found: String, expected: &str| FormatError::Field {
            at,
            field,
            found,
            expected: expected.to_owned(),
        };
        let kind = RecordType::from_byte(bytes[0])
            .ok_or_else(|| field("type", bytes[0].to_string(), "one of H, S, D, Z, P, I, T"))?;
        let codec = Codec::from_number(bytes[1])
            .filter(|codec| *codec == Codec::None || kind == RecordType::Data)
            .ok_or_else(|| {
                field(
                    "codec",
                    bytes[1].to_string(),
                    "0, or 1 or 2 in a data frame",
                )
            })?;
        let flags = u16::from_le_bytes([bytes[2], bytes[3]]);
        if flags != 0 {
            return Err(field("flags", flags.to_string(), "0"));
        }
        let header = Self {
            kind,
            codec,
            stored_length: u32_at(bytes, 4),
            offset: u64_at(bytes, 8),
            length: u64_at(bytes, 16),
            payload_crc: u32_at(bytes, 24),
        };
        let (lengths, stored) = header.limits();
        if !lengths.contains(&header.length) {
            let expected = format!("{} to {}", lengths.start(), lengths.end());
            return Err(field("length", header.length.to_string(), &expected));
        }
        if !stored.contains(&u64::from(header.stored_length)) {
            let expected = format!("{} to {}", stored.start(), stored.end());
            return Err(field(
                "stored_length",
                header.stored_length.to_string(),
                &expected,
            ));
        }
        if kind == RecordType::Index && !header.stored_length.is_multiple_of(16) {
            let found = header.stored_length.to_string();
            return Err(field("stored_length", found, "a multiple of 16"));
        }
        match kind {
            RecordType::Data | RecordType::Zero
                if Extent::new(header.offset, header.length).is_some() => {}
            RecordType::Data | RecordType::Zero => {
                return Err(field(
                    "offset",
                    header.offset.to_string(),
                    "a frame below 2^63",
                ));
            }
            RecordType::Position if header.offset <= crate::extent::MAX_OFFSET => {}
            RecordType::Position => {
                return Err(field("offset", header.offset.to_string(), "below 2^63"));
            }
            _ if header.offset != 0 => {
                return Err(field("offset", header.offset.to_string(), "0"));
            }
            _ => {}
        }
        Ok(header)
    }

    /// Allowed `length` and `stored_length`.
    fn limits(&self) -> (std::ops::RangeInclusive<u64>, std::ops::RangeInclusive<u64>) {
        let control = u64::from(MAX_CONTROL_BYTES);
        match self.kind {
            RecordType::Header => (0..=0, 2..=control),
            RecordType::Samples => (0..=0, 8..=control),
            RecordType::Data if self.codec == Codec::None => {
                (1..=MAX_FRAME_BYTES, self.length..=self.length)
            }
            RecordType::Data => (1..=MAX_FRAME_BYTES, 1..=self.length),
            RecordType::Zero => (1..=crate::extent::MAX_OFFSET, 0..=0),
            RecordType::Position => (0..=0, 0..=0),
            RecordType::Index => (0..=0, 16..=u64::from(MAX_INDEX_BYTES)),
            RecordType::Trailer => (
                0..=0,
                trailer::TRAILER_BYTES as u64..=trailer::TRAILER_BYTES as u64,
            ),
        }
    }
}

/// Compares a payload with the checksum in its record header.
pub fn check_payload(header: &RecordHeader, payload: &[u8], at: u64) -> Result<(), FormatError> {
    let found = crc32c::crc32c(payload);
    if found == header.payload_crc {
        return Ok(());
    }
    Err(FormatError::Checksum {
        at,
        what: header.kind.name(),
        found: format!("{found:08x}"),
        expected: format!("{:08x}", header.payload_crc),
    })
}

/// The little-endian integer at `at`; the caller has checked the length, a short slice reads as 0.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// As [`u64_at`].
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> RecordHeader {
        RecordHeader::data(
            Extent::new(20480, 4096).unwrap(),
            Codec::Lz4,
            77,
            0xdead_beef,
        )
    }

    #[test]
    fn bytes_are_those_of_the_format() {
        let bytes = sample().encode();
        assert_eq!(&bytes[..8], &[b'D', 1, 0, 0, 77, 0, 0, 0]);
        assert_eq!(
            &bytes[8..24],
            &[0, 0x50, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(&bytes[24..28], &[0xef, 0xbe, 0xad, 0xde]);
        assert_eq!(RecordHeader::decode(&bytes, 0).unwrap(), sample());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        for bit in 0..256 {
            let mut bytes = sample().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(RecordHeader::decode(&bytes, 0).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn limits_hold_even_with_a_right_checksum() {
        let base = sample();
        let wrong = [
            RecordHeader {
                length: MAX_FRAME_BYTES + 1,
                ..base
            },
            RecordHeader { length: 0, ..base },
            RecordHeader {
                stored_length: 4097,
                ..base
            },
            RecordHeader {
                stored_length: 0,
                ..base
            },
            RecordHeader {
                offset: u64::MAX,
                ..base
            },
            RecordHeader {
                codec: Codec::None,
                stored_length: 4095,
                ..base
            },
            RecordHeader {
                kind: RecordType::Zero,
                ..base
            },
            RecordHeader {
                kind: RecordType::Header,
                ..base
            },
            RecordHeader {
                kind: RecordType::Header,
                length: 0,
                codec: Codec::None,
                ..base
            },
            RecordHeader {
                kind: RecordType::Index,
                ..RecordHeader::control(RecordType::Index, &[0; 17])
            },
            RecordHeader::control(RecordType::Trailer, &[0; 95]),
            RecordHeader::control(RecordType::Header, &vec![0; 65537]),
        ];
        for header in wrong {
            assert!(
                RecordHeader::decode(&header.encode(), 0).is_err(),
                "{header:?}"
            );
        }
    }
}
