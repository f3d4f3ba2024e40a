//! How far a replication job is, and what is to be said of it.
//!
//! Pure. Guarantees: what a target holds is changed only after it has said that it is durable there; a snapshot that any target
//! still needs is among [`JobState::needed`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::dm::base::Base;

/// One job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobState {
    /// Of the last snapshot: a number is never used twice.
    pub number: u64,
    /// When the last run began: seconds since 1970 UTC.
    pub started: i64,
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
    /// When the state was taken that it holds: seconds since 1970 UTC.
    pub holds_since: i64,
    /// When the last run was done that succeeded.
    pub succeeded: i64,
    /// Bytes of the volume in it.
    pub bytes: u64,
    /// How long that took.
    pub seconds: f64,
    /// Why the last run failed.
    pub error: Option<String>,
}

impl JobState {
    /// UUIDs of the snapshots without which a target could not go on.
    pub fn needed(&self) -> Vec<&str> {
        let targets = self.targets.values();
        targets
            .flat_map(|target| target.base.iter().chain(&target.pending))
            .map(|base| base.uuid.as_str())
            .collect()
    }

    /// Forgets snapshots that are not among `there`, which are in order, and destinations that are not among `wanted`.
    pub fn retain(&mut self, there: &[&str], wanted: &[&str]) {
        self.targets
            .retain(|name, _| wanted.contains(&name.as_str()));
        for target in self.targets.values_mut() {
            let is_gone = |kept: &mut Base| !there.contains(&kept.uuid.as_str());
            target.base.take_if(is_gone);
            if target.pending.take_if(is_gone).is_some() {
                // Part of it may be there: nothing but comparing goes on from that.
                target.base = None;
            }
        }
    }
}

impl TargetState {
    /// `new`, which was taken at `taken`, is about to be sent.
    pub fn begin(&mut self, new: Base, taken: i64) {
        (self.pending, self.pending_since) = (Some(new), taken);
    }

    /// What was pending is there, durably, and all was done at `now`.
    pub fn arrived(&mut self, now: i64) {
        (self.holds_since, self.succeeded) = (self.pending_since, now);
        (self.base, self.error) = (self.pending.take(), None);
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
        near.begin(base("1"), 100);
        near.arrived(110);
        near.begin(base("2"), 200);
        let away = state.targets.entry("away".to_owned()).or_default();
        away.base = Some(base("0"));
        assert_eq!(state.needed(), ["0", "1", "2"]);
        let near = state.targets.get_mut("near").unwrap();
        near.arrived(220);
        assert_eq!(near.lag(230), Some(30));
        assert_eq!(state.needed(), ["0", "2"]);
        // Removed by hand; not wanted any more.
        state.retain(&["2"], &["near", "away"]);
        assert_eq!(state.needed(), ["2"]);
        state.retain(&["2"], &["away"]);
        assert!(state.needed().is_empty());
        assert_eq!(state.targets["away"].lag(5), None);
        // Half of something that is gone is no base.
        let away = state.targets.entry("away".to_owned()).or_default();
        (away.base, away.pending) = (Some(base("0")), Some(base("1")));
        state.retain(&["0"], &["away"]);
        assert_eq!(state.targets["away"], TargetState::default());
    }
}
