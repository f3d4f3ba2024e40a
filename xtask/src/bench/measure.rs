//! Time and memory of commands and of our own loops.

use super::launcher::Note;
use super::sshd::Sshd;
use lab::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one run took, or the medians of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) time: Duration,
    /// At both ends, ssh and sshd included.
    pub(crate) cpu: Duration,
    /// Of the largest process at either end, in bytes.
    pub(crate) peak: u64,
    /// Bytes between the two ends, or in the file that was made, where that is known.
    pub(crate) wire: Option<u64>,
}

impl Sample {
    pub(crate) fn with_wire(self, wire: Option<u64>) -> Self {
        Self { wire, ..self }
    }

    /// The median of each figure.
    pub(crate) fn median(samples: &[Self]) -> Self {
        let wires: Vec<u64> = samples.iter().filter_map(|sample| sample.wire).collect();
        Self {
            time: middle(samples.iter().map(|sample| sample.time)).unwrap_or_default(),
            cpu: middle(samples.iter().map(|sample| sample.cpu)).unwrap_or_default(),
            peak: middle(samples.iter().map(|sample| sample.peak)).unwrap_or_default(),
            wire: middle(wires.into_iter()),
        }
    }
}

/// Runs commands and says what they took.
pub(crate) struct Meter<'a> {
    xtask: PathBuf,
    directory: PathBuf,
    far: Option<&'a Sshd>,
}

impl<'a> Meter<'a> {
    /// With `far`, what the sessions of that sshd take counts as the command's.
    pub(crate) fn new(directory: &Path, far: Option<&'a Sshd>) -> lab::Result<Self> {
        Ok(Self {
            xtask: this_program()?,
            directory: directory.to_owned(),
            far,
        })
    }

    /// What the command takes, and what it says. It must succeed.
    pub(crate) fn run(&self, command: &Command) -> lab::Result<(Sample, String)> {
        let (near, far) = (self.directory.join("near.note"), self.far_note());
        Note::take(&far);
        let before = self.far.map(Sshd::cpu).unwrap_or_default();
        let mut launcher = Command::new(&self.xtask);
        launcher.arg("bench-run").arg(&near);
        launcher
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null());
        let output = launcher
            .output()
            .map_err(|e| Error::new(format!("{launcher:?}: {e}")))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Error::new(format!(
                "{command:?}: {}\n{words}",
                output.status
            )));
        }
        let note = Note::take(&near)
            .ok_or_else(|| Error::new(format!("{}: no figures in it", near.display())))?;
        let after = self.far.map(Sshd::cpu).unwrap_or_default();
        let far_peak = Note::take(&far).map_or(0, |note| note.peak);
        let sample = Sample {
            time: note.time,
            cpu: note.cpu + after.saturating_sub(before),
            peak: note.peak.max(far_peak),
            wire: None,
        };
        Ok((sample, String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// What `bench-plain` with these arguments takes.
    pub(crate) fn plain(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>,
    ) -> lab::Result<Sample> {
        let mut command = Command::new(&self.xtask);
        command.arg("bench-plain").args(arguments);
        Ok(self.run(&command)?.0)
    }

    /// What the pipeline takes; each part of it must succeed.
    pub(crate) fn script(&self, script: &str) -> lab::Result<(Sample, String)> {
        let mut command = Command::new("bash");
        command.args(["-eu", "-o", "pipefail", "-c", script]);
        self.run(&command)
    }

    /// A program for the far end that runs `program`, with `more` after its arguments, and notes what that takes.
    pub(crate) fn far_program(
        &self,
        name: &str,
        program: &Path,
        more: &str,
    ) -> lab::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.directory.join(name);
        let script = format!(
            "#!/bin/sh\nexec {} bench-run {} {} \"$@\" {more}\n",
            self.xtask.display(),
            self.far_note().display(),
            program.display()
        );
        std::fs::write(&path, script)
            .and_then(|()| std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)))
            .map_err(super::failed(&path))?;
        Ok(path)
    }

    fn far_note(&self) -> PathBuf {
        self.directory.join("far.note")
    }
}

pub(crate) fn this_program() -> lab::Result<PathBuf> {
    std::env::current_exe().map_err(|e| Error::new(format!("where am I? {e}")))
}

fn middle<T: Ord>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    let middle = values.len() / 2;
    values.into_iter().nth(middle)
}

/// The middle one; of an even number, the later of the two in the middle.
pub(crate) fn median(times: &[Duration]) -> Duration {
    middle(times.iter().copied()).unwrap_or_default()
}

/// How long a command takes from its start to its end; it must succeed.
pub(crate) fn timed(command: &mut Command) -> lab::Result<Duration> {
    let start = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let output = output.and_then(std::process::Child::wait_with_output);
    let output = output.map_err(|e| Error::new(format!("{command:?}: {e}")))?;
    let time = start.elapsed();
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::new(format!(
            "{command:?}: {}\n{words}",
            output.status
        )));
    }
    Ok(time)
}

/// The most memory that a command has at once, in bytes.
///
/// From `/proc`, looked at every millisecond: the figure only grows, so what is missed is what the last millisecond
/// adds. The one that `wait4` gives would not be better, for it begins with the memory of the process that forked.
pub(crate) fn peak_memory(command: &mut Command) -> lab::Result<u64> {
    let failed = |e: std::io::Error| Error::new(format!("cannot measure: {e}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().map_err(failed)?.is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = kib.map_or(peak, |kib| peak.max(kib * 1024));
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(peak)
}

/// Takes a file of ours out of the page cache, so that the next reader goes to the disk.
pub(crate) fn forget(path: &Path) -> lab::Result<()> {
    let failed = |e: std::io::Error| Error::new(format!("{}: {e}", path.display()));
    let file = File::open(path).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(|e| failed(e.into()))
}

#[cfg(test)]
mod tests {
    use super::{Sample, median};
    use std::time::Duration;

    #[test]
    fn each_figure_has_its_own_median() {
        let sample = |time, cpu, peak, wire| Sample {
            time: Duration::from_secs(time),
            cpu: Duration::from_secs(cpu),
            peak,
            wire,
        };
        let samples = [
            sample(9, 1, 20, None),
            sample(1, 2, 30, Some(7)),
            sample(2, 3, 10, Some(5)),
        ];
        assert_eq!(Sample::median(&samples), sample(2, 2, 20, Some(7)));
        assert_eq!(Sample::median(&[]), Sample::default());
    }

    #[test]
    fn of_an_even_number_the_later_of_the_two_in_the_middle() {
        let times = [4, 1, 3, 2].map(Duration::from_secs);
        assert_eq!(median(&times), Duration::from_secs(3));
        assert_eq!(median(&[]), Duration::ZERO);
    }
}
