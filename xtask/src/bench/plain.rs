//! What the hardware gives: loops that do one thing and nothing else, `xtask bench-plain WHAT ...`.
//!
//! They run as programs, like what they are held against, so that the start of a process counts for both.

use super::failed;
use crate::Done;
use clap::Subcommand;
use lab::Error;
use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

const PIECE: usize = 1 << 20;
const PAGE: usize = 4096;
/// What a pass over memory is hashed in.
const MEMORY: usize = 16 << 20;

#[derive(Subcommand)]
pub(crate) enum Plain {
    /// Read files, each in a thread of its own
    Read {
        files: Vec<PathBuf>,
        /// Past the page cache
        #[arg(long)]
        direct: bool,
    },
    /// Read and hash files, each in a thread of its own
    Hash {
        files: Vec<PathBuf>,
        /// Past the page cache
        #[arg(long)]
        direct: bool,
    },
    /// Write a file and have it on the disk
    Write {
        file: PathBuf,
        bytes: u64,
        /// Past the page cache
        #[arg(long)]
        direct: bool,
    },
    /// Write every page of the first so many MiB (a power of two), each once and none near the one before, past the page
    /// cache, and have them on the disk
    Pages { file: PathBuf, mib: u64 },
    /// Hash so many bytes of memory in each of so many threads
    HashMemory { threads: usize, bytes: u64 },
}

pub(crate) fn run(what: &Plain) -> Done {
    match what {
        Plain::Read { files, direct } => each(files, *direct, |bytes, (): &mut ()| {
            std::hint::black_box(bytes);
        })?,
        Plain::Hash { files, direct } => {
            each(files, *direct, |bytes, hasher: &mut blake3::Hasher| {
                hasher.update(bytes);
            })?;
        }
        Plain::Write {
            file,
            bytes,
            direct,
        } => write(file, *bytes, *direct).map_err(failed(file))?,
        Plain::Pages { file, mib } => pages(file, *mib).map_err(failed(file))?,
        Plain::HashMemory { threads, bytes } => hash_memory(*threads, *bytes),
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives each file piece by piece to `take`, with something of the file's own.
fn each<S: Default>(
    files: &[PathBuf],
    direct: bool,
    take: impl Fn(&[u8], &mut S) + Sync,
) -> lab::Result<()> {
    let read = |path: &Path| -> io::Result<()> {
        let mut file = File::options()
            .read(true)
            .custom_flags(flags(direct))
            .open(path)?;
        let (mut memory, mut own) = (vec![0; PIECE + PAGE], S::default());
        let buffer = from_page(&mut memory);
        loop {
            match file.read(buffer)? {
                0 => return Ok(()),
                length => take(&buffer[..length], &mut own),
            }
        }
    };
    let read = &read;
    thread::scope(|scope| {
        let running: Vec<_> = files
            .iter()
            .map(|path| scope.spawn(move || read(path).map_err(failed(path))))
            .collect();
        running.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Error::new("a reading thread panicked")))
        })
    })
}

fn write(path: &Path, bytes: u64, direct: bool) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .custom_flags(flags(direct))
        .open(path)?;
    let mut memory = vec![0; PIECE + PAGE];
    let piece = from_page(&mut memory);
    blake3::Hasher::new().finalize_xof().fill(piece);
    for _ in 0..bytes / PIECE as u64 {
        file.write_all(piece)?;
    }
    file.sync_data()
}

fn pages(path: &Path, mib: u64) -> io::Result<()> {
    let mut options = File::options();
    let file = options.write(true).custom_flags(flags(true)).open(path)?;
    let mut memory = vec![0; PIECE + PAGE];
    let piece = from_page(&mut memory);
    blake3::Hasher::new().finalize_xof().fill(piece);
    let (page, _) = piece.split_at(PAGE);
    for place in super::store::shuffled((mib << 8).ilog2()) {
        file.write_all_at(page, place * PAGE as u64)?;
    }
    file.sync_data()
}

fn flags(direct: bool) -> i32 {
    let flags = if direct {
        OFlags::DIRECT
    } else {
        OFlags::empty()
    };
    flags.bits().cast_signed()
}

/// The first whole piece that begins at a page, as direct I/O wants it, of memory that is a page longer.
fn from_page(memory: &mut [u8]) -> &mut [u8] {
    let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
    &mut memory[start..start + PIECE]
}

fn hash_memory(threads: usize, bytes: u64) {
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(move || {
                let memory = vec![1_u8; MEMORY];
                let mut hasher = blake3::Hasher::new();
                for _ in 0..bytes / MEMORY as u64 {
                    hasher.update(&memory);
                }
                std::hint::black_box(hasher.finalize());
            });
        }
    });
}
