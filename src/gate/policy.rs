//! What a server may be asked for, when whoever started it has set limits (`lvmsync serve --allow`).
//!
//! Pure: names come in already looked up, see [`super::Gate`]. Guarantees: a wildcard never matches a `/`;
//! what is refused is refused in the same words whether it exists or not; an operation that is not known to
//! only read is taken for one that writes.

use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

use crate::dm::name::{LvName, split_dm_name};
use crate::dm::uuid::DmUuid;
use crate::error::{Error, Result};
use crate::session::message::{
    OPERATION_APPLY, OPERATION_COMPARE, OPERATION_PULL, OPERATION_SYNC, Open,
};

/// Longer names are refused unread.
const MAX_NAME_BYTES: usize = 4096;
/// Room for `.partial` in a file name.
const MAX_UNDO_BYTES: usize = 200;

/// Operations that write nothing.
const READING: [&str; 2] = [OPERATION_COMPARE, OPERATION_PULL];

const MATCHING: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    // `/home/backup/*` is not meant to hold `.profile`.
    require_literal_leading_dot: true,
};

/// What else may be asked for, beside an allowed destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permits {
    /// To write to one that is mounted or held.
    pub in_use: bool,
    /// To replace an undo file that exists.
    pub overwrite: bool,
    /// To make a logical volume of an allowed name.
    pub create: bool,
    /// To read what an allowed volume holds.
    pub read: bool,
    /// To have a snapshot made of it for that.
    pub snapshot: bool,
}

/// The limits of one server.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Empty for a server without limits.
    globs: Vec<Pattern>,
    /// Nothing may be written.
    read_only: bool,
    /// Where undo files go.
    undo_directory: Option<PathBuf>,
    permits: Permits,
}

impl Policy {
    /// From the command line. Globs are absolute paths, or `vg/lv` for logical volumes.
    pub fn new(
        globs: &[String],
        read_only: bool,
        undo_directory: Option<PathBuf>,
        permits: Permits,
    ) -> Result<Self> {
        let mut patterns = Vec::new();
        for glob in globs {
            for text in spellings(glob)? {
                let pattern = Pattern::new(&text)
                    .map_err(|error| Error::Usage(format!("--allow {glob}: {error}")))?;
                patterns.push(pattern);
            }
        }
        Ok(Self {
            globs: patterns,
            read_only,
            undo_directory,
            permits,
        })
    }

    /// True if only some destinations are allowed.
    pub fn is_restricted(&self) -> bool {
        !self.globs.is_empty()
    }

    fn has_limits(&self) -> bool {
        self.read_only || self.is_restricted()
    }

    /// Whether a snapshot may be made of what is allowed, and called `name`, to be read in its place.
    pub fn check_snapshot(&self, name: &str) -> Result<()> {
        if !self.has_limits() || self.permits.snapshot {
            return Ok(());
        }
        Err(Error::refused(
            name,
            "it is a live volume, and this server does not permit a snapshot of it to be made to be read",
            "Have `--permit snapshot` added to the `lvmsync serve` there; or read it as it is while it is written, \
             which may be a blur of moments: --no-snapshot",
        ))
    }

    /// Whether this canonical name is allowed: `/dev/vg/lv` for a logical volume, else the real path.
    pub fn allows(&self, canonical: &str) -> bool {
        !self.is_restricted()
            || self
                .globs
                .iter()
                .any(|glob| glob.matches_with(canonical, MATCHING))
    }

    /// Holds everything against the limits that needs no look at the destination. Gives the path of the undo.
    pub fn check(&self, open: &Open) -> Result<Option<PathBuf>> {
        let options = &open.options;
        if self.read_only && writes(open) {
            return Err(Error::refused(
                &open.destination,
                "this server only reads (--read-only), and this would write",
                "A dry run (-n) is possible.",
            ));
        }
        if open.operation == OPERATION_PULL && self.has_limits() && !self.permits.read {
            return Err(not_permitted("to be read from here"));
        }
        if !self.is_restricted() {
            return Ok(options.undo.as_ref().map(PathBuf::from));
        }
        if options.allow_in_use && !self.permits.in_use {
            return Err(not_permitted("--allow-in-use"));
        }
        if options.create_volume.is_some() && !self.permits.create {
            return Err(not_permitted("--create"));
        }
        if options.spool.is_some() {
            return Err(Error::refused(
                "--spool",
                "this server chooses by itself where it keeps a delta beside the destination",
                "Do without --spool; --atomic is possible.",
            ));
        }
        let Some(undo) = &options.undo else {
            return Ok(None);
        };
        if options.overwrite && !self.permits.overwrite {
            return Err(not_permitted("--overwrite of an undo"));
        }
        let Some(directory) = &self.undo_directory else {
            return Err(Error::refused(
                undo,
                "this server keeps no undo files: it was started with --allow and without --undo-dir",
                "Do without --undo, or have --undo-dir added there.",
            ));
        };
        if !is_plain_file_name(undo) {
            return Err(Error::refused(
                undo,
                "this server keeps undo files in a directory of its own, and this is not a plain file name",
                "Give a name without a `/`, such as --undo monday.undo.",
            ));
        }
        Ok(Some(directory.join(undo)))
    }
}

/// The refusal of a name: says nothing about what is there, nor what would be allowed.
pub fn not_allowed(name: &str) -> Error {
    Error::refused(name, "this destination is not allowed here", "")
}

fn not_permitted(option: &str) -> Error {
    Error::refused(
        option,
        "this server does not permit it",
        "Do without, or have --permit added there.",
    )
}

fn writes(open: &Open) -> bool {
    match open.operation.as_str() {
        OPERATION_APPLY | OPERATION_SYNC => !open.options.dry_run,
        operation => !READING.contains(&operation),
    }
}

/// A name of the client's as an absolute path; `None` for what is no name here: a relative path, or a text
/// that no volume has.
pub fn absolute(name: &str) -> Option<String> {
    if name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return None;
    }
    if name.starts_with('/') {
        return Some(name.to_owned());
    }
    LvName::parse(name).map(|name| format!("/dev/{name}"))
}

/// The canonical name of what is at `real_path`, a path without links, and is the mapped device with this
/// name and UUID if it is one. `None` for a hidden part of a logical volume.
pub fn canonical(real_path: &str, mapped: Option<(&str, &str)>) -> Option<String> {
    let Some((name, uuid)) = mapped else {
        return Some(real_path.to_owned());
    };
    match (DmUuid::parse(uuid), split_dm_name(name)) {
        (Some(uuid), Some((volume, None))) if uuid.is_public() => Some(format!("/dev/{volume}")),
        (None, _) if !uuid.starts_with("LVM-") => Some(format!("/dev/mapper/{name}")),
        _ => None,
    }
}

/// The canonical name of what is not there.
pub fn canonical_of_absent(path: &str, real_parent: Option<&Path>) -> Option<String> {
    if let Some(name) = LvName::from_path(path) {
        return Some(format!("/dev/{name}"));
    }
    let name = Path::new(path).file_name()?;
    Some(real_parent?.join(name).to_str()?.to_owned())
}

fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_UNDO_BYTES
        && !name.starts_with(['.', '-'])
        && !name.contains('/')
        && !name.chars().any(char::is_control)
        // It would stand where the unfinished undo of another name stands.
        && !name.ends_with(".partial")
}

/// The globs that stand for one that was given.
fn spellings(glob: &str) -> Result<Vec<String>> {
    let usage = |reason: &str| {
        Err(Error::Usage(format!(
            "--allow {glob}: {reason}. Write an absolute path such as /dev/vg/backup-*, or vg/backup-*"
        )))
    };
    if glob.contains("**") {
        return usage("`**` is not known; `*` stands for any text without a `/`");
    }
    let path = match glob.split('/').count() {
        _ if glob.starts_with('/') => glob.to_owned(),
        2 => format!("/dev/{glob}"),
        _ => return usage("it is a relative path"),
    };
    let parts = || path.split('/').skip(1);
    if parts().any(|part| part.is_empty() || part == "." || part == "..") {
        return usage("no canonical path has `//`, `.` or `..` in it, or `/` at its end");
    }
    // A class that a `/` divides: one reader counts it as the end of a part, another as a character.
    if parts().any(|part| Pattern::new(part).is_err()) {
        return usage("a part of it between two `/` is no pattern by itself");
    }
    // Volumes are known as /dev/vg/lv: one that is written in full means that one.
    let volume = path
        .strip_prefix("/dev/mapper/")
        .and_then(|_| LvName::from_path(&path))
        .map(|name| format!("/dev/{name}"));
    Ok([Some(path), volume].into_iter().flatten().collect())
}

#[cfg(test)]
mod tests;
