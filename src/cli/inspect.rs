//! `lvmsync inspect`: what is in a delta, and is it sound?

use std::io::{BufReader, Read, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::apply::{open_input, shown_name};
use super::inspect_map::page_of;
use super::{TalkArgs, inspect_chain, output};
use crate::cancel::Cancel;
use crate::delta::header::{Header, State};
use crate::delta::proto3::{FirstLine, Proto3Reader, read_first_line};
use crate::delta::reader::DeltaReader;
use crate::delta::samples::Samples;
use crate::delta::trailer::Counts;
use crate::error::{Error, ExitCode, Result};
use crate::extent::Kind;
use crate::monitor::Monitor;
use crate::units::Bytes;

const AFTER_HELP: &str = "\
Examples:
  lvmsync inspect monday.delta
  lvmsync inspect --extents monday.delta
  ssh src cat x.delta | lvmsync inspect -
  lvmsync inspect *.delta                      one table: what follows what, gaps and forks
  lvmsync inspect *.delta --verify             and is every byte of them sound?
  lvmsync inspect *.delta --map                where on the volume each changes something
  lvmsync inspect *.delta --map -o map.html    the same as a page (or .svg)

Of one delta, and of several with --verify or --extents, every byte is read and every checksum compared. A table
without --verify reads beginnings and ends, a map the record headers.
Exit code 0: sound, as far as it was read; 6: damaged or truncated.";

/// Tell what is in a delta, and check that it is sound
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct InspectArgs {
    /// Deltas; `-` for standard input
    #[arg(required = true, value_name = "FILE")]
    pub(super) files: Vec<String>,

    /// One JSON object
    #[arg(long)]
    pub(super) json: bool,

    /// List the extents as well; several files are then told one after another
    #[arg(long)]
    extents: bool,

    /// Of several, too, read every frame
    #[arg(long)]
    pub(super) verify: bool,

    /// Draw where on the volume each delta changes something, a row for each
    #[arg(long, conflicts_with_all = ["json", "extents"])]
    pub(super) map: bool,

    /// Draw the map into this file: .svg or .html
    #[arg(short, long, value_name = "FILE", requires = "map")]
    pub(super) output: Option<PathBuf>,

    /// Replace the file if it exists
    #[arg(long, requires = "output")]
    pub(super) overwrite: bool,

    #[command(flatten)]
    pub(super) talk: TalkArgs,
}

/// A delta that was read to its end and found sound.
pub(super) struct Whole {
    /// `None` for version 3.
    pub(super) header: Option<Header>,
    pub(super) samples: Samples,
    pub(super) counts: Counts,
    pub(super) delta_bytes: u64,
}

#[derive(Serialize)]
struct Report<'a> {
    file: &'a str,
    format: u32,
    sound: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<&'a Header>,
    #[serde(flatten)]
    figures: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extents: Option<Vec<ExtentLine>>,
}

#[derive(Serialize)]
struct Figures {
    delta_bytes: u64,
    data_frames: u64,
    zero_frames: u64,
    data_bytes: u64,
    zero_bytes: u64,
    stored_bytes: u64,
    samples: usize,
    index_entries: u64,
}

#[derive(Clone, Copy, Serialize)]
pub(super) struct ExtentLine {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) kind: &'static str,
}

pub(super) fn run(args: &InspectArgs, cancel: &Cancel) -> Result<ExitCode> {
    if let Some(path) = &args.output {
        page_of(path)?;
    }
    if args.map || (args.files.len() > 1 && !args.extents) {
        return inspect_chain::run(args, cancel);
    }
    let terminal = args.talk.terminal();
    let mut failure = None;
    for file in &args.files {
        let mut extents = args.extents.then(Vec::new);
        let result = open_input(file, cancel).and_then(|input| {
            read_with(input, &shown_name(file), cancel, &terminal, &mut |line| {
                if let Some(extents) = &mut extents {
                    extents.push(line);
                }
            })
        });
        terminal.finish();
        let (whole, error) = match result {
            Ok(whole) => (Some(whole), None),
            // A file that is damaged is what was asked about; go on to the next one.
            Err(error) if error.exit_code() == ExitCode::Damaged => (None, Some(error)),
            Err(error) => return Err(error),
        };
        let report = Report {
            file,
            format: whole
                .as_ref()
                .map_or(0, |whole| if whole.header.is_some() { 4 } else { 3 }),
            sound: error.is_none(),
            error: error.as_ref().map(Error::chain),
            header: whole.as_ref().and_then(|whole| whole.header.as_ref()),
            figures: whole.as_ref().map(figures),
            extents,
        };
        if args.json {
            output::json(&report)?;
        } else {
            output::listing(|out| write_report(out, &report))?;
        }
        failure = error.or(failure);
    }
    failure.map_or(Ok(ExitCode::Done), Err)
}

/// Reads a delta of any version to its end, with every check that a receiver makes but for the volume.
pub(super) fn read_whole(
    input: impl Read,
    what: &str,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Whole> {
    read_with(input, what, cancel, monitor, &mut |_| ())
}

/// The same, and tells of each extent.
pub(super) fn read_with(
    input: impl Read,
    what: &str,
    cancel: &Cancel,
    monitor: &dyn Monitor,
    each: &mut dyn FnMut(ExtentLine),
) -> Result<Whole> {
    let damaged = |source| Error::Damaged {
        what: what.to_owned(),
        source,
    };
    let mut input = BufReader::with_capacity(256 << 10, input);
    let mut buffer = Vec::new();
    if read_first_line(&mut input).map_err(damaged)? == FirstLine::Version3 {
        let mut reader = Proto3Reader::after_first_line(input);
        let mut counts = Counts::default();
        while let Some(extent) = reader.next_piece(&mut buffer).map_err(damaged)? {
            cancel.check()?;
            counts.data_bytes += extent.length();
            each(ExtentLine {
                offset: extent.offset(),
                length: extent.length(),
                kind: "data",
            });
        }
        counts.data_frames = reader.records();
        counts.stored_bytes = counts.data_bytes;
        let delta_bytes = reader.position();
        return Ok(Whole {
            header: None,
            samples: Samples::default(),
            counts,
            delta_bytes,
        });
    }
    let mut reader = DeltaReader::after_first_line(input).map_err(damaged)?;
    let planned = &reader.header().planned;
    monitor.plan(planned.data_bytes.saturating_add(planned.zero_bytes));
    while let Some(frame) = reader.next_frame().map_err(damaged)? {
        cancel.check()?;
        let (offset, length) = (frame.extent.offset(), frame.extent.length());
        if frame.kind == Kind::Data {
            // Decompressing is part of the proof.
            buffer.resize(usize::try_from(length).unwrap_or(0), 0);
            reader.payload(&mut buffer).map_err(damaged)?;
        }
        each(ExtentLine {
            offset,
            length,
            kind: frame.kind.word(),
        });
        monitor.advance(length);
    }
    Ok(Whole {
        header: Some(reader.header().clone()),
        samples: reader.samples().clone(),
        counts: *reader.counts(),
        delta_bytes: reader.position(),
    })
}

fn figures(whole: &Whole) -> Figures {
    Figures {
        delta_bytes: whole.delta_bytes,
        data_frames: whole.counts.data_frames,
        zero_frames: whole.counts.zero_frames,
        data_bytes: whole.counts.data_bytes,
        zero_bytes: whole.counts.zero_bytes,
        stored_bytes: whole.counts.stored_bytes,
        samples: whole.samples.len(),
        index_entries: whole.counts.index_entries,
    }
}

fn write_report(out: &mut dyn Write, report: &Report<'_>) -> std::io::Result<()> {
    writeln!(out, "{}", report.file)?;
    if let Some(error) = &report.error {
        return writeln!(out, "  NOT SOUND    {error}");
    }
    match report.header {
        None => writeln!(
            out,
            "  format       3 (the original's): names no base and no size, has no checksums and no end mark"
        )?,
        Some(header) => write_header(out, header)?,
    }
    if let Some(figures) = &report.figures {
        writeln!(
            out,
            "  data         {} in {} frames, {} as stored",
            Bytes(figures.data_bytes),
            figures.data_frames,
            Bytes(figures.stored_bytes)
        )?;
        writeln!(
            out,
            "  zero         {} in {} frames",
            Bytes(figures.zero_bytes),
            figures.zero_frames
        )?;
        writeln!(out, "  file         {}", Bytes(figures.delta_bytes))?;
        if report.header.is_some() {
            writeln!(out, "  samples      {}", figures.samples)?;
            writeln!(
                out,
                "  sound        every checksum matches, nothing is missing"
            )?;
        }
    }
    for line in report.extents.iter().flatten() {
        writeln!(
            out,
            "  {:>20} {:>16}  {}",
            line.offset, line.length, line.kind
        )?;
    }
    Ok(())
}

fn write_header(out: &mut dyn Write, header: &Header) -> std::io::Result<()> {
    let state = |state: &Option<State>, otherwise: &str| {
        state.as_ref().map_or(otherwise.to_owned(), |state| {
            format!("{} ({})", state.name, state.id)
        })
    };
    writeln!(out, "  format       4, written by {}", header.program)?;
    writeln!(
        out,
        "  volume       {} ({} bytes)",
        Bytes(header.volume_size),
        header.volume_size
    )?;
    if header.is_full_copy() {
        writeln!(out, "  base         none: a full copy")?;
    } else {
        writeln!(out, "  base         {}", state(&header.base, "not named"))?;
    }
    writeln!(out, "  target       {}", state(&header.target, "not named"))?;
    writeln!(
        out,
        "  source       {}, {} at once",
        header.source.word(),
        Bytes(header.granularity)
    )?;
    if let Ok(created) = jiff::Timestamp::from_second(header.created) {
        writeln!(out, "  created      {created}")?;
    }
    writeln!(out, "  compression  {}", header.codec)
}
