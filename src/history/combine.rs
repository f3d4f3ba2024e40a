//! Reads a chain of deltas and writes the one delta that does the same.
//!
//! Guarantees: every byte of every delta is read and every checksum compared before the first byte of the result is
//! written, and what is taken over is compared once more when it is; a damaged delta is named, with the offset. What is
//! written has the effect of the deltas one after another: the newest frame wins, byte by byte, and what a smaller volume
//! in between has cut off is zero where nothing newer says otherwise. Frames that survive whole are copied as they
//! stand. Memory follows the number of surviving pieces, and no buffer is larger than a frame.

use std::io::{self, Write};

use super::heading::{header, samples};
use super::overlay::{Overlay, Piece};
use super::sizes::{Part, Sizes, refuse_fragment, sizes};
use crate::cancel::Cancel;
use crate::delta::codec::{Codec, Compression, Compressor, decompress};
use crate::delta::header::{Header, Source};
use crate::delta::record::{RECORD_HEADER_BYTES, RecordHeader};
use crate::delta::stored::{StoredDelta, StoredFrame};
use crate::delta::trailer::Counts;
use crate::delta::writer::{DeltaWriter, TRAILER_RECORD_BYTES};
use crate::delta::{FormatError, MAX_FRAME_BYTES};
use crate::error::{Error, Result};
use crate::extent::{Extent, Kind};
use crate::monitor::Monitor;
use crate::units::count;
use crate::volume::ReadAt;

/// Frames that are kept decompressed: where newer pieces lie in an older frame, it is asked for again and again.
const KEPT_FRAMES: usize = 8;

/// A delta of the chain.
pub struct Input<V> {
    /// The file, for messages.
    pub name: String,
    /// What is in it.
    pub delta: StoredDelta<V>,
}

/// How a chain is combined, and who listens.
pub struct Options<'a> {
    /// Compress everything anew; otherwise what has to be cut is stored as it was.
    pub compression: Option<Compression>,
    /// Stops the run.
    pub cancel: &'a Cancel,
    /// Hears of progress and warnings.
    pub monitor: &'a dyn Monitor,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Combined {
    /// The header of the result.
    pub header: Header,
    /// Its counts.
    pub counts: Counts,
    /// Its length.
    pub delta_bytes: u64,
    /// Samples in it.
    pub samples: usize,
    /// Data frames that were copied as they stood.
    pub copied_frames: u64,
    /// Data frames that were cut or compressed anew.
    pub made_frames: u64,
}

/// What can be said of a chain by the headers of its deltas: sizes that fit, and nothing that is only a part.
pub fn check<V: ReadAt>(chain: &[&Input<V>]) -> Result<Sizes> {
    for input in chain {
        refuse_fragment(&input.name, input.delta.header())?;
    }
    let parts = parts(chain);
    let sizes = sizes(&parts)?;
    // It refuses what has no header in common.
    header(&parts, &sizes, &Overlay::new(sizes.volume_size), None)?;
    Ok(sizes)
}

/// Writes the combination of `chain`, which is in order, to `out`, called `name` in messages.
pub fn combine<V: ReadAt>(
    chain: &[&Input<V>],
    out: impl Write,
    name: &str,
    options: &Options<'_>,
) -> Result<Combined> {
    let sizes = check(chain)?;
    let overlay = lay(chain, &sizes, options)?;
    let parts = parts(chain);
    let codec = options.compression.map(|codec| codec.to_string());
    let header = header(&parts, &sizes, &overlay, codec)?;
    let samples = samples(&parts, &sizes, &overlay)?;
    if samples.is_empty() && !header.is_full_copy() {
        options.monitor.warn(&format!(
            "{name}: no sampled block is left alone by all of these deltas, so it cannot be seen by the blocks \
             whether a destination is the base"
        ));
    }
    let planned = header.planned;
    options
        .monitor
        .plan(planned.data_bytes.saturating_add(planned.zero_bytes));
    let failed = |error| Error::io(format!("cannot write {name}"), error);
    let writer = DeltaWriter::new(out, &header, &samples).map_err(failed)?;
    let mut copying = Copying {
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
    };
    for piece in overlay.pieces() {
        options.cancel.check()?;
        copying.piece(piece)?;
        options.monitor.advance(piece.extent().length());
    }
    copying.put_zeroes()?;
    let (copied_frames, made_frames) = (copying.copied_frames, copying.made_frames);
    let (counts, _) = copying.writer.finish().map_err(failed)?;
    Ok(Combined {
        header,
        counts,
        delta_bytes: counts.trailer_at.saturating_add(TRAILER_RECORD_BYTES),
        samples: samples.len(),
        copied_frames,
        made_frames,
    })
}

fn parts<'a, V: ReadAt>(chain: &[&'a Input<V>]) -> Vec<Part<'a>> {
    let part = |input: &&'a Input<V>| Part {
        name: &input.name,
        header: input.delta.header(),
        samples: input.delta.samples(),
    };
    chain.iter().map(part).collect()
}

fn damaged<V>(input: &Input<V>) -> impl Fn(FormatError) -> Error {
    let what = input.name.clone();
    move |source| Error::Damaged {
        what: what.clone(),
        source,
    }
}

/// Reads all of every delta, the newest first, and finds out what is there in the end.
fn lay<V: ReadAt>(chain: &[&Input<V>], sizes: &Sizes, options: &Options<'_>) -> Result<Overlay> {
    let bytes = chain.iter().map(|input| input.delta.bytes());
    options.monitor.plan(bytes.fold(0, u64::saturating_add));
    let mut overlay = Overlay::new(sizes.volume_size);
    for (number, input) in chain.iter().enumerate().rev() {
        let damaged = damaged(input);
        let place = u32::try_from(number)
            .map_err(|_| Error::Usage("these are too many deltas".to_owned()))?;
        let mut layer = overlay.layer(place);
        let mut reader = input.delta.read_all().map_err(&damaged)?;
        let mut told = 0;
        while let Some(frame) = reader.next_frame().map_err(&damaged)? {
            options.cancel.check()?;
            layer.frame(&StoredFrame {
                extent: frame.extent,
                kind: frame.kind,
                at: frame.at,
                stored_length: frame.record.stored_length,
            });
            let length = RECORD_HEADER_BYTES as u64 + u64::from(frame.record.stored_length);
            told += length;
            options.monitor.advance(length);
        }
        options
            .monitor
            .advance(input.delta.bytes().saturating_sub(told));
        drop(layer);
        if let Some((start, end)) = sizes.cut_off.get(number).copied().flatten() {
            overlay.zero(start, end);
        }
        let header = input.delta.header();
        if header.source == Source::Full {
            // A full copy says of every byte what it is, also of those that came after it and that nobody wrote.
            overlay.zero(header.volume_size, sizes.volume_size);
        }
    }
    options.monitor.note(&format!(
        "{} of data and zeroes are left",
        count(overlay.pieces().len() as u64, "piece")
    ));
    Ok(overlay)
}

/// A frame that was decompressed.
struct Kept {
    delta: usize,
    at: u64,
    record: RecordHeader,
    extent: Extent,
    data: Vec<u8>,
}

/// Writes pieces.
struct Copying<'a, V, W: Write> {
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

impl<V: ReadAt, W: Write> Copying<'_, V, W> {
    fn piece(&mut self, piece: &Piece) -> Result<()> {
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
            let written = self.writer.data_with_crc(extent, codec, &self.stored, crc);
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

    /// Reads and decompresses a frame; its payload is then in `stored`. What cannot be decompressed must not get into
    /// the result, where it would be found in the middle of an apply.
    fn read(&mut self, delta: usize, at: u64, stored_length: u32) -> Result<Kept> {
        let Some(input) = self.chain.get(delta) else {
            let error = io::ErrorKind::NotFound.into();
            return Err(Error::io("cannot find a delta of the chain", error));
        };
        let damaged = damaged(input);
        let record = input
            .delta
            .payload(at, stored_length, &mut self.stored)
            .map_err(&damaged)?;
        let mut data = if self.kept.len() < KEPT_FRAMES {
            Vec::new()
        } else {
            self.kept.remove(0).data
        };
        let (extent, _) = record.frame().ok_or_else(|| {
            damaged(FormatError::OutOfOrder {
                at,
                found: record.kind.name().to_owned(),
                expected: "a data frame".to_owned(),
            })
        })?;
        data.resize(extent.length().min(MAX_FRAME_BYTES) as usize, 0);
        decompress(record.codec, &self.stored, &mut data).map_err(|reason| {
            damaged(FormatError::Payload {
                at,
                codec: record.codec.name(),
                length: record.length,
                reason,
            })
        })?;
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
