//! How fast the blocks written since an era are listed, against `era_invalidate`, and against reading the metadata alone.
//!
//! 16 million blocks, of which one in a hundred was written since: half of those eras have been digested into the era array
//! by the kernel, the last one is still a writeset of its own. The metadata comes from the builder of the product's own tests;
//! both tools must agree on how much was written before anything is measured.

use super::measure::{forget, median, this_program, timed};
use super::{Bar, Figure, Setting, failed};
use crate::packages;
use lab::Error;
use lvmsync::changes::era::build::EraBuilder;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const BLOCKS: u32 = 16_000_000;
const BLOCK_SECTORS: u32 = 128;
/// What the kernel's nodes of this size hold.
const NODE_ENTRIES: usize = 252;
/// `--from` lists what was written since the era before.
const FROM: u32 = 3;

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    println!("era-list: 1 % of {BLOCKS} blocks");
    packages::install_these(&packages::FOR_THIN)?;
    let path = |name: &str| setting.scratch.join(name);
    let (metadata, volume, list) = (path("era"), path("volume"), path("list"));
    write_metadata(&metadata)?;
    let bytes = u64::from(BLOCKS) * u64::from(BLOCK_SECTORS) * 512;
    File::create(&volume)
        .and_then(|file| file.set_len(bytes))
        .map_err(failed(&volume))?;
    let ours = |how: &str| {
        let mut command = Command::new(&setting.lvmsync);
        command.args(["diff", "--quiet", how, "--era-metadata"]);
        command
            .arg(&metadata)
            .args(["--from", &format!("era:{FROM}")]);
        command.arg(&volume);
        command
    };
    let theirs = || {
        let mut command = Command::new("era_invalidate");
        command.args(["--written-since", &(FROM - 1).to_string(), "-o"]);
        command.arg(&list).arg(&metadata);
        command
    };
    check_same(ours("--json"), theirs(), &list)?;
    let reading = this_program()?;
    let alone = || {
        let mut command = Command::new(&reading);
        command.args(["bench-plain", "read"]).arg(&metadata);
        command
    };
    let mut figures = Vec::new();
    // Out of the page cache, as a live record always is, because it is read past the cache; and in it.
    for (state, cold) in [("from disk", true), ("from cache", false)] {
        let all = [ours("--json"), ours("--map"), theirs(), alone()];
        let mut commands = all.map(|command| (command, Vec::new()));
        for _ in 0..setting.runs {
            for (command, times) in &mut commands {
                if cold {
                    forget(&metadata)?;
                }
                times.push(timed(command)?);
            }
        }
        let [json, map, theirs, alone] = commands.map(|(_, times)| median(&times));
        let line = |what: &str, (over, under): (Duration, Duration), bar| Figure {
            bench: "era-list",
            what: format!("1 % of {BLOCKS} blocks, {state}: {what}"),
            measured: format!("{:.3} s / {:.3} s", over.as_secs_f64(), under.as_secs_f64()),
            value: Some(over.as_secs_f64() / under.as_secs_f64()),
            bar,
            ..Figure::default()
        };
        let most = if cold { Bar::AtMost(2.0) } else { Bar::None };
        figures.extend([
            line(
                "era_invalidate / diff --json",
                (theirs, json),
                Bar::AtLeast(20.0),
            ),
            line("diff --map / reading alone", (map, alone), most),
            line("diff --json / reading alone", (json, alone), Bar::None),
        ]);
    }
    Ok(figures)
}

fn write_metadata(path: &Path) -> lab::Result<()> {
    let mut device = EraBuilder::new(BLOCK_SECTORS, BLOCKS, NODE_ENTRIES);
    // Eras 1 and 2 are in the array, 3 is not.
    for (era, share) in [(1, 100), (2, 200), (3, 200)] {
        let step = usize::try_from(share).unwrap_or(1);
        for block in (era..BLOCKS).step_by(step) {
            // Neighbours of each other are rare.
            device.write(block.wrapping_mul(7919) % BLOCKS);
        }
        if era < 3 {
            device.checkpoint();
            device.digest();
        }
    }
    device.suspend();
    std::fs::write(path, device.image()).map_err(failed(path))
}

/// Both must say that as many blocks were written.
fn check_same(mut ours: Command, mut theirs: Command, list: &PathBuf) -> lab::Result<()> {
    let shown = |command: &Command| format!("{command:?}");
    let output = ours.output();
    let output = output.map_err(|e| Error::new(format!("{}: {e}", shown(&ours))))?;
    let found: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::new(format!("{}: {e}", shown(&ours))))?;
    let extents = found["extents"].as_array().into_iter().flatten();
    let bytes: u64 = extents.filter_map(|e| e["length"].as_u64()).sum();
    let ended = theirs.stdout(Stdio::null()).status();
    if !ended.is_ok_and(|status| status.success()) {
        return Err(Error::new(format!("{} failed", shown(&theirs))));
    }
    let text = std::fs::read_to_string(list).map_err(failed(list))?;
    let blocks: u64 = text.lines().filter_map(blocks_in).sum();
    if blocks == 0 || bytes != blocks * u64::from(BLOCK_SECTORS) * 512 {
        return Err(Error::new(format!(
            "era_invalidate says that {blocks} blocks were written, lvmsync says {bytes} bytes"
        )));
    }
    Ok(())
}

/// `<range begin="a" end="b"/>` or `<block block="a"/>`, whatever spaces are around `=`.
fn blocks_in(line: &str) -> Option<u64> {
    let mut numbers = line.split('"').skip(1).step_by(2);
    let mut number = || numbers.next()?.parse::<u64>().ok();
    let first = number();
    match line.trim_start() {
        line if line.starts_with("<range") => number()?.checked_sub(first?),
        line if line.starts_with("<block ") => first.map(|_| 1),
        _ => None,
    }
}
