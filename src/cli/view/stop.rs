//! The end of a state that is shown as a device, also of one that another state directory knows, or that a crash has left.
//!
//! Guarantees: only what record and device, file or tags together prove to be ours is removed; what could not be removed
//! is told.

use serde::Serialize;

use crate::cancel::Cancel;
use crate::cli::output;
use crate::cli::progress::Terminal;
use crate::error::{Error, ExitCode, Result};
use crate::hold::lock::LockFile;
use crate::monitor::Monitor;
use crate::record::store::StateDir;
use crate::view::shown::{self, Left};

/// One that is gone, as JSON.
#[derive(Serialize)]
struct Report<'a> {
    device: String,
    base: &'a str,
    left: &'a Left,
}

/// Removes the device of this name, and all that it stands on.
pub(super) fn stop(
    name: &str,
    state: &StateDir,
    json: bool,
    cancel: &Cancel,
    terminal: &Terminal,
) -> Result<ExitCode> {
    // Half of it would be more to think about than all or nothing.
    let _holds_on = cancel.hold_on();
    let _lock = locked(name)?;
    let device = format!("/dev/mapper/{name}");
    let shown = match shown::load(state, name)? {
        Some(shown) => shown,
        None => {
            let found = shown::found(name)?.ok_or_else(|| {
                Error::refused(
                    name,
                    "no state is shown under this name, as far as is on record",
                    "lvmsync doctor lists those that are.",
                )
            })?;
            terminal.remark(&format!(
                "{device}: on no record in {}; removed as it is found",
                state.path().display()
            ));
            found
        }
    };
    let left = shown.tear_down(state)?;
    if json {
        output::json(&Report {
            device: device.clone(),
            base: &shown.base,
            left: &left,
        })?;
    }
    terminal.summary(&format!(
        "{device}: removed, with all that it stood on; {} is as it was",
        shown.base
    ));
    tell_of_left(&left, terminal);
    Ok(ExitCode::Done)
}

/// Nobody else makes or removes the one of this name meanwhile.
pub(super) fn locked(name: &str) -> Result<LockFile> {
    shown::lock(name)?.ok_or_else(|| {
        Error::held(
            format!("/dev/mapper/{name}"),
            "another lvmsync makes or removes it",
            "Wait until that is done.",
        )
    })
}

/// Of what was not found where it was made.
pub(super) fn tell_of_left(left: &Left, monitor: &dyn Monitor) {
    if let Some(store) = &left.store {
        monitor.warn(&format!(
            "{}: not there, or another file by now, so it was not removed. If it is on a filesystem that is not mounted, \
             remove it there",
            store.display()
        ));
    }
    if let Some(snapshot) = &left.snapshot {
        monitor.warn(&format!(
            "{snapshot}: its volume group is not there, so it was not removed. If the group is on disks that come back, \
             remove it then: lvremove {snapshot}"
        ));
    }
}
