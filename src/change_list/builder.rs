//! Makes a change list of extents in any order.
//!
//! Guarantees: every byte that was pushed is in the list; memory follows the number of distinct extents,
//! not the number of pushes.

use super::ChangeList;
use super::packed::Packed;
use crate::extent::{Extent, Kind};

/// Collects extents in any order, with overlaps, and makes a [`ChangeList`] of them.
///
/// Neighbours that arrive in order are joined at once, and a full buffer is compacted before it grows,
/// so memory follows the number of distinct extents, not the number of pushes.
#[derive(Default)]
pub struct ChangeListBuilder {
    pub(super) packed: Vec<Packed>,
}

/// Below this many entries growing is cheaper than compacting.
pub(super) const COMPACT_FROM: usize = 1 << 16;

impl ChangeListBuilder {
    /// Adds one extent.
    pub fn push(&mut self, extent: Extent, kind: Kind) {
        let new = Packed::new(extent, kind);
        if let Some(last) = self.packed.last_mut()
            && last.end() == new.offset()
            && last.kind() == kind
        {
            let joined = Extent::of_checked(last.offset(), last.length() + extent.length());
            *last = Packed::new(joined, kind);
            return;
        }
        if self.packed.len() == self.packed.capacity() && self.packed.len() >= COMPACT_FROM {
            self.compact();
            // A quarter more, not twice as much: the bound is on memory, and the work stays linear.
            if self.packed.len() > self.packed.capacity() / 4 * 3 {
                self.packed.reserve_exact(self.packed.len() / 4);
            }
        }
        self.packed.push(new);
    }

    /// Sorts, resolves overlaps, joins neighbours.
    pub fn finish(mut self) -> ChangeList {
        self.compact();
        ChangeList::of_packed(self.packed)
    }

    fn compact(&mut self) {
        if !self.packed.is_sorted_by_key(|p| p.offset()) {
            self.packed.sort_unstable_by_key(|p| p.offset());
        }
        if self
            .packed
            .windows(2)
            .any(|pair| pair[1].offset() < pair[0].end())
        {
            self.packed = resolve_overlaps(&self.packed);
        } else {
            join_neighbours(&mut self.packed);
        }
    }
}

/// In place: for sorted, disjoint input.
fn join_neighbours(packed: &mut Vec<Packed>) {
    packed.dedup_by(|next, last| {
        let touching = last.end() == next.offset() && last.kind() == next.kind();
        if touching {
            let joined = Extent::of_checked(last.offset(), last.length() + next.length());
            *last = Packed::new(joined, last.kind());
        }
        touching
    });
}

/// For sorted input with overlaps: the union of all data, then zero in what is left.
fn resolve_overlaps(sorted: &[Packed]) -> Vec<Packed> {
    let runs = |kind: Kind| {
        let mut runs: Vec<Packed> = Vec::new();
        for p in sorted.iter().filter(|p| p.kind() == kind) {
            match runs.last_mut() {
                Some(last) if p.offset() <= last.end() => {
                    let length = last.end().max(p.end()) - last.offset();
                    *last = Packed::new(Extent::of_checked(last.offset(), length), kind);
                }
                _ => runs.push(*p),
            }
        }
        runs
    };
    let data = runs(Kind::Data);
    let zero = runs(Kind::Zero);
    let mut merged = Vec::with_capacity(data.len() + zero.len());
    let mut next_data = 0;
    for run in zero {
        let mut position = run.offset();
        while next_data < data.len() && data[next_data].offset() < run.end() {
            let d = data[next_data];
            if let Some(gap) = Extent::from_range(position, d.offset()) {
                merged.push(Packed::new(gap, Kind::Zero));
            }
            position = position.max(d.end());
            if d.end() > run.end() {
                break; // this data run may cover the next zero run as well
            }
            merged.push(d);
            next_data += 1;
        }
        if let Some(rest) = Extent::from_range(position, run.end()) {
            merged.push(Packed::new(rest, Kind::Zero));
        }
    }
    merged.extend_from_slice(&data[next_data..]);
    merged.sort_unstable_by_key(|p| p.offset());
    join_neighbours(&mut merged);
    merged
}
