//! A thin volume that is active while it is read.
//!
//! Thin snapshots are made so that they stay inactive, and inactive is what a base snapshot should be: nothing
//! writes to it then. To be read it is activated and its device made read-only, which changes nothing in LVM's
//! metadata (LVM's own `read_only_volume_list` would make the pool's table read-only, which the kernel refuses), and
//! deactivated again.
//!
//! Guarantees: what was active before stays active; of several runs that read one volume, whatever state directories they
//! have, the last one deactivates it; what killed runs left active is on record, and deactivated by the next run that reads
//! a thin volume.

use std::fs::File;
use std::thread;
use std::time::Duration;

use super::lock::LockFile;
use super::record::{self, Held, HeldFile, name_of};
use super::reservation::Wait;
use crate::dm::device::{DeviceMapper, device_path};
use crate::dm::lvm;
use crate::dm::name::LvName;
use crate::dm::wire::Selector;
use crate::error::{Error, Result};
use crate::sys::ioctl;
use crate::volume::host::boot_id;

/// udev looks at a device that has just appeared, and holds it meanwhile.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(200);

/// The volume, active.
#[derive(Debug)]
pub struct Activation {
    name: LvName,
    uuid: String,
    file: HeldFile,
    lock: LockFile,
}

impl Activation {
    /// Makes `name`, whose LVM UUID is `uuid`, active. `None` where somebody else keeps it active.
    pub fn take(
        dm: &DeviceMapper,
        name: LvName,
        uuid: &str,
        wait: Wait<'_>,
    ) -> Result<Option<Self>> {
        let lock = LockFile::open(&name_of("volume", uuid))?;
        while !lock.try_shared()? {
            wait(&format!(
                "{name}: another lvmsync is about to deactivate it"
            ))?;
        }
        let file = HeldFile::of_volume(uuid);
        let boot = boot_id().unwrap_or_default();
        let found = dm.info(Selector::Name(&name.dm_name()))?;
        if let Some(other) = found.as_ref().filter(|info| !is_uuid_of(&info.uuid, uuid)) {
            let reason = format!("device {} has its name", other.device);
            return Err(failed(&name.to_string(), "activate", &reason));
        }
        let is_active = found.is_some();
        let ours = file
            .load()
            .is_some_and(|held| held.boot == boot && held.of == uuid);
        if is_active && !ours {
            return Ok(None);
        }
        file.save(&Held {
            of: uuid.to_owned(),
            name: name.to_string(),
            boot,
            process: std::process::id(),
            ..Held::default()
        })?;
        let activation = Self {
            name,
            uuid: uuid.to_owned(),
            file,
            lock,
        };
        // A run that was killed may have left it active, and not yet read-only.
        let taken = match is_active {
            true => activation.protect(dm),
            false => activation.activate(dm),
        };
        if let Err(error) = taken {
            let _ = activation.end(dm);
            return Err(error);
        }
        Ok(Some(activation))
    }

    /// Deactivates it, unless another run still reads it: then that one will.
    pub fn end(self, dm: &DeviceMapper) -> Result<()> {
        if !self.lock.try_alone()? {
            return Ok(());
        }
        let found = dm.info(Selector::Name(&self.name.dm_name()))?;
        if found.is_none_or(|info| !is_uuid_of(&info.uuid, &self.uuid)) {
            // Somebody deactivated or renamed it. What has its name now is not ours to deactivate.
            return self.file.remove();
        }
        let name = self.name.to_string();
        let mut result = Ok(());
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                thread::sleep(PAUSE);
            }
            result = lvchange(&["-an", "--", &name], "deactivate", &name);
            if result.is_ok() {
                return self.file.remove();
            }
        }
        result
    }

    fn activate(&self, dm: &DeviceMapper) -> Result<()> {
        let name = self.name.to_string();
        lvchange(&["-ay", "-K", "--", &name], "activate", &name)?;
        self.protect(dm)
    }

    fn protect(&self, dm: &DeviceMapper) -> Result<()> {
        let name = self.name.to_string();
        let dm_name = self.name.dm_name();
        let info = dm.info(Selector::Name(&dm_name))?;
        let info = info.filter(|info| is_uuid_of(&info.uuid, &self.uuid));
        let path = info.map(|info| device_path(info.device, &dm_name));
        let path =
            path.ok_or_else(|| failed(&name, "activate", "it has no device all the same"))?;
        File::open(path)
            .and_then(ioctl::set_read_only)
            .map_err(|error| Error::io(format!("cannot make {name} read-only"), error))
    }
}

/// Deactivates what runs that were killed have left active, guard and all, and forgets what a boot has ended. What
/// cannot be deactivated is in use by somebody, and stays.
pub fn sweep(dm: &DeviceMapper) {
    for (_, held) in record::volumes() {
        let file = HeldFile::of_volume(&held.of);
        let (Some(name), Some(_)) = (LvName::parse(&held.name), file.load()) else {
            continue;
        };
        let Ok(lock) = LockFile::open(&name_of("volume", &held.of)) else {
            continue;
        };
        // Looked at again under the lock: a record that is there now is that of no living run.
        if !lock.try_alone().unwrap_or(false) || file.load().as_ref() != Some(&held) {
            continue;
        }
        let Ok(info) = dm.info(Selector::Name(&name.dm_name())) else {
            continue;
        };
        match info.filter(|info| is_uuid_of(&info.uuid, &held.of)) {
            Some(info) if info.open_count > 0 => {}
            Some(_) if boot_id().unwrap_or_default() == held.boot => {
                let uuid = held.of;
                let activation = Activation {
                    name,
                    uuid,
                    file,
                    lock,
                };
                let _ = activation.end(dm);
            }
            _ => {
                let _ = file.remove();
            }
        }
    }
}

/// Whether device-mapper's UUID is that of the logical volume: `LVM-`, the group's, the volume's.
fn is_uuid_of(device: &str, volume: &str) -> bool {
    let plain = volume.replace('-', "");
    plain.len() == 32
        && device.len() == 68
        && device.starts_with("LVM-")
        && device.ends_with(&plain)
}

fn failed(name: &str, verb: &str, reason: &str) -> Error {
    Error::Lvm {
        what: name.to_owned(),
        reason: format!("cannot {verb} it: {reason}"),
    }
}

fn lvchange(words: &[&str], verb: &str, name: &str) -> Result<()> {
    let output = lvm::lvm_command("lvchange")
        .args(words)
        .output()
        .map_err(|error| failed(name, verb, &format!("cannot run `lvchange`: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Err(failed(name, verb, &lines.collect::<Vec<_>>().join("; ")))
}
