//! What udev is told of devices that show a state.
//!
//! Guarantees: where udev runs, its rule for such devices is in force before the first of them is there; a rule that is
//! installed is left as it is; nothing outlives a reboot.

use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::lvm::{lvm_command, run};
use crate::error::{Error, Result};
use crate::partial_file::PartialFile;

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

/// Sees to it that no link in `/dev/disk` will lead to a device that shows a state, and that nobody scans it.
pub fn keep_links_away() -> Result<()> {
    let is_installed = INSTALLED.iter().any(|at| Path::new(at).join(NAME).exists());
    if is_installed || !Path::new(CONTROL).exists() {
        return Ok(());
    }
    put(&Path::new(RUNTIME).join(NAME))?;
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
    let file = PartialFile::create(path, true)?;
    file.file()
        .and_then(|mut file| file.write_all(RULES.as_bytes()))
        .map_err(failed)?;
    file.persist()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dm::shown::{UUID_PREFIX, uuid_of};

    #[test]
    fn the_rule_is_about_the_devices_that_we_make() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rules.d").join(NAME);
        put(&path).unwrap();
        put(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let rules: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let [rule] = rules[..] else {
            panic!("{rules:?}");
        };
        assert!(rule.contains(&format!("ATTR{{dm/uuid}}==\"{UUID_PREFIX}?*\"")));
        assert!(uuid_of("x").starts_with(UUID_PREFIX));
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
    }
}
