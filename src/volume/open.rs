//! Opening a path as a volume, for reading or for writing.
//!
//! Guarantees: a volume opened for writing is ours alone (a claim on the device, a lock on it and on the file below a loop
//! device, or on the file) unless the caller said otherwise; nothing but block devices and regular files is opened.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, ResolveFlags, flock};
use rustix::io::Errno;

use super::block::BlockVolume;
use super::file::FileVolume;
use super::host::VolumeIdentity;
use super::in_use::holders_of;
use super::{ReadAt, WriteAt};
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::sys::device::DeviceNumber;
use crate::sys::ioctl;

/// udev locks a device for the moment in which it probes it.
const UDEV_PATIENCE: Duration = Duration::from_secs(2);

/// How to open a volume for writing.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Write even if the volume is mounted or otherwise held.
    pub allow_in_use: bool,
    /// Make an empty file if there is nothing at the path. Never below `/dev`, where it would be a typo.
    pub create: bool,
    /// A file is opened only if no part of its path is a symbolic link, so that it is the one of that name.
    pub no_links: bool,
    /// It takes its space from a pool.
    pub provisioning: Option<Provisioning>,
}

/// How a pool gives space to a volume. Right only where it was proved, and with the pool's own block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provisioning {
    /// The unit in which space is given and taken back.
    pub block_bytes: u64,
    /// A whole block that was discarded is known to read as zeroes.
    pub discard_zeroes: bool,
    /// What a first write leaves of its block may hold anything, although it read as zeroes before.
    pub stale_rest: bool,
}

/// An open block device or file.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
    inner: Inner,
    /// The lock on the file below a loop device that is written to.
    _below: Option<File>,
}

#[derive(Debug)]
enum Inner {
    Block(BlockVolume),
    File(FileVolume),
}

impl Volume {
    /// Opens for reading. Block devices are read past the page cache, see [`BlockVolume`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let inner = match kind_at(path)? {
            Kind::File => Inner::File(file_volume(path, OFlags::RDONLY)?),
            Kind::Block(device) => Inner::Block(open_block(path, OFlags::RDONLY, device)?),
        };
        Ok(Self {
            path: path.into(),
            inner,
            _below: None,
        })
    }

    /// Opens for reading and writing, alone.
    pub fn open_writable(path: impl AsRef<Path>, options: &WriteOptions) -> Result<Self> {
        let path = path.as_ref();
        let kind = match kind_at(path) {
            Err(Error::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && may_create(path, options) =>
            {
                Kind::File
            }
            kind => kind?,
        };
        let inner = match kind {
            Kind::File => Inner::File(open_writable_file(path, options)?),
            Kind::Block(device) => Inner::Block(open_writable_block(path, device, options)?),
        };
        let below = match &inner {
            Inner::Block(volume) => lock_below(volume)?,
            Inner::File(_) => None,
        };
        Ok(Self {
            path: path.into(),
            inner,
            _below: below,
        })
    }

    /// Takes the lock that every writer takes, and nothing else: whoever holds what this returns knows that no run
    /// writes to what is at `path`.
    pub fn lock_alone(path: impl AsRef<Path>) -> Result<File> {
        let path = path.as_ref();
        let patience = match kind_at(path)? {
            Kind::File => Duration::ZERO,
            Kind::Block(_) => UDEV_PATIENCE,
        };
        // Over NFS only what is open for writing can be locked; a read-only volume is locked like any other.
        let file = sys_open(path, OFlags::RDWR).or_else(|_| sys_open(path, OFlags::RDONLY));
        let file = file.map_err(|error| cannot_open(path, error))?;
        lock(&file, path, patience)?;
        Ok(file)
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the reads that follow come from the volume and not from a copy in memory, as far as the system
    /// lets it. Block devices are read that way anyhow.
    pub fn forget_cached(&self) -> Result<()> {
        match &self.inner {
            Inner::Block(_) => Ok(()),
            Inner::File(file) => file
                .forget_cached()
                .map_err(|error| Error::io(cannot("sync", &self.path), error)),
        }
    }

    /// What waits in memory to be written to a device is written: a direct read would do so anyhow, piece by piece.
    pub fn write_back(&self) {
        if let Inner::Block(block) = &self.inner {
            // Whoever cannot write it has no more to lose here than in any read.
            let _ = rustix::fs::fdatasync(block.file());
        }
    }

    /// The path of what is open, as the kernel knows it now.
    pub fn open_path(&self) -> io::Result<PathBuf> {
        let descriptor = match &self.inner {
            Inner::Block(block) => block.file().as_raw_fd(),
            Inner::File(file) => file.file().as_raw_fd(),
        };
        fs::read_link(format!("/proc/self/fd/{descriptor}"))
    }

    /// What makes it the same volume as another path.
    pub fn identity(&self) -> VolumeIdentity {
        match &self.inner {
            Inner::Block(block) => block.identity(),
            Inner::File(file) => file.identity(),
        }
    }

    /// What the system tells of it now.
    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        match &self.inner {
            Inner::Block(block) => block.metadata(),
            Inner::File(file) => file.metadata(),
        }
    }

    /// Another handle on it, for a regular file.
    pub fn try_clone_file(&self) -> io::Result<Option<File>> {
        match &self.inner {
            Inner::Block(_) => Ok(None),
            Inner::File(file) => file.try_clone().map(Some),
        }
    }

    /// Its device number, for a block device.
    pub fn device(&self) -> Option<DeviceNumber> {
        match self.identity() {
            VolumeIdentity::Block(device) => Some(device),
            VolumeIdentity::File { .. } => None,
        }
    }
}

enum Kind {
    Block(DeviceNumber),
    File,
}

/// Looks before opening: opening a fifo would wait, and opening a tape or a terminal has effects.
fn kind_at(path: &Path) -> Result<Kind> {
    let shown = path.display();
    let metadata =
        fs::metadata(path).map_err(|error| Error::io(format!("cannot open {shown}"), error))?;
    let kind = metadata.file_type();
    let found = match () {
        () if kind.is_file() => return Ok(Kind::File),
        () if kind.is_block_device() => {
            return Ok(Kind::Block(DeviceNumber::from_stat(metadata.rdev())));
        }
        () if kind.is_dir() => "a directory",
        () if kind.is_char_device() => "a character device",
        () => "a socket or a fifo",
    };
    Err(Error::Usage(format!(
        "{shown} is {found}; a volume is a block device or a regular file"
    )))
}

fn may_create(path: &Path, options: &WriteOptions) -> bool {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = fs::canonicalize(parent.unwrap_or(Path::new(".")));
    options.create && parent.is_ok_and(|parent| !is_for_nodes(&parent.join("new")))
}

/// Below `/dev` there are nodes, which nobody makes as files. Another filesystem that is mounted there holds files, as
/// `/dev/shm` does.
pub fn is_for_nodes(path: &Path) -> bool {
    let filesystem = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    let directory = path.parent().unwrap_or(path);
    let is_for_files = match filesystem(directory) {
        None => false,
        found => directory.starts_with("/dev/shm") || found != filesystem(Path::new("/dev")),
    };
    path.starts_with("/dev") && !is_for_files
}

fn open_writable_file(path: &Path, options: &WriteOptions) -> Result<FileVolume> {
    let create = if may_create(path, options) {
        OFlags::CREATE
    } else {
        OFlags::empty()
    };
    let open = if options.no_links {
        sys_open_without_links
    } else {
        sys_open
    };
    let file = open(path, OFlags::RDWR | create).map_err(|error| cannot_open(path, error))?;
    lock(&file, path, Duration::ZERO)?;
    let volume =
        FileVolume::new(file).map_err(|error| Error::io(cannot("look at", path), error))?;
    if !options.allow_in_use {
        refuse_if_held(path, volume.identity())?;
    }
    Ok(volume)
}

fn open_writable_block(
    path: &Path,
    device: DeviceNumber,
    options: &WriteOptions,
) -> Result<BlockVolume> {
    let mut flags = OFlags::RDWR;
    if !options.allow_in_use {
        // Says who holds it; O_EXCL then makes the claim, also against what cannot be seen from here.
        refuse_if_held(path, VolumeIdentity::Block(device))?;
        flags |= OFlags::EXCL;
    }
    let mut volume = open_block(path, flags, device)?;
    if let Some(provisioning) = options.provisioning {
        volume.set_provisioning(provisioning);
    }
    Ok(volume)
}

fn refuse_if_held(path: &Path, identity: VolumeIdentity) -> Result<()> {
    let holders = holders_of(identity);
    if holders.is_empty() {
        return Ok(());
    }
    let reason = holders
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    Err(Error::refused(
        path.display().to_string(),
        format!("in use: {reason}"),
        IN_USE_WAY_OUT,
    ))
}

const IN_USE_WAY_OUT: &str = "Release it first: unmount it, or remove what stands on it.";

fn open_block(path: &Path, flags: OFlags, device: DeviceNumber) -> Result<BlockVolume> {
    let writing = flags.contains(OFlags::RDWR);
    let (file, direct) = match sys_open(path, flags | OFlags::DIRECT) {
        Ok(file) => (file, true),
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            let file = sys_open(path, flags).map_err(|error| cannot_open(path, error))?;
            (file, false)
        }
        Err(error) => return Err(cannot_open(path, error)),
    };
    let look = |error| Error::io(cannot("look at", path), error);
    let now = file.metadata().map_err(look)?;
    if VolumeIdentity::of(&now) != VolumeIdentity::Block(device) {
        let changed = io::Error::other("another device took its place while it was opened");
        return Err(cannot_open(path, changed));
    }
    if writing {
        if ioctl::is_read_only(&file).map_err(look)? {
            return Err(read_only(path));
        }
        lock(&file, path, UDEV_PATIENCE)?;
    }
    BlockVolume::new(file, device, direct).map_err(look)
}

fn file_volume(path: &Path, flags: OFlags) -> Result<FileVolume> {
    let file = sys_open(path, flags).map_err(|error| cannot_open(path, error))?;
    FileVolume::new(file).map_err(|error| Error::io(cannot("look at", path), error))
}

fn sys_open(path: &Path, flags: OFlags) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    let descriptor =
        rustix::io::retry_on_intr(|| rustix::fs::open(path, flags | OFlags::CLOEXEC, mode));
    Ok(descriptor.map(File::from)?)
}

/// The kernel refuses a link anywhere in the path. Kernels before 5.6 refuse one at its end only.
fn sys_open_without_links(path: &Path, flags: OFlags) -> io::Result<File> {
    // A mode is an error where nothing is created.
    let mode = if flags.contains(OFlags::CREATE) {
        Mode::RUSR | Mode::WUSR
    } else {
        Mode::empty()
    };
    let resolve = ResolveFlags::NO_SYMLINKS;
    let open = || rustix::fs::openat2(CWD, path, flags | OFlags::CLOEXEC, mode, resolve);
    match rustix::io::retry_on_intr(open) {
        Err(Errno::NOSYS) => sys_open(path, flags | OFlags::NOFOLLOW),
        opened => Ok(opened.map(File::from)?),
    }
}

/// Takes the lock that every writer of volumes takes, so that two runs cannot write one volume.
fn lock(file: &File, path: &Path, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::held(
                    path.display().to_string(),
                    "another process has locked it; another lvmsync may be writing to it",
                    "Wait until that one is done, then run this again.",
                ));
            }
            // Some network filesystems have no locks at all.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK) => return Ok(()),
            Err(error) => return Err(Error::io(cannot("lock", path), error.into())),
        }
    }
}

/// `f_type` of SMB shares (`include/uapi/linux/magic.h`).
const SMB: [u32; 3] = [0xff53_4d42, 0xfe53_4d42, 0x517b];

/// Who writes to a file has its lock; so has who writes to a loop device that stands on it, as far as the file can be found
/// by its path.
fn lock_below(volume: &BlockVolume) -> Result<Option<File>> {
    let VolumeIdentity::Block(device) = volume.identity() else {
        return Ok(None);
    };
    let sysfs = format!("/sys/dev/block/{device}/loop/backing_file");
    let Ok(path) = fs::read_to_string(sysfs) else {
        return Ok(None);
    };
    let path = Path::new(path.trim_end_matches('\n'));
    let (Ok(behind), Ok(file)) = (
        ioctl::loop_file(volume.file()),
        // Over NFS only what is open for writing can be locked.
        sys_open(path, OFlags::RDWR | OFlags::NONBLOCK),
    ) else {
        return Ok(None);
    };
    let system = rustix::fs::fstatfs(&file).map(|system| u32::try_from(system.f_type));
    // There a lock is one against everybody, the loop device included.
    if !matches!(system, Ok(Ok(system)) if !SMB.contains(&system)) {
        return Ok(None);
    }
    // The path may mean another file by now, or in another mount namespace.
    let found = file.metadata();
    if !found.is_ok_and(|found| behind == (found.dev(), found.ino())) {
        return Ok(None);
    }
    lock(&file, path, Duration::ZERO)?;
    Ok(Some(file))
}

fn cannot(verb: &str, path: &Path) -> String {
    format!("cannot {verb} {}", path.display())
}

fn cannot_open(path: &Path, error: io::Error) -> Error {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::BUSY) => Error::held(
            path.display().to_string(),
            "in use: something has claimed it for itself, perhaps in another container",
            IN_USE_WAY_OUT,
        ),
        Some(Errno::ROFS) if is_block_device(path) => read_only(path),
        // A file, or one that was to be made.
        Some(Errno::ROFS) => Error::refused(
            path.display().to_string(),
            "the filesystem is mounted read-only",
            "Mount it read-write (mount -o remount,rw MOUNTPOINT), or choose another place.",
        ),
        _ if error.kind() == io::ErrorKind::PermissionDenied && is_read_only_at(path) => {
            read_only(path)
        }
        _ => Error::io(cannot("open", path), error),
    }
}

/// Newer kernels refuse to open a read-only device for writing, with the errno of a missing permission.
fn is_read_only_at(path: &Path) -> bool {
    let Ok(file) = sys_open(path, OFlags::RDONLY) else {
        return false;
    };
    ioctl::is_read_only(&file).unwrap_or(false)
}

fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

fn read_only(path: &Path) -> Error {
    Error::refused(
        path.display().to_string(),
        "the device is read-only",
        "For a logical volume: lvchange -p rw. For another device: blockdev --setrw.",
    )
}

impl ReadAt for Volume {
    fn size_bytes(&self) -> u64 {
        match &self.inner {
            Inner::Block(volume) => volume.size_bytes(),
            Inner::File(volume) => volume.size_bytes(),
        }
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.inner {
            Inner::Block(volume) => volume.read_exact_at(buffer, offset),
            Inner::File(volume) => volume.read_exact_at(buffer, offset),
        }
    }

    fn enough_at_once(&self, extent: Extent) -> u64 {
        match &self.inner {
            Inner::Block(volume) => volume.enough_at_once(extent),
            Inner::File(volume) => volume.enough_at_once(extent),
        }
    }

    fn gap_worth_reading(&self) -> u64 {
        match &self.inner {
            Inner::Block(volume) => volume.gap_worth_reading(),
            Inner::File(volume) => volume.gap_worth_reading(),
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Extent>> {
        match &self.inner {
            Inner::Block(volume) => volume.next_data(offset),
            Inner::File(volume) => volume.next_data(offset),
        }
    }
}

impl WriteAt for Volume {
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        match &self.inner {
            Inner::Block(volume) => volume.write_all_at(buffer, offset),
            Inner::File(volume) => volume.write_all_at(buffer, offset),
        }
    }

    fn zero_at(&self, extent: Extent) -> io::Result<()> {
        match &self.inner {
            Inner::Block(volume) => volume.zero_at(extent),
            Inner::File(volume) => volume.zero_at(extent),
        }
    }

    fn writes_at_once(&self) -> usize {
        match &self.inner {
            Inner::Block(volume) => volume.writes_at_once(),
            Inner::File(volume) => volume.writes_at_once(),
        }
    }

    fn waits_for_device(&self, extent: Extent) -> bool {
        match &self.inner {
            Inner::Block(volume) => volume.waits_for_device(extent),
            Inner::File(volume) => volume.waits_for_device(extent),
        }
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        match &self.inner {
            Inner::Block(volume) => volume.set_size(size_bytes),
            Inner::File(volume) => volume.set_size(size_bytes),
        }
    }

    fn sync(&self) -> io::Result<()> {
        match &self.inner {
            Inner::Block(volume) => volume.sync(),
            Inner::File(volume) => volume.sync(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitCode;

    #[test]
    fn what_is_mounted_below_dev_holds_files() {
        for (path, expected) in [
            ("/dev/no-such-group/x", true),
            ("/dev/mapper/x-y", true),
            ("/dev/x", true),
            ("/tmp/x", false),
            ("/dev/shm/x", fs::metadata("/dev/shm").is_err()),
        ] {
            assert_eq!(is_for_nodes(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn files_open_and_are_locked_for_writing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let options = WriteOptions {
            create: true,
            ..WriteOptions::default()
        };
        assert!(Volume::open(&path).is_err());
        assert!(Volume::open_writable(&path, &WriteOptions::default()).is_err());
        let first = Volume::open_writable(&path, &options).unwrap();
        first.set_size(4096).unwrap();
        let refused = Volume::open_writable(&path, &options).unwrap_err();
        assert_eq!(refused.exit_code(), ExitCode::Refused, "{refused}");
        let reader = Volume::open(&path).unwrap();
        assert_eq!(reader.identity(), first.identity());
        assert_eq!((reader.size_bytes(), reader.device()), (4096, None));
        drop(first);
        Volume::open_writable(&path, &options).unwrap();
    }

    #[test]
    fn a_file_on_a_read_only_filesystem_is_no_read_only_device() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("image");
        fs::write(&file, "x").unwrap();
        for path in [file, directory.path().join("image.partial")] {
            let error = cannot_open(&path, Errno::ROFS.into());
            assert_eq!(error.exit_code(), ExitCode::Refused, "{error}");
            let text = error.chain();
            assert!(
                text.contains("the filesystem is mounted read-only"),
                "{text}"
            );
            assert!(
                !text.contains("device") && !text.contains("lvchange"),
                "{text}"
            );
        }
    }

    #[test]
    fn other_things_are_no_volumes() {
        for path in ["/", "/dev/null"] {
            let error = Volume::open(path).unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::Usage, "{error}");
        }
        let options = WriteOptions {
            create: true,
            ..WriteOptions::default()
        };
        for path in ["/dev/lvmsync-no-such-volume", "/nonexistent-directory/x"] {
            let error = Volume::open_writable(path, &options).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
        }
        assert!(!Path::new("/dev/lvmsync-no-such-volume").exists());
    }
}
