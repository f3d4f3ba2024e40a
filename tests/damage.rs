//! Damaged deltas, records and undos: every bit, every cut, and random mutations of whole records. Never applied as
//! good, never a panic, never much memory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "tests: what does not hold fails the test, and counts are told"
)]

#[path = "damage_kit/counting.rs"]
mod counting;
mod damage_kit;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use counting::peak_of;
use damage_kit::{MemoryUndo, Model, apply, long, noise};
use lvmsync::delta::MAGIC_LINE;
use lvmsync::delta::record::RECORD_HEADER_BYTES;
use lvmsync::delta::resume::SoundPart;
use lvmsync::engine::undo::NoUndo;
use lvmsync::error::ExitCode;
use lvmsync::record::keeper::Keeper;
use lvmsync::record::store::StateDir;
use lvmsync::record::{Incomplete, Record};
use lvmsync::volume::faulty::{FaultyVolume, OpKind};
use lvmsync::volume::memory::MemoryVolume;

/// As README says of memory.
const MEMORY_BYTES: usize = 64 << 20;

/// Applies `delta` to the base of `model`, from where `record` says it was cut. `true`: it was applied, and the
/// volume is what `expected` says.
#[track_caller]
fn is_applied(
    delta: &[u8],
    volume: &[u8],
    record: Option<&Record>,
    expected: &[u8],
    frames: usize,
    what: &str,
) -> bool {
    let volume = MemoryVolume::new(volume.to_vec());
    let before = volume.bytes();
    let mut keeper = Keeper::in_memory(record.cloned());
    let run = || apply(delta, &volume, &NoUndo, &mut keeper, false);
    let (outcome, peak) = peak_of(|| catch_unwind(AssertUnwindSafe(run)));
    let Ok(result) = outcome else {
        panic!("{what}: panicked");
    };
    assert!(
        peak < MEMORY_BYTES + 16 * frames,
        "{what}: took {peak} bytes of memory"
    );
    let found = volume.bytes();
    match result {
        Ok(_) => {
            assert!(found == expected, "{what}: applied as good, and it is not");
            true
        }
        Err(error) => {
            let code = error.exit_code();
            assert!(
                matches!(
                    code,
                    ExitCode::Damaged | ExitCode::Refused | ExitCode::Failed
                ),
                "{what}: {code:?}"
            );
            let incomplete = keeper
                .record()
                .is_some_and(|record| record.incomplete.is_some());
            assert!(
                found == before || incomplete,
                "{what}: written, and not on record"
            );
            false
        }
    }
}

/// With every single bit flipped, and cut at every byte.
fn every_flip_and_cut(bytes: &[u8], step: usize, mut each: impl FnMut(&[u8], &str)) -> usize {
    let mut damaged = bytes.to_vec();
    let mut runs = 0;
    for bit in (0..bytes.len() * 8).step_by(step) {
        damaged[bit / 8] ^= 1 << (bit % 8);
        each(
            &damaged,
            &format!("bit {} of byte {} flipped", bit % 8, bit / 8),
        );
        damaged[bit / 8] ^= 1 << (bit % 8);
        runs += 1;
    }
    for end in (0..bytes.len()).step_by(step) {
        each(&bytes[..end], &format!("cut at byte {end}"));
        runs += 1;
    }
    runs
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_delta_is_seen() {
    let model = Model::new(24, 512, 0, "target");
    let apply_it = |delta: &[u8], what: &str| {
        is_applied(delta, &model.base, None, &model.target, model.frames, what)
    };
    assert!(apply_it(&model.delta, "sound"));
    let runs = every_flip_and_cut(&model.delta, 1, |delta, what| {
        assert!(!apply_it(delta, what), "{what}: taken for good");
    });
    println!(
        "damage: {runs} damaged deltas of {} bytes",
        model.delta.len()
    );
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % limit.max(1) as u64) as usize
    }
}

fn seed() -> u64 {
    let asked = std::env::var("PROPTEST_RNG_SEED").ok();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = asked.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(now().subsec_nanos()));
    println!("damage: PROPTEST_RNG_SEED={seed}");
    seed
}

/// Records with their payloads; what is behind the last whole one is dropped.
fn records(delta: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let mut rest = &delta[MAGIC_LINE.len()..];
    while rest.len() >= RECORD_HEADER_BYTES {
        let stored = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
        let (record, behind) = rest.split_at((RECORD_HEADER_BYTES + stored).min(rest.len()));
        records.push(record.to_vec());
        rest = behind;
    }
    records
}

/// Right checksums, as if the writer had meant it. The digest in the trailer stays what it was.
fn with_right_checksums(record: &mut [u8]) {
    if record.len() < RECORD_HEADER_BYTES {
        return;
    }
    let (header, payload) = record.split_at_mut(RECORD_HEADER_BYTES);
    if !payload.is_empty() {
        header[24..28].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    }
    let crc = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
}

fn mutate(delta: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut all = records(delta);
    for _ in 0..=random.below(3) {
        let (one, two) = (random.below(all.len()), random.below(all.len()));
        match random.below(10) {
            0 => all.swap(one, two),
            1 => {
                let copy = all[one].clone();
                all.insert(two, copy);
            }
            2 if all.len() > 1 => {
                all.remove(one);
            }
            3 => {
                let strange = records(other);
                let from = random.below(strange.len());
                all[one].clone_from(&strange[from]);
            }
            4 => {
                let strange = records(other);
                all.truncate(one);
                all.extend_from_slice(&strange[random.below(strange.len())..]);
            }
            // A field of the record header, with a right checksum.
            5 | 6 => {
                let record = &mut all[one];
                let (at, width) = [(0, 1), (1, 1), (4, 4), (8, 8), (16, 8)][random.below(5)];
                let value = match random.below(4) {
                    0 => u64::MAX,
                    1 => 1 << random.below(64),
                    _ => random.below(1 << 21) as u64,
                };
                if record.len() >= RECORD_HEADER_BYTES {
                    record[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                    let crc = crc32c::crc32c(&record[..28]);
                    record[28..32].copy_from_slice(&crc.to_le_bytes());
                }
            }
            // A byte, with right checksums or without.
            7 | 8 => {
                let record = &mut all[one];
                if record.is_empty() {
                    continue;
                }
                let at = random.below(record.len());
                record[at] = random.below(256) as u8;
                if random.below(2) == 0 {
                    with_right_checksums(record);
                }
            }
            _ => {
                let record = &mut all[one];
                let end = random.below(record.len() + 1);
                record.truncate(end);
            }
        }
        if all.is_empty() {
            break;
        }
    }
    [MAGIC_LINE.to_vec(), all.concat()].concat()
}

#[test]
fn random_mutations_of_a_delta_are_seen() {
    let mut random = Random(seed() | 1);
    let model = Model::new(96, 2048, 0, "target");
    let other = Model::new(96, 2048, 0, "another target");
    let (runs, mut same) = (if long() { 100_000 } else { 3000 }, 0);
    for run in 0..runs {
        let damaged = mutate(&model.delta, &other.delta, &mut random);
        // Some change nothing: two of the same swapped, a byte that was so before.
        let is_same = damaged == model.delta;
        let what = format!("mutation {run}");
        // The other's records alone are the other's delta: that one is as good as the first.
        let expected = if damaged == other.delta {
            &other.target
        } else {
            &model.target
        };
        let applied = is_applied(&damaged, &model.base, None, expected, model.frames, &what);
        assert!(
            !applied || is_same || damaged == other.delta,
            "{what}: taken for good"
        );
        same += u32::from(applied);
    }
    println!("damage: {runs} random mutations, {same} of which changed nothing");
    assert!(same < runs / 10);
}

fn record() -> Record {
    Record {
        identity: "x".to_owned(),
        name: "vg/copy".to_owned(),
        since: 1_700_000_000,
        incomplete: Some(Incomplete {
            durable_offset: 64 << 20,
            saved_offset: Some(80 << 20),
            undo: Some("/undo/monday".to_owned()),
            ..Incomplete::default()
        }),
        ..Record::default()
    }
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_record_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = StateDir::choose(Some(directory.path())).file_of("x");
    file.save(&record()).unwrap();
    let sound = fs::read(file.path()).unwrap();
    let (mut refused, mut same) = (0, 0);
    let runs = every_flip_and_cut(&sound, 1, |bytes, what| {
        fs::write(file.path(), bytes).unwrap();
        match file.load() {
            Err(error) => {
                assert_eq!(error.exit_code(), ExitCode::Refused, "{what}");
                refused += 1;
            }
            // One blank for another.
            Ok(Some(found)) => {
                assert_eq!(found, record(), "{what}");
                same += 1;
            }
            Ok(None) => panic!("{what}: no record"),
        }
    });
    println!("damage: {runs} damaged records, {refused} refused, {same} that say the same");
    assert!(same < 10, "{same}");
}

/// An undo as a run leaves it that is cut after `writes` writes. `killed`: without an end; and nothing was said to be
/// durable, though much was overwritten.
fn cut_run(model: &Model, writes: usize, killed: bool) -> (Vec<u8>, Vec<u8>, Record) {
    let mut volume =
        FaultyVolume::new(MemoryVolume::new(model.base.clone())).fail_nth(OpKind::Write, writes, 5);
    if killed {
        volume = volume.fail_nth(OpKind::Sync, 0, 5);
    }
    let undo = MemoryUndo::default();
    let mut keeper = Keeper::in_memory(None);
    apply(&model.delta[..], &volume, &undo, &mut keeper, false).unwrap_err();
    let mut bytes = undo.bytes(false).unwrap();
    if killed {
        let sound = SoundPart::of(&bytes[..]).unwrap().delta_bytes as usize;
        bytes.truncate(sound);
    }
    (
        volume.inner().bytes(),
        bytes,
        keeper.record().unwrap().clone(),
    )
}

#[test]
fn a_damaged_undo_never_takes_back_to_something_else() {
    let model = Model::new(24, 512, 0, "target");
    let (mut runs, mut good) = (0, 0);
    for (writes, killed) in [(0, true), (1, true), (5, true), (5, false), (7, true)] {
        let (image, undo, record) = cut_run(&model, writes, killed);
        let back = |undo: &[u8], what: &str| {
            let what = format!("cut after {writes} writes, killed {killed}: {what}");
            is_applied(
                undo,
                &image,
                Some(&record),
                &model.base,
                model.frames,
                &what,
            )
        };
        assert!(back(&undo, "sound"));
        runs += every_flip_and_cut(&undo, if long() { 1 } else { 29 }, |undo, what| {
            good += u32::from(back(undo, what));
        });
    }
    println!(
        "damage: {runs} damaged undos of runs that were cut, {good} of which still took back all"
    );
}

#[test]
fn a_run_does_not_go_on_with_a_damaged_undo() {
    let model = Model::new(24, 512, 0, "target");
    let (mut runs, mut refused) = (0, 0);
    for (writes, killed) in [(5, true), (5, false)] {
        let (image, undo, record) = cut_run(&model, writes, killed);
        runs += every_flip_and_cut(&undo, if long() { 1 } else { 29 }, |damaged, what| {
            let volume = MemoryVolume::new(image.clone());
            let place = MemoryUndo::left(Some(damaged.to_vec()));
            let mut keeper = Keeper::in_memory(Some(record.clone()));
            if let Err(error) = apply(&model.delta[..], &volume, &place, &mut keeper, false) {
                assert_eq!(
                    error.exit_code(),
                    ExitCode::Refused,
                    "{what}: {}",
                    error.chain()
                );
                assert!(volume.bytes() == image, "{what}: refused, and written");
                refused += 1;
                return;
            }
            assert!(volume.bytes() == model.target, "{what}");
            let whole = place.bytes(true).unwrap();
            let record = keeper.record().unwrap();
            let undone = is_applied(
                &whole,
                &model.target,
                Some(record),
                &model.base,
                model.frames,
                what,
            );
            assert!(undone, "{what}: an undo that is called whole");
        });
    }
    println!("damage: {runs} runs that found their undo damaged, {refused} refused");
    assert!(refused > runs / 3);
}

/// The program, on real files.
struct Dir(tempfile::TempDir);

impl Dir {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lvmsync"))
            .args(line.split(' '))
            .current_dir(self.0.path())
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .output()
            .unwrap()
    }
}

#[test]
fn the_program_refuses_damage_with_its_own_exit_codes() {
    let mut random = Random(seed() | 1);
    let model = Model::new(24, 512, 0, "target");
    let (mut deltas, mut records) = (0, 0);
    for _ in 0..if long() { 1000 } else { 30 } {
        let dir = Dir(tempfile::tempdir().unwrap());
        fs::write(dir.path("copy.img"), &model.base).unwrap();
        let mut damaged = model.delta.clone();
        if random.below(3) == 0 {
            damaged.truncate(random.below(damaged.len()));
        } else {
            let at = random.below(damaged.len());
            damaged[at] ^= 1 << random.below(8);
        }
        fs::write(dir.path("x.delta"), &damaged).unwrap();
        let output = dir.run("apply x.delta copy.img --undo back");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            matches!(output.status.code(), Some(5 | 6)),
            "{:?}: {said}",
            output.status
        );
        deltas += 1;
        // What was written of it goes back.
        if fs::read(dir.path("copy.img")).unwrap() != model.base {
            let output = dir.run("apply back copy.img");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "{said}");
            assert!(fs::read(dir.path("copy.img")).unwrap() == model.base);
        }
        fs::write(dir.path("x.delta"), &model.delta).unwrap();
        let output = dir.run("apply x.delta copy.img");
        assert_eq!(output.status.code(), Some(0), "{:?}", output);
        // Now the record.
        let record = fs::read_dir(dir.path("state/destinations"))
            .unwrap()
            .next()
            .unwrap();
        let record = record.unwrap().path();
        let mut bytes = fs::read(&record).unwrap();
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(7);
        fs::write(&record, bytes).unwrap();
        let output = dir.run("apply x.delta copy.img");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let blank = output.status.code() == Some(0) && said.contains("already");
        assert!(
            blank || output.status.code() == Some(5),
            "{:?}: {said}",
            output.status
        );
        assert!(fs::read(dir.path("copy.img")).unwrap() == model.target);
        records += 1;
    }
    println!("damage: the program was given {deltas} damaged deltas and {records} damaged records");
    assert_ne!(noise(8, "a"), noise(8, "b"));
}
