//! The gate of a server with limits: looks at what a client names, and again at what was opened.
//!
//! A thin shell around [`policy`]. Guarantees: what is handed on to be opened is a canonical
//! name that is allowed; what was opened is what was allowed, by the kernel's own word for the open file, or
//! it is refused before a byte is read or written.

pub mod policy;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::dm::device::sysfs_name_and_uuid;
use crate::dm::name::LvName;
use crate::dm::resolve::{is_name_of_directory, no_directory_is_made};
use crate::error::{Error, Result};
use crate::partial_file::PARTIAL_SUFFIX;
use crate::session::message::Open;
use crate::sys::device::DeviceNumber;
use crate::volume::VolumeIdentity;
use crate::volume::open::Volume;
use policy::{Policy, absolute, canonical, canonical_of_absent, not_allowed};

/// See the module.
#[derive(Debug)]
pub struct Gate {
    policy: Policy,
}

/// What was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// What to open.
    pub destination: String,
    /// Path of the undo, if one was asked for.
    pub undo: Option<PathBuf>,
    /// Name that was held against the limits; `None` where there are none.
    canonical: Option<String>,
    asked: String,
}

impl Admitted {
    /// True if what is opened must be what its name says, through no link.
    pub fn is_restricted(&self) -> bool {
        self.canonical.is_some()
    }
}

impl Gate {
    /// A gate that keeps to `policy`.
    pub fn new(policy: Policy) -> Self {
        Self { policy }
    }

    /// Holds a request against the limits. Whatever cannot be looked at is not allowed.
    pub fn admit(&self, open: &Open) -> Result<Admitted> {
        let asked = &open.destination;
        let mut admitted = Admitted {
            destination: asked.clone(),
            undo: None,
            canonical: None,
            asked: asked.clone(),
        };
        if self.policy.is_restricted() {
            // First: to a destination that is not allowed nothing else is said.
            let name = absolute(asked)
                .and_then(|path| canonical_name(&path))
                .filter(|name| self.policy.allows(name))
                .ok_or_else(|| not_allowed(asked))?;
            // The canonical name has no slash at its end: a file could be made of it.
            if is_name_of_directory(asked) && !Path::new(&name).exists() {
                return Err(no_directory_is_made(asked));
            }
            admitted.destination = path_to_open(&name);
            admitted.canonical = Some(name);
        }
        admitted.undo = self.policy.check(open)?;
        Ok(admitted)
    }

    /// Holds what was opened against what was let in.
    pub fn confirm(&self, admitted: &Admitted, volume: &Volume) -> Result<()> {
        let Some(allowed) = &admitted.canonical else {
            return Ok(());
        };
        let path = volume
            .open_path()
            .map_err(|error| Error::io("cannot look at what was opened", error))?;
        let name = path.to_str().and_then(|path| match volume.identity() {
            VolumeIdentity::Block(device) => name_of_device(path, device),
            VolumeIdentity::File { .. } => Some(path.to_owned()),
        });
        // A file that is made for a full copy gets its name when it is whole.
        let whole = name
            .as_deref()
            .map(|name| name.strip_suffix(PARTIAL_SUFFIX).unwrap_or(name));
        if name.as_ref() == Some(allowed) || whole == Some(allowed) {
            Ok(())
        } else {
            Err(not_allowed(&admitted.asked))
        }
    }
}

impl Gate {
    /// Before a snapshot of `origin` is made to be read in its place, and perhaps `kept`: may it be?
    pub fn admit_snapshot(
        &self,
        admitted: &Admitted,
        origin: &LvName,
        kept: Option<&LvName>,
    ) -> Result<()> {
        if admitted
            .canonical
            .as_ref()
            .is_some_and(|allowed| *allowed != node(origin))
        {
            return Err(not_allowed(&admitted.asked));
        }
        self.policy.check_snapshot(&admitted.asked)?;
        match kept {
            Some(kept) if !self.policy.allows(&node(kept)) => Err(not_allowed(&kept.to_string())),
            _ => Ok(()),
        }
    }

    /// Holds a snapshot that was made, and is open, against what was let in: it has to be one of that. `live` is the
    /// device of `origin`, where that has one.
    pub fn confirm_snapshot(
        &self,
        admitted: &Admitted,
        opened: &Volume,
        made: &LvName,
        origin: &LvName,
        live: Option<VolumeIdentity>,
    ) -> Result<()> {
        let Some(allowed) = &admitted.canonical else {
            return Ok(());
        };
        let name_of = |identity| match identity {
            VolumeIdentity::Block(device) => name_of_device("", device),
            VolumeIdentity::File { .. } => None,
        };
        let is_allowed = node(origin) == *allowed
            && name_of(opened.identity()) == Some(node(made))
            && live.is_none_or(|live| name_of(live).as_ref() == Some(allowed));
        if is_allowed {
            Ok(())
        } else {
            Err(not_allowed(&admitted.asked))
        }
    }

    /// Whether a client may hear of this volume, which it did not name.
    pub fn may_name(&self, name: &str) -> bool {
        let canonical = LvName::parse(name).map_or_else(|| name.to_owned(), |name| node(&name));
        self.policy.allows(&canonical)
    }
}

/// Where a logical volume is.
fn node(name: &LvName) -> String {
    format!("/dev/{name}")
}

/// The canonical name of what is at an absolute path, or would be.
fn canonical_name(path: &str) -> Option<String> {
    match fs::canonicalize(path) {
        Ok(real) => {
            let real = real.to_str()?;
            let metadata = fs::symlink_metadata(real).ok()?;
            if metadata.file_type().is_block_device() {
                return name_of_device(real, DeviceNumber::from_stat(metadata.rdev()));
            }
            Some(real.to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = Path::new(path).parent()?;
            canonical_of_absent(path, fs::canonicalize(parent).ok().as_deref())
        }
        Err(_) => None,
    }
}

fn name_of_device(real_path: &str, device: DeviceNumber) -> Option<String> {
    let mapped = sysfs_name_and_uuid(device);
    let mapped = mapped
        .as_ref()
        .map(|(name, uuid)| (name.as_str(), uuid.as_str()));
    canonical(real_path, mapped)
}

/// A node of the volume with this name. Always an absolute path: `vg/lv` could be a file in the home directory.
fn path_to_open(canonical: &str) -> String {
    let by_name =
        LvName::from_path(canonical).map(|name| format!("/dev/mapper/{}", name.dm_name()));
    match by_name {
        // Without udev there may be only the one of device-mapper.
        Some(mapper) if !Path::new(canonical).exists() && Path::new(&mapper).exists() => mapper,
        _ => canonical.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::policy::Permits;
    use super::*;
    use crate::error::ExitCode;
    use crate::session::message::OPERATION_APPLY;
    use crate::volume::open::WriteOptions;
    use std::os::unix::fs::symlink;

    fn gate(directory: &Path) -> Gate {
        let glob = directory.join("in/*.img").display().to_string();
        Gate::new(Policy::new(&[glob], false, None, Permits::default()).unwrap())
    }

    fn open(destination: impl AsRef<Path>) -> Open {
        Open {
            operation: OPERATION_APPLY.into(),
            destination: destination.as_ref().display().to_string(),
            ..Open::default()
        }
    }

    /// A canonical directory with `in/a.img` and `out/a.img`, and links that cross.
    fn directory() -> (tempfile::TempDir, PathBuf) {
        let temporary = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(temporary.path()).unwrap();
        for name in ["in", "out"] {
            fs::create_dir(path.join(name)).unwrap();
            fs::write(path.join(name).join("a.img"), name).unwrap();
        }
        symlink(path.join("out/a.img"), path.join("in/link.img")).unwrap();
        symlink(path.join("out"), path.join("in/dir")).unwrap();
        symlink(path.join("in"), path.join("out/back")).unwrap();
        symlink(path.join("out/none.img"), path.join("in/dangling.img")).unwrap();
        (temporary, path)
    }

    #[test]
    fn links_and_dots_lead_where_they_lead() {
        let (_held, path) = directory();
        let gate = gate(&path);
        let admitted = |name: &str| {
            gate.admit(&open(path.join(name)))
                .ok()
                .map(|a| a.destination)
        };
        let inside = Some(path.join("in/a.img").display().to_string());
        for name in [
            "in/a.img",
            "in/../in/a.img",
            "out/back/a.img",
            "in/dir/../in/./a.img",
        ] {
            assert_eq!(admitted(name), inside, "{name}");
        }
        let new = Some(path.join("in/new.img").display().to_string());
        assert_eq!(admitted("in/new.img"), new);
        assert_eq!(admitted("out/back/new.img"), new);
        for name in [
            "out/a.img",
            "in/link.img",
            "in/../out/a.img",
            "in/dir/a.img",
            "in/dir/new.img",
            "in/none/../../out/x.img",
            "in/none/x.img",
            "in/new.img/",
            "in/new.img/.",
            "in/..",
            "in",
            "in/a.img/",
            "in/a.img/x.img",
            "in/.x.img",
            "none/x.img",
        ] {
            assert_eq!(admitted(name), None, "{name}");
        }
        for name in [
            "a.img",
            "./in/a.img",
            "in/a.img",
            "/proc/self/fd/0",
            "/dev/stdin",
            "/dev/dm-0",
            "",
        ] {
            assert!(gate.admit(&open(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_refusal_is_the_same_whether_the_thing_exists_or_not() {
        let (_held, path) = directory();
        let gate = gate(&path);
        let refusal = |name: &Path| {
            let error = gate.admit(&open(name)).unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::Refused);
            error.chain().replace(&name.display().to_string(), "NAME")
        };
        let expected = "NAME: this destination is not allowed here";
        for name in ["out/a.img", "out/none.img", "none/none.img", "out"] {
            assert_eq!(refusal(&path.join(name)), expected);
        }
        for name in [
            "/dev/vg/none",
            "vg/none",
            "/dev/mapper/vg-none",
            "none",
            "/etc/shadow",
            "/dev/null",
        ] {
            assert_eq!(refusal(Path::new(name)), expected);
        }
    }

    #[test]
    fn what_took_the_place_of_what_was_allowed_is_refused() {
        let (_held, path) = directory();
        let gate = gate(&path);
        let name = path.join("in/a.img");
        let admitted = gate.admit(&open(&name)).unwrap();
        let opened = |path: &Path, no_links| {
            let options = WriteOptions {
                no_links,
                ..WriteOptions::default()
            };
            Volume::open_writable(path, &options)
        };
        gate.confirm(&admitted, &opened(&name, true).unwrap())
            .unwrap();
        // A link takes the name between the check and the open.
        fs::remove_file(&name).unwrap();
        symlink(path.join("out/a.img"), &name).unwrap();
        assert!(opened(&name, true).is_err(), "not even opened");
        let error = gate
            .confirm(&admitted, &opened(&name, false).unwrap())
            .unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Refused, "{error}");
        // A file is removed after it was opened.
        fs::remove_file(&name).unwrap();
        fs::write(&name, "x").unwrap();
        let volume = opened(&name, true).unwrap();
        fs::remove_file(&name).unwrap();
        assert!(gate.confirm(&admitted, &volume).is_err());
    }

    #[test]
    fn a_snapshot_is_of_the_volume_that_was_let_in_and_is_kept_under_an_allowed_name() {
        let permits = Permits {
            read: true,
            snapshot: true,
            ..Permits::default()
        };
        let gate = Gate::new(Policy::new(&["vg/a*".to_owned()], false, None, permits).unwrap());
        let admitted = gate.admit(&open("vg/a-none")).unwrap();
        let name = |lv: &str| LvName::new("vg", lv).unwrap();
        let admit = |origin: &str, kept: Option<&str>| {
            let kept = kept.map(name);
            gate.admit_snapshot(&admitted, &name(origin), kept.as_ref())
        };
        assert!(admit("a-none", None).is_ok() && admit("a-none", Some("a1")).is_ok());
        for (origin, kept) in [("a-other", None), ("b", None), ("a-none", Some("b1"))] {
            let error = admit(origin, kept).unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::Refused, "{origin} {kept:?}");
        }
        // What is open is no snapshot of that name.
        let (_held, path) = directory();
        let opened = Volume::open(path.join("in/a.img")).unwrap();
        let confirmed =
            gate.confirm_snapshot(&admitted, &opened, &name("a-s"), &name("a-none"), None);
        assert_eq!(confirmed.unwrap_err().exit_code(), ExitCode::Refused);
        assert!(gate.may_name("vg/a-none") && !gate.may_name("vg/b"));
    }

    #[test]
    fn nothing_is_made_through_a_link() {
        let (_held, path) = directory();
        let options = WriteOptions {
            no_links: true,
            create: true,
            ..WriteOptions::default()
        };
        for name in ["in/dangling.img", "in/dir/new.img"] {
            assert!(
                Volume::open_writable(path.join(name), &options).is_err(),
                "{name}"
            );
        }
        assert!(!path.join("out/none.img").exists() && !path.join("out/new.img").exists());
        Volume::open_writable(path.join("in/new.img"), &options).unwrap();
    }

    #[test]
    fn a_gate_without_limits_lets_everything_through_as_it_is() {
        let gate = Gate::new(Policy::default());
        let admitted = gate.admit(&open("./x")).unwrap();
        assert_eq!(
            (admitted.destination.as_str(), admitted.is_restricted()),
            ("./x", false)
        );
    }
}
