//! Which pages of a file are in memory, by mincore(2).
//!
//! Guarantees: to ask reads nothing, and brings nothing into memory. The file is mapped for it and never touched
//! through the mapping, so that whatever happens to the file nobody is sent a signal.

use std::ffi::{c_uchar, c_void};
use std::fs::File;
use std::io;
use std::ptr::null_mut;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::param::page_size;

/// A file whose pages may be asked for.
#[derive(Debug)]
pub struct Resident {
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: the mapping belongs to this alone, and is never read or written.
unsafe impl Send for Resident {}
// SAFETY: as above; mincore may be asked by several threads.
unsafe impl Sync for Resident {}

impl Resident {
    /// For the first `bytes` of `file`.
    pub fn of(file: &File, bytes: u64) -> io::Result<Self> {
        // Where addresses are few they are for others.
        let most = isize::MAX.unsigned_abs() / 8;
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= most);
        let bytes = bytes.ok_or(io::ErrorKind::FileTooLarge)?;
        // SAFETY: a new mapping where the system wants it, that gives no access to anything.
        let start = unsafe {
            mmap(
                null_mut(),
                bytes,
                ProtFlags::empty(),
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        Ok(Self { start, bytes })
    }

    /// Whether the page at `offset` is in memory; `None` past the part that was asked for. Who neither owns the file nor may
    /// write to it is told by Linux 5.2 and later that it is.
    pub fn has(&self, offset: u64) -> Option<bool> {
        let offset = usize::try_from(offset).ok();
        let offset = offset.filter(|offset| *offset < self.bytes)?;
        let page = offset - offset % page_size();
        let mut answer: c_uchar = 1;
        // SAFETY: the page lies in the mapping, and one page takes one byte of answer.
        let failed = unsafe { libc::mincore(self.start.byte_add(page), 1, &raw mut answer) } != 0;
        Some(failed || answer & 1 == 1)
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        // SAFETY: mapped in `of` with this length, and unmapped only here.
        let _ = unsafe { munmap(self.start, self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Advice, fadvise, fstatfs};
    use std::io::Write;

    const EXT4: u32 = 0xef53;

    #[test]
    fn what_was_just_written_is_there_and_what_was_given_up_is_not() {
        // Beside the code: /tmp may be in memory, from where nothing is given up.
        let Ok(mut file) = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")) else {
            return;
        };
        file.write_all(&[1; 100_000]).unwrap();
        let resident = Resident::of(&file, 100_000).unwrap();
        assert_eq!(resident.has(100_000), None);
        assert_eq!(resident.has(u64::MAX), None);
        if u32::try_from(fstatfs(&file).unwrap().f_type) != Ok(EXT4) {
            return;
        }
        assert_eq!(resident.has(0), Some(true));
        assert_eq!(resident.has(99_999), Some(true));
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert_eq!(resident.has(50_000), Some(false));
        assert_eq!(resident.has(50_000), Some(false), "asking reads nothing");
    }

    #[test]
    fn a_file_that_becomes_shorter_is_asked_without_harm() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 100_000]).unwrap();
        let resident = Resident::of(&file, 100_000).unwrap();
        file.set_len(0).unwrap();
        assert_eq!(resident.has(90_000), Some(false));
    }

    #[test]
    fn nothing_can_be_asked_of_an_empty_file() {
        let file = tempfile::tempfile().unwrap();
        assert!(Resident::of(&file, 0).is_err());
    }
}
