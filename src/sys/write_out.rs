//! Sends what was written to a file on its way to the disk, by `sync_file_range(2)`.
//!
//! Guarantees: nobody waits until it is there, only for room in the queue of a disk that is behind; nothing is durable by it.
//! What fails at once, such as finding room for it, is said here: the kernel may forget such pages, of which a sync later on
//! would not hear.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::io::Errno;

/// Begins to write the `length` bytes at `offset`, as far as they are in memory alone. Where that cannot be asked for, it is
/// not done.
pub fn write_out(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // SAFETY: takes an open descriptor and numbers, and no memory of ours.
    let failed = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset,
            length,
            libc::SYNC_FILE_RANGE_WRITE,
        )
    } != 0;
    if !failed {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match Errno::from_io_error(&error) {
        // One that was interrupted has sent less, which is no failure; and to its caller it would seem as if nothing was written.
        Some(Errno::INTR | Errno::NOSYS | Errno::INVAL | Errno::SPIPE | Errno::OPNOTSUPP) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_has_no_disk_or_no_end_is_let_be() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"some").unwrap();
        write_out(&file, 0, 4).unwrap();
        write_out(&file, 1 << 40, 1).unwrap();
        let null = File::options().write(true).open("/dev/null").unwrap();
        write_out(&null, 0, 1).unwrap();
        assert!(write_out(&file, u64::MAX, 1).is_err());
    }
}
