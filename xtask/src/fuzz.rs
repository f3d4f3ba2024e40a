//! `cargo xtask fuzz`: the fuzz targets, built by plain stable Rust.
//!
//! `fuzz/` is laid out for cargo-fuzz, which wants a nightly compiler. All that it adds is flags, and those that matter
//! are stable: coverage counters and traced comparisons from LLVM, debug assertions, overflow checks. Address sanitizing
//! is left out; there is no unsafe code in what is fuzzed.

use crate::Done;
use crate::build::root;
use crate::counts::Counts;
use crate::table::table;
use clap::Args;
use lab::Error;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// The target, as the files in fuzz/fuzz_targets are called [default: all]
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    time: u64,
    /// Start of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Build scripts and procedural macros run without all this, because the platform is named.
fn platform() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

const FLAGS: &str = "--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

pub(crate) fn fuzz(args: &FuzzArgs) -> Done {
    let all = targets()?;
    let chosen = match &args.target {
        None => all,
        Some(name) if all.contains(name) => vec![name.clone()],
        Some(name) => {
            return Err(Error::new(format!(
                "no fuzz target {name}: there are {}",
                all.join(", ")
            )));
        }
    };
    let counts = run(&chosen, Duration::from_secs(args.time), args.seed)?;
    Ok(if counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds and runs all targets, each for `time`.
pub(crate) fn all(time: Duration, seed: u64) -> lab::Result<Counts> {
    run(&targets()?, time, seed)
}

fn run(targets: &[String], time: Duration, seed: u64) -> lab::Result<Counts> {
    build()?;
    let side_by_side = std::thread::available_parallelism().map_or(1, usize::from);
    let mut rows = vec![
        ["target", "executions", "result"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut counts = Counts::default();
    for group in targets.chunks(side_by_side) {
        let started: Vec<Fuzzer> = group
            .iter()
            .map(|name| Fuzzer::start(name, time, seed))
            .collect::<Result<_, _>>()?;
        for mut fuzzer in started {
            let (executions, result) = fuzzer.finish()?;
            counts.add(Counts {
                passed: u64::from(result.is_ok()),
                failed: u64::from(result.is_err()),
            });
            let word = if result.is_ok() { "ok" } else { "FAILED" };
            rows.push(vec![
                fuzzer.name.clone(),
                executions.to_string(),
                word.to_owned(),
            ]);
            if let Err(tail) = result {
                println!("--- {}\n{tail}", fuzzer.name);
            }
        }
    }
    print!("{}", table(&rows));
    Ok(counts)
}

/// The names of the files in `fuzz/fuzz_targets`.
fn targets() -> lab::Result<Vec<String>> {
    let directory = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&directory)
        .map_err(|e| Error::new(format!("{}: {e}", directory.display())))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.path().file_stem()?.to_str().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

fn build() -> lab::Result<()> {
    let status = Command::new(env!("CARGO"))
        .current_dir(root().join("fuzz"))
        .args([
            "build",
            "--quiet",
            "--release",
            "--bins",
            "--target",
            &platform(),
        ])
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .map_err(|e| Error::new(format!("cannot run cargo: {e}")))?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::new("the fuzz targets do not build"))
    }
}

/// One target that runs.
struct Fuzzer {
    name: String,
    child: Child,
    log: PathBuf,
    artifacts: PathBuf,
}

impl Fuzzer {
    fn start(name: &str, time: Duration, seed: u64) -> lab::Result<Self> {
        let fuzz = root().join("fuzz");
        let failed = |e: std::io::Error| Error::new(format!("fuzz target {name}: {e}"));
        let corpus = fuzz.join("corpus").join(name);
        let artifacts = fuzz.join("artifacts").join(name);
        fs::create_dir_all(&corpus).map_err(failed)?;
        fs::create_dir_all(&artifacts).map_err(failed)?;
        let log = artifacts.join("log");
        let output = File::create(&log).map_err(failed)?;
        let child = Command::new(
            fuzz.join("target")
                .join(platform())
                .join("release")
                .join(name),
        )
        .arg(&corpus)
        .args(Some(fuzz.join("seeds").join(name)).filter(|seeds| seeds.is_dir()))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!(
            "-seed={}",
            u32::try_from(seed & 0x7fff_ffff).unwrap_or(1).max(1)
        ))
        // A length that is believed before it is checked shows as memory; a loop without end as time.
        .args([
            "-rss_limit_mb=512",
            "-timeout=10",
            "-max_len=65536",
            "-print_final_stats=1",
        ])
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(failed)?)
        .stderr(output)
        .spawn()
        .map_err(failed)?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
            artifacts,
        })
    }

    /// Executions, and the end of the log if it found something.
    fn finish(&mut self) -> lab::Result<(u64, Result<(), String>)> {
        let status = self
            .child
            .wait()
            .map_err(|e| Error::new(format!("fuzz target {}: {e}", self.name)))?;
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let executions = executions(&text);
        if status.success() && executions > 0 {
            return Ok((executions, Ok(())));
        }
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        let again = format!(
            "{tail}\nThe input is in {}; run it again by giving it to the program.",
            self.artifacts.display()
        );
        Ok((executions, Err(again)))
    }
}

fn executions(log: &str) -> u64 {
    let line = log
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
}
