//! The end that sends: it asks for an operation, streams the delta, and waits for *done*.
//!
//! Guarantees: success is returned only after the far end said Done, which it may say only after End;
//! what the far end reports is returned in preference to the broken pipe that follows from it; a client
//! that stops early says so, and one that is dropped leaves a stream without its End.
//!
//! One thread reads what comes back while the caller writes, so that an error in the middle of the
//! stream stops the sender at its next message.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::SessionError;
use super::asker::MAX_UNANSWERED;
use super::handshake::{Agreed, agree};
use super::limits::{AckCheck, Bounded};
use super::line::ping_interval;
use super::message::{Ack, Done, HEADER_BYTES, Hello, Message, Open, Ready};
use super::server::Server;
use super::text::sanitise;
use super::transport::{MessageReader, MessageWriter, Traffic};

/// Bytes of the stream in one Data message.
pub const DATA_BYTES: usize = 256 << 10;

/// After a failed write: how long the far end's own words are waited for.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(5);

/// Hears what the far end tells during the stream, on the reading thread.
pub trait SessionEvents: Send + Sync {
    /// The far end got so far.
    fn acknowledged(&self, ack: &Ack) {
        let _ = ack;
    }

    /// Something the user should know; fit to be shown.
    fn warning(&self, text: &str) {
        let _ = text;
    }
}

/// Hears nothing.
impl SessionEvents for () {}

/// A session before its stream: greeted and agreed.
pub struct Client<R, W> {
    pub(super) reader: MessageReader<R>,
    pub(super) writer: MessageWriter<W>,
    pub(super) events: Arc<dyn SessionEvents>,
    acks: AckCheck,
    agreed: Agreed,
}

impl<R, W> Client<R, W> {
    /// What has greeted and agreed as a server, from now on in the other part.
    pub(super) fn of_server(
        reader: MessageReader<R>,
        writer: MessageWriter<W>,
        agreed: Agreed,
        events: Arc<dyn SessionEvents>,
    ) -> Self {
        Self {
            reader,
            writer,
            events: Bounded::new(events),
            acks: AckCheck::default(),
            agreed,
        }
    }
}

impl<R: Read + Send + 'static, W: Write + Send + 'static> Client<R, W> {
    /// Reads the greeting and exchanges Hellos. `requires` names the features that the far end must
    /// have (see [`super::handshake`]).
    pub fn connect(
        reader: R,
        writer: W,
        requires: &[&str],
        events: Arc<dyn SessionEvents>,
    ) -> Result<Self, SessionError> {
        Self::connect_within(reader, writer, requires, events, None)
    }

    /// The same, where `reader` and `writer` give up after `timeout`: the far end is told. From now on it
    /// hears that this end is there, however long something here takes.
    pub fn connect_within(
        reader: R,
        writer: W,
        requires: &[&str],
        events: Arc<dyn SessionEvents>,
        timeout: Option<Duration>,
    ) -> Result<Self, SessionError> {
        let mut reader = MessageReader::new(reader);
        let mut writer = MessageWriter::new(writer);
        reader.greeting()?;
        let ours = Hello::ours(requires).with_timeout(timeout);
        writer.send(&Message::Hello(ours.clone()))?;
        let theirs = match reader.expect("Hello")? {
            Message::Hello(hello) => hello,
            other => return Err(wrong_order("Hello", &other)),
        };
        match agree(&ours, theirs) {
            Ok(agreed) => {
                writer.ping_when_silent(ping_interval(timeout, agreed.peer.timeout()));
                Ok(Self {
                    reader,
                    writer,
                    events: Bounded::new(events),
                    acks: AckCheck::default(),
                    agreed,
                })
            }
            Err(error) => {
                // The far end finds out by itself as well; it need not hear it from us.
                let _ = writer.send(&Message::bye(&error.to_string()));
                Err(error)
            }
        }
    }

    /// Asks the far end to exchange parts: it sends what `open` names, and this end receives.
    pub fn pull(self, open: Open) -> Result<(Ready, Server<R, W>), SessionError> {
        let (ready, client) = self.ask(open)?;
        let server = Server::of_client(client.reader, client.writer, client.agreed);
        Ok((ready, server))
    }

    /// What the two ends agreed on.
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// Ends the session before anything was asked for, because of `reason`.
    pub fn leave(mut self, reason: &str) {
        // Whoever is not there any more need not hear it.
        let _ = self.writer.send(&Message::bye(reason));
    }

    /// No ack may be past the end of the volume that is sent, which has `size_bytes`.
    pub fn limit_acks(&mut self, size_bytes: u64) {
        self.acks.limit_to(size_bytes);
    }

    /// Asks for an operation; returns what the far end found, and where to write the stream.
    pub fn open(self, open: Open) -> Result<(Ready, Outgoing<W>), SessionError> {
        let (ready, client) = self.ask(open)?;
        Ok((
            ready,
            Outgoing::start(client.reader, client.writer, client.events, client.acks),
        ))
    }

    /// Asks for an operation; returns what the far end found.
    pub(super) fn ask(mut self, open: Open) -> Result<(Ready, Self), SessionError> {
        if let Err(error) = self.writer.send(&Message::Open(open)) {
            return Err(self.last_words_or(error));
        }
        let ready = loop {
            match self.reader.expect("Ready")? {
                Message::Ready(ready) => break ready,
                Message::Warning(warning) => self.events.warning(&sanitise(&warning.text)),
                other => return Err(wrong_order("Ready", &other)),
            }
        };
        Ok((ready, self))
    }

    /// Only for a write that failed: then the connection is broken, and this does not wait for long.
    fn last_words_or(mut self, error: SessionError) -> SessionError {
        loop {
            match self.reader.expect("Ready") {
                Err(reported @ SessionError::Reported(_)) => return reported,
                Err(_) => return error,
                Ok(_) => {}
            }
        }
    }
}

/// After Done: what an end that sends may still owe.
pub struct LastWord<W>(MessageWriter<W>);

impl<W: Write> LastWord<W> {
    /// Says how it went: 0 for all well.
    pub fn say(mut self, code: u8, reason: &str) -> Result<(), SessionError> {
        self.0.send(&Message::bye_with(code, reason, ""))
    }
}

/// The stream: what is written here arrives at the far end's reader.
pub struct Outgoing<W> {
    pub(super) writer: MessageWriter<W>,
    /// Room for a header, then the bytes that wait to be sent.
    buffer: Vec<u8>,
    pub(super) answers: Arc<Answers>,
    /// Digests as they come back.
    pub(super) digests: Option<Receiver<Vec<u8>>>,
    traffic: [Traffic; 2],
}

impl<W: Write> Outgoing<W> {
    fn start<R: Read + Send + 'static>(
        reader: MessageReader<R>,
        writer: MessageWriter<W>,
        events: Arc<dyn SessionEvents>,
        acks: AckCheck,
    ) -> Self {
        let answers = Arc::new(Answers::default());
        let theirs = Arc::clone(&answers);
        let traffic = [reader.traffic(), writer.traffic()];
        let (to_asker, digests) = sync_channel(MAX_UNANSWERED);
        let listen = move || theirs.settle(listen(reader, &*events, acks, &theirs, &to_asker));
        let spawned = std::thread::Builder::new()
            .name("session".to_owned())
            .spawn(listen);
        if let Err(source) = spawned {
            answers.settle(Err(SessionError::Io {
                action: "cannot start a thread",
                source,
            }));
        }
        Self {
            writer,
            buffer: vec![0; HEADER_BYTES],
            answers,
            digests: Some(digests),
            traffic,
        }
    }

    /// Bytes that went by, both ways, so far.
    pub fn traffic_bytes(&self) -> u64 {
        self.traffic.iter().map(Traffic::bytes).sum()
    }

    /// Ends the stream and waits until the far end says that all is durable.
    pub fn finish(self) -> Result<Done, SessionError> {
        self.finish_and_tell().map(|(done, _)| done)
    }

    /// The same, where the far end waits for a last word after its own.
    pub fn finish_and_tell(mut self) -> Result<(Done, LastWord<W>), SessionError> {
        // Where writing fails, the outcome says why.
        if self.send_buffer_and(&[]).is_ok() {
            self.answers.lock().end_sent = true;
            if let Err(error) = self.writer.send(&Message::End) {
                self.answers.wait_for_last_words(error);
            }
        }
        let done = self.answers.wait()?;
        Ok((done, LastWord(self.writer)))
    }

    /// Stops early, because of `reason`. If it was the session that failed, which a writer sees as an
    /// I/O error, this returns its error, the true reason, with the far end's words where it had any.
    /// Else it tells the far end, and returns `None`.
    pub fn abort(self, reason: &str) -> Option<SessionError> {
        self.abort_with(&Message::bye(reason))
    }

    /// The same, with a farewell that says more.
    pub fn abort_with(mut self, farewell: &Message) -> Option<SessionError> {
        if !self.answers.failed() {
            match self.writer.send(farewell) {
                Ok(()) => return None,
                Err(error) => self.answers.wait_for_last_words(error),
            }
        }
        self.answers.wait().err()
    }

    /// Sends what waits, and `rest` behind it, as one message.
    fn send_buffer_and(&mut self, rest: &[u8]) -> io::Result<()> {
        if self.buffer.len() > HEADER_BYTES || !rest.is_empty() {
            self.answers.check()?;
            if let Err(error) = self.writer.send_data_in_place(&mut self.buffer, rest) {
                let failed = error.as_io();
                self.answers.wait_for_last_words(error);
                self.answers.check()?;
                return Err(failed);
            }
            self.buffer.truncate(HEADER_BYTES);
        }
        self.answers.check()
    }
}

impl<W: Write> Write for Outgoing<W> {
    /// Fails as soon as the far end has; [`Self::abort`] and [`Self::finish`] then have its error.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = (HEADER_BYTES + DATA_BYTES).saturating_sub(self.buffer.len());
        match bytes.get(..room) {
            // Much at once is not copied.
            Some(full) => {
                self.send_buffer_and(full)?;
                Ok(full.len())
            }
            None => {
                self.buffer.extend_from_slice(bytes);
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_buffer_and(&[])
    }
}

/// What came back, shared by the reading thread and the caller. The first outcome stands.
#[derive(Default)]
pub(super) struct Answers {
    state: Mutex<State>,
    settled: Condvar,
}

#[derive(Default)]
struct State {
    end_sent: bool,
    /// Requests for digests that were not answered yet.
    unanswered: usize,
    outcome: Option<Result<Done, SessionError>>,
}

impl Answers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, outcome: Result<Done, SessionError>) {
        let mut state = self.lock();
        if state.outcome.is_none() {
            state.outcome = Some(outcome);
        }
        self.settled.notify_all();
    }

    /// One more request for digests is sent, unless something failed.
    pub(super) fn asks(&self) -> io::Result<()> {
        self.check()?;
        self.lock().unanswered += 1;
        Ok(())
    }

    /// Digests came: were they asked for?
    fn answered(&self) -> bool {
        let mut state = self.lock();
        let was_asked = state.unanswered > 0;
        state.unanswered = state.unanswered.saturating_sub(1);
        was_asked
    }

    fn failed(&self) -> bool {
        matches!(self.lock().outcome, Some(Err(_)))
    }

    pub(super) fn check(&self) -> io::Result<()> {
        match &self.lock().outcome {
            Some(Err(error)) => Err(error.as_io()),
            _ => Ok(()),
        }
    }

    /// After a failed write: the outcome is what the far end says, or how the connection ended, or, if
    /// neither comes in time, `error`.
    pub(super) fn wait_for_last_words(&self, error: SessionError) {
        let unsettled = |state: &mut State| state.outcome.is_none();
        let waited = self
            .settled
            .wait_timeout_while(self.lock(), LAST_WORDS, unsettled);
        drop(waited);
        self.settle(Err(error));
    }

    fn wait(&self) -> Result<Done, SessionError> {
        let unsettled = |state: &mut State| state.outcome.is_none();
        let waited = self.settled.wait_while(self.lock(), unsettled);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state
            .outcome
            .take()
            .unwrap_or(Err(SessionError::Closed { expected: "Done" }))
    }
}

/// The reading thread: until Done, an error, or the end of the connection.
fn listen<R: Read>(
    mut reader: MessageReader<R>,
    events: &dyn SessionEvents,
    mut acks: AckCheck,
    answers: &Answers,
    to_asker: &SyncSender<Vec<u8>>,
) -> Result<Done, SessionError> {
    loop {
        match reader.expect("Done")? {
            Message::Ack(ack) => {
                acks.next(&ack)?;
                events.acknowledged(&ack);
            }
            Message::Warning(warning) => events.warning(&sanitise(&warning.text)),
            // No more are under way than there is room for. Where nobody waits any more, nobody needs them.
            Message::Digests(digests) if answers.answered() => {
                let _ = to_asker.send(digests);
            }
            Message::Done(_) if !answers.lock().end_sent => {
                return Err(SessionError::Order {
                    expected: "Ack",
                    found: "Done before End",
                });
            }
            Message::Done(done) => return Ok(done),
            other => return Err(wrong_order("Ack or Done", &other)),
        }
    }
}

pub(super) fn wrong_order(expected: &'static str, found: &Message) -> SessionError {
    SessionError::Order {
        expected,
        found: found.tag().name(),
    }
}
