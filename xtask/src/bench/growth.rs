//! `compare` of empty sparse files, from 1 to 64 GiB with the `--size` that there is without one.
//!
//! Empty ones, so that no machine is too small for it: what grows is our own work and not the disk's. Held against two
//! threads that read one each. On loop devices where root may make them, and past the page cache: on a virtual machine
//! whoever is the first to use memory for it waits for the host, which is no matter of size.

use super::loops::Loop;
use super::measure::Meter;
use super::svg::Series;
use super::turns::{Contestant, in_turns};
use super::{Bar, Figure, Setting, failed, inputs};
use std::fs;
use std::process::Command;

const BENCH: &str = "growth";
/// The longer something takes the less a moment matters: three runs at most, and of what is above this size one.
const LARGE: u64 = 8 << 30;

pub(super) fn run(setting: &Setting) -> lab::Result<(Vec<Figure>, Series)> {
    let meter = Meter::new(&setting.scratch, None)?;
    let path = |name: &str| setting.scratch.join(name);
    let (files, state) = ([path("a"), path("b")], path("state"));
    let mut figures = Vec::new();
    let (mut points, mut limit) = (Vec::new(), Vec::new());
    for size in [1, 4, 16, 64].map(|times| setting.size / 2 * times) {
        // New ones each time: none has anything in the page cache.
        let create = || {
            files.iter().try_for_each(|file| {
                let _ = fs::remove_file(file);
                inputs::empty(file, size).map_err(failed(file))
            })
        };
        create()?;
        let loops: Vec<Loop> = files.iter().map_while(|file| Loop::over(file)).collect();
        let ([a, b], read, prepared): (_, &[&str], &dyn Fn() -> lab::Result<()>) = match &loops[..]
        {
            [a, b] => ([a.device(), b.device()], &["read", "--direct"], &|| Ok(())),
            _ => ([&*files[0], &*files[1]], &["read"], &create),
        };
        let all = vec![
            Contestant::limit("reading each in a thread", || {
                prepared()?;
                let words = read.iter().map(|word| word.as_ref());
                meter.plain(words.chain([a.as_os_str(), b.as_os_str()]))
            }),
            Contestant::ours("lvmsync compare", Bar::None, || {
                prepared()?;
                let mut command = Command::new(&setting.lvmsync);
                command.args(["compare", "--quiet", "--state-dir"]);
                Ok(meter.run(command.arg(&state).arg(a).arg(b))?.0)
            }),
        ];
        #[expect(clippy::cast_precision_loss, reason = "a size of a few digits")]
        let gib = size as f64 / f64::from(1 << 30);
        let runs = setting.runs.min(if size > LARGE { 1 } else { 3 });
        let lines = in_turns(runs, BENCH, &format!("{gib} GiB of holes"), size * 2, all)?;
        for line in &lines {
            let seconds = line.usage.unwrap_or_default().time.as_secs_f64();
            let curve = if line.ours { &mut points } else { &mut limit };
            curve.push((gib, seconds));
        }
        figures.extend(lines);
    }
    for file in &files {
        let _ = fs::remove_file(file);
    }
    figures.extend(against_linear(&points));
    let series = Series {
        title: "lvmsync compare of sparse files, and (grey) reading them alone".to_owned(),
        points,
        limit,
    };
    Ok((figures, series))
}

/// What a GiB takes in the largest file, against the one before, which is a quarter of it: were time a square of size it
/// would be four times as long. The start of a process no longer counts in either.
fn against_linear(points: &[(f64, f64)]) -> Option<Figure> {
    let [.., (small, few), (large, many)] = points else {
        return None;
    };
    let value = (many / large) / (few / small);
    Some(Figure {
        bench: BENCH,
        what: format!("time for each GiB: of {large} GiB / of {small} GiB"),
        measured: format!("{many:.3} s / {few:.3} s"),
        value: Some(value),
        bar: Bar::AtMost(1.25),
        ..Figure::default()
    })
}

#[cfg(test)]
mod tests {
    use super::against_linear;

    #[test]
    fn twice_the_time_for_twice_the_size_is_one() {
        let linear = against_linear(&[(0.25, 9.0), (1.0, 1.0), (4.0, 4.0)]).unwrap();
        assert_eq!(linear.value, Some(1.0));
        let square = against_linear(&[(0.25, 9.0), (1.0, 1.0), (4.0, 16.0)]).unwrap();
        assert_eq!(square.value, Some(4.0));
        assert!(against_linear(&[(1.0, 1.0)]).is_none());
    }
}
