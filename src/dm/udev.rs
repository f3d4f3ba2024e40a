//! What udev is told of devices that show a state, and of the snapshots below them.
//!
//! Guarantees: where udev runs, its rule for such devices is in force before the first of them is there; a rule that is
//! installed is left as it is; nothing outlives a reboot.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::lvm::{lvm_command, run};
use crate::error::{Error, Result};

/// There while it runs.
const CONTROL: &str = "/run/udev/control";
/// Where rules are looked for, and where those that go with a reboot are.
const INSTALLED: [&str; 3] = [
    "/etc/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
];
const RUNTIME: &str = "/run/udev/rules.d";
const NAME: &str = "12-lvmsync-view.rules";
const RULES: &str = include_str!("../../contrib/udev/12-lvmsync-view.rules");

/// Sees to it that no link in `/dev/disk` will lead to a device that shows a state, and that nobody scans it; and that a link
/// that could lead to a temporary snapshot as well leads to its origin.
pub fn keep_links_away() -> Result<()> {
    let is_installed = INSTALLED.iter().any(|at| Path::new(at).join(NAME).exists());
    if is_installed || !Path::new(CONTROL).exists() {
        return Ok(());
    }
    let path = Path::new(RUNTIME).join(NAME);
    // Whoever has put it there may not have told udev yet.
    if fs::read(&path).map_or(true, |found| found != RULES.as_bytes()) {
        put(&path)?;
    }
    let mut command = lvm_command("udevadm");
    command.args(["control", "--reload"]);
    run(command, "udevadm", "udev").map(|_| ())
}

/// Written beside and renamed: udev may read it at any moment.
fn put(path: &Path) -> Result<()> {
    let failed = |error| {
        let action = format!(
            "cannot tell udev to leave the device alone: {} (or install contrib/udev/{NAME})",
            path.display()
        );
        Error::io(action, error)
    };
    let directory = path.parent().unwrap_or(path);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(failed)?;
    // Another run may do the same.
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&beside, RULES)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dm::name::LvName;
    use crate::dm::shown::{UUID_PREFIX, uuid_of};
    use crate::dm::temporary::temporary_name;

    #[test]
    fn the_rule_is_about_the_devices_that_we_make() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rules.d").join(NAME);
        put(&path).unwrap();
        put(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let rules: Vec<&str> = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        let [of_views, of_snapshots] = rules[..] else {
            panic!("{rules:?}");
        };
        assert!(of_views.contains(&format!("ATTR{{dm/uuid}}==\"{UUID_PREFIX}?*\"")));
        let snapshot = LvName::new("my-vg", "data").unwrap();
        let id = "0123456789abcdef0123456789abcdef";
        let snapshot = temporary_name(&snapshot, id).unwrap().dm_name();
        let eight = "?".repeat(8);
        assert!(of_snapshots.contains(&format!("ATTR{{dm/name}}==\"*--lvmsync--{eight}\"")));
        assert!(snapshot.ends_with("--lvmsync--01234567"));
        assert!(uuid_of("x").starts_with(UUID_PREFIX));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
