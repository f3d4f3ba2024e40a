//! Far ends that are started before they are needed: while a service stops, ssh and the far lvmsync can begin.
//!
//! Guarantees: one that has waited for long, has ended meanwhile, or does not answer at once is not used, and another one is
//! started as ever; of one that was not used nothing is heard.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::progress::Speaker;
use super::remote::{Events, start, start_heard_by};
use super::send::RemoteArgs;
use crate::error::Result;
use crate::session::line::Line;
use crate::session::remote::{RemoteClient, RemoteEnd};

/// The far end ends a session in which nothing is said for longer than its own timeout, a minute by default.
const KEEPS: Duration = Duration::from_secs(20);

/// One that is there answers at once.
const ANSWERS: Duration = Duration::from_secs(5);

/// Those that wait, all at one host.
#[derive(Default)]
pub(super) struct Prestarted(Mutex<Vec<Waiting>>);

struct Waiting {
    end: RemoteEnd,
    since: Instant,
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
                is_used,
            });
        }
    }

    /// A session with one that waits. The way to it may be dead, whatever had to be done to stop the service: then it is left, and
    /// another one is started as ever.
    fn connected(
        &self,
        line: &Line,
        requires: &[&str],
        events: &Arc<Events>,
    ) -> Option<(RemoteEnd, RemoteClient)> {
        let mut end = self.take()?;
        let limit = line.timeout().map_or(ANSWERS, |limit| limit.min(ANSWERS));
        let client = end.connect_within(Some(limit), line, requires, events.clone());
        match client {
            Ok(client) => Some((end, client)),
            Err(error) => {
                tracing::info!("a session that was begun early is of no use: {error}");
                None
            }
        }
    }

    fn take(&self) -> Option<RemoteEnd> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain_mut(Waiting::is_good);
        let found = waiting.pop()?;
        found.is_used.store(true, Ordering::SeqCst);
        Some(found.end)
    }
}

/// A session with a far end that waits, or with a new one.
pub(super) fn connect(
    prestarted: Option<&Prestarted>,
    (remote, speaker): (&RemoteArgs, &Speaker),
    host: &str,
    line: &Line,
    requires: &[&str],
    events: Arc<Events>,
) -> Result<(RemoteEnd, RemoteClient)> {
    let waiting = prestarted.and_then(|waiting| waiting.connected(line, requires, &events));
    if let Some(connected) = waiting {
        return Ok(connected);
    }
    let mut end = start(remote, speaker, host, &["serve"])?;
    let client = end.connect(line, requires, events)?;
    Ok((end, client))
}
