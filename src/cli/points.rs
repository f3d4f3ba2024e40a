//! `lvmsync internal-points`: what a job has done at the machine of a target, in the directory of its points in time.
//!
//! Guarantees: only files that are called as those of a history are touched; one run at a time works in a directory; the
//! answer is one line of JSON, also where it is an error.

mod back;
mod keep;
pub(super) mod there;

use std::path::Path;

use clap::Args;

use super::apply::StateArgs;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::delta::header::Source;
use crate::delta::stored::StoredDelta;
use crate::dm::resolve::resolve;
use crate::error::{Error, ExitCode, Result};
use crate::history::paths::{Edge, NOTHING, Paths};
use crate::job::points::{
    DELTA_SUFFIX, Listing, Point, Prepared, Reply, Request, UNDO_SUFFIX, Wish, taken_at,
};
use crate::job::store::Held;
use crate::monitor::Monitor;
use crate::record::store::make_directory;
use crate::record::{Record, identity};
use crate::volume::Volume;

/// For a far end, which lvmsync starts.
pub(super) const VERB: &str = "internal-points";

/// Works in the directory of a target's points in time; lvmsync starts it, people do not
#[derive(Args, Debug)]
pub(super) struct PointsArgs {
    /// As JSON
    request: String,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

pub(super) fn run(args: &PointsArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let done = serde_json::from_str(&args.request)
        .map_err(|error| Error::Usage(format!("this request is of another lvmsync: {error}")))
        .and_then(|request| answer(&request, &args.state, cancel, &terminal));
    let done = done.map_err(|error| match cancel.is_cancelled() {
        true => Error::Interrupted,
        false => error,
    });
    let reply = done.unwrap_or_else(|error| Reply::Failed {
        code: error.exit_code() as u8,
        message: error.chain(),
    });
    output::json(&reply)?;
    Ok(ExitCode::Done)
}

/// Does what is asked.
pub(super) fn answer(
    request: &Request,
    state: &StateArgs,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Reply> {
    request.check().map_err(Error::Usage)?;
    let directory = &*request.directory;
    let place = Place {
        directory,
        destination: request.destination.as_deref(),
        state,
    };
    if matches!(request.wish, Wish::List) {
        return place.list().map(Reply::Listing);
    }
    make_directory(directory)?;
    let what = directory.display().to_string();
    let _alone = Held::take(directory, "points", &what)?;
    match &request.wish {
        Wish::Prepare { undo } => {
            let undo = undo.as_deref();
            let prepared = undo.map(|undo| back::prepare(&place, undo, cancel, monitor));
            Ok(Reply::Prepared(prepared.unwrap_or(Ok(Prepared::Ready))?))
        }
        Wish::List => place.list().map(Reply::Listing),
        Wish::Keep { grid, also } => {
            let grid = grid.parse().map_err(Error::Usage)?;
            keep::keep(&place, &grid, also, cancel).map(Reply::Kept)
        }
        Wish::Back { to, undo, dry_run } => {
            let wish = back::Wished {
                to,
                undo,
                dry_run: *dry_run,
            };
            back::back(&place, &wish, cancel, monitor).map(Reply::Back)
        }
    }
}

/// A directory of points, and what they are points of.
struct Place<'a> {
    directory: &'a Path,
    destination: Option<&'a str>,
    state: &'a StateArgs,
}

/// A file that can be used.
struct Found {
    edge: Edge,
    name: String,
    bytes: u64,
}

impl Place<'_> {
    fn suffix(&self) -> &'static str {
        match self.destination {
            Some(_) => UNDO_SUFFIX,
            None => DELTA_SUFFIX,
        }
    }

    fn path_of(&self, file: &str) -> String {
        self.directory.join(file).to_string_lossy().into_owned()
    }

    /// The record of the destination.
    fn record(&self) -> Result<Option<Record>> {
        let Some(destination) = self.destination else {
            return Ok(None);
        };
        let known_as = identity::of_resolved(&resolve(destination)?);
        self.state.directory().file_of(&known_as).load()
    }

    /// Id of the state from which everything begins.
    fn held(record: Option<&Record>, destination: Option<&str>) -> Option<String> {
        match destination {
            None => Some(NOTHING.to_owned()),
            Some(_) => record?.holds.as_ref().map(|state| state.id.clone()),
        }
    }

    /// All files, and what cannot be used of them.
    fn files(&self) -> Result<(Vec<Found>, Vec<String>)> {
        let entries = match std::fs::read_dir(self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Default::default());
            }
            Err(error) => {
                let action = format!("cannot read {}", self.directory.display());
                return Err(Error::io(action, error));
            }
        };
        let (mut found, mut unusable) = (Vec::new(), Vec::new());
        for entry in entries.flatten() {
            let Ok(file) = entry.file_name().into_string() else {
                continue;
            };
            let Some(at) = taken_at(&file).filter(|_| file.ends_with(self.suffix())) else {
                continue;
            };
            match self.file(&file, at) {
                Ok(file) => found.push(file),
                Err(error) => unusable.push(error.chain()),
            }
        }
        unusable.sort();
        Ok((found, unusable))
    }

    fn file(&self, file: &str, at: i64) -> Result<Found> {
        let path = self.path_of(file);
        let volume = Volume::open(&path)?;
        let delta =
            StoredDelta::open(volume).map_err(|error| super::chain::unusable(&path, error))?;
        let header = delta.header();
        let from = match &header.base {
            None if header.source == Source::Full => Some(NOTHING.to_owned()),
            base => base.as_ref().map(|state| state.id.clone()),
        };
        let (Some(from), Some(to)) = (from, &header.target) else {
            return Err(Error::refused(
                path,
                "it does not name the states that it is between, so nobody knows where it can be applied",
                "",
            ));
        };
        Ok(Found {
            edge: Edge {
                file: file.to_owned(),
                from,
                to: to.id.clone(),
                at,
            },
            name: to.name.clone(),
            bytes: delta.bytes(),
        })
    }

    fn list(&self) -> Result<Listing> {
        let record = self.record()?;
        let held = Self::held(record.as_ref(), self.destination);
        let (found, unusable) = self.files()?;
        let edges = found.iter().map(|found| found.edge.clone()).collect();
        let paths = Paths::of(edges, held.as_deref().unwrap_or("?"));
        let of = |file: &str| found.iter().find(|found| found.edge.file == file);
        let bytes_of = |file: &str| of(file).map_or(0, |found| found.bytes);
        let mut points: Vec<Point> = paths
            .reached()
            .map(|edge| {
                let way = paths.way_to(&edge.file).unwrap_or_default();
                Point {
                    at: edge.at,
                    id: edge.to.clone(),
                    name: of(&edge.file).map_or_else(String::new, |found| found.name.clone()),
                    files: way.iter().map(|edge| edge.file.clone()).collect(),
                    own_bytes: bytes_of(&edge.file),
                    bytes: way.iter().map(|edge| bytes_of(&edge.file)).sum(),
                }
            })
            .collect();
        points.sort_by(|a, b| (b.at, &b.files).cmp(&(a.at, &a.files)));
        Ok(Listing {
            held: held.filter(|held| held != NOTHING),
            held_since: record.as_ref().map_or(0, |record| record.since),
            incomplete: record.is_some_and(|record| record.incomplete.is_some()),
            points,
            unusable,
            strays: paths
                .strays()
                .iter()
                .map(|edge| edge.file.clone())
                .collect(),
            bytes: found.iter().map(|found| found.bytes).sum(),
        })
    }
}
