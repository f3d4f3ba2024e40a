//! One delta of several does what they do.

use lvmsync::change_list::{ChangeList, ChangeListBuilder};
use lvmsync::delta::codec::Compression;
use lvmsync::delta::header::{Header, Source};
use lvmsync::delta::reader::DeltaReader;
use lvmsync::delta::samples::Samples;
use lvmsync::error::{Error, ExitCode};
use lvmsync::extent::{Extent, Kind};
use lvmsync::volume::memory::MemoryVolume;
use proptest::prelude::*;

use crate::counting::peak_of;
use crate::model::{
    History, Noise, apply, apply_to, combined, frames, header, histories, input, state,
    try_combine, write_delta,
};

fn parts(history: &History) -> Vec<&[u8]> {
    history.deltas.iter().map(Vec::as_slice).collect()
}

/// The beginning of what a volume holds, as long as the state is.
fn holds(volume: &MemoryVolume, state: &[u8]) -> bool {
    volume.bytes().get(..state.len()) == Some(state)
}

/// What the header says is what is there, and the samples fit both ends.
fn check_heading(delta: &[u8], first: &[u8], last: &[u8]) {
    let mut reader = DeltaReader::new(delta).unwrap();
    let header = reader.header().clone();
    let mut list = ChangeListBuilder::default();
    while let Some(frame) = reader.next_frame().unwrap() {
        list.push(frame.extent, frame.kind);
    }
    let list = list.finish();
    assert_eq!(header.planned.data_bytes, reader.counts().data_bytes);
    assert_eq!(header.planned.zero_bytes, reader.counts().zero_bytes);
    assert_eq!(header.planned.extents, list.len() as u64);
    assert_eq!(header.list, Some(list.digest()));
    assert_eq!(header.volume_size, last.len() as u64);
    for state in [first, last] {
        let volume = MemoryVolume::new(state.to_vec());
        assert_eq!(reader.samples().first_mismatch(&volume).unwrap(), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_combination_does_what_its_deltas_do(history in histories(5, true)) {
        let one = combined(&parts(&history));
        let (first, last) = (history.states.first().unwrap(), history.states.last().unwrap());
        check_heading(&one, first, last);

        let each = MemoryVolume::new(first.clone());
        for (delta, state) in history.deltas.iter().zip(&history.states[1..]) {
            apply(delta, &each, None).unwrap();
            prop_assert!(holds(&each, state));
        }
        let at_once = MemoryVolume::new(first.clone());
        let mut undo = Vec::new();
        apply(&one, &at_once, Some(&mut undo)).unwrap();
        prop_assert!(holds(&at_once, last));
        apply(&undo, &at_once, None).unwrap();
        prop_assert!(&at_once.bytes() == first, "and it has an undo");
        // On a device that is large enough for all of them.
        let mut large = first.clone();
        large.resize(500_000, 0);
        let device = MemoryVolume::new(large);
        apply_to(&one[..], &device, false, None).unwrap();
        prop_assert!(holds(&device, last));
    }

    #[test]
    fn it_does_not_matter_what_is_combined_first(history in histories(4, true)) {
        let parts = parts(&history);
        let whole = frames_of_bytes(&combined(&parts));
        for split in 1..parts.len() {
            let left = combined(&parts[..split]);
            let right = combined(&parts[split..]);
            prop_assert!(frames_of_bytes(&combined(&[&left, &right])) == whole);
        }
    }

    #[test]
    fn a_full_copy_and_a_chain_are_a_newer_full_copy(history in histories(4, true)) {
        let first = &history.states[0];
        let full = Header {
            source: Source::Full,
            base: None,
            base_size: None,
            target: Some(state(0)),
            ..header(0, first, first, Compression::Lz4)
        };
        let whole = ChangeList::whole(first.len() as u64);
        let full = write_delta(&full, &Samples::default(), &whole, first, 1 << 16, Compression::Lz4);
        let one = combined(&[&[&full[..]], &parts(&history)[..]].concat());
        let made = DeltaReader::new(&one[..]).unwrap().header().clone();
        prop_assert_eq!((made.source, made.base, made.base_size), (Source::Full, None, None));
        prop_assert_eq!(made.target, Some(state(history.deltas.len())));
        let file = MemoryVolume::new(Vec::new());
        apply(&one, &file, None).unwrap();
        prop_assert!(&file.bytes() == history.states.last().unwrap());
    }

    #[test]
    fn undos_together_undo_in_order(history in histories(4, true)) {
        let volume = MemoryVolume::new(history.states[0].clone());
        let mut undos = Vec::new();
        for delta in &history.deltas {
            let mut undo = Vec::new();
            apply(delta, &volume, Some(&mut undo)).unwrap();
            undos.insert(0, undo);
        }
        let newest = volume.bytes();
        let one_by_one = MemoryVolume::new(newest.clone());
        for undo in &undos {
            apply(undo, &one_by_one, None).unwrap();
        }
        let slices: Vec<&[u8]> = undos.iter().map(Vec::as_slice).collect();
        if let Some(one) = inputs_or_refused(&slices) {
            let at_once = MemoryVolume::new(newest);
            apply(&one, &at_once, None).unwrap();
            let first = DeltaReader::new(slices[0]).unwrap().header().clone();
            let made = DeltaReader::new(&one[..]).unwrap().header().clone();
            prop_assert_eq!(made.source, Source::Undo);
            prop_assert_eq!(made.undo_of, first.undo_of);
            prop_assert_eq!((made.base, made.base_size), (first.base, first.base_size));
            prop_assert!(at_once.bytes() == one_by_one.bytes());
            prop_assert!(at_once.bytes() == history.states[0]);
        } else {
            let sizes = || history.states.windows(2).map(|pair| pair[0].len().cmp(&pair[1].len()));
            let is_uneven = sizes().any(|step| step.is_lt()) && sizes().any(|step| step.is_gt());
            prop_assert!(is_uneven, "only what grows and shrinks may be refused");
        }
    }

    #[test]
    fn undos_of_a_file_that_only_grows_bring_back_its_first_state(history in histories(3, true)) {
        prop_assume!(history.states.windows(2).all(|pair| pair[0].len() <= pair[1].len()));
        let volume = MemoryVolume::new(history.states[0].clone());
        let mut undos: Vec<Vec<u8>> = Vec::new();
        for delta in &history.deltas {
            let mut undo = Vec::new();
            apply(delta, &volume, Some(&mut undo)).unwrap();
            undos.insert(0, undo);
        }
        let slices: Vec<&[u8]> = undos.iter().map(Vec::as_slice).collect();
        apply(&combined(&slices), &volume, None).unwrap();
        prop_assert!(volume.bytes() == history.states[0]);
    }

    #[test]
    fn damage_anywhere_in_a_chain_is_found_and_named(
        history in histories(3, false), seed in any::<u64>(),
    ) {
        let mut noise = Noise::new(seed);
        let which = noise.below(history.deltas.len() as u64) as usize;
        let mut deltas = history.deltas;
        let at = noise.below(deltas[which].len() as u64) as usize;
        deltas[which][at] ^= 1 << noise.below(8);
        let mut opened = Vec::new();
        for (number, bytes) in deltas.iter().enumerate() {
            let volume = MemoryVolume::new(bytes.clone());
            match lvmsync::delta::stored::StoredDelta::open(volume) {
                Ok(delta) => opened.push(lvmsync::history::combine::Input {
                    name: format!("part {number}"),
                    delta,
                }),
                // Beginning and end are looked at here.
                Err(_) => prop_assert_eq!(number, which),
            }
        }
        if opened.len() == deltas.len() {
            let error = try_combine(&opened, std::io::sink(), None).unwrap_err();
            prop_assert_eq!(error.exit_code(), ExitCode::Damaged);
            let text = error.chain();
            let is_named = text.contains(&format!("part {which}")) && text.contains("byte");
            prop_assert!(is_named, "{}", text);
        }
    }

    #[test]
    fn compressing_anew_changes_nothing_else(history in histories(3, true)) {
        let inputs: Vec<_> = parts(&history).iter().map(|bytes| input("x", bytes)).collect();
        let plain = frames_of_bytes(&combined(&parts(&history)));
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1)] {
            let mut out = Vec::new();
            let made = try_combine(&inputs, &mut out, Some(compression)).unwrap();
            prop_assert_eq!(made.copied_frames, 0);
            prop_assert!(frames_of_bytes(&out) == plain);
        }
    }
}

fn inputs_or_refused(deltas: &[&[u8]]) -> Option<Vec<u8>> {
    let inputs: Vec<_> = deltas.iter().map(|bytes| input("undo", bytes)).collect();
    let mut out = Vec::new();
    match try_combine(&inputs, &mut out, None) {
        Ok(_) => Some(out),
        Err(Error::Refused { .. }) => None,
        Err(error) => panic!("{}", error.chain()),
    }
}

/// What a delta says of each byte, however it is cut into frames.
fn frames_of_bytes(delta: &[u8]) -> Vec<(u64, Option<u8>)> {
    let mut bytes = Vec::new();
    for (extent, kind, data) in frames(delta) {
        let of = |at: u64| match kind {
            Kind::Zero => None,
            Kind::Data => Some(data[(at - extent.offset()) as usize]),
        };
        bytes.extend((extent.offset()..extent.end()).map(|at| (at, of(at))));
    }
    bytes
}

fn list(extents: &[(u64, u64)]) -> ChangeList {
    let mut builder = ChangeListBuilder::default();
    for (offset, length) in extents {
        builder.push(Extent::new(*offset, *length).unwrap(), Kind::Data);
    }
    builder.finish()
}

fn small(number: usize, old: &[u8], new: &[u8], extents: &[(u64, u64)]) -> Vec<u8> {
    let header = header(number, old, new, Compression::None);
    write_delta(
        &header,
        &Samples::default(),
        &list(extents),
        new,
        1 << 20,
        Compression::None,
    )
}

#[test]
fn zero_after_data_stays_zero_and_data_after_zero_is_data() {
    let states = [[1; 100], [2; 100], [0; 100]];
    let there = [
        small(0, &states[0], &states[1], &[(0, 100)]),
        small(1, &states[1], &states[2], &[(20, 30)]),
    ];
    let made = frames(&combined(&[&there[0], &there[1]]));
    let kinds: Vec<_> = made
        .iter()
        .map(|(extent, kind, _)| (extent.offset(), *kind))
        .collect();
    assert_eq!(kinds, [(0, Kind::Data), (20, Kind::Zero), (50, Kind::Data)]);
    let back = [
        small(0, &states[0], &states[2], &[(0, 100)]),
        small(1, &states[2], &states[1], &[(20, 30)]),
    ];
    let made = frames(&combined(&[&back[0], &back[1]]));
    let kinds: Vec<_> = made
        .iter()
        .map(|(extent, kind, _)| (extent.offset(), *kind))
        .collect();
    assert_eq!(kinds, [(0, Kind::Zero), (20, Kind::Data), (50, Kind::Zero)]);
}

#[test]
fn what_a_smaller_volume_has_cut_off_is_zero_when_it_grows_again() {
    let (large, small_one) = (vec![1; 300], vec![2; 100]);
    let mut again = small_one.clone();
    again.resize(250, 0);
    again[200..210].fill(3);
    // The second one says nothing of 100 to 200, nor of what is behind 210.
    let parts = [
        small(0, &large, &small_one, &[(0, 100)]),
        small(1, &small_one, &again, &[(200, 10)]),
    ];
    let one = combined(&[&parts[0], &parts[1]]);
    let volume = MemoryVolume::new(large);
    apply(&one, &volume, None).unwrap();
    assert_eq!(volume.bytes()[..250], again[..]);
    let zeroes: Vec<_> = frames(&one)
        .into_iter()
        .filter(|(_, kind, _)| *kind == Kind::Zero)
        .map(|(extent, _, _)| (extent.offset(), extent.end()))
        .collect();
    assert_eq!(zeroes, [(100, 200), (210, 250)]);
}

#[test]
fn frames_that_survive_whole_are_copied_as_they_stand() {
    let old = vec![0; 4 << 20];
    let mut new = old.clone();
    Noise::new(1).fill(&mut new[..1 << 20]);
    new[1 << 20..].fill(9);
    let header_of = |number| header(number, &old, &new, Compression::Zstd(7));
    let changes = list(&[(0, 4 << 20)]);
    let write = |number, changes: &ChangeList| {
        let header = header_of(number);
        write_delta(
            &header,
            &Samples::default(),
            changes,
            &new,
            1 << 20,
            Compression::Zstd(7),
        )
    };
    let inputs = [
        input("a", &write(0, &changes)),
        input("b", &write(1, &list(&[((2 << 20) + 5, 10)]))),
    ];
    let mut out = Vec::new();
    let made = try_combine(&inputs, &mut out, None).unwrap();
    // Three of four and the small one; what is left of the third is two.
    assert_eq!((made.copied_frames, made.made_frames), (4, 2));
    let mut before = DeltaReader::new(&out[..]).unwrap();
    let (first, codec) = (before.next_frame().unwrap().unwrap(), "zstd:7");
    assert_eq!(before.header().codec, codec);
    let mut original = inputs[0].delta.read_all().unwrap();
    assert_eq!(original.next_frame().unwrap().unwrap().record, first.record);
}

#[test]
fn memory_follows_the_pieces_and_not_the_data() {
    const SIZE: usize = 48 << 20;
    let mut noise = Noise::new(3);
    let mut states = vec![vec![0; SIZE]; 3];
    for state in &mut states[1..] {
        noise.fill(state);
    }
    let inputs = [
        input("a", &small(0, &states[0], &states[1], &[(0, SIZE as u64)])),
        // In the middle of every frame, so that each is cut.
        input(
            "b",
            &small(
                1,
                &states[1],
                &states[2],
                &(0..48)
                    .map(|n| ((n << 20) + 1000, 5000))
                    .collect::<Vec<_>>(),
            ),
        ),
    ];
    drop(states);
    let (made, peak) = peak_of(|| try_combine(&inputs, std::io::sink(), None).unwrap());
    assert_eq!(made.counts.data_bytes, SIZE as u64);
    assert!(peak < 14 << 20, "{peak} bytes");
}

#[test]
fn a_frame_that_does_not_unpack_is_found_although_its_checksum_matches() {
    let old = [0; 8192];
    let header = header(0, &old, &old, Compression::Lz4);
    let mut writer =
        lvmsync::delta::writer::DeltaWriter::new(Vec::new(), &header, &Samples::default()).unwrap();
    let extent = Extent::new(4096, 4096).unwrap();
    writer
        .data(extent, lvmsync::delta::codec::Codec::Lz4, b"no lz4 at all")
        .unwrap();
    let bad = writer.finish().unwrap().1;
    let error = try_combine(&[input("bad.delta", &bad)], std::io::sink(), None).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Damaged);
    assert!(error.chain().contains("bad.delta"), "{}", error.chain());
}
