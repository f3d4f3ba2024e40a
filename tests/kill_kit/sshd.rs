//! A sshd of the test's own, on a free port of the loopback device or on the far host of a network, with keys of its
//! own.
//!
//! Guarantees: nothing of the machine's own ssh is read or changed; it ends with the test, however that ends.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::network::Network;

/// A running sshd.
pub(crate) struct Sshd {
    /// Its shell, which ends it once the pipe from us is closed.
    guard: Child,
    directory: tempfile::TempDir,
    /// The words before a command that make it run where this listens.
    enter: Vec<String>,
    addresses: Vec<String>,
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
    /// On the loopback device. `None` where there is no sshd: `cargo xtask test` installs it.
    pub(crate) fn start() -> Option<Self> {
        // Somebody may take the port between the look and the start.
        (0..5).find_map(|_| {
            let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?;
            Self::listen(vec!["127.0.0.1".to_owned()], port.port(), &[], vec![])
        })
    }

    /// On the far host, for clients on the near one.
    pub(crate) fn start_in(network: &Network) -> Option<Self> {
        let addresses = network.links().map(|link| link.far_address()).collect();
        Self::listen(addresses, 22, &network.far(), network.near())
    }

    fn listen(
        addresses: Vec<String>,
        port: u16,
        enter: &[String],
        client: Vec<String>,
    ) -> Option<Self> {
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
        let host_key = fs::read_to_string(directory.path().join("host_key.pub")).unwrap();
        let known = addresses
            .iter()
            .map(|address| format!("{} {host_key}", with_port(address, port)));
        fs::write(
            directory.path().join("known_hosts"),
            known.collect::<String>(),
        )
        .unwrap();
        let listening = Self {
            guard: start(&program, directory.path(), enter, &addresses, port)?,
            directory,
            enter: client,
            addresses,
            port,
        };
        listening.wait_until_it_answers().then_some(listening)
    }

    fn wait_until_it_answers(&self) -> bool {
        let start = Instant::now();
        let rsh = self.rsh();
        let words = self.enter.iter().map(String::as_str).chain(rsh.split(' '));
        let words: Vec<&str> = words.chain([&*self.addresses[0], "true"]).collect();
        while start.elapsed() < Duration::from_secs(10) {
            let tried = Command::new(words[0]).args(&words[1..]).output().unwrap();
            if tried.status.success() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = fs::read_to_string(self.directory.path().join("sshd.log"));
        println!("sshd: {}", log.unwrap_or_default());
        false
    }

    /// What `lvmsync -e` takes.
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

/// As `known_hosts` names it.
fn with_port(address: &str, port: u16) -> String {
    if port == 22 {
        address.to_owned()
    } else {
        format!("[{address}]:{port}")
    }
}

fn start(
    program: &Path,
    directory: &Path,
    enter: &[String],
    addresses: &[String],
    port: u16,
) -> Option<Child> {
    let here = directory.display();
    let listen = addresses
        .iter()
        .map(|address| format!("ListenAddress {address}\n"));
    let listen: String = listen.collect();
    // Sessions whose link is gone must not outlive the test for long.
    let config = format!(
        "Port {port}\n{listen}HostKey {here}/host_key\nAuthorizedKeysFile {here}/user_key.pub\n\
         PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nUseDNS no\n\
         PrintMotd no\nPrintLastLog no\nMaxStartups 100\nLogLevel ERROR\nClientAliveInterval 5\n"
    );
    fs::File::create(directory.join("sshd_config"))
        .and_then(|mut file| file.write_all(config.as_bytes()))
        .ok()?;
    // The pipe is closed whatever ends this test, SIGKILL too.
    let script = "\"$@\" & pid=$!; cat; kill $pid; wait $pid";
    let before = enter.iter().map(String::as_str);
    let words: Vec<&str> = before.chain(["sh", "-c", script, "sh"]).collect();
    Command::new(words[0])
        .args(&words[1..])
        .arg(program)
        .args(["-D", "-e", "-f"])
        .arg(directory.join("sshd_config"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(fs::File::create(directory.join("sshd.log")).ok()?)
        .spawn()
        .ok()
}
