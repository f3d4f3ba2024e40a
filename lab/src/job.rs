//! A job's directory on the host: the guest's disks, what it shall run, what it said. It is removed when all went well
//! and keeps the log when it did not.

use crate::error::{Error, Result, While};
use crate::setup::Setup;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug)]
pub(crate) struct Job {
    directory: PathBuf,
    disks: Vec<PathBuf>,
    failed: bool,
}

impl Job {
    pub(crate) fn create(name: &str, setup: &Setup) -> Result<Self> {
        let directory = new_directory(name)?;
        let mut job = Self {
            directory,
            disks: Vec::new(),
            failed: false,
        };
        for (file, text) in [
            ("init", include_str!("../guest/init")),
            ("lab-host", include_str!("../guest/lab-host")),
            ("systemd", include_str!("../guest/systemd")),
        ] {
            job.write(file, text)?;
            let path = job.path(file);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                .during(|| format!("cannot make {} executable", path.display()))?;
        }
        if let Some(before) = &setup.systemd {
            job.write("before", before)?;
        }
        for (n, &bytes) in setup.disks.iter().enumerate() {
            let path = job.path(&format!("disk{n}"));
            File::create(&path)
                .and_then(|file| file.set_len(bytes))
                .during(|| format!("cannot create {}", path.display()))?;
            job.disks.push(path);
        }
        Ok(job)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn disks(&self) -> &[PathBuf] {
        &self.disks
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path("console.log")
    }

    pub(crate) fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path(file);
        fs::write(&path, text).during(|| format!("cannot write {}", path.display()))
    }

    /// Keep the log: somebody will want to read it.
    pub(crate) fn keep(&mut self) {
        self.failed = true;
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if std::env::var_os("LVMSYNC_LAB_KEEP").is_some() {
            eprintln!("lab: kept {}", self.directory.display());
        } else if self.failed || std::thread::panicking() {
            for disk in &self.disks {
                let _ = fs::remove_file(disk);
            }
        } else {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// `target/lab/NAME.PID.N`, below the target directory that the running program was built into.
fn new_directory(name: &str) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let exe = std::env::current_exe().during(|| "cannot find the running program".to_owned())?;
    let base = exe
        .ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").exists())
        .map_or_else(std::env::temp_dir, Path::to_owned)
        .join("lab");
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = base.join(format!("{name}.{}.{count}", std::process::id()));
    // The kernel command line splits at spaces, and has no way of its own to quote a path.
    if directory
        .to_string_lossy()
        .contains(|c: char| c.is_whitespace() || c == '"')
    {
        return Err(Error::new(format!(
            "the lab cannot run below a directory with a space in its name: {}",
            base.display()
        )));
    }
    sweep(&base);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).during(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

/// Removes what a killed test process left: a directory that still has disks, of a process that is no more.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.rsplit('.').nth(1)) else {
            continue;
        };
        let gone = !Path::new("/proc").join(pid).exists();
        if gone && entry.path().join("disk0").exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
