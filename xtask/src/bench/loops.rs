//! Loop devices over files of the benchmarks' own, where root may make them.
//!
//! Guarantees: they are gone when this process is, however that ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device that is given back in the end.
pub(crate) struct Loop {
    device: PathBuf,
    /// Given back already, but for this: the kernel waits until nobody has it open.
    _open: File,
}

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
                let device = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
                let open = File::open(&device);
                let detach = Command::new("losetup")
                    .arg("--detach")
                    .arg(&device)
                    .status();
                return open
                    .ok()
                    .filter(|_| detach.is_ok_and(|status| status.success()))
                    .map(|open| Self {
                        device,
                        _open: open,
                    });
            }
        }
        None
    }

    pub(crate) fn device(&self) -> &Path {
        &self.device
    }
}
