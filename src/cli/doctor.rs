//! `lvmsync doctor`: what this machine can do, what is missing, what is stale, and what mends it.
//!
//! Guarantees: nothing is changed; a far end that cannot be used is a finding, not an error of the run.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;

use super::apply::StateArgs;
use super::remote::start_heard_by;
use super::send::RemoteArgs;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::doctor::facts::{Facts, Far, FarEnd, FarFailure};
use crate::doctor::{Check, Report, Status, gather};
use crate::error::{Error, ExitCode, Result};
use crate::session::line::Line;
use crate::units::count;

const AFTER_HELP: &str = "\
Examples:
  lvmsync doctor                     this machine
  lvmsync doctor backup              and whether lvmsync can be used at another one
  lvmsync doctor root@backup --json  for scripts

Nothing is changed, here or there. Without root less can be looked at; what was not is said.

Exit code 0: no problem, perhaps warnings; 1: a problem.";

/// Tell what this machine can do, what is missing and what is stale, with the commands that mend it
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
#[command(mut_arg("compat", |arg| arg.hide(true)), mut_arg("retries", |arg| arg.hide(true)))]
pub(super) struct DoctorArgs {
    /// Look at this machine, too, and reach it as `send` does
    #[arg(value_name = "[USER@]HOST")]
    host: Option<String>,

    #[command(flatten)]
    remote: RemoteArgs,

    /// One JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

pub(super) fn run(args: &DoctorArgs, cancel: &Cancel) -> Result<ExitCode> {
    if args.remote.compat {
        return Err(Error::Usage(
            "the original lvmsync answers nothing that could be looked at: leave --compat out"
                .to_owned(),
        ));
    }
    let terminal = args.talk.terminal();
    let mut facts = Facts {
        machine: gather::machine(),
        ..Facts::default()
    };
    cancel.check()?;
    facts.volumes = gather::volumes();
    cancel.check()?;
    facts.records = gather::records(&args.state.directory(), args.state.state_dir.is_some());
    cancel.check()?;
    if let Some(host) = &args.host {
        facts.far = Some(far(&args.remote, host, cancel)?);
    }
    let report = Report::of(&facts);
    if args.json {
        output::json(&report)?;
    } else {
        let least = if args.talk.quiet {
            Status::Warning
        } else {
            Status::Ok
        };
        output::listing(|out| write_table(out, &report, least))?;
        terminal.summary(&in_short(&report));
    }
    Ok(if report.healthy {
        ExitCode::Done
    } else {
        ExitCode::Failed
    })
}

/// Greets the far end and leaves again. Only what is wrong with the command line itself is an error.
fn far(remote: &RemoteArgs, host: &str, cancel: &Cancel) -> Result<Far> {
    let words: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = Arc::clone(&words);
    let take = |words: &Mutex<Vec<String>>| {
        std::mem::take(&mut *words.lock().unwrap_or_else(PoisonError::into_inner))
    };
    let on_line = Box::new(move |line: &str| {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() < MOST_WORDS {
            heard.push(line.to_owned());
        }
    });
    let begun = Instant::now();
    let outcome = start_heard_by(remote, on_line, host, &["serve"]).and_then(|mut end| {
        let line = Line::new(cancel.clone(), remote.timeout.get());
        let client = end.connect(&line, &[], Arc::new(()))?;
        let agreed = client.agreed().clone();
        let took = begun.elapsed();
        // Its words come by another way than its greeting, and may be behind it.
        std::thread::sleep(WORDS_GRACE);
        // What it says of our leaving is not worth telling.
        let said = take(&words);
        client.leave("it was only looked whether it is there");
        end.close();
        Ok((agreed, took, said))
    });
    cancel.check()?;
    let (outcome, words) = match outcome {
        Ok((agreed, took, said)) => {
            let end = FarEnd {
                hello: agreed.peer,
                protocol: agreed.protocol,
                took,
            };
            (Ok(end), said)
        }
        Err(error @ Error::Usage(_)) => return Err(error),
        Err(error) => (Err(failure(error)), take(&words)),
    };
    Ok(Far {
        host: host.to_owned(),
        shell: remote.rsh.clone(),
        outcome,
        words,
    })
}

/// Lines of the far end's stderr that are kept.
const MOST_WORDS: usize = 100;
const WORDS_GRACE: Duration = Duration::from_millis(100);

fn failure(error: Error) -> FarFailure {
    let reason = match error {
        Error::Remote { reason, .. } | Error::Lost { reason, .. } => reason,
        Error::RemoteFailed { message, .. } => message,
        error => error.chain(),
    };
    FarFailure {
        // As `SessionError::NotASession` and what is added to other diagnoses say it.
        noise: reason.contains("does not speak this protocol; it began with"),
        reason,
    }
}

fn write_table(out: &mut dyn Write, report: &Report, least: Status) -> io::Result<()> {
    let shown = || report.checks.iter().filter(|check| check.status >= least);
    let width = shown().map(|check| check.thing().len()).max().unwrap_or(0);
    let mut group = "";
    for check in shown() {
        if check.group() != group {
            let gap = if group.is_empty() { "" } else { "\n" };
            group = check.group();
            writeln!(out, "{gap}{}", heading(group))?;
        }
        write_check(out, check, width)?;
    }
    Ok(())
}

fn heading(group: &str) -> &str {
    match group {
        "machine" => "This machine",
        "device-mapper" => "Device-mapper",
        "tools" => "Tools",
        "volumes" => "Volumes",
        "state" => "Records of destinations",
        "far" => "The other machine",
        other => other,
    }
}

fn write_check(out: &mut dyn Write, check: &Check, width: usize) -> io::Result<()> {
    let (symbol, word) = match check.status {
        Status::Ok => ("✓", "ok"),
        Status::Note => ("·", "note"),
        Status::Warning => ("!", "warning"),
        Status::Problem => ("✗", "PROBLEM"),
    };
    let mut lines = check.found.lines();
    let first = lines.next().unwrap_or("");
    let margin = format!("{:width$}", "", width = width + 14);
    writeln!(
        out,
        "  {symbol} {word:<8} {:<width$}  {first}",
        check.thing()
    )?;
    for line in lines {
        writeln!(out, "{margin} {line}")?;
    }
    let way_out = check.way_out.iter().flat_map(|way_out| way_out.lines());
    for (number, line) in way_out.enumerate() {
        let arrow = if number == 0 { "→" } else { " " };
        writeln!(out, "{margin} {arrow} {line}")?;
    }
    Ok(())
}

fn in_short(report: &Report) -> String {
    let counted = |status, thing| match report.count(status) {
        0 => format!("no {thing}s"),
        number => count(number as u64, thing),
    };
    format!(
        "{}, {}",
        counted(Status::Problem, "problem"),
        counted(Status::Warning, "warning")
    )
}
