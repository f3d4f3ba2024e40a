//! What this machine gives, measured in the same run: reads, writes, hashing, and bytes through ssh.

use super::measure::{Meter, Sample, forget};
use super::sshd::Sshd;
use super::turns::with_speed;
use super::{Bar, Figure, Setting, failed, inputs};
use std::fs;
use std::path::Path;

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    println!("hardware");
    let path = |name: &str| setting.scratch.join(name);
    let (a, b, out) = (path("a"), path("b"), path("out"));
    for (seed, file) in [&a, &b].into_iter().enumerate() {
        inputs::dense(file, setting.size, seed as u64).map_err(failed(file))?;
    }
    let sshd = Sshd::start(&setting.scratch)?;
    let meter = Meter::new(&setting.scratch, Some(&sshd))?;
    let words = |words: &[&str], files: &[&Path]| {
        let words = words.iter().map(|word| (*word).to_owned().into());
        words
            .chain(files.iter().map(|file| file.as_os_str().to_owned()))
            .collect::<Vec<std::ffi::OsString>>()
    };
    let size = setting.size.to_string();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut lines = Vec::new();
    let mut line = |what: &str, bytes: u64, run: &dyn Fn() -> lab::Result<Sample>| {
        let samples: lab::Result<Vec<Sample>> = (0..setting.runs).map(|_| run()).collect();
        let median = Sample::median(&samples?);
        lines.push(Figure {
            bench: "hardware",
            what: what.to_owned(),
            measured: with_speed(median.time.as_secs_f64(), bytes),
            usage: Some(median),
            ours: false,
            value: None,
            bar: Bar::None,
        });
        Ok::<_, lab::Error>(())
    };
    for (state, cold) in [("from disk", true), ("from cache", false)] {
        for (what, files) in [
            ("read, 1 thread", &[&*a][..]),
            ("read, 2 threads, a file each", &[&*a, &*b][..]),
        ] {
            let read = || {
                for file in files {
                    ready(file, cold)?;
                }
                meter.plain(words(&["read"], files))
            };
            let bytes = setting.size * files.len() as u64;
            line(&format!("{what}, {state}"), bytes, &read)?;
        }
    }
    let direct: &[&str] = &["write", "--direct"];
    for (what, how) in [
        ("write, through the cache, and sync", &["write"][..]),
        ("write, direct, and sync", direct),
    ] {
        let write = || {
            let _ = fs::remove_file(&out);
            let mut all = words(how, &[&out]);
            all.push(size.clone().into());
            meter.plain(all)
        };
        // tmpfs of an older kernel knows no direct I/O.
        if how == direct && write().is_err() {
            println!("  direct I/O: not in this directory, left out");
            continue;
        }
        line(what, setting.size, &write)?;
    }
    for threads in [1, cores] {
        let hash = || meter.plain(["hash-memory", &threads.to_string(), &size]);
        let bytes = setting.size * threads as u64;
        line(
            &format!("BLAKE3 of memory, threads: {threads}"),
            bytes,
            &hash,
        )?;
        if cores == 1 {
            break;
        }
    }
    let session = || Ok(meter.script(&sshd.run("true"))?.0);
    line("ssh to this machine, a session alone", 0, &session)?;
    let ssh = || {
        let into = sshd.run("cat > /dev/null");
        let script = format!("head -c {size} /dev/zero | {into}");
        Ok(meter.script(&script)?.0.with_wire(Some(setting.size)))
    };
    line("ssh to this machine, raw bytes", setting.size, &ssh)?;
    for file in [&a, &b, &out] {
        let _ = fs::remove_file(file);
    }
    Ok(lines)
}

/// In the page cache, or out of it.
pub(super) fn ready(file: &Path, cold: bool) -> lab::Result<()> {
    if cold {
        forget(file)
    } else {
        inputs::warm(file).map_err(failed(file))
    }
}
