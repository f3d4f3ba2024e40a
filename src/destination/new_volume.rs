//! A logical volume that is made for a full copy where there is none.
//!
//! Guarantees: what this run made goes again unless something of it is on record; what was there before never goes, not
//! even what seems to be left by another run.

use std::path::Path;

use crate::dm::making::{self, Making, Plan};
use crate::dm::name::LvName;
use crate::dm::resolve::volume_of_path;
use crate::error::{Error, Result};

/// A wish that the destination be made where there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Make {
    /// What kind of volume.
    pub making: Making,
    /// How large the volume is that is copied; `None` for a delta with a base, which needs one that is there.
    pub size_bytes: Option<u64>,
}

/// A volume that goes again when this is dropped, if this run made it and it is not kept.
#[derive(Debug)]
pub(super) struct NewVolume {
    name: LvName,
    uuid: Option<String>,
    /// This run made it.
    is_ours: bool,
}

/// The logical volume that `name` would be: `vg/lv`, or a path below `/dev`.
pub(super) fn name_of_volume(name: &str) -> Option<LvName> {
    if name.starts_with('/') {
        volume_of_path(name)
    } else {
        LvName::parse(name)
    }
}

/// What would be made for `name`, which is not there. `None`: no logical volume, so perhaps a file.
pub(super) fn plan(name: &str, make: &Make, is_free_file_name: bool) -> Result<Option<Plan>> {
    let Some(volume) = name_of_volume(name) else {
        return Ok(None);
    };
    match (making::plan(&volume, &make.making), make.size_bytes) {
        (Ok(plan), Some(size_bytes)) => {
            plan.check_room(size_bytes)?;
            Ok(Some(plan))
        }
        (Ok(_), None) => Err(Error::refused(
            name,
            "there is no such volume, and this is no full copy: a new one cannot be its base",
            "Make a full copy first: lvmsync send NEW DEST --create",
        )),
        (Err(error @ (Error::Usage(_) | Error::Refused { .. })), _) => Err(error),
        // There is no such group, but a directory of that name.
        (Err(_), _) if is_free_file_name && !Path::new(name).is_absolute() => Ok(None),
        (Err(error), _) => Err(error),
    }
}

impl NewVolume {
    /// Makes what was planned.
    pub(super) fn make(plan: &Plan, size_bytes: u64) -> Result<Self> {
        plan.make(size_bytes)?;
        Ok(Self {
            name: plan.name.clone(),
            uuid: None,
            is_ours: true,
        })
    }

    /// What a run left that was killed after it had made it. It may be written already, so it is never removed.
    pub(super) fn left_behind(name: LvName, uuid: String) -> Self {
        Self {
            name,
            uuid: Some(uuid),
            is_ours: false,
        }
    }

    /// From now on its name alone does not decide.
    pub(super) fn known_as(&mut self, uuid: &str) {
        self.uuid = Some(uuid.to_owned());
    }

    /// It stays.
    pub(super) fn keep(mut self) -> Result<()> {
        self.is_ours = false;
        making::keep(&self.name)
    }
}

impl Drop for NewVolume {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        if let Err(error) = making::remove(&self.name, self.uuid.as_deref()) {
            tracing::warn!(
                "{}: it was made for nothing and stays: {}",
                self.name,
                error.chain()
            );
        }
    }
}
