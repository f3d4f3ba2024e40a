//! The snapshots of a job: one is made by each run, and those that no target needs any more go.
//!
//! Guarantees: what was stopped by a hook for the snapshot goes on, whatever became of it; only snapshots of the job are ever
//! removed, and none that a target needs; what was lost is said.

use std::sync::Mutex;
use std::time::Instant;

use super::{Cycle, tenths};
use crate::cancel::Cancel;
use crate::cli::log::STEPS;
use crate::cli::replicate::several::hold;
use crate::cli::watched::fill_of;
use crate::dm::base::{self, Base, Beside, Store};
use crate::dm::lvm::{LvRow, volumes_of};
use crate::error::{Error, Result};
use crate::job::hooks;
use crate::monitor::Monitor;

/// Held by the job that makes a snapshot.
static MAKING: Mutex<()> = Mutex::new(());

impl Cycle<'_> {
    pub(super) fn snapshot(&mut self) -> Result<Base> {
        if let Some(command) = &self.job.hooks.before_snapshot {
            self.hook(command, "the hook before_snapshot", self.cancel)?;
        }
        let made = self.make_snapshot();
        if let Some(command) = &self.job.hooks.after_snapshot {
            // What was stopped for it goes on, whatever became of it, and whoever wants to stop.
            let hook = self.hook(command, "the hook after_snapshot", &Cancel::new());
            return made.and_then(|made| hook.map(|()| made));
        }
        made
    }

    pub(super) fn hook(&self, command: &str, what: &str, cancel: &Cancel) -> Result<()> {
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
        let rows = volumes_of(self.volume.vg())?;
        // One that has overflowed is there, and of no use.
        let in_order = |row: &&LvRow| {
            let known = Base {
                name: format!("{}/{}", row.vg_name, row.lv_name),
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

    pub(super) fn remove_strays(&self) -> Result<()> {
        let rows = volumes_of(self.volume.vg())?;
        let needed = self.state.needed();
        for row in base::of_owner(&rows, &self.owner) {
            let is_new = self.new.as_ref() == Some(&row.lv_uuid);
            if !is_new
                && !needed.contains(&row.lv_uuid.as_str())
                && base::remove(self.volume.vg(), &row.lv_uuid, &self.owner)?
            {
                tracing::info!(
                    target: STEPS,
                    state = format!("lvm:{}", row.lv_uuid),
                    "{}: removed snapshot {}/{}",
                    self.name,
                    row.vg_name,
                    row.lv_name
                );
            }
        }
        Ok(())
    }
}
