//! Time and memory of commands and of our own loops.

use lab::Error;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The middle one; of an even number, the later of the two in the middle.
pub(crate) fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
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
