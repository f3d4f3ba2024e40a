//! Version 3: the stream of the original lvmsync, and the first line of every version.
//!
//! Pure over Read and Write. Guarantees: lengths are never allocated but read in pieces; a stream that ends
//! anywhere but between two records is truncated. That a stream was cut *between* records cannot be seen:
//! the format has no end mark, and callers say so.

use std::io::{self, BufReader, Read, Write};

use super::reader::read_whole;
use super::{FormatError, MAGIC_LINE, MAX_FRAME_BYTES};
use crate::extent::{Extent, MAX_OFFSET};

/// The line that opens a stream of version 3.
pub const MAGIC_LINE_3: &[u8; 17] = b"lvmsync PROTO[3]\n";
const RECORD_BYTES: usize = 12;

/// What a stream turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstLine {
    /// PROTO\[3\]: records follow.
    Version3,
    /// PROTO\[4\]: records of `docs/format.md` follow.
    Version4,
}

/// Reads the first line, at most 64 bytes of it.
pub fn read_first_line<R: Read>(input: &mut BufReader<R>) -> Result<FirstLine, FormatError> {
    let mut line = Vec::with_capacity(64);
    let mut byte = [0];
    while line.last() != Some(&b'\n') && line.len() < 64 {
        match read_whole(input, &mut byte, line.len() as u64, "the first line") {
            Ok(()) => line.push(byte[0]),
            Err(FormatError::Truncated { .. }) => break,
            Err(error) => return Err(error),
        }
        let looks_right = line
            .iter()
            .zip(MAGIC_LINE.iter())
            .take(14)
            .all(|(a, b)| a == b);
        if !looks_right && line.len() > 40 {
            break; // enough to show
        }
    }
    // The original strips CR and LF, so its streams may end the line with either.
    let text = String::from_utf8_lossy(&line);
    let text = text.trim_end_matches(['\r', '\n']);
    match text {
        "lvmsync PROTO[4]" if line == MAGIC_LINE => Ok(FirstLine::Version4),
        "lvmsync PROTO[3]" if line.ends_with(b"\n") => Ok(FirstLine::Version3),
        "lvmsync PROTO[1]" | "lvmsync PROTO[2]" => Err(FormatError::UnsupportedVersion {
            line: text.to_owned(),
            reason: "the unit of its offsets cannot be told from the stream; make it again with a newer lvmsync",
        }),
        _ if line.is_empty() => Err(FormatError::Truncated {
            at: 0,
            inside: "the first line",
        }),
        _ if MAGIC_LINE.starts_with(&line) || MAGIC_LINE_3.starts_with(&line) => {
            Err(FormatError::Truncated {
                at: line.len() as u64,
                inside: "the first line",
            })
        }
        _ if text.starts_with("lvmsync PROTO[") => Err(FormatError::UnsupportedVersion {
            line: text.chars().take(40).collect(),
            reason: "this version of lvmsync does not know it; use a newer one",
        }),
        _ => Err(FormatError::NotADelta {
            found: text.chars().take(40).collect(),
        }),
    }
}

/// Reads the records of a version 3 stream, in pieces of at most 1 MiB.
pub struct Proto3Reader<R: Read> {
    input: BufReader<R>,
    position: u64,
    /// What is left of the record that is being read: volume offset and bytes.
    open: Option<(u64, u64)>,
    records: u64,
}

impl<R: Read> Proto3Reader<R> {
    /// Reads a stream whose first line was already read.
    pub fn after_first_line(input: BufReader<R>) -> Self {
        Self {
            input,
            position: MAGIC_LINE_3.len() as u64,
            open: None,
            records: 0,
        }
    }

    /// Bytes of the stream read so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Records begun so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Reads the next piece into `out` and says where it belongs; `None` at the end of the stream. Records
    /// of no length, which the original allows, are passed over.
    pub fn next_piece(&mut self, out: &mut Vec<u8>) -> Result<Option<Extent>, FormatError> {
        let (offset, left) = loop {
            match self.open {
                Some((offset, left)) if left > 0 => break (offset, left),
                _ => match self.next_record()? {
                    Some(record) => self.open = Some(record),
                    None => return Ok(None),
                },
            }
        };
        // Cut where frames are cut, so that this becomes a delta of version 4 piece by piece.
        let boundary = MAX_FRAME_BYTES - offset % MAX_FRAME_BYTES;
        let take = left.min(boundary);
        out.resize(usize::try_from(take).unwrap_or(0), 0);
        read_whole(&mut self.input, out, self.position, "a record")?;
        self.position += take;
        self.open = Some((offset + take, left - take));
        Ok(Extent::new(offset, take))
    }

    fn next_record(&mut self) -> Result<Option<(u64, u64)>, FormatError> {
        let mut bytes = [0; RECORD_BYTES];
        let at = self.position;
        match read_whole(&mut self.input, &mut bytes, at, "a record header") {
            Ok(()) => {}
            // The only end that the format has.
            Err(FormatError::Truncated { at: end, .. }) if end == at => return Ok(None),
            Err(error) => return Err(error),
        }
        self.position += RECORD_BYTES as u64;
        self.records += 1;
        let (offset, length) = bytes.split_at(8);
        let offset = u64::from_be_bytes(offset.try_into().unwrap_or([0xff; 8]));
        let length = u64::from(u32::from_be_bytes(length.try_into().unwrap_or([0xff; 4])));
        if offset
            .checked_add(length)
            .is_none_or(|end| end > MAX_OFFSET)
        {
            return Err(FormatError::Field {
                at,
                field: "offset",
                found: offset.to_string(),
                expected: "a record that ends below 2^63".to_owned(),
            });
        }
        Ok(Some((offset, length)))
    }
}

/// Writes a stream of version 3.
pub struct Proto3Writer<W: Write> {
    out: W,
}

impl<W: Write> Proto3Writer<W> {
    /// Writes the first line.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC_LINE_3)?;
        Ok(Self { out })
    }

    /// Writes one record.
    pub fn record(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.out.write_all(&offset.to_be_bytes())?;
        self.out.write_all(&length.to_be_bytes())?;
        self.out.write_all(data)
    }

    /// Flushes; the format has no end mark.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(bytes: &[u8]) -> Result<Proto3Reader<&[u8]>, FormatError> {
        let mut input = BufReader::new(bytes);
        assert_eq!(read_first_line(&mut input)?, FirstLine::Version3);
        Ok(Proto3Reader::after_first_line(input))
    }

    fn all(bytes: &[u8]) -> Result<Vec<(u64, Vec<u8>)>, FormatError> {
        let mut reader = open(bytes)?;
        let (mut pieces, mut buffer) = (Vec::new(), Vec::new());
        while let Some(extent) = reader.next_piece(&mut buffer)? {
            pieces.push((extent.offset(), buffer.clone()));
        }
        Ok(pieces)
    }

    #[test]
    fn bytes_are_those_of_the_original() {
        let mut writer = Proto3Writer::new(Vec::new()).unwrap();
        writer.record(20480, &[7; 4096]).unwrap();
        let bytes = writer.finish().unwrap();
        assert_eq!(&bytes[..17], b"lvmsync PROTO[3]\n");
        assert_eq!(&bytes[17..29], &[0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0x10, 0]);
        assert_eq!(all(&bytes).unwrap(), vec![(20480, vec![7; 4096])]);
    }

    #[test]
    fn cut_anywhere_but_between_records_is_damage() {
        let mut writer = Proto3Writer::new(Vec::new()).unwrap();
        writer.record(8192, &[1; 100]).unwrap();
        writer.record(0, &[]).unwrap();
        writer.record(0, &[2; 50]).unwrap();
        let bytes = writer.finish().unwrap();
        let whole = [17, 17 + 112, 17 + 112 + 12, bytes.len()];
        for cut in 0..=bytes.len() {
            match all(&bytes[..cut]) {
                Ok(_) => assert!(whole.contains(&cut), "cut at {cut}"),
                Err(error) => {
                    assert!(!whole.contains(&cut), "cut at {cut}: {error}");
                    assert_eq!(error.exit_code(), crate::error::ExitCode::Damaged);
                }
            }
        }
    }

    #[test]
    fn a_long_record_comes_in_pieces_cut_at_mebibytes() {
        let mut writer = Proto3Writer::new(Vec::new()).unwrap();
        writer
            .record((1 << 20) - 100, &vec![3; (2 << 20) + 200])
            .unwrap();
        let pieces = all(&writer.finish().unwrap()).unwrap();
        let lengths: Vec<usize> = pieces.iter().map(|(_, data)| data.len()).collect();
        assert_eq!(lengths, [100, 1 << 20, 1 << 20, 100]);
    }

    #[test]
    fn a_huge_length_costs_no_memory() {
        let mut bytes = MAGIC_LINE_3.to_vec();
        bytes.extend_from_slice(&0u64.to_be_bytes());
        bytes.extend_from_slice(&u32::MAX.to_be_bytes());
        assert!(all(&bytes).is_err());
        bytes[17..25].fill(0xff);
        assert!(all(&bytes).is_err());
    }

    #[test]
    fn first_lines() {
        let first = |bytes: &[u8]| read_first_line(&mut BufReader::new(bytes));
        assert_eq!(
            first(b"lvmsync PROTO[4]\nrest").unwrap(),
            FirstLine::Version4
        );
        assert_eq!(
            first(b"lvmsync PROTO[3]\r\nrest").unwrap(),
            FirstLine::Version3
        );
        for (bytes, words) in [
            (&b"lvmsync PROTO[2]\n"[..], "unit"),
            (b"lvmsync PROTO[5]\n", "newer"),
            (b"", "ends at byte 0"),
            (b"lvmsync PRO", "ends at byte 11"),
            (
                b"\x1f\x8b\x08 something else entirely, and long enough",
                "not a delta",
            ),
        ] {
            let error = first(bytes).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
