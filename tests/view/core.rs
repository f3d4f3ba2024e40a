//! The view holds what an apply would write, at every offset and length.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lvmsync::delta::codec::Compression;
use lvmsync::delta::samples::Samples;
use lvmsync::delta::stored::StoredDelta;
use lvmsync::error::ExitCode;
use lvmsync::extent::{Extent, Kind};
use lvmsync::history::combine::Input;
use lvmsync::view::state::{Below, View};
use lvmsync::volume::ReadAt;
use lvmsync::volume::memory::MemoryVolume;
use proptest::prelude::*;

use crate::model::{apply, header, histories, input, write_delta};

/// Holds `view` against `state`: as a whole, and at the places that `spots` says.
fn same(view: &View<'_, MemoryVolume>, state: &[u8], spots: &[(u64, u64)]) {
    let size = state.len() as u64;
    assert_eq!(view.size_bytes(), size);
    let mut whole = vec![1; state.len()];
    view.read(&mut whole, 0).unwrap();
    assert!(whole == state, "as a whole");
    for (start, length) in spots {
        let start = start % size;
        let end = (start + length % 70_000).min(size);
        let mut found = vec![1; (end - start) as usize];
        view.read(&mut found, start).unwrap();
        assert!(
            found == state[start as usize..end as usize],
            "{start} {end}"
        );
        // The map is without gaps, and what it calls zero is.
        let mut at = start;
        for change in view.map(start, end - start, usize::MAX).unwrap() {
            assert_eq!(change.extent.offset(), at);
            at = change.extent.end();
            let bytes = &state[change.extent.offset() as usize..at as usize];
            assert!(change.kind == Kind::Data || bytes.iter().all(|byte| *byte == 0));
        }
        assert_eq!(at, end);
    }
    assert!(view.read(&mut [0; 2], size - 1).is_err(), "past the end");
    assert!(view.read(&mut [0; 2], u64::MAX).is_err());
}

fn view<'a>(inputs: &'a [Input<MemoryVolume>], base: &'a MemoryVolume) -> View<'a, MemoryVolume> {
    let chain: Vec<_> = inputs.iter().collect();
    let below = Below {
        volume: base,
        name: "base",
    };
    View::open(&chain, Some(below)).unwrap()
}

fn inputs(deltas: &[Vec<u8>]) -> Vec<Input<MemoryVolume>> {
    let named = |(number, bytes): (usize, &Vec<u8>)| input(&number.to_string(), bytes);
    deltas.iter().enumerate().map(named).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_view_is_the_state_that_the_chain_leads_to(
        history in histories(7, true),
        from in 0usize..7,
        to in 0usize..7,
        spots in prop::collection::vec(any::<(u64, u64)>(), 12),
    ) {
        let deltas = &history.deltas;
        let (from, to) = (from % deltas.len(), to % deltas.len());
        let (from, to) = (from.min(to), from.max(to));
        let inputs = inputs(&deltas[from..=to]);
        let base = MemoryVolume::new(history.states[from].clone());
        same(&view(&inputs, &base), &history.states[to + 1], &spots);
    }

    #[test]
    fn the_view_behind_undos_is_the_state_before(
        history in histories(5, false),
        grow in 0u64..200_000,
        back in 0usize..5,
        spots in prop::collection::vec(any::<(u64, u64)>(), 12),
    ) {
        // The last delta makes the file longer, its undo makes it shorter.
        let mut history = history;
        let old = history.states.last().unwrap().clone();
        let mut new = old.clone();
        new.resize(old.len() + grow as usize, 5);
        let number = history.deltas.len();
        let mut changes = lvmsync::change_list::ChangeListBuilder::default();
        changes.push(Extent::from_range(0, 100).unwrap(), Kind::Data);
        if let Some(tail) = Extent::from_range(old.len() as u64, new.len() as u64) {
            changes.push(tail, Kind::Data);
        }
        new[..100].fill(9);
        let header = header(number, &old, &new, Compression::None);
        history.deltas.push(write_delta(
            &header, &Samples::default(), &changes.finish(), &new, 1 << 20, Compression::None,
        ));
        history.states.push(new);
        let volume = MemoryVolume::new(history.states[0].clone());
        let mut undos = Vec::new();
        for delta in &history.deltas {
            let mut undo = Vec::new();
            apply(delta, &volume, Some(&mut undo)).unwrap();
            undos.insert(0, undo);
        }
        prop_assert!(volume.bytes() == *history.states.last().unwrap());
        let back = back % undos.len();
        let inputs = inputs(&undos[..=back]);
        let place = history.deltas.len() - 1 - back;
        same(&view(&inputs, &volume), &history.states[place], &spots);
    }
}

#[test]
fn a_full_copy_needs_no_base_and_a_device_may_be_longer() {
    let old = vec![3; 20_000];
    let new = [vec![4; 5000], vec![3; 15_000]].concat();
    let mut full = header(0, &old, &old, Compression::None);
    (full.base, full.base_size) = (None, None);
    full.source = lvmsync::delta::header::Source::Full;
    full.target = Some(crate::model::state(0));
    let whole = lvmsync::change_list::ChangeList::whole(20_000);
    let full = write_delta(
        &full,
        &Samples::default(),
        &whole,
        &old,
        1 << 20,
        Compression::Lz4,
    );
    let mut changes = lvmsync::change_list::ChangeListBuilder::default();
    changes.push(Extent::from_range(0, 5000).unwrap(), Kind::Data);
    let next = header(0, &old, &new, Compression::None);
    let next = write_delta(
        &next,
        &Samples::default(),
        &changes.finish(),
        &new,
        1 << 20,
        Compression::None,
    );
    let both = inputs(&[full, next.clone()]);
    let chain: Vec<_> = both.iter().collect();
    same(
        &View::open(&chain, None).unwrap(),
        &new,
        &[(0, 20_000), (4990, 30)],
    );
    // What lies behind the state on a device is not of it.
    let device = MemoryVolume::new([old, vec![9; 30_000]].concat());
    let one = inputs(&[next]);
    same(&view(&one, &device), &new, &[(0, 20_000)]);
}

#[test]
fn a_damaged_frame_fails_the_reads_that_touch_it_and_no_others() {
    let old = vec![1; 64 << 10];
    let mut new = old.clone();
    let mut changes = lvmsync::change_list::ChangeListBuilder::default();
    for number in 0..8 {
        let start = number * 8192;
        changes.push(Extent::new(start, 4096).unwrap(), Kind::Data);
        new[start as usize..start as usize + 4096].fill(number as u8 + 2);
    }
    let header = header(0, &old, &new, Compression::None);
    let changes = changes.finish();
    let mut bytes = write_delta(
        &header,
        &Samples::default(),
        &changes,
        &new,
        1 << 20,
        Compression::None,
    );
    let sound = StoredDelta::open(MemoryVolume::new(bytes.clone())).unwrap();
    let third = sound.frames().nth(2).unwrap().unwrap();
    bytes[third.at as usize + 50] ^= 1;
    let base = MemoryVolume::new(old);
    // Without its record header it is not known what follows: that is an error, and not what the base holds.
    let mut headless = bytes.clone();
    headless[third.at as usize + 9] ^= 1;
    let headless = inputs(&[headless]);
    let headless = view(&headless, &base);
    let known = third.extent.offset() as usize - 4096;
    let mut found = vec![0; known];
    headless.read(&mut found, 0).unwrap();
    assert!(found == new[..known]);
    for start in [known as u64, third.extent.offset(), (64 << 10) - 1] {
        let error = headless.read(&mut [0], start).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Damaged);
        assert!(
            error.chain().contains(&third.at.to_string()),
            "{}",
            error.chain()
        );
    }
    let inputs = inputs(&[bytes]);
    let view = view(&inputs, &base);
    let mut block = vec![0; 4096];
    for start in (0..64 << 10).step_by(4096) {
        let found = view.read(&mut block, start);
        if start != third.extent.offset() {
            found.unwrap();
            assert!(block == new[start as usize..start as usize + 4096]);
            continue;
        }
        let error = found.unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Damaged);
        let text = error.chain();
        assert!(
            text.starts_with("0: ") && text.contains(&third.at.to_string()),
            "{text}"
        );
    }
}

/// Counts what is read of it.
struct Counted(MemoryVolume, AtomicU64);

impl ReadAt for Counted {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.1.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.0.read_exact_at(buffer, offset)
    }
}

#[test]
fn a_thousand_deltas_open_without_their_frames_being_read() {
    const DELTAS: usize = 1000;
    const SIZE: usize = 1 << 20;
    let mut new = vec![0; SIZE];
    let mut deltas = Vec::new();
    for number in 0..DELTAS {
        let old = new.clone();
        let mut changes = lvmsync::change_list::ChangeListBuilder::default();
        for chunk in 0..4 {
            let start = (number * 4 + chunk) * 52_361 % (SIZE - 16_384);
            changes.push(Extent::new(start as u64, 16_384).unwrap(), Kind::Data);
            new[start..start + 16_384].fill(number as u8 | 1);
        }
        let header = header(number, &old, &new, Compression::None);
        let none = Samples::default();
        deltas.push(write_delta(
            &header,
            &none,
            &changes.finish(),
            &new,
            1 << 20,
            Compression::None,
        ));
    }
    let start = Instant::now();
    let open = |(number, bytes): (usize, Vec<u8>)| Input {
        name: number.to_string(),
        delta: StoredDelta::open(Counted(MemoryVolume::new(bytes), AtomicU64::new(0))).unwrap(),
    };
    let stored: u64 = deltas.iter().map(|bytes| bytes.len() as u64).sum();
    let inputs: Vec<_> = deltas.into_iter().enumerate().map(open).collect();
    let chain: Vec<_> = inputs.iter().collect();
    let base = MemoryVolume::new(vec![0; SIZE]);
    let view = View::open(
        &chain,
        Some(Below {
            volume: &base,
            name: "base",
        }),
    )
    .unwrap();
    let took = start.elapsed();
    let read = || {
        inputs
            .iter()
            .map(|input| input.delta.file().1.load(Ordering::Relaxed))
            .sum::<u64>()
    };
    assert!(read() < stored / 8, "{} of {stored}", read());
    assert!(took < Duration::from_secs(5), "{took:?}");
    let mut found = vec![0; SIZE];
    view.read(&mut found, 0).unwrap();
    assert!(found == new);
    // What later deltas cover is not read at all.
    assert!(read() < stored / 4, "{} of {stored}", read());
}

#[test]
fn what_was_cut_off_on_the_way_does_not_come_back() {
    // Grown again without a word about what is there.
    let sizes = [30_000, 10_000, 30_000];
    let states: Vec<Vec<u8>> = sizes.iter().map(|size| vec![6; *size]).collect();
    let nothing = lvmsync::change_list::ChangeListBuilder::default().finish();
    let delta = |number: usize| {
        let header = header(
            number,
            &states[number],
            &states[number + 1],
            Compression::None,
        );
        let none = Samples::default();
        write_delta(
            &header,
            &none,
            &nothing,
            &states[number + 1],
            1 << 20,
            Compression::None,
        )
    };
    let inputs = inputs(&[delta(0), delta(1)]);
    let base = MemoryVolume::new(states[0].clone());
    let expected = [vec![6; 10_000], vec![0; 20_000]].concat();
    same(&view(&inputs, &base), &expected, &[(0, 30_000), (9990, 20)]);
    // Nor does what an older delta says of it.
    let mut changes = lvmsync::change_list::ChangeListBuilder::default();
    changes.push(Extent::new(15_000, 5000).unwrap(), Kind::Data);
    let first = header(7, &states[0], &states[0], Compression::None);
    let first = lvmsync::delta::header::Header {
        target: Some(crate::model::state(0)),
        ..first
    };
    let none = Samples::default();
    let first = write_delta(
        &first,
        &none,
        &changes.finish(),
        &states[0],
        1 << 20,
        Compression::None,
    );
    let inputs = self::inputs(&[first, delta(0), delta(1)]);
    same(&view(&inputs, &base), &expected, &[(0, 30_000)]);
}
