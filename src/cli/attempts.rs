//! Connections that are lost, and made again.
//!
//! Pure. Guarantees: what the far end refused or found damaged is never tried again; a far end that was never
//! reached neither; pauses double, and every attempt that got further earns new ones.

use std::time::Duration;

use crate::error::{Error, ExitCode};
use crate::session::SessionError;

/// Why an attempt failed.
pub(super) struct Failed {
    pub(super) error: Error,
    /// The connection broke, or could not be made: another attempt may do better.
    pub(super) lost: bool,
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

    /// The pause before the next attempt, which doubles up to a minute, and that attempt's number.
    pub(super) fn next_pause(&mut self, failed: &Failed) -> Option<(Duration, u32)> {
        // The far end of the connection that was lost may hold the destination until it knows.
        let still_held = self.used > 0 && failed.error.exit_code() == ExitCode::Refused;
        if !self.connected || self.used >= self.allowed || !(failed.lost || still_held) {
            return None;
        }
        let seconds = 1u64 << self.used.min(6);
        self.used += 1;
        Some((Duration::from_secs(seconds.min(60)), self.used))
    }
}

/// The connection is gone, as opposed to a far end that has said why it stops.
pub(super) fn is_lost(error: &SessionError) -> bool {
    // The far end has lost us, and could still say so.
    let reported = |error: &SessionError| matches!(error, SessionError::Reported(failure) if failure.code == ExitCode::Remote as u8);
    error.is_lost() || reported(error)
}
