//! `lvmsync state`: what is on record about destinations, and putting it right.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::apply::StateArgs;
use super::{TalkArgs, output};
use crate::commands::Caller;
use crate::delta::FormatError;
use crate::delta::header::State;
use crate::delta::reader::DeltaReader;
use crate::dm::base::Base;
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::snapshot::Role;
use crate::error::{Error, ExitCode, Result};
use crate::partial_file::PARTIAL_SUFFIX;
use crate::record::admission::{Called, refuse_as_source};
use crate::record::keeper::{now, shown_time};
use crate::record::store::{RecordFile, StateDir, read};
use crate::record::witness::{Touched, Watch, touched};
use crate::record::{Record, identity, marks, shown};
use crate::volume::Volume;
use crate::volume::file_version::FileVersion;

const AFTER_HELP: &str = "\
Every run that writes to a destination keeps, on the machine of the destination, which state it holds, since when and
from where, and whether a write is under way. A delta that begins from another state is refused.

Examples:
  lvmsync state show                        all destinations
  lvmsync state show vg/copy --json         one, for scripts
  lvmsync state adopt vg/copy s2.delta      it holds what this delta leads to (restored by hand, say)
  lvmsync state adopt vg/copy lvm:UUID      it holds the state with this id
  lvmsync state forget vg/copy              nothing is known of it any more";

/// Show or put right what is on record about destinations
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct StateVerb {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Show what is on record
    Show(ShowArgs),
    /// Put on record that a destination holds a state
    Adopt(AdoptArgs),
    /// Remove the record of a destination
    Forget(ForgetArgs),
}

#[derive(Args, Debug)]
struct ShowArgs {
    /// The destination; all of them if left out
    destination: Option<String>,

    /// A JSON array
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

#[derive(Args, Debug)]
struct AdoptArgs {
    /// The destination
    destination: String,

    /// The state that it holds: a delta that leads to it, a snapshot on this machine, or an id as `show` prints it
    state_name: String,

    /// Even if it is on record as incomplete, that is, half-written
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

#[derive(Args, Debug)]
struct ForgetArgs {
    /// The destination, or the identity of one that is gone
    destination: String,

    /// Even if it is on record as incomplete, that is, half-written
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

pub(super) fn run(args: &StateVerb) -> Result<ExitCode> {
    match &args.action {
        Action::Show(args) => show(args),
        Action::Adopt(args) => adopt(args),
        Action::Forget(args) => forget(args),
    }
}

fn show(args: &ShowArgs) -> Result<ExitCode> {
    args.talk.terminal();
    let directory = args.state.directory();
    let entries: Vec<Entry> = match &args.destination {
        Some(name) => {
            let found = find(&directory, name)?;
            found
                .file
                .load()?
                .into_iter()
                .map(|record| Entry::of(record, Some(name)))
                .collect()
        }
        None => all(&directory)?
            .into_iter()
            .map(|record| Entry::of(record, None))
            .collect(),
    };
    if args.json {
        output::json(&entries)?;
        return Ok(ExitCode::Done);
    }
    output::listing(|out| {
        if entries.is_empty() {
            writeln!(
                out,
                "no destination is on record in {}",
                directory.path().display()
            )?;
        }
        entries.iter().try_for_each(|entry| entry.write(out))
    })?;
    Ok(ExitCode::Done)
}

/// One record, for scripts; times are seconds since 1970 UTC.
#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    record: Record,
    /// `complete` or `incomplete`.
    status: &'static str,
    /// Somebody else wrote to it since; `null` where that cannot be told.
    touched: Option<bool>,
}

impl Entry {
    fn of(record: Record, destination: Option<&str>) -> Self {
        let status = if record.incomplete.is_some() {
            "incomplete"
        } else {
            "complete"
        };
        let name = destination.unwrap_or(&record.name);
        let touched = match touched_now(&record, name) {
            Touched::No => Some(false),
            Touched::Yes => Some(true),
            Touched::Unknown => None,
        };
        Self {
            touched: touched.filter(|_| record.incomplete.is_none()),
            record,
            status,
        }
    }

    fn write(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        let record = &self.record;
        writeln!(out, "{}", record.name)?;
        writeln!(out, "  identity    {}", record.identity)?;
        match &record.incomplete {
            None => writeln!(out, "  holds       {}", record.shown_state())?,
            Some(cut) => {
                let (base, target) = (
                    shown(cut.base.as_ref().or(record.holds.as_ref())),
                    shown(cut.target.as_ref()),
                );
                writeln!(out, "  INCOMPLETE  on the way from {base} to {target}")?;
                writeln!(out, "  begun       {}", shown_time(cut.since))?;
                writeln!(out, "  durable to  byte {}", cut.durable_offset)?;
                if !cut.from.is_empty() {
                    writeln!(out, "  from        {}", cut.from)?;
                }
                writeln!(
                    out,
                    "  undo        {}",
                    cut.undo.as_deref().unwrap_or("none")
                )?;
                return Ok(());
            }
        }
        writeln!(out, "  since       {}", shown_time(record.since))?;
        if !record.from.is_empty() {
            writeln!(out, "  from        {}", record.from)?;
        }
        if let Some(undo) = &record.undo {
            writeln!(out, "  undo        {undo}")?;
        }
        if self.touched == Some(true) {
            writeln!(out, "  but something other than lvmsync wrote to it since")?;
        }
        Ok(())
    }
}

fn touched_now(record: &Record, name: &str) -> Touched {
    let volume = resolve(name)
        .ok()
        .filter(|resolved| identity::of_resolved(resolved) == record.identity)
        .and_then(|resolved| Volume::open(resolved.path()).ok());
    let Some(volume) = volume else {
        return Touched::Unknown;
    };
    if let Ok(false) = marks::hold(&volume, &record.marks) {
        return Touched::Yes;
    }
    let now = Watch::of(&volume).ok().and_then(|watch| watch.now());
    touched(record.witness.as_deref(), now.as_deref())
}

fn adopt(args: &AdoptArgs) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let name = &args.destination;
    let resolved = resolve(name)?;
    let state = named_state(&args.state_name)?;
    // A run that writes to it now would not know.
    let _alone = Volume::lock_alone(resolved.path())?;
    let volume = Volume::open(resolved.path())?;
    let known_as = identity::of_resolved(&resolved);
    let file = args.state.directory().file_of(&known_as);
    if !args.force {
        refuse_half_written(&file, name, &args.state.caller())?;
    }
    file.save(&Record {
        identity: known_as,
        name: name.clone(),
        holds: Some(state.clone()),
        from: "adopted".to_owned(),
        is_proven: true,
        since: now(),
        witness: Watch::of(&volume).ok().and_then(|watch| watch.now()),
        ..Record::default()
    })?;
    terminal.summary(&format!(
        "{name}: on record as holding {}",
        shown(Some(&state))
    ));
    Ok(ExitCode::Done)
}

/// A delta's target, a snapshot here, or an id.
fn named_state(text: &str) -> Result<State> {
    let id = text
        .split_once(':')
        .filter(|(kind, rest)| ["lvm", "file"].contains(kind) && !rest.is_empty());
    if id.is_some() || Base::of_era(text).is_some() {
        return Ok(State {
            id: text.to_owned(),
            name: String::new(),
        });
    }
    if Path::new(text).is_file() {
        return state_of_file(text);
    }
    match resolve(text)? {
        Resolved::LogicalVolume(volume) if matches!(volume.role, Role::ThickSnapshot(_)) => {
            Ok(State {
                id: identity::of_logical_volume(&volume.uuid),
                name: volume.name.to_string(),
            })
        }
        _ => Err(Error::Usage(format!(
            "{text} is no state that stays what it is: name a delta, a snapshot, or an id such as lvm:UUID"
        ))),
    }
}

/// What a delta leads to; of any other file its content.
fn state_of_file(path: &str) -> Result<State> {
    let volume = Volume::open(path)?;
    let file = std::fs::File::open(path);
    let file = file.map_err(|error| Error::io(format!("cannot open {path}"), error))?;
    let reader = match DeltaReader::new(file) {
        Err(FormatError::NotADelta { .. } | FormatError::Truncated { .. }) => {
            let version = FileVersion::of(&volume)?;
            let id = version.map(|version| version.id()).unwrap_or_default();
            return Ok(State {
                id,
                name: path.to_owned(),
            });
        }
        reader => reader.map_err(|source| Error::Damaged {
            what: path.to_owned(),
            source,
        })?,
    };
    reader.header().target.clone().ok_or_else(|| {
        Error::Usage(format!(
            "{path}: the state that this delta leads to has no identity"
        ))
    })
}

fn forget(args: &ForgetArgs) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let name = &args.destination;
    let Found { file, path } = find(&args.state.directory(), name)?;
    let _alone = path.as_ref().map(Volume::lock_alone).transpose()?;
    if !file.path().exists() {
        terminal.summary(&format!("{name}: there is no record of it"));
        return Ok(ExitCode::Done);
    }
    // What is gone cannot be used for anything, however it was left.
    if let Some(path) = path.filter(|_| !args.force) {
        // A first copy that was cut is not there under its name.
        let partial = path.display().to_string();
        let is_partial = partial.ends_with(PARTIAL_SUFFIX);
        let name = if is_partial { &partial } else { name };
        refuse_half_written(&file, name, &args.state.caller())?;
    }
    file.remove()?;
    terminal.summary(&format!("{name}: its record is removed"));
    Ok(ExitCode::Done)
}

/// Nothing but the record tells that a destination is half-written. One that is damaged tells nothing, and may go.
fn refuse_half_written(file: &RecordFile, name: &str, caller: &Caller) -> Result<()> {
    let record = file.load().ok().flatten();
    let Some(refusal) =
        record.and_then(|record| refuse_as_source(&record, Called { name, caller }))
    else {
        return Ok(());
    };
    let way_out = format!(
        "{}\nIf you know that it is neither needed nor half-written, say so with --force.",
        refusal.way_out
    );
    Err(Error::refused(name, refusal.reason, way_out))
}

/// A record's file, and what it is about, if that is there.
struct Found {
    file: RecordFile,
    path: Option<PathBuf>,
}

/// The file of a destination that is there, or of one that is gone and is named as the records name it.
fn find(directory: &StateDir, name: &str) -> Result<Found> {
    let failed = match resolve(name) {
        Ok(resolved) => {
            return Ok(Found {
                file: directory.file_of(&identity::of_resolved(&resolved)),
                path: Some(resolved.path().to_owned()),
            });
        }
        Err(error) => error,
    };
    let partial: PathBuf = crate::partial_file::partial_name(Path::new(name));
    if partial.is_file() {
        return Ok(Found {
            file: directory.file_of(&identity::of_path(&partial)),
            path: Some(partial),
        });
    }
    // Named by its identity, it is found even where its record is damaged.
    let by_identity = directory.file_of(name);
    if by_identity.path().is_file() {
        return Ok(found_by_identity(by_identity));
    }
    let gone = all(directory)?
        .into_iter()
        .find(|record| record.identity == name || record.name == name);
    gone.map(|record| found_by_identity(directory.file_of(&record.identity)))
        .ok_or(failed)
}

/// The destination may still have the name that is on record.
fn found_by_identity(file: RecordFile) -> Found {
    let name = file.load().ok().flatten().map(|record| record.name);
    let partial = |name: &String| crate::partial_file::partial_name(Path::new(name));
    let is_it = |path: &PathBuf| identity::of_path(path) == file.identity();
    let path = name.and_then(|name| {
        let resolved = resolve(&name).ok();
        let resolved = resolved.filter(|found| identity::of_resolved(found) == file.identity());
        let there = resolved.map(|resolved| resolved.path().to_owned());
        there.or_else(|| Some(partial(&name)).filter(|path| path.is_file() && is_it(path)))
    });
    Found { file, path }
}

/// All records that can be read.
fn all(directory: &StateDir) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for path in directory.all()? {
        match read(&path) {
            Ok(record) => records.extend(record),
            Err(error) => output::message(&format!("lvmsync: {}", error.chain())),
        }
    }
    Ok(records)
}
