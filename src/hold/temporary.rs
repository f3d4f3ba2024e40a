//! A snapshot of a live volume, made to be read.
//!
//! Guarantees: before it is made it is on record in the state directory, durably, for it outlives a power cut; it carries
//! the id of that record from its first moment on. It is removed when the run ends, however it ends, unless the run said
//! that it is to be kept. What a killed guard or a power cut leaves, the next run finds and removes, but only what record
//! and tags together prove to be ours: what somebody has renamed, or taken a tag off, is theirs.
//!
//! A lock that is named after the id says whose run lives. LVM's `lvcreate` has it, too, while it is at work, so that a
//! snapshot that comes a moment after its guard was killed is not overlooked.

use std::thread;
use std::time::Duration;

use super::lock::LockFile;
use super::record::{self, Held, HeldFile, name_of};
use super::reservation::Wait;
use crate::dm::device::DeviceMapper;
use crate::dm::lvm::{LvRow, volumes_of};
use crate::dm::name::LvName;
use crate::dm::temporary::{
    self, TEMPORARY_TAG, Wanted, chosen_name, room_of, store_extents, temporary_name,
};
use crate::dm::wire::Selector;
use crate::error::{Error, Result};
use crate::record::store::StateDir;
use crate::units::Bytes;
use crate::volume::file_version::run_id;
use crate::volume::host::boot_id;

/// udev looks at a device that has just appeared, and holds it meanwhile.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(200);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The volume that it is to be a snapshot of.
    pub origin: &'a str,
    /// LVM's UUID of it.
    pub uuid: &'a str,
    /// The name that the user has chosen.
    pub name: Option<&'a str>,
    /// Of a thick one: the size that the user has chosen.
    pub size_bytes: Option<u64>,
}

/// The snapshot, held.
#[derive(Debug)]
pub struct Temporary {
    name: LvName,
    id: String,
    /// LVM's UUID of it.
    pub uuid: String,
    /// Of a thick one: the room for what is written to its origin.
    pub store_bytes: Option<u64>,
    file: HeldFile,
    lock: LockFile,
}

impl Temporary {
    /// Makes it.
    pub fn make(
        dm: &DeviceMapper,
        ask: &Ask<'_>,
        state: &StateDir,
        wait: Wait<'_>,
    ) -> Result<Self> {
        let replaced = || Error::Lvm {
            what: ask.origin.to_owned(),
            reason: "another LVM command removed or replaced it just now; run this again"
                .to_owned(),
        };
        let origin = LvName::parse(ask.origin).ok_or_else(replaced)?;
        let rows = volumes_of(origin.vg())?;
        let row = origin_in(&rows, &origin, ask.uuid).ok_or_else(replaced)?;
        // Hashed, for what is not random is at least different in its first digits.
        let id = blake3::hash(run_id().as_bytes()).to_hex()[..32].to_owned();
        let name = match ask.name {
            Some(name) => chosen_name(&origin, name)?,
            None => temporary_name(&origin, &id).ok_or_else(|| no_name(&origin))?,
        };
        if let Some(row) = rows.iter().find(|row| row.name() == name.lv()) {
            if row.lv_tags.split(',').any(|tag| tag == TEMPORARY_TAG) {
                return Err(Error::held(
                    name.to_string(),
                    "there is a temporary snapshot of that name, of a run that has not ended yet or was killed",
                    "Wait for it, or choose another name; lvmsync doctor shows what was left behind.",
                ));
            }
            let way_out = "Choose another name, or remove it if it is not needed any more.";
            return Err(Error::refused(
                name.to_string(),
                "there is a volume of that name already",
                way_out,
            ));
        }
        let mut extents = None;
        let mut store_bytes = None;
        if row.segtype != "thin" {
            let room = room_of(origin.vg())?;
            let size = row.lv_size.parse().map_err(|_| replaced())?;
            let chosen = store_extents(&origin, size, ask.size_bytes, room)?;
            let bytes = chosen.saturating_mul(room.extent_bytes);
            if ask.size_bytes.is_none() && chosen == room.free_extents {
                wait(&format!(
                    "{origin}: its snapshot gets all that is free in volume group {}, {}; if more is written to it \
                     meanwhile, the run fails",
                    origin.vg(),
                    Bytes(bytes)
                ))?;
            }
            (extents, store_bytes) = (Some(chosen), Some(bytes));
        }
        let key = name_of("snapshot", &id);
        let lock = LockFile::open(&key)?;
        if !lock.try_alone()? {
            return Err(Error::held(
                ask.origin,
                "another lvmsync has the same id",
                "",
            ));
        }
        let mut made = Self {
            file: HeldFile::of_snapshot(state, &id),
            uuid: String::new(),
            name,
            id,
            store_bytes,
            lock,
        };
        let taken = made.take(&origin, ask.uuid, extents);
        match taken {
            Ok(uuid) => {
                made.uuid = uuid;
                Ok(made)
            }
            Err(error) => {
                // It may be there all the same. What cannot be removed now stays on record.
                let _ = made.remove(dm);
                Err(error)
            }
        }
    }

    fn take(&self, origin: &LvName, uuid: &str, extents: Option<u64>) -> Result<String> {
        self.file.save(&Held {
            of: self.id.clone(),
            name: self.name.to_string(),
            boot: boot_id().unwrap_or_default(),
            process: std::process::id(),
            ..Held::default()
        })?;
        let wanted = Wanted {
            origin,
            name: &self.name,
            id: &self.id,
            extents,
        };
        let lock = self.lock.share()?;
        wanted
            .make(lock)
            .map_err(|error| cannot_be_made(origin, &error))?;
        let rows = volumes_of(origin.vg())?;
        let found = temporary::find(&rows, &self.name, &self.id);
        // Whoever got the origin's name between the look and the command would have been copied.
        let is_right = |row: &&LvRow| {
            row.origin() == Some(origin.lv()) && origin_in(&rows, origin, uuid).is_some()
        };
        match found.filter(is_right) {
            Some(row) => Ok(row.lv_uuid.clone()),
            None => Err(Error::Lvm {
                what: origin.to_string(),
                reason:
                    "another LVM command replaced it while its snapshot was made; run this again"
                        .to_owned(),
            }),
        }
    }

    /// What it is called.
    pub fn name(&self) -> &LvName {
        &self.name
    }

    /// It is the user's from now on. To be forgotten after that: what has no tag any more is not removed, whatever is on
    /// record.
    pub fn make_lasting(&self) -> Result<()> {
        temporary::keep(&self.name, &self.id)
    }

    /// Removes it.
    pub fn remove(self, dm: &DeviceMapper) -> Result<()> {
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                thread::sleep(PAUSE);
            }
            // To ask LVM would take longer than to look.
            if !is_open(dm, &self.name)? {
                break;
            }
        }
        temporary::remove(&self.name, &self.id).map_err(|error| stays(&self.name, &error))?;
        self.forget()
    }

    /// Takes it off the record.
    pub fn forget(self) -> Result<()> {
        self.file.remove()?;
        self.lock.remove()
    }
}

/// Removes what runs that were killed have left, guard and all, and tells of it. What is still open is left for later.
pub fn sweep(dm: &DeviceMapper, state: &StateDir, tell: &mut dyn FnMut(&str)) {
    for (key, held) in record::snapshots(state) {
        let file = HeldFile::of_snapshot(state, &held.of);
        let (Some(name), Ok(lock)) = (LvName::parse(&held.name), LockFile::open(&key)) else {
            continue;
        };
        if !lock.try_alone().unwrap_or(false) {
            continue;
        }
        // Looked at again under the lock.
        if file.load().as_ref() != Some(&held) {
            let _ = lock.remove();
            continue;
        }
        if is_open(dm, &name).unwrap_or(true) {
            continue;
        }
        let Ok(was_there) = temporary::remove(&name, &held.of) else {
            continue;
        };
        if was_there {
            tell(&format!(
                "{name}: removed the temporary snapshot that a killed run has left"
            ));
        }
        if file.remove().is_ok() {
            let _ = lock.remove();
        }
    }
}

/// The command that removes one by hand.
pub fn remove_command(name: &str) -> String {
    format!("lvremove -y {}", crate::commands::word(name))
}

fn is_open(dm: &DeviceMapper, name: &LvName) -> Result<bool> {
    let found = dm.info(Selector::Name(&name.dm_name()))?;
    Ok(found.is_some_and(|info| info.open_count > 0))
}

fn origin_in<'a>(rows: &'a [LvRow], name: &LvName, uuid: &str) -> Option<&'a LvRow> {
    rows.iter()
        .find(|row| row.lv_name == name.lv() && row.lv_uuid == uuid)
}

fn no_name(origin: &LvName) -> Error {
    Error::Lvm {
        what: origin.to_string(),
        reason: "no name for a snapshot of it is short enough; choose one: --keep-snapshot NAME"
            .to_owned(),
    }
}

fn cannot_be_made(origin: &LvName, error: &Error) -> Error {
    let text = error.chain();
    let said = text
        .strip_prefix(&format!("{origin}: "))
        .unwrap_or(&text)
        .to_owned();
    Error::Lvm {
        what: origin.to_string(),
        reason: format!(
            "cannot make a snapshot to read from: {said}\nTo read the volume as it is while it is written: --no-snapshot"
        ),
    }
}

fn stays(name: &LvName, error: &Error) -> Error {
    Error::Lvm {
        what: name.to_string(),
        reason: format!(
            "this temporary snapshot stays: {}\nThe next lvmsync sync removes it. Or: {}",
            error.chain(),
            remove_command(&name.to_string())
        ),
    }
}
