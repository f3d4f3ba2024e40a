//! Two hosts and the cables between them: network namespaces of the test's own, in which a link can be cut.
//!
//! Guarantees: nothing of the machine's own network is read or changed; all of it ends with the test, however that
//! ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Both hosts. Needs root.
pub(crate) struct Network {
    near: Host,
    far: Host,
    links: usize,
}

/// A network namespace, which lives as long as the process in it.
struct Host {
    holder: Child,
}

/// One cable of a network.
#[derive(Clone, Copy)]
pub(crate) struct Link<'n> {
    network: &'n Network,
    number: usize,
}

/// The end of a cable whose interface goes down. The other one loses its carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Near,
    Far,
}

impl Network {
    /// `None` where namespaces cannot be made: not root, or no `ip`.
    pub(crate) fn new(links: usize) -> Option<Self> {
        let has_ip = Command::new("ip").arg("-V").output().is_ok();
        if !rustix::process::geteuid().is_root() || !has_ip {
            return None;
        }
        let network = Self {
            near: Host::new()?,
            far: Host::new()?,
            links,
        };
        for link in network.links() {
            link.plug();
        }
        Some(network)
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = Link<'_>> {
        (0..self.links).map(|number| Link {
            network: self,
            number,
        })
    }

    /// The words before a command that make it run on the near host.
    pub(crate) fn near(&self) -> Vec<String> {
        self.near.enter()
    }

    /// The words before a command that make it run on the far host.
    pub(crate) fn far(&self) -> Vec<String> {
        self.far.enter()
    }
}

impl Link<'_> {
    /// Address of the far host on this cable.
    pub(crate) fn far_address(&self) -> String {
        format!("10.213.{}.2", self.number)
    }

    pub(crate) fn near(&self) -> Vec<String> {
        self.network.near()
    }

    pub(crate) fn cut(&self, end: End) {
        self.set(end, "down");
    }

    /// Whole again, whichever end was down.
    pub(crate) fn mend(&self) {
        self.set(End::Near, "up");
        self.set(End::Far, "up");
    }

    fn set(&self, end: End, state: &str) {
        let number = self.number;
        match end {
            End::Near => {
                let name = format!("near{number}");
                self.network.near.ip(&["link", "set", &name, state]);
            }
            End::Far => {
                let name = format!("far{number}");
                self.network.far.ip(&["link", "set", &name, state]);
            }
        }
    }

    fn plug(&self) {
        let (near, far) = (
            format!("near{}", self.number),
            format!("far{}", self.number),
        );
        let pid = self.network.far.holder.id().to_string();
        let Network {
            near: here,
            far: there,
            ..
        } = self.network;
        here.ip(&[
            "link", "add", "name", &near, "type", "veth", "peer", "name", &far, "netns", &pid,
        ]);
        let address = |host: u8| format!("10.213.{}.{host}/24", self.number);
        here.ip(&["address", "add", &address(1), "dev", &near]);
        there.ip(&["address", "add", &address(2), "dev", &far]);
        self.mend();
    }
}

impl Host {
    fn new() -> Option<Self> {
        // Our end of the pipe is closed whatever ends this test, SIGKILL too.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo made; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut line = String::new();
        let said = BufReader::new(holder.stdout.as_mut()?).read_line(&mut line);
        if said.is_err() || line != "made\n" {
            let _ = holder.wait();
            return None;
        }
        Some(Self { holder })
    }

    fn enter(&self) -> Vec<String> {
        let namespace = format!("--net=/proc/{}/ns/net", self.holder.id());
        vec!["nsenter".to_owned(), namespace, "--".to_owned()]
    }

    #[track_caller]
    fn ip(&self, words: &[&str]) {
        let enter = self.enter();
        let output = Command::new(&enter[0])
            .args(&enter[1..])
            .arg("ip")
            .args(words)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "ip {words:?}: {}",
            super::text(&output.stderr)
        );
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
