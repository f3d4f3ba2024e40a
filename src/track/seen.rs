//! What was seen of a volume, its era device and its record, and what that means for any plan.
//!
//! Pure. Guarantees: what is refused names the volume, what was found, and what leads on.

use super::names::{Metadata, device_name, device_uuid};
use super::step::Step;
use crate::dm::name::LvName;
use crate::error::{Error, Result};
use crate::units::sectors_to_bytes;

/// The era device on a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenDevice {
    /// Its name.
    pub name: String,
    /// It carries the volume's UUID: `track` has made it.
    pub is_ours: bool,
    /// Not of one whose run was killed before it gave it a table.
    pub has_table: bool,
    /// How often it is open.
    pub open_count: u32,
    /// By whom, as far as that can be seen.
    pub holders: Vec<String>,
    /// The root file system is on it, or `/usr`, which stay mounted at a shutdown.
    pub is_root: bool,
    /// It has the volume's UUID, and stands on another one.
    pub is_elsewhere: bool,
    /// Its size.
    pub sectors: u64,
}

/// A snapshot that is merged into a volume: what that takes back is on no record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Merge {
    /// There is none.
    #[default]
    No,
    /// It begins when the volume is activated the next time.
    Due,
    /// It has begun.
    Running,
}

/// What was seen of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub volume: LvName,
    /// LVM's UUID of it.
    pub uuid: String,
    /// Its size.
    pub size_bytes: u64,
    /// Why it cannot be tracked, if it cannot.
    pub unfit: Option<String>,
    /// Whether a snapshot is merged into it.
    pub merge: Merge,
    /// Its number in its thin pool.
    pub thin_id: Option<u32>,
    /// Nobody may write to it.
    pub read_only: bool,
    /// Who uses it, the era device aside.
    pub holders: Vec<String>,
    /// That is somebody of whom nothing is known: udev, for a moment, perhaps.
    pub is_only_open: bool,
    /// The record.
    pub metadata: Option<Metadata>,
    /// What stands on it.
    pub device: Option<SeenDevice>,
    /// Another volume has the name that the record would get.
    pub name_is_taken: bool,
}

impl Seen {
    /// The name of the era device, be it there or not.
    pub fn device_name(&self) -> Result<String> {
        if let Some(device) = &self.device {
            return Ok(device.name.clone());
        }
        device_name(&self.volume).ok_or_else(|| self.too_long())
    }

    /// Its era device is there, and no run was killed before that had a table.
    pub fn has_table(&self) -> bool {
        self.device.as_ref().is_some_and(|device| device.has_table)
    }

    /// So much of it is below the era device.
    pub fn tracked_bytes(&self) -> u64 {
        let sectors = self.metadata.as_ref().and_then(|found| found.sectors);
        sectors
            .and_then(sectors_to_bytes)
            .unwrap_or(self.size_bytes)
    }

    /// What has changed it past its era device while that may have been down, if that can be seen.
    pub(super) fn was_put_back(&self, metadata: &Metadata) -> Option<&'static str> {
        if self.merge == Merge::Running {
            return Some(
                "a snapshot is being merged into it, which takes back what was written since",
            );
        }
        metadata.was_swapped(self.thin_id).then_some(
            "it is another volume of its thin pool than it was: a snapshot was merged into it, which has taken back what was \
             written since",
        )
    }

    pub(super) fn too_long(&self) -> Error {
        Error::refused(
            self.volume.to_string(),
            "its name is so long that its era device could have none",
            "Give the volume or its group a shorter name (lvrename, vgrename).",
        )
    }

    pub(super) fn refuse_use(&self) -> Result<()> {
        if self.holders.is_empty() {
            return Ok(());
        }
        Err(Error::held(
            self.volume.to_string(),
            format!(
                "it is in use: {}. What uses it would go on writing past the era device",
                self.holders.join("; ")
            ),
            "Stop what uses it (umount, swapoff, the service) and run this again.",
        ))
    }

    pub(super) fn start(
        &self,
        metadata: LvName,
        block_sectors: u64,
        sectors: u64,
    ) -> Result<[Step; 2]> {
        let device = device_name(&self.volume).ok_or_else(|| self.too_long())?;
        Ok([
            Step::StartDevice {
                device: device.clone(),
                uuid: device_uuid(&self.uuid),
                sectors,
                metadata,
                volume: self.volume.clone(),
                block_sectors,
            },
            Step::RefuseDiscards { device },
        ])
    }
}
