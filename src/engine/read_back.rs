//! Does a volume hold what a delta has put on it?
//!
//! Guarantees: every byte of every frame is held against what the volume reads now, zeroes too; the delta is
//! proved whole and sound once more. What is past the end of a smaller volume was left out and is not looked at.

use std::io::Read;

use super::digester::{Side, buffer};
use crate::blocks::{PIECE_BYTES, cut, differing_runs, usize_of};
use crate::cancel::Cancel;
use crate::change_list::{ChangeList, ChangeListBuilder};
use crate::delta::reader::DeltaReader;
use crate::error::{Error, Result};
use crate::extent::{Extent, Kind};
use crate::monitor::Monitor;

/// The blocks in which `side` is not what the delta in `input`, called `what` in messages, says. An undo that was cut
/// `ends_at` the volume offset up to which it was applied: what follows there is not looked at.
pub fn read_back(
    input: impl Read,
    what: &str,
    ends_at: Option<u64>,
    side: Side<'_>,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<ChangeList> {
    let damaged = |source| Error::Damaged {
        what: what.to_owned(),
        source,
    };
    let mut reader = DeltaReader::new(input).map_err(damaged)?;
    let planned = &reader.header().planned;
    monitor.plan(planned.data_bytes.saturating_add(planned.zero_bytes));
    let (mut data, mut room) = (Vec::new(), buffer());
    let zeroes = vec![0; usize_of(PIECE_BYTES)];
    let mut differing = ChangeListBuilder::default();
    let mut end = 0;
    while ends_at.is_none_or(|ends_at| end < ends_at)
        && let Some(frame) = reader.next_frame().map_err(damaged)?
    {
        end = frame.extent.end();
        let start = frame.extent.offset();
        if frame.kind == Kind::Data {
            data.resize(usize_of(frame.extent.length()), 0);
            reader.payload(&mut data).map_err(damaged)?;
        }
        let there = frame.extent.end().min(side.volume.size_bytes());
        let there = Extent::from_range(start, there);
        for piece in there.into_iter().flat_map(|there| cut(there, PIECE_BYTES)) {
            cancel.check()?;
            let expected = match frame.kind {
                Kind::Data => data.get(usize_of(piece.offset() - start)..),
                Kind::Zero => Some(zeroes.as_slice()),
            };
            let expected = expected.and_then(|bytes| bytes.get(..usize_of(piece.length())));
            let found = side.read(piece, &mut room)?;
            let mut runs = Vec::new();
            differing_runs(piece, expected.unwrap_or_default(), found, &mut runs);
            for run in runs {
                differing.push(run, Kind::Data);
            }
        }
        monitor.advance(frame.extent.length());
    }
    Ok(differing.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::codec::Codec;
    use crate::delta::header::tests::header;
    use crate::delta::samples::Samples;
    use crate::engine::FrameSink;
    use crate::engine::deliver::DeltaSink;
    use crate::monitor::Silent;
    use crate::volume::memory::MemoryVolume;

    #[test]
    fn every_changed_byte_of_data_and_zeroes_is_found_and_no_other() {
        let extent = |offset, length| Extent::new(offset, length).unwrap();
        let data = vec![7; 10_000];
        let mut delta = Vec::new();
        let mut sink =
            DeltaSink::new(&mut delta, &header(3 << 20), &Samples::default(), "delta").unwrap();
        let crc = crc32c::crc32c(&data);
        sink.data(extent(5000, 10_000), Codec::None, &data, crc)
            .unwrap();
        sink.zero(extent(20_000, 2 << 20)).unwrap();
        sink.finish().unwrap();
        let size = 3 << 20;
        let mut right = vec![9; size];
        right[5000..15_000].fill(7);
        right[20_000..20_000 + (2 << 20)].fill(0);
        let check = |bytes: Vec<u8>| {
            let volume = MemoryVolume::new(bytes);
            let side = Side {
                volume: &volume,
                name: "v",
            };
            read_back(&delta[..], "delta", None, side, &Cancel::new(), &Silent).unwrap()
        };
        assert!(check(right.clone()).is_empty());
        assert!(
            check(right[..6000].to_vec()).is_empty(),
            "what is not there was left out"
        );
        for (at, found) in [
            (4999, None),
            (5000, Some((5000, 3192))),
            (14_999, Some((12_288, 2712))),
            (15_000, None),
            (20_000, Some((20_000, 480))),
            (20_000 + (2 << 20) - 1, Some((2_113_536, 3616))),
            (20_000 + (2 << 20), None),
        ] {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            let list = check(wrong);
            let found = found.map(|(offset, length)| extent(offset, length));
            assert_eq!(list.iter().map(|c| c.extent).next(), found, "at {at}");
            assert_eq!(list.len(), usize::from(found.is_some()));
        }
    }
}
