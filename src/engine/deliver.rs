//! Sinks: frames into a delta of version 4 or 3, or straight onto a volume; and a writer that keeps a rate.
//!
//! Guarantees: a sink's `finish` is the only way to a whole delta; a failed write names what was written to.

use std::io::{self, Write};

use super::FrameSink;
use super::apply::Applier;
use super::throttle::Throttle;
use super::undo::DurableWrite;
use crate::delta::codec::Codec;
use crate::delta::header::Header;
use crate::delta::proto3::Proto3Writer;
use crate::delta::samples::Samples;
use crate::delta::trailer::Counts;
use crate::delta::writer::{DeltaWriter, TRAILER_RECORD_BYTES};
use crate::error::{Error, Result};
use crate::extent::Extent;

/// Frames become a delta of version 4.
pub struct DeltaSink<'a, W: Write> {
    writer: DeltaWriter<W>,
    name: &'a str,
}

impl<'a, W: Write> DeltaSink<'a, W> {
    /// Writes the beginning of the delta to `out`, which is called `name` in messages.
    pub fn new(out: W, header: &Header, samples: &Samples, name: &'a str) -> Result<Self> {
        let writer = DeltaWriter::new(out, header, samples).map_err(|error| failed(name, error))?;
        Ok(Self { writer, name })
    }

    /// The counts so far, and the bytes that the delta has by now.
    pub fn so_far(&self) -> (Counts, u64) {
        self.writer.so_far()
    }

    /// Writes the end; gives the counts and the delta's length in bytes.
    pub fn finish(self) -> Result<(Counts, u64)> {
        let (counts, _) = self
            .writer
            .finish()
            .map_err(|error| failed(self.name, error))?;
        Ok((counts, counts.trailer_at + TRAILER_RECORD_BYTES))
    }
}

impl<W: Write> FrameSink for DeltaSink<'_, W> {
    fn position(&mut self, offset: u64) -> Result<()> {
        self.writer
            .position(offset)
            .map_err(|error| failed(self.name, error))
    }

    fn data(&mut self, extent: Extent, codec: Codec, stored: &[u8], crc: u32) -> Result<()> {
        self.writer
            .data_with_crc(extent, codec, stored, crc)
            .map_err(|error| failed(self.name, error))
    }

    fn zero(&mut self, extent: Extent) -> Result<()> {
        self.writer
            .zero(extent)
            .map_err(|error| failed(self.name, error))
    }
}

/// Frames become a stream of version 3, which knows no zeroes: they are written out.
pub struct Proto3Sink<'a, W: Write> {
    writer: Proto3Writer<io::BufWriter<W>>,
    name: &'a str,
    bytes: u64,
    zeroes: Vec<u8>,
}

/// Bytes of magic line and of each record's header.
const PROTO3_LINE_BYTES: u64 = 17;
const PROTO3_RECORD_BYTES: u64 = 12;

impl<'a, W: Write> Proto3Sink<'a, W> {
    /// Writes the first line.
    pub fn new(out: W, name: &'a str) -> Result<Self> {
        let out = io::BufWriter::with_capacity(256 << 10, out);
        let writer = Proto3Writer::new(out).map_err(|error| failed(name, error))?;
        Ok(Self {
            writer,
            name,
            bytes: PROTO3_LINE_BYTES,
            zeroes: Vec::new(),
        })
    }

    /// Flushes; gives the stream's length in bytes.
    pub fn finish(self) -> Result<u64> {
        self.writer
            .finish()
            .map_err(|error| failed(self.name, error))?;
        Ok(self.bytes)
    }

    fn record(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.bytes += PROTO3_RECORD_BYTES + data.len() as u64;
        self.writer
            .record(offset, data)
            .map_err(|error| failed(self.name, error))
    }
}

impl<W: Write> FrameSink for Proto3Sink<'_, W> {
    fn data(&mut self, extent: Extent, codec: Codec, stored: &[u8], _: u32) -> Result<()> {
        if codec != Codec::None {
            let error = io::Error::other("version 3 knows no compression");
            return Err(failed(self.name, error));
        }
        self.record(extent.offset(), stored)
    }

    fn zero(&mut self, extent: Extent) -> Result<()> {
        let mut position = extent.offset();
        let mut zeroes = std::mem::take(&mut self.zeroes);
        zeroes.resize(1 << 20, 0);
        while let Some(piece) = Extent::from_range(position, extent.end().min(position + (1 << 20)))
        {
            let length = usize::try_from(piece.length()).unwrap_or(0);
            self.record(piece.offset(), &zeroes[..length])?;
            position = piece.end();
        }
        self.zeroes = zeroes;
        Ok(())
    }
}

/// Frames go straight onto a volume, at a rate.
pub struct TargetSink<'s, 'a, W: DurableWrite> {
    applier: &'s mut Applier<'a, W>,
    throttle: Throttle,
}

impl<'s, 'a, W: DurableWrite> TargetSink<'s, 'a, W> {
    /// Frames for `applier`.
    pub fn new(applier: &'s mut Applier<'a, W>, throttle: Throttle) -> Self {
        Self { applier, throttle }
    }
}

impl<W: DurableWrite> FrameSink for TargetSink<'_, '_, W> {
    fn data(&mut self, extent: Extent, codec: Codec, stored: &[u8], crc: u32) -> Result<()> {
        self.throttle.spent(extent.length());
        self.applier.data(extent, codec, stored, crc)
    }

    fn zero(&mut self, extent: Extent) -> Result<()> {
        self.applier.zero(extent)
    }

    fn position(&mut self, offset: u64) -> Result<()> {
        self.applier.position(offset)
    }

    fn waits_for_device(&self) -> bool {
        true
    }
}

/// A writer that keeps a rate.
pub struct Paced<W> {
    out: W,
    throttle: Throttle,
    /// Given to `out` since it was flushed.
    gathered: usize,
}

impl<W: Write> Paced<W> {
    /// `out` at the rate of `throttle`.
    pub fn new(out: W, throttle: Throttle) -> Self {
        Self {
            out,
            throttle,
            gathered: 0,
        }
    }
}

impl<W: Write> Write for Paced<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let at_once = self.throttle.at_once();
        let written = self.out.write(&bytes[..bytes.len().min(at_once)])?;
        self.gathered = self.gathered.saturating_add(written);
        if self.gathered >= at_once {
            // It may gather more than that, and send it all at once.
            self.flush()?;
        }
        self.throttle.spent(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.gathered = 0;
        self.out.flush()
    }
}

fn failed(name: &str, error: io::Error) -> Error {
    Error::io(format!("cannot write to {name}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;

    /// Gathers as a session does, and keeps the lengths of what it sends.
    #[derive(Default)]
    struct Gathering {
        waiting: usize,
        sent: Vec<usize>,
    }

    impl Write for Gathering {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.waiting += bytes.len();
            if self.waiting >= 256 << 10 {
                self.flush()?;
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.sent.push(std::mem::take(&mut self.waiting));
            Ok(())
        }
    }

    #[test]
    fn what_has_a_limit_is_not_gathered_for_longer() {
        let throttle = Throttle::new(Some(400_000), &Cancel::new());
        let mut paced = Paced::new(Gathering::default(), throttle);
        for length in [100, 30_000, 9000, 7000, 50_000] {
            paced.write_all(&vec![7; length]).unwrap();
        }
        assert!(paced.out.sent.len() >= 4, "{:?}", paced.out.sent);
        assert!(paced.out.sent.iter().all(|length| *length < 40_000));
    }

    #[test]
    fn what_has_a_limit_goes_out_in_small_pieces() {
        let piece = vec![7; 1 << 20];
        for (limit, at_once) in [
            (None, 1 << 20),
            (Some(2 << 20), (2 << 20) / 20),
            (Some(100_000), 5000),
        ] {
            let throttle = Throttle::new(limit, &Cancel::new());
            let mut paced = Paced::new(Vec::new(), throttle);
            assert_eq!(paced.write(&piece).unwrap(), at_once, "{limit:?}");
        }
        assert_eq!(Throttle::new(Some(1), &Cancel::new()).at_once(), 1024);
    }
}
