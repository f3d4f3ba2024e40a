//! The difference between two trees of mappings: both walks side by side, past what they share.
//!
//! Guarantees: every block whose mapping is not the same in both is reported, in ascending order; a subtree
//! that both trees share is not read.
//!
//! Why it is sound to leave a shared subtree out: nodes are copied before they are written, and a block holds
//! one node, so the same block number means the same entries, wherever in each tree it is. Entries before it
//! have been reported when both walks stand in front of it, since each step takes what has the lower key.
//! To stand in front of the same subtree at the same time, the walk that is behind goes on first, and of two
//! that are level, the one in front of the higher subtree.
//!
//! Only the data block of a mapping is compared, not its time, as thin_delta does: both trees are of one moment, and at
//! one moment a block has one content. The kernel never maps one block at two times while two devices hold it.

use super::super::btree::{Blocks, Head, Horizon, Walk};
use super::error::{Result, Tree};
use super::run::{Joiner, Run};
use super::superblock::TIME_BITS;

/// A run of thin blocks that are not the same in an old and a new device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which blocks.
    pub run: Run,
    /// What they are in the new device.
    pub now: Now,
}

/// What a block that differs is in the new device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Now {
    /// Mapped, and not to what the old device has there.
    Mapped,
    /// Not mapped, while it is in the old device.
    Unmapped,
}

/// The data block of a mapping.
pub(super) fn data_block_of(value: u64) -> u64 {
    value >> TIME_BITS
}

/// The time of a mapping.
#[allow(clippy::cast_possible_truncation, reason = "these are 24 bits")]
pub(super) fn time_of(value: u64) -> u32 {
    (value & ((1 << TIME_BITS) - 1)) as u32
}

/// Reports all differences; returns, for the old and the new tree, the time of the newest mapping that was looked
/// at, which is every one that the trees do not share.
pub(super) fn diff(
    blocks: &Blocks<'_>,
    [old, new]: [u64; 2],
    visit: impl FnMut(Difference),
) -> Result<[Option<u32>; 2]> {
    if old == new {
        return Ok([None; 2]);
    }
    let mut pair = Pair {
        old: Walk::new(blocks, Tree::Mappings, old)?,
        new: Walk::new(blocks, Tree::Mappings, new)?,
        horizon: Horizon::default(),
        found: Found {
            newest: [None; 2],
            joiner: Joiner::new(visit),
        },
    };
    pair.walk()?;
    pair.found.joiner.finish();
    Ok(pair.found.newest)
}

struct Pair<'a, F: FnMut(Difference)> {
    old: Walk<'a, Tree>,
    new: Walk<'a, Tree>,
    horizon: Horizon,
    found: Found<F>,
}

struct Found<F: FnMut(Difference)> {
    /// Of the old tree, and of the new one.
    newest: [Option<u32>; 2],
    joiner: Joiner<F>,
}

impl<F: FnMut(Difference)> Pair<'_, F> {
    fn walk(&mut self) -> Result<()> {
        loop {
            match (self.old.head(), self.new.head()) {
                (Head::End, Head::End) => return Ok(()),
                // At another height it cannot be sound: entered, one of the two walks refuses it.
                (Head::Subtree(old), Head::Subtree(new))
                    if old.block == new.block && old.height == new.height =>
                {
                    self.old.skip();
                    self.new.skip();
                }
                (Head::Subtree(old), Head::Subtree(new)) => {
                    // The lower key first, then the higher subtree.
                    let order = old.low.cmp(&new.low).then(new.height.cmp(&old.height));
                    if order.is_le() {
                        self.enter_old()?;
                    }
                    if order.is_ge() {
                        self.enter_new()?;
                    }
                }
                (Head::Subtree(_), Head::End) => self.enter_old()?,
                (Head::End, Head::Subtree(_)) => self.enter_new()?,
                (Head::Entries(_), Head::Entries(_)) => {
                    self.found.merge(&mut self.old, &mut self.new);
                }
                (Head::Entries(key), Head::Subtree(next)) if key >= next.low => self.enter_new()?,
                (Head::Subtree(next), Head::Entries(key)) if key >= next.low => self.enter_old()?,
                (Head::Entries(_), next) => self.found.only_old(&mut self.old, below(next)),
                (next, Head::Entries(_)) => self.found.only_new(&mut self.new, below(next)),
            }
        }
    }

    fn enter_old(&mut self) -> Result<()> {
        if self.old.will_read_leaves() {
            self.new.horizon(&mut self.horizon);
        }
        Ok(self.old.enter(&self.horizon)?)
    }

    fn enter_new(&mut self) -> Result<()> {
        if self.new.will_read_leaves() {
            self.old.horizon(&mut self.horizon);
        }
        Ok(self.new.enter(&self.horizon)?)
    }
}

/// The first key that a walk may come to; `None` if it comes to no more.
fn below(next: Head) -> Option<u64> {
    match next {
        Head::Subtree(child) => Some(child.low),
        Head::Entries(key) => Some(key),
        Head::End => None,
    }
}

/// How many of the keys come before `limit`.
fn count_below(keys: &[[u8; 8]], limit: Option<u64>) -> usize {
    limit.map_or(keys.len(), |limit| {
        keys.partition_point(|key| u64::from_le_bytes(*key) < limit)
    })
}

impl<F: FnMut(Difference)> Found<F> {
    /// Two leaves, up to the end of one of them.
    fn merge(&mut self, old: &mut Walk<'_, Tree>, new: &mut Walk<'_, Tree>) {
        let ((old_keys, old_values), (new_keys, new_values)) = (old.entries(), new.entries());
        let (old_values, new_values) = (old_values.as_chunks().0, new_values.as_chunks().0);
        let (mut at_old, mut at_new) = (0, 0);
        let [mut newest_old, mut newest_new] = self.newest;
        while let (Some(old_key), Some(new_key), Some(old_value), Some(new_value)) = (
            old_keys.get(at_old),
            new_keys.get(at_new),
            old_values.get(at_old),
            new_values.get(at_new),
        ) {
            let (old_key, new_key) = (u64::from_le_bytes(*old_key), u64::from_le_bytes(*new_key));
            let (old_value, new_value) = (
                u64::from_le_bytes(*old_value),
                u64::from_le_bytes(*new_value),
            );
            if new_key <= old_key {
                newest_new = newest_new.max(Some(time_of(new_value)));
                at_new += 1;
            }
            if new_key < old_key {
                self.joiner.push(Now::Mapped, new_key);
                continue;
            }
            newest_old = newest_old.max(Some(time_of(old_value)));
            at_old += 1;
            if old_key < new_key {
                self.joiner.push(Now::Unmapped, old_key);
            } else if data_block_of(old_value) != data_block_of(new_value) {
                self.joiner.push(Now::Mapped, new_key);
            }
        }
        self.newest = [newest_old, newest_new];
        old.consume(at_old);
        new.consume(at_new);
    }

    fn only_old(&mut self, old: &mut Walk<'_, Tree>, limit: Option<u64>) {
        let (keys, values) = old.entries();
        let count = count_below(keys, limit);
        for (key, value) in keys.iter().zip(values.as_chunks().0).take(count) {
            self.newest[0] = self.newest[0].max(Some(time_of(u64::from_le_bytes(*value))));
            self.joiner.push(Now::Unmapped, u64::from_le_bytes(*key));
        }
        old.consume(count);
    }

    fn only_new(&mut self, new: &mut Walk<'_, Tree>, limit: Option<u64>) {
        let (keys, values) = new.entries();
        let count = count_below(keys, limit);
        for (key, value) in keys.iter().zip(values.as_chunks().0).take(count) {
            self.newest[1] = self.newest[1].max(Some(time_of(u64::from_le_bytes(*value))));
            self.joiner.push(Now::Mapped, u64::from_le_bytes(*key));
        }
        new.consume(count);
    }
}
