//! The end that receives: it takes one request, reads the stream, and answers.
//!
//! Guarantees: reading ends without error only at the client's End; a client that vanishes or gives up
//! before is an error, never a short stream; after Done or Error nothing more is said.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::SessionError;
use super::asker::MAX_UNANSWERED;
use super::client::{Client, LAST_WORDS, SessionEvents, wrong_order};
use super::handshake::{Agreed, agree};
use super::line::ping_interval;
use super::message::{
    Ack, Done, Hello, MAX_TEXT_BYTES, Message, OPERATION_APPLY, OPERATION_COMPARE, OPERATION_PULL,
    OPERATION_SYNC, Open, Ready,
};
use super::text::shorten;
use super::transport::{MessageReader, MessageWriter, Next};
use crate::blocks::Digest;
use crate::error::{Error, ExitCode};

const OPERATIONS: [&str; 4] = [
    OPERATION_APPLY,
    OPERATION_COMPARE,
    OPERATION_SYNC,
    OPERATION_PULL,
];

/// A session, greeted and agreed. As a `Read` it yields the bytes of the stream, once ready.
pub struct Server<R, W> {
    reader: MessageReader<R>,
    replies: Replies<W>,
    agreed: Agreed,
    ping_every: Duration,
    /// The Data message that is being read, and how much of it was.
    data: Vec<u8>,
    position: usize,
    ended: bool,
    failure: Option<SessionError>,
    /// Where requests for digests go that come in between the stream.
    asked: Option<SyncSender<Vec<u8>>>,
}

impl<R: Read, W: Write> Server<R, W> {
    /// Greets, and exchanges Hellos.
    pub fn accept(reader: R, writer: W) -> Result<Self, SessionError> {
        Self::accept_within(reader, writer, None)
    }

    /// The same, where `reader` and `writer` give up after `timeout`: the client is told.
    pub fn accept_within(
        reader: R,
        writer: W,
        timeout: Option<Duration>,
    ) -> Result<Self, SessionError> {
        let mut reader = MessageReader::new(reader);
        let mut writer = MessageWriter::new(writer);
        let ours = Hello::ours(&[]).with_timeout(timeout);
        writer.greeting()?;
        writer.send(&Message::Hello(ours.clone()))?;
        let theirs = match reader.expect("Hello")? {
            Message::Hello(hello) => hello,
            other => return Err(wrong_order("Hello", &other)),
        };
        let replies = Replies::new(writer);
        match agree(&ours, theirs) {
            Ok(agreed) => Ok(Self {
                reader,
                replies,
                ping_every: ping_interval(timeout, agreed.peer.timeout()),
                agreed,
                data: Vec::new(),
                position: 0,
                ended: false,
                failure: None,
                asked: None,
            }),
            Err(error) => {
                let _ = replies.fail_with(ExitCode::Remote, &error.to_string());
                Err(error)
            }
        }
    }

    /// What the two ends agreed on.
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// What the client wants. An operation that is not known is reported to it and refused here.
    pub fn request(&mut self) -> Result<Open, SessionError> {
        match self.reader.expect("Open")? {
            Message::Open(open) if OPERATIONS.contains(&open.operation.as_str()) => Ok(open),
            Message::Open(open) => {
                let operation = super::text::sanitise(&open.operation);
                let reason = format!("the operation `{operation}` is not known");
                let _ = self.replies.fail_with(ExitCode::Remote, &reason);
                Err(SessionError::Incompatible(reason))
            }
            other => Err(wrong_order("Open", &other)),
        }
    }

    /// Lets the client begin its stream.
    pub fn ready(&mut self, ready: Ready) -> Result<(), SessionError> {
        self.replies.send(&Message::Ready(ready))
    }

    /// Bytes that went by, both ways, so far.
    pub fn traffic_bytes(&self) -> u64 {
        let written = self.replies.lock().writer.traffic();
        self.reader.traffic().bytes() + written.bytes()
    }

    /// Where to answer; cheap to clone, from any thread.
    pub fn replies(&self) -> Replies<W> {
        self.replies.clone()
    }

    /// What ended the stream, if it was the connection or the client: the true reason of whatever error
    /// the reader of the stream came to.
    pub fn failure(&self) -> Option<&SessionError> {
        self.failure.as_ref()
    }

    /// The same, for keeps.
    pub fn into_failure(self) -> Option<SessionError> {
        self.failure
    }

    /// As [`Self::into_failure`], where nothing could be said any more (`is_lost`): a peer that has stopped has said why
    /// before it closed its end, and that was not read yet.
    pub fn into_last_words(mut self, is_lost: bool) -> Option<SessionError> {
        let start = Instant::now();
        while self.failure.is_none() && is_lost && start.elapsed() < LAST_WORDS {
            self.failure = self.reader.expect("its last words").err();
        }
        self.failure
    }

    /// In a pull with a snapshot that is to be kept, after Done: how the sender fared with it. The code, 0 for all
    /// well, and its words.
    pub fn last_word(&mut self) -> Result<(u8, String), SessionError> {
        match self.reader.expect("Bye") {
            Err(SessionError::Stopped { code, reason, .. }) => Ok((code, reason)),
            Err(error) => Err(error),
            Ok(other) => Err(wrong_order("Bye", &other)),
        }
    }

    /// In the operation `compare`: the next request for digests; `None` at the client's End.
    pub fn next_asked(&mut self) -> Result<Option<Vec<u8>>, SessionError> {
        match self.reader.expect("Ask or End")? {
            Message::Ask(request) => Ok(Some(request)),
            Message::End => {
                self.ended = true;
                Ok(None)
            }
            other => Err(wrong_order("Ask or End", &other)),
        }
    }

    /// In the operation `sync`: requests for digests that come in between the stream are handed on here, by whoever
    /// reads the stream. Until [`Self::no_more_asked`].
    pub fn hand_asked_on(&mut self) -> Receiver<Vec<u8>> {
        let (sender, receiver) = sync_channel(MAX_UNANSWERED);
        self.asked = Some(sender);
        receiver
    }

    /// The other end of [`Self::hand_asked_on`] hears that nothing more comes.
    pub fn no_more_asked(&mut self) {
        self.asked = None;
    }

    /// What came next; of data that fits into `room` so many bytes, which are there by now.
    fn next_data(&mut self, room: &mut [u8]) -> Result<usize, SessionError> {
        let message = match self.reader.expect_into("Data or End", room)? {
            Next::Data(bytes) => return Ok(bytes),
            Next::Message(message) => message,
        };
        match message {
            Message::Data(data) => {
                self.data = data;
                self.position = 0;
            }
            Message::Ask(request) => match &self.asked {
                Some(asked) => asked.send(request).map_err(|_| {
                    let text = "it asks on after what could not be answered";
                    SessionError::Violation(text.to_owned())
                })?,
                None => return Err(wrong_order("Data or End", &Message::Ask(request))),
            },
            Message::End => self.ended = true,
            other => return Err(wrong_order("Data or End", &other)),
        }
        Ok(0)
    }
}

impl<R, W> Server<R, W> {
    /// What has greeted and agreed as a client, from now on in the other part.
    pub(super) fn of_client(
        reader: MessageReader<R>,
        writer: MessageWriter<W>,
        agreed: Agreed,
    ) -> Self {
        Self {
            reader,
            replies: Replies::new(writer),
            // The writer pings by itself since it agreed.
            ping_every: Duration::MAX,
            agreed,
            data: Vec::new(),
            position: 0,
            ended: false,
            failure: None,
            asked: None,
        }
    }
}

impl<R: Read, W: Write> Server<R, W> {
    /// In the operation `pull`, once ready: from now on this end sends. `events` hears what the other one says.
    pub fn into_client(self, events: Arc<dyn SessionEvents>) -> Client<R, W> {
        let writer = self.replies.lock().writer.clone();
        Client::of_server(self.reader, writer, self.agreed, events)
    }
}

impl<R: Read, W: Write> Read for Server<R, W> {
    /// After an error, [`Self::failure`] has it, and every further read fails as well.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.data.len() && !self.ended {
            if self.failure.is_none() {
                match self.next_data(buffer) {
                    Ok(0) => {}
                    Ok(read) => return Ok(read),
                    Err(failure) => self.failure = Some(failure),
                }
            }
            if let Some(failure) = &self.failure {
                return Err(failure.as_io());
            }
        }
        let left = self.data.get(self.position..).unwrap_or_default();
        let taken = left.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&left[..taken]);
        self.position += taken;
        Ok(taken)
    }
}

impl<R: Read, W: Write + Send + 'static> Server<R, W> {
    /// From now on the client hears that this end is there, however long something here takes.
    pub fn keep_alive(&self) {
        let inner = self.replies.lock();
        inner.writer.ping_when_silent(self.ping_every);
    }
}

/// The way back to the client.
pub struct Replies<W> {
    inner: Arc<Mutex<Inner<W>>>,
}

struct Inner<W> {
    writer: MessageWriter<W>,
    closed: bool,
}

impl<W> Clone for Replies<W> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<W> Replies<W> {
    fn new(writer: MessageWriter<W>) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                writer,
                closed: false,
            })),
        }
    }
}

impl<W: Write> Replies<W> {
    /// So much is durable.
    pub fn ack(&self, ack: Ack) -> Result<(), SessionError> {
        self.send(&Message::Ack(ack))
    }

    /// Something the user should know.
    pub fn warn(&self, text: &str) -> Result<(), SessionError> {
        self.send(&Message::warning(text))
    }

    /// The answer to one request for digests.
    pub fn digests(&self, digests: &[Digest]) -> Result<(), SessionError> {
        self.send(&Message::Digests(digests.as_flattened().to_vec()))
    }

    /// All is done and durable. The last word.
    pub fn done(&self, done: Done) -> Result<(), SessionError> {
        self.send(&Message::Done(done))
    }

    /// It failed: the whole chain and the exit code go to the client. The last word.
    pub fn fail(&self, error: &Error) -> Result<(), SessionError> {
        let held = error.is_held();
        let code = error.exit_code() as u8;
        self.send(&Message::failure(code, &error.chain(), held))
    }

    /// The same, with [`super::message::Failure::recover`].
    pub fn fail_to_recover(&self, error: &Error, recover: &str) -> Result<(), SessionError> {
        let held = error.is_held();
        let code = error.exit_code() as u8;
        let mut message = Message::failure(code, &error.chain(), held);
        if let Message::Error(failure) = &mut message {
            failure.recover = shorten(recover, MAX_TEXT_BYTES);
        }
        self.send(&message)
    }

    /// In a pull, where this end has become the one that sends: it stops, of `error`. The last word.
    pub fn bye(&self, error: &Error) -> Result<(), SessionError> {
        let code = error.exit_code() as u8;
        self.send(&Message::bye_with(code, &error.chain(), ""))
    }

    fn fail_with(&self, code: ExitCode, message: &str) -> Result<(), SessionError> {
        self.send(&Message::failure(code as u8, message, false))
    }

    fn lock(&self) -> MutexGuard<'_, Inner<W>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says nothing, and is no error, once the last word was said.
    fn send(&self, message: &Message) -> Result<(), SessionError> {
        let mut inner = self.lock();
        if inner.closed {
            return Ok(());
        }
        inner.closed = matches!(
            message,
            Message::Done(_) | Message::Error(_) | Message::Bye(_)
        );
        inner.writer.send(message)
    }
}
