//! Compression of frame payloads: none, lz4, zstd.
//!
//! Guarantees: decompression writes exactly the frame's length or fails, and never allocates by what the
//! payload says; compression that does not make a payload smaller is not used.

use std::fmt;
use std::str::FromStr;

/// How a payload is stored; the numbers are the format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    None = 0,
    /// lz4 block format.
    Lz4 = 1,
    /// One zstd frame.
    Zstd = 2,
}

impl Codec {
    /// The codec with this number in a record.
    pub fn from_number(number: u8) -> Option<Self> {
        [Codec::None, Codec::Lz4, Codec::Zstd]
            .into_iter()
            .find(|codec| *codec as u8 == number)
    }

    /// Its name on the command line and in listings.
    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }
}

/// What the user asks for with `--compress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Store as it is.
    #[default]
    None,
    /// Fast.
    Lz4,
    /// Small; the level is 1 to 19.
    Zstd(i32),
    /// Whatever makes a run fastest, found out while it goes on. Where nobody finds that out it is lz4.
    Auto,
}

const ZSTD_LEVEL_DEFAULT: i32 = 3;
const ZSTD_LEVEL_MAX: i32 = 19;

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("none", "") => Ok(Compression::None),
            ("lz4", "") => Ok(Compression::Lz4),
            ("auto", "") if !text.ends_with(':') => Ok(Compression::Auto),
            ("zstd", "") if !text.ends_with(':') => Ok(Compression::Zstd(ZSTD_LEVEL_DEFAULT)),
            ("zstd", level) => match level.parse() {
                Ok(level) if (1..=ZSTD_LEVEL_MAX).contains(&level) => Ok(Compression::Zstd(level)),
                _ => Err(format!(
                    "zstd levels are 1 to {ZSTD_LEVEL_MAX}, not `{level}`"
                )),
            },
            _ => Err(format!(
                "`{text}` is not a compression: use none, lz4, zstd, zstd:LEVEL or auto"
            )),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.write_str("none"),
            Compression::Lz4 => f.write_str("lz4"),
            Compression::Auto => f.write_str("auto"),
            Compression::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// Compresses payloads one after another, keeping the codec's working memory between them.
pub struct Compressor {
    compression: Compression,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Compressor {
    /// Makes ready; fails only when zstd cannot have its memory.
    pub fn new(compression: Compression) -> std::io::Result<Self> {
        let zstd = match compression {
            Compression::Zstd(level) => Some(zstd::bulk::Compressor::new(level)?),
            _ => None,
        };
        Ok(Self { compression, zstd })
    }

    /// Writes `data` compressed into `out` and names the codec; `None` when `data` is best stored as it
    /// is, and then `out` holds nothing of value.
    pub fn compress(&mut self, data: &[u8], out: &mut Vec<u8>) -> Option<Codec> {
        // Not even the room for it, which is filled with zeroes.
        if self.compression == Compression::None {
            return None;
        }
        // Room for one byte less than the data: what does not fit is not worth compressing.
        out.clear();
        out.resize(data.len().checked_sub(1)?, 0);
        let (codec, written) = match (self.compression, &mut self.zstd) {
            (Compression::Lz4 | Compression::Auto, _) => {
                // lz4_flex wants its worst case as room, so it gets that and the result is judged after.
                out.resize(lz4_flex::block::get_maximum_output_size(data.len()), 0);
                (Codec::Lz4, lz4_flex::block::compress_into(data, out).ok()?)
            }
            (Compression::Zstd(_), Some(zstd)) => (
                Codec::Zstd,
                zstd.compress_to_buffer(data, out.as_mut_slice()).ok()?,
            ),
            _ => return None,
        };
        out.truncate(written);
        (written > 0 && written < data.len()).then_some(codec)
    }
}

/// Decompresses `stored` so that it fills `out` exactly; the error is the codec's own words.
pub fn decompress(codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<(), String> {
    let expected = out.len();
    let written = match codec {
        Codec::None => {
            if stored.len() == expected {
                out.copy_from_slice(stored);
            }
            stored.len()
        }
        Codec::Lz4 => {
            lz4_flex::block::decompress_into(stored, out).map_err(|error| error.to_string())?
        }
        Codec::Zstd => {
            zstd::bulk::decompress_to_buffer(stored, out).map_err(|error| error.to_string())?
        }
    };
    if written == expected {
        Ok(())
    } else {
        Err(format!("it gave {written} bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn compression_is_named_as_on_the_command_line() {
        for text in ["none", "lz4", "zstd:1", "zstd:19", "auto"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        assert_eq!("zstd".parse(), Ok(Compression::Zstd(3)));
        for text in [
            "", "gzip", "auto:", "zstd:", "zstd:0", "zstd:20", "zstd:x", "lz4:3", "none:1",
        ] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_compressed_comes_back(
            seed in prop::collection::vec(any::<u8>(), 1..200), repeat in 1usize..60,
            compression in prop::sample::select(vec![
                Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(9)]),
        ) {
            let data = seed.repeat(repeat);
            let mut stored = Vec::new();
            let mut compressor = Compressor::new(compression).unwrap();
            if let Some(codec) = compressor.compress(&data, &mut stored) {
                prop_assert!(stored.len() < data.len());
                let mut back = vec![0; data.len()];
                decompress(codec, &stored, &mut back).unwrap();
                prop_assert_eq!(back, data.clone());
                let mut short = vec![0; data.len() - 1];
                prop_assert!(decompress(codec, &stored, &mut short).is_err());
                let mut long = vec![0; data.len() + 1];
                prop_assert!(decompress(codec, &stored, &mut long).is_err());
            }
        }
    }
}
