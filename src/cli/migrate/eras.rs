//! The copies of a migration of a volume that dm-era tracks: each sends what was written since the era of the one before.
//!
//! Guarantees: no snapshot stays between two rounds; the era that is being sent is on record before anything of it is; an
//! era of another record, or one since which not everything can be proved to be on record, is no base: then what is there
//! is compared. The era device is up whenever the service is started here.

use std::cell::RefCell;
use std::time::Instant;

use super::cycle::{Cycle, State, may_be_compared};
use crate::cancel::Cancel;
use crate::cli::summary::Summary;
use crate::cli::track;
use crate::delta::header::State as Named;
use crate::dm::base::Base;
use crate::dm::device::DeviceMapper;
use crate::dm::era::era_device_on;
use crate::dm::name::LvName;
use crate::error::{ExitCode, Result};
use crate::monitor::Monitor;
use crate::source::{SnapshotWish, Tracking, tracking_of};
use crate::sys::device::DeviceNumber;

/// The tracking of `volume`, if its era device is up.
pub(super) fn tracking(volume: &LvName, device: DeviceNumber) -> Result<Option<Tracking>> {
    match era_device_on(&DeviceMapper::open()?, device)? {
        Some(_) => tracking_of(volume).map(Some),
        None => Ok(None),
    }
}

/// What was sent, or why not; how far the migration is then, and since when the next era goes on.
type Sent = (Result<Summary>, State, Option<Instant>);

impl Cycle<'_> {
    /// Sends what was written since the era that the destination holds, or else what differs.
    pub(super) fn transfer_era(&mut self, device: &str, verify: bool) -> Result<Summary> {
        self.begin()?;
        let old = self.state.base.clone();
        let sent = match self.send_era(old.as_ref(), device, verify) {
            // What is there is not what it should be, or the record does not prove enough. Comparing takes long, and mends both.
            (Err(error), ..)
                if old.is_some()
                    && !self.in_pause
                    && may_be_compared(&error)
                    && self.can_be_followed() =>
            {
                self.terminal
                    .warn(&format!("{}; comparing instead", error.chain()));
                self.send_era(None, device, verify)
            }
            sent => sent,
        };
        let (result, state, begun) = sent;
        self.state = state;
        match result {
            Err(error) => {
                let is_lost = match error.exit_code() {
                    ExitCode::Differ => true,
                    ExitCode::TrackingLost => self.can_be_followed(),
                    _ => false,
                };
                if is_lost {
                    self.forget()?;
                }
                Err(error)
            }
            Ok(summary) => {
                self.state.base = self.state.pending.take();
                self.base_made = begun.unwrap_or_else(Instant::now);
                self.held.save(&self.state)?;
                Ok(summary)
            }
        }
    }

    /// False where it became longer than what is tracked: that is for somebody to say, and not for a comparison to mend.
    fn can_be_followed(&self) -> bool {
        tracking(&self.name, self.device).is_ok()
    }

    fn send_era(&self, old: Option<&Base>, device: &str, verify: bool) -> Sent {
        let next = RefCell::new((self.state.clone(), None));
        let named = |state: &Named| {
            let mut next = next.borrow_mut();
            let pending = Base::era_of(&self.name, &state.id)?;
            *next = (
                State {
                    pending: Some(pending),
                    ..next.0.clone()
                },
                Some(Instant::now()),
            );
            self.held.save(&next.0)
        };
        let mut job = self.job(old.map(|old| old.name.as_str()), device, false);
        job.verify = verify;
        job.request.snapshot = Some(SnapshotWish {
            named: Some(&named),
            ..self.wish()
        });
        let result = job.run();
        let (state, begun) = next.into_inner();
        (result, state, begun)
    }

    /// How the volume is read while it is tracked.
    pub(super) fn wish(&self) -> SnapshotWish<'static> {
        SnapshotWish {
            size_bytes: self
                .args
                .snapshot_size
                .and_then(|store| store.bytes_of(self.size_bytes)),
            only_tracked: true,
            ..SnapshotWish::default()
        }
    }

    /// Of what was left of an earlier run, an era of this record alone is a base. Where something was being sent, the next list
    /// from there is a longer one, with which the destination goes on; if it does not, or there is no base, it is compared.
    pub(super) fn sort_out_eras(&mut self, record: &str) {
        self.state.pending = None;
        self.state.base = self
            .state
            .base
            .take()
            .filter(|base| base.is_of_record(record));
    }

    /// The era device, if the volume is followed by its eras.
    pub(super) fn era_device(&self) -> Result<Option<DeviceNumber>> {
        if self.tracking.is_none() {
            return Ok(None);
        }
        let found = era_device_on(&DeviceMapper::open()?, self.device)?;
        Ok(found.map(|found| found.device))
    }

    /// For the plan: what the volume loses at the hand-over.
    pub(super) fn loses(&self) -> &'static str {
        match &self.tracking {
            Some(_) => "has its era device taken down, ",
            None => "",
        }
    }

    /// Nobody has the era device open any more, so that it can be taken down.
    pub(super) fn refuse_open_era_device(&self) -> Result<()> {
        match &self.tracking {
            Some(_) => track::can_be_taken_down(&self.name, self.cancel),
            None => Ok(()),
        }
    }

    /// Takes the era device down: nothing is written through it any more.
    pub(super) fn take_era_device_down(&self) -> Result<()> {
        track::take_down(&self.name, &Cancel::new())
    }

    /// Puts the era device up again: the service goes on here. If that cannot be, the volume is there without it all the same,
    /// and a migration follows it by snapshots.
    pub(super) fn put_era_device_up(&mut self) {
        self.tracking = match track::put_up(&self.name, &Cancel::new()) {
            // Where that cannot be followed, whoever goes on looks once more, and says so.
            Ok(()) => tracking(&self.name, self.device).ok().flatten(),
            Err(error) => {
                self.terminal.warn(&format!(
                    "{0} is here, and writable, but its era device is not up again: {1}",
                    self.name,
                    error.chain()
                ));
                None
            }
        };
    }

    /// The command that stopped the service may have taken the era device down, and the last list is read through it.
    pub(super) fn bring_era_device_back(&self) -> Result<()> {
        if self.tracking.is_none() || self.era_device()?.is_some() {
            return Ok(());
        }
        track::put_up(&self.name, &Cancel::new())
    }

    /// What could not be put up again must not be taken down.
    pub(super) fn refuse_lost_record(&self) -> Result<()> {
        match &self.tracking {
            Some(_) if !self.args.keep_writable => track::could_come_back(&self.name, self.cancel),
            _ => Ok(()),
        }
    }
}
