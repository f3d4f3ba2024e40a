//! The end that asks, in the operation `compare`: requests go out, digests come back in their order.
//!
//! Guarantees: an answer has as many digests as were asked for, or is an error; what comes back is read while
//! requests are written, so that neither end waits for the other for ever, and not more than
//! [`MAX_UNANSWERED`] answers are held, whatever the far end sends; only Done after End is success.

use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use super::SessionError;
use super::client::{Client, LAST_WORDS, SessionEvents, wrong_order};
use super::compare_wire::{Request, digests_of};
use super::message::{Message, Open, Ready};
use super::text::sanitise;
use super::transport::{MessageReader, MessageWriter};
use crate::blocks::{DIGEST_BYTES, Digest};

/// Requests that may be under way.
pub const MAX_UNANSWERED: usize = 16;

/// A session in the operation `compare`.
pub struct CompareClient<W> {
    writer: MessageWriter<W>,
    answers: Receiver<Result<Message, SessionError>>,
}

impl<R: Read + Send + 'static, W: Write + Send + 'static> Client<R, W> {
    /// Asks for the operation `compare`, which `open` names; returns what the far end found.
    pub fn compare(self, open: Open) -> Result<(Ready, CompareClient<W>), SessionError> {
        let (ready, client) = self.ask(open)?;
        let (to_caller, answers) = sync_channel(MAX_UNANSWERED);
        let (reader, events) = (client.reader, client.events);
        std::thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || listen(reader, &*events, &to_caller))
            .map_err(|source| SessionError::Io {
                action: "cannot start a thread",
                source,
            })?;
        let writer = client.writer;
        Ok((ready, CompareClient { writer, answers }))
    }
}

impl<W: Write> CompareClient<W> {
    /// Sends a request. At most [`MAX_UNANSWERED`] may wait for their answers.
    pub fn ask_for(&mut self, request: &Request) -> Result<(), SessionError> {
        let message = Message::Data(request.encode());
        self.writer
            .send(&message)
            .map_err(|error| self.last_words_or(error))
    }

    /// The answer to the oldest request that has none: that many digests.
    pub fn answer(&mut self, digests: usize) -> Result<Vec<Digest>, SessionError> {
        match self.next("Digests")? {
            Message::Digests(bytes) => {
                digests_of(&bytes, digests)
                    .map(<[Digest]>::to_vec)
                    .ok_or(SessionError::Digests {
                        expected: digests * DIGEST_BYTES,
                        found: bytes.len(),
                    })
            }
            other => Err(wrong_order("Digests", &other)),
        }
    }

    /// Ends the session, once all is answered.
    pub fn finish(mut self) -> Result<(), SessionError> {
        self.writer
            .send(&Message::End)
            .map_err(|error| self.last_words_or(error))?;
        match self.next("Done")? {
            Message::Done(_) => Ok(()),
            other => Err(wrong_order("Done", &other)),
        }
    }

    /// Stops early, because of `reason`.
    pub fn abort(mut self, reason: &str) {
        // It finds out by itself as well.
        let _ = self.writer.send(&Message::bye(reason));
    }

    fn next(&mut self, expected: &'static str) -> Result<Message, SessionError> {
        self.answers
            .recv()
            .unwrap_or(Err(SessionError::Closed { expected }))
    }

    /// After a write that failed: what the far end says, or, if nothing comes in time, `error`.
    fn last_words_or(&self, error: SessionError) -> SessionError {
        let start = Instant::now();
        loop {
            match self
                .answers
                .recv_timeout(LAST_WORDS.saturating_sub(start.elapsed()))
            {
                Ok(Ok(_)) => {}
                Ok(Err(reported)) => return reported,
                Err(_) => return error,
            }
        }
    }
}

/// The reading thread: until Done, an error, the end of the connection, or until nobody waits any more.
fn listen<R: Read>(
    mut reader: MessageReader<R>,
    events: &dyn SessionEvents,
    to_caller: &SyncSender<Result<Message, SessionError>>,
) {
    loop {
        let (message, is_last) = match reader.expect("Digests") {
            Ok(Message::Warning(warning)) => {
                events.warning(&sanitise(&warning.text));
                continue;
            }
            Ok(message @ Message::Digests(_)) => (Ok(message), false),
            Ok(message @ Message::Done(_)) => (Ok(message), true),
            Ok(other) => (Err(wrong_order("Digests", &other)), true),
            Err(error) => (Err(error), true),
        };
        if to_caller.send(message).is_err() || is_last {
            return;
        }
    }
}
