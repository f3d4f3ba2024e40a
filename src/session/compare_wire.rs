//! What is asked in the operations `compare` and `sync`: requests for digests, as bytes.
//!
//! Pure. Guarantees: a request that was read has 1 to [`MAX_EXTENTS`] extents that ascend and lie in the
//! volume, at most [`MAX_BYTES`] together and with at most [`MAX_DIGESTS`] parts: what it costs is known
//! before anything is read or allocated for it. `docs/protocol.md` is the specification.

use std::iter::Peekable;

use crate::blocks::{BLOCK_BYTES, DIGEST_BYTES, Digest, PIECE_BYTES, cut, parts, usize_of};
use crate::extent::Extent;

/// Bytes before the extents of a request.
pub const REQUEST_HEADER_BYTES: usize = 8;
/// Bytes of one extent.
pub const EXTENT_BYTES: usize = 16;
/// Extents in one request, at most.
pub const MAX_EXTENTS: usize = 2048;
/// Digests in one answer, at most: as many as fit its message.
pub const MAX_DIGESTS: u64 = 2048;
/// Bytes of the volume in one request, at most.
pub const MAX_BYTES: u64 = 8 << 20;

/// What cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No extents, or too many.
    #[error("a request for {0} extents; 1 to {MAX_EXTENTS} are allowed")]
    Extents(u32),
    /// No block that digests are made of.
    #[error(
        "a request for blocks of {0} bytes; a power of two from {BLOCK_BYTES} to {PIECE_BYTES} is allowed"
    )]
    Block(u32),
    /// An extent that is empty or not where it may be.
    #[error(
        "a request for {length} bytes at {offset}: it has to begin at {position} or later, and end within {size_bytes}"
    )]
    Extent {
        /// As asked.
        offset: u64,
        /// As asked.
        length: u64,
        /// End of the extent before.
        position: u64,
        /// Size of the volume.
        size_bytes: u64,
    },
    /// More than is answered at once.
    #[error(
        "a request for {bytes} bytes in {parts} parts; {MAX_BYTES} in {MAX_DIGESTS} are allowed"
    )]
    TooMuch {
        /// Bytes of the volume.
        bytes: u64,
        /// Digests.
        parts: u64,
    },
    /// The stream ended inside.
    #[error("the beginning of a request, and then nothing")]
    Truncated,
}

/// Digests of these bytes are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Each digest is of one part: extents are cut at multiples of this.
    pub block: u64,
    /// Ascending.
    pub extents: Vec<Extent>,
}

impl Request {
    /// Reads a request for a volume of `size_bytes`.
    pub fn decode(bytes: &[u8], size_bytes: u64) -> Result<Self, RequestError> {
        let Some(([c0, c1, c2, c3, b0, b1, b2, b3], rest)) = bytes.split_first_chunk() else {
            return Err(RequestError::Truncated);
        };
        let count = u32::from_le_bytes([*c0, *c1, *c2, *c3]);
        let block = u32::from_le_bytes([*b0, *b1, *b2, *b3]);
        let extents = usize_of(count.into());
        if extents == 0 || extents > MAX_EXTENTS {
            return Err(RequestError::Extents(count));
        }
        if !block.is_power_of_two() || !(BLOCK_BYTES..=PIECE_BYTES).contains(&block.into()) {
            return Err(RequestError::Block(block));
        }
        let (words, remainder) = rest.as_chunks::<8>();
        if rest.len() != extents * EXTENT_BYTES || !remainder.is_empty() {
            return Err(RequestError::Truncated);
        }
        let (pairs, _) = words.as_chunks::<2>();
        let mut request = Request {
            block: block.into(),
            extents: Vec::with_capacity(pairs.len()),
        };
        let (mut position, mut bytes, mut digests) = (0, 0, 0);
        for [offset, length] in pairs {
            let (offset, length) = (u64::from_le_bytes(*offset), u64::from_le_bytes(*length));
            let extent = Extent::new(offset, length)
                .filter(|extent| extent.offset() >= position && extent.end() <= size_bytes)
                .ok_or(RequestError::Extent {
                    offset,
                    length,
                    position,
                    size_bytes,
                })?;
            position = extent.end();
            // Disjoint and below 2^63: the sums cannot pass 2^64.
            bytes += length;
            digests += parts(extent, request.block);
            request.extents.push(extent);
        }
        if bytes > MAX_BYTES || digests > MAX_DIGESTS {
            return Err(RequestError::TooMuch {
                bytes,
                parts: digests,
            });
        }
        Ok(request)
    }

    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let mut bytes =
            Vec::with_capacity(REQUEST_HEADER_BYTES + self.extents.len() * EXTENT_BYTES);
        bytes.extend_from_slice(&number(self.extents.len() as u64));
        bytes.extend_from_slice(&number(self.block));
        for extent in &self.extents {
            bytes.extend_from_slice(&extent.offset().to_le_bytes());
            bytes.extend_from_slice(&extent.length().to_le_bytes());
        }
        bytes
    }

    /// What each digest is of, in order.
    pub fn parts(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents
            .iter()
            .flat_map(|extent| cut(*extent, self.block))
    }

    /// Bytes of the volume.
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length()).sum()
    }

    /// The parts whose digests differ.
    pub fn differing<'a>(
        &'a self,
        ours: &'a [Digest],
        theirs: &'a [Digest],
    ) -> impl Iterator<Item = Extent> + 'a {
        let digests = ours.iter().zip(theirs);
        self.parts()
            .zip(digests)
            .filter(|(_, (our, their))| our != their)
            .map(|(part, _)| part)
    }
}

/// Requests for all of some ascending extents, which are cut into pieces.
pub struct Requests<I: Iterator<Item = Extent>> {
    pieces: Peekable<I>,
}

/// Requests for all of the ascending `extents`.
pub fn requests(extents: impl Iterator<Item = Extent>) -> Requests<impl Iterator<Item = Extent>> {
    let pieces = extents.flat_map(|extent| cut(extent, PIECE_BYTES));
    Requests {
        pieces: pieces.peekable(),
    }
}

impl<I: Iterator<Item = Extent>> Requests<I> {
    /// The next pieces, of about `bytes` together, with digests of parts of `block`. They are so few that all of them can be
    /// asked for again in blocks. `None` when there are no more.
    pub fn next(&mut self, bytes: u64, block: u64) -> Option<Request> {
        // Each piece has at most as many as the least of these.
        let most = (bytes / BLOCK_BYTES).clamp(PIECE_BYTES / BLOCK_BYTES, MAX_DIGESTS);
        let mut extents = Vec::new();
        let mut blocks = 0;
        let fits = |blocks, piece: &Extent| blocks + parts(*piece, BLOCK_BYTES) <= most;
        while let Some(piece) = self.pieces.next_if(|piece| fits(blocks, piece)) {
            blocks += parts(piece, BLOCK_BYTES);
            extents.push(piece);
        }
        (!extents.is_empty()).then_some(Request { block, extents })
    }
}

/// The digests of an answer that should have `expected` of them.
pub fn digests_of(payload: &[u8], expected: usize) -> Option<&[Digest]> {
    let (digests, rest) = payload.as_chunks::<DIGEST_BYTES>();
    (digests.len() == expected && rest.is_empty()).then_some(digests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::PART_BYTES;
    use crate::change_list::ChangeList;
    use crate::extent::{Change, Kind};
    use proptest::prelude::*;

    fn raw(count: u32, block: u32, extents: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = [count.to_le_bytes(), block.to_le_bytes()].concat();
        for (offset, length) in extents {
            bytes.extend(offset.to_le_bytes());
            bytes.extend(length.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn the_bytes_are_pinned() {
        let request = Request {
            block: 4096,
            extents: vec![Extent::new(0x0102, 3).unwrap()],
        };
        let expected = [
            1, 0, 0, 0, 0, 0x10, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(request.encode(), expected);
    }

    #[test]
    fn what_must_not_be_asked_is_named() {
        let mib = 1 << 20;
        for (bytes, word) in [
            (raw(0, 4096, &[]), "0 extents"),
            (raw(2049, 4096, &[(0, 1); 2049]), "2049 extents"),
            (raw(1, 0, &[(0, 1)]), "blocks of 0 bytes"),
            (raw(1, 2048, &[(0, 1)]), "blocks of 2048"),
            (raw(1, 5000, &[(0, 1)]), "blocks of 5000"),
            (raw(1, 2 << 20, &[(0, 1)]), "blocks of 2097152"),
            (raw(1, 4096, &[(5, 0)]), "0 bytes at 5"),
            (
                raw(1, 4096, &[(u64::MAX, 2)]),
                "2 bytes at 18446744073709551615",
            ),
            (raw(1, 4096, &[(64 * mib - 1, 2)]), "end within 67108864"),
            (raw(2, 4096, &[(0, 10), (9, 1)]), "begin at 10"),
            (raw(1, 1 << 20, &[(0, 8 * mib + 1)]), "8388609 bytes"),
            (raw(1, 4096, &[(1, 8 * mib)]), "2049 parts"),
            (raw(2, 4096, &[(0, 1)]), "and then nothing"),
        ] {
            let text = Request::decode(&bytes, 64 * mib).unwrap_err().to_string();
            assert!(text.contains(word), "{word} in {text}");
        }
        assert!(Request::decode(&raw(1, 4096, &[(0, 8 * mib)]), 8 * mib).is_ok());
    }

    proptest! {
        #[test]
        fn requests_are_the_list_and_can_be_asked_twice(
            pushes in prop::collection::vec((0u64..40 << 20, 1u64..6 << 20, any::<bool>()), 0..400),
            at_once in 0u64..20 << 20,
        ) {
            let change = |(offset, length, small): (u64, u64, bool)| Change {
                extent: Extent::new(offset, if small { length % 3000 + 1 } else { length }).unwrap(),
                kind: Kind::Data,
            };
            let list: ChangeList = pushes.into_iter().map(change).collect();
            let size = 64 << 20;
            let mut all = Vec::new();
            let mut requests = requests(list.iter().map(|change| change.extent));
            while let Some(request) = requests.next(at_once, PART_BYTES) {
                prop_assert!(request.bytes() <= at_once.max(PIECE_BYTES));
                prop_assert_eq!(Request::decode(&request.encode(), size), Ok(request.clone()));
                let again = Request { block: BLOCK_BYTES, ..request };
                prop_assert_eq!(Request::decode(&again.encode(), size), Ok(again.clone()));
                all.extend(again.extents);
            }
            let joined: ChangeList =
                all.into_iter().map(|extent| Change { extent, kind: Kind::Data }).collect();
            prop_assert_eq!(&joined, &list);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..100), size in any::<u64>()) {
            if let Ok(request) = Request::decode(&bytes, size) {
                prop_assert_eq!(request.encode(), bytes);
            }
        }
    }
}
