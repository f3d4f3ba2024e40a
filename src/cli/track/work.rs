//! One run's work on one tracked volume: alone, from what is there, step by step.
//!
//! Guarantees: one run at a time works on a volume, and what a killed one has started counts as long as it is at work; what will
//! be done is printed before it is done, unless nothing is to be said.

use std::thread;
use std::time::Duration;

use crate::cancel::Cancel;
use crate::cli::output;
use crate::dm::device::DeviceMapper;
use crate::error::{Error, Result};
use crate::hold::lock::LockFile;
use crate::hold::record::name_of;
use crate::track::look;
use crate::track::seen::Seen;
use crate::track::step::Step;

/// What is said of the steps, and whether they are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Talk {
    /// They are printed, and not done.
    DryRun,
    /// They are printed, and done.
    Loud,
    /// They are done.
    Silent,
}

impl Talk {
    pub(super) fn of(dry_run: bool) -> Self {
        match dry_run {
            true => Self::DryRun,
            false => Self::Loud,
        }
    }
}

/// How long a run waits for another one that works on the same volume.
const ATTEMPTS: u32 = 300;
const PAUSE: Duration = Duration::from_millis(100);
/// How often it looks again at what is open.
const PATIENCE: u32 = 10;

/// One run's work on one volume.
pub(super) struct Work {
    pub(super) dm: DeviceMapper,
    name: String,
    lock: LockFile,
}

impl Work {
    pub(super) fn begin(name: &str, cancel: &Cancel) -> Result<Self> {
        let dm = DeviceMapper::open()?;
        let volume = look::volume(&dm, name)?;
        let lock = LockFile::open(&name_of("track", &volume.uuid))?;
        let mut attempts = 0;
        while !lock.try_alone()? {
            cancel.check()?;
            if attempts == ATTEMPTS {
                return Err(Error::held(
                    name,
                    "another lvmsync track is at work on it",
                    "Wait for it and run this again.",
                ));
            }
            attempts += 1;
            thread::sleep(PAUSE);
        }
        Ok(Self {
            dm,
            name: volume.name.to_string(),
            lock,
        })
    }

    pub(super) fn look(&self) -> Result<Seen> {
        look::look(
            &self.dm,
            &look::volume(&self.dm, &format!("/dev/{}", self.name))?,
        )
    }

    /// Looks again for a moment, while it is not as wanted: udev opens what somebody has closed.
    pub(super) fn look_patiently(
        &self,
        is_as_wanted: impl Fn(&Seen) -> bool,
        cancel: &Cancel,
    ) -> Result<Seen> {
        let mut seen = self.look()?;
        for _ in 0..PATIENCE {
            if is_as_wanted(&seen) {
                break;
            }
            cancel.check()?;
            cancel.sleep(PAUSE);
            seen = self.look()?;
        }
        Ok(seen)
    }

    /// Prints the steps and, unless that was all, does them. False if it was all.
    pub(super) fn carry_out(&self, steps: &[Step], talk: Talk, cancel: &Cancel) -> Result<bool> {
        let shown = if talk == Talk::Silent { &[] } else { steps };
        output::listing(|out| {
            for step in shown {
                writeln!(out, "{step}")?;
            }
            Ok(())
        })?;
        if talk == Talk::DryRun {
            return Ok(false);
        }
        for step in steps {
            cancel.check()?;
            step.run(&self.name, self.lock.share()?)?;
        }
        Ok(true)
    }
}
