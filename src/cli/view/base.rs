//! The volume below a view.
//!
//! Guarantees: one that is on record as half-written or as holding another state, that is smaller than the state that the
//! chain begins from, or whose sampled blocks are others is refused; a live logical volume is read from a temporary
//! snapshot, which is removed whatever happens; what is read without one is locked against runs that write, and refused
//! while others may.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Below;
use crate::cancel::Cancel;
use crate::commands::Caller;
use crate::comparand::may_write;
use crate::delta::codec::Compression;
use crate::delta::header::Header;
use crate::delta::stream::StreamId;
use crate::dm::resolve::{Resolved, resolve};
use crate::engine::target::{mismatch, shown_mismatch};
use crate::error::{Error, Result};
use crate::history::combine::Input;
use crate::monitor::Monitor;
use crate::record::admission::{Admission, Called, Policy};
use crate::record::keeper::Keeper;
use crate::record::store::StateDir;
use crate::record::witness::Watch;
use crate::record::{half_written, identity};
use crate::source::{SendSource, SnapshotWish, SourceRequest};
use crate::units::Bytes;
use crate::volume::in_use::holders_of;
use crate::volume::{ReadAt, Volume, VolumeIdentity};

/// udev and others hold a device for a moment.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is asked for.
pub(super) struct Wish<'a> {
    pub(super) name: &'a str,
    /// The snapshot that was made of it, to be read in its place.
    pub(super) through: Option<&'a str>,
    /// The first delta of the chain.
    pub(super) first: &'a Input<Volume>,
    pub(super) force: bool,
    /// Of the snapshot of a live thick volume.
    pub(super) snapshot_bytes: Option<u64>,
    pub(super) state: StateDir,
    pub(super) caller: Caller,
    pub(super) cancel: &'a Cancel,
    pub(super) monitor: &'a dyn Monitor,
}

/// An open base.
pub(super) struct Base {
    source: SendSource,
    name: String,
    /// Runs that write to it wait.
    _lock: Option<File>,
}

impl Base {
    pub(super) fn open(wish: &Wish<'_>) -> Result<Self> {
        if let Ok(resolved) = resolve(wish.name) {
            check_record(wish, &resolved)?;
            // Whoever has begun to write by now may have done so before the snapshot was made.
            if wish.through.is_some() {
                let (name, caller) = (wish.name, &wish.caller);
                half_written::refuse(&wish.state, &resolved, Called { name, caller })?;
            }
        }
        let request = SourceRequest {
            from: None,
            new: Some(wish.through.unwrap_or(wish.name)),
            data_source: None,
            base_size: None,
            thin_metadata: None,
            volume_size: None,
            snapshot: Some(SnapshotWish {
                size_bytes: wish.snapshot_bytes,
                ..SnapshotWish::default()
            }),
            compression: Compression::None,
            state: wish.state.clone(),
            caller: wish.caller.clone(),
            cancel: wish.cancel,
            monitor: wish.monitor,
        };
        let source = SendSource::open(&request)?;
        let lock = match source.made() {
            Some(_) => None,
            None => {
                refuse_written(wish, source.identity())?;
                Some(lock_shared(source.data.path(), wish.name)?)
            }
        };
        let base = Self {
            source,
            name: wish.name.to_owned(),
            _lock: lock,
        };
        base.check_content(wish)
            .map_err(|error| base.explain(error))?;
        Ok(base)
    }

    /// As the view wants it.
    pub(super) fn below(&self) -> Below<'_> {
        Below {
            volume: &self.source.data,
            name: &self.name,
        }
    }

    /// The reason behind an error while it was read.
    pub(super) fn explain(&self, error: Error) -> Error {
        self.source.explain(error)
    }

    /// After the last read: was what was read one state of it?
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.source.check_unchanged()
    }

    /// What is written must not be what is read.
    pub(super) fn refuse_as_output(&self, path: &Path) -> Result<()> {
        if VolumeIdentity::of_path(path).is_ok_and(|output| output == self.source.identity()) {
            return Err(Error::Usage(format!(
                "{} is the base; the state cannot replace it",
                path.display()
            )));
        }
        Ok(())
    }

    /// By its size and the sampled blocks.
    fn check_content(&self, wish: &Wish<'_>) -> Result<()> {
        let Wish {
            name,
            first,
            monitor,
            ..
        } = wish;
        let header = first.delta.header();
        let (size, needed) = (self.source.data.size_bytes(), header.base_size.unwrap_or(0));
        let mut fault = None;
        if size < needed {
            fault = Some(format!(
                "it has {size} bytes ({}), the state has {needed} ({})",
                Bytes(size),
                Bytes(needed)
            ));
        }
        let samples = first.delta.samples().below(size);
        if let Some(offset) = mismatch(header, &samples, &self.source.data, name, *monitor)? {
            fault = Some(shown_mismatch(header, offset));
        }
        let Some(fault) = fault else {
            return Ok(());
        };
        if wish.force {
            monitor.warn(&format!(
                "{name}: {fault}; what is seen is no state that ever was"
            ));
            return Ok(());
        }
        Err(Error::refused(
            *name,
            format!(
                "this volume is not in the state that {} begins from: {fault}",
                first.name
            ),
            "Name the volume or snapshot that is, and every delta in between. --force looks all the same, and what is \
             seen is no state that ever was.",
        ))
    }
}

/// Held against what is on record of it, as if the first delta were to be applied.
fn check_record(wish: &Wish<'_>, resolved: &Resolved) -> Result<()> {
    let Wish {
        name,
        first,
        monitor,
        ..
    } = wish;
    let header = first.delta.header();
    let volume = Volume::open(resolved.path())?;
    let watch =
        Watch::of(&volume).map_err(|error| Error::io(format!("cannot look at {name}"), error))?;
    let file = wish.state.file_of(&identity::of_resolved(resolved));
    let policy = Policy {
        force: wish.force,
        ..Policy::default()
    };
    let keeper =
        Keeper::open(file, name, "", policy, Some(watch), &volume)?.told_to(wish.caller.clone());
    let stream = StreamId::of(header, first.delta.samples());
    match keeper.admit(header, &stream)? {
        Admission::Fresh {
            remark: Some(remark),
        } if !is_itself(&keeper, header) => monitor.note(&remark),
        Admission::Already { remark } | Admission::Again { remark } => {
            let remark = remark.split(';').next().unwrap_or_default().to_owned();
            return Err(Error::refused(
                *name,
                format!(
                    "{remark}, which is where {} leads to and not where it begins",
                    first.name
                ),
                "Leave that delta out, or name a volume in the state before. If the record is wrong: lvmsync state \
                 forget VOLUME",
            ));
        }
        _ => {}
    }
    Ok(())
}

/// The volume that the delta was made from is its base by its own id.
fn is_itself(keeper: &Keeper, header: &Header) -> bool {
    header.base.as_ref().map(|base| base.id.as_str()) == keeper.identity()
}

fn refuse_written(wish: &Wish<'_>, volume: VolumeIdentity) -> Result<()> {
    let holders = holders_of(volume);
    let writers: Vec<String> = holders
        .iter()
        .filter(|holder| may_write(holder))
        .map(ToString::to_string)
        .collect();
    if writers.is_empty() {
        return Ok(());
    }
    let reason = format!(
        "it is in use, and may be written while it is read: {}",
        writers.join("; ")
    );
    if wish.force {
        wish.monitor.warn(&format!("{}: {reason}", wish.name));
        return Ok(());
    }
    Err(Error::refused(
        wish.name,
        reason,
        "Unmount what uses it, or name a snapshot in the same state. --force looks all the same.",
    ))
}

/// Any number may read at the same time, and nobody of ours writes meanwhile.
fn lock_shared(path: &Path, name: &str) -> Result<File> {
    let cannot = |error| Error::io(format!("cannot lock {name}"), error);
    let file = File::open(path).map_err(cannot)?;
    let start = Instant::now();
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::held(
                    name,
                    "another process holds it, perhaps a run of lvmsync that writes to it",
                    "Wait until that is done.",
                ));
            }
            // Some filesystems know no locks.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                return Ok(file);
            }
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        }
    }
}
