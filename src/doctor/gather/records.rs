//! Looking at what lvmsync keeps on this machine: records, what is held, what was left half written.
//!
//! Guarantees: changes nothing and takes no lock; a lock that somebody holds is seen from outside.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::super::facts::{
    HeldFacts, HeldKind, Looked, Partial, Place, Presence, RecordFacts, Records, Undo, Unusable,
};
use super::super::parse;
use super::{Mapped, find_program, names_in, output_of, views};
use crate::dm::device::DeviceMapper;
use crate::dm::name::LvName;
use crate::dm::temporary;
use crate::dm::uuid::DmUuid;
use crate::dm::wire::Selector;
use crate::hold::{self, lock, record::Held};
use crate::partial_file::partial_name;
use crate::record::store::StateDir;
use crate::record::{MAX_BYTES, Record, identity};
use crate::sys::device::DeviceNumber;
use crate::volume::host::boot_id;

/// How long `lvs` may take: it reads every disk.
pub(super) const LVS_LIMIT: Duration = Duration::from_secs(30);

/// What lvmsync keeps in `directory`; `named` says that the command line named it.
pub fn records(directory: &StateDir, named: bool) -> Records {
    let locks = parse::locks(&fs::read_to_string("/proc/locks").unwrap_or_default());
    let here = Here {
        locks,
        active: active_volumes(),
        all: None,
    };
    let destinations = directory.path().join("destinations");
    let (views, stray_devices, stray_snapshots) = views::look(directory, &here);
    Records {
        directory: directory.path().display().to_string(),
        named,
        place: place(&destinations),
        partials: partials(&destinations, ".state.partial", &here),
        spools: partials(&directory.spools(), ".spool.partial", &here),
        held: held(directory, &here),
        stray_devices,
        stray_snapshots: Some(stray_snapshots),
        views,
        records: Some(listed(directory, here)),
    }
}

fn held(directory: &StateDir, here: &Here) -> Vec<HeldFacts> {
    let boot = boot_id();
    let look = |kind: HeldKind, name: &str, held: Held| HeldFacts {
        kind,
        busy: here.is_locked(&lock::path_of(name)),
        this_boot: boot.as_ref() == Some(&held.boot),
        held,
    };
    let mut all = Vec::new();
    for (name, held) in hold::record::pools(directory) {
        all.push(look(HeldKind::Pool, &name, held));
    }
    for (name, held) in hold::record::era_devices(directory) {
        all.push(look(HeldKind::Era, &name, held));
    }
    for (name, held) in hold::record::volumes() {
        all.push(look(HeldKind::Volume, &name, held));
    }
    for (name, held) in hold::record::snapshots(directory) {
        let mut facts = look(HeldKind::Snapshot(Err(String::new())), &name, held);
        // A run whose guard alone was killed reads it still.
        facts.busy |= here.is_open(&facts.held.name);
        if !facts.busy {
            facts.kind = HeldKind::Snapshot(is_there(&facts.held));
        }
        all.push(facts);
    }
    all
}

/// Asks LVM for a snapshot that is on record as temporary.
fn is_there(held: &Held) -> Looked<bool> {
    let name = LvName::parse(&held.name).ok_or("its record names no volume")?;
    if !rustix::process::geteuid().is_root() {
        return Err("asking LVM needs root".to_owned());
    }
    let lvm = find_program("lvm").ok_or("there is no lvm")?;
    let columns = "lv_name,lv_uuid,lv_tags";
    let form = ["--noheadings", "--separator", "|", "-o", columns];
    let arguments = [&["lvs"], &form[..], &["--", name.vg()]].concat();
    let (text, succeeded) = output_of(&lvm, &arguments, LVS_LIMIT)?;
    if !succeeded {
        return Err(format!("lvs failed: {}", text.trim()));
    }
    Ok(temporary::find(&parse::tagged(&text), &name, &held.of).is_some())
}

fn listed(directory: &StateDir, mut here: Here) -> Looked<Vec<RecordFacts>> {
    let files = directory.all().map_err(|error| error.chain())?;
    let look = |path: PathBuf| here.record(directory, &path);
    Ok(files.into_iter().map(look).collect())
}

/// The first of the path and those above it that is there decides.
fn place(directory: &Path) -> Place {
    for (depth, path) in directory.ancestors().enumerate() {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let shown = || path.display().to_string();
        match fs::metadata(path) {
            Ok(found) if !found.is_dir() => return Place::NotADirectory(shown()),
            Ok(_) => {
                let access = Access::WRITE_OK | Access::EXEC_OK;
                return match accessat(CWD, path, access, AtFlags::EACCESS) {
                    Ok(()) if depth == 0 => Place::Writable,
                    Ok(()) => Place::CanBeMade,
                    Err(error) => Place::NotWritable(shown(), io::Error::from(error).to_string()),
                };
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Place::NotWritable(shown(), error.to_string());
            }
            // Not there, or below something that is no directory, which one further up tells.
            Err(_) => {}
        }
    }
    Place::CanBeMade
}

fn partials(directory: &Path, suffix: &str, here: &Here) -> Vec<Partial> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with(suffix))
        .collect();
    paths.sort();
    let look = |path: PathBuf| Partial {
        busy: here.is_locked(&path),
        bytes: fs::metadata(&path).map_or(0, |metadata| metadata.len()),
        path: path.display().to_string(),
    };
    paths.into_iter().map(look).collect()
}

/// LVM's UUIDs of the volumes that have a device, with its name.
fn active_volumes() -> Vec<(String, String)> {
    let volume = |name: &String| {
        let mapped = Mapped::load(name)?;
        let uuid = DmUuid::parse(&mapped.uuid).filter(DmUuid::is_public)?;
        Some((uuid.lv_uuid(), mapped.name))
    };
    names_in("/sys/block").iter().filter_map(volume).collect()
}

/// What records are held against.
pub(super) struct Here {
    locks: Vec<parse::Lock>,
    active: Vec<(String, String)>,
    /// The UUIDs of all logical volumes, once they were asked for.
    all: Option<Looked<BTreeSet<String>>>,
}

impl Here {
    fn record(&mut self, directory: &StateDir, path: &Path) -> RecordFacts {
        let content = content(directory, path);
        let mut facts = RecordFacts {
            file: path.display().to_string(),
            destination: Presence::Unknown,
            busy: false,
            undo: None,
            content,
        };
        let Ok(record) = &facts.content else {
            return facts;
        };
        facts.destination = self.presence(record);
        let undo = record.incomplete.as_ref().and_then(|cut| cut.undo.as_ref());
        facts.undo = undo.map(|undo| undo_of(Path::new(undo)));
        let held = |path: &str| {
            self.is_locked(Path::new(path)) || self.is_locked(&partial_name(Path::new(path)))
        };
        let device = self.device_of(record);
        facts.busy = held(&record.name)
            || undo.is_some_and(|undo| held(undo))
            || device.is_some_and(|name| held(&format!("/dev/mapper/{name}")));
        facts
    }

    /// The name of the active volume of this record.
    fn device_of(&self, record: &Record) -> Option<&str> {
        let uuid = record.identity.strip_prefix("lvm:")?;
        let found = self.active.iter().find(|(active, _)| active == uuid)?;
        Some(&found.1)
    }

    fn presence(&mut self, record: &Record) -> Presence {
        if let Some(uuid) = record.identity.strip_prefix("lvm:") {
            if self.device_of(record).is_some() {
                return Presence::Here;
            }
            return match self.all.get_or_insert_with(all_volumes) {
                Ok(all) if all.contains(uuid) => Presence::Here,
                Ok(_) => Presence::Gone,
                Err(_) => Presence::Unknown,
            };
        }
        let name = Path::new(&record.name);
        // A first copy is written to `NAME.partial`.
        let is_it = |path: &Path| path.exists() && identity::of_path(path) == record.identity;
        if is_it(name) || is_it(&partial_name(name)) {
            return Presence::Here;
        }
        match fs::metadata(name) {
            // Relative to the directory of that run, which nobody knows any more.
            _ if name.is_relative() => Presence::Unknown,
            Ok(_) => Presence::Replaced,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Presence::Gone,
            Err(_) => Presence::Unknown,
        }
    }

    /// Whether anybody has the logical volume of this name open.
    pub(super) fn is_open(&self, name: &str) -> bool {
        let asked = || {
            let name = LvName::parse(name)?.dm_name();
            self.active.iter().find(|(_, active)| *active == name)?;
            DeviceMapper::open()
                .ok()?
                .info(Selector::Name(&name))
                .ok()?
        };
        asked().is_some_and(|info| info.open_count > 0)
    }

    pub(super) fn is_locked(&self, path: &Path) -> bool {
        let Ok(found) = fs::metadata(path) else {
            return false;
        };
        let device = DeviceNumber::from_stat(found.dev());
        let is_it = |lock: &parse::Lock| lock.is_of((device.major, device.minor), found.ino());
        self.locks.iter().any(is_it)
    }
}

fn content(directory: &StateDir, path: &Path) -> Result<Record, Unusable> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
        .map_err(|error| Unusable::Unread(error.to_string()))?;
    Record::decode(&bytes).map_err(|error| {
        // What stands in it is only believed where the name of the file says the same.
        let named = |identity: &String| directory.file_of(identity).path() == path;
        Unusable::Damaged(error, parse::identity_in(&bytes).filter(named))
    })
}

fn undo_of(path: &Path) -> Undo {
    if partial_name(path).exists() {
        Undo::Partial
    } else if path.exists() {
        Undo::Whole
    } else {
        Undo::Gone
    }
}

/// Asks LVM, which alone knows of inactive volumes.
fn all_volumes() -> Looked<BTreeSet<String>> {
    if !rustix::process::geteuid().is_root() {
        return Err("asking LVM needs root".to_owned());
    }
    let lvm = find_program("lvm").ok_or("there is no lvm")?;
    let arguments = ["lvs", "-a", "--noheadings", "-o", "lv_uuid"];
    let (text, succeeded) = output_of(&lvm, &arguments, LVS_LIMIT)?;
    if !succeeded {
        return Err(format!("lvs failed: {}", text.trim()));
    }
    let mut uuids = BTreeSet::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        // A warning (a missing disk, say) may mean that not all are listed.
        let is_uuid = line.len() == 38 && line.matches('-').count() == 6 && !line.contains(' ');
        if !is_uuid {
            return Err(format!("lvs said: {line}"));
        }
        uuids.insert(line.to_owned());
    }
    Ok(uuids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_decided_by_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        assert_eq!(place(directory.path()), Place::Writable);
        assert_eq!(place(&at("a/b")), Place::CanBeMade);
        fs::write(at("file"), "").unwrap();
        let file = at("file").display().to_string();
        assert_eq!(place(&at("file/b")), Place::NotADirectory(file));
        let closed = place(Path::new("/proc/sys/x"));
        assert!(matches!(closed, Place::NotWritable(..)), "{closed:?}");
    }

    #[test]
    fn a_lock_that_somebody_holds_is_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let look = || Here {
            locks: parse::locks(&fs::read_to_string("/proc/locks").unwrap()),
            active: vec![],
            all: None,
        };
        assert!(!look().is_locked(file.path()));
        file.as_file().lock().unwrap();
        assert!(look().is_locked(file.path()));
    }
}
