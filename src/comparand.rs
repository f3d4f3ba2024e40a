//! Opening a volume that is to be compared.
//!
//! Guarantees: it is opened for reading only, and whoever else uses it may go on; what is in use for writing is
//! said, since blocks that are written meanwhile may count as different, and a file that was written meanwhile is known;
//! reads come from the volume and not from a copy in memory, as far as the system lets them.

use crate::change_list::ChangeList;
use crate::commands::Caller;
use crate::dm::resolve::Resolved;
use crate::dm::resolve::resolve;
use crate::dm::shown::is_view;
use crate::dm::snapshot::{LogicalVolume, Role};
use crate::engine::compare::Side;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::record::admission::Called;
use crate::record::half_written;
use crate::record::store::StateDir;
use crate::source::{explain, refuse_suspended, refuse_suspended_device, snapshot_in, trusted};
use crate::volume::file_version::FileVersion;
use crate::volume::in_use::{Holder, holders_of};
use crate::volume::open::Volume;
use crate::volume::{ReadAt, VolumeIdentity};

/// A volume that is compared with another.
pub struct Comparand {
    volume: Volume,
    name: String,
    snapshot: Option<LogicalVolume>,
    /// Of a regular file, when it was opened.
    version: Option<FileVersion>,
}

impl Comparand {
    /// Opens `name`. The monitor hears who may write to it meanwhile.
    pub fn open(name: &str, monitor: &dyn Monitor) -> Result<Self> {
        let resolved = resolve(name)?;
        refuse_suspended_device(&resolved, name)?;
        if let Resolved::LogicalVolume(volume) = &resolved {
            refuse_suspended(volume)?;
            if let Role::ThickSnapshot(snapshot) = &volume.role {
                trusted(volume, snapshot)?;
            }
        }
        let volume = Volume::open(resolved.path())?;
        volume.forget_cached()?;
        let writers: Vec<String> = holders_of(volume.identity())
            .iter()
            .filter(|holder| may_write(holder))
            .map(ToString::to_string)
            .collect();
        if !writers.is_empty() {
            monitor.warn(&format!(
                "{name}: {}; what is written while it is compared may count as different",
                writers.join("; ")
            ));
        }
        Ok(Self {
            version: FileVersion::of(&volume)?,
            volume,
            name: name.to_owned(),
            snapshot: snapshot_in(resolved),
        })
    }

    /// Says so if it is on record as half-written. That is no reason not to look at it.
    pub fn warn_of_half_written(&self, state: &StateDir, caller: &Caller, monitor: &dyn Monitor) {
        let name = &self.name;
        let called = Called { name, caller };
        let remarks = [
            half_written::remark(state, self.volume.path(), called),
            self.snapshot.as_ref().map_or(Ok(None), |snapshot| {
                half_written::origin_of(state, snapshot)
            }),
        ];
        for remark in remarks {
            match remark {
                Ok(None) => {}
                Ok(Some(remark)) => monitor.warn(&remark),
                // What cannot be read may say just that.
                Err(error) => monitor.warn(&error.chain()),
            }
        }
    }

    /// Its name, if it is a file that was written to since it was opened. Of a device nobody can tell.
    pub fn if_changed(&self) -> Result<Option<String>> {
        let has_changed = FileVersion::of(&self.volume)? != self.version;
        Ok(has_changed.then(|| self.name.clone()))
    }

    /// As the engine wants it.
    pub fn side(&self) -> Side<'_> {
        Side {
            volume: &self.volume,
            name: &self.name,
        }
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    /// What makes it the same volume as another path.
    pub fn identity(&self) -> VolumeIdentity {
        self.volume.identity()
    }

    /// What is open.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// A regular file, whose size is its own: a device may be longer than what was put on it.
    pub fn is_file(&self) -> bool {
        self.volume.device().is_none()
    }

    /// The reason behind an error while it was read, see [`crate::source::SendSource::explain`].
    pub fn explain(&self, error: Error) -> Error {
        match &self.snapshot {
            Some(snapshot) => explain(snapshot, error),
            None => error,
        }
    }
}

/// What came of a comparison.
pub struct Compared {
    /// Where both differ.
    pub differing: ChangeList,
    /// Names of what was written to meanwhile.
    pub changed: Vec<String>,
}

impl Compared {
    /// What was found of `ends`, which are here, with the names of those that were written to meanwhile.
    pub fn of(differing: ChangeList, ends: &[&Comparand]) -> Result<Self> {
        let changed = ends.iter().map(|end| end.if_changed());
        let changed: Vec<_> = changed.collect::<Result<_>>()?;
        Ok(Self {
            differing,
            changed: changed.into_iter().flatten().collect(),
        })
    }

    /// What differs. "Equal" is not said of what was written to meanwhile; what differs differs.
    pub fn vouched(self, monitor: &dyn Monitor) -> Result<ChangeList> {
        for name in self.changed {
            let error = Error::io(
                format!(
                    "{name}: what was found holds for no moment of it; stop what writes to it, or compare a snapshot"
                ),
                std::io::Error::other(
                    "it was written while it was compared, or renamed, or got other permissions",
                ),
            );
            if self.differing.is_empty() {
                return Err(error);
            }
            monitor.warn(&error.chain());
        }
        Ok(self.differing)
    }
}

/// Through this holder the volume may be written.
pub(crate) fn may_write(holder: &Holder) -> bool {
    match holder {
        Holder::Mounted { read_write, .. } => *read_write,
        Holder::Device { name, kind: "dm" } => !is_view(name),
        Holder::Swap | Holder::Device { .. } => true,
        Holder::Part { holder, .. } => may_write(holder),
    }
}
