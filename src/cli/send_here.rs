//! A send whose both ends are on this machine.
//!
//! Guarantees: the checks are those of any other way; frames go from the reader to the volume in memory, and what is durable
//! on the way is on record, so that a run that was cut goes on.

use std::io::Seek;
use std::sync::{Mutex, PoisonError};

use super::send::Job;
use super::summary::Summary;
use crate::delta::codec::Compression;
use crate::delta::header::{Header, Source};
use crate::destination::Destination;
use crate::engine::apply::{Applied, Applier};
use crate::engine::begin::{Begun, Ready, begin};
use crate::engine::behind::{Behind, Closes};
use crate::engine::compare::Side;
use crate::engine::conclude::Conclusion;
use crate::engine::deliver::{DeltaSink, Paced, TargetSink};
use crate::engine::effort::Effort;
use crate::engine::examine::Beginning;
use crate::engine::in_flight::{self, InFlight};
use crate::engine::pump::{PumpOptions, pump};
use crate::engine::target::Target;
use crate::engine::throttle::Throttle;
use crate::error::{Error, Result};
use crate::monitor::{Silent, Words};
use crate::record::keeper::Keeper;
use crate::record::marks::Places;
use crate::source::SendSource;

/// What was done. The extents of a source that was compared are not those that differed.
fn add(summary: &mut Summary, applied: &Applied) {
    if summary.compared_bytes.is_some() {
        summary.extents = applied.data_frames + applied.zero_frames;
    }
    summary.data_bytes = applied.data_bytes;
    summary.zero_bytes = applied.zero_bytes;
    summary.cut_bytes = applied.cut_bytes;
    summary.bytes_sent = applied.data_bytes;
}

impl Job<'_> {
    /// Both ends are here: frames go from the reader to the volume without becoming a delta.
    pub(super) fn to_local(
        &self,
        source: &SendSource,
        destination: &str,
        summary: &mut Summary,
    ) -> Result<()> {
        let mut options = self.write.options(self.to.compress);
        options.create = source.header.is_full_copy();
        options.compared = self.comparing;
        options.make = self.write.make(&source.header);
        if self.dry_run && Destination::could_make(destination, &options)?.is_some() {
            return Ok(());
        }
        if self.dry_run {
            options.make = None;
        }
        let mut sources = vec![source.data.identity(), source.identity()];
        sources.extend(self.store_identity());
        let mut destination = Destination::open(destination, &sources, &options)?;
        let compares = self.comparing && !destination.is_empty();
        let header = if compares {
            &source.header.clone().by_comparing()
        } else {
            &source.header
        };
        if self.dry_run {
            summary.goes_on_at(0, compares);
            return destination
                .examine(header, &source.samples, self.cancel, self.monitor)
                .map(drop);
        }
        if self.write.atomic {
            summary.goes_on_at(0, compares);
            let applied = self.by_spool(source, header, &mut destination)?;
            add(summary, &applied);
            return Ok(());
        }
        let applied = destination.write(
            self.cancel,
            self.monitor,
            |target, undo, options, keeper| {
                let beginning = Beginning {
                    header,
                    samples: &source.samples,
                    target,
                    undo,
                    options,
                };
                match begin(&beginning, keeper)? {
                    Begun::Already => Ok(Applied::default()),
                    Begun::Ready(ready) => {
                        summary.goes_on_at(ready.offset, compares);
                        self.copy(source, header, target, *ready, keeper)
                    }
                }
            },
        )?;
        add(summary, &applied);
        Ok(())
    }

    /// The whole delta is beside the destination before the first block of it is written.
    fn by_spool(
        &self,
        source: &SendSource,
        header: &Header,
        destination: &mut Destination,
    ) -> Result<Applied> {
        let name = "the delta";
        let mut file = destination.spool_file()?;
        {
            let volume = destination.readable();
            let unlike = (header.source == Source::Compare).then_some(Side {
                volume: &*volume,
                name: destination.name(),
            });
            let paced = Paced::new(&file, Throttle::new(self.to.bwlimit, self.cancel));
            let mut sink = DeltaSink::new(paced, header, &source.samples, name)?;
            let options = PumpOptions {
                effort: &self.effort,
                cancel: self.cancel,
                monitor: self.monitor,
                unlike,
            };
            pump(source.side(), &source.changes, &mut sink, &options)
                .map_err(|error| source.explain(error))?;
            source.check_unchanged()?;
            sink.finish()?;
        }
        let failed = |error| Error::io("cannot keep the delta beside the destination", error);
        file.sync_all()
            .and_then(|()| file.rewind())
            .map_err(failed)?;
        destination.rehearse(&file, name, self.cancel, &Silent)?;
        file.rewind().map_err(failed)?;
        let mut nothing = |_: u64, _: &Applied| Ok(());
        let words = Words(self.monitor);
        let received = destination.receive_now(file, name, self.cancel, &words, &mut nothing)?;
        Ok(received.applied)
    }

    /// Frames go from the reader to the volume without becoming a delta.
    fn copy(
        &self,
        source: &SendSource,
        header: &Header,
        target: &Target<'_>,
        ready: Ready<'_>,
        keeper: &mut Keeper,
    ) -> Result<Applied> {
        let kept = Mutex::new(&mut *keeper);
        let kept = || kept.lock().unwrap_or_else(PoisonError::into_inner);
        let durable =
            |end: u64, _: &Applied, places: &Places| kept().durable(end, places, target.volume);
        // Frames stay in memory: to compress them would be work for nothing.
        let unlike = (header.source == Source::Compare).then_some(Side {
            volume: target.volume,
            name: target.name,
        });
        let options = PumpOptions {
            effort: &Effort::new(Compression::None),
            cancel: self.cancel,
            monitor: self.monitor,
            unlike,
        };
        let rest;
        let changes = if ready.offset == 0 {
            &source.changes
        } else {
            rest = source.changes.from_offset(ready.offset);
            &rest
        };
        let behind = Behind::new(target.volume, target.name);
        let (mut at_the_end, mut on_the_way) = (durable, durable);
        let copied = |in_flight: Option<&InFlight>| {
            std::thread::scope(|scope| {
                let _closes = Closes(&behind);
                let spawned = std::thread::Builder::new()
                    .name("sync".to_owned())
                    .spawn_scoped(scope, || behind.serve(&mut on_the_way));
                let mut saved = |end: u64| kept().saved(end);
                let mut applier = Applier::new(
                    target.volume,
                    target.name,
                    ready.undo,
                    self.cancel,
                    &mut at_the_end,
                )
                .tell_saved(&mut saved)
                .write_by(in_flight);
                // Without a thread syncs are made here.
                if spawned.is_ok() {
                    applier = applier.sync_behind(&behind);
                }
                let throttle = Throttle::new(self.to.bwlimit, self.cancel);
                let mut sink = TargetSink::new(&mut applier, throttle);
                let result = pump(source.side(), changes, &mut sink, &options)
                    .map_err(|error| source.explain(error))
                    .and_then(|()| source.check_unchanged());
                applier.end(result)
            })
        };
        let ended = in_flight::with(target.volume, copied);
        let conclusion = Conclusion {
            header: Some(header),
            target,
            size_before: ready.size_before,
            monitor: self.monitor,
        };
        conclusion.conclude(ended, ready.result, keeper)
    }
}
