//! Exception stores for benchmarks, written from the kernel's format alone and sharing no code with the reader.
//!
//! The format (all little-endian): chunk 0 begins with the magic `SnAp`, valid, version and the chunk's size in sectors.
//! Area k is the chunk 1 + k * (entries + 1), with one entry of two u64 (chunk of the origin, chunk of the store) for
//! every 16 bytes; the chunks after it hold the old data. An entry whose second half is 0 ends the table.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Writes a sparse store with these chunks of the origin, in this order. The old data are holes.
pub(crate) fn write(path: &Path, chunk_bytes: u64, chunks: &[u64]) -> io::Result<()> {
    let file = File::create(path)?;
    let mut header = Vec::with_capacity(16);
    for field in [
        0x7041_6e53,
        1,
        1,
        u32::try_from(chunk_bytes / 512).map_err(io::Error::other)?,
    ] {
        header.extend_from_slice(&u32::to_le_bytes(field));
    }
    file.write_all_at(&header, 0)?;
    let entries = chunk_bytes / 16;
    let per_area = usize::try_from(entries).map_err(io::Error::other)?;
    let mut area = 0;
    for group in chunks.chunks(per_area) {
        let place = area_chunk(area, chunk_bytes);
        let mut bytes = Vec::with_capacity(per_area * 16);
        for (old, new) in group.iter().zip(place + 1..) {
            bytes.extend_from_slice(&old.to_le_bytes());
            bytes.extend_from_slice(&new.to_le_bytes());
        }
        bytes.resize(per_area * 16, 0);
        file.write_all_at(&bytes, place * chunk_bytes)?;
        area += 1;
    }
    // A full last area has an empty one after it, which a hole is.
    file.set_len((area_chunk(area, chunk_bytes) + 1) * chunk_bytes)?;
    file.sync_all()
}

/// Where area `n` is, in chunks.
pub(crate) fn area_chunk(n: u64, chunk_bytes: u64) -> u64 {
    1 + n * (chunk_bytes / 16 + 1)
}

/// The numbers below 2^`bits`, each once, in an order without pattern: steps that can each be undone.
pub(crate) fn shuffled(bits: u32) -> impl Iterator<Item = u64> {
    let mask = (1_u64 << bits) - 1;
    (0..1_u64 << bits).map(move |n| {
        let mut mixed = n;
        for factor in [
            0x9e37_79b9_7f4a_7c15_u64,
            0xbf58_476d_1ce4_e5b9,
            0x94d0_49bb_1331_11eb,
        ] {
            mixed = mixed.wrapping_mul(factor) & mask;
            mixed ^= mixed >> (bits / 2);
        }
        mixed
    })
}

#[cfg(test)]
mod tests {
    use super::{area_chunk, shuffled};

    #[test]
    fn areas_are_where_the_kernel_has_them() {
        assert_eq!(area_chunk(0, 4096), 1);
        assert_eq!(area_chunk(1, 4096), 258);
        assert_eq!(area_chunk(1, 512), 34);
    }

    #[test]
    fn shuffled_is_a_permutation() {
        let mut all: Vec<u64> = shuffled(10).collect();
        assert!(!all.is_sorted());
        all.sort_unstable();
        assert!(all.into_iter().eq(0..1024));
    }
}
