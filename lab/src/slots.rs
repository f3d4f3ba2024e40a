//! How many guests run at once on this machine: one for each CPU while memory lasts, whatever the number of test
//! processes, threads and checkouts. A slot is a locked file in the temporary directory; the kernel frees it when its
//! process ends, however that happens.
//!
//! A slot is also a CPU. A guest is several processes that wait for each other at every system call and page fault; on
//! one CPU that is a context switch, between two it is an interrupt, and everything in the guest takes four to five
//! times longer (measured: `lvs` 0.17 s against 0.8 s).

use crate::error::{Result, While};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// The right to run one guest, on one CPU, until dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) cpu: usize,
    _locked: File,
}

/// Waits for a slot.
pub(crate) fn acquire(memory_mib: u64) -> Result<Slot> {
    let directory = directory()?;
    let cpus = cpus()?;
    loop {
        for &cpu in cpus.iter().take(fitting(memory_mib)) {
            if let Some(locked) = try_lock(&directory, cpu)? {
                return Ok(Slot {
                    cpu,
                    _locked: locked,
                });
            }
        }
        sleep(Duration::from_millis(50));
    }
}

fn try_lock(directory: &Path, cpu: usize) -> Result<Option<File>> {
    let path = directory.join(cpu.to_string());
    let file = File::create(&path).during(|| format!("cannot create {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e).during(|| format!("cannot lock {}", path.display())),
    }
}

/// One directory for each user: another's lock files cannot be opened.
fn directory() -> Result<PathBuf> {
    let user = rustix::process::getuid().as_raw();
    let path = std::env::temp_dir().join(format!("lvmsync-lab-slots-{user}"));
    std::fs::create_dir_all(&path).during(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// The CPUs that this process may use.
fn cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None).during(|| "cannot ask for this process' CPUs".to_owned())?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect())
}

/// Guests that the memory now available has room for; always one, for it may be our own limit that is wrong.
fn fitting(memory_mib: u64) -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available_kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(u64::MAX);
    usize::try_from(available_kib / 1024 / memory_mib.max(1))
        .unwrap_or(usize::MAX)
        .max(1)
}
