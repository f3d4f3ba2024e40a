//! How far a replication job is, and what is to be said of it.
//!
//! Pure. Guarantees: what a target holds is changed only after it has said that it is durable there; a snapshot that any target
//! still needs is among [`JobState::needed`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::room::Seen;
use crate::dm::base::Base;

/// One job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobState {
    /// Of the last snapshot: a number is never used twice.
    pub number: u64,
    /// LVM's UUID of the volume that it follows.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// When the last run began: seconds since 1970 UTC.
    pub started: i64,
    /// Id of the last run, as lines of the log have it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub run: String,
    /// When the first of the runs began of which none has succeeded yet; 0 where the last one did.
    #[serde(skip_serializing_if = "is_zero")]
    pub first_tried: i64,
    /// When the last run failed; 0 where it did not.
    #[serde(skip_serializing_if = "is_zero")]
    pub failed: i64,
    /// Why, where that is not on record of a target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What bases took in, the newest last; of thick ones alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seen: Vec<Seen>,
    /// By the name of the destination.
    pub targets: BTreeMap<String, TargetState>,
}

/// One destination.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetState {
    /// What it holds.
    pub base: Option<Base>,
    /// What was being sent when a run was cut, or failed.
    pub pending: Option<Base>,
    /// When that was taken: seconds since 1970 UTC.
    pub pending_since: i64,
    /// The file that is written for that: the undo at the target, or the delta in a directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_file: Option<String>,
    /// When the state was taken that it holds: seconds since 1970 UTC.
    pub holds_since: i64,
    /// When the last run was done that succeeded.
    pub succeeded: i64,
    /// Bytes of the volume in it.
    pub bytes: u64,
    /// How long that took.
    pub seconds: f64,
    /// Id of that run, as lines of the log have it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub run: String,
    /// Why the last run failed.
    pub error: Option<String>,
    /// The directory of its points in time was there when the last run was done.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_prepared: bool,
    /// It was put back to an earlier point in time, and nothing is sent to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<RolledBack>,
}

/// A target that was put back on purpose.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RolledBack {
    /// When the state was taken that it was put back to: seconds since 1970 UTC.
    pub to: i64,
    /// Id of that state.
    pub to_id: String,
    /// When that was done.
    pub at: i64,
    /// When the state was taken that it held before, as runs of the job had left it.
    pub from_since: i64,
    /// Id of that state.
    pub from_id: String,
}

fn is_zero(time: &i64) -> bool {
    *time == 0
}

impl JobState {
    /// The run `run` begins at `now`.
    pub fn begins(&mut self, run: &str, now: i64) {
        self.started = now;
        run.clone_into(&mut self.run);
        // A clock that was put back must not put off when it is late.
        if self.first_tried == 0 || self.first_tried > now {
            self.first_tried = now;
        }
    }

    /// It has failed at `now`. What one target is to blame for is said of that one alone.
    pub fn failed(&mut self, error: &str, now: i64) {
        let mut targets = self.targets.values();
        let is_of_target = targets.any(|target| target.error.as_deref() == Some(error));
        self.failed = now;
        self.error = (!is_of_target).then(|| error.to_owned());
    }

    /// It has served all targets.
    pub fn succeeded(&mut self) {
        (self.first_tried, self.failed, self.error) = (0, 0, None);
    }

    /// Since when a target waits that never got anything; `None` if no run ever began.
    pub fn tried_since(&self) -> Option<i64> {
        let since = match self.first_tried {
            0 => self.started,
            first => first,
        };
        (since > 0).then_some(since)
    }

    /// UUIDs of the snapshots without which a target could not go on.
    pub fn needed(&self) -> Vec<&str> {
        let targets = self.targets.values();
        targets
            .flat_map(|target| target.base.iter().chain(&target.pending))
            .map(|base| base.uuid.as_str())
            .collect()
    }

    /// The base that was made last, and when: seconds since 1970 UTC.
    pub fn newest_base(&self) -> Option<(&Base, i64)> {
        let targets = self.targets.values();
        targets
            .filter_map(|target| Some((target.base.as_ref()?, target.holds_since)))
            .max_by_key(|(_, since)| *since)
    }

    /// The snapshot with this UUID has this name now.
    pub fn rename(&mut self, uuid: &str, name: &str) {
        let targets = self.targets.values_mut();
        for base in targets.flat_map(|target| target.base.iter_mut().chain(&mut target.pending)) {
            if base.uuid == uuid {
                name.clone_into(&mut base.name);
            }
        }
    }

    /// All targets are compared next. Gives back what they would have gone on from.
    pub fn forget_bases(&mut self) -> Vec<Base> {
        let targets = self.targets.values_mut();
        targets.flat_map(TargetState::forget_base).collect()
    }

    /// Forgets snapshots that are not among `there`, which are in order, and destinations that are not among `wanted`.
    /// Gives back the destinations that lost what they would have gone on from, and the snapshot that is gone.
    pub fn retain(&mut self, there: &[&str], wanted: &[&str]) -> Vec<(String, Base)> {
        self.targets
            .retain(|name, _| wanted.contains(&name.as_str()));
        let mut lost = Vec::new();
        for (name, target) in &mut self.targets {
            let is_gone = |kept: &mut Base| !there.contains(&kept.uuid.as_str());
            let base = target.base.take_if(is_gone);
            let pending = target.pending.take_if(is_gone);
            if pending.is_some() {
                // Part of it may be there: nothing but comparing goes on from that.
                target.base = None;
            }
            lost.extend(base.or(pending).map(|gone| (name.clone(), gone)));
        }
        lost
    }
}

impl TargetState {
    /// `new`, which was taken at `taken`, is about to be sent; `file` is written beside.
    pub fn begin(&mut self, new: Base, taken: i64, file: Option<String>) {
        (self.pending, self.pending_since) = (Some(new), taken);
        self.pending_file = file;
    }

    /// What was pending is there, durably, and all was done at `now`.
    pub fn arrived(&mut self, now: i64) {
        (self.holds_since, self.succeeded) = (self.pending_since, now);
        (self.base, self.error) = (self.pending.take(), None);
        self.pending_file = None;
    }

    /// When the state `held` was taken, which the target says that it holds.
    pub fn taken(&self, held: &str) -> i64 {
        let is_pending = |pending: &Base| held == pending.id();
        match &self.pending {
            Some(pending) if is_pending(pending) => self.pending_since,
            _ => self.holds_since,
        }
    }

    /// When the state `held` was taken, which the target says that it holds; `None` where that is not one that a run of the
    /// job, or a way back, is known to have left there.
    pub fn surely_taken(&self, held: &str) -> Option<i64> {
        let is = |base: &Option<Base>| base.as_ref().is_some_and(|base| base.id() == held);
        let at = match &self.rolled_back {
            Some(rolled_back) if rolled_back.to_id == held => rolled_back.to,
            Some(rolled_back) if rolled_back.from_id == held => rolled_back.from_since,
            Some(_) => return None,
            None if is(&self.pending) => self.pending_since,
            // Of a base that was lost the id is not known any more.
            None if is(&self.base) || self.base.is_none() => self.holds_since,
            None => return None,
        };
        (at > 0).then_some(at)
    }

    /// It is about to be put back to what was taken at `to`; it holds `held` now. What a first rollback found is what a
    /// later one may come back to.
    pub fn put_back(&mut self, (to, to_id): (i64, &str), now: i64, held: &str) {
        let from_since = self.taken(held);
        let before = self.rolled_back.take();
        let (from_since, from_id) = before.map_or((from_since, held.to_owned()), |before| {
            (before.from_since, before.from_id)
        });
        self.rolled_back = Some(RolledBack {
            to,
            to_id: to_id.to_owned(),
            at: now,
            from_since,
            from_id,
        });
    }

    /// It holds `held` after a way back that was done, or of which nobody here was told how it ended. Where that is what the
    /// runs of the job have left, they go on from it.
    pub fn was_put_back(&mut self, held: Option<&str>) {
        let Some(rolled_back) = &self.rolled_back else {
            return;
        };
        if held == Some(&rolled_back.to_id) {
            self.holds_since = rolled_back.to;
        }
        if held == Some(&rolled_back.from_id) {
            self.holds_since = rolled_back.from_since;
            (self.rolled_back, self.error) = (None, None);
        }
    }

    /// Runs send to it again: nothing is known here of what it holds, so it is compared.
    pub fn resume(&mut self) {
        if self.rolled_back.take().is_some() {
            self.forget_base();
        }
    }

    /// It is compared next, whatever it holds. Gives back what it would have gone on from.
    pub fn forget_base(&mut self) -> Vec<Base> {
        self.pending_file = None;
        self.base
            .take()
            .into_iter()
            .chain(self.pending.take())
            .collect()
    }

    /// Seconds for which it has not followed, at `now`; `None` if it never did.
    pub fn lag(&self, now: i64) -> Option<i64> {
        (self.holds_since > 0).then(|| now.saturating_sub(self.holds_since).max(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(uuid: &str) -> Base {
        Base {
            name: format!("vg/{uuid}"),
            uuid: uuid.to_owned(),
        }
    }

    #[test]
    fn what_a_target_needs_is_kept_until_the_next_one_arrived() {
        let mut state = JobState::default();
        let near = state.targets.entry("near".to_owned()).or_default();
        near.begin(base("1"), 100, None);
        near.arrived(110);
        near.begin(base("2"), 200, None);
        let away = state.targets.entry("away".to_owned()).or_default();
        away.base = Some(base("0"));
        assert_eq!(state.needed(), ["0", "1", "2"]);
        let near = state.targets.get_mut("near").unwrap();
        near.arrived(220);
        assert_eq!(near.lag(230), Some(30));
        assert_eq!(state.needed(), ["0", "2"]);
        // Removed by hand; not wanted any more.
        let lost = state.retain(&["2"], &["near", "away"]);
        assert_eq!(lost, [("away".to_owned(), base("0"))]);
        assert_eq!(state.needed(), ["2"]);
        assert!(state.retain(&["2"], &["away"]).is_empty());
        assert!(state.needed().is_empty());
        assert_eq!(state.targets["away"].lag(5), None);
        // Half of something that is gone is no base.
        let away = state.targets.entry("away".to_owned()).or_default();
        (away.base, away.pending) = (Some(base("0")), Some(base("1")));
        let lost = state.retain(&["0"], &["away"]);
        assert_eq!(lost, [("away".to_owned(), base("1"))]);
        assert_eq!(state.targets["away"], TargetState::default());
    }

    #[test]
    fn how_a_run_ended_is_known_of_the_job_or_of_the_target_that_is_to_blame() {
        let mut state = JobState::default();
        assert_eq!(state.tried_since(), None);
        state.begins("a", 100);
        state.failed("no room", 110);
        state.begins("b", 200);
        state.failed("no room", 210);
        let known = (state.started, state.tried_since(), state.failed);
        assert_eq!(known, (200, Some(100), 210), "runs that fail are no news");
        assert_eq!(state.error.as_deref(), Some("no room"));
        let near = state.targets.entry("near".to_owned()).or_default();
        near.error = Some("full".to_owned());
        state.begins("c", 300);
        state.failed("full", 310);
        assert_eq!((state.failed, &state.error), (310, &None));
        state.begins("d", 50);
        assert_eq!(state.tried_since(), Some(50), "the clock was put back");
        state.succeeded();
        assert_eq!((state.tried_since(), state.failed), (Some(50), 0));
        state.begins("e", 400);
        assert_eq!(state.tried_since(), Some(400));
        // As it was written before there was any of this.
        let old: JobState = serde_json::from_str(r#"{"number": 3, "started": 7}"#).unwrap();
        assert_eq!((old.tried_since(), old.error), (Some(7), None));
    }

    #[test]
    fn a_target_that_came_back_goes_on_and_one_that_did_not_is_compared() {
        let mut target = TargetState {
            base: Some(base("4")),
            holds_since: 400,
            ..TargetState::default()
        };
        let before = target.clone();
        let known = ["lvm:4", "lvm:1"].map(|held| target.surely_taken(held));
        assert_eq!(known, [Some(400), None]);
        target.put_back((100, "lvm:1"), 1000, "lvm:4");
        let known = ["lvm:4", "lvm:1", "lvm:0"].map(|held| target.surely_taken(held));
        assert_eq!(known, [Some(400), Some(100), None]);
        target.was_put_back(Some("lvm:1"));
        assert_eq!((target.holds_since, &target.base), (100, &before.base));
        let there = target.clone();
        target.put_back((400, "lvm:4"), 1001, "lvm:1");
        target.was_put_back(Some("lvm:4"));
        assert_eq!(target, before);
        target = there;
        target.put_back((50, "lvm:0"), 1002, "lvm:1");
        // Killed before it wrote.
        target.was_put_back(Some("lvm:1"));
        assert_eq!(target.holds_since, 100);
        target.was_put_back(Some("lvm:0"));
        assert_eq!(target.rolled_back.as_ref().unwrap().from_id, "lvm:4");
        target.resume();
        assert_eq!(
            (target.base, target.rolled_back, target.holds_since),
            (None, None, 50)
        );
    }
}
