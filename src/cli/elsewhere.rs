//! A comparison with a volume at another machine, over as many connections as it takes.
//!
//! Guarantees: what one connection has settled is neither read nor hashed again in the next, and what was found to differ is
//! kept, if the far end vouches that nothing was written to its volume since the comparison began. Where it does not, or cannot
//! tell, all is compared anew. Progress never goes back.

use std::sync::{Arc, Mutex, PoisonError};

use super::attempts::{Attempts, Failed};
use super::compare_far::Far;
use super::prestart::Prestarted;
use super::progress::Speaker;
use super::pull::far_name;
use super::send::RemoteArgs;
use crate::cancel::Cancel;
use crate::change_list::ChangeList;
use crate::comparand::{Compared, Medium};
use crate::engine::compare::{Side, SoFar};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::session::message::{Done, Ready};

/// A volume that is compared, and the way to it.
#[derive(Clone, Copy)]
pub(super) struct Elsewhere<'a> {
    /// Far ends that are under way already.
    pub(super) prestarted: Option<&'a Prestarted>,
    pub(super) remote: &'a RemoteArgs,
    pub(super) speaker: &'a Speaker,
    pub(super) medium: Medium,
    pub(super) host: &'a str,
    pub(super) path: &'a str,
    pub(super) cancel: &'a Cancel,
    pub(super) monitor: &'a dyn Monitor,
}

/// Finds out what to compare from what the far end says of its volume, whenever a comparison begins; and whatever else the
/// caller wants to keep of that.
pub(super) type Begin<'b, P> = &'b mut dyn FnMut(&Ready) -> Result<(Arc<ChangeList>, P)>;

/// A comparison that is under way.
struct Begun<P> {
    /// What the far volume was when it began.
    version: String,
    extents: Arc<ChangeList>,
    kept: P,
    so_far: SoFar,
}

impl Elsewhere<'_> {
    /// Compares with `near`, which stays open all the time, what `begin` says.
    pub(super) fn compare<P>(&self, near: Side<'_>, begin: Begin<'_, P>) -> Result<(Compared, P)> {
        let mut attempts = Attempts::new(self.remote.retries);
        let progress = Progress::of(self.monitor);
        let mut under_way = None;
        loop {
            match self.attempt(near, begin, &mut under_way, &mut attempts, &progress) {
                Ok((begun, done)) => {
                    let changed = done.changed.then(|| format!("{}:{}", self.host, self.path));
                    let compared = Compared {
                        differing: begun.so_far.differing(),
                        changed: changed.into_iter().collect(),
                    };
                    return Ok((compared, begun.kept));
                }
                Err(failed) => attempts.wait_after(failed, self.cancel, self.monitor)?,
            }
        }
    }

    /// One session. What is under way stays so if it fails.
    fn attempt<P>(
        &self,
        near: Side<'_>,
        begin: Begin<'_, P>,
        under_way: &mut Option<Begun<P>>,
        attempts: &mut Attempts,
        progress: &Progress<'_>,
    ) -> std::result::Result<(Begun<P>, Done), Failed> {
        let far = Far::open(self)?;
        let mut begun = match self.going_on(under_way.take(), &far.ready, progress) {
            Some(begun) => begun,
            None => match begin(&far.ready) {
                Ok((extents, kept)) => {
                    progress.begins(extents.total_bytes());
                    Begun {
                        version: far.ready.version.clone(),
                        extents,
                        kept,
                        so_far: SoFar::default(),
                    }
                }
                Err(error) => {
                    // It has done nothing wrong, and what it says of its end does not matter.
                    let _ = far.leave();
                    return Err(Failed::for_good(error));
                }
            },
        };
        let Begun {
            extents, so_far, ..
        } = &mut begun;
        let done = far.compare(extents, so_far, near, self.cancel, progress);
        attempts.reached(begun.so_far.end());
        match done {
            Ok(done) => Ok((begun, done)),
            Err(failed) => {
                *under_way = Some(begun);
                Err(failed)
            }
        }
    }

    /// What is under way, if what the far end has now is what it had when that began.
    fn going_on<P>(
        &self,
        under_way: Option<Begun<P>>,
        ready: &Ready,
        progress: &Progress<'_>,
    ) -> Option<Begun<P>> {
        let begun = under_way?;
        let end = begun.so_far.end();
        let name = far_name(self.host, self.path);
        if !ready.version.is_empty() && ready.version == begun.version {
            let left = begun.extents.from_offset(end).total_bytes();
            progress.goes_on_at(begun.extents.total_bytes() - left);
            self.monitor.note(&format!(
                "{name}: the comparison goes on at byte {end}, where it was cut"
            ));
            return Some(begun);
        }
        if end > 0 {
            let reason = match ready.version.as_str() {
                "" => "it cannot be told whether it was written to while the connection was lost",
                _ => "it may have been written to since the comparison began",
            };
            self.monitor
                .warn(&format!("{name}: {reason}: all is compared anew"));
        }
        None
    }
}

/// Progress of what is begun several times: what is gone through again, for it was not settled, does not count twice.
struct Progress<'a> {
    monitor: &'a dyn Monitor,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    planned: u64,
    advanced: u64,
    /// What had advanced when the comparison began that is under way.
    before: u64,
    /// What is gone through again.
    again: u64,
}

impl<'a> Progress<'a> {
    fn of(monitor: &'a dyn Monitor) -> Self {
        let told = Mutex::default();
        Self { monitor, told }
    }

    /// A comparison of so much begins.
    fn begins(&self, bytes: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let more = bytes.saturating_sub(told.planned - told.advanced);
        told.planned += more;
        told.before = told.advanced;
        told.again = 0;
        self.monitor.plan(more);
    }

    /// It goes on where so much is settled.
    fn goes_on_at(&self, settled_bytes: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.again = (told.advanced - told.before).saturating_sub(settled_bytes);
    }
}

impl Monitor for Progress<'_> {
    fn plan(&self, bytes: u64) {
        self.begins(bytes);
    }

    fn advance(&self, bytes: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let again = bytes.min(told.again);
        told.again -= again;
        // No more than was planned, where a volume became smaller.
        let more = (bytes - again).min(told.planned - told.advanced);
        told.advanced += more;
        self.monitor.advance(more);
    }

    fn warn(&self, text: &str) {
        self.monitor.warn(text);
    }

    fn remark(&self, text: &str) {
        self.monitor.remark(text);
    }

    fn note(&self, text: &str) {
        self.monitor.note(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::progress::Terminal;
    use crate::monitor::Recording;

    #[test]
    fn only_what_is_vouched_for_is_gone_on_with() {
        let (monitor, cancel) = (Recording::default(), Cancel::new());
        let there = Elsewhere {
            prestarted: None,
            remote: &RemoteArgs::default(),
            speaker: &Terminal::silent().speaker(),
            medium: Medium::Disk,
            host: "far",
            path: "vg/copy",
            cancel: &cancel,
            monitor: &monitor,
        };
        let goes_on = |before: &str, now: &str| {
            let under_way = Begun {
                version: before.to_owned(),
                extents: Arc::new(ChangeList::whole(100)),
                kept: (),
                so_far: SoFar::settled_to(50),
            };
            let ready = Ready {
                version: now.to_owned(),
                ..Ready::default()
            };
            let progress = Progress::of(&monitor);
            there.going_on(Some(under_way), &ready, &progress).is_some()
        };
        assert!(goes_on("a", "a"));
        assert!(!goes_on("a", "b") && !goes_on("a", ""));
        // What an older lvmsync says.
        assert!(!goes_on("", ""));
        let said = monitor.warnings();
        assert!(
            said[0].starts_with("far:vg/copy: it may have been written to"),
            "{said:?}"
        );
        assert!(said[2].contains("it cannot be told"), "{said:?}");
    }

    #[test]
    fn what_is_gone_through_again_does_not_count_twice() {
        let monitor = Recording::default();
        let progress = Progress::of(&monitor);
        progress.begins(100);
        progress.advance(40);
        progress.goes_on_at(30);
        progress.advance(8);
        assert_eq!(monitor.progress(), (100, 40));
        progress.advance(12);
        assert_eq!(monitor.progress(), (100, 50));
        progress.goes_on_at(50);
        progress.advance(50);
        assert_eq!(monitor.progress(), (100, 100));
    }

    #[test]
    fn what_is_begun_anew_is_still_to_be_done() {
        let monitor = Recording::default();
        let progress = Progress::of(&monitor);
        progress.begins(100);
        progress.advance(40);
        progress.begins(90);
        assert_eq!(monitor.progress(), (130, 40));
        progress.advance(60);
        progress.goes_on_at(50);
        progress.advance(40);
        assert_eq!(monitor.progress(), (130, 130));
        progress.begins(0);
        assert_eq!(monitor.progress(), (130, 130));
    }
}
