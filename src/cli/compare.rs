//! `lvmsync compare`: is a volume equal to another, here or elsewhere?
//!
//! Guarantees: nothing is written at either end; "equal" is said only after every byte that was asked about was
//! read at both ends, from the volumes themselves, and not of what was written to meanwhile.

use std::io::{self, Write};
use std::time::Instant;

use clap::Args;

use super::apply::StateArgs;
use super::compare_found::{Found, Plan, Sizes, sentence, write_json, write_table};
use super::compare_only::Only;
use super::diff::write_map;
use super::elsewhere::{Begin, Elsewhere};
use super::progress::Terminal;
use super::pull::far_name;
use super::send::RemoteArgs;
use super::sync_line::SyncLine;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::comparand::{Comparand, Compared, Means, Medium};
use crate::dm::resolve::resolve;
use crate::engine::compare::compare_here;
use crate::error::{Error, ExitCode, Result};
use crate::monitor::Monitor;
use crate::session::endpoint::{Endpoint, parse_endpoint};
use crate::session::message::Ready;
use crate::source::{origin_of_lost, readable};
use crate::volume::VolumeIdentity;

const AFTER_HELP: &str = "\
Examples:
  lvmsync compare vg/s2 backup:/dev/vg/data         is the copy what the snapshot is?
  lvmsync compare prod:vg/s2 vg/data                the same from the side of the copy
  lvmsync compare vg/s2 vg/copy --json              for scripts: offsets and lengths in bytes
  lvmsync compare vg/s2 vg/copy --only monday.delta only what this delta changed
  lvmsync compare -q vg/s2 vg/copy && echo equal

Both volumes are read whole, past the page cache, each where it is; over ssh only digests travel.
Nothing is written, and either may be in use: what is written meanwhile may count as different, so
compare a snapshot. Differences are told in blocks of 4 KiB.

A device as DEST may be longer than SRC: what is past SRC's end does not count. A longer file is
different, and so is anything shorter.

Exit code 0: equal; 3: different.";

/// Tell whether two volumes are equal, and where they differ
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP, mut_arg("compat", |arg| arg.hide(true)))]
pub(super) struct CompareArgs {
    /// A snapshot, an origin, a block device or a file; [USER@]HOST:SRC if it is elsewhere, and DEST here
    #[arg(value_name = "[HOST:]SRC")]
    pub(super) source: String,

    /// What should be equal: DEST or [USER@]HOST:DEST
    #[arg(value_name = "[HOST:]DEST")]
    pub(super) destination: String,

    /// Compare only the extents of this delta; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(super) only: Option<String>,

    #[command(flatten)]
    pub(super) remote: RemoteArgs,

    #[command(flatten)]
    pub(super) state: StateArgs,

    /// One JSON object
    #[arg(long, conflicts_with = "map")]
    pub(super) json: bool,

    /// Draw where on the volume the differences are
    #[arg(long)]
    pub(super) map: bool,

    #[command(flatten)]
    pub(super) talk: TalkArgs,

    /// Not the user's to say: it is about what the disk has.
    #[arg(skip)]
    pub(super) medium: Medium,
}

pub(super) fn run(args: &CompareArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    refuse_stream([&args.source, &args.destination])?;
    let start = Instant::now();
    let found = match parse_endpoint(&args.source)? {
        Endpoint::Remote { host, path } => find_from(args, &host, &path, &terminal, cancel),
        Endpoint::Local(_) => find(args, &terminal, cancel),
    };
    terminal.finish();
    let found = found.map_err(|error| {
        let named = error.recover().map(str::to_owned);
        let is_source_cut = is_refused_source(&error, args);
        error.to_recover(|| match is_source_cut {
            true => finish_source(args),
            false => sync_instead(args, named.as_deref()),
        })
    })?;
    let listing =
        |write: &dyn Fn(&mut dyn Write) -> io::Result<()>| output::listing(|out| write(out));
    if args.json {
        listing(&|out| write_json(out, &found))?;
    } else if !args.talk.quiet && args.map {
        let end = found.volume_size.max(found.destination_size);
        listing(&|out| write_map(out, &found.differing, end))?;
    } else if !args.talk.quiet && !found.differing.is_empty() {
        listing(&|out| write_table(out, &found.differing))?;
    }
    terminal.summary(&sentence(&found, start.elapsed()));
    Ok(if found.differing.is_empty() {
        ExitCode::Done
    } else {
        ExitCode::Differ
    })
}

/// The sync that makes both equal where SRC is a snapshot that is lost; `named` is what its machine says to read.
fn sync_instead(args: &CompareArgs, named: Option<&str>) -> String {
    let source = match parse_endpoint(&args.source) {
        Ok(Endpoint::Remote { host, path }) => far_name(&host, named.unwrap_or(&path)),
        _ => readable(&args.source),
    };
    let line = SyncLine::of(&source, &args.destination).way(&args.remote);
    line.line("sync", &args.state)
}

/// It is SRC that cannot be compared, and a sync is named that mends it.
fn is_refused_source(error: &Error, args: &CompareArgs) -> bool {
    match error {
        Error::Refused { what, .. } => *what == args.source,
        Error::RemoteFailed { code, .. } => {
            *code == ExitCode::Refused
                && matches!(parse_endpoint(&args.source), Ok(Endpoint::Remote { .. }))
        }
        _ => false,
    }
}

/// The sync whose destination SRC is, from nobody knows where.
fn finish_source(args: &CompareArgs) -> String {
    let line = SyncLine::of("NEW", &args.source).way(&args.remote);
    line.line("sync", &args.state)
}

/// Nothing that is written to a snapshot makes it whole again where it is lost: then no sync is the way out.
fn if_destination_is_lost(args: &CompareArgs, mut error: Error) -> Error {
    if error.exit_code() != ExitCode::TrackingLost {
        return error;
    }
    let origin = match parse_endpoint(&args.destination) {
        Ok(Endpoint::Remote { host, .. }) if matches!(error, Error::RemoteFailed { .. }) => {
            Some(far_name(&host, error.recover().unwrap_or("ORIGIN")))
        }
        Ok(Endpoint::Local(path)) => origin_of_lost(&path.to_string_lossy()),
        _ => None,
    };
    let Some(origin) = origin else { return error };
    if let Error::TrackingLost { reason: text, .. } | Error::RemoteFailed { message: text, .. } =
        &mut error
    {
        text.push_str(
            "\nIt is DEST, and no sync makes it whole: compare with its origin, or with a new snapshot of that",
        );
    }
    let other = match is_same(&args.source, &origin) {
        true => "NEW",
        false => &origin,
    };
    let only = args.only.as_deref();
    let line = SyncLine::of(&args.source, other).way(&args.remote);
    Error::ToRecover {
        error: Box::new(error),
        command: line.only(only).line("compare", &args.state),
    }
}

/// Two names of what is here.
fn is_same(one: &str, other: &str) -> bool {
    let identity = |name| VolumeIdentity::of_path(resolve(name).ok()?.path()).ok();
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// Compares, and tells nobody.
pub(super) fn find(args: &CompareArgs, terminal: &Terminal, cancel: &Cancel) -> Result<Found> {
    find_to(args, terminal, cancel).map_err(|error| if_destination_is_lost(args, error))
}

fn find_to(args: &CompareArgs, terminal: &Terminal, cancel: &Cancel) -> Result<Found> {
    refuse_the_original(args)?;
    let destination = parse_endpoint(&args.destination)?;
    let (state, caller) = (args.state.directory(), args.state.caller());
    let means = Means {
        medium: args.medium,
        state: &state,
        caller: &caller,
        cancel,
    };
    let source = Comparand::open_or_activate(&args.source, means, terminal)?;
    source.warn_of_half_written(&state, &caller, terminal);
    let only = Only::read(args.only.as_deref(), cancel)?;
    let only = only.as_ref();
    let only = only.map(|only| only.of(source.size_bytes(), &args.source));
    let only = only.transpose()?;
    match destination {
        Endpoint::Local(path) => {
            let path = path.to_string_lossy();
            let other = Comparand::open_or_activate(&path, means, terminal)?;
            if other.identity() == source.identity() {
                return Err(Error::Usage(format!(
                    "{} and {} are the same volume",
                    args.source, args.destination
                )));
            }
            other.warn_of_half_written(&state, &caller, terminal);
            let sizes = Sizes {
                source: source.size_bytes(),
                destination: other.size_bytes(),
                is_file: other.is_file(),
            };
            let (extents, plan) = sizes.plan(only);
            terminal.plan(extents.total_bytes());
            let differing = compare_here(&extents, source.side(), other.side(), cancel, terminal)
                .map_err(|error| source.explain(other.explain(error)))?;
            plan.found(Compared::of(differing, &[&source, &other])?, terminal)
        }
        Endpoint::Remote { host, path } => {
            let begin = &mut |ready: &Ready| {
                let sizes = Sizes {
                    source: source.size_bytes(),
                    destination: ready.size_bytes,
                    is_file: ready.kind == "file",
                };
                Ok(sizes.plan(only))
            };
            compare_with((&host, &path), &source, begin, args, terminal, cancel)
        }
    }
}

/// The same, where SRC is `path` at `host`, and DEST is here.
pub(super) fn find_from(
    args: &CompareArgs,
    host: &str,
    path: &str,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Found> {
    find_to_here(args, (host, path), terminal, cancel)
        .map_err(|error| if_destination_is_lost(args, error))
}

fn find_to_here(
    args: &CompareArgs,
    (host, path): (&str, &str),
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Found> {
    refuse_the_original(args)?;
    refuse_two_hosts(&args.destination)?;
    let only = Only::read(args.only.as_deref(), cancel)?;
    let (state, caller) = (args.state.directory(), args.state.caller());
    let means = Means {
        medium: args.medium,
        state: &state,
        caller: &caller,
        cancel,
    };
    let destination = Comparand::open_or_activate(&args.destination, means, terminal)?;
    destination.warn_of_half_written(&state, &caller, terminal);
    let begin = &mut |ready: &Ready| {
        let sizes = Sizes {
            source: ready.size_bytes,
            destination: destination.size_bytes(),
            is_file: destination.is_file(),
        };
        let only = only
            .as_ref()
            .map(|only| only.of(sizes.source, &args.source));
        Ok(sizes.plan(only.transpose()?))
    };
    compare_with((host, path), &destination, begin, args, terminal, cancel)
}

fn compare_with(
    (host, path): (&str, &str),
    near: &Comparand,
    begin: Begin<'_, Plan>,
    args: &CompareArgs,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Found> {
    let there = Elsewhere {
        prestarted: None,
        remote: &args.remote,
        speaker: &terminal.speaker(),
        medium: args.medium,
        host,
        path,
        cancel,
        monitor: terminal,
    };
    let (mut compared, plan) = there
        .compare(near.side(), begin)
        .map_err(|error| near.explain(error))?;
    compared.changed.extend(near.if_changed()?);
    plan.found(compared, terminal)
}

/// Where the source is at another machine.
pub(super) fn refuse_two_hosts(destination: &str) -> Result<()> {
    if matches!(parse_endpoint(destination)?, Endpoint::Remote { .. }) {
        return Err(Error::Usage(
            "one of the two volumes has to be here: run this at one of the hosts".to_owned(),
        ));
    }
    Ok(())
}

/// Elsewhere `-` is standard input or output. Here it would be a file of that name, which nobody wants.
pub(super) fn refuse_stream(volumes: [&str; 2]) -> Result<()> {
    if volumes.contains(&"-") {
        return Err(Error::Usage(
            "`-` is no volume: what is compared is read at both ends, and cannot be a pipe. \
             If a file of that name is meant, write ./-"
                .to_owned(),
        ));
    }
    Ok(())
}

fn refuse_the_original(args: &CompareArgs) -> Result<()> {
    if args.remote.compat {
        return Err(Error::Usage(
            "the original lvmsync cannot compare: install this one at the far end".to_owned(),
        ));
    }
    Ok(())
}
