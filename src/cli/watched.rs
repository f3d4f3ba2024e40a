//! Snapshots that must not overflow while something is sent.
//!
//! Guarantees: while the work runs, the fill of each thick snapshot is looked at every second, and one that is three quarters
//! full gets more room, as long as its volume group has any; what cannot be done is said once, and the work goes on: a snapshot that
//! overflows is noticed by whoever reads it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::dm::base::{self, Base};
use crate::dm::name::LvName;
use crate::dm::resolve::active_volume;
use crate::dm::snapshot::Role;
use crate::dm::table::SnapshotStatus;
use crate::monitor::Monitor;
use crate::units::{Bytes, sectors_to_bytes};

/// What is done about snapshots that fill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growth<'a> {
    /// They are thick, and may be made larger.
    pub(super) of_thick: bool,
    /// Whose they are.
    pub(super) owner: &'a str,
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// In hundredths.
const FULL_ENOUGH: u64 = 75;

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
            let mut watched: Vec<&Base> = snapshots.to_vec();
            while !done.load(Ordering::Acquire) {
                watched.retain(|snapshot| look_after(snapshot, growth.owner, monitor));
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

/// Extends it if it is due. False if nothing can be done for it any more.
fn look_after(snapshot: &Base, owner: &str, monitor: &dyn Monitor) -> bool {
    let Some((used, total)) = fill_of(snapshot) else {
        return true;
    };
    if used.saturating_mul(100) < total.saturating_mul(FULL_ENOUGH) {
        return true;
    }
    match base::extend(snapshot, owner, (total / 2).max(64 << 20)) {
        Ok(()) => {
            monitor.remark(&format!(
                "{}: {} of {} were written to; it was made larger",
                snapshot.name,
                Bytes(used),
                Bytes(total)
            ));
            true
        }
        Err(error) => {
            monitor.warn(&format!(
                "{}: {} of {} are used, and it cannot be made larger, so that it may overflow: {}",
                snapshot.name,
                Bytes(used),
                Bytes(total),
                error.chain()
            ));
            false
        }
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
