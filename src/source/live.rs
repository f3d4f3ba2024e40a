//! A live volume as a source: a snapshot of it is made, read, and removed again.
//!
//! Guarantees: what is read is one moment of the volume, that at which LVM made the snapshot; a snapshot that could not
//! hold all that was written meanwhile is an error, never a copy. The volume itself is never read, nor is it ever the
//! destination. It is removed whatever happens, see [`crate::hold::temporary`], and after everything that reads it was
//! closed. A state that is gone when the run is done is no base for anything, so it gets no name.

use super::{
    Found, SendSource, SourceRequest, check_source, explain, find, refuse_suspended, thin, whole,
};
use crate::delta::header::State;
use crate::dm;
use crate::dm::device::DeviceMapper;
use crate::dm::name::LvName;
use crate::dm::openers::{Openers, writers_open};
use crate::dm::resolve::{Resolved, active_volume};
use crate::dm::snapshot::{LogicalVolume, Role};
use crate::dm::table::SnapshotStatus;
use crate::dm::temporary::chosen_name;
use crate::dm::thin::{ThinVolume, thin_volume};
use crate::error::{Error, Result};
use crate::hold::client::{Guard, Snapshot};
use crate::hold::{record, temporary};
use crate::record::half_written;
use crate::units::Bytes;
use crate::volume::VolumeIdentity;

/// Asked before a snapshot is made: of which volume, and under which name if it is to be kept.
pub type Admit<'a> = &'a dyn Fn(&LvName, Option<&LvName>) -> Result<()>;

/// Hears which state will be sent.
pub type Named<'a> = &'a dyn Fn(&State) -> Result<()>;

/// How a live volume is to be read.
#[derive(Clone, Copy, Default)]
pub struct SnapshotWish<'a> {
    /// Of a thick one: its size. `None`: as large as is likely to be enough.
    pub size_bytes: Option<u64>,
    /// Keep it under this name when all is done.
    pub keep: Option<&'a str>,
    /// Whoever may say no.
    pub admit: Option<Admit<'a>>,
    /// Hears that it was made, or could not be, after it was admitted.
    pub taken: Option<&'a dyn Fn() -> Result<()>>,
    /// Of a volume that dm-era tracks: hears which state will be sent, before anything is.
    pub named: Option<Named<'a>>,
    /// Find out whether one would be made, and make none.
    pub only_look: bool,
    /// Only of a volume that dm-era tracks; others are read as they are.
    pub only_tracked: bool,
}

/// The snapshot that a source is read from, which was made for it.
#[derive(Debug)]
pub(super) struct Made {
    /// The live volume.
    origin: LvName,
    /// LVM's UUID of it.
    origin_uuid: String,
    /// Its device.
    identity: Option<VolumeIdentity>,
    snapshot: Snapshot,
    kept: bool,
}

/// What a snapshot is to be made of.
struct Live {
    name: LvName,
    uuid: String,
    identity: Option<VolumeIdentity>,
}

/// Everything of what `new` names, from a snapshot if that is live.
pub(super) fn full_copy(
    request: &SourceRequest<'_>,
    new: &str,
    wish: SnapshotWish<'_>,
) -> Result<SendSource> {
    remove_left(request);
    let found = find(new)?;
    let Some(live) = Live::of(request, new, &found, wish)? else {
        return match wish.keep {
            Some(_) => Err(nothing_to_keep(new, &found)),
            None => whole(request, new, found, None),
        };
    };
    let kept = wish.keep.map(|text| chosen_name(&live.name, text));
    let kept = kept.transpose()?;
    if let Some(admit) = wish.admit {
        admit(&live.name, kept.as_ref())?;
    }
    if wish.only_look {
        return whole(request, new, found, None);
    }
    let (made, guard) = live.make(request, wish)?;
    let name = if made.kept {
        made.snapshot.name.to_string()
    } else {
        new.to_owned()
    };
    let found = made.find()?;
    let mut source = whole(request, &name, found, Some(guard))
        .map_err(|error| made.explain_while_opened(error))?;
    if !made.kept {
        (source.header.target, source.header.run) = (None::<State>, None);
    }
    source.made = Some(made);
    Ok(source)
}

/// What runs that were killed have left takes room that this one may need.
fn remove_left(request: &SourceRequest<'_>) {
    if record::snapshots(&request.state).is_empty() {
        return;
    }
    if let Ok(dm) = DeviceMapper::open() {
        temporary::sweep(&dm, &request.state, &mut |text| {
            request.monitor.remark(text);
        });
    }
}

/// A snapshot of `volume`, made to be read; `None` where nobody can write to it. What it is, is in the other volume.
pub(super) fn snapshot_of(
    request: &SourceRequest<'_>,
    volume: &LogicalVolume,
    wish: SnapshotWish<'_>,
) -> Result<Option<(Made, LogicalVolume, Guard)>> {
    remove_left(request);
    let name = volume.name.to_string();
    let found = find(&format!("/dev/{name}"))?;
    let Some(live) = Live::of(request, &name, &found, wish)? else {
        return Ok(None);
    };
    if live.uuid != volume.uuid {
        return Err(Error::Lvm {
            what: name,
            reason: "another LVM command replaced it just now; run this again".to_owned(),
        });
    }
    if let Some(admit) = wish.admit {
        admit(&live.name, None)?;
    }
    let (made, guard) = live.make(request, wish)?;
    let snapshot = match made.find()? {
        Found::Thin(thin) => thin.active.map(|active| *active),
        Found::Other(Resolved::LogicalVolume(volume)) => Some(*volume),
        Found::Other(_) => None,
    };
    let snapshot = snapshot.ok_or_else(|| Error::Lvm {
        what: made.snapshot.name.to_string(),
        reason: "LVM has made this snapshot, and did not activate it".to_owned(),
    })?;
    Ok(Some((made, snapshot, guard)))
}

impl Live {
    fn make(self, request: &SourceRequest<'_>, wish: SnapshotWish<'_>) -> Result<(Made, Guard)> {
        let made = self.try_to_make(request, wish);
        let heard = wish.taken.map_or(Ok(()), |taken| taken());
        made.and_then(|made| heard.map(|()| made))
    }

    fn try_to_make(
        self,
        request: &SourceRequest<'_>,
        wish: SnapshotWish<'_>,
    ) -> Result<(Made, Guard)> {
        let mut guard = Guard::start(&request.state, request.cancel)?;
        let chosen = (wish.keep, wish.size_bytes);
        let snapshot = guard.snapshot(&self.name, &self.uuid, chosen, request.monitor)?;
        let made = Made {
            origin: self.name,
            origin_uuid: self.uuid,
            identity: self.identity,
            snapshot,
            kept: wish.keep.is_some(),
        };
        request.monitor.note(&made.told());
        Ok((made, guard))
    }

    /// `None` where there is no need for a snapshot, or none can be made.
    fn of(
        request: &SourceRequest<'_>,
        name: &str,
        found: &Found,
        wish: SnapshotWish<'_>,
    ) -> Result<Option<Self>> {
        let openers = |volume: &LogicalVolume| writers_open(volume.device);
        let live = match found {
            Found::Thin(thin) => {
                let openers = thin.active.as_deref().map(openers).transpose()?;
                if wish.keep.is_none() && !is_live_thin(thin, openers.as_ref()) {
                    return Ok(None);
                }
                half_written::refuse_logical_volume(
                    &request.state,
                    &thin.uuid,
                    request.called(name),
                )?;
                thin::refuse_trouble(thin, name)?;
                let active = thin.active.as_deref();
                Self {
                    name: thin.name.clone(),
                    uuid: thin.uuid.clone(),
                    identity: active.map(|volume| VolumeIdentity::Block(volume.device)),
                }
            }
            Found::Other(Resolved::LogicalVolume(volume)) if can_be_origin(&volume.role) => {
                if wish.keep.is_none() && !is_live(volume.read_only, &openers(volume)?) {
                    return Ok(None);
                }
                let resolved = Resolved::LogicalVolume(volume.clone());
                check_source(request, name, &resolved)?;
                refuse_merging(volume)?;
                Self {
                    name: volume.name.clone(),
                    uuid: volume.uuid.clone(),
                    identity: Some(VolumeIdentity::Block(volume.device)),
                }
            }
            Found::Other(_) => return Ok(None),
        };
        // LVM would wait for it.
        let active = match found {
            Found::Thin(thin) => thin.active.as_deref(),
            Found::Other(Resolved::LogicalVolume(volume)) => Some(&**volume),
            Found::Other(_) => None,
        };
        active.map_or(Ok(()), refuse_suspended)?;
        Ok(Some(live))
    }
}

/// Of these classic snapshots are made. There is none of a snapshot.
fn can_be_origin(role: &Role) -> bool {
    matches!(role, Role::Plain | Role::ThickOrigin { .. })
}

/// What is writable is live, whether somebody has it open by now or will in a moment. Who has opened it before it was made
/// read-only may still write.
fn is_live(read_only: bool, openers: &Openers) -> bool {
    !read_only || openers.may_write()
}

/// A thin snapshot is a moment already, unless somebody uses it as a volume of its own.
fn is_live_thin(thin: &ThinVolume, openers: Option<&Openers>) -> bool {
    let (Some(active), Some(openers)) = (&thin.active, openers) else {
        // Nobody writes to what has no device. It is activated read-only.
        return false;
    };
    if thin.is_snapshot {
        // Another run that reads it has made its device read-only.
        return !thin.read_only && !active.read_only && openers.may_write();
    }
    is_live(thin.read_only || active.read_only, openers)
}

fn refuse_merging(volume: &LogicalVolume) -> Result<()> {
    if !matches!(volume.role, Role::ThickOrigin { merging: true, .. }) {
        return Ok(());
    }
    Err(Error::refused(
        volume.name.to_string(),
        "a snapshot is being merged into it, and until that is done LVM makes no other to read from",
        "Wait until the merge is done (lvs shows how far it is).",
    ))
}

fn nothing_to_keep(name: &str, found: &Found) -> Error {
    let what = match found {
        Found::Other(Resolved::File(_)) => "a file",
        Found::Other(Resolved::BlockDevice(_)) => "no logical volume",
        Found::Other(Resolved::LogicalVolume(volume)) if volume.thick_snapshot().is_ok() => {
            "a snapshot already"
        }
        _ => "a volume that LVM makes no snapshots of",
    };
    Error::Usage(format!(
        "--keep-snapshot: {name} is {what}, so there is no snapshot of it to be made and kept"
    ))
}

impl Made {
    /// The device, and what it is. It is there: LVM returns when it is.
    fn find(&self) -> Result<Found> {
        let name = &self.snapshot.name;
        let is_it = |volume: &LogicalVolume| volume.uuid == self.snapshot.uuid;
        let volume = active_volume(name)?.filter(is_it);
        let volume = volume.ok_or_else(|| Error::Lvm {
            what: name.to_string(),
            reason: "LVM has made this snapshot, and did not activate it (see activation/volume_list in lvm.conf)"
                .to_owned(),
        })?;
        let resolved = Ok(Resolved::LogicalVolume(Box::new(volume)));
        let found = match thin_volume(&name.to_string(), &resolved)? {
            Some(volume) => Found::Thin(volume),
            None => Found::Other(resolved?),
        };
        // LVM was given a name, and names can change hands.
        let is_of_it = match &found {
            Found::Thin(volume) => volume.origin.as_ref() == Some(&self.origin),
            Found::Other(Resolved::LogicalVolume(volume)) => volume
                .thick_snapshot()
                .is_ok_and(|snapshot| snapshot.origin.uuid == self.origin_uuid),
            Found::Other(_) => false,
        };
        if is_of_it {
            return Ok(found);
        }
        Err(Error::Lvm {
            what: self.origin.to_string(),
            reason: format!("{name} was made, and is no snapshot of it; run this again"),
        })
    }

    /// What it is called.
    pub(super) fn name(&self) -> &LvName {
        &self.snapshot.name
    }

    /// What it is a snapshot of.
    pub(super) fn origin(&self) -> &LvName {
        &self.origin
    }

    fn told(&self) -> String {
        let room = match self.snapshot.store_bytes {
            Some(bytes) => format!(", with room for {} of changes", Bytes(bytes)),
            None => String::new(),
        };
        format!("{}: read from {}{room}", self.origin, self.snapshot.name)
    }

    /// The live volume, which must not be written to meanwhile.
    pub(super) fn identity(&self) -> Option<VolumeIdentity> {
        self.identity
    }

    /// It stays when the run is done.
    pub(super) fn is_kept(&self) -> bool {
        self.kept
    }

    /// After the last read: a snapshot that is lost may have been so before.
    pub(super) fn check(&self, volume: &LogicalVolume) -> Result<()> {
        match dm::recheck(volume)?.why_untrusted() {
            Some(reason) => Err(self.lost(reason)),
            None => Ok(()),
        }
    }

    /// The reason behind an error while it was read.
    pub(super) fn explain(&self, volume: &LogicalVolume, error: Error) -> Error {
        match dm::recheck(volume).map(SnapshotStatus::why_untrusted) {
            Ok(Some(reason)) if matches!(error, Error::Io { .. }) => self.lost(reason),
            _ => explain(volume, error),
        }
    }

    /// One that was lost before it was open.
    fn explain_while_opened(&self, error: Error) -> Error {
        match error {
            Error::TrackingLost { reason, .. } => self.lost(&reason),
            error => error,
        }
    }

    fn lost(&self, reason: &str) -> Error {
        let room = self.snapshot.store_bytes.unwrap_or(0);
        Error::Lvm {
            what: self.origin.to_string(),
            reason: format!(
                "the snapshot that it was read from is lost: {reason}. It had room for {} of what was written \
                 meanwhile\nMake it larger: --snapshot-size {}. Or run it when less is written",
                Bytes(room),
                room.saturating_mul(4)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn openers(writable: bool) -> Openers {
        Openers {
            others: u32::from(writable),
            ..Openers::default()
        }
    }

    fn thin(is_snapshot: bool, read_only: bool, device_read_only: bool) -> ThinVolume {
        let name = LvName::new("vg", "data").unwrap();
        let device = "254:7".parse().unwrap();
        let active = LogicalVolume {
            name: name.clone(),
            uuid: "u".into(),
            path: "/dev/vg/data".into(),
            device,
            size_bytes: 1,
            role: Role::Thin {
                pool: device,
                device_id: 1,
                block_bytes: 65536,
                metadata: device,
                external_origin: None,
            },
            open_count: 0,
            read_only: device_read_only,
            suspended: false,
        };
        ThinVolume {
            name,
            uuid: "u".into(),
            pool: "pool".into(),
            device_id: 1,
            size_bytes: 1,
            read_only,
            is_snapshot,
            origin: None,
            group_has_external_origins: false,
            active: Some(Box::new(active)),
        }
    }

    #[test]
    fn what_somebody_may_write_to_is_live() {
        for (read_only, open, live) in [
            (false, false, true),
            (false, true, true),
            (true, true, true),
            (true, false, false),
        ] {
            assert_eq!(is_live(read_only, &openers(open)), live);
            let volume = thin(false, read_only, read_only);
            assert_eq!(is_live_thin(&volume, Some(&openers(open))), live);
        }
    }

    #[test]
    fn a_thin_snapshot_is_live_only_where_somebody_uses_it_as_a_volume() {
        let live = |read_only, device, open| {
            is_live_thin(&thin(true, read_only, device), Some(&openers(open)))
        };
        assert!(live(false, false, true));
        assert!(!live(false, false, false));
        assert!(!live(true, true, true) && !live(false, true, true));
        let inactive = ThinVolume {
            active: None,
            ..thin(false, false, false)
        };
        assert!(!is_live_thin(&inactive, None));
    }
}
