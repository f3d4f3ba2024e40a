//! How fast the changes between two thin snapshots are found, against `thin_delta`, and how that grows.
//!
//! The metadata is what a kernel would have: one tree, a snapshot of it, some blocks written afterwards, another
//! snapshot; nodes that did not change are shared. It comes from the builder of the product's own tests, and
//! `thin_delta` reads it, so both agree on what is in it: their answers are compared before anything is measured.

use super::measure::{median, timed};
use super::{Bar, Figure, Setting, failed};
use lab::Error;
use lvmsync::changes::thin::build::PoolBuilder;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Mappings of the volume that everybody measures.
const MAPPINGS: u64 = 650_000;
/// 64 KiB.
const BLOCK_SECTORS: u32 = 128;
/// What the kernel's nodes of this size hold.
const NODE_ENTRIES: usize = 252;

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (share, changed, bar) in [
        ("1 %", MAPPINGS / 100, Bar::AtLeast(20.0)),
        ("0.01 %", MAPPINGS / 10_000, Bar::AtLeast(100.0)),
    ] {
        println!("thin-diff: {MAPPINGS} mappings, {share} rewritten");
        let image = write_pool(setting, MAPPINGS, changed)?;
        check_same(setting, &image)?;
        let (ours, theirs) = in_turns(setting, &image)?;
        figures.push(Figure {
            bench: "thin-diff",
            what: format!("{share} of {MAPPINGS} rewritten: thin_delta / diff"),
            measured: format!(
                "{:.4} s / {:.4} s",
                theirs.as_secs_f64(),
                ours.as_secs_f64()
            ),
            value: Some(theirs.as_secs_f64() / ours.as_secs_f64()),
            bar,
            ..Figure::default()
        });
    }
    figures.extend(growth(setting)?);
    Ok(figures)
}

/// Ten times the volume with the same changes costs the same; ten times the changes cost ten times as much.
fn growth(setting: &Setting) -> lab::Result<Vec<Figure>> {
    let base = (MAPPINGS, 65);
    let mut figures = Vec::new();
    let first = alone(setting, base)?;
    for (what, case) in [
        ("10 times the volume, the same changes", (MAPPINGS * 10, 65)),
        ("10 times the changes", (MAPPINGS, 650)),
        ("100 times the changes", (MAPPINGS, 6_500)),
        ("1000 times the changes", (MAPPINGS, 65_000)),
    ] {
        println!("thin-diff: {what}");
        let time = alone(setting, case)?;
        figures.push(Figure {
            bench: "thin-diff",
            what: format!("{what} / {} mappings, {} changes", base.0, base.1),
            measured: format!("{:.4} s / {:.4} s", time.as_secs_f64(), first.as_secs_f64()),
            value: Some(time.as_secs_f64() / first.as_secs_f64()),
            bar: Bar::None,
            ..Figure::default()
        });
    }
    Ok(figures)
}

fn alone(setting: &Setting, (mappings, changed): (u64, u64)) -> lab::Result<Duration> {
    let image = write_pool(setting, mappings, changed)?;
    let mut times = Vec::new();
    for _ in 0..setting.runs {
        times.push(timed(&mut ours(setting, &image, "--map"))?);
    }
    Ok(median(&times))
}

fn in_turns(setting: &Setting, image: &Path) -> lab::Result<(Duration, Duration)> {
    let (mut ours_times, mut theirs_times) = (Vec::new(), Vec::new());
    for _ in 0..setting.runs {
        ours_times.push(timed(&mut ours(setting, image, "--json"))?);
        theirs_times.push(timed(&mut theirs(image))?);
    }
    Ok((median(&ours_times), median(&theirs_times)))
}

fn ours(setting: &Setting, image: &Path, how: &str) -> Command {
    let mut command = Command::new(&setting.lvmsync);
    command.args(["diff", "--quiet", how, "--thin-metadata"]);
    command.arg(image).args(["--from", "thin:2", "thin:3"]);
    command
}

fn theirs(image: &Path) -> Command {
    let mut command = Command::new("thin_delta");
    // In a metadata snapshot the tool asks for no space maps.
    command
        .args(["-m", "--snap1", "2", "--snap2", "3"])
        .arg(image);
    command
}

/// Both must say that as many blocks differ.
fn check_same(setting: &Setting, image: &Path) -> lab::Result<()> {
    let output = |mut command: Command| {
        let output = command.output();
        let output = output.map_err(|e| Error::new(format!("{command:?}: {e}")))?;
        Ok::<_, Error>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let json = output(ours(setting, image, "--json"))?;
    let found: serde_json::Value =
        serde_json::from_str(&json).map_err(|e| Error::new(format!("diff --json: {e}")))?;
    let extents = found["extents"].as_array().into_iter().flatten();
    let bytes: u64 = extents.filter_map(|e| e["length"].as_u64()).sum();
    let xml = output(theirs(image))?;
    let length = |line: &str| {
        line.split("length=\"")
            .nth(1)?
            .split('"')
            .next()?
            .parse::<u64>()
            .ok()
    };
    let blocks: u64 = xml
        .lines()
        .filter(|line| {
            ["<different", "<left_only", "<right_only"]
                .iter()
                .any(|w| line.trim_start().starts_with(w))
        })
        .filter_map(length)
        .sum();
    if blocks == 0 || bytes != blocks * u64::from(BLOCK_SECTORS) * 512 {
        return Err(Error::new(format!(
            "thin_delta says that {blocks} blocks differ, lvmsync says {bytes} bytes"
        )));
    }
    Ok(())
}

/// Volume 1 with so many mappings at random places, its snapshot 2, some blocks written again, its snapshot 3.
fn write_pool(setting: &Setting, mappings: u64, changed: u64) -> lab::Result<PathBuf> {
    let mut pool = PoolBuilder::new(BLOCK_SECTORS, NODE_ENTRIES);
    pool.create(1);
    // Every place of a range of twice that size and more comes once.
    let places = || super::store::shuffled((mappings * 2).ilog2() + 1);
    let limit = usize::try_from(mappings).unwrap_or(usize::MAX);
    for block in places().take(limit) {
        pool.write(1, block);
    }
    pool.snapshot(2, 1);
    let step = usize::try_from(mappings / changed).unwrap_or(1);
    for block in places().take(limit).step_by(step) {
        pool.write(1, block);
    }
    pool.snapshot(3, 1);
    pool.reserve();
    let path = setting.scratch.join("pool");
    std::fs::write(&path, pool.image()).map_err(failed(&path))?;
    Ok(path)
}
