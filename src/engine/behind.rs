//! Syncs behind the back of who writes: a volume is made durable while writing to it goes on.
//!
//! Guarantees: what is told to be durable was written before the sync that made it so began, and that sync did not fail;
//! a sync that failed ends the run at the next request, and no later one makes up for it. At most one request waits,
//! the latest, so that a slow disk delays nobody but makes the steps longer.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::apply::{Applied, OnDurable};
use crate::error::{Error, Result};
use crate::record::marks::Places;
use crate::volume::WriteAt;

/// One volume that is synced by another thread, which runs [`Behind::serve`].
pub struct Behind<'a> {
    target: &'a dyn WriteAt,
    name: &'a str,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    wanted: Option<Wanted>,
    busy: bool,
    closed: bool,
    /// A sync, or what was told of it, failed.
    error: Option<Error>,
    failed: bool,
}

/// What was written when it was asked for.
struct Wanted {
    offset: u64,
    applied: Applied,
    places: Places,
}

impl<'a> Behind<'a> {
    /// For `target`, called `name` in messages.
    pub fn new(target: &'a dyn WriteAt, name: &'a str) -> Self {
        Self {
            target,
            name,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Syncs when it is asked to, and tells `on_durable`, until it is closed.
    pub fn serve(&self, on_durable: OnDurable<'_>) {
        let mut state = self.lock();
        loop {
            if state.closed || state.failed {
                return;
            }
            let Some(wanted) = state.wanted.take() else {
                let waited = self.changed.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.busy = true;
            drop(state);
            let synced = self
                .target
                .sync()
                .map_err(|error| Error::io(format!("cannot make {} durable", self.name), error))
                .and_then(|()| on_durable(wanted.offset, &wanted.applied, &wanted.places));
            state = self.lock();
            state.busy = false;
            if let Err(error) = synced {
                (state.error, state.failed) = (Some(error), true);
            }
            self.changed.notify_all();
        }
    }

    /// Everything up to `offset` is written, and should become durable. Fails if an earlier request did.
    pub fn ask(&self, offset: u64, applied: &Applied, places: &Places) -> Result<()> {
        let mut state = self.lock();
        self.check(&mut state)?;
        state.wanted = Some(Wanted {
            offset,
            applied: *applied,
            places: places.clone(),
        });
        self.changed.notify_all();
        Ok(())
    }

    /// Nothing more is asked for, and nothing is under way any more when this returns: what waits is given up.
    pub fn close(&self) -> Result<()> {
        let mut state = self.lock();
        state.closed = true;
        state.wanted = None;
        self.changed.notify_all();
        while state.busy {
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        self.check(&mut state)
    }

    fn check(&self, state: &mut State) -> Result<()> {
        match state.error.take() {
            Some(error) => Err(error),
            None if state.failed => Err(Error::io(
                format!("cannot make {} durable", self.name),
                std::io::Error::other("an earlier sync failed"),
            )),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends [`Behind::serve`] however the scope is left.
pub struct Closes<'b, 'a>(pub &'b Behind<'a>);

impl Drop for Closes<'_, '_> {
    fn drop(&mut self) {
        // Whoever wants to know has closed it before.
        let _ = self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Extent;
    use crate::volume::ReadAt;
    use std::io;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    /// Fails the sync with this number.
    struct Syncs {
        done: AtomicU64,
        fails_at: u64,
    }

    impl ReadAt for Syncs {
        fn size_bytes(&self) -> u64 {
            0
        }
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    impl WriteAt for Syncs {
        fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Ok(())
        }
        fn zero_at(&self, _: Extent) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            std::thread::sleep(Duration::from_millis(5));
            if self.done.fetch_add(1, Ordering::SeqCst) + 1 == self.fails_at {
                return Err(io::Error::other("no"));
            }
            Ok(())
        }
    }

    /// Asks until three syncs were made or one failed; what was told to be durable, and how it ended.
    fn run(fails_at: u64) -> (Vec<u64>, Result<()>) {
        let volume = Syncs {
            done: AtomicU64::new(0),
            fails_at,
        };
        let behind = Behind::new(&volume, "v");
        let told = Mutex::new(Vec::new());
        let ended = std::thread::scope(|scope| {
            let _closes = Closes(&behind);
            scope.spawn(|| {
                behind.serve(&mut |offset, _, _| {
                    told.lock().unwrap().push(offset);
                    Ok(())
                });
            });
            (1..)
                .take_while(|_| volume.done.load(Ordering::SeqCst) < 3)
                .try_for_each(|step| {
                    std::thread::sleep(Duration::from_millis(3));
                    behind.ask(step, &Applied::default(), &Places::default())
                })
                .and(behind.close())
        });
        (told.into_inner().unwrap(), ended)
    }

    #[test]
    fn what_is_told_grows_and_ends_with_the_first_sync_that_fails() {
        let (told, ended) = run(u64::MAX);
        ended.unwrap();
        assert!(!told.is_empty() && told.is_sorted(), "{told:?}");
        let (told, ended) = run(2);
        assert!(ended.unwrap_err().chain().contains("cannot make v durable"));
        assert_eq!(told.len(), 1, "nothing after a sync that failed: {told:?}");
    }
}
