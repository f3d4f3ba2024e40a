//! One run of a job that follows its volume by dm-era: to each target goes what was written since the era that it holds.
//!
//! Guarantees: no snapshot stays between two runs, and the one that is read lasts as long as it is read; which era a target
//! holds is what its own record says; an era of another record, or one since which not everything can be proved to be on
//! record, is no base: then the target is compared.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Instant;

use super::Cycle;
use crate::delta::header::State;
use crate::dm::base::Base;
use crate::error::{ExitCode, Result};
use crate::job::config::Target;
use crate::job::points::Listing;
use crate::job::state::JobState;
use crate::monitor::Monitor;
use crate::record::keeper::now;
use crate::source::{SnapshotWish, Tracking, tracking_of};

impl Cycle<'_> {
    pub(super) fn run_eras(mut self) -> Result<()> {
        self.leave_another_source()?;
        self.forget_snapshots()?;
        let tracking = tracking_of(&self.volume)?;
        self.state.number += 1;
        self.held.save(&self.state)?;
        self.each_target(|cycle, target| cycle.follow_eras(target, &tracking))
    }

    /// Those of a time when the job followed snapshots.
    fn forget_snapshots(&mut self) -> Result<()> {
        let known = self.state.targets.values();
        let bases = known.flat_map(|known| known.base.iter().chain(&known.pending));
        let eras: Vec<String> = bases
            .filter(|base| base.is_era())
            .map(|base| base.uuid.clone())
            .collect();
        let eras: Vec<&str> = eras.iter().map(String::as_str).collect();
        let wanted: Vec<&str> = self.job.targets.iter().map(|target| &*target.to).collect();
        for (target, gone) in self.state.retain(&eras, &wanted) {
            self.terminal.warn(&format!(
                "{}: {target}: followed by eras from now on, and not by {}: it is compared once",
                self.name, gone.name
            ));
        }
        self.held.save(&self.state)?;
        self.remove_strays()
    }

    fn follow_eras(&mut self, target: &Target, tracking: &Tracking) -> Result<()> {
        if let Some(error) = self.put_back(target) {
            return Err(error);
        }
        // One that has never got all of it is compared, whatever it holds, and may not even be there.
        let listing = match &self.target(target).base {
            Some(_) => self.held_by(target)?,
            None => Listing::default(),
        };
        let base = self.base_for(target, &listing, tracking);
        self.learn(target);
        let known = self.target(target);
        if let Some(held) = &listing.held {
            // The last run may have been done there, and cut here before it heard of it.
            known.holds_since = known.taken(held);
        }
        known.is_prepared &= !listing.incomplete;
        let (is_prepared, file) = (known.is_prepared, self.file_for(target, now()));
        let begun = Instant::now();
        let send = |old: Option<&Base>| {
            let prepared = is_prepared && old.is_some();
            let beside = self.beside(target, file.as_deref(), old.is_none(), prepared)?;
            Ok(self.send_era(target, old, (tracking, file.as_deref()), beside))
        };
        let (result, mut state) = send(base.as_ref())?;
        let result = match result {
            Err(error) if base.is_some() && error.exit_code() == ExitCode::TrackingLost => {
                self.terminal.warn(&format!(
                    "{}: {}: {}; comparing instead",
                    self.name,
                    target.to,
                    error.chain()
                ));
                let (result, compared) = send(None)?;
                state = compared;
                result
            }
            result => result,
        };
        // Of a run that failed here the target may have got all.
        self.state = state;
        let bytes = result?;
        let of = format!(" of {}", self.volume);
        let Some(new) = self.arrived(target, file.is_some(), &of, (bytes, begun))? else {
            return Ok(());
        };
        self.give_up(target, &new)
    }

    /// The state that the target holds, if that is an era of this record. If it is none, and the last run has left one there,
    /// it is for the target to say why it holds that no more.
    fn base_for(&self, target: &Target, listing: &Listing, tracking: &Tracking) -> Option<Base> {
        let held = listing.held.as_deref().and_then(Base::of_era);
        let known = self.state.targets.get(&target.to);
        let left = known.and_then(|known| known.base.clone());
        let is_of_record = |base: &Base| base.is_of_record(&tracking.record);
        held.filter(is_of_record)
            .or_else(|| left.filter(is_of_record))
    }

    /// Bytes of the volume that were sent, and the state of the job with what was sent as pending.
    fn send_era(
        &self,
        target: &Target,
        old: Option<&Base>,
        (tracking, file): (&Tracking, Option<&str>),
        beside: Option<PathBuf>,
    ) -> (Result<u64>, JobState) {
        let holds_on = RefCell::new(None);
        let before = |_: &_, _: Option<&_>| {
            *holds_on.borrow_mut() = self.before_snapshot()?;
            Ok(())
        };
        let after = || {
            let after = self.after_snapshot();
            holds_on.take();
            after
        };
        let next = RefCell::new(self.state.clone());
        let named = |state: &State| {
            let mut next = next.borrow_mut();
            let base = Base::era_of(&self.volume, &state.id)?;
            self.log_sending(target, old, &base, &format!(" of {}", self.volume));
            let known = next.targets.entry(target.to.clone()).or_default();
            known.begin(base, now(), file.map(str::to_owned));
            self.held.save(&*next)
        };
        let wish = SnapshotWish {
            size_bytes: self.job.snapshot_size.bytes_of(self.size_bytes),
            admit: Some(&before),
            taken: Some(&after),
            named: Some(&named),
            only_tracked: true,
            ..SnapshotWish::default()
        };
        let from = old.map(|old| old.name.as_str());
        let result = self.transfer(target, (from, &tracking.device), Some(wish), beside);
        (result, next.into_inner())
    }
}
