//! What a request may ask for.
//!
//! Pure. Guarantees: what is called good lies inside the export and is no longer than is answered at once, so nothing
//! behind this checks again.

use super::negotiation::{Agreed, Offer};
use super::wire::{Errno, RawRequest, command, flag};
use crate::extent::Extent;

/// Data in one request or reply: what clients may rely on.
pub const MAX_REQUEST_BYTES: u32 = 32 << 20;

/// A request that can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read these bytes.
    Read(Extent),
    /// Write what follows the request.
    Write {
        /// Where.
        extent: Extent,
        /// Make it durable before the reply.
        durable: bool,
    },
    /// Make these bytes zero.
    Zero {
        /// Where.
        extent: Extent,
        /// Make it durable before the reply.
        durable: bool,
    },
    /// Say what is allocated.
    Status {
        /// Where.
        extent: Extent,
        /// One extent is enough.
        only_one: bool,
    },
    /// Make all that was written durable.
    Flush,
    /// There is nothing to do, or nothing that would be of use.
    Nothing,
    /// The connection ends.
    Disconnect,
}

/// Holds a request against what was agreed and what there is.
pub fn check(raw: &RawRequest, offer: &Offer, agreed: Agreed) -> Result<Request, Errno> {
    let known_flags = match raw.command {
        command::WRITE | command::TRIM => flag::FUA,
        command::WRITE_ZEROES => flag::FUA | flag::NO_HOLE,
        command::BLOCK_STATUS => flag::REQ_ONE,
        _ => 0,
    };
    // FUA does no harm where nothing is written, and some clients send it everywhere.
    if raw.flags & !(known_flags | flag::FUA) != 0 {
        return Err(Errno::Inval);
    }
    let durable = raw.flags & flag::FUA != 0;
    let is_write = matches!(
        raw.command,
        command::WRITE | command::TRIM | command::WRITE_ZEROES
    );
    if is_write && !offer.is_writable {
        return Err(Errno::Perm);
    }
    match raw.command {
        command::DISC => return Ok(Request::Disconnect),
        command::FLUSH => return Ok(Request::Flush),
        _ => {}
    }
    let moves_data = matches!(raw.command, command::READ | command::WRITE);
    if moves_data && raw.length > MAX_REQUEST_BYTES {
        return Err(Errno::Overflow);
    }
    let end = raw.offset.checked_add(raw.length.into());
    if end.is_none_or(|end| end > offer.size_bytes) {
        return Err(if is_write { Errno::NoSpc } else { Errno::Inval });
    }
    let Some(extent) = Extent::new(raw.offset, raw.length.into()) else {
        // The protocol leaves open what a request for nothing does.
        return match raw.command {
            command::BLOCK_STATUS => Err(Errno::Inval),
            _ => Ok(Request::Nothing),
        };
    };
    match raw.command {
        command::READ => Ok(Request::Read(extent)),
        command::WRITE => Ok(Request::Write { extent, durable }),
        command::TRIM | command::WRITE_ZEROES => Ok(Request::Zero { extent, durable }),
        command::CACHE => Ok(Request::Nothing),
        command::BLOCK_STATUS if agreed.allocation => Ok(Request::Status {
            extent,
            only_one: raw.flags & flag::REQ_ONE != 0,
        }),
        command::BLOCK_STATUS => Err(Errno::Inval),
        _ => Err(Errno::NotSup),
    }
}

/// Bytes that follow a request, also one that is refused; `None` for more than is ever read.
pub fn payload_bytes(raw: &RawRequest) -> Option<usize> {
    match raw.command {
        command::WRITE if raw.length > MAX_REQUEST_BYTES => None,
        command::WRITE => usize::try_from(raw.length).ok(),
        _ => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OFFER: Offer = Offer {
        size_bytes: 10_000,
        is_writable: false,
        needs_tls: false,
    };

    fn raw(command: u16, offset: u64, length: u32) -> RawRequest {
        RawRequest {
            flags: 0,
            command,
            cookie: 1,
            offset,
            length,
        }
    }

    #[test]
    fn each_wrong_request_has_its_error() {
        let none = Agreed::default();
        let all = Agreed {
            structured: true,
            allocation: true,
        };
        let write = Offer {
            is_writable: true,
            ..OFFER
        };
        for (request, offer, agreed, expected) in [
            (raw(command::WRITE, 0, 1), OFFER, all, Errno::Perm),
            (raw(command::TRIM, 0, 1), OFFER, all, Errno::Perm),
            (raw(command::WRITE_ZEROES, 0, 1), OFFER, all, Errno::Perm),
            (raw(command::READ, 9999, 2), OFFER, all, Errno::Inval),
            (raw(command::READ, u64::MAX, 2), OFFER, all, Errno::Inval),
            (raw(command::READ, 0, u32::MAX), OFFER, all, Errno::Overflow),
            (raw(command::WRITE, 9999, 2), write, all, Errno::NoSpc),
            (raw(command::BLOCK_STATUS, 0, 1), OFFER, none, Errno::Inval),
            (raw(command::BLOCK_STATUS, 0, 0), OFFER, all, Errno::Inval),
            (raw(9, 0, 1), OFFER, all, Errno::NotSup),
            (
                RawRequest {
                    flags: 4,
                    ..raw(command::READ, 0, 1)
                },
                OFFER,
                all,
                Errno::Inval,
            ),
        ] {
            assert_eq!(
                check(&request, &offer, agreed),
                Err(expected),
                "{request:?}"
            );
        }
        assert_eq!(
            check(&raw(command::FLUSH, 0, 0), &OFFER, none),
            Ok(Request::Flush)
        );
        assert_eq!(
            check(&raw(command::READ, 10_000, 0), &OFFER, none),
            Ok(Request::Nothing)
        );
        assert_eq!(payload_bytes(&raw(command::WRITE, 0, u32::MAX)), None);
    }

    proptest! {
        #[test]
        fn what_is_good_lies_inside(
            flags in any::<u16>(), command in 0u16..9, offset in any::<u64>(), length in any::<u32>(),
            size in any::<u64>(), is_writable: bool, allocation: bool,
        ) {
            for (offset, size) in [(offset, size), (offset % 9999, size % 9999), (offset >> 40, size)] {
                let request = RawRequest { flags: flags >> (flags % 16), command, cookie: 0, offset, length };
                let offer = Offer { size_bytes: size, is_writable, needs_tls: false };
                let agreed = Agreed { structured: allocation, allocation };
                let found = check(&request, &offer, agreed);
                if let Ok(Request::Read(extent) | Request::Status { extent, .. }
                    | Request::Write { extent, .. } | Request::Zero { extent, .. }) = found {
                    prop_assert!(extent.end() <= size);
                    let writes = matches!(found, Ok(Request::Write { .. } | Request::Zero { .. }));
                    prop_assert!(is_writable || !writes);
                }
            }
        }
    }
}
