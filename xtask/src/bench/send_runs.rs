//! `send` of long runs: to a volume on this machine, and through a compressor into a file.
//!
//! Held against `dd` past the page cache, and against `zstd -T0` of the same level. The volumes are loop devices where
//! root may make them, so that lvmsync uses direct I/O as it does on any block device; else files. All end with the data
//! on the disk.

use super::hardware::ready;
use super::loops::Loop;
use super::measure::{Meter, Sample, forget};
use super::turns::{Contestant, in_turns};
use super::{Bar, Figure, Setting, failed, inputs, peers};
use lab::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const BENCH: &str = "send-runs";

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    let meter = Meter::new(&setting.scratch, None)?;
    let mut figures = to_volume(setting, &meter)?;
    figures.extend(to_file(setting, &meter)?);
    Ok(figures)
}

fn send(setting: &Setting) -> Command {
    let state = setting.scratch.join("state");
    // By its record the destination would hold everything already.
    let _ = fs::remove_dir_all(&state);
    let mut command = Command::new(&setting.lvmsync);
    command.args(["send", "--quiet", "--state-dir"]).arg(state);
    command
}

fn to_volume(setting: &Setting, meter: &Meter<'_>) -> lab::Result<Vec<Figure>> {
    let path = |name: &str| setting.scratch.join(name);
    let files = [path("source"), path("sent"), path("copied")];
    for file in &files {
        // Blocks that were never written cost more to write: all have been.
        inputs::dense(file, setting.size, 1).map_err(failed(file))?;
    }
    inputs::dense(&files[0], setting.size, 2).map_err(failed(&files[0]))?;
    let loops: Vec<Loop> = files.iter().map_while(|file| Loop::over(file)).collect();
    let (what, [source, sent, copied]) = match &loops[..] {
        [a, b, c] => ("loop devices", [a.device(), b.device(), c.device()]),
        _ => {
            println!("  no loop devices: files instead");
            ("files", [&*files[0], &*files[1], &*files[2]])
        }
    };
    let prepared = || files.iter().try_for_each(|file| forget(file));
    let dd = |direct: &str, to: &Path| -> lab::Result<Sample> {
        prepared()?;
        let script = format!(
            "dd if={} of={} bs=4M {direct} conv=fsync,notrunc status=none",
            source.display(),
            to.display()
        );
        Ok(meter.script(&script)?.0)
    };
    let direct = "iflag=direct oflag=direct";
    let direct = if dd(direct, copied).is_ok() {
        direct
    } else {
        println!("  direct I/O: not in this directory; dd goes through the page cache");
        ""
    };
    let all = vec![
        Contestant::limit(&format!("dd bs=4M {direct}"), || dd(direct, copied)),
        Contestant::ours("lvmsync send", Bar::AtLeast(0.9), || {
            prepared()?;
            let mut command = send(setting);
            Ok(meter.run(command.arg(source).arg(sent))?.0)
        }),
    ];
    let case = format!("to a volume ({what})");
    let figures = in_turns(setting.runs, BENCH, &case, setting.size, all)?;
    inputs::same(source, sent).map_err(failed(sent))?;
    drop(loops);
    for file in &files {
        let _ = fs::remove_file(file);
    }
    Ok(figures)
}

fn to_file(setting: &Setting, meter: &Meter<'_>) -> lab::Result<Vec<Figure>> {
    let path = |name: &str| setting.scratch.join(name);
    let (source, out) = (path("source"), path("out"));
    inputs::compressible(&source, setting.size, 1).map_err(failed(&source))?;
    let measured = |command: &Command| {
        let _ = fs::remove_file(&out);
        ready(&source, false)?;
        let (sample, _) = meter.run(command)?;
        let bytes = fs::metadata(&out).map_err(failed(&out))?.len();
        Ok::<_, Error>(sample.with_wire(Some(bytes)))
    };
    let measured = &measured;
    let theirs = |line: String| {
        let mut command = Command::new("bash");
        command.args(["-eu", "-c", &line]);
        measured(&command)
    };
    let theirs = &theirs;
    let (from, to): (PathBuf, PathBuf) = (source.clone(), out.clone());
    let (from, to) = (from.display(), to.display());
    let mut figures = Vec::new();
    for (codec, program, line, bar) in [
        (
            "zstd:3",
            "zstd",
            format!("zstd -q -T0 -3 -o {to} {from}; sync {to}"),
            Bar::AtLeast(0.9),
        ),
        (
            "lz4",
            "lz4",
            format!("lz4 -q -1 {from} {to}; sync {to}"),
            Bar::None,
        ),
    ] {
        if !peers::there(program) {
            continue;
        }
        let name = line.split(" -o ").next().unwrap_or(program);
        let name = if program == "zstd" { name } else { "lz4 -1" };
        let all = vec![
            Contestant::limit(name, || theirs(line.clone())),
            Contestant::ours(&format!("lvmsync send -z {codec}"), bar, || {
                let mut command = send(setting);
                measured(command.args(["-z", codec, "-o"]).arg(&out).arg(&source))
            }),
        ];
        figures.extend(in_turns(
            setting.runs,
            BENCH,
            "into a file",
            setting.size,
            all,
        )?);
    }
    for file in [&source, &out] {
        let _ = fs::remove_file(file);
    }
    Ok(figures)
}
