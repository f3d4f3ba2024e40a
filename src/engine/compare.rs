//! Are two volumes equal? Here, by their bytes; over a session, by digests.
//!
//! Guarantees: nothing is written; what is found to differ is exactly the blocks of 4 KiB (at the ends of an
//! extent that begins or ends inside one, their parts in it) whose bytes differ, as long as nobody writes
//! meanwhile; where somebody does, the list may be too long and is never too short for what was read. Memory is
//! a few buffers and 16 bytes for each extent that differs.
//!
//! Over a session each end reads and hashes for itself. Pieces of 1 MiB are compared first, and blocks only in
//! those that differ; up to [`MAX_UNANSWERED`] requests are under way, so that no end waits for the wire.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::digester::{Digester, buffer};
use crate::blocks::{BLOCK_BYTES, PIECE_BYTES, Reading, add_differing, cut, parts, readings};
use crate::cancel::Cancel;
use crate::change_list::{ChangeList, ChangeListBuilder};
use crate::error::{Error, Result};
use crate::extent::{Extent, Kind};
use crate::monitor::Monitor;
use crate::session::SessionError;
use crate::session::compare_client::{CompareClient, MAX_UNANSWERED};
use crate::session::compare_wire::{
    REQUEST_HEADER_BYTES, Request, RequestError, RequestHeader, requests,
};
use crate::session::server::Server;
use crate::sys::aligned::AlignedBuffer;

pub use super::digester::Side;

/// Buffers that a reader may be ahead of the comparison.
const AHEAD: usize = 2;

/// Which bytes of `extents` differ between two volumes that are both here. Both are read at the same time.
pub fn compare_here(
    extents: &ChangeList,
    one: Side<'_>,
    other: Side<'_>,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<ChangeList> {
    let gap = one
        .volume
        .gap_worth_reading()
        .max(other.volume.gap_worth_reading());
    let plan = || readings(pieces(extents), gap);
    thread::scope(|scope| {
        let [one, other] = [one, other].map(|side| {
            let (to_caller, filled) = sync_channel(AHEAD);
            let (give_back, used) = sync_channel(AHEAD + 2);
            scope.spawn(move || read_all(side, plan(), &used, &to_caller, cancel));
            Lane { filled, give_back }
        });
        // Returning drops both lanes, which ends the readers wherever they are.
        let mut differing = ChangeListBuilder::default();
        for reading in plan() {
            let (a, b) = (one.next()?, other.next()?);
            for ((part, a), (_, b)) in reading.bytes_of(&a).zip(reading.bytes_of(&b)) {
                add_differing(part, a, b, &mut differing);
                monitor.advance(part.length());
            }
            one.done_with(a);
            other.done_with(b);
        }
        Ok(differing.finish())
    })
}

fn pieces(extents: &ChangeList) -> impl Iterator<Item = Extent> + '_ {
    extents
        .iter()
        .flat_map(|change| cut(change.extent, PIECE_BYTES))
}

/// The way from a reader, and back for its buffers.
struct Lane {
    filled: Receiver<Result<AlignedBuffer>>,
    give_back: SyncSender<AlignedBuffer>,
}

impl Lane {
    fn next(&self) -> Result<AlignedBuffer> {
        let lost = || Error::io("a reading thread was lost", io::ErrorKind::Other.into());
        self.filled.recv().unwrap_or_else(|_| Err(lost()))
    }

    fn done_with(&self, buffer: AlignedBuffer) {
        let _ = self.give_back.try_send(buffer);
    }
}

fn read_all(
    side: Side<'_>,
    plan: impl Iterator<Item = Reading>,
    used: &Receiver<AlignedBuffer>,
    to_caller: &SyncSender<Result<AlignedBuffer>>,
    cancel: &Cancel,
) {
    for reading in plan {
        let mut buffer = used.try_recv().unwrap_or_else(|_| buffer());
        let read = cancel.check();
        let read = read.and_then(|()| side.read(reading.span, &mut buffer).map(|_| ()));
        let failed = read.is_err();
        if to_caller.send(read.map(|()| buffer)).is_err() || failed {
            return;
        }
    }
}

/// Which end failed.
#[derive(Debug)]
pub enum Failed {
    /// This one.
    Here(Error),
    /// The far one, or the way to it.
    There(SessionError),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Here(error)
    }
}

impl From<SessionError> for Failed {
    fn from(error: SessionError) -> Self {
        Failed::There(error)
    }
}

/// Which bytes of `extents` differ between a volume here and the far end's. The caller ends the session.
pub fn compare_there<W: Write>(
    extents: &ChangeList,
    near: Side<'_>,
    far: &mut CompareClient<W>,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> std::result::Result<ChangeList, Failed> {
    let mut digester = Digester::new(near);
    let mut in_pieces = requests(extents.iter().map(|change| change.extent));
    // Each answer adds at most one of these, so there are never more than requests under way.
    let mut in_blocks: VecDeque<Request> = VecDeque::new();
    let mut unanswered: VecDeque<Request> = VecDeque::new();
    let mut differing = ChangeListBuilder::default();
    loop {
        while unanswered.len() < MAX_UNANSWERED
            && let Some(request) = in_blocks.pop_front().or_else(|| in_pieces.next())
        {
            far.ask_for(&request)?;
            unanswered.push_back(request);
        }
        let Some(request) = unanswered.pop_front() else {
            return Ok(differing.finish());
        };
        let ours = digester.digests(&request, cancel)?;
        let theirs = far.answer(ours.len())?;
        let parts = request.differing(&ours, &theirs);
        if request.block == BLOCK_BYTES {
            add_blocks(&request.extents, parts, &mut differing);
        } else {
            in_blocks.extend(look_closer(parts, &mut differing));
            monitor.advance(request.bytes());
        }
    }
}

/// Asks again for the pieces that differ, in blocks. What lies in one block is known already.
fn look_closer(
    pieces: impl Iterator<Item = Extent>,
    differing: &mut ChangeListBuilder,
) -> Option<Request> {
    let (small, large): (Vec<Extent>, Vec<Extent>) =
        pieces.partition(|piece| parts(*piece, BLOCK_BYTES) == 1);
    for block in small {
        differing.push(block, Kind::Data);
    }
    (!large.is_empty()).then_some(Request {
        block: BLOCK_BYTES,
        extents: large,
    })
}

/// Adds the `blocks` that differ. A piece that differed, and in which no block does any more, was written to
/// meanwhile: it counts as different, since once it was.
fn add_blocks(
    pieces: &[Extent],
    blocks: impl Iterator<Item = Extent>,
    differing: &mut ChangeListBuilder,
) {
    let mut blocks = blocks.peekable();
    for piece in pieces {
        let mut none = true;
        while let Some(block) = blocks.next_if(|block| block.end() <= piece.end()) {
            differing.push(block, Kind::Data);
            none = false;
        }
        if none {
            differing.push(*piece, Kind::Data);
        }
    }
}

/// The far end: answers the requests of a session until it ends. The caller says Done.
pub fn answer<R: Read, W: Write>(
    server: &mut Server<R, W>,
    side: Side<'_>,
    cancel: &Cancel,
) -> std::result::Result<(), Failed> {
    let replies = server.replies();
    let size_bytes = side.volume.size_bytes();
    let mut digester = Digester::new(side);
    while let Some(request) = next_request(server, size_bytes)? {
        replies.digests(&digester.digests(&request, cancel)?)?;
    }
    Ok(())
}

/// The next request of a stream of them; `None` where it ends between two.
pub fn next_request(
    input: &mut impl Read,
    size_bytes: u64,
) -> std::result::Result<Option<Request>, SessionError> {
    let mut header = [0; REQUEST_HEADER_BYTES];
    match fill(input, &mut header)? {
        0 => return Ok(None),
        REQUEST_HEADER_BYTES => {}
        _ => return Err(RequestError::Truncated.into()),
    }
    let header = RequestHeader::decode(header)?;
    let mut rest = vec![0; header.rest_bytes];
    let filled = fill(input, &mut rest)?;
    Ok(Some(header.request(&rest[..filled], size_bytes)?))
}

/// Reads until `buffer` is full or the input ends; says how much came.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> std::result::Result<usize, SessionError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(SessionError::Io {
                    action: "cannot read what is asked",
                    source,
                });
            }
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
