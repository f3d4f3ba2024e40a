//! Jobs that run at once.
//!
//! Guarantees: every job is run, whatever becomes of the others; at most so many at a time as were allowed, and none twice at
//! a time; the exit code is that of the worst; a run that is told to stop begins no more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::cancel::Cancel;
use crate::cli::output;
use crate::error::{ExitCode, Result};

/// Runs `work` for each of `jobs`, `at_once` of them at a time, in their order.
pub(super) fn run_each<T: Send>(
    jobs: Vec<(String, T)>,
    at_once: usize,
    cancel: &Cancel,
    work: impl Fn(&str, T) -> Result<()> + Sync,
) -> ExitCode {
    let threads = at_once.min(jobs.len());
    let queue = Mutex::new(VecDeque::from(jobs));
    let worst = Mutex::new(ExitCode::Done);
    with_threads(threads, || {
        while !cancel.is_cancelled() {
            let next = hold(&queue).pop_front();
            let Some((name, job)) = next else { break };
            if let Err(error) = work(&name, job) {
                output::message(&format!("lvmsync: {name}: {}", error.chain()));
                let mut worst = hold(&worst);
                if error.exit_code().badness() > worst.badness() {
                    *worst = error.exit_code();
                }
            }
        }
    });
    worst.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// This thread and others, `threads` in all, do `work`. With fewer it takes longer and is the same.
pub(super) fn with_threads(threads: usize, work: impl Fn() + Sync) {
    thread::scope(|scope| {
        for _ in 1..threads {
            let spawned = thread::Builder::new()
                .name("job".to_owned())
                .spawn_scoped(scope, &work);
            if spawned.is_err() {
                break;
            }
        }
        work();
    });
}

/// What a thread that broke off has left is still what it was: each change is one step.
pub(super) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who runs, and who is not to be tried again yet.
#[derive(Debug, Default)]
pub(super) struct Turns {
    running: Vec<String>,
    not_before: BTreeMap<String, Instant>,
}

/// What one that has nothing to do is to do.
#[derive(Debug, PartialEq)]
pub(super) enum Turn {
    /// Run the job with this number.
    Run(usize),
    /// Look again after so many seconds at the latest.
    Wait(f64),
}

impl Turns {
    /// Of `jobs`, each with the seconds until it is due and the time when it last began, the one that has waited longest.
    pub(super) fn next(&mut self, jobs: &[(&str, f64, i64)], now: Instant, at_most: f64) -> Turn {
        self.not_before.retain(|_, until| *until > now);
        let mut wait = at_most;
        let mut found: Option<usize> = None;
        for (number, (name, due_in, began)) in jobs.iter().enumerate() {
            if self.running.iter().any(|running| running == name) {
                continue;
            }
            let held_back = self.not_before.get(*name);
            let held_back = held_back.map_or(0.0, |until| (*until - now).as_secs_f64());
            let left = due_in.max(held_back);
            if left > 0.0 {
                wait = wait.min(left);
            } else if found.is_none_or(|before| *began < jobs[before].2) {
                found = Some(number);
            }
        }
        match found {
            Some(number) => {
                self.running.push(jobs[number].0.to_owned());
                Turn::Run(number)
            }
            None => Turn::Wait(wait),
        }
    }

    /// `name` has ended; it is not tried again before `until`.
    pub(super) fn ended(&mut self, name: &str, until: Option<Instant>) {
        self.running.retain(|running| running != name);
        self.not_before
            .extend(until.map(|until| (name.to_owned(), until)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn failing(code: ExitCode) -> Error {
        match code {
            ExitCode::Usage => Error::Usage("no".to_owned()),
            _ => Error::refused("vg/x", "no", ""),
        }
    }

    #[test]
    fn so_many_run_at_once_and_the_worst_code_counts() {
        let jobs: Vec<(String, usize)> = (0..9).map(|n| (format!("j{n}"), n)).collect();
        let (now, most, all) = (
            AtomicUsize::new(0),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
        );
        let code = run_each(jobs, 3, &Cancel::new(), |_, number| {
            let running = now.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(running, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(30));
            now.fetch_sub(1, Ordering::SeqCst);
            all.fetch_add(1, Ordering::SeqCst);
            match number {
                2 => Err(failing(ExitCode::Refused)),
                3 => Err(failing(ExitCode::Usage)),
                _ => Ok(()),
            }
        });
        assert_eq!(code, ExitCode::Refused);
        let seen = (most.load(Ordering::SeqCst), all.load(Ordering::SeqCst));
        assert_eq!(seen, (3, 9));
        let cancel = Cancel::new();
        cancel.cancel();
        let code = run_each(vec![("x".to_owned(), ())], 1, &cancel, |_, ()| {
            Err(failing(ExitCode::Refused))
        });
        assert_eq!(code, ExitCode::Done, "none was begun");
    }

    #[test]
    fn who_has_waited_longest_is_next_and_who_failed_waits() {
        let mut turns = Turns::default();
        let now = Instant::now();
        let jobs = [("a", 0.0, 900), ("b", 0.0, 300), ("c", 5.0, 100)];
        assert_eq!(turns.next(&jobs, now, 10.0), Turn::Run(1));
        assert_eq!(turns.next(&jobs, now, 10.0), Turn::Run(0));
        assert_eq!(turns.next(&jobs, now, 10.0), Turn::Wait(5.0));
        turns.ended("b", Some(now + Duration::from_secs(4)));
        assert_eq!(turns.next(&jobs, now, 10.0), Turn::Wait(4.0));
        let later = now + Duration::from_secs(4);
        assert_eq!(turns.next(&jobs, later, 10.0), Turn::Run(1));
        turns.ended("a", None);
        assert_eq!(turns.next(&jobs, later, 10.0), Turn::Run(0));
        assert_eq!(turns.next(&jobs, later, 3.0), Turn::Wait(3.0));
    }
}
