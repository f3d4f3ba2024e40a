//! What belongs to a tracked volume: the names of the era device and of the volume with its record, and the tags on that.
//!
//! Pure. Guarantees: what is ours is known by UUIDs, not by names: the era device has the volume's UUID in its own, the
//! metadata has it in a tag; names are ones that device-mapper and LVM accept.

use crate::dm::lvm::LvRow;
use crate::dm::name::LvName;

/// On each volume that holds a record.
pub const TAG: &str = "lvmsync_era";
/// The record proves nothing: it is being made or taken away, or the volume was in use without the era device.
pub const VOID_TAG: &str = "lvmsync_era_void";
/// It is void since it has a hole, and not because a run was not finished: the volume's device comes up all the same.
pub const HOLE_TAG: &str = "lvmsync_era_hole";
/// Begins the tag with the last era before the record began to prove something again.
const LOST_TAG: &str = "lvmsync_era_lost_";
/// Begins the tag with the number of the volume in its thin pool: another one after a snapshot was merged into it.
const THIN_TAG: &str = "lvmsync_era_thin_";
/// Begins the tag with the UUID of the tracked volume.
const OF_TAG: &str = "lvmsync_era_of_";
/// Begins the tag with the size of a block in sectors, which must be the same each time the device comes up.
const BLOCK_TAG: &str = "lvmsync_era_block_";
/// Begins the tag with the size of the era device in sectors: a volume that was extended is longer.
const SIZE_TAG: &str = "lvmsync_era_size_";
/// Begins the tag with an era and a size in sectors: what is named by that era or an earlier one was no longer than this.
const GROWN_TAG: &str = "lvmsync_era_grown_";
/// Begins the tag with the word for what the volume held when its era device was taken down.
const REST_TAG: &str = "lvmsync_era_rest_";
/// Begins the device-mapper UUID of our era devices.
const UUID_PREFIX: &str = "LVMSYNC-ERA-";
/// What device-mapper takes as a name.
const MAX_DM_NAME_BYTES: usize = 127;

/// The device-mapper UUID of the era device of the volume with this UUID.
pub fn device_uuid(volume_uuid: &str) -> String {
    format!("{UUID_PREFIX}{volume_uuid}")
}

/// The volume whose era device has this device-mapper UUID.
pub fn volume_of_device(dm_uuid: &str) -> Option<&str> {
    dm_uuid.strip_prefix(UUID_PREFIX)
}

/// The name of the era device in `/dev/mapper`: no logical volume can have it. `None` if it would be too long.
pub fn device_name(volume: &LvName) -> Option<String> {
    let name = format!("{}-era", volume.dm_name());
    (name.len() <= MAX_DM_NAME_BYTES).then_some(name)
}

/// The name of the volume with the record.
pub fn metadata_name(volume: &LvName) -> Option<LvName> {
    let name = LvName::new(volume.vg(), &format!("{}_era", volume.lv()))?;
    (name.dm_name().len() <= MAX_DM_NAME_BYTES).then_some(name)
}

/// The tags of a record that is being made.
pub fn tags(volume_uuid: &str, block_sectors: u64, sectors: u64) -> Vec<String> {
    vec![
        TAG.to_owned(),
        VOID_TAG.to_owned(),
        format!("{OF_TAG}{volume_uuid}"),
        format!("{BLOCK_TAG}{block_sectors}"),
        size_tag(sectors),
    ]
}

/// The tag that tells how many sectors of the volume are tracked.
pub fn size_tag(sectors: u64) -> String {
    format!("{SIZE_TAG}{sectors}")
}

/// The tag that tells whose record it is.
pub fn of_tag(volume_uuid: &str) -> String {
    format!("{OF_TAG}{volume_uuid}")
}

/// The tag that tells that states of this era and earlier ones had so many sectors at most.
pub fn grown_tag(era: u32, sectors: u64) -> String {
    format!("{GROWN_TAG}{era}_{sectors}")
}

/// The tag that tells what the volume held when its era device was taken down.
pub fn rest_tag(word: &str) -> String {
    format!("{REST_TAG}{word}")
}

/// The tag that tells that states of this era and earlier ones are no bases any more.
pub fn lost_tag(era: u32) -> String {
    format!("{LOST_TAG}{era}")
}

/// The tag that tells which volume of its thin pool is tracked.
pub fn thin_tag(device_id: u32) -> String {
    format!("{THIN_TAG}{device_id}")
}

/// A volume with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is called now.
    pub name: LvName,
    /// LVM's UUID of it.
    pub uuid: String,
    /// LVM's UUID of the tracked volume.
    pub of: String,
    /// Its size.
    pub size_bytes: u64,
    /// Size of a block in sectors, if the tag is in order.
    pub block_sectors: Option<u64>,
    /// How many sectors of the volume are tracked, if the tag is in order.
    pub sectors: Option<u64>,
    /// Eras, and how many sectors the volume had at most in states of that era or an earlier one.
    pub grown: Vec<(u32, u64)>,
    /// The word for what the volume held when its era device was taken down, until it is up again.
    pub rest: Option<String>,
    /// It proves nothing.
    pub is_void: bool,
    /// Because something may have written past it.
    pub has_hole: bool,
    /// It proves nothing since this era or an earlier one.
    pub lost_until: Option<u32>,
    /// The number in its thin pool that the tracked volume had.
    pub thin_id: Option<u32>,
    /// It has a device.
    pub is_active: bool,
}

/// The record that this row of LVM's report is, if it is one.
pub fn metadata_in(row: &LvRow) -> Option<Metadata> {
    let tags = || row.lv_tags.split(',');
    if !tags().any(|tag| tag == TAG) {
        return None;
    }
    let after = |prefix| tags().find_map(|tag| tag.strip_prefix(prefix));
    let number = |prefix| after(prefix).and_then(|text| text.parse().ok());
    Some(Metadata {
        name: LvName::new(&row.vg_name, row.name())?,
        uuid: row.lv_uuid.clone(),
        of: after(OF_TAG)?.to_owned(),
        size_bytes: row.lv_size.parse().ok()?,
        block_sectors: number(BLOCK_TAG),
        sectors: number(SIZE_TAG),
        grown: tags().filter_map(grown_in).collect(),
        rest: after(REST_TAG).map(str::to_owned),
        is_void: tags().any(|tag| tag == VOID_TAG),
        has_hole: tags().any(|tag| tag == HOLE_TAG),
        // One that cannot be read may mean any era.
        lost_until: tags()
            .filter_map(|tag| tag.strip_prefix(LOST_TAG))
            .map(|era| era.parse().unwrap_or(u32::MAX))
            .max(),
        thin_id: after(THIN_TAG).and_then(|text| text.parse().ok()),
        is_active: row.is_active(),
    })
}

fn grown_in(tag: &str) -> Option<(u32, u64)> {
    let (era, sectors) = tag.strip_prefix(GROWN_TAG)?.split_once('_')?;
    Some((era.parse().ok()?, sectors.parse().ok()?))
}

impl Metadata {
    /// A state of this era is no base any more.
    pub fn is_lost(&self, era: u32) -> bool {
        self.lost_until.is_some_and(|until| era <= until)
    }

    /// The tracked volume, which has this number in its thin pool now, is another one than it was.
    pub fn was_swapped(&self, thin_id: Option<u32>) -> bool {
        self.thin_id.is_some() && self.thin_id != thin_id
    }

    /// How many sectors of the volume a state of this era has at most, as far as it was extended since.
    pub fn sectors_at(&self, era: u32) -> Option<u64> {
        let since = self.grown.iter().filter(|(until, _)| era <= *until);
        since.map(|(_, sectors)| *sectors).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_known_by_its_tags_and_not_by_its_name() {
        let row = LvRow {
            vg_name: "vg".into(),
            lv_name: "renamed".into(),
            lv_uuid: "m".into(),
            lv_size: "4194304".into(),
            lv_tags: tags("u-1", 128, 8192).join(","),
            ..LvRow::default()
        };
        let found = metadata_in(&row).unwrap();
        assert_eq!((found.of.as_str(), found.block_sectors), ("u-1", Some(128)));
        assert_eq!(found.sectors, Some(8192));
        assert!(found.is_void && !found.is_active);
        let whole = LvRow {
            lv_tags: format!("x,{TAG},{}", of_tag("u-1")),
            ..row.clone()
        };
        let found = metadata_in(&whole).unwrap();
        assert!(!found.is_void && found.block_sectors.is_none());
        for tags in ["", VOID_TAG, TAG, &of_tag("u-1")] {
            let row = LvRow {
                lv_tags: tags.to_owned(),
                ..row.clone()
            };
            assert_eq!(metadata_in(&row), None, "{tags}");
        }
    }

    #[test]
    fn a_state_is_as_long_as_the_volume_was_then() {
        let grown = [grown_tag(7, 100), grown_tag(9, 200)].join(",");
        let row = LvRow {
            vg_name: "vg".into(),
            lv_name: "m".into(),
            lv_size: "4194304".into(),
            lv_tags: format!("{},{grown}", tags("u-1", 128, 300).join(",")),
            ..LvRow::default()
        };
        let found = metadata_in(&row).unwrap();
        let sizes = [6, 7, 8, 9, 10].map(|era| found.sectors_at(era));
        assert_eq!(sizes, [Some(100), Some(100), Some(200), Some(200), None]);
    }

    #[test]
    fn what_was_lost_stays_lost() {
        let row = |more: &[String]| LvRow {
            vg_name: "vg".into(),
            lv_name: "m".into(),
            lv_size: "4194304".into(),
            lv_tags: format!("{},{}", tags("u-1", 128, 300).join(","), more.join(",")),
            ..LvRow::default()
        };
        let found = metadata_in(&row(&[lost_tag(7), lost_tag(4), thin_tag(3)])).unwrap();
        assert!(found.is_lost(7) && !found.is_lost(8) && !found.has_hole);
        assert_eq!(found.thin_id, Some(3));
        let unreadable = row(&["lvmsync_era_lost_x".into(), HOLE_TAG.into()]);
        let found = metadata_in(&unreadable).unwrap();
        assert!(found.is_lost(u32::MAX) && found.has_hole);
        assert!(!metadata_in(&row(&[])).unwrap().is_lost(1));
    }

    #[test]
    fn names_fit_and_collide_with_no_volume() {
        let volume = LvName::new("my-vg", "data").unwrap();
        assert_eq!(device_name(&volume).unwrap(), "my--vg-data-era");
        assert_eq!(LvName::from_path("/dev/mapper/my--vg-data-era"), None);
        assert_eq!(
            metadata_name(&volume).unwrap().to_string(),
            "my-vg/data_era"
        );
        assert_eq!(volume_of_device(&device_uuid("u-1")), Some("u-1"));
        let long = LvName::new("vg", &"x".repeat(123)).unwrap();
        assert_eq!((device_name(&long), metadata_name(&long)), (None, None));
    }
}
