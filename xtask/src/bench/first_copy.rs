//! The first copy of a volume of which half is holes: over ssh to a file that is not there yet, and here.
//!
//! Held against the bytes that are not holes, sent through `cat` and `ssh` into a file and synced: nobody who sends them
//! as they are can be faster. The pipes through zstd and lz4 send everything; the holes cost them next to nothing on the
//! wire and are written as zeroes at the far end. All end with the data on the disk.

use super::hardware::ready;
use super::measure::{Meter, Sample};
use super::sshd::{HOST, Sshd};
use super::sync_ssh::{by_ssh, far_lvmsync};
use super::turns::{Contestant, in_turns};
use super::{Bar, Figure, Setting, failed, inputs, peers};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const BENCH: &str = "first-copy";

/// The files, and who measures.
struct Bench<'a> {
    setting: &'a Setting,
    meter: Meter<'a>,
    volume: PathBuf,
    /// What the volume has that is not a hole.
    content: PathBuf,
    copy: PathBuf,
}

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    let sshd = Sshd::start(&setting.scratch)?;
    let path = |name: &str| setting.scratch.join(name);
    let bench = Bench {
        setting,
        meter: Meter::new(&setting.scratch, Some(&sshd))?,
        volume: path("volume"),
        content: path("content"),
        copy: path("copy"),
    };
    inputs::half_empty(&bench.volume, setting.size, 1).map_err(failed(&bench.volume))?;
    inputs::dense(&bench.content, setting.size / 2, 2).map_err(failed(&bench.content))?;
    let mut figures = bench.over_ssh(&sshd)?;
    figures.extend(bench.here()?);
    for file in [&bench.volume, &bench.content, &bench.copy] {
        let _ = fs::remove_file(file);
    }
    Ok(figures)
}

impl Bench<'_> {
    /// There is no copy, and reading costs nothing.
    fn prepare(&self) -> lab::Result<()> {
        let _ = fs::remove_file(&self.copy);
        ready(&self.volume, false)?;
        ready(&self.content, false)
    }

    /// What is fast and wrong is worth nothing.
    fn checked(&self, sample: Sample) -> lab::Result<Sample> {
        inputs::same(&self.volume, &self.copy).map_err(failed(&self.copy))?;
        Ok(sample)
    }

    fn script(&self, script: &str) -> lab::Result<Sample> {
        self.prepare()?;
        Ok(self.meter.script(script)?.0)
    }

    fn over_ssh(&self, sshd: &Sshd) -> lab::Result<Vec<Figure>> {
        let (volume, content, copy) = (
            self.volume.display(),
            self.content.display(),
            self.copy.display(),
        );
        let half = self.setting.size / 2;
        let far = far_lvmsync(self.setting, &self.meter)?;
        let into_copy = sshd.run(&format!("cat > {copy} && sync {copy}"));
        let raw = format!("cat {content} | {into_copy}");
        let mut all = vec![
            Contestant::limit("cat of what is no hole | ssh cat", || {
                Ok(self.script(&raw)?.with_wire(Some(half)))
            }),
            Contestant::ours("lvmsync sync", Bar::AtLeast(0.9), || {
                self.prepare()?;
                let ends = (sshd, &*far);
                let (from, to) = (&self.volume, &self.copy);
                let sample = by_ssh(self.setting, &self.meter, ends, "sync", from, to)?;
                self.checked(sample)
            }),
        ];
        if peers::there("rsync") {
            let far = self.meter.far_program("far-rsync", "rsync".as_ref(), "")?;
            all.push(Contestant::peer("rsync --sparse", Bar::None, move || {
                self.prepare()?;
                let mut command = Command::new("rsync");
                command
                    .args(["--sparse", "--fsync", "--stats", "-e", &sshd.rsh()])
                    .arg("--rsync-path")
                    .arg(&far)
                    .arg(&self.volume)
                    .arg(format!("{HOST}:{}", self.copy.display()));
                let (sample, stats) = self.meter.run(&command)?;
                self.checked(sample.with_wire(peers::rsync_wire(&stats)))
            }));
        }
        for (program, options) in [("zstd", "-q -T0 -1"), ("lz4", "-q -1")] {
            if !peers::there(program) {
                continue;
            }
            // The shell counts what travels by a second pass, which is not measured.
            let pack = format!("{program} {options} -c {volume}");
            let into = sshd.run(&format!("{program} -q -dc > {copy} && sync {copy}"));
            let script = format!("{pack} | {into}");
            let count = format!("{pack} | wc -c");
            all.push(Contestant::peer(
                &format!("{program} | ssh {program} -d"),
                Bar::None,
                move || {
                    let sample = self.checked(self.script(&script)?)?;
                    let (_, words) = self.meter.script(&count)?;
                    Ok(sample.with_wire(words.trim().parse().ok()))
                },
            ));
        }
        in_turns(self.setting.runs, BENCH, "half empty, over ssh", half, all)
    }

    fn here(&self) -> lab::Result<Vec<Figure>> {
        let (volume, content, copy) = (
            self.volume.display(),
            self.content.display(),
            self.copy.display(),
        );
        let size = self.setting.size;
        let state = self.setting.scratch.join("state");
        let plain = format!("dd if={content} of={copy} bs=4M conv=fsync status=none");
        let mut all = vec![
            Contestant::limit("dd of what is no hole", || self.script(&plain)),
            Contestant::ours("lvmsync sync", Bar::None, || {
                self.prepare()?;
                let _ = fs::remove_dir_all(&state);
                let mut command = Command::new(&self.setting.lvmsync);
                command.args(["sync", "--quiet", "--state-dir"]).arg(&state);
                command.arg(&self.volume).arg(&self.copy);
                self.checked(self.meter.run(&command)?.0)
            }),
        ];
        let peers = [
            (
                "cp",
                "cp --sparse=always",
                format!("cp --sparse=always {volume} {copy}; sync {copy}"),
            ),
            (
                "qemu-img",
                "qemu-img convert",
                format!("qemu-img convert -f raw -O raw -t writeback {volume} {copy}; sync {copy}"),
            ),
            (
                "nbdcopy",
                "nbdcopy",
                format!("truncate -s {size} {copy}; nbdcopy --flush {volume} {copy}"),
            ),
        ];
        for (program, name, script) in peers {
            if peers::there(program) {
                all.push(Contestant::peer(name, Bar::None, move || {
                    self.checked(self.script(&script)?)
                }));
            }
        }
        in_turns(self.setting.runs, BENCH, "half empty, here", size / 2, all)
    }
}
