//! Lines of device-mapper tables, and the status words of a snapshot.
//!
//! Guarantees: pure; a target that is known parses completely or is an error, never half; an unknown
//! target is kept by name.

use crate::sys::device::DeviceNumber;

/// One target of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A classic snapshot.
    Snapshot(SnapshotTarget),
    /// An origin into which a snapshot is being merged.
    SnapshotMerge(SnapshotTarget),
    /// An origin that has snapshots.
    SnapshotOrigin {
        /// The device with the data (`-real`).
        real: DeviceNumber,
    },
    /// A range of another device.
    Linear {
        /// The other device.
        device: DeviceNumber,
        /// Where the range starts there.
        offset_sectors: u64,
    },
    /// A thin volume.
    Thin {
        /// The pool (`-tpool`).
        pool: DeviceNumber,
        /// Its id in the pool: 24 bits, reused after deletion.
        device_id: u32,
        /// A read-only device that unmapped blocks are read from.
        external_origin: Option<DeviceNumber>,
    },
    /// A thin pool.
    ThinPool {
        /// Where its maps are (`_tmeta`).
        metadata: DeviceNumber,
        /// Where its blocks are (`_tdata`).
        data: DeviceNumber,
        /// Size of a block.
        block_sectors: u64,
        /// How it was set up.
        features: PoolFeatures,
    },
    /// A volume whose writes dm-era records.
    Era {
        /// Where the record is.
        metadata: DeviceNumber,
        /// The volume.
        origin: DeviceNumber,
        /// Granularity of the record.
        block_sectors: u64,
    },
    /// All I/O fails.
    Error,
    /// Something that lvmsync has no business with.
    Other(String),
}

/// The feature words of a thin pool that change what a write or a discard does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolFeatures {
    /// `skip_block_zeroing`: what a first write leaves of its block is not zero but whatever was on the disk.
    pub skips_zeroing: bool,
    /// `ignore_discard`: volumes refuse discards.
    pub ignores_discards: bool,
}

/// The arguments of `snapshot` and `snapshot-merge`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotTarget {
    /// The device with the origin's data (`-real`).
    pub real: DeviceNumber,
    /// The exception store (`-cow`).
    pub store: DeviceNumber,
    /// False for a store that does not outlive the device (type `N`), which has no table on disk.
    pub persistent: bool,
    /// Chunk size; the store's own header overrides it.
    pub chunk_sectors: u64,
}

/// The status words of a snapshot, and two that only its surroundings can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
    /// In order.
    Valid {
        /// Sectors of the store in use, its header and tables included.
        used_sectors: u64,
        /// Sectors of the store.
        total_sectors: u64,
        /// Sectors of header and tables.
        metadata_sectors: u64,
    },
    /// The kernel gave it up: out of space, or the store failed. Its table misses changes.
    Invalid,
    /// Out of space but still readable. Its table misses changes.
    Overflow,
    /// A merge into the origin failed half-way.
    MergeFailed,
    /// The kernel does not know.
    Unknown,
    /// Being merged into its origin: the table shrinks while the origin changes.
    Merging,
}

impl SnapshotStatus {
    /// Why the exception table cannot be trusted; `None` when it can.
    pub fn why_untrusted(self) -> Option<&'static str> {
        match self {
            Self::Valid { .. } => None,
            Self::Invalid => {
                Some("the snapshot is invalid: it ran out of space or its store failed")
            }
            Self::Overflow => Some("the snapshot overflowed: it ran out of space"),
            Self::MergeFailed => Some("merging the snapshot into its origin failed"),
            Self::Unknown => Some("the kernel does not know the state of the snapshot"),
            Self::Merging => Some("the snapshot is being merged into its origin"),
        }
    }
}

/// A table or status line that does not read as its target's documentation says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cannot understand the device-mapper {kind} line `{params}`")]
pub struct TableError {
    /// Target type.
    pub kind: String,
    /// The arguments as they were.
    pub params: String,
}

/// Reads the arguments of one table line.
pub fn parse_target(kind: &str, params: &str) -> Result<Target, TableError> {
    let mut words = params.split_ascii_whitespace();
    let words = &mut words;
    let target = match kind {
        "snapshot" => parse_snapshot(words).map(Target::Snapshot),
        "snapshot-merge" => parse_snapshot(words).map(Target::SnapshotMerge),
        "snapshot-origin" => device(words).map(|real| Target::SnapshotOrigin { real }),
        "linear" => device(words)
            .zip(number(words))
            .map(|(device, offset_sectors)| Target::Linear {
                device,
                offset_sectors,
            }),
        "thin" => parse_thin(words),
        "thin-pool" => parse_thin_pool(words),
        "era" => device(words).zip(device(words)).zip(number(words)).map(
            |((metadata, origin), block_sectors)| Target::Era {
                metadata,
                origin,
                block_sectors,
            },
        ),
        "error" => Some(Target::Error),
        _ => Some(Target::Other(kind.to_owned())),
    };
    target.ok_or_else(|| TableError {
        kind: kind.to_owned(),
        params: params.to_owned(),
    })
}

/// Reads a snapshot's status: `used/total metadata` in sectors, or one of the kernel's words.
pub fn parse_snapshot_status(status: &str) -> Result<SnapshotStatus, TableError> {
    let figures = || {
        let (share, metadata) = status.split_once(' ')?;
        let (used, total) = share.split_once('/')?;
        Some(SnapshotStatus::Valid {
            used_sectors: used.parse().ok()?,
            total_sectors: total.parse().ok()?,
            metadata_sectors: metadata.trim().parse().ok()?,
        })
    };
    let parsed = match status {
        "Invalid" => Some(SnapshotStatus::Invalid),
        "Overflow" => Some(SnapshotStatus::Overflow),
        "Merge failed" => Some(SnapshotStatus::MergeFailed),
        "Unknown" => Some(SnapshotStatus::Unknown),
        _ => figures(),
    };
    parsed.ok_or_else(|| TableError {
        kind: "snapshot status".into(),
        params: status.into(),
    })
}

type Words<'a, 'b> = &'a mut std::str::SplitAsciiWhitespace<'b>;

fn device(words: Words<'_, '_>) -> Option<DeviceNumber> {
    words.next()?.parse().ok()
}

fn number(words: Words<'_, '_>) -> Option<u64> {
    words.next()?.parse().ok()
}

fn parse_snapshot(words: Words<'_, '_>) -> Option<SnapshotTarget> {
    let (real, store) = (device(words)?, device(words)?);
    let persistent = match words.next()? {
        "P" | "PO" => true,
        "N" | "NO" => false,
        _ => return None,
    };
    let chunk_sectors = number(words).filter(|n| n.is_power_of_two())?;
    Some(SnapshotTarget {
        real,
        store,
        persistent,
        chunk_sectors,
    })
}

fn parse_thin(words: Words<'_, '_>) -> Option<Target> {
    let pool = device(words)?;
    let device_id = u32::try_from(number(words)?)
        .ok()
        .filter(|id| *id < 1 << 24)?;
    let external_origin = match words.next() {
        Some(word) => Some(word.parse().ok()?),
        None => None,
    };
    Some(Target::Thin {
        pool,
        device_id,
        external_origin,
    })
}

/// `<metadata> <data> <block> <low water> [<number of features> <feature>*]`.
fn parse_thin_pool(words: Words<'_, '_>) -> Option<Target> {
    let (metadata, data) = (device(words)?, device(words)?);
    let block_sectors = number(words)?;
    // An unreadable low water mark or count would leave the features unknown.
    let (mut features, mut left) = (PoolFeatures::default(), 0);
    if let Some(low_water) = words.next() {
        low_water.parse::<u64>().ok()?;
        left = words.next().map_or(Some(0), |word| word.parse().ok())?;
    }
    for _ in 0..left {
        match words.next()? {
            "skip_block_zeroing" => features.skips_zeroing = true,
            "ignore_discard" => features.ignores_discards = true,
            _ => {}
        }
    }
    Some(Target::ThinPool {
        metadata,
        data,
        block_sectors,
        features,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DeviceNumber = DeviceNumber::new(254, 1);
    const B: DeviceNumber = DeviceNumber::new(254, 2);

    #[test]
    fn tables_of_a_real_kernel_parse() {
        let snapshot = |chunk_sectors, persistent| SnapshotTarget {
            real: A,
            store: B,
            persistent,
            chunk_sectors,
        };
        let pool = |features| Target::ThinPool {
            metadata: A,
            data: B,
            block_sectors: 128,
            features,
        };
        for (kind, params, target) in [
            (
                "snapshot",
                "254:1 254:2 P 8",
                Target::Snapshot(snapshot(8, true)),
            ),
            (
                "snapshot",
                "254:1 254:2 PO 1024",
                Target::Snapshot(snapshot(1024, true)),
            ),
            (
                "snapshot",
                "254:1 254:2 P 8 1 discard_zeroes_cow",
                Target::Snapshot(snapshot(8, true)),
            ),
            (
                "snapshot",
                "254:1 254:2 N 16",
                Target::Snapshot(snapshot(16, false)),
            ),
            (
                "snapshot-merge",
                "254:1 254:2 P 8",
                Target::SnapshotMerge(snapshot(8, true)),
            ),
            (
                "snapshot-origin",
                "254:1",
                Target::SnapshotOrigin { real: A },
            ),
            (
                "linear",
                "254:1 2048",
                Target::Linear {
                    device: A,
                    offset_sectors: 2048,
                },
            ),
            (
                "thin",
                "254:1 7",
                Target::Thin {
                    pool: A,
                    device_id: 7,
                    external_origin: None,
                },
            ),
            (
                "thin",
                "254:1 16777215 254:2",
                Target::Thin {
                    pool: A,
                    device_id: 16_777_215,
                    external_origin: Some(B),
                },
            ),
            (
                "thin-pool",
                "254:1 254:2 128 0 1 error_if_no_space",
                pool(PoolFeatures::default()),
            ),
            (
                "thin-pool",
                "254:1 254:2 128 0 2 skip_block_zeroing ignore_discard ",
                pool(PoolFeatures {
                    skips_zeroing: true,
                    ignores_discards: true,
                }),
            ),
            (
                "thin-pool",
                "254:1 254:2 128 0 0 ",
                pool(PoolFeatures::default()),
            ),
            (
                "era",
                "254:1 254:2 128",
                Target::Era {
                    metadata: A,
                    origin: B,
                    block_sectors: 128,
                },
            ),
            ("error", "", Target::Error),
            ("crypt", "aes 0 8:1 0", Target::Other("crypt".into())),
        ] {
            assert_eq!(parse_target(kind, params), Ok(target), "{kind} {params}");
        }
    }

    #[test]
    fn half_a_line_is_an_error() {
        for (kind, params) in [
            ("snapshot", ""),
            ("snapshot", "254:1 254:2 P"),
            ("snapshot", "254:1 254:2 X 8"),
            ("snapshot", "254:1 254:2 P 7"),
            ("snapshot", "254:1 254:2 P 0"),
            ("snapshot-origin", "sda"),
            ("linear", "254:1"),
            ("thin", "254:1 16777216"),
            ("thin", "254:1 1 x"),
            ("thin-pool", "254:1 254:2"),
            ("thin-pool", "254:1 254:2 128 x"),
            ("thin-pool", "254:1 254:2 128 0 2 skip_block_zeroing"),
            ("era", "254:1"),
        ] {
            let error = parse_target(kind, params).unwrap_err();
            assert_eq!((error.kind.as_str(), error.params.as_str()), (kind, params));
        }
    }

    #[test]
    fn status_words_are_the_kernels() {
        use SnapshotStatus::*;
        for (words, status) in [
            ("Invalid", Invalid),
            ("Overflow", Overflow),
            ("Merge failed", MergeFailed),
            ("Unknown", Unknown),
        ] {
            assert_eq!(parse_snapshot_status(words), Ok(status));
            assert!(status.why_untrusted().is_some());
        }
        let valid = Valid {
            used_sectors: 40,
            total_sectors: 65536,
            metadata_sectors: 16,
        };
        assert_eq!(parse_snapshot_status("40/65536 16"), Ok(valid));
        assert_eq!(valid.why_untrusted(), None);
        for words in ["", "invalid", "40/65536", "40 65536 16", "a/b c", "-1/2 3"] {
            assert!(parse_snapshot_status(words).is_err(), "{words}");
        }
    }
}
