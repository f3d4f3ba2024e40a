//! Extents of a volume: which bytes, and whether they are data or zero.
//!
//! Guarantees: an extent is never empty and its end never passes 2^63, so ends can always be added up.

use std::fmt;

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

    /// For what was taken from extents that were checked.
    pub(crate) fn of_checked(offset: u64, length: u64) -> Self {
        debug_assert!(Self::new(offset, length).is_some(), "{offset}+{length}");
        Self { offset, length }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_is_never_empty_and_never_wraps() {
        assert_eq!(Extent::new(5, 0), None);
        assert_eq!(Extent::new(u64::MAX, 2), None);
        assert_eq!(Extent::new(MAX_OFFSET, 1), None);
        assert!(Extent::new(MAX_OFFSET - 1, 1).is_some());
        assert_eq!(Extent::from_range(9, 3), None);
    }
}
