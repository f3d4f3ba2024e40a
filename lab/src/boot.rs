//! One boot: starts the guest's processes, listens to its console, waits for its end or brings it about.

mod console;

use crate::error::{Error, Result, While};
use crate::job::Job;
use crate::machine::{Screen, guest_disk};
use crate::setup::Setup;
use crate::slots::{self, Slot};
use crate::stuck;
use console::Console;
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A guest that is on. Dropping it cuts its power.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// While this is open, the guest lives. None for a guest on the terminal.
    lifeline: Option<ChildStdin>,
    console: Option<Console>,
    status_file: PathBuf,
    log: PathBuf,
    started: Instant,
    deadline: Instant,
    ended: bool,
    // Last, so that it is free only when the guest is gone.
    _slot: Slot,
}

/// How a boot ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command's exit status; none when the guest did not live to its end.
    pub status: Option<i32>,
    /// It was killed for taking longer than its time limit.
    pub timed_out: bool,
    /// From power-on to halt.
    pub duration: Duration,
    /// The console, all boots of the machine one after another.
    pub log: PathBuf,
}

impl Outcome {
    /// The command ended, and well.
    pub fn success(&self) -> bool {
        self.status == Some(0)
    }

    /// The last lines of the log, for a person who asks what went wrong.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// How it ended, in words.
    pub fn describe(&self) -> String {
        let seconds = self.duration.as_secs_f64();
        match self.status {
            _ if self.timed_out => format!("killed at its time limit, after {seconds:.1} s"),
            Some(status) => format!("exit status {status} after {seconds:.1} s"),
            None => format!("ended without a status after {seconds:.1} s"),
        }
    }
}

fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Powers a guest on.
pub(crate) fn start(job: &Job, setup: &Setup, screen: Screen) -> Result<Running> {
    let slot = slots::acquire(setup.memory_mib)?;
    let status_file = job.path("status");
    let _ = std::fs::remove_file(&status_file);
    stuck::ask_nothing(job.directory());

    let mut command = command_line(job, setup, slot.cpu, screen != Screen::Terminal);
    let listener = if screen == Screen::Terminal {
        None
    } else {
        let (reader, writer) = std::io::pipe().during(|| "cannot make a pipe".to_owned())?;
        let errors = writer
            .try_clone()
            .during(|| "cannot copy a pipe".to_owned())?;
        // A group of its own: Ctrl-C on the terminal is for us, and we end the guest.
        command
            .stdin(Stdio::piped())
            .stdout(writer)
            .stderr(errors)
            .process_group(0);
        Some(reader)
    };
    let started = Instant::now();
    let mut child = command
        .spawn()
        .during(|| "cannot start linux.uml".to_owned())?;
    // Our ends of the pipe are in there: while they are open, the console has no end.
    drop(command);
    let console = match listener {
        Some(reader) => Some(Console::listen(reader, &job.log(), screen == Screen::Show)?),
        None => None,
    };
    Ok(Running {
        lifeline: child.stdin.take(),
        child,
        console,
        status_file,
        log: job.log(),
        started,
        deadline: started + setup.time_limit,
        ended: false,
        _slot: slot,
    })
}

/// A guest is several processes in a session of their own, and those that a SIGKILL to the first leaves behind do not end
/// by themselves. So a shell stands beside them and kills them all, by id, when the guest has halted or when the shell's
/// stdin ends: because the power is to be cut, or because we died, in whatever way. The kernel is stopped before anything
/// is killed: it must not see its processes die, close their files and write out what a power cut loses.
const WATCH: &str = r#"exec 3<&0
"$@" </dev/null 3<&- & guest=$!
{ read -r _ <&3; kill -STOP "$guest"; kill -KILL "-$guest" "$guest"; } 2>/dev/null &
wait "$guest"
kill -KILL "-$guest" 2>/dev/null
kill -KILL 0"#;

fn command_line(job: &Job, setup: &Setup, cpu: usize, watched: bool) -> Command {
    let directory = job.directory().display();
    let mut command = if watched {
        let mut shell = Command::new("sh");
        shell.args(["-c", WATCH, "sh", "taskset"]);
        shell
    } else {
        Command::new("taskset")
    };
    command.args(["--cpu-list", &cpu.to_string(), "linux.uml"]);
    command.arg(format!("mem={}M", setup.memory_mib));
    command.args([
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "rw",
        "quiet",
    ]);
    command.args(["con=null", "con0=fd:0,fd:1"]);
    command.args([format!("uml_dir={directory}"), "umid=uml".to_owned()]);
    command.args([
        format!("init={directory}/init"),
        format!("LAB_JOB={directory}"),
    ]);
    for n in 0..job.disks().len() {
        let device = guest_disk(n);
        // A relative path, because a comma or a colon in it would mean something.
        command.arg(format!("{}=disk{n}", device.trim_start_matches("/dev/")));
    }
    command.current_dir(job.directory());
    if let Some(directory) = memory_directory() {
        command.env("TMPDIR", directory);
    }
    command
}

/// The guest's memory is a file. On tmpfs where there is one, or each page would be written to a disk in the end.
fn memory_directory() -> Option<&'static str> {
    let statistics = rustix::fs::statvfs("/dev/shm").ok()?;
    let free = statistics.f_bavail.saturating_mul(statistics.f_frsize);
    (free > 4 << 30).then_some("/dev/shm")
}

impl Running {
    /// Waits until the console has shown `text` since power-on.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let give_up = Instant::now() + limit;
        while !self
            .console
            .as_ref()
            .is_some_and(|console| console.has_shown(text))
        {
            let over = self
                .child
                .try_wait()
                .during(|| "cannot wait for the guest".to_owned())?;
            if over.is_some() || Instant::now() > give_up.min(self.deadline) {
                let what = if over.is_some() {
                    "the guest ended"
                } else {
                    self.ask_what_runs();
                    "time ran out"
                };
                return Err(Error::new(format!(
                    "{what} before the console showed {text:?}; its log: {}",
                    self.log.display()
                )));
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Cuts the power, now: what the guest has not written to its disks is lost.
    pub fn cut(mut self) -> Result<Outcome> {
        self.kill();
        self.finish(false)
    }

    /// Waits for the guest to halt, at most to its time limit.
    pub fn wait(mut self) -> Result<Outcome> {
        loop {
            let over = self
                .child
                .try_wait()
                .during(|| "cannot wait for the guest".to_owned())?;
            if over.is_some() {
                return self.finish(false);
            }
            if Instant::now() > self.deadline {
                self.ask_what_runs();
                self.kill();
                return self.finish(true);
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// The last lines of the log so far.
    pub(crate) fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// What hangs is told in the log, where the guest can still tell it.
    fn ask_what_runs(&mut self) {
        let (Some(console), Some(directory)) = (&self.console, self.log.parent()) else {
            return;
        };
        if !stuck::ask(directory) {
            return;
        }
        let give_up = Instant::now() + stuck::PATIENCE;
        while Instant::now() < give_up
            && !console.has_shown(stuck::ANSWERED)
            && matches!(self.child.try_wait(), Ok(None))
        {
            sleep(Duration::from_millis(5));
        }
    }

    fn finish(&mut self, timed_out: bool) -> Result<Outcome> {
        self.child
            .wait()
            .during(|| "cannot wait for the guest".to_owned())?;
        self.ended = true;
        let duration = self.started.elapsed();
        if let Some(console) = self.console.take() {
            console.finish();
        }
        let status = std::fs::read_to_string(&self.status_file).unwrap_or_default();
        Ok(Outcome {
            status: status.trim().parse().ok(),
            timed_out,
            duration,
            log: self.log.clone(),
        })
    }

    fn kill(&mut self) {
        if self.lifeline.take().is_some() {
            return;
        }
        // No shell stands beside a guest on the terminal: the child is the guest, and leads its session.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.kill();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
            let _ = self.child.wait();
        }
    }
}
