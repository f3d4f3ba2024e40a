//! Why a plan cannot be made, and what to do then.
//!
//! Pure. Guarantees: each names the volume, what was found, and the command that leads on.

use super::names::{Metadata, device_name};
use super::seen::{Seen, SeenDevice};
use crate::dm::snapshot::LogicalVolume;
use crate::error::{Error, Result};

pub(super) fn no_tags(metadata: &Metadata) -> Error {
    Error::Lvm {
        what: metadata.name.to_string(),
        reason: "its tags do not tell any more what is tracked, and in blocks of which size"
            .to_owned(),
    }
}

pub(super) fn became_smaller(what: &str) -> Error {
    Error::ToRecover {
        error: Box::new(Error::TrackingLost {
            volume: what.to_owned(),
            reason: "it became smaller than what is tracked, and its record does not know what was cut off"
                .to_owned(),
        }),
        command: format!("lvmsync track disable {what}; lvmsync track enable {what}"),
    }
}

pub(super) fn refuse_open(seen: &Seen, device: &SeenDevice) -> Result<()> {
    if device.open_count == 0 && device.holders.is_empty() {
        return Ok(());
    }
    let by = match device.holders.as_slice() {
        [] => format!("open by {} process(es)", device.open_count),
        holders => holders.join("; "),
    };
    Err(Error::held(
        seen.volume.to_string(),
        format!("its era device /dev/mapper/{} is in use: {by}", device.name),
        "Stop what uses it (umount, swapoff, the service) and run this again.",
    ))
}

pub(super) fn foreign(seen: &Seen, device: &SeenDevice) -> Error {
    if device.is_elsewhere {
        return Error::refused(
            seen.volume.to_string(),
            format!(
                "the era device {} has its UUID and stands on another volume: there are two with this UUID, as after vgimportclone",
                device.name
            ),
            format!(
                "Use one of them at a time (lvmsync track down takes the device of the other down), or give the record of this one \
                 up: lvmsync track disable {}",
                seen.volume
            ),
        );
    }
    Error::refused(
        seen.volume.to_string(),
        format!(
            "the era device {} stands on it, and lvmsync track has not made that",
            device.name
        ),
        format!("Take it down first: dmsetup remove {}", device.name),
    )
}

pub(super) fn no_record(seen: &Seen, device: &SeenDevice) -> Error {
    Error::refused(
        seen.volume.to_string(),
        format!(
            "its era device {} is up, and no volume of group {} is tagged as its record",
            device.name,
            seen.volume.vg()
        ),
        format!(
            "Begin anew: lvmsync track disable {0}, then lvmsync track enable {0}",
            seen.volume
        ),
    )
}

pub(super) fn past_the_record(called: &str, volume: &LogicalVolume, metadata: &Metadata) -> Error {
    let name = &volume.name;
    let device = device_name(name).unwrap_or_default();
    Error::refused(
        called,
        format!(
            "it is tracked by dm-era, with its record in {}, and what is written below the era device is on no record",
            metadata.name
        ),
        format!(
            "Write to the era device: lvmsync track up {name}, then to /dev/mapper/{device}\n\
             Or give the record up: lvmsync track disable {name}"
        ),
    )
}

pub(super) fn stands_on(called: &str, device: &str) -> Error {
    Error::held(
        called,
        format!(
            "the era device {device} stands on it, and what is written below that is on no record"
        ),
        format!("Write to /dev/mapper/{device}, or take it down: dmsetup remove {device}"),
    )
}

pub(super) fn void(seen: &Seen) -> Error {
    let what = seen.volume.to_string();
    Error::refused(
        &what,
        "its record proves nothing: it was not finished, or the volume was in use without its era device",
        format!("Begin anew, and copy the whole volume once: lvmsync track enable {what}"),
    )
}

pub(super) fn is_down(seen: &Seen, metadata: &Metadata) -> Error {
    let volume = &seen.volume;
    Error::refused(
        volume.to_string(),
        format!(
            "it is tracked, with its record in {}, and its era device is down",
            metadata.name
        ),
        format!(
            "If nothing wrote to it meanwhile: lvmsync track up {volume}\n\
             Otherwise begin anew, and copy the whole volume once: lvmsync track disable {volume}, then enable"
        ),
    )
}
