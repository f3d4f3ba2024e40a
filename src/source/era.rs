//! dm-era's record in a file: `--era-metadata FILE --from era:N NEW`, without a kernel.
//!
//! Guarantees: the list has every block that was written since era N began or was in flight then, or there is an error of
//! code 4; metadata that an active device writes to is refused, under whatever name, since what is read of it one block after another
//! belongs to no moment; a copy that was written while it was read is an error. The record knows only what went
//! through the era device, and of a discard of several blocks only the first (docs/tracking.md).
//!
//! The base has no identity: the number of an era is no name of a state. Metadata that was formatted anew counts from 1
//! again, and what is in flight when an era begins may belong to either side.

use std::path::Path;

use super::{
    SendSource, SourceRequest, header, readable_state, resolve_source, snapshot_in, wants_moment,
};
use crate::changes::era::{EraError, EraMetadata, Root};
use crate::delta::header::{Header, Source};
use crate::delta::samples::Samples;
use crate::dm::era::active_era_devices;
use crate::error::{Error, Result};
use crate::record::as_opened::AsOpened;
use crate::record::half_written;
use crate::volume::ReadAt;
use crate::volume::file_version::FileVersion;
use crate::volume::host::Host;
use crate::volume::open::Volume;

/// The era that OLD names, if it names one.
pub(super) fn era_of(old: &str) -> Option<Result<u32>> {
    let era = old.strip_prefix("era:")?;
    let number = era.parse().ok().filter(|era: &u32| *era > 0);
    Some(number.ok_or_else(|| {
        Error::Usage(format!(
            "`{old}`: write the number of an era, which is 1 or more: era:7 for example"
        ))
    }))
}

/// Where the list of what was written since the state of this era begins: one era earlier, since a write that was in
/// flight when the era began may be on record in the one before, and not in the state.
pub(super) fn overlapping(era: u32) -> u32 {
    era.saturating_sub(1).max(1)
}

/// What was written since an era.
pub(super) fn open(request: &SourceRequest<'_>, file: &Path) -> Result<SendSource> {
    let old = request.from.unwrap_or_default();
    let Some(since) = era_of(old) else {
        return Err(Error::Usage(
            "with --era-metadata OLD is an era: --from era:7 for example".to_owned(),
        ));
    };
    let since = since?;
    let Some(new) = request.new else {
        return Err(Error::Usage(format!(
            "{old} needs the volume that was written as NEW"
        )));
    };
    let resolved = resolve_source(request, new)?;
    let target = readable_state(request, &resolved)?;
    let data = Volume::open(resolved.path())?;
    let size = data.size_bytes();
    let base_size = request.base_size.unwrap_or(size);
    if base_size > size {
        return Err(Error::Usage(format!(
            "--base-size is {base_size} bytes, and {new} has only {size}: the record of a volume that became smaller \
             does not say what was cut off"
        )));
    }
    let name = file.display().to_string();
    // Half a copy would be a short list.
    half_written::refuse_path(&request.state, file, request.called(&name))?;
    let metadata = Volume::open(file)?;
    refuse_in_use(&metadata, &name)?;
    let (changes, block_bytes) = at_one_moment(&metadata, &name, |metadata| {
        let current = metadata.superblock().current_era;
        if since > current {
            return Err(EraError::NotBegun { since, current });
        }
        let changes = metadata.changes(overlapping(since), base_size, size)?;
        Ok((changes, metadata.block_bytes()))
    })?;
    // It may have been activated meanwhile.
    refuse_in_use(&metadata, &name)?;
    let samples = Samples::take(&data, &changes)
        .map_err(|error| Error::io(format!("cannot read sampled blocks of {new}"), error))?;
    let header = Header {
        base_size: Some(base_size),
        target,
        granularity: block_bytes,
        ..header(request, Source::Era, size, &changes)
    };
    Ok(SendSource {
        wants_moment: wants_moment(request, &header),
        header,
        samples,
        changes,
        opened: AsOpened::of(&data)?,
        data,
        name: new.to_owned(),
        snapshot: snapshot_in(resolved),
        made: None,
        guard: None,
    })
}

/// Reads the metadata; an error if it is not the same afterwards.
fn at_one_moment<T>(
    metadata: &Volume,
    name: &str,
    work: impl FnOnce(&EraMetadata<'_>) -> std::result::Result<T, EraError>,
) -> Result<T> {
    let before = FileVersion::of(metadata)?;
    let found = EraMetadata::open(metadata, Root::Live).and_then(|era| {
        let found = work(&era)?;
        era.check_unchanged()?;
        Ok(found)
    });
    // That it was written explains every other error as well.
    let found = match FileVersion::of(metadata)? == before {
        true => found,
        false => Err(EraError::Written),
    };
    found.map_err(|source| Error::EraMetadata {
        what: name.to_owned(),
        source,
    })
}

/// An active device changes its metadata all the time, and no order of reading would see one moment of it.
fn refuse_in_use(metadata: &Volume, name: &str) -> Result<()> {
    if !Host::has_mapped_devices() {
        return Ok(());
    }
    let host = Host::load();
    match host.pool_that_changes(metadata.identity(), &active_era_devices(&host)) {
        Some(device) => Err(Error::refused(
            name,
            format!(
                "it is in use by the active device {}, which changes it while it is read",
                device.name
            ),
            "Take the device down, or read a copy that was made while it was down",
        )),
        None => Ok(()),
    }
}
