//! A snapshot of a volume that holds what deltas would make of it, until LVM merges it into the volume or removes it.
//!
//! Guarantees: it has its tags from the moment in which it is there, and only a snapshot of that volume with both of them is
//! ever merged or removed, by its UUID. LVM itself keeps it, and a merge that has begun, over a reboot.

use super::device::DeviceMapper;
use super::lvm::{LvRow, lvm_command, run, volumes_of};
use super::name::LvName;
use super::pool_status::parse_mapped_bytes;
use super::resolve::active_volume;
use super::snapshot::{LogicalVolume, Role};
use super::table::{SnapshotStatus, parse_snapshot_status};
use super::temporary::{Room, room_of, useful_bytes};
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::units::{Bytes, sectors_to_bytes};

/// Carried by all of them, for people.
const TAG: &str = "lvmsync_preview";
/// Carried once all deltas are on it: it is somebody's, whatever records there are.
const WHOLE_TAG: &str = "lvmsync_preview_whole";
/// Begins the tag that tells of which volume: one that is made into another's snapshot, or gets its name, is none of it.
const OF_TAG: &str = "lvmsync_preview_of_";
/// Small, as changes are: where a chunk is written in part the rest of it is copied.
pub const CHUNK_BYTES: u64 = 4096;
/// For what a mount or a check of the preview writes, where there is so much.
const ROOM_BESIDE_BYTES: u64 = 64 << 20;

/// One that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// Its name.
    pub name: LvName,
    /// LVM's UUID of it.
    pub uuid: String,
    /// LVM was told to merge it: that goes on, or begins when the volume is activated next.
    pub merges: bool,
    /// All deltas were put on it.
    pub is_whole: bool,
    /// Not so for a moment while LVM makes or removes a thick one, and after a power cut in that moment.
    pub is_snapshot: bool,
}

/// The preview of `origin`, which has this UUID, if there is one.
pub fn of(origin: &LvName, uuid: &str) -> Result<Option<Preview>> {
    Ok(in_rows(&volumes_of(origin.vg())?, origin, uuid))
}

/// The same, from the rows: pure.
fn in_rows(rows: &[LvRow], origin: &LvName, uuid: &str) -> Option<Preview> {
    let wanted = [TAG.to_owned(), format!("{OF_TAG}{uuid}")];
    let has = |row: &LvRow, tag: &str| row.lv_tags.split(',').any(|found| found == tag);
    let is_it = |row: &&LvRow| {
        let is_of_origin = match row.origin() {
            Some(of) => of == origin.lv(),
            None => row.segtype != "thin",
        };
        is_of_origin && wanted.iter().all(|tag| has(row, tag))
    };
    let row = rows.iter().find(is_it)?;
    Some(Preview {
        name: LvName::new(origin.vg(), row.name())?,
        uuid: row.lv_uuid.clone(),
        // The first letter of a snapshot that is being merged.
        merges: row.lv_attr.starts_with('S'),
        is_whole: has(row, WHOLE_TAG),
        is_snapshot: row.origin().is_some(),
    })
}

/// How many units of one size deltas touch: what a snapshot has to have room for.
#[derive(Clone, Debug)]
pub struct Touched {
    unit_bytes: u64,
    /// Up to here extents were counted.
    end: u64,
    units: u64,
}

impl Touched {
    /// In units of this size.
    pub fn new(unit_bytes: u64) -> Self {
        Self {
            unit_bytes: unit_bytes.max(1),
            end: 0,
            units: 0,
        }
    }

    /// Counts an extent. One that comes before what was counted already may count twice, and never too little.
    pub fn note(&mut self, extent: Extent) {
        if extent.offset() < self.end {
            self.end = 0;
        }
        let counted = self.end.div_ceil(self.unit_bytes);
        let first = (extent.offset() / self.unit_bytes).max(counted);
        let end = extent.end().div_ceil(self.unit_bytes);
        self.units = self.units.saturating_add(end.saturating_sub(first));
        self.end = extent.end();
    }

    /// From now on what comes is of the next delta.
    pub fn next_delta(&mut self) {
        self.end = 0;
    }

    /// What that takes.
    pub fn bytes(&self) -> u64 {
        self.units.saturating_mul(self.unit_bytes)
    }
}

/// The exception store of a thick one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// Its room.
    pub room: StoreRoom,
}

/// How much room that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreRoom {
    /// As the user says.
    Bytes(u64),
    /// For chunks of this many bytes in all, and something beside where there is room for it.
    Needed(u64),
}

/// Extents for that.
fn extents(origin: &LvName, origin_bytes: u64, store: Store, room: Room) -> Result<u64> {
    let (least, wanted) = match store.room {
        StoreRoom::Bytes(bytes) => (bytes, bytes),
        StoreRoom::Needed(bytes) => {
            // Sixteen bytes of the table for each chunk, its header, and a chunk of the table that is not full.
            let chunk = store.chunk_bytes.max(16);
            let with_table = bytes
                .saturating_add(bytes / (chunk / 16))
                .saturating_add(4 * chunk);
            (with_table, with_table.saturating_add(ROOM_BESIDE_BYTES))
        }
    };
    // Chunks that are larger than those that this is reckoned with have a shorter table, and may end past the volume.
    let most = useful_bytes(origin_bytes).saturating_add(4 * store.chunk_bytes);
    let in_extents = |bytes: u64| {
        let bytes = bytes.min(most).max(1);
        bytes.div_ceil(room.extent_bytes.max(1))
    };
    let (least, wanted) = (in_extents(least), in_extents(wanted));
    if least > room.free_extents {
        let vg = origin.vg();
        let shown = |extents: u64| Bytes(extents.saturating_mul(room.extent_bytes));
        return Err(Error::refused(
            origin.to_string(),
            format!(
                "there is no room for a preview: volume group {vg} has {} free, and {} are needed",
                shown(room.free_extents),
                shown(least)
            ),
            format!(
                "Make room (lvremove, vgextend {vg} DISK). lvmsync view DELTA --base {origin} needs none, and apply \
                 --undo FILE keeps a way back."
            ),
        ));
    }
    Ok(wanted.min(room.free_extents))
}

/// An error where it could not be made.
pub fn check(origin: &LvName, origin_bytes: u64, store: Option<Store>) -> Result<LvName> {
    let name = name_of(origin)?;
    if let Some(row) = volumes_of(origin.vg())?
        .iter()
        .find(|row| row.name() == name.lv())
    {
        return Err(Error::refused(
            name.to_string(),
            format!(
                "there is a volume of that name already, and it is no preview of {origin} ({})",
                row.lv_attr
            ),
            format!("Give it another name: lvrename {name} NEW, or remove it if it is not needed."),
        ));
    }
    if let Some(store) = store {
        extents(origin, origin_bytes, store, room_of(origin.vg())?)?;
    }
    Ok(name)
}

fn name_of(origin: &LvName) -> Result<LvName> {
    let name = LvName::new(origin.vg(), &format!("{}-preview", origin.lv()));
    name.ok_or_else(|| Error::Lvm {
        what: origin.to_string(),
        reason: "its name is too long for one with `-preview` behind it".to_owned(),
    })
}

/// Makes it, active and writable. `store` is the room of a thick one; `None` for a thin one.
pub fn make(
    origin: &LvName,
    uuid: &str,
    origin_bytes: u64,
    store: Option<Store>,
) -> Result<Preview> {
    let name = name_of(origin)?;
    let of_tag = format!("{OF_TAG}{uuid}");
    let mut command = lvm_command("lvcreate");
    command.args(["-qq", "--yes", "--snapshot"]);
    command.args(["--addtag", TAG, "--addtag", &of_tag]);
    if let Some(store) = store {
        let extents = extents(origin, origin_bytes, store, room_of(origin.vg())?)?;
        command.args(["--extents", &extents.to_string()]);
        command.args(["--chunksize", &format!("{}b", store.chunk_bytes)]);
    } else {
        // Active at once, and after a reboot: LVM would not activate a thin snapshot otherwise.
        command.args(["--setactivationskip", "n"]);
    }
    command.args(["--name", name.lv(), "--", &origin.to_string()]);
    run(command, "lvcreate", &origin.to_string())?;
    of(origin, uuid)?.ok_or_else(|| Error::Lvm {
        what: name.to_string(),
        reason: "LVM made it, and shows none of this name".to_owned(),
    })
}

/// Notes on it that all deltas are there.
pub fn is_whole_now(preview: &Preview) -> Result<()> {
    let mut command = lvm_command("lvchange");
    command.args([
        "-qq",
        "--addtag",
        WHOLE_TAG,
        "--",
        &preview.name.to_string(),
    ]);
    run(command, "lvchange", &preview.name.to_string()).map(|_| ())
}

/// Has LVM merge it. A volume that is in use is merged when it is activated next; else a thin one is merged when this
/// returns, and a thick one by the kernel, which may take a while; LVM then looks each second whether it is done.
pub fn merge(preview: &Preview) -> Result<()> {
    let mut command = lvm_command("lvconvert");
    command.args(["-qq", "--yes", "--merge", "--background"]);
    command.args(["--interval", "1", "--", &preview.name.to_string()]);
    run(command, "lvconvert", &preview.name.to_string()).map(|_| ())
}

/// Has LVM look how far a merge is, each second, until it is done; it is done with only when LVM has looked. After a reboot
/// nobody may be looking.
pub fn poll(origin: &LvName) -> Result<()> {
    let mut command = lvm_command("lvchange");
    command.args(["-qq", "--config", "activation { polling_interval = 1 }"]);
    command.args(["--poll", "y", "--", &origin.to_string()]);
    run(command, "lvchange", &origin.to_string()).map(|_| ())
}

/// What the kernel says of a snapshot that LVM was told to merge into `origin`: of a thick one, while it is active. One that
/// overflowed before the volume was activated anew is `Invalid`, and nothing of it is ever merged.
pub fn merge_status(origin: &LvName, preview: &LvName) -> Result<Option<SnapshotStatus>> {
    let thick = |name| {
        let volume = active_volume(name)?;
        Ok::<_, Error>(volume.filter(|volume| {
            matches!(
                volume.role,
                Role::ThickOrigin { merging: true, .. } | Role::ThickSnapshot(_)
            )
        }))
    };
    let volume = match thick(origin)? {
        None => thick(preview)?,
        merging => merging,
    };
    let Some(volume) = volume else {
        return Ok(None);
    };
    let lines = DeviceMapper::open()?.status(volume.device)?;
    let words = lines.first().map_or("", |line| line.params.as_str());
    let status = parse_snapshot_status(words).map_err(|error| Error::Lvm {
        what: volume.name.to_string(),
        reason: error.to_string(),
    })?;
    Ok(Some(status))
}

/// Removes it.
pub fn discard(preview: &Preview) -> Result<()> {
    let mut command = lvm_command("lvremove");
    // Of what has the tag and the UUID, and nothing else, whatever has happened since the look.
    let select = format!("lv_tags={{\"{TAG}\"}} && lv_uuid=\"{}\"", preview.uuid);
    let vg = preview.name.vg();
    command.args(["-qq", "--yes", "--select", &select, "--", vg]);
    run(command, "lvremove", &preview.name.to_string()).map(|_| ())
}

/// How much of its own a snapshot holds: a first write anywhere makes that more.
pub fn used_bytes(volume: &LogicalVolume) -> Result<Option<u64>> {
    Ok(match &volume.role {
        Role::ThickSnapshot(snapshot) => match snapshot.status {
            SnapshotStatus::Valid { used_sectors, .. } => sectors_to_bytes(used_sectors),
            _ => None,
        },
        Role::Thin { .. } => {
            let lines = DeviceMapper::open()?.status(volume.device)?;
            parse_mapped_bytes(lines.first().map_or("", |line| line.params.as_str()))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn only_a_snapshot_of_this_volume_with_both_tags_is_one() {
        let row = |name: &str, origin: &str, tags: &str, attr: &str| LvRow {
            lv_name: name.into(),
            lv_uuid: format!("u-{name}"),
            lv_attr: attr.into(),
            origin: origin.into(),
            lv_tags: tags.into(),
            ..LvRow::default()
        };
        let data = LvName::parse("vg/data").unwrap();
        let both = format!("mine,{TAG},{OF_TAG}a-b");
        for other in [
            row("s1", "data", "", "swi-a-s---"),
            row("other-preview", "other", &both, "swi-a-s---"),
            row("data-preview", "data", TAG, "swi-a-s---"),
            row("data-preview", "data", &format!("{TAG},{OF_TAG}a-bc"), ""),
            LvRow {
                segtype: "thin".into(),
                ..row("data-preview", "", &both, "Vwi-a-tz--")
            },
        ] {
            assert_eq!(in_rows(&[other], &data, "a-b"), None);
        }
        let found = in_rows(&[row("look", "data", &both, "swi-a-s---")], &data, "a-b").unwrap();
        assert_eq!(found.name.to_string(), "vg/look");
        assert!(!found.merges && found.is_snapshot);
        let half = in_rows(
            &[row("data-preview", "", &both, "-wi-a-----")],
            &data,
            "a-b",
        );
        assert!(!half.unwrap().is_snapshot);
        // What merges is hidden.
        let hidden = row("[data-preview]", "[data]", &both, "Swi-a-s---");
        let found = in_rows(&[hidden], &data, "a-b").unwrap();
        assert!(found.merges && found.name.to_string() == "vg/data-preview");
    }

    #[test]
    fn units_are_counted_once_and_never_too_few() {
        let count = |extents: &[(u64, u64)]| {
            let mut touched = Touched::new(10);
            for (offset, length) in extents {
                touched.note(Extent::new(*offset, *length).unwrap());
            }
            touched.bytes() / 10
        };
        assert_eq!(count(&[(0, 10)]), 1);
        assert_eq!(count(&[(9, 2)]), 2);
        assert_eq!(count(&[(1, 2), (5, 3), (8, 4), (25, 5)]), 3);
        assert_eq!(count(&[(0, 10), (10, 10)]), 2);
        assert_eq!(count(&[(100, 1), (0, 1), (1, 1)]), 2, "in any order");
        let mut two = Touched::new(10);
        two.note(Extent::new(5, 1).unwrap());
        two.next_delta();
        two.note(Extent::new(7, 1).unwrap());
        assert_eq!(two.bytes(), 20, "of two deltas");
    }

    #[test]
    fn a_thick_one_has_room_for_all_that_is_put_there_or_is_refused() {
        let data = LvName::parse("vg/data").unwrap();
        let room = |free_extents| Room {
            extent_bytes: MIB,
            free_extents,
        };
        let extents = |of_store, free| {
            let store = Store {
                chunk_bytes: CHUNK_BYTES,
                room: of_store,
            };
            extents(&data, 1 << 30, store, room(free)).map_err(|error| error.chain())
        };
        // 8 MiB of chunks, 32 KiB of table, and 64 MiB beside where there are so many.
        assert_eq!(extents(StoreRoom::Needed(8 * MIB), 1000), Ok(73));
        assert_eq!(extents(StoreRoom::Needed(8 * MIB), 12), Ok(12));
        assert_eq!(extents(StoreRoom::Needed(8 * MIB), 9), Ok(9));
        let refused = extents(StoreRoom::Needed(8 * MIB), 8).unwrap_err();
        assert!(
            refused.contains("has 8.0 MiB free, and 9.0 MiB are needed"),
            "{refused}"
        );
        assert_eq!(extents(StoreRoom::Bytes(2 * MIB), 9), Ok(2));
        assert!(extents(StoreRoom::Bytes(20 * MIB), 9).is_err());
        // Never more than can be used.
        assert_eq!(extents(StoreRoom::Needed(u64::MAX), 5000), Ok(1029));
    }
}
