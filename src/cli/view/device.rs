//! A state as a read-only device, until somebody stops it.
//!
//! Guarantees: the base cannot change below it: it is a logical volume that refuses writes, or a snapshot that is made of it;
//! what is made is on record before it is there, and goes again unless the device is there in the end. What a killed run or a
//! power cut has left goes with `--stop`, or with the next device of that name.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::cancel::Cancel;
use crate::changes::cow::Layout;
use crate::commands::Caller;
use crate::dm::name::LvName;
use crate::dm::openers::writers_open;
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::shown::{self as mapped, Table};
use crate::dm::snapshot::{LogicalVolume, Role, recheck};
use crate::dm::table::SnapshotStatus;
use crate::dm::temporary::{Wanted, room_of, store_extents, temporary_name};
use crate::error::{Error, ExitCode, Result};
use crate::hold::lock::LockFile;
use crate::monitor::Monitor;
use crate::record::half_written;
use crate::record::identity;
use crate::record::keeper::{now, shown_time};
use crate::record::store::{StateDir, make_directory};
use crate::units::{Bytes, SECTOR_BYTES};
use crate::view::shown::{self, Shown};
use crate::view::state::View;
use crate::view::store;
use crate::volume::ReadAt;
use crate::volume::file::FileVolume;
use crate::volume::file_version::run_id;

/// What is asked for.
pub(super) struct Wish<'a> {
    pub(super) name: &'a str,
    pub(super) base: &'a str,
    /// Of the state.
    pub(super) size_bytes: u64,
    pub(super) store: Option<&'a Path>,
    pub(super) layout: Layout,
    /// Of the snapshot of a thick base.
    pub(super) snapshot_bytes: Option<u64>,
    pub(super) state: StateDir,
    pub(super) caller: Caller,
    /// Show also what LVM would take for a disk of its own.
    pub(super) force: bool,
    pub(super) monitor: &'a dyn Monitor,
}

/// One that is being made. Dropped before [`Making::finish`] is done, all of it goes.
pub(super) struct Making<'a> {
    wish: &'a Wish<'a>,
    shown: Shown,
    /// What is below the device.
    below: LogicalVolume,
    is_done: bool,
    lock: LockFile,
}

impl<'a> Making<'a> {
    /// Puts it on record, and makes the snapshot of the base where that needs one.
    pub(super) fn begin(wish: &'a Wish<'a>) -> Result<Self> {
        let base = wish.base;
        let resolved = resolve(base)?;
        half_written::refuse(&wish.state, &resolved, base)?;
        let Resolved::LogicalVolume(volume) = resolved else {
            return Err(Error::refused(
                base,
                "it is no logical volume, and nothing keeps others from writing to it below the device",
                "--nbd serves the state over any base, and nbd-client makes a device of that.",
            ));
        };
        refuse_unfit(wish, base, &volume)?;
        let record = wish
            .state
            .file_of(&identity::of_logical_volume(&volume.uuid));
        let before = record.load()?;
        let lock = locked(wish.name)?;
        remove_what_was_cut(wish)?;
        if mapped::is_taken(wish.name)? {
            return Err(Error::refused(
                format!("/dev/mapper/{}", wish.name),
                "there is a device of that name already",
                "Choose another name.",
            ));
        }
        let id = blake3::hash(run_id().as_bytes()).to_hex()[..32].to_owned();
        let shown = Shown {
            name: wish.name.to_owned(),
            base: base.to_owned(),
            store: store_path(wish)?,
            snapshot: snapshot_name(&volume, &id)?,
            store_identity: None,
            since: now(),
            id,
        };
        shown.save(&wish.state)?;
        let mut making = Self {
            wish,
            below: *volume,
            shown,
            is_done: false,
            lock,
        };
        making.protect()?;
        if record.load()? != before {
            return Err(Error::held(
                base,
                "a run has written to it just now",
                "Wait until that is done, and run this again.",
            ));
        }
        Ok(making)
    }

    /// The snapshot that was made of the base.
    pub(super) fn snapshot(&self) -> Option<&str> {
        self.shown.snapshot.as_deref()
    }

    fn protect(&mut self) -> Result<()> {
        let Some(name) = self.shown.snapshot.as_deref().and_then(LvName::parse) else {
            return Ok(());
        };
        let origin = &self.below;
        let extents = match origin.role {
            Role::Thin { .. } => None,
            _ => {
                let room = room_of(origin.name.vg())?;
                let asked = self.wish.snapshot_bytes;
                let extents = store_extents(&origin.name, origin.size_bytes, asked, room);
                let free = room.free_extents.saturating_mul(room.extent_bytes);
                Some(extents.map_err(|_| no_room(origin, free))?)
            }
        };
        let wanted = Wanted {
            origin: &origin.name,
            name: &name,
            id: &self.shown.id,
            extents,
        };
        wanted.make(self.lock.share()?)?;
        let made = resolve(&format!("/dev/mapper/{}", name.dm_name()))?;
        let Resolved::LogicalVolume(made) = made else {
            return Err(Error::Lvm {
                what: name.to_string(),
                reason: "LVM made it, and it has no device".to_owned(),
            });
        };
        self.below = *made;
        Ok(())
    }

    /// Writes the store, and makes the device.
    pub(super) fn finish<V: ReadAt>(
        &mut self,
        view: &View<'_, V>,
        unchanged: &dyn Fn() -> Result<()>,
        cancel: &Cancel,
    ) -> Result<u64> {
        let wish = self.wish;
        if !wish.force {
            refuse_physical_volume(wish.name, view)?;
        }
        let path = self.shown.store.clone();
        let failed = |error| Error::io(format!("cannot create {}", path.display()), error);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        self.shown.store_identity = Some(identity::of_path(&path));
        self.shown.save(&wish.state)?;
        let target = FileVolume::new(file).map_err(failed)?;
        let shown_path = path.display().to_string();
        let target = (&target as &dyn crate::volume::WriteAt, &*shown_path);
        let store_bytes = store::write(view, target, wish.layout, cancel, wish.monitor)?;
        unchanged()?;
        cancel.check()?;
        if self.shown.snapshot.is_some() && matches!(self.below.role, Role::ThickSnapshot(_)) {
            refuse_lost(&self.below)?;
        }
        let device = mapped::attach(&path)?;
        let table = Table {
            size_bytes: view.size_bytes(),
            base: self.below.device,
            store: &device,
            chunk_bytes: wish.layout.chunk_bytes(),
        };
        mapped::create(wish.name, &self.shown.id, table)?;
        // From now on it goes with the device.
        mapped::detach(&device)?;
        self.is_done = true;
        Ok(store_bytes)
    }

    /// What there is now.
    pub(super) fn sentence<V: ReadAt>(&self, view: &View<'_, V>, store_bytes: u64) -> String {
        let Shown {
            name,
            base,
            store,
            snapshot,
            ..
        } = &self.shown;
        let over = match snapshot {
            Some(snapshot) => format!("{base}, in its snapshot {snapshot}"),
            None => base.clone(),
        };
        format!(
            "/dev/mapper/{name} shows the state, read-only, {}: what differs, {}, is in {}; all else is in {over}. To end it: {}",
            Bytes(view.size_bytes()),
            Bytes(store_bytes),
            store.display(),
            stop_command(&self.wish.caller, name)
        )
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        if let Err(error) = self.shown.tear_down(&self.wish.state) {
            self.wish.monitor.warn(&format!(
                "{}\nWhat is left goes with: {}",
                error.chain(),
                stop_command(&self.wish.caller, self.wish.name)
            ));
        }
    }
}

/// For the user's shell.
pub(super) fn stop_command(caller: &Caller, name: &str) -> String {
    caller.command("view", &["--stop", name])
}

/// Removes the device of this name, and all that it stands on.
pub(super) fn stop(
    name: &str,
    state: &StateDir,
    terminal: &super::super::Terminal,
) -> Result<ExitCode> {
    let _lock = locked(name)?;
    let Some(shown) = shown::load(state, name)? else {
        return Err(Error::refused(
            name,
            "no state is shown under this name, as far as is on record",
            "lvmsync doctor lists those that are.",
        ));
    };
    let store = shown.tear_down(state)?;
    terminal.summary(&format!(
        "/dev/mapper/{name}: removed, with all that it stood on; {} is as it was",
        shown.base
    ));
    tell_of_store(store, terminal);
    Ok(ExitCode::Done)
}

fn locked(name: &str) -> Result<LockFile> {
    shown::lock(name)?.ok_or_else(|| {
        Error::held(
            format!("/dev/mapper/{name}"),
            "another lvmsync makes or removes it",
            "Wait until that is done.",
        )
    })
}

/// One that is shown is somebody's.
fn remove_what_was_cut(wish: &Wish<'_>) -> Result<()> {
    let Some(old) = shown::load(&wish.state, wish.name)? else {
        return Ok(());
    };
    if mapped::find(&old.id)?.is_some() {
        return Err(Error::refused(
            format!("/dev/mapper/{}", wish.name),
            format!(
                "shows a state over {} already, since {}",
                old.base,
                shown_time(old.since)
            ),
            format!(
                "Choose another name, or end it: {}",
                stop_command(&wish.caller, wish.name)
            ),
        ));
    }
    let store = old.tear_down(&wish.state)?;
    tell_of_store(store, wish.monitor);
    wish.monitor.remark(&format!(
        "{}: removed what a run that was cut, or a reboot, has left of it",
        wish.name
    ));
    Ok(())
}

/// What the kernel cannot show.
fn refuse_unfit(wish: &Wish<'_>, base: &str, volume: &LogicalVolume) -> Result<()> {
    let otherwise = "--nbd and --to show it all the same.";
    let size_bytes = wish.size_bytes;
    if size_bytes > volume.size_bytes {
        return Err(Error::refused(
            base,
            format!(
                "it has {} bytes, and the state {size_bytes}: a device cannot be larger than what it is over",
                volume.size_bytes
            ),
            otherwise,
        ));
    }
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Error::refused(
            base,
            format!("the state has {size_bytes} bytes, and a device has whole sectors"),
            otherwise,
        ));
    }
    let reason = match &volume.role {
        Role::Plain | Role::Thin { .. } | Role::ThickOrigin { merging: false, .. } => return Ok(()),
        Role::ThickSnapshot(_) if volume.read_only => return Ok(()),
        Role::ThickSnapshot(_) => {
            "it is a snapshot that can be written to, and LVM makes none of it"
        }
        Role::ThickOrigin { .. } => "a snapshot is being merged into it",
        Role::ThinPool => "it is a whole thin pool, not a volume",
        Role::Other { .. } => "LVM makes no snapshot of such a device",
    };
    let way_out = match &volume.role {
        Role::ThickSnapshot(_) => format!("Make it read-only: lvchange -pr {}", volume.name),
        _ => String::new(),
    };
    Err(Error::refused(base, reason, way_out))
}

/// What the snapshot will be called, where one is needed. Who has opened a volume before it was made read-only may still write
/// to it.
fn snapshot_name(volume: &LogicalVolume, id: &str) -> Result<Option<String>> {
    if volume.read_only {
        let users = writers_open(volume.device)?;
        match volume.role {
            _ if !users.may_write() => return Ok(None),
            Role::ThickSnapshot(_) => {
                return Err(Error::refused(
                    volume.name.to_string(),
                    format!("it is read-only, and may be written to all the same: {users}"),
                    "Stop what has opened it before it was made read-only.",
                ));
            }
            _ => {}
        }
    }
    let name = temporary_name(&volume.name, id).ok_or_else(|| Error::Lvm {
        what: volume.name.to_string(),
        reason: "no name for a snapshot of it is short enough".to_owned(),
    })?;
    Ok(Some(name.to_string()))
}

/// LVM scans what is shown, and would find a group that it knows already, or bring one up from an old state.
fn refuse_physical_volume<V: ReadAt>(name: &str, view: &View<'_, V>) -> Result<()> {
    const LABEL: &[u8] = b"LABELONE";
    const SECTORS: u64 = 4;
    let mut beginning =
        vec![0; usize::try_from(view.size_bytes().min(SECTORS * SECTOR_BYTES)).unwrap_or(0)];
    view.read(&mut beginning, 0)?;
    let is_label = |sector: &[u8]| sector.starts_with(LABEL);
    let sector = usize::try_from(SECTOR_BYTES).unwrap_or(512);
    if !beginning.chunks(sector).any(is_label) {
        return Ok(());
    }
    Err(Error::refused(
        format!("/dev/mapper/{name}"),
        "the state is a physical volume of LVM, which would find its group on the device, perhaps a second time",
        format!(
            "--nbd and --to show it all the same. Or let LVM not look: global_filter = [ \"r|^/dev/mapper/{name}$|\" ] in \
             /etc/lvm/lvm.conf, and --force."
        ),
    ))
}

/// The snapshot that is below the device has to be whole.
fn refuse_lost(below: &LogicalVolume) -> Result<()> {
    let status = recheck(below)?;
    if matches!(status, SnapshotStatus::Valid { .. }) {
        return Ok(());
    }
    Err(Error::refused(
        below.name.to_string(),
        "the snapshot that was made to show the state over has overflowed: too much was written to the volume",
        "Make it larger: --snapshot-size SIZE.",
    ))
}

/// Of a store that was not found where it was made.
fn tell_of_store(store: Option<PathBuf>, monitor: &dyn Monitor) {
    if let Some(store) = store {
        monitor.warn(&format!(
            "{}: not there, or another file by now, so it was not removed. If it is on a filesystem that is not mounted, \
             remove it there",
            store.display()
        ));
    }
}

/// Where the store will be: its path without links, for the kernel tells it so.
fn store_path(wish: &Wish<'_>) -> Result<PathBuf> {
    let path = match wish.store {
        Some(path) => path.to_owned(),
        None => {
            wish.state.make()?;
            let directory = shown::directory(&wish.state);
            make_directory(&directory)?;
            let path = directory.join(format!("{}.store", wish.name));
            // Of none that is on record: of one whose record went, and the run with it.
            let _ = std::fs::remove_file(&path);
            path
        }
    };
    let failed = |error| Error::io(format!("cannot create {}", path.display()), error);
    if path.symlink_metadata().is_ok() {
        return Err(Error::refused(
            path.display().to_string(),
            "there is a file of that name already",
            "--store makes a new one.",
        ));
    }
    let (parent, name) = (path.parent(), path.file_name());
    let parent = parent.filter(|parent| *parent != Path::new(""));
    let parent = parent
        .unwrap_or(Path::new("."))
        .canonicalize()
        .map_err(failed)?;
    let name = name.ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
    Ok(parent.join(name))
}

fn no_room(origin: &LogicalVolume, free_bytes: u64) -> Error {
    let vg = origin.name.vg();
    Error::refused(
        origin.name.to_string(),
        format!(
            "there is no room for a snapshot of it to show the state over: volume group {vg} has {} free",
            Bytes(free_bytes)
        ),
        format!(
            "Make room (lvremove, vgextend {vg} DISK), choose a smaller one: --snapshot-size SIZE, or stop what uses it, and \
             forbid writes to it: lvchange -pr {}",
            origin.name
        ),
    )
}
