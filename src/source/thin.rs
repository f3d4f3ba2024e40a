//! Thin volumes as a source: what differs between two snapshots, or what is mapped in one, straight from the
//! pool's metadata.
//!
//! Guarantees: the list is of one moment, that of the pool's metadata snapshot, which is taken when NEW exists and
//! was still held when the last block was read. A base that may hold something else than it did when it was sent
//! is refused. Nothing stays active or reserved that was not so before, see [`crate::hold`].

use std::io;

use super::{
    SendSource, SourceRequest, header, lost, refuse_suspended, wants_moment, warn_if_written,
};
use crate::cancel::Cancel;
use crate::changes::thin::{Root, ThinError, ThinMetadata, ThinVolume as InPool};
use crate::delta::header::{Header, Source, State};
use crate::delta::samples::Samples;
use crate::dm::device::{DeviceMapper, device_path};
use crate::dm::name::LvName;
use crate::dm::openers::writers_open;
use crate::dm::pool::status_by_name;
use crate::dm::pool_status::Trouble;
use crate::dm::snapshot::{LogicalVolume, Role};
use crate::dm::thin::{ThinVolume, activated, refuse_replaced};
use crate::dm::wire::Selector;
use crate::error::{Error, Result};
use crate::hold::client::Guard;
use crate::record::as_opened::AsOpened;
use crate::record::half_written;
use crate::sys::device::DeviceNumber;
use crate::volume::ReadAt;
use crate::volume::open::Volume;

/// Everything of `new`, what is mapped as data.
pub(super) fn full_copy(
    request: &SourceRequest<'_>,
    name: &str,
    new: &ThinVolume,
    guard: Option<Guard>,
) -> Result<SendSource> {
    let mut opened = Opened::new(request, name, new, guard)?;
    let of_new = opened.in_pool(new);
    let (changes, mapped, was_written, block_bytes) = opened.read(request, |metadata| {
        let changes = metadata.mapped_changes(of_new)?;
        let mapped = match of_new.external_origin {
            true => metadata.mapped_digest(of_new.device)?,
            false => changes.digest(),
        };
        let was_written = metadata.was_written(of_new.device)?;
        Ok((changes, mapped, was_written, metadata.block_bytes()))
    })?;
    let header = Header {
        target: state_of(new).filter(|_| !was_written),
        // A discard in NEW is no write: only what is mapped tells of it, and the list of a full copy does not count.
        run: Some(mapped),
        granularity: block_bytes,
        ..header(request, Source::Full, opened.volume.size_bytes, &changes)
    };
    opened.into_source(request, name, header, Samples::default(), changes)
}

/// What differs in `new` from `old`.
pub(super) fn increment(
    request: &SourceRequest<'_>,
    (old_name, old): (&str, &ThinVolume),
    (new_name, new): (&str, &ThinVolume),
) -> Result<SendSource> {
    refuse_unrelated((old_name, old), (new_name, new))?;
    half_written::refuse_logical_volume(&request.state, &old.uuid, request.called(old_name))?;
    refuse_written_base(request, old)?;
    let mut opened = Opened::new(request, new_name, new, None)?;
    let of_new = opened.in_pool(new);
    let same_origin = opened.has_same_external_origin(request, old)?;
    let of_old = InPool {
        device: u64::from(old.device_id),
        size_bytes: old.size_bytes,
        external_origin: of_new.external_origin == same_origin,
    };
    let (found, mapped, block_bytes) = opened.read(request, |metadata| {
        let found = metadata.changes(of_old, of_new)?;
        // A discard in NEW is no write. It changes the list, unless what is not mapped is listed as data, too.
        let mapped = match of_new.external_origin {
            true => Some(metadata.mapped_digest(of_new.device)?),
            false => None,
        };
        Ok((found, mapped, metadata.block_bytes()))
    })?;
    // It is inactive, so nothing kept it: it was found by a number, and that a while ago if the pool was in use.
    refuse_replaced(old)?;
    if found.summary.old_was_written {
        let reason = if old.is_snapshot {
            "blocks of it were written after it was made, so it may not hold what was sent"
        } else {
            "it is no snapshot, and blocks of it were written at any time, so it may not hold what was sent"
        };
        return Err(lost(old_name, reason));
    }
    let changes = found.changes;
    tracing::info!(
        "{new_name}: {} blocks of {block_bytes} bytes differ from {old_name}, {} are unmapped since",
        found.summary.mapped_blocks,
        found.summary.unmapped_blocks
    );
    // What did not change is the same in both: the old one need not be active.
    let samples = Samples::take(&opened.data, &changes)
        .map_err(|error| Error::io(format!("cannot read sampled blocks of {new_name}"), error))?;
    let header = Header {
        base_size: Some(old.size_bytes),
        base: state_of(old),
        target: state_of(new).filter(|_| !found.summary.new_was_written),
        run: mapped,
        granularity: block_bytes,
        ..header(request, Source::Thin, opened.volume.size_bytes, &changes)
    };
    opened.into_source(request, new_name, header, samples, changes)
}

/// NEW, active, and what keeps it so.
struct Opened {
    volume: LogicalVolume,
    pool: DeviceNumber,
    metadata: DeviceNumber,
    external_origin: Option<DeviceNumber>,
    data: Volume,
    /// Before its maps were read.
    as_opened: AsOpened,
    // After the volume: it is deactivated when nobody has it open any more.
    guard: Guard,
}

impl Opened {
    fn new(
        request: &SourceRequest<'_>,
        name: &str,
        thin: &ThinVolume,
        guard: Option<Guard>,
    ) -> Result<Self> {
        half_written::refuse_logical_volume(&request.state, &thin.uuid, request.called(name))?;
        refuse_trouble(thin, name)?;
        // A guard that is there has made this volume, active.
        let was_made = guard.is_some();
        let mut guard = match guard {
            Some(guard) => guard,
            None => Guard::start(&request.state, request.cancel)?,
        };
        let volume = match &thin.active {
            // Asked for all the same where a run of ours may have activated it.
            Some(volume) if was_made || !thin.is_snapshot => (**volume).clone(),
            _ => {
                guard.activate(&thin.name, &thin.uuid, request.monitor)?;
                activated(thin)?
            }
        };
        refuse_suspended(&volume)?;
        warn_if_written(&volume, request.monitor)?;
        let Role::Thin {
            pool,
            metadata,
            external_origin,
            ..
        } = volume.role
        else {
            return Err(Error::Lvm {
                what: name.to_owned(),
                reason: "it is not a thin volume any more".to_owned(),
            });
        };
        let data = Volume::open(&volume.path)?;
        // A name may have gone to another volume before this one was open; now it stays.
        if data.device() != Some(activated(thin)?.device) {
            return Err(Error::Lvm {
                what: name.to_owned(),
                reason: "another LVM command replaced it just now; run this again".to_owned(),
            });
        }
        Ok(Self {
            as_opened: AsOpened::of(&data)?,
            data,
            volume,
            pool,
            metadata,
            external_origin,
            guard,
        })
    }

    fn in_pool(&self, thin: &ThinVolume) -> InPool {
        InPool {
            device: u64::from(thin.device_id),
            size_bytes: self.volume.size_bytes,
            external_origin: self.external_origin.is_some(),
        }
    }

    /// Whether `old` is read from the same place as NEW where it is not mapped. Only a table tells.
    fn has_same_external_origin(
        &mut self,
        request: &SourceRequest<'_>,
        old: &ThinVolume,
    ) -> Result<bool> {
        if !old.group_has_external_origins && self.external_origin.is_none() {
            return Ok(true);
        }
        self.guard.activate(&old.name, &old.uuid, request.monitor)?;
        let role = activated(old)?.role;
        let origin = match role {
            Role::Thin {
                external_origin, ..
            } => external_origin,
            _ => None,
        };
        Ok(origin == self.external_origin)
    }

    /// Reads the pool's metadata as it is now, NEW being there: every answer comes from one moment.
    fn read<T>(
        &mut self,
        request: &SourceRequest<'_>,
        work: impl FnOnce(&ThinMetadata<'_>) -> std::result::Result<T, ThinError>,
    ) -> Result<T> {
        let dm = DeviceMapper::open()?;
        let info = dm.info(Selector::Device(self.metadata))?;
        let path = device_path(
            self.metadata,
            &info.map(|info| info.name).unwrap_or_default(),
        );
        let root = self.guard.reserve(self.pool, request.monitor)?;
        let device = UntilCancelled {
            device: Volume::open(&path)?,
            cancel: request.cancel,
        };
        let found = ThinMetadata::open(&device, Root::Held(root)).and_then(|metadata| {
            let found = work(&metadata)?;
            metadata.check_unchanged()?;
            Ok(found)
        });
        // First of all it must have been ours to the end: without that an error would be no news either.
        self.guard.release(request.monitor)?;
        request.cancel.check()?;
        found.map_err(|source| Error::ThinMetadata {
            what: path.display().to_string(),
            source,
        })
    }

    fn into_source(
        self,
        request: &SourceRequest<'_>,
        name: &str,
        header: Header,
        samples: Samples,
        changes: crate::change_list::ChangeList,
    ) -> Result<SendSource> {
        if self.data.size_bytes() != header.volume_size {
            return Err(Error::Lvm {
                what: name.to_owned(),
                reason: "its size changed just now; run this again".to_owned(),
            });
        }
        Ok(SendSource {
            wants_moment: wants_moment(request, &header),
            opened: self.as_opened,
            header,
            samples,
            changes,
            data: self.data,
            name: name.to_owned(),
            snapshot: None,
            made: None,
            guard: Some(self.guard),
        })
    }
}

/// Refuses a volume whose pool is known to be in trouble, before anything is asked of LVM, whose words for it are others.
pub(crate) fn refuse_trouble(thin: &ThinVolume, name: &str) -> Result<()> {
    let Some(pool) = LvName::new(thin.name.vg(), &thin.pool) else {
        return Ok(());
    };
    let status = status_by_name(&pool)?;
    match status.and_then(|status| status.trouble_for_reader(&pool)) {
        Some(Trouble { reason, way_out }) => Err(Error::refused(name, reason, way_out)),
        None => Ok(()),
    }
}

/// Metadata whose reading ends when the run is told to stop: of a large pool it takes minutes.
pub(super) struct UntilCancelled<'a> {
    pub(super) device: Volume,
    pub(super) cancel: &'a Cancel,
}

impl ReadAt for UntilCancelled<'_> {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("interrupted"));
        }
        self.device.read_exact_at(buffer, offset)
    }

    fn gap_worth_reading(&self) -> u64 {
        self.device.gap_worth_reading()
    }
}

/// The identity of a state that stays what it is. What is live has none, nor has a snapshot that was written after it
/// was made (a clone that a machine runs from, for one): two sends of it would have one name and not one content, and
/// the second would be taken for done, or go on where the first was cut.
fn state_of(volume: &ThinVolume) -> Option<State> {
    (volume.is_snapshot || volume.read_only).then(|| State {
        id: format!("lvm:{}", volume.uuid),
        name: volume.name.to_string(),
    })
}

fn refuse_unrelated(
    (old_name, old): (&str, &ThinVolume),
    (new_name, new): (&str, &ThinVolume),
) -> Result<()> {
    if old.uuid == new.uuid {
        return Err(Error::Usage(format!(
            "{old_name} and {new_name} are the same volume"
        )));
    }
    if (old.name.vg(), &old.pool) != (new.name.vg(), &new.pool) {
        let (vg, pool) = (old.name.vg(), &old.pool);
        return Err(Error::Lvm {
            what: new_name.to_owned(),
            reason: format!(
                "{old_name} is in the thin pool {vg}/{pool}, and this is in {}/{}: only volumes of one pool can be \
                 told apart by it. To compare them: lvmsync compare {old_name} {new_name}",
                new.name.vg(),
                new.pool
            ),
        });
    }
    Ok(())
}

/// A base must hold what it held when it was sent. What is written to it shows in its mappings; a discard in it does
/// not, and would make a change vanish from the list.
fn refuse_written_base(request: &SourceRequest<'_>, old: &ThinVolume) -> Result<()> {
    let active = old.active.as_deref();
    if let Some(volume) = active.filter(|volume| !volume.read_only) {
        let openers = writers_open(volume.device)?;
        if openers.may_write() {
            let reason =
                format!("it is open for writing ({openers}), so it may not hold what was sent");
            return Err(lost(&old.name.to_string(), &reason));
        }
    }
    if !old.read_only {
        request.monitor.warn(&format!(
            "{0}: this base is writable; a discard in it would go unnoticed and the copy would be wrong. Protect \
             it: lvchange -pr {0}",
            old.name
        ));
    }
    Ok(())
}
