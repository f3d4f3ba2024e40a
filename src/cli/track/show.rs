//! `lvmsync track status`: what is tracked, for people and scripts.
//!
//! Guarantees: changes nothing, no era ends; a suspended device is said to be so, and asked for nothing.

use serde::Serialize;

use super::super::output;
use crate::dm::device::DeviceMapper;
use crate::dm::era::{era_device_on, status_of};
use crate::error::{ExitCode, Result};
use crate::record::keeper::shown_time;
use crate::record::store::StateDir;
use crate::source::last_checkpoint;
use crate::track::look;
use crate::units::Bytes;

/// A copy was begun that would hold what the volume was when this era began.
#[derive(Debug, Serialize)]
struct Checkpoint {
    era: u32,
    /// Seconds since 1970.
    at: i64,
}

/// One volume.
#[derive(Debug, Default, Serialize)]
struct Row {
    volume: String,
    /// What to open.
    device: Option<String>,
    /// `up`, `down`, `suspended`, `void` or `untracked`.
    state: &'static str,
    /// The era that goes on; null unless it is up.
    era: Option<u32>,
    /// The last era that was begun for a copy, as far as this state directory knows; whether that arrived its target knows.
    checkpoint: Option<Checkpoint>,
    block_bytes: Option<u64>,
    metadata: Option<String>,
    /// What the record costs on the disk.
    metadata_bytes: Option<u64>,
    metadata_used_bytes: Option<u64>,
    /// A metadata snapshot is held.
    held: Option<bool>,
    /// Discards of several blocks get through, and are recorded for the first of them alone.
    discards: Option<bool>,
    /// The volume is longer than the era device.
    untracked_tail_bytes: u64,
}

pub(super) fn run(volume: Option<&str>, state: &StateDir, json: bool) -> Result<ExitCode> {
    let dm = DeviceMapper::open()?;
    let names = match volume {
        Some(name) => vec![name.to_owned()],
        None => look::all_tracked()?
            .iter()
            .map(|name| format!("/dev/{name}"))
            .collect(),
    };
    let rows: Vec<Row> = names
        .iter()
        .map(|name| row(&dm, state, name))
        .collect::<Result<_>>()?;
    if json {
        output::json(&rows)?;
    } else {
        output::listing(|out| {
            if rows.is_empty() {
                return writeln!(out, "no volume is tracked");
            }
            rows.iter().try_for_each(|row| write_row(out, row))
        })?;
    }
    Ok(ExitCode::Done)
}

fn row(dm: &DeviceMapper, state_dir: &StateDir, name: &str) -> Result<Row> {
    let volume = look::volume(dm, name)?;
    if let Some(found) = look::suspended_device_on(dm, &volume)? {
        return Ok(Row {
            volume: volume.name.to_string(),
            device: Some(format!("/dev/mapper/{}", found.name)),
            state: "suspended",
            block_bytes: Some(found.block_bytes),
            ..Row::default()
        });
    }
    let seen = look::look(dm, &volume)?;
    let found = era_device_on(dm, volume.device)?;
    let is_void = seen.metadata.as_ref().is_some_and(|found| found.is_void);
    let state = match (&seen.device, &seen.metadata) {
        (Some(device), _) if device.has_table && !device.is_elsewhere && !is_void => "up",
        (None, None) => "untracked",
        (Some(device), None) if device.is_elsewhere => "untracked",
        _ if is_void => "void",
        _ => "down",
    };
    let status = match (&found, state) {
        (Some(found), "up") => Some(status_of(dm, found.device, &volume.name.to_string())?),
        _ => None,
    };
    let record = seen.metadata.as_ref().map(|found| &*found.uuid);
    let checkpoint = record.and_then(|record| last_checkpoint(state_dir, record).ok()?);
    let is_of_now = |(era, _): &(u32, i64)| status.is_none_or(|status| *era <= status.era);
    let checkpoint = checkpoint.filter(is_of_now);
    let checkpoint = checkpoint.map(|(era, at)| Checkpoint { era, at });
    let tracked_bytes = found
        .as_ref()
        .map(|found| found.sectors.saturating_mul(512));
    Ok(Row {
        volume: volume.name.to_string(),
        device: found
            .as_ref()
            .map(|found| format!("/dev/mapper/{}", found.name)),
        state,
        era: status.map(|status| status.era),
        checkpoint,
        block_bytes: found.as_ref().map(|found| found.block_bytes),
        metadata: seen.metadata.as_ref().map(|found| found.name.to_string()),
        metadata_bytes: seen.metadata.as_ref().map(|found| found.size_bytes),
        metadata_used_bytes: status.map(|status| status.used_blocks.saturating_mul(4096)),
        held: status.map(|status| status.held_root.is_some()),
        discards: found.and_then(|found| look::lets_discards_through(found.device)),
        untracked_tail_bytes: tracked_bytes
            .map_or(0, |tracked| volume.size_bytes.saturating_sub(tracked)),
    })
}

fn write_row(out: &mut dyn std::io::Write, row: &Row) -> std::io::Result<()> {
    writeln!(out, "{}: {}", row.volume, row.state)?;
    let mut line = |name: &str, text: Option<String>| match text {
        Some(text) => writeln!(out, "  {name:<10} {text}"),
        None => Ok(()),
    };
    line("open", row.device.clone())?;
    line("era", row.era.map(|era| era.to_string()))?;
    let checkpoint = row.checkpoint.as_ref();
    line(
        "last begun",
        checkpoint.map(|last| format!("a copy as of era {}, {}", last.era, shown_time(last.at))),
    )?;
    line(
        "block",
        row.block_bytes.map(|bytes| Bytes(bytes).to_string()),
    )?;
    let used = row
        .metadata_used_bytes
        .map_or_else(String::new, |used| format!(", {} used", Bytes(used)));
    let record = row.metadata.as_ref().zip(row.metadata_bytes);
    line(
        "record",
        record.map(|(name, bytes)| format!("{name}, {}{used}", Bytes(bytes))),
    )?;
    let held = (row.held == Some(true)).then(|| "a metadata snapshot is held".to_owned());
    line("held", held)?;
    let discards = (row.discards == Some(true))
        .then(|| "get through, and are not all recorded; `lvmsync track up` stops them".to_owned());
    line("discards", discards)?;
    let tail = Some(row.untracked_tail_bytes).filter(|bytes| *bytes > 0);
    line(
        "NOT tracked",
        tail.map(|bytes| {
            format!(
                "the last {} of the volume; lvmsync track resize {}",
                Bytes(bytes),
                row.volume
            )
        }),
    )
}
