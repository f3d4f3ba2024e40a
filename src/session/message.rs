//! Messages of a session: bytes to values and back.
//!
//! Guarantees: pure; no length is believed before its checksum and its cap; a type, flag or reserved
//! bit that is not known is an error, an unknown field of a control message is ignored; what is encoded
//! here decodes to the same value.
//!
//! A message is a header of 16 bytes and a payload, all little-endian:
//!
//! ```text
//! 0   u8   type
//! 1   u8   flags, 0
//! 2   u16  reserved, 0
//! 4   u32  length of the payload
//! 8   u32  CRC-32C of the payload
//! 12  u32  CRC-32C of bytes 0 to 11
//! 16       payload
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use super::contents::*;
use super::text::shorten;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 16;
/// The longest payload: a mebibyte of delta stream and a little.
pub const MAX_PAYLOAD_BYTES: usize = (1 << 20) + 64;
/// The longest payload of any message but `Data`.
pub const MAX_CONTROL_BYTES: usize = 64 << 10;
/// Free text is cut to this when it is sent: escaped as JSON it still fits a control message.
pub const MAX_TEXT_BYTES: usize = 10_000;

/// What a message is. The numbers are the protocol's; they are never used again for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// Both ways, first: who speaks, and what they know.
    Hello = 1,
    /// To the server: what is wanted.
    Open = 2,
    /// To the client: what was found; the stream may begin.
    Ready = 3,
    /// To the server: bytes of the stream.
    Data = 4,
    /// To the server: the stream is complete.
    End = 5,
    /// To the client: so much is durable.
    Ack = 6,
    /// To the client: something the user should know.
    Warning = 7,
    /// To the client, last: all is done and durable.
    Done = 8,
    /// To the client, last: it failed.
    Error = 9,
    /// To the server, last: the client stops.
    Bye = 10,
    /// Both ways, at any time after Hello: still here. Needs no answer.
    Ping = 11,
    /// To the client: the answer to one Ask.
    Digests = 12,
    /// To the server: a request for digests of what the destination holds.
    Ask = 13,
}

impl Tag {
    const ALL: [Tag; 13] = [
        Tag::Hello,
        Tag::Open,
        Tag::Ready,
        Tag::Data,
        Tag::End,
        Tag::Ack,
        Tag::Warning,
        Tag::Done,
        Tag::Error,
        Tag::Bye,
        Tag::Ping,
        Tag::Digests,
        Tag::Ask,
    ];

    /// The type with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|tag| *tag as u8 == number)
    }

    /// Its name in the specification.
    pub fn name(self) -> &'static str {
        match self {
            Tag::Hello => "Hello",
            Tag::Open => "Open",
            Tag::Ready => "Ready",
            Tag::Data => "Data",
            Tag::End => "End",
            Tag::Ack => "Ack",
            Tag::Warning => "Warning",
            Tag::Done => "Done",
            Tag::Error => "Error",
            Tag::Bye => "Bye",
            Tag::Ping => "Ping",
            Tag::Digests => "Digests",
            Tag::Ask => "Ask",
        }
    }

    fn cap_bytes(self) -> usize {
        match self {
            Tag::Data => MAX_PAYLOAD_BYTES,
            Tag::End | Tag::Ping => 0,
            _ => MAX_CONTROL_BYTES,
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is described at its tag and its struct")]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one Open in a session, and messages are handled one at a time"
)]
pub enum Message {
    Hello(Hello),
    Open(Open),
    Ready(Ready),
    Data(Vec<u8>),
    End,
    Ack(Ack),
    Warning(Warning),
    Done(Done),
    Error(Failure),
    Bye(Bye),
    Ping,
    Digests(Vec<u8>),
    Ask(Vec<u8>),
}

/// What is wrong with bytes that should be a message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The header's checksum is wrong.
    #[error("the header's checksum is {found:#010x} and should be {expected:#010x}")]
    HeaderChecksum {
        /// As computed.
        expected: u32,
        /// As received.
        found: u32,
    },
    /// The payload's checksum is wrong.
    #[error("the checksum of a {} message is {found:#010x} and should be {expected:#010x}", .tag.name())]
    PayloadChecksum {
        /// Type of the message.
        tag: Tag,
        /// As announced.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A type that version 1 does not have.
    #[error("message type {found} is not known")]
    UnknownType {
        /// The number.
        found: u8,
    },
    /// Flags or reserved bits that version 1 does not have.
    #[error("flags {flags:#04x} and reserved bits {reserved:#06x} are not known")]
    UnknownFlags {
        /// Byte 1.
        flags: u8,
        /// Bytes 2 and 3.
        reserved: u16,
    },
    /// Longer than its type may be.
    #[error("a {} message of {found} bytes is longer than the {cap} that are allowed", .tag.name())]
    TooLong {
        /// Type of the message.
        tag: Tag,
        /// Length in bytes.
        found: usize,
        /// The most that is allowed.
        cap: usize,
    },
    /// The payload is not the JSON that its type needs.
    #[error("cannot read the contents of a {} message", .tag.name())]
    Contents {
        /// Type of the message.
        tag: Tag,
        /// What the JSON reader said.
        source: serde_json::Error,
    },
}

/// A header whose checksum is right and whose length is within its cap.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Type.
    pub tag: Tag,
    /// Bytes of payload that follow.
    pub payload_bytes: usize,
    payload_crc: u32,
}

impl Header {
    /// Reads a header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, MessageError> {
        let [
            tag,
            flags,
            r0,
            r1,
            l0,
            l1,
            l2,
            l3,
            p0,
            p1,
            p2,
            p3,
            h0,
            h1,
            h2,
            h3,
        ] = *bytes;
        let expected = crc32c::crc32c(&bytes[..12]);
        let found = u32::from_le_bytes([h0, h1, h2, h3]);
        if expected != found {
            return Err(MessageError::HeaderChecksum { expected, found });
        }
        let reserved = u16::from_le_bytes([r0, r1]);
        if flags != 0 || reserved != 0 {
            return Err(MessageError::UnknownFlags { flags, reserved });
        }
        let tag = Tag::from_number(tag).ok_or(MessageError::UnknownType { found: tag })?;
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let payload_bytes = within_cap(tag, length)?;
        Ok(Self {
            tag,
            payload_bytes,
            payload_crc: u32::from_le_bytes([p0, p1, p2, p3]),
        })
    }

    /// Is this the payload that the header is of?
    pub fn check(self, payload: &[u8]) -> Result<(), MessageError> {
        let (tag, expected) = (self.tag, self.payload_crc);
        let found = crc32c::crc32c(payload);
        if found == expected {
            return Ok(());
        }
        Err(MessageError::PayloadChecksum {
            tag,
            expected,
            found,
        })
    }

    /// Turns the payload that followed into a message.
    pub fn message(self, payload: Vec<u8>) -> Result<Message, MessageError> {
        self.check(&payload)?;
        Ok(match self.tag {
            Tag::Data => Message::Data(payload),
            Tag::Digests => Message::Digests(payload),
            Tag::Ask => Message::Ask(payload),
            Tag::End => Message::End,
            Tag::Ping => Message::Ping,
            Tag::Hello => Message::Hello(self.contents(&payload)?),
            Tag::Open => Message::Open(self.contents(&payload)?),
            Tag::Ready => Message::Ready(self.contents(&payload)?),
            Tag::Ack => Message::Ack(self.contents(&payload)?),
            Tag::Warning => Message::Warning(self.contents(&payload)?),
            Tag::Done => Message::Done(self.contents(&payload)?),
            Tag::Error => Message::Error(self.contents(&payload)?),
            Tag::Bye => Message::Bye(self.contents(&payload)?),
        })
    }

    fn contents<T: DeserializeOwned>(self, payload: &[u8]) -> Result<T, MessageError> {
        serde_json::from_slice(payload).map_err(|source| MessageError::Contents {
            tag: self.tag,
            source,
        })
    }
}

fn within_cap(tag: Tag, length: usize) -> Result<usize, MessageError> {
    let cap = tag.cap_bytes();
    if length > cap {
        Err(MessageError::TooLong {
            tag,
            found: length,
            cap,
        })
    } else {
        Ok(length)
    }
}

/// What the first bytes of a buffer are.
#[derive(Debug)]
pub enum Decoded {
    /// A message, and how many bytes it took.
    Complete {
        /// The message.
        message: Box<Message>,
        /// Its bytes, header included.
        consumed: usize,
    },
    /// The beginning of a message.
    Incomplete {
        /// At least so many more bytes are needed.
        needed: usize,
    },
}

/// Reads the first message of `bytes`.
pub fn decode(bytes: &[u8]) -> Result<Decoded, MessageError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(Decoded::Incomplete {
            needed: HEADER_BYTES - bytes.len(),
        });
    };
    let header = Header::decode(header)?;
    let Some(payload) = rest.get(..header.payload_bytes) else {
        return Ok(Decoded::Incomplete {
            needed: header.payload_bytes - rest.len(),
        });
    };
    let message = Box::new(header.message(payload.to_vec())?);
    Ok(Decoded::Complete {
        message,
        consumed: HEADER_BYTES + payload.len(),
    })
}

impl Message {
    /// Its type.
    pub fn tag(&self) -> Tag {
        match self {
            Message::Hello(_) => Tag::Hello,
            Message::Open(_) => Tag::Open,
            Message::Ready(_) => Tag::Ready,
            Message::Data(_) => Tag::Data,
            Message::End => Tag::End,
            Message::Ack(_) => Tag::Ack,
            Message::Warning(_) => Tag::Warning,
            Message::Done(_) => Tag::Done,
            Message::Error(_) => Tag::Error,
            Message::Bye(_) => Tag::Bye,
            Message::Ping => Tag::Ping,
            Message::Digests(_) => Tag::Digests,
            Message::Ask(_) => Tag::Ask,
        }
    }

    /// A failure whose text fits. `held`: see [`Failure::held`].
    pub fn failure(code: u8, message: &str, held: bool) -> Self {
        Message::Error(Failure {
            code,
            message: shorten(message, MAX_TEXT_BYTES),
            held,
            recover: String::new(),
        })
    }

    /// A warning whose text fits.
    pub fn warning(text: &str) -> Self {
        Message::Warning(Warning {
            text: shorten(text, MAX_TEXT_BYTES),
        })
    }

    /// A farewell whose text fits.
    pub fn bye(reason: &str) -> Self {
        Self::bye_with(0, reason, "")
    }

    /// The same, with the exit code of what went wrong and [`Bye::recover`].
    pub fn bye_with(code: u8, reason: &str, recover: &str) -> Self {
        Message::Bye(Bye {
            reason: shorten(reason, MAX_TEXT_BYTES),
            code,
            recover: shorten(recover, MAX_TEXT_BYTES),
        })
    }

    /// Its bytes. Fails where the contents are longer than the type may be.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        let tag = self.tag();
        let payload = match self {
            Message::Data(bytes) | Message::Digests(bytes) | Message::Ask(bytes) => bytes.clone(),
            Message::End | Message::Ping => Vec::new(),
            Message::Hello(contents) => json(tag, contents)?,
            Message::Open(contents) => json(tag, contents)?,
            Message::Ready(contents) => json(tag, contents)?,
            Message::Ack(contents) => json(tag, contents)?,
            Message::Warning(contents) => json(tag, contents)?,
            Message::Done(contents) => json(tag, contents)?,
            Message::Error(contents) => json(tag, contents)?,
            Message::Bye(contents) => json(tag, contents)?,
        };
        let mut bytes = header_for(tag, &payload)?.to_vec();
        bytes.extend_from_slice(&payload);
        Ok(bytes)
    }
}

/// The header for a payload, for a caller that has both in one buffer.
pub fn header_for(tag: Tag, payload: &[u8]) -> Result<[u8; HEADER_BYTES], MessageError> {
    header_for_both(tag, payload, &[])
}

/// The same for a payload in two parts.
pub fn header_for_both(
    tag: Tag,
    first: &[u8],
    rest: &[u8],
) -> Result<[u8; HEADER_BYTES], MessageError> {
    let length = within_cap(tag, first.len().saturating_add(rest.len()))?;
    let length = u32::try_from(length).unwrap_or(u32::MAX); // the cap is far below
    let crc = crc32c::crc32c_append(crc32c::crc32c(first), rest);
    let mut bytes = [0; HEADER_BYTES];
    bytes[0] = tag as u8;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

fn json<T: Serialize>(tag: Tag, contents: &T) -> Result<Vec<u8>, MessageError> {
    serde_json::to_vec(contents).map_err(|source| MessageError::Contents { tag, source })
}
