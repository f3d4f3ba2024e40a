//! Far ends that are started before they are needed: while a service stops, ssh and the far lvmsync can begin.
//!
//! Guarantees: one that has waited for long, or has ended meanwhile, is not used, and is started anew as ever; of one that
//! was not used nothing is heard.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::progress::Speaker;
use super::remote::{start, start_heard_by};
use super::send::RemoteArgs;
use crate::error::Result;
use crate::session::remote::RemoteEnd;

/// The far end ends a session in which nothing is said for longer than its own timeout, a minute by default.
const KEEPS: Duration = Duration::from_secs(20);

/// Those that wait.
#[derive(Default)]
pub(super) struct Prestarted(Mutex<Vec<Waiting>>);

struct Waiting {
    end: RemoteEnd,
    since: Instant,
    host: String,
    is_used: Arc<AtomicBool>,
}

impl Waiting {
    fn is_good(&mut self) -> bool {
        self.since.elapsed() < KEEPS && self.end.is_running()
    }
}

impl Prestarted {
    /// Sees to it that `count` of them are under way to `host`. What goes wrong is told by who needs one.
    pub(super) fn prepare(&self, remote: &RemoteArgs, speaker: &Speaker, host: &str, count: usize) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain_mut(Waiting::is_good);
        while waiting.len() < count {
            let is_used = Arc::new(AtomicBool::new(false));
            let (speaker, hears) = (speaker.clone(), is_used.clone());
            let say = Box::new(move |line: &str| {
                if hears.load(Ordering::SeqCst) {
                    speaker.say(line);
                }
            });
            let Ok(end) = start_heard_by(remote, say, host, &["serve"]) else {
                return;
            };
            waiting.push(Waiting {
                end,
                since: Instant::now(),
                host: host.to_owned(),
                is_used,
            });
        }
    }

    fn take(&self, host: &str) -> Option<RemoteEnd> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain_mut(Waiting::is_good);
        let at = waiting.iter().position(|one| one.host == host)?;
        let found = waiting.remove(at);
        found.is_used.store(true, Ordering::SeqCst);
        Some(found.end)
    }
}

/// One that waits, or a new one.
pub(super) fn serving(
    prestarted: Option<&Prestarted>,
    remote: &RemoteArgs,
    speaker: &Speaker,
    host: &str,
) -> Result<RemoteEnd> {
    match prestarted.and_then(|waiting| waiting.take(host)) {
        Some(end) => Ok(end),
        None => start(remote, speaker, host, &["serve"]),
    }
}
