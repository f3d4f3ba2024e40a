//! The receiving end: a delta from any input onto a volume.
//!
//! Guarantees: the destination's size and the sampled blocks are checked before the first write; nothing is
//! called done before trailer, counts and digest were seen to match and everything was synced.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufReader, Read};

use super::apply::{Applied, Applier};
use super::begin::{Begun, Ready, begin};
use super::conclude::Conclusion;
use super::examine::{Beginning, examine, no_undo_of_the_middle};
use super::in_flight;
use super::order::Ordered;
use super::target::{ReceiveOptions, Target};
use super::undo::{DurableWrite, Old, UndoPlace, UndoRecorder, undo_header};
use crate::delta::FormatError;
use crate::delta::header::{Header, Planned, Source};
use crate::delta::proto3::{FirstLine, Proto3Reader, read_first_line};
use crate::delta::reader::{DeltaReader, Item};
use crate::delta::samples::Samples;
use crate::delta::stream::StreamId;
use crate::error::{Error, ExitCode, Result};
use crate::extent::Kind;
use crate::record::keeper::{Keeper, Kept};
use crate::record::marks::Places;
use crate::sys::aligned::AlignedBuffer;
use crate::volume::file_version::run_id;

/// What was received.
#[derive(Debug)]
pub struct Received {
    /// What was written.
    pub applied: Applied,
    /// Bytes of the delta itself.
    pub delta_bytes: u64,
    /// The delta's header; `None` for version 3.
    pub header: Option<Header>,
    /// It was an undo that took back a write that was cut.
    pub took_back: bool,
    /// The delta is an undo that was cut, and counts up to this volume offset.
    pub ends_at: Option<u64>,
}

/// Hears up to which volume offset everything is durable.
pub type OnDurable<'a> = &'a mut dyn FnMut(u64, &Applied) -> Result<()>;

/// One delta on its way to one volume.
pub struct Receiving<'a> {
    /// The delta's name in messages.
    pub what: &'a str,
    /// The destination.
    pub target: &'a Target<'a>,
    /// Where an undo is kept, if one is.
    pub undo: &'a dyn UndoPlace,
    /// What is allowed.
    pub options: &'a ReceiveOptions<'a>,
    /// The destination's record.
    pub keeper: &'a mut Keeper,
}

/// Reads a whole delta and checks that it could be applied. Writes nothing.
pub fn rehearse(
    input: impl Read,
    what: &str,
    target: &Target<'_>,
    undo: &dyn UndoPlace,
    options: &ReceiveOptions<'_>,
    keeper: &Keeper,
) -> Result<Received> {
    let damaged = |source| Error::Damaged {
        what: what.to_owned(),
        source,
    };
    let mut reader = DeltaReader::new(input).map_err(damaged)?;
    let (header, samples) = (reader.header().clone(), reader.samples().clone());
    let beginning = Beginning {
        header: &header,
        samples: &samples,
        target,
        undo,
        options,
    };
    examine(&beginning, keeper)?;
    while reader.next_frame().map_err(damaged)?.is_some() {
        options.cancel.check()?;
    }
    Ok(Received {
        applied: Applied::default(),
        delta_bytes: reader.position(),
        header: Some(header),
        took_back: false,
        ends_at: None,
    })
}

impl<'a> Receiving<'a> {
    /// Applies one delta, of version 4 or 3, read from `input`.
    pub fn run(self, input: impl Read, on_durable: OnDurable<'_>) -> Result<Received> {
        let mut input = BufReader::with_capacity(256 << 10, input);
        match read_first_line(&mut input).map_err(|source| self.damaged(source))? {
            FirstLine::Version4 => {
                let reader = DeltaReader::after_first_line(input);
                let reader = reader.map_err(|source| self.damaged(source))?;
                self.version_4(reader, on_durable)
            }
            FirstLine::Version3 => {
                self.version_3(Proto3Reader::after_first_line(input), on_durable)
            }
        }
    }

    fn damaged(&self, source: FormatError) -> Error {
        Error::Damaged {
            what: self.what.to_owned(),
            source,
        }
    }

    fn version_4<R: Read>(
        self,
        mut reader: DeltaReader<R>,
        on_durable: OnDurable<'_>,
    ) -> Result<Received> {
        let header = reader.header().clone();
        let Self {
            what,
            target,
            undo,
            options,
            keeper,
        } = self;
        if options.unfinished && header.source != Source::Undo {
            return Err(Error::Usage(format!(
                "{what}: --unfinished is for an undo whose run was cut, and this is none"
            )));
        }
        let samples = reader.samples().clone();
        let beginning = Beginning {
            header: &header,
            samples: &samples,
            target,
            undo,
            options,
        };
        // What holds the old content of another destination has not done its work here.
        let is_own = header.undo_for.as_deref() == keeper.identity();
        let ready = match begin(&beginning, keeper)? {
            Begun::Ready(ready) => *ready,
            Begun::Already => {
                let damaged = |source| Error::Damaged {
                    what: what.to_owned(),
                    source,
                };
                let (mut took_back, mut end) = (false, 0);
                loop {
                    options.cancel.check()?;
                    match reader.next_frame() {
                        // It was equal when it was compared, and nobody has written to it.
                        Ok(Some(frame)) if header.source == Source::Compare => {
                            return Err(Error::refused(
                                target.name,
                                format!(
                                    "{} differs, and the undo that was asked for is there from before",
                                    frame.extent
                                ),
                                "Give another --undo.",
                            ));
                        }
                        Ok(Some(frame)) => end = frame.extent.end(),
                        Ok(None) => break,
                        // It was cut with its run, and has done its work.
                        Err(_) if header.source == Source::Undo && is_own => {
                            took_back = true;
                            break;
                        }
                        Err(source) => return Err(damaged(source)),
                    }
                }
                return Ok(Received {
                    applied: Applied::default(),
                    delta_bytes: reader.position(),
                    header: Some(header),
                    took_back,
                    ends_at: took_back.then_some(end),
                });
            }
        };
        let planned = header
            .planned
            .data_bytes
            .saturating_add(header.planned.zero_bytes);
        let by_offset = header.source == Source::Compare;
        options.monitor.plan(if by_offset {
            header.volume_size
        } else {
            planned
        });
        let Ready {
            offset,
            undo,
            size_before,
            good_from,
            result,
        } = ready;
        let kept = RefCell::new(&mut *keeper);
        let mut durable = |end: u64, applied: &Applied, places: &Places| {
            kept.borrow_mut().durable(end, places, target.volume)?;
            on_durable(end, applied)
        };
        let mut saved = |end: u64| kept.borrow_mut().saved(end);
        let frames = Frames {
            what,
            offset,
            by_offset,
            // What the record knows counts; whoever forces gets no state.
            good_from: if options.unfinished && options.force {
                Some(0)
            } else {
                good_from
            },
            options,
        };
        let mut ends_at = None;
        let ended = in_flight::with(target.volume, |in_flight| {
            let mut applier = Applier::new(
                target.volume,
                target.name,
                undo,
                options.cancel,
                &mut durable,
            )
            .tell_saved(&mut saved)
            .write_by(in_flight);
            let applied = frames
                .apply(&mut reader, &mut applier)
                .map(|end| ends_at = end);
            applier.end(applied)
        });
        let conclusion = Conclusion {
            header: Some(&header),
            target,
            size_before,
            monitor: options.monitor,
        };
        let applied = conclusion.conclude(ended, result, keeper)?;
        Ok(Received {
            applied,
            delta_bytes: reader.position(),
            header: Some(header),
            // Of one that nothing on record knows it is not known whether it did all its work.
            took_back: good_from.is_some_and(|good| good > 0 || !options.unfinished)
                && is_own
                && !(options.unfinished && options.force),
            ends_at,
        })
    }

    fn version_3<R: Read>(
        self,
        mut reader: Proto3Reader<R>,
        on_durable: OnDurable<'_>,
    ) -> Result<Received> {
        let Self {
            what,
            target,
            undo,
            options,
            keeper,
        } = self;
        options.monitor.warn(&format!(
            "{what}: a PROTO[3] stream names no base and has no end mark: neither a wrong destination nor a \
             stream that was cut between two records can be seen"
        ));
        keeper.admit_anonymous()?;
        if undo.asked().is_some() && keeper.was_incomplete() {
            return Err(no_undo_of_the_middle(target.name));
        }
        // Of what was cut before, this stream may be no part.
        let held = keeper.held(None).filter(|_| !keeper.was_incomplete());
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
        let conclusion = Conclusion {
            header: None,
            target,
            size_before: size,
            monitor: options.monitor,
        };
        let mut durable = |end: u64, applied: &Applied, _: &Places| on_durable(end, applied);
        let header = anonymous_header(size);
        let stream = StreamId::of(&header, &Samples::default());
        let Some(name) = undo.asked() else {
            let kept = Kept {
                undo: None,
                old_size_bytes: size,
                holds: held,
                ..Kept::default()
            };
            keeper.begin_anonymous(&stream, kept)?;
            let mut applier = Applier::<File>::new(
                target.volume,
                target.name,
                None,
                options.cancel,
                &mut durable,
            );
            let result = apply_pieces(&mut reader, what, &mut applier, &check_end, options);
            let ended = applier.end(result);
            let applied = conclusion.conclude(ended, None, keeper)?;
            return Ok(Received {
                applied,
                delta_bytes: reader.position(),
                header: None,
                took_back: false,
                ends_at: None,
            });
        };

        let spool = undo.spool(name);
        let spool = spool.map_err(|error| Error::io("cannot make a temporary file", error))?;
        let ordered = Ordered::spool(reader, what, spool, options.cancel)?;
        check_end(ordered.end())?;
        let old = Old {
            size_bytes: size,
            holds: held,
            is_other: false,
        };
        let holds = old.holds.clone();
        let header = undo_header(&header, &keeper.undoes(&stream), old, size);
        let kept = Kept {
            undo: Some(name.to_owned()),
            undo_stream: Some(StreamId::of(&header, &Samples::default())),
            has_own_undo: true,
            old_size_bytes: size,
            holds,
            ..Kept::default()
        };
        let recorder = UndoRecorder::new(
            undo.create(name, None)?,
            name,
            &header,
            &Samples::default(),
            options.undo_compression,
        )?;
        if let Err(error) = keeper.begin_anonymous(&stream, kept) {
            recorder.discard();
            return Err(error);
        }
        let mut saved = |end: u64| keeper.saved(end);
        let mut applier = Applier::new(
            target.volume,
            target.name,
            Some(recorder),
            options.cancel,
            &mut durable,
        )
        .tell_saved(&mut saved);
        let result = ordered.for_each(|extent, data| {
            options.monitor.advance(extent.length());
            applier.write(extent, data)
        });
        let ended = applier.end(result);
        let applied = conclusion.conclude(ended, None, keeper)?;
        Ok(Received {
            applied,
            delta_bytes: applied.data_bytes,
            header: None,
            took_back: false,
            ends_at: None,
        })
    }
}

/// The frames of one delta, on their way.
struct Frames<'a> {
    what: &'a str,
    /// What ends at or before it is there already.
    offset: u64,
    /// Progress is how far the volume is settled, and not what was sent.
    by_offset: bool,
    /// The delta is an undo that was cut: that is no damage if it goes at least up to here.
    good_from: Option<u64>,
    options: &'a ReceiveOptions<'a>,
}

impl Frames<'_> {
    /// Where it was cut, if it was.
    fn apply<R: Read, W: DurableWrite>(
        &self,
        reader: &mut DeltaReader<R>,
        applier: &mut Applier<'_, W>,
    ) -> Result<Option<u64>> {
        let mut buffer = AlignedBuffer::new(0);
        let mut end = 0;
        loop {
            self.options.cancel.check()?;
            let item = match next_item(reader, &mut buffer, self.offset) {
                // What was not synced when the run was cut may be anything; nothing was overwritten for it.
                Err(error) if self.may_end_at(end) && error.exit_code() == ExitCode::Damaged => {
                    self.options.monitor.warn(&format!(
                        "{}: put back up to where it was cut: {error}",
                        self.what
                    ));
                    return Ok(Some(end));
                }
                item => item.map_err(|source| Error::Damaged {
                    what: self.what.to_owned(),
                    source,
                })?,
            };
            let frame = match item {
                Some(Item::Frame(frame)) => frame,
                Some(Item::Position(position)) => {
                    self.options.monitor.advance(position.saturating_sub(end));
                    end = position;
                    applier.reached(position)?;
                    continue;
                }
                None => return Ok(None),
            };
            let done = if self.by_offset {
                frame.extent.end().saturating_sub(end)
            } else {
                frame.extent.length()
            };
            end = frame.extent.end();
            self.options.monitor.advance(done);
            if end <= self.offset {
                continue;
            }
            match frame.kind {
                Kind::Zero => applier.write_zeroes(frame.extent)?,
                Kind::Data => applier.write_from(frame.extent, &mut buffer)?,
            }
        }
    }

    fn may_end_at(&self, end: u64) -> bool {
        self.good_from.is_some_and(|good_from| end >= good_from)
    }
}

/// The next frame or position, a frame's data in the first bytes of `buffer`; without its data if it ends at or before
/// `offset`.
fn next_item<R: Read>(
    reader: &mut DeltaReader<R>,
    buffer: &mut AlignedBuffer,
    offset: u64,
) -> std::result::Result<Option<Item>, FormatError> {
    let item = reader.next_item()?;
    let Some(Item::Frame(frame)) = item else {
        return Ok(item);
    };
    if frame.kind == Kind::Data && frame.extent.end() > offset {
        let length = usize::try_from(frame.extent.length()).unwrap_or(0);
        if buffer.len() < length {
            *buffer = AlignedBuffer::new(length.next_power_of_two());
        }
        reader.payload(&mut buffer[..length])?;
    }
    Ok(item)
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
pub(super) fn anonymous_header(size_bytes: u64) -> Header {
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
        list: None,
        run: Some(run_id()),
        undo_of: None,
        undo_for: None,
        from_offset: 0,
        required_features: Vec::new(),
        features: Vec::new(),
    }
}
