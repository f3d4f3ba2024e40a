//! What the tests of damage and of faults share: a small delta with every kind of frame, one way to apply it in
//! memory, and an undo in memory that forgets what was not synced.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test, and each test file uses its part of this"
)]

use std::io::{self, Read, Write};
use std::sync::Mutex;

use lvmsync::cancel::Cancel;
use lvmsync::change_list::ChangeList;
use lvmsync::delta::codec::{Codec, Compression, Compressor};
use lvmsync::delta::header::{Header, Planned, Source, State};
use lvmsync::delta::resume::SoundPart;
use lvmsync::delta::samples::Samples;
use lvmsync::delta::stream::StreamId;
use lvmsync::delta::writer::DeltaWriter;
use lvmsync::engine::receive::{Received, Receiving};
use lvmsync::engine::target::{ReceiveOptions, Target};
use lvmsync::engine::undo::{DurableWrite, FoundUndo, PartOfUndo, UndoPlace, Undoes};
use lvmsync::error::Result;
use lvmsync::extent::{Change, Extent, Kind};
use lvmsync::monitor::Silent;
use lvmsync::record::keeper::Keeper;
use lvmsync::volume::WriteAt;
use lvmsync::volume::memory::MemoryVolume;

/// Full counts were asked for.
pub(crate) fn long() -> bool {
    std::env::var_os("LVMSYNC_LONG").is_some_and(|value| value == "1")
}

/// Bytes that look random.
pub(crate) fn noise(length: usize, words: &str) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(words.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Two states of a volume, and the delta between them.
pub(crate) struct Model {
    pub(crate) base: Vec<u8>,
    pub(crate) target: Vec<u8>,
    pub(crate) delta: Vec<u8>,
    pub(crate) frames: usize,
}

impl Model {
    /// So many blocks of `block` bytes, every second of which changes: to noise, to text (which lz4 or zstd makes
    /// smaller) and to zeroes. The target is `growth` bytes longer.
    pub(crate) fn new(blocks: usize, block: usize, growth: usize, name: &str) -> Self {
        let base = noise(blocks * block, "base");
        let mut target = base.clone();
        target.resize(base.len() + growth, 7);
        let mut extents = Vec::new();
        for number in (0..blocks).filter(|number| number % 2 == 1) {
            let range = number * block..(number + 1) * block;
            let kind = match number / 2 % 3 {
                0 => noise(block, &format!("{name} {number}"))
                    .into_iter()
                    .collect(),
                1 => format!("{name} {number} ").into_bytes().repeat(block)[..block].to_vec(),
                _ => vec![0; block],
            };
            target[range.clone()].copy_from_slice(&kind);
            extents.push(range);
        }
        if growth > 0 {
            extents.push(base.len()..target.len());
        }
        let frames = extents.len();
        let change = |range: &std::ops::Range<usize>| Change {
            extent: Extent::from_range(range.start as u64, range.end as u64).unwrap(),
            kind: Kind::Data,
        };
        let changes: ChangeList = extents.iter().map(change).collect();
        let samples = Samples::take(&MemoryVolume::new(base.clone()), &changes).unwrap();
        let delta = delta_of(&target, base.len(), name, &changes, &samples);
        Self {
            base,
            target,
            delta,
            frames,
        }
    }
}

/// The delta to `target`, which is called `name`, with these changes.
pub(crate) fn delta_of(
    target: &[u8],
    base_size: usize,
    name: &str,
    changes: &ChangeList,
    samples: &Samples,
) -> Vec<u8> {
    let header = header(name, base_size, target.len(), changes);
    let mut writer = DeltaWriter::new(Vec::new(), &header, samples).unwrap();
    for (number, extent) in changes.iter().map(|change| change.extent).enumerate() {
        let data = &target[extent.offset() as usize..extent.end() as usize];
        if data.iter().all(|byte| *byte == 0) {
            writer.zero(extent).unwrap();
            continue;
        }
        let compression = [Compression::Lz4, Compression::Zstd(3)][number / 3 % 2];
        let mut packed = Vec::new();
        match Compressor::new(compression)
            .unwrap()
            .compress(data, &mut packed)
        {
            Some(codec) => writer.data(extent, codec, &packed).unwrap(),
            None => writer.data(extent, Codec::None, data).unwrap(),
        }
    }
    writer.finish().unwrap().1
}

fn header(name: &str, base: usize, target: usize, changes: &ChangeList) -> Header {
    let state = |name: &str| {
        Some(State {
            id: format!("lvm:{name}"),
            name: String::new(),
        })
    };
    Header {
        volume_size: target as u64,
        base_size: Some(base as u64),
        base: state("base"),
        target: state(name),
        source: Source::Cow,
        granularity: 512,
        created: 1_700_000_000,
        codec: String::new(),
        program: String::new(),
        planned: Planned::default(),
        list: Some(changes.digest()),
        run: None,
        undo_of: None,
        undo_for: None,
        from_offset: 0,
        required_features: vec![],
        features: vec![],
    }
}

/// Applies `delta`, as `lvmsync apply` would. A file may be made longer, a device not.
pub(crate) fn apply(
    delta: impl Read,
    volume: &dyn WriteAt,
    undo: &dyn UndoPlace,
    keeper: &mut Keeper,
    is_file: bool,
) -> Result<Received> {
    apply_with(delta, volume, undo, keeper, (is_file, false))
}

/// The same, perhaps with `--force`.
pub(crate) fn apply_with(
    delta: impl Read,
    volume: &dyn WriteAt,
    undo: &dyn UndoPlace,
    keeper: &mut Keeper,
    (is_file, force): (bool, bool),
) -> Result<Received> {
    let cancel = Cancel::new();
    let options = ReceiveOptions {
        force,
        allow_smaller: false,
        unfinished: false,
        compared: false,
        undo_compression: Compression::Lz4,
        cancel: &cancel,
        monitor: &Silent,
    };
    let target = Target {
        volume,
        name: "destination",
        is_file,
        room_bytes: None,
    };
    let receiving = Receiving {
        what: "the delta",
        target: &target,
        undo,
        options: &options,
        keeper,
    };
    receiving.run(delta, &mut |_, _| Ok(()))
}

/// One undo in memory, under its name or unfinished.
#[derive(Default)]
pub(crate) struct MemoryUndo {
    inner: Mutex<Inner>,
    /// Asked before each operation.
    gate: Option<Box<dyn Fn() -> io::Result<()> + Send + Sync>>,
}

#[derive(Default)]
struct Inner {
    bytes: Vec<u8>,
    durable: usize,
    there: bool,
    whole: bool,
}

impl MemoryUndo {
    pub(crate) fn new(gate: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self {
            gate: Some(Box::new(gate)),
            ..Self::default()
        }
    }

    /// As a run that was cut left it.
    pub(crate) fn left(bytes: Option<Vec<u8>>) -> Self {
        let undo = Self::default();
        if let Some(bytes) = bytes {
            let mut inner = undo.inner.lock().unwrap();
            inner.durable = bytes.len();
            (inner.bytes, inner.there) = (bytes, true);
        }
        undo
    }

    /// What is there; after a power cut only what was synced. `None`: it was given up.
    pub(crate) fn bytes(&self, power_was_cut: bool) -> Option<Vec<u8>> {
        let inner = self.inner.lock().unwrap();
        let length = if power_was_cut {
            inner.durable
        } else {
            inner.bytes.len()
        };
        inner.there.then(|| inner.bytes[..length].to_vec())
    }

    pub(crate) fn set_whole(&self, whole: bool) {
        self.inner.lock().unwrap().whole = whole;
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.inner.lock().unwrap().whole
    }

    fn pass(&self) -> io::Result<()> {
        self.gate.as_ref().map_or(Ok(()), |gate| gate())
    }
}

struct Writing<'u>(&'u MemoryUndo);

impl Write for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A disk that is full takes a part.
        if let Err(error) = self.0.pass() {
            let part = &bytes[..bytes.len() / 2];
            self.0.inner.lock().unwrap().bytes.extend_from_slice(part);
            return Err(error);
        }
        self.0.inner.lock().unwrap().bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DurableWrite for Writing<'_> {
    fn sync(&mut self) -> io::Result<()> {
        self.0.pass()?;
        let mut inner = self.0.inner.lock().unwrap();
        inner.durable = inner.bytes.len();
        Ok(())
    }

    fn discard(&mut self) {
        *self.0.inner.lock().unwrap() = Inner::default();
    }

    fn complete(&mut self) -> io::Result<()> {
        self.0.pass()?;
        self.0.inner.lock().unwrap().whole = true;
        Ok(())
    }
}

impl UndoPlace for MemoryUndo {
    fn asked(&self) -> Option<&str> {
        Some("undo")
    }

    fn create(&self, _: &str, _: Option<&Undoes>) -> Result<Box<dyn DurableWrite + '_>> {
        *self.inner.lock().unwrap() = Inner {
            there: true,
            ..Inner::default()
        };
        Ok(Box::new(Writing(self)))
    }

    fn find(&self, _: &str, undoes: &Undoes) -> Result<FoundUndo<'_>> {
        let mut inner = self.inner.lock().unwrap();
        if !inner.there {
            return Ok(FoundUndo::Gone);
        }
        let Ok((part, samples)) = SoundPart::with_samples_of(&inner.bytes[..]) else {
            return Ok(FoundUndo::Empty(None));
        };
        let undone = part.header.undo_of.as_deref();
        assert_eq!(undone, Some(undoes.stream.as_str()));
        if inner.whole {
            return Ok(FoundUndo::Whole(StreamId::of(&part.header, &samples)));
        }
        if part.frames() == 0 {
            return Ok(FoundUndo::Empty(Some(part.header.created)));
        }
        inner.bytes.truncate(part.delta_bytes as usize);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&inner.bytes);
        Ok(FoundUndo::Part(Box::new(PartOfUndo {
            out: Box::new(Writing(self)),
            part,
            hasher,
        })))
    }

    fn spool(&self, _: &str) -> io::Result<std::fs::File> {
        tempfile::tempfile()
    }
}
