//! `cargo xtask`: the commands that a developer of lvmsync needs and cargo does not have.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a developer's tool talks to a person"
)]

mod bench;
mod build;
mod counts;
mod demo;
mod fuzz;
mod guests;
mod packages;
mod show;
mod table;
mod test;

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check everything: format, lints, documentation, all tests, fuzzers. Installs what it needs.
    Test(test::TestArgs),
    /// Build the program for release, in one file that runs on any Linux, and say where it is.
    Build,
    /// See the main job on a real kernel: first copy, changes over ssh, undo.
    Demo(demo::DemoArgs),
    /// Measure speed and memory against what they are meant to be.
    Bench(bench::BenchArgs),
    /// Run fuzzers, with plain stable Rust.
    Fuzz(fuzz::FuzzArgs),
    /// Run a script, or a shell, in a throwaway machine with real LVM.
    Lab {
        #[command(subcommand)]
        what: guests::Lab,
    },
    /// Part of `bench`, for the guest.
    #[command(hide = true)]
    BenchScatter { device: PathBuf, count: u64 },
    /// Part of `bench`: runs a command and notes what it takes.
    #[command(hide = true)]
    BenchRun {
        note: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        words: Vec<OsString>,
    },
    /// Part of `bench`: does one thing and nothing else.
    #[command(hide = true)]
    BenchPlain {
        #[command(subcommand)]
        what: bench::Plain,
    },
}

/// What a task says of itself: done, or not done although it has said why.
type Done = lab::Result<ExitCode>;

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Test(args) => test::test(&args),
        Task::Build => build::for_users().map(|program| {
            println!("{}", program.display());
            ExitCode::SUCCESS
        }),
        Task::Demo(args) => demo::demo(&args),
        Task::Bench(args) => bench::bench(&args),
        Task::BenchScatter { device, count } => bench::scatter(&device, count),
        Task::BenchRun { note, words } => bench::launch(&note, &words),
        Task::BenchPlain { what } => bench::plain(&what),
        Task::Fuzz(args) => fuzz::fuzz(&args),
        Task::Lab { what } => guests::lab(&what),
    };
    done.unwrap_or_else(|e| {
        eprintln!("cargo xtask: {e}");
        ExitCode::FAILURE
    })
}
