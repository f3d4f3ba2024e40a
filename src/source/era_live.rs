//! A volume that dm-era tracks, as a source while it is in use: everything of it, or what was written since an era.
//!
//! Guarantees: a suspended era device is asked for nothing. What is sent is one moment of the volume below, of which a
//! snapshot is made, and the list is read after that moment, from a metadata snapshot that was still held when the last
//! block of it was read: so it has every block that was written by then. The state that is sent is named by the record and
//! by an era that began before that moment; the next list from it begins one era earlier, for what was in flight. A record
//! that was made anew has another name, and an era that has not begun is an error of code 4.

use std::thread;
use std::time::Duration;

use super::era::overlapping;
use super::era_data::Data;
use super::era_watch::Watch;
use super::thin::UntilCancelled;
use super::{
    SendSource, SnapshotWish, SourceRequest, check_source, header, lost, refuse_suspended,
    warn_if_written,
};
use crate::changes::era::{EraError, EraMetadata, Root};
use crate::delta::header::{Header, Source, State};
use crate::delta::samples::Samples;
use crate::dm::device::{DeviceMapper, device_path, sysfs_name_and_uuid};
use crate::dm::era::{EraDevice, era_device, era_device_on, status_of, suspended};
use crate::dm::name::LvName;
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::snapshot::LogicalVolume;
use crate::dm::uuid::DmUuid;
use crate::dm::wire::Selector;
use crate::engine::copy_list::whole_volume;
use crate::error::{Error, Result};
use crate::hold::client::Guard;
use crate::track::kernel;
use crate::track::look::{self, Known};
use crate::track::seen::Merge;
use crate::units::{Bytes, SECTOR_BYTES};
use crate::volume::host::VolumeIdentity;
use crate::volume::open::Volume;

/// Far longer than a write that is on record takes to the volume below.
const OVERLAP: Duration = Duration::from_millis(100);

/// An era device, what is below it, and whose record it keeps.
pub(super) struct Tracked {
    device: EraDevice,
    volume: LogicalVolume,
    /// LVM's UUID of the volume with the record: another one after it was made anew. None where that is no volume of LVM.
    record: Option<String>,
    /// What LVM knows of it.
    known: Known,
}

impl Tracked {
    /// The era device that `name` is the path of, if it is one.
    pub(super) fn named(name: &str) -> Result<Option<Self>> {
        let Ok(Resolved::BlockDevice(path)) = resolve(name) else {
            return Ok(None);
        };
        let Ok(VolumeIdentity::Block(number)) = VolumeIdentity::of_path(&path) else {
            return Ok(None);
        };
        if sysfs_name_and_uuid(number).is_none() {
            return Ok(None);
        }
        let dm = DeviceMapper::open()?;
        match era_device(&dm, number)? {
            Some(device) => Self::of(look::volume(&dm, name)?, device).map(Some),
            None => Ok(None),
        }
    }

    /// The one that `name` means: the era device, or the one on this logical volume.
    fn find(name: &str, old: &str) -> Result<Self> {
        if matches!(resolve(name)?, Resolved::File(_)) {
            return Err(Error::Usage(format!(
                "{old}: {name} is a file; name a copy of the record of its era device with --era-metadata FILE"
            )));
        }
        let dm = DeviceMapper::open()?;
        let volume = look::volume(&dm, name)?;
        match era_device_on(&dm, volume.device)? {
            Some(device) => Self::of(volume, device),
            None => Err(Error::refused(
                name,
                format!("{old} needs the record of its era device, and none is up on it"),
                format!(
                    "If it is tracked: lvmsync track up {}. To read a record that is down, or a copy of one: --era-metadata FILE",
                    volume.name
                ),
            )),
        }
    }

    fn of(volume: LogicalVolume, device: EraDevice) -> Result<Self> {
        kernel::refuse_running()?;
        let uuid = sysfs_name_and_uuid(device.metadata).and_then(|(_, uuid)| DmUuid::parse(&uuid));
        let tracked_bytes = device.sectors.saturating_mul(SECTOR_BYTES);
        if volume.size_bytes > tracked_bytes {
            let untracked = Bytes(volume.size_bytes.saturating_sub(tracked_bytes));
            let reason = format!(
                "it was extended, and its last {untracked} are not below its era device {}, so what is written there is \
                 on no record, until that is tracked as well",
                device.name
            );
            return Err(lost_until(&volume, &reason, &["resize"]));
        }
        let info = DeviceMapper::open()?.info(Selector::Device(device.device))?;
        if info.is_none_or(|info| info.suspended) {
            return Err(suspended(&volume.name.to_string(), &device.name));
        }
        let known = look::known_of(&volume)?;
        refuse_void(&volume, &known)?;
        Ok(Self {
            record: uuid.map(|uuid| uuid.lv_uuid()),
            device,
            volume,
            known,
        })
    }

    /// What the volume held when this era began, more or less: a base for lists that begin one era earlier.
    fn state(&self, era: u32) -> Option<State> {
        self.record.as_ref().map(|record| State {
            id: format!("era:{record}:{era}"),
            name: format!("{} era:{era}", self.volume.name),
        })
    }

    /// Refuses what must not be read, and warns of what the record does not know.
    fn check(&self, request: &SourceRequest<'_>, name: &str) -> Result<()> {
        let resolved = Resolved::LogicalVolume(Box::new(self.volume.clone()));
        check_source(request, name, &resolved)?;
        refuse_suspended(&self.volume)?;
        self.refuse_merge(request)?;
        if look::lets_discards_through(self.device.device) == Some(true) {
            request.monitor.warn(&format!(
                "{name}: its era device lets discards through, and of one that spans several blocks only the first is on \
                 record: what was discarded so is not in the list. To stop them: lvmsync track up {}; to make the copy \
                 equal where they were: lvmsync sync",
                self.volume.name
            ));
        }
        Ok(())
    }

    /// What a merge takes back is on no record. One that is due may be done before anybody looks again.
    fn refuse_merge(&self, request: &SourceRequest<'_>) -> Result<()> {
        let (found, then) = match self.known.merge {
            Merge::No => return Ok(()),
            Merge::Due => (
                "a snapshot will be merged into it when it is activated the next time, which takes back what was written since",
                "When that is done",
            ),
            Merge::Running => (
                "a snapshot is being merged into it, which takes back what was written since",
                "When that is done (lvs shows how far it is)",
            ),
        };
        let era = self.era(&DeviceMapper::open()?)?;
        let reason = format!("{found}, so no era until now is a base any more");
        if let Some(watch) = self.watch(request)? {
            watch.lose(era)?;
        }
        let name = self.volume.name.to_string();
        Err(lost(
            &name,
            &format!("{reason}. {then}, make its copies equal"),
        ))
    }

    /// Refuses a state of an era from before a hole.
    fn refuse_lost(&self, from: u32, known: &Known) -> Result<()> {
        refuse_void(&self.volume, known)?;
        match &known.record {
            Some(record) if record.is_lost(from) => Err(lost(
                &self.volume.name.to_string(),
                &format!(
                    "something wrote past its era device, or may have, before its record was begun anew, so era {from} is no base \
                     any more"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The era that goes on.
    fn era(&self, dm: &DeviceMapper) -> Result<u32> {
        let name = self.volume.name.to_string();
        Ok(status_of(dm, self.device.device, &name)?.era)
    }

    /// How long a state of this era is at most.
    fn bytes_at(&self, era: u32) -> u64 {
        let record = self.known.record.as_ref();
        let sectors = record.and_then(|record| record.sectors_at(era));
        sectors.map_or(u64::MAX, |sectors| sectors.saturating_mul(SECTOR_BYTES))
    }

    /// What was seen of it before. Nothing is kept of what has no name.
    fn watch(&self, request: &SourceRequest<'_>) -> Result<Option<Watch>> {
        let name = self.volume.name.to_string();
        let record = self.record.as_ref();
        record
            .map(|record| Watch::open(request, &name, record))
            .transpose()
    }

    /// Begins the era that names what is sent from now on, and tells its number. The one before, which the next list begins
    /// with, has lasted a while by then, so that nothing in flight is older, however many runs begin eras at a time.
    fn checkpoint(&self, dm: &DeviceMapper) -> Result<u32> {
        let overlap = self.begin_era(dm)?;
        thread::sleep(OVERLAP);
        self.begin_era(dm)?;
        Ok(overlap.saturating_add(1))
    }

    fn begin_era(&self, dm: &DeviceMapper) -> Result<u32> {
        let number = self.device.device;
        let info = dm.info(Selector::Device(number))?;
        if info.is_none_or(|info| info.suspended) {
            return Err(suspended(&self.volume.name.to_string(), &self.device.name));
        }
        dm.message(number, "checkpoint")
            .map_err(|error| Error::Lvm {
                what: self.volume.name.to_string(),
                reason: format!(
                    "its era device {} does not accept `checkpoint`: {error}",
                    self.device.name
                ),
            })?;
        self.era(dm)
    }

    /// What `read` finds in the record. All of it is from one moment, which is now.
    fn read_record<T>(
        &self,
        request: &SourceRequest<'_>,
        dm: &DeviceMapper,
        guard: &mut Guard,
        read: impl FnOnce(&EraMetadata<'_>) -> std::result::Result<T, EraError>,
    ) -> Result<T> {
        let metadata = self.device.metadata;
        let info = dm.info(Selector::Device(metadata))?;
        let path = device_path(metadata, &info.map(|info| info.name).unwrap_or_default());
        let root = guard.reserve(self.device.device, request.monitor)?;
        let device = UntilCancelled {
            device: Volume::open(&path)?,
            cancel: request.cancel,
        };
        let found = EraMetadata::open(&device, Root::Held(root)).and_then(|era| {
            let found = read(&era)?;
            era.check_unchanged()?;
            Ok(found)
        });
        // First of all it must have been ours to the end: without that an error would be no news either.
        guard.release(request.monitor)?;
        request.cancel.check()?;
        if era_device(dm, self.device.device)?.as_ref() != Some(&self.device) {
            return Err(Error::Lvm {
                what: self.volume.name.to_string(),
                reason: "its era device was replaced just now; run this again".to_owned(),
            });
        }
        found.map_err(|source| Error::EraMetadata {
            what: path.display().to_string(),
            source,
        })
    }

    fn tell(&self, request: &SourceRequest<'_>, wish: SnapshotWish<'_>, era: u32) -> Result<()> {
        if let (Some(named), Some(state)) = (wish.named, self.state(era)) {
            return named(&state);
        }
        request.monitor.remark(&format!(
            "{}: what is sent is era:{era}, which the next list begins from: --from era:{era}",
            self.volume.name
        ));
        Ok(())
    }
}

/// A void record is one of nothing, whatever it says.
fn refuse_void(volume: &LogicalVolume, known: &Known) -> Result<()> {
    if known.is_swapped(volume) {
        let reason = "it is another volume of its thin pool than it was: a snapshot was merged into it, and what that has taken back \
                      is on no record";
        return Err(lost_until(volume, reason, &["up", "enable"]));
    }
    if known.record.as_ref().is_some_and(|record| record.is_void) {
        let reason = "its record is void: something wrote past its era device, or may have, or it was not finished. It begins anew \
                      while the volume is in use; then make the copies equal";
        return Err(lost_until(volume, reason, &["enable"]));
    }
    Ok(())
}

/// A comparison would be refused as well until these were run.
fn lost_until(volume: &LogicalVolume, reason: &str, verbs: &[&str]) -> Error {
    let name = volume.name.to_string();
    let commands = verbs
        .iter()
        .map(|verb| format!("lvmsync track {verb} {name}"));
    Error::ToRecover {
        error: Box::new(lost(&name, reason)),
        command: commands.collect::<Vec<_>>().join("; "),
    }
}

/// How a volume is tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracking {
    /// Path of its era device.
    pub device: String,
    /// LVM's UUID of the record.
    pub record: String,
}

/// How the volume of this name is tracked; an error if it is not.
pub fn tracking_of(name: &LvName) -> Result<Tracking> {
    let tracked = Tracked::find(&format!("/dev/{name}"), "track = \"era\"")?;
    let device = format!("/dev/mapper/{}", tracked.device.name);
    match tracked.record {
        Some(record) => Ok(Tracking { device, record }),
        None => Err(Error::refused(
            device,
            "its record is in no logical volume, so its eras name no states",
            format!("Have it made by lvmsync track enable {name}"),
        )),
    }
}

/// Everything, as the base of what is to come.
pub(super) fn full_copy(
    request: &SourceRequest<'_>,
    name: &str,
    tracked: &Tracked,
    wish: SnapshotWish<'_>,
) -> Result<SendSource> {
    tracked.check(request, name)?;
    let dm = DeviceMapper::open()?;
    let mut watch = tracked.watch(request)?;
    if let Some(watch) = &watch {
        watch.refuse_older(tracked.era(&dm)?)?;
    }
    let era = tracked.checkpoint(&dm)?;
    let mut data = Data::take(request, &tracked.volume, wish)?;
    if let Some(watch) = &mut watch {
        watch.look(&data.volume, Some(era))?;
        let size = tracked.volume.size_bytes;
        let contradiction = match watch.is_there() {
            true => tracked.read_record(request, &dm, &mut data.guard, |record| {
                watch.compare(record, size, (None, 0))
            })?,
            false => None,
        };
        watch.seen_all(request, era, contradiction)?;
    }
    let changes = whole_volume(&data.volume, name, request.cancel)?;
    tracked.tell(request, wish, era)?;
    let header = Header {
        target: tracked.state(era),
        ..header(request, Source::Full, tracked.volume.size_bytes, &changes)
    };
    data.into_source(header, Samples::default(), changes)
}

/// What was written since the state that was sent as era `from`.
pub(super) fn increment(
    request: &SourceRequest<'_>,
    (old, from): (&str, u32),
    wants_data: bool,
) -> Result<SendSource> {
    let Some(new) = request.new else {
        return Err(Error::Usage(format!(
            "{old} needs the volume that was written as NEW"
        )));
    };
    if request.data_source.is_some() {
        return Err(Error::Usage(format!(
            "{old}: the data is read from a snapshot of {new}; leave --data-source out"
        )));
    }
    let tracked = Tracked::find(new, old)?;
    let size = tracked.volume.size_bytes;
    let base_size = request.base_size.unwrap_or(size);
    if base_size > size {
        return Err(Error::Usage(format!(
            "--base-size is {base_size} bytes, and {new} has only {size}: the record of a volume that became smaller \
             does not say what was cut off"
        )));
    }
    let base_size = base_size.min(tracked.bytes_at(from));
    tracked.check(request, new)?;
    let dm = DeviceMapper::open()?;
    let current = tracked.era(&dm)?;
    let mut watch = tracked.watch(request)?;
    if let Some(watch) = &watch {
        watch.refuse_older(current)?;
        watch.refuse_lost(from)?;
    }
    tracked.refuse_lost(from, &tracked.known)?;
    if from > current {
        return Err(Error::EraMetadata {
            what: new.to_owned(),
            source: EraError::NotBegun {
                since: from,
                current,
            },
        });
    }
    let only_look = request.snapshot.is_some_and(|wish| wish.only_look);
    let names_state = wants_data && !only_look;
    let era = names_state.then(|| tracked.checkpoint(&dm)).transpose()?;
    let wish = request.snapshot.filter(|_| names_state);
    let mut data = match wish {
        Some(wish) => Data::take(request, &tracked.volume, wish)?,
        None => Data::below(request, &tracked.volume)?,
    };
    if names_state && data.made.is_none() {
        warn_if_written(&tracked.volume, request.monitor)?;
    }
    let since = overlapping(from);
    if let Some(watch) = &mut watch {
        watch.look(&data.volume, era)?;
    }
    let (changes, block_bytes, contradiction) =
        tracked.read_record(request, &dm, &mut data.guard, |record| {
            let list = record.changes(since, base_size, size)?;
            let compare = |watch: &Watch| watch.compare(record, size, (Some(&list), since));
            let contradiction = watch.as_ref().map(compare).transpose()?.flatten();
            let contradiction = contradiction.map(|at| (at, record.superblock().current_era));
            Ok((list, record.block_bytes(), contradiction))
        })?;
    // A hole may have been found meanwhile, and the record begun anew.
    tracked.refuse_lost(from, &look::known_of(&tracked.volume)?)?;
    match (&mut watch, contradiction, era) {
        (Some(watch), Some((offset, now)), _) => return Err(watch.contradicted(offset, now)?),
        (Some(watch), None, Some(era)) => watch.seen(era)?,
        _ => {}
    }
    let samples = match era {
        Some(_) => Samples::take(&data.volume, &changes)
            .map_err(|error| Error::io(format!("cannot read sampled blocks of {new}"), error))?,
        None => Samples::default(),
    };
    if let Some(era) = era {
        tracked.tell(request, wish.unwrap_or_default(), era)?;
    }
    let header = Header {
        base_size: Some(base_size),
        base: tracked.state(from),
        target: era.and_then(|era| tracked.state(era)),
        granularity: block_bytes,
        ..header(request, Source::Era, size, &changes)
    };
    data.into_source(header, samples, changes)
}
