//! Random volumes, changes and chunk sizes through every path, against a plain byte vector.
//!
//! The model: a base, and a target that differs in some chunks. Whatever the path (file, pipe, session,
//! straight onto the volume), codec and chunk size, the destination must end as the target, the undo must
//! bring back the base, and a destination in another state must be refused untouched.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use lvmsync::cancel::Cancel;
use lvmsync::change_list::{ChangeList, ChangeListBuilder};
use lvmsync::changes::cow::{Layout, read_exceptions};
use lvmsync::changes::cow_build::store_of;
use lvmsync::delta::codec::Compression;
use lvmsync::delta::header::{Header, Planned, Source};
use lvmsync::delta::samples::Samples;
use lvmsync::engine::apply::{Applied, Applier, Ended};
use lvmsync::engine::compare::Side;
use lvmsync::engine::deliver::{DeltaSink, Proto3Sink};
use lvmsync::engine::effort::Effort;
use lvmsync::engine::pump::{PumpOptions, pump};
use lvmsync::engine::receive::Receiving;
use lvmsync::engine::target::{ReceiveOptions, Target, check, grow};
use lvmsync::engine::undo::{DurableWrite, FoundUndo, NoUndo, UndoPlace, Undoes};
use lvmsync::error::{ExitCode, Result};
use lvmsync::extent::{Change, Extent, Kind};
use lvmsync::monitor::{Monitor, Recording, Silent};
use lvmsync::record::keeper::Keeper;
use lvmsync::record::marks::Places;
use lvmsync::session::client::Client;
use lvmsync::session::message::{ApplyOptions, Done, OPERATION_APPLY, Open, Ready};
use lvmsync::session::server::Server;
use lvmsync::volume::ReadAt;
use lvmsync::volume::memory::MemoryVolume;
use proptest::prelude::*;
use std::sync::Mutex;

/// A base, a target, and what an exception store says of the difference.
#[derive(Clone, Debug)]
struct Model {
    base: Vec<u8>,
    target: Vec<u8>,
    chunk_bytes: u64,
    /// Chunks in the order in which the kernel would have copied them; some hold the same bytes as before.
    changed: Vec<u64>,
}

impl Model {
    fn changes(&self) -> ChangeList {
        let layout = Layout::new(self.chunk_bytes).unwrap();
        let old: Vec<(u64, &[u8])> = self.changed.iter().map(|chunk| (*chunk, &[][..])).collect();
        let store = MemoryVolume::new(store_of(layout, old).unwrap());
        let size = self.base.len() as u64;
        let table = read_exceptions(&store, size).unwrap();
        // The origin may have been extended since: then the tail counts as changed.
        let mut builder = ChangeListBuilder::default();
        if let Some(tail) = Extent::from_range(size, self.target.len() as u64) {
            builder.push(tail, Kind::Data);
        }
        table.changes.union(builder.finish())
    }

    fn header(&self, changes: &ChangeList) -> Header {
        Header {
            volume_size: self.target.len() as u64,
            base_size: Some(self.base.len() as u64),
            base: None,
            target: None,
            source: Source::Cow,
            granularity: self.chunk_bytes,
            created: 0,
            codec: String::new(),
            program: "test".into(),
            planned: Planned {
                extents: changes.len() as u64,
                ..Planned::default()
            },
            list: None,
            run: None,
            undo_of: None,
            undo_for: None,
            from_offset: 0,
            required_features: vec![],
            features: vec![],
        }
    }

    fn samples(&self, changes: &ChangeList) -> Samples {
        Samples::take(&MemoryVolume::new(self.base.clone()), changes).unwrap()
    }

    fn delta(&self, compression: Compression) -> Vec<u8> {
        let changes = self.changes();
        let mut bytes = Vec::new();
        let mut sink = DeltaSink::new(
            &mut bytes,
            &self.header(&changes),
            &self.samples(&changes),
            "memory",
        )
        .unwrap();
        self.pump(&changes, &mut sink, compression).unwrap();
        sink.finish().unwrap();
        bytes
    }

    fn proto3(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut sink = Proto3Sink::new(&mut bytes, "memory").unwrap();
        self.pump(&self.changes(), &mut sink, Compression::None)
            .unwrap();
        sink.finish().unwrap();
        bytes
    }

    fn pump(
        &self,
        changes: &ChangeList,
        sink: &mut dyn lvmsync::engine::FrameSink,
        compression: Compression,
    ) -> Result<()> {
        let cancel = Cancel::new();
        let monitor = Recording::default();
        let options = PumpOptions {
            effort: &Effort::new(compression),
            cancel: &cancel,
            monitor: &monitor,
            unlike: None,
        };
        let source = Side {
            volume: &MemoryVolume::new(self.target.clone()),
            name: "target",
        };
        let result = pump(source, changes, sink, &options);
        assert_eq!(
            monitor.progress().1,
            changes.total_bytes(),
            "progress reaches the whole"
        );
        result
    }
}

fn models() -> impl Strategy<Value = Model> {
    let chunk_bytes = prop::sample::select(vec![512u64, 4096, 16384, 65536, 524_288]);
    (
        chunk_bytes,
        any::<u64>(),
        1u64..3 << 20,
        0u64..200_000,
        0usize..60,
    )
        .prop_map(|(chunk_bytes, seed, size, growth, count)| {
            // Sectors are the unit of every real volume, and the last chunk may be partial.
            let (size, growth) = (
                size / 512 * 512 + 512,
                if seed % 3 == 0 { growth / 512 * 512 } else { 0 },
            );
            let mut noise = blake3_noise(seed);
            let mut base = vec![0; size as usize];
            for block in base.chunks_mut(4096) {
                if !noise.byte().is_multiple_of(3) {
                    noise.fill(block);
                }
            }
            let mut target = base.clone();
            target.resize((size + growth) as usize, 0);
            if noise.byte().is_multiple_of(2) {
                noise.fill(&mut target[size as usize..]);
            }
            let chunks = size.div_ceil(chunk_bytes);
            let mut changed: Vec<u64> = (0..count).map(|_| noise.number() % chunks).collect();
            let mut seen = std::collections::HashSet::new();
            changed.retain(|chunk| seen.insert(*chunk));
            for chunk in &changed {
                let start = (chunk * chunk_bytes) as usize;
                let end = (start + chunk_bytes as usize).min(size as usize);
                match noise.byte() % 4 {
                    0 => target[start..end].fill(0),
                    1 => {} // rewritten with the same bytes
                    2 => target[start] ^= 1,
                    _ => noise.fill(&mut target[start..end]),
                }
            }
            Model {
                base,
                target,
                chunk_bytes,
                changed,
            }
        })
}

/// Reproducible bytes.
struct Noise(blake3::OutputReader);

fn blake3_noise(seed: u64) -> Noise {
    Noise(
        blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof(),
    )
}

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }

    fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn byte(&mut self) -> u64 {
        self.number() % 256
    }
}

/// A destination and how it is opened.
fn target(volume: &MemoryVolume) -> Target<'_> {
    Target {
        volume,
        name: "destination",
        is_file: true,
        room_bytes: None,
    }
}

fn apply(delta: impl Read, volume: &MemoryVolume, undo: Option<&mut Vec<u8>>) -> Result<Applied> {
    apply_with(delta, volume, undo, &Silent, false)
}

fn apply_with(
    delta: impl Read,
    volume: &MemoryVolume,
    undo: Option<&mut Vec<u8>>,
    monitor: &dyn Monitor,
    force: bool,
) -> Result<Applied> {
    let cancel = Cancel::new();
    let options = ReceiveOptions {
        force,
        allow_smaller: false,
        unfinished: false,
        compared: false,
        undo_compression: Compression::Lz4,
        cancel: &cancel,
        monitor,
    };
    let place = undo.map(InMemory::new);
    let receiving = Receiving {
        what: "delta",
        target: &target(volume),
        undo: place
            .as_ref()
            .map_or(&NoUndo as &dyn UndoPlace, |place| place),
        options: &options,
        keeper: &mut Keeper::in_memory(None),
    };
    receiving.run(delta, &mut |_, _| Ok(())).map(|r| r.applied)
}

struct Locked<'p, 'a, W>(&'p Mutex<&'a mut W>);

impl<W: DurableWrite> std::io::Write for Locked<'_, '_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.lock().unwrap().flush()
    }
}

impl<W: DurableWrite> DurableWrite for Locked<'_, '_, W> {
    fn sync(&mut self) -> std::io::Result<()> {
        self.0.lock().unwrap().sync()
    }
}

/// One undo, in memory.
struct InMemory<'a, W>(Mutex<&'a mut W>);

impl<'a, W: DurableWrite> InMemory<'a, W> {
    fn new(out: &'a mut W) -> Self {
        Self(Mutex::new(out))
    }
}

impl<W: DurableWrite> UndoPlace for InMemory<'_, W> {
    fn asked(&self) -> Option<&str> {
        Some("undo")
    }

    fn create(&self, _: &str, _: Option<&Undoes>) -> Result<Box<dyn DurableWrite + '_>> {
        Ok(Box::new(Locked(&self.0)))
    }

    fn find(&self, _: &str, _: &Undoes) -> Result<FoundUndo<'_>> {
        Ok(FoundUndo::Gone)
    }

    fn spool(&self, _: &str) -> std::io::Result<std::fs::File> {
        tempfile::tempfile()
    }
}

fn codecs() -> impl Strategy<Value = Compression> {
    prop::sample::select(vec![
        Compression::None,
        Compression::Lz4,
        Compression::Zstd(1),
        Compression::Zstd(6),
    ])
}

/// Each case moves megabytes, so there are few unless PROPTEST_CASES asks for more.
fn cases() -> ProptestConfig {
    ProptestConfig::with_cases(24)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn through_a_delta_and_back_by_its_undo(model in models(), compression in codecs()) {
        let delta = model.delta(compression);
        let volume = MemoryVolume::new(model.base.clone());
        let mut undo = Vec::new();
        apply(&delta[..], &volume, Some(&mut undo)).unwrap();
        prop_assert!(volume.bytes() == model.target, "the delta makes the target");
        apply(&undo[..], &volume, None).unwrap();
        prop_assert!(volume.bytes() == model.base, "the undo makes the base");
    }

    #[test]
    fn through_a_pipe_that_gives_a_few_bytes_at_a_time(model in models(), compression in codecs()) {
        struct Trickle<'a>(&'a [u8], usize);
        impl Read for Trickle<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                self.1 = self.1 * 7 % 8191 + 1;
                let take = self.1.min(buffer.len()).min(self.0.len());
                buffer[..take].copy_from_slice(&self.0[..take]);
                self.0 = &self.0[take..];
                Ok(take)
            }
        }
        let delta = model.delta(compression);
        let volume = MemoryVolume::new(model.base.clone());
        apply(Trickle(&delta, 1), &volume, None).unwrap();
        prop_assert!(volume.bytes() == model.target);
    }

    #[test]
    fn through_a_session(model in models(), compression in codecs()) {
        let delta = model.delta(compression);
        let volume = MemoryVolume::new(model.base.clone());
        let (here, there) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut server = Server::accept(there.try_clone().unwrap(), there).unwrap();
                let open = server.request().unwrap();
                assert_eq!(open.destination, "vg/lv");
                server.ready(Ready::default()).unwrap();
                let applied = apply(&mut server, &volume, None).unwrap();
                let done = Done { bytes_written: applied.data_bytes, ..Done::default() };
                server.replies().done(done).unwrap();
            });
            let client = Client::connect(here.try_clone().unwrap(), here, &[], Arc::new(())).unwrap();
            let open = Open {
                operation: OPERATION_APPLY.into(), destination: "vg/lv".into(), options: ApplyOptions::default(),
                source: None,
                ..Open::default()
            };
            let (_, mut out) = client.open(open).unwrap();
            std::io::Write::write_all(&mut out, &delta).unwrap();
            out.finish().unwrap();
        });
        prop_assert!(volume.bytes() == model.target);
    }

    #[test]
    fn straight_onto_a_volume(model in models()) {
        let changes = model.changes();
        let volume = MemoryVolume::new(model.base.clone());
        let cancel = Cancel::new();
        let options = ReceiveOptions {
            force: false, allow_smaller: false,
        unfinished: false,
            compared: false, undo_compression: Compression::None,
            cancel: &cancel, monitor: &Silent,
        };
        let header = model.header(&changes);
        check(&header, &model.samples(&changes), &target(&volume), &options, false).unwrap();
        grow(&header, &target(&volume)).unwrap();
        let mut nothing = |_: u64, _: &Applied, _: &Places| Ok(());
        let mut applier = Applier::<Vec<u8>>::new(&volume, "destination", None, &cancel, &mut nothing);
        model.pump(&changes, &mut applier, Compression::None).unwrap();
        prop_assert!(matches!(applier.end(Ok(())), Ended::Done(..)));
        prop_assert!(volume.bytes() == model.target);
    }

    #[test]
    fn through_the_originals_stream_and_back_by_its_undo(model in models()) {
        let stream = model.proto3();
        let grown = model.target.len() > model.base.len();
        // Version 3 cannot say that the volume grew, so the destination has to be large enough.
        let mut large = model.base.clone();
        large.resize(model.target.len(), 7);
        let volume = MemoryVolume::new(large.clone());
        let mut undo = Vec::new();
        apply(&stream[..], &volume, Some(&mut undo)).unwrap();
        prop_assert!(volume.bytes() == model.target);
        apply(&undo[..], &volume, None).unwrap();
        prop_assert!(volume.bytes() == large);
        if grown {
            let short = MemoryVolume::new(model.base);
            let error = apply(&stream[..], &short, None).unwrap_err();
            prop_assert_eq!(error.exit_code(), ExitCode::Refused);
        }
    }

    #[test]
    fn a_destination_in_another_state_is_refused_untouched(model in models(), seed in any::<u64>()) {
        let delta = model.delta(Compression::None);
        let changes = model.changes();
        let samples = model.samples(&changes);
        if samples.is_empty() {
            return Ok(()); // everything changed: there is nothing to know the base by
        }
        // Every unchanged block differs, so that whichever are sampled do.
        let mut other = model.base.clone();
        for gap in changes.unchanged(other.len() as u64) {
            for at in (gap.offset()..gap.end()).step_by(512) {
                other[at as usize] ^= 1 + (seed % 255) as u8;
            }
        }
        let volume = MemoryVolume::new(other.clone());
        let error = apply(&delta[..], &volume, None).unwrap_err();
        prop_assert_eq!(error.exit_code(), ExitCode::Refused);
        prop_assert!(volume.bytes() == other, "untouched");
        let forced = MemoryVolume::new(other);
        apply_with(&delta[..], &forced, None, &Silent, true).unwrap();
        for change in changes.iter() {
            let range = change.extent.offset() as usize..change.extent.end() as usize;
            prop_assert!(forced.bytes()[range.clone()] == model.target[range]);
        }
    }

    #[test]
    fn a_cut_delta_is_an_error_and_its_undo_still_brings_back_the_base(
        model in models(), compression in codecs(), cut in 0.0f64..1.0,
    ) {
        let delta = model.delta(compression);
        let length = (delta.len() as f64 * cut) as usize;
        let volume = MemoryVolume::new(model.base.clone());
        let mut undo = Vec::new();
        let error = apply(&delta[..length], &volume, Some(&mut undo)).unwrap_err();
        prop_assert_eq!(error.exit_code(), ExitCode::Damaged);
        let wrote = volume.bytes()[..model.base.len()] != model.base[..];
        if !undo.is_empty() && (wrote || is_whole(&undo)) {
            apply(&undo[..], &volume, None).unwrap();
        }
        prop_assert!(volume.bytes()[..model.base.len()] == model.base[..]);
    }
}

/// An undo that nothing was saved in is left without its end.
fn is_whole(undo: &[u8]) -> bool {
    lvmsync::delta::reader::DeltaReader::new(undo)
        .and_then(|mut reader| {
            while reader.next_frame()?.is_some() {}
            Ok(())
        })
        .is_ok()
}

#[test]
fn a_full_copy_has_no_base_and_makes_everything_equal() {
    let mut bytes = vec![0; 3 << 20];
    blake3_noise(1).fill(&mut bytes[1 << 20..(1 << 20) + 100_000]);
    let model = Model {
        base: vec![],
        target: bytes.clone(),
        chunk_bytes: 4096,
        changed: vec![],
    };
    let changes = ChangeList::whole(bytes.len() as u64);
    let header = Header {
        source: Source::Full,
        base_size: None,
        ..model.header(&changes)
    };
    let mut delta = Vec::new();
    let mut sink = DeltaSink::new(&mut delta, &header, &Samples::default(), "memory").unwrap();
    model.pump(&changes, &mut sink, Compression::None).unwrap();
    let (counts, _) = sink.finish().unwrap();
    assert!(counts.zero_bytes > 2 << 20, "zeroes travel as zeroes");
    for old in [vec![], vec![9; 1000], vec![9; 3 << 20], vec![9; 4 << 20]] {
        let volume = MemoryVolume::new(old.clone());
        apply(&delta[..], &volume, None).unwrap();
        assert_eq!(volume.size_bytes(), old.len().max(bytes.len()) as u64);
        assert!(volume.bytes()[..bytes.len()] == bytes[..]);
    }
}

#[test]
fn the_undo_is_durable_before_anything_is_overwritten() {
    use lvmsync::volume::faulty::{FaultyVolume, OpKind};

    /// Notes how many writes the volume had seen when the undo was synced last.
    struct Watched<'a> {
        volume: &'a FaultyVolume<MemoryVolume>,
        bytes: Vec<u8>,
        synced_bytes: usize,
        log: Vec<(usize, usize)>,
    }
    impl std::io::Write for Watched<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.bytes.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl DurableWrite for Watched<'_> {
        fn sync(&mut self) -> std::io::Result<()> {
            self.synced_bytes = self.bytes.len();
            let writes = self
                .volume
                .ops()
                .iter()
                .filter(|op| op.kind() == OpKind::Write)
                .count();
            self.log.push((writes, self.synced_bytes));
            Ok(())
        }
    }

    let mut base = vec![0; 64 << 20];
    blake3_noise(2).fill(&mut base);
    let changed: Vec<u64> = (0..(48 << 20) / 4096).collect();
    let mut new = base.clone();
    new[..48 << 20].iter_mut().for_each(|byte| *byte ^= 0x55);
    let model = Model {
        base: base.clone(),
        target: new,
        chunk_bytes: 4096,
        changed,
    };
    let delta = model.delta(Compression::None);

    let volume = FaultyVolume::new(MemoryVolume::new(base));
    let mut undo = Watched {
        volume: &volume,
        bytes: vec![],
        synced_bytes: 0,
        log: vec![],
    };
    let cancel = Cancel::new();
    let options = ReceiveOptions {
        force: false,
        allow_smaller: false,
        unfinished: false,
        compared: false,
        undo_compression: Compression::None,
        cancel: &cancel,
        monitor: &Silent,
    };
    let to = Target {
        volume: &volume,
        name: "destination",
        is_file: false,
        room_bytes: None,
    };
    let place = InMemory::new(&mut undo);
    let receiving = Receiving {
        what: "delta",
        target: &to,
        undo: &place,
        options: &options,
        keeper: &mut Keeper::in_memory(None),
    };
    receiving.run(&delta[..], &mut |_, _| Ok(())).unwrap();
    // Whenever so many writes had happened, the undo of all of them was already synced.
    let mut covered = 0usize;
    for (writes_before, synced_bytes) in undo.log {
        assert!(
            writes_before << 20 <= covered,
            "{writes_before} MiB written, {covered} saved"
        );
        covered = synced_bytes;
    }
    assert!(covered > 48 << 20);
}

/// The list may be too long: what did not change travels and arrives all the same.
#[test]
fn a_list_that_is_too_long_does_no_harm() {
    let mut base = vec![0; 1 << 20];
    blake3_noise(3).fill(&mut base);
    let model = Model {
        base: base.clone(),
        target: base.clone(),
        chunk_bytes: 4096,
        changed: (0..100).collect(),
    };
    let volume = MemoryVolume::new(base.clone());
    apply(&model.delta(Compression::Lz4)[..], &volume, None).unwrap();
    assert!(volume.bytes() == base);
    let all: ChangeList = [Change {
        extent: Extent::new(0, 1 << 20).unwrap(),
        kind: Kind::Data,
    }]
    .into_iter()
    .collect();
    assert_eq!(all, ChangeList::whole(1 << 20));
}
