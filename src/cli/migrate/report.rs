//! What is told of a migration: the plan, what came of it, and how long the service stood still.

use serde::Serialize;

use super::MigrateArgs;
use super::cycle::Cycle;
use super::handover::MIGRATED_TAG;
use super::pause::Pause;
use crate::cli::output;
use crate::error::{ExitCode, Result};
use crate::job::rounds::Round;
use crate::units::Bytes;

/// What came of a run that moved nothing, for scripts.
#[derive(Debug, Default, Serialize)]
pub(super) struct Told {
    /// `planned`, `moved_earlier`, and with `--abort` `nothing`, `given_up` or `stays_moved`.
    pub(super) outcome: &'static str,
    pub(super) source: String,
    pub(super) destination: String,
    /// Line by line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) plan: Vec<String>,
}

impl Told {
    pub(super) fn of(outcome: &'static str, source: &str, destination: &str) -> Self {
        Self {
            outcome,
            source: source.to_owned(),
            destination: destination.to_owned(),
            plan: Vec::new(),
        }
    }

    pub(super) fn print(&self) -> Result<()> {
        output::json(self)
    }
}

/// What was done, for scripts. Times are seconds.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// `moved`.
    pub(super) outcome: &'static str,
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) volume_size: u64,
    pub(super) first_copy_bytes: u64,
    pub(super) first_copy_seconds: f64,
    /// Increments while the service ran.
    pub(super) rounds: Vec<RoundReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) predicted_pause_seconds: Option<f64>,
    pub(super) pause: PauseReport,
    pub(super) seconds: f64,
}

impl Report {
    /// One more round, which is given back.
    pub(super) fn add(&mut self, round: Round) -> Round {
        self.rounds.push(RoundReport {
            bytes: round.bytes,
            seconds: round.seconds,
        });
        round
    }
}

#[derive(Debug, Serialize)]
pub(super) struct RoundReport {
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

/// How long the service stood still, and what it waited for.
#[derive(Debug, Default, Serialize)]
pub(super) struct PauseReport {
    pub(super) seconds: f64,
    pub(super) stop_seconds: f64,
    pub(super) snapshot_seconds: f64,
    pub(super) send_seconds: f64,
    pub(super) bytes: u64,
    pub(super) protect_seconds: f64,
    pub(super) resume_seconds: f64,
}

impl PauseReport {
    pub(super) fn until_resume(&self) -> f64 {
        self.stop_seconds + self.snapshot_seconds + self.send_seconds + self.protect_seconds
    }
}

pub(super) fn plan(
    args: &MigrateArgs,
    cycle: &Cycle<'_>,
    pause: &Pause<'_>,
    found: Vec<String>,
) -> Vec<String> {
    let protect = if args.keep_writable {
        format!("stays writable (--keep-writable), and gets the tag {MIGRATED_TAG}")
    } else {
        format!(
            "{}is made read-only and gets the tag {MIGRATED_TAG}",
            cycle.loses()
        )
    };
    let mut lines = vec![cycle.plan()];
    lines.extend(found);
    lines.push(format!(
        "rounds until the pause is predicted to take at most {} s, at most {}",
        args.max_pause, args.max_rounds
    ));
    lines.push(format!("then {}", pause.plan()));
    lines.push(format!("{} {protect}", cycle.name()));
    lines
}

pub(super) fn print_plan(
    args: &MigrateArgs,
    cycle: &Cycle<'_>,
    plan: Vec<String>,
) -> Result<ExitCode> {
    if args.json {
        let told = Told::of("planned", &cycle.name().to_string(), &args.destination);
        Told { plan, ..told }.print()?;
        return Ok(ExitCode::Done);
    }
    output::listing(|out| {
        for (at, line) in plan.iter().enumerate() {
            let indent = if at == 0 { "" } else { "  " };
            writeln!(out, "{indent}{line}")?;
        }
        writeln!(out, "nothing was done")
    })?;
    Ok(ExitCode::Done)
}

/// The last line of a migration.
pub(super) fn sentence(report: &Report) -> String {
    let pause = &report.pause;
    let mut parts = vec![
        ("stopping", pause.stop_seconds),
        ("snapshot", pause.snapshot_seconds),
        ("last increment", pause.send_seconds),
        ("protecting the source", pause.protect_seconds),
        ("starting", pause.resume_seconds),
    ];
    parts.retain(|(_, seconds)| *seconds >= 0.001);
    let parts: Vec<String> = parts
        .iter()
        .map(|(what, seconds)| format!("{what} {seconds:.2} s"))
        .collect();
    format!(
        "{} is moved to {}: the pause was {:.2} s ({}; {} in the last increment), after {} of {}",
        report.source,
        report.destination,
        pause.seconds,
        parts.join(", "),
        Bytes(pause.bytes),
        match report.rounds.len() {
            1 => "1 round".to_owned(),
            rounds => format!("{rounds} rounds"),
        },
        Bytes(report.rounds.iter().map(|round| round.bytes).sum())
    )
}
