//! Deltas in files, opened to be held against each other.
//!
//! Guarantees: nothing but regular files is opened; what is read is known to be what was opened, as far as the
//! filesystem keeps times.

use super::apply::shown_name;
use crate::delta::FormatError;
use crate::delta::stored::StoredDelta;
use crate::error::{Error, Result};
use crate::history::chain::{Chains, Link};
use crate::history::combine::Input;
use crate::history::invert::proto3;
use crate::volume::file_version::FileVersion;
use crate::volume::{Volume, VolumeIdentity};

/// The line of a stream that names no states.
pub(super) const LINE_3: &str = "lvmsync PROTO[3]";

/// Some open deltas.
pub(super) struct Files {
    pub(super) inputs: Vec<Input<Volume>>,
    known: Vec<(VolumeIdentity, Option<FileVersion>)>,
}

impl Files {
    /// Opens them all; the first that cannot be used ends it.
    pub(super) fn open(names: &[String]) -> Result<Self> {
        let mut files = Self {
            inputs: Vec::with_capacity(names.len()),
            known: Vec::with_capacity(names.len()),
        };
        for name in names {
            let volume = open_file(name)?;
            files
                .known
                .push((volume.identity(), FileVersion::of(&volume)?));
            let delta = StoredDelta::open(volume).map_err(|error| unusable(name, error))?;
            files.inputs.push(Input {
                name: name.clone(),
                delta,
            });
        }
        Ok(files)
    }

    /// As links of a chain.
    pub(super) fn links(&self) -> Vec<Link<'_>> {
        let mut links = Vec::with_capacity(self.inputs.len());
        for Input { name, delta } in &self.inputs {
            let header = delta.header();
            links.push(Link { name, header });
        }
        links
    }

    /// In the order of their states, or why that cannot be.
    pub(super) fn chain(&self) -> Result<Vec<&Input<Volume>>> {
        let links = self.links();
        let chains = Chains::of(&links);
        if let Some(order) = chains.only() {
            return Ok(order.iter().map(|place| &self.inputs[*place]).collect());
        }
        Err(no_chain(&chains.faults(&links)))
    }

    /// What is written must not be one of them.
    pub(super) fn refuse_as_output(&self, path: &std::path::Path) -> Result<()> {
        let output = VolumeIdentity::of_path(path).ok();
        if output.is_some_and(|output| self.known.iter().any(|(known, _)| *known == output)) {
            return Err(Error::Usage(format!(
                "{} is one of the deltas that are read; the result cannot replace it",
                path.display()
            )));
        }
        Ok(())
    }

    /// After the last read: a file that was written meanwhile was read in no state that it ever had.
    pub(super) fn check_unchanged(&self, names: &[String]) -> Result<()> {
        for (name, (_, before)) in names.iter().zip(&self.known) {
            if FileVersion::of(&open_file(name)?)? != *before {
                let error = std::io::Error::other("it was written while it was read");
                return Err(Error::io(format!("cannot use {name}"), error));
            }
        }
        Ok(())
    }
}

/// Why some deltas are no chain.
pub(super) fn no_chain(faults: &[String]) -> Error {
    Error::refused(
        "no chain",
        faults.join("\n"),
        "lvmsync inspect with the same files shows what follows what.",
    )
}

/// Opens a regular file, which can be read at random and more than once.
pub(super) fn open_file(name: &str) -> Result<Volume> {
    let is_other = std::fs::metadata(name).is_ok_and(|found| !found.is_file());
    if name == "-" || is_other {
        return Err(Error::Usage(format!(
            "{}: deltas of a chain are read at random, and more than once: they have to be in files",
            shown_name(name)
        )));
    }
    Volume::open(name)
}

/// Why a file is no delta that can be held against others.
pub(super) fn unusable(name: &str, error: FormatError) -> Error {
    match error {
        FormatError::UnsupportedVersion { line, .. } if line == LINE_3 => proto3(name),
        source => Error::Damaged {
            what: name.to_owned(),
            source,
        },
    }
}
