//! How fast a table of four million exceptions becomes a change list, and in how much memory.
//!
//! Held against a loop that reads the same chunks of metadata and does nothing with them. Twice: with the store out of
//! the page cache, as a live one always is, because it is read past the cache; and in it, where the reading costs nothing
//! and what is left is our own work.

use super::measure::{forget, median, peak_memory, timed};
use super::store::{area_chunk, shuffled, write};
use super::{Bar, Figure, Setting, failed};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const CHUNK: u64 = 4096;
const ENTRIES: usize = 4_000_000;
const ORIGIN_BYTES: u64 = 64 << 30;

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    let origin = setting.scratch.join("origin");
    File::create(&origin)
        .and_then(|file| file.set_len(ORIGIN_BYTES))
        .map_err(failed(&origin))?;
    let mut figures = Vec::new();
    for order in ["random", "sequential"] {
        println!("exceptions: {ENTRIES} entries in {order} order");
        let chunks: Vec<u64> = match order {
            "random" => shuffled((ORIGIN_BYTES / CHUNK).ilog2())
                .take(ENTRIES)
                .collect(),
            _ => (0..).take(ENTRIES).collect(),
        };
        let store = setting.scratch.join("store");
        write(&store, CHUNK, &chunks).map_err(failed(&store))?;
        figures.extend(measure(setting, order, &origin, &store, extents(chunks))?);
    }
    Ok(figures)
}

fn measure(
    setting: &Setting,
    order: &str,
    origin: &Path,
    store: &Path,
    extents: u64,
) -> lab::Result<Vec<Figure>> {
    let diff = |how: &str| {
        let mut command = Command::new(&setting.lvmsync);
        command.args(["diff", "--quiet", how, "--from"]);
        command.arg(format!("cow:{}", store.display())).arg(origin);
        command
    };
    let mut figures = Vec::new();
    for (state, cold) in [("from disk", true), ("from cache", false)] {
        let (mut plain, mut map, mut json) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..setting.runs {
            for (times, command) in [
                (&mut plain, None),
                (&mut map, Some(diff("--map"))),
                (&mut json, Some(diff("--json"))),
            ] {
                if cold {
                    forget(store)?;
                }
                times.push(match command {
                    None => read_alone(store).map_err(failed(store))?,
                    Some(mut command) => timed(&mut command)?,
                });
            }
        }
        let (plain, map, json) = (median(&plain), median(&map), median(&json));
        let ratio = |time: Duration| time.as_secs_f64() / plain.as_secs_f64();
        let line = |what: &str, time: Duration, bar: Bar| Figure {
            bench: "exceptions",
            what: format!("{order}, {state}: {what} / reading alone"),
            measured: format!("{:.3} s / {:.3} s", time.as_secs_f64(), plain.as_secs_f64()),
            value: Some(ratio(time)),
            bar,
            ..Figure::default()
        };
        // `--map` prints a screen, `--json` the whole list: up to 200 MB of it.
        let bar = if cold { Bar::AtMost(2.0) } else { Bar::None };
        figures.push(line("diff --map", map, bar));
        figures.push(line("diff --json", json, bar));
    }
    let peak = peak_memory(&mut diff("--json"))?;
    let limit = (64 << 20) + 16 * extents;
    let mib = |bytes: u64| bytes / (1 << 20);
    figures.push(Figure {
        bench: "exceptions",
        what: format!("{order}: peak memory / (64 MiB + 16 B for each of {extents} extents)"),
        measured: format!("{} MiB / {} MiB", mib(peak), mib(limit)),
        #[expect(
            clippy::cast_precision_loss,
            reason = "a ratio of two figures far below 2^52"
        )]
        value: Some(peak as f64 / limit as f64),
        bar: Bar::AtMost(1.0),
        ..Figure::default()
    });
    Ok(figures)
}

/// Reads every chunk of metadata, and nothing else.
fn read_alone(store: &Path) -> std::io::Result<Duration> {
    let start = Instant::now();
    let file = File::open(store)?;
    let mut chunk = [0; 4096];
    for area in 0..(ENTRIES as u64).div_ceil(CHUNK / 16) {
        file.read_exact_at(&mut chunk, area_chunk(area, CHUNK) * CHUNK)?;
        std::hint::black_box(&chunk);
    }
    Ok(start.elapsed())
}

/// Runs of chunks.
fn extents(mut chunks: Vec<u64>) -> u64 {
    chunks.sort_unstable();
    let joints = chunks
        .windows(2)
        .filter(|pair| pair[1] > pair[0] + 1)
        .count();
    joints as u64 + u64::from(!chunks.is_empty())
}
