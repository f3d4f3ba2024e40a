//! The run's side of the guard.
//!
//! Guarantees: the guard is a child in a session of its own, so that Ctrl-C does not reach it; when this handle
//! goes, so does what it holds, and the drop waits until it is given back. A run that is told to stop does not wait
//! for an answer any more.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::VERB;
use super::message::{Answer, MAX_LINE_BYTES, Request, error_of};
use crate::cancel::{Cancel, CancelableReader};
use crate::dm::name::LvName;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::record::store::StateDir;
use crate::sys::device::DeviceNumber;

/// A snapshot that a guard has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What it is called.
    pub name: LvName,
    /// LVM's UUID of it.
    pub uuid: String,
    /// Of a thick one: the room for what is written to its origin.
    pub store_bytes: Option<u64>,
}

/// A running guard.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    /// Closed to end it.
    requests: Option<ChildStdin>,
    answers: BufReader<CancelableReader<ChildStdout>>,
    cancel: Cancel,
}

impl Guard {
    /// Starts one: this very program under a hidden verb.
    pub fn start(state: &StateDir, cancel: &Cancel) -> Result<Self> {
        let failed = |error| Error::io("cannot start the guard process", error);
        let mut child = Command::new("/proc/self/exe")
            .arg0("lvmsync")
            .arg(VERB)
            .arg("--state-dir")
            .arg(state.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        Ok(Self {
            child,
            requests: Some(requests),
            answers: BufReader::new(CancelableReader::new(answers, cancel.clone())),
            cancel: cancel.clone(),
        })
    }

    /// Activates a volume, read-only, for as long as the guard lives.
    pub fn activate(&mut self, name: &LvName, uuid: &str, monitor: &dyn Monitor) -> Result<()> {
        let request = Request::Activate {
            volume: name.to_string(),
            uuid: uuid.to_owned(),
        };
        match self.ask(&request, monitor)? {
            Answer::Active {} => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Reserves the metadata snapshot of a pool or an era device; the block of its superblock.
    pub fn reserve(&mut self, pool: DeviceNumber, monitor: &dyn Monitor) -> Result<u64> {
        let pool = pool.to_string();
        match self.ask(&Request::Reserve { pool }, monitor)? {
            Answer::Reserved { root } => Ok(root),
            other => Err(unexpected(&other)),
        }
    }

    /// Releases it. Only after this is what was read known to be good.
    pub fn release(&mut self, monitor: &dyn Monitor) -> Result<()> {
        match self.ask(&Request::Release {}, monitor)? {
            Answer::Released {} => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a snapshot of a volume, which goes with the guard unless it is kept.
    pub fn snapshot(
        &mut self,
        of: &LvName,
        uuid: &str,
        chosen: (Option<&str>, Option<u64>),
        monitor: &dyn Monitor,
    ) -> Result<Snapshot> {
        let request = Request::Snapshot {
            volume: of.to_string(),
            uuid: uuid.to_owned(),
            name: chosen.0.map(str::to_owned),
            size_bytes: chosen.1,
        };
        match self.ask(&request, monitor)? {
            Answer::Made {
                name,
                uuid,
                store_bytes,
            } => Ok(Snapshot {
                name: LvName::parse(&name).ok_or_else(|| Error::Lvm {
                    what: "the guard process".to_owned(),
                    reason: format!("it says that it made `{name}`, which is no name"),
                })?,
                uuid,
                store_bytes,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Leaves the snapshot that was made to the user.
    pub fn keep(&mut self, monitor: &dyn Monitor) -> Result<()> {
        match self.ask(&Request::Keep {}, monitor)? {
            Answer::Kept {} => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&mut self, request: &Request, monitor: &dyn Monitor) -> Result<Answer> {
        let gone = |error| Error::io("the guard process is gone", error);
        let mut line = serde_json::to_vec(request).map_err(|error| gone(error.into()))?;
        line.push(b'\n');
        let out = self.requests.as_mut();
        out.ok_or(io::ErrorKind::BrokenPipe.into())
            .and_then(|out| out.write_all(&line))
            .map_err(gone)?;
        loop {
            let answer = self.answer();
            // The guard hears that nobody waits when its input closes.
            self.cancel.check()?;
            match answer.map_err(gone)? {
                Answer::Note { text } => monitor.remark(&text),
                Answer::Failed { code, text, held } => return Err(error_of(code, &text, held)),
                answer => return Ok(answer),
            }
        }
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let mut line = Vec::new();
        self.answers
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&line).map_err(io::Error::from)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.requests.take());
        // What could not be given back the guard has said on stderr, which is ours.
        let _ = self.child.wait();
    }
}

fn unexpected(answer: &Answer) -> Error {
    Error::Lvm {
        what: "the guard process".to_owned(),
        reason: format!("an answer to another question: {answer:?}"),
    }
}
