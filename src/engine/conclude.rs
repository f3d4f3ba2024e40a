//! After the last frame, or the first error: what is on record now, and what the user is told.
//!
//! Guarantees: the record says that the destination holds a state only after everything was synced; a destination that was
//! not touched has its old size and its old record again; one that was is left on record as incomplete.

use super::apply::{Applied, Ended};
use super::target::{Target, cuts_file};
use crate::delta::header::{Header, Source, State};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::record::keeper::Keeper;
use crate::units::Bytes;

/// What the end of an apply needs to know.
pub struct Conclusion<'a> {
    /// Of the delta; `None` for version 3.
    pub header: Option<&'a Header>,
    /// The destination.
    pub target: &'a Target<'a>,
    /// Its size when this run began.
    pub size_before: u64,
    /// Hears of it.
    pub monitor: &'a dyn Monitor,
}

impl Conclusion<'_> {
    /// After a success the record says that the destination holds `result`. After a failure: a warning tells what state the destination is in; one that was only made longer has its
    /// old size again, and its record is what it was.
    pub fn conclude(
        &self,
        ended: Ended,
        result: Option<State>,
        keeper: &mut Keeper,
    ) -> Result<Applied> {
        let target = self.target;
        let (error, touched, has_undo) = match ended {
            Ended::Done(mut applied, places) => {
                report_skipped(&applied, target, self.monitor);
                if let Some(header) = self.header {
                    shrink_after_undo(header, target)?;
                    if cuts_file(header, target) {
                        let size = target.volume.size_bytes();
                        applied.cut_bytes = size.saturating_sub(header.volume_size);
                        set_size(header, target)?;
                    }
                }
                keeper.complete(result, &places, target.volume)?;
                return Ok(applied);
            }
            Ended::Failed {
                error,
                touched,
                has_undo,
                is_durable,
            } => {
                if touched && is_durable {
                    // Without it less is known of writes by others. The error that ended the run is the one to report.
                    let _ = keeper.leave();
                }
                (error, touched, has_undo)
            }
        };
        if touched {
            let mut way_out = "run the same again to finish".to_owned();
            if let Some(way_back) = keeper.way_back().filter(|_| has_undo) {
                way_out.push_str(&format!(", or take it back: {way_back}"));
            }
            self.monitor.warn(&format!(
                "{}: partly written, now neither in the old state nor in the new one: {way_out}",
                target.name
            ));
            return Err(error);
        }
        if target.is_file && target.volume.size_bytes() > self.size_before {
            // It was made longer for what then did not come. As long as that is not undone, durably, it is not
            // what it was.
            let undone = target
                .volume
                .set_size(self.size_before)
                .and_then(|()| target.volume.sync());
            if undone.is_err() {
                return Err(error);
            }
        }
        keeper.put_back()?;
        Err(error)
    }
}

/// A file that the delta had made longer gets its old size back.
fn shrink_after_undo(header: &Header, target: &Target<'_>) -> Result<()> {
    let was_grown = header.source == Source::Undo
        && target.is_file
        && header.base_size == Some(target.volume.size_bytes())
        && header.volume_size < target.volume.size_bytes();
    if !was_grown {
        return Ok(());
    }
    set_size(header, target)
}

/// Durably.
fn set_size(header: &Header, target: &Target<'_>) -> Result<()> {
    target
        .volume
        .set_size(header.volume_size)
        .and_then(|()| target.volume.sync())
        .map_err(|error| {
            let size = Bytes(header.volume_size);
            Error::io(format!("cannot make {} {size} long", target.name), error)
        })
}

fn report_skipped(applied: &Applied, target: &Target<'_>, monitor: &dyn Monitor) {
    if applied.skipped_bytes > 0 {
        monitor.warn(&format!(
            "{}: {} past the end of the destination were left out",
            target.name,
            Bytes(applied.skipped_bytes)
        ));
    }
}
