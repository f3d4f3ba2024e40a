//! Pipes for many megabytes.
//!
//! Guarantees: no pipe gets smaller; what is no pipe, or may not grow, stays as it is.

use std::os::fd::AsFd;

use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};

/// What an ordinary user may ask for, unless an administrator has lowered it (`/proc/sys/fs/pipe-max-size`), for 64 pipes by
/// default (`pipe-user-pages-soft`): who has as many gets small pipes from then on.
const PIPE_BYTES: usize = 1 << 20;

/// Lets a pipe hold as much as it may, up to a MiB, so that both its ends sleep and wake less often.
pub fn widen(end: impl AsFd) {
    let Ok(now) = fcntl_getpipe_size(&end) else {
        return;
    };
    let halves = std::iter::successors(Some(PIPE_BYTES), |bytes| Some(bytes / 2));
    for wanted in halves.take_while(|wanted| *wanted > now) {
        if fcntl_setpipe_size(&end, wanted).is_ok() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_grows_and_never_shrinks() {
        let (reader, writer) = std::io::pipe().unwrap();
        widen(&writer);
        let wide = fcntl_getpipe_size(&reader).unwrap();
        // One that the system does not let grow stays as it is.
        let other = std::io::pipe().unwrap().0;
        if fcntl_setpipe_size(&other, PIPE_BYTES).is_ok() {
            assert_eq!(wide, PIPE_BYTES);
        }
        // Only root may have more, and a limit of the machine may be less.
        if let Ok(more) = fcntl_setpipe_size(&reader, 4 * PIPE_BYTES) {
            widen(&reader);
            assert_eq!(fcntl_getpipe_size(&writer), Ok(more));
        }
    }

    #[test]
    fn what_is_no_pipe_stays() {
        widen(std::fs::File::open("/dev/null").unwrap());
    }
}
