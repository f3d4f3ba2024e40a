//! Extents of a volume and the change list: which bytes differ, and whether they are data or zero.
//!
//! Guarantees: a [`ChangeList`] is sorted, disjoint and coalesced; it holds 16 bytes for each extent;
//! building one never drops a range that was pushed (a list may be too long, never too short), and where
//! data and zero overlap, data wins, because reading the bytes is always right.

use std::fmt;
use std::thread;

/// A run of bytes of a volume. `length` is never 0 and `offset + length` never passes 2^63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    offset: u64,
    length: u64,
}

/// Offsets and lengths stay below this (the kernel's `loff_t`), so that ends can always be added up.
pub const MAX_OFFSET: u64 = i64::MAX as u64;

impl Extent {
    /// An extent, or `None` if it is empty or ends past [`MAX_OFFSET`].
    pub fn new(offset: u64, length: u64) -> Option<Self> {
        let end = offset.checked_add(length)?;
        (length > 0 && end <= MAX_OFFSET).then_some(Self { offset, length })
    }

    /// The extent from `start` up to, not including, `end`.
    pub fn from_range(start: u64, end: u64) -> Option<Self> {
        Self::new(start, end.checked_sub(start)?)
    }

    /// First byte.
    pub fn offset(self) -> u64 {
        self.offset
    }

    /// Number of bytes.
    pub fn length(self) -> u64 {
        self.length
    }

    /// The byte after the last one.
    pub fn end(self) -> u64 {
        self.offset + self.length
    }

    /// The bytes that both extents cover.
    pub fn intersect(self, other: Self) -> Option<Self> {
        Self::from_range(self.offset.max(other.offset), self.end().min(other.end()))
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.length)
    }
}

/// What a changed extent holds in the new state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes that have to be read.
    Data,
    /// Zero or unmapped: known without reading.
    Zero,
}

impl Kind {
    /// The word used in listings: `data` or `zero`.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Data => "data",
            Kind::Zero => "zero",
        }
    }
}

/// A changed extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// Where.
    pub extent: Extent,
    /// What is there now.
    pub kind: Kind,
}

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
        [extent.offset, extent.length | flag]
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
            extent: Extent {
                offset: self.offset(),
                length: self.length(),
            },
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
            Some(hull) if extent.offset <= hull.end() => return None,
            Some(hull) => hull.offset,
            None => extent.offset,
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

    /// The part below `size_bytes`.
    pub fn clip(mut self, size_bytes: u64) -> Self {
        while let Some(last) = self.packed.last_mut() {
            if last.offset() >= size_bytes {
                self.packed.pop();
                continue;
            }
            if last.end() > size_bytes {
                let clipped = Extent {
                    offset: last.offset(),
                    length: size_bytes - last.offset(),
                };
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
        let next = self.packed.partition_point(|p| p.end() <= extent.offset);
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

/// Collects extents in any order, with overlaps, and makes a [`ChangeList`] of them.
///
/// Neighbours that arrive in order are joined at once, and a full buffer is compacted before it grows,
/// so memory follows the number of distinct extents, not the number of pushes.
#[derive(Default)]
pub struct ChangeListBuilder {
    packed: Vec<Packed>,
}

/// Below this many entries growing is cheaper than compacting.
const COMPACT_FROM: usize = 1 << 16;

impl ChangeListBuilder {
    /// Adds one extent.
    pub fn push(&mut self, extent: Extent, kind: Kind) {
        let new = Packed::new(extent, kind);
        if let Some(last) = self.packed.last_mut()
            && last.end() == new.offset()
            && last.kind() == kind
        {
            let joined = Extent {
                offset: last.offset(),
                length: last.length() + extent.length,
            };
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
        ChangeList {
            packed: self.packed,
        }
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
            let joined = Extent {
                offset: last.offset(),
                length: last.length() + next.length(),
            };
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
                    *last = Packed::new(
                        Extent {
                            offset: last.offset(),
                            length,
                        },
                        kind,
                    );
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent::new(offset, length).unwrap()
    }

    #[test]
    fn an_extent_is_never_empty_and_never_wraps() {
        assert_eq!(Extent::new(5, 0), None);
        assert_eq!(Extent::new(u64::MAX, 2), None);
        assert_eq!(Extent::new(MAX_OFFSET, 1), None);
        assert!(Extent::new(MAX_OFFSET - 1, 1).is_some());
        assert_eq!(Extent::from_range(9, 3), None);
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
