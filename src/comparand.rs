//! Opening a volume that is to be compared.
//!
//! Guarantees: it is opened for reading only, and whoever else uses it may go on; what is in use for writing is
//! said, since blocks that are written meanwhile may count as different, and what was written meanwhile is known;
//! reads come from the volume and not from a copy in memory, as far as the system lets them and unless that is asked for.

use crate::cancel::Cancel;
use crate::change_list::ChangeList;
use crate::commands::Caller;
use crate::dm::resolve::Resolved;
use crate::dm::resolve::resolve;
use crate::dm::shown::is_view;
use crate::dm::snapshot::{LogicalVolume, Role};
use crate::dm::thin::{activated, thin_volume};
use crate::engine::compare::Side;
use crate::error::{Error, Result};
use crate::hold::client::Guard;
use crate::monitor::Monitor;
use crate::record::admission::{Called, Refusal};
use crate::record::as_opened::AsOpened;
use crate::record::half_written;
use crate::record::store::StateDir;
use crate::source::{
    explain, refuse_suspended, refuse_suspended_device, refuse_trouble, snapshot_in, trusted,
};
use crate::volume::in_use::{Holder, holders_of};
use crate::volume::open::Volume;
use crate::volume::{ReadAt, VolumeIdentity};

/// Where a file is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Medium {
    /// Its copy in memory is given up before.
    #[default]
    Disk,
    /// What is in memory stays there and is believed, as it is by whoever else reads the file.
    Memory,
}

/// A volume that is compared with another.
pub struct Comparand {
    volume: Volume,
    name: String,
    snapshot: Option<LogicalVolume>,
    opened: AsOpened,
    /// Keeps a thin volume active while it is open, which is dropped before.
    _guard: Option<Guard>,
}

/// How a volume is read, and what it takes to have it activated.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// Where a file is read from.
    pub medium: Medium,
    /// Where it is on record what to deactivate if all else fails.
    pub state: &'a StateDir,
    /// Who is told what to do about it.
    pub caller: &'a Caller,
    /// Stops the waiting.
    pub cancel: &'a Cancel,
}

impl Comparand {
    /// Opens `name`. The monitor hears who may write to it meanwhile.
    pub fn open(name: &str, monitor: &dyn Monitor) -> Result<Self> {
        Self::of(Medium::Disk, name, resolve(name)?, None, monitor)
    }

    /// The same; a thin volume that is not active, as LVM leaves thin snapshots, is activated as long as it is open.
    pub fn open_or_activate(name: &str, means: Means<'_>, monitor: &dyn Monitor) -> Result<Self> {
        let resolved = resolve(name);
        match thin_volume(name, &resolved)? {
            Some(thin) if thin.active.is_none() => {
                refuse_trouble(&thin, name)?;
                let mut guard = Guard::start(means.state, means.cancel)?;
                guard.activate(&thin.name, &thin.uuid, monitor)?;
                let resolved = Resolved::LogicalVolume(Box::new(activated(&thin)?));
                Self::of(means.medium, name, resolved, Some(guard), monitor)
            }
            _ => {
                let resolved = resolved.or_else(|error| {
                    let caller = means.caller;
                    match half_written::instead_of(means.state, Called { name, caller })? {
                        Some(Refusal { reason, way_out }) => {
                            Err(Error::refused(name, reason, way_out))
                        }
                        None => Err(error),
                    }
                })?;
                Self::of(means.medium, name, resolved, None, monitor)
            }
        }
    }

    fn of(
        medium: Medium,
        name: &str,
        resolved: Resolved,
        guard: Option<Guard>,
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        refuse_suspended_device(&resolved, name)?;
        if let Resolved::LogicalVolume(volume) = &resolved {
            refuse_suspended(volume)?;
            if let Role::ThickSnapshot(snapshot) = &volume.role {
                trusted(volume, snapshot)?;
            }
        }
        let volume = Volume::open(resolved.path())?;
        if medium == Medium::Disk {
            volume.forget_cached()?;
        }
        if let Some(writers) = writers_of(volume.identity()) {
            monitor.warn(&format!(
                "{name}: {writers}; what is written while it is compared may count as different"
            ));
        }
        Ok(Self {
            opened: AsOpened::of(&volume)?,
            volume,
            name: name.to_owned(),
            snapshot: snapshot_in(resolved),
            _guard: guard,
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

    /// Its name, if it was written to since it was opened.
    pub fn if_changed(&self) -> Result<Option<String>> {
        let was_written = self.opened.was_written(&self.volume)?;
        Ok(was_written.then(|| self.name.clone()))
    }

    /// What it was when it was opened; see [`AsOpened::version`].
    pub fn version(&self) -> Option<String> {
        self.opened.version(&self.volume)
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
                    "it was written while it was compared, or is a file that was renamed or got other permissions",
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

/// Whoever is known to hold a volume and may write to it, in words.
pub(crate) fn writers_of(volume: VolumeIdentity) -> Option<String> {
    let holders = holders_of(volume);
    let writers = holders.iter().filter(|holder| may_write(holder));
    let writers: Vec<String> = writers.map(ToString::to_string).collect();
    (!writers.is_empty()).then(|| writers.join("; "))
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
