//! A thin volume that is active while it is read.
//!
//! Thin snapshots are made so that they stay inactive, and inactive is what a base snapshot should be: nothing
//! writes to it then. To be read it is activated and its device made read-only, which changes nothing in LVM's
//! metadata (LVM's own `read_only_volume_list` would make the pool's table read-only, which the kernel refuses), and
//! deactivated again.
//!
//! Guarantees: what was active before stays active; of several runs that read one volume, whatever state directories they
//! have, the last one deactivates it; what killed runs left active is on record, and deactivated by the next run that reads
//! a thin volume. What shows that somebody else has made it theirs meanwhile (it is writable, or active anew) is left
//! active. What LVM is told of a volume that is active already shows nowhere.

use std::fs::File;
use std::thread;
use std::time::Duration;

use super::lock::LockFile;
use super::record::{self, Held, HeldFile, name_of};
use super::reservation::Wait;
use crate::dm::device::{DeviceMapper, device_path};
use crate::dm::lvm;
use crate::dm::name::LvName;
use crate::dm::wire::{DeviceInfo, Selector};
use crate::error::{Error, Result};
use crate::sys::ioctl;
use crate::volume::host::{boot_id, disk_sequence};

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
        let found = dm.info(Selector::Name(&name.dm_name()))?;
        if let Some(other) = found.as_ref().filter(|info| !is_uuid_of(&info.uuid, uuid)) {
            let reason = format!("device {} has its name", other.device);
            return Err(failed(&name.to_string(), "activate", &reason));
        }
        let activation = Self {
            name,
            uuid: uuid.to_owned(),
            file,
            lock,
        };
        let taken = match &found {
            None => activation
                .file
                .save(&activation.held())
                .and_then(|()| activation.activate(dm)),
            Some(info) if activation.is_ours(info) => {
                // A run that was killed may have left it active, and not yet read-only.
                activation.protect(dm)
            }
            Some(_) => {
                activation.file.remove()?;
                return Ok(None);
            }
        };
        if let Err(error) = taken {
            let _ = activation.end(dm);
            return Err(error);
        }
        Ok(Some(activation))
    }

    /// Deactivates it, unless another run still reads it: then that one will. An error also if it stays active because
    /// somebody else uses it.
    pub fn end(self, dm: &DeviceMapper) -> Result<()> {
        if !self.lock.try_alone()? {
            return Ok(());
        }
        let Some(info) = self.info(dm)? else {
            // Somebody deactivated or renamed it. What has its name now is not ours to deactivate.
            return self.file.remove();
        };
        let Some(held) = self.on_record() else {
            // Another run has seen that it is not ours any more.
            return Ok(());
        };
        let name = self.name.to_string();
        if let Some(how) = taken_over(&held, &Seen::of(&info)) {
            self.file.remove()?;
            return Err(stays(&name, how));
        }
        let mut result = Ok(());
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                thread::sleep(PAUSE);
            }
            // To ask LVM would take longer than to look, and the run may be waiting.
            if self.info(dm)?.is_some_and(|info| info.open_count > 0) {
                continue;
            }
            result = lvchange(&["-an", "--", &name], "deactivate", &name);
            if result.is_ok() {
                return self.file.remove();
            }
        }
        match self.info(dm)? {
            Some(info) if info.open_count > 0 => Err(stays(
                &name,
                &format!(
                    "somebody else has it open. When nobody has, the next lvmsync that reads a thin volume \
                     deactivates it, unless it is made writable: blockdev --setrw {}",
                    device_path(info.device, &self.name.dm_name()).display()
                ),
            )),
            _ => result,
        }
    }

    fn info(&self, dm: &DeviceMapper) -> Result<Option<DeviceInfo>> {
        let found = dm.info(Selector::Name(&self.name.dm_name()))?;
        Ok(found.filter(|info| is_uuid_of(&info.uuid, &self.uuid)))
    }

    /// What is put on record before it is active.
    fn held(&self) -> Held {
        Held {
            of: self.uuid.clone(),
            name: self.name.to_string(),
            boot: boot_id().unwrap_or_default(),
            process: std::process::id(),
            ..Held::default()
        }
    }

    /// What is on record, if that is of this boot.
    fn on_record(&self) -> Option<Held> {
        let boot = boot_id().unwrap_or_default();
        let held = self.file.load();
        held.filter(|held| held.boot == boot && held.of == self.uuid)
    }

    /// Whether it is active because a run of ours made it so.
    fn is_ours(&self, info: &DeviceInfo) -> bool {
        let held = self.on_record();
        held.is_some_and(|held| taken_over(&held, &Seen::of(info)).is_none())
    }

    fn activate(&self, dm: &DeviceMapper) -> Result<()> {
        let name = self.name.to_string();
        lvchange(&["-ay", "-K", "--", &name], "activate", &name)?;
        self.protect(dm)
    }

    fn protect(&self, dm: &DeviceMapper) -> Result<()> {
        let name = self.name.to_string();
        let dm_name = self.name.dm_name();
        let info = self.info(dm)?;
        let info =
            info.ok_or_else(|| failed(&name, "activate", "it has no device all the same"))?;
        File::open(device_path(info.device, &dm_name))
            .and_then(ioctl::set_read_only)
            .map_err(|error| Error::io(format!("cannot make {name} read-only"), error))?;
        self.file.save(&Held {
            read_only: true,
            sequence: Seen::of(&info).sequence,
            ..self.held()
        })
    }
}

/// What there is to tell by whether a device is still as it was left.
struct Seen {
    read_only: bool,
    /// Since Linux 5.15 no two devices have the same.
    sequence: Option<String>,
}

impl Seen {
    fn of(info: &DeviceInfo) -> Self {
        Self {
            read_only: info.read_only,
            sequence: disk_sequence(info.device),
        }
    }
}

/// What somebody has done to it since it was put on record, to make it theirs.
fn taken_over(held: &Held, now: &Seen) -> Option<&'static str> {
    if !held.read_only {
        return None; // killed before there was anything to tell by
    }
    match (&held.sequence, &now.sequence) {
        (Some(then), Some(now)) if then != now => Some("somebody else activated it anew"),
        _ if !now.read_only => Some("somebody else made it writable"),
        _ => None,
    }
}

fn stays(name: &str, why: &str) -> Error {
    Error::Lvm {
        what: name.to_owned(),
        reason: format!("it was activated to be read, and stays active: {why}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_writable_or_active_anew_is_somebody_elses() {
        let held = |read_only, sequence: Option<&str>| Held {
            read_only,
            sequence: sequence.map(str::to_owned),
            ..Held::default()
        };
        let taken = |held: &Held, read_only, sequence: Option<&str>| {
            let sequence = sequence.map(str::to_owned);
            let now = Seen {
                read_only,
                sequence,
            };
            taken_over(held, &now).is_some()
        };
        let left = held(true, Some("7"));
        assert!(!taken(&left, true, Some("7")) && !taken(&left, true, None));
        assert!(taken(&left, false, Some("7")) && taken(&left, true, Some("8")));
        let older_kernel = held(true, None);
        assert!(!taken(&older_kernel, true, None) && taken(&older_kernel, false, None));
        // Killed between activating it and making it read-only.
        assert!(!taken(&held(false, None), false, Some("7")));
    }
}
