//! Connections that are lost, and made again.
//!
//! Guarantees: what the far end refused or found damaged is never tried again, but for a destination that is
//! held right after a connection was lost: the far end of that one may have it still. A far end that was never
//! reached is not tried again either; pauses double, and every attempt that got further earns new ones.

use std::time::Duration;

use crate::cancel::Cancel;
use crate::error::{Error, ExitCode, Result};
use crate::monitor::Monitor;
use crate::session::SessionError;
use crate::session::remote::RemoteEnd;

/// Why an attempt failed.
pub(super) struct Failed {
    pub(super) error: Error,
    /// The connection broke, or could not be made: another attempt may do better.
    pub(super) lost: bool,
    /// The far end says that another process holds the destination.
    pub(super) held: bool,
}

impl Failed {
    /// It failed for good.
    pub(super) fn for_good(error: Error) -> Self {
        Self {
            error,
            lost: false,
            held: false,
        }
    }

    /// There was no session yet.
    pub(super) fn connecting(error: Error) -> Self {
        Self {
            lost: error.is_lost(),
            held: false,
            error,
        }
    }

    /// The session with `end` broke, or that end has said why.
    pub(super) fn in_session(error: SessionError, end: &mut RemoteEnd) -> Self {
        Self {
            lost: is_lost(&error),
            held: is_held(&error),
            error: end.explain(error),
        }
    }
}

/// What can be tried again, and when.
pub(super) struct Attempts {
    allowed: u32,
    used: u32,
    /// The far end was reached once: a host that never answers is no connection that was lost.
    pub(super) connected: bool,
    /// How far the far end was when it was last reached.
    durable: u64,
}

impl Attempts {
    pub(super) fn new(allowed: u32) -> Self {
        Self {
            allowed,
            used: 0,
            connected: false,
            durable: 0,
        }
    }

    /// The far end is there, and has everything up to `offset`. Progress earns new attempts.
    pub(super) fn reached(&mut self, offset: u64) {
        if offset > self.durable {
            self.used = 0;
        }
        self.durable = offset.max(self.durable);
        self.connected = true;
    }

    /// Says that it is tried again, and waits for that; or gives what it ends with.
    pub(super) fn wait_after(
        &mut self,
        failed: Failed,
        cancel: &Cancel,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        cancel.check()?;
        let Some((pause, number)) = self.next_pause(&failed) else {
            return Err(failed.error);
        };
        monitor.warn(&format!(
            "{}; trying again in {} s ({number} of {})",
            failed.error.chain(),
            pause.as_secs(),
            self.allowed
        ));
        cancel.sleep(pause);
        cancel.check()
    }

    /// The pause before the next attempt, which doubles up to a minute, and that attempt's number.
    fn next_pause(&mut self, failed: &Failed) -> Option<(Duration, u32)> {
        // The far end of the connection that was lost may hold the destination until it knows.
        let still_held = self.used > 0 && failed.held;
        if !self.connected || self.used >= self.allowed || !(failed.lost || still_held) {
            return None;
        }
        let seconds = 1u64 << self.used.min(6);
        self.used += 1;
        Some((Duration::from_secs(seconds.min(60)), self.used))
    }
}

/// The connection is gone, as opposed to a far end that has said why it stops.
fn is_lost(error: &SessionError) -> bool {
    // The far end has lost us, and could still say so.
    let reported = |error: &SessionError| matches!(error, SessionError::Reported(failure) if failure.code == ExitCode::Remote as u8);
    error.is_lost() || reported(error)
}

/// The far end refuses because another process holds the destination at this moment.
fn is_held(error: &SessionError) -> bool {
    matches!(error, SessionError::Reported(failure) if failure.held && failure.code == ExitCode::Refused as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::message::Failure;

    fn failed(lost: bool, held: bool) -> Failed {
        let error = Error::refused("far", "no", "");
        Failed { error, lost, held }
    }

    #[test]
    fn after_a_lost_connection_only_a_held_destination_is_asked_for_again_and_not_for_ever() {
        let mut attempts = Attempts::new(3);
        attempts.reached(0);
        assert!(
            attempts.next_pause(&failed(false, true)).is_none(),
            "held by somebody else"
        );
        assert!(attempts.next_pause(&failed(true, false)).is_some());
        assert!(
            attempts.next_pause(&failed(false, false)).is_none(),
            "a refusal is final"
        );
        assert!(attempts.next_pause(&failed(false, true)).is_some());
        assert!(attempts.next_pause(&failed(false, true)).is_some());
        assert!(
            attempts.next_pause(&failed(false, true)).is_none(),
            "not for ever"
        );
    }

    #[test]
    fn a_failure_of_another_kind_is_not_held_whatever_it_says() {
        let reported = |code, held| {
            let message = String::new();
            SessionError::Reported(Failure {
                code,
                message,
                held,
                recover: String::new(),
            })
        };
        assert!(is_held(&reported(5, true)));
        assert!(!is_held(&reported(5, false)));
        assert!(!is_held(&reported(6, true)));
    }
}
