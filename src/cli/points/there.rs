//! Asks the machine of a target about its points in time: this one, or another one by the job's own ssh.
//!
//! Guarantees: what comes back is the answer to what was asked, of bounded length, or an error; no second way to another
//! machine: it is started as every far end is.

use std::io::Read;
use std::path::PathBuf;

use super::{VERB, answer};
use crate::cancel::Cancel;
use crate::cli::apply::StateArgs;
use crate::cli::progress::Terminal;
use crate::cli::remote;
use crate::cli::send::RemoteArgs;
use crate::commands::Via;
use crate::error::{Error, ExitCode, Result};
use crate::job::config::{History, JobConfig, Target};
use crate::job::points::{Listing, Point, Reply, Request, Wish, directory_name};
use crate::monitor::Words;
use crate::record::store::StateDir;
use crate::session::endpoint::{Endpoint, parse_endpoint};
use crate::session::line::Line;
use crate::session::text::sanitise;

/// More points than a grid keeps.
const MOST_ANSWER_BYTES: u64 = 16 << 20;
/// Where histories are at a far end if the job does not say.
const FAR_ROOT: &str = "/var/lib/lvmsync/history";

/// The points of one target of a job.
pub(in crate::cli) struct There<'a> {
    target: &'a Target,
    /// Where the target is, if that is another machine.
    host: Option<String>,
    /// Its volume, as it is called there; none where it collects deltas.
    volume: Option<String>,
    state: &'a StateArgs,
    terminal: &'a Terminal,
    cancel: &'a Cancel,
    directory: PathBuf,
}

impl<'a> There<'a> {
    /// `None` if the target keeps none.
    pub(in crate::cli) fn of(
        job: (&str, &JobConfig),
        target: &'a Target,
        state: &'a StateArgs,
        terminal: &'a Terminal,
        cancel: &'a Cancel,
    ) -> Result<Option<Self>> {
        if job.1.history == History::Off && !target.collects() {
            return Ok(None);
        }
        Self::at(job, target, state, terminal, cancel).map(Some)
    }

    /// Where they would be if it kept some.
    pub(in crate::cli) fn at(
        (name, job): (&str, &JobConfig),
        target: &'a Target,
        state: &'a StateArgs,
        terminal: &'a Terminal,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let endpoint = parse_endpoint(&target.to)?;
        let root = match (&job.history, &endpoint) {
            _ if target.collects() => None,
            (History::Below(root), _) => Some(root.clone()),
            (_, Endpoint::Remote { .. }) => Some(PathBuf::from(FAR_ROOT)),
            (_, Endpoint::Local(_)) => Some(
                StateDir::choose(state.state_dir.as_deref())
                    .path()
                    .join("history"),
            ),
        };
        let (host, path) = match endpoint {
            Endpoint::Remote { host, path } => (Some(host), path),
            Endpoint::Local(path) => (None, path.to_string_lossy().into_owned()),
        };
        let directory = match root {
            Some(root) => root.join(name).join(directory_name(&path)),
            None => PathBuf::from(&path),
        };
        // Undo files are named in the records of that machine: as the path that they really have.
        let directory = std::path::absolute(&directory).unwrap_or(directory);
        Ok(Self {
            target,
            host,
            volume: (!target.collects()).then_some(path),
            state,
            terminal,
            cancel,
            directory,
        })
    }

    /// Where the files are, at the machine of the target.
    pub(in crate::cli) fn directory(&self) -> &PathBuf {
        &self.directory
    }

    /// The files that lead to `point`, as they are called there.
    pub(in crate::cli) fn files_of(&self, point: &Point) -> Vec<String> {
        let path = |file: &String| self.directory.join(file).to_string_lossy().into_owned();
        point.files.iter().map(path).collect()
    }

    /// The volume of the target, as it is called there; none where it collects deltas.
    pub(in crate::cli) fn volume(&self) -> Option<&str> {
        self.volume.as_deref()
    }

    /// How the user runs a command there, if that is another machine.
    pub(in crate::cli) fn via(&self) -> Option<Via> {
        let host = self.host.as_deref()?;
        Some(remote::via(&remote_args(self.target), host))
    }

    /// What is there to go back to.
    pub(in crate::cli) fn list(&self) -> Result<Listing> {
        match self.ask(Wish::List)? {
            Reply::Listing(listing) => Ok(listing),
            _ => Err(unexpected(self.target)),
        }
    }

    pub(in crate::cli) fn ask(&self, wish: Wish) -> Result<Reply> {
        let request = Request {
            directory: self.directory.clone(),
            destination: self.volume.clone(),
            wish,
        };
        match &self.host {
            None => answer(&request, self.state, self.cancel, &Words(self.terminal)),
            Some(host) => self.ask_far(host, &request),
        }
    }

    fn ask_far(&self, host: &str, request: &Request) -> Result<Reply> {
        let text = serde_json::to_string(request)
            .map_err(|error| Error::io("cannot write a request", error.into()))?;
        let remote = remote_args(self.target);
        let mut end = remote::start(&remote, &self.terminal.speaker(), host, &[VERB, &text])?;
        let stdout = end.take_stdout()?;
        let line = Line::new(self.cancel.clone(), None);
        let mut answer = Vec::new();
        let read = line
            .reader(stdout)
            .take(MOST_ANSWER_BYTES)
            .read_to_end(&mut answer);
        self.cancel.check()?;
        let ended = end.wait(&|| self.cancel.is_cancelled());
        read.map_err(|error| Error::io(format!("cannot read what {host} answers"), error))?;
        let host = sanitise(host);
        match serde_json::from_slice(&answer) {
            Ok(Reply::Failed { code, message }) => Err(Error::RemoteFailed {
                host,
                message: sanitise_lines(&message),
                code: ExitCode::from_number(code).unwrap_or(ExitCode::Failed),
                recover: String::new(),
            }),
            Ok(reply) => Ok(reply),
            Err(_) => {
                ended?;
                Err(Error::Remote {
                    host,
                    reason: "it gave no answer about the history that it keeps. That takes the same lvmsync there, and a \
                             login that may run it: a forced command with `serve` keeps no history"
                        .to_owned(),
                })
            }
        }
    }
}

/// How the far end of a target is reached.
pub(in crate::cli) fn remote_args(target: &Target) -> RemoteArgs {
    RemoteArgs {
        rsh: target.rsh.clone(),
        sudo: target.sudo,
        remote_path: target.remote_path.clone(),
        retries: crate::cli::send::RETRIES,
        ..RemoteArgs::default()
    }
}

fn sanitise_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(sanitise).collect();
    lines.join("\n")
}

/// An answer to something else than was asked.
pub(in crate::cli) fn unexpected(target: &Target) -> Error {
    Error::Remote {
        host: target.to.clone(),
        reason: "it answered something else than it was asked".to_owned(),
    }
}
