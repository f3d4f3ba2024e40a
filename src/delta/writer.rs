//! Writes a delta to anything that takes bytes, without ever seeking.
//!
//! Guarantees: records come out in the format's order; a delta whose [`DeltaWriter::finish`] was not
//! reached has no trailer, so nobody can take it for whole. A caller that breaks the order gets an error,
//! not a damaged delta.

use std::io::{self, Write};

use super::codec::Codec;
use super::header::Header;
use super::index::{Entry, IndexBuilder};
use super::record::{RECORD_HEADER_BYTES, RecordHeader, RecordType};
use super::resume::SoundPart;
use super::samples::Samples;
use super::trailer::{Counts, Trailer};
use super::{MAGIC_LINE, MAX_FRAME_BYTES};
use crate::extent::Extent;

/// Small records are gathered up to this many bytes before they are hashed and passed on together.
const GATHER_BYTES: usize = 256 << 10;

/// Writes one delta.
pub struct DeltaWriter<W: Write> {
    out: W,
    gathered: Vec<u8>,
    hasher: blake3::Hasher,
    position: u64,
    volume_size: u64,
    frames_end: u64,
    index: IndexBuilder,
    counts: Counts,
}

impl<W: Write> DeltaWriter<W> {
    /// Writes the first line, the header and the samples.
    pub fn new(out: W, header: &Header, samples: &Samples) -> io::Result<Self> {
        if !header.fits() {
            return Err(invalid("the names in the header are too long".to_owned()));
        }
        let mut writer = Self {
            out,
            gathered: Vec::with_capacity(GATHER_BYTES),
            hasher: blake3::Hasher::new(),
            position: 0,
            volume_size: header.volume_size,
            frames_end: 0,
            index: IndexBuilder::default(),
            counts: Counts::default(),
        };
        writer.put(MAGIC_LINE)?;
        writer.control(RecordType::Header, &header.encode())?;
        if !samples.is_empty() {
            writer.control(RecordType::Samples, &samples.encode())?;
        }
        Ok(writer)
    }

    /// Says that there are no samples. To be called before the first frame, and only once.
    pub fn no_samples(&mut self) -> io::Result<()> {
        self.control(RecordType::Samples, &Samples::default().encode())
    }

    /// What was written so far: the frames, and bytes of the delta.
    pub fn so_far(&self) -> (Counts, u64) {
        (self.counts, self.position)
    }

    /// Volume offset of the end of the last frame.
    pub fn frames_end(&self) -> u64 {
        self.frames_end
    }

    /// Goes on behind `part`, which `out` stands at the end of and `hasher` has seen every byte of.
    pub fn resume(out: W, part: SoundPart, hasher: blake3::Hasher) -> Self {
        Self {
            out,
            gathered: Vec::with_capacity(GATHER_BYTES),
            hasher,
            position: part.delta_bytes,
            volume_size: part.header.volume_size,
            frames_end: part.frames_end,
            index: part.index,
            counts: part.counts,
        }
    }

    /// Writes a data frame whose payload is already compressed by `codec`.
    pub fn data(&mut self, extent: Extent, codec: Codec, stored: &[u8]) -> io::Result<()> {
        self.data_with_crc(extent, codec, stored, crc32c::crc32c(stored))
    }

    /// As [`Self::data`], where the payload's checksum is known: it then covers the way from where it was
    /// computed to here, too.
    pub fn data_with_crc(
        &mut self,
        extent: Extent,
        codec: Codec,
        stored: &[u8],
        payload_crc: u32,
    ) -> io::Result<()> {
        let fits = extent.length() <= MAX_FRAME_BYTES && stored.len() as u64 <= extent.length();
        if !fits || (codec == Codec::None && stored.len() as u64 != extent.length()) {
            return Err(invalid(format!(
                "a frame of {extent} with {} bytes",
                stored.len()
            )));
        }
        let stored_length = u32::try_from(stored.len()).unwrap_or(u32::MAX);
        self.frame(
            RecordHeader::data(extent, codec, stored_length, payload_crc),
            extent,
        )?;
        self.put(stored)
    }

    /// Writes a zero frame.
    pub fn zero(&mut self, extent: Extent) -> io::Result<()> {
        self.frame(RecordHeader::zero(extent), extent)
    }

    /// Says that up to this volume offset nothing more comes, and passes everything on. The header has
    /// [`FEATURE_POSITIONS`].
    ///
    /// [`FEATURE_POSITIONS`]: super::header::FEATURE_POSITIONS
    pub fn position(&mut self, offset: u64) -> io::Result<()> {
        if offset < self.frames_end || offset > self.volume_size {
            return Err(invalid(format!(
                "position {offset} after {} in a volume of {}",
                self.frames_end, self.volume_size
            )));
        }
        self.frames_end = offset;
        self.put(&RecordHeader::position(offset).encode())?;
        self.flush()
    }

    /// Writes index and trailer, flushes, and returns what was written: the counts (the delta's length is
    /// `trailer_at` + 128) and the writer below.
    pub fn finish(mut self) -> io::Result<(Counts, W)> {
        let (payloads, entries) = std::mem::take(&mut self.index).finish();
        self.counts.index_entries = entries;
        self.counts.index_at = if entries == 0 { 0 } else { self.position };
        for payload in payloads {
            self.control(RecordType::Index, &payload)?;
        }
        self.pass_on()?;
        self.counts.trailer_at = self.position;
        let payload = Trailer::new(self.counts, self.hasher).encode();
        self.out
            .write_all(&RecordHeader::control(RecordType::Trailer, &payload).encode())?;
        self.out.write_all(&payload)?;
        self.out.flush()?;
        Ok((self.counts, self.out))
    }

    /// Passes on everything gathered, so that the writer below has all frames so far.
    pub fn flush(&mut self) -> io::Result<()> {
        self.pass_on()?;
        self.out.flush()
    }

    /// The writer below; what is gathered has not reached it before [`Self::flush`].
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    fn frame(&mut self, header: RecordHeader, extent: Extent) -> io::Result<()> {
        if extent.offset() < self.frames_end || extent.end() > self.volume_size {
            return Err(invalid(format!(
                "frame {extent} after {} in a volume of {}",
                self.frames_end, self.volume_size
            )));
        }
        self.frames_end = extent.end();
        self.index.frame(Entry {
            volume_offset: extent.offset(),
            delta_offset: self.position,
        });
        self.counts.frame(&header);
        self.put(&header.encode())
    }

    fn control(&mut self, kind: RecordType, payload: &[u8]) -> io::Result<()> {
        self.put(&RecordHeader::control(kind, payload).encode())?;
        self.put(payload)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        if self.gathered.len() + bytes.len() > GATHER_BYTES {
            self.pass_on()?;
        }
        if bytes.len() >= GATHER_BYTES {
            self.hasher.update(bytes);
            return self.out.write_all(bytes);
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    fn pass_on(&mut self) -> io::Result<()> {
        self.hasher.update(&self.gathered);
        self.out.write_all(&self.gathered)?;
        self.gathered.clear();
        Ok(())
    }
}

/// Bytes of the trailer with its record header.
pub const TRAILER_RECORD_BYTES: u64 = (RECORD_HEADER_BYTES + super::trailer::TRAILER_BYTES) as u64;

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
