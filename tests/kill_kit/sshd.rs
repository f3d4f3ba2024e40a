//! A sshd of the test's own, on a free port of the loopback device, with keys of its own.
//!
//! Guarantees: nothing of the machine's own ssh is read or changed; it ends with the test, however that ends.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running sshd.
pub(crate) struct Sshd {
    /// Its shell, which ends it once the pipe from us is closed.
    guard: Child,
    directory: tempfile::TempDir,
    port: u16,
}

/// Debian puts it where an ordinary user's PATH does not go.
fn program() -> Option<PathBuf> {
    let places = ["/usr/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd"];
    let has_client = ["/usr/bin/ssh", "/bin/ssh"]
        .iter()
        .any(|path| Path::new(path).exists());
    let found = places.iter().map(PathBuf::from).find(|path| path.exists());
    found.filter(|_| has_client)
}

impl Sshd {
    /// `None` where there is no sshd: `cargo xtask test` installs it.
    pub(crate) fn start() -> Option<Self> {
        let program = program()?;
        let directory = tempfile::tempdir().unwrap();
        for key in ["host_key", "user_key"] {
            let path = directory.path().join(key);
            let status = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(&path)
                .status()
                .unwrap();
            assert!(status.success(), "ssh-keygen");
        }
        if rustix::process::geteuid().is_root() {
            // What sshd of Debian wants, and the package's service would make.
            let _ = fs::create_dir("/run/sshd");
        }
        // Somebody may take the port between the look and the start.
        let (guard, port) = (0..5)
            .find_map(|_| start_on_free_port(&program, directory.path()))
            .expect("sshd does not start");
        let host_key = fs::read_to_string(directory.path().join("host_key.pub")).unwrap();
        let known = format!("[127.0.0.1]:{port} {host_key}");
        fs::write(directory.path().join("known_hosts"), known).unwrap();
        Some(Self {
            guard,
            directory,
            port,
        })
    }

    /// What `lvmsync -e` takes; the host is 127.0.0.1.
    pub(crate) fn rsh(&self) -> String {
        let directory = self.directory.path().display();
        format!(
            "ssh -F none -p {} -i {directory}/user_key -o BatchMode=yes -o IdentitiesOnly=yes -o LogLevel=ERROR \
             -o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=none -o UserKnownHostsFile={directory}/known_hosts",
            self.port
        )
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

fn start_on_free_port(program: &Path, directory: &Path) -> Option<(Child, u16)> {
    let port = TcpListener::bind("127.0.0.1:0")
        .ok()?
        .local_addr()
        .ok()?
        .port();
    let here = directory.display();
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {here}/host_key\nAuthorizedKeysFile {here}/user_key.pub\n\
         PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nUseDNS no\n\
         PrintMotd no\nPrintLastLog no\nMaxStartups 100\nLogLevel ERROR\n"
    );
    fs::File::create(directory.join("sshd_config"))
        .and_then(|mut file| file.write_all(config.as_bytes()))
        .ok()?;
    // The pipe is closed whatever ends this test, SIGKILL too.
    let script = "\"$@\" & pid=$!; cat; kill $pid; wait $pid";
    let mut guard = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(program)
        .args(["-D", "-e", "-f"])
        .arg(directory.join("sshd_config"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(fs::File::create(directory.join("sshd.log")).ok()?)
        .spawn()
        .ok()?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some((guard, port));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(guard.stdin.take());
    let _ = guard.wait();
    let log = fs::read_to_string(directory.join("sshd.log"));
    println!("sshd: {}", log.unwrap_or_default());
    None
}
