//! A view as an exception store: what the deltas have over their base, in chunks, as the kernel reads it.
//!
//! Guarantees: a chunk that a delta touches anywhere, or that is past what the base has of the state, is in the store whole;
//! every other chunk is in the base what it is in the state. What is zero is a hole. Memory is that of the view and of one
//! chunk.

use super::state::View;
use crate::cancel::Cancel;
use crate::changes::cow::Layout;
use crate::changes::cow_build::StoreBuilder;
use crate::error::{Error, Result};
use crate::extent::{Change, Extent, Kind};
use crate::monitor::Monitor;
use crate::volume::{ReadAt, WriteAt};

/// Looked at in parts of this size, which all chunks fit into.
const PART_BYTES: u64 = 4 << 20;

/// Writes the store into `target`, which is empty, and gives its size.
pub fn write<V: ReadAt>(
    view: &View<'_, V>,
    (target, name): (&dyn WriteAt, &str),
    layout: Layout,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<u64> {
    let failed = |error| Error::io(format!("cannot write {name}"), error);
    let chunk_bytes = layout.chunk_bytes();
    let size_bytes = view.size_bytes();
    let mut builder = StoreBuilder::new(target, layout);
    let mut buffer = vec![0; usize::try_from(chunk_bytes).unwrap_or(0)];
    monitor.plan(size_bytes);
    let mut at = 0;
    while at < size_bytes {
        let length = (size_bytes - at).min(PART_BYTES);
        for chunk in chunks(extents(&view.over_base(at, length)?), chunk_bytes) {
            cancel.check()?;
            let offset = chunk.saturating_mul(chunk_bytes);
            let left = size_bytes.saturating_sub(offset).min(chunk_bytes);
            let part = buffer.get_mut(..usize::try_from(left).unwrap_or(0));
            let part = part.unwrap_or_default();
            view.read(part, offset)?;
            let is_zero = part.iter().all(|byte| *byte == 0);
            builder
                .push(chunk, if is_zero { &[] } else { part })
                .map_err(failed)?;
        }
        monitor.advance(length);
        at += length;
    }
    builder.finish().map_err(failed)
}

/// What the file can take on its disk: data that is zero all the same is not known before it is read.
pub fn most_bytes<V: ReadAt>(view: &View<'_, V>, layout: Layout, cancel: &Cancel) -> Result<u64> {
    let chunk_bytes = layout.chunk_bytes();
    let size_bytes = view.size_bytes();
    let (mut all, mut with_data, mut at) = (0_u64, 0_u64, 0);
    while at < size_bytes {
        cancel.check()?;
        let length = (size_bytes - at).min(PART_BYTES);
        let changes = view.over_base(at, length)?;
        let data = changes.iter().filter(|change| change.kind == Kind::Data);
        // Of a chunk that is zero in part, the rest is written.
        let edges = |change: &Change| {
            let begins_inside = !change.extent.offset().is_multiple_of(chunk_bytes);
            let end = change.extent.end();
            let ends_inside = !end.is_multiple_of(chunk_bytes) && end != size_bytes;
            u64::from(begins_inside) + u64::from(ends_inside)
        };
        let zero = changes.iter().filter(|change| change.kind == Kind::Zero);
        with_data += zero.map(edges).sum::<u64>();
        all += chunks(extents(&changes), chunk_bytes).count() as u64;
        with_data += chunks(data.map(|change| change.extent), chunk_bytes).count() as u64;
        at += length;
    }
    // Header and table are written whole.
    let areas = all / layout.entries_per_area() + 1;
    let written = with_data.saturating_add(areas).saturating_add(1);
    Ok(written.saturating_mul(chunk_bytes))
}

fn extents(changes: &[Change]) -> impl Iterator<Item = Extent> + '_ {
    changes.iter().map(|change| change.extent)
}

/// The chunks that extents touch, which are in order; each once.
fn chunks(extents: impl Iterator<Item = Extent>, chunk_bytes: u64) -> impl Iterator<Item = u64> {
    let mut next = 0;
    extents.flat_map(move |extent| {
        let first = (extent.offset() / chunk_bytes).max(next);
        next = extent.end().div_ceil(chunk_bytes).max(next);
        first..next
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_that_is_touched_is_there_once() {
        let touched = |extents: &[(u64, u64)]| -> Vec<u64> {
            let extents = extents
                .iter()
                .map(|(offset, length)| Extent::new(*offset, *length).unwrap());
            chunks(extents, 10).collect()
        };
        assert_eq!(touched(&[(0, 10)]), [0]);
        assert_eq!(touched(&[(9, 2), (12, 1), (29, 1), (30, 1)]), [0, 1, 2, 3]);
        assert_eq!(touched(&[(5, 20), (40, 30)]), [0, 1, 2, 4, 5, 6]);
        assert_eq!(touched(&[]), [0; 0]);
    }
}
