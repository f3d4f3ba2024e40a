//! Two volumes that are equal, both here: how long until that is known?
//!
//! Held against two threads that read a volume each and do nothing with it, as plain as can be: ordinary memory, past the page
//! cache where that has nothing. Who looks at all bytes can be faster by better reading alone.
//! As files, and as loop devices where root may make them.
//!
//! `compare` reads the disk even where the page cache has the bytes of a file, since it is asked what the disk has, so
//! there it has no bar.

use super::hardware::ready;
use super::loops::Loop;
use super::measure::Meter;
use super::turns::{Contestant, in_turns};
use super::{Bar, Figure, Setting, failed, inputs, peers};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const BENCH: &str = "compare";
const DEVICES: &str = "loop devices";

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    let path = |name: &str| setting.scratch.join(name);
    let (files, state) = ([path("a"), path("b")], path("state"));
    for file in &files {
        inputs::dense(file, setting.size, 1).map_err(failed(file))?;
    }
    let meter = Meter::new(&setting.scratch, None)?;
    let here = [&*files[0], &*files[1]];
    let bench = Bench {
        setting,
        meter,
        state,
    };
    let mut figures = bench.measure("from disk", true, here)?;
    figures.extend(bench.measure("from cache", false, here)?);
    // Only now: what is below a loop device is in use.
    let loops: Vec<Loop> = files.iter().map_while(|file| Loop::over(file)).collect();
    if let [a, b] = &loops[..] {
        figures.extend(bench.measure(DEVICES, true, [a.device(), b.device()])?);
    } else {
        println!("  no loop devices: files alone");
    }
    drop(loops);
    for file in &files {
        let _ = fs::remove_file(file);
    }
    Ok(figures)
}

struct Bench<'a> {
    setting: &'a Setting,
    meter: Meter<'a>,
    state: PathBuf,
}

impl Bench<'_> {
    fn measure(&self, case: &str, cold: bool, [a, b]: [&Path; 2]) -> lab::Result<Vec<Figure>> {
        let (setting, meter) = (self.setting, &self.meter);
        let devices = case == DEVICES;
        // As lvmsync reads what the page cache does not have.
        let read: &[&str] = if cold {
            &["read", "--direct"]
        } else {
            &["read"]
        };
        let prepared = || {
            // By its record the destination would be known.
            let _ = fs::remove_dir_all(&self.state);
            ready(a, cold)?;
            ready(b, cold)
        };
        let take = |command: &Command| {
            prepared()?;
            Ok(meter.run(command)?.0)
        };
        let ours = |words: &[&str]| {
            let mut command = Command::new(&setting.lvmsync);
            command.args(words).arg("--state-dir").arg(&self.state);
            command.arg(a).arg(b);
            take(&command)
        };
        let theirs = |program: &Path, words: &[&str]| {
            let mut command = Command::new(program);
            command.args(words).arg(a).arg(b);
            take(&command)
        };
        let (ours, theirs, take) = (&ours, &theirs, &take);
        let bar = Bar::AtLeast(0.85);
        let mut all = vec![
            Contestant::limit("reading each in a thread", || {
                prepared()?;
                let words = read.iter().map(|word| word.as_ref());
                meter.plain(words.chain([a.as_os_str(), b.as_os_str()]))
            }),
            Contestant::ours("lvmsync sync", bar, || ours(&["sync", "--quiet"])),
            Contestant::ours(
                "lvmsync compare",
                if cold { bar } else { Bar::None },
                || ours(&["compare", "--quiet"]),
            ),
            Contestant::peer("cmp", Bar::None, || theirs("cmp".as_ref(), &["--silent"])),
        ];
        // rsync without `--copy-devices` does not look into block devices.
        if !devices && peers::there("rsync") {
            all.push(Contestant::peer(
                "rsync --checksum --dry-run",
                Bar::None,
                || theirs("rsync".as_ref(), &["--checksum", "--dry-run"]),
            ));
        }
        if let Some(bdsync) = setting.peers.given("bdsync") {
            let server = format!("{} --server", bdsync.display());
            all.push(Contestant::peer("bdsync", Bar::None, move || {
                theirs(bdsync, &[&server])
            }));
        }
        if let Some(blocksync) = setting.peers.given("blocksync-fast") {
            all.push(Contestant::peer("blocksync-fast", Bar::None, move || {
                let mut command = Command::new(blocksync);
                command.arg("--silent").arg("-s").arg(a).arg("-d").arg(b);
                take(&command)
            }));
        }
        let bytes = setting.size * 2;
        in_turns(setting.runs, BENCH, case, bytes, all)
    }
}
