//! Making a preview: the deltas are held against the destination as if they were to be applied to it, and then put on a
//! snapshot of it.
//!
//! Guarantees: of the destination nothing is written; what is made goes again, undo included, unless all deltas are on it;
//! half of one that a killed run has left goes first. The snapshot is of the state that the deltas were held against.

use std::path::Path;
use std::time::Instant;

use super::super::apply::{ApplyArgs, add, identities, open_input, shown_name};
use super::super::inspect::read_with;
use super::super::output;
use super::super::progress::Terminal;
use super::super::summary::Summary;
use super::{Origin, discard, refuse_lost};
use crate::cancel::Cancel;
use crate::changes::cow::Layout;
use crate::delta::codec::Compression;
use crate::destination::{Destination, DestinationOptions};
use crate::dm::pool::Pool;
use crate::dm::pool_status::PoolStatus;
use crate::dm::preview::{self, CHUNK_BYTES, Preview, Store, StoreRoom, Touched};
use crate::dm::resolve::{Resolved, resolve};
use crate::error::{Error, ExitCode, Result};
use crate::extent::{Extent, Kind};
use crate::record::admission::{Admission, Called, refuse_as_source};
use crate::record::witness::{self, Watch};
use crate::record::{PreviewOf, Record, identity};
use crate::units::Bytes;
use crate::volume::Volume;

pub(super) fn make(
    args: &ApplyArgs,
    deltas: &[String],
    origin: &Origin,
    cancel: &Cancel,
    terminal: &Terminal,
) -> Result<ExitCode> {
    let start = Instant::now();
    let name = origin.name();
    let options = DestinationOptions {
        from: deltas.join(", "),
        ..args.write.options(Compression::None)
    };
    refuse_another(origin)?;
    let begun = Begun::of(origin, deltas, &options, cancel, terminal, args)?;
    if !args.check {
        discard::half(origin, terminal)?;
    }
    let snapshot = preview::check(&origin.volume.name, origin.volume.size_bytes, begun.store)?;
    let mut total = Summary {
        destination: snapshot.to_string(),
        dry_run: args.check,
        ..Summary::default()
    };
    if args.check {
        terminal.finish();
        terminal.summary(&format!(
            "{name}: everything fits; {snapshot} would be made for {}; nothing was",
            Bytes(begun.needed_bytes)
        ));
    } else {
        let preview = snapshot_of(origin, begun.store)?;
        let filled = begun.check_same(origin).and_then(|()| {
            fill(
                deltas,
                origin,
                &preview,
                &begun,
                (&options, &mut total),
                (cancel, terminal),
            )
        });
        if let Err(error) = filled {
            // What was lost because it was too small failed in some other way first.
            let error = refuse_lost(origin, &preview).err().unwrap_or(error);
            // Nobody has seen it, and half of it is of no use.
            discard::remove(origin, &preview, terminal)?;
            return Err(error);
        }
        total.undo = args.write.undo.as_deref().map(shown_path);
        terminal.finish();
    }
    total.seconds = start.elapsed().as_secs_f64();
    if args.json {
        output::json(&total)?;
    }
    if !args.check {
        terminal.summary(&total.sentence("previewed"));
        terminal.summary(&format!(
            "{snapshot} shows what {name} would hold: mount it, check it, boot it. Then: {}, or: {}",
            origin.command("--commit"),
            origin.command("--discard")
        ));
    }
    Ok(ExitCode::Done)
}

fn shown_path(path: &Path) -> String {
    path.display().to_string()
}

/// One that is whole is somebody's.
fn refuse_another(origin: &Origin) -> Result<()> {
    let Some(found) = origin.preview()? else {
        return Ok(());
    };
    if !found.merges && !found.is_whole && origin.whole(&found)?.is_none() {
        return Ok(());
    }
    Err(Error::refused(
        origin.name(),
        format!("there is a preview of it already: {}", found.name),
        format!(
            "Merge it: {}, or remove it: {}",
            origin.command("--commit"),
            origin.command("--discard")
        ),
    ))
}

/// What the destination was when the deltas were held against it.
struct Begun {
    /// Its record.
    record: Option<Record>,
    /// That can be believed.
    is_believed: bool,
    /// Nobody has written to it since.
    is_untouched: bool,
    witness: Option<String>,
    needed_bytes: u64,
    /// Of a thick preview.
    store: Option<Store>,
}

impl Begun {
    fn of(
        origin: &Origin,
        deltas: &[String],
        options: &DestinationOptions,
        cancel: &Cancel,
        terminal: &Terminal,
        args: &ApplyArgs,
    ) -> Result<Self> {
        let name = origin.name();
        let target = Destination::open(&name, &identities(deltas), options)?;
        let pool = Pool::of(&origin.volume)?.filter(|pool| !pool.below_snapshots);
        let chunk_bytes = args
            .preview
            .chunk_size
            .map_or(CHUNK_BYTES, Layout::chunk_bytes);
        let unit_bytes = pool.as_ref().map_or(chunk_bytes, |pool| pool.block_bytes);
        let mut touched = Touched::new(unit_bytes);
        for (number, delta) in deltas.iter().enumerate() {
            touched.next_delta();
            let input = open_input(delta, cancel)?;
            let shown = shown_name(delta);
            let whole = read_with(input, &shown, cancel, terminal, &mut |line| {
                let extent = Extent::new(line.offset, line.length);
                let Some(extent) = extent else { return };
                // Whole blocks of a pool are given back for zeroes; only where they begin or end inside of one are any written.
                match pool.is_some() && line.kind == Kind::Zero.word() {
                    true => edges(extent, unit_bytes).for_each(|edge| touched.note(edge)),
                    false => touched.note(extent),
                }
            })?;
            if number > 0 {
                continue;
            }
            let Some(header) = &whole.header else {
                target.keeper().admit_anonymous()?;
                continue;
            };
            let admission = target.examine(header, &whole.samples, cancel, terminal)?;
            if let Admission::Already { remark } = admission {
                let remark = remark.split(';').next().unwrap_or_default().to_owned();
                return Err(Error::refused(
                    name,
                    format!("{remark}: there is nothing to preview"),
                    "",
                ));
            }
        }
        let record = target.keeper().record().cloned();
        if let Some(record) = record.as_ref().filter(|record| record.incomplete.is_some()) {
            let called = Called {
                name: &name,
                caller: &origin.caller,
            };
            let refusal = refuse_as_source(record, called);
            let (reason, way_out) = refusal.map_or_else(Default::default, |refusal| {
                (refusal.reason, refusal.way_out)
            });
            return Err(Error::refused(
                name,
                format!(
                    "{reason}. What completes it, or takes it back, is applied without a preview"
                ),
                way_out,
            ));
        }
        let needed_bytes = touched.bytes();
        if let Some(pool) = &pool {
            refuse_full(&name, pool, needed_bytes)?;
        }
        let witness = Watch::of(target.volume())
            .ok()
            .and_then(|watch| watch.now());
        let is_believed = target.keeper().is_whole();
        let then = record.as_ref().and_then(|record| record.witness.as_deref());
        let room = args.preview.snapshot_size;
        Ok(Self {
            is_untouched: is_believed
                && witness::touched(then, witness.as_deref()) == witness::Touched::No,
            is_believed,
            record,
            witness,
            needed_bytes,
            store: pool.is_none().then_some(Store {
                chunk_bytes,
                room: room.map_or(StoreRoom::Needed(needed_bytes), StoreRoom::Bytes),
            }),
        })
    }

    /// Whoever has begun to write meanwhile has put that on record first.
    fn check_same(&self, origin: &Origin) -> Result<()> {
        if origin.record.load()? == self.record {
            return Ok(());
        }
        Err(Error::held(
            origin.name(),
            "another lvmsync wrote to it while its preview was made",
            "Run this again.",
        ))
    }
}

/// The parts of an extent that are in units that it does not fill.
fn edges(extent: Extent, unit_bytes: u64) -> impl Iterator<Item = Extent> {
    let is_inside = |at: u64| !at.is_multiple_of(unit_bytes);
    let first = is_inside(extent.offset()).then(|| Extent::new(extent.offset(), 1));
    let last = is_inside(extent.end()).then(|| Extent::new(extent.end() - 1, 1));
    [first, last].into_iter().flatten().flatten()
}

/// A preview that fills the pool would stop the volume itself, too.
fn refuse_full(name: &str, pool: &Pool, needed_bytes: u64) -> Result<()> {
    let PoolStatus::Working(figures) = pool.status()? else {
        return Ok(());
    };
    let free = figures.data.free().saturating_mul(pool.block_bytes);
    if needed_bytes <= free {
        return Ok(());
    }
    Err(Error::refused(
        name,
        format!(
            "there is no room for a preview: {} of its thin pool {} are needed, and {} are free",
            Bytes(needed_bytes),
            pool.name,
            Bytes(free)
        ),
        format!(
            "Make it larger: lvextend -L +{}b {}",
            needed_bytes - free,
            pool.name
        ),
    ))
}

/// Makes the snapshot; nothing stays of one that LVM could not make.
fn snapshot_of(origin: &Origin, store: Option<Store>) -> Result<Preview> {
    let volume = &origin.volume;
    let made = preview::make(&volume.name, &volume.uuid, volume.size_bytes, store);
    made.inspect_err(|_| {
        // There was none before, and nobody else makes one meanwhile.
        if let Ok(Some(found)) = origin.preview() {
            let _ = preview::discard(&found);
        }
    })
}

fn fill(
    deltas: &[String],
    origin: &Origin,
    preview: &Preview,
    begun: &Begun,
    (options, total): (&DestinationOptions, &mut Summary),
    (cancel, terminal): (&Cancel, &Terminal),
) -> Result<()> {
    let name = preview.name.to_string();
    let file = origin.record_of(&preview.uuid);
    // It begins as what it is a snapshot of.
    let volume = Volume::open(resolve(&name)?.path())?;
    let witness = Watch::of(&volume).ok().and_then(|watch| watch.now());
    drop(volume);
    let record = begun.record.clone().filter(|_| begun.is_believed);
    file.save(&Record {
        identity: identity::of_logical_volume(&preview.uuid),
        name: name.clone(),
        witness: witness.filter(|_| begun.is_untouched),
        preview_of: Some(PreviewOf {
            identity: origin.record.identity().to_owned(),
            name: origin.name(),
            since: begun.record.as_ref().map(|record| record.since),
            witness: begun.witness.clone(),
            ..PreviewOf::default()
        }),
        ..record.unwrap_or_default()
    })?;
    let options = DestinationOptions {
        stands_for: Some(origin.record.identity().to_owned()),
        ..options.clone()
    };
    let mut target = Destination::open(&name, &identities(deltas), &options)?;
    for delta in deltas {
        let input = open_input(delta, cancel)?;
        let shown = shown_name(delta);
        let received = target.receive(input, &shown, cancel, terminal, &mut |_, _| Ok(()))?;
        add(total, &received);
    }
    drop(target);
    refuse_lost(origin, preview)?;
    let mut record = file.load()?.unwrap_or_default();
    if let Some(of) = &mut record.preview_of {
        of.is_whole = true;
        of.undo = options.undo.as_ref().and(record.undo.clone());
        if let Resolved::LogicalVolume(volume) = resolve(&name)? {
            of.used_bytes = preview::used_bytes(&volume)?;
        }
    }
    file.save(&record)?;
    preview::is_whole_now(preview)
}
