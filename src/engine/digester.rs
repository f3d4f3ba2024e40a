//! Reads extents of a volume and makes digests of their parts, with a few threads.
//!
//! Guarantees: digests are in the order of the parts; memory is one buffer of 1 MiB a thread, half a MiB for the digests of
//! what was read last, and what the volume remembers; a read that fails names the volume and the place.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::remembering::Remembering;
use crate::blocks::{
    Digest, PART_BYTES, PIECE_BYTES, Reading, digest, digest_of_parts, readings, usize_of,
};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::session::compare_wire::Request;
use crate::sys::aligned::AlignedBuffer;
use crate::volume::ReadAt;

/// More readers do not help a disk.
const MAX_WORKERS: usize = 4;

/// Digests of parts that are remembered: twice as many as of what may be under way in long extents.
const KNOWN_PARTS: usize = 16_384;

/// A volume that is read to be compared.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// The volume.
    pub volume: &'a dyn ReadAt,
    /// Its name for messages.
    pub name: &'a str,
}

impl Side<'_> {
    /// Reads `extent` into the beginning of `buffer`, and gives that part.
    pub(super) fn read<'b>(&self, extent: Extent, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
        let cannot = |error: io::Error| {
            let error = match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    io::Error::other("it is shorter than it was when it was opened")
                }
                _ => error,
            };
            let (length, at) = (extent.length(), extent.offset());
            Error::io(
                format!("cannot read {length} bytes at {at} of {}", self.name),
                error,
            )
        };
        let room = buffer
            .get_mut(..usize_of(extent.length()))
            .ok_or_else(|| cannot(io::ErrorKind::InvalidInput.into()))?;
        self.volume
            .read_exact_at(room, extent.offset())
            .map_err(cannot)?;
        Ok(room)
    }
}

/// A buffer for any reading.
pub(super) fn buffer() -> AlignedBuffer {
    AlignedBuffer::new(usize_of(PIECE_BYTES))
}

/// Makes digests of one volume.
pub struct Digester<'a> {
    volume: &'a Remembering<'a>,
    buffers: Vec<AlignedBuffer>,
    known: KnownParts,
}

impl<'a> Digester<'a> {
    /// For `volume`, which keeps what is read here.
    pub fn new(volume: &'a Remembering<'a>) -> Self {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let buffers = (0..workers.clamp(1, MAX_WORKERS)).map(|_| buffer());
        Self {
            volume,
            buffers: buffers.collect(),
            known: KnownParts::default(),
        }
    }

    /// A digest of each part that `request` asks for.
    pub fn digests(&mut self, request: &Request, cancel: &Cancel) -> Result<Vec<Digest>> {
        if request.block == PART_BYTES
            && let Some(known) = self.known.all_of(&request.extents)
        {
            return Ok(known);
        }
        if request.block <= PART_BYTES {
            return self.read(request, cancel);
        }
        let parts = Request {
            block: PART_BYTES,
            extents: request.extents.clone(),
        };
        let parts = self.read(&parts, cancel)?;
        let mut rest = parts.as_slice();
        let mut digests = Vec::new();
        for piece in request.parts() {
            let count = usize_of(crate::blocks::parts(piece, PART_BYTES)).min(rest.len());
            let (here, behind) = rest.split_at(count);
            digests.push(digest_of_parts(here));
            self.known.put(piece, here);
            rest = behind;
        }
        Ok(digests)
    }

    fn read(&mut self, request: &Request, cancel: &Cancel) -> Result<Vec<Digest>> {
        let volume = self.volume;
        let to_keep = volume.to_keep(&request.extents);
        let (side, keeps) = to_keep.map_or((volume.side(), false), |side| (side, true));
        let mut digests = vec![Digest::default(); request.parts().count()];
        let mut places = digests.as_mut_slice();
        let work = readings(request.parts(), side.volume.gap_worth_reading()).map(move |reading| {
            let (here, rest) = std::mem::take(&mut places).split_at_mut(reading.parts.len());
            places = rest;
            (reading, here)
        });
        let work = Mutex::new(work);
        let next = || work.lock().unwrap_or_else(PoisonError::into_inner).next();
        let run = |buffer: &mut AlignedBuffer| -> Result<()> {
            while let Some((reading, places)) = next() {
                cancel.check()?;
                fill(side, &reading, buffer, places)?;
                if keeps {
                    volume.keep(reading.span, buffer);
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let Some((mine, others)) = self.buffers.split_first_mut() else {
                return Ok(());
            };
            let others: Vec<_> = others
                .iter_mut()
                .map(|buffer| scope.spawn(|| run(buffer)))
                .collect();
            let mut result = run(mine);
            for other in others {
                let lost = || {
                    Err(Error::io(
                        "a reading thread was lost",
                        io::Error::other("panic"),
                    ))
                };
                result = result.and(other.join().unwrap_or_else(|_| lost()));
            }
            result
        })?;
        Ok(digests)
    }
}

fn fill(side: Side<'_>, reading: &Reading, buffer: &mut [u8], places: &mut [Digest]) -> Result<()> {
    let bytes = side.read(reading.span, buffer)?;
    for ((_, part), place) in reading.bytes_of(bytes).zip(places) {
        *place = digest(part);
    }
    Ok(())
}

/// Digests of parts of the pieces that were read last: whoever finds that a piece differs asks for them next.
#[derive(Default)]
struct KnownParts {
    /// Oldest first.
    pieces: VecDeque<(Extent, Vec<Digest>)>,
    /// Digests of all of them.
    count: usize,
}

impl KnownParts {
    fn put(&mut self, piece: Extent, parts: &[Digest]) {
        self.count += parts.len();
        self.pieces.push_back((piece, parts.to_vec()));
        while self.count > KNOWN_PARTS
            && let Some((_, oldest)) = self.pieces.pop_front()
        {
            self.count -= oldest.len();
        }
    }

    /// `None` unless all are known.
    fn all_of(&self, pieces: &[Extent]) -> Option<Vec<Digest>> {
        let mut digests = Vec::new();
        for piece in pieces {
            let found = self.pieces.iter().rev().find(|(known, _)| known == piece)?;
            digests.extend_from_slice(&found.1);
        }
        Some(digests)
    }
}
