//! A file that goes to the disk while it is written, so that the sync at its end has little left to wait for.
//!
//! Guarantees: what is written is written as without it, and nothing is promised to be durable: that is for a sync of the file.
//! Every failure is heard of, here or there. Nobody waits here until it is on the disk, so a run that fails or is stopped ends
//! soon.

use std::fs::File;
use std::io::{self, Seek, Write};

use crate::sys::write_out::write_out;

/// So much is sent to the disk at once.
const PART_BYTES: u64 = 16 << 20;

/// Writes to a file.
pub struct WriteBehind<'a> {
    file: &'a File,
    part_bytes: u64,
    /// Where the part begins that is being written.
    begins: u64,
    written: u64,
}

impl<'a> WriteBehind<'a> {
    /// Writes to `file` from where it stands.
    pub fn new(file: &'a File) -> io::Result<Self> {
        Self::in_parts_of(file, PART_BYTES)
    }

    fn in_parts_of(file: &'a File, part_bytes: u64) -> io::Result<Self> {
        let mut at = file;
        Ok(Self {
            file,
            part_bytes,
            begins: at.stream_position()?,
            written: 0,
        })
    }
}

impl Write for WriteBehind<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.written = self.written.saturating_add(written as u64);
        if self.written >= self.part_bytes {
            write_out(self.file, self.begins, self.written)?;
            self.begins = self.begins.saturating_add(self.written);
            self.written = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_is_written_is_there_whatever_the_parts() {
        for part_bytes in [1, 1000, 4096, 1 << 30] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"before").unwrap();
            let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
            let mut behind = WriteBehind::in_parts_of(&file, part_bytes).unwrap();
            for piece in content.chunks(7777) {
                behind.write_all(piece).unwrap();
            }
            behind.flush().unwrap();
            let mut found = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut found).unwrap();
            assert!(
                found == [b"before", &content[..]].concat(),
                "parts of {part_bytes}"
            );
        }
    }

    #[test]
    fn a_file_that_takes_nothing_says_so() {
        let file = File::open("/dev/null").unwrap();
        let mut behind = WriteBehind::in_parts_of(&file, 1).unwrap();
        assert!(behind.write_all(b"x").is_err());
    }
}
