//! The packets of the device-mapper control device, `struct dm_ioctl` and what follows it.
//!
//! Guarantees: pure; every offset that the kernel's reply names is checked against the reply before it
//! is followed, lists of records always move forward, and text that is not UTF-8 is refused.

use crate::sys::device::DeviceNumber;
use crate::sys::ioctl::DM_HEADER_BYTES;

/// How a request names its device.
#[derive(Clone, Copy, Debug)]
pub enum Selector<'a> {
    /// No device: for listings.
    None,
    /// By name, as in `/dev/mapper`.
    Name(&'a str),
    /// By device-mapper UUID.
    Uuid(&'a str),
    /// By number.
    Device(DeviceNumber),
}

/// Table in place of status.
pub const FLAG_STATUS_TABLE: u32 = 1 << 4;
/// Do not write out or commit anything for the sake of an exact status.
pub const FLAG_NOFLUSH: u32 = 1 << 11;
const FLAG_READ_ONLY: u32 = 1;
const FLAG_SUSPENDED: u32 = 1 << 1;
const FLAG_ACTIVE_PRESENT: u32 = 1 << 5;
const FLAG_BUFFER_FULL: u32 = 1 << 8;

// Offsets in `struct dm_ioctl`.
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const OPEN_COUNT: usize = 24;
const FLAGS: usize = 28;
const DEVICE: usize = 40;
const NAME: usize = 48;
const NAME_BYTES: usize = 128;
const UUID: usize = NAME + NAME_BYTES;
const UUID_BYTES: usize = 129;
/// Start of the records that follow the header.
const PAYLOAD: u32 = 312;

/// Offsets in `struct dm_target_spec`.
const SPEC_BYTES: usize = 40;
const SPEC_KIND: usize = 24;
const SPEC_KIND_BYTES: usize = 16;

/// A reply that does not hold together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// A name or UUID that no device can have.
    #[error("the device name or UUID is too long for device-mapper ({0} bytes)")]
    NameTooLong(usize),
    /// The reply is shorter than what it says it holds.
    #[error("device-mapper's reply ends at byte {available} inside the {what} at byte {offset}")]
    Truncated {
        /// Which field or record.
        what: &'static str,
        /// Where it starts.
        offset: usize,
        /// Where the reply ends.
        available: usize,
    },
    /// Not text.
    #[error("device-mapper's reply holds a {0} that is not UTF-8 text")]
    NotText(&'static str),
    /// A message that would end early.
    #[error("a message for device-mapper holds a NUL byte")]
    NulInMessage,
    /// Records that point backwards.
    #[error("device-mapper's reply holds a record at byte {0} that does not move forward")]
    Loop(usize),
}

/// What `DM_DEV_STATUS` and the header of every other reply say about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Number of the device.
    pub device: DeviceNumber,
    /// Name, still mangled.
    pub name: String,
    /// UUID; empty where the creator gave none.
    pub uuid: String,
    /// How many times it is open, by processes, mounts and other devices.
    pub open_count: u32,
    /// Refuses writes.
    pub read_only: bool,
    /// I/O is held back.
    pub suspended: bool,
    /// Has a table.
    pub has_table: bool,
    /// Number of targets that follow.
    pub target_count: u32,
}

/// One line of a table or status: `start length kind params`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetLine {
    /// First sector.
    pub start_sectors: u64,
    /// Sectors covered.
    pub length_sectors: u64,
    /// Target type.
    pub kind: String,
    /// Arguments, or status words.
    pub params: String,
}

/// A request packet with room for a reply of `capacity` bytes.
pub fn request(selector: Selector<'_>, flags: u32, capacity: usize) -> Result<Vec<u64>, WireError> {
    let words = capacity.max(DM_HEADER_BYTES).div_ceil(8);
    let mut bytes = vec![0; words * 8];
    bytes[..4].copy_from_slice(&4u32.to_ne_bytes()); // version 4.0.0: any 4.x kernel accepts it
    bytes[DATA_START..][..4].copy_from_slice(&PAYLOAD.to_ne_bytes());
    bytes[FLAGS..][..4].copy_from_slice(&flags.to_ne_bytes());
    let mut put = |at: usize, room: usize, text: &str| {
        if text.len() >= room {
            return Err(WireError::NameTooLong(text.len()));
        }
        bytes[at..][..text.len()].copy_from_slice(text.as_bytes());
        Ok(())
    };
    match selector {
        Selector::None => {}
        Selector::Name(name) => put(NAME, NAME_BYTES, name)?,
        Selector::Uuid(uuid) => put(UUID, UUID_BYTES, uuid)?,
        Selector::Device(device) => {
            bytes[DEVICE..][..8].copy_from_slice(&device.kernel_encoding().to_ne_bytes());
        }
    }
    let word = |chunk: &[u8]| u64::from_ne_bytes(std::array::from_fn(|i| chunk[i]));
    Ok(bytes.chunks_exact(8).map(word).collect())
}

/// A packet that says `text` to the target at sector 0: `struct dm_target_msg` behind the header.
pub fn message(selector: Selector<'_>, text: &str) -> Result<Vec<u64>, WireError> {
    if text.contains('\0') {
        return Err(WireError::NulInMessage);
    }
    // The sector, the text and its NUL.
    let mut packet = request(selector, 0, DM_HEADER_BYTES + 8 + text.len() + 1)?;
    let words = packet.iter_mut().skip(DM_HEADER_BYTES / 8 + 1);
    for (word, chunk) in words.zip(text.as_bytes().chunks(8)) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_ne_bytes(bytes);
    }
    Ok(packet)
}

/// The bytes of a packet.
pub fn packet_bytes(packet: &[u64]) -> Vec<u8> {
    packet.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// True when the reply did not fit and must be asked for again with more room.
pub fn buffer_was_full(reply: &[u8]) -> Result<bool, WireError> {
    Ok(u32_at(reply, FLAGS, "flags")? & FLAG_BUFFER_FULL != 0)
}

/// The version of the interface: the first words of every reply.
pub fn parse_interface_version(reply: &[u8]) -> Result<[u32; 3], WireError> {
    let part = |n: usize| u32_at(reply, 4 * n, "version");
    Ok([part(0)?, part(1)?, part(2)?])
}

/// The header of a reply.
pub fn parse_info(reply: &[u8]) -> Result<DeviceInfo, WireError> {
    let flags = u32_at(reply, FLAGS, "flags")?;
    Ok(DeviceInfo {
        device: DeviceNumber::from_kernel_encoding(u64_at(reply, DEVICE, "device number")?),
        name: text(field(reply, NAME, NAME_BYTES, "name")?, "name")?,
        uuid: text(field(reply, UUID, UUID_BYTES, "uuid")?, "uuid")?,
        // Signed in the kernel's header, never negative in fact.
        open_count: u32_at(reply, OPEN_COUNT, "open count")?,
        read_only: flags & FLAG_READ_ONLY != 0,
        suspended: flags & FLAG_SUSPENDED != 0,
        has_table: flags & FLAG_ACTIVE_PRESENT != 0,
        target_count: u32_at(reply, TARGET_COUNT, "target count")?,
    })
}

/// The lines of a table or status reply.
pub fn parse_targets(reply: &[u8]) -> Result<Vec<TargetLine>, WireError> {
    let payload = payload(reply)?;
    let count = u32_at(reply, TARGET_COUNT, "target count")?;
    let mut lines = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let spec = field(payload, at, SPEC_BYTES, "target")?;
        let params_at = at.saturating_add(SPEC_BYTES);
        let next = usize_at(payload, at.saturating_add(20), "target")?;
        if next < params_at {
            return Err(WireError::Loop(at));
        }
        // The last record names the next aligned place, which the reply itself need not reach.
        let end = next.min(payload.len());
        let params = field(
            payload,
            params_at,
            end.saturating_sub(params_at),
            "target parameters",
        )?;
        let kind = field(spec, SPEC_KIND, SPEC_KIND_BYTES, "target type")?;
        lines.push(TargetLine {
            start_sectors: u64_at(spec, 0, "target")?,
            length_sectors: u64_at(spec, 8, "target")?,
            kind: text(kind, "target type")?,
            params: text(params, "target parameters")?,
        });
        at = next; // counted from the first record, not from this one
    }
    Ok(lines)
}

/// Target types and their versions, as `DM_LIST_VERSIONS` gives them.
pub fn parse_versions(reply: &[u8]) -> Result<Vec<(String, [u32; 3])>, WireError> {
    let payload = payload(reply)?;
    let mut versions = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let next = usize_at(payload, at, "target version")?;
        let part = |n: usize| u32_at(payload, at.saturating_add(4 + 4 * n), "target version");
        let version = [part(0)?, part(1)?, part(2)?];
        let name = payload.get(at.saturating_add(16)..).unwrap_or_default();
        versions.push((text(name, "target type")?, version));
        match next {
            0 => break,
            _ => at = at.checked_add(next).ok_or(WireError::Loop(at))?,
        }
    }
    Ok(versions)
}

/// The part of a reply after its header.
fn payload(reply: &[u8]) -> Result<&[u8], WireError> {
    let start = usize_at(reply, DATA_START, "payload")?;
    let end = usize_at(reply, DATA_SIZE, "payload")?.min(reply.len());
    reply.get(start..end).ok_or(WireError::Truncated {
        what: "payload",
        offset: start,
        available: end,
    })
}

fn field<'a>(
    bytes: &'a [u8],
    offset: usize,
    length: usize,
    what: &'static str,
) -> Result<&'a [u8], WireError> {
    let end = offset.saturating_add(length);
    bytes.get(offset..end).ok_or(WireError::Truncated {
        what,
        offset,
        available: bytes.len(),
    })
}

fn u32_at(bytes: &[u8], offset: usize, what: &'static str) -> Result<u32, WireError> {
    let field = field(bytes, offset, 4, what)?;
    Ok(u32::from_ne_bytes(std::array::from_fn(|i| field[i])))
}

fn u64_at(bytes: &[u8], offset: usize, what: &'static str) -> Result<u64, WireError> {
    let field = field(bytes, offset, 8, what)?;
    Ok(u64::from_ne_bytes(std::array::from_fn(|i| field[i])))
}

fn usize_at(bytes: &[u8], offset: usize, what: &'static str) -> Result<usize, WireError> {
    u32_at(bytes, offset, what).map(|n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// Text up to the first NUL.
fn text(bytes: &[u8], what: &'static str) -> Result<String, WireError> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| WireError::NotText(what))?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// A reply as the kernel lays it out.
    fn reply(lines: &[(u64, u64, &str, &str)]) -> Vec<u8> {
        let (mut payload, mut end) = (Vec::new(), 0);
        for (start, length, kind, params) in lines {
            let at = payload.len();
            payload.resize(at + SPEC_BYTES, 0);
            put(&mut payload, at, &start.to_ne_bytes());
            put(&mut payload, at + 8, &length.to_ne_bytes());
            put(&mut payload, at + SPEC_KIND, kind.as_bytes());
            payload.extend_from_slice(params.as_bytes());
            payload.push(0);
            end = payload.len();
            payload.resize(end.next_multiple_of(8), 0);
            let next = u32::try_from(payload.len()).unwrap();
            put(&mut payload, at + 20, &next.to_ne_bytes());
        }
        let mut bytes = packet_bytes(&request(Selector::None, 0, 0).unwrap());
        bytes.extend_from_slice(&payload[..end]); // the last one is not padded
        let (size, count) = (bytes.len() as u32, lines.len() as u32);
        put(&mut bytes, DATA_SIZE, &size.to_ne_bytes());
        put(&mut bytes, TARGET_COUNT, &count.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_message_stands_behind_the_header_and_ends_in_nul() {
        for text in ["", "release_metadata_snap", "1234567", "12345678"] {
            let packet = message(Selector::Name("vg-pool-tpool"), text).unwrap();
            let bytes = packet_bytes(&packet);
            assert_eq!(bytes[DATA_START..][..4], PAYLOAD.to_ne_bytes());
            assert_eq!(bytes[DM_HEADER_BYTES..][..8], [0; 8]);
            let said = &bytes[DM_HEADER_BYTES + 8..];
            assert_eq!(said[..text.len()], *text.as_bytes());
            assert!(said.len() > text.len() && said[text.len()..].iter().all(|b| *b == 0));
        }
        assert!(message(Selector::None, "a\0b").is_err());
    }

    #[test]
    fn requests_name_their_device() {
        let device = DeviceNumber::new(253, 300);
        let bytes = packet_bytes(&request(Selector::Device(device), FLAG_NOFLUSH, 4096).unwrap());
        assert_eq!(bytes.len(), 4096);
        assert_eq!(parse_info(&bytes).unwrap().device, device);
        assert_eq!(parse_interface_version(&bytes), Ok([4, 0, 0]));
        assert!(parse_interface_version(&bytes[..11]).is_err());
        let bytes = packet_bytes(&request(Selector::Name("vg-lv"), 0, 0).unwrap());
        assert_eq!((bytes.len(), &bytes[48..54]), (312, &b"vg-lv\0"[..]));
        let bytes = packet_bytes(&request(Selector::Uuid("LVM-x"), 0, 0).unwrap());
        assert_eq!(parse_info(&bytes).unwrap().uuid, "LVM-x");
        let long = "x".repeat(128);
        assert_eq!(
            request(Selector::Name(&long), 0, 0),
            Err(WireError::NameTooLong(128))
        );
        assert!(request(Selector::Uuid(&long), 0, 0).is_ok());
    }

    #[test]
    fn tables_come_back_line_by_line() {
        let lines = [(0, 8192, "linear", "8:16 2048"), (8192, 4096, "error", "")];
        let parsed = parse_targets(&reply(&lines)).unwrap();
        let expected = lines.map(|(start_sectors, length_sectors, kind, params)| TargetLine {
            start_sectors,
            length_sectors,
            kind: kind.to_owned(),
            params: params.to_owned(),
        });
        assert_eq!(parsed, expected);
        assert!(!buffer_was_full(&reply(&lines)).unwrap());
    }

    #[test]
    fn versions_come_back() {
        let mut bytes = reply(&[]);
        for (next, name) in [(32u32, "snapshot"), (0, "thin-pool")] {
            let mut record = next.to_ne_bytes().to_vec();
            for part in [1u32, 16, 0] {
                record.extend_from_slice(&part.to_ne_bytes());
            }
            record.extend_from_slice(name.as_bytes());
            record.resize(32, 0);
            bytes.extend_from_slice(&record);
        }
        let size = bytes.len() as u32;
        put(&mut bytes, DATA_SIZE, &size.to_ne_bytes());
        let expected = vec![
            ("snapshot".to_owned(), [1, 16, 0]),
            ("thin-pool".to_owned(), [1, 16, 0]),
        ];
        assert_eq!(parse_versions(&bytes).unwrap(), expected);
    }

    #[test]
    fn a_record_that_points_backwards_is_refused() {
        let mut bytes = reply(&[(0, 8, "linear", "8:0 0"), (8, 8, "linear", "8:0 0")]);
        put(&mut bytes, 312 + 20, &8u32.to_ne_bytes());
        assert_eq!(parse_targets(&bytes), Err(WireError::Loop(0)));
    }

    proptest! {
        #[test]
        fn no_reply_makes_the_parsers_panic(
            at in 0usize..400, noise in prop::collection::vec(any::<u8>(), 0..64), cut in 0usize..500,
        ) {
            let mut bytes = reply(&[(0, 8, "linear", "8:0 0"), (8, 8, "snapshot", "1/2 1")]);
            for (index, byte) in noise.iter().enumerate() {
                if let Some(slot) = bytes.get_mut(at + index) { *slot = *byte; }
            }
            bytes.truncate(cut);
            let _ = (parse_info(&bytes), parse_targets(&bytes), parse_versions(&bytes));
        }
    }
}
