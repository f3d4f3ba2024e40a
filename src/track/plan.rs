//! From what was seen to the steps that set tracking up, take it away, or bring it back after a boot.
//!
//! Pure. Guarantees: nothing is planned on a volume that is in use, or on a device that somebody has open; a record is
//! marked as void from before it is made until its device is up, and from before its device is taken away: what a killed
//! run leaves is finished or undone by the same command, and never taken for a record of anything. A record with a hole is
//! void, and its device comes up all the same, since a machine may not start without it; it proves something again from an era
//! on that begins after that, and states of earlier ones are no bases any more.

use super::names::{
    HOLE_TAG, Metadata, VOID_TAG, grown_tag, lost_tag, metadata_name, rest_tag, size_tag, tags,
    thin_tag,
};
use super::refusals::{became_smaller, foreign, is_down, no_record, no_tags, refuse_open, void};
use super::seen::{Merge, Seen};
use super::size::{block_bytes, least_metadata_bytes, metadata_bytes, sectors};
use super::step::{Step, table};
use crate::error::{Error, Result};
use crate::units::sectors_to_bytes;

/// Steps that set tracking up with blocks of this size; none if all is as it should be. `era` is the one that goes on.
pub fn enable(seen: &Seen, asked_block_bytes: Option<u64>, era: u32) -> Result<Vec<Step>> {
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
                steps.push(unvoid(seen, metadata, era));
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
    let mut tags = tags(&seen.uuid, block_sectors, tracked);
    tags.extend(seen.thin_id.map(thin_tag));
    steps.push(Step::MakeMetadata {
        name: name.clone(),
        size_bytes: metadata_bytes(seen.size_bytes, block)?,
        tags,
    });
    steps.extend(seen.start(name.clone(), block_sectors, tracked)?);
    steps.push(Step::Unvoid {
        metadata: name,
        gone: vec![VOID_TAG.to_owned()],
        come: Vec::new(),
    });
    Ok(steps)
}

/// Steps that take tracking away; none if there is none.
pub fn disable(seen: &Seen) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let device = seen.device.as_ref().filter(|device| !device.is_elsewhere);
    if let Some(device) = device {
        if !device.is_ours {
            return Err(foreign(seen, device));
        }
        refuse_open(seen, device)?;
    }
    // Before the device goes: from then on something may be written that is on no record. One with a hole would bring its
    // device up at the next boot.
    let counts = |metadata: &&Metadata| !metadata.is_void || metadata.has_hole;
    if let Some(metadata) = seen.metadata.as_ref().filter(counts) {
        steps.push(Step::Void {
            metadata: metadata.name.clone(),
            gone: metadata
                .has_hole
                .then(|| HOLE_TAG.to_owned())
                .into_iter()
                .collect(),
            come: vec![VOID_TAG.to_owned()],
        });
    }
    if let Some(device) = device {
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
        (Some(device), Some(metadata)) if device.has_table && metadata.is_void => {
            return Err(void(seen));
        }
        (Some(device), Some(metadata)) if device.has_table => (device, metadata),
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
    if wanted != device.sectors && device.is_root {
        return Err(Error::refused(
            &what,
            "it holds the root file system, or /usr, and what resumes its era device is a program from there: the machine could stop",
            format!(
                "In a rescue system: lvmsync track up {what}, then track resize and track down. Until then nothing is sent from it"
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
    let Some(device) = seen.device.as_ref().filter(|found| !found.is_elsewhere) else {
        return Ok(Vec::new());
    };
    if !device.is_ours {
        return Err(foreign(seen, device));
    }
    refuse_open(seen, device)?;
    let mut steps = Vec::new();
    let metadata = seen.metadata.as_ref().filter(|metadata| !metadata.is_void);
    if let Some(metadata) = metadata.filter(|_| seen.merge != Merge::No) {
        // The next activation begins it, and it may be done before anybody looks.
        steps.push(mark_hole(metadata));
    } else if let Some(metadata) = metadata {
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
    /// The record has a hole: it is to be marked, and the error told.
    Hole {
        /// The mark, and what brings the device up.
        steps: Vec<Step>,
        /// What was found.
        reason: String,
        /// The device is up then. It is not where something uses the volume without it.
        is_up: bool,
    },
}

/// Steps that put the era device of a tracked volume up again, after a boot for one. `rest` is the word for what the volume
/// holds, where one is on record.
pub fn up(seen: &Seen, rest: Option<&str>) -> Result<Up> {
    let what = seen.volume.to_string();
    let table = seen.device.as_ref().filter(|device| device.has_table);
    if let Some(device) = seen.device.as_ref().filter(|device| !device.is_ours) {
        return Err(foreign(seen, device));
    }
    let Some(metadata) = &seen.metadata else {
        return match table {
            Some(_) => Ok(Up::Steps(raise(seen, None)?)),
            None => Err(Error::refused(
                &what,
                "it is not tracked",
                format!("To track it: lvmsync track enable {what}"),
            )),
        };
    };
    if seen.read_only && table.is_none() {
        return Ok(Up::ReadOnly);
    }
    if metadata.is_void && !metadata.has_hole {
        return Err(void(seen));
    }
    let put_back = seen.was_put_back(metadata);
    let reason = if table.is_none() && !seen.holders.is_empty() {
        let by = seen.holders.join("; ");
        format!("it is in use without its era device: {by}")
    } else if metadata.has_hole {
        "something wrote past its era device, or may have, as was found before".to_owned()
    } else if let Some(reason) = put_back {
        reason.to_owned()
    } else if table.is_none() && metadata.rest.is_some() && metadata.rest.as_deref() != rest {
        "it does not hold what it held when its era device was taken down: something wrote to it meanwhile (mounted \
         without the era device, from a rescue system, by a program that opens the volume itself)"
            .to_owned()
    } else {
        return Ok(Up::Steps(raise(seen, Some(metadata))?));
    };
    let mut steps: Vec<Step> = (!metadata.is_void)
        .then(|| mark_hole(metadata))
        .into_iter()
        .collect();
    // The mark is what counts: what keeps the device from coming up is told when it is tried the next time.
    let raised = raise(seen, Some(metadata)).ok();
    let raised = raised.filter(|_| table.is_some() || seen.holders.is_empty());
    let is_up = raised.is_some();
    steps.extend(raised.into_iter().flatten());
    Ok(Up::Hole {
        steps,
        reason,
        is_up,
    })
}

/// What brings the device up, whatever the record proves.
fn raise(seen: &Seen, metadata: Option<&Metadata>) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    match (&seen.device, metadata) {
        (Some(device), _) if device.has_table => {
            let device = device.name.clone();
            steps.push(Step::RefuseDiscards { device });
        }
        (device, Some(metadata)) => {
            let (Some(block_sectors), Some(tracked)) = (metadata.block_sectors, metadata.sectors)
            else {
                return Err(no_tags(metadata));
            };
            if sectors(seen.size_bytes) < tracked {
                return Err(became_smaller(&seen.volume.to_string()));
            }
            steps.extend(device.as_ref().map(|device| Step::StopDevice {
                device: device.name.clone(),
            }));
            if !metadata.is_active {
                steps.push(Step::Activate(metadata.name.clone()));
            }
            // Where it was extended meanwhile, what is new is tracked when `track resize` has put that on record.
            steps.extend(seen.start(metadata.name.clone(), block_sectors, tracked)?);
        }
        (_, None) => {}
    }
    steps.extend(metadata.and_then(unrest));
    Ok(steps)
}

fn mark_hole(metadata: &Metadata) -> Step {
    Step::Void {
        metadata: metadata.name.clone(),
        gone: Vec::new(),
        come: vec![VOID_TAG.to_owned(), HOLE_TAG.to_owned()],
    }
}

/// Whatever was written while it was void, and before: no state up to `era` is a base any more. Nothing is sent from a void
/// record, so none of a later one is there.
fn unvoid(seen: &Seen, metadata: &Metadata, era: u32) -> Step {
    let mut gone = vec![VOID_TAG.to_owned()];
    gone.extend(metadata.has_hole.then(|| HOLE_TAG.to_owned()));
    let mut come = Vec::new();
    if metadata.lost_until.is_none_or(|until| until < era) {
        gone.extend(metadata.lost_until.map(lost_tag));
        come.push(lost_tag(era));
    }
    if metadata.thin_id != seen.thin_id {
        gone.extend(metadata.thin_id.map(thin_tag));
        come.extend(seen.thin_id.map(thin_tag));
    }
    Step::Unvoid {
        metadata: metadata.name.clone(),
        gone,
        come,
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
