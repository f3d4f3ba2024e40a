//! `lvmsync internal-guard`: the guard process, which lvmsync starts for itself.

use std::sync::Arc;

use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::apply::StateArgs;
use super::output;
use crate::error::{Error, ExitCode, Result};
use crate::hold::guard;

/// The guard of a run: gives back what it holds when the run ends. lvmsync starts it; people do not
#[derive(Args, Debug)]
pub(super) struct HoldArgs {
    #[command(flatten)]
    state: StateArgs,
}

pub(super) fn run(args: &HoldArgs) -> Result<ExitCode> {
    // A session of its own: what a terminal sends to its foreground group is for the run, not for the guard.
    // What a service manager sends to everybody ends the run, and through it the guard.
    rustix::process::setsid()
        .map_err(|error| Error::io("cannot leave the session", error.into()))?;
    // `ps` would show it as `exe`. Not quite the run's own name: `killall -9 lvmsync` is to leave somebody who tidies up.
    let _ = std::fs::write("/proc/self/comm", "lvmsync-guard");
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::default())
            .map_err(|error| Error::io("cannot watch for signals", error))?;
    }
    guard::run(
        output::data_in()?,
        output::data_out()?,
        &args.state.directory(),
    )?;
    Ok(ExitCode::Done)
}
