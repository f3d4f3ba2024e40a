//! The volumes that are measured on: made here, the same in every run.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

const PIECE: usize = 4 << 20;
pub(crate) const BLOCK: u64 = 4096;
/// One block of so many changes.
const SCATTER: u64 = 100;
/// So long is what a half-empty volume has and what it has not, in turn.
const RUN: u64 = 16 << 20;

/// Bytes that neither compress nor repeat, the same for the same seed and place.
fn noise(seed: u64, place: u64, bytes: &mut [u8]) {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&place.to_le_bytes());
    hasher.finalize_xof().fill(bytes);
}

/// A file that is full of noise.
pub(crate) fn dense(path: &Path, bytes: u64, seed: u64) -> io::Result<()> {
    pieces(path, bytes, seed, |_| true, |_| ())
}

/// A file that is noise and holes in turn, sixteen MiB each.
pub(crate) fn half_empty(path: &Path, bytes: u64, seed: u64) -> io::Result<()> {
    pieces(path, bytes, seed, |at| (at / RUN).is_multiple_of(2), |_| ())
}

/// A file that compresses to about half: of each sixteen bytes eight are noise.
pub(crate) fn compressible(path: &Path, bytes: u64, seed: u64) -> io::Result<()> {
    let thin_out = |bytes: &mut [u8]| {
        for half in bytes.chunks_exact_mut(16) {
            half[8..].copy_from_slice(b"lvmsync\n");
        }
    };
    pieces(path, bytes, seed, |_| true, thin_out)
}

fn pieces(
    path: &Path,
    bytes: u64,
    seed: u64,
    filled: impl Fn(u64) -> bool,
    change: impl Fn(&mut [u8]),
) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(bytes)?;
    let mut piece = vec![0; PIECE];
    for at in (0..bytes).step_by(PIECE).filter(|at| filled(*at)) {
        let length = usize::try_from(bytes - at).map_or(PIECE, |rest| rest.min(PIECE));
        let piece = &mut piece[..length];
        noise(seed, at, piece);
        change(piece);
        file.write_all_at(piece, at)?;
    }
    file.sync_all()
}

/// A sparse file with nothing in it.
pub(crate) fn empty(path: &Path, bytes: u64) -> io::Result<()> {
    File::create(path)?.set_len(bytes)
}

/// Gives one block of each hundred, somewhere in it, other content; the same blocks whatever the seed.
pub(crate) fn scatter(path: &Path, bytes: u64, seed: u64) -> io::Result<u64> {
    let file = File::options().write(true).open(path)?;
    let mut block = vec![0; 4096];
    let mut changed = 0;
    for place in scattered(bytes) {
        noise(seed, place, &mut block);
        file.write_all_at(&block, place)?;
        changed += BLOCK;
    }
    file.sync_all()?;
    Ok(changed)
}

fn scattered(bytes: u64) -> impl Iterator<Item = u64> {
    (0..bytes / BLOCK / SCATTER).map(|n| {
        // Steps of 37 visit all places of a hundred, and are no pattern that reading ahead could learn.
        (n * SCATTER + n * 37 % SCATTER) * BLOCK
    })
}

/// Brings a file into the page cache.
pub(crate) fn warm(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// What is fast and wrong is worth nothing.
pub(crate) fn same(one: &Path, other: &Path) -> io::Result<()> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let mut at = 0;
    loop {
        for (file, bytes) in [(&mut one, &mut a), (&mut other, &mut b)] {
            bytes.clear();
            file.take(PIECE as u64).read_to_end(bytes)?;
        }
        if a != b {
            let what = format!("it is not what it should be, in the 4 MiB from {at} on");
            return Err(io::Error::other(what));
        }
        if a.is_empty() {
            return Ok(());
        }
        at += PIECE;
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, scattered};

    #[test]
    fn one_block_of_a_hundred_changes_and_each_once() {
        let bytes = 64 << 20;
        let places: Vec<u64> = scattered(bytes).collect();
        assert_eq!(places.len() as u64, bytes / BLOCK / 100);
        assert!(places.is_sorted_by(|a, b| a < b));
        assert!(places.iter().all(|place| place % BLOCK == 0));
        assert!(places.iter().all(|place| place + BLOCK <= bytes));
    }
}
