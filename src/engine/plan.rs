//! How a change list is read: which pieces in one go, and which frames come out of each.
//!
//! Pure. Guarantees: the frames of all steps together are exactly the change list, in order; a data frame
//! never crosses a multiple of 1 MiB; a read is at most 1 MiB.

use crate::change_list::{ChangeList, Changes};
use crate::delta::MAX_FRAME_BYTES;
use crate::extent::{Change, Extent, Kind};

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read all of `read`, then cut `frames` out of it.
    Read {
        /// What to read in one go: at most 1 MiB.
        read: Extent,
        /// The changed extents in it, ascending.
        frames: Vec<Extent>,
    },
    /// Known to be zero; nothing to read.
    Zero(Extent),
}

/// The steps for a change list. Cheap to make again and to walk through.
///
/// Changed extents that are at most `max_gap_bytes` apart are read together: one larger read costs less than
/// two small ones and a wait, and the bytes between are thrown away.
pub fn steps(changes: &ChangeList, max_gap_bytes: u64) -> impl Iterator<Item = Step> + '_ {
    Steps {
        changes: changes.iter(),
        next: None,
        max_gap_bytes,
        rest: None,
    }
}

struct Steps<'a> {
    changes: Changes<'a>,
    /// One that was looked at and left for later.
    next: Option<Change>,
    max_gap_bytes: u64,
    /// What is left of a data extent that was cut.
    rest: Option<Extent>,
}

impl Steps<'_> {
    fn next_change(&mut self) -> Option<Change> {
        self.next.take().or_else(|| self.changes.next())
    }

    /// The next frame-sized piece of data, if the next change is data.
    fn next_piece(&mut self) -> Option<Extent> {
        let extent = match self.rest.take() {
            Some(rest) => rest,
            None => match self.next_change()? {
                Change {
                    extent,
                    kind: Kind::Data,
                } => extent,
                zero => {
                    self.next = Some(zero);
                    return None;
                }
            },
        };
        let boundary = (extent.offset() / MAX_FRAME_BYTES + 1) * MAX_FRAME_BYTES;
        self.rest = Extent::from_range(boundary, extent.end());
        Extent::from_range(extent.offset(), extent.end().min(boundary))
    }

    fn put_back(&mut self, piece: Extent) {
        let end = self.rest.map_or(piece.end(), Extent::end);
        self.rest = Extent::from_range(piece.offset(), end);
    }
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let Some(first) = self.next_piece() else {
            return self.next_change().map(|change| Step::Zero(change.extent));
        };
        let mut frames = vec![first];
        let (start, mut end) = (first.offset(), first.end());
        while let Some(piece) = self.next_piece() {
            if piece.offset() - end > self.max_gap_bytes || piece.end() - start > MAX_FRAME_BYTES {
                self.put_back(piece);
                break;
            }
            // Two pieces of one extent, cut at a boundary, fit together here only if both are small.
            end = piece.end();
            frames.push(piece);
        }
        let read = Extent::from_range(start, end)?;
        Some(Step::Read { read, frames })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change_list::ChangeListBuilder;
    use proptest::prelude::*;

    const GAP: u64 = 16 << 10;

    proptest! {
        #[test]
        fn steps_are_exactly_the_list(
            pushes in prop::collection::vec(
                (0u64..8 << 20, 1u64..3 << 20, any::<bool>(), any::<bool>()), 0..20),
        ) {
            let mut builder = ChangeListBuilder::default();
            for (offset, length, zero, small) in pushes {
                let length = if small { length % 5000 + 1 } else { length };
                let kind = if zero { Kind::Zero } else { Kind::Data };
                builder.push(Extent::new(offset, length).unwrap(), kind);
            }
            let list = builder.finish();
            let mut rebuilt = ChangeListBuilder::default();
            let mut position = 0;
            for step in steps(&list, GAP) {
                let (frames, kind) = match step {
                    Step::Zero(extent) => (vec![extent], Kind::Zero),
                    Step::Read { read, frames } => {
                        prop_assert!(read.length() <= MAX_FRAME_BYTES);
                        prop_assert_eq!(read.offset(), frames[0].offset());
                        prop_assert_eq!(read.end(), frames[frames.len() - 1].end());
                        for frame in &frames {
                            let last = frame.end() - 1;
                            prop_assert_eq!(frame.offset() / MAX_FRAME_BYTES, last / MAX_FRAME_BYTES);
                        }
                        (frames, Kind::Data)
                    }
                };
                for frame in frames {
                    prop_assert!(frame.offset() >= position);
                    position = frame.end();
                    rebuilt.push(frame, kind);
                }
            }
            prop_assert_eq!(rebuilt.finish(), list);
        }
    }

    #[test]
    fn near_extents_share_a_read_and_far_ones_do_not() {
        let list: ChangeList = [(0, 4096), (8192, 4096), (100_000, 4096)]
            .map(|(o, l)| Change {
                extent: Extent::new(o, l).unwrap(),
                kind: Kind::Data,
            })
            .into_iter()
            .collect();
        let all: Vec<Step> = steps(&list, GAP).collect();
        assert_eq!(all.len(), 2);
        let Step::Read { read, frames } = &all[0] else {
            panic!()
        };
        assert_eq!((read.length(), frames.len()), (12288, 2));
    }
}
