//! Direct mode: a test's body on this machine instead of a guest, with loop devices as disks. For a machine that is
//! there for it, since a test that is killed leaves its volume groups behind.
//!
//! Guarantees: LVM commands that are run through [`Guest::sh`] see the test's loop devices and nothing else, by a
//! configuration of their own, so that a volume group of this machine with the same name is neither found nor touched.

use crate::error::{Error, Result, While};
use crate::inside::{Guest, NeedsGuest};
use crate::job::Job;
use crate::setup::Setup;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs `body`; detaches the loop devices afterwards, also if it panics.
pub(crate) fn run(name: &str, setup: &Setup, body: impl FnOnce(&Guest)) -> Result<Ran> {
    possible()?;
    let job = Job::create(name, setup)?;
    let scratch = job.path("scratch");
    create_directory(&scratch)?;
    let loops = Loops::attach(job.disks())?;
    let groups = Groups {
        configuration: isolated_lvm(&job, &loops.0)?,
    };
    let mut env = setup.env.clone();
    env.push(("PATH".to_owned(), path_with(&job, &setup.programs)?));
    env.push(("LVM_SYSTEM_DIR".to_owned(), groups.configuration.clone()));
    env.push(("LVM_SUPPRESS_FD_WARNINGS".to_owned(), "1".to_owned()));
    let guest = Guest {
        disks: loops.0.clone(),
        scratch,
        shared: job.directory().to_owned(),
        env,
        is_guest: false,
    };
    let ended = catch_unwind(AssertUnwindSafe(|| body(&guest)));
    // The groups before the disks that they are on; a body that panics drops them in this order, too.
    drop(groups);
    drop(loops);
    match ended {
        Ok(()) => Ok(Ran::Whole),
        Err(reason) => match reason.downcast::<NeedsGuest>() {
            Ok(needs) => Ok(Ran::UpTo(needs.0)),
            Err(reason) => resume_unwind(reason),
        },
    }
}

/// How far a body got.
pub(crate) enum Ran {
    /// To its end.
    Whole,
    /// To where it wanted what only a guest can give.
    UpTo(&'static str),
}

/// The volume groups that a test has made, by the configuration that shows no others. Removes them when dropped.
struct Groups {
    configuration: String,
}

impl Drop for Groups {
    fn drop(&mut self) {
        let lvm = |arguments: &[&str]| {
            Command::new("lvm")
                .args(arguments)
                .env("LVM_SYSTEM_DIR", &self.configuration)
                .env("LVM_SUPPRESS_FD_WARNINGS", "1")
                .output()
        };
        let Ok(names) = lvm(&["vgs", "--noheadings", "-o", "vg_name"]) else {
            return;
        };
        for name in String::from_utf8_lossy(&names.stdout).split_whitespace() {
            let removed = lvm(&["vgremove", "--force", "--force", "--yes", name]);
            if !removed.is_ok_and(|output| output.status.success()) {
                eprintln!("lab: the volume group {name} of this test is still there");
            }
        }
    }
}

/// A directory for `LVM_SYSTEM_DIR`, whose configuration knows the loop devices alone.
fn isolated_lvm(job: &Job, disks: &[PathBuf]) -> Result<String> {
    let directory = job.path("lvm");
    create_directory(&directory)?;
    let accept: String = disks
        .iter()
        .map(|disk| format!("\"a|^{}$|\", ", disk.display()))
        .collect();
    let udev = if Path::new("/run/udev/control").exists() {
        ""
    } else {
        "activation { udev_sync=0 udev_rules=0 monitoring=0 }\n"
    };
    let config = format!(
        "{udev}backup {{ backup=0 archive=0 }}\nglobal {{ use_lvmpolld=0 }}\n\
         devices {{ use_devicesfile=0 obtain_device_list_from_udev=0 hints=\"none\"\n\
         global_filter=[ {accept}\"r|.*|\" ] }}\n"
    );
    job.write("lvm/lvm.conf", &config)?;
    Ok(directory.to_string_lossy().into_owned())
}

/// The PATH with the test's programs first.
fn path_with(job: &Job, programs: &[PathBuf]) -> Result<String> {
    let directory = job.path("bin");
    create_directory(&directory)?;
    for program in programs {
        let name = program.file_name().unwrap_or_default();
        std::os::unix::fs::symlink(program, directory.join(name))
            .during(|| format!("cannot link {}", program.display()))?;
    }
    let rest = std::env::var("PATH").unwrap_or_default();
    Ok(format!("{}:{rest}", directory.display()))
}

fn create_directory(path: &Path) -> Result<()> {
    std::fs::create_dir(path).during(|| format!("cannot create {}", path.display()))
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
