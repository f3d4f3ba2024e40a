//! Whether a preview may be merged into its destination.
//!
//! Guarantees: looks only. It may if it is on record as whole and holds what was put on it, of the size that the destination
//! has, nobody uses either of them, and nothing is known to have been written to the destination since it was made: the
//! merge would take that back. Each refusal says how to go on.

use super::super::apply::ApplyArgs;
use super::super::progress::Terminal;
use super::{Origin, Report, is_merging, refuse_lost};
use crate::dm::preview::{self, Preview};
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::snapshot::Role;
use crate::dm::writers_open;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::record::witness::{Touched, Watch, touched, was_written};
use crate::record::{PreviewOf, Record, marks};
use crate::track::look::refuse_tracked;
use crate::volume::Volume;

/// A preview that may be merged.
pub(super) struct Ready<'a> {
    pub(super) preview: &'a Preview,
    /// What is known of it.
    pub(super) record: Record,
    /// Nobody has written to it.
    pub(super) is_as_made: bool,
    /// Some of its blocks, as they are.
    pub(super) marks: Vec<marks::Mark>,
    dry_run: bool,
}

impl<'a> Ready<'a> {
    pub(super) fn of(
        args: &ApplyArgs,
        origin: &Origin,
        before: Option<&Record>,
        preview: &'a Preview,
        terminal: &Terminal,
    ) -> Result<Self> {
        let name = origin.name();
        refuse_tracked(&origin.volume, &name)?;
        let shown = preview.name.to_string();
        let Some((record, of)) = origin.whole(preview)? else {
            let reason = match preview.is_whole {
                true => {
                    "there is no record of it here: it was made with another --state-dir, or on another machine"
                }
                false => "not on record as a whole preview: the run that made it was cut",
            };
            let way_out = format!(
                "Remove it: {}, and make it again.",
                origin.command("--discard")
            );
            return Err(Error::refused(shown, reason, way_out));
        };
        if before.is_some_and(|record| record.incomplete.is_some() && !is_merging(record)) {
            return Err(Error::refused(
                name,
                "on record as incomplete: a write to it was cut after the preview was made",
                "Finish that one, or take it back; then remove the preview and make it again.",
            ));
        }
        refuse_lost(origin, preview)?;
        let Resolved::LogicalVolume(volume) = resolve(&shown)? else {
            return Err(Error::Usage(format!("{shown} is no logical volume")));
        };
        if volume.size_bytes != origin.volume.size_bytes {
            return Err(Error::refused(
                name,
                format!(
                    "it has {} bytes, and its preview {}: its size was changed after the preview was made",
                    origin.volume.size_bytes, volume.size_bytes
                ),
                format!(
                    "Remove the preview: {}, and make it again.",
                    origin.command("--discard")
                ),
            ));
        }
        let users = writers_open(volume.device)?;
        if users.others > 0 {
            return Err(Error::refused(
                shown,
                format!("the preview is in use ({users})"),
                "Unmount it, or stop what uses it.",
            ));
        }
        refuse_in_use(args, origin)?;
        let used_bytes = preview::used_bytes(&volume)?;
        let grew = match volume.role {
            Role::ThickSnapshot(_) => Some(used_bytes > of.used_bytes),
            _ => None,
        };
        refuse_newer(args, origin, before, (&of, grew), terminal)?;
        let opened = Volume::open(&volume.path)?;
        let seen = Watch::of(&opened).ok().and_then(|watch| watch.now());
        let cannot_read = |error| Error::io(format!("cannot read {shown}"), error);
        let is_as_made = match touched(record.witness.as_deref(), seen.as_deref()) {
            Touched::No => true,
            Touched::Yes => false,
            // It was activated anew, after a reboot perhaps.
            Touched::Unknown => !was_written(volume.device) && used_bytes <= of.used_bytes,
        } && marks::hold(&opened, &record.marks).map_err(cannot_read)?;
        Ok(Self {
            preview,
            marks: marks::again(&opened, &record.marks).map_err(cannot_read)?,
            record,
            is_as_made,
            dry_run: args.check,
        })
    }

    pub(super) fn report<'b>(&'b self, origin: &Origin) -> Report<'b> {
        Report {
            destination: origin.name(),
            preview: self.preview.name.to_string(),
            outcome: "merged",
            holds: self.record.holds.as_ref().filter(|_| self.is_as_made),
            dry_run: self.dry_run,
        }
    }
}

fn refuse_in_use(args: &ApplyArgs, origin: &Origin) -> Result<()> {
    let users = writers_open(origin.volume.device)?;
    if users.others == 0 || args.write.allow_in_use {
        return Ok(());
    }
    Err(Error::refused(
        origin.name(),
        format!("it is in use ({users}), and LVM merges only into what is not"),
        "Unmount it, or stop what uses it. With --allow-in-use the merge is put off until it is activated next, and what is \
         written to it until then is lost.",
    ))
}

const WRITTEN: &str = "it was written to after its preview was made, and the merge takes that back";

/// What the last run wrote to the volume is there.
fn holds_marks(origin: &Origin, before: Option<&Record>) -> Result<bool> {
    let name = origin.name();
    let volume = Volume::open(&origin.volume.path)?;
    let marks = before.map_or(&[][..], |record| &record.marks);
    marks::hold(&volume, marks).map_err(|error| Error::io(format!("cannot read {name}"), error))
}

/// The merge would take back what was written to the destination after the preview was made.
fn refuse_newer(
    args: &ApplyArgs,
    origin: &Origin,
    before: Option<&Record>,
    (of, grew): (&PreviewOf, Option<bool>),
    terminal: &Terminal,
) -> Result<()> {
    let is_newer = before.map(|record| record.since) != of.since;
    let now = origin.witness();
    let reason = match touched(of.witness.as_deref(), now.as_deref()) {
        _ if is_newer => WRITTEN,
        Touched::Yes => WRITTEN,
        Touched::No => return Ok(()),
        Touched::Unknown if was_written(origin.volume.device) => WRITTEN,
        Touched::Unknown if !holds_marks(origin, before)? => WRITTEN,
        // What is written to the volume makes a thick snapshot take in what was there.
        Touched::Unknown => match grew {
            Some(false) => {
                terminal.remark(&format!(
                    "{}: it was activated anew since its preview was made; a write before that to blocks that the preview \
                     changes would not be seen",
                    origin.name()
                ));
                return Ok(());
            }
            Some(true) => {
                "it was activated anew since its preview was made, and before that something was written to it, or to the \
                 preview; the merge takes back what was written to it"
            }
            None => {
                "it was activated anew since its preview was made, and of a thin volume nothing tells whether it was written \
                 to before; the merge takes that back"
            }
        },
    };
    if args.write.force || args.write.allow_in_use {
        terminal.warn(&format!("{}: {reason}", origin.name()));
        return Ok(());
    }
    Err(Error::refused(
        origin.name(),
        reason,
        format!(
            "Remove the preview: {}, and make it again. --force merges it all the same.",
            origin.command("--discard")
        ),
    ))
}
