//! A run's hold on the record of its destination.
//!
//! Guarantees: [`Keeper::begin`] returns only when *incomplete* is durable, so no write comes before it;
//! [`Keeper::complete`] is to be called after the last sync, so *complete* is never there too early; a run
//! that wrote nothing puts the record back as it was, but for a watermark whose data it had emptied.

mod known;

use std::time::{SystemTime, UNIX_EPOCH};

use super::admission::{
    Admission, Called, Policy, Refusal, admit, admit_anonymous, refuse_other_list,
};
use super::marks::{self, Mark, Places};
use super::store::RecordFile;
use super::witness::{Touched, Watch, touched};
use super::{ANONYMOUS, Compared, Incomplete, Record};
use crate::commands::Caller;
use crate::delta::header::{Header, Source, State};
use crate::delta::stream::StreamId;
use crate::engine::undo::Undoes;
use crate::error::{Error, Result};
use crate::volume::ReadAt;

/// The record of one destination during one run.
#[derive(Debug)]
pub struct Keeper {
    /// `None` keeps nothing: for tests, and for what is looked at only.
    file: Option<RecordFile>,
    name: String,
    from: String,
    /// Who is told which commands to run.
    caller: Caller,
    policy: Policy,
    watch: Option<Watch>,
    /// What there was to tell writes by when the run began.
    opened: Option<String>,
    /// Some of the destination is only compared, and not written, by this run.
    compares: bool,
    /// What it consists of, or a piece of it, is on record as half-written.
    elsewhere: Option<Refusal>,
    /// The identities of what it lies on.
    lies_on: Vec<String>,
    /// The identity of what an undo is for, if not the destination itself.
    stands_for: Option<String>,
    /// The destination is a file that was made for this copy, or for one that was cut.
    is_new_file: bool,
    /// Something of what the last run wrote is there no more: perhaps somebody has put back what was there before.
    was_put_back: bool,
    /// Somebody has written to it since the run ended that has left it incomplete.
    was_written_since_cut: bool,
    /// As it was when the run began.
    before: Option<Record>,
    now: Option<Record>,
}

impl Keeper {
    /// Reads the record of the destination that is called `name`; what is written to it comes from `from`.
    /// `watch` and what `volume` holds tell whether others wrote to it.
    pub fn open(
        file: RecordFile,
        name: &str,
        from: &str,
        policy: Policy,
        watch: Option<Watch>,
        volume: &dyn ReadAt,
    ) -> Result<Self> {
        let before = file.load()?;
        let then = before.as_ref().and_then(|record| record.witness.as_deref());
        let now = watch.as_ref().and_then(Watch::now);
        let mut is_touched = touched(then, now.as_deref());
        let cannot_read = |error| Error::io(format!("cannot read {name}"), error);
        let mut current = before.clone();
        let mut was_written_since_cut = false;
        if let Some(cut) = current
            .as_mut()
            .and_then(|record| record.incomplete.as_mut())
        {
            was_written_since_cut = touched(cut.left.as_deref(), now.as_deref()) == Touched::Yes;
            if was_written_since_cut
                || !is_untouched(cut.witness.as_deref(), now.as_deref())
                || !marks::hold(volume, &cut.marks).map_err(cannot_read)?
            {
                // What was written, or found equal, is there no more: the run begins anew.
                cut.durable_offset = 0;
                cut.marks.clear();
                cut.witness = None;
            }
        }
        // Writes from below are not counted. An incomplete destination has other marks by now.
        let mut was_put_back = false;
        if let Some(record) = before.as_ref().filter(|record| record.incomplete.is_none())
            && !marks::hold(volume, &record.marks).map_err(cannot_read)?
        {
            is_touched = Touched::Yes;
            was_put_back = true;
        }
        let policy = Policy {
            touched: is_touched,
            ..policy
        };
        Ok(Self {
            watch,
            opened: now,
            compares: false,
            elsewhere: None,
            lies_on: Vec::new(),
            stands_for: None,
            is_new_file: false,
            was_put_back,
            was_written_since_cut,
            now: current,
            before,
            file: Some(file),
            name: name.to_owned(),
            from: from.to_owned(),
            caller: Caller::HERE,
            policy,
        })
    }

    /// One that lives in memory alone.
    pub fn in_memory(record: Option<Record>) -> Self {
        Self {
            file: None,
            name: "the destination".to_owned(),
            from: String::new(),
            caller: Caller::HERE,
            policy: Policy::default(),
            watch: None,
            opened: None,
            compares: false,
            elsewhere: None,
            lies_on: Vec::new(),
            stands_for: None,
            is_new_file: false,
            was_put_back: false,
            was_written_since_cut: false,
            before: record.clone(),
            now: record,
        }
    }

    /// From now on `caller` is told which commands to run.
    #[must_use]
    pub fn told_to(mut self, caller: Caller) -> Self {
        self.caller = caller;
        self
    }

    /// Something that shares its data may be half-written: then only what goes on here, or replaces everything, is put on
    /// it.
    #[must_use]
    pub fn beside(mut self, elsewhere: Option<Refusal>) -> Self {
        self.elsewhere = elsewhere;
        self
    }

    /// What it lies on, for its record.
    #[must_use]
    pub fn lying_on(mut self, identities: Vec<String>) -> Self {
        self.lies_on = identities;
        self
    }

    /// It is a preview of what has this identity: an undo that is kept now will be for that one.
    #[must_use]
    pub fn standing_for(mut self, identity: Option<String>) -> Self {
        self.stands_for = identity;
        self
    }

    fn refuse_beside(&self) -> Result<()> {
        let is_cut = |record: &Record| record.incomplete.is_some();
        match &self.elsewhere {
            Some(refusal) if !self.policy.force && !self.record().is_some_and(is_cut) => {
                Err(self.refused(refusal.clone()))
            }
            _ => Ok(()),
        }
    }

    fn called(&self) -> Called<'_> {
        Called {
            name: &self.name,
            caller: &self.caller,
        }
    }

    /// For a run that goes on although the samples, by now, say that this never was its base: see [`refuse_other_list`].
    pub fn refuse_other_list(&self, header: &Header) -> Result<()> {
        let refusal = self
            .record()
            .and_then(|record| refuse_other_list(record, header, self.called()));
        refusal.map_or(Ok(()), |refusal| Err(self.refused(refusal)))
    }

    /// The command that takes back the run that is under way.
    pub fn way_back(&self) -> Option<String> {
        let undo = self.record()?.incomplete.as_ref()?.undo.as_deref()?;
        Some(self.called().take_back(undo))
    }

    /// The record as it is now.
    pub fn record(&self) -> Option<&Record> {
        self.now.as_ref()
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What makes the destination this destination; `None` where no record is kept.
    pub fn identity(&self) -> Option<&str> {
        self.file.as_ref().map(RecordFile::identity)
    }

    /// What an undo of `stream` that is kept now takes back.
    pub fn undoes(&self, stream: &StreamId) -> Undoes {
        Undoes {
            stream: stream.clone(),
            destination: (self.stands_for.as_deref().or(self.identity())).map(str::to_owned),
        }
    }

    /// The destination has not got its name yet: what it holds is of no use but to the copy that it was made for.
    pub fn set_new_file(&mut self) {
        self.is_new_file = true;
    }

    /// See [`Self::set_new_file`].
    pub fn is_new_file(&self) -> bool {
        self.is_new_file
    }

    /// What was in it is there no more: even if nothing comes of this run, there is nothing to go on from.
    pub fn was_emptied(&mut self) {
        let before = self.before.as_mut();
        if let Some(cut) = before.and_then(|record| record.incomplete.as_mut()) {
            cut.durable_offset = 0;
            cut.marks.clear();
        }
    }

    /// Decides whether the delta may be applied.
    pub fn admit(&self, header: &Header, stream: &StreamId) -> Result<Admission> {
        if !header.is_full_copy() {
            self.refuse_beside()?;
        }
        let admission = admit(self.record(), header, stream, self.called(), self.policy)
            .map_err(|refusal| self.refused(refusal))?;
        self.refuse_written_since_cut(header, &admission)?;
        Ok(admission)
    }

    /// Somebody has written to it since the run ended that has left it incomplete.
    pub fn was_written_since_cut(&self) -> bool {
        self.was_written_since_cut
    }

    /// The same, and that stays there after this delta, which looks at its own places alone.
    pub fn keeps_what_others_wrote(&self, header: &Header) -> bool {
        let looks_at_all = header.is_full_copy() || header.source == Source::Compare;
        self.was_written_since_cut && !looks_at_all
    }

    /// What writes, or looks at, everything makes good whatever was written. A list of changes does not, and its undo says so.
    fn refuse_written_since_cut(&self, header: &Header, admission: &Admission) -> Result<()> {
        let goes_on = matches!(
            admission,
            Admission::Fresh { .. } | Admission::Resume { .. } | Admission::Again { .. }
        );
        if !goes_on || !self.keeps_what_others_wrote(header) || self.policy.force {
            return Ok(());
        }
        let take_back = self.way_back().map_or_else(String::new, |way_back| {
            format!(" Or take it back: {way_back}")
        });
        Err(self.refused(Refusal {
            reason: "something other than lvmsync wrote to it since the run was cut: what this delta leaves alone may be \
                     anything. Nothing was written"
                .to_owned(),
            way_out: format!(
                "Make it equal: lvmsync sync NEW DEST; where a job writes to it: lvmsync replicate JOB --compare.{take_back}\n\
                 Where what was written does not count, --force goes on, and the result has no name."
            ),
        }))
    }

    /// Decides whether a version 3 stream may be applied.
    pub fn admit_anonymous(&self) -> Result<()> {
        self.refuse_beside()?;
        admit_anonymous(self.record(), self.called(), self.policy)
            .map_err(|refusal| self.refused(refusal))
    }

    /// From now on the destination is incomplete. A resumed run keeps what the record says already.
    pub fn begin(&mut self, header: &Header, stream: &StreamId, kept: Kept) -> Result<()> {
        self.compares = header.source == Source::Compare;
        let cut = self.record().and_then(|record| record.incomplete.as_ref());
        if cut.is_some_and(|cut| cut.stream.as_ref() == Some(stream)) {
            // One that begins anew, or is forced to go on: cut once more, it must not be taken for the first one.
            let mut record = self.now.clone().unwrap_or_default();
            if let Some(cut) = &mut record.incomplete {
                cut.left = None;
            }
            record.forced |= kept.forced;
            record.lies_on.clone_from(&self.lies_on);
            // One that begins anew replaces what saved nothing.
            if let (Some(cut), Some(made)) = (&mut record.incomplete, kept.undo_stream) {
                cut.undo_stream = Some(made);
            }
            if self.before.as_ref() == Some(&record) {
                return Ok(());
            }
            return self.put(record);
        }
        // Only the undo that this very run has begun holds less for that it was cut. The one of the run that it repeats has
        // to be whole: the destination holds all of that one, however early the repetition was cut itself.
        let is_this_undo = |cut: &&Incomplete| {
            cut.stream.as_ref().is_some_and(|cut| header.undoes(cut))
                && cut.undo_stream.as_ref() == Some(stream)
        };
        let own = self.record().and_then(Record::run_with_own_undo);
        let good_from = match cut {
            Some(_) => own.filter(is_this_undo).map(Incomplete::undo_good_from),
            None => kept.is_unfinished.then_some(0),
        };
        let forced = kept.forced || self.stays_forced(header, stream);
        let incomplete = Incomplete {
            stream: Some(stream.clone()),
            good_from,
            saved_offset: kept.undo.is_some().then_some(0),
            undo_of: header.undo_of.clone().map(StreamId::from),
            base: header.base.clone(),
            is_proven: kept.is_proven,
            target: header.target.clone().filter(|_| !kept.is_nameless),
            source: header.source.word().to_owned(),
            created: header.created,
            run: header.run.clone(),
            list: header.list.clone(),
            from: self.from.clone(),
            undo: kept.undo,
            undo_stream: kept.undo_stream,
            has_own_undo: kept.has_own_undo,
            was_forced: self.is_forced(),
            durable_offset: kept.offset,
            marks: Vec::new(),
            left: None,
            // What was compared before is equal only as long as this is so.
            witness: self.opened.clone().filter(|_| kept.offset > 0),
            old_size_bytes: kept.old_size_bytes,
            since: now(),
        };
        self.put_incomplete(incomplete, kept.holds, forced)
    }

    /// The same for a version 3 stream; `stream` is what its undo will name.
    pub fn begin_anonymous(&mut self, stream: &StreamId, kept: Kept) -> Result<()> {
        let incomplete = Incomplete {
            stream: Some(stream.clone()),
            source: ANONYMOUS.to_owned(),
            from: self.from.clone(),
            saved_offset: kept.undo.is_some().then_some(0),
            undo: kept.undo,
            undo_stream: kept.undo_stream,
            has_own_undo: kept.has_own_undo,
            was_forced: self.is_forced(),
            old_size_bytes: kept.old_size_bytes,
            since: now(),
            ..Incomplete::default()
        };
        let forced = kept.forced || self.is_forced();
        self.put_incomplete(incomplete, kept.holds, forced)
    }

    /// `holds` is what it held before, as far as that is known.
    fn put_incomplete(
        &mut self,
        incomplete: Incomplete,
        holds: Option<State>,
        forced: bool,
    ) -> Result<()> {
        let mut record = self.now.clone().unwrap_or_default();
        (record.holds, record.forced) = (holds, forced);
        record.compared = None;
        if let Some(file) = &self.file {
            record.identity = file.identity().to_owned();
        }
        record.name.clone_from(&self.name);
        record.lies_on.clone_from(&self.lies_on);
        record.incomplete = Some(incomplete);
        self.put(record)
    }

    /// Everything up to this volume offset is durable.
    pub fn durable(&mut self, offset: u64, places: &Places, volume: &dyn ReadAt) -> Result<()> {
        let Some(mut record) = self.now.clone() else {
            return Ok(());
        };
        // Before the marks are read: what is written from now on is not covered.
        let witness = self.watch.as_ref().and_then(Watch::now);
        match &mut record.incomplete {
            Some(cut) if offset > cut.durable_offset => {
                if self.compares || cut.witness.is_some() {
                    // Without anything to tell by there is nothing to go on from.
                    if witness.is_none() && self.file.is_some() {
                        return Ok(());
                    }
                    cut.witness = witness;
                }
                cut.durable_offset = offset;
                cut.marks = self.marks(places, volume)?;
            }
            _ => return Ok(()),
        }
        self.put(record)
    }

    /// The undo is durable up to this volume offset. Nothing up to there may be overwritten before this returns.
    pub fn saved(&mut self, offset: u64) -> Result<()> {
        let Some(mut record) = self.now.clone() else {
            return Ok(());
        };
        match &mut record.incomplete {
            Some(cut) if cut.saved_offset.is_some_and(|saved| offset > saved) => {
                cut.saved_offset = Some(offset);
            }
            _ => return Ok(()),
        }
        self.put(record)
    }

    /// The run ends here, and the destination is incomplete; all that was written is durable. Who writes from now on is
    /// somebody else.
    pub fn leave(&mut self) -> Result<()> {
        // Its times have to be what the record says after a power cut, too.
        if let Some(Watch::File(file)) = &self.watch
            && file.sync_all().is_err()
        {
            return Ok(());
        }
        let left = self.watch.as_ref().and_then(Watch::now);
        match self.now.clone() {
            Some(mut record) if left.is_some() => {
                let Some(cut) = &mut record.incomplete else {
                    return Ok(());
                };
                cut.left = left;
                self.put(record)
            }
            _ => Ok(()),
        }
    }

    /// Everything is durable: the destination holds `state`.
    pub fn complete(
        &mut self,
        state: Option<State>,
        places: &Places,
        volume: &dyn ReadAt,
    ) -> Result<()> {
        let mut record = self.now.clone().unwrap_or_default();
        let done = record.incomplete.take();
        let target = done.as_ref().and_then(|done| done.target.as_ref());
        record.forced = state.is_none() && (target.is_some() || record.forced);
        record.holds = state;
        record.marks = self.marks(places, volume)?;
        record.witness = self.watch.as_ref().and_then(Watch::now);
        record.since = now();
        if let Some(done) = done {
            let is_again = record.stream == done.stream;
            record.stream = done.stream;
            record.list = done.list;
            record.is_proven = done.is_proven;
            record.from = done.from;
            // Put there once more, without an undo, it is still what the older one takes back.
            let is_same = is_again && self.policy.touched != Touched::Yes;
            record.undo = done.undo.or(record.undo.filter(|_| is_same));
            record.undo_stream = done.undo_stream.or(record.undo_stream.filter(|_| is_same));
            record.was_forced = match is_same {
                true => record.was_forced,
                false => done.was_forced,
            };
        }
        self.policy.touched = Touched::No;
        self.put(record)
    }

    fn marks(&self, places: &Places, volume: &dyn ReadAt) -> Result<Vec<Mark>> {
        marks::take(volume, places).map_err(|error| {
            let action = format!("cannot read again what was written to {}", self.name);
            Error::io(action, error)
        })
    }

    /// Nothing was written: the record is again what it was before this run, but for how far all was found equal, and for
    /// the undo that has taken the place of one that saved nothing.
    pub fn put_back(&mut self) -> Result<()> {
        if self.now == self.before {
            return Ok(());
        }
        if self.went_on() {
            return Ok(());
        }
        let compared = self.compared_now();
        let cut = |record: Option<Record>| record.and_then(|record| record.incomplete);
        let made = cut(std::mem::replace(&mut self.now, self.before.clone()));
        if let (Some(record), Some(made)) = (&mut self.now, made)
            && let Some(cut) = &mut record.incomplete
            && cut.stream == made.stream
        {
            cut.undo_stream = made.undo_stream;
        }
        if compared.is_some() {
            let record = self.now.get_or_insert_with(|| Record {
                identity: self
                    .file
                    .as_ref()
                    .map_or_else(String::new, |file| file.identity().to_owned()),
                name: self.name.clone(),
                since: now(),
                ..Record::default()
            });
            record.compared = compared;
        }
        match (&self.file, &self.now) {
            (Some(file), Some(record)) => file.save(record),
            (Some(file), None) => file.remove(),
            (None, _) => Ok(()),
        }
    }

    /// The destination has got its name, and perhaps another identity: its record goes along.
    pub fn moved_to(&mut self, file: RecordFile) -> Result<()> {
        // What is applied next to it is applied to what it holds.
        self.is_new_file = false;
        // The new name itself is no write by others.
        let now = self.watch.as_ref().and_then(Watch::now);
        if let Some(record) = self.now.clone()
            && record.witness != now
            && touched(record.witness.as_deref(), now.as_deref()) != Touched::Yes
        {
            self.put(Record {
                witness: now,
                ..record
            })?;
        }
        let Some(old) = self.file.take_if(|old| old.path() != file.path()) else {
            return Ok(());
        };
        let identity = file.identity().to_owned();
        self.file = Some(file);
        if let Some(record) = self.now.clone() {
            self.put(Record { identity, ..record })?;
        }
        old.remove()
    }

    /// The run that was cut before got further, though it wrote nothing this time.
    fn went_on(&self) -> bool {
        let cut = |record: &Option<Record>| record.as_ref().and_then(|r| r.incomplete.clone());
        match (cut(&self.before), cut(&self.now)) {
            (Some(before), Some(now)) => {
                before.stream == now.stream && now.durable_offset > before.durable_offset
            }
            _ => false,
        }
    }

    /// What this run, which wrote nothing, has found equal: only comparing gets further without writing.
    fn compared_now(&self) -> Option<Compared> {
        let cut = self.now.as_ref()?.incomplete.as_ref()?;
        let was_whole = self
            .before
            .as_ref()
            .is_none_or(|record| record.incomplete.is_none());
        // Whoever wrote since this run began may have written to what it had compared by then.
        let now = self.watch.as_ref().and_then(Watch::now);
        let is_untouched = touched(self.opened.as_deref(), now.as_deref()) == Touched::No
            && self.policy.touched != Touched::Yes;
        let is_of_use = was_whole && cut.durable_offset > 0 && !self.is_new_file && is_untouched;
        is_of_use.then(|| Compared {
            stream: cut.stream.clone(),
            offset: cut.durable_offset,
            witness: now,
        })
    }

    fn put(&mut self, record: Record) -> Result<()> {
        if let Some(file) = &self.file {
            file.save(&record)?;
        }
        self.now = Some(record);
        Ok(())
    }

    fn refused(&self, refusal: Refusal) -> Error {
        Error::refused(&self.name, refusal.reason, refusal.way_out)
    }
}

/// Nobody has written since `then` was taken, or nothing has to be told by that.
fn is_untouched(then: Option<&str>, now: Option<&str>) -> bool {
    then.is_none() || touched(then, now) == Touched::No
}

/// What a run that begins puts on record beside what its delta says.
#[derive(Debug, Default)]
pub struct Kept {
    /// The undo that it keeps.
    pub undo: Option<String>,
    /// Which delta that is, if it begins with this run.
    pub undo_stream: Option<StreamId>,
    /// It does.
    pub has_own_undo: bool,
    /// Size of the destination before.
    pub old_size_bytes: u64,
    /// The state that it held, as far as that is known.
    pub holds: Option<State>,
    /// Which is the base of the delta, see [`Record::is_proven`].
    pub is_proven: bool,
    /// Everything before this volume offset is as it should be.
    pub offset: u64,
    /// That is not the base of the delta.
    pub forced: bool,
    /// The delta is an undo that was cut, and may end anywhere.
    pub is_unfinished: bool,
    /// What the delta calls its target is not what comes of it.
    pub is_nameless: bool,
}

/// Where a stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It was never begun, as far as is known.
    Begin,
    /// It was cut: up to this volume offset everything is durable.
    At(u64),
    /// It was applied.
    Done,
}

/// Seconds since 1970 UTC.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0))
}

/// A moment for people.
pub fn shown_time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests;
