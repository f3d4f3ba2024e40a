//! Looking at this machine: the thin shell that fills the facts.
//!
//! Guarantees: changes nothing, takes no lock, and asks a suspended device nothing that would wait for it; a
//! tool that does not answer in time is given up.

mod records;
mod views;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::facts::{Control, Device, Installer, Kind, Looked, Machine, Tool, ToolName};
use super::parse;
use crate::dm::device::DeviceMapper;
use crate::dm::era::status_of;
use crate::dm::table::parse_snapshot_status;
use crate::error::Error;
use crate::session::text::sanitise_bytes;
use crate::sys::device::DeviceNumber;
use crate::sys::ioctl::DmControl;

pub use records::records;

/// How long a tool may take to tell its version.
const TOOL_LIMIT: Duration = Duration::from_secs(10);
/// LVM suspends devices for an instant all the time; only what is suspended for longer is told.
const SUSPENDED_FOR: Duration = Duration::from_millis(500);

/// Kernel, rights and tools.
pub fn machine() -> Machine {
    let release = read_line("/proc/sys/kernel/osrelease").unwrap_or_default();
    let directory = Path::new("/lib/modules").join(&release);
    let dep = fs::read_to_string(directory.join("modules.dep")).ok();
    let builtin = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    let (control, targets) = control();
    Machine {
        root: rustix::process::geteuid().is_root(),
        loaded: names_in("/sys/module"),
        modules: dep.map(|dep| parse::modules(&dep, &builtin)),
        tools: tools(control != Control::Absent),
        installer: installer(),
        release,
        control,
        targets,
    }
}

type Targets = Option<Vec<(String, [u32; 3])>>;

fn control() -> (Control, Targets) {
    if let Err(error) = DmControl::open() {
        let absent = [rustix::io::Errno::NXIO, rustix::io::Errno::NODEV];
        let is_absent =
            |errno: &rustix::io::Errno| error.raw_os_error() == Some(errno.raw_os_error());
        let control = match error.kind() {
            io::ErrorKind::NotFound => Control::Absent,
            _ if absent.iter().any(is_absent) => Control::Absent,
            io::ErrorKind::PermissionDenied if !rustix::process::geteuid().is_root() => {
                Control::NeedsRoot
            }
            _ => Control::Fails(error.to_string()),
        };
        return (control, None);
    }
    let asked = DeviceMapper::open().and_then(|dm| {
        let version = dm.interface_version()?;
        Ok((version, dm.target_versions()?))
    });
    match asked {
        Ok((version, targets)) => (Control::Usable(version), Some(targets)),
        // The group of disks may open it, and only root may ask.
        Err(_) if !rustix::process::geteuid().is_root() => (Control::NeedsRoot, None),
        Err(error) => (Control::Fails(error.chain()), None),
    }
}

/// Without device-mapper LVM's tools would make the node of its control device only to tell their version.
const NOT_ASKED: &str = "(version not asked, for there is no device-mapper)";

fn tools(has_device_mapper: bool) -> Vec<Tool> {
    let asked = [
        (ToolName::Lvm, "lvm", "version"),
        (ToolName::Dmsetup, "dmsetup", "--version"),
        (ToolName::Ssh, "ssh", "-V"),
        (ToolName::ThinCheck, "thin_check", "-V"),
    ];
    let ask = |(name, program, argument): (ToolName, &str, &str)| {
        let of_lvm = matches!(name, ToolName::Lvm | ToolName::Dmsetup);
        let says = find_program(program).map(|path| {
            if of_lvm && !has_device_mapper {
                return Ok(NOT_ASKED.to_owned());
            }
            let (text, _) = output_of(&path, &[argument], TOOL_LIMIT)?;
            let version = parse::tool_version(&text);
            version.ok_or_else(|| format!("it printed no version: {}", text.trim()))
        });
        Tool { name, says }
    };
    asked.into_iter().map(ask).collect()
}

fn installer() -> Option<Installer> {
    [
        ("apt-get", Installer::Apt),
        ("dnf", Installer::Dnf),
        ("zypper", Installer::Zypper),
        ("pacman", Installer::Pacman),
    ]
    .into_iter()
    .find_map(|(program, installer)| find_program(program).map(|_| installer))
}

/// In the PATH, or where tools of the system lie, which an ordinary user's PATH may lack.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let can_run = |path: &PathBuf| {
        path.is_file() && accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
    };
    std::env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(name))
        .find(can_run)
}

/// What a program prints on stdout and stderr together, and whether it succeeded: some tell their version and
/// then fail because something else is missing.
fn output_of(program: &Path, arguments: &[&str], limit: Duration) -> Looked<(String, bool)> {
    let failed = |error: io::Error| format!("{} cannot be run: {error}", program.display());
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (sender, receiver) = mpsc::channel();
    let read = |order: u8, pipe: Option<Box<dyn Read + Send>>| {
        let sender = sender.clone();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.map(|pipe| pipe.take(1 << 20).read_to_end(&mut bytes));
            let _ = sender.send((order, bytes));
        });
    };
    read(0, child.stdout.take().map(|pipe| Box::new(pipe) as _));
    read(1, child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let deadline = Instant::now() + limit;
    let mut parts = Vec::new();
    while parts.len() < 2 {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(part) => parts.push(part),
            Err(_) => {
                // One that waits for a disk does not even die; then it is left behind.
                let _ = child.kill();
                let _ = child.try_wait();
                return Err(format!("it did not answer in {} s", limit.as_secs()));
            }
        }
    }
    let status = child.wait().map_err(failed)?;
    parts.sort();
    let text: Vec<String> = parts
        .iter()
        .map(|(_, bytes)| sanitise_bytes(bytes))
        .collect();
    Ok((text.concat(), status.success()))
}

/// All mapped devices.
pub fn volumes() -> Vec<Device> {
    let mapped: Vec<Mapped> = names_in("/sys/block")
        .iter()
        .filter_map(|name| Mapped::load(name))
        .collect();
    // A second look at what may be suspended for an instant only.
    let wait = mapped.iter().any(|device| device.is_suspended());
    let before: Vec<bool> = mapped.iter().map(Mapped::is_suspended).collect();
    if wait {
        thread::sleep(SUSPENDED_FOR);
    }
    let dm = if mapped.is_empty() {
        None
    } else {
        Some(DeviceMapper::open())
    };
    let look = |(device, was_suspended): (Mapped, bool)| Device {
        suspended: was_suspended && device.is_suspended(),
        kind: match &dm {
            Some(Ok(dm)) => device.kind(dm),
            Some(Err(error)) => Err(reason_of(error)),
            None => Ok(Kind::Other),
        },
        of_lvm: device.uuid.starts_with("LVM-"),
        name: device.name,
    };
    mapped.into_iter().zip(before).map(look).collect()
}

/// Without the name of what failed, so that the same reason is one finding.
fn reason_of(error: &Error) -> String {
    match error {
        Error::Lvm { reason, .. } => reason.clone(),
        error => error.chain(),
    }
}

struct Mapped {
    sysfs: PathBuf,
    number: DeviceNumber,
    name: String,
    uuid: String,
}

impl Mapped {
    fn load(block: &str) -> Option<Self> {
        let sysfs = Path::new("/sys/block").join(block);
        Some(Self {
            number: read_line(sysfs.join("dev"))?.parse().ok()?,
            name: read_line(sysfs.join("dm/name"))?,
            uuid: read_line(sysfs.join("dm/uuid")).unwrap_or_default(),
            sysfs,
        })
    }

    fn is_suspended(&self) -> bool {
        read_line(self.sysfs.join("dm/suspended")).as_deref() == Some("1")
    }

    fn kind(&self, dm: &DeviceMapper) -> Looked<Kind> {
        // Its store has room for what is in it, and nothing is ever added.
        if self.uuid.starts_with(crate::dm::shown::UUID_PREFIX) {
            return Ok(Kind::Other);
        }
        let asked = |error: Error| reason_of(&error);
        let table = dm.table(self.number).map_err(asked)?;
        let [line] = table.as_slice() else {
            return Ok(Kind::Other);
        };
        if line.kind == "era" {
            // Asked while it is suspended it answers when somebody resumes it.
            let held_root = !self.is_suspended()
                && status_of(dm, self.number, &self.name)
                    .map_err(asked)?
                    .held_root
                    .is_some();
            return Ok(Kind::Era { held_root });
        }
        let is_merge = line.kind == "snapshot-merge";
        if !is_merge && !["snapshot", "thin-pool"].contains(&line.kind.as_str()) {
            return Ok(Kind::Other);
        }
        let status = dm.status(self.number).map_err(asked)?;
        let words = status.first().map_or("", |line| line.params.as_str());
        if line.kind == "thin-pool" {
            let status = parse::pool_status(words).map(Kind::ThinPool);
            return status.ok_or_else(|| format!("cannot understand its status `{words}`"));
        }
        let status = parse_snapshot_status(words).map_err(|error| error.to_string())?;
        Ok(if is_merge {
            Kind::Merge(status)
        } else {
            Kind::Snapshot(status)
        })
    }
}

fn read_line(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim_end().to_owned()).filter(|text| !text.is_empty())
}

fn names_in(directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_does_not_answer_is_given_up() {
        let shell = Path::new("/bin/sh");
        let both = output_of(shell, &["-c", "echo b >&2; echo a; exit 3"], TOOL_LIMIT);
        assert_eq!(both, Ok(("a\nb\n".to_owned(), false)));
        let start = Instant::now();
        let silent = output_of(shell, &["-c", "exec sleep 60"], Duration::from_millis(100));
        assert!(silent.unwrap_err().contains("did not answer"));
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(output_of(Path::new("/none"), &[], TOOL_LIMIT).is_err());
    }
}
