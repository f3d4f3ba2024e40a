//! Mapped devices as the kernel shows them, through `/dev/mapper/control` and sysfs.
//!
//! Guarantees: looks, and never waits for a suspended device's I/O (status is asked for without a
//! flush, and an era device is never asked for its status, which would block while it is suspended). The one
//! thing that is not a look is [`DeviceMapper::message`].

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use super::wire::{self, DeviceInfo, Selector, TargetLine, WireError};
use crate::error::{Error, Result};
use crate::sys::device::DeviceNumber;
use crate::sys::ioctl::{DmCommand, DmControl};

/// The open control device.
#[derive(Debug)]
pub struct DeviceMapper {
    control: DmControl,
}

/// Room for a reply at first; doubled while the kernel says that it was too small.
const FIRST_REPLY_BYTES: usize = 4096;
const MAX_REPLY_BYTES: usize = 16 << 20;

impl DeviceMapper {
    /// Opens the control device, or says what is missing: root, or device-mapper itself.
    pub fn open() -> Result<Self> {
        DmControl::open()
            .map(|control| Self { control })
            .map_err(|source| explain_open(&source))
    }

    /// What the kernel knows of one device; `None` when there is no such device.
    pub fn info(&self, selector: Selector<'_>) -> Result<Option<DeviceInfo>> {
        match self.call(DmCommand::DeviceStatus, selector, 0) {
            Ok(reply) => wire::parse_info(&reply)
                .map(Some)
                .map_err(|error| unreadable(&error)),
            Err(CallError::System(error)) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed(selector, error)),
        }
    }

    /// The active table.
    pub fn table(&self, device: DeviceNumber) -> Result<Vec<TargetLine>> {
        self.lines(device, wire::FLAG_STATUS_TABLE | wire::FLAG_NOFLUSH)
    }

    /// The status of each target of the active table.
    pub fn status(&self, device: DeviceNumber) -> Result<Vec<TargetLine>> {
        self.lines(device, wire::FLAG_NOFLUSH)
    }

    /// The version of the kernel's interface.
    pub fn interface_version(&self) -> Result<[u32; 3]> {
        let selector = Selector::None;
        let reply = self
            .call(DmCommand::Version, selector, 0)
            .map_err(|error| failed(selector, error))?;
        wire::parse_interface_version(&reply).map_err(|error| unreadable(&error))
    }

    /// The target types of this kernel, with their versions. Loads no module.
    pub fn target_versions(&self) -> Result<Vec<(String, [u32; 3])>> {
        let selector = Selector::None;
        let reply = self
            .call(DmCommand::ListVersions, selector, 0)
            .map_err(|error| failed(selector, error))?;
        wire::parse_versions(&reply).map_err(|error| unreadable(&error))
    }

    /// Says something to a device's first target. The kernel's answer is the caller's to explain.
    pub fn message(&self, device: DeviceNumber, text: &str) -> io::Result<()> {
        let mut packet = wire::message(Selector::Device(device), text).map_err(io::Error::other)?;
        self.control.call(DmCommand::TargetMessage, &mut packet)
    }

    fn lines(&self, device: DeviceNumber, flags: u32) -> Result<Vec<TargetLine>> {
        let selector = Selector::Device(device);
        let reply = self
            .call(DmCommand::TableStatus, selector, flags)
            .map_err(|error| failed(selector, error))?;
        wire::parse_targets(&reply).map_err(|error| unreadable(&error))
    }

    fn call(
        &self,
        command: DmCommand,
        selector: Selector<'_>,
        flags: u32,
    ) -> std::result::Result<Vec<u8>, CallError> {
        let mut capacity = FIRST_REPLY_BYTES;
        loop {
            let mut packet = wire::request(selector, flags, capacity)?;
            self.control
                .call(command, &mut packet)
                .map_err(CallError::System)?;
            let reply = wire::packet_bytes(&packet);
            if !wire::buffer_was_full(&reply)? {
                return Ok(reply);
            }
            if capacity >= MAX_REPLY_BYTES {
                return Err(CallError::System(io::ErrorKind::OutOfMemory.into()));
            }
            capacity *= 2;
        }
    }
}

#[derive(Debug)]
enum CallError {
    System(io::Error),
    Wire(WireError),
}

impl From<WireError> for CallError {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

/// ENXIO is device-mapper's word for "no such device".
fn is_absent(error: &io::Error) -> bool {
    [rustix::io::Errno::NXIO, rustix::io::Errno::NODEV]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn explain_open(source: &io::Error) -> Error {
    let reason = match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "asking device-mapper needs root: run lvmsync as root or through sudo".to_owned()
        }
        _ if source.kind() == io::ErrorKind::NotFound || is_absent(source) => {
            "this kernel has no device-mapper (module dm-mod), so it has no active logical volumes"
                .to_owned()
        }
        _ => format!("cannot open it: {source}"),
    };
    Error::Lvm {
        what: "/dev/mapper/control".into(),
        reason,
    }
}

fn failed(selector: Selector<'_>, error: CallError) -> Error {
    let what = match selector {
        Selector::None => "device-mapper".to_owned(),
        Selector::Name(name) => format!("/dev/mapper/{name}"),
        Selector::Uuid(uuid) => format!("device-mapper device {uuid}"),
        Selector::Device(device) => format!("device-mapper device {device}"),
    };
    let reason = match error {
        CallError::Wire(error) => error.to_string(),
        CallError::System(error) if is_absent(&error) => "there is no such device any more".into(),
        CallError::System(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            "asking device-mapper needs root: run lvmsync as root or through sudo".into()
        }
        CallError::System(error) => format!("device-mapper does not answer: {error}"),
    };
    Error::Lvm { what, reason }
}

fn unreadable(error: &WireError) -> Error {
    Error::Lvm {
        what: "device-mapper".into(),
        reason: error.to_string(),
    }
}

/// Name and UUID of a mapped device from sysfs, which needs no privilege; `None` for other devices.
pub fn sysfs_name_and_uuid(device: DeviceNumber) -> Option<(String, String)> {
    let read = |file: &str| fs::read_to_string(format!("/sys/dev/block/{device}/dm/{file}"));
    Some((
        read("name").ok()?.trim_end().to_owned(),
        read("uuid").ok()?.trim_end().to_owned(),
    ))
}

/// The devices that stand on this one.
pub fn sysfs_holders(device: DeviceNumber) -> Vec<DeviceNumber> {
    sysfs_neighbours(device, "holders")
}

/// The devices that this one stands on.
pub fn sysfs_slaves(device: DeviceNumber) -> Vec<DeviceNumber> {
    sysfs_neighbours(device, "slaves")
}

fn sysfs_neighbours(device: DeviceNumber, side: &str) -> Vec<DeviceNumber> {
    let Ok(entries) = fs::read_dir(format!("/sys/dev/block/{device}/{side}")) else {
        return Vec::new();
    };
    let number = |entry: fs::DirEntry| {
        fs::read_to_string(entry.path().join("dev"))
            .ok()?
            .parse()
            .ok()
    };
    entries.flatten().filter_map(number).collect()
}

/// A path that opens this mapped device: its name where that node exists and is this device, and the
/// kernel's own node otherwise (no udev, or a container).
pub fn device_path(device: DeviceNumber, name: &str) -> PathBuf {
    let by_name = PathBuf::from(format!("/dev/mapper/{name}"));
    let is_it = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|m| {
            m.file_type().is_block_device() && DeviceNumber::from_stat(m.rdev()) == device
        })
    };
    if is_it(&by_name) {
        by_name
    } else {
        PathBuf::from(format!("/dev/dm-{}", device.minor))
    }
}
