//! A migration as far as copies go: a first one, and rounds of increments, of snapshots or of eras.
//!
//! Guarantees: what is sent is on record before anything of it is, so a run that is cut anywhere leaves a base to go on from,
//! or is compared. Nothing is left here but what the next run needs.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::MigrateArgs;
use super::eras;
use super::handover::{MIGRATED_TAG, Phase};
use super::report::Report;
use crate::cancel::Cancel;
use crate::cli::apply::WriteArgs;
use crate::cli::prestart::Prestarted;
use crate::cli::progress::Terminal;
use crate::cli::send::{Job, ToArgs};
use crate::cli::summary::Summary;
use crate::cli::watched::while_watched;
use crate::dm::base::{self, Base, Beside};
use crate::dm::device::DeviceMapper;
use crate::dm::lvm::volumes_of;
use crate::dm::name::LvName;
use crate::dm::openers::writers_open;
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::snapshot::{LogicalVolume, Role};
use crate::dm::temporary::room_of;
use crate::engine::effort::Effort;
use crate::error::{Error, ExitCode, Result};
use crate::job::rounds::Round;
use crate::job::store::Held;
use crate::monitor::{Monitor, Silent};
use crate::session::endpoint::{Endpoint, parse_endpoint};
use crate::session::message::Hello;
use crate::source::{SnapshotWish, SourceRequest, Tracking};
use crate::sys::device::DeviceNumber;
use crate::track::look;
use crate::units::Bytes;
use crate::volume::file_version::run_id;

/// Begins the owner of snapshots of migrations.
pub(super) const OWNER: &str = "migration_";
/// How far a migration was when its run ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    /// Part of the tag of its snapshots: another migration of the same volume, of which this state directory knows nothing,
    /// has another one.
    pub(super) id: String,
    /// The volume, for people.
    pub(super) source: String,
    /// Where it goes.
    pub(super) destination: String,
    /// What the destination holds.
    pub(super) base: Option<Base>,
    /// What is being sent, or was when the run ended.
    pub(super) pending: Option<Base>,
    /// Of the last snapshot.
    pub(super) number: u64,
    pub(super) phase: Phase,
    /// It takes writes here after it was handed over.
    pub(super) keeps_writable: bool,
}

/// What an end by `--abort` has found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Aborted {
    /// Nothing of a migration.
    Nothing,
    /// One that was not at its end; the volume is here.
    Copying {
        /// Where the copy is.
        destination: String,
    },
    /// One that had handed the volume over.
    Moved {
        /// Where it is.
        destination: String,
        /// How it is used here again, if it still says that it was moved.
        way_back: Option<String>,
    },
}

/// One migration.
pub(super) struct Cycle<'a> {
    pub(super) args: &'a MigrateArgs,
    pub(super) terminal: &'a Terminal,
    pub(super) cancel: &'a Cancel,
    pub(super) name: LvName,
    pub(super) size_bytes: u64,
    pub(super) is_thin: bool,
    pub(super) path: std::path::PathBuf,
    pub(super) device: DeviceNumber,
    /// Its service is stopped, or may be: no time for comparing.
    pub(super) in_pause: bool,
    /// Begins the tag of its snapshots.
    pub(super) owner: String,
    pub(super) held: Held,
    pub(super) state: State,
    /// It is followed by its eras, and not by snapshots.
    pub(super) tracking: Option<Tracking>,
    /// When the snapshot was made that the destination holds.
    pub(super) base_made: Instant,
    /// How long the last one took.
    pub(super) snapshot_took: Duration,
    /// For what is sent in the pause.
    pub(super) prestarted: Prestarted,
    pub(super) to: ToArgs,
    pub(super) write: WriteArgs,
    /// It may have to be made.
    pub(super) write_first: WriteArgs,
}

impl<'a> Cycle<'a> {
    /// Finds the volume, and what an earlier run has left.
    pub(super) fn open(
        args: &'a MigrateArgs,
        terminal: &'a Terminal,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let Some(volume) = volume_of(&args.source)? else {
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
            Role::Plain | Role::ThickOrigin { merging: false, .. } => false,
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
        let mut state: State = held.load()?.unwrap_or_default();
        if state.id.is_empty() {
            state.id = run_id()
                .chars()
                .filter(char::is_ascii_alphanumeric)
                .collect();
        }
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
        let tracking = match args.abort {
            true => None,
            false => eras::tracking(&volume.name, volume.device)?,
        };
        Ok(Self {
            args,
            terminal,
            cancel,
            tracking,
            owner: format!("{OWNER}{}", state.id),
            device: volume.device,
            in_pause: false,
            name: volume.name.clone(),
            size_bytes: volume.size_bytes,
            path: volume.path.clone(),
            is_thin,
            held,
            state,
            base_made: Instant::now(),
            snapshot_took: Duration::ZERO,
            prestarted: Prestarted::default(),
            to: ToArgs {
                compress: args.compress,
                bwlimit: args.bwlimit,
                ..ToArgs::default()
            },
            write_first: WriteArgs {
                create: args.create.clone(),
                ..write.clone()
            },
            // An increment goes only onto what is on record as its base.
            write: WriteArgs {
                require_record: true,
                ..write
            },
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
        let was_tracked = matches!(
            self.state.phase,
            Phase::HandingOver {
                was_tracked: true,
                ..
            }
        );
        let kind = match (&self.tracking, self.is_thin) {
            (None, true) if !was_tracked => "thin",
            (None, false) if !was_tracked => "thick",
            _ => "followed by its eras",
        };
        let base = self.base();
        let goes_on = match (base, &self.state.pending) {
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

    /// What the destination holds, if increments go on from that.
    fn base(&self) -> Option<&Base> {
        self.state
            .base
            .as_ref()
            .filter(|base| match &self.tracking {
                Some(tracking) => base.is_of_record(&tracking.record),
                None => !base.is_era(),
            })
    }

    /// Looks at both ends and writes nothing. What was found, in words.
    pub(super) fn check(&self) -> Result<Vec<String>> {
        let openers = writers_open(self.era_device()?.unwrap_or(self.device))?;
        if !openers.may_write() && !self.args.dry_run {
            self.terminal
                .remark(&format!("{}: nothing has it open for writing", self.name));
        }
        let mut found = vec![format!("{}: {openers}", self.name)];
        self.refuse_others()?;
        self.refuse_lost_record()?;
        if !self.is_thin && self.tracking.is_none() {
            if self.state.base.is_none() && self.state.pending.is_none() {
                let asked = self.args.snapshot_size.unwrap_or_default();
                base::check_room(&self.name, self.size_bytes, asked, Beside::TheNext)?;
            }
            let room = room_of(self.name.vg())?;
            found.push(format!(
                "{}: {} free, for two snapshots at a time",
                self.name.vg(),
                Bytes(room.free_extents.saturating_mul(room.extent_bytes))
            ));
        }
        found.extend(self.check_far()?);
        Ok(found)
    }

    fn check_far(&self) -> Result<Vec<String>> {
        let name = match &self.tracking {
            Some(tracking) => tracking.device.clone(),
            None => self.name.to_string(),
        };
        // That it is in use is what this is for.
        let mut job = self.job(None, &name, true);
        job.request.snapshot = self.tracking.as_ref().map(|_| SnapshotWish {
            only_look: true,
            ..self.wish()
        });
        (job.request.monitor, job.monitor) = (&Silent, &Silent);
        let summary = job.run()?;
        let is_there = summary.compared_bytes.is_some();
        let versions = summary
            .far_program
            .map(|there| format!("{} here, {there} there", Hello::ours(&[]).speaker()));
        let destination = format!(
            "{}: {}",
            self.args.destination,
            match (is_there, self.base()) {
                (false, _) => "is not there yet: it is made, and gets all of it",
                (true, None) => "is there, and is compared: only what differs is sent",
                (true, Some(_)) =>
                    "is there, and gets what was written since; if others wrote to it, it is compared",
            }
        );
        Ok(versions.into_iter().chain([destination]).collect())
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
            snapshot_seconds: self.snapshot_took.as_secs_f64(),
            collected_seconds: self.base_made.duration_since(collected).as_secs_f64(),
        })
    }

    /// Begins the sessions that the pause needs: one to send, one to read back. They are there when the service has stopped.
    pub(super) fn prepare_sessions(&self) {
        if let Ok(Endpoint::Remote { host, .. }) = parse_endpoint(&self.args.destination) {
            let speaker = self.terminal.speaker();
            self.prestarted
                .prepare(&self.args.remote, &speaker, &host, 2);
        }
    }

    /// Looks after the base while `work` waits for somebody.
    pub(super) fn while_waiting<T>(&self, work: impl FnOnce() -> T) -> T {
        let bases = self.state.base.iter().filter(|base| !base.is_era());
        let bases: Vec<&Base> = bases.collect();
        while_watched(&bases, self.growth(), self.terminal, work)
    }

    /// All is moved.
    pub(super) fn clean_up(mut self) -> Result<()> {
        self.remove_all()?;
        self.held.remove()
    }

    /// Removes what an earlier run has left here. What it had handed over is not taken back: it may be used there by now.
    pub(super) fn abort(mut self) -> Result<Aborted> {
        self.take_back()?;
        let destination = self.state.destination.clone();
        let aborted = match self.is_handed_over() {
            true => {
                let (read_only, has_tag) = base::looked_at(&self.name, MIGRATED_TAG)?;
                Aborted::Moved {
                    destination,
                    way_back: has_tag.then(|| self.way_back(read_only)),
                }
            }
            false if destination.is_empty() => Aborted::Nothing,
            false => Aborted::Copying { destination },
        };
        self.remove_all()?;
        self.held.remove()?;
        Ok(aborted)
    }

    fn remove_all(&mut self) -> Result<()> {
        let rows = volumes_of(self.name.vg())?;
        for row in base::of_owner(&rows, &self.owner) {
            base::remove(self.name.vg(), &row.lv_uuid, &self.owner)?;
        }
        Ok(())
    }

    /// Of what an earlier run has left, keeps what this one goes on from.
    fn sort_out(&mut self) -> Result<()> {
        self.take_back()?;
        self.tracking = eras::tracking(&self.name, self.device)?;
        if let Some(record) = self
            .tracking
            .as_ref()
            .map(|tracking| tracking.record.clone())
        {
            self.sort_out_eras(&record);
            return self.remove_all();
        }
        self.sort_out_snapshots()
    }

    /// What was kept is no base any more: the next run compares.
    pub(super) fn forget(&mut self) -> Result<()> {
        (self.state.base, self.state.pending) = (None, None);
        self.held.save(&self.state)
    }

    /// Puts on record what goes where, before anything does.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.state.source = self.name.to_string();
        self.state.destination.clone_from(&self.args.destination);
        self.held.save(&self.state)
    }

    fn transfer(&mut self, verify: bool) -> Result<Summary> {
        match self
            .tracking
            .as_ref()
            .map(|tracking| tracking.device.clone())
        {
            Some(device) => self.transfer_era(&device, verify),
            None => self.transfer_snapshot(verify),
        }
    }

    /// Without `from` by comparing. What is there already, or is new, need not be compared.
    pub(super) fn job<'j>(&'j self, from: Option<&'j str>, new: &'j str, dry_run: bool) -> Job<'j> {
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
                caller: self.args.state.caller(),
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
            prestarted: self.in_pause.then_some(&self.prestarted),
            dry_run,
            verify: false,
            comparing: from.is_none(),
            recover_at_peer: None,
            effort: Effort::new(self.args.compress),
            cancel: self.cancel,
            monitor: self.terminal,
            speaker: self.terminal.speaker(),
        }
    }
}

/// The logical volume that `name` means: also by the era device on it.
fn volume_of(name: &str) -> Result<Option<Box<LogicalVolume>>> {
    match resolve(name)? {
        Resolved::LogicalVolume(volume) => Ok(Some(volume)),
        Resolved::BlockDevice(_) => match look::volume(&DeviceMapper::open()?, name) {
            Err(Error::Usage(_)) => Ok(None),
            found => found.map(|found| Some(Box::new(found))),
        },
        Resolved::File(_) => Ok(None),
    }
}

pub(super) fn may_be_compared(error: &Error) -> bool {
    match error.exit_code() {
        ExitCode::TrackingLost => true,
        ExitCode::Refused => !matches!(error, Error::Held { .. }),
        _ => false,
    }
}
