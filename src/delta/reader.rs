//! Reads a delta from anything that gives bytes, without ever seeking.
//!
//! Guarantees: a frame is handed out only after its record header was checked, its payload only after its
//! own checksum matched; [`DeltaReader::next_frame`] answers `None` only after a trailer that agrees with
//! every byte read, and after the end of the input. Memory does not depend on the delta.

use std::io::{BufReader, Read};

use super::codec::decompress;
use super::header::{Header, Source};
use super::index::{Entry, IndexChecker};
use super::record::{RECORD_HEADER_BYTES, RecordHeader, RecordType, check_payload};
use super::samples::Samples;
use super::trailer::{Counts, Trailer};
use super::{FormatError, MAGIC_LINE};
use crate::extent::{Extent, Kind};

/// Small records are read in pieces of this many bytes.
const READ_BYTES: usize = 256 << 10;
/// Header and samples, as a rule.
const BEGINNING_BYTES: usize = 4 << 10;

/// Reads one delta of version 4, from after its first line.
pub struct DeltaReader<R: Read> {
    input: HashedInput<R>,
    header: Header,
    samples: Samples,
    /// A frame's record header that was read while looking for samples.
    pending: Option<(RecordHeader, u64)>,
    has_positions: bool,
    /// The undo ends behind its header: said when its first frame is asked for.
    torn: Option<FormatError>,
    /// The payload that the caller has not taken yet.
    open_payload: Option<(RecordHeader, u64)>,
    stored: Vec<u8>,
    first_frame: Option<Entry>,
    frames_end_volume: u64,
    frames_end_delta: u64,
    counts: Counts,
    index: IndexChecker,
    finished: bool,
}

/// What comes between header and index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A frame.
    Frame(FrameHeader),
    /// Up to this volume offset nothing more comes: what no frame covers was equal.
    Position(u64),
}

/// A frame as it stands in the delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Which bytes of the volume.
    pub extent: Extent,
    /// Data follows, or zero.
    pub kind: Kind,
    /// The record.
    pub record: RecordHeader,
    /// Delta offset of the record.
    pub at: u64,
}

impl<R: Read> DeltaReader<R> {
    /// Reads the first line, the header and the samples.
    pub fn new(input: R) -> Result<Self, FormatError> {
        Self::with_buffer(READ_BYTES, input)
    }

    /// The same for who wants no more than these: little is read that is not asked for.
    pub(super) fn beginning(input: R) -> Result<Self, FormatError> {
        Self::with_buffer(BEGINNING_BYTES, input)
    }

    fn with_buffer(bytes: usize, input: R) -> Result<Self, FormatError> {
        let mut input = BufReader::with_capacity(bytes, input);
        match super::proto3::read_first_line(&mut input)? {
            super::proto3::FirstLine::Version4 => Self::after_first_line(input),
            super::proto3::FirstLine::Version3 => Err(FormatError::UnsupportedVersion {
                line: "lvmsync PROTO[3]".to_owned(),
                reason: "this use needs a delta of version 4",
            }),
        }
    }

    /// Reads header and samples of a delta whose first line was already read and found to be version 4.
    pub fn after_first_line(input: BufReader<R>) -> Result<Self, FormatError> {
        let mut input = HashedInput::new(input);
        let at = input.position;
        let record = read_record(&mut input)?;
        if record.kind != RecordType::Header {
            return Err(out_of_order(
                at,
                record.kind.name().to_owned(),
                "the header",
            ));
        }
        let mut payload = vec![0; record.stored_length as usize];
        input.read_exact(&mut payload, "the header")?;
        check_payload(&record, &payload, at)?;
        let header = Header::decode(&payload, at)?;

        let mut reader = Self {
            input,
            has_positions: header.has_positions(),
            header,
            samples: Samples::default(),
            pending: None,
            torn: None,
            open_payload: None,
            stored: Vec::new(),
            first_frame: None,
            frames_end_volume: 0,
            frames_end_delta: 0,
            counts: Counts::default(),
            index: IndexChecker::default(),
            finished: false,
        };
        let at = reader.input.position;
        let record = match reader.read_record_or_trailer() {
            // One that was cut before it had saved anything says so much by its header.
            Err(error @ FormatError::Truncated { .. }) if reader.header.source == Source::Undo => {
                reader.torn = Some(error);
                return Ok(reader);
            }
            record => record?,
        };
        if record.kind == RecordType::Samples {
            reader.take_payload(&record, at, "the samples")?;
            reader.samples = Samples::decode(&reader.stored, at)?;
        } else {
            reader.pending = Some((record, at));
        }
        Ok(reader)
    }

    /// What the delta is about.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Digests of blocks that it leaves alone.
    pub fn samples(&self) -> &Samples {
        &self.samples
    }

    /// What was read so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Bytes of delta read so far.
    pub fn position(&self) -> u64 {
        self.input.position
    }

    /// Delta offset at which frames begin. To be asked before the first of them is read.
    pub(super) fn frames_begin(&self) -> u64 {
        self.pending
            .as_ref()
            .map_or(self.input.position, |(_, at)| *at)
    }

    /// Reads and checks the payload of the frame that [`Self::next_frame`] gave last, without decompressing it.
    pub(super) fn skip_payload(&mut self) -> Result<(), FormatError> {
        match self.open_payload.take() {
            Some((record, at)) => self.take_payload(&record, at, "a data frame"),
            None => Ok(()),
        }
    }

    /// The next frame, as [`Self::next_item`]; positions are left out.
    pub fn next_frame(&mut self) -> Result<Option<FrameHeader>, FormatError> {
        loop {
            match self.next_item()? {
                Some(Item::Frame(frame)) => return Ok(Some(frame)),
                Some(Item::Position(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// The next frame or position; `None` after a trailer that proves the delta whole. The payload of a data frame
    /// is taken with [`Self::payload`]; one that is not taken is read and checked all the same.
    pub fn next_item(&mut self) -> Result<Option<Item>, FormatError> {
        if self.finished {
            return Ok(None);
        }
        self.skip_payload()?;
        if let Some(error) = self.torn.take() {
            return Err(error);
        }
        let (record, at) = match self.pending.take() {
            Some(pending) => pending,
            None => {
                let at = self.input.position;
                (self.read_record_or_trailer()?, at)
            }
        };
        if record.kind == RecordType::Position {
            return self.position_at(&record, at).map(Some);
        }
        let Some((extent, kind)) = record.frame() else {
            self.finish(record, at)?;
            return Ok(None);
        };
        if extent.offset() < self.frames_end_volume {
            let expected = format!("a frame at or after {}", self.frames_end_volume);
            return Err(out_of_order(
                at,
                format!("a frame at {}", extent.offset()),
                &expected,
            ));
        }
        if extent.end() > self.header.volume_size {
            return Err(FormatError::Field {
                at,
                field: "end of a frame",
                found: extent.end().to_string(),
                expected: format!("at most the volume's {} bytes", self.header.volume_size),
            });
        }
        self.frames_end_volume = extent.end();
        self.first_frame.get_or_insert(Entry {
            volume_offset: extent.offset(),
            delta_offset: at,
        });
        self.counts.frame(&record);
        if kind == Kind::Data {
            self.open_payload = Some((record, at));
        }
        Ok(Some(Item::Frame(FrameHeader {
            extent,
            kind,
            record,
            at,
        })))
    }

    fn position_at(&mut self, record: &RecordHeader, at: u64) -> Result<Item, FormatError> {
        if !self.has_positions {
            let expected = "a frame, an index or the trailer";
            return Err(out_of_order(at, record.kind.name().to_owned(), expected));
        }
        let allowed = self.frames_end_volume..=self.header.volume_size;
        if !allowed.contains(&record.offset) {
            return Err(FormatError::Field {
                at,
                field: "position",
                found: record.offset.to_string(),
                expected: format!("{} to {}", allowed.start(), allowed.end()),
            });
        }
        self.frames_end_volume = record.offset;
        Ok(Item::Position(record.offset))
    }

    /// Reads, checks and decompresses the payload of the data frame that [`Self::next_frame`] gave last
    /// into `out`, which has the frame's length.
    pub fn payload(&mut self, out: &mut [u8]) -> Result<(), FormatError> {
        let Some((record, at)) = self.open_payload.take() else {
            return Err(out_of_order(
                self.input.position,
                "no payload".to_owned(),
                "a data frame",
            ));
        };
        if record.codec == super::codec::Codec::None && out.len() == record.stored_length as usize {
            self.input.read_exact(out, "a data frame")?;
            return check_payload(&record, out, at);
        }
        self.take_payload(&record, at, "a data frame")?;
        decompress(record.codec, &self.stored, out).map_err(|reason| FormatError::Payload {
            at,
            codec: record.codec.name(),
            length: record.length,
            reason,
        })
    }

    /// Reads and checks the payload of the data frame that [`Self::next_frame`] gave last, as it is stored.
    pub fn stored_payload(&mut self) -> Result<&[u8], FormatError> {
        self.skip_payload()?;
        Ok(&self.stored)
    }

    /// Index and trailer, of which `record` is the first.
    fn finish(&mut self, mut record: RecordHeader, mut at: u64) -> Result<(), FormatError> {
        self.frames_end_delta = at;
        while record.kind == RecordType::Index {
            let Some(first) = self.first_frame else {
                return Err(out_of_order(at, "an index".to_owned(), "a frame before it"));
            };
            if self.counts.index_at == 0 {
                self.counts.index_at = at;
            }
            self.take_payload(&record, at, "the index")?;
            self.index
                .payload(&self.stored, at, first, self.frames_end_delta)?;
            at = self.input.position;
            record = self.read_record_or_trailer()?;
        }
        if record.kind != RecordType::Trailer {
            return Err(out_of_order(
                at,
                record.kind.name().to_owned(),
                "the trailer",
            ));
        }
        if self.first_frame.is_some() && self.counts.index_at == 0 {
            return Err(out_of_order(
                at,
                "a trailer".to_owned(),
                "the index before it",
            ));
        }
        self.counts.index_entries = self.index.entries();
        self.counts.trailer_at = at;
        let mut payload = [0; super::trailer::TRAILER_BYTES];
        let hasher = self
            .input
            .read_exact_unhashed(&mut payload, "the trailer")?;
        check_payload(&record, &payload, at)?;
        Trailer::decode(&payload).check(&self.counts, hasher, at)?;
        if !self.input.is_at_end()? {
            return Err(FormatError::Trailing {
                at: self.input.position,
            });
        }
        self.finished = true;
        Ok(())
    }

    /// The record header of the trailer is not part of what the digest covers, so it is told apart before
    /// it is hashed.
    fn read_record_or_trailer(&mut self) -> Result<RecordHeader, FormatError> {
        read_record(&mut self.input)
    }

    fn take_payload(
        &mut self,
        record: &RecordHeader,
        at: u64,
        inside: &'static str,
    ) -> Result<(), FormatError> {
        self.stored.resize(record.stored_length as usize, 0);
        self.input.read_exact(&mut self.stored, inside)?;
        check_payload(record, &self.stored, at)
    }
}

fn read_record<R: Read>(input: &mut HashedInput<R>) -> Result<RecordHeader, FormatError> {
    let at = input.position;
    let mut bytes = [0; RECORD_HEADER_BYTES];
    input.read_exact_later(&mut bytes, "a record header")?;
    let record = RecordHeader::decode(&bytes, at)?;
    if record.kind != RecordType::Trailer {
        input.hasher.update(&bytes);
    }
    Ok(record)
}

fn out_of_order(at: u64, found: String, expected: &str) -> FormatError {
    FormatError::OutOfOrder {
        at,
        found,
        expected: expected.to_owned(),
    }
}

/// Input that counts and hashes what goes by.
struct HashedInput<R: Read> {
    input: BufReader<R>,
    hasher: blake3::Hasher,
    position: u64,
}

impl<R: Read> HashedInput<R> {
    /// After the first line, which is part of the digest.
    fn new(input: BufReader<R>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(MAGIC_LINE);
        Self {
            input,
            hasher,
            position: MAGIC_LINE.len() as u64,
        }
    }

    fn read_exact(&mut self, out: &mut [u8], inside: &'static str) -> Result<(), FormatError> {
        self.read_exact_later(out, inside)?;
        self.hasher.update(out);
        Ok(())
    }

    /// Reads without hashing: the caller hashes when it knows whether it should.
    fn read_exact_later(
        &mut self,
        out: &mut [u8],
        inside: &'static str,
    ) -> Result<(), FormatError> {
        read_whole(&mut self.input, out, self.position, inside)?;
        self.position += out.len() as u64;
        Ok(())
    }

    /// Reads what the digest does not cover, and gives the digest so far.
    fn read_exact_unhashed(
        &mut self,
        out: &mut [u8],
        inside: &'static str,
    ) -> Result<blake3::Hasher, FormatError> {
        self.read_exact_later(out, inside)?;
        Ok(self.hasher.clone())
    }

    fn is_at_end(&mut self) -> Result<bool, FormatError> {
        let mut byte = [0];
        loop {
            match self.input.read(&mut byte) {
                Ok(read) => return Ok(read == 0),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(FormatError::Io(error)),
            }
        }
    }
}

/// Fills `out` or says how far the input went; `at` is the delta offset of `out[0]`.
pub(super) fn read_whole(
    input: &mut impl Read,
    out: &mut [u8],
    at: u64,
    inside: &'static str,
) -> Result<(), FormatError> {
    let mut filled = 0;
    while filled < out.len() {
        match input.read(&mut out[filled..]) {
            Ok(0) => {
                return Err(FormatError::Truncated {
                    at: at + filled as u64,
                    inside,
                });
            }
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FormatError::Io(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
