//! Devices whose writes dm-era records.
//!
//! Guarantees: found through the tables that are active now. Only looks. Such a device answers neither a question for its
//! status nor a message while it is suspended, and whoever asks waits and cannot be killed: so whether it is suspended,
//! which can always be asked, is asked before.

use std::fs;

use super::device::{DeviceMapper, sysfs_holders};
use super::table::{TableError, Target, parse_target};
use super::wire::Selector;
use crate::error::{Error, Result};
use crate::sys::device::DeviceNumber;
use crate::units::sectors_to_bytes;
use crate::volume::host::Host;
use crate::volume::in_use::ActivePool;

/// The era devices that are active on `host`, each with what its record is on, which it writes to all the time as a
/// pool does. Where device-mapper cannot be asked, every device that LVM did not make may be one.
pub fn active_era_devices(host: &Host) -> Vec<ActivePool> {
    let dm = DeviceMapper::open().ok();
    let mut found = Vec::new();
    for (number, device) in &host.devices {
        let Some(name) = &device.dm_name else {
            continue;
        };
        let is_lvms = device
            .dm_uuid
            .as_deref()
            .is_some_and(|uuid| uuid.starts_with("LVM-"));
        let metadata = match &dm {
            None if is_lvms => Vec::new(),
            None => device.slaves.clone(),
            Some(dm) => {
                let lines = dm.table(*number).unwrap_or_default();
                let targets = lines
                    .iter()
                    .filter_map(|line| parse_target(&line.kind, &line.params).ok());
                let metadata = targets.filter_map(|target| match target {
                    Target::Era { metadata, .. } => Some(metadata),
                    _ => None,
                });
                metadata.collect()
            }
        };
        found.extend(metadata.into_iter().map(|metadata| ActivePool {
            name: name.clone(),
            device: *number,
            metadata,
        }));
    }
    found
}

/// An era device that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EraDevice {
    /// Its number.
    pub device: DeviceNumber,
    /// Its name.
    pub name: String,
    /// Its device-mapper UUID.
    pub uuid: String,
    /// Where its record is.
    pub metadata: DeviceNumber,
    /// What it stands on.
    pub origin: DeviceNumber,
    /// Size of a block.
    pub block_bytes: u64,
    /// Its size.
    pub sectors: u64,
}

/// The era device with this number, if it is one. Its table can be asked for even while it is suspended.
pub fn era_device(dm: &DeviceMapper, device: DeviceNumber) -> Result<Option<EraDevice>> {
    let Some(info) = dm.info(Selector::Device(device))? else {
        return Ok(None);
    };
    let lines = dm.table(device)?;
    let [line] = lines.as_slice() else {
        return Ok(None);
    };
    let Ok(Target::Era {
        metadata,
        origin,
        block_sectors,
    }) = parse_target(&line.kind, &line.params)
    else {
        return Ok(None);
    };
    let block_bytes = sectors_to_bytes(block_sectors).unwrap_or(u64::MAX);
    Ok(Some(EraDevice {
        device,
        name: info.name,
        uuid: info.uuid,
        metadata,
        origin,
        block_bytes,
        sectors: line.length_sectors,
    }))
}

/// The era device that stands on this one.
pub fn era_device_on(dm: &DeviceMapper, origin: DeviceNumber) -> Result<Option<EraDevice>> {
    for holder in sysfs_holders(origin) {
        if let Some(found) = era_device(dm, holder)?.filter(|found| found.origin == origin) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What the kernel says of an era device; an error if it is suspended, for then it would not answer.
pub fn status_of(dm: &DeviceMapper, device: DeviceNumber, what: &str) -> Result<EraStatus> {
    let gone = || Error::Lvm {
        what: what.to_owned(),
        reason: format!("its era device {device} is not there any more"),
    };
    let info = dm.info(Selector::Device(device))?.ok_or_else(gone)?;
    if info.suspended {
        return Err(suspended(what, &info.name));
    }
    let lines = dm.status(device)?;
    let words = lines.first().map_or("", |line| line.params.as_str());
    parse_era_status(words).map_err(|error| Error::Lvm {
        what: what.to_owned(),
        reason: error.to_string(),
    })
}

/// The refusal of whatever would wait until somebody resumes the era device with this name.
pub fn suspended(what: &str, device: &str) -> Error {
    Error::refused(
        what,
        format!(
            "its era device /dev/mapper/{device} is suspended, and every question to it would wait; another program may \
             be at work on it"
        ),
        format!("Wait for that. If there is none: dmsetup resume {device}"),
    )
}

/// An error while any era device is suspended: each command of LVM looks at all mapped devices, asks that one for its
/// status, and then waits in the kernel, where nothing can kill it.
pub fn refuse_any_suspended() -> Result<()> {
    let Ok(entries) = fs::read_dir("/sys/block") else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("dm/suspended").trim() != "1" {
            continue;
        }
        let Ok(device) = read("dev").trim().parse() else {
            continue;
        };
        if let Some(found) = era_device(&DeviceMapper::open()?, device)? {
            return Err(suspended_now(&found));
        }
    }
    Ok(())
}

fn suspended_now(found: &EraDevice) -> Error {
    let name = &found.name;
    Error::held(
        format!("/dev/mapper/{name}"),
        "this era device is suspended, and as long as it is, LVM's commands would wait for it in the kernel; another \
         program may be at work on it",
        format!("Wait for that. If there is none: dmsetup resume {name}"),
    )
}

/// What the kernel says of an era device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EraStatus {
    /// Blocks of the metadata in use, of 4 KiB.
    pub used_blocks: u64,
    /// Blocks of the metadata.
    pub total_blocks: u64,
    /// The era that goes on.
    pub era: u32,
    /// The block of the metadata snapshot's superblock, while there is one.
    pub held_root: Option<u64>,
}

/// Reads `<sectors of a metadata block> <used>/<total> <era> <root of the metadata snapshot|->`, or `Error`.
pub fn parse_era_status(status: &str) -> std::result::Result<EraStatus, TableError> {
    let parsed = || {
        let mut words = status.split_ascii_whitespace();
        words
            .next()?
            .parse::<u64>()
            .ok()
            .filter(|sectors| *sectors == 8)?;
        let (used, total) = words.next()?.split_once('/')?;
        Some(EraStatus {
            used_blocks: used.parse().ok()?,
            total_blocks: total.parse().ok()?,
            era: words.next()?.parse().ok()?,
            held_root: match words.next()? {
                "-" => None,
                root => Some(root.parse().ok()?),
            },
        })
    };
    parsed().ok_or_else(|| TableError {
        kind: "era status".into(),
        params: status.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_words_are_the_kernels() {
        let status = EraStatus {
            used_blocks: 13,
            total_blocks: 2048,
            era: 4,
            held_root: Some(24),
        };
        assert_eq!(parse_era_status("8 13/2048 4 24"), Ok(status));
        let free = EraStatus {
            held_root: None,
            ..status
        };
        assert_eq!(parse_era_status("8 13/2048 4 -"), Ok(free));
        for words in [
            "",
            "Error",
            "8 13/2048 4",
            "8 13 4 -",
            "16 13/2048 4 -",
            "8 1/2 x -",
        ] {
            assert!(parse_era_status(words).is_err(), "{words}");
        }
    }
}
