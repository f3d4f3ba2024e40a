//! `cargo xtask lab`: a guest for a script or for a person.

use crate::Done;
use crate::build::lvmsync;
use clap::{Args, Subcommand};
use lab::{Error, Machine, Screen, Setup};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Subcommand)]
pub(crate) enum Lab {
    /// Run a script as root in a guest. Its exit status is this command's.
    ///
    /// Disks are /dev/ubdb, /dev/ubdc, …; `lab-host add NAME` makes another host, which `ssh NAME` then reaches;
    /// what it writes to $LAB_JOB is on the real file system.
    Run {
        /// A script for bash.
        script: PathBuf,
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// A root shell in a guest, on this terminal, with lvmsync in its PATH. `exit` ends it.
    Shell {
        #[command(flatten)]
        machine: MachineArgs,
    },
}

#[derive(Args)]
pub(crate) struct MachineArgs {
    /// A disk of this size; may be given several times [default: two of 1G]
    #[arg(long, value_name = "SIZE")]
    disk: Vec<String>,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    mem: u64,
    /// Kill the guest after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

pub(crate) fn lab(what: &Lab) -> Done {
    match what {
        Lab::Run { script, machine } => {
            let script = std::fs::canonicalize(script)
                .map_err(|e| Error::new(format!("{}: {e}", script.display())))?;
            let setup = machine.setup(300)?;
            run(
                setup,
                &format!("exec bash {}", quote(&script)),
                Screen::Show,
            )
        }
        Lab::Shell { machine } => {
            let setup = machine.setup(24 * 3600)?;
            // A session of its own with the console as its terminal, or there would be no job control and no Ctrl-C.
            let shell = "echo \"A throwaway machine with real LVM. Disks: $LAB_DISKS. More hosts: lab-host add NAME.\"\n\
                         exec setsid --ctty --wait bash -i < /dev/console > /dev/console 2>&1";
            run(setup, shell, Screen::Terminal)
        }
    }
}

impl MachineArgs {
    fn setup(&self, default_timeout: u64) -> lab::Result<Setup> {
        let mut setup = Setup::new()
            .memory_mib(self.mem)
            .time_limit(Duration::from_secs(self.timeout.unwrap_or(default_timeout)))
            .program(lvmsync("dev")?);
        let default = ["1G".to_owned(), "1G".to_owned()];
        for size in if self.disk.is_empty() {
            &default[..]
        } else {
            &self.disk
        } {
            if lab::parse_size(size).is_none() {
                return Err(Error::new(format!(
                    "--disk {size}: say a size such as 512M or 1G"
                )));
            }
            setup = setup.disk(size);
        }
        Ok(setup)
    }
}

fn run(setup: Setup, command: &str, screen: Screen) -> Done {
    let mut machine = Machine::new("xtask", setup)?;
    let outcome = machine.boot(command, screen)?.wait()?;
    if outcome.status.is_none() {
        machine.keep_log();
        eprintln!(
            "cargo xtask: the guest {}; its log: {}",
            outcome.describe(),
            outcome.log.display()
        );
    }
    let status = outcome.status.and_then(|status| u8::try_from(status).ok());
    Ok(status.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// One word for the shell.
fn quote(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}
