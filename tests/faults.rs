//! I/O that fails: at the destination, in the undo, in the record, at every single operation of a run, once or for
//! ever, with and without a power cut after it. Never a false success, and then the same again finishes, and the undo
//! takes back, exactly.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "tests: what does not hold fails the test, and counts are told"
)]

mod damage_kit;

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use damage_kit::{MemoryUndo, Model, apply, apply_with};
use lvmsync::delta::reader::DeltaReader;
use lvmsync::engine::undo::{NoUndo, UndoPlace};
use lvmsync::error::ExitCode;
use lvmsync::extent::Extent;
use lvmsync::record::Record;
use lvmsync::record::admission::Policy;
use lvmsync::record::keeper::Keeper;
use lvmsync::record::store::{RecordFile, StateDir};
use lvmsync::record::witness::Watch;
use lvmsync::volume::faulty::{FaultyVolume, OpKind};
use lvmsync::volume::file::FileVolume;
use lvmsync::volume::memory::MemoryVolume;
use lvmsync::volume::{ReadAt, WriteAt};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// What is left of a run that failed.
struct Left {
    image: Vec<u8>,
    record: Option<Record>,
    undo: Option<Vec<u8>>,
    /// The undo has its name already.
    undo_is_whole: bool,
}

impl Left {
    /// From here both ways must lead to where they say.
    #[track_caller]
    fn leads_out(&self, model: &Model, with_undo: bool, context: &str) {
        let incomplete = self
            .record
            .as_ref()
            .and_then(|record| record.incomplete.as_ref());
        let Some(cut) = incomplete else {
            let holds = self
                .record
                .as_ref()
                .and_then(|record| record.holds.as_ref());
            let is_target = holds.is_some_and(|state| state.id == "lvm:target");
            let expected = if is_target {
                &model.target
            } else {
                &model.base
            };
            assert!(
                self.image == *expected,
                "{context}: not what the record says"
            );
            return;
        };
        assert_eq!(cut.undo.is_some(), with_undo);
        self.finishes(model, with_undo, context);
        if self.undo.is_some() {
            self.goes_back(model, context);
        } else if with_undo {
            // Given up before anything was overwritten.
            assert_eq!(cut.saved_offset, Some(0), "{context}: no way back");
            assert!(
                self.image.starts_with(&model.base),
                "{context}: no way back"
            );
        }
    }

    fn finishes(&self, model: &Model, with_undo: bool, context: &str) {
        let volume = MemoryVolume::new(self.image.clone());
        let mut keeper = Keeper::in_memory(self.record.clone());
        let undo = MemoryUndo::left(self.undo.clone());
        undo.set_whole(self.undo_is_whole);
        let place: &dyn UndoPlace = if with_undo { &undo } else { &NoUndo };
        apply(&model.delta[..], &volume, place, &mut keeper, true)
            .unwrap_or_else(|error| panic!("{context}: the same again: {}", error.chain()));
        assert!(volume.bytes() == model.target, "{context}: the same again");
        if with_undo {
            assert!(undo.is_whole());
            let bytes = undo.bytes(true).unwrap();
            apply(&bytes[..], &volume, &NoUndo, &mut keeper, true)
                .unwrap_or_else(|error| panic!("{context}: its undo: {}", error.chain()));
            assert!(
                volume.bytes() == model.base,
                "{context}: the undo of the same again"
            );
        }
    }

    /// The way back, also where it is cut itself, at every operation, and gone once more.
    fn goes_back(&self, model: &Model, context: &str) {
        let bytes = self.undo.as_ref().unwrap();
        for fail_at in 0.. {
            let disk = Disk::new(self.image.clone(), World::new(fail_at, false), 1);
            let mut keeper = Keeper::in_memory(self.record.clone());
            let first = apply(&bytes[..], &disk, &NoUndo, &mut keeper, true);
            let ended = first.is_ok();
            if let Err(error) = first {
                assert_eq!(
                    error.exit_code(),
                    ExitCode::Failed,
                    "{context}: {}",
                    error.chain()
                );
                let again = MemoryVolume::new(disk.inner.crash());
                apply(&bytes[..], &again, &NoUndo, &mut keeper, true).unwrap_or_else(|error| {
                    panic!(
                        "{context}: the undo again, cut at {fail_at}: {}",
                        error.chain()
                    )
                });
                assert!(
                    again.bytes() == model.base,
                    "{context}: the undo, cut at {fail_at}"
                );
            } else {
                assert!(
                    disk.inner.inner().bytes() == model.base,
                    "{context}: the undo"
                );
            }
            assert!(keeper.record().unwrap().incomplete.is_none());
            if ended {
                return;
            }
        }
    }
}

/// Counts operations, wherever they go, and lets one fail, or all from one on.
struct World {
    done: AtomicUsize,
    fail_at: usize,
    for_ever: bool,
}

impl World {
    fn new(fail_at: usize, for_ever: bool) -> Arc<Self> {
        Arc::new(Self {
            done: AtomicUsize::new(0),
            fail_at,
            for_ever,
        })
    }

    fn pass(&self) -> io::Result<()> {
        let number = self.done.fetch_add(1, Ordering::SeqCst);
        if number == self.fail_at || (self.for_ever && number > self.fail_at) {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        Ok(())
    }

    fn was_hit(&self) -> bool {
        self.done.load(Ordering::SeqCst) > self.fail_at
    }
}

/// A volume in a world.
struct Disk {
    inner: FaultyVolume<MemoryVolume>,
    world: Arc<World>,
}

impl Disk {
    fn new(bytes: Vec<u8>, world: Arc<World>, writes_at_once: usize) -> Self {
        let inner = FaultyVolume::new(MemoryVolume::new(bytes)).with_writes_at_once(writes_at_once);
        Self {
            inner: inner.lose_unsynced_writes().unwrap(),
            world,
        }
    }
}

impl ReadAt for Disk {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buffer, offset)
    }
}

impl WriteAt for Disk {
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        if let Err(error) = self.world.pass() {
            // A part of it arrived.
            self.inner
                .write_all_at(&buffer[..buffer.len() / 2], offset)?;
            return Err(error);
        }
        self.inner.write_all_at(buffer, offset)
    }

    fn zero_at(&self, extent: Extent) -> io::Result<()> {
        self.world.pass()?;
        self.inner.zero_at(extent)
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        self.world.pass()?;
        self.inner.set_size(size_bytes)
    }

    fn writes_at_once(&self) -> usize {
        self.inner.writes_at_once()
    }

    fn waits_for_device(&self, extent: Extent) -> bool {
        self.inner.waits_for_device(extent)
    }

    fn sync(&self) -> io::Result<()> {
        if let Err(error) = self.world.pass() {
            self.inner.forget_unsynced();
            return Err(error);
        }
        self.inner.sync()
    }
}

fn models() -> [Model; 2] {
    [
        Model::new(16, 512, 0, "target"),
        Model::new(9, 4096, 8192, "target"),
    ]
}

#[test]
fn every_operation_of_the_destination_fails_once() {
    let mut runs = 0;
    // The last as with a file: small frames are written at once, and large ones are waited for.
    for (model, with_undo, writes_at_once, waits_from) in models().iter().flat_map(|model| {
        [
            (model, false, 1, 0),
            (model, true, 1, 0),
            (model, false, 3, 0),
            (model, true, 3, 0),
            (model, true, 3, 8192),
        ]
    }) {
        for kind in [
            OpKind::Read,
            OpKind::Write,
            OpKind::Zero,
            OpKind::Sync,
            OpKind::SetSize,
        ] {
            for number in 0.. {
                let volume = FaultyVolume::new(MemoryVolume::new(model.base.clone()))
                    .fail_nth(kind, number, EIO)
                    .with_writes_at_once(writes_at_once)
                    .that_wait_from(waits_from)
                    .lose_unsynced_writes()
                    .unwrap();
                // That copy of the volume was a read, too, and not of this one.
                let mut keeper = Keeper::in_memory(None);
                let undo = MemoryUndo::default();
                let place: &dyn UndoPlace = if with_undo { &undo } else { &NoUndo };
                let result = apply(&model.delta[..], &volume, place, &mut keeper, true);
                let asked = volume.ops().iter().filter(|op| op.kind() == kind).count();
                if asked <= number {
                    assert!(result.is_ok() && volume.inner().bytes() == model.target);
                    break;
                }
                runs += 1;
                let error = result.err();
                let Some(error) = error else {
                    // Two samples are read at once, and one by one where that fails.
                    let is_right = volume.inner().bytes() == model.target;
                    assert!(
                        kind == OpKind::Read && is_right,
                        "{kind:?} {number} failed, and nobody was told"
                    );
                    continue;
                };
                assert_eq!(error.exit_code(), ExitCode::Failed, "{}", error.chain());
                for power_cut in [false, true] {
                    let left = Left {
                        image: if power_cut {
                            volume.crash()
                        } else {
                            volume.inner().bytes()
                        },
                        record: keeper.record().cloned(),
                        undo: undo.bytes(power_cut),
                        undo_is_whole: undo.is_whole(),
                    };
                    let context = format!(
                        "{kind:?} {number}, undo {with_undo}, {writes_at_once} at once, power cut {power_cut}"
                    );
                    left.leads_out(model, with_undo, &context);
                }
            }
        }
    }
    println!("faults: {runs} operations of the destination, one failed in each run");
    assert!(runs > 50, "{runs}");
}

/// In the order in which they come: writes and syncs of destination and undo.
#[test]
fn every_operation_of_destination_and_undo_is_the_last_one() {
    let mut runs = 0;
    let models = models();
    let ways = [(1, 0), (3, 0), (3, 8192)];
    for (model, (writes_at_once, waits_from)) in
        models.iter().flat_map(|model| ways.map(|way| (model, way)))
    {
        for for_ever in [true, false] {
            for fail_at in 0.. {
                let world = World::new(fail_at, for_ever);
                let mut disk = Disk::new(model.base.clone(), Arc::clone(&world), writes_at_once);
                disk.inner = disk.inner.that_wait_from(waits_from);
                let in_world = Arc::clone(&world);
                let undo = MemoryUndo::new(move || in_world.pass());
                let mut keeper = Keeper::in_memory(None);
                let result = apply(&model.delta[..], &disk, &undo, &mut keeper, true);
                if !world.was_hit() {
                    assert!(result.is_ok());
                    break;
                }
                runs += 1;
                let context =
                    format!("operation {fail_at}, for ever {for_ever}, {writes_at_once} at once");
                let Err(error) = result else {
                    panic!("{context} failed, and nobody was told");
                };
                assert_eq!(
                    error.exit_code(),
                    ExitCode::Failed,
                    "{context}: {}",
                    error.chain()
                );
                for power_cut in [false, true] {
                    let left = Left {
                        image: if power_cut {
                            disk.inner.crash()
                        } else {
                            disk.inner.inner().bytes()
                        },
                        record: keeper.record().cloned(),
                        undo: undo.bytes(power_cut),
                        undo_is_whole: undo.is_whole(),
                    };
                    let context = format!("{context}, power cut {power_cut}");
                    left.leads_out(model, true, &context);
                }
            }
        }
    }
    println!(
        "faults: {runs} operations of destination and undo, one or all that follow failed in each run"
    );
    assert!(runs > 60, "{runs}");
}

/// More than is written between two syncs: what a sync that failed was for is never called durable.
#[test]
fn a_sync_that_failed_makes_nothing_durable() {
    let model = Model::new(220, 1 << 20, 0, "target");
    for number in 0..3 {
        let volume = FaultyVolume::new(MemoryVolume::new(model.base.clone()))
            .fail_nth(OpKind::Sync, number, EIO)
            .with_writes_at_once(1 + 3 * (number % 2))
            .lose_unsynced_writes()
            .unwrap();
        let mut keeper = Keeper::in_memory(None);
        let result = apply(&model.delta[..], &volume, &NoUndo, &mut keeper, true);
        // Compressed and zero frames count little: this many syncs there are.
        if result.is_ok() {
            assert!(number > 1, "one sync alone");
            break;
        }
        let image = volume.crash();
        let cut = keeper.record().unwrap().incomplete.clone().unwrap();
        let durable = cut.durable_offset as usize;
        assert!(
            image[..durable] == model.target[..durable],
            "sync {number} failed: not durable up to {durable}"
        );
        let again = MemoryVolume::new(image);
        apply(&model.delta[..], &again, &NoUndo, &mut keeper, true).unwrap();
        assert!(
            again.bytes() == model.target,
            "sync {number} failed, finished later"
        );
    }
}

/// The directory of records breaks at every operation of the destination.
#[test]
fn records_cannot_be_written_from_every_moment_on() {
    let mut runs = 0;
    for (model, with_undo) in models()
        .iter()
        .flat_map(|model| [(model, false), (model, true)])
    {
        for at in 0.. {
            let directory = tempfile::tempdir().unwrap();
            let file = StateDir::choose(Some(directory.path())).file_of("x");
            let (there, away) = (
                directory.path().join("destinations"),
                directory.path().join("away"),
            );
            fs::create_dir(&there).unwrap();
            let world = World::new(usize::MAX, false);
            let broken = Breaking {
                disk: Disk::new(model.base.clone(), Arc::clone(&world), 1),
                at,
                there: there.clone(),
                away: away.clone(),
            };
            if at == 0 {
                broken.break_it();
            }
            let undo = MemoryUndo::default();
            let place: &dyn UndoPlace = if with_undo { &undo } else { &NoUndo };
            let mut keeper = open(&file).unwrap_or_else(|_| Keeper::in_memory(None));
            let result = if at == 0 {
                open(&file).and_then(|mut keeper| {
                    apply(&model.delta[..], &broken, place, &mut keeper, true)
                })
            } else {
                apply(&model.delta[..], &broken, place, &mut keeper, true)
            };
            if !away.exists() {
                assert!(result.is_ok());
                break;
            }
            runs += 1;
            fs::remove_file(&there).unwrap();
            fs::rename(&away, &there).unwrap();
            // The directory may have broken after the last word.
            let record = file.load().unwrap();
            let context = format!("broken at {at}, undo {with_undo}");
            if result.is_ok() {
                assert!(
                    record
                        .as_ref()
                        .is_some_and(|record| record.incomplete.is_none()),
                    "{context}"
                );
            }
            let left = Left {
                image: broken.disk.inner.inner().bytes(),
                record,
                undo: undo.bytes(false),
                undo_is_whole: undo.is_whole(),
            };
            left.leads_out(model, with_undo, &context);
        }
    }
    println!("faults: {runs} moments from which on no record could be written");
    assert!(runs > 30, "{runs}");
}

fn open(file: &RecordFile) -> lvmsync::error::Result<Keeper> {
    Keeper::open(
        file.clone(),
        "destination",
        "test",
        Policy::default(),
        None,
        &MemoryVolume::new(Vec::new()),
    )
}

/// Puts a file where the records' directory is, when the destination sees its operation number `at`.
struct Breaking {
    disk: Disk,
    at: usize,
    there: std::path::PathBuf,
    away: std::path::PathBuf,
}

impl Breaking {
    fn break_it(&self) {
        if !self.away.exists() {
            fs::rename(&self.there, &self.away).unwrap();
            fs::write(&self.there, "no directory").unwrap();
        }
    }

    fn pass(&self) {
        if self.disk.world.done.load(Ordering::SeqCst) + 1 == self.at {
            self.break_it();
        }
    }
}

impl ReadAt for Breaking {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_exact_at(buffer, offset)
    }
}

impl WriteAt for Breaking {
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.pass();
        self.disk.write_all_at(buffer, offset)
    }

    fn zero_at(&self, extent: Extent) -> io::Result<()> {
        self.pass();
        self.disk.zero_at(extent)
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        self.pass();
        self.disk.set_size(size_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.pass();
        self.disk.sync()
    }
}

/// The program, on real files.
struct Dir {
    directory: tempfile::TempDir,
    model: Model,
}

impl Dir {
    fn new() -> Self {
        let dir = Self {
            directory: tempfile::tempdir().unwrap(),
            model: Model::new(64, 16384, 0, "target"),
        };
        fs::write(dir.path("x.delta"), &dir.model.delta).unwrap();
        fs::write(dir.path("copy.img"), &dir.model.base).unwrap();
        fs::create_dir(dir.path("small")).unwrap();
        dir
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Runs lvmsync, none of whose files may be longer than so many blocks of 512 bytes.
    fn run(&self, line: &str, blocks: Option<u32>, state: &str) -> Output {
        let limit = blocks.map_or_else(String::new, |blocks| {
            // Shells count in 512 or 1024; POSIX says 512, and dash does as POSIX says.
            format!("trap '' XFSZ; ulimit -f {blocks}; ")
        });
        Command::new("sh")
            .args(["-c", &format!("{limit}exec \"$0\" {line}")])
            .arg(env!("CARGO_BIN_EXE_lvmsync"))
            .current_dir(self.directory.path())
            .env("LVMSYNC_STATE_DIR", self.path(state))
            .output()
            .unwrap()
    }

    #[track_caller]
    fn ends(&self, line: &str, blocks: Option<u32>, state: &str, code: i32) {
        let output = self.run(line, blocks, state);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{line}, {blocks:?}: {said}"
        );
    }

    #[track_caller]
    fn holds(&self, expected: &[u8]) {
        assert!(
            fs::read(self.path("copy.img")).unwrap() == expected,
            "wrong content"
        );
    }
}

#[test]
fn files_that_may_not_grow_end_a_run_with_1_and_the_next_one_finishes() {
    let mut runs = 0;
    // From a record that does not fit to a destination that nearly does.
    for blocks in [0, 1, 3, 4, 16, 64, 300, 700, 1000, 1500, 2000] {
        for goes_back in [false, true] {
            let dir = Dir::new();
            let line = "apply x.delta copy.img --undo back";
            dir.ends(line, Some(blocks), "state", 1);
            runs += 1;
            let begun = fs::read(dir.path("copy.img")).unwrap() != dir.model.base;
            if goes_back && begun {
                dir.ends("apply back copy.img", None, "state", 0);
                dir.holds(&dir.model.base);
                assert!(!dir.path("back.partial").exists());
            }
            dir.ends(line, None, "state", 0);
            dir.holds(&dir.model.target);
            dir.ends("apply back copy.img", None, "state", 0);
            dir.holds(&dir.model.base);
        }
    }
    println!("faults: {runs} runs whose files could not grow");
}

#[test]
fn full_filesystems_end_a_run_with_1_and_with_more_room_it_finishes() {
    if !rustix::process::geteuid().is_root() {
        println!("faults: SKIPPED: only root can mount a small filesystem");
        return;
    }
    let mut runs = 0;
    // For the record, for the undo.
    for (line, state) in [
        ("apply x.delta copy.img", "small"),
        ("apply x.delta copy.img --undo back", "small"),
        ("apply x.delta copy.img --undo small/back", "state"),
        ("apply x.delta copy.img --undo small/back", "small"),
    ] {
        for free_kib in [0, 4, 8, 16, 64, 128] {
            let dir = Dir::new();
            let place = dir.path("small");
            let Some(small) = Mounted::new(&place) else {
                println!("faults: SKIPPED: nothing can be mounted here");
                return;
            };
            // Full but for so much, and with directories that need no more room.
            fs::create_dir(dir.path("small/destinations")).unwrap();
            fs::write(dir.path("small/filler"), vec![1; (256 - free_kib) << 10]).unwrap();
            let output = dir.run(line, None, state);
            let code = output.status.code();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                matches!(code, Some(0 | 1)),
                "{line}, {free_kib} KiB: {said}"
            );
            if code == Some(0) {
                dir.holds(&dir.model.target);
            } else {
                runs += 1;
                let shown = dir.run("state show copy.img --json", None, state);
                let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
                let is_base = fs::read(dir.path("copy.img")).unwrap() == dir.model.base;
                assert!(
                    is_base || shown.contains("\"incomplete\""),
                    "{line}: {shown}"
                );
            }
            fs::remove_file(dir.path("small/filler")).unwrap();
            small.resize("8m");
            dir.ends(line, None, state, 0);
            dir.holds(&dir.model.target);
            if let Some((_, undo)) = line.split_once("--undo ") {
                dir.ends(&format!("apply {undo} copy.img"), None, state, 0);
                dir.holds(&dir.model.base);
            }
        }
    }
    println!("faults: {runs} runs on filesystems that were full");
    assert!(runs > 4, "{runs}");
}

/// A filesystem of 256 KiB in memory; root alone can have it.
struct Mounted<'p>(&'p Path);

impl<'p> Mounted<'p> {
    fn new(path: &'p Path) -> Option<Self> {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "lvmsync-test"])
            .arg(path)
            .status();
        status
            .is_ok_and(|status| status.success())
            .then_some(Self(path))
    }

    fn resize(&self, size: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,size={size}")])
            .arg(self.0)
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

/// A file that is half-written by an increment, and its record.
struct Cut {
    directory: tempfile::TempDir,
    model: Model,
    undo: MemoryUndo,
}

impl Cut {
    fn new(with_undo: bool, others_write: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (model, undo) = (Model::new(600, 4096, 0, "target"), MemoryUndo::default());
        fs::write(directory.path().join("volume"), &model.base).unwrap();
        let cut = Self {
            directory,
            model,
            undo,
        };
        let volume = FaultyVolume::new(cut.volume()).fail_nth(OpKind::Write, 3, ENOSPC);
        let place: &dyn UndoPlace = if with_undo { &cut.undo } else { &NoUndo };
        let mut keeper = cut.keeper(false);
        apply(&cut.model.delta[..], &volume, place, &mut keeper, true).unwrap_err();
        if others_write {
            thread::sleep(Duration::from_millis(20));
            let place = cut.place_without_sample();
            cut.volume().write_all_at(&[0xee; 4096], place).unwrap();
        }
        cut
    }

    fn volume(&self) -> FileVolume {
        let path = self.directory.path().join("volume");
        let file = fs::File::options().read(true).write(true).open(path);
        FileVolume::new(file.unwrap()).unwrap()
    }

    fn keeper(&self, force: bool) -> Keeper {
        let volume = self.volume();
        let watch = Some(Watch::File(volume.try_clone().unwrap()));
        let file = StateDir::choose(Some(self.directory.path())).file_of("file:volume");
        let policy = Policy {
            force,
            ..Policy::default()
        };
        Keeper::open(file, "volume", "host", policy, watch, &volume).unwrap()
    }

    /// A block that the delta leaves alone, and of which it has no sample.
    fn place_without_sample(&self) -> u64 {
        let delta = DeltaReader::new(&self.model.delta[..]).unwrap();
        let is_free = |place: &u64| {
            let image = MemoryVolume::new(self.model.base.clone());
            image.write_all_at(&[0xee; 4096], *place).unwrap();
            delta.samples().first_mismatch(&image).unwrap().is_none()
        };
        (0..600)
            .step_by(2)
            .map(|block| block * 4096)
            .find(is_free)
            .unwrap()
    }

    /// What the record says that it holds.
    fn holds(&self) -> Option<String> {
        let keeper = self.keeper(false);
        let record = keeper.record().unwrap();
        assert!(record.incomplete.is_none());
        record.holds.as_ref().map(|state| state.id.clone())
    }
}

#[test]
fn what_others_wrote_since_a_run_was_cut_is_part_of_no_state() {
    let cut = Cut::new(false, false);
    let mut keeper = cut.keeper(false);
    apply(
        &cut.model.delta[..],
        &cut.volume(),
        &NoUndo,
        &mut keeper,
        true,
    )
    .unwrap();
    assert_eq!(cut.holds().as_deref(), Some("lvm:target"));

    let cut = Cut::new(false, true);
    let before = fs::read(cut.directory.path().join("volume")).unwrap();
    let mut keeper = cut.keeper(false);
    let refused = apply(
        &cut.model.delta[..],
        &cut.volume(),
        &NoUndo,
        &mut keeper,
        true,
    );
    let refused = refused.unwrap_err();
    assert_eq!(
        refused.exit_code(),
        ExitCode::Refused,
        "{}",
        refused.chain()
    );
    assert!(
        refused.chain().contains("since the run was cut"),
        "{}",
        refused.chain()
    );
    let after = fs::read(cut.directory.path().join("volume")).unwrap();
    assert!(before == after, "nothing was written");
    let mut keeper = cut.keeper(true);
    apply_with(
        &cut.model.delta[..],
        &cut.volume(),
        &NoUndo,
        &mut keeper,
        (true, true),
    )
    .unwrap();
    assert_eq!(cut.holds(), None, "forced");

    for others_write in [false, true] {
        let cut = Cut::new(true, others_write);
        let undo = cut.undo.bytes(false).unwrap();
        let mut keeper = cut.keeper(false);
        apply(&undo[..], &cut.volume(), &NoUndo, &mut keeper, true).unwrap();
        let held = (!others_write).then_some("lvm:base");
        assert_eq!(cut.holds().as_deref(), held, "taken back");
        let image = fs::read(cut.directory.path().join("volume")).unwrap();
        assert_eq!(image == cut.model.base, !others_write);
    }
}
