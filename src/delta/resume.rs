//! Finds what is sound of a delta that was cut, so that its writer can go on behind it.
//!
//! Pure but for the input. Guarantees: every frame that is counted as sound has passed its checksums, and so
//! has everything before it.

use std::io::Read;

use super::FormatError;
use super::header::Header;
use super::index::{Entry, IndexBuilder};
use super::reader::DeltaReader;
use super::samples::Samples;
use super::trailer::Counts;
use crate::extent::Kind;

/// The sound beginning of a delta.
#[derive(Debug)]
pub struct SoundPart {
    /// Its header.
    pub header: Header,
    /// Bytes of the delta up to the end of the last sound frame.
    pub delta_bytes: u64,
    /// Volume offset of that end.
    pub frames_end: u64,
    /// The trailer is there, and nothing was cut: bytes of the delta up to its end.
    pub whole_bytes: Option<u64>,
    pub(super) index: IndexBuilder,
    pub(super) counts: Counts,
}

impl SoundPart {
    /// Frames in it.
    pub fn frames(&self) -> u64 {
        self.counts.data_frames + self.counts.zero_frames
    }

    /// Reads a delta up to where it is cut or damaged. Fails only where not even its beginning is sound.
    pub fn of(input: impl Read) -> Result<Self, FormatError> {
        Self::read(&mut DeltaReader::new(input)?)
    }

    /// The same, with the samples behind its header.
    pub fn with_samples_of(input: impl Read) -> Result<(Self, Samples), FormatError> {
        let mut reader = DeltaReader::new(input)?;
        let part = Self::read(&mut reader)?;
        Ok((part, reader.samples().clone()))
    }

    /// Bytes of it that are worth keeping: what is whole has an end.
    pub fn bytes_to_keep(&self) -> u64 {
        self.whole_bytes.unwrap_or(self.delta_bytes)
    }

    fn read(reader: &mut DeltaReader<impl Read>) -> Result<Self, FormatError> {
        let mut part = Self {
            header: reader.header().clone(),
            delta_bytes: reader.frames_begin(),
            frames_end: 0,
            whole_bytes: None,
            index: IndexBuilder::default(),
            counts: Counts::default(),
        };
        loop {
            let frame = match reader.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    part.whole_bytes = Some(reader.position());
                    return Ok(part);
                }
                Err(error @ FormatError::Io(_)) => return Err(error),
                Err(_) => return Ok(part),
            };
            if frame.kind == Kind::Data {
                match reader.skip_payload() {
                    Ok(()) => {}
                    Err(error @ FormatError::Io(_)) => return Err(error),
                    Err(_) => return Ok(part),
                }
            }
            part.index.frame(Entry {
                volume_offset: frame.extent.offset(),
                delta_offset: frame.at,
            });
            part.counts.frame(&frame.record);
            part.frames_end = frame.extent.end();
            part.delta_bytes = reader.position();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::codec::Codec;
    use crate::delta::header::tests::header;
    use crate::delta::writer::DeltaWriter;
    use crate::extent::Extent;

    fn write(writer: &mut DeltaWriter<Vec<u8>>, frames: std::ops::Range<u64>) {
        for frame in frames {
            let extent = Extent::new(frame * 8192, 4096).unwrap();
            if frame % 5 == 4 {
                writer.zero(extent).unwrap();
            } else {
                let data = vec![frame as u8 ^ 0x5a; 4096];
                writer.data(extent, Codec::None, &data).unwrap();
            }
        }
    }

    fn whole(frames: u64) -> Vec<u8> {
        let mut writer =
            DeltaWriter::new(Vec::new(), &header(1 << 30), &Samples::default()).unwrap();
        write(&mut writer, 0..frames);
        writer.finish().unwrap().1
    }

    #[test]
    fn a_writer_goes_on_behind_every_cut() {
        let expected = whole(12);
        let frames_at = SoundPart::of(&whole(0)[..]).unwrap().delta_bytes as usize;
        // Without samples the reader looks at the record behind the header.
        let first = frames_at + crate::delta::record::RECORD_HEADER_BYTES;
        for cut in (first..=expected.len()).step_by(97).chain([expected.len()]) {
            let part = SoundPart::of(&expected[..cut]).unwrap();
            assert_eq!(part.whole_bytes.is_some(), cut == expected.len());
            let sound = part.delta_bytes as usize;
            assert!(sound <= cut);
            let done = part.frames();
            let mut hasher = blake3::Hasher::new();
            hasher.update(&expected[..sound]);
            let mut writer = DeltaWriter::resume(expected[..sound].to_vec(), part, hasher);
            write(&mut writer, done..12);
            assert_eq!(writer.finish().unwrap().1, expected, "cut at {cut}");
        }
    }

    #[test]
    fn damage_ends_the_sound_part() {
        let mut bytes = whole(6);
        let at = SoundPart::of(&whole(0)[..]).unwrap().delta_bytes as usize + 2 * 4128 + 100;
        bytes[at] ^= 1;
        let part = SoundPart::of(&bytes[..]).unwrap();
        assert_eq!(
            (part.frames(), part.frames_end, part.whole_bytes),
            (2, 8192 + 4096, None)
        );
        assert!(SoundPart::of(&bytes[..40]).is_err());
    }
}
