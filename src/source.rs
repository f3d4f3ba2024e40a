//! From two names to what is to be sent: the change list, the volume that the data is read from, and the
//! header that says so.
//!
//! Guarantees: the list is complete or there is an error of code 4. Between two snapshots of one origin the
//! list is the union of both exception tables: a chunk that is in neither was written neither to the origin
//! since the first of them was made nor to one of the snapshots, so it is the same in both. That holds
//! whichever is older and even if they were written to, so it needs no trust in names or clocks.
//! The status of a snapshot is looked at before its table is read and again after.

mod era;
mod era_data;
mod era_live;
mod era_watch;
mod live;
mod recovery;
mod thin;
mod thin_offline;

pub use era_live::{Tracking, tracking_of};
pub use era_watch::last_checkpoint;
pub use live::{Admit, Named, SnapshotWish};

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cancel::Cancel;
use crate::change_list::ChangeList;
use crate::changes::cow::{ExceptionTable, read_exceptions};
use crate::commands::Caller;
use crate::comparand::writers_of;
use crate::delta::codec::Compression;
use crate::delta::header::{Header, ORIGIN_RUN, Planned, Source, State};
use crate::delta::samples::Samples;
use crate::dm;
use crate::dm::name::LvName;
use crate::dm::openers::writers_open;
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::snapshot::{LogicalVolume, Role, ThickSnapshot};
use crate::dm::table::SnapshotStatus;
use crate::dm::thin::{ThinVolume, thin_volume};
use crate::engine::compare::Side;
use crate::engine::copy_list::whole_volume;
use crate::error::{Error, Result};
use crate::extent::{Change, Extent, Kind};
use crate::hold::client::Guard;
use crate::monitor::Monitor;
use crate::record::admission::Called;
use crate::record::as_opened::AsOpened;
use crate::record::half_written;
use crate::record::store::StateDir;
use crate::record::witness::{activation, was_written};
use crate::volume::file_version::run_id;
use crate::volume::open::Volume;
use crate::volume::{ReadAt, VolumeIdentity};

pub use recovery::{origin_of_lost, readable, source_of_sync};
pub(crate) use thin::refuse_trouble;

/// Where a delta comes from, as the user said it.
pub struct SourceRequest<'a> {
    /// OLD: a snapshot, `cow:STORE`, `thin:ID` or `era:N`; `None` for a full copy.
    pub from: Option<&'a str>,
    /// NEW: a later snapshot, the origin, or a plain volume. `None`: the origin of OLD.
    pub new: Option<&'a str>,
    /// Read the data here instead of from NEW.
    pub data_source: Option<&'a str>,
    /// With `cow:STORE`, which does not tell: the volume's size when the snapshot was made.
    pub base_size: Option<u64>,
    /// With `thin:ID` or `era:N`: a copy of the metadata that knows what these are.
    pub thin_metadata: Option<MetadataFile<'a>>,
    /// With it, which does not tell: the volume's size.
    pub volume_size: Option<u64>,
    /// For a full copy: read a live volume from a snapshot that is made for it. `None`: as it is.
    pub snapshot: Option<SnapshotWish<'a>>,
    /// For the header.
    pub compression: Compression,
    /// Where records say which volumes are incomplete.
    pub state: StateDir,
    /// Who is told what to do with one that is.
    pub caller: Caller,
    /// Stops the run.
    pub cancel: &'a Cancel,
    /// Hears of warnings.
    pub monitor: &'a dyn Monitor,
}

impl SourceRequest<'_> {
    /// A volume, as the user named it.
    fn called<'n>(&'n self, name: &'n str) -> Called<'n> {
        let caller = &self.caller;
        Called { name, caller }
    }
}

/// A copy of metadata that tells what changed.
#[derive(Clone, Copy, Debug)]
pub enum MetadataFile<'a> {
    /// Of a thin pool.
    Thin(&'a Path),
    /// Of an era device.
    Era(&'a Path),
}

impl<'a> MetadataFile<'a> {
    /// Where it is.
    pub fn path(self) -> &'a Path {
        match self {
            Self::Thin(path) | Self::Era(path) => path,
        }
    }
}

/// Everything that a send needs.
pub struct SendSource {
    /// The header of the delta.
    pub header: Header,
    /// Samples of the base.
    pub samples: Samples,
    /// What differs.
    pub changes: ChangeList,
    /// Where the data is read.
    pub data: Volume,
    /// Its name for messages.
    pub name: String,
    /// The snapshot that the data is read from, if it is one.
    snapshot: Option<LogicalVolume>,
    /// What the data is read from, as it was before.
    opened: AsOpened,
    /// It is to be one moment of a device: whoever asked wants that, or it goes by a name.
    wants_moment: bool,
    /// What is known of the snapshot, where it was made for this.
    made: Option<live::Made>,
    /// Keeps a thin volume active, and a snapshot there, while `data`, which is dropped before, is open.
    guard: Option<Guard>,
}

/// A volume argument, found.
enum Found {
    Thin(ThinVolume),
    /// Anything else.
    Other(Resolved),
}

fn find(name: &str) -> Result<Found> {
    let resolved = resolve(name);
    Ok(match thin_volume(name, &resolved)? {
        Some(volume) => Found::Thin(volume),
        None => Found::Other(resolved?),
    })
}

impl SendSource {
    /// The volume that the data is read from, as the engine wants it.
    pub fn side(&self) -> Side<'_> {
        Side {
            volume: &self.data,
            name: &self.name,
        }
    }

    /// The reason behind an error while the data was read: a snapshot that fills up meanwhile answers
    /// every read with an I/O error and says why only in its status.
    pub fn explain(&self, error: Error) -> Error {
        match (&self.snapshot, &self.made) {
            (Some(snapshot), Some(made)) => made.explain(snapshot, error),
            (Some(snapshot), None) => explain(snapshot, error),
            (None, _) => error,
        }
    }

    /// The volume that the user named: that is what must not be the destination.
    pub fn identity(&self) -> VolumeIdentity {
        let live = self.made.as_ref().and_then(live::Made::identity);
        live.unwrap_or_else(|| self.data.identity())
    }

    /// The snapshot that was made to be read, and what it is a snapshot of.
    pub fn made(&self) -> Option<(&LvName, &LvName)> {
        self.made.as_ref().map(|made| (made.name(), made.origin()))
    }

    /// The live volume's device, where the source is a snapshot that was made of it.
    pub fn live_identity(&self) -> Option<VolumeIdentity> {
        self.made.as_ref().and_then(live::Made::identity)
    }

    /// All is done: the snapshot that was made for it, if it was to be kept, is the user's from now on.
    pub fn keep_snapshot(&mut self, monitor: &dyn Monitor) -> Result<()> {
        match &mut self.guard {
            Some(guard) if self.made.as_ref().is_some_and(live::Made::is_kept) => {
                guard.keep(monitor)
            }
            _ => Ok(()),
        }
    }

    /// Names what is sent, so that a run that is cut can be told apart from every other: the digest of the list,
    /// and for content without an identity (a live volume) what no other run has.
    pub fn identify(&mut self) -> Result<()> {
        self.header.list = Some(self.changes.digest());
        if self.header.target.is_none() {
            self.header.target = self.opened.file().map(|version| State {
                id: version.id(),
                name: self.name.clone(),
            });
        }
        if self.header.target.is_none() {
            self.header.run.get_or_insert_with(run_id);
        }
        Ok(())
    }

    /// After the last read: what was written meanwhile was read in no state that it ever had, and a snapshot that was made
    /// for it may not have held what was written to its origin. Of a device without a name for its content that
    /// whoever asked takes as it is, that is said and no more.
    pub fn check_unchanged(&self) -> Result<()> {
        if let (Some(made), Some(snapshot)) = (&self.made, &self.snapshot) {
            made.check(snapshot)?;
        }
        if !self.opened.was_written(&self.data)? {
            return Ok(());
        }
        let is_device = self.data.device().is_some();
        let written = "it was written while it was read";
        let action = format!(
            "{}: what was sent is no state of it; stop what writes to it, or send from a snapshot",
            self.name
        );
        if is_device && !self.wants_moment {
            tracing::warn!("{action}: {written}");
            return Ok(());
        }
        let way_out = if is_device {
            ", or, with sync, take it as it is: --no-snapshot"
        } else {
            ""
        };
        let source = std::io::Error::other(written);
        Err(Error::io(action + way_out, source))
    }

    /// Finds the changes that `request` asks for. Reads kernel metadata and sampled blocks, no data.
    pub fn open(request: &SourceRequest<'_>) -> Result<Self> {
        thin_offline::needs_data(request)?;
        Self::find(request, true)
    }

    /// As [`Self::open`] for whoever wants the list alone: its data may be missing.
    pub fn list(request: &SourceRequest<'_>) -> Result<Self> {
        Self::find(request, false)
    }

    fn find(request: &SourceRequest<'_>, wants_data: bool) -> Result<Self> {
        match request.thin_metadata {
            Some(MetadataFile::Thin(file)) => return thin_offline::open(request, file),
            Some(MetadataFile::Era(file)) => return era::open(request, file),
            None => {}
        }
        if let Some(old) = request.from
            && let Some(era) = era::era_of(old)
        {
            return era_live::increment(request, (old, era?), wants_data);
        }
        if let (Some(old), None, Some(path)) = (request.from, request.new, request.data_source)
            && is_snapshot(path)
        {
            // The original's two-snapshot use: the data's own table then counts as well.
            return increment(request, old, Some(path));
        }
        let mut source = match (request.from, request.new) {
            (Some(old), new) => match (old.strip_prefix("cow:"), new) {
                (Some(store), Some(new)) => from_store(request, store, new)?,
                (Some(_), None) => {
                    return Err(Error::Usage("cow:STORE needs the origin as NEW".to_owned()));
                }
                (None, new) => increment(request, old, new)?,
            },
            (None, Some(new))
                if let Some(wish) = request.snapshot.filter(|wish| !wish.only_look)
                    && let Some(tracked) = era_live::Tracked::named(new)? =>
            {
                era_live::full_copy(request, new, &tracked, wish)?
            }
            (None, Some(new)) => match request.snapshot.filter(|wish| !wish.only_tracked) {
                Some(wish) => live::full_copy(request, new, wish)?,
                None => whole(request, new, find(new)?, None)?,
            },
            (None, None) => return Err(Error::Usage("no volume was given".to_owned())),
        };
        if let Some(path) = request.data_source {
            source.read_data_from(path, request)?;
        }
        Ok(source)
    }

    fn read_data_from(&mut self, path: &str, request: &SourceRequest<'_>) -> Result<()> {
        let resolved = resolve_source(request, path)?;
        if let Resolved::LogicalVolume(volume) = &resolved {
            warn_if_written(volume, request.monitor)?;
        }
        let data = Volume::open(resolved.path())?;
        if data.size_bytes() < self.header.volume_size {
            return Err(Error::Usage(format!(
                "the data source {path} has {} bytes, and the volume has {}",
                data.size_bytes(),
                self.header.volume_size
            )));
        }
        self.data = data;
        self.name = path.to_owned();
        self.snapshot = snapshot_in(resolved);
        Ok(())
    }
}

/// Finds a volume that is to be read, and refuses one that is on record as half-written.
fn resolve_source(request: &SourceRequest<'_>, name: &str) -> Result<Resolved> {
    let resolved = resolve(name)?;
    check_source(request, name, &resolved)?;
    Ok(resolved)
}

/// Refuses what is on record as half-written, and warns of a snapshot whose origin is.
fn check_source(request: &SourceRequest<'_>, name: &str, resolved: &Resolved) -> Result<()> {
    half_written::refuse(&request.state, resolved, request.called(name))?;
    refuse_suspended_device(resolved, name)?;
    if let Resolved::LogicalVolume(volume) = resolved
        && let Some(warning) = half_written::origin_of(&request.state, volume)?
    {
        request.monitor.warn(&warning);
    }
    Ok(())
}

fn is_snapshot(path: &str) -> bool {
    match find(path) {
        Ok(Found::Thin(volume)) => volume.is_snapshot,
        Ok(Found::Other(Resolved::LogicalVolume(volume))) => volume.thick_snapshot().is_ok(),
        _ => false,
    }
}

/// From one state to another, by whichever record the kernel keeps. Without NEW it is the origin of OLD.
fn increment(request: &SourceRequest<'_>, old: &str, new: Option<&str>) -> Result<SendSource> {
    let volume = match find(old)? {
        Found::Thin(volume) => volume,
        Found::Other(resolved) => return from_snapshot(request, old, resolved, new),
    };
    let origin = volume.origin.as_ref().map(ToString::to_string);
    let Some(new) = new.map(str::to_owned).or(origin) else {
        return Err(Error::Lvm {
            what: old.to_owned(),
            reason: "it is no snapshot, or its origin is gone: name the new state as well"
                .to_owned(),
        });
    };
    match find(&new)? {
        Found::Thin(later) => thin::increment(request, (old, &volume), (&new, &later)),
        Found::Other(_) => Err(Error::Lvm {
            what: new,
            reason: format!(
                "{old} is a thin volume, so NEW must be one, too, and in the same pool"
            ),
        }),
    }
}

/// A header that is right but for base and target.
fn header(
    request: &SourceRequest<'_>,
    source: Source,
    volume_size: u64,
    changes: &ChangeList,
) -> Header {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    Header {
        volume_size,
        base_size: None,
        base: None,
        target: None,
        source,
        granularity: 1,
        created: i64::try_from(now).unwrap_or(0),
        codec: request.compression.to_string(),
        program: crate::PROGRAM.to_owned(),
        planned: Planned {
            extents: changes.len() as u64,
            data_bytes: changes.bytes(Kind::Data),
            zero_bytes: changes.bytes(Kind::Zero),
        },
        list: None,
        run: None,
        undo_of: None,
        undo_for: None,
        from_offset: 0,
        required_features: Vec::new(),
        features: Vec::new(),
    }
}

/// Everything of what was found. `guard` holds what it stands on.
fn whole(
    request: &SourceRequest<'_>,
    new: &str,
    found: Found,
    guard: Option<Guard>,
) -> Result<SendSource> {
    match found {
        Found::Thin(volume) => thin::full_copy(request, new, &volume, guard),
        Found::Other(resolved) => full_copy(request, new, resolved, guard),
    }
}

fn full_copy(
    request: &SourceRequest<'_>,
    new: &str,
    resolved: Resolved,
    guard: Option<Guard>,
) -> Result<SendSource> {
    check_source(request, new, &resolved)?;
    let target = readable_state(request, &resolved)?;
    let data = Volume::open(resolved.path())?;
    // Before its holes are looked for: what fills one meanwhile is a write, too.
    let opened = AsOpened::of(&data)?;
    if matches!(resolved, Resolved::BlockDevice { .. }) {
        warn_of_holders(new, data.identity(), request.monitor);
    }
    let changes = whole_volume(&data, new, request.cancel)?;
    let header = Header {
        target,
        ..header(request, Source::Full, data.size_bytes(), &changes)
    };
    Ok(SendSource {
        wants_moment: wants_moment(request, &header),
        header,
        samples: Samples::default(),
        changes,
        opened,
        data,
        name: new.to_owned(),
        snapshot: snapshot_in(resolved),
        made: None,
        guard,
    })
}

/// What a volume that is read whole holds, if that has an identity. One that cannot be read, or not be believed, is refused.
fn readable_state(request: &SourceRequest<'_>, resolved: &Resolved) -> Result<Option<State>> {
    let Resolved::LogicalVolume(volume) = resolved else {
        return Ok(None);
    };
    refuse_suspended(volume)?;
    warn_if_written(volume, request.monitor)?;
    if let Role::ThickSnapshot(snapshot) = &volume.role {
        trusted(volume, snapshot)?;
    }
    Ok(lasting_state_of(volume))
}

/// Offline: the store is a file or device that nothing writes to, NEW is the origin.
fn from_store(request: &SourceRequest<'_>, store: &str, new: &str) -> Result<SendSource> {
    let resolved = resolve_source(request, new)?;
    let data = Volume::open(resolved.path())?;
    let size = data.size_bytes();
    let base_size = request.base_size.unwrap_or(size);
    if base_size > size {
        return Err(Error::Usage(format!(
            "--base-size is {base_size} bytes, and {new} has only {size}: a volume with snapshots does not \
             become smaller"
        )));
    }
    // Half a table would be a short list.
    half_written::refuse_path(&request.state, Path::new(store), request.called(store))?;
    let table = read_table(&Volume::open(store)?, store, base_size)?;
    let changes = with_tail(table.changes, base_size, size);
    let samples = Samples::take(&data, &changes)
        .map_err(|error| Error::io(format!("cannot read sampled blocks of {new}"), error))?;
    let header = Header {
        base_size: Some(base_size),
        granularity: table.chunk_bytes,
        ..header(request, Source::Cow, size, &changes)
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

fn from_snapshot(
    request: &SourceRequest<'_>,
    old: &str,
    resolved: Resolved,
    new: Option<&str>,
) -> Result<SendSource> {
    check_source(request, old, &resolved)?;
    let Resolved::LogicalVolume(base) = resolved else {
        return Err(Error::Lvm {
            what: old.to_owned(),
            reason: "it is not a logical volume, so there is no record of what changed since; \
                     to read an exception store from a file or device, write --from cow:PATH"
                .to_owned(),
        });
    };
    let snapshot = base.thick_snapshot()?;
    trusted(&base, snapshot)?;
    refuse_suspended(&base)?;
    let new_volume = match new {
        Some(new) => resolve_source(request, new)?,
        None => resolve_source(request, &snapshot.origin.path.to_string_lossy())?,
    };
    let new_name = new.map_or_else(|| snapshot.origin.name.to_string(), str::to_owned);
    let Resolved::LogicalVolume(target) = &new_volume else {
        return Err(not_related(&base, snapshot, &new_name));
    };

    refuse_suspended(target)?;

    // NEW exists before OLD's table is read: what is written from here on does not concern NEW.
    let mut changes = table_of(&base, snapshot)?.changes;
    match &target.role {
        Role::ThickOrigin { real, merging } if *real == snapshot.real => {
            if *merging {
                return Err(lost(&new_name, "a snapshot is being merged into it"));
            }
            warn_if_written(target, request.monitor)?;
        }
        Role::ThickSnapshot(later) if later.real == snapshot.real => {
            if target.uuid == base.uuid {
                return Err(Error::Usage(format!(
                    "{old} and {new_name} are the same snapshot"
                )));
            }
            trusted(target, later)?;
            changes = changes.union(table_of(target, later)?.changes);
        }
        _ => return Err(not_related(&base, snapshot, &new_name)),
    }
    let (base_size, size) = (snapshot.origin_size_bytes, target.size_bytes);
    let changes = with_tail(changes, base_size, size);
    let changes = changes.clip(size);

    let samples = Volume::open(&base.path).and_then(|volume| {
        Samples::take(&volume, &changes)
            .map_err(|error| Error::io(format!("cannot read sampled blocks of {old}"), error))
    });
    let samples = samples.map_err(|error| explain(&base, error))?;
    let state = lasting_state_of(target);
    let header = Header {
        base_size: Some(base_size),
        base: state_of(&base),
        run: match &state {
            Some(_) => unwritten_since(target),
            // There is one origin, but any number of snapshots that were written to.
            None => matches!(target.role, Role::ThickOrigin { .. })
                .then(|| format!("{ORIGIN_RUN}{}", run_id())),
        },
        target: state,
        granularity: snapshot.chunk_bytes,
        ..header(request, Source::Cow, size, &changes)
    };
    let data = Volume::open(&target.path)?;
    Ok(SendSource {
        wants_moment: wants_moment(request, &header),
        header,
        samples,
        changes,
        opened: AsOpened::of(&data)?,
        data,
        name: new_name,
        snapshot: snapshot_in(new_volume),
        made: None,
        guard: None,
    })
}

/// The kernel records nothing past the size that a snapshot was made with: all of it may have changed.
fn with_tail(changes: ChangeList, base_size: u64, size: u64) -> ChangeList {
    let Some(extent) = Extent::from_range(base_size, size) else {
        return changes;
    };
    let kind = Kind::Data;
    changes.union([Change { extent, kind }].into_iter().collect())
}

/// An I/O error from a snapshot that is not in order any more is that, and nothing else.
pub(crate) fn explain(snapshot: &LogicalVolume, error: Error) -> Error {
    if !matches!(error, Error::Io { .. }) {
        return error;
    }
    match dm::recheck(snapshot).map(SnapshotStatus::why_untrusted) {
        Ok(Some(reason)) => lost(&snapshot.name.to_string(), reason),
        _ => error,
    }
}

/// A read of a suspended device would wait until somebody resumes it.
pub(crate) fn refuse_suspended(volume: &LogicalVolume) -> Result<()> {
    if !volume.suspended {
        return Ok(());
    }
    Err(Error::Lvm {
        what: volume.name.to_string(),
        reason: format!(
            "it is suspended, so reading it would wait; another LVM command may be at work. If none is: \
             dmsetup resume {}",
            volume.path.display()
        ),
    })
}

/// The same of a mapped device that is no logical volume, such as an era device or LUKS.
pub(crate) fn refuse_suspended_device(resolved: &Resolved, name: &str) -> Result<()> {
    let Resolved::BlockDevice(path) = resolved else {
        return Ok(());
    };
    let Ok(VolumeIdentity::Block(device)) = VolumeIdentity::of_path(path) else {
        return Ok(());
    };
    let state = format!("/sys/dev/block/{device}/dm/suspended");
    if fs::read_to_string(state).is_ok_and(|state| state.trim() == "1") {
        return Err(Error::refused(
            name,
            "it is suspended, so whatever reads or writes it would wait; another program may be at work on it",
            format!(
                "Wait for that. If there is none: dmsetup resume {}",
                path.display()
            ),
        ));
    }
    Ok(())
}

pub(crate) fn snapshot_in(resolved: Resolved) -> Option<LogicalVolume> {
    match resolved {
        Resolved::LogicalVolume(volume) if volume.thick_snapshot().is_ok() => Some(*volume),
        _ => None,
    }
}

/// The identity of a state that stays what it is: a snapshot. What is live has none.
fn state_of(volume: &LogicalVolume) -> Option<State> {
    matches!(volume.role, Role::ThickSnapshot(_)).then(|| State {
        id: format!("lvm:{}", volume.uuid),
        name: volume.name.to_string(),
    })
}

/// The same for what is read now. A snapshot that somebody writes to holds one thing today and another tomorrow, under
/// one UUID: what was sent of it must not be taken for what it holds then.
fn lasting_state_of(volume: &LogicalVolume) -> Option<State> {
    state_of(volume).filter(|_| !was_written(volume.device))
}

/// The list of an increment may grow while it is cut, and tells nothing of writes to the snapshot itself: the kernel counts
/// those, but only while it stays active. Nobody writes to one that is read-only. Where the kernel does not tell one time
/// that it is active from another, each run is one of its own.
fn unwritten_since(snapshot: &LogicalVolume) -> Option<String> {
    (!snapshot.read_only).then(|| activation(snapshot.device).unwrap_or_else(run_id))
}

/// Reads a live snapshot's table and looks at its status once more.
fn table_of(volume: &LogicalVolume, snapshot: &ThickSnapshot) -> Result<ExceptionTable> {
    let name = snapshot.store.display().to_string();
    let store = Volume::open(&snapshot.store)?;
    let table = read_table(&store, &name, snapshot.origin_size_bytes);
    // A snapshot that failed meanwhile may have given us half a table or an error that hides the reason.
    if let Some(reason) = dm::recheck(volume)?.why_untrusted() {
        return Err(lost(&volume.name.to_string(), reason));
    }
    let table = table?;
    if table.duplicates > 0 {
        tracing::warn!(
            "{name}: {} chunks have more than one exception",
            table.duplicates
        );
    }
    tracing::info!(
        "{}: {} exceptions in {} areas, chunks of {} bytes",
        volume.name,
        table.exceptions,
        table.areas,
        table.chunk_bytes
    );
    Ok(table)
}

fn read_table(store: &Volume, name: &str, origin_size_bytes: u64) -> Result<ExceptionTable> {
    read_exceptions(store, origin_size_bytes).map_err(|source| Error::Store {
        store: name.to_owned(),
        source,
    })
}

pub(crate) fn trusted(volume: &LogicalVolume, snapshot: &ThickSnapshot) -> Result<()> {
    match snapshot.status.why_untrusted() {
        Some(reason) => Err(lost(&volume.name.to_string(), reason)),
        None => Ok(()),
    }
}

fn lost(volume: &str, reason: &str) -> Error {
    Error::TrackingLost {
        volume: volume.to_owned(),
        reason: reason.to_owned(),
    }
}

fn not_related(base: &LogicalVolume, snapshot: &ThickSnapshot, new: &str) -> Error {
    Error::Lvm {
        what: new.to_owned(),
        reason: format!(
            "{} is a snapshot of {}, so NEW must be that volume or another snapshot of it",
            base.name, snapshot.origin.name
        ),
    }
}

/// Whether what is read has to be one moment.
fn wants_moment(request: &SourceRequest<'_>, header: &Header) -> bool {
    request.snapshot.is_some() || header.target.is_some()
}

/// Of a device that is no logical volume those are known that stand on it.
fn warn_of_holders(name: &str, volume: VolumeIdentity, monitor: &dyn Monitor) {
    if let Some(writers) = writers_of(volume) {
        monitor.warn(&format!(
            "{name}: {writers}; what is written while it is sent may or may not be in the copy. \
             Stop the writers, or send from a snapshot"
        ));
    }
}

/// Data that changes while it is read belongs to no state at all: say so.
fn warn_if_written(volume: &LogicalVolume, monitor: &dyn Monitor) -> Result<()> {
    if matches!(volume.role, Role::ThickSnapshot(_)) || volume.read_only {
        return Ok(());
    }
    let openers = writers_open(volume.device)?;
    if openers.may_write() {
        monitor.warn(&format!(
            "{}: {openers}; what is written while it is sent may or may not be in the copy. \
             Stop the writers, or send from a snapshot",
            volume.name
        ));
    }
    Ok(())
}
