//! What must not be written to: what is read-only or no volume, the source itself, what somebody uses.
//!
//! Guarantees: looks only; each refusal names the destination and the way out, where there is one.

use super::DestinationOptions;
use crate::dm::resolve::Resolved;
use crate::dm::snapshot::Role;
use crate::error::{Error, Result};
use crate::volume::host::VolumeIdentity;
use crate::volume::in_use::{holders_of, overlap};

pub(super) fn refuse_unwritable(resolved: &Resolved, name: &str) -> Result<()> {
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

pub(super) fn refuse_overlap(
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

pub(super) fn refuse_held(
    identity: VolumeIdentity,
    name: &str,
    options: &DestinationOptions,
) -> Result<()> {
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
