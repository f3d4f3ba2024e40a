//! How the service is stopped here, and started there, or here again.
//!
//! Guarantees: what was stopped is started here again when the run fails before the volume was handed over, even if it is
//! the user who ends it; where nothing says how, the user is told.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::MigrateArgs;
use super::machine::Machine;
use crate::cancel::{Cancel, CancelableReader};
use crate::cli::output;
use crate::commands::word;
use crate::error::{Error, Result};
use crate::job::hooks;
use crate::monitor::Monitor;
use crate::session::endpoint::{Endpoint, parse_endpoint};
use clap::Args;

/// How the service is stopped and started.
#[derive(Args, Debug, Clone, Default)]
pub(super) struct PauseArgs {
    /// Stops the service here; when it returns nothing writes to the volume any more
    #[arg(long, value_name = "COMMAND", conflicts_with = "vm")]
    pause_cmd: Option<String>,

    /// The service is this virtual machine of libvirt: it is shut down
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,

    /// Suspend it instead: what its memory holds is not moved
    #[arg(long, requires = "vm")]
    vm_suspend: bool,

    /// How long its shutdown may take
    #[arg(long, value_name = "TIME", default_value = "120s", requires = "vm")]
    #[arg(value_parser = crate::units::parse_seconds)]
    vm_timeout: f64,

    /// Starts the service here again if something fails in the pause
    #[arg(long, value_name = "COMMAND")]
    back_cmd: Option<String>,

    /// Starts the service when all is there: a command that is run here
    #[arg(long, value_name = "COMMAND", conflicts_with = "resume_cmd_there")]
    resume_cmd: Option<String>,

    /// The same, run at HOST
    #[arg(long, value_name = "COMMAND")]
    resume_cmd_there: Option<String>,
}

/// What commands have in theirs.
pub(super) type Environment = Vec<(&'static str, String)>;

/// One pause.
pub(super) struct Pause<'a> {
    args: &'a PauseArgs,
    /// How commands are run at the far end.
    there: Option<String>,
    environment: Environment,
    cancel: &'a Cancel,
    begun: Option<Instant>,
    /// The service may be stopped, and the volume is still here.
    stopped: bool,
    /// Somebody was asked to stop it.
    asked: bool,
}

impl<'a> Pause<'a> {
    pub(super) fn of(args: &'a MigrateArgs, cancel: &'a Cancel) -> Result<Self> {
        let pause = &args.pause;
        let there = match parse_endpoint(&args.destination)? {
            Endpoint::Remote { host, .. } => Some(format!("{} {}", args.remote.rsh, word(&host))),
            Endpoint::Local(_) => None,
        };
        if pause.resume_cmd_there.is_some() && there.is_none() {
            return Err(Error::Usage(
                "--resume-cmd-there is run at the host of DEST, and DEST is here: use --resume-cmd"
                    .to_owned(),
            ));
        }
        let says_how = pause.pause_cmd.is_some() || pause.vm.is_some();
        if !says_how && !args.dry_run && !std::io::stdin().is_terminal() {
            return Err(Error::Usage(
                "say how the service is stopped: --pause-cmd COMMAND or --vm NAME. (On a terminal you would be asked to \
                 do it yourself; `--pause-cmd true` says that nothing writes to the volume.)"
                    .to_owned(),
            ));
        }
        Ok(Self {
            args: pause,
            there,
            environment: vec![
                ("LVMSYNC_SOURCE", args.source.clone()),
                ("LVMSYNC_DESTINATION", args.destination.clone()),
            ],
            cancel,
            begun: None,
            stopped: false,
            asked: false,
        })
    }

    /// Whatever would fail in the pause, and can be known before, fails before anything is copied.
    pub(super) fn check(&self) -> Result<()> {
        self.machine()
            .map_or(Ok(()), |machine| machine.check(self.cancel))
    }

    /// In words.
    pub(super) fn plan(&self) -> String {
        let stop = match (&self.args.pause_cmd, &self.args.vm) {
            (Some(command), _) => format!("`{command}` stops the service"),
            (None, Some(vm)) if self.args.vm_suspend => {
                format!("virtual machine {vm} is suspended")
            }
            (None, Some(vm)) => format!("virtual machine {vm} is shut down"),
            (None, None) => "you are asked to stop the service".to_owned(),
        };
        format!(
            "{stop}, the last increment is sent and read back, and {}",
            self.resume_plan()
        )
    }

    /// How it starts where the volume is then, in words.
    pub(super) fn resume_plan(&self) -> String {
        match (&self.args.resume_cmd, &self.args.resume_cmd_there) {
            (Some(command), _) => format!("`{command}` starts the service"),
            (None, Some(command)) => format!("`{command}` starts the service there"),
            (None, None) => "you start the service there".to_owned(),
        }
    }

    /// Asks, where nothing says how. False if nobody has to be waited for.
    pub(super) fn ask(&mut self) -> bool {
        if self.args.pause_cmd.is_some() || self.args.vm.is_some() {
            return false;
        }
        output::message(
            "All but the last seconds are there. Stop the service now, then press Enter.",
        );
        let _ = std::io::stderr().flush();
        self.asked = true;
        true
    }

    /// Waits for the answer, and not longer than this.
    pub(super) fn is_answered(&self, within: Duration) -> Result<bool> {
        is_readable(&output::data_in()?, within, self.cancel)
    }

    /// Takes the answer, if somebody was asked; the pause begins when this returns.
    pub(super) fn begin(&mut self) -> Result<()> {
        if self.asked {
            let mut line = String::new();
            let mut input = BufReader::new(CancelableReader::new(
                output::data_in()?,
                self.cancel.clone(),
            ));
            let read = input.read_line(&mut line);
            self.cancel.check()?;
            match read {
                Ok(0) => return Err(Error::Usage("there was no answer".to_owned())),
                Ok(_) => self.stopped = true,
                Err(error) => return Err(Error::io("cannot read the answer", error)),
            }
        }
        self.begun = Some(Instant::now());
        Ok(())
    }

    /// When it began.
    pub(super) fn begun(&self) -> Instant {
        self.begun.unwrap_or_else(Instant::now)
    }

    /// Stops the service.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.stopped = true;
        if let Some(command) = &self.args.pause_cmd {
            return self.hook(command, "the command that stops the service", self.cancel);
        }
        let Some(machine) = self.machine() else {
            return Ok(());
        };
        let (stopped, result) = machine.stop(self.cancel);
        self.stopped = stopped;
        result
    }

    /// The volume is handed over: nothing starts here again.
    pub(super) fn is_over(&mut self) {
        (self.stopped, self.asked) = (false, false);
    }

    /// Starts the service where the volume is now.
    pub(super) fn resume(&self) -> Result<()> {
        let what = "the command that starts the service";
        // The volume is there: whoever ends the run now wants it to run there all the same.
        let cancel = &Cancel::new();
        if let Some(command) = &self.args.resume_cmd {
            return self.hook(command, what, cancel);
        }
        match (&self.args.resume_cmd_there, &self.there) {
            (Some(command), Some(there)) => {
                self.hook(&format!("{there} {}", word(command)), what, cancel)
            }
            _ => Ok(()),
        }
    }

    /// After a failure: the service runs here again. Gives the error that ends the run.
    pub(super) fn give_back(&self, error: Error, monitor: &dyn Monitor) -> Error {
        if !self.stopped {
            if self.asked {
                monitor.warn("the volume was not moved: if you have stopped the service, start it here again");
            } else if self.args.vm.is_some() {
                monitor.warn("the volume was not moved; the virtual machine is left as it is");
            }
            return error;
        }
        let what = "the command that starts the service here again";
        // Whoever ended the run wants the service back all the more.
        let cancel = Cancel::new();
        let back = match (&self.args.back_cmd, self.machine()) {
            (Some(command), _) => Some(self.hook(command, what, &cancel)),
            (None, Some(machine)) => Some(machine.start_again(&cancel)),
            (None, None) => None,
        };
        match back {
            Some(Ok(())) => {
                monitor.warn("the volume was not moved; the service was started here again");
            }
            Some(Err(failed)) => monitor.warn(&format!(
                "the volume was not moved, and the service was not started here again: {}",
                failed.chain()
            )),
            None => monitor.warn("the volume was not moved: start the service here again"),
        }
        error
    }

    fn machine(&self) -> Option<Machine<'_>> {
        let name = self.args.vm.as_deref()?;
        Some(Machine {
            name: word(name),
            suspends: self.args.vm_suspend,
            timeout: Duration::try_from_secs_f64(self.args.vm_timeout).unwrap_or_default(),
            environment: &self.environment,
        })
    }

    fn hook(&self, command: &str, what: &str, cancel: &Cancel) -> Result<()> {
        hook(command, what, &self.environment, cancel)
    }
}

/// Is there something to read from `input`, or its end, within this time?
fn is_readable(input: &impl AsFd, within: Duration, cancel: &Cancel) -> Result<bool> {
    let found = cancel
        .wait_to_read(input, Some(within))
        .map_err(|error| Error::io("cannot wait for the answer", error))?;
    cancel.check()?;
    Ok(found)
}

/// Runs `command`, which is told what is moved where.
pub(super) fn hook(
    command: &str,
    what: &str,
    environment: &Environment,
    cancel: &Cancel,
) -> Result<()> {
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    hooks::run(command, what, &environment, cancel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitCode;

    #[test]
    fn an_answer_is_waited_for_until_there_is_one_or_the_run_is_told_to_stop() {
        let cancel = Cancel::new();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let within = |time| is_readable(&reader, time, &cancel);
        assert!(!within(Duration::from_millis(150)).unwrap());
        writer.write_all(b"\n").unwrap();
        assert!(within(Duration::from_secs(600)).unwrap());
        cancel.cancel();
        let error = within(Duration::from_secs(600)).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Interrupted);
    }
}
