//! The trailer: counts and the digest of the whole, written last.
//!
//! Pure. Guarantees: [`Trailer::decode`] only reads; [`Trailer::check`] compares every field with what the
//! reader itself has counted, so that a trailer that passes describes just the bytes that were read.

use super::FormatError;
use super::record::{RecordHeader, u64_at};
use crate::extent::Kind;

/// Bytes of the trailer's payload.
pub const TRAILER_BYTES: usize = 96;
/// Bytes of the payload that the digest covers.
pub const COUNTED_BYTES: usize = 64;

/// What was counted, on either side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of data frames.
    pub data_frames: u64,
    /// Number of zero frames.
    pub zero_frames: u64,
    /// Bytes of the volume in data frames.
    pub data_bytes: u64,
    /// Bytes of the volume in zero frames.
    pub zero_bytes: u64,
    /// Bytes of payload in data frames.
    pub stored_bytes: u64,
    /// Delta offset of the first index record, 0 without one.
    pub index_at: u64,
    /// Number of index entries.
    pub index_entries: u64,
    /// Delta offset of the trailer's record.
    pub trailer_at: u64,
}

impl Counts {
    /// Counts one frame.
    pub fn frame(&mut self, header: &RecordHeader) {
        match header.frame() {
            Some((_, Kind::Data)) => {
                self.data_frames += 1;
                self.data_bytes = self.data_bytes.saturating_add(header.length);
                self.stored_bytes = self
                    .stored_bytes
                    .saturating_add(header.stored_length.into());
            }
            Some((_, Kind::Zero)) => {
                self.zero_frames += 1;
                self.zero_bytes = self.zero_bytes.saturating_add(header.length);
            }
            None => {}
        }
    }

    fn fields(&self) -> [(&'static str, u64); 8] {
        [
            ("number of data frames", self.data_frames),
            ("number of zero frames", self.zero_frames),
            ("bytes in data frames", self.data_bytes),
            ("bytes in zero frames", self.zero_bytes),
            ("bytes of payload", self.stored_bytes),
            ("offset of the index", self.index_at),
            ("number of index entries", self.index_entries),
            ("offset of the trailer", self.trailer_at),
        ]
    }
}

/// The `T` record's payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// What the writer counted.
    pub counts: Counts,
    /// BLAKE3 of the whole delta.
    pub digest: blake3::Hash,
}

impl Trailer {
    /// Closes a delta: `hasher` has seen every byte before the trailer's record.
    pub fn new(counts: Counts, mut hasher: blake3::Hasher) -> Self {
        hasher.update(&counted(&counts));
        Self {
            counts,
            digest: hasher.finalize(),
        }
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = counted(&self.counts).to_vec();
        bytes.extend_from_slice(self.digest.as_bytes());
        bytes
    }

    /// Reads a payload of [`TRAILER_BYTES`].
    pub fn decode(payload: &[u8]) -> Self {
        let mut digest = [0; 32];
        if let Some(bytes) = payload.get(COUNTED_BYTES..TRAILER_BYTES) {
            digest.copy_from_slice(bytes);
        }
        let counts = Counts {
            data_frames: u64_at(payload, 0),
            zero_frames: u64_at(payload, 8),
            data_bytes: u64_at(payload, 16),
            zero_bytes: u64_at(payload, 24),
            stored_bytes: u64_at(payload, 32),
            index_at: u64_at(payload, 40),
            index_entries: u64_at(payload, 48),
            trailer_at: u64_at(payload, 56),
        };
        Self {
            counts,
            digest: blake3::Hash::from_bytes(digest),
        }
    }

    /// Compares with what a reader counted and hashed by itself; `at` is the record's delta offset.
    pub fn check(
        &self,
        counted_here: &Counts,
        hasher: blake3::Hasher,
        at: u64,
    ) -> Result<(), FormatError> {
        let pairs = self.counts.fields().into_iter().zip(counted_here.fields());
        for ((field, found), (_, expected)) in pairs {
            if found != expected {
                return Err(FormatError::Field {
                    at,
                    field,
                    found: found.to_string(),
                    expected: expected.to_string(),
                });
            }
        }
        let expected = Trailer::new(*counted_here, hasher).digest;
        if expected != self.digest {
            return Err(FormatError::Checksum {
                at,
                what: "the whole delta",
                found: expected.to_hex().to_string(),
                expected: self.digest.to_hex().to_string(),
            });
        }
        Ok(())
    }
}

fn counted(counts: &Counts) -> [u8; COUNTED_BYTES] {
    let mut bytes = [0; COUNTED_BYTES];
    for (slot, (_, value)) in bytes.chunks_exact_mut(8).zip(counts.fields()) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_checked() {
        let counts = Counts {
            data_frames: 1,
            data_bytes: 4096,
            trailer_at: 5000,
            ..Counts::default()
        };
        let hasher = blake3::Hasher::new();
        let payload = Trailer::new(counts, hasher.clone()).encode();
        assert_eq!(payload.len(), TRAILER_BYTES);
        Trailer::decode(&payload)
            .check(&counts, hasher.clone(), 0)
            .unwrap();
        for byte in 0..TRAILER_BYTES {
            let mut damaged = payload.clone();
            damaged[byte] ^= 0x10;
            Trailer::decode(&damaged)
                .check(&counts, hasher.clone(), 0)
                .unwrap_err();
        }
    }
}
