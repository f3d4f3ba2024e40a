//! Direct mode: a test's body on this machine instead of a guest, with loop devices as disks. For a machine that is
//! there for it, since a test that fails may leave volume groups behind; they are on the loop devices alone, and so is
//! all that LVM sees meanwhile.

use crate::error::{Error, Result, While};
use crate::inside::Guest;
use crate::job::Job;
use crate::setup::Setup;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs `body`; detaches the loop devices afterwards, also if it panics.
///
/// `set_env` would not be sound in a test process, which has threads: the variables have to be there already.
pub(crate) fn run(name: &str, setup: &Setup, body: impl FnOnce(&Guest)) -> Result<()> {
    possible()?;
    let job = Job::create(name, setup)?;
    let scratch = job.path("scratch");
    std::fs::create_dir(&scratch).during(|| format!("cannot create {}", scratch.display()))?;
    let loops = Loops::attach(job.disks())?;
    let guest = Guest {
        disks: loops.0.clone(),
        scratch,
        shared: job.directory().to_owned(),
    };
    body(&guest);
    drop(loops);
    Ok(())
}

fn possible() -> Result<()> {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/mapper/control").exists() {
        return Err(Error::new(
            "LVMSYNC_LAB=direct needs root and /dev/mapper/control",
        ));
    }
    Ok(())
}

struct Loops(Vec<PathBuf>);

impl Loops {
    fn attach(files: &[PathBuf]) -> Result<Self> {
        let mut loops = Self(Vec::new());
        for file in files {
            let output = Command::new("losetup")
                .args(["--find", "--show"])
                .arg(file)
                .output()
                .during(|| "cannot run losetup".to_owned())?;
            if !output.status.success() {
                return Err(Error::new(format!(
                    "losetup failed: {}",
                    String::from_utf8_lossy(&output.stderr)
                )));
            }
            loops.0.push(PathBuf::from(
                String::from_utf8_lossy(&output.stdout).trim(),
            ));
        }
        Ok(loops)
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.0 {
            let _ = Command::new("losetup").arg("--detach").arg(device).status();
        }
    }
}
