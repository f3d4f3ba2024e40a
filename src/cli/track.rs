//! `lvmsync track`: dm-era on a logical volume, set up, looked at, brought back after a boot, and taken away.
//!
//! Guarantees: what will be done is printed before it is done, but where it is a step of another verb; one run at a time works
//! on a volume, and what a killed one has started counts as long as it is at work; nothing waits for a suspended device.

mod show;
mod work;

use clap::{Args, Subcommand};

use super::apply::StateArgs;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::dm::name::LvName;
use crate::error::{Error, ExitCode, Result};
use crate::track::names::Metadata;
use crate::track::plan::Up;
use crate::track::seen::Seen;
use crate::track::step::Step;
use crate::track::{kernel, look, plan};
use crate::units::parse_size;
use work::{Talk, Work};

const AFTER_HELP: &str = "\
dm-era stands on top of a volume and records which blocks were written in which era. Everything that uses the volume
must open /dev/mapper/VG-LV-era instead of it: what is written past it is on no record. See docs/tracking.md.

Examples:
  lvmsync track enable vg/data -n    what would be done
  lvmsync track enable vg/data       make the record, put the era device up
  lvmsync track status               all tracked volumes; --json for scripts
  lvmsync track up --all             after a boot, before anything is mounted
  lvmsync track down --all           before a shutdown, when nothing is mounted any more
  lvmsync track resize vg/data       after lvextend; it may stay in use
  lvmsync track disable vg/data      take the era device and the record away";

/// Record with dm-era which blocks of a volume are written
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct TrackVerb {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Make the record of a volume, and put an era device on top of it
    Enable(EnableArgs),
    /// Take era device and record away
    Disable(LvArgs),
    /// Put the era device of a tracked volume up again
    Up(UpArgs),
    /// Take the era device of a tracked volume down, and keep in mind what the volume holds
    Down(UpArgs),
    /// Track what a volume was extended by
    Resize(LvArgs),
    /// Show what is tracked
    Status(StatusArgs),
}

#[derive(Args, Debug)]
struct EnableArgs {
    /// The volume; nothing may use it now
    #[arg(value_name = "LV")]
    volume: String,

    /// Size of a block of the record, a multiple of 4K [default: 64K, more on volumes beyond 4T]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    block_size: Option<u64>,

    /// Even if it is a physical volume of LVM, whose group LVM then finds on the era device
    #[arg(long)]
    force: bool,

    /// Print what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    talk: TalkArgs,
}

#[derive(Args, Debug)]
struct LvArgs {
    /// The volume, or its era device
    #[arg(value_name = "LV")]
    volume: String,

    /// Print what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    talk: TalkArgs,
}

#[derive(Args, Debug)]
struct UpArgs {
    /// The volume
    #[arg(value_name = "LV", required_unless_present = "all")]
    volume: Option<String>,

    /// All tracked volumes that are active
    #[arg(long, conflicts_with = "volume")]
    all: bool,

    /// Print what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    talk: TalkArgs,
}

#[derive(Args, Debug)]
struct StatusArgs {
    /// The volume; all that are tracked if left out
    #[arg(value_name = "LV")]
    volume: Option<String>,

    /// A JSON array
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

pub(super) fn run(verb: &TrackVerb, cancel: &Cancel) -> Result<ExitCode> {
    match &verb.action {
        Action::Enable(args) => enable(args, cancel),
        Action::Disable(args) => disable(args, cancel),
        Action::Up(args) => each(args, &|name| {
            up_one(name, args.all, Talk::of(args.dry_run), cancel)
        }),
        Action::Down(args) => each(args, &|name| {
            down_one(name, args.all, Talk::of(args.dry_run), cancel)
        }),
        Action::Resize(args) => resize(args, cancel),
        Action::Status(args) => {
            args.talk.terminal();
            show::run(args.volume.as_deref(), &args.state.directory(), args.json)
        }
    }
}

fn enable(args: &EnableArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    kernel::refuse_running()?;
    let work = Work::begin(&args.volume, cancel)?;
    let seen = work.look()?;
    let steps = plan::enable(&seen, args.block_size, look::era(&work.dm, &seen)?)?;
    if !args.force && !seen.has_table() {
        look::refuse_physical_volume(&seen)?;
    }
    if !work.carry_out(&steps, Talk::of(args.dry_run), cancel)? {
        return Ok(ExitCode::Done);
    }
    let now = work.look()?;
    let is_whole = now.metadata.as_ref().is_some_and(|found| !found.is_void);
    if !(now.has_table() && is_whole) {
        return Err(Error::Lvm {
            what: seen.volume.to_string(),
            reason:
                "another program took its era device or its record away just now; run this again"
                    .to_owned(),
        });
    }
    let device = now.device_name()?;
    terminal.summary(&format!(
        "{0} is tracked. From now on open /dev/mapper/{device} in its place: in /etc/fstab, in the configuration of the \
         service, everywhere. What is written to /dev/{0} itself is on no record.\n\
         At boot it must be put up before that: install contrib/lvmsync-track.service, as docs/tracking.md says",
        seen.volume
    ));
    Ok(ExitCode::Done)
}

fn disable(args: &LvArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let work = Work::begin(&args.volume, cancel)?;
    let seen = work.look()?;
    let steps = plan::disable(&seen)?;
    if steps.is_empty() {
        terminal.summary(&format!("{} is not tracked", seen.volume));
        return Ok(ExitCode::Done);
    }
    if work.carry_out(&steps, Talk::of(args.dry_run), cancel)? {
        terminal.summary(&format!(
            "{0} is not tracked any more. Open /dev/{0} again",
            seen.volume
        ));
    }
    Ok(ExitCode::Done)
}

fn resize(args: &LvArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    kernel::refuse_running()?;
    let work = Work::begin(&args.volume, cancel)?;
    let seen = work.look()?;
    let steps = plan::resize(&seen, look::era(&work.dm, &seen)?)?;
    if work.carry_out(&steps, Talk::of(args.dry_run), cancel)? {
        terminal.summary(&format!(
            "all of {} is tracked. The next list has what it was extended by; extend its copies before that",
            seen.volume
        ));
    }
    Ok(ExitCode::Done)
}

fn each(args: &UpArgs, one: &dyn Fn(&str) -> Result<()>) -> Result<ExitCode> {
    args.talk.terminal();
    let names = match &args.volume {
        Some(name) => vec![name.clone()],
        // A name without this is looked for in the current directory as well.
        None => look::all_tracked()?
            .iter()
            .map(|name| format!("/dev/{name}"))
            .collect(),
    };
    let mut result = Ok(ExitCode::Done);
    for name in names {
        // The others come up, or go down, all the same; the first error is the end's.
        result = match (result, one(&name)) {
            (Ok(_), Err(error)) => Err(error),
            (Err(first), Err(error)) => {
                output::message(&format!("lvmsync: {}", error.chain()));
                Err(first)
            }
            (result, Ok(())) => result,
        };
    }
    result
}

/// Puts the era device of `volume` up, and says nothing of it.
pub(super) fn put_up(volume: &LvName, cancel: &Cancel) -> Result<()> {
    up_one(&format!("/dev/{volume}"), false, Talk::Silent, cancel)
}

/// Takes the era device of `volume` down, and says nothing of it.
pub(super) fn take_down(volume: &LvName, cancel: &Cancel) -> Result<()> {
    down_one(&format!("/dev/{volume}"), false, Talk::Silent, cancel)
}

/// Refuses an era device that is in use.
pub(super) fn can_be_taken_down(volume: &LvName, cancel: &Cancel) -> Result<()> {
    let work = Work::begin(&format!("/dev/{volume}"), cancel)?;
    plan::down(&work.look_patiently(is_closed, cancel)?, "").map(|_| ())
}

/// Refuses an era device that could not be put up again.
pub(super) fn could_come_back(volume: &LvName, cancel: &Cancel) -> Result<()> {
    let work = Work::begin(&format!("/dev/{volume}"), cancel)?;
    plan::refuse_lost_record(&work.look()?)
}

fn is_closed(seen: &Seen) -> bool {
    let device = seen.device.as_ref();
    device.is_none_or(|device| device.open_count == 0 || !device.holders.is_empty())
}

/// The others of `--all` come up where one may not be written to, such as one that was moved away.
fn up_one(name: &str, is_one_of_all: bool, talk: Talk, cancel: &Cancel) -> Result<()> {
    kernel::refuse_running()?;
    let work = Work::begin(name, cancel)?;
    let is_fit = |seen: &Seen| {
        let comes_up = |found: &Metadata| !found.is_void || found.has_hole;
        seen.metadata.as_ref().is_some_and(comes_up) && !seen.read_only
    };
    let seen = work.look_patiently(|seen| !(seen.is_only_open && is_fit(seen)), cancel)?;
    let is_resting = seen
        .metadata
        .as_ref()
        .is_some_and(|found| found.rest.is_some());
    // One that was made and got no table has let nobody write yet.
    let has_table = seen.has_table();
    let rest = match is_resting && !has_table {
        true => Some(look::rest(&seen)?),
        false => None,
    };
    match plan::up(&seen, rest.as_deref())? {
        Up::Steps(steps) => work.carry_out(&steps, talk, cancel).map(|_| ()),
        Up::ReadOnly if is_one_of_all => {
            output::message(&format!("lvmsync: {}: read-only; stays down", seen.volume));
            Ok(())
        }
        Up::ReadOnly => Err(Error::refused(
            seen.volume.to_string(),
            "it is read-only, and could be written to through an era device",
            format!("If it is to be used here: lvchange -prw {}", seen.volume),
        )),
        Up::Hole {
            steps,
            reason,
            is_up,
        } => {
            // A migration goes on without the device, by snapshots.
            let is_left_down = talk == Talk::Silent && !has_table;
            let is_mark = |step: &Step| matches!(step, Step::Void { .. });
            let steps: Vec<Step> = steps
                .into_iter()
                .filter(|step| !is_left_down || is_mark(step))
                .collect();
            let is_done = work.carry_out(&steps, talk, cancel)?;
            Err(hole(&seen, &reason, is_up && !is_left_down, is_done))
        }
    }
}

/// What is said of a hole, and the way on.
fn hole(seen: &Seen, reason: &str, is_up: bool, is_done: bool) -> Error {
    let volume = seen.volume.to_string();
    let device = seen.device_name().unwrap_or_default();
    let marked = match is_done {
        true => "the record is marked as void",
        false => "the record would be marked as void, and is not yet",
    };
    let (more, verb) = match (is_done, is_up) {
        (false, _) => (
            "Before anything else this has to be run without -n".to_owned(),
            "up",
        ),
        (true, true) => (
            format!(
                "/dev/mapper/{device} is up all the same, and may be used. Copies begin anew after `track enable`, which does not \
                 mind that; then `lvmsync sync` for each of them"
            ),
            "enable",
        ),
        (true, false) => (
            format!(
                "Stop what uses it, begin anew with `track enable`, and open /dev/mapper/{device} in its place"
            ),
            "enable",
        ),
    };
    let command = format!("lvmsync track {verb} {volume}");
    let reason = format!("{reason}. What was written is on no record, so {marked}\n{more}");
    Error::ToRecover {
        error: Box::new(Error::TrackingLost { volume, reason }),
        command,
    }
}

/// The root file system stays where it is when the others of `--all` go down at a shutdown.
fn down_one(name: &str, is_one_of_all: bool, talk: Talk, cancel: &Cancel) -> Result<()> {
    let work = Work::begin(name, cancel)?;
    let seen = work.look_patiently(is_closed, cancel)?;
    if is_one_of_all && seen.device.as_ref().is_some_and(|device| device.is_root) {
        output::message(&format!(
            "lvmsync: {}: holds the root file system, or /usr; stays up",
            seen.volume
        ));
        return Ok(());
    }
    let steps = plan::down(&seen, &look::rest(&seen)?)?;
    work.carry_out(&steps, talk, cancel).map(|_| ())
}
