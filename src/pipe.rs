//! Pipes for many megabytes.
//!
//! Guarantees: what is no pipe, or may not grow, stays as it is.

use std::os::fd::AsFd;

/// What an ordinary user may ask for.
const PIPE_BYTES: usize = 1 << 20;

/// Lets a pipe hold as much as it may, so that both its ends sleep and wake less often.
pub fn widen(end: impl AsFd) {
    // The user may have reached a limit: it works all the same.
    let _ = rustix::pipe::fcntl_setpipe_size(end, PIPE_BYTES);
}
