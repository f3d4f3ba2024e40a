//! A whole delta beside the destination, before the first block of the destination is touched.
//!
//! Guarantees: what comes back has been read to its trailer, every checksum matched, and it is on stable storage. What
//! goes on behind a delta that was cut makes one delta of both, whose frames are those that came.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};

use crate::cancel::Cancel;
use crate::delta::codec::decompress;
use crate::delta::header::Header;
use crate::delta::proto3::{FirstLine, Proto3Reader, read_first_line};
use crate::delta::reader::DeltaReader;
use crate::delta::resume::SoundPart;
use crate::delta::samples::Samples;
use crate::delta::writer::DeltaWriter;
use crate::delta::{FormatError, MAX_FRAME_BYTES};
use crate::engine::undo::DurableWrite;
use crate::error::{Error, Result};
use crate::extent::Kind;

/// Copies the delta `input`, called `what` in messages, into the empty file `spool`, and stands at its beginning
/// again. `admit` sees header and samples of a version 4 delta before the rest is read: a wrong destination should
/// not cost the whole way.
pub fn spool(
    input: impl Read,
    what: &str,
    mut spool: File,
    admit: impl FnOnce(&Header, &Samples) -> Result<()>,
    cancel: &Cancel,
) -> Result<File> {
    let damaged = |source| Error::Damaged {
        what: what.to_owned(),
        source,
    };
    let failed_copy = RefCell::new(None);
    let copy = Copying {
        input,
        copy: &spool,
        failed: &failed_copy,
    };
    let mut input = BufReader::with_capacity(256 << 10, copy);
    let result = read_first_line(&mut input)
        .map_err(damaged)
        .and_then(|line| match line {
            FirstLine::Version4 => {
                let mut reader = DeltaReader::after_first_line(input).map_err(damaged)?;
                admit(reader.header(), reader.samples())?;
                while reader.next_frame().map_err(damaged)?.is_some() {
                    cancel.check()?;
                }
                Ok(())
            }
            FirstLine::Version3 => {
                let mut reader = Proto3Reader::after_first_line(input);
                let mut buffer = Vec::new();
                while reader.next_piece(&mut buffer).map_err(damaged)?.is_some() {
                    cancel.check()?;
                }
                Ok(())
            }
        });
    if let Some(error) = failed_copy.into_inner() {
        return Err(failed(error));
    }
    result?;
    spool
        .sync_all()
        .and_then(|()| spool.rewind())
        .map_err(failed)?;
    Ok(spool)
}

/// So much of a delta is lost at most where the power is: it is made durable piece by piece.
const SYNC_BYTES: u64 = 32 << 20;

/// The sound beginning of a delta that was cut, and what goes on behind it.
pub struct Begun<W> {
    /// It stands at the end of `part`.
    pub out: W,
    /// What is there.
    pub part: SoundPart,
    /// It has seen every byte of that.
    pub hasher: blake3::Hasher,
}

impl<W> Begun<W> {
    /// All of the delta before this volume offset is there.
    pub fn end(&self) -> u64 {
        let header = &self.part.header;
        match self.part.whole_bytes {
            Some(_) => header.volume_size,
            None => self.part.frames_end.max(header.from_offset),
        }
    }
}

/// Where a delta is kept that comes in more than one piece.
pub enum Keep<W> {
    /// An empty place.
    New(W),
    /// Behind what is there already. Whoever sends was told its [`Begun::end`].
    Behind(Box<Begun<W>>),
}

/// Copies the frames of the delta that `reader` reads to where it is kept, up to its trailer. A sender need not go on
/// where it was cut: what begins elsewhere replaces what is there, which is then emptied by `empty`. Gives back the place.
pub fn keep<W: DurableWrite>(
    reader: &mut DeltaReader<impl Read>,
    what: &str,
    place: Keep<W>,
    empty: impl FnOnce(&mut W) -> io::Result<()>,
    cancel: &Cancel,
) -> Result<W> {
    let damaged = |source| Error::Damaged {
        what: what.to_owned(),
        source,
    };
    let begin = |out| DeltaWriter::new(out, reader.header(), reader.samples()).map_err(failed);
    let mut writer = match place {
        Keep::New(out) => begin(out)?,
        Keep::Behind(begun) if begun.end() == reader.header().from_offset => {
            let begun = *begun;
            if begun.part.whole_bytes.is_some() {
                // Nothing is missing, and what comes all the same is not needed.
                while reader.next_frame().map_err(damaged)?.is_some() {
                    cancel.check()?;
                }
                return Ok(begun.out);
            }
            DeltaWriter::resume(begun.out, begun.part, begun.hasher)
        }
        Keep::Behind(mut begun) => {
            empty(&mut begun.out).map_err(failed)?;
            begin(begun.out)?
        }
    };
    let mut unpacked = Vec::new();
    let mut unsynced = 0;
    while let Some(frame) = reader.next_frame().map_err(damaged)? {
        cancel.check()?;
        if frame.extent.offset() < writer.frames_end() {
            return Err(damaged(FormatError::OutOfOrder {
                at: frame.at,
                found: format!("a frame at {}", frame.extent.offset()),
                expected: format!("a frame at or after {}", writer.frames_end()),
            }));
        }
        if frame.kind == Kind::Zero {
            writer.zero(frame.extent).map_err(failed)?;
            continue;
        }
        let record = frame.record;
        let stored = reader.stored_payload().map_err(damaged)?;
        // What can not be unpacked is found while nothing was written, and not in the middle.
        unpacked.resize(frame.extent.length().min(MAX_FRAME_BYTES) as usize, 0);
        decompress(record.codec, stored, &mut unpacked).map_err(|reason| {
            damaged(FormatError::Payload {
                at: frame.at,
                codec: record.codec.name(),
                length: record.length,
                reason,
            })
        })?;
        let written = writer.data_with_crc(frame.extent, record.codec, stored, record.payload_crc);
        written.map_err(failed)?;
        unsynced += stored.len() as u64;
        if unsynced >= SYNC_BYTES {
            unsynced = 0;
            let synced = writer.flush().and_then(|()| writer.get_mut().sync());
            synced.map_err(failed)?;
        }
    }
    let (_, mut out) = writer.finish().map_err(failed)?;
    out.sync().map_err(failed)?;
    Ok(out)
}

fn failed(error: io::Error) -> Error {
    let action =
        "cannot keep the delta beside the destination; another place can be named with --spool";
    Error::io(action, error)
}

/// Input that leaves a copy of what goes by.
struct Copying<'a, R> {
    input: R,
    copy: &'a File,
    /// Why the copy could not be made.
    failed: &'a RefCell<Option<io::Error>>,
}

impl<R: Read> Read for Copying<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        if let Err(error) = self.copy.write_all(&buffer[..read]) {
            let shown = io::Error::other(error.to_string());
            self.failed.replace(Some(error));
            return Err(shown);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::codec::{Compression, Compressor};
    use crate::delta::header::tests::header;
    use crate::delta::writer::DeltaWriter;
    use crate::error::ExitCode;
    use crate::extent::Extent;

    fn delta() -> Vec<u8> {
        let mut writer =
            DeltaWriter::new(Vec::new(), &header(1 << 30), &Samples::default()).unwrap();
        for frame in 0..300 {
            writer
                .zero(Extent::new(frame * 8192, 4096).unwrap())
                .unwrap();
        }
        writer.finish().unwrap().1
    }

    fn through(bytes: &[u8]) -> Result<Vec<u8>> {
        let file = tempfile::tempfile().unwrap();
        let mut file = spool(bytes, "x", file, |_, _| Ok(()), &Cancel::new())?;
        let mut copy = Vec::new();
        file.read_to_end(&mut copy).unwrap();
        Ok(copy)
    }

    #[test]
    fn a_sound_delta_comes_out_as_it_went_in_and_a_cut_one_not_at_all() {
        let bytes = delta();
        assert_eq!(through(&bytes).unwrap(), bytes);
        for cut in [0, 10, 100, bytes.len() / 2, bytes.len() - 1] {
            assert_eq!(
                through(&bytes[..cut]).unwrap_err().exit_code(),
                ExitCode::Damaged
            );
        }
    }

    /// What `stream` makes of a place that holds `kept`, which is a delta or nothing.
    fn behind(kept: &[u8], stream: &[u8]) -> Result<Vec<u8>> {
        let mut place = Memory(kept.to_vec());
        let keep_it = match SoundPart::of(kept) {
            Ok(part) => {
                place
                    .0
                    .truncate(usize::try_from(part.bytes_to_keep()).unwrap());
                let mut hasher = blake3::Hasher::new();
                hasher.update(&place.0);
                let out = &mut place;
                Keep::Behind(Box::new(Begun { out, part, hasher }))
            }
            Err(_) => {
                place.0.clear();
                Keep::New(&mut place)
            }
        };
        let mut reader = DeltaReader::new(stream).unwrap();
        let empty = |place: &mut &mut Memory| {
            place.0.clear();
            Ok(())
        };
        keep(&mut reader, "x", keep_it, empty, &Cancel::new())?;
        Ok(place.0)
    }

    struct Memory(Vec<u8>);

    impl Write for &mut Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl DurableWrite for &mut Memory {
        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a sender sends that goes on at `offset`: every second of 40 frames is zero, the others are compressed.
    fn from(offset: u64) -> Vec<u8> {
        let header = header(1 << 30).continued_at(offset);
        let mut writer = DeltaWriter::new(Vec::new(), &header, &Samples::default()).unwrap();
        for frame in (0..40).filter(|frame| frame * 8192 >= offset) {
            let extent = Extent::new(frame * 8192, 4096).unwrap();
            if frame % 2 == 0 {
                writer.zero(extent).unwrap();
                continue;
            }
            let mut stored = Vec::new();
            let mut compressor = Compressor::new(Compression::Zstd(1)).unwrap();
            let codec = compressor
                .compress(&vec![frame as u8; 4096], &mut stored)
                .unwrap();
            writer.data(extent, codec, &stored).unwrap();
        }
        writer.finish().unwrap().1
    }

    #[test]
    fn a_delta_that_comes_in_pieces_is_the_one_that_comes_whole() {
        let whole = behind(b"", &from(0)).unwrap();
        assert_eq!(whole, from(0));
        for cut in (0..whole.len()).step_by(53) {
            let end = SoundPart::of(&whole[..cut]).map_or(0, |part| part.frames_end);
            assert!(
                behind(&whole[..cut], &from(end)).unwrap() == whole,
                "cut at {cut}"
            );
            // Who begins anew is believed, too.
            assert!(
                behind(&whole[..cut], &from(0)).unwrap() == whole,
                "cut at {cut}"
            );
        }
        assert!(behind(&whole, &from(1 << 30)).unwrap() == whole);
    }

    #[test]
    fn what_goes_on_before_the_end_of_what_is_there_is_damage() {
        let whole = from(0);
        let half = &whole[..whole.len() / 2];
        let end = SoundPart::of(half).unwrap().frames_end;
        let mut lying = DeltaWriter::new(
            Vec::new(),
            &header(1 << 30).continued_at(end),
            &Samples::default(),
        )
        .unwrap();
        lying.zero(Extent::new(0, 4096).unwrap()).unwrap();
        let lying = lying.finish().unwrap().1;
        let error = behind(half, &lying).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Damaged);
    }

    #[test]
    fn a_full_disk_is_named_as_that() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = spool(&delta()[..], "x", full, |_, _| Ok(()), &Cancel::new()).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Failed);
        assert!(error.chain().contains("--spool"), "{}", error.chain());
    }
}
