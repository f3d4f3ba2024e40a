//! An increment between two classic snapshots that was cut, or forced, and comes again with a longer list, as its origin was
//! written to meanwhile: an undo that is admitted leads back to every byte, and what is on record as the target is it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "tests: what does not hold fails the test, and counts are told"
)]

mod damage_kit;

use std::sync::atomic::{AtomicUsize, Ordering};

use damage_kit::{MemoryUndo, apply, apply_with, delta_of, noise};
use lvmsync::change_list::ChangeList;
use lvmsync::delta::header::State;
use lvmsync::delta::samples::Samples;
use lvmsync::engine::undo::{NoUndo, UndoPlace};
use lvmsync::extent::{Change, Extent, Kind};
use lvmsync::record::Record;
use lvmsync::record::keeper::Keeper;
use lvmsync::volume::faulty::{FaultyVolume, OpKind};
use lvmsync::volume::memory::MemoryVolume;
use proptest::prelude::*;

const BLOCK: usize = 4096;
const BLOCKS: usize = 24;

/// What the record says of the destination before.
#[derive(Clone, Copy, Debug)]
enum Known {
    Nothing,
    Base,
    AnotherState,
}

#[derive(Clone, Debug)]
struct Case {
    /// Of each block: in the first list, or in the second alone, or in none.
    lists: Vec<u8>,
    /// Blocks in which the destination is not the base.
    differs: Vec<bool>,
    known: Known,
    samples: bool,
    force: [bool; 2],
    /// The write of the first run that fails.
    cut_at: usize,
    second_keeps_undo: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let known = prop_oneof![
        Just(Known::Nothing),
        Just(Known::Base),
        Just(Known::AnotherState)
    ];
    // As often the base as not.
    let differs = prop_oneof![
        Just(vec![false; BLOCKS]),
        prop::collection::vec(prop::bool::weighted(0.06), BLOCKS)
    ];
    (
        prop::collection::vec(0..3_u8, BLOCKS),
        differs,
        known,
        any::<bool>(),
        any::<[bool; 2]>(),
        0..12_usize,
        any::<bool>(),
    )
        .prop_map(
            |(lists, differs, known, samples, force, cut_at, second_keeps_undo)| Case {
                lists,
                differs,
                known,
                samples,
                force,
                cut_at,
                second_keeps_undo,
            },
        )
}

/// What happened, so that nobody believes in a test in which nothing does.
#[derive(Default)]
struct Counts {
    cut: AtomicUsize,
    went_on: AtomicUsize,
    refused: AtomicUsize,
    taken_back: AtomicUsize,
}

impl Case {
    fn blocks(&self, is_in: impl Fn(u8) -> bool) -> ChangeList {
        let change = |block: usize| Change {
            extent: Extent::new((block * BLOCK) as u64, BLOCK as u64).unwrap(),
            kind: Kind::Data,
        };
        let listed = (0..BLOCKS).filter(|block| is_in(self.lists[*block]));
        listed.map(change).collect()
    }

    fn run(&self, counts: &Counts) {
        let base = noise(BLOCKS * BLOCK, "base");
        let (mut target, mut original) = (base.clone(), base.clone());
        for block in 0..BLOCKS {
            let range = block * BLOCK..(block + 1) * BLOCK;
            if self.lists[block] == 1 {
                target[range.clone()].copy_from_slice(&noise(BLOCK, &format!("new {block}")));
            }
            if self.differs[block] {
                original[range].copy_from_slice(&noise(BLOCK, &format!("other {block}")));
            }
        }
        let delta = |changes: &ChangeList| {
            let samples = match self.samples {
                true => Samples::take(&MemoryVolume::new(base.clone()), changes).unwrap(),
                false => Samples::default(),
            };
            delta_of(&target, base.len(), "target", changes, &samples)
        };
        let first = delta(&self.blocks(|list| list == 1));
        let second = delta(&self.blocks(|list| list >= 1));
        let holding = |id: &str| Record {
            holds: Some(State {
                id: id.to_owned(),
                name: String::new(),
            }),
            is_proven: true,
            ..Record::default()
        };
        let record = match self.known {
            Known::Nothing => None,
            Known::Base => Some(holding("lvm:base")),
            Known::AnotherState => Some(holding("lvm:another")),
        };

        let undo = MemoryUndo::default();
        let mut keeper = Keeper::in_memory(record);
        let volume = FaultyVolume::new(MemoryVolume::new(original.clone()));
        let volume = volume.fail_nth(OpKind::Write, self.cut_at, 5);
        let _ = apply_with(
            &first[..],
            &volume,
            &undo,
            &mut keeper,
            (false, self.force[0]),
        );
        let is_cut = keeper
            .record()
            .is_some_and(|record| record.incomplete.is_some());
        let image = volume.inner().bytes();
        let volume = MemoryVolume::new(image);

        let mut keeper = Keeper::in_memory(keeper.record().cloned());
        let place: &dyn UndoPlace = match self.second_keeps_undo {
            true => &undo,
            false => &NoUndo,
        };
        // A second undo of its own replaces the first one: that may not be the way back to what was before both.
        let before_second = volume.bytes();
        let had_undo = undo.bytes(false);
        let went_on = apply_with(
            &second[..],
            &volume,
            place,
            &mut keeper,
            (false, self.force[1]),
        );
        counts.cut.fetch_add(usize::from(is_cut), Ordering::Relaxed);
        match &went_on {
            Ok(_) => counts.went_on.fetch_add(1, Ordering::Relaxed),
            Err(_) => {
                assert!(volume.bytes() == before_second, "refused, and it wrote");
                counts.refused.fetch_add(1, Ordering::Relaxed)
            }
        };
        let holds = |keeper: &Keeper, id: &str| {
            let record = keeper.record().filter(|record| record.incomplete.is_none());
            record
                .and_then(|record| record.holds.as_ref())
                .is_some_and(|state| state.id == id)
        };
        if holds(&keeper, "lvm:target") && original == base {
            assert!(volume.bytes() == target, "on record as the target");
        }

        for bytes in [had_undo, undo.bytes(false)].into_iter().flatten() {
            let again = MemoryVolume::new(volume.bytes());
            let mut keeper = Keeper::in_memory(keeper.record().cloned());
            if apply(&bytes[..], &again, &NoUndo, &mut keeper, false).is_err() {
                continue;
            }
            counts.taken_back.fetch_add(1, Ordering::Relaxed);
            let found = again.bytes();
            // Of what the second run alone has overwritten its own undo leads back to what was before it.
            let is_before_second = found == before_second && !is_cut;
            // Where the record said base, somebody had written there, and nobody was told, it is the base that it gets back.
            let was_told = self.samples && self.force.contains(&true);
            let believed = matches!(self.known, Known::Base) && !was_told;
            let is_back = |block: usize| {
                let range = block * BLOCK..(block + 1) * BLOCK;
                let is_base = found[range.clone()] == base[range.clone()];
                (believed && is_base) || found[range.clone()] == original[range]
            };
            let is_back = (0..BLOCKS).all(is_back);
            assert!(is_back || is_before_second, "taken back");
            if holds(&keeper, "lvm:base") {
                assert!(is_back, "on record as the base");
            }
        }
    }
}

#[test]
fn a_longer_list_never_costs_the_way_back() {
    let counts = Counts::default();
    let cases_to_run = if damage_kit::long() { 20_000 } else { 1_500 };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: cases_to_run,
        ..ProptestConfig::default()
    });
    runner
        .run(&cases(), |case| {
            case.run(&counts);
            Ok(())
        })
        .unwrap();
    let read = |count: &AtomicUsize| count.load(Ordering::Relaxed) as u32;
    println!(
        "{cases_to_run} cases: {} cut, {} went on or anew, {} refused, {} taken back",
        read(&counts.cut),
        read(&counts.went_on),
        read(&counts.refused),
        read(&counts.taken_back)
    );
    for count in [
        &counts.cut,
        &counts.went_on,
        &counts.refused,
        &counts.taken_back,
    ] {
        assert!(read(count) > cases_to_run / 10);
    }
}
