//! What a write costs while changes are kept track of, in the lab: under a classic snapshot, on a thin volume with a snapshot,
//! and on a volume that dm-era tracks, as ratios to the bare volume.
//!
//! The first write to a block is the dear one: a snapshot copies what was there, dm-era notes it on its record. So each is
//! measured twice, with a new snapshot or a new era before.

use super::lab_send::guest;
use super::{Bar, Figure, Setting};

const SCRIPT: &str = include_str!("../../bench/era_writes.sh");

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    println!("era-writes: 32 MiB in blocks of 4 KiB here and there, and 128 MiB in one run");
    let guest = guest(setting, SCRIPT, "2G", ("BENCH_NONE", None))?;
    let mut figures = Vec::new();
    for (kind, what) in [("pages", "4 KiB here and there"), ("run", "in one run")] {
        let bare = guest.seconds(&format!("bare-{kind}"))?;
        for (under, name) in [
            ("classic", "under a classic snapshot"),
            ("thin", "thin, with a snapshot"),
            ("era", "tracked by dm-era"),
        ] {
            for (time, which) in [("first", "first write"), ("again", "once more")] {
                let seconds = guest.seconds(&format!("{under}-{kind}-{time}"))?;
                figures.push(Figure {
                    bench: "era-writes",
                    what: format!("{what}: {name}, {which} / bare volume"),
                    measured: format!("{seconds:.2} s / {bare:.2} s"),
                    value: Some(seconds / bare),
                    bar: Bar::None,
                    ..Figure::default()
                });
            }
        }
    }
    Ok(figures)
}
