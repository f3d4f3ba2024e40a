//! What makes two volumes equal again where the list of changes is lost.
//!
//! Guarantees: names a volume that can be read: not the snapshot whose table is lost, but its origin. Where eras were followed,
//! they can be followed from what it leaves.

use super::{MetadataFile, SourceRequest};
use crate::dm::device::DeviceMapper;
use crate::dm::era::era_device_on;
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::snapshot::{Role, ThickSnapshot};
use crate::track::look;

/// The SRC of the `lvmsync sync` that takes the place of what was asked for.
pub fn source_of_sync(request: &SourceRequest<'_>) -> String {
    if let Some(device) = era_device_of(request) {
        return device;
    }
    // An id in a copy of a pool's metadata names nothing here.
    let is_thin = matches!(request.thin_metadata, Some(MetadataFile::Thin(_)));
    let new = request.new.filter(|_| !is_thin);
    match (request.data_source.or(new), request.from) {
        (Some(new), _) => readable(new),
        // The original's way: what is sent is the origin.
        (None, Some(old)) if request.new.is_none() => snapshot(old).map_or_else(
            || "NEW".to_owned(),
            |snapshot| snapshot.origin.name.to_string(),
        ),
        (None, _) => "NEW".to_owned(),
    }
}

/// What has the content of the volume of this name: itself, or the origin of a snapshot that is lost.
pub fn readable(name: &str) -> String {
    origin_of_lost(name).unwrap_or_else(|| name.to_owned())
}

/// The origin of the snapshot of this name, if that is lost.
pub fn origin_of_lost(name: &str) -> Option<String> {
    let snapshot = snapshot(name)?;
    snapshot.status.why_untrusted()?;
    Some(snapshot.origin.name.to_string())
}

/// What is copied from the era device is named by an era, so that increments follow it; what is copied from the volume below
/// is not.
fn era_device_of(request: &SourceRequest<'_>) -> Option<String> {
    let is_live = request.thin_metadata.is_none();
    request
        .from
        .filter(|from| is_live && from.starts_with("era:"))?;
    let dm = DeviceMapper::open().ok()?;
    let volume = look::volume(&dm, request.new?).ok()?;
    let device = era_device_on(&dm, volume.device).ok()??;
    Some(format!("/dev/mapper/{}", device.name))
}

/// Whatever cannot be found out is not worth another error.
fn snapshot(name: &str) -> Option<Box<ThickSnapshot>> {
    match resolve(name) {
        Ok(Resolved::LogicalVolume(volume)) => match volume.role {
            Role::ThickSnapshot(snapshot) => Some(snapshot),
            _ => None,
        },
        _ => None,
    }
}
