//! A whole delta beside the destination, before the first block of the destination is touched.
//!
//! Guarantees: what comes back has been read to its trailer, every checksum matched, and it is on stable storage.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};

use crate::cancel::Cancel;
use crate::delta::header::Header;
use crate::delta::proto3::{FirstLine, Proto3Reader, read_first_line};
use crate::delta::reader::DeltaReader;
use crate::delta::samples::Samples;
use crate::error::{Error, Result};

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

    #[test]
    fn a_full_disk_is_named_as_that() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = spool(&delta()[..], "x", full, |_, _| Ok(()), &Cancel::new()).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Failed);
        assert!(error.chain().contains("--spool"), "{}", error.chain());
    }
}
