//! A copy elsewhere of which one block in a hundred is not what it should be, scattered; and one that is equal.
//!
//! As files, and as loop devices where root may make them; over a real ssh to this machine, so that both ends share its
//! processors and its disk, as two machines do not. Held against reading and hashing each side once, at the same time.
//! casync and xdelta3 are measured at one end alone, with what they want to have there beside the volume: what they take
//! is a lower bound of what their user waits.

use super::hardware::ready;
use super::loops::Loop;
use super::measure::{Meter, Sample};
use super::sshd::{HOST, Sshd};
use super::turns::{Contestant, in_turns};
use super::{Bar, Figure, Setting, failed, inputs, peers};
use lab::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const BENCH: &str = "sync-ssh";
/// Of the volume's size, for volumes that are equal.
const WIRE_SHARE: f64 = 0.0005;

/// The files, and who measures.
struct Bench<'a> {
    setting: &'a Setting,
    meter: Meter<'a>,
    sshd: &'a Sshd,
    new: PathBuf,
    /// Each has a copy of its own to make equal.
    ours: PathBuf,
    theirs: PathBuf,
    far_lvmsync: PathBuf,
    /// They are block devices.
    devices: bool,
}

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    let sshd = Sshd::start(&setting.scratch)?;
    let meter = Meter::new(&setting.scratch, Some(&sshd))?;
    let path = |name: &str| setting.scratch.join(name);
    let files = [path("new"), path("ours"), path("theirs")];
    for file in &files {
        inputs::dense(file, setting.size, 1).map_err(failed(file))?;
    }
    let [new, ours, theirs] = files.clone();
    let mut bench = Bench {
        far_lvmsync: far_lvmsync(setting, &meter)?,
        meter,
        setting,
        sshd: &sshd,
        new,
        ours,
        theirs,
        devices: false,
    };
    let mut figures = bench.equal()?;
    figures.extend(bench.changed("from disk", true)?);
    figures.extend(bench.changed("from cache", false)?);
    let loops: Vec<Loop> = files.iter().map_while(|file| Loop::over(file)).collect();
    if let [new, ours, theirs] = &loops[..] {
        bench.new = new.device().to_owned();
        bench.ours = ours.device().to_owned();
        bench.theirs = theirs.device().to_owned();
        bench.devices = true;
        figures.extend(bench.changed("loop devices", true)?);
    } else {
        println!("  no loop devices: files alone");
    }
    drop(loops);
    for file in &files {
        let _ = fs::remove_file(file);
    }
    Ok(figures)
}

/// lvmsync for the far end, with records that are nobody else's.
pub(super) fn far_lvmsync(setting: &Setting, meter: &Meter<'_>) -> lab::Result<PathBuf> {
    let state = setting.scratch.join("state.far");
    let more = format!("--state-dir {}", state.display());
    meter.far_program("far-lvmsync", &setting.lvmsync, &more)
}

/// `lvmsync WHAT NEW HOST:COPY` by way of `sshd`, and what it took.
pub(super) fn by_ssh(
    setting: &Setting,
    meter: &Meter<'_>,
    (sshd, far_lvmsync): (&Sshd, &Path),
    what: &str,
    new: &Path,
    copy: &Path,
) -> lab::Result<Sample> {
    let near = setting.scratch.join("state");
    // By its record the copy would be known.
    for state in [&near, &setting.scratch.join("state.far")] {
        let _ = fs::remove_dir_all(state);
    }
    let mut command = Command::new(&setting.lvmsync);
    command.args([what, "--quiet", "--json", "--state-dir"]);
    command.arg(near).arg("-e").arg(sshd.rsh());
    command.arg("--remote-path").arg(far_lvmsync);
    command.arg(new).arg(format!("{HOST}:{}", copy.display()));
    let (sample, json) = meter.run(&command)?;
    Ok(sample.with_wire(peers::our_wire(&json)))
}

impl Bench<'_> {
    fn changed(&self, case: &str, cold: bool) -> lab::Result<Vec<Figure>> {
        let size = self.setting.size;
        // One block of a hundred becomes what it was not, at the copy that is about to be made equal.
        let prepared = |copy: &Path| {
            inputs::scatter(copy, size, 2).map_err(failed(copy))?;
            ready(&self.new, cold)?;
            ready(copy, cold)
        };
        let prepared = &prepared;
        let mut all = vec![
            self.limit(prepared),
            Contestant::ours("lvmsync sync", Bar::None, || {
                prepared(&self.ours)?;
                let sample = self.lvmsync("sync")?;
                inputs::same(&self.new, &self.ours).map_err(failed(&self.ours))?;
                Ok(sample)
            }),
        ];
        if let Some(rsync) = self.rsync(Bar::AtLeast(5.0), prepared)? {
            all.push(rsync);
        }
        if let Some(bdsync) = self.setting.peers.given("bdsync") {
            all.push(Contestant::peer("bdsync", Bar::None, || {
                prepared(&self.theirs)?;
                let sample = self.bdsync(bdsync)?;
                inputs::same(&self.new, &self.theirs).map_err(failed(&self.theirs))?;
                Ok(sample)
            }));
        }
        // Reading is the least of what they do, so once is enough.
        let alone = !cold;
        if alone && peers::there("casync") {
            all.push(Contestant::peer(
                "casync make (one end alone)",
                Bar::None,
                || self.casync(prepared),
            ));
        }
        if alone && peers::there("xdelta3") {
            all.push(Contestant::peer(
                "xdelta3 -1 (one end alone)",
                Bar::None,
                || self.xdelta3(prepared),
            ));
        }
        let what = format!("1 % scattered, {case}");
        in_turns(self.setting.runs, BENCH, &what, size, all)
    }

    fn equal(&self) -> lab::Result<Vec<Figure>> {
        let size = self.setting.size;
        let prepared = |copy: &Path| {
            ready(&self.new, false)?;
            ready(copy, false)
        };
        let prepared = &prepared;
        let mut all = vec![self.limit(prepared)];
        for what in ["sync", "compare"] {
            all.push(Contestant::ours(
                &format!("lvmsync {what}"),
                Bar::None,
                move || {
                    prepared(&self.ours)?;
                    self.lvmsync(what)
                },
            ));
        }
        all.extend(self.rsync(Bar::None, prepared)?);
        let mut figures = in_turns(self.setting.runs, BENCH, "equal, from cache", size, all)?;
        let wire = figures
            .iter()
            .filter(|line| line.ours)
            .filter_map(|line| line.usage?.wire)
            .max()
            .ok_or_else(|| Error::new("lvmsync --json says nothing of wire_bytes"))?;
        #[expect(
            clippy::cast_precision_loss,
            reason = "a ratio of two figures far below 2^52"
        )]
        let value = wire as f64 / (size as f64 * WIRE_SHARE);
        figures.push(Figure {
            bench: BENCH,
            what: "equal: bytes on the wire / 0.05 % of the size".to_owned(),
            measured: format!("{wire} B"),
            value: Some(value),
            bar: Bar::AtMost(1.0),
            ..Figure::default()
        });
        Ok(figures)
    }

    fn limit<'b>(&'b self, prepared: &'b impl Fn(&Path) -> lab::Result<()>) -> Contestant<'b> {
        Contestant::limit("reading and hashing both at once", move || {
            prepared(&self.theirs)?;
            let files = [self.new.as_os_str(), self.theirs.as_os_str()];
            // As lvmsync reads block devices.
            let how: &[&str] = if self.devices {
                &["hash", "--direct"]
            } else {
                &["hash"]
            };
            let how = how.iter().map(|word| word.as_ref());
            self.meter.plain(how.chain(files))
        })
    }

    fn lvmsync(&self, what: &str) -> lab::Result<Sample> {
        let ends = (self.sshd, &*self.far_lvmsync);
        by_ssh(self.setting, &self.meter, ends, what, &self.new, &self.ours)
    }

    fn rsync<'b>(
        &'b self,
        bar: Bar,
        prepared: &'b impl Fn(&Path) -> lab::Result<()>,
    ) -> lab::Result<Option<Contestant<'b>>> {
        if !peers::there("rsync") {
            return Ok(None);
        }
        let far = self.meter.far_program("far-rsync", "rsync".as_ref(), "")?;
        let (name, how): (_, &[&str]) = if self.devices {
            let how = &["--copy-devices", "--write-devices", "--no-whole-file"];
            ("rsync --copy-devices --write-devices", how)
        } else {
            let how = &["--inplace", "--no-whole-file"];
            ("rsync --inplace --no-whole-file", how)
        };
        Ok(Some(Contestant::peer(name, bar, move || {
            prepared(&self.theirs)?;
            let mut command = Command::new("rsync");
            command
                .args(how)
                .args([
                    "--ignore-times",
                    "--fsync",
                    "--stats",
                    "-e",
                    &self.sshd.rsh(),
                    "--rsync-path",
                ])
                .arg(&far)
                .arg(&self.new)
                .arg(format!("{HOST}:{}", self.theirs.display()));
            let (sample, stats) = self.meter.run(&command)?;
            inputs::same(&self.new, &self.theirs).map_err(failed(&self.theirs))?;
            Ok(sample.with_wire(peers::rsync_wire(&stats)))
        })))
    }

    /// As its manual has it: a patch is fetched, and then applied.
    fn bdsync(&self, bdsync: &Path) -> lab::Result<Sample> {
        let patch = self.setting.scratch.join("patch");
        let (rsh, program) = (self.sshd.rsh(), bdsync.display());
        let (new, copy) = (self.new.display(), self.theirs.display());
        let apply = self.sshd.run(&format!("{program} --patch={copy}"));
        let (patch, apply) = (patch.display(), format!("{apply} < {}", patch.display()));
        let script =
            format!("{program} '{rsh} {HOST} {program} --server' {new} {copy} > {patch}; {apply}");
        Ok(self.meter.script(&script)?.0)
    }

    /// Into a store that has the old state's chunks; what it grows by would travel.
    fn casync(&self, prepared: impl Fn(&Path) -> lab::Result<()>) -> lab::Result<Sample> {
        let path = |name: &str| self.setting.scratch.join(name);
        let (store, index) = (path("store.castr"), path("index.caibx"));
        let make = |file: &Path| {
            let mut command = Command::new("casync");
            command.arg("make").arg("--store").arg(&store);
            command.arg(&index).arg(file);
            self.meter.run(&command)
        };
        let _ = fs::remove_dir_all(&store);
        prepared(&self.theirs)?;
        make(&self.theirs)?;
        let before = tree_bytes(&store)?;
        prepared(&self.theirs)?;
        let (sample, _) = make(&self.new)?;
        let grown = tree_bytes(&store)?.saturating_sub(before);
        let _ = fs::remove_dir_all(&store);
        Ok(sample.with_wire(Some(grown)))
    }

    /// With the old state beside the new one.
    fn xdelta3(&self, prepared: impl Fn(&Path) -> lab::Result<()>) -> lab::Result<Sample> {
        let delta = self.setting.scratch.join("delta");
        prepared(&self.theirs)?;
        let mut command = Command::new("xdelta3");
        command.args(["-e", "-1", "-f", "-s"]).arg(&self.theirs);
        command.arg(&self.new).arg(&delta);
        let (sample, _) = self.meter.run(&command)?;
        let bytes = fs::metadata(&delta).map_err(failed(&delta))?.len();
        let _ = fs::remove_file(&delta);
        Ok(sample.with_wire(Some(bytes)))
    }
}

/// The lengths of all files below a directory.
fn tree_bytes(directory: &Path) -> lab::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory).map_err(failed(directory))? {
        let entry = entry.map_err(failed(directory))?;
        let meta = entry.metadata().map_err(failed(directory))?;
        bytes += if meta.is_dir() {
            tree_bytes(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(bytes)
}
