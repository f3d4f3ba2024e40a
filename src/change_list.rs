//! The change list: which extents differ between two states of a volume.
//!
//! Guarantees: a [`ChangeList`] is sorted, disjoint and coalesced; it holds at most 16 bytes for each extent;
//! building one never drops a range that was pushed (a list may be too long, never too short), and where
//! data and zero overlap, data wins, because reading the bytes is always right.

use std::fmt;
use std::slice;

pub use builder::ChangeListBuilder;

use crate::extent::{Change, Extent, Kind};
use chunk_bits::{ChunkBits, Extents};
use packed::Packed;
use unchanged::{Stretch, gaps};

mod builder;
mod chunk_bits;
mod packed;
mod rest;
mod unchanged;

#[cfg(test)]
mod tests;

/// Sorted, disjoint, coalesced changes.
#[derive(Clone, Default)]
pub struct ChangeList {
    form: Form,
    extents: usize,
    data_bytes: u64,
    zero_bytes: u64,
}

/// Millions of scattered chunks are a bitmap: it is there when an exception table has been read, takes a
/// twentieth of the memory, and is walked through as fast. It is used where it is smaller than the extents
/// are, so walking through it takes time linear in their number, too.
#[derive(Clone)]
enum Form {
    Packed(Vec<Packed>),
    Chunks(ChunkBits),
}

impl Default for Form {
    fn default() -> Self {
        Self::Packed(Vec::new())
    }
}

impl fmt::Debug for ChangeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Lists are equal if they name the same extents, however they are held.
impl PartialEq for ChangeList {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for ChangeList {}

impl ChangeList {
    /// The whole of a volume as data: what a full copy without knowledge of holes sends.
    pub fn whole(size_bytes: u64) -> Self {
        let mut builder = ChangeListBuilder::default();
        if let Some(extent) = Extent::new(0, size_bytes) {
            builder.push(extent, Kind::Data);
        }
        builder.finish()
    }

    /// Chunks of `chunk_bytes` as data, one bit for each from the lowest bit of the first word on.
    pub(crate) fn from_chunks(chunk_bytes: u64, words: Vec<u64>) -> Self {
        Self::of_chunks(ChunkBits::new(chunk_bytes, words))
    }

    fn of_chunks(chunks: ChunkBits) -> Self {
        let extents = chunks.count_extents();
        if chunks.memory_bytes() > extents * size_of::<Packed>() {
            return Self::of_packed(pack(&chunks, extents));
        }
        Self {
            extents,
            data_bytes: chunks.bytes(),
            zero_bytes: 0,
            form: Form::Chunks(chunks),
        }
    }

    fn of_packed(packed: Vec<Packed>) -> Self {
        let (mut data_bytes, mut zero_bytes) = (0, 0);
        for p in &packed {
            match p.kind() {
                Kind::Data => data_bytes += p.length(),
                Kind::Zero => zero_bytes += p.length(),
            }
        }
        Self {
            extents: packed.len(),
            data_bytes,
            zero_bytes,
            form: Form::Packed(packed),
        }
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.extents
    }

    /// True when nothing changed.
    pub fn is_empty(&self) -> bool {
        self.extents == 0
    }

    /// The changes in ascending order.
    pub fn iter(&self) -> Changes<'_> {
        Changes(match &self.form {
            Form::Packed(packed) => Walk::Packed(packed.iter()),
            Form::Chunks(chunks) => Walk::Chunks(chunks.extents()),
        })
    }

    /// Total bytes of one kind.
    pub fn bytes(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Data => self.data_bytes,
            Kind::Zero => self.zero_bytes,
        }
    }

    /// Total bytes of both kinds.
    pub fn total_bytes(&self) -> u64 {
        self.data_bytes + self.zero_bytes
    }

    /// Bytes of both kinds that lie in `start..end`.
    pub fn bytes_between(&self, start: u64, end: u64) -> u64 {
        match &self.form {
            Form::Packed(packed) => packed[packed.partition_point(|p| p.end() <= start)..]
                .iter()
                .take_while(|p| p.offset() < end)
                .map(|p| p.end().min(end) - p.offset().max(start))
                .sum(),
            Form::Chunks(chunks) => chunks.bytes_between(start, end),
        }
    }

    /// True when any byte of `extent` is in the list.
    pub fn touches(&self, extent: Extent) -> bool {
        match &self.form {
            Form::Packed(packed) => {
                let next = packed.partition_point(|p| p.end() <= extent.offset());
                packed.get(next).is_some_and(|p| p.offset() < extent.end())
            }
            Form::Chunks(chunks) => chunks.bytes_between(extent.offset(), extent.end()) > 0,
        }
    }

    /// Both lists in one; where they overlap, data wins.
    pub fn union(self, other: Self) -> Self {
        if other.is_empty() {
            return self;
        }
        let (one, other) = match (&self.form, &other.form) {
            (Form::Packed(_), Form::Chunks(_)) => (other, self),
            _ => (self, other),
        };
        let packed = match one.form {
            Form::Packed(packed) => packed,
            Form::Chunks(mut chunks) => {
                if chunks.add(&other) {
                    return Self::of_chunks(chunks);
                }
                pack(&chunks, one.extents)
            }
        };
        let mut builder = ChangeListBuilder { packed };
        for change in other.iter() {
            builder.push(change.extent, change.kind);
        }
        builder.finish()
    }

    /// The same extents, all of them as data.
    pub fn all_data(self) -> Self {
        if self.zero_bytes == 0 {
            return self;
        }
        let data = |change: Change| Change {
            kind: Kind::Data,
            ..change
        };
        self.iter().map(data).collect()
    }

    /// The part below `size_bytes`.
    pub fn clip(self, size_bytes: u64) -> Self {
        match self.form {
            Form::Packed(mut packed) => {
                if packed.last().is_none_or(|last| last.end() <= size_bytes) {
                    let form = Form::Packed(packed);
                    return Self { form, ..self };
                }
                packed.truncate(packed.partition_point(|p| p.offset() < size_bytes));
                if let Some(last) = packed.last_mut()
                    && last.end() > size_bytes
                {
                    let clipped = Extent::of_checked(last.offset(), size_bytes - last.offset());
                    *last = Packed::new(clipped, last.kind());
                }
                Self::of_packed(packed)
            }
            Form::Chunks(mut chunks) => {
                if chunks.clip(size_bytes) {
                    return Self::of_chunks(chunks);
                }
                let form = Form::Chunks(chunks);
                Self { form, ..self }
            }
        }
    }

    /// The extents of a volume of `size_bytes` that are *not* in this list, in ascending order.
    pub fn unchanged(&self, size_bytes: u64) -> impl Iterator<Item = Extent> + '_ {
        gaps(self.iter().map(|change| change.extent), 0, size_bytes)
    }

    /// Offsets of whole blocks that are not in this list, at even distances, counted as if all that is not
    /// in it were one piece: as many as there are, but no more than `most`.
    pub fn unchanged_blocks(&self, size_bytes: u64, block_bytes: u64, most: u64) -> Vec<u64> {
        match &self.form {
            Form::Packed(_) => unchanged::spread(most, || {
                self.unchanged(size_bytes)
                    .map(|gap| Stretch::of_gap(gap, block_bytes))
            }),
            Form::Chunks(chunks) => {
                unchanged::spread(most, || chunks.unchanged(size_bytes, block_bytes))
            }
        }
    }
}

fn pack(chunks: &ChunkBits, extents: usize) -> Vec<Packed> {
    let mut packed = Vec::with_capacity(extents);
    let data = |extent| Packed::new(extent, Kind::Data);
    packed.extend(chunks.extents().map(data));
    packed
}

/// The changes of a list, in ascending order.
#[derive(Clone)]
pub struct Changes<'a>(Walk<'a>);

#[derive(Clone)]
enum Walk<'a> {
    Packed(slice::Iter<'a, Packed>),
    Chunks(Extents<'a>),
}

fn data(extent: Extent) -> Change {
    Change {
        extent,
        kind: Kind::Data,
    }
}

impl Iterator for Changes<'_> {
    type Item = Change;

    #[inline]
    fn next(&mut self) -> Option<Change> {
        match &mut self.0 {
            Walk::Packed(packed) => packed.next().map(|p| p.change()),
            Walk::Chunks(extents) => extents.next().map(data),
        }
    }

    /// Without looking at what is left out.
    fn nth(&mut self, n: usize) -> Option<Change> {
        match &mut self.0 {
            Walk::Packed(packed) => packed.nth(n).map(|p| p.change()),
            Walk::Chunks(extents) => extents.nth(n).map(data),
        }
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
