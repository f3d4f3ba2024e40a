//! What a run that was cut needs of its list: its digest, and the part that is still to be sent.
//!
//! Pure. Guarantees: two lists have the same digest only if they hold the same extents of the same kinds.

use super::ChangeList;
use crate::extent::{Change, Extent, Kind};

impl ChangeList {
    /// BLAKE3 over offset, length (both little-endian) and kind (0 data, 1 zero) of each extent, as `b3:` and
    /// 64 hexadecimal digits.
    pub fn digest(&self) -> String {
        const ENTRY_BYTES: usize = 17;
        let mut hasher = blake3::Hasher::new();
        let mut gathered = Vec::with_capacity(4096 * ENTRY_BYTES);
        for change in self.iter() {
            gathered.extend_from_slice(&change.extent.offset().to_le_bytes());
            gathered.extend_from_slice(&change.extent.length().to_le_bytes());
            gathered.push(u8::from(change.kind == Kind::Zero));
            if gathered.len() == gathered.capacity() {
                hasher.update(&gathered);
                gathered.clear();
            }
        }
        hasher.update(&gathered);
        format!("b3:{}", hasher.finalize().to_hex())
    }

    /// What of it lies at or after `offset`.
    #[must_use]
    pub fn from_offset(&self, offset: u64) -> Self {
        let rest = |change: Change| {
            let start = change.extent.offset().max(offset);
            let extent = Extent::from_range(start, change.extent.end())?;
            Some(Change { extent, ..change })
        };
        self.iter().filter_map(rest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(extents: &[(u64, u64, bool)]) -> ChangeList {
        let change = |(offset, length, zero): &(u64, u64, bool)| Change {
            extent: Extent::new(*offset, *length).unwrap(),
            kind: if *zero { Kind::Zero } else { Kind::Data },
        };
        extents.iter().map(change).collect()
    }

    #[test]
    fn a_digest_sees_offset_length_and_kind() {
        let digests = [
            list(&[]),
            list(&[(0, 4096, false)]),
            list(&[(0, 4096, true)]),
            list(&[(4096, 4096, false)]),
            list(&[(0, 8192, false)]),
            list(&[(0, 4096, false), (8192, 4096, false)]),
        ]
        .map(|list| list.digest());
        for (number, digest) in digests.iter().enumerate() {
            assert!(!digests[..number].contains(digest));
        }
    }

    proptest! {
        #[test]
        fn two_parts_make_the_whole(
            pieces in prop::collection::vec((0u64..1000, 1u64..50, any::<bool>()), 0..40), at in 0u64..1100,
        ) {
            let whole = list(&pieces);
            let (before, after) = (whole.clone().clip(at), whole.from_offset(at));
            prop_assert!(after.iter().all(|change| change.extent.offset() >= at));
            let joined: ChangeList = before.iter().chain(after.iter()).collect();
            prop_assert_eq!(joined, whole);
        }
    }
}
