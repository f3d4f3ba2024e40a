//! Thin pools in lab tests: what the kernel's own tools say of two volumes, and what a run may leave behind.

use std::collections::BTreeMap;
use std::fs;

use lab::Guest;

use super::Tool;

const SECTOR: u64 = 512;

/// A volume group on disk `disk` for thin pools. Its extents are small, so that volumes end inside of pool chunks.
pub(crate) fn group(guest: &Guest, name: &str, disk: usize) {
    guest.sh(&format!(
        "vgcreate -qq --yes -s 128k {name} {}",
        guest.disk(disk).display()
    ));
}

/// A pool of `mebibytes` with chunks of `chunk_kib`. `options` for `lvcreate`: `-Zn` for one that does not zero.
pub(crate) fn pool(guest: &Guest, name: &str, mebibytes: u64, chunk_kib: u64, options: &str) {
    guest.sh(&format!(
        "lvcreate -qq -y --type thin-pool -L {mebibytes}M -c {chunk_kib}k --poolmetadatasize 4M \
         --poolmetadataspare n {options} -n {} {} 2>&1",
        name.split_once('/').unwrap().1,
        name.split_once('/').unwrap().0
    ));
}

/// What `lvs` says of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) id: u64,
    pub(crate) size: u64,
    pub(crate) active: bool,
}

/// Every thin volume of a group.
pub(crate) fn thin_volumes(guest: &Guest, group: &str) -> BTreeMap<String, Known> {
    let columns = "lv_name,thin_id,lv_size,lv_active";
    let rows = guest.sh(&format!(
        "lvs --noheadings --units b --nosuffix --separator , -S segtype=thin -o {columns} {group}"
    ));
    let known = rows.lines().map(|row| {
        let mut cells = row.trim().split(',');
        let mut cell = || cells.next().unwrap();
        let name = cell().to_owned();
        let known = Known {
            id: cell().parse().unwrap(),
            size: cell().parse().unwrap(),
            active: cell() == "active",
        };
        (name, known)
    });
    known.collect()
}

/// A change list, as plain as it can be: offset, length, data or zero.
pub(crate) type List = Vec<(u64, u64, String)>;

/// What has to be sent to make a copy of `old` one of `new`, by `thin_delta` on a metadata snapshot of `pool`.
pub(crate) fn list_by_thin_delta(guest: &Guest, pool: &str, old: Known, new: Known) -> List {
    let device = format!("/dev/mapper/{}", pool.replace('/', "-"));
    let text = guest.sh(&format!(
        "dmsetup message {device}-tpool 0 reserve_metadata_snap
         blockdev --flushbufs {device}_tmeta
         thin_delta --metadata-snap --thin1 {} --thin2 {} {device}_tmeta
         dmsetup message {device}-tpool 0 release_metadata_snap",
        old.id, new.id
    ));
    list_of_xml(&text, old.size, new.size)
}

fn list_of_xml(text: &str, old_size: u64, new_size: u64) -> List {
    let attribute = |line: &str, name: &str| -> u64 {
        let value = line.split(&format!("{name}=\"")).nth(1).unwrap();
        value.split('"').next().unwrap().parse().unwrap()
    };
    let mut block = 0;
    // For each sector of NEW: does it differ, is it mapped?
    let sectors = (new_size / SECTOR) as usize;
    let (mut differs, mut mapped) = (vec![false; sectors], vec![false; sectors]);
    for line in text.lines().map(str::trim) {
        let word = line.trim_start_matches('<').split([' ', '>']).next();
        let (is_mapped, is_new) = match word {
            Some("superblock") => {
                block = attribute(line, "data_block_size");
                continue;
            }
            Some("same") => (true, false),
            Some("different" | "right_only") => (true, true),
            Some("left_only") => (false, true),
            _ => continue,
        };
        let begin = attribute(line, "begin") * block;
        let end = begin + attribute(line, "length") * block;
        for sector in begin..end.min(sectors as u64) {
            (mapped[sector as usize], differs[sector as usize]) = (is_mapped, is_new);
        }
    }
    let is_listed = |n: usize| differs[n] || n as u64 >= old_size / SECTOR;
    coalesced((0..sectors).filter(|n| is_listed(*n)).map(|n| {
        let kind = if mapped[n] { "data" } else { "zero" };
        (n as u64 * SECTOR, SECTOR, kind.to_owned())
    }))
}

/// Neighbours of one kind become one.
fn coalesced(list: impl Iterator<Item = (u64, u64, String)>) -> List {
    let mut whole: List = Vec::new();
    for (offset, length, kind) in list {
        match whole.last_mut() {
            Some(last) if last.0 + last.1 == offset && last.2 == kind => last.1 += length,
            _ => whole.push((offset, length, kind)),
        }
    }
    whole
}

impl Tool {
    /// What `diff --json` lists.
    #[track_caller]
    pub(crate) fn thin_diff(&self, arguments: &str) -> List {
        let run = self.run(&format!("diff {arguments} --json")).ok();
        let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        let extents = json["extents"].as_array().unwrap().iter();
        coalesced(extents.map(|extent| {
            let number = |name: &str| extent[name].as_u64().unwrap();
            let kind = extent["kind"].as_str().unwrap().to_owned();
            (number("offset"), number("length"), kind)
        }))
    }

    /// Records of what is held for a while.
    pub(crate) fn held(&self) -> Vec<String> {
        held_in(&self.path("state"))
    }
}

/// Records of what is held, below a state directory, and on this machine.
pub(crate) fn held_in(state: &std::path::Path) -> Vec<String> {
    let held = [state.join("held"), "/run/lvmsync".into()];
    let entries = held.iter().flat_map(fs::read_dir).flatten();
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !name.ends_with(".lock"))
        .collect()
}

/// The words of the status of the pool `vg/pool`.
pub(crate) fn status(guest: &Guest, pool: &str) -> Vec<String> {
    let name = pool.replace('/', "-");
    let text = guest.sh(&format!("dmsetup status {name}-tpool"));
    text.split_whitespace().skip(3).map(str::to_owned).collect()
}

/// The block of the metadata snapshot of an active pool, as text; `-` where there is none.
pub(crate) fn held_root(guest: &Guest, pool: &str) -> String {
    status(guest, pool).swap_remove(3)
}

/// Whether there is a device for `vg/lv`.
pub(crate) fn is_active(name: &str) -> bool {
    let (group, volume) = name.split_once('/').unwrap();
    let wanted = format!("{group}-{volume}");
    let devices = fs::read_dir("/sys/block").unwrap();
    devices
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("dm/name")).ok())
        .any(|name| name.trim() == wanted)
}

/// Runs one LVM command in a way that says nothing when all is well.
pub(crate) fn lvm(guest: &Guest, command: &str) {
    guest.sh(&format!("{command} 2>&1"));
}
