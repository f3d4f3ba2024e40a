//! One change in 16 bytes.
//!
//! Guarantees: what comes out is what was put in.

use crate::extent::{Change, Extent, Kind};

/// Offset, then length with the kind in its top bit, which [`MAX_OFFSET`](crate::extent::MAX_OFFSET) keeps
/// free.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    offset: u64,
    length_and_kind: u64,
}

const ZERO_BIT: u64 = 1 << 63;

impl Packed {
    #[inline]
    pub(super) fn new(extent: Extent, kind: Kind) -> Self {
        let flag = if kind == Kind::Zero { ZERO_BIT } else { 0 };
        Self {
            offset: extent.offset(),
            length_and_kind: extent.length() | flag,
        }
    }

    #[inline]
    pub(super) fn offset(self) -> u64 {
        self.offset
    }

    #[inline]
    pub(super) fn kind(self) -> Kind {
        if self.length_and_kind & ZERO_BIT == 0 {
            Kind::Data
        } else {
            Kind::Zero
        }
    }

    #[inline]
    pub(super) fn length(self) -> u64 {
        self.length_and_kind & !ZERO_BIT
    }

    #[inline]
    pub(super) fn end(self) -> u64 {
        self.offset + self.length()
    }

    #[inline]
    pub(super) fn change(self) -> Change {
        Change {
            extent: Extent::of_checked(self.offset, self.length()),
            kind: self.kind(),
        }
    }
}
