//! A snapshot that is made to be read and removed again: what it is called, how large it is, making and removing it.
//!
//! Guarantees: names and sizes are computed by pure code; names given to LVM were checked. A snapshot carries, from the
//! moment in which it is there, a tag with the id of the run that it was made for; only one with that tag is ever removed,
//! by its UUID.

use std::fs::File;

use serde::Deserialize;

use super::lvm::{LvRow, all_volumes, lvm_command, run, volumes_of};
use super::name::{LvName, is_valid};
use crate::error::{Error, Result};
use crate::units::{Bytes, count};

/// Carried by every snapshot that is to be removed again, for people.
pub const TEMPORARY_TAG: &str = "lvmsync_temporary";
/// Begins the tag that tells which run it was made for.
const RUN_TAG: &str = "lvmsync_run_";
/// Between the name of the volume and the first digits of the run's id.
const INFIX: &str = "-lvmsync-";
/// So many digits of the id are in the name.
const DIGITS: usize = 8;

/// What device-mapper takes as a name.
const MAX_DM_NAME_BYTES: usize = 127;
/// LVM appends to it: `-real`, `-cow`.
const MAX_SUFFIX_BYTES: usize = 5;

/// A small volume may be written over and over: its snapshot gets this much if the volume has it.
const LEAST_STORE_BYTES: u64 = 1 << 30;
/// Of a larger one this part may be written meanwhile.
const PART_WRITTEN: u64 = 10;

/// The tag of the run with this id.
pub fn run_tag(id: &str) -> String {
    format!("{RUN_TAG}{id}")
}

/// The id of the run that a volume was made for, if it is such a snapshot and has the name that it was given.
pub fn run_of(row: &LvRow) -> Option<&str> {
    let tags = || row.lv_tags.split(',');
    let id = tags().find_map(|tag| tag.strip_prefix(RUN_TAG))?;
    let ending = format!("{INFIX}{}", id.get(..DIGITS)?);
    let is_it = tags().any(|tag| tag == TEMPORARY_TAG) && row.name().ends_with(&ending);
    is_it.then_some(id)
}

/// The name of a snapshot of `origin` for the run with this id: as much of the volume's name as there is room for.
pub fn temporary_name(origin: &LvName, id: &str) -> Option<LvName> {
    let digits = id.get(..DIGITS)?;
    let mut stem = origin.lv();
    while !stem.is_empty() {
        let name = LvName::new(origin.vg(), &format!("{stem}{INFIX}{digits}"));
        if let Some(name) = name.filter(has_room) {
            return Some(name);
        }
        stem = stem.get(..stem.len() - 1)?;
    }
    None
}

fn has_room(name: &LvName) -> bool {
    name.dm_name().len() + MAX_SUFFIX_BYTES <= MAX_DM_NAME_BYTES
}

/// The name that the user has chosen for a snapshot of `origin`: `NAME`, or `VG/NAME` in the same group.
pub fn chosen_name(origin: &LvName, text: &str) -> Result<LvName> {
    let name = match text.split_once('/') {
        Some((vg, _)) if vg != origin.vg() => {
            return Err(Error::Usage(format!(
                "{text}: a snapshot of {origin} is in its volume group: name it {}/NAME, or NAME",
                origin.vg()
            )));
        }
        Some((_, lv)) => lv,
        None => text,
    };
    let wrong = |why: &str| {
        Err(Error::Usage(format!(
            "`{text}` cannot be the name of a snapshot: {why}"
        )))
    };
    if !is_valid(name) {
        return wrong("it has other characters than letters, digits and + _ . - or begins with -");
    }
    if let Some(reserved) = reserved_part(name) {
        return wrong(&format!("LVM keeps names with `{reserved}` to itself"));
    }
    match LvName::new(origin.vg(), name) {
        Some(name) if has_room(&name) => Ok(name),
        _ => wrong("it is too long"),
    }
}

/// What LVM does not take in the name of a new volume.
fn reserved_part(name: &str) -> Option<&'static str> {
    const BEGINS: [&str; 2] = ["snapshot", "pvmove"];
    const HOLDS: [&str; 18] = [
        "_cdata",
        "_cmeta",
        "_corig",
        "_cpool",
        "_cvol",
        "_imeta",
        "_iorig",
        "_mimage",
        "_mlog",
        "_pmspare",
        "_rimage",
        "_rmeta",
        "_tdata",
        "_tmeta",
        "_vdata",
        "_vorigin",
        "_wcorig",
        "_raidmeta",
    ];
    let begins = BEGINS.into_iter().find(|part| name.starts_with(part));
    begins.or_else(|| HOLDS.into_iter().find(|part| name.contains(part)))
}

/// What is free in a volume group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Size of its extents.
    pub extent_bytes: u64,
    /// How many of them nothing lies on.
    pub free_extents: u64,
}

/// More than this the store of a snapshot cannot use: with a place for every chunk, and for the table, it never overflows.
pub fn useful_bytes(origin_bytes: u64) -> u64 {
    origin_bytes
        .saturating_add(origin_bytes / 256)
        .saturating_add(1 << 16)
}

/// What is likely to be written to a volume of this size, of which nothing else is known.
pub fn likely_bytes(origin_bytes: u64) -> u64 {
    (origin_bytes / PART_WRITTEN).max(LEAST_STORE_BYTES)
}

/// Extents for the exception store of a snapshot of `origin`: `asked`, or what is likely to be written meanwhile and is
/// there.
pub fn store_extents(
    origin: &LvName,
    origin_bytes: u64,
    asked: Option<u64>,
    room: Room,
) -> Result<u64> {
    let most = useful_bytes(origin_bytes);
    let wanted = asked.unwrap_or(likely_bytes(origin_bytes)).min(most).max(1);
    let wanted = wanted.div_ceil(room.extent_bytes.max(1));
    if room.free_extents == 0 || (asked.is_some() && wanted > room.free_extents) {
        return Err(no_room(origin, wanted, room));
    }
    Ok(wanted.min(room.free_extents))
}

fn no_room(origin: &LvName, wanted: u64, room: Room) -> Error {
    let vg = origin.vg();
    let shown = |extents: u64| {
        let bytes = Bytes(extents.saturating_mul(room.extent_bytes));
        format!("{} ({bytes})", count(extents, "extent"))
    };
    let smaller = match room.free_extents {
        0 => String::new(),
        free => {
            let bytes = free.saturating_mul(room.extent_bytes);
            format!("or a snapshot that fits: --snapshot-size {bytes}, ")
        }
    };
    Error::refused(
        origin.to_string(),
        format!(
            "there is no room for a snapshot to read from: volume group {vg} has {} free, and {} are wanted. \
             It has to hold what is written to {origin} until the run is done",
            shown(room.free_extents),
            shown(wanted)
        ),
        format!(
            "Make room (lvremove, vgextend {vg} DISK); {smaller}or read the volume as it is while it is written, which \
             may be a blur of moments: --no-snapshot"
        ),
    )
}

#[derive(Deserialize)]
struct Reports {
    report: Vec<Report>,
}

#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    vg: Vec<VgRow>,
}

#[derive(Deserialize)]
struct VgRow {
    vg_extent_size: String,
    vg_free_count: String,
}

/// Reads the report of `vgs`.
fn parse_room(json: &str) -> Option<Room> {
    let reports: Reports = serde_json::from_str(json).ok()?;
    let row = reports.report.into_iter().flat_map(|one| one.vg).next()?;
    let extent_bytes = row.vg_extent_size.parse().ok()?;
    let free_extents = row.vg_free_count.parse().ok()?;
    (extent_bytes > 0).then_some(Room {
        extent_bytes,
        free_extents,
    })
}

/// Asks LVM what is free in a group.
pub fn room_of(vg: &str) -> Result<Room> {
    let mut command = lvm_command("vgs");
    command.args(["--reportformat", "json", "--units", "b", "--nosuffix"]);
    command.args(["-o", "vg_extent_size,vg_free_count", "--", vg]);
    let group = format!("volume group {vg}");
    let said = run(command, "vgs", &group)?;
    parse_room(&said).ok_or_else(|| Error::Lvm {
        what: group,
        reason: format!("cannot understand the report of `vgs`: {}", said.trim()),
    })
}

/// What is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Of what.
    pub origin: &'a LvName,
    /// How it will be called; of the same group.
    pub name: &'a LvName,
    /// The id of the run.
    pub id: &'a str,
    /// Of a thick one: extents of its store. A thin one has none.
    pub extents: Option<u64>,
}

impl Wanted<'_> {
    /// The words after `lvcreate`. The device is made read-only: what is read is then what was there in that moment.
    fn words(&self) -> Vec<String> {
        let tag = run_tag(self.id);
        let mut words = ["-qq", "--yes", "--snapshot", "--permission", "r"].to_vec();
        words.extend(["--addtag", TEMPORARY_TAG, "--addtag", &tag]);
        let extents = self.extents.map(|extents| extents.to_string());
        match &extents {
            Some(extents) => words.extend(["--extents", extents]),
            // Active at once: LVM would not activate a thin snapshot otherwise.
            None => words.extend(["--setactivationskip", "n"]),
        }
        let origin = self.origin.to_string();
        words.extend(["--name", self.name.lv(), "--", &origin]);
        words.into_iter().map(str::to_owned).collect()
    }

    /// Makes it. LVM has `lock`, too, as long as it is at work, so that nobody takes the run for dead before it is.
    pub fn make(&self, lock: File) -> Result<()> {
        let mut command = lvm_command("lvcreate");
        command.args(self.words()).stdin(lock);
        run(command, "lvcreate", &self.origin.to_string()).map(|_| ())
    }
}

/// The snapshot of the run with this id, if it is there, has its name still, and carries its tags.
pub fn find<'a>(rows: &'a [LvRow], name: &LvName, id: &str) -> Option<&'a LvRow> {
    let wanted = [TEMPORARY_TAG, &run_tag(id)];
    rows.iter().find(|row| {
        let is_tagged = wanted.iter().all(|tag| has_tag(row, tag));
        row.lv_name == name.lv() && !row.lv_uuid.is_empty() && is_tagged
    })
}

/// The snapshot of the run with this id, whatever its group is called by now. One that somebody has renamed is theirs; of a
/// group that was cloned nobody knows which is meant.
pub fn find_anywhere(id: &str) -> Result<Option<LvName>> {
    let rows = all_volumes()?;
    let mut found = rows.iter().filter(|row| run_of(row) == Some(id));
    let only = found.next().filter(|_| found.next().is_none());
    Ok(only.and_then(|row| LvName::new(&row.vg_name, row.name())))
}

fn has_tag(row: &LvRow, tag: &str) -> bool {
    row.lv_tags.split(',').any(|found| found == tag)
}

/// Removes the snapshot of the run with this id, unless somebody has renamed it or taken off a tag: then it is theirs.
/// False if there is none.
pub fn remove(name: &LvName, id: &str) -> Result<bool> {
    let rows = volumes_of(name.vg())?;
    let Some(row) = find(&rows, name, id) else {
        return Ok(false);
    };
    let mut command = lvm_command("lvremove");
    let tag = run_tag(id);
    // Of what has the tag and the UUID, and nothing else, whatever has happened since the look.
    let select = format!("lv_tags={{\"{tag}\"}} && lv_uuid=\"{}\"", row.lv_uuid);
    command.args(["-qq", "--yes", "--select", &select, "--", name.vg()]);
    run(command, "lvremove", &name.to_string()).map(|_| true)
}

/// From now on it is a snapshot like any other.
pub fn keep(name: &LvName, id: &str) -> Result<()> {
    let mut command = lvm_command("lvchange");
    let tag = run_tag(id);
    command.args(["-qq", "--deltag", TEMPORARY_TAG, "--deltag", &tag, "--"]);
    command.arg(name.to_string());
    run(command, "lvchange", &name.to_string()).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitCode;

    const ID: &str = "0123456789abcdef0123456789abcdef";
    const GIB: u64 = 1 << 30;

    fn name(vg: &str, lv: &str) -> LvName {
        LvName::new(vg, lv).unwrap()
    }

    #[test]
    fn tags_and_name_together_tell_the_run() {
        let row = |lv: &str, tags: &[&str]| LvRow {
            lv_name: lv.to_owned(),
            lv_tags: tags.join(","),
            ..LvRow::default()
        };
        let tags = [TEMPORARY_TAG, "other", &run_tag(ID)];
        assert_eq!(run_of(&row("data-lvmsync-01234567", &tags)), Some(ID));
        assert_eq!(run_of(&row("vg/data-lvmsync-01234567", &tags)), Some(ID));
        assert_eq!(run_of(&row("keep", &tags)), None);
        assert_eq!(run_of(&row("data-lvmsync-01234567", &tags[..2])), None);
        assert_eq!(run_of(&row("data-lvmsync-01234567", &tags[2..])), None);
        assert_eq!(run_of(&row("x", &[TEMPORARY_TAG, "lvmsync_run_1"])), None);
    }

    #[test]
    fn a_name_tells_whose_it_is_and_has_room_for_what_lvm_appends() {
        let made = temporary_name(&name("vg", "data"), ID).unwrap();
        assert_eq!(made.to_string(), "vg/data-lvmsync-01234567");
        // Each hyphen of a name is two in device-mapper's.
        for (vg, lv) in [
            ("vg", "x".repeat(127)),
            ("vg", "-".repeat(60).replacen('-', "a", 1)),
            (&*"v".repeat(90), "data-with-a-long-name".to_owned()),
        ] {
            let made = temporary_name(&name(vg, &lv), ID).unwrap();
            assert!(made.dm_name().len() + "-real".len() <= 127, "{made}");
            assert!(made.lv().ends_with("-lvmsync-01234567"), "{made}");
            assert!(made.lv().starts_with(&lv[..1]) && reserved_part(made.lv()).is_none());
        }
        assert_eq!(temporary_name(&name(&"v".repeat(120), "x"), ID), None);
        assert_eq!(temporary_name(&name("vg", "data"), "short"), None);
    }

    #[test]
    fn a_chosen_name_is_held_against_the_rules_of_lvm() {
        let origin = name("vg", "data");
        for text in ["s1", "vg/s1"] {
            assert_eq!(chosen_name(&origin, text).unwrap(), name("vg", "s1"));
        }
        for (text, words) in [
            ("other/s1", "vg/NAME"),
            ("a b", "characters"),
            ("-s", "characters"),
            ("", "characters"),
            ("vg/a/b", "characters"),
            ("snapshot1", "`snapshot`"),
            ("my_tmeta", "`_tmeta`"),
            (&*"x".repeat(125), "too long"),
        ] {
            let error = chosen_name(&origin, text).unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::Usage, "{text}");
            assert!(error.chain().contains(words), "{}", error.chain());
        }
    }

    #[test]
    fn the_store_has_what_is_likely_to_be_written_and_never_more_than_it_can_need() {
        let origin = name("vg", "data");
        let extents = |origin_gib, asked, free_extents| {
            let extent_bytes = 4 << 20;
            let room = Room {
                extent_bytes,
                free_extents,
            };
            store_extents(&origin, origin_gib * GIB, asked, room).ok()
        };
        // 10 %, at least 1 GiB, and what is free if that is less.
        assert_eq!(extents(100, None, 1 << 20), Some(2560));
        assert_eq!(extents(5, None, 1 << 20), Some(256));
        assert_eq!(extents(100, None, 7), Some(7));
        assert_eq!(extents(100, None, 0), None);
        // As asked for, whole extents, and no more than ever can be used.
        assert_eq!(extents(100, Some(1), 9), Some(1));
        assert_eq!(extents(100, Some((4 << 20) + 1), 9), Some(2));
        assert_eq!(extents(100, Some(10 << 20), 2), None);
        assert_eq!(extents(1, Some(u64::MAX), 1 << 20), Some(258));
        // A whole one has a place for each chunk of 4 KiB and 16 bytes of the table for it.
        const { assert!(258 * (4 << 20) > GIB + GIB / 256) };
        assert_eq!(
            extents(u64::MAX / GIB, None, u64::MAX).map(|_| ()),
            Some(())
        );
    }

    #[test]
    fn without_room_the_refusal_names_the_ways_out() {
        let room = |free_extents| Room {
            extent_bytes: 4 << 20,
            free_extents,
        };
        let origin = name("vg", "data");
        let error = store_extents(&origin, GIB, Some(64 << 20), room(3)).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Refused);
        for words in [
            "vg has 3 extents (12.0 MiB) free, and 16 extents (64.0 MiB) are wanted",
            "--snapshot-size 12582912,",
            "--no-snapshot",
        ] {
            assert!(error.chain().contains(words), "{}", error.chain());
        }
        let error = store_extents(&origin, GIB, None, room(0)).unwrap_err();
        assert!(error.chain().contains("0 extents (0 B) free"));
        assert!(!error.chain().contains("--snapshot-size"));
    }

    #[test]
    fn a_report_of_vgs_is_understood() {
        let json = r#"{"report":[{"vg":[{"vg_extent_size":"4194304","vg_free_count":"7"}]}]}"#;
        let room = Room {
            extent_bytes: 4 << 20,
            free_extents: 7,
        };
        assert_eq!(parse_room(json), Some(room));
        for json in [
            "",
            "{}",
            r#"{"report":[{}]}"#,
            r#"{"report":[{"vg":[{"vg_extent_size":"0","vg_free_count":"7"}]}]}"#,
            r#"{"report":[{"vg":[{"vg_extent_size":"4m","vg_free_count":"7"}]}]}"#,
        ] {
            assert_eq!(parse_room(json), None, "{json}");
        }
    }

    #[test]
    fn what_is_made_is_read_only_and_tagged() {
        let (origin, made) = (name("vg", "data"), name("vg", "s"));
        let words = |extents| {
            let wanted = Wanted {
                origin: &origin,
                name: &made,
                id: ID,
                extents,
            };
            wanted.words().join(" ")
        };
        let common = format!(
            "-qq --yes --snapshot --permission r --addtag lvmsync_temporary --addtag lvmsync_run_{ID}"
        );
        assert_eq!(
            words(Some(3)),
            format!("{common} --extents 3 --name s -- vg/data")
        );
        assert_eq!(
            words(None),
            format!("{common} --setactivationskip n --name s -- vg/data")
        );
    }

    #[test]
    fn only_name_and_both_tags_together_are_proof() {
        let row = |lv: &str, tags: &str| LvRow {
            lv_name: lv.into(),
            lv_uuid: "u".into(),
            lv_tags: tags.into(),
            ..LvRow::default()
        };
        let (both, made) = (
            format!("x,lvmsync_temporary,lvmsync_run_{ID}"),
            name("vg", "s"),
        );
        assert!(find(&[row("s", &both)], &made, ID).is_some());
        for other in [
            row("other", &both),
            row("s", "lvmsync_temporary"),
            row("s", &format!("lvmsync_run_{ID}")),
            row("s", &format!("lvmsync_temporary,lvmsync_run_{ID}0")),
            row("s", ""),
        ] {
            assert!(find(&[other], &made, ID).is_none());
        }
    }
}
