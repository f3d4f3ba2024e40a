//! The copies of a migration: the first one, and increments from one snapshot to the next.
//!
//! Guarantees: a snapshot is on record before anything of it is sent, and the one before goes only after the far end has
//! said that all is durable; so a run that is cut anywhere leaves a base to go on from. A base that is of no use any more
//! is replaced by comparing. Only snapshots of this migration are ever removed.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{MigrateArgs, PauseReport, Report};
use crate::cancel::Cancel;
use crate::cli::apply::WriteArgs;
use crate::cli::progress::Terminal;
use crate::cli::send::{Job, ToArgs};
use crate::cli::summary::Summary;
use crate::cli::watched::{Growth, while_watched};
use crate::dm::base::{self, Base, Store};
use crate::dm::lvm::volumes_of;
use crate::dm::name::LvName;
use crate::dm::openers::writers_open;
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::snapshot::Role;
use crate::engine::effort::Effort;
use crate::error::{Error, ExitCode, Result};
use crate::job::rounds::Round;
use crate::job::store::Held;
use crate::monitor::{Monitor, Silent};
use crate::record::witness::Watch;
use crate::source::SourceRequest;
use crate::units::Bytes;
use crate::volume::open::Volume;

/// Of a volume that was moved away.
pub(super) const MIGRATED_TAG: &str = "lvmsync_migrated";
/// So often a last increment is made, if the volume is written to after the service was stopped.
const LAST_ROUNDS: u32 = 3;

/// How far a migration was when its run ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    /// The volume, for people.
    source: String,
    /// Where it goes.
    destination: String,
    /// What the destination holds.
    base: Option<Base>,
    /// What is being sent, or was when the run ended.
    pending: Option<Base>,
    /// Of the last snapshot.
    number: u64,
}

/// One migration.
pub(super) struct Cycle<'a> {
    args: &'a MigrateArgs,
    terminal: &'a Terminal,
    cancel: &'a Cancel,
    name: LvName,
    size_bytes: u64,
    is_thin: bool,
    path: std::path::PathBuf,
    /// Begins the tag of its snapshots.
    owner: String,
    held: Held,
    state: State,
    /// When the snapshot was made that the destination holds.
    base_made: Instant,
    to: ToArgs,
    write: WriteArgs,
    /// It may have to be made.
    write_first: WriteArgs,
}

impl<'a> Cycle<'a> {
    /// Finds the volume, and what an earlier run has left.
    pub(super) fn open(
        args: &'a MigrateArgs,
        terminal: &'a Terminal,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let Resolved::LogicalVolume(volume) = resolve(&args.source)? else {
            return Err(Error::Usage(format!(
                "{}: only a logical volume can be moved while it is in use; what nobody writes to is moved by: {}",
                args.source,
                args.state
                    .caller()
                    .command("sync", &[&args.source, &args.destination])
            )));
        };
        let is_thin = match volume.role {
            Role::Thin { .. } => true,
            Role::Plain | Role::ThickOrigin { .. } => false,
            _ => {
                return Err(Error::refused(
                    volume.name.to_string(),
                    "no snapshot can be made of it, so it cannot be moved while it is in use",
                    format!(
                        "Stop what uses it, and then: {}",
                        args.state
                            .caller()
                            .command("sync", &[&args.source, &args.destination])
                    ),
                ));
            }
        };
        let directory = args.state.directory();
        let directory = directory.make()?.join("migrations");
        let held = Held::take(&directory, &volume.uuid, &volume.name.to_string())?;
        let state: State = held.load()?.unwrap_or_default();
        if !args.abort && !state.destination.is_empty() && state.destination != args.destination {
            return Err(Error::refused(
                volume.name.to_string(),
                format!("a migration of it to {} was cut", state.destination),
                format!(
                    "Finish it: the same command with {}. Or give it up: {}",
                    state.destination,
                    args.state
                        .caller()
                        .command("migrate", &[&args.source, &state.destination, "--abort"])
                ),
            ));
        }
        let write = WriteArgs {
            allow_in_use: args.allow_in_use,
            state: args.state.clone(),
            ..WriteArgs::default()
        };
        Ok(Self {
            args,
            terminal,
            cancel,
            owner: format!("migration_{}", volume.uuid.replace('-', "")),
            name: volume.name.clone(),
            size_bytes: volume.size_bytes,
            path: volume.path.clone(),
            is_thin,
            held,
            state,
            base_made: Instant::now(),
            to: ToArgs {
                compress: args.compress,
                bwlimit: args.bwlimit,
                ..ToArgs::default()
            },
            write_first: WriteArgs {
                create: args.create.clone(),
                ..write.clone()
            },
            write,
        })
    }

    pub(super) fn name(&self) -> &LvName {
        &self.name
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// In words: what is moved, and how far it is.
    pub(super) fn plan(&self) -> String {
        let kind = if self.is_thin { "thin" } else { "thick" };
        let goes_on = match (&self.state.base, &self.state.pending) {
            (Some(base), _) => format!("; goes on from {}, which is there", base.name),
            (None, Some(_)) => "; goes on with its first copy".to_owned(),
            (None, None) => String::new(),
        };
        format!(
            "{} ({kind}, {}) to {}{goes_on}",
            self.name,
            Bytes(self.size_bytes),
            self.args.destination
        )
    }

    /// Looks at both ends and writes nothing. What was found of the far one, in words.
    pub(super) fn check(&self) -> Result<String> {
        if self.nobody_writes()? {
            self.terminal
                .remark(&format!("{}: nothing has it open for writing", self.name));
        }
        if !self.is_thin {
            let asked = self.args.snapshot_size.unwrap_or_default();
            base::check_room(&self.name, self.size_bytes, asked)?;
        }
        let name = self.name.to_string();
        // That it is in use is what this is for.
        let mut job = self.job(None, &name, true);
        (job.request.monitor, job.monitor) = (&Silent, &Silent);
        let found = job.run()?;
        Ok(format!(
            "{}: {}",
            self.args.destination,
            if found.compared_bytes.is_some() {
                "is there, and is compared: only what differs is sent"
            } else {
                "is there, or will be made"
            }
        ))
    }

    fn nobody_writes(&self) -> Result<bool> {
        let Resolved::LogicalVolume(volume) = resolve(&self.args.source)? else {
            return Ok(false);
        };
        let openers = writers_open(volume.device)?;
        Ok(!openers.may_write())
    }

    /// The destination becomes what a snapshot is, and is then the base of increments; unless it is that already.
    pub(super) fn first_copy(&mut self, report: &mut Report) -> Result<()> {
        self.sort_out()?;
        if self.state.base.is_some() {
            return Ok(());
        }
        let begun = Instant::now();
        let summary = self.transfer(false)?;
        report.first_copy_bytes = summary.data_bytes + summary.zero_bytes;
        report.first_copy_seconds = begun.elapsed().as_secs_f64();
        Ok(())
    }

    /// One increment.
    pub(super) fn round(&mut self, verify: bool) -> Result<Round> {
        let begun = Instant::now();
        let collected = self.base_made;
        let summary = self.transfer(verify)?;
        Ok(Round {
            bytes: summary.data_bytes + summary.zero_bytes,
            seconds: begun.elapsed().as_secs_f64(),
            collected_seconds: self.base_made.duration_since(collected).as_secs_f64(),
        })
    }

    /// The increments of the pause: all that the volume holds is then there, and was read back.
    pub(super) fn last_round(&mut self, report: &mut PauseReport) -> Result<Round> {
        self.to.bwlimit = None;
        let mut all = Round {
            bytes: 0,
            seconds: 0.0,
            collected_seconds: 0.0,
        };
        for _ in 0..LAST_ROUNDS {
            let begun = Instant::now();
            // A snapshot that a killed run has left unsent is older than the pause.
            if self.state.pending.is_some() {
                all.bytes += self.round(false)?.bytes;
            }
            self.make_pending()?;
            report.snapshot_seconds += begun.elapsed().as_secs_f64();
            let volume = Volume::open(&self.path)?;
            let watch = Watch::of(&volume)
                .map_err(|error| Error::io(format!("cannot look at {}", self.name), error))?;
            let before = watch.now();
            let begun = Instant::now();
            let round = self.round(true)?;
            report.send_seconds += begun.elapsed().as_secs_f64();
            all.bytes += round.bytes;
            all.seconds += round.seconds;
            if before.is_some() && watch.now() == before {
                return Ok(all);
            }
            self.terminal.warn(&format!(
                "{}: it was written to while the last increment was sent; another one is made",
                self.name
            ));
        }
        Err(Error::refused(
            self.name.to_string(),
            "it is still written to after the service was stopped, so that the copy would not be all of it",
            "Find what writes (lvmsync doctor, fuser -v, lsof), let the command that stops the service stop that, too \
             (a filesystem is to be unmounted), and run this again.",
        ))
    }

    /// The volume here takes no writes any more, and says why.
    pub(super) fn make_safe(&self) -> Result<()> {
        base::make_safe(&self.name, MIGRATED_TAG).inspect_err(|_| {
            // The service is to go on here.
            let _ = base::make_writable(&self.name, MIGRATED_TAG);
        })
    }

    /// All is moved.
    pub(super) fn clean_up(mut self) -> Result<()> {
        self.remove_all()?;
        self.held.remove()
    }

    /// Removes what an earlier run has left here; false if there is nothing.
    pub(super) fn abort(mut self) -> Result<bool> {
        let was_there = !self.state.destination.is_empty();
        let removed = self.remove_all()?;
        self.held.remove()?;
        Ok(was_there || removed)
    }

    fn remove_all(&mut self) -> Result<bool> {
        let rows = volumes_of(self.name.vg())?;
        let mut found = false;
        for row in base::of_owner(&rows, &self.owner) {
            found |= base::remove(self.name.vg(), &row.lv_uuid, &self.owner)?;
        }
        Ok(found)
    }

    /// Of what an earlier run has left, keeps what this one goes on from.
    fn sort_out(&mut self) -> Result<()> {
        let rows = volumes_of(self.name.vg())?;
        let is_there = |wanted: &Base| {
            base::of_owner(&rows, &self.owner).any(|row| row.lv_uuid == wanted.uuid)
        };
        for kept in [&mut self.state.base, &mut self.state.pending] {
            if kept.as_ref().is_some_and(|kept| !is_there(kept)) {
                *kept = None;
            }
        }
        // Without its base what was being sent is no increment, and is sent by comparing.
        let kept = [&self.state.base, &self.state.pending];
        let strays: Vec<String> = base::of_owner(&rows, &self.owner)
            .filter(|row| {
                kept.iter()
                    .all(|kept| kept.as_ref().is_none_or(|kept| kept.uuid != row.lv_uuid))
            })
            .map(|row| row.lv_uuid.clone())
            .collect();
        for uuid in strays {
            base::remove(self.name.vg(), &uuid, &self.owner)?;
        }
        Ok(())
    }

    /// Makes the snapshot that is sent next, unless there is one that was being sent.
    fn make_pending(&mut self) -> Result<()> {
        if self.state.pending.is_some() {
            return Ok(());
        }
        self.state.source = self.name.to_string();
        self.state.destination.clone_from(&self.args.destination);
        self.state.number += 1;
        // The name is on record before it is there: a number is never used twice.
        self.held.save(&self.state)?;
        let name = base::base_name(&self.name, "lvmsync", self.state.number);
        let name = name.ok_or_else(|| Error::Lvm {
            what: self.name.to_string(),
            reason: "its name leaves no room for that of a snapshot".to_owned(),
        })?;
        let store = (!self.is_thin).then(|| self.args.snapshot_size.unwrap_or_default());
        let made = base::make(&self.name, &name, &self.owner, self.size_bytes, store)?;
        self.state.pending = Some(made);
        self.held.save(&self.state)
    }

    /// Sends what is pending, and lets the base before go.
    fn transfer(&mut self, verify: bool) -> Result<Summary> {
        self.make_pending()?;
        let made = Instant::now();
        let Some(pending) = self.state.pending.clone() else {
            return Err(Error::Usage("there is nothing to send".to_owned()));
        };
        let old = self.state.base.clone();
        let bases: Vec<&Base> = old.iter().chain([&pending]).collect();
        let growth = Growth {
            of_thick: !self.is_thin && self.args.snapshot_size != Some(Store::Most),
        };
        let summary = while_watched(&bases, growth, self.terminal, || {
            self.send(old.as_ref(), &pending, verify)
        })?;
        self.state.base = Some(pending);
        self.state.pending = None;
        self.base_made = made;
        self.held.save(&self.state)?;
        if let Some(old) = old {
            base::remove(self.name.vg(), &old.uuid, &self.owner)?;
        }
        Ok(summary)
    }

    fn send(&self, old: Option<&Base>, new: &Base, verify: bool) -> Result<Summary> {
        let job = |from| {
            let mut job = self.job(from, &new.name, false);
            job.verify = verify;
            job.run()
        };
        match job(old.map(|old| old.name.as_str())) {
            Err(error) if old.is_some() && error.exit_code() == ExitCode::TrackingLost => {
                self.terminal
                    .warn(&format!("{}; comparing instead", error.chain()));
                job(None)
            }
            result => result,
        }
    }

    /// Without `from` by comparing. What is there already, or is new, need not be compared.
    fn job<'j>(&'j self, from: Option<&'j str>, new: &'j str, dry_run: bool) -> Job<'j> {
        Job {
            request: SourceRequest {
                from,
                new: Some(new),
                data_source: None,
                base_size: None,
                thin_metadata: None,
                volume_size: None,
                snapshot: None,
                compression: self.args.compress,
                state: self.args.state.directory(),
                cancel: self.cancel,
                monitor: self.terminal,
            },
            destination: Some(&self.args.destination),
            to: &self.to,
            write: if from.is_none() {
                &self.write_first
            } else {
                &self.write
            },
            remote: &self.args.remote,
            dry_run,
            verify: false,
            comparing: from.is_none(),
            effort: Effort::new(self.args.compress),
            cancel: self.cancel,
            monitor: self.terminal,
            speaker: self.terminal.speaker(),
        }
    }
}
