//! Loop devices over files of the benchmarks' own, where root may make them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device that is given back in the end.
pub(crate) struct Loop(PathBuf);

impl Loop {
    /// Past the page cache of the file below it, where its filesystem can do that. `None` where there are none.
    pub(crate) fn over(file: &Path) -> Option<Self> {
        for direct in [&["--direct-io=on"][..], &[]] {
            let output = Command::new("losetup")
                .args(["--find", "--show"])
                .args(direct)
                .arg(file)
                .output();
            let output = output.ok().filter(|output| output.status.success());
            if let Some(output) = output {
                let device = String::from_utf8(output.stdout).ok()?;
                return Some(Self(PathBuf::from(device.trim())));
            }
        }
        None
    }

    pub(crate) fn device(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}
