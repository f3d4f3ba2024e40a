//! `cargo xtask bench`: is it as fast as it is meant to be? See docs/performance.md.
//!
//! Every figure is a median, and every bar is a ratio of two things measured in the same run on the same machine, or a
//! limit that does not depend on the machine.

mod exceptions;
mod lab_send;
mod local_send;
mod measure;
mod store;
mod thin_diff;
mod thin_send;

use crate::table::table;
use crate::{Done, build};
use clap::{Args, ValueEnum};
use lab::Error;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Which ones [default: all]
    #[arg(value_enum)]
    names: Vec<Bench>,
    /// How often each thing is measured
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// A tool to compare with: only `original=PATH` is known, the Ruby lvmsync
    #[arg(long, value_name = "NAME=PATH")]
    peer: Vec<String>,
    /// Where the files go [default: target/bench]
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Read a table of four million entries
    Exceptions,
    /// Send between files on this machine
    LocalSend,
    /// Send from a real snapshot in the lab
    LabSend,
    /// What differs between two thin snapshots
    ThinDiff,
    /// Send a thin volume of which little is mapped, in the lab
    ThinSend,
}

/// What all benchmarks are given.
struct Setting<'a> {
    lvmsync: PathBuf,
    runs: usize,
    /// For files; removed afterwards.
    scratch: PathBuf,
    original: Option<&'a str>,
}

/// One line of the result.
struct Figure {
    bench: &'static str,
    what: String,
    measured: String,
    /// What the bar is set on.
    value: f64,
    bar: Bar,
}

/// What a value is held against.
enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// For information.
    None,
}

impl Bar {
    fn met(&self, value: f64) -> Option<bool> {
        match *self {
            Bar::AtMost(limit) => Some(value <= limit),
            Bar::AtLeast(limit) => Some(value >= limit),
            Bar::None => None,
        }
    }

    fn words(&self) -> String {
        match *self {
            Bar::AtMost(limit) => format!("at most {limit}"),
            Bar::AtLeast(limit) => format!("at least {limit}"),
            Bar::None => "-".to_owned(),
        }
    }
}

pub(crate) fn bench(args: &BenchArgs) -> Done {
    if args.runs == 0 {
        return Err(Error::new("--runs 0 measures nothing"));
    }
    let directory = match &args.directory {
        Some(directory) => directory.clone(),
        None => build::target()?.join("bench"),
    };
    let scratch = Scratch::create(directory.join(format!("scratch.{}", std::process::id())))?;
    let setting = Setting {
        lvmsync: build::lvmsync("release")?,
        runs: args.runs,
        scratch: scratch.0.clone(),
        original: original(&args.peer)?,
    };
    let mut figures = Vec::new();
    for bench in Bench::value_variants() {
        if !args.names.is_empty() && !args.names.contains(bench) {
            continue;
        }
        match bench {
            Bench::Exceptions => figures.extend(exceptions::run(&setting)?),
            Bench::LocalSend => figures.extend(local_send::run(&setting)?),
            Bench::LabSend => figures.extend(lab_send::run(&setting)?),
            Bench::ThinDiff => figures.extend(thin_diff::run(&setting)?),
            Bench::ThinSend => figures.extend(thin_send::run(&setting)?),
        }
    }
    report(&figures, &directory.join("results.json"))
}

/// In the guest: makes scattered changes.
pub(crate) fn scatter(device: &Path, count: u64) -> Done {
    lab_send::scatter(device, count).map_err(failed(device))?;
    Ok(ExitCode::SUCCESS)
}

fn original(peers: &[String]) -> lab::Result<Option<&str>> {
    match peers {
        [] => Ok(None),
        [peer] => peer
            .strip_prefix("original=")
            .map(Some)
            .ok_or_else(|| Error::new(format!("--peer {peer}: say original=PATH"))),
        _ => Err(Error::new("--peer: only one is known")),
    }
}

fn report(figures: &[Figure], path: &Path) -> Done {
    let heading = ["bench", "what", "measured", "bar", "value", "met"]
        .map(str::to_owned)
        .to_vec();
    let mut rows = vec![heading];
    let mut lines = Vec::new();
    for figure in figures {
        let met = figure.bar.met(figure.value);
        let word = met.map_or("", |met| if met { "yes" } else { "NO" });
        rows.push(vec![
            figure.bench.to_owned(),
            figure.what.clone(),
            figure.measured.clone(),
            figure.bar.words(),
            format!("{:.2}", figure.value),
            word.to_owned(),
        ]);
        lines.push(json!({
            "bench": figure.bench, "what": figure.what, "measured": figure.measured,
            "value": figure.value, "bar": figure.bar.words(), "met": met,
        }));
    }
    print!("\n{}", table(&rows));
    fs::write(path, format!("{:#}\n", json!(lines)))
        .map_err(|e| Error::new(format!("{}: {e}", path.display())))?;
    println!("also in {}", path.display());
    let missed = figures
        .iter()
        .any(|figure| figure.bar.met(figure.value) == Some(false));
    Ok(if missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// A directory that goes when the benchmarks have ended, in whatever way.
struct Scratch(PathBuf);

impl Scratch {
    fn create(path: PathBuf) -> lab::Result<Self> {
        fs::create_dir_all(&path).map_err(|e| Error::new(format!("{}: {e}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What went wrong with a file.
fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |e| Error::new(format!("{}: {e}", path.display()))
}
