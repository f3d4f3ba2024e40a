//! States, deltas between them, and the engine that applies them.

use std::io::{Read, Write};
use std::sync::Mutex;

use lvmsync::cancel::Cancel;
use lvmsync::change_list::{ChangeList, ChangeListBuilder};
use lvmsync::delta::codec::{Codec, Compression, Compressor};
use lvmsync::delta::header::{Header, Planned, Source, State};
use lvmsync::delta::reader::DeltaReader;
use lvmsync::delta::samples::Samples;
use lvmsync::delta::stored::StoredDelta;
use lvmsync::delta::writer::DeltaWriter;
use lvmsync::engine::receive::Receiving;
use lvmsync::engine::target::{ReceiveOptions, Target};
use lvmsync::engine::undo::{DurableWrite, FoundUndo, NoUndo, UndoPlace, Undoes};
use lvmsync::error::Result;
use lvmsync::extent::{Extent, Kind};
use lvmsync::history::combine::{Combined, Input, Options, combine};
use lvmsync::monitor::Silent;
use lvmsync::record::keeper::Keeper;
use lvmsync::volume::memory::MemoryVolume;
use proptest::prelude::*;

/// Reproducible bytes.
pub(crate) struct Noise(blake3::OutputReader);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        Self(hasher.update(&seed.to_le_bytes()).finalize_xof())
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end.max(1)
    }
}

/// A volume over time: the first state, and for each delta the extents that it names and the state that it leads to.
#[derive(Clone, Debug)]
pub(crate) struct History {
    pub(crate) states: Vec<Vec<u8>>,
    pub(crate) deltas: Vec<Vec<u8>>,
}

pub(crate) fn state(number: usize) -> State {
    State {
        id: format!("file:state-{number}"),
        name: format!("vg/s{number}"),
    }
}

pub(crate) fn header(number: usize, old: &[u8], new: &[u8], compression: Compression) -> Header {
    Header {
        volume_size: new.len() as u64,
        base_size: Some(old.len() as u64),
        base: Some(state(number)),
        target: Some(state(number + 1)),
        source: Source::Thin,
        granularity: 512,
        created: 1_700_000_000 + 86_400 * i64::try_from(number).unwrap(),
        codec: compression.to_string(),
        program: "test".into(),
        planned: Planned::default(),
        list: None,
        run: None,
        undo_of: None,
        undo_for: None,
        from_offset: 0,
        required_features: vec![],
        features: vec![],
    }
}

/// Writes `changes` of `new` as a sender does: frames end at multiples of 1 MiB, and what is zero is a zero frame.
pub(crate) fn write_delta(
    header: &Header,
    samples: &Samples,
    changes: &ChangeList,
    new: &[u8],
    frame_bytes: u64,
    compression: Compression,
) -> Vec<u8> {
    let mut writer = DeltaWriter::new(Vec::new(), header, samples).unwrap();
    let mut compressor = Compressor::new(compression).unwrap();
    for change in changes.iter() {
        let mut at = change.extent.offset();
        while at < change.extent.end() {
            let boundary = ((at / frame_bytes) + 1) * frame_bytes;
            let extent = Extent::from_range(at, change.extent.end().min(boundary)).unwrap();
            at = extent.end();
            let data = &new[extent.offset() as usize..extent.end() as usize];
            let mut packed = Vec::new();
            if data.iter().all(|byte| *byte == 0) {
                writer.zero(extent).unwrap();
            } else if let Some(codec) = compressor.compress(data, &mut packed) {
                writer.data(extent, codec, &packed).unwrap();
            } else {
                writer.data(extent, Codec::None, data).unwrap();
            }
        }
    }
    writer.finish().unwrap().1
}

/// Up to `most` deltas of a volume of a few hundred KiB. With `sizes` it grows and shrinks.
pub(crate) fn histories(most: usize, sizes: bool) -> impl Strategy<Value = History> {
    (any::<u64>(), 1..=most).prop_map(move |(seed, count)| {
        let mut noise = Noise::new(seed);
        let mut first = vec![0; 4096 + noise.below(300_000) as usize];
        for block in first.chunks_mut(4096) {
            if noise.below(3) > 0 {
                noise.fill(block);
            }
        }
        let mut history = History {
            states: vec![first],
            deltas: vec![],
        };
        for number in 0..count {
            step(&mut history, number, sizes, &mut noise);
        }
        history
    })
}

fn step(history: &mut History, number: usize, sizes: bool, noise: &mut Noise) {
    let old = history.states.last().unwrap().clone();
    let mut new = old.clone();
    let mut builder = ChangeListBuilder::default();
    if sizes && noise.below(2) == 0 {
        new.resize(4096 + noise.below(400_000) as usize, 0);
        if let Some(tail) = Extent::from_range(old.len() as u64, new.len() as u64) {
            builder.push(tail, Kind::Data);
            if noise.below(2) == 0 {
                noise.fill(&mut new[old.len()..]);
            }
        }
    }
    let size = new.len() as u64;
    for _ in 0..noise.below(20) {
        let start = noise.below(size);
        let longest = if noise.below(4) == 0 { 100_000 } else { 6000 };
        let end = (start + 1 + noise.below(longest)).min(size);
        builder.push(Extent::from_range(start, end).unwrap(), Kind::Data);
        let range = &mut new[start as usize..end as usize];
        match noise.below(5) {
            0 => range.fill(0),
            1 => range.fill(7),
            // Named, and what it was.
            2 => {}
            _ => noise.fill(range),
        }
    }
    let changes = builder.finish();
    let samples = Samples::take(&MemoryVolume::new(old.clone()), &changes).unwrap();
    let compressions = [Compression::None, Compression::Lz4, Compression::Zstd(5)];
    let compression = compressions[noise.below(3) as usize];
    let frame_bytes = [1 << 20, 10_000, 65_536][noise.below(3) as usize];
    let header = header(number, &old, &new, compression);
    history.deltas.push(write_delta(
        &header,
        &samples.below(size),
        &changes,
        &new,
        frame_bytes,
        compression,
    ));
    history.states.push(new);
}

pub(crate) fn input(name: &str, bytes: &[u8]) -> Input<MemoryVolume> {
    Input {
        name: name.to_owned(),
        delta: StoredDelta::open(MemoryVolume::new(bytes.to_vec())).unwrap(),
    }
}

pub(crate) fn try_combine(
    inputs: &[Input<MemoryVolume>],
    out: impl Write,
    compression: Option<Compression>,
) -> Result<Combined> {
    let chain: Vec<&Input<MemoryVolume>> = inputs.iter().collect();
    let options = Options {
        compression,
        cancel: &Cancel::new(),
        monitor: &Silent,
    };
    combine(&chain, out, "result", &options)
}

/// Combines deltas that are in order.
pub(crate) fn combined(deltas: &[&[u8]]) -> Vec<u8> {
    let inputs: Vec<_> = deltas
        .iter()
        .enumerate()
        .map(|(number, bytes)| input(&number.to_string(), bytes))
        .collect();
    let mut out = Vec::new();
    try_combine(&inputs, &mut out, None).unwrap();
    out
}

/// Extent, kind and content of every frame, with every check.
pub(crate) fn frames(delta: &[u8]) -> Vec<(Extent, Kind, Vec<u8>)> {
    let mut reader = DeltaReader::new(delta).unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame().unwrap() {
        let mut data = Vec::new();
        if frame.kind == Kind::Data {
            data.resize(frame.extent.length() as usize, 0);
            reader.payload(&mut data).unwrap();
        }
        frames.push((frame.extent, frame.kind, data));
    }
    frames
}

/// Puts a delta onto a file in memory, by the engine.
pub(crate) fn apply(delta: &[u8], volume: &MemoryVolume, undo: Option<&mut Vec<u8>>) -> Result<()> {
    apply_to(delta, volume, true, undo)
}

pub(crate) fn apply_to(
    delta: impl Read,
    volume: &MemoryVolume,
    is_file: bool,
    undo: Option<&mut Vec<u8>>,
) -> Result<()> {
    let place = undo.map(|out| InMemory(Mutex::new(out)));
    let receiving = Receiving {
        what: "delta",
        target: &Target {
            volume,
            name: "destination",
            is_file,
            room_bytes: None,
        },
        undo: place
            .as_ref()
            .map_or(&NoUndo as &dyn UndoPlace, |place| place),
        options: &ReceiveOptions {
            force: false,
            allow_smaller: false,
            unfinished: false,
            compared: false,
            undo_compression: Compression::Lz4,
            cancel: &Cancel::new(),
            monitor: &Silent,
        },
        keeper: &mut Keeper::in_memory(None),
    };
    receiving.run(delta, &mut |_, _| Ok(())).map(|_| ())
}

struct InMemory<'a>(Mutex<&'a mut Vec<u8>>);

struct Locked<'p, 'a>(&'p Mutex<&'a mut Vec<u8>>);

impl Write for Locked<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl DurableWrite for Locked<'_, '_> {
    fn sync(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl UndoPlace for InMemory<'_> {
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
