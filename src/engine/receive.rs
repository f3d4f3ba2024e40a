//! The receiving end: a delta from any input onto a volume.
//!
//! Guarantees: the destination's size and the sampled blocks are checked before the first write; nothing is
//! called done before trailer, counts and digest were seen to match and everything was synced.

use std::fs::File;
use std::io::{BufReader, Read};

use super::apply::{Applied, Applier, OnDurable, UndoLeft};
use super::order::Ordered;
use super::target::{ReceiveOptions, Target, check, prepare};
use super::undo::{DurableWrite, UndoRecorder, undo_header};
use crate::delta::FormatError;
use crate::delta::header::{Header, Planned, Source};
use crate::delta::proto3::{FirstLine, Proto3Reader, read_first_line};
use crate::delta::reader::{DeltaReader, FrameHeader};
use crate::delta::samples::Samples;
use crate::error::{Error, ExitCode, Result};
use crate::extent::Kind;
use crate::monitor::Monitor;
use crate::sys::aligned::AlignedBuffer;
use crate::units::Bytes;

/// What was received.
#[derive(Debug)]
pub struct Received {
    /// What was written.
    pub applied: Applied,
    /// Bytes of the delta itself.
    pub delta_bytes: u64,
    /// The delta's header; `None` for version 3.
    pub header: Option<Header>,
}

/// An undo that is to be written, and room beside it for a version 3 stream that must be sorted first.
pub struct UndoTo<'a> {
    /// The undo file.
    pub out: &'a mut dyn DurableWrite,
    /// Its name for messages.
    pub name: &'a str,
    /// Makes an empty temporary file.
    pub spool: &'a dyn Fn() -> std::io::Result<File>,
}

/// Reads a whole delta and checks that it could be applied. Writes nothing.
pub fn rehearse(
    input: impl Read,
    what: &str,
    target: &Target<'_>,
    options: &ReceiveOptions<'_>,
) -> Result<Received> {
    let damaged = |source| Error::Damaged {
        what: what.to_owned(),
        source,
    };
    let mut reader = DeltaReader::new(input).map_err(damaged)?;
    check(reader.header(), reader.samples(), target, options)?;
    while reader.next_frame().map_err(damaged)?.is_some() {
        options.cancel.check()?;
    }
    let header = Some(reader.header().clone());
    Ok(Received {
        applied: Applied::default(),
        delta_bytes: reader.position(),
        header,
    })
}

/// Applies one delta, of version 4 or 3, read from `input`, which is called `what` in messages.
pub fn receive(
    input: impl Read,
    what: &str,
    target: &Target<'_>,
    undo: Option<UndoTo<'_>>,
    options: &ReceiveOptions<'_>,
    on_durable: OnDurable<'_>,
) -> Result<Received> {
    let mut input = BufReader::with_capacity(256 << 10, input);
    let damaged = |source| Error::Damaged {
        what: what.to_owned(),
        source,
    };
    match read_first_line(&mut input).map_err(damaged)? {
        FirstLine::Version4 => {
            let reader = DeltaReader::after_first_line(input).map_err(damaged)?;
            receive_version_4(reader, what, target, undo, options, on_durable)
        }
        FirstLine::Version3 => {
            let reader = Proto3Reader::after_first_line(input);
            receive_version_3(reader, what, target, undo, options, on_durable)
        }
    }
}

fn receive_version_4<R: Read>(
    mut reader: DeltaReader<R>,
    what: &str,
    target: &Target<'_>,
    undo: Option<UndoTo<'_>>,
    options: &ReceiveOptions<'_>,
    on_durable: OnDurable<'_>,
) -> Result<Received> {
    let header = reader.header().clone();
    if options.unfinished && header.source != Source::Undo {
        return Err(Error::Usage(format!(
            "{what}: --unfinished is for an undo whose run was cut, and this is none"
        )));
    }
    let old_size = target.volume.size_bytes();
    prepare(&header, reader.samples(), target, options)?;
    options.monitor.plan(
        header
            .planned
            .data_bytes
            .saturating_add(header.planned.zero_bytes),
    );
    let undo = start_undo(
        undo,
        &undo_header(&header, old_size, target.volume.size_bytes()),
        reader.samples(),
        options,
    )?;
    let mut applier = Applier::new(target.volume, target.name, undo, options.cancel, on_durable);
    let result = apply_frames(&mut reader, what, &mut applier, options);
    let applied = conclude(applier, result, target, old_size, options.monitor)?;
    shrink_after_undo(&header, target)?;
    Ok(Received {
        applied,
        delta_bytes: reader.position(),
        header: Some(header),
    })
}

fn apply_frames<R: Read, W: DurableWrite>(
    reader: &mut DeltaReader<R>,
    what: &str,
    applier: &mut Applier<'_, W>,
    options: &ReceiveOptions<'_>,
) -> Result<()> {
    let damaged = |source| Error::Damaged {
        what: what.to_owned(),
        source,
    };
    let mut buffer = AlignedBuffer::new(0);
    loop {
        options.cancel.check()?;
        let frame = match next_frame(reader, &mut buffer) {
            // What was not synced when the run was cut may be anything; nothing was overwritten for it.
            Err(error) if options.unfinished && error.exit_code() == ExitCode::Damaged => {
                options
                    .monitor
                    .warn(&format!("{what}: put back up to where it was cut: {error}"));
                return Ok(());
            }
            frame => frame.map_err(damaged)?,
        };
        let Some(frame) = frame else { return Ok(()) };
        match frame.kind {
            Kind::Zero => applier.write_zeroes(frame.extent)?,
            Kind::Data => {
                let length = usize::try_from(frame.extent.length()).unwrap_or(0);
                applier.write(frame.extent, &buffer[..length])?;
            }
        }
        options.monitor.advance(frame.extent.length());
    }
}

/// The next frame, its data in the first bytes of `buffer`.
fn next_frame<R: Read>(
    reader: &mut DeltaReader<R>,
    buffer: &mut AlignedBuffer,
) -> std::result::Result<Option<FrameHeader>, FormatError> {
    let Some(frame) = reader.next_frame()? else {
        return Ok(None);
    };
    if frame.kind == Kind::Data {
        let length = usize::try_from(frame.extent.length()).unwrap_or(0);
        if buffer.len() < length {
            *buffer = AlignedBuffer::new(length.next_power_of_two());
        }
        reader.payload(&mut buffer[..length])?;
    }
    Ok(Some(frame))
}

fn receive_version_3<R: Read>(
    mut reader: Proto3Reader<R>,
    what: &str,
    target: &Target<'_>,
    undo: Option<UndoTo<'_>>,
    options: &ReceiveOptions<'_>,
    on_durable: OnDurable<'_>,
) -> Result<Received> {
    options.monitor.warn(&format!(
        "{what}: a PROTO[3] stream names no base and has no end mark: neither a wrong destination nor a \
         stream that was cut between two records can be seen"
    ));
    let size = target.volume.size_bytes();
    let check_end = |end: u64| {
        if end <= size || options.allow_smaller {
            return Ok(());
        }
        Err(Error::refused(
            target.name,
            format!("the stream writes up to byte {end}, and the destination has only {size}"),
            "Make it larger, or leave out what is past its end with --allow-smaller.",
        ))
    };
    let Some(undo) = undo else {
        let mut applier =
            Applier::<File>::new(target.volume, target.name, None, options.cancel, on_durable);
        let result = apply_pieces(&mut reader, what, &mut applier, &check_end, options);
        let applied = conclude(applier, result, target, size, options.monitor)?;
        return Ok(Received {
            applied,
            delta_bytes: reader.position(),
            header: None,
        });
    };

    let spool = (undo.spool)().map_err(|error| Error::io("cannot make a temporary file", error))?;
    let ordered = Ordered::spool(reader, what, spool, options.cancel)?;
    check_end(ordered.end())?;
    let header = anonymous_header(size);
    let undo = start_undo(
        Some(undo),
        &undo_header(&header, size, size),
        &Samples::default(),
        options,
    )?;
    let mut applier = Applier::new(target.volume, target.name, undo, options.cancel, on_durable);
    let result = ordered.for_each(|extent, data| {
        options.monitor.advance(extent.length());
        applier.write(extent, data)
    });
    let applied = conclude(applier, result, target, size, options.monitor)?;
    Ok(Received {
        applied,
        delta_bytes: applied.data_bytes,
        header: None,
    })
}

fn apply_pieces<R: Read, W: DurableWrite>(
    reader: &mut Proto3Reader<R>,
    what: &str,
    applier: &mut Applier<'_, W>,
    check_end: &dyn Fn(u64) -> Result<()>,
    options: &ReceiveOptions<'_>,
) -> Result<()> {
    let mut buffer = Vec::new();
    loop {
        options.cancel.check()?;
        let piece = reader
            .next_piece(&mut buffer)
            .map_err(|source| Error::Damaged {
                what: what.to_owned(),
                source,
            })?;
        let Some(extent) = piece else { return Ok(()) };
        check_end(extent.end())?;
        applier.write(extent, &buffer)?;
        options.monitor.advance(extent.length());
    }
}

/// Version 3 says nothing of itself.
fn anonymous_header(size_bytes: u64) -> Header {
    Header {
        volume_size: size_bytes,
        base_size: Some(size_bytes),
        base: None,
        target: None,
        source: Source::Cow,
        granularity: 1,
        created: 0,
        codec: "none".to_owned(),
        program: crate::PROGRAM.to_owned(),
        planned: Planned::default(),
        required_features: Vec::new(),
        features: Vec::new(),
    }
}

/// Begins the undo, if one was asked for.
pub fn start_undo<'a>(
    undo: Option<UndoTo<'a>>,
    header: &Header,
    samples: &Samples,
    options: &ReceiveOptions<'_>,
) -> Result<Option<UndoRecorder<&'a mut dyn DurableWrite>>> {
    undo.map(|undo| {
        UndoRecorder::new(
            undo.out,
            undo.name,
            header,
            &samples.below(header.volume_size),
            options.undo_compression,
        )
    })
    .transpose()
}

/// Ends an apply, well or badly. After a failure a warning tells what state the destination is in; one that was
/// only made longer has `old_size_bytes` again.
pub fn conclude<W: DurableWrite>(
    mut applier: Applier<'_, W>,
    result: Result<()>,
    target: &Target<'_>,
    old_size_bytes: u64,
    monitor: &dyn Monitor,
) -> Result<Applied> {
    let error = match result.and_then(|()| applier.finish()) {
        Ok(applied) => {
            report_skipped(&applied, target, monitor);
            return Ok(applied);
        }
        Err(error) => error,
    };
    let wrote = applier.has_touched_target();
    let undo = applier.abandon();
    if !wrote && target.is_file && target.volume.size_bytes() > old_size_bytes {
        // It was made longer for what then did not come.
        let _ = target.volume.set_size(old_size_bytes);
    }
    if wrote {
        let way_out = match undo {
            UndoLeft::Whole => "apply the undo, which is there with .partial added to its name",
            UndoLeft::Unfinished => {
                "the undo could not be closed, but what it saved is there: apply it, with .partial added \
                 to its name, with --unfinished"
            }
            UndoLeft::None => "run the same again",
        };
        monitor.warn(&format!(
            "{}: partly written, now neither in the old state nor in the new one: {way_out}",
            target.name
        ));
    }
    Err(error)
}

/// A file that the delta had made longer gets its old size back.
fn shrink_after_undo(header: &Header, target: &Target<'_>) -> Result<()> {
    let was_grown = header.source == Source::Undo
        && target.is_file
        && header.base_size == Some(target.volume.size_bytes())
        && header.volume_size < target.volume.size_bytes();
    if !was_grown {
        return Ok(());
    }
    target
        .volume
        .set_size(header.volume_size)
        .and_then(|()| target.volume.sync())
        .map_err(|error| {
            Error::io(
                format!("cannot give {} its old size back", target.name),
                error,
            )
        })
}

fn report_skipped(applied: &Applied, target: &Target<'_>, monitor: &dyn Monitor) {
    if applied.skipped_bytes > 0 {
        monitor.warn(&format!(
            "{}: {} past the end of the destination were left out",
            target.name,
            Bytes(applied.skipped_bytes)
        ));
    }
}
