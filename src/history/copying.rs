//! Writes the pieces that survive of a chain, each from the frame that holds it.
//!
//! Guarantees: the checksum of a frame is compared when it is read, and what cannot be decompressed gets into no result.
//! Frames that survive whole are copied as they stand; what has to be cut is stored as it was. No buffer is larger
//! than a frame.

use std::io::{self, Write};

use super::combine::{Input, Options, damaged};
use super::overlay::Piece;
use crate::delta::FormatError;
use crate::delta::codec::{Codec, Compression, Compressor};
use crate::delta::record::RecordHeader;
use crate::delta::trailer::Counts;
use crate::delta::writer::DeltaWriter;
use crate::error::{Error, Result};
use crate::extent::{Extent, Kind};
use crate::volume::ReadAt;

/// Frames that are kept decompressed: where newer pieces lie in an older frame, it is asked for again and again.
const KEPT_FRAMES: usize = 8;

/// A frame that was decompressed.
struct Kept {
    delta: usize,
    at: u64,
    record: RecordHeader,
    extent: Extent,
    data: Vec<u8>,
}

/// Writes pieces, which come in ascending order.
pub(super) struct Copying<'a, V, W: Write> {
    chain: &'a [&'a Input<V>],
    options: &'a Options<'a>,
    name: &'a str,
    writer: DeltaWriter<W>,
    /// Zeroes that may go on in the next piece.
    zeroes: Option<Extent>,
    stored: Vec<u8>,
    packed: Vec<u8>,
    /// The one that was used last is the last.
    kept: Vec<Kept>,
    compressors: Vec<(Compression, Compressor)>,
    copied_frames: u64,
    made_frames: u64,
}

/// What was written.
pub(super) struct Copied {
    pub(super) counts: Counts,
    /// Data frames that were copied as they stood.
    pub(super) copied_frames: u64,
    /// Data frames that were cut or compressed anew.
    pub(super) made_frames: u64,
}

impl<'a, V: ReadAt, W: Write> Copying<'a, V, W> {
    /// Copies from `chain` to `writer`, which is called `name`.
    pub(super) fn new(
        chain: &'a [&'a Input<V>],
        options: &'a Options<'a>,
        name: &'a str,
        writer: DeltaWriter<W>,
    ) -> Self {
        Self {
            chain,
            options,
            name,
            writer,
            zeroes: None,
            stored: Vec::new(),
            packed: Vec::new(),
            kept: Vec::new(),
            compressors: Vec::new(),
            copied_frames: 0,
            made_frames: 0,
        }
    }

    /// Writes what is left, and the end.
    pub(super) fn finish(mut self) -> Result<Copied> {
        self.put_zeroes()?;
        let name = self.name;
        let (counts, _) = self
            .writer
            .finish()
            .map_err(|error| Error::io(format!("cannot write {name}"), error))?;
        Ok(Copied {
            counts,
            copied_frames: self.copied_frames,
            made_frames: self.made_frames,
        })
    }

    /// Writes one more.
    pub(super) fn piece(&mut self, piece: &Piece) -> Result<()> {
        let extent = piece.extent();
        if piece.kind() == Kind::Zero {
            match self.zeroes.filter(|run| run.end() == extent.offset()) {
                Some(run) => self.zeroes = Extent::from_range(run.offset(), extent.end()),
                None => {
                    self.put_zeroes()?;
                    self.zeroes = Some(extent);
                }
            }
            return Ok(());
        }
        self.put_zeroes()?;
        let (delta, at, stored_length) = piece.origin();
        let known = self
            .kept
            .iter()
            .position(|kept| (kept.delta, kept.at) == (delta, at));
        let kept = match known {
            Some(known) => self.kept.remove(known),
            None => self.read(delta, at, stored_length)?,
        };
        if kept.extent == extent && known.is_none() && self.options.compression.is_none() {
            // It was read just now, and nothing else of it is asked for.
            self.copied_frames += 1;
            let (codec, crc) = (kept.record.codec, kept.record.payload_crc);
            let stored = match codec {
                Codec::None => &kept.data,
                Codec::Lz4 | Codec::Zstd => &self.stored,
            };
            let written = self.writer.data_with_crc(extent, codec, stored, crc);
            self.keep(Kept {
                at: u64::MAX,
                ..kept
            });
            return written.map_err(|error| self.failed(error));
        }
        self.cut(&kept, extent)?;
        self.keep(kept);
        Ok(())
    }

    fn put_zeroes(&mut self) -> Result<()> {
        match self.zeroes.take() {
            Some(run) => self.writer.zero(run).map_err(|error| self.failed(error)),
            None => Ok(()),
        }
    }

    /// Reads and decompresses a frame; the payload of one that is compressed is then in `stored`. What cannot be decompressed must not get into
    /// the result, where it would be found in the middle of an apply.
    fn read(&mut self, delta: usize, at: u64, stored_length: u32) -> Result<Kept> {
        let Some(input) = self.chain.get(delta) else {
            let error = io::ErrorKind::NotFound.into();
            return Err(Error::io("cannot find a delta of the chain", error));
        };
        let mut data = if self.kept.len() < KEPT_FRAMES {
            Vec::new()
        } else {
            self.kept.remove(0).data
        };
        let (record, extent) = input
            .delta
            .frame(at, stored_length, &mut self.stored, &mut data)
            .map_err(damaged(input))?;
        Ok(Kept {
            delta,
            at,
            record,
            extent,
            data,
        })
    }

    fn keep(&mut self, kept: Kept) {
        // What is not needed again gives its room to the next one.
        if kept.at == u64::MAX {
            self.kept.insert(0, kept);
        } else {
            self.kept.push(kept);
        }
        if self.kept.len() > KEPT_FRAMES {
            self.kept.remove(0);
        }
    }

    /// Writes the part `extent` of a frame.
    fn cut(&mut self, kept: &Kept, extent: Extent) -> Result<()> {
        let start = extent.offset().checked_sub(kept.extent.offset());
        let range = start.and_then(|start| {
            let start = usize::try_from(start).ok()?;
            let length = usize::try_from(extent.length()).ok()?;
            kept.data.get(start..start.checked_add(length)?)
        });
        let Some(data) = range else {
            let what = self.chain.get(kept.delta).map_or("", |input| &input.name);
            return Err(Error::Damaged {
                what: what.to_owned(),
                source: FormatError::OutOfOrder {
                    at: kept.at,
                    found: format!("a frame {}", kept.extent),
                    expected: format!("one that holds {extent}, as when it was read before"),
                },
            });
        };
        let compression = self
            .options
            .compression
            .unwrap_or_else(|| self.compression_of(kept));
        self.made_frames += 1;
        let compressor = compressor(&mut self.compressors, compression)
            .map_err(|error| Error::io(format!("cannot compress for {}", self.name), error))?;
        let written = match compressor.compress(data, &mut self.packed) {
            Some(codec) => self.writer.data(extent, codec, &self.packed),
            None => self.writer.data(extent, Codec::None, data),
        };
        written.map_err(|error| self.failed(error))
    }

    /// As its frame was compressed; the level is what the writer was asked for.
    fn compression_of(&self, kept: &Kept) -> Compression {
        let asked = self.chain.get(kept.delta);
        let asked = asked.and_then(|input| input.delta.header().codec.parse().ok());
        match (kept.record.codec, asked) {
            (Codec::None, _) => Compression::None,
            (Codec::Lz4, _) => Compression::Lz4,
            (Codec::Zstd, Some(Compression::Zstd(level))) => Compression::Zstd(level),
            (Codec::Zstd, _) => Compression::Zstd(3),
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(format!("cannot write {}", self.name), error)
    }
}

fn compressor(
    known: &mut Vec<(Compression, Compressor)>,
    compression: Compression,
) -> io::Result<&mut Compressor> {
    let place = known.iter().position(|(known, _)| *known == compression);
    let place = match place {
        Some(place) => place,
        None => {
            known.push((compression, Compressor::new(compression)?));
            known.len() - 1
        }
    };
    known
        .get_mut(place)
        .map(|(_, compressor)| compressor)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}
