//! Messages over a `Read` and a `Write`: the thin shell around [`super::message`].
//!
//! Guarantees: a message is written whole or the write fails; memory for a payload is taken only after
//! its header was checked; the end of input between two messages is told apart from one inside.

use std::io::{self, BufRead, BufReader, Read, Write};

use super::SessionError;
use super::handshake::{GREETING, NOISE_SHOWN_BYTES};
use super::message::{HEADER_BYTES, Header, Message, Tag, header_for};
use super::text::sanitise_bytes;

/// Reads messages.
pub struct MessageReader<R> {
    input: BufReader<R>,
}

impl<R: Read> MessageReader<R> {
    /// Reads from `input`, which it also buffers.
    pub fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(64 << 10, input),
        }
    }

    /// Reads the greeting. Shows what came instead, as far as it has arrived: to wait for more could be
    /// to wait forever, because another program may be waiting for us.
    pub fn greeting(&mut self) -> Result<(), SessionError> {
        let mut seen = 0;
        while seen < GREETING.len() {
            let arrived = self.input.fill_buf().map_err(receiving)?;
            let expected = &GREETING[seen..];
            let compared = arrived.len().min(expected.len());
            if arrived.is_empty() {
                return Err(if seen == 0 {
                    SessionError::Closed {
                        expected: "the greeting",
                    }
                } else {
                    SessionError::NotASession {
                        found: sanitise_bytes(&GREETING[..seen]),
                    }
                });
            }
            if arrived[..compared] != expected[..compared] {
                let shown = arrived.len().min(NOISE_SHOWN_BYTES);
                let mut found = GREETING[..seen].to_vec();
                found.extend_from_slice(&arrived[..shown]);
                return Err(SessionError::NotASession {
                    found: sanitise_bytes(&found),
                });
            }
            self.input.consume(compared);
            seen += compared;
        }
        Ok(())
    }

    /// The next message, pings left out; `None` at the end of input.
    pub fn next_message(&mut self) -> Result<Option<Message>, SessionError> {
        loop {
            if self.input.fill_buf().map_err(receiving)?.is_empty() {
                return Ok(None);
            }
            let mut header = [0; HEADER_BYTES];
            self.input.read_exact(&mut header).map_err(receiving)?;
            let header = Header::decode(&header)?;
            let mut payload = vec![0; header.payload_bytes];
            self.input.read_exact(&mut payload).map_err(receiving)?;
            match header.message(payload)? {
                Message::Ping => {}
                message => return Ok(Some(message)),
            }
        }
    }

    /// The next message, where the connection may not end. An error that the peer reports, or its
    /// farewell, is returned as one.
    pub fn expect(&mut self, expected: &'static str) -> Result<Message, SessionError> {
        match self.next_message()? {
            None => Err(SessionError::Closed { expected }),
            Some(Message::Error(failure)) => Err(SessionError::Reported(failure)),
            Some(Message::Bye(bye)) => Err(SessionError::Stopped {
                reason: super::text::sanitise(&bye.reason),
            }),
            Some(message) => Ok(message),
        }
    }
}

/// Writes messages.
pub struct MessageWriter<W> {
    output: W,
}

impl<W: Write> MessageWriter<W> {
    /// Writes to `output`.
    pub fn new(output: W) -> Self {
        Self { output }
    }

    /// Writes the greeting.
    pub fn greeting(&mut self) -> Result<(), SessionError> {
        self.write(GREETING)
    }

    /// Writes one message and flushes.
    pub fn send(&mut self, message: &Message) -> Result<(), SessionError> {
        self.write(&message.encode()?)
    }

    /// Writes a Data message from a buffer whose first [`HEADER_BYTES`] are room for the header.
    pub fn send_data_in_place(&mut self, buffer: &mut [u8]) -> Result<(), SessionError> {
        if let Some((header, payload)) = buffer.split_first_chunk_mut::<HEADER_BYTES>() {
            *header = header_for(Tag::Data, payload)?;
        }
        self.write(buffer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.output
            .write_all(bytes)
            .and_then(|()| self.output.flush())
            .map_err(sending)
    }
}

fn receiving(source: io::Error) -> SessionError {
    if source.kind() == io::ErrorKind::UnexpectedEof {
        return SessionError::Closed {
            expected: "the rest of a message",
        };
    }
    SessionError::Io {
        action: "cannot read from the far end",
        source,
    }
}

fn sending(source: io::Error) -> SessionError {
    SessionError::Io {
        action: "cannot write to the far end",
        source,
    }
}
