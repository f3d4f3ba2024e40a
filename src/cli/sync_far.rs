//! The two ends of a sync over a session: the one that compares and sends what differs, and the one that answers and
//! writes.
//!
//! Guarantees: what is sent at any moment lies before everything that is still being compared, so the answers are about
//! content that this run does not change; the stream ends only after all was compared.

use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::send::{Job, finish};
use super::serve::lost;
use super::summary::Summary;
use crate::cancel::Cancel;
use crate::change_list::{ChangeList, ChangeListBuilder};
use crate::destination::Destination;
use crate::engine::FrameSink;
use crate::engine::compare::{Answering, Failed, Settled, Side, compare_in_order};
use crate::engine::deliver::{DeltaSink, Paced};
use crate::engine::pump::{PumpOptions, pump};
use crate::engine::receive::{OnDurable, Received};
use crate::engine::remembering::Remembering;
use crate::engine::throttle::Throttle;
use crate::error::{Error, Result};
use crate::monitor::{Monitor, Words};
use crate::session::SessionError;
use crate::session::asker::Asker;
use crate::session::client::Outgoing;
use crate::session::limits::WithoutProto3;
use crate::session::server::{Replies, Server};
use crate::source::SendSource;

/// What the comparison may be ahead of the sending, in pieces of a few mebibytes.
const AHEAD: usize = 32;
/// What is sent in one go, about: so that the far end hears of it soon, and memory is no more.
const TOGETHER_BYTES: u64 = 8 << 20;
/// How often the far end is told how far all is settled.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Where a sync begins, and where the destination ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// What lies before is equal.
    pub(super) from_offset: u64,
    /// Size of the destination. What the source has beyond is sent without a look.
    pub(super) destination_bytes: u64,
}

/// Compares `source` with the far end and sends what differs. The caller ends the session.
pub(super) fn send<W: Write + Send>(
    job: &Job<'_>,
    source: &SendSource,
    places: Places,
    out: &mut Outgoing<W>,
    name: &str,
    summary: &mut Summary,
) -> Result<()> {
    let asker = out.asker().map_err(|error| error.into_error(name))?;
    let header = source.header.clone().by_comparing();
    let header = header.continued_at(places.from_offset);
    let paced = Paced::new(out, Throttle::new(job.to.bwlimit, job.cancel));
    let mut sink = DeltaSink::new(paced, &header, &source.samples, name)?;
    let sent = compare_and_send(job, source, places, asker, &mut sink, name);
    let sent = finish(sink, sent, summary);
    summary.extents = summary.frames.unwrap_or(0);
    sent
}

fn compare_and_send<W: Write + Send>(
    job: &Job<'_>,
    source: &SendSource,
    places: Places,
    mut asker: Asker<W>,
    sink: &mut dyn FrameSink,
    name: &str,
) -> Result<()> {
    let size = source.header.volume_size;
    let compared = ChangeList::whole(size.min(places.destination_bytes));
    let compared = compared.from_offset(places.from_offset);
    // The far end refuses what it will not take before anything is compared.
    sink.position(places.from_offset)?;
    let (to_sender, settled) = sync_channel(AHEAD);
    let (cancel, monitor) = (job.cancel, job.monitor);
    let remembering = Remembering::of(source.side());
    let near = &remembering;
    let (found, sent) = thread::scope(|scope| {
        let found = scope.spawn(move || {
            // Whoever sends has failed, and says why.
            let mut tell =
                |settled: Settled| to_sender.send(settled).map_err(|_| Error::Interrupted);
            compare_in_order(&compared, near, &mut asker, cancel, monitor, &mut tell)
        });
        let sent = send_settled(job, near.side(), &settled, sink);
        let sent = sent.map_err(|error| source.explain(error));
        drop(settled);
        (found.join(), sent)
    });
    sent?;
    match found {
        Ok(Ok(())) => {}
        Ok(Err(Failed::Here(error))) => return Err(source.explain(error)),
        Ok(Err(Failed::There(error))) => return Err(error.into_error(name)),
        Err(_) => {
            let lost = std::io::Error::other("panic");
            return Err(Error::io("a reading thread was lost", lost));
        }
    }
    // Its memory is for what follows.
    drop(remembering);
    let beyond = places.destination_bytes.max(places.from_offset);
    let beyond = source.changes.from_offset(beyond);
    pump_to(job, source.side(), &beyond, sink, monitor).map_err(|error| source.explain(error))?;
    source.check_unchanged()
}

/// Sends what differs as it is found, until nothing more comes.
fn send_settled(
    job: &Job<'_>,
    source: Side<'_>,
    settled: &Receiver<Settled>,
    sink: &mut dyn FrameSink,
) -> Result<()> {
    let words = Words(job.monitor);
    let mut told = Instant::now();
    while let Ok(first) = settled.recv() {
        let mut end = first.end;
        let mut together = ChangeListBuilder::default();
        let mut bytes = add(&mut together, &first.differing);
        while bytes < TOGETHER_BYTES
            && let Ok(more) = settled.try_recv()
        {
            bytes += add(&mut together, &more.differing);
            end = more.end;
        }
        pump_to(job, source, &together.finish(), sink, &words)?;
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            sink.position(end)?;
        }
    }
    Ok(())
}

fn add(builder: &mut ChangeListBuilder, list: &ChangeList) -> u64 {
    for change in list.iter() {
        builder.push(change.extent, change.kind);
    }
    list.total_bytes()
}

fn pump_to(
    job: &Job<'_>,
    source: Side<'_>,
    changes: &ChangeList,
    sink: &mut dyn FrameSink,
    monitor: &dyn Monitor,
) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let options = PumpOptions {
        effort: &job.effort,
        cancel: job.cancel,
        monitor,
        unlike: None,
    };
    pump(source, changes, sink, &options)
}

/// The far end of it: writes the stream, and answers what is asked in between.
pub(super) fn receive<R: Read, W: Write + Send>(
    server: &mut Server<R, W>,
    destination: &mut Destination,
    replies: &Replies<W>,
    cancel: &Cancel,
    monitor: &dyn Monitor,
    on_durable: OnDurable<'_>,
) -> Result<Received> {
    let volume = destination.readable();
    let name = destination.name().to_owned();
    let asked = server.hand_asked_on();
    thread::scope(|scope| {
        let answering = scope.spawn(move || {
            let volume = Remembering::of(Side {
                volume: &*volume,
                name: &name,
            });
            let mut answering = Answering::new(&volume, replies, cancel);
            let answered = asked
                .iter()
                .try_for_each(|request| answering.answer(&request));
            // The sender waits for an answer, and this end for the sender. What broke the connection is heard of there.
            match &answered {
                Err(Failed::Here(error)) => replies.fail(error).map_err(Failed::There)?,
                Err(Failed::There(SessionError::Request(error))) => {
                    let text = error.to_string();
                    let error = Error::io("what was asked", std::io::Error::other(text));
                    replies.fail(&error).map_err(Failed::There)?;
                }
                _ => {}
            }
            answered
        });
        let input = WithoutProto3::new(&mut *server);
        let received = destination.receive(input, "the sender", cancel, monitor, on_durable);
        server.no_more_asked();
        match answering.join() {
            // It ended the stream: that is the reason.
            Ok(Err(Failed::Here(error))) => Err(error),
            Ok(Err(Failed::There(error))) => Err(lost(error)),
            _ => received,
        }
    })
}
