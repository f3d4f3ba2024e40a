//! Entries for the fuzzers: each takes any bytes, and panics only where an invariant is broken.
//!
//! They live here so that unit tests run them too and the fuzz targets stay one line each.

mod delta;
mod era;
mod nbd;
mod receive;
mod thin;

pub use delta::{fuzz_delta, fuzz_header, fuzz_proto3, fuzz_record};
pub use era::fuzz_era;
pub use nbd::fuzz_nbd;
pub use receive::{fuzz_receive, fuzz_state_record};
pub use thin::fuzz_thin;

use crate::cancel::Cancel;
use crate::changes::cow::read_exceptions;
use crate::engine::compare::{Side, answer};
use crate::session::compare_wire::{MAX_BYTES, MAX_DIGESTS, Request};
use crate::session::message::{self, Decoded};
use crate::session::server::Server;
use crate::session::transport::MessageReader;
use crate::volume::memory::MemoryVolume;

/// An exception store; its last 8 bytes also choose the origin's size.
///
/// Holds: no panic; every extent is inside the origin; extents ascend and do not touch; no more extents
/// than entries.
pub fn fuzz_cow(data: &[u8]) {
    let (_, size) = data.split_last_chunk::<8>().unwrap_or((data, &[0; 8]));
    let store = MemoryVolume::new(data.to_vec());
    // Small origins too: a random u64 is nearly always far larger than any entry.
    let size = u64::from_le_bytes(*size);
    for origin_size in [size, size >> 40, 1 << 20] {
        let Ok(table) = read_exceptions(&store, origin_size) else {
            continue;
        };
        let mut position = None;
        for change in table.changes.iter() {
            assert!(change.extent.end() <= origin_size, "inside the origin");
            assert!(
                position < Some(change.extent.offset()),
                "sorted, disjoint, joined"
            );
            position = Some(change.extent.end());
        }
        assert!(table.changes.len() as u64 + table.duplicates <= table.exceptions);
    }
}

/// What a peer sends: as single messages, to a server, to a client before its stream, and as the requests of a
/// compare.
///
/// Holds: no panic; what decodes encodes to something that decodes to the same; a decoder never asks for
/// more than the longest message; a request never asks for more than is answered at once.
pub fn fuzz_session(data: &[u8]) {
    let mut rest = data;
    loop {
        match message::decode(rest) {
            Ok(Decoded::Complete { message, consumed }) => {
                let again = message.encode().map(|bytes| message::decode(&bytes));
                if let Ok(Ok(Decoded::Complete { message: again, .. })) = again {
                    assert_eq!(again, message);
                }
                rest = &rest[consumed..];
            }
            Ok(Decoded::Incomplete { needed }) => {
                assert!(needed <= message::MAX_PAYLOAD_BYTES, "bounded");
                break;
            }
            Err(_) => break,
        }
    }
    if let Ok(mut server) = Server::accept(data, std::io::sink())
        && let Ok(open) = server.request()
    {
        if open.operation == message::OPERATION_COMPARE {
            let volume = MemoryVolume::new(vec![1; 20_000]);
            let side = Side {
                volume: &volume,
                name: "volume",
            };
            let _ = answer(&mut server, side, &Cancel::new());
        } else {
            let _ = std::io::copy(&mut server, &mut std::io::sink());
        }
    }
    if let Ok(request) = Request::decode(data, 1 << 40) {
        assert!(request.bytes() <= MAX_BYTES, "bounded");
        assert!(
            request.parts().count() as u64 <= MAX_DIGESTS,
            "one message answers it"
        );
        assert_eq!(request.encode(), data, "encodes to what was read");
    }
    let mut reader = MessageReader::new(data);
    if reader.greeting().is_ok() {
        while let Ok(Some(_)) = reader.next_message() {}
    }
}
