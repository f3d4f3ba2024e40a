//! `cargo xtask bench`: is it as fast as it is meant to be? See docs/performance.md.
//!
//! Every figure is a median, and every bar is a ratio of two things measured in the same run on the same machine, or a
//! limit that does not depend on the machine.

mod compare;
mod era_list;
mod era_writes;
mod exceptions;
mod first_copy;
mod growth;
mod hardware;
mod history;
mod inputs;
mod lab_send;
mod launcher;
mod local_send;
mod loops;
mod measure;
mod peers;
mod plain;
mod report;
mod send_runs;
mod sshd;
mod store;
mod svg;
mod sync_ssh;
mod thin_diff;
mod thin_send;
mod turns;

use crate::{Done, build};
use clap::{Args, ValueEnum};
use lab::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(crate) use launcher::run as launch;
pub(crate) use plain::{Plain, run as plain};

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Which ones [default: all]
    #[arg(value_enum)]
    names: Vec<Bench>,
    /// How often each thing is measured
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How large the volumes are of hardware, compare, sync-ssh, first-copy, send-runs, history; growth goes up to 32 times that
    #[arg(long, default_value = "2G", value_parser = lvmsync::units::parse_size)]
    size: u64,
    /// A tool that Debian has not, to compare with: original (the Ruby lvmsync), bdsync, blocksync-fast, thin_send
    #[arg(long, value_name = "NAME=PATH")]
    peer: Vec<String>,
    /// Where the files go [default: target/bench]
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// What this machine gives: reads, writes, hashing, ssh
    Hardware,
    /// Compare volumes that are equal, here
    Compare,
    /// Make a copy elsewhere equal, of which 1 % is not
    SyncSsh,
    /// Make a first copy of a half-empty volume
    FirstCopy,
    /// Send long runs to a volume and into a file
    SendRuns,
    /// Compare files of 1 to 64 GiB
    Growth,
    /// Read a table of four million entries
    Exceptions,
    /// Send between files on this machine
    LocalSend,
    /// Send from a real snapshot in the lab
    LabSend,
    /// Make one delta of ten, and look into the state behind them
    History,
    /// What differs between two thin snapshots
    ThinDiff,
    /// Send a thin volume of which little is mapped, in the lab
    ThinSend,
    /// What was written since an era
    EraList,
    /// What writes cost under snapshots and dm-era, in the lab
    EraWrites,
}

impl Bench {
    /// Says how near we are to the hardware, which is therefore measured in the same run.
    fn has_limits(self) -> bool {
        matches!(
            self,
            Self::Compare | Self::SyncSsh | Self::FirstCopy | Self::SendRuns | Self::Growth
        )
    }
}

/// What all benchmarks are given.
#[derive(Default)]
struct Setting {
    lvmsync: PathBuf,
    runs: usize,
    /// Of a volume, in bytes.
    size: u64,
    /// For files; removed afterwards.
    scratch: PathBuf,
    peers: peers::Peers,
}

/// One line of the result.
#[derive(Default)]
struct Figure {
    bench: &'static str,
    what: String,
    measured: String,
    /// What one command took; a line may be about two.
    usage: Option<measure::Sample>,
    /// That command is lvmsync.
    ours: bool,
    /// A ratio, what the bar is set on.
    value: Option<f64>,
    bar: Bar,
}

impl Figure {
    fn met(&self) -> Option<bool> {
        self.bar.met(self.value?)
    }
}

/// What a value is held against.
#[derive(Clone, Copy, Default)]
enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// For information.
    #[default]
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
    if args.size < SIZE_MIN || !args.size.is_multiple_of(SIZE_MIN) {
        return Err(Error::new("--size: a multiple of 32 MiB"));
    }
    let directory = match &args.directory {
        Some(directory) => directory.clone(),
        None => build::target()?.join("bench"),
    };
    // It becomes a word of remote shells' command lines.
    if !directory.to_str().is_some_and(plain_word) {
        return Err(Error::new(format!(
            "{}: name a --directory of letters, digits and -_./ alone",
            directory.display()
        )));
    }
    let scratch = Scratch::create(directory.join(format!("scratch.{}", std::process::id())))?;
    let setting = Setting {
        lvmsync: build::for_users()?,
        runs: args.runs,
        size: args.size,
        scratch: scratch.0.clone(),
        peers: peers::Peers::parse(&args.peer)?,
    };
    let wanted = |bench: Bench| args.names.is_empty() || args.names.contains(&bench);
    let limits = |bench: &Bench| wanted(*bench) && bench.has_limits();
    let with_limits = Bench::value_variants().iter().any(limits);
    if with_limits {
        peers::install();
    }
    let (mut figures, mut series) = (Vec::new(), Vec::new());
    for bench in Bench::value_variants().iter().copied() {
        let needed = bench == Bench::Hardware && with_limits;
        if !(wanted(bench) || needed) {
            continue;
        }
        figures.extend(match bench {
            Bench::Hardware => hardware::run(&setting)?,
            Bench::Compare => compare::run(&setting)?,
            Bench::SyncSsh => sync_ssh::run(&setting)?,
            Bench::FirstCopy => first_copy::run(&setting)?,
            Bench::SendRuns => send_runs::run(&setting)?,
            Bench::Growth => {
                let (figures, grown) = growth::run(&setting)?;
                series.push(grown);
                figures
            }
            Bench::Exceptions => exceptions::run(&setting)?,
            Bench::LocalSend => local_send::run(&setting)?,
            Bench::LabSend => lab_send::run(&setting)?,
            Bench::History => history::run(&setting)?,
            Bench::ThinDiff => thin_diff::run(&setting)?,
            Bench::ThinSend => thin_send::run(&setting)?,
            Bench::EraList => era_list::run(&setting)?,
            Bench::EraWrites => era_writes::run(&setting)?,
        });
    }
    figures.extend(report::memory(&figures));
    report::report(&figures, &series, &directory)
}

/// A half-empty volume is so much data and as much of a hole.
const SIZE_MIN: u64 = 32 << 20;

fn plain_word(path: &str) -> bool {
    path.chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
}

/// In the guest: makes scattered changes.
pub(crate) fn scatter(device: &Path, count: u64) -> Done {
    lab_send::scatter(device, count).map_err(failed(device))?;
    Ok(ExitCode::SUCCESS)
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
