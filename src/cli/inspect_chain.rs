//! `lvmsync inspect` with several deltas: what follows what, and where on the volume each changes something.
//!
//! Guarantees: every file that was named is in the listing, sound or not; "sound" is said only of what was read whole.
//! Without `--verify` beginnings and ends are read, and for a map the record headers.

use std::io::{self, Write};

use serde::Serialize;

use super::apply::open_input;
use super::chain::{LINE_3, open_file};
use super::inspect::{InspectArgs, read_whole};
use super::inspect_map::{draw, write_page};
use super::output;
use super::progress::Terminal;
use crate::cancel::Cancel;
use crate::delta::FormatError;
use crate::delta::header::{Header, State};
use crate::delta::stored::StoredDelta;
use crate::delta::trailer::Counts;
use crate::error::{Error, ExitCode, Result};
use crate::history::chain::{Chains, Link};
use crate::history::map::write_rows;
use crate::record::keeper::shown_time;
use crate::record::shown;
use crate::units::{Bytes, count};
use crate::volume::Volume;

/// A file that was named.
pub(super) struct Entry {
    pub(super) name: String,
    /// `None`: it cannot be held against others.
    pub(super) delta: Option<StoredDelta<Volume>>,
    is_version_3: bool,
    error: Option<Error>,
    /// It was read whole.
    is_verified: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    /// They follow each other, all of them.
    chain: bool,
    deltas: Vec<Line<'a>>,
    gaps: Vec<String>,
    forks: Vec<String>,
    circles: Vec<Vec<&'a str>>,
}

#[derive(Serialize)]
struct Line<'a> {
    file: &'a str,
    format: u32,
    /// `null`: it was not read whole.
    sound: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Deltas with the same number follow each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    segment: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<&'a Header>,
    #[serde(flatten)]
    figures: Option<Figures>,
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
}

pub(super) fn run(args: &InspectArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let mut entries = Vec::with_capacity(args.files.len());
    for name in &args.files {
        entries.push(look_at(name, args.verify, cancel, &terminal)?);
    }
    terminal.finish();
    let usable: Vec<usize> = (0..entries.len())
        .filter(|entry| entries[*entry].delta.is_some())
        .collect();
    let links: Vec<Link<'_>> = usable
        .iter()
        .filter_map(|entry| entries[*entry].link())
        .collect();
    let chains = Chains::of(&links);
    let mut order: Vec<(usize, Option<usize>)> = Vec::with_capacity(entries.len());
    for (segment, links) in chains.segments.iter().enumerate() {
        order.extend(links.iter().map(|link| (usable[*link], Some(segment))));
    }
    let unusable = (0..entries.len()).filter(|entry| entries[*entry].delta.is_none());
    order.extend(unusable.map(|entry| (entry, None)));
    let report = Report {
        chain: chains.only().is_some() && usable.len() == entries.len(),
        deltas: order
            .iter()
            .map(|(entry, segment)| entries[*entry].line(*segment))
            .collect(),
        gaps: chains.gaps(&links),
        forks: chains
            .forks
            .iter()
            .map(|fork| fork.sentence(&links))
            .collect(),
        circles: chains
            .circles
            .iter()
            .map(|circle| {
                chains.segments[*circle]
                    .iter()
                    .map(|link| links[*link].name)
                    .collect()
            })
            .collect(),
    };
    let mut failed_map = None;
    if args.json {
        output::json(&report)?;
    } else if args.map {
        let in_order = order.iter().map(|(entry, _)| &entries[*entry]);
        let (rows, width_bytes, error) = draw(in_order, cancel)?;
        failed_map = error;
        match &args.output {
            Some(path) => write_page(path, args.overwrite, &rows, width_bytes)?,
            None => output::listing(|out| {
                write_rows(out, &rows, width_bytes)?;
                write_faults(out, &report)
            })?,
        }
    } else {
        output::listing(|out| {
            write_table(out, &entries, &order)?;
            write_faults(out, &report)
        })?;
    }
    if !args.json {
        terminal.summary(&sentence(args, &report, &chains, &links));
    }
    let first = entries.into_iter().find_map(|entry| entry.error);
    first.or(failed_map).map_or(Ok(ExitCode::Done), Err)
}

/// Opens a delta, and reads all of it if asked to. What is damaged is what was asked about.
fn look_at(name: &str, verify: bool, cancel: &Cancel, terminal: &Terminal) -> Result<Entry> {
    cancel.check()?;
    let mut entry = Entry {
        name: name.to_owned(),
        delta: None,
        is_version_3: false,
        error: None,
        is_verified: false,
    };
    match StoredDelta::open(open_file(name)?) {
        Ok(delta) => entry.delta = Some(delta),
        Err(FormatError::UnsupportedVersion { line, .. }) if line == LINE_3 => {
            entry.is_version_3 = true;
        }
        Err(source) => {
            let what = name.to_owned();
            entry.found(Error::Damaged { what, source })?;
        }
    }
    if verify && entry.error.is_none() {
        match read_whole(open_input(name, cancel)?, name, cancel, terminal) {
            Ok(_) => entry.is_verified = true,
            Err(error) => entry.found(error)?,
        }
    }
    Ok(entry)
}

impl Entry {
    fn found(&mut self, error: Error) -> Result<()> {
        if error.exit_code() != ExitCode::Damaged {
            return Err(error);
        }
        self.error = Some(error);
        Ok(())
    }

    pub(super) fn header(&self) -> Option<&Header> {
        self.delta.as_ref().map(StoredDelta::header)
    }

    fn link(&self) -> Option<Link<'_>> {
        let header = self.header()?;
        let name = &self.name;
        Some(Link { name, header })
    }

    fn line(&self, segment: Option<usize>) -> Line<'_> {
        Line {
            file: &self.name,
            format: match (&self.delta, self.is_version_3) {
                (Some(_), _) => 4,
                (None, true) => 3,
                (None, false) => 0,
            },
            sound: match (&self.error, self.is_verified) {
                (Some(_), _) => Some(false),
                (None, true) => Some(true),
                (None, false) => None,
            },
            error: self.error.as_ref().map(Error::chain),
            segment,
            header: self.header(),
            figures: self.delta.as_ref().map(figures),
        }
    }

    /// From where to where.
    pub(super) fn states(&self) -> String {
        let Some(header) = self.header() else {
            return "?".to_owned();
        };
        let base = match &header.base {
            None if header.is_full_copy() => "(full copy)".to_owned(),
            base => state(base.as_ref()),
        };
        format!("{base} → {}", state(header.target.as_ref()))
    }

    fn cells(&self) -> [String; 9] {
        let (Some(delta), Some(header)) = (&self.delta, self.header()) else {
            let what = if self.is_version_3 {
                "PROTO[3]: names no states"
            } else {
                "cannot be read"
            };
            let sound = if self.error.is_some() { "NO" } else { "-" };
            let dash = || "-".to_owned();
            return [
                self.name.clone(),
                what.to_owned(),
                dash(),
                dash(),
                dash(),
                dash(),
                dash(),
                dash(),
                sound.to_owned(),
            ];
        };
        let counts = delta.counts();
        let codec = match header.codec.as_str() {
            "" => "-",
            codec => codec,
        };
        let sound = match (&self.error, self.is_verified) {
            (Some(_), _) => "NO",
            (None, true) => "yes",
            (None, false) => "not read",
        };
        [
            self.name.clone(),
            self.states(),
            shown_time(header.created),
            counts
                .data_frames
                .saturating_add(counts.zero_frames)
                .to_string(),
            Bytes(counts.data_bytes).to_string(),
            Bytes(counts.zero_bytes).to_string(),
            codec.to_owned(),
            ratio(counts),
            sound.to_owned(),
        ]
    }
}

fn figures(delta: &StoredDelta<Volume>) -> Figures {
    let counts = delta.counts();
    Figures {
        delta_bytes: delta.bytes(),
        data_frames: counts.data_frames,
        zero_frames: counts.zero_frames,
        data_bytes: counts.data_bytes,
        zero_bytes: counts.zero_bytes,
        stored_bytes: counts.stored_bytes,
        samples: delta.samples().len(),
    }
}

/// Ids are long, and in the JSON.
fn state(state: Option<&State>) -> String {
    match state {
        Some(state) if !state.name.is_empty() => state.name.clone(),
        Some(state) => state.id.clone(),
        None => "(not named)".to_owned(),
    }
}

/// "2.5": so many times as much as is stored.
fn ratio(counts: &Counts) -> String {
    let tenths = counts
        .data_bytes
        .saturating_mul(10)
        .checked_div(counts.stored_bytes);
    tenths.map_or_else(
        || "-".to_owned(),
        |tenths| format!("{}.{}", tenths / 10, tenths % 10),
    )
}

fn write_table(
    out: &mut dyn Write,
    entries: &[Entry],
    order: &[(usize, Option<usize>)],
) -> io::Result<()> {
    let heading = [
        "FILE",
        "BASE → TARGET",
        "TIME",
        "EXTENTS",
        "DATA",
        "ZERO",
        "CODEC",
        "RATIO",
        "SOUND",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(order.iter().map(|(entry, _)| entries[*entry].cells()));
    let mut widths = [0; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let text = match column {
                3..=5 | 7 => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            };
            line.push_str(&text);
            line.push_str("  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    for (entry, _) in order {
        if let Some(error) = &entries[*entry].error {
            writeln!(out, "NOT SOUND: {}", error.chain())?;
        }
    }
    Ok(())
}

fn write_faults(out: &mut dyn Write, report: &Report<'_>) -> io::Result<()> {
    for gap in &report.gaps {
        writeln!(out, "gap: {gap}")?;
    }
    for fork in &report.forks {
        writeln!(out, "fork: {fork}")?;
    }
    for circle in &report.circles {
        writeln!(out, "circle: {}", circle.join(", "))?;
    }
    Ok(())
}

fn sentence(
    args: &InspectArgs,
    report: &Report<'_>,
    chains: &Chains,
    links: &[Link<'_>],
) -> String {
    let number = count(report.deltas.len() as u64, "delta");
    let ends = chains.order().next().zip(chains.order().last());
    let mut text = match ends {
        Some((first, last)) if report.chain => format!(
            "{number}: a chain that leads to {}{}",
            shown(links[last].header.target.as_ref()),
            match &links[first].header.base {
                Some(base) => format!(", from {}", shown(Some(base))),
                None => String::new(),
            }
        ),
        _ => format!("{number}: no chain"),
    };
    if let Some(path) = &args.output {
        text.push_str(&format!("; the map is in {}", path.display()));
    }
    if !args.verify {
        text.push_str("; frames were not read: --verify reads every one");
    }
    text
}
