//! What cannot be shown as a device, each with the way out.
//!
//! Guarantees: asks and refuses; nothing is made.

use std::fs::File;
use std::path::Path;

use crate::dm::lvm::{LABEL_BYTES, has_group, has_label, volumes_of};
use crate::dm::name::split_dm_name;
use crate::dm::openers::writers_open;
use crate::dm::shown as mapped;
use crate::dm::snapshot::{LogicalVolume, Role, recheck};
use crate::dm::table::SnapshotStatus;
use crate::dm::temporary::temporary_name;
use crate::error::{Error, Result};
use crate::sys::ioctl;
use crate::units::{Bytes, SECTOR_BYTES};
use crate::view::state::View;
use crate::volume::ReadAt;

use super::device::{Wish, stop_command};

/// A name that is taken, or that LVM would want for a volume of its own.
pub(super) fn refuse_name(wish: &Wish<'_>) -> Result<()> {
    let name = wish.name;
    let device = format!("/dev/mapper/{name}");
    if mapped::is_view(name) {
        return Err(Error::refused(
            device,
            "shows a state already, which is on record in another state directory",
            format!(
                "Choose another name, or end it: {}",
                stop_command(&wish.caller, name)
            ),
        ));
    }
    if mapped::is_taken(name)? {
        return Err(Error::refused(
            device,
            "there is a device of that name already",
            "Choose another name.",
        ));
    }
    let Some((volume, _)) = split_dm_name(name) else {
        return Ok(());
    };
    // A group that is not there takes no names.
    if !has_group(volume.vg())? {
        return Ok(());
    }
    let rows = volumes_of(volume.vg())?;
    if rows.iter().any(|row| row.name() == volume.lv()) {
        return Err(Error::refused(
            device,
            format!(
                "that is what the logical volume {volume} is called when it is active, and it could not be activated any more"
            ),
            "Choose another name.",
        ));
    }
    Ok(())
}

/// The file that the store would be in has to have room, where others need that room too.
pub(super) fn refuse_no_space(at: &Path, needed_bytes: u64) -> Result<()> {
    let parent = at.parent().unwrap_or(at);
    let Ok(found) = rustix::fs::statvfs(parent) else {
        return Ok(());
    };
    let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
    if needed_bytes <= free_bytes {
        return Ok(());
    }
    Err(Error::refused(
        at.display().to_string(),
        format!(
            "what the deltas have takes up to {} as a device, and {} are free there, where the records are too",
            Bytes(needed_bytes),
            Bytes(free_bytes)
        ),
        "Keep it on another file system: --store FILE. Or --nbd, which unpacks nothing.",
    ))
}

/// What the kernel cannot show.
pub(super) fn refuse_unfit(wish: &Wish<'_>, volume: &LogicalVolume) -> Result<()> {
    let base = wish.base;
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
    let block_bytes = File::open(&volume.path)
        .and_then(ioctl::logical_block_bytes)
        .map_err(|error| Error::io(format!("cannot look at {base}"), error))?;
    let block_bytes = u64::from(block_bytes).max(SECTOR_BYTES);
    if size_bytes == 0 || !size_bytes.is_multiple_of(block_bytes) {
        return Err(Error::refused(
            base,
            format!(
                "the state has {size_bytes} bytes, and a device over this volume has whole blocks of {block_bytes}"
            ),
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
pub(super) fn snapshot_name(volume: &LogicalVolume, id: &str) -> Result<Option<String>> {
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
pub(super) fn refuse_physical_volume<V: ReadAt>(name: &str, view: &View<'_, V>) -> Result<()> {
    let mut beginning = vec![0; usize::try_from(view.size_bytes().min(LABEL_BYTES)).unwrap_or(0)];
    view.read(&mut beginning, 0)?;
    if !has_label(&beginning) {
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
pub(super) fn refuse_lost(below: &LogicalVolume) -> Result<()> {
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

pub(super) fn no_room(origin: &LogicalVolume, free_bytes: u64) -> Error {
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
