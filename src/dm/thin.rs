//! Thin volumes, active or not: a base snapshot should be inactive, and then only LVM's metadata knows it.
//!
//! Guarantees: looks only; id, pool and size come from the kernel where the volume is active, else from LVM.

use super::lvm::{LvRow, volumes_of};
use super::name::LvName;
use super::resolve::{Resolved, active_volume, volume_of_path};
use super::snapshot::{LogicalVolume, Role};
use crate::error::{Error, Result};

/// A thin volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThinVolume {
    /// Volume group and name.
    pub name: LvName,
    /// LVM's UUID, with dashes.
    pub uuid: String,
    /// Name of its pool, in the same group.
    pub pool: String,
    /// Its number there: reused after deletion, so never an identity.
    pub device_id: u32,
    /// Its size.
    pub size_bytes: u64,
    /// LVM's metadata forbids writes.
    pub read_only: bool,
    /// LVM knows the volume that it is a snapshot of, or knew it before that was removed.
    pub is_snapshot: bool,
    /// The volume that it is a snapshot of, while there is one.
    pub origin: Option<LvName>,
    /// Volumes of the group are read where thin volumes are not mapped; only a table says where.
    pub group_has_external_origins: bool,
    /// The device, where there is one.
    pub active: Option<Box<LogicalVolume>>,
}

/// The thin volume that `arg` names, and that was `resolved` or not; `None` for all that is not one, also for what
/// cannot be found at all: the error in `resolved` then says why.
pub fn thin_volume(arg: &str, resolved: &Result<Resolved>) -> Result<Option<ThinVolume>> {
    let (name, active) = match resolved {
        Ok(Resolved::LogicalVolume(volume)) if matches!(volume.role, Role::Thin { .. }) => {
            (volume.name.clone(), Some(volume.clone()))
        }
        Ok(_) => return Ok(None),
        Err(_) => match LvName::parse(arg).or_else(|| volume_of_path(arg)) {
            Some(name) => (name, None),
            None => return Ok(None),
        },
    };
    let rows = match (volumes_of(name.vg()), &active) {
        (Ok(rows), _) => rows,
        (Err(error), Some(_)) => return Err(error),
        (Err(_), None) => return Ok(None),
    };
    let row = rows.iter().find(|row| row.name() == name.lv());
    let Some(row) = row.filter(|row| row.segtype == "thin") else {
        return Ok(None);
    };
    from_row(name, row, active, &rows).map(Some)
}

/// The same volume, now that it was activated.
pub fn activated(volume: &ThinVolume) -> Result<LogicalVolume> {
    let found = active_volume(&volume.name)?.filter(|found| {
        let is_it = |id: u32| id == volume.device_id && found.uuid == volume.uuid;
        matches!(found.role, Role::Thin { device_id, .. } if is_it(device_id))
    });
    found.ok_or_else(|| Error::Lvm {
        what: volume.name.to_string(),
        reason: "another LVM command deactivated or replaced it just now; run this again"
            .to_owned(),
    })
}

/// An error unless LVM still has this volume, under the number that it had. LVM gives a UUID to no second volume, so
/// what is there now was there all the time; but the number of one that was removed goes to the next one at once.
pub fn refuse_replaced(volume: &ThinVolume) -> Result<()> {
    let rows = volumes_of(volume.name.vg())?;
    if is_among(volume, &rows) {
        return Ok(());
    }
    Err(Error::Lvm {
        what: volume.name.to_string(),
        reason: "another LVM command removed it just now, so what was read may be of the volume that got its number"
            .to_owned(),
    })
}

fn is_among(volume: &ThinVolume, rows: &[LvRow]) -> bool {
    let row = rows.iter().find(|row| row.lv_uuid == volume.uuid);
    row.is_some_and(|row| {
        row.segtype == "thin"
            && row.thin_id.parse() == Ok(volume.device_id)
            && pool_of(row) == volume.pool
    })
}

fn pool_of(row: &LvRow) -> &str {
    row.pool_lv.trim_matches(['[', ']'])
}

/// Puts together what both know, and sees that they speak of one volume.
fn from_row(
    name: LvName,
    row: &LvRow,
    active: Option<Box<LogicalVolume>>,
    group: &[LvRow],
) -> Result<ThinVolume> {
    let wrong = |reason: String| Error::Lvm {
        what: name.to_string(),
        reason,
    };
    let unreadable = |column: &str, value: &str| {
        wrong(format!(
            "`lvs` says `{value}` where its {column} should stand"
        ))
    };
    let device_id = row.thin_id.parse();
    let mut device_id = device_id.map_err(|_| unreadable("thin_id", &row.thin_id))?;
    let size_bytes = row.lv_size.parse();
    let mut size_bytes = size_bytes.map_err(|_| unreadable("lv_size", &row.lv_size))?;
    if let Some(volume) = &active {
        let Role::Thin { device_id: id, .. } = volume.role else {
            return Err(wrong("it is not a thin volume any more".to_owned()));
        };
        if volume.uuid != row.lv_uuid || id != device_id {
            return Err(wrong(
                "LVM and the kernel do not mean the same volume by that name; is another LVM command at \
                 work on it?"
                    .to_owned(),
            ));
        }
        (device_id, size_bytes) = (id, volume.size_bytes);
    }
    // LVM calls a volume with an external origin a snapshot as well, and that one is as live as any.
    let origin = row.origin().filter(|_| row.is_thin_snapshot());
    let origin = origin.filter(|origin| {
        let is_it = |other: &&LvRow| other.name() == *origin && other.segtype == "thin";
        let found = group.iter().find(is_it);
        found.is_some_and(|found| found.pool_lv == row.pool_lv)
    });
    Ok(ThinVolume {
        uuid: row.lv_uuid.clone(),
        pool: pool_of(row).to_owned(),
        device_id,
        size_bytes,
        read_only: row.is_read_only(),
        is_snapshot: origin.is_some() || row.skips_activation(),
        origin: origin.and_then(|origin| LvName::new(name.vg(), origin)),
        group_has_external_origins: group.iter().any(LvRow::is_external_origin),
        active,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dm::lvm::parse_report;

    fn rows() -> Vec<LvRow> {
        parse_report(include_str!("../../testdata/lvs/volumes.json")).unwrap()
    }

    fn row() -> LvRow {
        let row = rows().into_iter().find(|row| row.name() == "t1snap");
        LvRow {
            thin_id: "7".into(),
            ..row.unwrap()
        }
    }

    #[test]
    fn an_inactive_snapshot_is_known_from_lvs() {
        let name = LvName::new("my-vg", "t1snap").unwrap();
        let volume = from_row(name, &row(), None, &rows()).unwrap();
        assert_eq!((volume.device_id, volume.pool.as_str()), (7, "pool"));
        assert!(volume.is_snapshot && volume.active.is_none());
        assert_eq!(volume.size_bytes.to_string(), row().lv_size);
        assert_eq!(volume.origin.unwrap().to_string(), "my-vg/t1");
        assert!(!volume.group_has_external_origins);
    }

    #[test]
    fn a_volume_whose_number_another_one_got_is_not_there_any_more() {
        let name = LvName::new("my-vg", "t1snap").unwrap();
        let volume = from_row(name, &row(), None, &rows()).unwrap();
        let renamed = LvRow {
            lv_name: "other".into(),
            ..row()
        };
        for there in [row(), renamed] {
            assert!(is_among(&volume, &[there]));
        }
        let next = LvRow {
            lv_uuid: "9tMMKB-v9gm-Tf6g-DUV2-hDMg-tdht-97qUQn".into(),
            ..row()
        };
        let renumbered = LvRow {
            thin_id: "8".into(),
            ..row()
        };
        for gone in [next, renumbered] {
            assert!(!is_among(&volume, &[gone]));
        }
        assert!(!is_among(&volume, &[]));
    }

    #[test]
    fn a_volume_with_an_external_origin_is_no_snapshot() {
        // As lvm2 2.03.16 shows them.
        let origin = LvRow {
            lv_name: "ext".into(),
            lv_role: "public,origin,extthinorigin,multiextthinorigin".into(),
            segtype: "linear".into(),
            ..LvRow::default()
        };
        let on = LvRow {
            lv_role: "public,snapshot,thinsnapshot".into(),
            lv_attr: "Vwi-a-tz--".into(),
            lv_skip_activation: String::new(),
            origin: "ext".into(),
            ..row()
        };
        let name = LvName::new("my-vg", "t1snap").unwrap();
        let in_other_pool = LvRow {
            segtype: "thin".into(),
            pool_lv: "pool2".into(),
            ..origin.clone()
        };
        for origin in [origin, in_other_pool] {
            let volume = from_row(name.clone(), &on, None, &[on.clone(), origin]).unwrap();
            assert!(!volume.is_snapshot && volume.origin.is_none());
            assert!(volume.group_has_external_origins);
        }
    }

    #[test]
    fn what_is_no_number_is_not_guessed() {
        for (thin_id, lv_size) in [("", "4096"), ("7", "many"), ("-1", "1"), ("1", "")] {
            let row = LvRow {
                thin_id: thin_id.into(),
                lv_size: lv_size.into(),
                ..row()
            };
            let name = LvName::new("my-vg", "t1snap").unwrap();
            assert!(
                from_row(name, &row, None, &rows()).is_err(),
                "{thin_id} {lv_size}"
            );
        }
    }
}
