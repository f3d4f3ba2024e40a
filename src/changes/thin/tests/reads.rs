//! What is read, and how much of it; and what cannot be read.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::error::ExitCode;
use crate::volume::ReadAt;

/// Counts the blocks that are read, and has bad ones.
struct Watched {
    image: MemoryVolume,
    blocks: AtomicU64,
    reads: AtomicU64,
    bad: BTreeSet<u64>,
    gap: u64,
}

impl Watched {
    fn new(image: Vec<u8>) -> Self {
        Self {
            image: MemoryVolume::new(image),
            blocks: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            bad: BTreeSet::new(),
            gap: 16 << 10,
        }
    }

    /// Blocks and reads since the last time.
    fn counts(&self) -> (u64, u64) {
        (
            self.blocks.swap(0, Ordering::Relaxed),
            self.reads.swap(0, Ordering::Relaxed),
        )
    }
}

impl ReadAt for Watched {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn gap_worth_reading(&self) -> u64 {
        self.gap
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(offset.is_multiple_of(4096), "for direct reads");
        assert!(buffer.len().is_multiple_of(4096));
        assert!(buffer.as_ptr().addr().is_multiple_of(4096));
        let (first, count) = (offset / 4096, buffer.len() as u64 / 4096);
        self.blocks.fetch_add(count, Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.bad.range(first..first + count).next().is_some() {
            return Err(io::Error::other("a bad block"));
        }
        self.image.read_exact_at(buffer, offset)
    }
}

/// Two paths of a lookup, and the leftmost path of each tree; twice, since none is remembered.
const CONSTANT: u64 = 32;

#[test]
fn finding_a_difference_reads_what_differs() {
    const MAPPINGS: u64 = 1_000_000;
    let mut pool = PoolBuilder::new(128, 252);
    pool.create(1);
    pool.write_new(1, 0..MAPPINGS);
    pool.snapshot(2, 1);
    let small = {
        let mut pool = pool.clone();
        pool.write(1, 777_777);
        pool
    };
    // 0.1 % in clusters of 50.
    for cluster in 0..20 {
        (0..50).for_each(|block| pool.write(1, cluster * 49_999 + block));
    }
    for (pool, blocks) in [(small, 1), (pool, 1000)] {
        let [old, new] = [2, 1].map(|id| pool.mapping_nodes(id));
        let differ = old.symmetric_difference(&new).count() as u64;
        let all = old.union(&new).count() as u64;
        let watched = Watched::new(pool.image());
        let metadata = ThinMetadata::open(&watched, Root::Live).unwrap();
        for (old, new) in [(2, 1), (1, 2)] {
            watched.counts();
            let summary = metadata.diff(old, new, |_| ()).unwrap();
            assert_eq!(
                (summary.mapped_blocks, summary.unmapped_blocks),
                (blocks, 0)
            );
            // The origin was snapshotted after it was written: looking for that ends the count.
            if old == 2 {
                let (read, reads) = watched.counts();
                println!(
                    "{blocks} changed: {differ} of {all} nodes differ, {read} read in {reads} reads"
                );
                assert!(read >= differ, "{read} {differ}");
                assert!(read <= 2 * differ + CONSTANT, "{read} {differ}");
                assert!(read < all / 10);
            }
        }
    }
}

#[test]
fn trees_of_different_heights_share_what_they_share() {
    for most in [4, 8, 252] {
        let mut pool = PoolBuilder::new(128, most);
        pool.create(1);
        let full = most as u64 * most as u64 / 2;
        pool.write_new(1, 0..full);
        pool.snapshot(2, 1);
        let height = |pool: &PoolBuilder, id| {
            let image = MemoryVolume::new(pool.image());
            let metadata = ThinMetadata::open(&image, Root::Live).unwrap();
            let root = metadata.known(id).unwrap().1;
            let blocks = Blocks::new(&image);
            let Head::Subtree(root) = Walk::new(&blocks, Tree::Mappings, root).unwrap().head()
            else {
                panic!("a root");
            };
            root.height
        };
        let mut next = full;
        while height(&pool, 1) == height(&pool, 2) {
            pool.write(1, next);
            next += 1;
        }
        let [old, new] = [2, 1].map(|id| pool.mapping_nodes(id));
        let differ = old.symmetric_difference(&new).count() as u64;
        let watched = Watched::new(pool.image());
        let metadata = ThinMetadata::open(&watched, Root::Live).unwrap();
        watched.counts();
        let summary = metadata.diff(2, 1, |_| ()).unwrap();
        let (read, _) = watched.counts();
        assert_eq!(summary.mapped_blocks, next - full);
        assert!(read <= 2 * differ + CONSTANT, "{most}: {read} {differ}");
        // And the other way round, as far as the trees are concerned.
        let roots = [1, 2].map(|id| metadata.known(id).unwrap().1);
        watched.counts();
        diff::diff(&metadata.blocks, roots, |_| ()).unwrap();
        assert!(watched.counts().0 <= 2 * differ + CONSTANT);
    }
}

/// Where nodes were split, merged and evened out, shared ones have other neighbours and other parents.
#[test]
fn subtrees_that_have_moved_are_still_left_out() {
    let mut pool = PoolBuilder::new(128, 12);
    pool.create(1);
    (0..20_000).for_each(|block| pool.write(1, block * 10));
    pool.snapshot(2, 1);
    for cluster in 0..10 {
        let begin = cluster * 19_990;
        (begin..begin + 150).for_each(|block| pool.write(1, block));
        (begin + 9000..begin + 10_000).for_each(|block| pool.discard(1, block));
    }
    // Leaves of new keys alone, in front of a shared leaf: the other walk has come to that one already.
    for next in [5040, 65_040, 125_040] {
        (next - 9..next).for_each(|block| pool.write(1, block));
    }
    let [old, new] = [2, 1].map(|id| pool.mapping_nodes(id));
    let differ = old.symmetric_difference(&new).count() as u64;
    let mut watched = Watched::new(pool.image());
    watched.gap = 0;
    let metadata = ThinMetadata::open(&watched, Root::Live).unwrap();
    let [old, new] = [2, 1].map(|id| metadata.known(id).unwrap().1);
    for roots in [[old, new], [new, old]] {
        watched.counts();
        diff::diff(&metadata.blocks, roots, |_| ()).unwrap();
        let (read, reads) = watched.counts();
        println!("{differ} nodes differ, {read} read in {reads} reads");
        // And the leftmost path of each tree.
        assert!(read <= differ + 12, "{read} {differ}");
    }
}

#[test]
fn neighbours_are_read_together() {
    let mut pool = PoolBuilder::new(128, 252);
    pool.create(1);
    pool.write_new(1, 0..100_000);
    let watched = Watched::new(pool.image());
    let metadata = ThinMetadata::open(&watched, Root::Live).unwrap();
    watched.counts();
    metadata.mapped(1, |_| ()).unwrap();
    let (blocks, reads) = watched.counts();
    let nodes = pool.mapping_nodes(1).len() as u64;
    assert!(blocks <= 2 * nodes + CONSTANT, "{blocks} {nodes}");
    assert!(reads < nodes / 16 + CONSTANT, "{reads} {nodes}");
}

#[test]
fn a_block_that_cannot_be_read_is_named_and_only_where_it_is_needed() {
    let mut pool = PoolBuilder::new(128, 4);
    pool.create(1);
    (0..60).for_each(|block| pool.write(1, block));
    pool.snapshot(2, 1);
    (0..60).step_by(7).for_each(|block| pool.write(1, block));
    let image = pool.image();
    let [old, new] = [2, 1].map(|id| pool.mapping_nodes(id));
    let expected = {
        let image = MemoryVolume::new(image.clone());
        differences(&ThinMetadata::open(&image, Root::Live).unwrap(), 2, 1).unwrap()
    };
    let mut watched = Watched::new(image.clone());
    for bad in 0..image.len() as u64 / 4096 {
        watched.bad = BTreeSet::from([bad]);
        let found = ThinMetadata::open(&watched, Root::Live)
            .and_then(|metadata| differences(&metadata, 2, 1));
        match found {
            Err(error) => {
                assert_eq!(error.exit_code(), ExitCode::Failed);
                assert!(
                    matches!(error, ThinError::Read { block, .. } if block == bad),
                    "{bad}: {error}"
                );
            }
            Ok(found) => {
                assert_eq!(found, expected);
                assert!(old.contains(&bad) == new.contains(&bad), "{bad} was needed");
            }
        }
    }
}

/// No time and no list of a full copy from an external origin tells of a discard.
#[test]
fn a_discard_changes_what_is_mapped_and_nothing_else() {
    let mut pool = PoolBuilder::new(128, 12);
    pool.create(1);
    pool.write_new(1, 0..50);
    pool.snapshot(2, 1);
    let look = |pool: &PoolBuilder| {
        let image = MemoryVolume::new(pool.image());
        let metadata = ThinMetadata::open(&image, Root::Live).unwrap();
        let volume = ThinVolume {
            device: 2,
            size_bytes: 50 << 16,
            external_origin: true,
        };
        let list = metadata.mapped_changes(volume).unwrap().digest();
        let digests = [1, 2].map(|id| metadata.mapped_digest(id).unwrap());
        (list, metadata.was_written(2).unwrap(), digests)
    };
    let (list, written, [one, two]) = look(&pool);
    assert_eq!(one, two, "a snapshot that is what its origin is");
    pool.discard(2, 20);
    let (list_then, written_then, [one_then, two_then]) = look(&pool);
    assert_eq!((list_then, written_then), (list, written));
    assert!(!written_then && one_then == one && two_then != two);
}
