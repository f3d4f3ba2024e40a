//! What a test's body has at hand inside the guest: disks, a scratch directory, a shell, other hosts.

use crate::machine::quote;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// The machine that the body of a test runs on.
#[derive(Debug)]
pub struct Guest {
    pub(crate) disks: Vec<PathBuf>,
    pub(crate) scratch: PathBuf,
    pub(crate) shared: PathBuf,
    /// For the commands of [`Guest::sh`]; a test process has threads, so its own environment stays as it is.
    pub(crate) env: Vec<(String, String)>,
    /// It is a guest, and not somebody's machine.
    pub(crate) is_guest: bool,
}

/// What ends a body that wants what only a guest can give, and why; [`crate::test`] then skips the test.
pub(crate) struct NeedsGuest(pub(crate) &'static str);

impl Guest {
    /// Disk number `n`, from 0, as asked for in the setup: `/dev/ubdb`, or a loop device in direct mode.
    pub fn disk(&self, n: usize) -> &Path {
        match self.disks.get(n) {
            Some(path) => path,
            None => panic!("no disk {n}: the setup has {}", self.disks.len()),
        }
    }

    /// A directory for the test's files. In memory, unless in direct mode; gone afterwards.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// A directory on the host that all boots of a machine share.
    pub fn shared(&self) -> &Path {
        &self.shared
    }

    /// Runs shell commands (bash, stops at the first that fails) and returns what they wrote to stdout. Panics with
    /// everything they said if they fail.
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            panic!(
                "{}\n--- script\n{script}\n--- stdout\n{stdout}\n--- stderr\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        stdout
    }

    /// Runs shell commands and returns their status and output, whatever they are.
    pub fn try_sh(&self, script: &str) -> Output {
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script, "sh"]);
        command.current_dir(&self.scratch);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        match command.output() {
            Ok(output) => output,
            Err(e) => panic!("cannot run bash: {e}"),
        }
    }

    /// A volume group on disk number `n`.
    pub fn volume_group(&self, name: &str, n: usize) {
        self.sh(&format!(
            "vgcreate -qq --yes {name} {}",
            quote(&self.disk(n).to_string_lossy())
        ));
    }

    /// A logical volume, zeroed neither by LVM nor by us; returns its path.
    pub fn volume(&self, group: &str, name: &str, size: &str) -> PathBuf {
        self.sh(&format!(
            "lvcreate -qq -y -Wn -Zn -L {size} -n {name} {group} 2>&1"
        ));
        PathBuf::from(format!("/dev/{group}/{name}"))
    }

    /// In direct mode the test ends here, and is skipped for this reason.
    pub fn must_be_guest(&self, why: &'static str) {
        if !self.is_guest {
            std::panic::resume_unwind(Box::new(NeedsGuest(why)));
        }
    }

    /// Another host: a network namespace with a sshd. `ssh NAME` and `ssh -F /run/lab/ssh/config NAME` reach it as
    /// root. It has the same kernel and disks, so give it a volume group of its own. In direct mode there
    /// are none: the test ends there, and is skipped.
    pub fn host(&self, name: &str) -> Peer<'_> {
        self.must_be_guest("it needs another host");
        let address = self.sh(&format!("lab-host add {name}")).trim().to_owned();
        Peer {
            guest: self,
            name: name.to_owned(),
            address,
        }
    }

    /// Writes a line to the console that a [`crate::Driver`] on the host can wait for.
    pub fn announce(&self, text: &str) {
        eprintln!("{text}");
    }
}

/// Another host, reached through a virtual cable.
#[derive(Debug)]
pub struct Peer<'a> {
    guest: &'a Guest,
    name: String,
    address: String,
}

impl Peer<'_> {
    /// The ssh configuration in which all hosts are.
    pub const SSH_CONFIG: &'static str = "/run/lab/ssh/config";

    /// Its IPv4 address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Delays each packet, each way, and loses some.
    pub fn slow(&self, delay: Duration, loss_percent: f64) {
        let delay = delay.as_micros();
        self.lab_host(&format!(
            "netem {} delay {delay}us loss {loss_percent}%",
            self.name
        ));
    }

    /// Ends what [`Peer::slow`] did.
    pub fn fast(&self) {
        self.lab_host(&format!("netem {} none", self.name));
    }

    /// Pulls the cable: what is under way hears nothing more.
    pub fn link_down(&self) {
        self.lab_host(&format!("link {} down", self.name));
    }

    /// Puts the cable back.
    pub fn link_up(&self) {
        self.lab_host(&format!("link {} up", self.name));
    }

    /// Stops its sshd: connections are refused. Sessions under way go on.
    pub fn stop(&self) {
        self.lab_host(&format!("stop {}", self.name));
    }

    /// Starts its sshd again.
    pub fn start(&self) {
        self.lab_host(&format!("start {}", self.name));
    }

    fn lab_host(&self, arguments: &str) {
        self.guest.sh(&format!("lab-host {arguments}"));
    }
}
