//! `lvmsync sync`: makes a volume equal to another by comparing both, and writes only what differs.
//!
//! Guarantees: those of a send: the destination's record says that it is incomplete before the first write, a run that
//! was cut goes on where it was, and success means durable.

use std::time::{Duration, Instant};

use clap::Args;

use super::apply::WriteArgs;
use super::compare::{self, CompareArgs};
use super::compare_found::Found;
use super::progress::Terminal;
use super::pull::far_name;
use super::send::{Format, Job, RemoteArgs, ToArgs};
use super::snapshot::SnapshotArgs;
use super::summary::{Summary, per_second, shown_seconds};
use super::sync_line::SyncLine;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::comparand::Medium;
use crate::engine::effort::Effort;
use crate::engine::examine::no_undo_of_what_is_cut_off;
use crate::error::{Error, ExitCode, Result};
use crate::session::endpoint::{Endpoint, parse_endpoint};
use crate::source::{SourceRequest, source_of_sync};
use crate::units::{Bytes, count};

const AFTER_HELP: &str = "\
Examples:
  lvmsync sync vg/s1 backup:/dev/vg/data            make the copy what the snapshot is
  lvmsync sync vg/data backup:vg/copy               a live volume: a snapshot is made, read, and removed
  lvmsync sync vg/data backup:vg/copy --keep-snapshot s1    and kept, so that increments go on from it
  lvmsync sync vm.img /backup/vm.img                files do as well
  lvmsync sync vg/s1 backup:vg/data --create        and make the volume there if there is none
  lvmsync sync vg/s1 backup:vg/data --verify        and compare once more in the end
  lvmsync sync vg/s1 backup:vg/data -n              what would be written?
  lvmsync sync backup:vg/data vg/restored           the other way: from there to here, with all of the above

Both volumes are read whole, each where it is, at the same time; over ssh digests travel, and then only
the blocks of 4 KiB that differ. A destination that is new is not compared but filled: zeroes and holes
do not travel. When it is done, DEST is on record as holding SRC's state, so increments go on from there:
  lvmsync send --from vg/s1 vg/s2 backup:vg/data

Of a live logical volume a snapshot is made where it is, and removed when the run ends, however it ends. A thick
one needs free extents in the volume group, for what is written meanwhile: --snapshot-size.

The same command again goes on where it was cut; of a live volume it begins anew, and compares.
A file as DEST gets SRC's length.";

/// Make a volume equal to another by comparing them
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP, mut_arg("compat", |arg| arg.hide(true)))]
#[command(mut_arg("force", |arg| arg.hide(true)), mut_arg("require_record", |arg| arg.hide(true)))]
#[command(mut_arg("output", |arg| arg.hide(true)), mut_arg("stdout", |arg| arg.hide(true)))]
#[command(mut_arg("format", |arg| arg.hide(true)))]
pub(super) struct SyncArgs {
    /// A logical volume, a snapshot, a block device or a file: SRC or [USER@]HOST:SRC
    #[arg(value_name = "[HOST:]SRC")]
    pub(super) source: String,

    /// What becomes equal: DEST or [USER@]HOST:DEST. One of the two is here
    #[arg(value_name = "[HOST:]DEST")]
    pub(super) destination: String,

    #[command(flatten)]
    pub(super) snapshot: SnapshotArgs,

    #[command(flatten)]
    pub(super) to: ToArgs,

    #[command(flatten)]
    pub(super) write: WriteArgs,

    #[command(flatten)]
    pub(super) remote: RemoteArgs,

    /// Tell what would be written, and write nothing
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,

    /// Afterwards compare once more, from the disk
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) verify: bool,

    /// Print the result as a JSON object on stdout
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    talk: TalkArgs,
}

pub(super) fn run(args: &SyncArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    refuse_meaningless(args)?;
    compare::refuse_stream([&args.source, &args.destination])?;
    if let Endpoint::Remote { host, path } = parse_endpoint(&args.source)? {
        let summary = from_far(args, &host, &path, &terminal, cancel);
        return told(args, &terminal, summary);
    }
    let job = Job {
        request: SourceRequest {
            from: None,
            new: Some(&args.source),
            data_source: None,
            base_size: None,
            thin_metadata: None,
            volume_size: None,
            // A look is worth no snapshot.
            snapshot: args.snapshot.wish().filter(|_| !args.dry_run),
            compression: args.to.compress,
            state: args.write.state.directory(),
            caller: args.write.state.caller(),
            cancel,
            monitor: &terminal,
        },
        destination: Some(&args.destination),
        to: &args.to,
        write: &args.write,
        remote: &args.remote,
        prestarted: None,
        dry_run: args.dry_run,
        verify: args.verify,
        comparing: true,
        effort: Effort::new(args.to.compress),
        recover_at_peer: None,
        cancel,
        monitor: &terminal,
        speaker: terminal.speaker(),
    };
    let recover = || args.line(&source_of_sync(&job.request));
    let summary = job.run_or(recover).and_then(|summary| {
        if args.dry_run && summary.compared_bytes.is_some() {
            let start = Instant::now();
            compare::find(&args.as_look(), &terminal, cancel)
                .and_then(|found| would_write(args, summary, found, start))
                .map_err(|error| error.to_recover(recover))
        } else {
            Ok(summary)
        }
    });
    told(args, &terminal, summary)
}

impl SyncArgs {
    /// The snapshot that is made is to stay.
    pub(super) fn keeps_snapshot(&self) -> bool {
        self.snapshot.wish().is_some_and(|wish| wish.keep.is_some())
    }

    /// The same from `source`, as a line for the user's shell.
    pub(super) fn line(&self, source: &str) -> String {
        let line = SyncLine::of(source, &self.destination).way(&self.remote);
        self.ended(line.snapshot(&self.snapshot))
    }

    /// The same from a snapshot that this run has made and kept: it is not made once more.
    pub(super) fn line_from_kept(&self, source: &str) -> String {
        self.ended(SyncLine::of(source, &self.destination).way(&self.remote))
    }

    fn ended(&self, line: SyncLine) -> String {
        line.write(&self.write)
            .verify(self.verify)
            .line("sync", &self.write.state)
    }

    /// The comparison of the same two, which tells what would be written: a file's copy in memory is as good for that, and whoever
    /// uses it keeps it.
    fn as_look(&self) -> CompareArgs {
        CompareArgs {
            medium: Medium::Memory,
            ..self.as_compare()
        }
    }

    /// The comparison of the same two.
    pub(super) fn as_compare(&self) -> CompareArgs {
        CompareArgs {
            source: self.source.clone(),
            destination: self.destination.clone(),
            only: None,
            remote: self.remote.clone(),
            state: self.write.state.clone(),
            json: false,
            map: false,
            talk: TalkArgs::default(),
            medium: Medium::Disk,
        }
    }
}

/// Options that come with those of a send, and cannot be meant here.
fn refuse_meaningless(args: &SyncArgs) -> Result<()> {
    let given = [
        ("--output", args.to.output.is_some()),
        ("--stdout", args.to.stdout),
        ("--format", args.to.format != Format::V4),
        ("--compat", args.remote.compat),
        ("--require-record", args.write.require_record),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        Some((option, _)) => Err(Error::Usage(format!(
            "{option} has no meaning for a sync, which compares two volumes"
        ))),
        None => Ok(()),
    }
}

fn from_far(
    args: &SyncArgs,
    host: &str,
    path: &str,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Summary> {
    compare::refuse_two_hosts(&args.destination)?;
    let summary = super::pull::pull(args, host, path, terminal, cancel)
        .map_err(|error| error.to_recover(|| args.line(&far_name(host, path))))?;
    if !args.dry_run || summary.compared_bytes.is_none() {
        return Ok(summary);
    }
    let start = Instant::now();
    compare::find_from(&args.as_look(), host, path, terminal, cancel)
        .and_then(|found| would_write(args, summary, found, start))
        .map_err(|error| {
            let source = error.recover().unwrap_or(path).to_owned();
            error.to_recover(|| args.line(&far_name(host, &source)))
        })
}

fn told(args: &SyncArgs, terminal: &Terminal, summary: Result<Summary>) -> Result<ExitCode> {
    terminal.finish();
    let summary = summary?;
    if args.json {
        output::json(&summary)?;
    }
    terminal.summary(&sentence(&summary));
    Ok(ExitCode::Done)
}

/// What a comparison finds is what would be written, but for the end of a longer file, which would be cut off.
fn would_write(args: &SyncArgs, summary: Summary, found: Found, start: Instant) -> Result<Summary> {
    if found.tail_bytes > 0 && args.write.undo.is_some() {
        return Err(no_undo_of_what_is_cut_off(&args.destination));
    }
    let mut written = found.differing.clip(found.volume_size);
    if args.write.allow_smaller {
        written = written.clip(found.destination_size);
    }
    Ok(Summary {
        compared_bytes: Some(found.compared_bytes),
        extents: written.len() as u64,
        data_bytes: written.total_bytes(),
        zero_bytes: 0,
        cut_bytes: found.tail_bytes,
        seconds: start.elapsed().as_secs_f64(),
        ..summary
    })
}

fn sentence(summary: &Summary) -> String {
    let Some(compared) = summary.compared_bytes else {
        if summary.dry_run {
            return super::send::sentence(summary);
        }
        return summary.sentence("copied");
    };
    let elapsed = Duration::try_from_secs_f64(summary.seconds).unwrap_or_default();
    let written = summary.data_bytes + summary.zero_bytes;
    let cut = Bytes(summary.cut_bytes);
    let what = if written == 0 && summary.cut_bytes == 0 {
        "equal already, nothing was written".to_owned()
    } else if summary.dry_run {
        let extents = count(summary.extents, "extent");
        let mut text = format!("would write {} in {extents}", Bytes(written));
        if summary.cut_bytes > 0 {
            text.push_str(&format!(", and cut off {cut} at the end"));
        }
        text
    } else if written == 0 {
        format!("equal already, and {cut} cut off at the end")
    } else {
        let mut text = format!(
            "{} in {} differed and {} written now",
            Bytes(written),
            count(summary.extents, "extent"),
            if summary.extents == 1 { "is" } else { "are" }
        );
        if summary.cut_bytes > 0 {
            text.push_str(&format!(", and {cut} cut off at the end"));
        }
        text
    };
    let mut text = format!(
        "{what}: {} compared in {} ({}/s)",
        Bytes(compared),
        shown_seconds(elapsed),
        Bytes(per_second(compared, elapsed))
    );
    if let Some(undo) = &summary.undo {
        text.push_str(&format!("; undo in {undo}"));
    }
    if summary.verified {
        text.push_str("; verified: compared once more, and equal");
    }
    text
}
