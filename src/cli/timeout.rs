//! `--timeout`, for every verb that talks to another end.

use std::time::Duration;

use clap::Args;

/// How long a silent far end is waited for.
#[derive(Args, Debug, Clone)]
pub(super) struct TimeoutArgs {
    /// Give the other end up when nothing was heard of it for so many seconds; 0 waits for ever. An end that
    /// is only slow says that it is there
    #[arg(long = "timeout", value_name = "SECONDS", default_value_t = DEFAULT_SECONDS)]
    seconds: u32,
}

const DEFAULT_SECONDS: u32 = 60;

impl TimeoutArgs {
    /// `None` for ever.
    pub(super) fn get(&self) -> Option<Duration> {
        Some(Duration::from_secs(self.seconds.into())).filter(|timeout| !timeout.is_zero())
    }
}

impl Default for TimeoutArgs {
    fn default() -> Self {
        let seconds = DEFAULT_SECONDS;
        Self { seconds }
    }
}
