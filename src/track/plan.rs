//! From what was seen to the steps that set tracking up, take it away, or bring it back after a boot.
//!
//! Pure. Guarantees: nothing is planned on a volume that is in use, or on a device that somebody has open; a record is
//! marked as void from before it is made until its device is up, and from before its device is taken away: what a killed
//! run leaves is finished or undone by the same command, and never taken for a record of anything.

use super::names::{
    Metadata, VOID_TAG, device_name, device_uuid, grown_tag, metadata_name, rest_tag, size_tag,
    tags,
};
use super::refusals::{became_smaller, foreign, is_down, no_record, no_tags, refuse_open, void};
use super::size::{block_bytes, least_metadata_bytes, metadata_bytes, sectors};
use super::step::{Step, table};
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
    /// A run that made it was killed before it gave it a table.
    pub has_table: bool,
    /// How often it is open.
    pub open_count: u32,
    /// By whom, as far as that can be seen.
    pub holders: Vec<String>,
    /// The root file system is on it, which stays mounted at a shutdown.
    pub is_root: bool,
    /// Its size.
    pub sectors: u64,
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

    /// So much of it is below the era device.
    pub fn tracked_bytes(&self) -> u64 {
        let sectors = self.metadata.as_ref().and_then(|found| found.sectors);
        sectors
            .and_then(sectors_to_bytes)
            .unwrap_or(self.size_bytes)
    }

    fn too_long(&self) -> Error {
        Error::refused(
            self.volume.to_string(),
            "its name is so long that its era device could have none",
            "Give the volume or its group a shorter name (lvrename, vgrename).",
        )
    }

    fn refuse_use(&self) -> Result<()> {
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

    fn start(&self, metadata: LvName, block_sectors: u64, sectors: u64) -> Result<[Step; 2]> {
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

/// Steps that set tracking up with blocks of this size; none if all is as it should be.
pub fn enable(seen: &Seen, asked_block_bytes: Option<u64>) -> Result<Vec<Step>> {
    let what = seen.volume.to_string();
    if let Some(reason) = &seen.unfit {
        return Err(Error::refused(what, reason, ""));
    }
    let mut steps = Vec::new();
    match (&seen.device, &seen.metadata) {
        (Some(device), _) if !device.is_ours => return Err(foreign(seen, device)),
        // Made, and killed before it had a table.
        (Some(device), _) if !device.has_table => steps.push(Step::StopDevice {
            device: device.name.clone(),
        }),
        (Some(device), Some(metadata)) => {
            let device = device.name.clone();
            steps.push(Step::RefuseDiscards { device });
            steps.extend(unrest(metadata));
            if metadata.is_void {
                steps.push(unvoid(metadata));
            }
            return Ok(steps);
        }
        (Some(device), None) => return Err(no_record(seen, device)),
        (None, _) => {}
    }
    seen.refuse_use()?;
    match &seen.metadata {
        Some(metadata) if metadata.is_void => steps.push(remove(metadata)),
        Some(metadata) => return Err(is_down(seen, metadata)),
        None => {}
    }
    if seen.metadata.is_none() && seen.name_is_taken {
        let name = metadata_name(&seen.volume).map_or_else(String::new, |name| name.to_string());
        return Err(Error::refused(
            what,
            format!("its record would be in {name}, and another volume has that name"),
            format!("Rename that one: lvrename {name} NAME"),
        ));
    }
    let block = block_bytes(seen.size_bytes, asked_block_bytes)?;
    let name = metadata_name(&seen.volume).ok_or_else(|| seen.too_long())?;
    let (block_sectors, tracked) = (sectors(block), sectors(seen.size_bytes));
    steps.push(Step::MakeMetadata {
        name: name.clone(),
        size_bytes: metadata_bytes(seen.size_bytes, block)?,
        tags: tags(&seen.uuid, block_sectors, tracked),
    });
    steps.extend(seen.start(name.clone(), block_sectors, tracked)?);
    steps.push(Step::Unvoid {
        metadata: name,
        tag: VOID_TAG,
    });
    Ok(steps)
}

/// Steps that take tracking away; none if there is none.
pub fn disable(seen: &Seen) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    if let Some(device) = &seen.device {
        if !device.is_ours {
            return Err(foreign(seen, device));
        }
        refuse_open(seen, device)?;
    }
    // Before the device goes: from then on something may be written that is on no record.
    if let Some(metadata) = seen.metadata.as_ref().filter(|metadata| !metadata.is_void) {
        steps.push(Step::Void {
            metadata: metadata.name.clone(),
            tag: VOID_TAG,
        });
    }
    if let Some(device) = &seen.device {
        let device = device.name.clone();
        steps.push(Step::StopDevice { device });
    }
    steps.extend(seen.metadata.as_ref().map(remove));
    Ok(steps)
}

/// Steps that track what the volume was extended by; none if all of it is. `era` is the one that goes on.
pub fn resize(seen: &Seen, era: u32) -> Result<Vec<Step>> {
    let what = seen.volume.to_string();
    let (device, metadata) = match (&seen.device, &seen.metadata) {
        (Some(device), _) if !device.is_ours => return Err(foreign(seen, device)),
        (Some(device), Some(metadata)) if device.has_table && !metadata.is_void => {
            (device, metadata)
        }
        _ => {
            return Err(Error::refused(
                &what,
                "its era device is not up",
                format!("Put it up first: lvmsync track up {what}"),
            ));
        }
    };
    let (Some(block_sectors), Some(tracked)) = (metadata.block_sectors, metadata.sectors) else {
        return Err(no_tags(metadata));
    };
    let wanted = sectors(seen.size_bytes);
    if wanted < tracked || wanted < device.sectors {
        return Err(became_smaller(&what));
    }
    let block_bytes = sectors_to_bytes(block_sectors).unwrap_or(u64::MAX);
    if least_metadata_bytes(seen.size_bytes, block_bytes) > metadata.size_bytes {
        return Err(Error::refused(
            &what,
            format!(
                "its record {} is too small for what it was extended by, and dm-era cannot enlarge one",
                metadata.name
            ),
            format!(
                "Begin anew, and make the copies equal once: lvmsync track disable {what}, lvmsync track enable {what}"
            ),
        ));
    }
    let mut steps = Vec::new();
    if wanted != tracked {
        steps.push(Step::Grow {
            metadata: metadata.name.clone(),
            tags: [size_tag(wanted), grown_tag(era, tracked)],
            old: size_tag(tracked),
        });
    }
    if wanted != device.sectors {
        let table = |sectors| table(sectors, &metadata.name, &seen.volume, block_sectors);
        steps.push(Step::Reload {
            device: device.name.clone(),
            tables: [table(wanted), table(device.sectors)],
        });
        let device = device.name.clone();
        steps.push(Step::RefuseDiscards { device });
    }
    Ok(steps)
}

/// Steps that take the era device down, and put on record what the volume holds then: `rest` is the word for it. None if it
/// is down.
pub fn down(seen: &Seen, rest: &str) -> Result<Vec<Step>> {
    let Some(device) = &seen.device else {
        return Ok(Vec::new());
    };
    if !device.is_ours {
        return Err(foreign(seen, device));
    }
    refuse_open(seen, device)?;
    let mut steps = Vec::new();
    if let Some(metadata) = seen.metadata.as_ref().filter(|metadata| !metadata.is_void) {
        let tag = rest_tag(rest);
        let old = metadata.rest.as_deref().map(rest_tag);
        if old.as_ref() != Some(&tag) {
            let metadata = metadata.name.clone();
            steps.push(Step::Rest { metadata, tag, old });
        }
    }
    let device = device.name.clone();
    steps.push(Step::StopDevice { device });
    Ok(steps)
}

/// Refuses an era device that could not be put up again once it was taken down.
pub fn refuse_lost_record(seen: &Seen) -> Result<()> {
    if let Some(device) = seen.device.as_ref().filter(|device| !device.is_ours) {
        return Err(foreign(seen, device));
    }
    match (&seen.metadata, &seen.device) {
        (Some(metadata), _) if metadata.is_void => Err(void(seen)),
        (Some(metadata), _) if metadata.block_sectors.and(metadata.sectors).is_none() => {
            Err(no_tags(metadata))
        }
        (None, Some(device)) => Err(no_record(seen, device)),
        _ if seen.read_only => Err(Error::refused(
            seen.volume.to_string(),
            "it is read-only, below an era device that is up",
            format!("Let it be written to: lvchange -prw {}", seen.volume),
        )),
        _ => Ok(()),
    }
}

/// What [`up`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Up {
    /// To be done; nothing if it is up.
    Steps(Vec<Step>),
    /// It may not be written to, and through an era device it would be.
    ReadOnly,
    /// The volume is in use without the era device, or was written to, so the record has a hole: it is to be marked, and the
    /// error told.
    Hole(Vec<Step>, String),
}

/// Steps that put the era device of a tracked volume up again, after a boot for one. `rest` is the word for what the volume
/// holds, where one is on record.
pub fn up(seen: &Seen, rest: Option<&str>) -> Result<Up> {
    let what = seen.volume.to_string();
    if let Some(device) = &seen.device {
        if !device.is_ours {
            return Err(foreign(seen, device));
        }
        if device.has_table {
            let device = device.name.clone();
            let mut steps = vec![Step::RefuseDiscards { device }];
            steps.extend(seen.metadata.as_ref().and_then(unrest));
            return Ok(Up::Steps(steps));
        }
    }
    let Some(metadata) = &seen.metadata else {
        return Err(Error::refused(
            &what,
            "it is not tracked",
            format!("To track it: lvmsync track enable {what}"),
        ));
    };
    if seen.read_only {
        return Ok(Up::ReadOnly);
    }
    if metadata.is_void {
        return Err(void(seen));
    }
    let hole = |reason: String| {
        let mark = Step::Void {
            metadata: metadata.name.clone(),
            tag: VOID_TAG,
        };
        Ok(Up::Hole(vec![mark], reason))
    };
    if !seen.holders.is_empty() {
        let by = seen.holders.join("; ");
        return hole(format!("it is in use without its era device: {by}"));
    }
    if metadata.rest.is_some() && metadata.rest.as_deref() != rest {
        return hole(
            "it does not hold what it held when its era device was taken down: something wrote to it meanwhile (mounted \
             without the era device, from a rescue system, by a program that opens the volume itself)"
                .to_owned(),
        );
    }
    let (Some(block_sectors), Some(tracked)) = (metadata.block_sectors, metadata.sectors) else {
        return Err(no_tags(metadata));
    };
    if sectors(seen.size_bytes) < tracked {
        return Err(became_smaller(&what));
    }
    let mut steps = Vec::new();
    if let Some(device) = &seen.device {
        let device = device.name.clone();
        steps.push(Step::StopDevice { device });
    }
    if !metadata.is_active {
        steps.push(Step::Activate(metadata.name.clone()));
    }
    // Where it was extended meanwhile, what is new is tracked when `track resize` has put that on record.
    steps.extend(seen.start(metadata.name.clone(), block_sectors, tracked)?);
    steps.extend(unrest(metadata));
    Ok(Up::Steps(steps))
}

fn unvoid(metadata: &Metadata) -> Step {
    Step::Unvoid {
        metadata: metadata.name.clone(),
        tag: VOID_TAG,
    }
}

fn unrest(metadata: &Metadata) -> Option<Step> {
    let tag = rest_tag(metadata.rest.as_deref()?);
    let metadata = metadata.name.clone();
    Some(Step::Unrest { metadata, tag })
}

fn remove(metadata: &Metadata) -> Step {
    Step::RemoveMetadata {
        name: metadata.name.clone(),
        uuid: metadata.uuid.clone(),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
