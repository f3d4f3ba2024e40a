//! Starts the far end through ssh, or what stands in for it, and finds out why it failed.
//!
//! Guarantees: every word that reaches the remote shell went through [`quote`]; a host that ssh could
//! take for an option is refused; what the far end and ssh wrote to stderr is relayed as it comes, and
//! its end is read before an error is composed from it; the child is ended and reaped on every path.

use std::io::{self, Read};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SessionError;
use super::client::{Client, SessionEvents};
use super::endpoint::check_host;
use super::line::{Line, LineReader, LineWriter};
use super::relay::Relay;
use super::remote_words::{Stage, diagnose, is_lost};
use super::text::sanitise;
pub use crate::commands::quote;
use crate::error::{Error, Result};

/// The default for [`RemoteOptions::rsh`].
pub const DEFAULT_RSH: &str = "ssh";
/// How long a child whose input or output is closed may take to end by itself.
pub const END_GRACE: Duration = Duration::from_secs(5);
const SILENT_GRACE: Duration = Duration::from_millis(300);
/// How long the end of its stderr is waited for once it has ended: another process may hold it.
const STDERR_GRACE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);

/// How to reach and start the far end.
#[derive(Clone, Debug, Default)]
pub struct RemoteOptions {
    /// Program and options in place of `ssh`, split as a shell would; nothing else of a shell applies.
    pub rsh: Option<String>,
    /// The far lvmsync, if not `lvmsync` in the PATH of that login.
    pub remote_path: Option<String>,
    /// Run it there through `sudo -n`.
    pub sudo: bool,
}

/// Hears each line of the far end's stderr, as `host: text`, fit to be shown.
pub type OnLine = Box<dyn Fn(&str) + Send>;

/// The client of a session with a [`RemoteEnd`].
pub type RemoteClient = Client<LineReader<ChildStdout>, LineWriter<ChildStdin>>;

/// The command line for the far shell: `[sudo -n] lvmsync ARGS...`, each word quoted.
pub fn remote_command(options: &RemoteOptions, arguments: &[&str]) -> Result<String> {
    let program = options.remote_path.as_deref().unwrap_or("lvmsync");
    if program.is_empty() || program.starts_with('-') {
        return Err(Error::Usage(format!(
            "--remote-path: `{}` is not a program",
            sanitise(program)
        )));
    }
    let sudo: &[&str] = if options.sudo { &["sudo", "-n"] } else { &[] };
    let words = sudo.iter().chain([&program]).chain(arguments);
    let quoted: Option<Vec<String>> = words.map(|word| quote(word)).collect();
    quoted
        .map(|words| words.join(" "))
        .ok_or_else(|| Error::Usage("an argument for the far end contains a NUL byte".to_owned()))
}

/// A started far end.
pub struct RemoteEnd {
    host: String,
    rsh_program: String,
    child: Child,
    stdout: Option<ChildStdout>,
    relay: Relay,
    stage: Stage,
}

impl RemoteEnd {
    /// Starts `lvmsync ARGUMENTS` at `host`. Its stdin and stdout are pipes, its stderr goes to `on_line`.
    pub fn start(
        host: &str,
        options: &RemoteOptions,
        arguments: &[&str],
        on_line: OnLine,
    ) -> Result<Self> {
        check_host(host)
            .map_err(|reason| Error::Usage(format!("`{}`: {reason}", sanitise(host))))?;
        let rsh = options.rsh.as_deref().unwrap_or(DEFAULT_RSH);
        let words = shlex::split(rsh).unwrap_or_default();
        let Some((program, rsh_options)) = words
            .split_first()
            .filter(|(program, _)| !program.is_empty())
        else {
            return Err(Error::Usage(format!(
                "--rsh: `{}` is not a command",
                sanitise(rsh)
            )));
        };
        let mut child = Command::new(program)
            .args(rsh_options)
            .arg(host)
            .arg(remote_command(options, arguments)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| cannot_start(host, program, &error))?;
        let stdout = child.stdout.take();
        let relay = Relay::new(host, on_line);
        let end = Self {
            host: sanitise(host),
            rsh_program: program.clone(),
            stdout,
            relay,
            stage: Stage::Starting,
            child,
        };
        end.with_stderr_relayed()
    }

    /// False once it has ended, whatever the reason.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn with_stderr_relayed(mut self) -> Result<Self> {
        if let Some(stderr) = self.child.stderr.take() {
            self.relay_from::<ChildStderr>(stderr)?;
        }
        Ok(self)
    }

    fn relay_from<R: Read + Send + 'static>(&mut self, input: R) -> Result<()> {
        self.relay
            .add(input)
            .map_err(|error| Error::io("cannot start a thread", error))
    }

    /// Greets the far end, which was started with `serve`, over `line`, whose timeout greeting and Hello
    /// together may take. On failure says why, as far as can be known.
    pub fn connect(
        &mut self,
        line: &Line,
        requires: &[&str],
        events: Arc<dyn SessionEvents>,
    ) -> Result<RemoteClient> {
        self.connect_within(line.timeout(), line, requires, events)
    }

    /// The same, and greeting and Hello may take no longer than `limit`.
    pub fn connect_within(
        &mut self,
        limit: Option<Duration>,
        line: &Line,
        requires: &[&str],
        events: Arc<dyn SessionEvents>,
    ) -> Result<RemoteClient> {
        let (Some(stdin), Some(stdout)) = (self.child.stdin.take(), self.stdout.take()) else {
            return Err(self.remote_error("its input and output are already in use".to_owned()));
        };
        // The pipe to the child's stdin was made here, and only this end of it is ours alone.
        let (reader, writer) = (line.reader(stdout), line.own_writer(stdin));
        line.begins_within(limit);
        let client = Client::connect_within(reader, writer, requires, events, line.timeout())
            .map_err(|error| self.explain(error))?;
        line.has_begun();
        self.stage = Stage::Running;
        Ok(client)
    }

    /// Turns what the session ended with into the run's error. Where the far end reported an error, that
    /// is all; else what became of the child and what it wrote tell why the connection failed. The
    /// session's own ends of the pipes must be dropped by now.
    pub fn explain(&mut self, error: SessionError) -> Error {
        if matches!(
            error,
            SessionError::Reported(_)
                | SessionError::Incompatible(_)
                | SessionError::Stopped { code: 1.., .. }
        ) {
            self.end();
            return error.into_error(&self.host);
        }
        // Not started, or gone: it ends by itself. One that waits for something else is ended, and one that
        // was waited for in vain soon.
        let grace = match error {
            SessionError::Silent { .. } => SILENT_GRACE,
            _ => END_GRACE,
        };
        let status = self.wait_at_most(grace);
        self.end();
        let words = self.relay.words(STDERR_GRACE);
        let reason = diagnose(self.stage, &self.rsh_program, status, &words, Some(&error));
        let host = self.host.clone();
        if is_lost(self.stage, status, &error) {
            return Error::Lost { host, reason };
        }
        Error::Remote { host, reason }
    }

    /// After Done: lets the child end by itself. What it says now changes nothing.
    pub fn close(self) {
        self.close_within(END_GRACE);
    }

    /// The same, with another limit.
    pub fn close_within(mut self, limit: Duration) {
        self.child.stdin.take();
        self.wait_at_most(limit);
        self.end();
        self.relay.words(Duration::from_millis(200));
    }

    /// For the original lvmsync, started with `--apply - DEST`, which answers with its exit code alone:
    /// takes its stdin, to which the stream is written. Its stdout is relayed like its stderr.
    pub fn take_stdin(&mut self) -> Result<ChildStdin> {
        if let Some(stdout) = self.stdout.take() {
            self.relay_from(stdout)?;
        }
        let stdin = self.child.stdin.take();
        stdin.ok_or_else(|| self.remote_error("its input is already in use".to_owned()))
    }

    /// For a far end that answers in one go and is told nothing: closes its input, and takes its output.
    pub fn take_stdout(&mut self) -> Result<ChildStdout> {
        self.child.stdin.take();
        let stdout = self.stdout.take();
        stdout.ok_or_else(|| self.remote_error("its output is already in use".to_owned()))
    }

    /// Waits, once the stdin from [`Self::take_stdin`] is dropped, for a child without a session.
    /// Success is exit code 0. Call it after a failed write as well: it knows the reason.
    pub fn wait(mut self, is_cancelled: &dyn Fn() -> bool) -> Result<()> {
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if is_cancelled() => return Err(Error::Interrupted),
                Ok(None) => std::thread::sleep(POLL),
                Err(error) => return Err(Error::io("cannot wait for the far end", error)),
            }
        };
        let words = self.relay.words(STDERR_GRACE);
        if status.success() {
            return Ok(());
        }
        let reason = diagnose(Stage::Compat, &self.rsh_program, Some(status), &words, None);
        Err(self.remote_error(reason))
    }

    fn remote_error(&self, reason: String) -> Error {
        Error::Remote {
            host: self.host.clone(),
            reason,
        }
    }

    fn wait_at_most(&mut self, limit: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if start.elapsed() < limit => std::thread::sleep(POLL),
                _ => return None,
            }
        }
    }

    /// Both calls do nothing to a child that was reaped.
    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for RemoteEnd {
    fn drop(&mut self) {
        self.end();
    }
}

fn cannot_start(host: &str, program: &str, error: &io::Error) -> Error {
    let program = sanitise(program);
    let reason = match error.kind() {
        io::ErrorKind::NotFound => format!(
            "cannot start `{program}` to reach it: there is no such program here. \
             Install it (Debian: openssh-client), or name another with --rsh"
        ),
        _ => format!("cannot start `{program}` to reach it: {error}"),
    };
    Error::Remote {
        host: sanitise(host),
        reason,
    }
}
