//! `cargo xtask demo`: the main job, on a real kernel with real LVM, told to a newcomer.
//!
//! The story itself is `demo/story.sh`. It runs in a lab guest; what its transfers say of themselves comes back as JSON
//! and becomes the table at the end.

use crate::table::table;
use crate::{Done, build, packages};
use clap::Args;
use lab::{Error, Machine, Screen, Setup};
use serde_json::Value;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Args)]
pub(crate) struct DemoArgs {}

const STORY: &str = include_str!("../demo/story.sh");

/// Name of the JSON file, and the words in the table.
const TRANSFERS: [(&str, &str); 3] = [
    ("first", "first copy"),
    ("changes", "what changed"),
    ("undo", "undo (on far)"),
];

pub(crate) fn demo(_: &DemoArgs) -> Done {
    packages::install(&[])?;
    println!("Building lvmsync");
    let program = build::lvmsync("release")?;
    let progress = if std::io::stdout().is_terminal() {
        "bar"
    } else {
        "none"
    };
    let setup = Setup::new()
        .disk("1G")
        .disk("1G")
        .env("DEMO_PROGRESS", progress)
        .env("DEMO_COLUMNS", &columns().to_string())
        .time_limit(Duration::from_secs(300))
        .program(program);
    let mut machine = Machine::new("demo", setup)?;
    let script = machine.directory().join("story.sh");
    std::fs::write(&script, STORY).map_err(|e| Error::new(format!("{}: {e}", script.display())))?;
    println!("Booting a throwaway Linux machine with LVM (user-mode Linux, no root needed)");
    let outcome = machine
        .boot("exec bash \"$LAB_JOB/story.sh\"", Screen::Show)?
        .wait()?;
    if !outcome.success() {
        machine.keep_log();
        return Err(Error::new(format!(
            "the demo failed: {}; its log: {}",
            outcome.describe(),
            outcome.log.display()
        )));
    }
    print!("\n{}", results(machine.directory())?);
    println!(
        "\nTimes are the lab's, where a system call costs a hundred times what it does elsewhere."
    );
    println!(
        "{:.0} s in all. Look around yourself: cargo xtask lab shell",
        outcome.duration.as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

fn results(directory: &Path) -> lab::Result<String> {
    let mut rows = vec![
        [
            "step",
            "bytes in the volume",
            "bytes sent",
            "of the volume",
            "time",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (file, step) in TRANSFERS {
        let path = directory.join(format!("{file}.json"));
        let failed = |e: String| Error::new(format!("{}: {e}", path.display()));
        let text = std::fs::read(&path).map_err(|e| failed(e.to_string()))?;
        let result: Value = serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))?;
        let number = |key: &str| {
            result[key]
                .as_f64()
                .ok_or_else(|| failed(format!("no {key} in it")))
        };
        let (volume, sent, time) = (
            number("volume_size")?,
            number("bytes_sent")?,
            number("seconds")?,
        );
        rows.push(vec![
            step.to_owned(),
            grouped(volume),
            grouped(sent),
            format!("{:.1} %", 100.0 * sent / volume.max(1.0)),
            format!("{time:.1} s"),
        ]);
    }
    Ok(table(&rows))
}

/// The width of this terminal.
fn columns() -> u16 {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.ok().map_or(0, |size| size.ws_col).max(80)
}

/// 268,435,456
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn digits_in_groups() {
        assert_eq!(grouped(0.0), "0");
        assert_eq!(grouped(999.0), "999");
        assert_eq!(grouped(268_435_456.0), "268,435,456");
    }
}
