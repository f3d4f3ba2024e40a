//! What only LVM's metadata knows: volumes that are inactive, absent, or something else than expected.
//!
//! Guarantees: one command, `lvs`, which changes nothing; its report is parsed by pure code; the names
//! given to it were checked by [`LvName`]. It takes half a second and more, so only slow paths come here.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::name::LvName;
use crate::error::{Error, Result};
use crate::units::SECTOR_BYTES;

/// One row of `lvs -a`: values as LVM prints them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LvRow {
    /// Volume group.
    pub vg_name: String,
    /// Logical volume; in brackets if it is a hidden one.
    pub lv_name: String,
    /// Dashed UUID.
    pub lv_uuid: String,
    /// Size in bytes.
    pub lv_size: String,
    /// `active` or empty.
    pub lv_active: String,
    /// The attribute letters.
    pub lv_attr: String,
    /// Roles, separated by commas: `thicksnapshot`, `thickorigin`, …
    pub lv_role: String,
    /// Segment type: `linear`, `thin`, `thin-pool`, …
    pub segtype: String,
    /// Origin of a snapshot; in brackets if it is hidden.
    pub origin: String,
    /// Pool of a thin volume.
    pub pool_lv: String,
    /// `skip activation` or empty.
    pub lv_skip_activation: String,
    /// Number of a thin volume in its pool.
    pub thin_id: String,
    /// Tags, separated by commas.
    pub lv_tags: String,
}

impl LvRow {
    /// The name without the brackets of hidden volumes.
    pub fn name(&self) -> &str {
        unbracketed(&self.lv_name)
    }

    /// `vg/lv`, as people and commands have it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.vg_name, self.lv_name)
    }

    /// The origin without brackets; `None` for what is not a snapshot.
    pub fn origin(&self) -> Option<&str> {
        Some(unbracketed(&self.origin)).filter(|name| !name.is_empty())
    }

    /// True if the volume has a device.
    pub fn is_active(&self) -> bool {
        self.lv_active.starts_with("active")
    }

    /// True for a classic snapshot.
    pub fn is_thick_snapshot(&self) -> bool {
        self.has_role("thicksnapshot")
    }

    /// True for a thin snapshot whose origin is still there.
    pub fn is_thin_snapshot(&self) -> bool {
        self.has_role("thinsnapshot")
    }

    /// True if thin volumes read this volume where they are not mapped.
    pub fn is_external_origin(&self) -> bool {
        ["extthinorigin", "multiextthinorigin"]
            .iter()
            .any(|role| self.has_role(role))
    }

    fn has_role(&self, role: &str) -> bool {
        self.lv_role.split(',').any(|found| found == role)
    }

    /// True if LVM's metadata forbids writes.
    pub fn is_read_only(&self) -> bool {
        matches!(self.lv_attr.as_bytes().get(1), Some(b'r' | b'R'))
    }

    /// True if only `lvchange -K` activates it.
    pub fn skips_activation(&self) -> bool {
        !self.lv_skip_activation.is_empty()
    }
}

const COLUMNS: &str = "vg_name,lv_name,lv_uuid,lv_size,lv_active,lv_attr,lv_role,segtype,origin,\
                       pool_lv,lv_skip_activation,thin_id,lv_tags";

#[derive(Deserialize)]
struct Reports {
    report: Vec<Report>,
}

#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    lv: Vec<LvRow>,
}

/// Reads the report of `lvs --reportformat json`.
pub fn parse_report(json: &str) -> std::result::Result<Vec<LvRow>, serde_json::Error> {
    let reports: Reports = serde_json::from_str(json)?;
    Ok(reports
        .report
        .into_iter()
        .flat_map(|report| report.lv)
        .collect())
}

/// All volumes of a group, hidden ones included.
pub fn volumes_of(vg: &str) -> Result<Vec<LvRow>> {
    volumes(Some(vg))
}

/// All volumes of all groups, hidden ones included.
pub fn all_volumes() -> Result<Vec<LvRow>> {
    volumes(None)
}

/// True if LVM finds a group of this name.
pub fn has_group(vg: &str) -> Result<bool> {
    super::era::refuse_any_suspended()?;
    let mut command = lvm_command("vgs");
    command.args(["--noheadings", "-o", "vg_name"]);
    let groups = run(command, "vgs", "LVM")?;
    Ok(groups.lines().any(|line| line.trim() == vg))
}

fn volumes(vg: Option<&str>) -> Result<Vec<LvRow>> {
    let failed = |reason: String| Error::Lvm {
        what: match vg {
            Some(vg) => format!("volume group {vg}"),
            None => "LVM".to_owned(),
        },
        reason,
    };
    super::era::refuse_any_suspended()?;
    let output = lvm_command("lvs")
        .args([
            "-a",
            "--reportformat",
            "json",
            "--units",
            "b",
            "--nosuffix",
            "-o",
            COLUMNS,
        ])
        .arg("--")
        .args(vg)
        .output()
        .map_err(|error| failed(explain_spawn(&error)))?;
    if !output.status.success() {
        return Err(failed(explain_failure(
            vg.unwrap_or_default(),
            &String::from_utf8_lossy(&output.stderr),
        )));
    }
    parse_report(&String::from_utf8_lossy(&output.stdout))
        .map_err(|error| failed(format!("cannot understand the report of `lvs`: {error}")))
}

/// Why there is no device for this volume, with the way out. Asks `lvs`. `otherwise` is what else may be wrong, where LVM
/// knows no such group.
pub fn explain_no_device(name: &LvName, otherwise: Option<String>) -> Error {
    match (volumes_of(name.vg()), otherwise) {
        (Ok(rows), _) => Error::Lvm {
            what: name.to_string(),
            reason: no_device_reason(name, &rows),
        },
        (Err(Error::Lvm { what, reason }), Some(otherwise)) => Error::Lvm {
            what,
            reason: format!("{reason}; if a file is meant: {otherwise}"),
        },
        (Err(error), _) => error,
    }
}

/// The same, from the rows: pure.
pub(super) fn no_device_reason(name: &LvName, rows: &[LvRow]) -> String {
    let vg = name.vg();
    let Some(row) = rows.iter().find(|row| row.name() == name.lv()) else {
        return format!(
            "there is no logical volume {} in volume group {vg}",
            name.lv()
        );
    };
    if row.is_active() {
        // Hidden while it is merged: the row says active, but there is nothing to open.
        return "LVM calls it active, but it has no device of its own: it may be merging into its \
                origin or be a hidden part of another volume"
            .to_owned();
    }
    let flag = if row.skips_activation() { "-K " } else { "" };
    let activate = match (row.is_thick_snapshot(), row.origin()) {
        // A classic snapshot is activated together with its origin, and only so.
        (true, Some(origin)) => format!("lvchange -ay {vg}/{origin}"),
        _ => format!("lvchange -ay {flag}{name}"),
    };
    format!("the logical volume is not active, so it has no device; activate it: {activate}")
}

/// One of LVM's commands, with an environment that does not depend on whose it is.
pub(crate) fn lvm_command(name: &str) -> Command {
    let program = installed(name);
    let mut command = Command::new(program.unwrap_or_else(|| name.into()));
    command
        .env("LC_ALL", "C")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .stdin(Stdio::null());
    command
}

/// Runs one of them, and gives what it says on stdout.
pub(super) fn run(mut command: Command, program: &str, what: &str) -> Result<String> {
    let failed = |reason: String| Error::Lvm {
        what: what.to_owned(),
        reason,
    };
    let package = match program {
        "dmsetup" => "dmsetup",
        "losetup" => "mount or util-linux",
        "udevadm" => "udev",
        _ => "lvm2",
    };
    // Ctrl-C does not reach it: the run takes back what it has made.
    let output = command.process_group(0).output().map_err(|error| {
        failed(format!(
            "cannot run `{program}` (package {package}): {error}"
        ))
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = said.collect::<Vec<_>>().join("; ");
    Err(failed(format!("`{program}` failed: {said}")))
}

/// The tools live in a directory that an ordinary user's PATH may lack.
fn installed(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/sbin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
}

/// LVM can be asked.
pub fn is_installed() -> bool {
    let on_path = |path: OsString| std::env::split_paths(&path).any(|at| at.join("lvs").exists());
    installed("lvs").is_some() || std::env::var_os("PATH").is_some_and(on_path)
}

fn explain_spawn(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no active volume of that name, and LVM's tools, which know of inactive ones, \
             are not installed (no `lvs`; install the package lvm2)"
                .to_owned()
        }
        _ => format!("cannot run `lvs`: {error}"),
    }
}

fn explain_failure(vg: &str, stderr: &str) -> String {
    let words = stderr
        .split('\n')
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let words = words.collect::<Vec<_>>().join("; ");
    if words.contains(&format!("Volume group \"{vg}\" not found")) {
        return "there is no volume group of that name on this machine (`vgs` lists them)"
            .to_owned();
    }
    if rustix::process::geteuid().is_root() {
        format!("`lvs` failed: {words}")
    } else {
        format!("`lvs` failed, and may need root: {words}")
    }
}

/// Where LVM looks for the label of a physical volume: in the first four sectors of a device.
pub const LABEL_BYTES: u64 = 4 * SECTOR_BYTES;

/// What begins like this is a physical volume of LVM.
pub fn has_label(beginning: &[u8]) -> bool {
    let sector = usize::try_from(SECTOR_BYTES).unwrap_or(512);
    let mut sectors = beginning.chunks(sector);
    sectors.any(|sector| sector.starts_with(b"LABELONE"))
}

fn unbracketed(name: &str) -> &str {
    name.strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What lvm2 2.03.16 printed for a group with an origin, a snapshot and a skipped thin snapshot.
    const REPORT: &str = include_str!("../../testdata/lvs/volumes.json");

    fn reason(lv: &str) -> String {
        let rows = parse_report(REPORT).unwrap();
        no_device_reason(&LvName::new("my-vg", lv).unwrap(), &rows)
    }

    #[test]
    fn a_report_of_a_real_lvs_parses() {
        let rows = parse_report(REPORT).unwrap();
        assert_eq!(rows.len(), 9);
        let get = |name: &str| rows.iter().find(|row| row.name() == name).unwrap();
        assert_eq!(get("s1").origin(), Some("data"));
        assert!(get("s1").is_thick_snapshot() && get("s1").is_active());
        assert_eq!(get("data").origin(), None);
        assert_eq!(
            get("data").lv_uuid,
            "9tMMKB-v9gm-Tf6g-DUV2-hDMg-tdht-97qUQn"
        );
        assert_eq!(get("pool_tmeta").lv_name, "[pool_tmeta]");
        assert!(get("t1snap").skips_activation() && !get("t1snap").is_active());
        assert!(!get("t1snap").is_thick_snapshot());
        assert!(
            parse_report(r#"{"report":[{}], "log":[]}"#)
                .unwrap()
                .is_empty()
        );
        for json in ["", "[]", "{}", r#"{"report":[{"lv":[{"lv_name":1}]}]}"#] {
            assert!(parse_report(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_missing_device_is_explained_with_the_way_out() {
        assert!(
            reason("off").ends_with("lvchange -ay my-vg/off"),
            "{}",
            reason("off")
        );
        assert!(
            reason("t1snap").ends_with("lvchange -ay -K my-vg/t1snap"),
            "{}",
            reason("t1snap")
        );
        assert!(reason("none").contains("no logical volume none in volume group my-vg"));
        let mut rows = parse_report(REPORT).unwrap();
        rows.iter_mut()
            .for_each(|row| row.lv_active = String::new());
        let snapshot = no_device_reason(&LvName::new("my-vg", "s1").unwrap(), &rows);
        assert!(snapshot.ends_with("lvchange -ay my-vg/data"), "{snapshot}");
    }

    #[test]
    fn failures_of_lvs_are_told_in_its_words() {
        let absent = "  Volume group \"nope\" not found\n  Cannot process volume group nope\n";
        assert!(explain_failure("nope", absent).contains("no volume group"));
        assert!(explain_failure("vg", "  Command failed\n").contains("Command failed"));
    }
}
