//! `cargo xtask test`: everything that a change must pass, one step after another, and one summary.
//!
//! Guarantees: every step is attempted, whatever happened to those before; the last line is `N passed, N failed`; the
//! exit status is 0 only if nothing failed.

use crate::Done;
use crate::build::{cargo, root};
use crate::counts::{Counts, counts};
use crate::show::show;
use crate::table::table;
use crate::{fuzz, packages};
use clap::{Args, ValueEnum};
use std::hash::{BuildHasher, RandomState};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

#[derive(Args)]
pub(crate) struct TestArgs {
    /// Full counts for the matrices, the random tests and the fuzzers: for a night or a release
    #[arg(long)]
    long: bool,
    /// This step only; may be given several times
    #[arg(long, value_enum)]
    only: Vec<Step>,
    /// Tests whose names contain this, and no other steps
    filter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Install what the others need
    Packages,
    /// cargo fmt --check
    Format,
    /// cargo clippy, warnings are errors
    #[value(alias = "lint")]
    Lints,
    /// cargo doc, warnings are errors
    Docs,
    /// Unit, property and command line tests
    Tests,
    /// The examples in the documentation
    Examples,
    /// Tests on a real kernel with real LVM
    Lab,
    /// Fuzzers, briefly
    Fuzz,
}

struct Line {
    step: Step,
    result: &'static str,
    counts: Counts,
    time: Duration,
}

pub(crate) fn test(args: &TestArgs) -> Done {
    let seed = seed();
    println!("Random seed: PROPTEST_RNG_SEED={seed} (set it to see the same random tests again)");
    let start = Instant::now();
    let lines: Vec<Line> = args
        .steps()
        .into_iter()
        .map(|step| attempt(step, args, seed))
        .collect();
    Ok(summary(&lines, start.elapsed(), seed))
}

impl TestArgs {
    fn steps(&self) -> Vec<Step> {
        let all = Step::value_variants().iter().copied();
        match (&self.only[..], &self.filter) {
            ([], None) => all.collect(),
            ([], Some(_)) => vec![Step::Tests, Step::Lab],
            (only, _) => all.filter(|step| only.contains(step)).collect(),
        }
    }
}

fn attempt(step: Step, args: &TestArgs, seed: u64) -> Line {
    println!("\n=== {}", step.name());
    let start = Instant::now();
    let outcome = match step {
        Step::Packages => {
            let both =
                packages::components().and_then(|()| packages::install(&[packages::FOR_FUZZERS]));
            both.map(|()| Outcome::check(true))
        }
        Step::Format => run(cargo().args(["fmt", "--all", "--check"])),
        Step::Lints => {
            let lints = [
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ];
            run(cargo().args(lints))
        }
        Step::Docs => {
            let docs = ["doc", "--workspace", "--no-deps", "--quiet"];
            run(cargo().args(docs).env("RUSTDOCFLAGS", "-D warnings"))
        }
        Step::Tests => {
            // Without them these tests say that they are skipped, which is no failure.
            let needs = [
                &packages::FOR_KILLS[..],
                &packages::FOR_THIN[..],
                &packages::FOR_VIEW[..],
            ]
            .concat();
            if let Err(error) = packages::install_these(&needs) {
                println!("{error}");
            }
            run(&mut runner(false, args, seed))
        }
        Step::Examples => {
            let examples = ["test", "--workspace", "--doc", "--no-fail-fast"];
            run(cargo().args(examples))
        }
        Step::Lab if std::env::var("LVMSYNC_LAB").is_ok_and(|mode| mode == "off") => {
            println!("LVMSYNC_LAB=off: not run");
            Ok(Outcome::Skipped)
        }
        Step::Lab => run(&mut runner(true, args, seed)),
        Step::Fuzz => fuzz::all(Duration::from_secs(if args.long { 300 } else { 8 }), seed)
            .map(Outcome::Counted),
    };
    let outcome = outcome.unwrap_or_else(|e| {
        println!("{e}");
        Outcome::check(false)
    });
    let (result, counts) = match outcome {
        Outcome::Skipped => ("skipped", Counts::default()),
        Outcome::Counted(counts) if counts.failed > 0 => ("FAILED", counts),
        Outcome::Counted(counts) => ("ok", counts),
    };
    Line {
        step,
        result,
        counts,
        time: start.elapsed(),
    }
}

enum Outcome {
    Counted(Counts),
    Skipped,
}

impl Outcome {
    /// A step that is one check.
    fn check(passed: bool) -> Self {
        Self::Counted(Counts {
            passed: u64::from(passed),
            failed: u64::from(!passed),
        })
    }
}

/// Runs a step's command. What has no tests in it counts as one; so does a failure that no test owns up to.
fn run(command: &mut Command) -> lab::Result<Outcome> {
    let shown = show(command)?;
    let found = counts(&shown.output);
    let silent_failure = !shown.success && found.failed == 0;
    if silent_failure || found == Counts::default() {
        let mut sum = found;
        sum.add(Counts {
            passed: u64::from(shown.success && !tests_nothing(command)),
            failed: u64::from(!shown.success),
        });
        return Ok(Outcome::Counted(sum));
    }
    Ok(Outcome::Counted(found))
}

/// A test runner whose filter fits no test has passed nothing.
fn tests_nothing(command: &Command) -> bool {
    command
        .get_args()
        .any(|arg| arg == "test" || arg == "nextest")
}

/// The test runner for lab tests, or for all others. nextest where it is installed, since it runs test binaries side by
/// side; plain cargo does the same work.
fn runner(lab: bool, args: &TestArgs, seed: u64) -> Command {
    let mut command = cargo();
    if packages::on_path("cargo-nextest") {
        command.args([
            "nextest",
            "run",
            "--workspace",
            "--no-fail-fast",
            "--no-tests",
            "pass",
        ]);
        let lab_targets = "(kind(test) & binary(/^lab_/))";
        command.args([
            "-E",
            &if lab {
                lab_targets.to_owned()
            } else {
                format!("not {lab_targets}")
            },
        ]);
    } else {
        command.args(["test", "--workspace", "--no-fail-fast"]);
        if !lab {
            command.args(["--lib", "--bins"]);
        }
        for name in integration_tests()
            .iter()
            .filter(|name| name.starts_with("lab_") == lab)
        {
            command.args(["--test", name]);
        }
    }
    command.args(&args.filter);
    command.env("PROPTEST_RNG_SEED", seed.to_string());
    if args.long {
        command.env("LVMSYNC_LONG", "1");
        if std::env::var_os("PROPTEST_CASES").is_none() {
            command.env("PROPTEST_CASES", "1024");
        }
    }
    command
}

/// The targets below `tests/`.
fn integration_tests() -> Vec<String> {
    let entries = std::fs::read_dir(root().join("tests"))
        .into_iter()
        .flatten()
        .flatten();
    let target = |path: std::path::PathBuf| {
        let is_target =
            path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").is_file();
        is_target
            .then(|| path.file_stem()?.to_str().map(str::to_owned))
            .flatten()
    };
    let mut names: Vec<String> = entries.filter_map(|entry| target(entry.path())).collect();
    names.sort();
    names
}

fn summary(lines: &[Line], time: Duration, seed: u64) -> ExitCode {
    let heading = ["step", "result", "passed", "failed", "time"]
        .map(str::to_owned)
        .to_vec();
    let mut rows = vec![heading];
    let mut sum = Counts::default();
    for line in lines {
        sum.add(line.counts);
        rows.push(vec![
            line.step.name(),
            line.result.to_owned(),
            line.counts.passed.to_string(),
            line.counts.failed.to_string(),
            seconds(line.time),
        ]);
    }
    println!("\n=== summary (seed {seed}, {})", seconds(time));
    print!("{}", table(&rows));
    println!("{} passed, {} failed", sum.passed, sum.failed);
    if sum.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Step {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// The seed that was asked for, or one that nobody knows.
fn seed() -> u64 {
    let asked = std::env::var("PROPTEST_RNG_SEED").ok();
    let asked = asked.and_then(|seed| seed.parse().ok());
    // Half of the bits are as good as random, and easier to copy.
    asked.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()) & u64::from(u32::MAX))
}
