//! `lvmsync combine`: several deltas become one with the same effect.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::chain::Files;
use super::summary::shown_seconds;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::delta::codec::Compression;
use crate::delta::header::{Planned, State};
use crate::error::{Error, ExitCode, Result};
use crate::history::combine::{Combined, Options, check, combine};
use crate::partial_file::PartialFile;
use crate::record::shown;
use crate::units::{Bytes, count};
use crate::write_behind::WriteBehind;

const AFTER_HELP: &str = "\
Examples:
  lvmsync combine mon.delta tue.delta wed.delta -o week.delta
  lvmsync combine *.delta --check                  are they a chain, and in which order?
  lvmsync combine full.delta mon.delta tue.delta -o newer-full.delta
  lvmsync combine tue.undo mon.undo -o weekend.undo
  lvmsync combine mon.delta tue.delta -o both.delta -z zstd:9

Each delta has to begin from the state that another one leads to; in which order they are named does not matter.
What was overwritten later is left out, what was not is copied as it is stored. All deltas are read whole: one that is
damaged ends it (exit code 6), and no file is made. Deltas that are no chain are refused (5).
The parts are kept: remove them when the result is where it should be.";

/// Make one delta of several that follow each other
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CombineArgs {
    /// Deltas, in any order
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,

    /// Write the delta to this file
    #[arg(short, long, value_name = "FILE", required_unless_present = "check")]
    output: Option<PathBuf>,

    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,

    /// Compress everything anew: none, lz4, zstd or zstd:LEVEL. Without it everything stays as it is stored
    #[arg(short = 'z', long, value_name = "CODEC")]
    compress: Option<Compression>,

    /// Only tell whether they are a chain, and in which order; also --dry-run
    #[arg(
        short = 'n',
        long,
        visible_alias = "dry-run",
        conflicts_with = "output"
    )]
    check: bool,

    /// Print the result as a JSON object on stdout
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    talk: TalkArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    /// In the order of their states.
    chain: Vec<&'a str>,
    base: Option<&'a State>,
    target: Option<&'a State>,
    #[serde(flatten)]
    written: Option<Written<'a>>,
}

#[derive(Serialize)]
struct Written<'a> {
    output: String,
    source: &'a str,
    volume_size: u64,
    base_size: Option<u64>,
    extents: u64,
    data_bytes: u64,
    zero_bytes: u64,
    stored_bytes: u64,
    delta_bytes: u64,
    parts_bytes: u64,
    samples: usize,
    copied_frames: u64,
    made_frames: u64,
    seconds: f64,
}

pub(super) fn run(args: &CombineArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let start = Instant::now();
    let files = Files::open(&args.files)?;
    let chain = files.chain()?;
    check(&chain)?;
    let first = chain.first().map(|input| input.delta.header());
    let last = chain.last().map(|input| input.delta.header());
    let mut report = Report {
        chain: chain.iter().map(|input| input.name.as_str()).collect(),
        base: first.and_then(|header| header.base.as_ref()),
        target: last.and_then(|header| header.target.as_ref()),
        written: None,
    };
    let from = match first {
        Some(header) if header.is_full_copy() => "nothing (a full copy)".to_owned(),
        _ => shown(report.base),
    };
    let to = shown(report.target);
    let Some(path) = &args.output else {
        if args.json {
            output::json(&report)?;
        } else {
            output::listing(|out| {
                for name in &report.chain {
                    writeln!(out, "{name}")?;
                }
                Ok(())
            })?;
        }
        terminal.summary(&format!(
            "a chain of {}, from {from} to {to}; only beginnings and ends were read, and nothing was written",
            count(chain.len() as u64, "delta")
        ));
        return Ok(ExitCode::Done);
    };
    files.refuse_as_output(path)?;
    let name = path.display().to_string();
    let file = PartialFile::create(path, args.overwrite)?;
    let out = file
        .file()
        .and_then(WriteBehind::new)
        .map_err(|error| Error::io(format!("cannot write {name}"), error))?;
    let options = Options {
        compression: args.compress,
        cancel,
        monitor: &terminal,
    };
    let combined = combine(&chain, out, &name, &options)?;
    files.check_unchanged(&args.files)?;
    file.persist()?;
    terminal.finish();
    let parts_bytes = chain.iter().map(|input| input.delta.bytes());
    let parts_bytes = parts_bytes.fold(0, u64::saturating_add);
    let elapsed = start.elapsed();
    if args.json {
        report.written = Some(written(
            &combined,
            name.clone(),
            parts_bytes,
            elapsed.as_secs_f64(),
        ));
        output::json(&report)?;
    }
    let Planned {
        extents,
        data_bytes,
        zero_bytes,
    } = combined.header.planned;
    terminal.summary(&format!(
        "combined {} into {name} in {}: {} where the parts have {}; {}, {} data, {} zero; from {from} to {to}",
        count(chain.len() as u64, "delta"),
        shown_seconds(elapsed),
        Bytes(combined.delta_bytes),
        Bytes(parts_bytes),
        count(extents, "extent"),
        Bytes(data_bytes),
        Bytes(zero_bytes)
    ));
    Ok(ExitCode::Done)
}

fn written(combined: &Combined, output: String, parts_bytes: u64, seconds: f64) -> Written<'_> {
    let header = &combined.header;
    Written {
        output,
        source: header.source.word(),
        volume_size: header.volume_size,
        base_size: header.base_size,
        extents: header.planned.extents,
        data_bytes: combined.counts.data_bytes,
        zero_bytes: combined.counts.zero_bytes,
        stored_bytes: combined.counts.stored_bytes,
        delta_bytes: combined.delta_bytes,
        parts_bytes,
        samples: combined.samples,
        copied_frames: combined.copied_frames,
        made_frames: combined.made_frames,
        seconds,
    }
}
