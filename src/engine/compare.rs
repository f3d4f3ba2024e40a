//! Are two volumes equal? Here, by their bytes; over a session, by digests.
//!
//! Guarantees: nothing is written; what is found to differ is exactly the blocks of 4 KiB (at the ends of an
//! extent that begins or ends inside one, their parts in it) whose bytes differ, as long as nobody writes
//! meanwhile; where somebody does, the list may be too long and is never too short for what was read. Memory is
//! a few buffers, over a session what was read last, and 16 bytes for each extent that differs.
//!
//! Over a session each end reads and hashes for itself. Pieces of 1 MiB are compared first, parts of 16 KiB in those
//! that differ, and blocks only in parts that differ; where most pieces of the last request differed, parts are first. Several
//! requests are under way, so that no end waits for the wire, and so few that a closer look finds in memory what was read
//! for the first.

mod ahead;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::time::Instant;

use ahead::Ahead;

use super::FrameSink;
use super::digester::Digester;
use super::effort::Effort;
use super::pump::{PumpOptions, pump};
use super::remembering::{KEPT_PIECES, Remembering};
use crate::blocks::{BLOCK_BYTES, Digest, PART_BYTES, PIECE_BYTES, parts};
use crate::cancel::Cancel;
use crate::change_list::{ChangeList, ChangeListBuilder};
use crate::delta::codec::{Codec, Compression};
use crate::error::{Error, Result};
use crate::extent::{Extent, Kind};
use crate::monitor::Monitor;
use crate::session::SessionError;
use crate::session::asker::{Asker, MAX_UNANSWERED};
use crate::session::client::Outgoing;
use crate::session::compare_wire::{Request, requests};
use crate::session::message::Done;
use crate::session::server::{Replies, Server};
use crate::volume::ReadAt;

pub use super::digester::Side;

/// Which bytes of `extents` differ between two volumes that are both here. Both are read at the same time.
pub fn compare_here(
    extents: &ChangeList,
    one: Side<'_>,
    other: Side<'_>,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<ChangeList> {
    let mut differing = Differing::default();
    let options = PumpOptions {
        effort: &Effort::new(Compression::None),
        cancel,
        monitor,
        unlike: Some(other),
    };
    pump(one, extents, &mut differing, &options)?;
    Ok(differing.0.finish())
}

/// Keeps where something differs, and nothing of what.
#[derive(Default)]
struct Differing(ChangeListBuilder);

impl FrameSink for Differing {
    fn data(&mut self, extent: Extent, _: Codec, _: &[u8], _: u32) -> Result<()> {
        self.0.push(extent, Kind::Data);
        Ok(())
    }

    fn zero(&mut self, extent: Extent) -> Result<()> {
        self.0.push(extent, Kind::Data);
        Ok(())
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

/// What of a comparison is settled: kept when its session is lost, so that another one goes on behind it.
#[derive(Default)]
pub struct SoFar {
    differing: ChangeListBuilder,
    end: u64,
}

impl SoFar {
    /// Volume offset of its end: everything before is settled.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// What of it differs.
    pub fn differing(self) -> ChangeList {
        self.differing.finish()
    }

    /// Nothing before `end` differs.
    #[cfg(test)]
    pub(crate) fn settled_to(end: u64) -> Self {
        let differing = ChangeListBuilder::default();
        Self { differing, end }
    }

    fn add(&mut self, settled: &Settled) {
        for change in settled.differing.iter() {
            self.differing.push(change.extent, change.kind);
        }
        self.end = settled.end;
    }
}

/// Compares what of `extents` is not settled so far, between a volume here and the far end's, whose session ends with this, and
/// gives what that says in the end. What was settled is in `so_far` whatever comes of the rest.
pub fn compare_there<W: Write>(
    extents: &ChangeList,
    so_far: &mut SoFar,
    near: Side<'_>,
    mut far: Outgoing<W>,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> std::result::Result<Done, Failed> {
    let rest;
    let extents = if so_far.end == 0 {
        extents
    } else {
        rest = extents.from_offset(so_far.end);
        &rest
    };
    let mut gather = |settled: Settled| {
        so_far.add(&settled);
        Ok(())
    };
    let near = Remembering::of(near);
    let compared = far.asker().map_err(Failed::There).and_then(|mut asker| {
        compare_in_order(extents, &near, &mut asker, cancel, monitor, &mut gather)
    });
    match compared {
        Ok(()) => far.finish().map_err(Failed::There),
        Err(Failed::Here(error)) => {
            far.abort(&error.to_string());
            Err(Failed::Here(error))
        }
        Err(Failed::There(error)) => {
            let reason = far.abort(&error.to_string());
            // Where the connection broke or the far end failed, that is the reason; unless it broke because of this.
            let reason = reason.filter(|_| !matches!(error, SessionError::Digests { .. }));
            Err(Failed::There(reason.unwrap_or(error)))
        }
    }
}

/// Some of the volume that is compared to the last block.
pub struct Settled {
    /// What of it differs.
    pub differing: ChangeList,
    /// Volume offset of its end: everything before is settled as well.
    pub end: u64,
}

/// The same; what is settled is told in order, a few mebibytes at a time.
pub fn compare_in_order<W: Write>(
    extents: &ChangeList,
    near: &Remembering<'_>,
    far: &mut Asker<W>,
    cancel: &Cancel,
    monitor: &dyn Monitor,
    on_settled: &mut dyn FnMut(Settled) -> Result<()>,
) -> std::result::Result<(), Failed> {
    let mut digester = Digester::new(near);
    let mut in_pieces = requests(extents.iter().map(|change| change.extent));
    let mut windows = Windows::default();
    // Each answer adds at most one of these, so there are never more than requests under way.
    let mut closer: VecDeque<Question> = VecDeque::new();
    let mut unanswered: VecDeque<(Question, Instant)> = VecDeque::new();
    // Since the last answer, with what the caller takes: where that is slow, little ahead is enough.
    let (mut ahead, mut since) = (Ahead::default(), Instant::now());
    // Of what was asked for first, and what it is asked for by.
    let (mut under_way_bytes, mut block) = (0, PIECE_BYTES);
    loop {
        while unanswered.len() < MAX_UNANSWERED {
            let question = match closer.pop_front() {
                Some(question) => question,
                None => {
                    let most_bytes = ahead.bytes();
                    let at_once = Ahead::at_once(most_bytes);
                    if under_way_bytes + at_once > most_bytes {
                        break;
                    }
                    let Some(request) = in_pieces.next(at_once, block) else {
                        break;
                    };
                    under_way_bytes += request.bytes();
                    windows.open(request)
                }
            };
            far.ask_for(&question.request)?;
            unanswered.push_back((question, Instant::now()));
        }
        let Some((question, asked)) = unanswered.pop_front() else {
            return Ok(());
        };
        let ours = digester.digests(&question.request, cancel)?;
        let theirs = far.answer(ours.len())?;
        if question.is_first {
            let bytes = question.request.bytes();
            under_way_bytes -= bytes;
            ahead.answered(bytes, asked.elapsed(), since.elapsed());
            since = Instant::now();
            monitor.advance(bytes);
        }
        let Some(window) = windows.get(question.window) else {
            continue;
        };
        let found = look_closer(&question, &ours, &theirs, &mut window.differing);
        if found.closer.is_none() {
            window.is_open = false;
        }
        if question.is_first {
            let most_differ = found.differing * 2 > question.request.extents.len();
            block = if most_differ { PART_BYTES } else { PIECE_BYTES };
        }
        closer.extend(found.closer.map(|request| Question {
            window: question.window,
            is_first: false,
            request,
        }));
        while let Some(settled) = windows.settled() {
            on_settled(settled)?;
        }
    }
}

/// Two closer looks, each behind as much as may be under way, and what is being read.
const _: () = assert!(
    KEPT_PIECES as u64 * PIECE_BYTES >= 2 * ahead::LEAST_BYTES + ahead::LEAST_AT_ONCE_BYTES
);

/// What is asked for of a window.
struct Question {
    /// Its number.
    window: u64,
    /// All of the window is asked for, and nothing of it was before.
    is_first: bool,
    request: Request,
}

/// What was asked for first, in order, and what was found in it.
#[derive(Default)]
struct Windows {
    windows: VecDeque<Window>,
    /// Number of the first of them.
    first: u64,
}

struct Window {
    differing: ChangeListBuilder,
    end: u64,
    /// There is an answer that it waits for.
    is_open: bool,
}

impl Windows {
    fn open(&mut self, request: Request) -> Question {
        let window = self.first + self.windows.len() as u64;
        self.windows.push_back(Window {
            differing: ChangeListBuilder::default(),
            end: request.extents.last().map_or(0, |extent| extent.end()),
            is_open: true,
        });
        Question {
            window,
            is_first: true,
            request,
        }
    }

    fn get(&mut self, number: u64) -> Option<&mut Window> {
        let place = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.windows.get_mut(place)
    }

    fn settled(&mut self) -> Option<Settled> {
        if self.windows.front()?.is_open {
            return None;
        }
        let window = self.windows.pop_front()?;
        self.first += 1;
        Some(Settled {
            differing: window.differing.finish(),
            end: window.end,
        })
    }
}

/// What an answer leads to.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// How many of the extents differ.
    differing: usize,
    /// What may differ in some of its blocks only.
    closer: Option<Request>,
}

/// Adds what differs, as far as that is known to the block, and asks again for what may differ in some of its blocks
/// only. What differed, and of which no part does any more, was written to meanwhile: it counts as different, since
/// once it was.
fn look_closer(
    question: &Question,
    ours: &[Digest],
    theirs: &[Digest],
    differing: &mut ChangeListBuilder,
) -> Found {
    let request = &question.request;
    let finer = match request.block {
        PIECE_BYTES => PART_BYTES,
        _ => BLOCK_BYTES,
    };
    let mut found = request.differing(ours, theirs).peekable();
    let mut extents = Vec::new();
    let mut count = 0;
    for extent in &request.extents {
        let mut none = true;
        while let Some(part) = found.next_if(|part| part.end() <= extent.end()) {
            none = false;
            if request.block == BLOCK_BYTES || parts(part, BLOCK_BYTES) == 1 {
                differing.push(part, Kind::Data);
            } else {
                extents.push(part);
            }
        }
        if none && !question.is_first {
            differing.push(*extent, Kind::Data);
        }
        count += usize::from(!none);
    }
    let closer = (!extents.is_empty()).then_some(Request {
        block: finer,
        extents,
    });
    Found {
        differing: count,
        closer,
    }
}

/// The far end: answers the requests of a session until it ends. The caller says Done.
pub fn answer<R: Read, W: Write>(
    server: &mut Server<R, W>,
    side: Side<'_>,
    cancel: &Cancel,
) -> std::result::Result<(), Failed> {
    let (replies, volume) = (server.replies(), Remembering::of(side));
    let mut answering = Answering::new(&volume, &replies, cancel);
    while let Some(request) = server.next_asked()? {
        answering.answer(&request)?;
    }
    Ok(())
}

/// Answers requests for digests of one volume.
pub struct Answering<'a, W> {
    digester: Digester<'a>,
    size_bytes: u64,
    replies: &'a Replies<W>,
    cancel: &'a Cancel,
}

impl<'a, W: Write> Answering<'a, W> {
    /// Reads `volume` and answers to `replies`.
    pub fn new(volume: &'a Remembering<'a>, replies: &'a Replies<W>, cancel: &'a Cancel) -> Self {
        Self {
            digester: Digester::new(volume),
            size_bytes: volume.size_bytes(),
            replies,
            cancel,
        }
    }

    /// Answers one request.
    pub fn answer(&mut self, request: &[u8]) -> std::result::Result<(), Failed> {
        let request = Request::decode(request, self.size_bytes).map_err(SessionError::from)?;
        let digests = self.digester.digests(&request, self.cancel)?;
        Ok(self.replies.digests(&digests)?)
    }
}

#[cfg(test)]
mod tests;
