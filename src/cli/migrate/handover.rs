//! The hand-over of a migration: from the moment in which the service is stopped until the volume here takes no writes.
//!
//! Guarantees: who has the volume is on record at every moment; it is handed over only if the kernel has counted no write to
//! it since before the last snapshot was made; what was begun and not finished is taken back; what was handed over is
//! never moved once more, and not started there either once it is used here again.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::abort_command;
use super::cycle::{Cycle, OWNER, State};
use super::report::PauseReport;
use crate::dm::base;
use crate::dm::device::sysfs_holders;
use crate::dm::lvm::volumes_of;
use crate::dm::name::LvName;
use crate::dm::openers::writers_open;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::record::witness::Watch;
use crate::volume::open::Volume;

/// Of a volume that was moved away.
pub(in crate::cli) const MIGRATED_TAG: &str = "lvmsync_migrated";
/// So often a last increment is made, if the volume is written to after the service was stopped.
const LAST_ROUNDS: u32 = 3;

/// Who has the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// It is here.
    #[default]
    Copying,
    /// It is here, and is being made safe. What is there may lack what was written last.
    HandingOver {
        /// It took writes before, and is to take none.
        was_writable: bool,
        /// Its era device was up, and is to go.
        #[serde(default)]
        was_tracked: bool,
    },
    /// It is there, all of it.
    HandedOver,
}

/// What makes `name`, which was moved away, one of this machine again. LVM refuses to allow writes to what takes them already.
pub(in crate::cli) fn use_here(name: &LvName, read_only: bool) -> String {
    match read_only {
        true => format!(
            "lvchange -prw --deltag {MIGRATED_TAG} {name} (and lvmsync track up {name}, if it was tracked)"
        ),
        false => format!("lvchange --deltag {MIGRATED_TAG} {name}"),
    }
}

impl Cycle<'_> {
    /// What was moved away is not moved once more by mistake, and no other migration of it is disturbed.
    pub(super) fn refuse_others(&self) -> Result<()> {
        let (read_only, has_tag) = base::looked_at(&self.name, MIGRATED_TAG)?;
        if has_tag && self.state.phase == Phase::Copying {
            return Err(Error::refused(
                self.name.to_string(),
                format!("it was moved away: it has the tag {MIGRATED_TAG}"),
                self.way_back(read_only),
            ));
        }
        let rows = volumes_of(self.name.vg())?;
        let own = base::owner_tag(&self.owner);
        let of_others = base::owner_tag(OWNER);
        let other = rows.iter().find(|row| {
            let is_other = |tag: &str| tag.starts_with(&of_others) && tag != own;
            row.origin() == Some(self.name.lv()) && row.lv_tags.split(',').any(is_other)
        });
        match other {
            Some(row) => Err(Error::refused(
                self.name.to_string(),
                format!(
                    "another migration of it, of which {} knows nothing, has the snapshot {}",
                    self.args.state.directory().path().display(),
                    row.full_name()
                ),
                format!(
                    "Go on with that one, with its --state-dir. If it is given up: lvremove {}",
                    row.full_name()
                ),
            )),
            None => Ok(()),
        }
    }

    /// How a volume that was moved away is used here again.
    pub(super) fn way_back(&self, read_only: bool) -> String {
        format!(
            "If it is to be used here again, which loses what was written there: {}",
            use_here(&self.name, read_only)
        )
    }

    /// An earlier run has handed the volume over, and did not come to its end.
    pub(super) fn is_handed_over(&self) -> bool {
        self.state.phase == Phase::HandedOver
    }

    /// What was handed over and is used here again, as its own tag and permission tell, is not started there: what is there
    /// is older by then.
    pub(super) fn refuse_used_again(&self) -> Result<()> {
        let (read_only, has_tag) = base::looked_at(&self.name, MIGRATED_TAG)?;
        let found = match (has_tag, read_only || self.state.keeps_writable) {
            (true, true) => return Ok(()),
            (true, false) => "it takes writes again",
            (false, _) => "it has lost the tag that says so",
        };
        let destination = &self.state.destination;
        let forget = abort_command(self.args, destination);
        Err(Error::refused(
            self.name.to_string(),
            format!(
                "an earlier run has moved it to {destination}, and since then {found}: it may have been used here, and what is \
                 there may be old; nothing is started there"
            ),
            format!(
                "That move is forgotten by: {forget}. Then, if this one is right, the same command moves it anew, and overwrites \
                 {destination}; if that one is right, start the service there by hand, and not here.",
            ),
        ))
    }

    /// The increments of the pause, and the hand-over: all that the volume holds is then there, what was sent last was read
    /// back, and nothing is written here any more.
    pub(super) fn hand_over(&mut self, report: &mut PauseReport) -> Result<u64> {
        self.in_pause = true;
        self.to.bwlimit = None;
        // To stop the service may have taken long.
        self.prepare_sessions();
        self.bring_era_device_back()?;
        self.refuse_held()?;
        let volume = Volume::open(&self.path)?;
        let watch = Watch::of(&volume)
            .map_err(|error| Error::io(format!("cannot look at {}", self.name), error))?;
        let mut bytes = 0;
        for _ in 0..LAST_ROUNDS {
            // A snapshot that a killed run has left unsent is older than the pause.
            if self.state.pending.is_some() {
                bytes += self.round(true)?.bytes;
            }
            // Before the snapshot: what is written from now on may be missing there.
            let before = watch.now();
            let begun = Instant::now();
            self.make_pending()?;
            report.snapshot_seconds += begun.elapsed().as_secs_f64();
            let begun = Instant::now();
            bytes += self.round(true)?.bytes;
            report.send_seconds += begun.elapsed().as_secs_f64();
            self.cancel.check()?;
            let begun = Instant::now();
            self.make_safe()?;
            report.protect_seconds += begun.elapsed().as_secs_f64();
            if before.is_some() && watch.now() == before {
                // What is not on record is not handed over.
                let state = State {
                    phase: Phase::HandedOver,
                    keeps_writable: self.args.keep_writable,
                    ..self.state.clone()
                };
                self.held.save(&state)?;
                self.state = state;
                return Ok(bytes);
            }
            let was_tracked = self.tracking.is_some();
            self.take_back()?;
            if was_tracked && self.tracking.is_none() {
                return Err(Error::refused(
                    self.name.to_string(),
                    "it was written to while the last increment was sent, and its era device could not be put up again",
                    "Run this again: it is followed by snapshots then, and compared once.",
                ));
            }
            self.terminal.warn(&format!(
                "{}: it was written to while the last increment was sent; another one is made",
                self.name
            ));
        }
        Err(Error::refused(
            self.name.to_string(),
            "it is still written to after the service was stopped, so that the copy would not be all of it",
            "Find what writes (fuser -v, lsof), let the command that stops the service stop that, too, and run this \
             again.",
        ))
    }

    /// What is mounted, or stands on the volume, writes whenever it likes, and does not ask whether it may.
    fn refuse_held(&self) -> Result<()> {
        let mut mounted = writers_open(self.device)?.mounted_rw;
        let mut on_it = sysfs_holders(self.device);
        if let Some(era) = self.era_device()? {
            on_it.retain(|device| *device != era);
            mounted.extend(writers_open(era)?.mounted_rw);
            on_it.extend(sysfs_holders(era));
        }
        let held = match (mounted.first(), on_it.first()) {
            (Some(place), _) => format!("it is still mounted for writing on {place}"),
            (None, Some(device)) => {
                format!("device {device} (LUKS, a partition?) still stands on it")
            }
            (None, None) if self.args.keep_writable => return Ok(()),
            (None, None) => return self.refuse_open_era_device(),
        };
        Err(Error::refused(
            self.name.to_string(),
            format!("{held} after the service was stopped, so that it may be written to"),
            "Let the command that stops the service unmount and close it, too, and run this again.",
        ))
    }

    /// The volume here takes no writes any more, and says why. What stays writable says it, too: the next run would overwrite
    /// what is used there.
    fn make_safe(&mut self) -> Result<()> {
        let (read_only, _) = base::looked_at(&self.name, MIGRATED_TAG)?;
        let was_writable = !read_only && !self.args.keep_writable;
        let was_tracked = self.tracking.is_some() && !self.args.keep_writable;
        self.state.phase = Phase::HandingOver {
            was_writable,
            was_tracked,
        };
        self.held.save(&self.state)?;
        let take_down = || match was_tracked {
            true => self.take_era_device_down(),
            false => Ok(()),
        };
        let protect = || match was_writable {
            true => base::set_writable(&self.name, false),
            false => Ok(()),
        };
        let made = take_down()
            .and_then(|()| base::mark(&self.name, MIGRATED_TAG))
            .and_then(|()| protect());
        made.map_err(|error| match self.take_back() {
            Ok(()) => error,
            // The worse of the two: the service is to go on here.
            Err(worse) => worse,
        })
    }

    /// It is to be used here as it was.
    pub(super) fn take_back(&mut self) -> Result<()> {
        let Phase::HandingOver {
            was_writable,
            was_tracked,
        } = self.state.phase
        else {
            return Ok(());
        };
        let (read_only, has_tag) = base::looked_at(&self.name, MIGRATED_TAG)?;
        if was_writable && read_only {
            base::set_writable(&self.name, true)?;
        }
        if has_tag {
            base::unmark(&self.name, MIGRATED_TAG)?;
        }
        if was_tracked {
            self.put_era_device_up();
        }
        self.state.phase = Phase::Copying;
        self.held.save(&self.state)
    }
}
