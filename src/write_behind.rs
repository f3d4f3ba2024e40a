//! A file that goes to the disk while it is written, so that the sync at its end has little left to wait for.
//!
//! Guarantees: what is written is written as without it, and nothing is promised to be durable: that is still for a sync of the
//! file itself, which hears of every failure. The writes to the disk are begun through another opening of the file, since
//! the kernel tells of a failed one only once for each.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

/// So much is on its way to the disk at once.
const PART_BYTES: u64 = 32 << 20;

/// Writes to a file.
pub struct WriteBehind<'a> {
    file: &'a File,
    part_bytes: u64,
    /// Since the last part.
    written: u64,
    /// `None` where it cannot be opened twice, or no thread be had: then the sync at the end has it all to do.
    behind: Option<Behind>,
}

struct Behind {
    begin: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl<'a> WriteBehind<'a> {
    /// Writes to `file` from where it stands.
    pub fn new(file: &'a File) -> Self {
        Self::in_parts_of(file, PART_BYTES)
    }

    fn in_parts_of(file: &'a File, part_bytes: u64) -> Self {
        Self {
            file,
            part_bytes,
            written: 0,
            behind: Behind::new(file).ok(),
        }
    }
}

impl Behind {
    fn new(file: &File) -> io::Result<Self> {
        let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let (begin, parts) = sync_channel(1);
        let sync = move || {
            // A failure is told by the sync at the end.
            while parts.recv().is_ok() && again.sync_data().is_ok() {}
        };
        let thread = thread::Builder::new().name("write behind".to_owned());
        Ok(Self {
            begin,
            thread: thread.spawn(sync)?,
        })
    }
}

impl Write for WriteBehind<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.written = self.written.saturating_add(written as u64);
        if self.written >= self.part_bytes {
            self.written = 0;
            if let Some(behind) = &self.behind {
                // One that is under way, and one that waits, are enough.
                let _ = behind.begin.try_send(());
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for WriteBehind<'_> {
    fn drop(&mut self) {
        if let Some(Behind { begin, thread }) = self.behind.take() {
            drop(begin);
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn what_is_written_is_there_whatever_the_parts() {
        for part_bytes in [1, 1000, 4096, 1 << 30] {
            let mut file = tempfile::tempfile().unwrap();
            let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
            let mut behind = WriteBehind::in_parts_of(&file, part_bytes);
            for piece in content.chunks(7777) {
                behind.write_all(piece).unwrap();
            }
            behind.flush().unwrap();
            drop(behind);
            let mut found = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut found).unwrap();
            assert!(found == content, "parts of {part_bytes}");
        }
    }

    #[test]
    fn a_file_that_takes_nothing_says_so() {
        let file = File::open("/dev/null").unwrap();
        let mut behind = WriteBehind::in_parts_of(&file, 1);
        assert!(behind.write_all(b"x").is_err());
    }
}
