//! `send --stdout` from a real snapshot in the lab: 45,000 changed chunks, half scattered, half in one run.
//!
//! The original lvmsync takes about 17 s for this. Where it is given it is measured in the same guest; else that
//! figure is what we are held against, and it is somebody else's machine.

use super::measure::{median, this_program};
use super::{Bar, Figure, Setting};
use crate::packages;
use lab::{Error, Machine, Screen, Setup};
use std::path::Path;
use std::time::Duration;

const SCRIPT: &str = include_str!("../../bench/lab_send.sh");
const ORIGINAL_SECONDS: f64 = 17.0;

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    println!("lab-send: 45,000 chunks of 4 KiB");
    let original = setting.peers.given("original");
    let guest = guest(setting, SCRIPT, "2G", ("BENCH_ORIGINAL", original))?;
    let ours = guest.seconds("ours")?;
    let (original, whose) = match original {
        Some(_) => (guest.seconds("original")?, "in the same guest"),
        None => (
            ORIGINAL_SECONDS,
            "documented; --peer original=PATH measures it",
        ),
    };
    Ok(vec![Figure {
        bench: "lab-send",
        what: format!("the original ({whose}) / send --stdout"),
        measured: format!("{original:.2} s / {ours:.3} s"),
        value: Some(original / ours),
        bar: Bar::AtLeast(50.0),
        ..Figure::default()
    }])
}

/// What a script in a guest has measured.
pub(super) struct Measured(Machine);

/// Runs `script` in a guest with one disk, lvmsync and this program in its PATH, and where a peer is in a variable.
pub(super) fn guest(
    setting: &Setting,
    script: &str,
    disk: &str,
    (variable, peer): (&str, Option<&Path>),
) -> lab::Result<Measured> {
    packages::install(&[])?;
    let this = this_program()?;
    let mut setup = Setup::new()
        .disk(disk)
        .time_limit(Duration::from_secs(900))
        .program(&setting.lvmsync)
        .program(this)
        .env("BENCH_RUNS", &setting.runs.to_string());
    if let Some(peer) = peer {
        setup = setup.env(variable, &peer.to_string_lossy());
    }
    let mut machine = Machine::new("bench", setup)?;
    let path = machine.directory().join("bench.sh");
    std::fs::write(&path, script).map_err(super::failed(&path))?;
    let outcome = machine
        .boot("exec bash \"$LAB_JOB/bench.sh\"", Screen::Log)?
        .wait()?;
    if !outcome.success() {
        machine.keep_log();
        return Err(Error::new(format!(
            "{}\n{}",
            outcome.describe(),
            outcome.tail(20)
        )));
    }
    Ok(Measured(machine))
}

impl Measured {
    /// The median of the times in a file, one in nanoseconds on each line.
    pub(super) fn seconds(&self, file: &str) -> lab::Result<f64> {
        let path = self.0.directory().join(file);
        let text = std::fs::read_to_string(&path).map_err(super::failed(&path))?;
        let times: Vec<_> = text
            .lines()
            .filter_map(|line| line.parse().ok())
            .map(Duration::from_nanos)
            .collect();
        if times.is_empty() {
            return Err(Error::new(format!("{}: no times in it", path.display())));
        }
        Ok(median(&times).as_secs_f64())
    }
}

/// In the guest: writes `count` blocks of 4 KiB to every other block of a device, so that none joins the next.
pub(super) fn scatter(device: &Path, count: u64) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(device)?;
    for n in 0..count {
        // Bytes that are not zero, and not the same everywhere.
        let bytes = [u8::try_from(n % 255).unwrap_or(0) + 1; 4096];
        file.write_all_at(&bytes, n * 8192)?;
    }
    file.sync_all()
}
