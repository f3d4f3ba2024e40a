//! Entries for the fuzzers: each takes any bytes, and panics only where an invariant is broken.
//!
//! They live here so that unit tests run them too and the fuzz targets stay one line each.

mod delta;

pub use delta::{fuzz_delta, fuzz_header, fuzz_proto3, fuzz_record};

use crate::changes::cow::read_exceptions;
use crate::volume::memory::MemoryVolume;

/// An exception store; its last 8 bytes also choose the origin's size.
///
/// Holds: no panic; every extent is inside the origin; extents ascend and do not touch; no more extents
/// than entries.
pub fn fuzz_cow(data: &[u8]) {
    let (_, size) = data.split_last_chunk::<8>().unwrap_or((data, &[0; 8]));
    let store = MemoryVolume::new(data.to_vec());
    // Small origins too: a random u64 is nearly always far larger than any entry.
    let size = u64::from_le_bytes(*size);
    for origin_size in [size, size >> 40, 1 << 20] {
        let Ok(table) = read_exceptions(&store, origin_size) else {
            continue;
        };
        let mut position = None;
        for change in table.changes.iter() {
            assert!(change.extent.end() <= origin_size, "inside the origin");
            assert!(
                position < Some(change.extent.offset()),
                "sorted, disjoint, joined"
            );
            position = Some(change.extent.end());
        }
        assert!(table.changes.len() as u64 + table.duplicates <= table.exceptions);
    }
}
