//! Messages over a `Read` and a `Write`: the thin shell around [`super::message`].
//!
//! Guarantees: a message is written whole, or the write and all later ones fail; memory for a payload is
//! taken only after its header was checked; the end of input between two messages is told apart from one
//! inside.

use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::SessionError;
use super::handshake::{GREETING, NOISE_SHOWN_BYTES};
use super::limits::MAX_WARNINGS;
use super::line::Silence;
use super::message::{HEADER_BYTES, Header, Message, Tag, header_for_both};
use super::text::sanitise_bytes;

/// Bytes of messages that went by; its clones count together.
#[derive(Clone, Debug, Default)]
pub struct Traffic(Arc<AtomicU64>);

impl Traffic {
    /// So far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Reads messages.
pub struct MessageReader<R> {
    input: BufReader<R>,
    warnings: u32,
    traffic: Traffic,
}

impl<R: Read> MessageReader<R> {
    /// Reads from `input`, which it also buffers.
    pub fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(64 << 10, input),
            warnings: 0,
            traffic: Traffic::default(),
        }
    }

    /// What was read and will be.
    pub fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }

    /// Reads the greeting. Shows what came instead, as far as it has arrived: to wait for more could be
    /// to wait forever, because another program may be waiting for us.
    pub fn greeting(&mut self) -> Result<(), SessionError> {
        let mut seen = 0;
        while seen < GREETING.len() {
            let arrived = self.input.fill_buf().map_err(receiving);
            let arrived = arrived.map_err(|error| error.waiting_for("the greeting"))?;
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
        let next = self.next_into(&mut [])?;
        Ok(next.map(Next::without_room))
    }

    /// The same; data goes straight to where it is wanted, if there is room for all of it.
    fn next_into(&mut self, room: &mut [u8]) -> Result<Option<Next>, SessionError> {
        loop {
            if self.input.fill_buf().map_err(receiving)?.is_empty() {
                return Ok(None);
            }
            let mut header = [0; HEADER_BYTES];
            self.input.read_exact(&mut header).map_err(receiving)?;
            let header = Header::decode(&header)?;
            if header.tag == Tag::Data
                && let Some(room) = room.get_mut(..header.payload_bytes)
            {
                self.input.read_exact(room).map_err(receiving)?;
                self.traffic.add(HEADER_BYTES + room.len());
                header.check(room)?;
                return Ok(Some(Next::Data(room.len())));
            }
            let mut payload = vec![0; header.payload_bytes];
            self.input.read_exact(&mut payload).map_err(receiving)?;
            self.traffic.add(HEADER_BYTES + payload.len());
            match header.message(payload)? {
                Message::Ping => {}
                Message::Warning(_) if self.warnings == MAX_WARNINGS => {
                    let text = format!("it sent more than {MAX_WARNINGS} warnings");
                    return Err(SessionError::Violation(text));
                }
                Message::Warning(warning) => {
                    self.warnings += 1;
                    return Ok(Some(Next::Message(Message::Warning(warning))));
                }
                message => return Ok(Some(Next::Message(message))),
            }
        }
    }

    /// The next message, where the connection may not end. An error that the peer reports, or its
    /// farewell, is returned as one.
    pub fn expect(&mut self, expected: &'static str) -> Result<Message, SessionError> {
        let next = self.expect_into(expected, &mut [])?;
        Ok(next.without_room())
    }

    /// The same; data goes straight to where it is wanted, if there is room for all of it. After an error anything may be
    /// there.
    pub(super) fn expect_into(
        &mut self,
        expected: &'static str,
        room: &mut [u8],
    ) -> Result<Next, SessionError> {
        let next = self.next_into(room);
        match next.map_err(|error| error.waiting_for(expected))? {
            None => Err(SessionError::Closed { expected }),
            Some(Next::Message(Message::Error(failure))) => Err(SessionError::Reported(failure)),
            Some(Next::Message(Message::Bye(bye))) => Err(SessionError::Stopped {
                reason: super::text::sanitise(&bye.reason),
                code: bye.code,
                recover: bye.recover,
            }),
            Some(next) => Ok(next),
        }
    }
}

/// What came.
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart where it is returned, and never kept"
)]
pub(super) enum Next {
    /// A message.
    Message(Message),
    /// A Data message, whose payload is where it was wanted: so many bytes.
    Data(usize),
}

impl Next {
    /// Where there was no room, only a payload of no bytes fits.
    fn without_room(self) -> Message {
        match self {
            Self::Message(message) => message,
            Self::Data(_) => Message::Data(Vec::new()),
        }
    }
}

/// Writes messages. Its clones write to the same output, each message whole.
#[derive(Debug)]
pub struct MessageWriter<W> {
    shared: Arc<Shared<W>>,
}

#[derive(Debug)]
struct Shared<W> {
    pen: Mutex<Pen<W>>,
    /// Hangs up when the last clone goes: what the pinging thread waits for.
    _gone: SyncSender<()>,
    gone: Mutex<Option<Receiver<()>>>,
}

#[derive(Debug)]
struct Pen<W> {
    output: W,
    last_sent: Instant,
    /// After a write that failed half a message may be there: whatever followed would be taken for the rest.
    broken: bool,
    /// The last word was said.
    closed: bool,
    traffic: Traffic,
}

impl<W> Clone for MessageWriter<W> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<W: Write> MessageWriter<W> {
    /// Writes to `output`.
    pub fn new(output: W) -> Self {
        let pen = Pen {
            output,
            last_sent: Instant::now(),
            broken: false,
            closed: false,
            traffic: Traffic::default(),
        };
        let (sender, receiver) = sync_channel(0);
        let shared = Shared {
            pen: Mutex::new(pen),
            _gone: sender,
            gone: Mutex::new(Some(receiver)),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What was written and will be.
    pub fn traffic(&self) -> Traffic {
        self.pen().traffic.clone()
    }

    /// Writes the greeting.
    pub fn greeting(&mut self) -> Result<(), SessionError> {
        self.pen().write(GREETING)
    }

    /// Writes one message and flushes.
    pub fn send(&mut self, message: &Message) -> Result<(), SessionError> {
        let bytes = message.encode()?;
        let mut pen = self.pen();
        pen.closed |= matches!(
            message,
            Message::Done(_) | Message::Error(_) | Message::Bye(_)
        );
        pen.write(&bytes)
    }

    /// Writes a Data message from a buffer whose first [`HEADER_BYTES`] are room for the header, and what comes behind it.
    pub fn send_data_in_place(
        &mut self,
        buffer: &mut [u8],
        rest: &[u8],
    ) -> Result<(), SessionError> {
        if let Some((header, payload)) = buffer.split_first_chunk_mut::<HEADER_BYTES>() {
            *header = header_for_both(Tag::Data, payload, rest)?;
        }
        self.pen().write_both(buffer, rest)
    }

    fn pen(&self) -> MutexGuard<'_, Pen<W>> {
        let pen = &self.shared.pen;
        pen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Write + Send + 'static> MessageWriter<W> {
    /// From now on a Ping is sent whenever nothing else was for as long as `every`, from a thread of its own,
    /// until the last word was said or the last clone of this is dropped.
    pub fn ping_when_silent(&self, every: Duration) {
        let gone = &self.shared.gone;
        let gone = gone.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(gone) = gone else { return };
        let weak = Arc::downgrade(&self.shared);
        // Where no thread can be made, the far end gives up after its timeout, which is no worse than that.
        let _ = std::thread::Builder::new()
            .name("ping".to_owned())
            .spawn(move || ping(&weak, &gone, every));
    }
}

fn ping<W: Write>(shared: &Weak<Shared<W>>, gone: &Receiver<()>, every: Duration) {
    let mut pause = every;
    // Nothing is ever sent: this ends with the pause, or because everybody has gone.
    while gone.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut pen = shared.pen.lock().unwrap_or_else(PoisonError::into_inner);
        if pen.closed || pen.broken {
            return;
        }
        let silent = pen.last_sent.elapsed();
        pause = every.saturating_sub(silent);
        if pause.is_zero() {
            pause = every;
            let sent = Message::Ping.encode().map(|bytes| pen.write(&bytes));
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }
}

impl<W: Write> Pen<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.write_both(bytes, &[])
    }

    /// One message in two parts.
    fn write_both(&mut self, first: &[u8], rest: &[u8]) -> Result<(), SessionError> {
        if self.broken {
            return Err(sending(io::Error::other("an earlier message was cut")));
        }
        let written = write_all_of(&mut self.output, &mut [first, rest].map(IoSlice::new))
            .and_then(|()| self.output.flush());
        self.broken = written.is_err();
        self.last_sent = Instant::now();
        self.traffic.add(first.len() + rest.len());
        written.map_err(sending)
    }
}

/// `write_all` of several parts, in as few writes as the output takes.
fn write_all_of(output: &mut impl Write, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Parts of no bytes are nothing to wait for.
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match output.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut parts, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn receiving(source: io::Error) -> SessionError {
    if let Some(silence) = Silence::of(&source) {
        let expected = "a message";
        return SessionError::Silent { expected, silence };
    }
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
    if let Some(silence) = Silence::of(&source) {
        let expected = "it to read what is sent";
        return SessionError::Silent { expected, silence };
    }
    SessionError::Io {
        action: "cannot write to the far end",
        source,
    }
}
