//! Looking at this machine: the thin shell that fills the facts.
//!
//! Guarantees: changes nothing, takes no lock, and asks a suspended device nothing that would wait for it; a
//! tool that does not answer in time is given up.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::facts::{
    Control, Device, HeldFacts, HeldKind, Installer, Kind, Looked, Machine, Partial, Place,
    Presence, RecordFacts, Records, Tool, ToolName, Undo, Unusable,
};
use super::parse;
use crate::dm::device::DeviceMapper;
use crate::dm::name::LvName;
use crate::dm::table::parse_snapshot_status;
use crate::dm::temporary;
use crate::dm::uuid::DmUuid;
use crate::dm::wire::Selector;
use crate::error::Error;
use crate::hold::{self, lock, record::Held};
use crate::partial_file::partial_name;
use crate::record::store::StateDir;
use crate::record::{MAX_BYTES, Record, identity};
use crate::session::text::sanitise_bytes;
use crate::sys::device::DeviceNumber;
use crate::sys::ioctl::DmControl;
use crate::volume::host::boot_id;

/// How long a tool may take to tell its version.
const TOOL_LIMIT: Duration = Duration::from_secs(10);
/// How long `lvs` may take: it reads every disk.
const LVS_LIMIT: Duration = Duration::from_secs(30);
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
        let asked = |error: Error| reason_of(&error);
        let table = dm.table(self.number).map_err(asked)?;
        let [line] = table.as_slice() else {
            return Ok(Kind::Other);
        };
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

/// What lvmsync keeps in `directory`; `named` says that the command line named it.
pub fn records(directory: &StateDir, named: bool) -> Records {
    let locks = parse::locks(&fs::read_to_string("/proc/locks").unwrap_or_default());
    let here = Here {
        locks,
        active: active_volumes(),
        all: None,
    };
    let destinations = directory.path().join("destinations");
    Records {
        directory: directory.path().display().to_string(),
        named,
        place: place(&destinations),
        partials: partials(&destinations, ".state.partial", &here),
        spools: partials(&directory.spools(), ".spool.partial", &here),
        held: held(directory, &here),
        records: Some(listed(directory, here)),
    }
}

fn held(directory: &StateDir, here: &Here) -> Vec<HeldFacts> {
    let boot = boot_id();
    let look = |kind: HeldKind, name: &str, held: Held| HeldFacts {
        kind,
        busy: here.is_locked(&lock::path_of(name)),
        this_boot: boot.as_ref() == Some(&held.boot),
        held,
    };
    let mut all = Vec::new();
    for (name, held) in hold::record::pools(directory) {
        all.push(look(HeldKind::Pool, &name, held));
    }
    for (name, held) in hold::record::volumes() {
        all.push(look(HeldKind::Volume, &name, held));
    }
    for (name, held) in hold::record::snapshots(directory) {
        let mut facts = look(HeldKind::Snapshot(Err(String::new())), &name, held);
        // A run whose guard alone was killed reads it still.
        facts.busy |= here.is_open(&facts.held.name);
        if !facts.busy {
            facts.kind = HeldKind::Snapshot(is_there(&facts.held));
        }
        all.push(facts);
    }
    all
}

/// Asks LVM for a snapshot that is on record as temporary.
fn is_there(held: &Held) -> Looked<bool> {
    let name = LvName::parse(&held.name).ok_or("its record names no volume")?;
    if !rustix::process::geteuid().is_root() {
        return Err("asking LVM needs root".to_owned());
    }
    let lvm = find_program("lvm").ok_or("there is no lvm")?;
    let columns = "lv_name,lv_uuid,lv_tags";
    let form = ["--noheadings", "--separator", "|", "-o", columns];
    let arguments = [&["lvs"], &form[..], &["--", name.vg()]].concat();
    let (text, succeeded) = output_of(&lvm, &arguments, LVS_LIMIT)?;
    if !succeeded {
        return Err(format!("lvs failed: {}", text.trim()));
    }
    Ok(temporary::find(&parse::tagged(&text), &name, &held.of).is_some())
}

fn listed(directory: &StateDir, mut here: Here) -> Looked<Vec<RecordFacts>> {
    let files = directory.all().map_err(|error| error.chain())?;
    let look = |path: PathBuf| here.record(directory, &path);
    Ok(files.into_iter().map(look).collect())
}

/// The first of the path and those above it that is there decides.
fn place(directory: &Path) -> Place {
    for (depth, path) in directory.ancestors().enumerate() {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let shown = || path.display().to_string();
        match fs::metadata(path) {
            Ok(found) if !found.is_dir() => return Place::NotADirectory(shown()),
            Ok(_) => {
                let access = Access::WRITE_OK | Access::EXEC_OK;
                return match accessat(CWD, path, access, AtFlags::EACCESS) {
                    Ok(()) if depth == 0 => Place::Writable,
                    Ok(()) => Place::CanBeMade,
                    Err(error) => Place::NotWritable(shown(), io::Error::from(error).to_string()),
                };
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Place::NotWritable(shown(), error.to_string());
            }
            // Not there, or below something that is no directory, which one further up tells.
            Err(_) => {}
        }
    }
    Place::CanBeMade
}

fn partials(directory: &Path, suffix: &str, here: &Here) -> Vec<Partial> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with(suffix))
        .collect();
    paths.sort();
    let look = |path: PathBuf| Partial {
        busy: here.is_locked(&path),
        bytes: fs::metadata(&path).map_or(0, |metadata| metadata.len()),
        path: path.display().to_string(),
    };
    paths.into_iter().map(look).collect()
}

/// LVM's UUIDs of the volumes that have a device, with its name.
fn active_volumes() -> Vec<(String, String)> {
    let volume = |name: &String| {
        let mapped = Mapped::load(name)?;
        let uuid = DmUuid::parse(&mapped.uuid).filter(DmUuid::is_public)?;
        Some((uuid.lv_uuid(), mapped.name))
    };
    names_in("/sys/block").iter().filter_map(volume).collect()
}

/// What records are held against.
struct Here {
    locks: Vec<parse::Lock>,
    active: Vec<(String, String)>,
    /// The UUIDs of all logical volumes, once they were asked for.
    all: Option<Looked<BTreeSet<String>>>,
}

impl Here {
    fn record(&mut self, directory: &StateDir, path: &Path) -> RecordFacts {
        let content = content(directory, path);
        let mut facts = RecordFacts {
            file: path.display().to_string(),
            destination: Presence::Unknown,
            busy: false,
            undo: None,
            content,
        };
        let Ok(record) = &facts.content else {
            return facts;
        };
        facts.destination = self.presence(record);
        let undo = record.incomplete.as_ref().and_then(|cut| cut.undo.as_ref());
        facts.undo = undo.map(|undo| undo_of(Path::new(undo)));
        let held = |path: &str| {
            self.is_locked(Path::new(path)) || self.is_locked(&partial_name(Path::new(path)))
        };
        let device = self.device_of(record);
        facts.busy = held(&record.name)
            || undo.is_some_and(|undo| held(undo))
            || device.is_some_and(|name| held(&format!("/dev/mapper/{name}")));
        facts
    }

    /// The name of the active volume of this record.
    fn device_of(&self, record: &Record) -> Option<&str> {
        let uuid = record.identity.strip_prefix("lvm:")?;
        let found = self.active.iter().find(|(active, _)| active == uuid)?;
        Some(&found.1)
    }

    fn presence(&mut self, record: &Record) -> Presence {
        if let Some(uuid) = record.identity.strip_prefix("lvm:") {
            if self.device_of(record).is_some() {
                return Presence::Here;
            }
            return match self.all.get_or_insert_with(all_volumes) {
                Ok(all) if all.contains(uuid) => Presence::Here,
                Ok(_) => Presence::Gone,
                Err(_) => Presence::Unknown,
            };
        }
        let name = Path::new(&record.name);
        // A first copy is written to `NAME.partial`.
        let is_it = |path: &Path| path.exists() && identity::of_path(path) == record.identity;
        if is_it(name) || is_it(&partial_name(name)) {
            return Presence::Here;
        }
        match fs::metadata(name) {
            // Relative to the directory of that run, which nobody knows any more.
            _ if name.is_relative() => Presence::Unknown,
            Ok(_) => Presence::Replaced,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Presence::Gone,
            Err(_) => Presence::Unknown,
        }
    }

    /// Whether anybody has the logical volume of this name open.
    fn is_open(&self, name: &str) -> bool {
        let asked = || {
            let name = LvName::parse(name)?.dm_name();
            self.active.iter().find(|(_, active)| *active == name)?;
            DeviceMapper::open()
                .ok()?
                .info(Selector::Name(&name))
                .ok()?
        };
        asked().is_some_and(|info| info.open_count > 0)
    }

    fn is_locked(&self, path: &Path) -> bool {
        let Ok(found) = fs::metadata(path) else {
            return false;
        };
        let device = DeviceNumber::from_stat(found.dev());
        let is_it = |lock: &parse::Lock| lock.is_of((device.major, device.minor), found.ino());
        self.locks.iter().any(is_it)
    }
}

fn content(directory: &StateDir, path: &Path) -> Result<Record, Unusable> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
        .map_err(|error| Unusable::Unread(error.to_string()))?;
    Record::decode(&bytes).map_err(|error| {
        // What stands in it is only believed where the name of the file says the same.
        let named = |identity: &String| directory.file_of(identity).path() == path;
        Unusable::Damaged(error, parse::identity_in(&bytes).filter(named))
    })
}

fn undo_of(path: &Path) -> Undo {
    if partial_name(path).exists() {
        Undo::Partial
    } else if path.exists() {
        Undo::Whole
    } else {
        Undo::Gone
    }
}

/// Asks LVM, which alone knows of inactive volumes.
fn all_volumes() -> Looked<BTreeSet<String>> {
    if !rustix::process::geteuid().is_root() {
        return Err("asking LVM needs root".to_owned());
    }
    let lvm = find_program("lvm").ok_or("there is no lvm")?;
    let arguments = ["lvs", "-a", "--noheadings", "-o", "lv_uuid"];
    let (text, succeeded) = output_of(&lvm, &arguments, LVS_LIMIT)?;
    if !succeeded {
        return Err(format!("lvs failed: {}", text.trim()));
    }
    let mut uuids = BTreeSet::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        // A warning (a missing disk, say) may mean that not all are listed.
        let is_uuid = line.len() == 38 && line.matches('-').count() == 6 && !line.contains(' ');
        if !is_uuid {
            return Err(format!("lvs said: {line}"));
        }
        uuids.insert(line.to_owned());
    }
    Ok(uuids)
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
    fn the_place_is_decided_by_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        assert_eq!(place(directory.path()), Place::Writable);
        assert_eq!(place(&at("a/b")), Place::CanBeMade);
        fs::write(at("file"), "").unwrap();
        let file = at("file").display().to_string();
        assert_eq!(place(&at("file/b")), Place::NotADirectory(file));
        let closed = place(Path::new("/proc/sys/x"));
        assert!(matches!(closed, Place::NotWritable(..)), "{closed:?}");
    }

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

    #[test]
    fn a_lock_that_somebody_holds_is_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let look = || Here {
            locks: parse::locks(&fs::read_to_string("/proc/locks").unwrap()),
            active: vec![],
            all: None,
        };
        assert!(!look().is_locked(file.path()));
        file.as_file().lock().unwrap();
        assert!(look().is_locked(file.path()));
    }
}
