//! What a run keeps beside: the way back of each target, or the delta in its directory; and what it gives up again.
//!
//! Guarantees: a run that cannot keep a way back says so, and one that could be taken back first is; nothing is given up
//! before the run has succeeded; nothing is sent to a target that somebody put back.

use std::path::PathBuf;

use super::Cycle;
use crate::cli::log::STEPS;
use crate::cli::points::there::{There, unexpected};
use crate::dm::base::Base;
use crate::error::{Error, Result};
use crate::job::config::{History, Target};
use crate::job::points::{DELTA_SUFFIX, Listing, Prepared, Reply, UNDO_SUFFIX, Wish, file_name};
use crate::job::state::RolledBack;
use crate::monitor::Monitor;
use crate::record::keeper::shown_time;
use crate::units::count;

impl Cycle<'_> {
    /// Targets that were put back are sent to again. What they hold is asked: of a way back that was cut nobody here was told
    /// how it ended.
    pub(super) fn resume(&mut self) -> Result<()> {
        for target in &self.job.targets {
            if self.put_back(target).is_none() {
                continue;
            }
            let asked = self.there(target)?.map(|there| there.ask(Wish::List));
            let known = self.target(target);
            match asked.transpose()? {
                Some(Reply::Listing(found)) if !found.incomplete => {
                    known.was_put_back(found.held.as_deref());
                }
                // That is taken back before anything is sent.
                Some(Reply::Listing(_)) | None => {}
                Some(_) => return Err(unexpected(target)),
            }
            known.resume();
        }
        self.held.save(&self.state)
    }

    /// Why nothing is sent to a target that was put back.
    pub(super) fn put_back(&self, target: &Target) -> Option<Error> {
        let known = self.state.targets.get(&target.to)?;
        let rolled_back = known.rolled_back.as_ref()?;
        Some(refused_as_put_back(self.name, target, rolled_back))
    }

    /// What nothing is known of here may hold a state to which older points in time lead: the source was set up anew, or the
    /// target has another name in the job's file. Then this run keeps the way back to it, as every other does.
    pub(super) fn learn(&mut self, target: &Target) {
        let is_known = self.target(target).holds_since > 0;
        if self.job.history == History::Off || target.collects() || is_known {
            return;
        }
        // One that is not there yet holds nothing; whatever else is wrong is told by what is sent to it.
        let found = self.held_by(target).unwrap_or_default();
        if found.held.is_some() && !found.incomplete && found.held_since > 0 {
            self.target(target).holds_since = found.held_since;
        } else if !found.points.is_empty() || !found.strays.is_empty() {
            self.terminal.warn(&format!(
                "{}: {}: there are points in time, and nothing on record tells what it holds: they cannot be reached any more",
                self.name, target.to
            ));
        }
    }

    /// The file in which a run keeps what leads to a point in time, if it does. A first copy has nothing to go back to.
    pub(super) fn file_for(&mut self, target: &Target, taken: i64) -> Option<String> {
        let tag = self.state.number.to_string();
        if target.collects() {
            return Some(file_name(taken, &tag, DELTA_SUFFIX));
        }
        let holds_since = self.target(target).holds_since;
        let keeps = self.job.history != History::Off && holds_since > 0;
        keeps.then(|| file_name(holds_since, &tag, UNDO_SUFFIX))
    }

    fn there<'t>(&'t self, target: &'t Target) -> Result<Option<There<'t>>> {
        let job = (self.name, self.job);
        There::of(job, target, self.state_args, self.terminal, self.cancel)
    }

    /// What a target that is a volume holds, by its own record, whether it keeps points or not.
    pub(super) fn held_by(&self, target: &Target) -> Result<Listing> {
        let job = (self.name, self.job);
        There::at(job, target, self.state_args, self.terminal, self.cancel)?.list()
    }

    /// The path of the file that is kept beside this transfer, if one is. Before a comparison, and after a run that failed,
    /// the target is looked at first: it may be half-written.
    pub(super) fn beside(
        &self,
        target: &Target,
        file: Option<&str>,
        compares: bool,
        is_prepared: bool,
    ) -> Result<Option<PathBuf>> {
        let (Some(file), Some(there)) = (file, self.there(target)?) else {
            return Ok(None);
        };
        // What compares writes another delta than what does not, so its undo is another one.
        let name = match file.strip_suffix(UNDO_SUFFIX) {
            Some(stem) if compares => format!("{stem}c{UNDO_SUFFIX}"),
            _ => file.to_owned(),
        };
        let path = there.directory().join(&name);
        if is_prepared && !compares {
            return Ok(Some(path));
        }
        let undo = (!target.collects()).then_some(name);
        match there.ask(Wish::Prepare { undo })? {
            Reply::Prepared(Prepared::Ready) => Ok(Some(path)),
            // The run was done, and what it has overwritten is in there.
            Reply::Prepared(Prepared::Whole) => Ok(Some(path).filter(|_| !compares)),
            Reply::Prepared(Prepared::Impossible { reason }) => {
                self.terminal.warn(&format!(
                    "{}: {}: {reason}, so this run keeps no way back, and earlier points in time cannot be reached any more",
                    self.name, target.to
                ));
                Ok(None)
            }
            _ => Err(unexpected(target)),
        }
    }

    /// Points in time that are not to be kept.
    pub(super) fn give_up(&mut self, target: &Target, new: &Base) -> Result<()> {
        let Some(there) = self.there(target)? else {
            return Ok(());
        };
        let newest = target.collects().then(|| new.id());
        let wish = Wish::Keep {
            grid: self.job.grid().to_string(),
            also: newest.into_iter().collect(),
        };
        // Where nothing was kept yet there is nothing to give up.
        if self
            .state
            .targets
            .get(&target.to)
            .is_none_or(|known| !known.is_prepared)
        {
            return Ok(());
        }
        let Reply::Kept(kept) = there.ask(wish)? else {
            return Err(unexpected(target));
        };
        for remark in &kept.remarks {
            self.terminal
                .warn(&format!("{}: {}: {remark}", self.name, target.to));
        }
        if kept.given_up > 0 {
            tracing::info!(
                target: STEPS,
                target = %target.to,
                "{}: {}: gave up {}",
                self.name,
                target.to,
                count(kept.given_up, "point in time").replace("times", "time")
            );
        }
        if !kept.missing.is_empty() {
            self.terminal.warn(&format!(
                "{}: {}: files are missing, so that nothing leads to the newest state: the next run writes everything",
                self.name, target.to
            ));
            self.target(target).base = None;
            self.held.save(&self.state)?;
        }
        Ok(())
    }
}

/// Whoever put a target back wants it to be so: the source may be what went wrong.
pub(in crate::cli) fn refused_as_put_back(
    job: &str,
    target: &Target,
    rolled_back: &RolledBack,
) -> Error {
    Error::refused(
        target.to.clone(),
        format!(
            "was put back to {} at {}, and nothing is sent to it until you say so",
            shown_time(rolled_back.to),
            shown_time(rolled_back.at)
        ),
        format!(
            "To make it as the source is now: lvmsync replicate {job} --resume\n\
             To make it what it was before: lvmsync rollback {job} --target {} --to {}",
            crate::commands::word(&target.to),
            shown_time(rolled_back.from_since)
        ),
    )
}
