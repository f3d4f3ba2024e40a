//! What is written over a view, in a file of its own.
//!
//! Guarantees: nothing but this file is written; what was written is read back, by everybody; a block that was written in part has
//! the view's content in the rest. Which blocks were written is known in memory alone, so the file is of no use afterwards,
//! and has no name from the beginning: whatever ends the run, it is gone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use super::nbd::Export;
use super::state::View;
use crate::error::{Error, Result};
use crate::extent::{Change, Extent, Kind};
use crate::volume::file::FileVolume;
use crate::volume::{ReadAt, WriteAt};

const BLOCK_BYTES: u64 = 4096;
/// Blocks that are noted together.
const GROUP_BLOCKS: u64 = 4096;

/// Which blocks were written: a bit each, where any was.
#[derive(Default)]
struct Marks(BTreeMap<u64, Box<[u64; 64]>>);

impl Marks {
    fn has(&self, block: u64) -> bool {
        let place = block % GROUP_BLOCKS;
        let word = self
            .0
            .get(&(block / GROUP_BLOCKS))
            .and_then(|group| group.get((place / 64) as usize));
        word.is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    fn set(&mut self, block: u64) {
        let place = block % GROUP_BLOCKS;
        let group = self.0.entry(block / GROUP_BLOCKS);
        let group = group.or_insert_with(|| Box::new([0; 64]));
        if let Some(word) = group.get_mut((place / 64) as usize) {
            *word |= 1 << (place % 64);
        }
    }

    /// From the beginning of `extent` on, as far as it is all written or all not written.
    fn run(&self, extent: Extent) -> (Extent, bool) {
        let first = extent.offset() / BLOCK_BYTES;
        let is_written = self.has(first);
        let mut block = first + 1;
        while block * BLOCK_BYTES < extent.end() {
            let group = block / GROUP_BLOCKS;
            if !is_written && !self.0.contains_key(&group) {
                // Nothing was written far and wide.
                block = (group + 1) * GROUP_BLOCKS;
            } else if self.has(block) == is_written {
                block += 1;
            } else {
                break;
            }
        }
        let end = (block * BLOCK_BYTES).min(extent.end());
        (
            Extent::from_range(extent.offset(), end).unwrap_or(extent),
            is_written,
        )
    }
}

/// A view that can be written.
pub struct Scratch<'a, V> {
    view: &'a View<'a, V>,
    file: FileVolume,
    marks: RwLock<Marks>,
}

impl<'a, V: ReadAt> Scratch<'a, V> {
    /// Puts what is written into a new file at `path`, which loses its name at once.
    pub fn create(view: &'a View<'a, V>, path: &Path) -> Result<Self> {
        let failed = |error| Error::io(format!("cannot create {}", path.display()), error);
        if path.symlink_metadata().is_ok() {
            return Err(Error::refused(
                path.display().to_string(),
                "this file exists, and what is written over a view goes into a new one",
                "Choose another name; it is only where there is room.",
            ));
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let file = file.map_err(failed)?;
        std::fs::remove_file(path).map_err(failed)?;
        file.set_len(ReadAt::size_bytes(view)).map_err(failed)?;
        Ok(Self {
            view,
            file: FileVolume::new(file).map_err(failed)?,
            marks: RwLock::default(),
        })
    }

    /// Makes the blocks at both ends of `extent` whole, so that all of them can be called written.
    fn complete_ends(&self, extent: Extent, marks: &Marks) -> io::Result<()> {
        let (first, last) = (
            extent.offset() / BLOCK_BYTES,
            (extent.end() - 1) / BLOCK_BYTES,
        );
        for block in [first, last] {
            let start = block * BLOCK_BYTES;
            let end = (start + BLOCK_BYTES).min(ReadAt::size_bytes(self.view));
            let is_whole = extent.offset() <= start && end <= extent.end();
            if is_whole || marks.has(block) {
                continue;
            }
            let mut content = vec![0; usize::try_from(end - start).unwrap_or(0)];
            self.view
                .read(&mut content, start)
                .map_err(|error| in_words(&error))?;
            self.file.write_all_at(&content, start)?;
        }
        Ok(())
    }

    fn change(
        &self,
        extent: Extent,
        change: impl FnOnce(&FileVolume) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        self.complete_ends(extent, &marks)?;
        change(&self.file)?;
        for block in extent.offset() / BLOCK_BYTES..=(extent.end() - 1) / BLOCK_BYTES {
            marks.set(block);
        }
        Ok(())
    }

    /// Data and holes of the file in `extent`, which was written.
    fn map_written(&self, extent: Extent, found: &mut Vec<Change>) -> io::Result<()> {
        let mut at = extent.offset();
        while at < extent.end() {
            let data = self
                .file
                .next_data(at)?
                .and_then(|data| data.intersect(extent));
            let data_at = data.map_or(extent.end(), Extent::offset);
            push(found, Extent::from_range(at, data_at), Kind::Zero);
            push(found, data, Kind::Data);
            at = data.map_or(extent.end(), Extent::end);
        }
        Ok(())
    }
}

/// Joins what is alike.
fn push(found: &mut Vec<Change>, extent: Option<Extent>, kind: Kind) {
    let Some(extent) = extent else {
        return;
    };
    if let Some(last) = found.last_mut().filter(|last| last.kind == kind)
        && let Some(joined) = Extent::from_range(last.extent.offset(), extent.end())
    {
        last.extent = joined;
        return;
    }
    found.push(Change { extent, kind });
}

/// The whole chain in words, for who runs the export.
pub(super) fn in_words(error: &Error) -> io::Error {
    io::Error::other(error.chain())
}

impl<V: ReadAt> Export for View<'_, V> {
    fn size_bytes(&self) -> u64 {
        ReadAt::size_bytes(self)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        View::read(self, buffer, offset).map_err(|error| in_words(&error))
    }

    fn map(&self, extent: Extent, most: usize) -> io::Result<Vec<Change>> {
        View::map(self, extent.offset(), extent.length(), most).map_err(|error| in_words(&error))
    }
}

impl<V: ReadAt> Export for Scratch<'_, V> {
    fn size_bytes(&self) -> u64 {
        ReadAt::size_bytes(self.view)
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        let mut rest = buffer;
        let mut at = offset;
        while let Some(extent) = Extent::new(at, rest.len() as u64) {
            let (run, is_written) = marks.run(extent);
            let length = usize::try_from(run.length())
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (now, later) = std::mem::take(&mut rest).split_at_mut(length);
            if is_written {
                self.file.read_exact_at(now, at)?;
            } else {
                self.view.read(now, at).map_err(|error| in_words(&error))?;
            }
            at = run.end();
            rest = later;
        }
        Ok(())
    }

    fn map(&self, extent: Extent, most: usize) -> io::Result<Vec<Change>> {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        let mut at = extent.offset();
        while let Some(left) = Extent::from_range(at, extent.end()).filter(|_| found.len() <= most)
        {
            let (run, is_written) = marks.run(left);
            at = run.end();
            if is_written {
                self.map_written(run, &mut found)?;
                continue;
            }
            let of_view = self
                .view
                .map(run.offset(), run.length(), most)
                .map_err(|error| in_words(&error))?;
            // It may have stopped early.
            at = of_view.last().map_or(at, |last| last.extent.end());
            for change in of_view {
                push(&mut found, Some(change.extent), change.kind);
            }
        }
        found.truncate(most);
        Ok(found)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        match Extent::new(offset, data.len() as u64) {
            Some(extent) => self.change(extent, |file| file.write_all_at(data, offset)),
            None => Ok(()),
        }
    }

    fn zero(&self, extent: Extent) -> io::Result<()> {
        self.change(extent, |file| file.zero_at(extent))
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync()
    }
}
