//! `lvmsync invert`: the undo of a delta before it is applied.
//!
//! Guarantees: the volume is only read, and no run of lvmsync writes to it meanwhile; one that is not what the delta
//! begins from, by its record or its sampled blocks, one that is half-written, and one that others may write to are
//! refused.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::apply::{StateArgs, open_input, shown_name};
use super::summary::shown_seconds;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::comparand::{Comparand, may_write};
use crate::delta::codec::Compression;
use crate::delta::header::{Header, State};
use crate::delta::samples::Samples;
use crate::delta::stream::StreamId;
use crate::dm::resolve::resolve;
use crate::engine::undo::DurableWrite;
use crate::error::{Error, ExitCode, Result};
use crate::history::invert::{Base, Known, Options, invert};
use crate::monitor::{Monitor, Silent};
use crate::partial_file::PartialFile;
use crate::record::admission::{Admission, Called, Policy};
use crate::record::keeper::Keeper;
use crate::record::witness::Watch;
use crate::record::{half_written, identity, shown};
use crate::units::{Bytes, count};
use crate::volume::file_version::FileVersion;
use crate::volume::in_use::holders_of;
use crate::volume::{Volume, VolumeIdentity};

const AFTER_HELP: &str = "\
Examples:
  lvmsync invert monday.delta --base vg/copy -o monday.undo     the way back, before the way there
  lvmsync apply monday.delta vg/copy
  lvmsync apply monday.undo vg/copy                             and vg/copy is what it was
  lvmsync invert monday.delta --base vg/s1 -o monday.undo -z zstd

VOLUME has to be in the state that the delta begins from: the destination before the delta is applied, or the old
snapshot at the source. It is only read. What is written is what apply --undo would have saved; where the delta is
applied anyway, that is simpler. One that is in another state, half-written or in use is refused (exit code 5).";

/// Make the undo of a delta before it is applied
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct InvertArgs {
    /// The delta; `-` for standard input
    #[arg(value_name = "FILE")]
    delta: String,

    /// A volume in the state that the delta begins from
    #[arg(long, value_name = "VOLUME")]
    base: String,

    /// Write the undo to this file
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,

    /// Compression of the undo: none, lz4, zstd or zstd:LEVEL
    #[arg(short = 'z', long, value_name = "CODEC", default_value = "none")]
    compress: Compression,

    /// Print the result as a JSON object on stdout
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    output: String,
    base: Option<&'a State>,
    target: Option<&'a State>,
    volume_size: u64,
    base_size: Option<u64>,
    data_bytes: u64,
    zero_bytes: u64,
    stored_bytes: u64,
    seconds: f64,
}

pub(super) fn run(args: &InvertArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let start = Instant::now();
    let name = &args.base;
    let resolved = resolve(name)?;
    let state = args.state.directory();
    let caller = &args.state.caller();
    half_written::refuse(&state, &resolved, Called { name, caller })?;
    // A run that writes to it would change what is being saved.
    let _alone = Volume::lock_alone(resolved.path())?;
    let comparand = Comparand::open(name, &Silent)?;
    let volume = comparand.volume();
    refuse_written(volume.identity(), name)?;
    refuse_as_output(&args.output, volume.identity(), &args.delta)?;
    let version = FileVersion::of(volume)?;
    let file = state.file_of(&identity::of_resolved(&resolved));
    let watch =
        Watch::of(volume).map_err(|error| Error::io(format!("cannot look at {name}"), error))?;
    let keeper = Keeper::open(file, name, "", Policy::default(), Some(watch), volume)?
        .told_to(args.state.caller());
    let admit = |header: &Header, samples: &Samples| known(&keeper, header, samples, &terminal);
    let shown_output = args.output.display().to_string();
    let out = || PartialFile::create(&args.output, args.overwrite).map(|file| Undo(Some(file)));
    let options = Options {
        compression: args.compress,
        cancel,
        monitor: &terminal,
    };
    let base = Base { volume, name };
    let what = shown_name(&args.delta);
    // The undo takes its name only when what it was read from is known to have stayed as it was.
    let unchanged = || match FileVersion::of(volume) {
        Ok(now) if now == version => Ok(()),
        Ok(_) => Err(Error::io(
            format!("{name}: what was read is no state of it"),
            io::Error::other("it was written while it was read"),
        )),
        Err(error) => Err(error),
    };
    let input = open_input(&args.delta, cancel)?;
    let (header, counts) = invert(
        input,
        &what,
        &base,
        admit,
        (out, &shown_output),
        &unchanged,
        &options,
    )
    .map_err(|error| comparand.explain(error))?;
    terminal.finish();
    let elapsed = start.elapsed();
    if args.json {
        output::json(&Report {
            output: shown_output.clone(),
            base: header.base.as_ref(),
            target: header.target.as_ref(),
            volume_size: header.volume_size,
            base_size: header.base_size,
            data_bytes: counts.data_bytes,
            zero_bytes: counts.zero_bytes,
            stored_bytes: counts.stored_bytes,
            seconds: elapsed.as_secs_f64(),
        })?;
    }
    terminal.summary(&format!(
        "the undo of {what} is in {shown_output}, made in {}: {}, {} data, {} zero; it leads back to {}",
        shown_seconds(elapsed),
        count(counts.data_frames + counts.zero_frames, "frame"),
        Bytes(counts.data_bytes),
        Bytes(counts.zero_bytes),
        shown(header.target.as_ref())
    ));
    Ok(ExitCode::Done)
}

/// What is on record of the volume, held against the delta as if that were to be applied.
fn known(
    keeper: &Keeper,
    header: &Header,
    samples: &Samples,
    monitor: &dyn Monitor,
) -> Result<Known> {
    let stream = StreamId::of(header, samples);
    // The volume that the delta was made from is its base by its own id.
    let is_itself = header.base.as_ref().map(|base| base.id.as_str()) == keeper.identity();
    match keeper.admit(header, &stream)? {
        Admission::Fresh {
            remark: Some(remark),
        } if !is_itself => monitor.remark(&remark),
        Admission::Already { remark } | Admission::Again { remark } => {
            return Err(Error::refused(
                keeper.name(),
                format!("{remark}: what it holds is not the way back"),
                "If the record is wrong: lvmsync state forget VOLUME",
            ));
        }
        _ => {}
    }
    let is_there = keeper.holds_target_of(header, &stream) && !is_itself;
    if is_there && !keeper.was_put_back() {
        return Err(Error::refused(
            keeper.name(),
            "on record as where this delta leads to: what it holds is not the way back",
            "If it was put back by other means: lvmsync state forget VOLUME",
        ));
    }
    // Put back, or written to: nobody knows what it holds.
    let holds = keeper.held(header.base.as_ref()).filter(|_| !is_there);
    Ok(Known {
        holds,
        undoes: keeper.undoes(&stream),
    })
}

fn refuse_written(volume: VolumeIdentity, name: &str) -> Result<()> {
    let holders = holders_of(volume);
    let writers: Vec<String> = holders
        .iter()
        .filter(|holder| may_write(holder))
        .map(ToString::to_string)
        .collect();
    if writers.is_empty() {
        return Ok(());
    }
    Err(Error::refused(
        name,
        format!(
            "it is in use, and may be written while it is read: {}",
            writers.join("; ")
        ),
        "Unmount or deactivate what uses it, or name a snapshot in the same state.",
    ))
}

fn refuse_as_output(path: &Path, volume: VolumeIdentity, delta: &str) -> Result<()> {
    let Ok(output) = VolumeIdentity::of_path(path) else {
        return Ok(());
    };
    if output == volume || VolumeIdentity::of_path(delta).is_ok_and(|delta| delta == output) {
        return Err(Error::Usage(format!(
            "{} is what is being read; the undo cannot replace it",
            path.display()
        )));
    }
    Ok(())
}

/// The undo on its way. Nothing is overwritten meanwhile, so it is made durable when it is whole.
struct Undo(Option<PartialFile>);

impl Undo {
    fn file(&self) -> io::Result<&std::fs::File> {
        self.0.as_ref().ok_or(io::ErrorKind::NotFound)?.file()
    }
}

impl Write for Undo {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DurableWrite for Undo {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&mut self) {
        if let Some(file) = self.0.take() {
            file.discard();
        }
    }

    fn complete(&mut self) -> io::Result<()> {
        match self.0.take() {
            Some(file) => file.persist().map_err(io::Error::other),
            None => Ok(()),
        }
    }
}
