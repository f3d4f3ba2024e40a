//! What makes two volumes equal again where the list of changes is lost.
//!
//! Guarantees: names a volume that can be read: not the snapshot whose table is lost, but its origin.

use super::{MetadataFile, SourceRequest};
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::snapshot::{Role, ThickSnapshot};

/// The SRC of the `lvmsync sync` that takes the place of what was asked for.
pub fn source_of_sync(request: &SourceRequest<'_>) -> String {
    // An id in a copy of a pool's metadata names nothing here.
    let is_thin = matches!(request.thin_metadata, Some(MetadataFile::Thin(_)));
    let new = request.new.filter(|_| !is_thin);
    match (request.data_source.or(new), request.from) {
        (Some(new), _) => match snapshot(new) {
            Some(snapshot) if snapshot.status.why_untrusted().is_some() => {
                snapshot.origin.name.to_string()
            }
            _ => new.to_owned(),
        },
        // The original's way: what is sent is the origin.
        (None, Some(old)) if request.new.is_none() => snapshot(old).map_or_else(
            || "NEW".to_owned(),
            |snapshot| snapshot.origin.name.to_string(),
        ),
        (None, _) => "NEW".to_owned(),
    }
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
