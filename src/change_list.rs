//! The change list: which extents differ between two states of a volume.
//!
//! Guarantees: a [`ChangeList`] is sorted, disjoint and coalesced; it holds 16 bytes for each extent;
//! building one never drops a range that was pushed (a list may be too long, never too short), and where
//! data and zero overlap, data wins, because reading the bytes is always right.

use std::fmt;
use std::thread;

pub use builder::ChangeListBuilder;

use crate::extent::{Change, Extent, Kind};

mod builder;
mod rest;

/// 16 bytes: offset, then length with the kind in its top bit, which [`MAX_OFFSET`] keeps free.
///
/// A plain array, because a vector of zeroed arrays comes from the system without being touched, so that
/// two threads can fill the pages of one list.
type Packed = [u64; 2];

const ZERO_BIT: u64 = 1 << 63;

trait Pack {
    fn new(extent: Extent, kind: Kind) -> Self;
    fn offset(self) -> u64;
    fn kind(self) -> Kind;
    fn length(self) -> u64;
    fn end(self) -> u64;
    fn change(self) -> Change;
}

impl Pack for Packed {
    #[inline]
    fn new(extent: Extent, kind: Kind) -> Self {
        let flag = if kind == Kind::Zero { ZERO_BIT } else { 0 };
        [extent.offset(), extent.length() | flag]
    }

    #[inline]
    fn offset(self) -> u64 {
        self[0]
    }

    #[inline]
    fn kind(self) -> Kind {
        if self[1] & ZERO_BIT == 0 {
            Kind::Data
        } else {
            Kind::Zero
        }
    }

    #[inline]
    fn length(self) -> u64 {
        self[1] & !ZERO_BIT
    }

    #[inline]
    fn end(self) -> u64 {
        self.offset() + self.length()
    }

    #[inline]
    fn change(self) -> Change {
        Change {
            extent: Extent::of_checked(self.offset(), self.length()),
            kind: self.kind(),
        }
    }
}

/// Fills all of `places`. Gives the hull of what it put there, or `None` if the extents are out of order or
/// not exactly as many as there are places.
fn fill(
    places: &mut [Packed],
    mut extents: impl Iterator<Item = Extent>,
    kind: Kind,
) -> Option<Option<Extent>> {
    let mut hull: Option<Extent> = None;
    for place in places {
        let extent = extents.next()?;
        let start = match hull {
            Some(hull) if extent.offset() <= hull.end() => return None,
            Some(hull) => hull.offset(),
            None => extent.offset(),
        };
        hull = Extent::from_range(start, extent.end());
        *place = Packed::new(extent, kind);
    }
    extents.next().is_none().then_some(hull)
}

/// Sorted, disjoint, coalesced changes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ChangeList {
    packed: Vec<Packed>,
}

impl fmt::Debug for ChangeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl ChangeList {
    /// The whole of a volume as data: what a full copy without knowledge of holes sends.
    pub fn whole(size_bytes: u64) -> Self {
        let mut builder = ChangeListBuilder::default();
        if let Some(extent) = Extent::new(0, size_bytes) {
            builder.push(extent, Kind::Data);
        }
        builder.finish()
    }

    /// A list of one kind from parts that follow each other, each with the number of its extents; each part
    /// is filled in by a thread of its own.
    ///
    /// For callers with millions: as long as each extent begins after the last one's end and the numbers
    /// are right, nothing is sorted or gone over again. Where that does not hold, the builder puts it right.
    pub fn from_ascending<I>(parts: &[(I, usize)], kind: Kind) -> Self
    where
        I: Iterator<Item = Extent> + Clone + Sync,
    {
        let total = parts.iter().map(|(_, count)| count).sum();
        let mut packed: Vec<Packed> = vec![[0; 2]; total];
        let mut rest = packed.as_mut_slice();
        let mut parts_and_places = Vec::with_capacity(parts.len());
        for (extents, count) in parts {
            let (places, after) = std::mem::take(&mut rest).split_at_mut(*count);
            rest = after;
            parts_and_places.push((extents, places));
        }
        let mut bounds = Vec::with_capacity(parts.len());
        thread::scope(|scope| {
            let last = parts_and_places.pop();
            let others: Vec<_> = parts_and_places
                .into_iter()
                .map(|(extents, places)| scope.spawn(|| fill(places, extents.clone(), kind)))
                .collect();
            let last = last.map(|(extents, places)| fill(places, extents.clone(), kind));
            bounds.extend(others.into_iter().map(|other| other.join().ok().flatten()));
            bounds.extend(last);
        });
        let in_order = bounds.iter().all(Option::is_some)
            && bounds
                .iter()
                .flatten()
                .flatten()
                .is_sorted_by(|one, next| one.end() < next.offset());
        if in_order {
            return Self { packed };
        }
        drop(packed);
        let mut builder = ChangeListBuilder::default();
        for extent in parts.iter().flat_map(|(extents, _)| extents.clone()) {
            builder.push(extent, kind);
        }
        builder.finish()
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.packed.len()
    }

    /// True when nothing changed.
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty()
    }

    /// The changes in ascending order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Change> + '_ {
        self.packed.iter().map(|p| p.change())
    }

    /// The change at `index` in ascending order.
    pub fn get(&self, index: usize) -> Option<Change> {
        self.packed.get(index).map(|p| p.change())
    }

    /// Total bytes of one kind.
    pub fn bytes(&self, kind: Kind) -> u64 {
        self.packed
            .iter()
            .filter(|p| p.kind() == kind)
            .map(|p| p.length())
            .sum()
    }

    /// Total bytes of both kinds.
    pub fn total_bytes(&self) -> u64 {
        self.packed.iter().map(|p| p.length()).sum()
    }

    /// Both lists in one; where they overlap, data wins.
    pub fn union(mut self, other: &Self) -> Self {
        if other.is_empty() {
            return self;
        }
        let mut builder = ChangeListBuilder {
            packed: std::mem::take(&mut self.packed),
        };
        for change in other.iter() {
            builder.push(change.extent, change.kind);
        }
        builder.finish()
    }

    /// The same extents, all of them as data.
    pub fn all_data(mut self) -> Self {
        for [_, length] in &mut self.packed {
            *length &= !ZERO_BIT;
        }
        ChangeListBuilder {
            packed: self.packed,
        }
        .finish()
    }

    /// The part below `size_bytes`.
    pub fn clip(mut self, size_bytes: u64) -> Self {
        while let Some(last) = self.packed.last_mut() {
            if last.offset() >= size_bytes {
                self.packed.pop();
                continue;
            }
            if last.end() > size_bytes {
                let clipped = Extent::of_checked(last.offset(), size_bytes - last.offset());
                *last = Packed::new(clipped, last.kind());
            }
            break;
        }
        self
    }

    /// The extents of a volume of `size_bytes` that are *not* in this list, in ascending order.
    pub fn unchanged(&self, size_bytes: u64) -> impl Iterator<Item = Extent> + '_ {
        let mut position = 0;
        let ends = std::iter::once((size_bytes, size_bytes));
        let changes = self
            .packed
            .iter()
            .map(|p| (p.offset(), p.end()))
            .chain(ends);
        changes.filter_map(move |(start, end)| {
            let gap = Extent::from_range(position, start.min(size_bytes));
            position = position.max(end);
            gap
        })
    }

    /// True when any byte of `extent` is in the list.
    pub fn touches(&self, extent: Extent) -> bool {
        let next = self.packed.partition_point(|p| p.end() <= extent.offset());
        self.packed
            .get(next)
            .is_some_and(|p| p.offset() < extent.end())
    }
}

impl FromIterator<Change> for ChangeList {
    fn from_iter<T: IntoIterator<Item = Change>>(changes: T) -> Self {
        let mut builder = ChangeListBuilder::default();
        for change in changes {
            builder.push(change.extent, change.kind);
        }
        builder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::builder::COMPACT_FROM;
    use super::*;
    use proptest::prelude::*;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent::new(offset, length).unwrap()
    }

    /// The model: one cell a byte; 1 is zero, 2 is data.
    fn paint(cells: &mut [u8], pushes: &[(u64, u64, bool)]) {
        for &(offset, length, is_data) in pushes {
            for cell in &mut cells[offset as usize..(offset + length) as usize] {
                *cell = (*cell).max(1 + u8::from(is_data));
            }
        }
    }

    fn build(pushes: &[(u64, u64, bool)]) -> ChangeList {
        let kind = |is_data| if is_data { Kind::Data } else { Kind::Zero };
        pushes
            .iter()
            .map(|&(o, l, d)| Change {
                extent: extent(o, l),
                kind: kind(d),
            })
            .collect()
    }

    fn cells_of(list: &ChangeList, size: usize) -> Vec<u8> {
        let mut cells = vec![0; size];
        for change in list.iter() {
            for cell in &mut cells[change.extent.offset() as usize..change.extent.end() as usize] {
                assert_eq!(*cell, 0, "disjoint");
                *cell = if change.kind == Kind::Data { 2 } else { 1 };
            }
        }
        cells
    }

    fn pushes() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
        prop::collection::vec((0u64..200, 1u64..40, any::<bool>()), 0..40)
    }

    proptest! {
        #[test]
        fn a_list_is_what_was_pushed(pushes in pushes()) {
            let mut model = vec![0; 256];
            paint(&mut model, &pushes);
            let list = build(&pushes);
            prop_assert_eq!(cells_of(&list, 256), model);
            let joined = list.packed.windows(2).all(|w| {
                w[0].end() < w[1].offset() || (w[0].end() == w[1].offset() && w[0].kind() != w[1].kind())
            });
            prop_assert!(joined, "sorted and coalesced: {:?}", list);
        }

        #[test]
        fn union_clip_unchanged_and_touches_follow_the_model(
            a in pushes(), b in pushes(), size in 0u64..256, at in 0u64..250, length in 1u64..6,
        ) {
            let mut model = vec![0; 256];
            paint(&mut model, &a);
            paint(&mut model, &b);
            let list = build(&a).union(&build(&b));
            prop_assert_eq!(cells_of(&list, 256), model.clone());
            let touched = model[at as usize..(at + length) as usize].iter().any(|c| *c > 0);
            prop_assert_eq!(list.touches(extent(at, length)), touched);
            let mut gaps = vec![0; 256];
            for gap in list.unchanged(size) {
                for cell in &mut gaps[gap.offset() as usize..gap.end() as usize] { *cell += 1; }
            }
            for (position, cell) in model.iter().enumerate() {
                let expected = u8::from(*cell == 0 && (position as u64) < size);
                prop_assert_eq!(gaps[position], expected, "at {}", position);
            }
            let all_data: Vec<u8> = model.iter().map(|cell| 2 * u8::from(*cell > 0)).collect();
            prop_assert_eq!(cells_of(&list.clone().all_data(), 256), all_data);
            model[size as usize..].fill(0);
            prop_assert_eq!(cells_of(&list.clip(size), 256), model);
        }
    }

    #[test]
    fn memory_follows_distinct_extents_not_pushes() {
        let mut builder = ChangeListBuilder::default();
        for round in 0..40u64 {
            for chunk in 0..10_000u64 {
                let scattered = chunk.wrapping_mul(7919).wrapping_add(round) % 10_000;
                builder.push(extent(scattered * 8192, 4096), Kind::Data);
            }
        }
        assert!(
            builder.packed.capacity() <= 2 * COMPACT_FROM,
            "{}",
            builder.packed.capacity()
        );
        assert_eq!(builder.finish().len(), 10_000);
    }

    #[test]
    fn parts_with_wrong_numbers_or_order_lose_nothing() {
        let of =
            |list: &'static [(u64, u64)]| list.iter().map(|(o, l)| Extent::new(*o, *l).unwrap());
        let list = |extents: &'static [(u64, u64)]| -> ChangeList {
            of(extents)
                .map(|extent| Change {
                    extent,
                    kind: Kind::Data,
                })
                .collect()
        };
        let all = list(&[(0, 4), (8, 4), (20, 4)]);
        let (low, high) = (of(&[(0, 4), (8, 4)]), of(&[(20, 4)]));
        for (few, many) in [(2, 1), (1, 1), (3, 1), (2, 0), (0, 0), (2, 2)] {
            let parts = [(low.clone(), few), (high.clone(), many)];
            assert_eq!(ChangeList::from_ascending(&parts, Kind::Data), all);
        }
        let parts = [(high.clone(), 1), (low.clone(), 2)];
        assert_eq!(ChangeList::from_ascending(&parts, Kind::Data), all);
        let parts = [(low, 2), (of(&[(12, 4)]), 1)];
        let joined = list(&[(0, 4), (8, 8)]);
        assert_eq!(ChangeList::from_ascending(&parts, Kind::Data), joined);
    }
}
