//! The copies of a migration from one snapshot to the next: what was written in between.
//!
//! Guarantees: a snapshot is on record before anything of it is sent, and the one before goes only after the far end has said
//! that all is durable; one that is lost is no base, and then what is there is compared; only snapshots of this migration
//! are ever removed.

use std::time::Instant;

use super::cycle::{Cycle, may_be_compared};
use crate::cli::summary::Summary;
use crate::cli::watched::{Growth, fill_of, while_watched};
use crate::dm::base::{self, Base, Beside, Store};
use crate::dm::lvm::volumes_of;
use crate::dm::temporary::useful_bytes;
use crate::error::{Error, ExitCode, Result};
use crate::job::room::Limits;
use crate::monitor::Monitor;

impl Cycle<'_> {
    /// Of what an earlier run has left, keeps what this one goes on from.
    pub(super) fn sort_out_snapshots(&mut self) -> Result<()> {
        let rows = volumes_of(self.name.vg())?;
        let own: Vec<_> = base::of_owner(&rows, &self.owner).collect();
        let is_thin = self.is_thin;
        // One that has overflowed is there, and of no use. Names may have changed.
        let still_good = |kept: &mut Option<Base>| {
            let Some(known) = kept else { return true };
            let found = own.iter().find(|row| row.lv_uuid == known.uuid);
            let Some(row) = found else {
                *kept = None;
                return false;
            };
            known.name = row.full_name();
            if is_thin || fill_of(known).is_some() {
                return true;
            }
            *kept = None;
            false
        };
        still_good(&mut self.state.base);
        if !still_good(&mut self.state.pending) {
            // Part of it may be there: nothing but comparing goes on from that.
            self.state.base = None;
        }
        self.remove_strays()
    }

    /// Removes what no run goes on from.
    pub(super) fn remove_strays(&self) -> Result<()> {
        let rows = volumes_of(self.name.vg())?;
        let kept = [&self.state.base, &self.state.pending];
        let is_kept = |uuid: &str| kept.into_iter().flatten().any(|kept| kept.uuid == uuid);
        for row in base::of_owner(&rows, &self.owner).filter(|row| !is_kept(&row.lv_uuid)) {
            base::remove(self.name.vg(), &row.lv_uuid, &self.owner)?;
        }
        Ok(())
    }

    /// Makes the snapshot that is sent next, unless there is one that was being sent. A tracked volume needs none.
    pub(super) fn make_pending(&mut self) -> Result<()> {
        if self.state.pending.is_some() || self.tracking.is_some() {
            return Ok(());
        }
        // The name is on record before it is there: a number is never used twice.
        self.state.number += 1;
        self.begin()?;
        let name = base::base_name(&self.name, "lvmsync", self.state.number);
        let name = name.ok_or_else(|| Error::Lvm {
            what: self.name.to_string(),
            reason: "its name leaves no room for that of a snapshot".to_owned(),
        })?;
        let beside = match self.state.base {
            Some(_) => Beside::Nothing,
            None => Beside::TheNext,
        };
        let store = (!self.is_thin).then(|| (self.args.snapshot_size.unwrap_or_default(), beside));
        let begun = Instant::now();
        let made = base::make(&self.name, &name, &self.owner, self.size_bytes, store)?;
        self.snapshot_took = begun.elapsed();
        self.state.pending = Some(made);
        self.held.save(&self.state)
    }

    /// Sends what is pending, and lets the base before go.
    pub(super) fn transfer_snapshot(&mut self, verify: bool) -> Result<Summary> {
        self.make_pending()?;
        let made = Instant::now();
        let Some(pending) = self.state.pending.clone() else {
            return Err(Error::Usage("there is nothing to send".to_owned()));
        };
        let old = self.state.base.clone();
        let bases: Vec<&Base> = old.iter().chain([&pending]).collect();
        let sent = while_watched(&bases, self.growth(), self.terminal, || {
            self.send(old.as_ref(), &pending, verify)
        });
        let summary = match sent {
            Err(error)
                if matches!(error.exit_code(), ExitCode::Differ | ExitCode::TrackingLost) =>
            {
                // Wrong blocks there, or a snapshot that is lost: nothing goes on from either.
                self.forget()?;
                return Err(error);
            }
            sent => sent?,
        };
        self.state.base = Some(pending);
        self.state.pending = None;
        self.base_made = made;
        self.held.save(&self.state)?;
        // In the pause there is no time for it: it goes with all others, or when the service is back.
        if let Some(old) = old.filter(|_| !self.in_pause) {
            base::remove(self.name.vg(), &old.uuid, &self.owner)?;
        }
        Ok(summary)
    }

    pub(super) fn growth(&self) -> Growth<'_> {
        Growth {
            of_thick: !self.is_thin && self.args.snapshot_size != Some(Store::Most),
            owner: &self.owner,
            limits: Limits {
                useful_bytes: useful_bytes(self.size_bytes),
                allowed_bytes: self.args.extend_limit,
            },
        }
    }

    fn send(&self, old: Option<&Base>, new: &Base, verify: bool) -> Result<Summary> {
        let job = |from| {
            let mut job = self.job(from, &new.name, false);
            job.verify = verify;
            job.run()
        };
        match job(old.map(|old| old.name.as_str())) {
            // The base is lost, or the destination does not hold it any more. Comparing takes long, and mends both.
            Err(error) if old.is_some() && !self.in_pause && may_be_compared(&error) => {
                self.terminal
                    .warn(&format!("{}; comparing instead", error.chain()));
                job(None)
            }
            result => result,
        }
    }
}
