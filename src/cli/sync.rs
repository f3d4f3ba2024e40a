//! `lvmsync sync`: makes a volume equal to another by comparing both, and writes only what differs.
//!
//! Guarantees: those of a send: the destination's record says that it is incomplete before the first write, a run that
//! was cut goes on where it was, and success means durable.

use std::time::Duration;

use clap::Args;

use super::apply::WriteArgs;
use super::send::{Job, RemoteArgs, ToArgs};
use super::summary::{Summary, per_second, shown_seconds};
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::error::{ExitCode, Result};
use crate::source::SourceRequest;
use crate::units::{Bytes, count};

const AFTER_HELP: &str = "\
Examples:
  lvmsync sync vg/s1 backup:/dev/vg/data            make the copy what the snapshot is
  lvmsync sync vm.img /backup/vm.img                files do as well
  lvmsync sync vg/s1 backup:vg/data --create        and make the volume there if there is none
  lvmsync sync vg/s1 backup:vg/data --verify        and compare once more in the end
  lvmsync sync vg/s1 backup:vg/data -n              what would be written?

Both volumes are read whole, each where it is, at the same time; over ssh digests travel, and then only
the blocks of 4 KiB that differ. A destination that is new is not compared but filled: zeroes and holes
do not travel. When it is done, DEST is on record as holding SRC's state, so increments go on from there:
  lvmsync send --from vg/s1 vg/s2 backup:vg/data

The same command again goes on where it was cut. A file as DEST gets SRC's length.";

/// Make a volume equal to another by comparing them
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP, mut_arg("compat", |arg| arg.hide(true)))]
#[command(mut_arg("force", |arg| arg.hide(true)), mut_arg("require_record", |arg| arg.hide(true)))]
#[command(mut_arg("output", |arg| arg.hide(true)), mut_arg("stdout", |arg| arg.hide(true)))]
#[command(mut_arg("format", |arg| arg.hide(true)))]
pub(super) struct SyncArgs {
    /// A snapshot, an origin, a block device or a file
    #[arg(value_name = "SRC")]
    source: String,

    /// What becomes equal: DEST or [USER@]HOST:DEST
    #[arg(value_name = "[HOST:]DEST")]
    destination: String,

    #[command(flatten)]
    to: ToArgs,

    #[command(flatten)]
    write: WriteArgs,

    #[command(flatten)]
    remote: RemoteArgs,

    /// Afterwards compare once more, from the disk
    #[arg(long)]
    verify: bool,

    /// Print the result as a JSON object on stdout
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    talk: TalkArgs,
}

pub(super) fn run(args: &SyncArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let job = Job {
        request: SourceRequest {
            from: None,
            new: Some(&args.source),
            data_source: None,
            base_size: None,
            thin_metadata: None,
            volume_size: None,
            compression: args.to.compress,
            state: args.write.state.directory(),
            cancel,
            monitor: &terminal,
        },
        destination: Some(&args.destination),
        to: &args.to,
        write: &args.write,
        remote: &args.remote,
        dry_run: false,
        verify: args.verify,
        comparing: true,
        cancel,
        monitor: &terminal,
        speaker: terminal.speaker(),
    };
    let summary = job.run();
    terminal.finish();
    let summary = summary?;
    if args.json {
        output::json(&summary)?;
    }
    terminal.summary(&sentence(&summary));
    Ok(ExitCode::Done)
}

fn sentence(summary: &Summary) -> String {
    let Some(compared) = summary.compared_bytes else {
        return summary.sentence("copied");
    };
    let elapsed = Duration::try_from_secs_f64(summary.seconds).unwrap_or_default();
    let written = summary.data_bytes + summary.zero_bytes;
    let what = if written == 0 {
        "equal already, nothing was written".to_owned()
    } else {
        format!(
            "{} in {} differed and {} written now",
            Bytes(written),
            count(summary.extents, "extent"),
            if summary.extents == 1 { "is" } else { "are" }
        )
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
