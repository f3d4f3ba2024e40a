//! A state as a read-only device, until somebody stops it.
//!
//! Guarantees: the base cannot change below it: it is a logical volume that refuses writes, or a snapshot that is made of it;
//! what is made is on record before it is there, and goes again unless the device is there in the end. What a killed run or a
//! power cut has left goes with `--stop`, or with the next device of that name.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cancel::Cancel;
use crate::changes::cow::Layout;
use crate::commands::Caller;
use crate::dm::name::LvName;
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::shown::{self as mapped, Table};
use crate::dm::snapshot::{LogicalVolume, Role};
use crate::dm::temporary::{Wanted, room_of, store_extents};
use crate::dm::udev;
use crate::error::{Error, Result};
use crate::hold::lock::LockFile;
use crate::monitor::Monitor;
use crate::record::admission::Called;
use crate::record::half_written;
use crate::record::identity;
use crate::record::keeper::{now, shown_time};
use crate::record::store::{StateDir, make_directory};
use crate::units::Bytes;
use crate::view::shown::{self, Shown};
use crate::view::state::View;
use crate::view::store;
use crate::volume::ReadAt;
use crate::volume::file::FileVolume;
use crate::volume::file_version::run_id;

use super::fit;
use super::stop::{locked, tell_of_left};

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

/// A device that is there, as JSON.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    device: String,
    base: &'a str,
    size_bytes: u64,
    /// The snapshot of the base that it is over.
    snapshot: Option<&'a str>,
    store: &'a Path,
    store_bytes: u64,
    chunk_bytes: u64,
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
        let caller = &wish.caller;
        half_written::refuse(&wish.state, &resolved, Called { name: base, caller })?;
        let Resolved::LogicalVolume(volume) = resolved else {
            return Err(Error::refused(
                base,
                "it is no logical volume, and nothing keeps others from writing to it below the device",
                "--nbd serves the state over any base, and nbd-client makes a device of that.",
            ));
        };
        fit::refuse_unfit(wish, &volume)?;
        let record = wish
            .state
            .file_of(&identity::of_logical_volume(&volume.uuid));
        let before = record.load()?;
        let lock = locked(wish.name)?;
        remove_what_was_cut(wish)?;
        fit::refuse_name(wish)?;
        udev::keep_links_away()?;
        let id = blake3::hash(run_id().as_bytes()).to_hex()[..32].to_owned();
        let shown = Shown {
            name: wish.name.to_owned(),
            base: base.to_owned(),
            store: store_path(wish)?,
            snapshot: fit::snapshot_name(&volume, &id)?,
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
                let extents = extents.map_err(|_| fit::no_room(origin, free))?;
                if asked.is_none() && extents == room.free_extents {
                    self.wish.monitor.remark(&format!(
                        "{}: its snapshot gets all that is free in volume group {}, {}; --snapshot-size says how much else",
                        origin.name,
                        origin.name.vg(),
                        Bytes(free)
                    ));
                }
                Some(extents)
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
            fit::refuse_physical_volume(wish.name, view)?;
        }
        let path = self.shown.store.clone();
        if wish.store.is_none() {
            fit::refuse_no_space(&path, store::most_bytes(view, wish.layout, cancel)?)?;
        }
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
            fit::refuse_lost(&self.below)?;
        }
        let device = mapped::attach(&path, self.lock.share()?)?;
        let table = Table {
            size_bytes: view.size_bytes(),
            base: self.below.device,
            store: &device,
            chunk_bytes: wish.layout.chunk_bytes(),
        };
        mapped::create(wish.name, &self.shown.id, table, self.lock.share()?)?;
        // From now on it goes with the device.
        mapped::detach(&device)?;
        self.is_done = true;
        Ok(store_bytes)
    }

    /// What there is now, for a script.
    pub(super) fn report<V: ReadAt>(&self, view: &View<'_, V>, store_bytes: u64) -> Report<'_> {
        Report {
            device: format!("/dev/mapper/{}", self.shown.name),
            base: &self.shown.base,
            size_bytes: view.size_bytes(),
            snapshot: self.shown.snapshot.as_deref(),
            store: &self.shown.store,
            store_bytes,
            chunk_bytes: self.wish.layout.chunk_bytes(),
        }
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
    let left = old.tear_down(&wish.state)?;
    tell_of_left(&left, wish.monitor);
    wish.monitor.remark(&format!(
        "{}: removed what a run that was cut, or a reboot, has left of it",
        wish.name
    ));
    Ok(())
}

/// For the user's shell.
pub(super) fn stop_command(caller: &Caller, name: &str) -> String {
    caller.command("view", &["--stop", name])
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
