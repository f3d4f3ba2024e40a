//! Devices whose writes dm-era records.
//!
//! Guarantees: found through the tables that are active now. Only looks, and never asks such a device for its
//! status, which would wait while it is suspended.

use super::device::DeviceMapper;
use super::table::{Target, parse_target};
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
