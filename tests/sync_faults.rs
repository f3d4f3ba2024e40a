//! I/O that fails in the middle of a sync, here, pushed and pulled: every operation of the destination once, disks that are
//! full, a source that cannot be read. Never a false success; the record says what is there; and the same again completes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "tests: what does not hold fails the test, and counts are told"
)]

mod damage_kit;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;

use damage_kit::{MemoryUndo, noise};
use lvmsync::cancel::Cancel;
use lvmsync::change_list::ChangeList;
use lvmsync::commands::Caller;
use lvmsync::delta::codec::Compression;
use lvmsync::delta::header::{Header, State};
use lvmsync::delta::samples::Samples;
use lvmsync::engine::FrameSink;
use lvmsync::engine::compare::{Answering, Failed, Settled, Side, compare_in_order};
use lvmsync::engine::deliver::DeltaSink;
use lvmsync::engine::effort::Effort;
use lvmsync::engine::pump::{PumpOptions, pump};
use lvmsync::engine::receive::Receiving;
use lvmsync::engine::remembering::Remembering;
use lvmsync::engine::target::{ReceiveOptions, Target};
use lvmsync::engine::undo::{NoUndo, UndoPlace};
use lvmsync::error::{Error, ExitCode, Result};
use lvmsync::extent::Extent;
use lvmsync::monitor::Silent;
use lvmsync::record::admission::Policy;
use lvmsync::record::keeper::Keeper;
use lvmsync::record::store::StateDir;
use lvmsync::record::witness::Watch;
use lvmsync::session::client::Client;
use lvmsync::session::message::{Done, OPERATION_SYNC, Open, Ready};
use lvmsync::session::server::Server;
use lvmsync::undo_file::UndoFiles;
use lvmsync::volume::faulty::{FaultyVolume, OpKind};
use lvmsync::volume::file::FileVolume;
use lvmsync::volume::memory::MemoryVolume;
use lvmsync::volume::{ReadAt, WriteAt};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// What is to be copied, and onto what: blocks that differ, blocks that become zero, a longer end.
fn pair() -> (Vec<u8>, Vec<u8>) {
    let source = noise(5 << 20, "source");
    let mut destination = source.clone();
    let mut source = source;
    for number in [3, 4, 300, 700, 1100] {
        let range = number * 4096..(number + 1) * 4096;
        destination[range].copy_from_slice(&noise(4096, &number.to_string()));
    }
    source[2 << 20..(2 << 20) + 65_536].fill(0);
    destination.truncate((5 << 20) - 8192);
    (source, destination)
}

fn header(size: usize) -> Header {
    let text = format!(r#"{{"volume_size": {size}, "source": "full"}}"#);
    let mut header = Header::decode(text.as_bytes(), 0).unwrap();
    header.target = Some(State {
        id: "lvm:source".to_owned(),
        name: String::new(),
    });
    header.list = Some(ChangeList::whole(size as u64).digest());
    header.by_comparing()
}

/// One sync over a session in memory: the end that compares and sends, and the end that answers and writes. How each ended.
fn sync(
    source: &(dyn ReadAt + Sync),
    destination: &(dyn WriteAt + Sync),
    undo: &(dyn UndoPlace + Sync),
    keeper: &mut Keeper,
) -> (Result<()>, Result<()>) {
    let (from_client, to_server) = std::io::pipe().unwrap();
    let (from_server, to_client) = std::io::pipe().unwrap();
    thread::scope(|scope| {
        let sending = scope.spawn(move || send(source, from_server, to_server));
        let received = receive(destination, undo, keeper, from_client, to_client);
        (sending.join().unwrap(), received)
    })
}

fn send(
    source: &(dyn ReadAt + Sync),
    input: std::io::PipeReader,
    output: std::io::PipeWriter,
) -> Result<()> {
    let there = |error: lvmsync::session::SessionError| error.into_error("host");
    let (cancel, size) = (Cancel::new(), source.size_bytes());
    let client = Client::connect(input, output, &[], Arc::new(())).map_err(there)?;
    let open = Open {
        operation: OPERATION_SYNC.to_owned(),
        destination: "destination".to_owned(),
        ..Open::default()
    };
    let (ready, mut out) = client.open(open).map_err(there)?;
    let side = Side {
        volume: source,
        name: "source",
    };
    let mut asker = out.asker().map_err(there)?;
    let effort = Effort::new(Compression::None);
    let options = PumpOptions {
        effort: &effort,
        cancel: &cancel,
        monitor: &Silent,
        unlike: None,
    };
    let sent = (|| {
        let mut sink = DeltaSink::new(
            &mut out,
            &header(size as usize),
            &Samples::default(),
            "host",
        )?;
        sink.position(0)?;
        let compared = ChangeList::whole(size.min(ready.size_bytes));
        let near = Remembering::of(side);
        let mut tell =
            |settled: Settled| pump(near.side(), &settled.differing, &mut sink, &options);
        compare_in_order(&compared, &near, &mut asker, &cancel, &Silent, &mut tell).map_err(
            |failed| match failed {
                Failed::Here(error) => error,
                Failed::There(error) => error.into_error("host"),
            },
        )?;
        let beyond = ChangeList::whole(size).from_offset(ready.size_bytes);
        pump(side, &beyond, &mut sink, &options)?;
        sink.finish().map(|_| ())
    })();
    match sent {
        Ok(()) => out.finish().map(|_| ()).map_err(there),
        Err(error) => Err(out.abort(&error.to_string()).map_or(error, there)),
    }
}

fn receive(
    destination: &(dyn WriteAt + Sync),
    undo: &(dyn UndoPlace + Sync),
    keeper: &mut Keeper,
    input: std::io::PipeReader,
    output: std::io::PipeWriter,
) -> Result<()> {
    let mut server = Server::accept(input, output).unwrap();
    server.request().unwrap();
    let (cancel, replies) = (Cancel::new(), server.replies());
    let ready = Ready {
        size_bytes: destination.size_bytes(),
        ..Ready::default()
    };
    server.ready(ready).unwrap();
    let asked = server.hand_asked_on();
    let received = thread::scope(|scope| {
        let (replies, cancel) = (&replies, &cancel);
        let answering = scope.spawn(move || {
            let volume = Remembering::of(Side {
                volume: destination,
                name: "destination",
            });
            let mut answering = Answering::new(&volume, replies, cancel);
            let answered = asked
                .iter()
                .try_for_each(|request| answering.answer(&request));
            if let Err(Failed::Here(error)) = &answered {
                replies.fail(error).unwrap();
            }
            answered
        });
        let target = Target {
            volume: destination,
            name: "destination",
            is_file: true,
            room_bytes: None,
        };
        let options = ReceiveOptions {
            force: false,
            allow_smaller: false,
            unfinished: false,
            compared: true,
            undo_compression: Compression::Lz4,
            cancel,
            monitor: &Silent,
        };
        let receiving = Receiving {
            what: "the sender",
            target: &target,
            undo,
            options: &options,
            keeper,
        };
        let received = receiving.run(&mut server, &mut |_, _| Ok(()));
        server.no_more_asked();
        match answering.join().unwrap() {
            Err(Failed::Here(error)) => Err(error),
            _ => received.map(|_| ()),
        }
    });
    match &received {
        Ok(()) => drop(replies.done(Done::default())),
        Err(error) => drop(replies.fail(error)),
    }
    received
}

/// Content and record belong together, and the same again leads to the source.
#[track_caller]
fn leads_out((source, before): (&[u8], &[u8]), image: Vec<u8>, keeper: &Keeper, context: &str) {
    let record = keeper.record().cloned();
    let incomplete = record
        .as_ref()
        .is_some_and(|record| record.incomplete.is_some());
    if !incomplete {
        let holds = record.as_ref().and_then(|record| record.holds.as_ref());
        let expected = match holds {
            Some(state) if state.id == "lvm:source" => source,
            _ => before,
        };
        assert!(image == expected, "{context}: not what the record says");
    }
    let (volume, mut keeper) = (MemoryVolume::new(image), Keeper::in_memory(record));
    let again = sync(
        &MemoryVolume::new(source.to_vec()),
        &volume,
        &NoUndo,
        &mut keeper,
    );
    for result in [again.0, again.1] {
        result.unwrap_or_else(|error| panic!("{context}: the same again: {}", error.chain()));
    }
    assert!(volume.bytes() == source, "{context}: the same again");
    let record = keeper.record().unwrap();
    assert!(record.incomplete.is_none(), "{context}");
}

#[test]
fn every_operation_of_the_destination_of_a_sync_fails_once() {
    let (source, before) = pair();
    let mut runs = 0;
    // The last time as with a file: single blocks are written at once, and what is longer is waited for.
    for (writes_at_once, waits_from, errno) in [(1, 0, EIO), (3, 0, ENOSPC), (3, 8192, EIO)] {
        for kind in [
            OpKind::Read,
            OpKind::Write,
            OpKind::Zero,
            OpKind::Sync,
            OpKind::SetSize,
        ] {
            for number in 0.. {
                // The first read is that of the copy which a power cut leaves.
                let fail_at = number + usize::from(kind == OpKind::Read);
                let volume = FaultyVolume::new(MemoryVolume::new(before.clone()))
                    .fail_nth(kind, fail_at, errno)
                    .with_writes_at_once(writes_at_once)
                    .that_wait_from(waits_from)
                    .lose_unsynced_writes()
                    .unwrap();
                let mut keeper = Keeper::in_memory(None);
                let origin = MemoryVolume::new(source.clone());
                let (sent, received) = sync(&origin, &volume, &NoUndo, &mut keeper);
                let context =
                    format!("{kind:?} {number}, {writes_at_once} at once from {waits_from} bytes");
                let asked = volume.ops().iter().filter(|op| op.kind() == kind).count();
                if asked <= fail_at {
                    sent.unwrap();
                    received.unwrap();
                    assert!(volume.inner().bytes() == source, "{context}");
                    assert!(
                        number > 0 || kind == OpKind::Read,
                        "{kind:?} was never asked for"
                    );
                    break;
                }
                runs += 1;
                let (Err(there), Err(here)) = (sent, received) else {
                    panic!("{context} failed, and nobody was told");
                };
                assert_eq!(
                    here.exit_code(),
                    ExitCode::Failed,
                    "{context}: {}",
                    here.chain()
                );
                // To the end that sends it is the other one that failed, in its words.
                assert_eq!(
                    there.exit_code(),
                    ExitCode::Remote,
                    "{context}: {}",
                    there.chain()
                );
                assert!(there.chain().starts_with("host: "), "{}", there.chain());
                for image in [volume.crash(), volume.inner().bytes()] {
                    leads_out((&source, &before), image, &keeper, &context);
                }
            }
        }
    }
    println!("faults: {runs} operations of the destination of a sync, one failed in each run");
    assert!(runs > 20, "{runs}");
}

#[test]
fn a_place_of_the_source_that_cannot_be_read_ends_a_sync_with_1() {
    let (source, before) = pair();
    let blocks = [0, 3 * 4096, 700 * 4096, (5 << 20) - 4096];
    for (with_undo, offset) in blocks.iter().flat_map(|at| [(false, *at), (true, *at)]) {
        // A longer file is only made longer, so that an undo has something to hold.
        let origin = FaultyVolume::new(MemoryVolume::new(source.clone())).fail_touching(
            OpKind::Read,
            Extent::new(offset, 1).unwrap(),
            EIO,
        );
        let volume = FaultyVolume::new(MemoryVolume::new(before.clone()))
            .lose_unsynced_writes()
            .unwrap();
        let (mut keeper, undo) = (Keeper::in_memory(None), MemoryUndo::default());
        let place: &(dyn UndoPlace + Sync) = if with_undo { &undo } else { &NoUndo };
        let (sent, received) = sync(&origin, &volume, place, &mut keeper);
        let context = format!("block at {offset}, undo {with_undo}");
        let Err(sent) = sent else {
            panic!("{context}: nobody was told");
        };
        assert!(
            matches!(sent, Error::Io { .. }),
            "{context}: {}",
            sent.chain()
        );
        assert_eq!(sent.exit_code(), ExitCode::Failed);
        assert!(received.is_err(), "{context}: success without an end");
        if with_undo {
            continue;
        }
        for image in [volume.crash(), volume.inner().bytes()] {
            leads_out((&source, &before), image, &keeper, &context);
        }
    }
}

/// The program, on real files: here, pushed and pulled.
struct Dir {
    directory: tempfile::TempDir,
    way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Here,
    Push,
    Pull,
}

const WAYS: [Way; 3] = [Way::Here, Way::Push, Way::Pull];

impl Dir {
    fn new(way: Way) -> Self {
        let dir = Self {
            directory: tempfile::tempdir().unwrap(),
            way,
        };
        let shell = dir.path("shell");
        fs::write(&shell, "#!/bin/sh\nshift\nexec sh -c \"$*\"\n").unwrap();
        fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path("source"), noise(2 << 20, "source")).unwrap();
        fs::create_dir(dir.path("small")).unwrap();
        dir
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs the sync, none of whose files may be longer than so many blocks of 512 bytes.
    fn run(&self, destination: &str, more: &str, blocks: Option<u32>) -> Output {
        let far = |name: &str, is_far: bool| match is_far {
            true => format!("host:{}", self.path(name).display()),
            false => self.path(name).display().to_string(),
        };
        let limit = blocks.map_or_else(String::new, |blocks| {
            format!("trap '' XFSZ; ulimit -f {blocks}; ")
        });
        let program = env!("CARGO_BIN_EXE_lvmsync");
        let line = format!(
            "{limit}exec {program} sync {} {} -e {} --remote-path {program} --retries 0 {more}",
            far("source", self.way == Way::Pull),
            far(destination, self.way == Way::Push),
            self.path("shell").display()
        );
        Command::new("sh")
            .args(["-c", &line])
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .output()
            .unwrap()
    }

    /// It failed, as this end sees it: what fails at the far end is the far end that failed.
    #[track_caller]
    fn fails(&self, output: &Output, before: Option<&[u8]>, destination: &str, context: &str) {
        let said = String::from_utf8_lossy(&output.stderr);
        let code = if self.way == Way::Push { 7 } else { 1 };
        assert_eq!(output.status.code(), Some(code), "{context}: {said}");
        let found = fs::read(self.path(destination)).ok();
        let untouched = found.as_deref() == before;
        let is_whole = found.as_deref() == Some(&*fs::read(self.path("source")).unwrap());
        let status = self.status(destination);
        assert!(
            status == "incomplete" || (untouched && status != "complete") || is_whole,
            "{context}: {status}: {said}"
        );
    }

    fn status(&self, destination: &str) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_lvmsync"))
            .args(["state", "show", "--json"])
            .arg(self.path(destination))
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .output()
            .unwrap();
        let all = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default();
        all[0]["status"].as_str().unwrap_or("none").to_owned()
    }

    #[track_caller]
    fn completes(&self, destination: &str, context: &str) {
        let output = self.run(destination, "", None);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{context}: {said}");
        let [source, found] =
            ["source", destination].map(|name| fs::read(self.path(name)).unwrap());
        assert!(source == found, "{context}: not equal");
        assert_eq!(self.status(destination), "complete", "{context}");
    }
}

#[test]
fn files_that_may_not_grow_end_a_sync_and_the_next_one_completes() {
    let mut runs = 0;
    for way in WAYS {
        for is_new in [true, false] {
            // From a record that does not fit to a destination that nearly does.
            for blocks in [0, 3, 64, 1000, 4000] {
                let dir = Dir::new(way);
                let before = (!is_new).then(|| noise(1_500_000, "before"));
                if let Some(before) = &before {
                    fs::write(dir.path("copy"), before).unwrap();
                }
                let context = format!("{way:?}, new {is_new}, {blocks} blocks");
                let output = dir.run("copy", "", Some(blocks));
                dir.fails(&output, before.as_deref(), "copy", &context);
                runs += 1;
                dir.completes("copy", &context);
            }
        }
    }
    println!("faults: {runs} syncs whose files could not grow");
}

#[test]
fn a_full_filesystem_ends_a_sync_and_with_more_room_it_completes() {
    if !rustix::process::geteuid().is_root() {
        println!("faults: SKIPPED: only root can mount a small filesystem");
        return;
    }
    for way in WAYS {
        for (more, is_new) in [
            ("", true),
            ("", false),
            ("--atomic", false),
            ("--undo", false),
        ] {
            let dir = Dir::new(way);
            let place = dir.path("small");
            let Some(small) = Mounted::new(&place) else {
                println!("faults: SKIPPED: nothing can be mounted here");
                return;
            };
            let context = format!("{way:?} {more}, new {is_new}");
            // Of a copy that is there the undo, or what is collected, has no room.
            let (destination, more) = match more {
                "--atomic" => ("copy", format!("--atomic --spool {}", place.display())),
                "--undo" => ("copy", format!("--undo {}/undo", place.display())),
                _ => ("small/copy", String::new()),
            };
            let size = if destination == "copy" {
                2 << 20
            } else {
                500_000
            };
            let before = (!is_new).then(|| noise(size, "before"));
            if let Some(before) = &before {
                fs::write(dir.path(destination), before).unwrap();
            }
            let output = dir.run(destination, &more, None);
            dir.fails(&output, before.as_deref(), destination, &context);
            small.resize("16m");
            if more.starts_with("--undo") {
                let output = dir.run(destination, &more, None);
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(0), "{context}: {said}");
            }
            dir.completes(destination, &context);
        }
    }
}

/// A filesystem of 1 MiB in memory; root alone can have it.
struct Mounted<'p>(&'p Path);

impl<'p> Mounted<'p> {
    fn new(path: &'p Path) -> Option<Self> {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "lvmsync-test"])
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

/// All was done, and the connection was lost before that could be said: the same run once more finds its undo.
#[test]
fn a_sync_whose_last_word_was_lost_is_done_when_it_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("destination");
    let (source, before) = pair();
    fs::write(&path, &before).unwrap();
    let file = || fs::File::options().read(true).write(true).open(&path);
    let volume = FileVolume::new(file().unwrap()).unwrap();
    let record = StateDir::choose(Some(directory.path())).file_of("file:destination");
    let keeper = || {
        let watch = Some(Watch::File(file().unwrap()));
        let policy = Policy::default();
        Keeper::open(
            record.clone(),
            "destination",
            "host",
            policy,
            watch,
            &volume,
        )
        .unwrap()
    };
    let back = directory.path().join("back");
    let undo = UndoFiles::new(Some(&back), false, Vec::new(), Caller::HERE).unwrap();
    let origin = MemoryVolume::new(source.clone());
    for _ in 0..2 {
        let (sent, received) = sync(&origin, &volume, &undo, &mut keeper());
        sent.unwrap();
        received.unwrap();
        assert!(fs::read(&path).unwrap() == source);
        assert!(keeper().record().unwrap().incomplete.is_none());
    }
    // What has changed since has no way back by that undo.
    let mut other = source.clone();
    other[3 << 20] ^= 1;
    let (_, received) = sync(
        &MemoryVolume::new(other.clone()),
        &volume,
        &undo,
        &mut keeper(),
    );
    let refused = received.unwrap_err();
    assert_eq!(
        refused.exit_code(),
        ExitCode::Refused,
        "{}",
        refused.chain()
    );
    assert!(fs::read(&path).unwrap() == source, "nothing was written");
    // Nor has what somebody has written to.
    thread::sleep(std::time::Duration::from_millis(20));
    fs::write(&path, &before).unwrap();
    let (_, received) = sync(&origin, &volume, &undo, &mut keeper());
    assert!(received.is_err());
    assert!(fs::read(&path).unwrap() == before, "nothing was written");
}
