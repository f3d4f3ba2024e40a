//! The command line of the original lvmsync, so that scripts written for it keep working.
//!
//! What differs, for safety: the streams are of version 4 unless `--format proto3` asks for the original's;
//! a destination that is in use or too small is refused; exit codes tell failures apart.

use std::path::PathBuf;
use std::time::Instant;

use clap::{ArgAction, Parser};

use super::apply::{WriteArgs, apply_one};
use super::output;
use super::progress::{ProgressMode, Terminal};
use super::send::{Format, Job, RETRIES, RemoteArgs, ToArgs};
use super::summary::Summary;
use crate::cancel::Cancel;
use crate::commands::Caller;
use crate::delta::codec::Compression;
use crate::engine::effort::Effort;
use crate::error::{Error, ExitCode, Result};
use crate::record::store::StateDir;
use crate::source::SourceRequest;

/// The original's command line. For the other verbs see `lvmsync --help`
#[derive(Parser, Debug)]
#[command(
    name = "lvmsync",
    version,
    infer_long_args = true,
    max_term_width = 100
)]
#[command(override_usage = "lvmsync [OPTIONS] SNAPSHOT [HOST:]DEST\n       \
                            lvmsync [OPTIONS] SNAPSHOT --stdout\n       \
                            lvmsync [OPTIONS] --apply FILE|- DEST")]
pub(super) struct ClassicArgs {
    /// SNAPSHOT and [HOST:]DEST, or DEST alone with --apply
    arguments: Vec<String>,

    /// Apply the changes in FILE, or from standard input with -
    #[arg(short, long, value_name = "FILE")]
    apply: Option<String>,

    /// The same as --apply -
    #[arg(long)]
    server: bool,

    /// Save what is overwritten at the destination in this file
    #[arg(short = 'b', long, value_name = "FILE")]
    snapback: Option<PathBuf>,

    /// Write the changes to standard output
    #[arg(short, long)]
    stdout: bool,

    /// Read the data from this device instead of from the snapshot's origin
    #[arg(short = 'r', long, value_name = "DEVICE")]
    data_source: Option<String>,

    /// Remote shell, with options
    #[arg(short = 'e', long, value_name = "COMMAND", default_value = "ssh")]
    rsh: String,

    /// Format of the stream
    #[arg(long, value_enum, default_value_t = Format::V4, value_name = "FORMAT")]
    format: Format,

    /// The far end is the original lvmsync
    #[arg(long)]
    compat: bool,

    /// Say what is being done
    #[arg(short, long, action = ArgAction::SetTrue, overrides_with = "no_verbose")]
    verbose: bool,
    #[arg(long, hide = true)]
    no_verbose: bool,

    /// Say everything
    #[arg(short, long, action = ArgAction::SetTrue, overrides_with = "no_debug")]
    debug: bool,
    #[arg(long, hide = true)]
    no_debug: bool,

    /// No progress
    #[arg(short, long, action = ArgAction::SetTrue, overrides_with = "no_quiet")]
    quiet: bool,
    #[arg(long, hide = true)]
    no_quiet: bool,
}

pub(super) fn run(args: &ClassicArgs, cancel: &Cancel) -> Result<ExitCode> {
    if args.quiet && (args.verbose || args.debug) {
        return Err(Error::Usage(
            "--quiet and --verbose contradict each other".to_owned(),
        ));
    }
    super::log::start(u8::from(args.verbose) + 2 * u8::from(args.debug), false);
    let terminal = Terminal::new(ProgressMode::Auto, args.quiet, args.verbose || args.debug);
    if args.server {
        output::message("lvmsync: --server is deprecated: use --apply -");
    }
    let usage = |text: &str| Err(Error::Usage(text.to_owned()));
    let arguments: Vec<&str> = args.arguments.iter().map(String::as_str).collect();
    let summary = match (args.applied_file(), arguments.as_slice()) {
        (Some(file), [destination]) => apply(args, file, destination, cancel, &terminal),
        (Some(_), []) => usage("no destination was given"),
        (Some(_), _) => usage("--apply takes one destination"),
        (None, [snapshot]) if args.stdout => send(args, snapshot, None, cancel, &terminal),
        // The original takes a destination beside --stdout and does nothing with it.
        (None, [snapshot, _]) if args.stdout => send(args, snapshot, None, cancel, &terminal),
        (None, [snapshot, destination]) => {
            send(args, snapshot, Some(destination), cancel, &terminal)
        }
        (None, []) => usage("no snapshot was given; lvmsync --help tells more"),
        (None, [_]) => usage("no destination was given; lvmsync --help tells more"),
        (None, _) => usage("more than a snapshot and a destination was given"),
    };
    terminal.finish();
    let verb = if args.applied_file().is_some() {
        "applied"
    } else {
        "sent"
    };
    terminal.summary(&summary?.sentence(verb));
    Ok(ExitCode::Done)
}

impl ClassicArgs {
    fn applied_file(&self) -> Option<&str> {
        self.apply.as_deref().or(self.server.then_some("-"))
    }

    /// As the original did, an older snapback of the same name is replaced (but only when the new one is
    /// whole).
    fn write_args(&self) -> WriteArgs {
        WriteArgs {
            undo: self.snapback.clone(),
            overwrite: true,
            ..WriteArgs::default()
        }
    }
}

fn apply(
    args: &ClassicArgs,
    file: &str,
    destination: &str,
    cancel: &Cancel,
    terminal: &Terminal,
) -> Result<Summary> {
    let start = Instant::now();
    let options = args.write_args().options(Compression::None);
    let received = apply_one(file, destination, &options, cancel, terminal)?;
    let applied = &received.applied;
    Ok(Summary {
        destination: destination.to_owned(),
        volume_size: received
            .header
            .as_ref()
            .map_or(0, |header| header.volume_size),
        extents: applied.data_frames + applied.zero_frames,
        data_bytes: applied.data_bytes,
        zero_bytes: applied.zero_bytes,
        bytes_sent: received.delta_bytes,
        seconds: start.elapsed().as_secs_f64(),
        undo: args
            .snapback
            .as_ref()
            .map(|path| path.display().to_string()),
        ..Summary::default()
    })
}

fn send(
    args: &ClassicArgs,
    snapshot: &str,
    destination: Option<&str>,
    cancel: &Cancel,
    terminal: &Terminal,
) -> Result<Summary> {
    if args.stdout && args.snapback.is_some() {
        return Err(Error::Usage(
            "--snapback cannot be used with --stdout".to_owned(),
        ));
    }
    let to = ToArgs {
        stdout: args.stdout,
        format: args.format,
        ..ToArgs::default()
    };
    let remote = RemoteArgs {
        rsh: args.rsh.clone(),
        remote_path: "lvmsync".to_owned(),
        compat: args.compat,
        retries: RETRIES,
        ..RemoteArgs::default()
    };
    let job = Job {
        request: SourceRequest {
            from: Some(snapshot),
            new: None,
            data_source: args.data_source.as_deref(),
            base_size: None,
            thin_metadata: None,
            volume_size: None,
            snapshot: None,
            compression: Compression::None,
            state: StateDir::choose(None),
            caller: Caller::HERE,
            cancel,
            monitor: terminal,
        },
        destination,
        to: &to,
        write: &args.write_args(),
        remote: &remote,
        prestarted: None,
        dry_run: false,
        verify: false,
        comparing: false,
        effort: Effort::new(Compression::None),
        recover_at_peer: None,
        cancel,
        monitor: terminal,
        speaker: terminal.speaker(),
    };
    job.run()
}
