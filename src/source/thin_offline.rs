//! Thin devices in a copy of a pool's metadata: `--thin-metadata FILE --from thin:1 thin:2`, without a kernel.
//!
//! Guarantees: as in [`super::thin`]; metadata that an active pool writes to is refused, under whatever name, since what
//! is read of it one block after another belongs to no moment; a copy that was written while it was read is an error. The pool does not know how large its devices are: that is told, or
//! the size of what the data is read from, or else where the last mapping ends.

use std::path::Path;

use super::{MetadataFile, SendSource, SourceRequest, header, wants_moment};
use crate::change_list::ChangeList;
use crate::changes::thin::{Root, ThinError, ThinMetadata, ThinVolume};
use crate::delta::header::{Header, Source};
use crate::delta::samples::Samples;
use crate::dm::pool::active_pools;
use crate::error::{Error, Result};
use crate::record::as_opened::AsOpened;
use crate::volume::ReadAt;
use crate::volume::file_version::FileVersion;
use crate::volume::host::Host;
use crate::volume::open::Volume;

/// What differs between two devices, or what is mapped in one.
pub(super) fn open(request: &SourceRequest<'_>, file: &Path) -> Result<SendSource> {
    let name = file.display().to_string();
    let (old, new) = (device_id(request.from)?, device_id(request.new)?);
    let Some(new) = new else {
        return Err(usage(
            "with --thin-metadata NEW is a device of the pool: thin:ID",
        ));
    };
    let metadata = Volume::open(file)?;
    refuse_in_use(&metadata, &name)?;
    let data = request.data_source.map(Volume::open).transpose()?;
    refuse_short(request, data.as_ref())?;
    let listed = at_one_moment(&metadata, &name, |pool| {
        list(request, pool, old, new, data.as_ref())
    })?;
    // It may have been activated meanwhile.
    refuse_in_use(&metadata, &name)?;
    if listed.old_was_written {
        // Both are of one moment, so the list is complete; only the user knows what the other end holds.
        request.monitor.warn(&format!(
            "{}: blocks of it were written after it was made; a copy of what it held before that is not the base \
             of this",
            request.from.unwrap_or_default()
        ));
    }
    let (data, data_name) = match data {
        Some(data) => (data, request.data_source.unwrap_or_default().to_owned()),
        // A list can be had without; whoever wants to send asks for more, see `needs_data`.
        None => (metadata, name),
    };
    let samples = match (old, request.data_source) {
        (Some(_), Some(_)) => Samples::take(&data, &listed.changes).map_err(|error| {
            Error::io(format!("cannot read sampled blocks of {data_name}"), error)
        })?,
        _ => Samples::default(),
    };
    let source = if old.is_some() {
        Source::Thin
    } else {
        Source::Full
    };
    let header = Header {
        base_size: old.map(|_| listed.old_size),
        // Which device of which pool is sent shows in the list alone, and that of a full copy does not count.
        run: old.is_none().then(|| listed.changes.digest()),
        granularity: listed.block_bytes,
        ..header(request, source, listed.new_size, &listed.changes)
    };
    Ok(SendSource {
        wants_moment: wants_moment(request, &header),
        header,
        samples,
        changes: listed.changes,
        opened: AsOpened::of(&data)?,
        data,
        name: data_name,
        snapshot: None,
        made: None,
        guard: None,
    })
}

/// Metadata alone has no data to send.
pub(super) fn needs_data(request: &SourceRequest<'_>) -> Result<()> {
    let is_thin = matches!(request.thin_metadata, Some(MetadataFile::Thin(_)));
    if is_thin && request.data_source.is_none() {
        return Err(usage(
            "the metadata of a pool says what changed and has no data: name what holds the content of NEW with \
             --data-source",
        ));
    }
    Ok(())
}

struct Listed {
    changes: ChangeList,
    block_bytes: u64,
    old_size: u64,
    new_size: u64,
    old_was_written: bool,
}

/// Reads the metadata; an error if it is not the same afterwards.
fn at_one_moment<T>(
    metadata: &Volume,
    name: &str,
    work: impl FnOnce(&ThinMetadata<'_>) -> std::result::Result<T, ThinError>,
) -> Result<T> {
    let before = FileVersion::of(metadata)?;
    let found = ThinMetadata::open(metadata, Root::Live).and_then(|pool| {
        let found = work(&pool)?;
        pool.check_unchanged()?;
        Ok(found)
    });
    // That it was written explains every other error as well.
    let found = match FileVersion::of(metadata)? == before {
        true => found,
        false => Err(ThinError::Written),
    };
    found.map_err(|source| match source {
        ThinError::NoSuchDevice { device } => {
            Error::Usage(format!("{name} has no device with the id {device}"))
        }
        source => Error::ThinMetadata {
            what: name.to_owned(),
            source,
        },
    })
}

fn list(
    request: &SourceRequest<'_>,
    pool: &ThinMetadata<'_>,
    old: Option<u64>,
    new: u64,
    data: Option<&Volume>,
) -> std::result::Result<Listed, ThinError> {
    let block_bytes = pool.block_bytes();
    let end_of = |device: u64| {
        let end = pool.end_of_mappings(device)?;
        Ok::<_, ThinError>(end.saturating_mul(block_bytes))
    };
    let new_size = match (request.volume_size, data) {
        (Some(size), _) => size,
        (None, Some(data)) => data.size_bytes(),
        (None, None) => match old {
            Some(old) => end_of(old)?.max(end_of(new)?),
            None => end_of(new)?,
        },
    };
    let volume = |device, size_bytes| ThinVolume {
        device,
        size_bytes,
        external_origin: false,
    };
    let old_size = request.base_size.unwrap_or(new_size);
    let (changes, old_was_written) = match old {
        Some(old) => {
            let found = pool.changes(volume(old, old_size), volume(new, new_size))?;
            (found.changes, found.summary.old_was_written)
        }
        None => (pool.mapped_changes(volume(new, new_size))?, false),
    };
    Ok(Listed {
        changes,
        block_bytes,
        old_size,
        new_size,
        old_was_written,
    })
}

/// `thin:ID`; ids have 24 bits.
fn device_id(text: Option<&str>) -> Result<Option<u64>> {
    let Some(text) = text else { return Ok(None) };
    let id = text.strip_prefix("thin:").and_then(|id| id.parse().ok());
    match id.filter(|id: &u64| *id < 1 << 24) {
        Some(id) => Ok(Some(id)),
        None => Err(usage(&format!(
            "`{text}`: with --thin-metadata OLD and NEW are devices of the pool, thin:1 for example"
        ))),
    }
}

/// A pool changes its metadata all the time, and no order of reading would see one moment of it.
fn refuse_in_use(metadata: &Volume, name: &str) -> Result<()> {
    if !Host::has_mapped_devices() {
        return Ok(());
    }
    let host = Host::load();
    match host.pool_that_changes(metadata.identity(), &active_pools(&host)) {
        Some(pool) => Err(Error::refused(
            name,
            format!(
                "it is in use by the active pool {}, which changes it while it is read",
                pool.name
            ),
            "Name the volumes, and lvmsync takes a metadata snapshot: lvmsync diff --from vg/s1 vg/s2",
        )),
        None => Ok(()),
    }
}

/// What is not there cannot be sent: known now, and not when most of it is written.
fn refuse_short(request: &SourceRequest<'_>, data: Option<&Volume>) -> Result<()> {
    let (Some(size), Some(data)) = (request.volume_size, data) else {
        return Ok(());
    };
    if data.size_bytes() >= size {
        return Ok(());
    }
    Err(usage(&format!(
        "the data source {} has {} bytes, and --volume-size says that the volume has {size}: name what holds all of \
         NEW, or leave --volume-size out",
        request.data_source.unwrap_or_default(),
        data.size_bytes()
    )))
}

fn usage(text: &str) -> Error {
    Error::Usage(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use crate::changes::thin::build::PoolBuilder;
    use crate::error::ExitCode;

    #[test]
    fn a_copy_that_is_written_while_it_is_read_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meta.img");
        let mut pool = PoolBuilder::new(128, 12);
        pool.create(1);
        pool.write_new(1, 0..10);
        std::fs::write(&path, pool.image()).unwrap();
        let volume = Volume::open(&path).unwrap();
        let read = |and: &dyn Fn()| {
            at_one_moment(&volume, "meta.img", |metadata| {
                and();
                metadata.end_of_mappings(1)
            })
        };
        assert_eq!(read(&|| ()).unwrap(), 10);
        let put = |bytes: &[u8]| {
            // Times are those of the last tick of a clock.
            std::thread::sleep(std::time::Duration::from_millis(20));
            let mut file = std::fs::File::options().write(true).open(&path).unwrap();
            file.write_all(bytes).unwrap();
        };
        // The same bytes once more, as a dump that begins again; others; nonsense, which explains nothing.
        let same = pool.image();
        pool.write(1, 20);
        for bytes in [same, pool.image(), vec![7; 4096]] {
            let error = read(&|| put(&bytes)).unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::TrackingLost);
            let text = error.chain();
            assert!(text.contains("written while it was being read"), "{text}");
        }
    }
}
