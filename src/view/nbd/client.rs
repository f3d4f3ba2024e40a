//! One client: the negotiation, and its requests one after another.
//!
//! Guarantees: replies go out whole or the connection ends; at most 1 MiB of volume data is in memory for a read, and for a
//! write what the request holds; a read that fails is told to the client with the place, and to `report` in words.

use std::io::{self, Read, Write};

use super::Export;
use super::negotiation::{Agreed, MAX_OPTION_BYTES, MAX_OPTIONS, Negotiation, Offer, Then};
use super::request::{Request, check, payload_bytes};
use super::wire::{
    self, ALLOCATION_ID, Errno, HOLE_AND_ZERO, OPTION_BYTES, REQUEST_BYTES, RawRequest, chunk,
    command,
};
use crate::extent::{Change, Extent, Kind};

/// Volume data that is read at once.
const PIECE_BYTES: u64 = 1 << 20;
/// What is told of at once when a client asks what is allocated; it asks again for the rest.
const STATUS_BYTES: u64 = 1 << 30;
const STATUS_EXTENTS: usize = 4096;
/// Extents of a piece that is read.
const PIECE_EXTENTS: usize = 256;

/// How long the other end may keep us waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// For all of the negotiation.
    Negotiation,
    /// It may be silent: nothing was begun.
    Idle,
    /// Something was begun, and has to go on.
    Message,
}

/// The way to a client.
pub trait Connection: Read + Write {
    /// Sets how long what follows may take.
    fn patience(&mut self, patience: Patience);
    /// Nothing is to be served before [`Self::begin_tls`].
    fn needs_tls(&self) -> bool {
        false
    }
    /// From here on what is read and written goes through TLS.
    fn begin_tls(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Serves one client to the end. An error is one of the connection, or of a client that breaks the protocol.
pub fn serve(
    connection: &mut dyn Connection,
    export: &dyn Export,
    report: &dyn Fn(&str),
) -> io::Result<()> {
    let offer = Offer {
        size_bytes: export.size_bytes(),
        is_writable: export.is_writable(),
        needs_tls: connection.needs_tls(),
    };
    connection.patience(Patience::Negotiation);
    let Some(agreed) = negotiate(connection, offer)? else {
        return Ok(());
    };
    let mut client = Client {
        connection,
        export,
        report,
        offer,
        agreed,
        out: Vec::new(),
    };
    while let Some(raw) = client.next_request()? {
        if !client.answer(&raw)? {
            break;
        }
    }
    Ok(())
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn negotiate(connection: &mut dyn Connection, offer: Offer) -> io::Result<Option<Agreed>> {
    connection.write_all(&wire::greeting())?;
    let mut flags = [0; 4];
    connection.read_exact(&mut flags)?;
    let mut negotiation = Negotiation::new(offer, u32::from_be_bytes(flags))
        .ok_or_else(|| broken("unknown flags in the greeting"))?;
    let mut data = Vec::new();
    let mut out = Vec::new();
    for _ in 0..MAX_OPTIONS {
        let mut header = [0; OPTION_BYTES];
        connection.read_exact(&mut header)?;
        let (number, length) = wire::option_header(&header)
            .ok_or_else(|| broken("what should be an option is none"))?;
        out.clear();
        let then = if length > MAX_OPTION_BYTES {
            // What is longer than any request breaks off; everything else is read past.
            if length > super::request::MAX_REQUEST_BYTES {
                return Err(broken("an option of many megabytes"));
            }
            let dropped = io::copy(&mut (&mut *connection).take(length.into()), &mut io::sink())?;
            if dropped < u64::from(length) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            negotiation.too_big(number, &mut out)
        } else {
            data.resize(length as usize, 0);
            connection.read_exact(&mut data)?;
            negotiation.option(number, &data, &mut out)
        };
        connection.write_all(&out)?;
        match then {
            Then::Option => {}
            Then::Tls => {
                connection.begin_tls()?;
                negotiation.secured();
            }
            Then::Transmission => return Ok(Some(negotiation.agreed())),
            Then::End => return Ok(None),
        }
    }
    Err(broken("too many options"))
}

struct Client<'a> {
    connection: &'a mut dyn Connection,
    export: &'a dyn Export,
    report: &'a dyn Fn(&str),
    offer: Offer,
    agreed: Agreed,
    out: Vec<u8>,
}

impl Client<'_> {
    /// `None`: the client is gone, between two requests.
    fn next_request(&mut self) -> io::Result<Option<RawRequest>> {
        let mut bytes = [0; REQUEST_BYTES];
        self.connection.patience(Patience::Idle);
        let first = loop {
            match self.connection.read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        self.connection.patience(Patience::Message);
        self.connection.read_exact(&mut bytes[first..])?;
        wire::request(&bytes)
            .map(Some)
            .ok_or_else(|| broken("what should be a request is none"))
    }

    /// `false`: the client has said goodbye.
    fn answer(&mut self, raw: &RawRequest) -> io::Result<bool> {
        let length = payload_bytes(raw).ok_or_else(|| broken("a write of many megabytes"))?;
        let request = check(raw, &self.offer, self.agreed);
        let mut payload = Vec::new();
        if matches!(request, Ok(Request::Write { .. })) {
            payload.resize(length, 0);
            self.connection.read_exact(&mut payload)?;
        } else if length > 0 {
            let mut rest = (&mut *self.connection).take(length as u64);
            if io::copy(&mut rest, &mut io::sink())? < length as u64 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let done = match request {
            Err(error) => return self.refuse(raw, error).map(|()| true),
            Ok(Request::Disconnect) => return Ok(false),
            Ok(Request::Read(extent)) if self.agreed.structured => {
                return self.read_in_chunks(raw, extent).map(|()| true);
            }
            Ok(Request::Read(extent)) => return self.read_at_once(raw, extent).map(|()| true),
            Ok(Request::Status { extent, only_one }) => {
                return self.status(raw, extent, only_one).map(|()| true);
            }
            Ok(Request::Write { extent, durable }) => self
                .export
                .write(&payload, extent.offset())
                .and_then(|()| self.flush_if(durable)),
            Ok(Request::Zero { extent, durable }) => self
                .export
                .zero(extent)
                .and_then(|()| self.flush_if(durable)),
            Ok(Request::Flush) => self.export.flush(),
            Ok(Request::Nothing) => Ok(()),
        };
        match done {
            Ok(()) if raw.command == command::READ && self.agreed.structured => {
                let header = wire::chunk_header(raw.cookie, chunk::NONE, true, 0);
                self.connection.write_all(&header)
            }
            Ok(()) => self
                .connection
                .write_all(&wire::simple_reply(raw.cookie, None)),
            Err(error) => {
                let number = self.told(&error);
                self.refuse(raw, number)
            }
        }
        .map(|()| true)
    }

    fn flush_if(&self, durable: bool) -> io::Result<()> {
        if durable { self.export.flush() } else { Ok(()) }
    }

    /// Says it here in words, and gives the number for the client.
    fn told(&self, error: &io::Error) -> Errno {
        (self.report)(&error.to_string());
        match error.kind() {
            io::ErrorKind::StorageFull => Errno::NoSpc,
            io::ErrorKind::PermissionDenied => Errno::Perm,
            _ => Errno::Io,
        }
    }

    fn refuse(&mut self, raw: &RawRequest, error: Errno) -> io::Result<()> {
        let in_chunks = matches!(raw.command, command::READ | command::BLOCK_STATUS);
        if !(in_chunks && self.agreed.structured) {
            return self
                .connection
                .write_all(&wire::simple_reply(raw.cookie, Some(error)));
        }
        self.fail(raw, error, None)
    }

    /// The last chunk of a reply that cannot be whole.
    fn fail(&mut self, raw: &RawRequest, error: Errno, at: Option<u64>) -> io::Result<()> {
        let mut data = (error as u32).to_be_bytes().to_vec();
        // No words: they are for who runs the export.
        data.extend_from_slice(&0u16.to_be_bytes());
        let mut kind = chunk::ERROR;
        if let Some(at) = at {
            kind = chunk::ERROR_OFFSET;
            data.extend_from_slice(&at.to_be_bytes());
        }
        self.chunk(raw, kind, true, &data)
    }

    fn chunk(&mut self, raw: &RawRequest, kind: u16, is_last: bool, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.out.clear();
        self.out
            .extend_from_slice(&wire::chunk_header(raw.cookie, kind, is_last, length));
        self.out.extend_from_slice(data);
        self.connection.write_all(&self.out)
    }

    /// Data, and holes that need none.
    fn read_in_chunks(&mut self, raw: &RawRequest, extent: Extent) -> io::Result<()> {
        let mut data = Vec::new();
        let mut at = extent.offset();
        while let Some(piece) = Extent::from_range(at, extent.end().min(at + PIECE_BYTES)) {
            let map = match self.export.map(piece, PIECE_EXTENTS) {
                Ok(map) if !map.is_empty() => map,
                Ok(_) => return Err(broken("a map without extents")),
                Err(error) => {
                    let number = self.told(&error);
                    return self.fail(raw, number, Some(at));
                }
            };
            for Change { extent: part, kind } in map {
                let is_last = part.end() == extent.end();
                data.clear();
                data.extend_from_slice(&part.offset().to_be_bytes());
                if kind == Kind::Zero {
                    data.extend_from_slice(&short(part).to_be_bytes());
                    self.chunk(raw, chunk::OFFSET_HOLE, is_last, &data)?;
                } else {
                    data.resize(8 + short(part) as usize, 0);
                    if let Err(error) = self.export.read(&mut data[8..], part.offset()) {
                        let number = self.told(&error);
                        return self.fail(raw, number, Some(part.offset()));
                    }
                    self.chunk(raw, chunk::OFFSET_DATA, is_last, &data)?;
                }
                at = part.end();
            }
        }
        Ok(())
    }

    /// A header, and then all the data. What fails behind the header can only end the connection.
    fn read_at_once(&mut self, raw: &RawRequest, extent: Extent) -> io::Result<()> {
        let mut data = Vec::new();
        let mut at = extent.offset();
        while let Some(piece) = Extent::from_range(at, extent.end().min(at + PIECE_BYTES)) {
            data.resize(short(piece) as usize, 0);
            if let Err(error) = self.export.read(&mut data, at) {
                let number = self.told(&error);
                if at > extent.offset() {
                    return Err(error);
                }
                return self.refuse(raw, number);
            }
            if at == extent.offset() {
                self.connection
                    .write_all(&wire::simple_reply(raw.cookie, None))?;
            }
            self.connection.write_all(&data)?;
            at = piece.end();
        }
        Ok(())
    }

    fn status(&mut self, raw: &RawRequest, extent: Extent, only_one: bool) -> io::Result<()> {
        let most = if only_one { 1 } else { STATUS_EXTENTS };
        let end = extent.end().min(extent.offset() + STATUS_BYTES);
        let asked = Extent::from_range(extent.offset(), end).unwrap_or(extent);
        let map = match self.export.map(asked, most) {
            Ok(map) if !map.is_empty() => map,
            Ok(_) => return Err(broken("a map without extents")),
            Err(error) => {
                let number = self.told(&error);
                return self.fail(raw, number, None);
            }
        };
        let mut data = ALLOCATION_ID.to_be_bytes().to_vec();
        for change in map {
            let flags = match change.kind {
                Kind::Data => 0,
                Kind::Zero => HOLE_AND_ZERO,
            };
            data.extend_from_slice(&short(change.extent).to_be_bytes());
            data.extend_from_slice(&u32::to_be_bytes(flags));
        }
        self.chunk(raw, chunk::BLOCK_STATUS, true, &data)
    }
}

/// The length of what is a part of a request.
fn short(extent: Extent) -> u32 {
    u32::try_from(extent.length()).unwrap_or(u32::MAX)
}
