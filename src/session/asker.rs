//! The end that asks for digests, in the operations `compare` and `sync`: requests go out, digests come back in their
//! order.
//!
//! Guarantees: an answer has as many digests as were asked for, or is an error; what comes back is read while
//! requests are written, so that neither end waits for the other for ever, and not more than
//! [`MAX_UNANSWERED`] answers are held, whatever the far end sends.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::SessionError;
use super::client::{Answers, Outgoing};
use super::compare_wire::{Request, digests_of};
use super::message::Message;
use super::transport::MessageWriter;
use crate::blocks::{DIGEST_BYTES, Digest};

/// Requests that may be under way.
pub const MAX_UNANSWERED: usize = 16;

/// Asks beside the stream. When it fails because the session did, [`Outgoing::abort`] has the true reason.
pub struct Asker<W> {
    writer: MessageWriter<W>,
    answers: Arc<Answers>,
    digests: Receiver<Vec<u8>>,
}

impl<W: Write> Outgoing<W> {
    /// Who asks beside this stream. There is one: a second call fails.
    pub fn asker(&mut self) -> Result<Asker<W>, SessionError> {
        let digests = self.digests.take().ok_or(SessionError::Order {
            expected: "one asker",
            found: "a second one",
        })?;
        Ok(Asker {
            writer: self.writer.clone(),
            answers: Arc::clone(&self.answers),
            digests,
        })
    }
}

impl<W: Write> Asker<W> {
    /// Sends a request. At most [`MAX_UNANSWERED`] may wait for their answers.
    pub fn ask_for(&mut self, request: &Request) -> Result<(), SessionError> {
        self.answers.asks().map_err(|error| lost(error, "ask"))?;
        let sent = self.writer.send(&Message::Ask(request.encode()));
        sent.or_else(|error| {
            self.answers.wait_for_last_words(error);
            self.answers.check().map_err(|error| lost(error, "ask"))
        })
    }

    /// The answer to the oldest request that has none: that many digests.
    pub fn answer(&mut self, digests: usize) -> Result<Vec<Digest>, SessionError> {
        let Ok(bytes) = self.digests.recv() else {
            self.answers.check().map_err(|error| lost(error, "wait"))?;
            return Err(SessionError::Closed {
                expected: "Digests",
            });
        };
        let found = digests_of(&bytes, digests).map(<[Digest]>::to_vec);
        found.ok_or(SessionError::Digests {
            expected: digests * DIGEST_BYTES,
            found: bytes.len(),
        })
    }
}

fn lost(source: io::Error, doing: &str) -> SessionError {
    let action = if doing == "ask" {
        "cannot ask for digests"
    } else {
        "no digests come any more"
    };
    SessionError::Io { action, source }
}
