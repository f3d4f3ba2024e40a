//! `lvmsync apply --preview`, `--commit` and `--discard`: deltas on a snapshot of the destination first.
//!
//! Guarantees: until `--commit` nothing of the destination changes; from before LVM is told to merge until it has, the
//! destination is on record as incomplete; what is on record then is the state that the deltas lead to only if nobody is
//! known to have written to the preview, or to the destination meanwhile. One of the three works on a volume at a time.

mod commit;
mod discard;
mod make;
mod ready;

use super::apply::ApplyArgs;
use super::output;
use super::snapshot::parse_chunk;
use crate::cancel::Cancel;
use crate::changes::cow::Layout;
use crate::commands::Caller;
use crate::delta::header::State;
use crate::dm::preview::{self, Preview};
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::snapshot::{LogicalVolume, Role, recheck};
use crate::error::{Error, ExitCode, Result};
use crate::hold::lock::LockFile;
use crate::hold::record::name_of;
use crate::record::store::{RecordFile, StateDir};
use crate::record::witness::Watch;
use crate::record::{MERGE, PreviewOf, Record, identity};
use crate::units::parse_size;
use crate::volume::Volume;

/// Which of the three was asked for.
#[derive(clap::Args, Debug, Clone, Default)]
pub(super) struct PreviewArgs {
    /// Put the deltas on a snapshot of DEST, a logical volume here: look at the result, and then --commit or --discard it
    #[arg(long, conflicts_with_all = ["atomic", "create", "unfinished", "verify", "allow_smaller"])]
    pub(super) preview: bool,

    /// Merge the preview of DEST into it; DEST alone is named. Where that was cut, run it again
    #[arg(long, conflicts_with_all = ["preview", "undo", "atomic", "create", "unfinished", "verify", "allow_smaller"])]
    pub(super) commit: bool,

    /// Remove the preview of DEST, which stays as it was; DEST alone is named
    #[arg(long, conflicts_with_all = ["preview", "commit", "undo", "atomic", "create", "unfinished", "verify"])]
    pub(super) discard: bool,

    /// Room for what a thick preview differs in from DEST [default: that of the deltas, and some for what a mount writes]
    #[arg(long, value_name = "SIZE", requires = "preview", value_parser = parse_size)]
    snapshot_size: Option<u64>,

    /// Chunks of a thick preview, 4k to 512k [default: 4k]
    #[arg(long, value_name = "SIZE", requires = "preview", value_parser = parse_chunk)]
    chunk_size: Option<Layout>,
}

impl PreviewArgs {
    pub(super) fn is_asked(&self) -> bool {
        self.preview || self.commit || self.discard
    }
}

/// The destination of a preview.
struct Origin {
    volume: LogicalVolume,
    state: StateDir,
    record: RecordFile,
    caller: Caller,
    /// No other run previews, commits or discards.
    _lock: LockFile,
}

impl Origin {
    fn find(args: &ApplyArgs, name: &str) -> Result<Self> {
        let Resolved::LogicalVolume(volume) = resolve(name)? else {
            return Err(Error::Usage(format!(
                "{name} is no logical volume of this machine, and only of such there are previews; \
                 lvmsync view shows what deltas would make of any other"
            )));
        };
        if !matches!(
            volume.role,
            Role::Plain | Role::ThickOrigin { .. } | Role::Thin { .. }
        ) {
            return Err(Error::refused(
                name,
                "LVM merges no preview into it: it is itself a snapshot, or a pool",
                "Name the volume that it is of.",
            ));
        }
        let state = args.write.state.directory();
        let lock = LockFile::open(&name_of("preview", &volume.uuid))?;
        if !lock.try_alone()? {
            return Err(Error::held(
                name,
                "another lvmsync makes, merges or removes a preview of it",
                "Wait until that is done.",
            ));
        }
        Ok(Self {
            record: state.file_of(&identity::of_logical_volume(&volume.uuid)),
            volume: *volume,
            state,
            caller: args.write.state.caller(),
            _lock: lock,
        })
    }

    fn name(&self) -> String {
        self.volume.name.to_string()
    }

    /// For the user's shell.
    fn command(&self, option: &str) -> String {
        self.caller.command("apply", &[option, &self.name()])
    }

    fn preview(&self) -> Result<Option<Preview>> {
        preview::of(&self.volume.name, &self.volume.uuid)
    }

    fn record_of(&self, uuid: &str) -> RecordFile {
        self.state.file_of(&identity::of_logical_volume(uuid))
    }

    /// What is known of a preview, if it has all that was to be put on it.
    fn whole(&self, preview: &Preview) -> Result<Option<(Record, PreviewOf)>> {
        let record = self.record_of(&preview.uuid).load()?;
        Ok(record.and_then(|record| {
            let of = record.preview_of.clone()?;
            let is_it = of.is_whole && record.incomplete.is_none() && preview.is_snapshot;
            (is_it && of.identity == self.record.identity()).then_some((record, of))
        }))
    }

    /// Of the volume at this moment.
    fn witness(&self) -> Option<String> {
        let volume = Volume::open(&self.volume.path).ok()?;
        Watch::of(&volume).ok()?.now()
    }
}

pub(super) fn run(args: &ApplyArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let Some((destination, deltas)) = args.deltas_and_destination.split_last() else {
        return Err(Error::Usage("name the volume".to_owned()));
    };
    let PreviewArgs {
        preview, commit, ..
    } = args.preview;
    if preview {
        if deltas.is_empty() || deltas.iter().any(|delta| delta == "-") {
            return Err(Error::Usage(
                "--preview reads each delta twice: name files, and then the volume".to_owned(),
            ));
        }
        if args.write.undo.is_some() && deltas.len() > 1 {
            return Err(Error::Usage(
                "--undo undoes one delta: make one of them with lvmsync combine, and preview that"
                    .to_owned(),
            ));
        }
        let origin = Origin::find(args, destination)?;
        return make::make(args, deltas, &origin, cancel, &terminal);
    }
    if !deltas.is_empty() {
        let option = if commit { "--commit" } else { "--discard" };
        return Err(Error::Usage(format!(
            "{option} takes the volume alone: its preview has the deltas already"
        )));
    }
    let origin = Origin::find(args, destination)?;
    match commit {
        true => commit::commit(args, &origin, cancel, &terminal),
        false => discard::discard(args, &origin, &terminal),
    }
}

/// How it ended, for scripts.
#[derive(serde::Serialize)]
struct Report<'a> {
    destination: String,
    preview: String,
    outcome: &'static str,
    holds: Option<&'a State>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
}

impl Report<'_> {
    fn print(&self, args: &ApplyArgs) -> Result<()> {
        match args.json {
            true => output::json(self),
            false => Ok(()),
        }
    }
}

fn is_merging(record: &Record) -> bool {
    let cut = record.incomplete.as_ref();
    cut.is_some_and(|cut| cut.source == MERGE)
}

/// A thick one that overflowed shows nothing that could be believed.
fn refuse_lost(origin: &Origin, preview: &Preview) -> Result<()> {
    let name = preview.name.to_string();
    let Resolved::LogicalVolume(volume) = resolve(&name)? else {
        return Ok(());
    };
    if !matches!(volume.role, Role::ThickSnapshot(_)) {
        return Ok(());
    }
    match recheck(&volume)?.why_untrusted() {
        None => Ok(()),
        Some(reason) => Err(Error::refused(
            name,
            format!("the preview is lost: {reason}"),
            format!(
                "Remove it: {}, and make it again with more room: --snapshot-size SIZE.",
                origin.command("--discard")
            ),
        )),
    }
}
