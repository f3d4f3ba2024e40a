//! One run of one job: a snapshot, and an increment for each target.
//!
//! Guarantees: what is sent is on record before; the snapshot that a target holds goes only after it has said that the next
//! one is durable there, so a run that is cut anywhere leaves a base; only snapshots of the job are ever removed. A target
//! that fails does not keep the others from going on, and is caught up with later. Each step is one line of the log, with the
//! id of its run.

mod bases;
mod eras;
mod keeping;
mod record;
mod room;

use std::path::PathBuf;
use std::time::Instant;

use crate::cancel::Cancel;
use crate::cli::apply::{StateArgs, WriteArgs};
use crate::cli::log::{STEPS, WORDS};
use crate::cli::migrate::{MIGRATED_TAG, use_here};
use crate::cli::points::there::remote_args;
use crate::cli::progress::Terminal;
use crate::cli::send::{Job, ToArgs};
use crate::cli::watched::while_watched;
use crate::dm::base::{Base, looked_at};
use crate::dm::name::LvName;
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::snapshot::Role;
use crate::engine::effort::Effort;
use crate::error::{Error, ExitCode, Result};
use crate::job::config::{JobConfig, Target, Track};
use crate::job::hooks;
use crate::job::state::JobState;
use crate::job::store::Held;
use crate::monitor::Monitor;
use crate::record::keeper::now;
use crate::source::{SnapshotWish, SourceRequest};
use crate::units::Bytes;
use crate::volume::file_version::run_id;
pub(in crate::cli) use keeping::refused_as_put_back;

/// One job, for one run.
pub(super) struct Cycle<'a> {
    name: &'a str,
    /// Id of this run.
    run: &'a str,
    job: &'a JobConfig,
    state_args: &'a StateArgs,
    terminal: &'a Terminal,
    cancel: &'a Cancel,
    held: &'a Held,
    state: JobState,
    volume: LvName,
    source_uuid: String,
    size_bytes: u64,
    is_thin: bool,
    owner: String,
    /// UUID of the snapshot of this run, which some targets may not have been told of yet.
    new: Option<String>,
}

/// What is to be sent although it would not be otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// Nothing.
    No,
    /// To targets that were put back.
    Resume,
    /// To targets that hold something else than the job has left there.
    Compare,
}

/// Runs the job `name`, unless another run of it is at work. The error is that of the first target that failed.
pub(super) fn run(
    name: &str,
    job: &JobConfig,
    again: Again,
    state_args: &StateArgs,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<()> {
    let run = run_id();
    let run = run.split('-').next().unwrap_or_default();
    // Whatever is said from here on carries it.
    let span = tracing::error_span!(target: WORDS, "run", job = name, run);
    let _entered = span.enter();
    let terminal = &terminal.within(&span);
    let begun = Instant::now();
    let held = match record::begin((name, run), state_args) {
        // The other run does what this one would; nothing has failed.
        Err(error) if error.is_held() => return Err(error),
        held => held,
    };
    tracing::info!(target: STEPS, source = %job.source, "{name}: begins");
    let done = held.and_then(|(held, state)| {
        let known = (&held, state);
        let cycle = Cycle::open((name, run), job, known, state_args, terminal, cancel);
        let done = cycle.and_then(|mut cycle| {
            match again {
                Again::No => {}
                Again::Resume => cycle.resume()?,
                Again::Compare => drop(cycle.state.forget_bases()),
            }
            cycle.run()
        });
        record::end(&held, name, done, terminal)
    });
    let seconds = tenths(begun);
    match &done {
        Ok(()) => tracing::info!(target: STEPS, seconds, "{name}: done"),
        Err(error) => {
            let text = error.chain();
            let code = error.exit_code() as u8;
            let reason = text.lines().next().unwrap_or_default();
            tracing::info!(target: STEPS, seconds, code, "{name}: failed: {reason}");
            on_failure((name, run), job, &text, terminal, cancel);
        }
    }
    done
}

/// Nothing of what is written at the other machine comes back to it.
fn refuse_moved(volume: &LvName) -> Result<()> {
    let (read_only, was_moved) = looked_at(volume, MIGRATED_TAG)?;
    if !was_moved {
        return Ok(());
    }
    Err(Error::refused(
        volume.to_string(),
        format!("it was moved to another machine: it has the tag {MIGRATED_TAG}"),
        format!(
            "Have the job run there, and remove it here. If the volume is to be used here again: {}",
            use_here(volume, read_only)
        ),
    ))
}

fn on_failure(
    (name, run): (&str, &str),
    job: &JobConfig,
    text: &str,
    terminal: &Terminal,
    cancel: &Cancel,
) {
    let Some(command) = &job.hooks.on_failure else {
        return;
    };
    let environment = [
        ("LVMSYNC_JOB", name),
        ("LVMSYNC_RUN", run),
        ("LVMSYNC_ERROR", text),
    ];
    if let Err(failed) = hooks::run(command, "the hook on_failure", &environment, cancel) {
        terminal.warn(&format!("{name}: {}", failed.chain()));
    }
}

/// Seconds since then.
fn tenths(begun: Instant) -> f64 {
    (begun.elapsed().as_secs_f64() * 10.0).round() / 10.0
}

impl<'a> Cycle<'a> {
    fn open(
        (name, run): (&'a str, &'a str),
        job: &'a JobConfig,
        (held, state): (&'a Held, JobState),
        state_args: &'a StateArgs,
        terminal: &'a Terminal,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let Resolved::LogicalVolume(volume) = resolve(&job.source)? else {
            return Err(Error::Usage(format!(
                "job {name}: source `{}` is no logical volume",
                job.source
            )));
        };
        let is_thin = match volume.role {
            Role::Thin { .. } => true,
            Role::Plain | Role::ThickOrigin { .. } => false,
            _ => {
                let reason = "no snapshot can be made of it, so a job cannot follow it";
                return Err(Error::refused(volume.name.to_string(), reason, ""));
            }
        };
        refuse_moved(&volume.name)?;
        Ok(Self {
            name,
            run,
            job,
            state_args,
            terminal,
            cancel,
            held,
            state,
            volume: volume.name.clone(),
            source_uuid: volume.uuid.clone(),
            size_bytes: volume.size_bytes,
            is_thin,
            owner: format!("job_{name}"),
            new: None,
        })
    }

    fn run(mut self) -> Result<()> {
        if self.job.track == Track::Era {
            return self.run_eras();
        }
        self.sort_out()?;
        // No snapshot for nobody.
        let is_put_back = |target: &&Target| self.put_back(target).is_some();
        if self.job.targets.iter().all(|target| is_put_back(&target)) {
            let first = self
                .job
                .targets
                .iter()
                .find_map(|target| self.put_back(target));
            return first.map_or(Ok(()), Err);
        }
        self.look_at_bases();
        let taken = now();
        let new = self.snapshot()?;
        self.new = Some(new.uuid.clone());
        let result = self.each_target(|cycle, target| cycle.follow(target, &new, taken));
        self.new = None;
        self.remove_strays()?;
        result
    }

    /// One that fails does not keep the others from going on. The error is the first one's.
    fn each_target(
        &mut self,
        mut follow: impl FnMut(&mut Self, &Target) -> Result<()>,
    ) -> Result<()> {
        let mut first_error = None;
        for target in &self.job.targets {
            self.cancel.check()?;
            if let Err(error) = follow(self, target) {
                self.terminal
                    .warn(&format!("{}: {}: {}", self.name, target.to, error.chain()));
                let known = self.target(target);
                known.error = Some(error.chain());
                known.is_prepared = false;
                if error.exit_code() == ExitCode::Differ {
                    // What is there is not what was written: nothing goes on from that.
                    known.forget_base();
                }
                self.held.save(&self.state)?;
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Makes what `target` holds the snapshot `new`, by way of what was being sent when a run was cut.
    fn follow(&mut self, target: &Target, new: &Base, taken: i64) -> Result<()> {
        if let Some(error) = self.put_back(target) {
            return Err(error);
        }
        if let Some(pending) = self.target(target).pending.clone() {
            self.send(target, &pending)?;
        }
        self.learn(target);
        let file = self.file_for(target, taken);
        self.target(target).begin(new.clone(), taken, file);
        self.held.save(&self.state)?;
        self.send(target, new)
    }

    fn send(&mut self, target: &Target, new: &Base) -> Result<()> {
        let known = self.target(target);
        let (old, file) = (known.base.clone(), known.pending_file.clone());
        let is_prepared = known.is_prepared;
        let begun = Instant::now();
        self.log_sending(target, old.as_ref(), new, "");
        let bases: Vec<&Base> = old.iter().chain([new]).collect();
        let this = &*self;
        let bytes = while_watched(&bases, this.growth(), this.terminal, || {
            let file = file.as_deref();
            let beside = this.beside(target, file, old.is_none(), is_prepared)?;
            let from = old.as_ref().map(|old| old.name.as_str());
            match this.transfer(target, (from, &new.name), None, beside) {
                Err(error) if old.is_some() && error.exit_code() == ExitCode::TrackingLost => {
                    let instead = if target.collects() {
                        "everything is written instead"
                    } else {
                        "comparing instead"
                    };
                    this.terminal.warn(&format!(
                        "{}: {}: {}; {instead}",
                        this.name,
                        target.to,
                        error.chain()
                    ));
                    let beside = this.beside(target, file, true, false)?;
                    this.transfer(target, (None, &new.name), None, beside)
                }
                result => result,
            }
        })?;
        self.arrived(target, file.is_some(), "", (bytes, begun))?;
        self.remove_strays()?;
        self.give_up(target, new)
    }

    /// `of` is said behind the name of what is sent.
    fn log_sending(&self, target: &Target, old: Option<&Base>, new: &Base, of: &str) {
        tracing::info!(
            target: STEPS,
            target = %target.to,
            from = old.map(|old| old.name.as_str()),
            state = new.id(),
            "{}: sends {}{of} to {}",
            self.name,
            new.name,
            target.to
        );
    }

    /// The target holds what was pending: `bytes` of the volume, on their way since `begun`. `of` is said behind its name.
    fn arrived(
        &mut self,
        target: &Target,
        has_file: bool,
        of: &str,
        (bytes, begun): (u64, Instant),
    ) -> Result<Option<Base>> {
        let seconds = begun.elapsed().as_secs_f64();
        let run = self.run.to_owned();
        let known = self.target(target);
        known.is_prepared |= has_file;
        known.arrived(now());
        (known.bytes, known.seconds, known.run) = (bytes, seconds, run);
        let holds = known.base.clone();
        self.held.save(&self.state)?;
        if let Some(new) = &holds {
            self.terminal.finish();
            self.terminal.remark(&format!(
                "{}: {} holds {}{of} ({} in {seconds:.1} s)",
                self.name,
                target.to,
                new.name,
                Bytes(bytes)
            ));
        }
        Ok(holds)
    }

    /// Bytes of the volume that were sent.
    fn transfer(
        &self,
        target: &Target,
        (old, new): (Option<&str>, &str),
        snapshot: Option<SnapshotWish<'_>>,
        beside: Option<PathBuf>,
    ) -> Result<u64> {
        let (output, undo) = match target.collects() {
            true => (beside, None),
            false => (None, beside),
        };
        let write = WriteArgs {
            create: target.create.clone().filter(|_| old.is_none()),
            // An increment goes only onto what is on record as its base.
            require_record: old.is_some(),
            undo,
            // What a run has left that was killed before it could say that it was done.
            overwrite: target.collects(),
            state: self.state_args.clone(),
            ..WriteArgs::default()
        };
        let to = ToArgs {
            output,
            compress: self.job.compress,
            bwlimit: self.job.bwlimit,
            ..ToArgs::default()
        };
        let remote = remote_args(target);
        let job = Job {
            request: SourceRequest {
                from: old,
                new: Some(new),
                data_source: None,
                base_size: None,
                thin_metadata: None,
                volume_size: None,
                snapshot,
                compression: self.job.compress,
                state: self.state_args.directory(),
                caller: self.state_args.caller(),
                cancel: self.cancel,
                monitor: self.terminal,
            },
            destination: (!target.collects()).then_some(target.to.as_str()),
            to: &to,
            write: &write,
            remote: &remote,
            prestarted: None,
            dry_run: false,
            verify: target.verify,
            comparing: old.is_none() && !target.collects(),
            recover_at_peer: None,
            effort: Effort::new(self.job.compress),
            cancel: self.cancel,
            monitor: self.terminal,
            speaker: self.terminal.speaker(),
        };
        let summary = job.run_or(|| format!("lvmsync replicate {} --compare", self.name))?;
        Ok(summary.data_bytes + summary.zero_bytes)
    }

    fn target(&mut self, target: &Target) -> &mut crate::job::state::TargetState {
        self.state.targets.entry(target.to.clone()).or_default()
    }
}
