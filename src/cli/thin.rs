//! Options for a thin pool's metadata in a file.

use std::path::PathBuf;

use clap::Args;

use crate::units::parse_size;

/// Offline: OLD and NEW are `thin:ID`.
#[derive(Args, Debug, Clone, Default)]
pub(super) struct ThinArgs {
    /// Read OLD and NEW, written thin:ID, in this copy of a thin pool's metadata
    #[arg(long, value_name = "FILE")]
    pub(super) thin_metadata: Option<PathBuf>,

    /// With --thin-metadata, size of the volume [default: that of the data, or up to the last mapping]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "thin_metadata")]
    pub(super) volume_size: Option<u64>,
}
