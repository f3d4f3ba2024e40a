//! `lvmsync diff`: lists the extents that changed.

use std::io::Write;

use clap::Args;

use super::apply::StateArgs;
use super::diff_json::write_json;
use super::thin::ThinArgs;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::change_list::ChangeList;
use crate::delta::codec::Compression;
use crate::error::{ExitCode, Result};
use crate::extent::{Change, Kind};
use crate::source::{SendSource, SourceRequest, source_of_sync};
use crate::units::{Bytes, count, parse_size};

const AFTER_HELP: &str = "\
Examples:
  lvmsync diff --from vg/s1 vg/s2             between two snapshots
  lvmsync diff --from vg/s1 vg/data           since a snapshot was made
  lvmsync diff --from vg/s1 vg/s2 --json      for scripts: offsets and lengths in bytes
  lvmsync diff --from cow:store.img disk.img  from an exception store in a file
  lvmsync diff --thin-metadata meta.img --from thin:1 thin:2
                                              from a copy of a thin pool's metadata
  lvmsync diff --from era:7 vg/data           what was written since era 7, from the record of its era device
  lvmsync diff --era-metadata meta.img --from era:7 disk.img
                                              the same from a copy of dm-era's metadata";

/// List the extents that changed between two states of a volume
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct DiffArgs {
    /// The old state: a snapshot; or cow:STORE for an exception store in a file or device; or thin:ID;
    /// or era:N
    #[arg(long, value_name = "OLD")]
    from: String,

    /// The new state: a later snapshot of the same origin, or the origin; or thin:ID
    new: String,

    /// With cow:STORE, thin:ID or era:N, size of the volume at OLD, if it was extended since
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    base_size: Option<u64>,

    #[command(flatten)]
    thin: ThinArgs,

    /// One JSON object
    #[arg(long, conflicts_with = "map")]
    json: bool,

    /// Draw where on the volume the changes are
    #[arg(long)]
    map: bool,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

pub(super) fn run(args: &DiffArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let request = SourceRequest {
        from: Some(&args.from),
        new: Some(&args.new),
        data_source: None,
        base_size: args.base_size,
        thin_metadata: args.thin.metadata(),
        volume_size: args.thin.volume_size,
        snapshot: None,
        compression: Compression::None,
        state: args.state.directory(),
        caller: args.state.caller(),
        cancel,
        monitor: &terminal,
    };
    let source = SendSource::list(&request).map_err(|error| {
        error.to_recover(|| {
            let new = source_of_sync(&request);
            args.state.caller().command("sync", &[&new, "DEST"])
        })
    })?;
    let (changes, size) = (&source.changes, source.header.volume_size);
    let granularity = source.header.granularity;
    output::listing(|out| match (args.json, args.map) {
        (true, _) => write_json(out, changes, size, granularity),
        (_, true) => write_map(out, changes, size),
        _ => write_table(out, changes),
    })?;
    if !args.json {
        terminal.summary(&format!(
            "{}, {} data, {} zero, of {}; chunks of {}",
            count(changes.len() as u64, "extent"),
            Bytes(changes.bytes(Kind::Data)),
            Bytes(changes.bytes(Kind::Zero)),
            Bytes(size),
            Bytes(granularity)
        ));
    }
    Ok(ExitCode::Done)
}

fn write_table(out: &mut dyn Write, changes: &ChangeList) -> std::io::Result<()> {
    writeln!(out, "{:>20} {:>16}  KIND", "OFFSET", "LENGTH")?;
    for Change { extent, kind } in changes.iter() {
        writeln!(
            out,
            "{:>20} {:>16}  {}",
            extent.offset(),
            extent.length(),
            kind.word()
        )?;
    }
    Ok(())
}

const MAP_COLUMNS: u64 = 64;
const MAP_ROWS: u64 = 16;

/// One character for each 1/1024 of the volume: ` ` nothing, `.` some, `o` half, `#` all changed.
pub(super) fn write_map(
    out: &mut dyn Write,
    changes: &ChangeList,
    size: u64,
) -> std::io::Result<()> {
    let cell = size.div_ceil(MAP_COLUMNS * MAP_ROWS).max(1);
    let mut position = 0;
    while position < size {
        let row_start = position;
        let mut row = String::new();
        while position < size && (row.len() as u64) < MAP_COLUMNS {
            let end = (position + cell).min(size);
            row.push(mark(changes.bytes_between(position, end), end - position));
            position = end;
        }
        writeln!(out, "{:>10} |{row:<64}|", Bytes(row_start).to_string())?;
    }
    Ok(())
}

fn mark(changed: u64, of: u64) -> char {
    match changed {
        0 => ' ',
        _ if changed == of => '#',
        _ if changed >= of / 2 => 'o',
        _ => '.',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Extent;

    fn list(extents: &[(u64, u64)]) -> ChangeList {
        let change = |(o, l): &(u64, u64)| Change {
            extent: Extent::new(*o, *l).unwrap(),
            kind: Kind::Data,
        };
        extents.iter().map(change).collect()
    }

    #[test]
    fn the_map_shows_where() {
        let mut out = Vec::new();
        let cell = 1 << 20;
        let changes = list(&[(0, cell), (cell + 1, 5), (3 * cell + cell / 4, 2 * cell)]);
        write_map(&mut out, &changes, 1024 * cell).unwrap();
        let text = String::from_utf8(out).unwrap();
        let first = text.lines().next().unwrap();
        assert!(first.contains("|#. o#. "), "{first}");
        assert_eq!(text.lines().count(), 16);
    }
}
