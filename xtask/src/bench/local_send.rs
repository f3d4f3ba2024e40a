//! How fast `send` moves data between files, against a loop that copies the same extents and does nothing else.
//!
//! Both read from the page cache and end with the data on the disk. They take turns, and who begins changes.

use super::measure::{median, timed};
use super::store::{shuffled, write};
use super::{Bar, Figure, Setting, failed};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const CHUNK: u64 = 64 << 10;
const ORIGIN_BYTES: u64 = 4 << 30;
/// 512 MiB of changes.
const CHANGED: u64 = 8192;
const RUN: u64 = 1024;
const COPY_BYTES: usize = 1 << 20;

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    // Even chunks only, so that none joins the next; and eight runs of 64 MiB.
    let bits = (ORIGIN_BYTES / CHUNK / 2).ilog2();
    let scattered: Vec<u64> = shuffled(bits)
        .map(|n| n * 2)
        .take(as_usize(CHANGED))
        .collect();
    let runs: Vec<u64> = (0..CHANGED)
        .map(|n| (n / RUN) * (ORIGIN_BYTES / CHUNK / (CHANGED / RUN)) + n % RUN)
        .collect();
    Ok(vec![
        measure(setting, "scattered 64 KiB", scattered)?,
        measure(setting, "runs of 64 MiB", runs)?,
    ])
}

fn measure(setting: &Setting, what: &str, mut chunks: Vec<u64>) -> lab::Result<Figure> {
    println!("local-send: {what}");
    let path = |name: &str| setting.scratch.join(name);
    let (store, origin, sent, copied) =
        (path("store"), path("origin"), path("sent"), path("copied"));
    write(&store, CHUNK, &chunks).map_err(failed(&store))?;
    chunks.sort_unstable();
    let extents = extents(&chunks);
    fill(&origin, &extents).map_err(failed(&origin))?;
    for destination in [&sent, &copied] {
        File::create(destination)
            .and_then(|file| file.set_len(ORIGIN_BYTES))
            .map_err(failed(destination))?;
    }
    // By its record the destination would hold everything already.
    let state = path("state");
    let send = || {
        let _ = std::fs::remove_dir_all(&state);
        let mut command = Command::new(&setting.lvmsync);
        command
            .args(["send", "--quiet", "--state-dir"])
            .arg(&state)
            .arg("--from")
            .arg(format!("cow:{}", store.display()));
        timed(command.arg(&origin).arg(&sent))
    };
    let plain = || copy(&origin, &copied, &extents).map_err(failed(&copied));
    // The first of each makes the destination's blocks; later ones overwrite them.
    send()?;
    plain()?;
    let (mut sends, mut plains) = (Vec::new(), Vec::new());
    for turn in 0..setting.runs {
        if turn % 2 == 0 {
            sends.push(send()?);
            plains.push(plain()?);
        } else {
            plains.push(plain()?);
            sends.push(send()?);
        }
    }
    same(&sent, &copied, &extents).map_err(failed(&sent))?;
    for file in [&store, &origin, &sent, &copied] {
        let _ = std::fs::remove_file(file);
    }
    let (send, plain) = (median(&sends).as_secs_f64(), median(&plains).as_secs_f64());
    Ok(Figure {
        bench: "local-send",
        what: format!("{what}: speed of send / speed of a plain copy"),
        measured: format!("{send:.3} s, {plain:.3} s"),
        value: Some(plain / send),
        bar: Bar::AtLeast(0.8),
        ..Figure::default()
    })
}

/// Offset and length of each run of chunks.
fn extents(chunks: &[u64]) -> Vec<(u64, u64)> {
    let mut extents: Vec<(u64, u64)> = Vec::new();
    for chunk in chunks {
        match extents.last_mut() {
            Some((offset, length)) if *offset + *length == chunk * CHUNK => *length += CHUNK,
            _ => extents.push((chunk * CHUNK, CHUNK)),
        }
    }
    extents
}

/// A sparse file with bytes that neither compress nor repeat in these extents.
fn fill(path: &Path, extents: &[(u64, u64)]) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(ORIGIN_BYTES)?;
    let mut state = 1_u64;
    let mut bytes = vec![0; as_usize(CHUNK)];
    for (offset, length) in extents {
        for at in (*offset..offset + length).step_by(as_usize(CHUNK)) {
            for word in bytes.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            file.write_all_at(&bytes, at)?;
        }
    }
    file.sync_all()
}

fn copy(from: &Path, to: &Path, extents: &[(u64, u64)]) -> io::Result<Duration> {
    let start = Instant::now();
    let (from, to) = (File::open(from)?, File::options().write(true).open(to)?);
    let mut buffer = vec![0; COPY_BYTES];
    for (offset, length) in extents {
        for at in (*offset..offset + length).step_by(COPY_BYTES) {
            let bytes = &mut buffer[..as_usize((offset + length - at).min(COPY_BYTES as u64))];
            from.read_exact_at(bytes, at)?;
            to.write_all_at(bytes, at)?;
        }
    }
    to.sync_data()?;
    Ok(start.elapsed())
}

/// What is fast and wrong is worth nothing.
fn same(one: &Path, other: &Path, extents: &[(u64, u64)]) -> io::Result<()> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    let (mut a, mut b) = (vec![0; as_usize(CHUNK)], vec![0; as_usize(CHUNK)]);
    for (offset, length) in extents {
        for at in (*offset..offset + length).step_by(as_usize(CHUNK)) {
            one.read_exact_at(&mut a, at)?;
            other.read_exact_at(&mut b, at)?;
            if a != b {
                return Err(io::Error::other(format!(
                    "it is not what was sent, at {at}"
                )));
            }
        }
    }
    Ok(())
}

/// For sizes of buffers, which are small.
fn as_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
