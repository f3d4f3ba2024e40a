//! From what the user typed to a volume.
//!
//! Guarantees: only a name that means one thing is accepted; what cannot be found is explained, with
//! the command that helps.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::device::{DeviceMapper, sysfs_name_and_uuid};
use super::examine::examine;
use super::lvm;
use super::name::{LvName, split_dm_name};
use super::snapshot::LogicalVolume;
use super::uuid::DmUuid;
use super::wire::Selector;
use crate::error::{Error, Result};
use crate::sys::device::DeviceNumber;
use crate::volume::open::is_for_nodes;

/// What a volume argument turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// An active logical volume.
    LogicalVolume(Box<LogicalVolume>),
    /// A block device that is not a logical volume.
    BlockDevice(PathBuf),
    /// A regular file.
    File(PathBuf),
}

impl Resolved {
    /// What to open.
    pub fn path(&self) -> &Path {
        match self {
            Self::LogicalVolume(volume) => &volume.path,
            Self::BlockDevice(path) | Self::File(path) => path,
        }
    }
}

/// Finds the volume that `arg` names.
///
/// - A path that begins with `/`, `./` or `../` is that path: a file, a block device, a logical volume's
///   node. If there is nothing at `/dev/vg/lv` or `/dev/mapper/vg-lv`, LVM is asked why.
/// - `vg/lv` is the logical volume. If a file exists at that relative path and there is no such active
///   volume, it is the file; if both exist it is an error that says how to write each.
/// - Any other text is a file in the current directory.
pub fn resolve(arg: &str) -> Result<Resolved> {
    let as_path = ["/", "./", "../"]
        .iter()
        .any(|start| arg.starts_with(start));
    match LvName::parse(arg) {
        Some(name) if !as_path => resolve_name(arg, &name),
        _ => resolve_path(arg),
    }
}

fn resolve_name(arg: &str, name: &LvName) -> Result<Resolved> {
    let file_exists = fs::symlink_metadata(arg).is_ok();
    let active = match DeviceMapper::open() {
        // Without device-mapper or root only the file can be meant, if there is one.
        Err(_) if file_exists => None,
        Err(error) => {
            return Err(Error::Lvm {
                what: arg.to_owned(),
                reason: format!(
                    "there is no such path here{}, and logical volumes cannot be looked up: {}",
                    missing_directory(arg).map_or_else(String::new, |it| format!(" ({it})")),
                    error.chain()
                ),
            });
        }
        Ok(dm) => find_active(&dm, name)?,
    };
    match (active, file_exists) {
        (Some(_), true) => Err(Error::Usage(format!(
            "`{arg}` is both a logical volume and a path here: \
             write /dev/{name} for the volume or ./{arg} for the path"
        ))),
        (Some(volume), false) => Ok(Resolved::LogicalVolume(Box::new(volume))),
        (None, true) => resolve_path(arg),
        (None, false) => Err(lvm::explain_no_device(name, missing_directory(arg))),
    }
}

/// The volume of this name, if it has a device.
pub fn active_volume(name: &LvName) -> Result<Option<LogicalVolume>> {
    find_active(&DeviceMapper::open()?, name)
}

fn find_active(dm: &DeviceMapper, name: &LvName) -> Result<Option<LogicalVolume>> {
    match dm.info(Selector::Name(&name.dm_name()))? {
        Some(info) => examine(dm, &info).map(Some),
        None => Ok(None),
    }
}

fn resolve_path(path: &str) -> Result<Resolved> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(explain_absent(path)),
        Err(error) => return Err(Error::io(format!("cannot look at {path}"), error)),
    };
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(Resolved::File(path.into()));
    }
    if !kind.is_block_device() {
        let found = if kind.is_dir() {
            "a directory"
        } else {
            "neither a file nor a block device"
        };
        return Err(Error::Usage(format!(
            "{path} is {found}; a volume is a block device or a file"
        )));
    }
    let device = DeviceNumber::from_stat(metadata.rdev());
    // A hidden part of a volume (`-real`, `-cow`, `_tmeta`) is a block device like any other.
    let is_volume = |(name, uuid): (String, String)| {
        DmUuid::parse(&uuid).is_some_and(|uuid| uuid.is_public())
            && split_dm_name(&name).is_some_and(|(_, layer)| layer.is_none())
    };
    if !sysfs_name_and_uuid(device).is_some_and(is_volume) {
        return Ok(Resolved::BlockDevice(path.into()));
    }
    let dm = DeviceMapper::open()?;
    let info = dm
        .info(Selector::Device(device))?
        .ok_or_else(|| Error::Lvm {
            what: path.to_owned(),
            reason: format!("device {device} is not there any more"),
        })?;
    Ok(Resolved::LogicalVolume(Box::new(examine(&dm, &info)?)))
}

/// The logical volume whose node an absolute path is, or would be.
pub fn volume_of_path(path: &str) -> Option<LvName> {
    LvName::from_path(path).filter(|_| is_for_nodes(Path::new(path)))
}

fn explain_absent(path: &str) -> Error {
    if let Some(name) = volume_of_path(path) {
        return lvm::explain_no_device(&name, None);
    }
    if is_name_of_directory(path) {
        return no_directory_is_made(path);
    }
    let reason = match missing_directory(path) {
        Some(reason) => io::Error::new(io::ErrorKind::NotFound, reason),
        None => rustix::io::Errno::NOENT.into(),
    };
    Error::io(format!("cannot find {path}"), reason)
}

/// Only a directory has such a name, or what leads to one.
pub fn is_name_of_directory(name: &str) -> bool {
    name.ends_with('/') || name.ends_with("/.")
}

/// For a name of that kind where there is nothing: neither can a volume be found there nor a file made.
pub fn no_directory_is_made(name: &str) -> Error {
    Error::Usage(format!(
        "{name} is the name of a directory, and there is none; a volume is a block device or a file"
    ))
}

/// Says so if what is at `path`, or would be, has no directory to be in.
fn missing_directory(path: &str) -> Option<String> {
    let parent = Path::new(path).parent()?;
    let is_missing = parent != Path::new("") && matches!(parent.try_exists(), Ok(false));
    is_missing.then(|| format!("there is no directory {}", parent.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitCode;

    #[test]
    fn what_is_mounted_below_dev_holds_files() {
        assert!(volume_of_path("/dev/no-such-group/x").is_some());
        if fs::metadata("/dev/shm").is_ok() {
            assert_eq!(volume_of_path("/dev/shm/no-such-file"), None);
            let text = resolve("/dev/shm/no-such-file").unwrap_err().chain();
            assert!(
                text.ends_with("No such file or directory (os error 2)"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_missing_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().to_str().unwrap();
        let absent = |name: &str| resolve(&format!("{directory}/{name}")).unwrap_err();
        let error = absent("no/such/x.img");
        assert_eq!(error.exit_code(), ExitCode::Failed);
        let ending = format!("x.img: there is no directory {directory}/no/such");
        assert!(error.chain().ends_with(&ending), "{}", error.chain());
        let text = absent("x.img").chain();
        assert!(!text.contains("there is no directory"), "{text}");
        assert!(text.contains("x.img: No such file or directory"), "{text}");
        // It may be a volume of a group, and its directory may be missing.
        let text = resolve("no-such-group/x").unwrap_err().chain();
        assert!(
            text.contains("there is no directory no-such-group"),
            "{text}"
        );
        for name in ["newdir/", "newdir/.", "no/such/"] {
            let error = absent(name);
            assert_eq!(error.exit_code(), ExitCode::Usage, "{error}");
            assert!(
                error.to_string().contains("the name of a directory"),
                "{error}"
            );
        }
    }
}
