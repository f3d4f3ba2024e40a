//! Opening a volume that is to be overwritten.
//!
//! Guarantees: the source itself and whatever shares its data is never opened; a volume that is mounted or
//! otherwise held is opened only with the override that says so; all this before anything is written.

use std::path::{Path, PathBuf};

use crate::cancel::Cancel;
use crate::delta::codec::Compression;
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::snapshot::Role;
use crate::engine::apply::OnDurable;
use crate::engine::receive::{Received, UndoTo, receive, rehearse};
use crate::engine::target::{ReceiveOptions, Target};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::partial_file::sync_directory_of;
use crate::undo_file::UndoFile;
use crate::volume::ReadAt;
use crate::volume::host::VolumeIdentity;
use crate::volume::in_use::{holders_of, overlap};
use crate::volume::open::{Volume, WriteOptions};

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
    /// Open nothing through a symbolic link: the name was looked at before.
    pub no_links: bool,
    /// The delta is an undo whose run was cut.
    pub unfinished: bool,
    /// Compression of the undo file.
    pub undo_compression: Compression,
}

/// An open destination.
pub struct Destination {
    volume: Volume,
    name: String,
    is_file: bool,
    /// The file, if it was made for this run.
    made: Option<PathBuf>,
    options: DestinationOptions,
}

impl Destination {
    /// Opens `name` for writing. `sources` is what is read meanwhile, as far as it is on this host.
    pub fn open(
        name: &str,
        sources: &[VolumeIdentity],
        options: &DestinationOptions,
    ) -> Result<Self> {
        let path = match resolve(name) {
            Ok(resolved) => {
                refuse_unwritable(&resolved, name)?;
                resolved.path().to_owned()
            }
            Err(error) if !options.create || !is_free_file_name(Path::new(name)) => {
                return Err(error);
            }
            Err(_) => PathBuf::from(name),
        };
        let existed = path.exists();
        if let Ok(identity) = VolumeIdentity::of_path(&path) {
            refuse_overlap(sources, identity, name)?;
            refuse_held(identity, name, options)?;
        }
        let write_options = WriteOptions {
            allow_in_use: options.allow_in_use,
            create: options.create,
            no_links: options.no_links,
            ..WriteOptions::default()
        };
        let volume = Volume::open_writable(&path, &write_options)?;
        if options.create {
            sync_directory_of(&path)
                .map_err(|error| Error::io(format!("cannot make {name} durable"), error))?;
        }
        // Once more for the file that is open now, whatever stood at the path before.
        refuse_overlap(sources, volume.identity(), name)?;
        let is_file = matches!(volume.identity(), VolumeIdentity::File { .. });
        Ok(Self {
            volume,
            name: name.to_owned(),
            is_file,
            made: (!existed && is_file).then_some(path),
            options: options.clone(),
        })
    }

    /// True where there is nothing yet and a full copy would make a file.
    pub fn could_make(name: &str, options: &DestinationOptions) -> bool {
        options.create && resolve(name).is_err() && is_free_file_name(Path::new(name))
    }

    /// What is open.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    /// As the engine wants it.
    pub fn target(&self) -> Target<'_> {
        Target {
            volume: &self.volume,
            name: &self.name,
            is_file: self.is_file,
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
            undo_compression: self.options.undo_compression,
            cancel,
            monitor,
        }
    }

    /// Applies a delta from `input`, called `what` in messages.
    pub fn receive(
        &self,
        input: impl std::io::Read,
        what: &str,
        cancel: &Cancel,
        monitor: &dyn Monitor,
        on_durable: OnDurable<'_>,
    ) -> Result<Received> {
        let options = self.receive_options(cancel, monitor);
        self.with_undo(|undo| receive(input, what, &self.target(), undo, &options, on_durable))
    }

    /// Reads a delta from `input` and checks that it could be applied; writes nothing.
    pub fn rehearse(
        &self,
        input: impl std::io::Read,
        what: &str,
        cancel: &Cancel,
        monitor: &dyn Monitor,
    ) -> Result<Received> {
        rehearse(
            input,
            what,
            &self.target(),
            &self.receive_options(cancel, monitor),
        )
    }

    /// What it is, for people.
    pub fn kind(&self) -> &'static str {
        if self.is_file { "file" } else { "block device" }
    }

    /// Runs `work` with the undo that was asked for, if one was.
    pub fn with_undo<T>(&self, work: impl FnOnce(Option<UndoTo<'_>>) -> Result<T>) -> Result<T> {
        let result = self.run_with_undo(work);
        if let (Err(_), Some(made)) = (&result, &self.made) {
            // Half a copy under the name of a whole one would be taken for it.
            let _ = std::fs::remove_file(made);
        }
        result
    }

    fn run_with_undo<T>(&self, work: impl FnOnce(Option<UndoTo<'_>>) -> Result<T>) -> Result<T> {
        let Some(path) = &self.options.undo else {
            return work(None);
        };
        if VolumeIdentity::of_path(path).is_ok_and(|undo| undo == self.volume.identity()) {
            return Err(Error::Usage(format!(
                "{}: the undo cannot be the destination itself",
                path.display()
            )));
        }
        let mut undo = UndoFile::create(path, self.options.overwrite)?;
        let name = path.display().to_string();
        let spool = || UndoFile::spool_beside(path);
        work(Some(UndoTo {
            out: &mut undo,
            name: &name,
            spool: &spool,
        }))
    }
}

/// A full copy may make a file under this name. What stands for a volume that is not there is no such name: for
/// that one LVM's explanation helps more than "no such file".
fn is_free_file_name(path: &Path) -> bool {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    parent.is_dir() && !path.starts_with("/dev") && path.symlink_metadata().is_err()
}

fn refuse_unwritable(resolved: &Resolved, name: &str) -> Result<()> {
    let Resolved::LogicalVolume(volume) = resolved else {
        return Ok(());
    };
    if volume.read_only {
        let way_out = format!("Make it writable: lvchange -prw {}", volume.name);
        return Err(Error::refused(
            name,
            "the logical volume is read-only",
            way_out,
        ));
    }
    if matches!(volume.role, Role::ThinPool) {
        return Err(Error::refused(
            name,
            "this is a whole thin pool, not a volume",
            "",
        ));
    }
    if let Role::ThickOrigin { merging: true, .. } = volume.role {
        let way_out = "Wait until the merge is done.";
        return Err(Error::refused(
            name,
            "a snapshot is being merged into it",
            way_out,
        ));
    }
    Ok(())
}

fn refuse_overlap(
    sources: &[VolumeIdentity],
    destination: VolumeIdentity,
    name: &str,
) -> Result<()> {
    match sources
        .iter()
        .find_map(|source| overlap(*source, destination))
    {
        Some(found) => Err(Error::refused(
            name,
            format!("cannot be the destination: {found}"),
            "",
        )),
        None => Ok(()),
    }
}

fn refuse_held(identity: VolumeIdentity, name: &str, options: &DestinationOptions) -> Result<()> {
    let holders = holders_of(identity);
    if holders.is_empty() || options.allow_in_use {
        return Ok(());
    }
    let list: Vec<String> = holders.iter().map(ToString::to_string).collect();
    Err(Error::refused(
        name,
        format!("the destination is in use: {}", list.join("; ")),
        "Unmount or deactivate what uses it. --allow-in-use writes to it all the same, and a mounted \
         filesystem will very likely be destroyed.",
    ))
}
