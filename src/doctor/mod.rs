//! What this machine can do, what is missing and what is stale, each with the command that mends it.
//!
//! Guarantees: nothing is changed, here or at the far end; findings are computed from plain [`Facts`] by pure
//! code, and only [`gather`] looks at the machine; what could not be looked at is said, never guessed.

pub mod facts;
mod far;
pub mod gather;
mod machine;
mod parse;
mod records;
mod views;
mod volumes;

use serde::Serialize;

use crate::commands::word;
use crate::session::text::sanitise;
use facts::Facts;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// In order.
    Ok,
    /// Good to know; nothing has to be done.
    Note,
    /// Works, or will not for long; or something that some need is missing.
    Warning,
    /// Something does not work, or somebody's copy is not what it should be.
    Problem,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, the same in every release: `group.thing`. Several findings may share it.
    pub id: &'static str,
    /// How much it matters.
    pub status: Status,
    /// What was found, fit to be shown.
    pub found: String,
    /// What to do about it: a command where there is one.
    pub way_out: Option<String>,
}

impl Check {
    fn new(id: &'static str, status: Status, found: impl AsRef<str>) -> Self {
        Self {
            id,
            status,
            found: sanitise(found.as_ref()),
            way_out: None,
        }
    }

    fn ok(id: &'static str, found: impl AsRef<str>) -> Self {
        Self::new(id, Status::Ok, found)
    }

    fn note(id: &'static str, found: impl AsRef<str>) -> Self {
        Self::new(id, Status::Note, found)
    }

    fn warning(id: &'static str, found: impl AsRef<str>) -> Self {
        Self::new(id, Status::Warning, found)
    }

    fn problem(id: &'static str, found: impl AsRef<str>) -> Self {
        Self::new(id, Status::Problem, found)
    }

    fn way_out(mut self, way_out: impl AsRef<str>) -> Self {
        self.way_out = Some(sanitise(way_out.as_ref()));
        self
    }

    /// The part of the id before the dot.
    pub fn group(&self) -> &'static str {
        self.id.split_once('.').map_or(self.id, |(group, _)| group)
    }

    /// The part of the id after the dot.
    pub fn thing(&self) -> &'static str {
        self.id.split_once('.').map_or("", |(_, thing)| thing)
    }
}

/// All findings, in the order in which they are shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// There is no problem. Warnings are allowed.
    pub healthy: bool,
    /// What was found.
    pub checks: Vec<Check>,
}

impl Report {
    /// What the facts mean.
    pub fn of(facts: &Facts) -> Self {
        let mut checks = machine::findings(&facts.machine, &facts.volumes);
        let (lost, volumes): (Vec<_>, Vec<_>) = facts
            .volumes
            .iter()
            .cloned()
            .partition(|device| views::is_lost_below(device, &facts.records.views));
        checks.extend(volumes::findings(&volumes));
        checks.extend(records::findings(&facts.records, facts.machine.root));
        checks.extend(views::findings(&facts.records, &lost));
        checks.extend(facts.far.iter().flat_map(far::findings));
        Self {
            healthy: checks.iter().all(|check| check.status != Status::Problem),
            checks,
        }
    }

    /// How many findings have this status.
    pub fn count(&self, status: Status) -> usize {
        let same = |check: &&Check| check.status == status;
        self.checks.iter().filter(same).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_problems_make_a_machine_unhealthy() {
        let report = |checks: Vec<Check>| Report {
            healthy: checks.iter().all(|check| check.status != Status::Problem),
            checks,
        };
        assert!(report(vec![Check::warning("a.b", "x")]).healthy);
        assert!(!report(vec![Check::ok("a.b", "x"), Check::problem("a.b", "x")]).healthy);
        let whole = Report::of(&Facts::default());
        assert!(whole.healthy, "{whole:?}");
    }

    #[test]
    fn a_finding_gives_a_terminal_no_orders_and_a_shell_no_surprises() {
        let check = Check::note("a.b", "x\x1b[2J").way_out("rm y\x07");
        assert!(!check.found.contains('\x1b') && !check.way_out.unwrap().contains('\x07'));
        assert_eq!(word("a b; c"), "'a b; c'");
    }
}
