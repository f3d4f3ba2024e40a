//! The end of a state that is shown as a device, also of one that another state directory knows, or that a crash has left.
//!
//! Guarantees: only what record and device, file or tags together prove to be ours is removed; what could not be removed
//! is told.

use serde::Serialize;

use crate::cancel::Cancel;
use crate::cli::output;
use crate::cli::progress::Terminal;
use crate::dm::shown as mapped;
use crate::error::{Error, ExitCode, Result};
use crate::hold::lock::LockFile;
use crate::monitor::Monitor;
use crate::record::store::StateDir;
use crate::view::shown::{self, Left};

/// One that is gone, as JSON.
#[derive(Serialize)]
struct Report<'a> {
    device: String,
    /// What it was over; of one that was on no record here, nothing.
    base: Option<&'a str>,
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
    let shown = match shown::load(state, name) {
        Ok(Some(shown)) => shown,
        // Also where the record cannot be read: what is there tells as much.
        unknown => {
            let found = match (shown::found(name)?, unknown) {
                (Some(found), _) => found,
                (None, Err(error)) => return Err(error),
                (None, Ok(_)) => {
                    return Err(Error::refused(
                        name,
                        "no state is shown under this name, as far as is on record",
                        "lvmsync doctor lists those that are.",
                    ));
                }
            };
            terminal.remark(&format!(
                "{device}: on no record in {}; removed as it is found",
                state.path().display()
            ));
            found
        }
    };
    let base = Some(shown.base.as_str()).filter(|base| !base.is_empty());
    let left = shown.tear_down(state)?;
    if json {
        output::json(&Report {
            device: device.clone(),
            base,
            left: &left,
        })?;
    }
    // Another state directory may show something under the name of what was left here.
    let what = match mapped::is_view(name) {
        true => {
            "what was left of an earlier one of that name is removed; the one that is there is on another record"
        }
        false => "removed, with all that was made for it",
    };
    terminal.summary(&format!(
        "{device}: {what}; {} is as it was",
        base.unwrap_or("its base")
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
            "{snapshot}: its volume group is not there, or it is not where it was made, so it was not removed. If it is the one \
             that was made for this: lvremove {snapshot}"
        ));
    }
}
