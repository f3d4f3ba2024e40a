//! Snapshots that must not overflow while something is sent.
//!
//! Guarantees: while the work runs, the fill of each thick snapshot is looked at every second, and one that is three quarters
//! full, or soon will be, gets more room, as long as its volume group has any and the limit allows it; what cannot be done is
//! said once, and the work goes on: a snapshot that overflows is noticed by whoever reads it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::dm::base::{self, Base};
use crate::dm::name::LvName;
use crate::dm::resolve::active_volume;
use crate::dm::snapshot::Role;
use crate::dm::table::SnapshotStatus;
use crate::job::room::{Due, LOOKS_AHEAD, Limits, due};
use crate::monitor::Monitor;
use crate::units::{Bytes, sectors_to_bytes};

/// What is done about snapshots that fill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growth<'a> {
    /// They are thick, and may be made larger.
    pub(super) of_thick: bool,
    /// Whose they are.
    pub(super) owner: &'a str,
    /// How large they may become.
    pub(super) limits: Limits,
}

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs `work`, and looks after `snapshots` meanwhile.
pub(super) fn while_watched<T>(
    snapshots: &[&Base],
    growth: Growth<'_>,
    monitor: &dyn Monitor,
    work: impl FnOnce() -> T,
) -> T {
    if !growth.of_thick {
        return work();
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = || {
            // With what of each was in use at the last look.
            let mut watched: Vec<(&Base, Option<u64>)> =
                snapshots.iter().map(|base| (*base, None)).collect();
            while !done.load(Ordering::Acquire) {
                watched.retain_mut(|(snapshot, used)| {
                    look_after(snapshot, used, None, growth, monitor)
                });
                thread::park_timeout(LOOK_EVERY);
            }
        };
        let watcher = thread::Builder::new().name("fill".to_owned());
        let watcher = watcher.spawn_scoped(scope, watch);
        let result = work();
        done.store(true, Ordering::Release);
        if let Ok(watcher) = watcher {
            watcher.thread().unpark();
        }
        result
    })
}

/// Extends it if it is due: by what came since the last look, or by what is `coming`. False if nothing can be done for it
/// any more.
pub(super) fn look_after(
    snapshot: &Base,
    last_used: &mut Option<u64>,
    coming: Option<u64>,
    growth: Growth<'_>,
    monitor: &dyn Monitor,
) -> bool {
    let Some((used, total)) = fill_of(snapshot) else {
        return true;
    };
    let since_last_look = used.saturating_sub(last_used.unwrap_or(used));
    *last_used = Some(used);
    let coming = coming.unwrap_or(since_last_look.saturating_mul(LOOKS_AHEAD));
    let failed = |reason: &str| {
        monitor.warn(&format!(
            "{}: {} of {} are used, and it cannot be made larger, so that it may overflow: {reason}",
            snapshot.name,
            Bytes(used),
            Bytes(total),
        ));
        false
    };
    let more = match due((used, total), coming, growth.limits) {
        Due::Nothing => return true,
        Due::AtLimit => {
            return failed("it has reached its limit: extend_limit, or --extend-limit, raises it");
        }
        Due::More(more) => more,
    };
    match base::extend(snapshot, growth.owner, more) {
        Ok(()) => {
            monitor.remark(&format!(
                "{}: {} of {} were written to; it was made larger",
                snapshot.name,
                Bytes(used),
                Bytes(total)
            ));
            true
        }
        Err(error) => failed(&error.chain()),
    }
}

/// Bytes in use, and in all, of a thick snapshot's store; `None` for everything else.
pub(super) fn fill_of(snapshot: &Base) -> Option<(u64, u64)> {
    let name = LvName::parse(&snapshot.name)?;
    let volume = active_volume(&name).ok()??;
    let Role::ThickSnapshot(thick) = volume.role else {
        return None;
    };
    match thick.status {
        SnapshotStatus::Valid {
            used_sectors,
            total_sectors,
            ..
        } => Some((
            sectors_to_bytes(used_sectors)?,
            sectors_to_bytes(total_sectors)?,
        )),
        _ => None,
    }
}
