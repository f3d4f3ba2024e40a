//! Which part of which frame is still there in the end.
//!
//! Pure. Guarantees: layers are laid from the newest to the oldest, and what a newer one covers nothing older shows
//! through; pieces are disjoint, in the order of the volume when asked for, and 32 bytes each: memory follows the number
//! of pieces, not the data in them.

use crate::delta::stored::StoredFrame;
use crate::extent::{Extent, Kind};

/// A part of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    offset: u64,
    length: u64,
    /// Delta offset of the frame's record.
    at: u64,
    /// Place of the delta in the chain.
    delta: u32,
    /// 0: zeroes, which come from nowhere.
    stored_length: u32,
}

impl Piece {
    /// Which bytes of the volume.
    pub fn extent(&self) -> Extent {
        Extent::of_checked(self.offset, self.length)
    }

    /// Data or zero.
    pub fn kind(&self) -> Kind {
        match self.stored_length {
            0 => Kind::Zero,
            _ => Kind::Data,
        }
    }

    /// The delta (its place in the chain), the delta offset of the frame's record, and the length of its payload.
    pub fn origin(&self) -> (usize, u64, u32) {
        (self.delta as usize, self.at, self.stored_length)
    }

    fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// What was laid so far.
#[derive(Debug)]
pub struct Overlay {
    pieces: Vec<Piece>,
    size_bytes: u64,
}

impl Overlay {
    /// An empty one; what is past `size_bytes` is left out.
    pub fn new(size_bytes: u64) -> Self {
        Self {
            pieces: Vec::new(),
            size_bytes,
        }
    }

    /// Begins the next older layer, that of the delta at this place in the chain.
    pub fn layer(&mut self, delta: u32) -> Layer<'_> {
        Layer {
            known: self.pieces.len(),
            next: 0,
            overlay: self,
            delta,
        }
    }

    /// From `start` on up to `end` there are zeroes, where nothing newer says otherwise.
    pub fn zero(&mut self, start: u64, end: u64) {
        if let Some(extent) = Extent::from_range(start, end) {
            self.layer(0).add(extent, 0, 0);
        }
    }

    /// The pieces in the order of the volume.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// True when any byte of `extent` is in a piece.
    pub fn touches(&self, extent: Extent) -> bool {
        let next = self
            .pieces
            .partition_point(|piece| piece.end() <= extent.offset());
        self.pieces
            .get(next)
            .is_some_and(|piece| piece.offset < extent.end())
    }
}

/// The layer that is being laid; its frames come in the order of the volume.
pub struct Layer<'a> {
    overlay: &'a mut Overlay,
    delta: u32,
    /// Pieces of newer layers.
    known: usize,
    /// The first of them that may lie behind what comes next.
    next: usize,
}

impl Layer<'_> {
    /// Lays a frame: what of it nothing newer covers.
    pub fn frame(&mut self, frame: &StoredFrame) {
        self.add(frame.extent, frame.at, frame.stored_length);
    }

    fn add(&mut self, extent: Extent, at: u64, stored_length: u32) {
        let end = extent.end().min(self.overlay.size_bytes);
        let mut position = extent.offset();
        while position < end {
            let newer = self.overlay.pieces[..self.known].get(self.next).copied();
            if newer.is_some_and(|newer| newer.end() <= position) {
                self.next += 1;
                continue;
            }
            let newer = newer.filter(|newer| newer.offset < end);
            let free_to = newer.map_or(end, |newer| newer.offset);
            if position < free_to {
                self.overlay.pieces.push(Piece {
                    offset: position,
                    length: free_to - position,
                    at,
                    delta: self.delta,
                    stored_length,
                });
            }
            position = newer.map_or(end, |newer| newer.end());
        }
    }
}

impl Drop for Layer<'_> {
    fn drop(&mut self) {
        if self.overlay.pieces.len() > self.known {
            self.overlay
                .pieces
                .sort_unstable_by_key(|piece| piece.offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 200;

    /// Extents in the order of the volume, data or zero.
    fn frames() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
        prop::collection::vec((0u64..20, 1u64..30, any::<bool>()), 0..12).prop_map(|gaps| {
            let mut end = 0;
            let mut frames = Vec::new();
            for (gap, length, data) in gaps {
                frames.push((end + gap, length, data));
                end += gap + length;
            }
            frames
        })
    }

    proptest! {
        #[test]
        fn the_newest_frame_wins_byte_by_byte(
            layers in prop::collection::vec(frames(), 0..6),
            size in 1..SIZE,
        ) {
            // Per byte: nothing, zero, or which delta and which frame.
            let mut model = vec![None; size as usize];
            let mut overlay = Overlay::new(size);
            for (delta, frames) in layers.iter().enumerate() {
                let mut layer = overlay.layer(delta as u32);
                for (number, &(offset, length, data)) in frames.iter().enumerate() {
                    let stored_length = u32::from(data);
                    layer.frame(&StoredFrame {
                        extent: Extent::new(offset, length).unwrap(),
                        kind: if data { Kind::Data } else { Kind::Zero },
                        at: number as u64,
                        stored_length,
                    });
                    for byte in model.iter_mut().take((offset + length) as usize).skip(offset as usize) {
                        byte.get_or_insert((delta, number as u64, stored_length));
                    }
                }
            }
            let mut found = vec![None; size as usize];
            let mut end = 0;
            for piece in overlay.pieces() {
                prop_assert!(piece.extent().offset() >= end);
                end = piece.extent().end();
                for byte in &mut found[piece.extent().offset() as usize..end as usize] {
                    *byte = Some(piece.origin());
                }
            }
            prop_assert_eq!(&found, &model);
            for (at, byte) in model.iter().enumerate() {
                prop_assert_eq!(overlay.touches(Extent::new(at as u64, 1).unwrap()), byte.is_some());
            }
        }
    }

    #[test]
    fn a_piece_is_small() {
        assert_eq!(size_of::<Piece>(), 32);
    }
}
