//! `lvmsync status`: how far each job is, for people, scripts and monitoring.
//!
//! Guarantees: changes nothing but the file that is asked for, which is whole whenever it is read; whoever watches it learns
//! by the exit code that a target is later than its limit.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::apply::StateArgs;
use super::replicate::{JobsArgs, due_in, state_of};
use super::watched::fill_of;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::error::{Error, ExitCode, Result};
use crate::job::config::{JobConfig, Target};
use crate::job::state::JobState;
use crate::partial_file::PartialFile;
use crate::record::keeper::{now, shown_time};
use crate::units::Bytes;

const AFTER_HELP: &str = "\
Examples:
  lvmsync status                 a line for each target of each job
  lvmsync status data            of one job
  lvmsync status --watch         again and again
  lvmsync status --json          for a script
  lvmsync status --prometheus --textfile /var/lib/node_exporter/lvmsync.prom

Ends with code 1 if a target is later than its limit (max_lag of the job, or three intervals), or has never got
anything and the last run failed, or if a job's file is wrong, or what is on record of it cannot be read.";

/// Show how far each replication job is
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct StatusArgs {
    /// Which jobs; all if left out
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,

    /// A JSON array: one entry for each target of each job
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,

    /// Metrics in the text format of Prometheus
    #[arg(long)]
    prometheus: bool,

    /// Put them into FILE, for the textfile collector of node_exporter: it never sees half of them
    #[arg(long, value_name = "FILE", requires = "prometheus")]
    textfile: Option<PathBuf>,

    /// Show it again every two seconds until Ctrl-C
    #[arg(long, conflicts_with_all = ["json", "prometheus"])]
    watch: bool,

    #[command(flatten)]
    place: JobsArgs,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

/// One target of one job. Times are seconds since 1970 UTC, what lasts is seconds.
#[derive(Debug, Default, Serialize)]
struct Row {
    job: String,
    source: String,
    target: String,
    /// The state that the target holds was taken then; null where it has none yet.
    holds_since: Option<i64>,
    last_success: Option<i64>,
    lag_seconds: Option<i64>,
    late: bool,
    last_bytes: u64,
    last_seconds: f64,
    /// Id of the run that succeeded last, and of the job's last run: `run=` in the log.
    last_success_run: Option<String>,
    last_run: Option<String>,
    /// Of the thick snapshot that the next increment begins from.
    base_used_bytes: Option<u64>,
    base_bytes: Option<u64>,
    next_run_in_seconds: f64,
    /// Why the last run of the job, or of this target, failed, and when the last one did.
    error: Option<String>,
    failed_at: Option<i64>,
}

pub(super) fn run(args: &StatusArgs, cancel: &Cancel) -> Result<ExitCode> {
    args.talk.terminal();
    loop {
        let rows = rows(args)?;
        if args.json {
            output::json(&rows)?;
        } else if let Some(path) = &args.textfile {
            write_textfile(path, &rows)?;
        } else if args.prometheus {
            output::listing(|out| prometheus(&rows, out))?;
        } else {
            let clear = if args.watch { "\x1b[H\x1b[2J" } else { "" };
            output::listing(|out| {
                write!(out, "{clear}")?;
                table(&rows, out)
            })?;
        }
        if !args.watch {
            let is_late = rows.iter().any(|row| row.late);
            return Ok(if is_late {
                ExitCode::Failed
            } else {
                ExitCode::Done
            });
        }
        cancel.sleep(std::time::Duration::from_secs(2));
        cancel.check()?;
    }
}

/// Written beside, synced and renamed. Whoever collects it may be somebody else.
fn write_textfile(path: &Path, rows: &[Row]) -> Result<()> {
    let failed = |error| Error::io(format!("cannot write {}", path.display()), error);
    let mut text = Vec::new();
    prometheus(rows, &mut text).map_err(failed)?;
    let file = PartialFile::create(path, true)?;
    file.file()
        .and_then(|mut file| {
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(&text)
        })
        .map_err(failed)?;
    file.persist()
}

fn rows(args: &StatusArgs) -> Result<Vec<Row>> {
    let now = now();
    let mut rows = Vec::new();
    for (name, job) in args.place.load(&args.jobs)? {
        let job = match job {
            Ok(job) => job,
            Err(error) => {
                rows.push(Row {
                    job: name,
                    late: true,
                    error: Some(error.chain()),
                    ..Row::default()
                });
                continue;
            }
        };
        let state = state_of(&args.state, &name);
        for target in &job.targets {
            rows.push(match &state {
                Ok(state) => row_of(&name, &job, target, state, now),
                // How late it is nobody knows: somebody has to look.
                Err(error) => Row {
                    late: true,
                    error: Some(error.chain()),
                    ..names_of(&name, &job, target)
                },
            });
        }
    }
    Ok(rows)
}

fn names_of(name: &str, job: &JobConfig, target: &Target) -> Row {
    Row {
        job: name.to_owned(),
        source: job.source.clone(),
        target: target.to.clone(),
        ..Row::default()
    }
}

fn row_of(name: &str, job: &JobConfig, target: &Target, state: &JobState, now: i64) -> Row {
    let known = state.targets.get(&target.to).cloned().unwrap_or_default();
    let lag = known.lag(now);
    let fill = known.base.as_ref().and_then(fill_of);
    let limit = job.late_after();
    // That of the job is of its last run, which did not come as far as to its targets.
    let error = state.error.clone().or(known.error);
    // One that never got anything is late once it could have.
    let tried = state.tried_since();
    let waits = tried.is_some_and(|since| now.saturating_sub(since) as f64 > limit);
    Row {
        holds_since: (known.holds_since > 0).then_some(known.holds_since),
        last_success: (known.succeeded > 0).then_some(known.succeeded),
        lag_seconds: lag,
        late: lag.map_or(waits || error.is_some(), |lag| lag as f64 > limit),
        last_bytes: known.bytes,
        last_seconds: known.seconds,
        last_success_run: Some(known.run).filter(|run| !run.is_empty()),
        last_run: Some(state.run.clone()).filter(|run| !run.is_empty()),
        base_used_bytes: fill.map(|(used, _)| used),
        base_bytes: fill.map(|(_, total)| total),
        next_run_in_seconds: due_in(job, state, now),
        failed_at: error
            .as_ref()
            .and((state.failed > 0).then_some(state.failed)),
        error,
        ..names_of(name, job, target)
    }
}

fn table(rows: &[Row], out: &mut dyn Write) -> std::io::Result<()> {
    let mut lines = vec![
        [
            "JOB", "SOURCE", "TARGET", "HOLDS", "LAG", "LAST", "BASE", "NEXT", "STATE",
        ]
        .map(str::to_owned),
    ];
    for row in rows {
        let rate = format!("{} in {:.1} s", Bytes(row.last_bytes), row.last_seconds);
        let base = match (row.base_used_bytes, row.base_bytes) {
            (Some(used), Some(total)) if total > 0 => format!("{} % full", used * 100 / total),
            _ => "-".to_owned(),
        };
        let state = match (&row.error, row.late) {
            (Some(error), _) => error.lines().next().unwrap_or_default().to_owned(),
            (None, true) => "LATE".to_owned(),
            (None, false) if row.holds_since.is_none() => "not yet run".to_owned(),
            (None, false) => "ok".to_owned(),
        };
        lines.push([
            row.job.clone(),
            row.source.clone(),
            row.target.clone(),
            row.holds_since.map_or("-".to_owned(), shown_time),
            row.lag_seconds.map_or("-".to_owned(), shown_lag),
            if row.last_success.is_some() {
                rate
            } else {
                "-".to_owned()
            },
            base,
            if row.next_run_in_seconds > 0.0 {
                format!("in {}", shown_lag(whole(row.next_run_in_seconds)))
            } else {
                "due".to_owned()
            },
            state,
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..9).map(|column| width(column).unwrap_or(0)).collect();
    for line in &lines {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// Rounded; no job waits for longer than that can say.
fn whole(seconds: f64) -> i64 {
    let rounded = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default();
    i64::try_from(rounded.as_secs()).unwrap_or(i64::MAX)
}

/// 45 s, 12 min, 3.5 h, 2.1 d.
pub(super) fn shown_lag(seconds: i64) -> String {
    match seconds {
        ..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{:.1} h", seconds as f64 / 3600.0),
        _ => format!("{:.1} d", seconds as f64 / 86400.0),
    }
}

fn prometheus(rows: &[Row], out: &mut dyn Write) -> std::io::Result<()> {
    type Value = fn(&Row) -> Option<f64>;
    let metrics: [(&str, &str, Value); 7] = [
        (
            "lvmsync_lag_seconds",
            "Age of the state that the target holds",
            |row| row.lag_seconds.map(|lag| lag as f64),
        ),
        (
            "lvmsync_late",
            "1 if that is more than the job's limit",
            |row| Some(f64::from(u8::from(row.late))),
        ),
        (
            "lvmsync_last_success_timestamp_seconds",
            "When the last run was done that succeeded",
            |row| row.last_success.map(|at| at as f64),
        ),
        (
            "lvmsync_last_bytes",
            "Bytes of the volume in the last increment",
            |row| Some(row.last_bytes as f64),
        ),
        ("lvmsync_last_duration_seconds", "How long it took", |row| {
            Some(row.last_seconds)
        }),
        (
            "lvmsync_base_used_ratio",
            "How full the base snapshot is",
            |row| Some(row.base_used_bytes? as f64 / row.base_bytes? as f64),
        ),
        ("lvmsync_failed", "1 if the last run failed", |row| {
            Some(f64::from(u8::from(row.error.is_some())))
        }),
    ];
    for (name, help, value) in metrics {
        writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge")?;
        for row in rows {
            if let Some(value) = value(row) {
                writeln!(
                    out,
                    "{name}{{job=\"{}\",source=\"{}\",target=\"{}\"}} {value}",
                    label(&row.job),
                    label(&row.source),
                    label(&row.target)
                )?;
            }
        }
    }
    Ok(())
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            job: "data".into(),
            source: "vg/data".into(),
            target: "backup:vg/data".into(),
            holds_since: Some(0),
            last_success: Some(10),
            lag_seconds: Some(7300),
            last_bytes: 1 << 20,
            last_seconds: 0.5,
            base_used_bytes: Some(10),
            base_bytes: Some(40),
            ..Row::default()
        }
    }

    #[test]
    fn the_table_has_a_line_for_each_target() {
        let failed = Row {
            error: Some("no route\nto host".into()),
            late: true,
            ..row()
        };
        let mut text = Vec::new();
        table(&[row(), failed], &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("JOB   SOURCE   TARGET          HOLDS"),
            "{text}"
        );
        assert!(
            lines[1].contains("2.0 h") && lines[1].contains("25 % full"),
            "{text}"
        );
        assert!(
            lines[1].ends_with("due   ok") && lines[2].ends_with("no route"),
            "{text}"
        );
    }

    #[test]
    fn metrics_have_labels_that_can_be_read_back() {
        let odd = Row {
            job: "a\"b".into(),
            ..row()
        };
        let mut text = Vec::new();
        prometheus(&[odd], &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("lvmsync_lag_seconds{job=\"a\\\"b\",source=\"vg/data\",target=\"backup:vg/data\"} 7300"),
            "{text}"
        );
        assert!(
            text.contains("lvmsync_base_used_ratio") && text.contains("} 0.25"),
            "{text}"
        );
    }
}
