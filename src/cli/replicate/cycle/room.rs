//! Room for the snapshots of a job: what its bases took in is remembered, and the next ones are made as large as that asks for.
//!
//! Guarantees: nothing here fails a run; a base that is kept for a target that is away is extended, within the limit, before
//! what an interval is likely to bring fills it.

use super::Cycle;
use crate::cli::watched::{Growth, fill_of, look_after};
use crate::dm::base::{Base, Store};
use crate::dm::temporary::{likely_bytes, useful_bytes};
use crate::job::room::{Limits, Seen, expected_bytes, remember, wanted_bytes};
use crate::record::keeper::now;

impl Cycle<'_> {
    fn limits(&self) -> Limits {
        Limits {
            useful_bytes: useful_bytes(self.size_bytes),
            allowed_bytes: self.job.extend_limit,
        }
    }

    /// What is done about snapshots that fill.
    pub(super) fn growth(&self) -> Growth<'_> {
        Growth {
            of_thick: !self.is_thin && self.job.snapshot_size != Store::Most,
            owner: &self.owner,
            limits: self.limits(),
        }
    }

    /// Where nothing is said of the size: by what was seen.
    pub(super) fn likely_store(&self) -> Store {
        let limits = self.limits();
        let wanted = wanted_bytes(&self.state.seen, self.job.interval, limits);
        let wanted = wanted.unwrap_or_else(|| likely_bytes(self.size_bytes));
        Store::About(wanted.min(limits.largest()))
    }

    /// Remembers what the newest base took in, and makes room in those that are kept for longer.
    pub(super) fn look_at_bases(&mut self) {
        if self.is_thin {
            return;
        }
        let newest = self.state.newest_base();
        let seen = newest.and_then(|(base, since)| {
            let (bytes, _) = fill_of(base)?;
            let seconds = now().saturating_sub(since);
            (seconds > 0).then_some(Seen {
                bytes,
                seconds: seconds as f64,
            })
        });
        if let Some(seen) = seen {
            remember(&mut self.state.seen, seen);
        }
        if !self.growth().of_thick {
            return;
        }
        let coming = expected_bytes(&self.state.seen, self.job.interval).unwrap_or(0);
        for base in self.kept_for_later() {
            look_after(&base, &mut None, Some(coming), self.growth(), self.terminal);
        }
    }

    /// Bases of targets that could not be reached, which may have to last for another interval.
    fn kept_for_later(&self) -> Vec<Base> {
        let targets = self.state.targets.values();
        let mut kept: Vec<Base> = targets
            .filter(|target| target.error.is_some())
            .flat_map(|target| target.base.iter().chain(&target.pending))
            .cloned()
            .collect();
        kept.sort_by(|one, other| one.uuid.cmp(&other.uuid));
        kept.dedup();
        kept
    }
}
