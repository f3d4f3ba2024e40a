//! A sshd of the benchmarks' own on the loopback device, with keys of its own: ssh as it is, less the network.
//!
//! Guarantees: nothing of the machine's own ssh is read or changed; it ends with this process, however that ends.

use super::failed;
use crate::packages;
use lab::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where it listens.
pub(crate) const HOST: &str = "127.0.0.1";

/// A running sshd.
pub(crate) struct Sshd {
    /// Its shell, which ends it once the pipe from us is closed.
    guard: Child,
    pid: u32,
    directory: PathBuf,
    port: u16,
}

impl Sshd {
    pub(crate) fn start(scratch: &Path) -> lab::Result<Self> {
        // The limits of the hardware need it, whatever benchmark is asked for.
        packages::install_these(&packages::FOR_KILLS[..2])?;
        let directory = scratch.join("sshd");
        fs::create_dir_all(&directory).map_err(failed(&directory))?;
        for key in ["host_key", "user_key"] {
            let path = directory.join(key);
            let _ = fs::remove_file(&path);
            let status = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(&path)
                .status()
                .map_err(|e| Error::new(format!("ssh-keygen: {e}")))?;
            if !status.success() {
                return Err(Error::new("ssh-keygen makes no keys"));
            }
        }
        if rustix::process::geteuid().is_root() {
            // What sshd of Debian wants, and the package's service would make.
            let _ = fs::create_dir("/run/sshd");
        }
        // Somebody may take the port between the look and the start.
        for _ in 0..5 {
            if let Some(sshd) = Self::listen(&directory).map_err(failed(&directory))? {
                return Ok(sshd);
            }
        }
        let log = fs::read_to_string(directory.join("sshd.log")).unwrap_or_default();
        Err(Error::new(format!("sshd does not answer\n{log}")))
    }

    fn listen(directory: &Path) -> std::io::Result<Option<Self>> {
        let port = TcpListener::bind((HOST, 0))?.local_addr()?.port();
        let here = directory.display();
        let host_key = fs::read_to_string(directory.join("host_key.pub"))?;
        fs::write(
            directory.join("known_hosts"),
            format!("[{HOST}]:{port} {host_key}"),
        )?;
        fs::write(
            directory.join("sshd_config"),
            format!(
                "Port {port}\nListenAddress {HOST}\nHostKey {here}/host_key\nAuthorizedKeysFile {here}/user_key.pub\n\
                 PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nUseDNS no\n\
                 PrintMotd no\nPrintLastLog no\nMaxStartups 100\nLogLevel ERROR\n"
            ),
        )?;
        // The pipe is closed whatever ends this process, SIGKILL too.
        let script = "\"$@\" & pid=$!; echo $pid; cat; kill $pid; wait $pid";
        let mut guard = Command::new("sh")
            .args(["-c", script, "sh", program(), "-D", "-e", "-f"])
            .arg(directory.join("sshd_config"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(directory.join("sshd.log"))?)
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = guard.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let sshd = Self {
            guard,
            pid: line.trim().parse().map_err(std::io::Error::other)?,
            directory: directory.to_owned(),
            port,
        };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            let tried = Command::new("sh")
                .arg("-c")
                .arg(sshd.run("true"))
                .output()?;
            if tried.status.success() {
                return Ok(Some(sshd));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(None)
    }

    /// The remote shell, as `lvmsync -e` and `rsync -e` take it.
    pub(crate) fn rsh(&self) -> String {
        let directory = self.directory.display();
        format!(
            "ssh -F none -p {} -i {directory}/user_key -o BatchMode=yes -o IdentitiesOnly=yes -o LogLevel=ERROR \
             -o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=none -o UserKnownHostsFile={directory}/known_hosts",
            self.port
        )
    }

    /// A command of a local shell that runs `script`, which has no single quotes, in the far one.
    pub(crate) fn run(&self, script: &str) -> String {
        format!("{} {HOST} '{script}'", self.rsh())
    }

    /// What all sessions that have ended took, with everything that they ran.
    ///
    /// A session is reaped a moment after its client has gone, so this waits for that.
    pub(crate) fn cpu(&self) -> Duration {
        let children = format!("/proc/{0}/task/{0}/children", self.pid);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2)
            && fs::read_to_string(&children).is_ok_and(|text| !text.trim().is_empty())
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let ticks = childrens_ticks(&stat).unwrap_or(0);
        let second = rustix::param::clock_ticks_per_second().max(1);
        Duration::from_millis(ticks * 1000 / second)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// Debian puts it where an ordinary user's PATH does not go.
fn program() -> &'static str {
    let places = ["/usr/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd"];
    let found = places.into_iter().find(|path| Path::new(path).exists());
    found.unwrap_or("sshd")
}

/// User and system time of the children that were waited for, from `/proc/PID/stat`.
fn childrens_ticks(stat: &str) -> Option<u64> {
    // The name may hold blanks and parentheses; what is after the last one does not.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(13);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::childrens_ticks;

    #[test]
    fn the_times_of_children_are_the_16th_and_17th_field() {
        let stat = "12 (a (b) c) S 4 5 6 7 8 9 10 11 12 13 14 15 160 170 18 19";
        assert_eq!(childrens_ticks(stat), Some(330));
        assert_eq!(childrens_ticks("12 (a) S 4"), None);
    }
}
