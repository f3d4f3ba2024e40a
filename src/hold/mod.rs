//! What is held only for a while and must be given back: a pool's metadata snapshot, a volume that was activated
//! to be read, a snapshot that was made to be read.
//!
//! Guarantees: it is given back on every way out of the run that took it, SIGKILL of that run included, because
//! a second process, the *guard*, holds it and gives it back when the run's end of a pipe closes. What the death
//! of the guard itself leaves is on record, and the next run gives it back if the record proves that it is
//! ours. What is not proved to be ours is left alone.
//!
//! | file | idea |
//! |---|---|
//! | [`client`] | the run's side: starts the guard and asks it |
//! | [`guard`] | the guard's side: the loop of the second process |
//! | [`message`] | what they say to each other (pure) |
//! | [`reservation`] | a pool's metadata snapshot: taken, proved, released |
//! | [`activation`] | a thin volume that is active while it is read |
//! | [`temporary`] | a snapshot of a live volume, made to be read |
//! | [`record`] | what is held, on disk (pure but for its file) |
//! | [`lock`] | one at a time, or the last one out |

pub mod activation;
pub mod client;
pub mod guard;
pub mod lock;
pub mod message;
pub mod record;
pub mod reservation;
pub mod temporary;

/// The hidden verb of the guard process.
pub const VERB: &str = "internal-guard";
