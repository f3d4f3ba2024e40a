//! What a replication job is: one file of `/etc/lvmsync/jobs.d`.
//!
//! Pure. Guarantees: a key that is not known is an error, and so is a value that cannot be meant; errors name file and line.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use toml::de::DeTable;

use super::grid::Grid;
use crate::delta::codec::Compression;
use crate::dm::base::Store;
use crate::dm::making::Making;
use crate::dm::name::LvName;
use crate::error::{Error, Result};
use crate::session::endpoint::parse_endpoint;
use crate::units::{Bytes, parse_seconds, parse_size};

/// A job that is later than so many intervals is late, if nothing else is said.
const LATE_AFTER_INTERVALS: f64 = 3.0;

/// One source, and where it is replicated to.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobConfig {
    /// The logical volume: `vg/lv`, or the path of its device.
    #[serde(deserialize_with = "source")]
    pub source: String,
    /// From the start of one run to that of the next.
    #[serde(deserialize_with = "seconds")]
    pub interval: f64,
    /// After this long without success a target is late. `None`: three intervals.
    #[serde(default, deserialize_with = "maybe_seconds")]
    pub max_lag: Option<f64>,
    /// What tells which blocks were written since the last run.
    #[serde(default)]
    pub track: Track,
    /// Room for what is written to a thick volume between two runs.
    #[serde(default, deserialize_with = "store")]
    pub snapshot_size: Store,
    /// A snapshot that fills is not made larger than this; `None`: as long as its group has room.
    #[serde(default, deserialize_with = "maybe_size")]
    pub extend_limit: Option<u64>,
    /// As on the command line.
    #[serde(default, deserialize_with = "compression")]
    pub compress: Compression,
    /// Bytes a second.
    #[serde(default, deserialize_with = "maybe_size")]
    pub bwlimit: Option<u64>,
    /// Whether each target keeps what leads back, and where.
    #[serde(default, deserialize_with = "history")]
    pub history: History,
    /// Which points of it; `None`: what is kept if nothing is said.
    #[serde(default, deserialize_with = "grid")]
    pub keep: Option<Grid>,
    /// Commands that are run at certain moments.
    #[serde(default)]
    pub hooks: Hooks,
    /// Where to.
    #[serde(rename = "target")]
    pub targets: Vec<Target>,
}

/// What tells which blocks were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Track {
    /// A snapshot that is kept from one run to the next.
    #[default]
    Snapshot,
    /// dm-era, see docs/tracking.md.
    Era,
}

/// Commands for `sh -c`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    /// Before the snapshot is made; if it fails none is.
    pub before_snapshot: Option<String>,
    /// Right after it was made, or was not.
    pub after_snapshot: Option<String>,
    /// When a run has failed; `LVMSYNC_ERROR` says why.
    pub on_failure: Option<String>,
}

/// Whether undos of all runs are kept, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum History {
    /// No.
    #[default]
    Off,
    /// Beside the records at the machine of the target.
    On,
    /// Below this directory there.
    Below(PathBuf),
}

/// One destination.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// `[USER@]HOST:DEST`, or a volume of this machine.
    pub to: String,
    /// Make the volume where there is none: `auto`, `thick` or `thin:POOL`.
    #[serde(default, deserialize_with = "making")]
    pub create: Option<Making>,
    /// Remote shell, with options.
    #[serde(default = "ssh")]
    pub rsh: String,
    /// Run lvmsync there through `sudo -n`.
    #[serde(default)]
    pub sudo: bool,
    /// The lvmsync there.
    #[serde(default = "lvmsync")]
    pub remote_path: String,
    /// Read back what was written.
    #[serde(default)]
    pub verify: bool,
}

fn ssh() -> String {
    "ssh".to_owned()
}

fn lvmsync() -> String {
    "lvmsync".to_owned()
}

impl Target {
    /// It is a directory, which collects deltas; nothing is applied there.
    pub fn collects(&self) -> bool {
        self.to.ends_with('/')
    }

    /// What cannot be meant, and of which key.
    fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        let to = &self.to;
        if !self.collects() {
            return match parse_endpoint(to) {
                Ok(_) => Ok(()),
                Err(error) => Err(("to", error.chain())),
            };
        }
        if !to.starts_with('/') {
            let reason = format!(
                "target `{to}` ends with `/`, so it is a directory that collects deltas, and that is an absolute path \
                 of this machine"
            );
            return Err(("to", reason));
        }
        let of_volumes = [("create", self.create.is_some()), ("verify", self.verify)];
        match of_volumes.into_iter().find(|(_, is_there)| *is_there) {
            Some((key, _)) => Err((
                key,
                format!(
                    "target `{to}` is a directory that collects deltas: create and verify are for volumes"
                ),
            )),
            None => Ok(()),
        }
    }
}

impl JobConfig {
    /// Which points are kept.
    pub fn grid(&self) -> Grid {
        self.keep.clone().unwrap_or_default()
    }

    /// Reads the text of `path`.
    pub fn parse(text: &str, path: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_at(text, span.start));
            // The first line says it all; the others show the place.
            Error::Usage(format!(
                "{path}: line {line}: {}\n{}",
                error.message(),
                error.to_string().trim_end()
            ))
        })?;
        config.check().map_err(|(place, reason)| {
            let line = place.line_in(text);
            Error::Usage(format!("{path}: line {line}: {reason}"))
        })?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), (Place, String)> {
        let wrong = |key, reason: &str| Err((Place::Key(key), reason.to_owned()));
        if self.targets.is_empty() {
            return wrong(
                "target",
                "there is no [[target]], so that nothing would be replicated",
            );
        }
        if self.interval < 1.0 {
            return wrong("interval", "interval is less than a second");
        }
        if let (Store::Bytes(size), Some(limit)) = (self.snapshot_size, self.extend_limit)
            && limit < size
        {
            let reason = format!(
                "extend_limit ({}) is less than snapshot_size ({}), with which a snapshot begins",
                Bytes(limit),
                Bytes(size)
            );
            return wrong("extend_limit", &reason);
        }
        for (number, target) in self.targets.iter().enumerate() {
            let of_target = |(key, reason)| (Place::OfTarget(number, key), reason);
            target.check().map_err(of_target)?;
        }
        let collects = self.targets.iter().any(Target::collects);
        if self.track == Track::Era && collects {
            return wrong(
                "track",
                "track = \"era\" follows volumes: a directory that collects deltas needs snapshots",
            );
        }
        if self.track == Track::Era && self.extend_limit.is_some() {
            return wrong(
                "extend_limit",
                "extend_limit is for snapshots that are kept, and with track = \"era\" there are none",
            );
        }
        if self.keep.is_some() && self.history == History::Off && !collects {
            return wrong(
                "keep",
                "keep says which points of a history are kept, and none is: add history = true",
            );
        }
        if let History::Below(directory) = &self.history
            && !directory.is_absolute()
        {
            return wrong(
                "history",
                "history has to be true, false, or an absolute path",
            );
        }
        for (number, target) in self.targets.iter().enumerate() {
            if self.targets[..number]
                .iter()
                .any(|before| before.to == target.to)
            {
                let reason = format!("there are two targets `{}`", target.to);
                return Err((Place::OfTarget(number, "to"), reason));
            }
        }
        Ok(())
    }

    /// Seconds after which a target is late.
    pub fn late_after(&self) -> f64 {
        self.max_lag.unwrap_or(self.interval * LATE_AFTER_INTERVALS)
    }
}

/// What of a file is wrong that can be read.
#[derive(Clone, Copy)]
enum Place {
    /// The value of this key.
    Key(&'static str),
    /// That of this key of the target with this number, from 0.
    OfTarget(usize, &'static str),
}

impl Place {
    /// Its line, from 1; that of what it is part of where it is written in another way.
    fn line_in(self, text: &str) -> usize {
        let Ok(table) = DeTable::parse(text) else {
            return 1;
        };
        let (key, in_target) = match self {
            Place::Key(key) => (key, None),
            Place::OfTarget(number, key) => ("target", Some((number, key))),
        };
        let Some(value) = table.get_ref().get(key) else {
            return 1;
        };
        let within = in_target.and_then(|(number, key)| {
            let target = value.get_ref().as_array()?.get(number)?;
            Some(target.get_ref().as_table()?.get(key).unwrap_or(target))
        });
        line_at(text, within.unwrap_or(value).span().start)
    }
}

/// The line of this byte, from 1.
fn line_at(text: &str, byte: usize) -> usize {
    let before = text.get(..byte);
    before.map_or(1, |before| before.matches('\n').count() + 1)
}

/// A job is called as its file is; the name is part of tags and of names of snapshots.
pub fn is_job_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    !name.is_empty() && name.len() <= 60 && name.chars().all(fits) && !name.starts_with(['-', '.'])
}

fn seconds<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    parse_seconds(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// What is there is looked up by a run alone; a path may be called as anybody likes.
fn source<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<String, D::Error> {
    let text = String::deserialize(from)?;
    match text.starts_with('/') || LvName::parse(&text).is_some() {
        true => Ok(text),
        false => Err(D::Error::custom(format!(
            "`{text}` is no logical volume: it is written vg/lv, or as the path of its device"
        ))),
    }
}

fn making<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<Making>, D::Error> {
    let text = String::deserialize(from)?;
    text.parse()
        .map(Some)
        .map_err(|reason: String| D::Error::custom(format!("create cannot be `{text}`: {reason}")))
}

fn maybe_seconds<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<f64>, D::Error> {
    seconds(from).map(Some)
}

fn maybe_size<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<u64>, D::Error> {
    parse_size(&String::deserialize(from)?)
        .map(Some)
        .map_err(D::Error::custom)
}

fn store<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Store, D::Error> {
    match String::deserialize(from)?.as_str() {
        "max" => Ok(Store::Most),
        text => parse_size(text).map(Store::Bytes).map_err(D::Error::custom),
    }
}

fn history<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<History, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "history is true, false, or a directory")]
    enum Written {
        Switch(bool),
        Directory(PathBuf),
    }
    Ok(match Written::deserialize(from)? {
        Written::Switch(true) => History::On,
        Written::Switch(false) => History::Off,
        Written::Directory(directory) => History::Below(directory),
    })
}

fn grid<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<Grid>, D::Error> {
    String::deserialize(from)?
        .parse()
        .map(Some)
        .map_err(D::Error::custom)
}

fn compression<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Compression, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
source = "vg/data"
interval = "15m"
max_lag = "1h"
snapshot_size = "10G"
compress = "zstd:3"
bwlimit = "20M"

[hooks]
before_snapshot = "fsfreeze -f /srv"
after_snapshot = "fsfreeze -u /srv"

[[target]]
to = "backup:vg/data"
create = "thin:pool"
sudo = true

[[target]]
to = "vg2/data"
verify = true
"#;

    #[test]
    fn a_job_is_read() {
        let job = JobConfig::parse(WHOLE, "x.toml").unwrap();
        assert_eq!((job.interval, job.late_after()), (900.0, 3600.0));
        assert_eq!(job.snapshot_size, Store::Bytes(10 << 30));
        assert_eq!(job.compress, Compression::Zstd(3));
        assert_eq!(job.bwlimit, Some(20 << 20));
        assert_eq!(job.targets.len(), 2);
        assert_eq!(job.targets[1].rsh, "ssh");
        assert!(job.targets[0].sudo && job.targets[1].verify);
        let short = "source = \"vg/x\"\ninterval = \"1h\"\n[[target]]\nto = \"h:vg/x\"\n";
        let job = JobConfig::parse(short, "x.toml").unwrap();
        assert_eq!(
            (job.late_after(), job.snapshot_size),
            (10_800.0, Store::Likely)
        );
        assert_eq!(job.track, Track::Snapshot);
        let era = format!("track = \"era\"\n{short}");
        let job = JobConfig::parse(&era, "x.toml").unwrap();
        assert_eq!(job.track, Track::Era);
        let collects = era.replace("h:vg/x", "/deltas/");
        let error = JobConfig::parse(&collects, "x.toml").unwrap_err();
        assert!(
            error.chain().contains("needs snapshots"),
            "{}",
            error.chain()
        );
        let path = short.replacen("vg/x", "/dev/mapper/vg-x", 1);
        let job = JobConfig::parse(&path, "x.toml").unwrap();
        assert_eq!(job.source, "/dev/mapper/vg-x");
        let none = "source = \"vg/x\"\ninterval = \"1h\"\ntarget = []\n";
        let error = JobConfig::parse(none, "x.toml").unwrap_err();
        assert!(
            error.chain().contains("x.toml: line 3: there is no [["),
            "{}",
            error.chain()
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (from, to, words) in [
            (
                "interval",
                "intervall",
                ["line 3", "unknown field `intervall`"],
            ),
            ("\"15m\"", "\"soon\"", ["line 3", "`soon` is not a time"]),
            (
                "\"20M\"",
                "\"20M\"\nextend_limit = \"5G\"",
                [
                    "line 8: extend_limit (5.0 GiB) is less",
                    "snapshot_size (10.0 GiB)",
                ],
            ),
            ("\"20M\"", "\"fast\"", ["line 7", "`fast` is not a size"]),
            ("zstd:3", "zip", ["line 6", "`zip` is not a compression"]),
            (
                "\"20M\"",
                "\"20M\"\nkeep = \"all\"",
                ["line 8", "`all` is no part of a grid"],
            ),
            (
                "\"20M\"",
                "\"20M\"\nkeep = \"9x1h\"",
                ["x.toml: line 8: ", "add history = true"],
            ),
            (
                "\"20M\"",
                "\"20M\"\nhistory = 3",
                ["line 8", "true, false, or a directory"],
            ),
            (
                "\"20M\"",
                "\"20M\"\nhistory = \"x\"",
                ["x.toml: line 8: ", "absolute path"],
            ),
            (
                "vg2/data",
                "backup:/deltas/",
                ["x.toml: line 19: ", "absolute path of this machine"],
            ),
            (
                "vg2/data",
                "/deltas/",
                ["x.toml: line 20: ", "create and verify are for volumes"],
            ),
            (
                "backup:vg/data",
                "/deltas/",
                ["x.toml: line 15: ", "create and verify are for volumes"],
            ),
            (
                "vg2/data",
                "backup:vg/data",
                ["x.toml: line 19: ", "two targets"],
            ),
            (
                "backup:vg/data",
                "backup:",
                ["x.toml: line 14: ", "no path follows"],
            ),
            (
                "thin:pool",
                "thinpool",
                ["line 15: create cannot be `thinpool`", "thin:POOL"],
            ),
            (
                "\"vg/data\"",
                "\"vg\"",
                ["line 2: `vg` is no logical volume", "vg/lv"],
            ),
            ("15m", "0.5s", ["line 3: ", "less than a second"]),
            (
                "\"20M\"",
                "\"20M\"\ntrack = \"cow\"",
                ["line 8", "unknown variant `cow`"],
            ),
            (
                "\"20M\"",
                "\"20M\"\ntrack = \"era\"\nextend_limit = \"50G\"",
                ["line 9: ", "extend_limit is for snapshots that are kept"],
            ),
            ("sudo = true", "sudo = 3", ["line 16", "boolean"]),
            (
                "source = \"vg/data\"",
                "",
                ["x.toml", "missing field `source`"],
            ),
        ] {
            let error = JobConfig::parse(&WHOLE.replacen(from, to, 1), "x.toml").unwrap_err();
            for word in words {
                assert!(error.chain().contains(word), "{word}: {}", error.chain());
            }
        }
    }

    #[test]
    fn names_fit_into_tags() {
        assert!(is_job_name("hourly-2.db_1"));
        for name in ["", "-x", ".x", "a b", "a/b", "ä", &"x".repeat(61)] {
            assert!(!is_job_name(name), "{name}");
        }
    }
}
