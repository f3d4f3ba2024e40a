//! Which kernels keep dm-era's record whole.
//!
//! Pure. Guarantees: what cannot be read as a version is refused.

use std::path::Path;

use crate::error::{Error, Result};

/// The first kernel that has all corrections.
const FIRST_SOUND: (u32, u32) = (5, 12);

/// An error if the kernel with this release (`uname -r`) may lose what was written.
pub fn refuse_unsound(release: &str) -> Result<()> {
    let refused = |found: String| {
        Err(Error::refused(
            format!("kernel {}", release.trim()),
            format!(
                "{found}. Before 5.12, dm-era may lose the writes of an era that it has committed already when the machine \
                 crashes or the device is reloaded, so a list from its record may be short"
            ),
            "Use a kernel of version 5.12 or later, or follow the volume with snapshots: lvmsync replicate",
        ))
    };
    match version(release) {
        Some(found) if found >= FIRST_SOUND => Ok(()),
        Some(_) => refused("it is too old to be trusted with dm-era".to_owned()),
        None => refused("its version cannot be read".to_owned()),
    }
}

/// The same for the kernel that runs.
pub fn refuse_running() -> Result<()> {
    let path = Path::new("/proc/sys/kernel/osrelease");
    let release = std::fs::read_to_string(path)
        .map_err(|error| Error::io("cannot read the version of the kernel", error))?;
    refuse_unsound(&release)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(['.', '-', '+', '_']);
    let major = numbers.next()?.parse().ok()?;
    Some((major, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitCode;

    #[test]
    fn kernels_before_5_12_are_refused_with_the_reason() {
        for release in ["5.12.0", "5.12", "5.100.1-rc1", "6.1.0-18-amd64\n", "10.0"] {
            refuse_unsound(release).unwrap();
        }
        for release in [
            "5.11.22",
            "4.19.0-26-amd64",
            "3.10.0-1160.el7",
            "",
            "x.y",
            "6",
        ] {
            let error = refuse_unsound(release).unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::Refused, "{release}");
            assert!(error.chain().contains("5.12"), "{}", error.chain());
        }
    }
}
