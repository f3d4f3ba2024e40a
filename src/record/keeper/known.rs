//! What a run's hold on the record knows of the destination, before anything is written.
//!
//! Guarantees: nothing is changed; a state is named only where the record knows it, or knows nothing and the delta names it.

use super::{Keeper, Resume};
use crate::delta::header::{Header, Source, State};
use crate::delta::stream::StreamId;
use crate::record::Record;
use crate::record::witness::{Touched, touched};

impl Keeper {
    /// The state that the destination holds before the first write of a run, or held before the first write of the
    /// one that was cut: what the record says, if nobody wrote to it since, else `base`, which is what the run begins
    /// from if that is known. Of a run that led to no state the record says so, and samples cannot know better.
    pub fn held(&self, base: Option<&State>) -> Option<State> {
        let believed = |record: &&Record| {
            // While it is incomplete the record says what it held before, and the run itself has touched it.
            record.incomplete.is_some() || self.policy.touched != Touched::Yes
        };
        match self.record().filter(believed) {
            Some(record) if record.knows() => record.holds.clone(),
            _ => base.cloned(),
        }
    }

    /// A delta with this header is on record as applied, or what it leads to as there.
    pub fn holds_target_of(&self, header: &Header, stream: &StreamId) -> bool {
        let record = self.record().filter(|record| record.incomplete.is_none());
        let target = header.target.as_ref().map(|state| &state.id);
        record.is_some_and(|record| {
            let held = record.holds.as_ref().map(|state| &state.id);
            let is_undo = record
                .stream
                .as_ref()
                .is_some_and(|last| header.undoes(last));
            let is_there = record.stream.as_ref() == Some(stream)
                || (held.is_some() && held == target && !is_undo);
            is_there && !header.is_full_copy()
        })
    }

    /// An undo of what led to no state, and not the one that the last run kept: an older one, or one that was made beside.
    /// Nothing tells whether it belongs here. A run that goes on stays what it was.
    pub fn leads_nowhere(&self, header: &Header, stream: &StreamId) -> bool {
        let Some(record) = self.record() else {
            return false;
        };
        let cut = record.incomplete.as_ref();
        if let Some(cut) = cut.filter(|cut| cut.stream.as_ref() == Some(stream)) {
            return cut.target.is_none();
        }
        let is_known = cut.is_some() || record.stream.is_some();
        let is_nameless = header.undo_of.is_some() && header.base.is_none();
        is_known && is_nameless && record.way_back().1 != Some(stream)
    }

    /// This undo is, by the record, the one that takes back the last run, or the one that was cut.
    pub fn names_undo(&self, header: &Header, stream: &StreamId) -> bool {
        self.record().is_some_and(|record| {
            let cut = record.incomplete.as_ref();
            let last = cut.map_or(record.stream.as_ref(), |cut| cut.stream.as_ref());
            last.is_some_and(|last| header.undoes(last)) && record.way_back().1 == Some(stream)
        })
    }

    /// The other destination whose content an undo with this header holds, by its name where that is on record here; `None`
    /// where it is this one's, or that is not known.
    pub fn other_destination(&self, header: &Header, stream: &StreamId) -> Option<String> {
        let made_for = header.undo_for.as_deref()?;
        let here = self.undoes(stream).destination?;
        if header.source != Source::Undo || made_for == here {
            return None;
        }
        let file = self.file.as_ref()?.of_other(made_for);
        let name = file.load().ok().flatten().map(|record| record.name);
        Some(match name.filter(|name| !name.is_empty()) {
            Some(name) => format!("{name} ({made_for})"),
            None => made_for.to_owned(),
        })
    }

    /// Something of what the last run wrote is there no more, see [`crate::record::marks`].
    pub fn was_put_back(&self) -> bool {
        self.was_put_back
    }

    /// On record as whole, and nobody is known to have written to it since.
    pub fn is_whole(&self) -> bool {
        let is_complete = |record: &Record| record.incomplete.is_none();
        self.record().is_some_and(is_complete) && self.policy.touched != Touched::Yes
    }

    /// It was incomplete when this run began.
    pub fn was_incomplete(&self) -> bool {
        self.before
            .as_ref()
            .is_some_and(|record| record.incomplete.is_some())
    }

    /// Where a run of `stream` would go on: from the offset of what was cut; at the end if all is there.
    pub fn resume_offset(&self, stream: &StreamId) -> Resume {
        let Some(record) = self.record() else {
            return Resume::Begin;
        };
        match &record.incomplete {
            Some(cut) if cut.stream.as_ref() == Some(stream) => Resume::At(cut.durable_offset),
            None if record.stream.as_ref() == Some(stream)
                && !record.forced
                && self.policy.touched == Touched::No
                && !self.policy.force =>
            {
                Resume::Done
            }
            None if self.compared_offset(stream) > 0 => Resume::At(self.compared_offset(stream)),
            _ => Resume::Begin,
        }
    }

    /// All before this volume offset was compared and found equal by a run of `stream` that was cut before it wrote.
    pub fn compared_offset(&self, stream: &StreamId) -> u64 {
        let record = self.before.as_ref();
        let compared = record.and_then(|record| record.compared.as_ref());
        let Some(compared) = compared.filter(|found| found.stream.as_ref() == Some(stream)) else {
            return 0;
        };
        let same = touched(compared.witness.as_deref(), self.opened.as_deref());
        // Writes from below do not count there, and show in the marks.
        if same == Touched::No && self.policy.touched != Touched::Yes {
            compared.offset
        } else {
            0
        }
    }

    /// What was put on another state than its base stays no state, whatever is put on top of it, and whoever writes to it;
    /// unless that takes it back to what was none, or replaces everything.
    pub fn stays_forced(&self, header: &Header, stream: &StreamId) -> bool {
        let Some(record) = self.record().filter(|_| !header.is_full_copy()) else {
            return false;
        };
        let cut = record.incomplete.as_ref();
        if cut.is_some_and(|cut| cut.stream.as_ref() == Some(stream)) {
            // It goes on as it began.
            return record.forced;
        }
        let last = cut.map_or(record.stream.as_ref(), |cut| cut.stream.as_ref());
        let is_undone =
            last.is_some_and(|last| header.undoes(last)) && record.way_back().1 == Some(stream);
        match is_undone {
            true => record.was_forced_before(),
            false => record.forced,
        }
    }

    /// The run that is under way, or the last one, was put on another state than its base: what it makes of that is
    /// no state.
    pub fn is_forced(&self) -> bool {
        self.record().is_some_and(|record| record.forced)
    }
}
