//! Reading what the kernel and its tools print about themselves.
//!
//! Guarantees: pure; what cannot be understood is `None` or left out, never guessed.

use std::collections::BTreeSet;

use super::facts::{Modules, PoolStatus};
use crate::dm::{
    self,
    lvm::LvRow,
    pool_status::{Mode, parse_pool_status},
};

/// `6.1.0-18-amd64` is 6 and 1.
pub(super) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Reads `modules.dep` and `modules.builtin`.
pub(super) fn modules(dep: &str, builtin: &str) -> Modules {
    let names = |text: &str| -> BTreeSet<String> { text.lines().filter_map(module_name).collect() };
    Modules {
        loadable: names(dep),
        builtin: names(builtin),
    }
}

/// `kernel/drivers/md/dm-snapshot.ko.xz: kernel/…` is `dm_snapshot`.
fn module_name(line: &str) -> Option<String> {
    let path = line.split(':').next()?;
    let file = path.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_")).filter(|name| !name.is_empty())
}

/// The status line of a thin pool.
pub(super) fn pool_status(line: &str) -> Option<PoolStatus> {
    Some(match parse_pool_status(line).ok()? {
        dm::pool_status::PoolStatus::Failed => PoolStatus::Failed,
        dm::pool_status::PoolStatus::Working(figures) => PoolStatus::Running {
            metadata: (figures.metadata.used, figures.metadata.total),
            data: (figures.data.used, figures.data.total),
            held_root: figures.held_root.is_some(),
            restricted: figures.mode != Mode::ReadWrite,
            needs_check: figures.needs_check,
        },
    })
}

/// A file that somebody has locked: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lock {
    major: u32,
    minor: u32,
    inode: u64,
}

impl Lock {
    /// True if it may be this file. Filesystems with numbers of their own (btrfs, overlay) are known to
    /// `/proc/locks` by another one: there the inode has to do.
    pub(super) fn is_of(&self, (major, minor): (u32, u32), inode: u64) -> bool {
        self.inode == inode && (major == 0 || (self.major, self.minor) == (major, minor))
    }
}

/// The whole-file locks of `/proc/locks`.
pub(super) fn locks(text: &str) -> Vec<Lock> {
    text.lines().filter_map(lock).collect()
}

/// `2: FLOCK  ADVISORY  WRITE 6842 fe:00:5358374 0 EOF`; blocked waiters have an arrow after the number.
fn lock(line: &str) -> Option<Lock> {
    let mut words = line.split_ascii_whitespace().skip(1);
    if words.next()? != "FLOCK" {
        return None;
    }
    let mut file = words.nth(3)?.split(':');
    let mut hex = || u32::from_str_radix(file.next()?, 16).ok();
    let (major, minor) = (hex()?, hex()?);
    Some(Lock {
        major,
        minor,
        inode: file.next()?.parse().ok()?,
    })
}

/// The version in what a tool prints: the first line that has one, without the label before it.
pub(super) fn tool_version(text: &str) -> Option<String> {
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with(|c: char| c.is_ascii_digit()) || has_version(line))?;
    let version = match line.split_once(':') {
        Some((label, rest)) if label.ends_with("version") => rest.trim(),
        _ => line,
    };
    Some(version.to_owned())
}

fn has_version(line: &str) -> bool {
    line.contains("version:") || line.starts_with("OpenSSH")
}

/// The identity in the JSON of a record that is damaged somewhere.
pub(super) fn identity_in(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let rest = text.split_once("\"identity\":")?.1.trim_start();
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    values.next()?.ok()
}

/// Names, UUIDs and tags of volumes, as `lvs --separator '|'` prints them. Other lines are warnings.
pub(super) fn tagged(text: &str) -> Vec<LvRow> {
    let row = |line: &str| {
        let mut cells = line.trim().split('|').map(str::to_owned);
        let (lv_name, lv_uuid, lv_tags) = (cells.next()?, cells.next()?, cells.next()?);
        Some(LvRow {
            lv_name,
            lv_uuid,
            lv_tags,
            ..LvRow::default()
        })
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn releases_of_kernels_begin_with_their_version() {
        for (release, version) in [
            ("6.1.0-18-amd64", Some((6, 1))),
            ("5.12-rc1", Some((5, 12))),
            ("4.19.0", Some((4, 19))),
            ("six", None),
            ("6", None),
            ("", None),
        ] {
            assert_eq!(kernel_version(release), version, "{release}");
        }
    }

    #[test]
    fn modules_have_one_name_however_they_are_packed() {
        let dep = "kernel/drivers/md/dm-snapshot.ko.xz: kernel/drivers/md/dm-bufio.ko.xz\n\
                   kernel/drivers/md/dm-era.ko:\nextra/dm-thin-pool.ko.zst:\n# nonsense\n";
        let found = modules(dep, "kernel/drivers/md/dm-mod.ko\n");
        let names: Vec<_> = found.loadable.iter().map(String::as_str).collect();
        assert_eq!(names, ["dm_era", "dm_snapshot", "dm_thin_pool"]);
        assert!(found.builtin.contains("dm_mod"));
    }

    #[test]
    fn the_status_of_a_thin_pool_is_read() {
        let line = "1 406/512 40/1024 - rw no_discard_passdown queue_if_no_space - 1024";
        let running = |held_root, restricted, needs_check| PoolStatus::Running {
            metadata: (406, 512),
            data: (40, 1024),
            held_root,
            restricted,
            needs_check,
        };
        assert_eq!(pool_status(line), Some(running(false, false, false)));
        let held = line.replace(" - rw", " 83 rw");
        assert_eq!(pool_status(&held), Some(running(true, false, false)));
        let sick = line
            .replace("rw", "ro")
            .replace("space -", "space needs_check");
        assert_eq!(pool_status(&sick), Some(running(false, true, true)));
        let full = line.replace("rw", "out_of_data_space");
        assert_eq!(pool_status(&full), Some(running(false, true, false)));
        assert_eq!(pool_status("Fail"), Some(PoolStatus::Failed));
        for line in ["", "1", "1 a/b 1/2 - rw", "1 1/2 3 - rw"] {
            assert_eq!(pool_status(line), None, "{line}");
        }
    }

    #[test]
    fn locks_are_found_by_device_and_inode() {
        let text = "1: POSIX  ADVISORY  WRITE 5886 fe:00:788901 0 EOF\n\
                    2: FLOCK  ADVISORY  WRITE 6842 fe:00:5358374 0 EOF\n\
                    2: -> FLOCK  ADVISORY  WRITE 6843 fe:00:5358374 0 EOF\nnonsense\n";
        let found = locks(text);
        assert_eq!(found.len(), 1);
        assert!(found[0].is_of((254, 0), 5_358_374));
        assert!(
            found[0].is_of((0, 40), 5_358_374),
            "a filesystem with its own numbers"
        );
        assert!(!found[0].is_of((8, 1), 5_358_374) && !found[0].is_of((254, 0), 788_901));
    }

    #[test]
    fn versions_come_without_labels_and_warnings() {
        let lvm = "  LVM version:     2.03.16(2) (2022-05-18)\n  Library version: 1.02.185 (2022-05-18)\n";
        let dmsetup = "Library version:   1.02.185 (2022-05-18)\nDriver version:    4.48.0\n";
        let ssh =
            "banner of a wrapper\nOpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.19 27 Jan 2026\n";
        for (text, version) in [
            (lvm, "2.03.16(2) (2022-05-18)"),
            (dmsetup, "1.02.185 (2022-05-18)"),
            (
                ssh,
                "OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.19 27 Jan 2026",
            ),
            ("0.9.0\n", "0.9.0"),
        ] {
            assert_eq!(tool_version(text).as_deref(), Some(version));
        }
        assert_eq!(tool_version("no such thing\n"), None);
    }

    #[test]
    fn an_identity_is_found_in_a_record_with_damage_elsewhere() {
        let bytes = b"lvmsync state 1 00000000\n{\n  \"identity\": \"file:7:1.2\",\n  \"na\xff";
        assert_eq!(identity_in(bytes).as_deref(), Some("file:7:1.2"));
        assert_eq!(identity_in(b"\"identity\": 5"), None);
        assert_eq!(identity_in(b""), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "[-a-zA-Z0-9:/. \n>\"]{0,80}") {
            let _ = (kernel_version(&text), modules(&text, &text), pool_status(&text), locks(&text));
            let _ = (tool_version(&text), identity_in(text.as_bytes()));
        }
    }

    #[test]
    fn rows_of_lvs_have_tags_and_warnings_are_no_rows() {
        let rows = tagged("  WARNING: a disk is gone\n  s1|uuid|a,b\n  s2|other|\n");
        assert_eq!(rows.len(), 2);
        assert_eq!((&*rows[0].lv_name, &*rows[0].lv_tags), ("s1", "a,b"));
        assert_eq!((&*rows[1].lv_uuid, &*rows[1].lv_tags), ("other", ""));
    }
}
