//! What the data of a tracked volume is read from: a snapshot of the volume below, or that volume itself.
//!
//! Guarantees: a snapshot goes when the run does; what has another size than the list says is not sent.

use super::{SendSource, SnapshotWish, SourceRequest, live, snapshot_in};
use crate::change_list::ChangeList;
use crate::delta::header::Header;
use crate::delta::samples::Samples;
use crate::dm::resolve::Resolved;
use crate::dm::snapshot::LogicalVolume;
use crate::error::{Error, Result};
use crate::hold::client::Guard;
use crate::record::as_opened::AsOpened;
use crate::volume::ReadAt;
use crate::volume::open::Volume;

/// What the data is read from.
pub(super) struct Data {
    pub(super) volume: Volume,
    name: String,
    snapshot: Option<LogicalVolume>,
    pub(super) made: Option<live::Made>,
    pub(super) guard: Guard,
}

impl Data {
    /// A snapshot of the volume below. Taken after the checkpoint, and before the record is read.
    pub(super) fn take(
        request: &SourceRequest<'_>,
        tracked: &LogicalVolume,
        wish: SnapshotWish<'_>,
    ) -> Result<Self> {
        match live::snapshot_of(request, tracked, wish)? {
            Some((made, snapshot, guard)) => {
                let name = snapshot.name.to_string();
                let volume = Volume::open(&snapshot.path)?;
                let resolved = Resolved::LogicalVolume(Box::new(snapshot));
                Ok(Self {
                    volume,
                    name,
                    snapshot: snapshot_in(resolved),
                    made: Some(made),
                    guard,
                })
            }
            None => Self::below(request, tracked),
        }
    }

    /// The volume below as it is: for whoever wants the list alone, or may have no snapshot made. A blur of moments is a
    /// base all the same: what was written since the checkpoint is in the next list.
    pub(super) fn below(request: &SourceRequest<'_>, tracked: &LogicalVolume) -> Result<Self> {
        Ok(Self {
            volume: Volume::open(&tracked.path)?,
            name: tracked.name.to_string(),
            snapshot: None,
            made: None,
            guard: Guard::start(&request.state, request.cancel)?,
        })
    }

    pub(super) fn into_source(
        self,
        header: Header,
        samples: Samples,
        changes: ChangeList,
    ) -> Result<SendSource> {
        if self.volume.size_bytes() != header.volume_size {
            return Err(Error::Lvm {
                what: self.name,
                reason: "its size changed just now; run this again".to_owned(),
            });
        }
        Ok(SendSource {
            header,
            samples,
            changes,
            opened: AsOpened::of(&self.volume)?,
            wants_moment: self.made.is_some(),
            data: self.volume,
            name: self.name,
            snapshot: self.snapshot,
            made: self.made,
            guard: Some(self.guard),
        })
    }
}
