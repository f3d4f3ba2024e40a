//! Options for reading a live volume from a snapshot that is made for it.

use clap::Args;

use crate::changes::cow::Layout;
use crate::source::SnapshotWish;
use crate::units::parse_size;

/// What LVM takes as a chunk of a snapshot.
const CHUNKS: std::ops::RangeInclusive<u64> = 4096..=512 << 10;

/// The chunks of a snapshot.
pub(super) fn parse_chunk(text: &str) -> Result<Layout, String> {
    let layout = Layout::new(parse_size(text)?);
    layout
        .filter(|layout| CHUNKS.contains(&layout.chunk_bytes()))
        .ok_or_else(|| "it is a power of two between 4k and 512k".to_owned())
}

/// How a live logical volume is read.
#[derive(Args, Debug, Clone, Default)]
pub(super) struct SnapshotArgs {
    /// Read a live volume as it is while it is written, not from a temporary snapshot: for the brave
    #[arg(long, conflicts_with_all = ["snapshot_size", "keep_snapshot"])]
    no_snapshot: bool,

    /// Room for what is written to a thick SRC meanwhile [default: a tenth of it, at least 1G, or what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    snapshot_size: Option<u64>,

    /// Call the snapshot of SRC so, and keep it when all is done: the OLD of the next send
    #[arg(long, value_name = "NAME", conflicts_with = "dry_run")]
    keep_snapshot: Option<String>,
}

impl SnapshotArgs {
    /// What is asked for; `None` for the volume as it is.
    pub(super) fn wish(&self) -> Option<SnapshotWish<'_>> {
        (!self.no_snapshot).then_some(SnapshotWish {
            size_bytes: self.snapshot_size,
            keep: self.keep_snapshot.as_deref(),
            ..SnapshotWish::default()
        })
    }
}
