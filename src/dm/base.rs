//! Snapshots that a migration or a job keeps from one run to the next: the OLD of the next increment.
//!
//! Guarantees: names are computed by pure code; a snapshot carries, from the moment in which it is there, a tag that says
//! whose it is, and only one with that tag is ever removed or extended, by its UUID. Thick ones are active and read-only;
//! thin ones are left inactive, as LVM makes them.

use super::lvm::{LvRow, lvm_command, run, volumes_of};
use super::name::LvName;
use super::temporary::{room_of, store_extents, useful_bytes};
use crate::error::{Error, Result};
use crate::units::Bytes;

/// Carried by all of them, for people.
pub const BASE_TAG: &str = "lvmsync_base";
/// Begins the tag that tells whose it is.
const OWNER_TAG: &str = "lvmsync_of_";
/// What device-mapper takes as a name, less what LVM appends to it.
const MAX_DM_NAME_BYTES: usize = 127 - 5;

/// A snapshot that is kept, or an era of a volume that dm-era tracks, which nothing has to be kept for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Base {
    /// `vg/lv`, or `era:N`.
    pub name: String,
    /// LVM's UUID of it, or that of the record and the era.
    pub uuid: String,
}

impl Base {
    /// The era that a state with this id is named by.
    pub fn of_era(id: &str) -> Option<Self> {
        let uuid = id.strip_prefix(ERA)?;
        let (record, era) = uuid.rsplit_once(':')?;
        let is_number = era.parse::<u32>().is_ok_and(|era| era > 0);
        (is_number && !record.is_empty()).then(|| Self {
            name: format!("{ERA}{era}"),
            uuid: uuid.to_owned(),
        })
    }

    /// The same of `volume`, of which a state with another id is an error.
    pub fn era_of(volume: &LvName, id: &str) -> Result<Self> {
        Self::of_era(id).ok_or_else(|| Error::Lvm {
            what: volume.to_string(),
            reason: format!("{id} is no era of its record"),
        })
    }

    /// It is no snapshot.
    pub fn is_era(&self) -> bool {
        self.name.starts_with(ERA)
    }

    /// It is an era of the record with this UUID.
    pub fn is_of_record(&self, record: &str) -> bool {
        let of = self.uuid.rsplit_once(':').map(|(of, _)| of);
        self.is_era() && of == Some(record)
    }

    /// The id of the state.
    pub fn id(&self) -> String {
        match self.is_era() {
            true => format!("{ERA}{}", self.uuid),
            false => format!("lvm:{}", self.uuid),
        }
    }
}

const ERA: &str = "era:";

/// How much room a thick one gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Store {
    /// What is likely to be enough.
    #[default]
    Likely,
    /// So many bytes.
    Bytes(u64),
    /// So many, or what is free.
    About(u64),
    /// As much as can be used: such a snapshot never overflows.
    Most,
}

impl Store {
    /// What was asked for a snapshot of a volume of `size_bytes`, if something was.
    pub fn bytes_of(self, size_bytes: u64) -> Option<u64> {
        match self {
            Self::Bytes(bytes) | Self::About(bytes) => Some(bytes),
            Self::Most => Some(useful_bytes(size_bytes)),
            Self::Likely => None,
        }
    }
}

/// What else needs room in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// The snapshot before this one is there already.
    Nothing,
    /// Another one of the same size comes before this one goes.
    TheNext,
}

/// The tag of what belongs to `owner`, which has no other characters than letters, digits and `_ . -`.
pub fn owner_tag(owner: &str) -> String {
    format!("{OWNER_TAG}{owner}")
}

/// What a snapshot of `origin` is called that is made for `owner` as its `number`th; as much of the names as there is room
/// for.
pub fn base_name(origin: &LvName, owner: &str, number: u64) -> Option<LvName> {
    let mut stem = format!("{}-{owner}", origin.lv());
    while !stem.is_empty() {
        let name = LvName::new(origin.vg(), &format!("{stem}-{number}"));
        if let Some(name) = name.filter(|name| name.dm_name().len() <= MAX_DM_NAME_BYTES) {
            return Some(name);
        }
        stem.pop();
    }
    None
}

/// Makes a snapshot of `origin`, thin or thick, for `owner`. `size_bytes` is that of the origin.
pub fn make(
    origin: &LvName,
    name: &LvName,
    owner: &str,
    size_bytes: u64,
    store: Option<(Store, Beside)>,
) -> Result<Base> {
    let mut command = lvm_command("lvcreate");
    let tag = owner_tag(owner);
    command.args(["-qq", "--yes", "--snapshot", "--permission", "r"]);
    command.args(["--addtag", BASE_TAG, "--addtag", &tag]);
    if let Some((store, beside)) = store {
        let extents = extents(origin, size_bytes, store, beside)?;
        command.args(["--extents", &extents.to_string()]);
    }
    command.args(["--name", name.lv(), "--", &origin.to_string()]);
    run(command, "lvcreate", &origin.to_string())?;
    let rows = volumes_of(origin.vg())?;
    let row = of_owner(&rows, owner).find(|row| row.lv_name == name.lv());
    let row = row.ok_or_else(|| Error::Lvm {
        what: name.to_string(),
        reason: "LVM made it, and shows none of this name".to_owned(),
    })?;
    Ok(Base {
        name: name.to_string(),
        uuid: row.lv_uuid.clone(),
    })
}

/// An error unless there is room for a thick one.
pub fn check_room(origin: &LvName, size_bytes: u64, store: Store, beside: Beside) -> Result<()> {
    extents(origin, size_bytes, store, beside).map(|_| ())
}

fn extents(origin: &LvName, size_bytes: u64, store: Store, beside: Beside) -> Result<u64> {
    let mut room = room_of(origin.vg())?;
    if beside == Beside::TheNext {
        room.free_extents /= 2;
    }
    let asked = match store {
        Store::Likely => None,
        Store::Bytes(bytes) => Some(bytes),
        Store::About(bytes) => Some(bytes.min(room.free_extents.saturating_mul(room.extent_bytes))),
        // What is larger than can be used is cut down to that.
        Store::Most => Some(size_bytes.saturating_mul(2)),
    };
    store_extents(origin, size_bytes, asked, room).map_err(|_| {
        let vg = origin.vg();
        let twice = match beside {
            Beside::TheNext => " two of them are needed at a time, and",
            Beside::Nothing => "",
        };
        Error::refused(
            origin.to_string(),
            format!(
                "there is no room for the snapshots to read from:{twice} volume group {vg} has {} for one",
                Bytes(room.free_extents.saturating_mul(room.extent_bytes))
            ),
            format!("Make room (lvremove, vgextend {vg} DISK), or choose a smaller snapshot size."),
        )
    })
}

/// What there is of `owner` among the volumes of a group.
pub fn of_owner<'a>(rows: &'a [LvRow], owner: &str) -> impl Iterator<Item = &'a LvRow> {
    let wanted = [BASE_TAG.to_owned(), owner_tag(owner)];
    rows.iter().filter(move |row| {
        let has = |tag: &String| row.lv_tags.split(',').any(|found| found == tag);
        !row.lv_uuid.is_empty() && wanted.iter().all(has)
    })
}

/// Removes the snapshot of `owner` with this UUID; false where there is none, or it is no longer one of `owner`'s.
pub fn remove(vg: &str, uuid: &str, owner: &str) -> Result<bool> {
    let rows = volumes_of(vg)?;
    if !of_owner(&rows, owner).any(|row| row.lv_uuid == uuid) {
        return Ok(false);
    }
    let mut command = lvm_command("lvremove");
    let tag = owner_tag(owner);
    // Of what has the tag and the UUID, and nothing else, whatever has happened since the look.
    let select = format!("lv_tags={{\"{tag}\"}} && lv_uuid=\"{uuid}\"");
    command.args(["-qq", "--yes", "--select", &select, "--", vg]);
    run(command, "lvremove", &format!("a snapshot of {owner}")).map(|_| true)
}

/// Gives the store of a thick one of `owner` so many bytes more, or what is left.
pub fn extend(base: &Base, owner: &str, bytes: u64) -> Result<()> {
    let failed = |reason: &str| Error::Lvm {
        what: base.name.clone(),
        reason: reason.to_owned(),
    };
    let name = LvName::parse(&base.name).ok_or_else(|| failed("this is no name of a volume"))?;
    let rows = volumes_of(name.vg())?;
    let row = of_owner(&rows, owner).find(|row| row.lv_uuid == base.uuid);
    let row = row.ok_or_else(|| failed("it is gone"))?;
    let room = room_of(name.vg())?;
    let extents = bytes
        .div_ceil(room.extent_bytes.max(1))
        .min(room.free_extents);
    if extents == 0 {
        return Err(failed("nothing is free in its volume group"));
    }
    let mut command = lvm_command("lvextend");
    let more = format!("+{extents}");
    command.args(["-qq", "--yes", "--extents", &more, "--"]);
    command.arg(format!("{}/{}", name.vg(), row.lv_name));
    run(command, "lvextend", &base.name).map(|_| ())
}

/// What LVM's metadata says of a volume: does it refuse writes, and has it this tag?
pub fn looked_at(name: &LvName, tag: &str) -> Result<(bool, bool)> {
    let rows = volumes_of(name.vg())?;
    let row = rows.iter().find(|row| row.lv_name == name.lv());
    let row = row.ok_or_else(|| Error::Lvm {
        what: name.to_string(),
        reason: "LVM does not know it any more".to_owned(),
    })?;
    let has_tag = row.lv_tags.split(',').any(|found| found == tag);
    Ok((row.is_read_only(), has_tag))
}

/// Marks `name`.
pub fn mark(name: &LvName, tag: &str) -> Result<()> {
    change(name, &["--addtag", tag])
}

/// Takes the mark off.
pub fn unmark(name: &LvName, tag: &str) -> Result<()> {
    change(name, &["--deltag", tag])
}

/// Forbids writes to `name`, or allows them.
pub fn set_writable(name: &LvName, writable: bool) -> Result<()> {
    change(name, &["--permission", if writable { "rw" } else { "r" }])
}

fn change(name: &LvName, words: &[&str]) -> Result<()> {
    let mut command = lvm_command("lvchange");
    command.arg("-qq").args(words).arg("--");
    command.arg(name.to_string());
    run(command, "lvchange", &name.to_string()).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_era_is_a_base_of_one_record() {
        let base = Base::of_era("era:aDZl59-Xtzc:12").unwrap();
        assert_eq!(base.name, "era:12");
        assert!(base.is_of_record("aDZl59-Xtzc") && !base.is_of_record("aDZl59"));
        assert_eq!(base.id(), "era:aDZl59-Xtzc:12");
        for id in ["lvm:x", "era:12", "era:x:", "era:x:0", "era::1", "era:x:-1"] {
            assert_eq!(Base::of_era(id), None, "{id}");
        }
        let snapshot = Base {
            name: "vg/s".into(),
            uuid: "u".into(),
        };
        assert!(!snapshot.is_era() && !snapshot.is_of_record("u"));
        assert_eq!(snapshot.id(), "lvm:u");
    }

    #[test]
    fn names_tell_whose_they_are_and_have_room() {
        let data = LvName::new("vg", "data").unwrap();
        let name = base_name(&data, "hourly", 12).unwrap();
        assert_eq!(name.to_string(), "vg/data-hourly-12");
        for (lv, owner) in [("x".repeat(120), "job"), ("a-".repeat(50) + "a", "a.b_c-d")] {
            let long = LvName::new("vg", &lv).unwrap();
            let name = base_name(&long, owner, 123_456).unwrap();
            assert!(name.dm_name().len() + "-real".len() <= 127, "{name}");
            assert!(name.lv().ends_with("-123456"), "{name}");
        }
    }

    #[test]
    fn only_what_has_both_tags_is_somebodys() {
        let row = |name: &str, tags: &str| LvRow {
            lv_name: name.to_owned(),
            lv_uuid: format!("uuid-{name}"),
            lv_tags: tags.to_owned(),
            ..LvRow::default()
        };
        let rows = [
            row("a", "lvmsync_base,lvmsync_of_x"),
            row("b", "lvmsync_of_x"),
            row("c", "lvmsync_base,lvmsync_of_xy"),
            row("d", "mine,lvmsync_of_x,lvmsync_base"),
        ];
        let found: Vec<_> = of_owner(&rows, "x").map(|row| &*row.lv_name).collect();
        assert_eq!(found, ["a", "d"]);
    }
}
