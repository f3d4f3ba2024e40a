//! Opening a volume that is to be overwritten.
//!
//! Guarantees: the source itself and whatever shares its data is never opened; a volume that is mounted or
//! otherwise held is opened only with the override that says so; all this before anything is written. A file
//! that is made for a full copy has its name only when it is whole; until then it is called `NAME.partial`. A logical
//! volume that is made for one goes again if nothing was written to it.

mod new_volume;
mod pooled;
mod refusals;
mod spooled;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cancel::Cancel;
use crate::commands::{Caller, Via};
use crate::delta::codec::Compression;
use crate::delta::header::Header;
use crate::delta::samples::Samples;
use crate::dm::making;
use crate::dm::pool::Pool;
use crate::dm::resolve::{Resolved, is_name_of_directory, resolve};
use crate::engine::examine::{Beginning, examine};
use crate::engine::receive::{OnDurable, Received, Receiving, rehearse};
use crate::engine::target::{ReceiveOptions, Target};
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::monitor::Monitor;
use crate::partial_file::{partial_name, sync_directory_of};
use crate::record::admission::{Admission, Called, Policy};
use crate::record::half_written;
use crate::record::identity;
use crate::record::keeper::Keeper;
use crate::record::store::StateDir;
use crate::record::witness::Watch;
use crate::source::refuse_suspended_device;
use crate::track::look::refuse_tracked;
use crate::undo_file::UndoFiles;
use crate::volume::ReadAt;
use crate::volume::WriteAt;
use crate::volume::host::VolumeIdentity;
use crate::volume::open::{Volume, WriteOptions, is_for_nodes};
pub use new_volume::Make;
use new_volume::NewVolume;
use pooled::Pooled;
use refusals::{refuse_held, refuse_overlap, refuse_unwritable};

/// How a destination is to be treated.
#[derive(Clone, Debug, Default)]
pub struct DestinationOptions {
    /// Save what is overwritten in this file.
    pub undo: Option<PathBuf>,
    /// Replace an existing undo file.
    pub overwrite: bool,
    /// Accept a destination that is not the base.
    pub force: bool,
    /// Leave out what is past the end of a smaller destination.
    pub allow_smaller: bool,
    /// Write to it though it is mounted or held.
    pub allow_in_use: bool,
    /// Make an empty file where there is none: for a full copy.
    pub create: bool,
    /// Make a logical volume where there is none.
    pub make: Option<Make>,
    /// Open nothing through a symbolic link: the name was looked at before.
    pub no_links: bool,
    /// The delta is an undo whose run was cut.
    pub unfinished: bool,
    /// The stream is made while this destination is compared.
    pub compared: bool,
    /// Compression of the undo file.
    pub undo_compression: Compression,
    /// Where records are kept, if not where they are by default.
    pub state_dir: Option<PathBuf>,
    /// Refuse a delta where no record names its base.
    pub require_record: bool,
    /// Where the data comes from, for the record.
    pub from: String,
    /// How who asks for this reaches this machine.
    pub via: Via,
    /// Keep the whole delta beside, checked and durable, before the first write.
    pub atomic: bool,
    /// The directory for that, if not the one of the records.
    pub spool: Option<PathBuf>,
    /// It is a preview of what has this identity.
    pub stands_for: Option<String>,
}

impl DestinationOptions {
    /// Who is told which commands to run.
    pub fn caller(&self) -> Caller {
        let state_dir = self.state_dir.as_ref();
        Caller {
            via: self.via.clone(),
            state_dir: state_dir.map(|directory| directory.display().to_string()),
        }
    }
}

/// An open destination.
pub struct Destination {
    volume: Arc<Pooled>,
    /// It was made for this copy, and nothing is on record of it. Dropped after `volume`: an open one cannot go.
    new_volume: Option<NewVolume>,
    name: String,
    is_file: bool,
    /// The name that the file gets when it is whole, if it was made for a full copy.
    made: Option<PathBuf>,
    keeper: Keeper,
    undo: UndoFiles,
    /// With `atomic`, once the delta was announced: where it is kept.
    spool: Option<spooled::Place>,
    options: DestinationOptions,
}

impl Destination {
    /// Opens `name` for writing. `sources` is what is read meanwhile, as far as it is on this host.
    pub fn open(
        name: &str,
        sources: &[VolumeIdentity],
        options: &DestinationOptions,
    ) -> Result<Self> {
        // Before `volume`, which has to be closed when this one goes.
        let mut new_volume = None;
        let mut pool = None;
        let found = resolve_or_make(name, options, &mut new_volume);
        let (path, made, known_as) = match found {
            Ok(resolved) => {
                refuse_unwritable(&resolved, name)?;
                refuse_suspended_device(&resolved, name)?;
                if let Resolved::LogicalVolume(volume) = &resolved {
                    refuse_tracked(volume, name)?;
                    pool = Pool::of(volume)?;
                }
                let known_as = identity::of_resolved(&resolved);
                (resolved.path().to_owned(), None, Some(known_as))
            }
            Err(error)
                if !options.create
                    || !is_free_file_name(name)
                    || matches!(error, Error::Usage(_) | Error::Refused { .. }) =>
            {
                return Err(error);
            }
            Err(_) => {
                let made = PathBuf::from(name);
                (partial_name(&made), Some(made), None)
            }
        };
        if made.is_some() && path.is_symlink() {
            let way_out = "Remove the link.";
            let shown = path.display().to_string();
            return Err(Error::refused(
                shown,
                "a link stands where the copy is to be made",
                way_out,
            ));
        }
        if let Ok(identity) = VolumeIdentity::of_path(&path) {
            refuse_overlap(sources, identity, name)?;
            refuse_held(identity, name, options)?;
        }
        let stands_on = match (&pool, &made) {
            (None, None) => pooled::pool_below(&path, name)?,
            _ => None,
        };
        if let Some(pool) = pool.as_ref().or(stands_on.as_ref()) {
            pooled::refuse_trouble(pool, name)?;
        }
        let write_options = WriteOptions {
            allow_in_use: options.allow_in_use,
            create: made.is_some(),
            no_links: options.no_links,
            provisioning: pool.as_ref().map(pooled::provisioning),
        };
        let volume = Volume::open_writable(&path, &write_options)?;
        if made.is_some() {
            sync_directory_of(&path)
                .map_err(|error| Error::io(format!("cannot make {name} durable"), error))?;
        }
        // Once more for the file that is open now, whatever stood at the path before.
        refuse_overlap(sources, volume.identity(), name)?;
        let known_as = known_as.unwrap_or_else(|| identity::of_path(&path));
        let mut keeper = open_keeper(&known_as, name, &volume, options)?;
        if made.is_some() {
            if volume.size_bytes() > 0 && keeper.record().is_none() {
                return Err(Error::refused(
                    path.display().to_string(),
                    "this file is in the way, and nothing is on record of it",
                    "If it is not needed any more, remove it.",
                ));
            }
            keeper.set_new_file();
        }
        let volume = Pooled {
            volume,
            pool,
            stands_on,
        };
        if let Some(new) = new_volume.take() {
            new_volume = begin_new(new, &volume, &keeper, name, options)?;
        }
        Ok(Self {
            undo: UndoFiles::new(
                options.undo.as_deref(),
                options.overwrite,
                [sources, &[volume.volume.identity()]].concat(),
                options.caller(),
            )?,
            is_file: matches!(volume.volume.identity(), VolumeIdentity::File { .. }),
            volume: Arc::new(volume),
            new_volume,
            name: name.to_owned(),
            made,
            keeper,
            spool: None,
            options: options.clone(),
        })
    }

    /// What would be made where there is nothing yet: a file, or a block device.
    pub fn could_make(name: &str, options: &DestinationOptions) -> Result<Option<&'static str>> {
        if resolve(name).is_ok() {
            return Ok(None);
        }
        let is_free = options.create && is_free_file_name(name);
        if let Some(make) = &options.make
            && new_volume::plan(name, make, is_free)?.is_some()
        {
            return Ok(Some(BLOCK_DEVICE));
        }
        Ok(is_free.then_some(FILE))
    }

    /// What is open.
    pub fn volume(&self) -> &Volume {
        &self.volume.volume
    }

    /// Its name, as the user said it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is open, to be read while it is written. To be dropped before this is.
    pub fn readable(&self) -> Arc<dyn ReadAt> {
        self.volume.clone()
    }

    /// It was made for this copy and holds nothing yet: there is nothing to be compared with.
    pub fn is_empty(&self) -> bool {
        self.keeper.is_new_file() || self.new_volume.is_some()
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.volume.volume.size_bytes()
    }

    /// As the engine wants it.
    pub fn target(&self) -> Target<'_> {
        Target {
            volume: &*self.volume,
            name: &self.name,
            is_file: self.is_file,
            room_bytes: self.volume.room_bytes(),
        }
    }

    /// What the engine is allowed.
    pub fn receive_options<'a>(
        &self,
        cancel: &'a Cancel,
        monitor: &'a dyn Monitor,
    ) -> ReceiveOptions<'a> {
        ReceiveOptions {
            force: self.options.force,
            allow_smaller: self.options.allow_smaller,
            unfinished: self.options.unfinished,
            compared: self.options.compared,
            undo_compression: self.options.undo_compression,
            cancel,
            monitor,
        }
    }

    /// Who is told which commands to run.
    pub fn caller(&self) -> Caller {
        self.options.caller()
    }

    /// The destination's record.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Applies a delta from `input`, called `what` in messages.
    pub fn receive(
        &mut self,
        input: impl Read,
        what: &str,
        cancel: &Cancel,
        monitor: &dyn Monitor,
        on_durable: OnDurable<'_>,
    ) -> Result<Received> {
        if self.options.atomic {
            return self.receive_whole(input, what, cancel, monitor, on_durable);
        }
        self.receive_now(input, what, cancel, monitor, on_durable)
    }

    /// The same without the detour of `--atomic`.
    pub fn receive_now(
        &mut self,
        input: impl Read,
        what: &str,
        cancel: &Cancel,
        monitor: &dyn Monitor,
        on_durable: OnDurable<'_>,
    ) -> Result<Received> {
        self.write(cancel, monitor, |target, undo, options, keeper| {
            let receiving = Receiving {
                what,
                target,
                undo,
                options,
                keeper,
            };
            receiving.run(input, on_durable)
        })
    }

    /// Runs `work`, which writes to the volume and keeps its record. A file that was made for it then gets its
    /// name, or goes again if nothing of it is worth keeping.
    pub fn write<T>(
        &mut self,
        cancel: &Cancel,
        monitor: &dyn Monitor,
        work: impl FnOnce(&Target<'_>, &UndoFiles, &ReceiveOptions<'_>, &mut Keeper) -> Result<T>,
    ) -> Result<T> {
        let target = Target {
            volume: &*self.volume,
            name: &self.name,
            is_file: self.is_file,
            room_bytes: self.volume.room_bytes(),
        };
        let options = self.receive_options(cancel, monitor);
        let result = work(&target, &self.undo, &options, &mut self.keeper);
        if result.is_ok() {
            self.remove_stale_spool();
        }
        match (&result, self.made.take()) {
            (Ok(_), Some(name)) => self.give_name(&name)?,
            (Err(_), Some(name)) => {
                let is_begun = |record: &crate::record::Record| record.incomplete.is_some();
                if !self.keeper.record().is_some_and(is_begun) {
                    let _ = std::fs::remove_file(partial_name(&name));
                }
            }
            (_, None) => {}
        }
        // Of what stays there is a record now: the tag has done its work. If it cannot be taken off, the next run
        // with --create tries again.
        if self.keeper.record().is_some()
            && let Some(new) = self.new_volume.take()
            && let Err(error) = new.keep()
        {
            monitor.warn(&error.chain());
        }
        result
    }

    /// The content is durable; the name is made so.
    fn give_name(&mut self, name: &Path) -> Result<()> {
        let partial = partial_name(name);
        match rename_new(&partial, name).and_then(|()| sync_directory_of(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let reason = format!(
                    "something got this name while the copy was made; the copy is whole, and called {}",
                    partial.display()
                );
                let way_out = "Give one of them another name.";
                return Err(Error::refused(name.display().to_string(), reason, way_out));
            }
            Err(error) => {
                return Err(Error::io(
                    format!("cannot finish {}", name.display()),
                    error,
                ));
            }
        }
        let state_dir = StateDir::choose(self.options.state_dir.as_deref());
        self.keeper
            .moved_to(state_dir.file_of(&identity::of_path(name)))
    }

    /// Reads a delta from `input` and checks that it could be applied; writes nothing.
    pub fn rehearse(
        &self,
        input: impl Read,
        what: &str,
        cancel: &Cancel,
        monitor: &dyn Monitor,
    ) -> Result<Received> {
        rehearse(
            input,
            what,
            &self.target(),
            &self.undo,
            &self.receive_options(cancel, monitor),
            &self.keeper,
        )
    }

    /// May a delta with this beginning be applied? Refused is what would be refused then; nothing is written.
    pub fn examine(
        &self,
        header: &Header,
        samples: &Samples,
        cancel: &Cancel,
        monitor: &dyn Monitor,
    ) -> Result<Admission> {
        let beginning = Beginning {
            header,
            samples,
            target: &self.target(),
            undo: &self.undo,
            options: &self.receive_options(cancel, monitor),
        };
        examine(&beginning, &self.keeper).map(|found| found.admission)
    }

    /// What it is, for people.
    pub fn kind(&self) -> &'static str {
        if self.is_file { FILE } else { BLOCK_DEVICE }
    }
}

/// Where the filesystem can, whatever has the new name already stays.
fn rename_new(from: &Path, to: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => std::fs::rename(from, to),
        renamed => Ok(renamed?),
    }
}

const FILE: &str = "file";
const BLOCK_DEVICE: &str = "block device";

/// Finds the destination; where there is none, and that is wished for, makes a logical volume, which then is
/// `new_volume`. So is one that a run made that was killed before anything was on record.
fn resolve_or_make(
    name: &str,
    options: &DestinationOptions,
    new_volume: &mut Option<NewVolume>,
) -> Result<Resolved> {
    let found = resolve(name);
    let Some(make) = &options.make else {
        return found;
    };
    match found {
        Ok(Resolved::LogicalVolume(volume)) => {
            if making::is_new(&volume.name, &volume.uuid)? {
                let (name, uuid) = (volume.name.clone(), volume.uuid.clone());
                *new_volume = Some(NewVolume::left_behind(name, uuid));
            }
            Ok(Resolved::LogicalVolume(volume))
        }
        Ok(resolved) => Ok(resolved),
        // It is there, and cannot be used.
        Err(error @ Error::Refused { .. }) => Err(error),
        Err(error) => {
            let is_free = options.create && is_free_file_name(name);
            let planned = new_volume::plan(name, make, is_free)?;
            let (Some(plan), Some(size_bytes)) = (planned, make.size_bytes) else {
                return Err(error);
            };
            let new = new_volume.insert(NewVolume::make(&plan, size_bytes)?);
            let resolved = resolve(&format!("/dev/mapper/{}", plan.name.dm_name()))?;
            if let Resolved::LogicalVolume(volume) = &resolved {
                new.known_as(&volume.uuid);
            }
            Ok(resolved)
        }
    }
}

/// A new volume of which something is on record already is none any more. In one that is, what LVM gave beyond the
/// copy holds whatever was on the disk before.
fn begin_new(
    new: NewVolume,
    volume: &Pooled,
    keeper: &Keeper,
    name: &str,
    options: &DestinationOptions,
) -> Result<Option<NewVolume>> {
    if keeper.record().is_some() {
        new.keep()?;
        return Ok(None);
    }
    let size_bytes = options.make.as_ref().and_then(|make| make.size_bytes);
    let beyond = size_bytes.and_then(|size| Extent::from_range(size, volume.volume.size_bytes()));
    if let Some(beyond) = beyond {
        volume
            .zero_at(beyond)
            .map_err(|error| Error::io(format!("cannot zero {beyond} of {name}"), error))?;
    }
    Ok(Some(new))
}

fn open_keeper(
    known_as: &str,
    name: &str,
    volume: &Volume,
    options: &DestinationOptions,
) -> Result<Keeper> {
    let state = StateDir::choose(options.state_dir.as_deref());
    let file = state.file_of(known_as);
    let policy = Policy {
        force: options.force,
        require_record: options.require_record,
        ..Policy::default()
    };
    let watch =
        Watch::of(volume).map_err(|error| Error::io(format!("cannot look at {name}"), error))?;
    let keeper = Keeper::open(file, name, &options.from, policy, Some(watch), volume)?;
    let caller = options.caller();
    let called = Called {
        name,
        caller: &caller,
    };
    let elsewhere = half_written::elsewhere(&state, volume.path(), called)?;
    let mut lies_on = identity::with_below(volume.path());
    lies_on.retain(|below| below != known_as);
    let keeper = keeper.standing_for(options.stands_for.clone());
    Ok(keeper.beside(elsewhere).lying_on(lies_on).told_to(caller))
}

/// A full copy may make a file under this name. What stands for a volume that is not there is no such name: for
/// that one LVM's explanation helps more than "no such file".
fn is_free_file_name(name: &str) -> bool {
    let path = Path::new(name);
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    // Paths are compared without a slash at the end, which no file has.
    !is_name_of_directory(name)
        && parent.is_dir()
        && !is_for_nodes(path)
        && path.symlink_metadata().is_err()
}
