//! What is on record of a run as a whole: that it began, and how it ended.
//!
//! Guarantees: a run is on record before anything in it can fail, so that one that fails at once is tried again after an
//! interval, as any other is, and `lvmsync status` can tell that and why.

use crate::cli::apply::StateArgs;
use crate::cli::replicate::directory_of;
use crate::error::{ExitCode, Result};
use crate::job::state::JobState;
use crate::job::store::Held;
use crate::monitor::Monitor;
use crate::record::keeper::now;

/// Takes the job `name` for the run `run` alone. What is on record of it then, too.
pub(super) fn begin((name, run): (&str, &str), state_args: &StateArgs) -> Result<(Held, JobState)> {
    let held = Held::take(&directory_of(state_args)?, name, &format!("job {name}"))?;
    let mut state: JobState = held.load()?.unwrap_or_default();
    state.begins(run, now());
    held.save(&state)?;
    Ok((held, state))
}

/// Notes how the run ended, and gives that back.
pub(super) fn end(held: &Held, name: &str, done: Result<()>, monitor: &dyn Monitor) -> Result<()> {
    let noted = note(held, &done);
    if let (Err(_), Err(error)) = (&done, &noted) {
        monitor.warn(&format!("{name}: {}", error.chain()));
    }
    done.and(noted)
}

fn note(held: &Held, done: &Result<()>) -> Result<()> {
    let mut state: JobState = held.load()?.unwrap_or_default();
    match done {
        Ok(()) => state.succeeded(),
        // Nothing is wrong with it; if it never comes further than that, the time since its first run tells.
        Err(error) if error.exit_code() == ExitCode::Interrupted => return Ok(()),
        Err(error) => state.failed(&error.chain(), now()),
    }
    held.save(&state)
}
