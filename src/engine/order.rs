//! Brings a version 3 stream into order, where order is needed: for an undo.
//!
//! Records of version 3 come in any order and later ones win. Saving old content while they arrive would
//! save some of it twice, and what was saved second would already be new. So the stream is first spooled to
//! the end, and then read back as sorted, disjoint pieces.
//!
//! Guarantees: the pieces have the same effect as the stream; memory is 24 bytes a record.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;

use crate::cancel::Cancel;
use crate::delta::proto3::Proto3Reader;
use crate::error::{Error, Result};
use crate::extent::Extent;

/// A spooled stream.
pub struct Ordered {
    spool: File,
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    offset: u64,
    length: u64,
    at: u64,
}

impl Ordered {
    /// Reads all of `stream`, called `what` in messages, into `spool`, an empty file.
    pub fn spool<R: Read>(
        mut stream: Proto3Reader<R>,
        what: &str,
        spool: File,
        cancel: &Cancel,
    ) -> Result<Self> {
        let failed = |error| Error::io("cannot spool the stream", error);
        let mut out = BufWriter::with_capacity(1 << 20, &spool);
        let (mut pieces, mut at, mut buffer) = (Vec::new(), 0, Vec::new());
        loop {
            cancel.check()?;
            let piece = stream
                .next_piece(&mut buffer)
                .map_err(|source| Error::Damaged {
                    what: what.to_owned(),
                    source,
                })?;
            let Some(extent) = piece else { break };
            out.write_all(&buffer).map_err(failed)?;
            pieces.push(Piece {
                offset: extent.offset(),
                length: extent.length(),
                at,
            });
            at += extent.length();
        }
        out.flush().map_err(failed)?;
        drop(out);
        Ok(Self {
            spool,
            pieces: last_wins(pieces),
        })
    }

    /// The end of the last byte written, in volume offsets.
    pub fn end(&self) -> u64 {
        self.pieces
            .last()
            .map_or(0, |piece| piece.offset + piece.length)
    }

    /// The pieces in ascending order, each at most 1 MiB, each given to `put` with its bytes.
    pub fn for_each(&self, mut put: impl FnMut(Extent, &[u8]) -> Result<()>) -> Result<()> {
        let mut buffer = Vec::new();
        for piece in &self.pieces {
            let Some(extent) = Extent::new(piece.offset, piece.length) else {
                continue;
            };
            buffer.resize(usize::try_from(piece.length).unwrap_or(0), 0);
            self.spool
                .read_exact_at(&mut buffer, piece.at)
                .map_err(|error| Error::io("cannot read the spooled stream", error))?;
            put(extent, &buffer)?;
        }
        Ok(())
    }
}

/// Sorted and disjoint: of each byte only the piece that came last is kept.
fn last_wins(arrived: Vec<Piece>) -> Vec<Piece> {
    let in_order = arrived
        .windows(2)
        .all(|w| w[0].offset + w[0].length <= w[1].offset);
    if in_order {
        return arrived;
    }
    let mut kept: std::collections::BTreeMap<u64, Piece> = std::collections::BTreeMap::new();
    for new in arrived {
        let end = new.offset + new.length;
        let mut overlapped: Vec<Piece> = Vec::new();
        for (_, old) in kept.range(..end).rev() {
            if old.offset + old.length <= new.offset {
                break;
            }
            overlapped.push(*old);
        }
        for old in overlapped {
            kept.remove(&old.offset);
            if old.offset < new.offset {
                kept.insert(
                    old.offset,
                    Piece {
                        length: new.offset - old.offset,
                        ..old
                    },
                );
            }
            let old_end = old.offset + old.length;
            if old_end > end {
                let cut = end - old.offset;
                kept.insert(
                    end,
                    Piece {
                        offset: end,
                        length: old_end - end,
                        at: old.at + cut,
                    },
                );
            }
        }
        kept.insert(new.offset, new);
    }
    kept.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::proto3::{FirstLine, Proto3Writer, read_first_line};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn order_keeps_the_effect(
            records in prop::collection::vec((0u64..5000, 0usize..900, any::<u8>()), 0..40),
        ) {
            let mut writer = Proto3Writer::new(Vec::new()).unwrap();
            let mut model = vec![0u8; 6000];
            for (offset, length, byte) in &records {
                writer.record(*offset, &vec![*byte; *length]).unwrap();
                model[*offset as usize..*offset as usize + length].fill(*byte);
            }
            let bytes = writer.finish().unwrap();
            let mut input = std::io::BufReader::new(&bytes[..]);
            prop_assert_eq!(read_first_line(&mut input).unwrap(), FirstLine::Version3);
            let stream = Proto3Reader::after_first_line(input);
            let spool = tempfile::tempfile().unwrap();
            let ordered = Ordered::spool(stream, "test", spool, &Cancel::new()).unwrap();
            let (mut found, mut position) = (vec![0u8; 6000], 0);
            ordered.for_each(|extent, data| {
                assert!(extent.offset() >= position);
                position = extent.end();
                found[extent.offset() as usize..extent.end() as usize].copy_from_slice(data);
                Ok(())
            }).unwrap();
            prop_assert_eq!(found, model);
            prop_assert_eq!(position, ordered.end());
        }
    }
}
