//! Options for metadata in a file: a thin pool's, or an era device's.

use std::path::PathBuf;

use clap::Args;

use crate::source::MetadataFile;
use crate::units::parse_size;

/// Offline: OLD and NEW are `thin:ID`, or OLD is `era:N`.
#[derive(Args, Debug, Clone, Default)]
pub(super) struct ThinArgs {
    /// Read OLD and NEW, written thin:ID, in this copy of a thin pool's metadata
    #[arg(long, value_name = "FILE")]
    pub(super) thin_metadata: Option<PathBuf>,

    /// Read OLD, written era:N, in this copy of the metadata of an era device that is not active
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "thin_metadata",
        requires = "from"
    )]
    pub(super) era_metadata: Option<PathBuf>,

    /// With --thin-metadata, size of the volume [default: that of the data, or up to the last mapping]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "thin_metadata")]
    pub(super) volume_size: Option<u64>,
}

impl ThinArgs {
    pub(super) fn metadata(&self) -> Option<MetadataFile<'_>> {
        let thin = self.thin_metadata.as_deref().map(MetadataFile::Thin);
        thin.or(self.era_metadata.as_deref().map(MetadataFile::Era))
    }
}
