//! Was the newer of two classic snapshots written to itself?
//!
//! Pure. Guarantees: as long as only their origin is written to, the answer stays the same, however long their tables grow. A
//! write to the snapshot changes it, unless the older one has that chunk as well. The kernel's counters tell of such writes,
//! too, but only since the snapshot was activated.

use crate::change_list::ChangeList;

/// What tells an increment from one that was made before `newer` was written to: a digest of its chunks that no chunk of the
/// `older` one meets. A write to the origin copies what was there into every snapshot that has no copy of it yet, so `older`
/// has everything that `newer` has got from there. `None` where there are no others.
pub(super) fn alone(older: &ChangeList, newer: &ChangeList, chunk_bytes: u64) -> Option<String> {
    let mut hasher = blake3::Hasher::new();
    for change in newer.iter() {
        let mut at = change.extent.offset();
        while at < change.extent.end() {
            let end = at
                .saturating_add(chunk_bytes.max(1))
                .min(change.extent.end());
            if older.bytes_between(at, end) == 0 {
                hasher.update(&at.to_le_bytes());
            }
            at = end;
        }
    }
    let digest = (hasher.count() > 0).then(|| hasher.finalize().to_hex());
    digest.map(|digest| format!("written:{digest}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{Change, Extent, Kind};

    fn list(chunks: &[u64], chunk_bytes: u64) -> ChangeList {
        let change = |chunk: &u64| Change {
            extent: Extent::new(chunk * chunk_bytes, chunk_bytes).unwrap(),
            kind: Kind::Data,
        };
        chunks.iter().map(change).collect()
    }

    #[test]
    fn writes_to_the_origin_do_not_show_and_writes_to_the_snapshot_do() {
        let older = list(&[1, 2, 9], 4096);
        assert_eq!(alone(&older, &list(&[], 4096), 4096), None);
        assert_eq!(alone(&older, &list(&[2], 4096), 4096), None);
        let grown = list(&[1, 2, 4, 9], 4096);
        assert_eq!(alone(&grown, &list(&[2, 4], 4096), 4096), None);
        let written = alone(&grown, &list(&[2, 4, 5], 4096), 4096);
        assert!(written.is_some());
        // It goes on being the same while the origin is written to, and another one after another write.
        let grown = list(&[0, 1, 2, 4, 9], 4096);
        assert_eq!(alone(&grown, &list(&[0, 2, 4, 5], 4096), 4096), written);
        assert_ne!(alone(&grown, &list(&[0, 2, 4, 5, 6], 4096), 4096), written);
    }

    #[test]
    fn chunks_of_different_sizes_meet() {
        // One write of 4 KiB to the origin, in both.
        let (small, large) = (list(&[17], 4096), list(&[1], 65_536));
        assert_eq!(alone(&small, &large, 65_536), None);
        assert_eq!(alone(&large, &small, 4096), None);
        assert!(alone(&small, &list(&[1, 2], 65_536), 65_536).is_some());
    }
}
