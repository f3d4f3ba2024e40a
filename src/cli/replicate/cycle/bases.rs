//! The snapshots of a job: one is made by each run, and those that no target needs any more go.
//!
//! Guarantees: what was stopped by a hook for the snapshot goes on, whatever became of it and of the hook; only snapshots of
//! the job are ever removed, and none that a target needs; what was lost is said.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Instant;

use super::{Cycle, tenths};
use crate::cancel::{Cancel, HoldsOn};
use crate::cli::log::STEPS;
use crate::cli::replicate::several::hold;
use crate::cli::watched::fill_of;
use crate::dm::base::{self, Base, Beside, Store};
use crate::dm::lvm::{LvRow, volumes_of};
use crate::dm::name::LvName;
use crate::error::{Error, Result};
use crate::job::hooks;
use crate::monitor::Monitor;

/// Held by the job that makes a snapshot.
static MAKING: Mutex<()> = Mutex::new(());

impl Cycle<'_> {
    pub(super) fn snapshot(&mut self) -> Result<Base> {
        let _holds_on = self.before_snapshot()?;
        let made = self.make_snapshot();
        let after = self.after_snapshot();
        if let (Err(_), Err(error)) = (&made, &after) {
            self.terminal
                .warn(&format!("{}: {}", self.name, error.chain()));
        }
        made.and_then(|made| after.map(|()| made))
    }

    /// Runs the hook, which may stop a service: from then on nothing ends this run by force until what it gives back is
    /// dropped. Where the hook fails, or is told to stop, half of it may be done, and the other hook is run at once.
    pub(super) fn before_snapshot(&self) -> Result<Option<HoldsOn>> {
        let Some(command) = &self.job.hooks.before_snapshot else {
            return Ok(None);
        };
        self.cancel.check()?;
        let holds_on = self.cancel.hold_on();
        if let Err(error) = self.hook(command, "the hook before_snapshot", self.cancel) {
            if let Err(after) = self.after_snapshot() {
                self.terminal
                    .warn(&format!("{}: {}", self.name, after.chain()));
            }
            return Err(error);
        }
        Ok(Some(holds_on))
    }

    /// What was stopped goes on, whoever wants to stop.
    pub(super) fn after_snapshot(&self) -> Result<()> {
        match &self.job.hooks.after_snapshot {
            Some(command) => self.hook(command, "the hook after_snapshot", &Cancel::new()),
            None => Ok(()),
        }
    }

    fn hook(&self, command: &str, what: &str, cancel: &Cancel) -> Result<()> {
        let environment = [
            ("LVMSYNC_JOB", self.name),
            ("LVMSYNC_RUN", self.run),
            ("LVMSYNC_SOURCE", &self.job.source),
        ];
        let begun = Instant::now();
        hooks::run(command, what, &environment, cancel)?;
        tracing::info!(target: STEPS, seconds = tenths(begun), "{}: ran {what}", self.name);
        Ok(())
    }

    fn make_snapshot(&mut self) -> Result<Base> {
        self.state.number += 1;
        self.held.save(&self.state)?;
        let name = base::base_name(&self.volume, self.name, self.state.number);
        let name = name.ok_or_else(|| Error::Lvm {
            what: self.volume.to_string(),
            reason: "its name leaves no room for that of a snapshot".to_owned(),
        })?;
        let is_first = self.state.needed().is_empty();
        let beside = if is_first {
            Beside::TheNext
        } else {
            Beside::Nothing
        };
        let size = match self.job.snapshot_size {
            Store::Likely => self.likely_store(),
            asked => asked,
        };
        let store = (!self.is_thin).then_some((size, beside));
        // Two jobs that look at once what is free in a group would both take all of it.
        let _alone = hold(&MAKING);
        let made = base::make(&self.volume, &name, &self.owner, self.size_bytes, store)?;
        tracing::info!(
            target: STEPS,
            state = made.id(),
            "{}: made snapshot {}",
            self.name,
            made.name
        );
        Ok(made)
    }

    /// What was removed by hand is forgotten, and what is of no use any more is removed.
    pub(super) fn sort_out(&mut self) -> Result<()> {
        self.leave_another_source()?;
        let rows = volumes_of(self.volume.vg())?;
        for row in base::of_owner(&rows, &self.owner) {
            // It, or its group, may have been renamed.
            self.state.rename(&row.lv_uuid, &row.full_name());
        }
        // One that has overflowed is there, and of no use.
        let in_order = |row: &&LvRow| {
            let known = Base {
                name: row.full_name(),
                uuid: row.lv_uuid.clone(),
            };
            let is = self.is_thin || fill_of(&known).is_some();
            if !is {
                self.terminal.warn(&format!(
                    "{}: {} has overflowed, or is not active: what it was the base for is compared",
                    self.name, known.name
                ));
            }
            is
        };
        let there: Vec<&str> = base::of_owner(&rows, &self.owner)
            .filter(in_order)
            .map(|row| row.lv_uuid.as_str())
            .collect();
        let wanted: Vec<&str> = self.job.targets.iter().map(|target| &*target.to).collect();
        let lost = self.state.retain(&there, &wanted);
        for (target, gone) in lost {
            // Of one that is there something was said above.
            if gone.is_era() {
                self.terminal.warn(&format!(
                    "{}: {target}: followed by snapshots from now on, and not by eras: it is compared once",
                    self.name
                ));
            } else if !rows.iter().any(|row| row.lv_uuid == gone.uuid) {
                self.terminal.warn(&format!(
                    "{}: {target}: snapshot {} is not there any more (was it removed by hand?), so the target is \
                     compared, or written anew where it collects deltas",
                    self.name, gone.name
                ));
            }
        }
        self.remove_strays()
    }

    /// Where the job followed another volume before, nothing of that is a base for this one.
    pub(super) fn leave_another_source(&mut self) -> Result<()> {
        let before = std::mem::replace(&mut self.state.source, self.source_uuid.clone());
        if before.is_empty() || before == self.source_uuid {
            return Ok(());
        }
        self.terminal.warn(&format!(
            "{}: it followed another volume before: all targets are compared, or written anew where they collect deltas",
            self.name
        ));
        let left = self.state.forget_bases();
        self.held.save(&self.state)?;
        let groups: BTreeSet<String> = left
            .iter()
            .filter_map(|base| Some(LvName::parse(&base.name)?.vg().to_owned()))
            .collect();
        for group in groups {
            // One that is gone, or was renamed, holds nothing that this job could remove.
            let rows = volumes_of(&group).unwrap_or_default();
            for row in base::of_owner(&rows, &self.owner) {
                self.remove_stray(row);
            }
        }
        Ok(())
    }

    pub(super) fn remove_strays(&self) -> Result<()> {
        let rows = volumes_of(self.volume.vg())?;
        let needed = self.state.needed();
        for row in base::of_owner(&rows, &self.owner) {
            let is_new = self.new.as_ref() == Some(&row.lv_uuid);
            if !is_new && !needed.contains(&row.lv_uuid.as_str()) {
                self.remove_stray(row);
            }
        }
        Ok(())
    }

    /// One that somebody has open stays until a later run: that is no reason for this one to fail.
    fn remove_stray(&self, row: &LvRow) {
        let (name, shown) = (self.name, row.full_name());
        match base::remove(&row.vg_name, &row.lv_uuid, &self.owner) {
            Ok(true) => tracing::info!(
                target: STEPS,
                state = format!("lvm:{}", row.lv_uuid),
                "{name}: removed snapshot {shown}"
            ),
            Ok(false) => {}
            Err(error) => self.terminal.warn(&format!(
                "{name}: snapshot {shown} is of no use any more, and stays until the next run: {}",
                error.chain()
            )),
        }
    }
}
