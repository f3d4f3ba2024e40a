//! Tests of a run's hold on a record.

use super::*;
use crate::delta::header::tests::header;
use crate::delta::samples::Samples;
use crate::record::store::StateDir;
use crate::volume::memory::MemoryVolume;

fn volume() -> MemoryVolume {
    MemoryVolume::new(vec![0; 8192])
}

#[test]
fn a_run_leaves_incomplete_until_it_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    let file = StateDir::choose(Some(directory.path())).file_of("lvm:x");
    let open = || {
        Keeper::open(
            file.clone(),
            "vg/x",
            "host",
            Policy::default(),
            None,
            &volume(),
        )
        .unwrap()
    };
    let header = header(1 << 20);
    let stream = StreamId::of(&header, &Samples::default());

    let kept = |old_size_bytes| Kept {
        old_size_bytes,
        ..Kept::default()
    };

    let mut keeper = open();
    keeper.begin(&header, &stream, kept(7)).unwrap();
    assert_eq!(
        open()
            .record()
            .unwrap()
            .incomplete
            .as_ref()
            .unwrap()
            .old_size_bytes,
        7
    );
    keeper.put_back().unwrap();
    assert!(open().record().is_none());

    let mut keeper = open();
    keeper.begin(&header, &stream, kept(7)).unwrap();
    keeper.durable(4096, &Places::default(), &volume()).unwrap();
    drop(keeper);

    let mut keeper = open();
    assert_eq!(
        keeper.admit(&header, &stream).unwrap(),
        Admission::Resume { offset: 4096 }
    );
    keeper.begin(&header, &stream, kept(9)).unwrap();
    let cut = keeper.record().unwrap().incomplete.clone().unwrap();
    assert_eq!((cut.old_size_bytes, cut.durable_offset), (7, 4096));
    keeper
        .complete(header.target.clone(), &Places::default(), &volume())
        .unwrap();
    let record = open().record().unwrap().clone();
    assert_eq!((record.incomplete, record.holds), (None, header.target));
    assert_eq!(
        (record.stream, record.from.as_str()),
        (Some(stream), "host")
    );
}

#[test]
fn a_run_that_begins_anew_is_on_record_as_that_before_it_writes() {
    use crate::extent::Extent;
    use crate::volume::WriteAt;

    let directory = tempfile::tempdir().unwrap();
    let file = StateDir::choose(Some(directory.path())).file_of("lvm:x");
    let volume = volume();
    let open = || {
        let policy = Policy::default();
        Keeper::open(file.clone(), "vg/x", "host", policy, None, &volume).unwrap()
    };
    let header = header(1 << 20);
    let stream = StreamId::of(&header, &Samples::default());
    let mut places = Places::default();
    places.note(Extent::new(0, 4096).unwrap());
    let mut keeper = open();
    keeper.begin(&header, &stream, Kept::default()).unwrap();
    keeper.durable(8192, &places, &volume).unwrap();
    drop(keeper);
    assert_eq!(open().resume_offset(&stream), Resume::At(8192));

    // What was written is gone; the run that begins anew puts the marked block back and is cut.
    volume.write_all_at(&[9; 4096], 0).unwrap();
    let mut keeper = open();
    assert_eq!(keeper.resume_offset(&stream), Resume::At(0));
    keeper.begin(&header, &stream, Kept::default()).unwrap();
    volume.write_all_at(&[0; 4096], 0).unwrap();
    drop(keeper);
    assert_eq!(open().resume_offset(&stream), Resume::At(0));
}

#[test]
fn a_run_that_wrote_nothing_leaves_the_record_with_the_undo_that_is_there_now() {
    let directory = tempfile::tempdir().unwrap();
    let file = StateDir::choose(Some(directory.path())).file_of("lvm:x");
    let header = header(1 << 20);
    let stream = StreamId::of(&header, &Samples::default());
    let run = |undo: &str, forced| {
        let policy = Policy::default();
        let mut keeper =
            Keeper::open(file.clone(), "vg/x", "host", policy, None, &volume()).unwrap();
        let kept = Kept {
            undo: Some("back".to_owned()),
            undo_stream: Some(StreamId::from(undo.to_owned())),
            forced,
            ..Kept::default()
        };
        keeper.begin(&header, &stream, kept).unwrap();
        keeper
    };
    drop(run("first", false));
    let before = file.load().unwrap().unwrap();
    run("second", true).put_back().unwrap();
    let mut after = file.load().unwrap().unwrap();
    let cut = after.incomplete.as_mut().unwrap();
    assert_eq!(
        cut.undo_stream.take(),
        Some(StreamId::from("second".to_owned()))
    );
    cut.undo_stream = Some(StreamId::from("first".to_owned()));
    assert_eq!(after, before);
}

#[test]
fn what_was_forced_stays_no_state_until_it_is_taken_back_or_replaced() {
    use crate::delta::header::Source;

    let directory = tempfile::tempdir().unwrap();
    let file = StateDir::choose(Some(directory.path())).file_of("lvm:x");
    let open = || {
        let policy = Policy::default();
        Keeper::open(file.clone(), "vg/x", "host", policy, None, &volume()).unwrap()
    };
    let increment = header(1 << 20);
    let stream = StreamId::of(&increment, &Samples::default());
    let forced = || Kept {
        forced: true,
        ..Kept::default()
    };
    let mut keeper = open();
    keeper.begin(&increment, &stream, forced()).unwrap();
    drop(keeper);
    // Cut and gone on with: nothing in the delta says any more that it was forced.
    let mut keeper = open();
    keeper.begin(&increment, &stream, Kept::default()).unwrap();
    assert!(keeper.is_forced());
    keeper
        .complete(None, &Places::default(), &volume())
        .unwrap();

    let begun = |change: &dyn Fn(&mut Header)| {
        let mut header = header(1 << 20);
        header.list = Some("another".into());
        change(&mut header);
        let mut keeper = open();
        let stream = StreamId::of(&header, &Samples::default());
        keeper.begin(&header, &stream, Kept::default()).unwrap();
        let is_forced = keeper.is_forced();
        keeper.put_back().unwrap();
        is_forced
    };
    assert!(begun(&|_| {}), "another increment on top");
    assert!(!begun(&|header| {
        (header.source, header.base) = (Source::Full, None);
    }));
    let undo = |header: &mut Header| {
        header.source = Source::Undo;
        header.undo_of = Some(stream.as_str().to_owned());
    };
    assert!(begun(&undo), "not the one that was kept");
    let mut kept = header(1 << 20);
    kept.list = Some("another".into());
    undo(&mut kept);
    let mut record = file.load().unwrap().unwrap();
    record.undo_stream = Some(StreamId::of(&kept, &Samples::default()));
    file.save(&record).unwrap();
    assert!(!begun(&undo));
    // What it leads back to was forced, too.
    record.was_forced = true;
    file.save(&record).unwrap();
    assert!(begun(&undo));
}

#[test]
fn what_was_found_equal_is_remembered_until_somebody_writes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("volume");
    std::fs::write(&path, vec![0; 8192]).unwrap();
    let file = StateDir::choose(Some(&directory.path().join("state"))).file_of("file:x");
    let open = || {
        let watch = Watch::File(std::fs::File::open(&path).unwrap());
        let policy = Policy::default();
        Keeper::open(file.clone(), "x", "host", policy, Some(watch), &volume()).unwrap()
    };
    let full = Header {
        source: Source::Full,
        base: None,
        ..header(8192)
    };
    let copy = full.by_comparing();
    let stream = StreamId::of(&copy, &Samples::default());
    let cut = |keeper: &mut Keeper| {
        keeper.begin(&copy, &stream, Kept::default()).unwrap();
        keeper.durable(4096, &Places::default(), &volume()).unwrap();
        keeper.put_back().unwrap();
    };
    cut(&mut open());
    let keeper = open();
    assert_eq!(keeper.resume_offset(&stream), Resume::At(4096));
    let record = keeper.record().unwrap();
    assert_eq!((&record.incomplete, &record.holds), (&None, &None));
    // Of another copy it says nothing, and an increment does not take it for more than it is.
    let other = StreamId::from("b3:other".to_owned());
    assert_eq!(keeper.resume_offset(&other), Resume::Begin);
    let increment = header(8192);
    let id = StreamId::of(&increment, &Samples::default());
    let admitted = keeper.admit(&increment, &id).unwrap();
    assert!(
        matches!(admitted, Admission::Fresh { remark: Some(_) }),
        "{admitted:?}"
    );
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(&path, vec![1; 8192]).unwrap();
    assert_eq!(open().resume_offset(&stream), Resume::Begin);
    // It does not outlive a run that writes.
    cut(&mut open());
    let mut keeper = open();
    keeper.begin(&copy, &stream, Kept::default()).unwrap();
    assert_eq!(keeper.record().unwrap().compared, None);
    keeper
        .complete(copy.target.clone(), &Places::default(), &volume())
        .unwrap();
    cut(&mut open());
    let record = open().record().unwrap().clone();
    assert_eq!(
        (record.holds, record.compared.map(|c| c.offset)),
        (copy.target, Some(4096))
    );
}

/// A file, and what opens its record.
fn watched(directory: &std::path::Path) -> (std::path::PathBuf, impl Fn() -> Keeper) {
    let path = directory.join("volume");
    std::fs::write(&path, vec![0; 8192]).unwrap();
    let file = StateDir::choose(Some(&directory.join("state"))).file_of("file:x");
    let watched = path.clone();
    let open = move || {
        let watch = Watch::File(std::fs::File::open(&watched).unwrap());
        let policy = Policy::default();
        Keeper::open(file.clone(), "x", "host", policy, Some(watch), &volume()).unwrap()
    };
    (path, open)
}

fn compared_copy() -> (Header, StreamId) {
    let full = Header {
        source: Source::Full,
        base: None,
        ..header(8192)
    };
    let copy = full.by_comparing();
    let stream = StreamId::of(&copy, &Samples::default());
    (copy, stream)
}

fn write_to(path: &std::path::Path) {
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(path, vec![1; 8192]).unwrap();
}

#[test]
fn a_comparison_that_was_killed_goes_on_only_if_nobody_wrote() {
    let directory = tempfile::tempdir().unwrap();
    let (path, open) = watched(directory.path());
    let (copy, stream) = compared_copy();
    let killed = || {
        let mut keeper = open();
        keeper.begin(&copy, &stream, Kept::default()).unwrap();
        keeper.durable(4096, &Places::default(), &volume()).unwrap();
    };
    killed();
    assert_eq!(open().resume_offset(&stream), Resume::At(4096));
    write_to(&path);
    assert_eq!(open().resume_offset(&stream), Resume::At(0));
    // Nor where a whole copy goes on with what was compared.
    killed();
    let mut keeper = open();
    let full = Header {
        source: Source::Full,
        required_features: Vec::new(),
        ..copy.clone()
    };
    keeper.begin(&full, &stream, Kept::default()).unwrap();
    keeper.durable(6000, &Places::default(), &volume()).unwrap();
    drop(keeper);
    assert_eq!(open().resume_offset(&stream), Resume::At(6000));
    write_to(&path);
    assert_eq!(open().resume_offset(&stream), Resume::At(0));
}

/// What a run that was cut has left, as far as `leaves` says that it could see to that.
fn cut(open: &impl Fn() -> Keeper, header: &Header, stream: &StreamId, leaves: bool) {
    let mut keeper = open();
    keeper.begin(header, stream, Kept::default()).unwrap();
    keeper.durable(4096, &Places::default(), &volume()).unwrap();
    if leaves {
        keeper.leave().unwrap();
    }
}

#[test]
fn a_run_that_was_cut_goes_on_only_where_nobody_has_written_since() {
    let directory = tempfile::tempdir().unwrap();
    let (path, open) = watched(directory.path());
    let increment = header(8192);
    let full = Header {
        source: Source::Full,
        base: None,
        ..increment.clone()
    };
    for (header, is_full) in [(increment, false), (full, true)] {
        let stream = StreamId::of(&header, &Samples::default());
        cut(&open, &header, &stream, true);
        let offset = 4096;
        assert_eq!(open().resume_offset(&stream), Resume::At(offset));
        // One that goes on and is killed has written, and nobody else.
        cut(&open, &header, &stream, false);
        write_to(&path);
        assert_eq!(
            open().admit(&header, &stream).unwrap(),
            Admission::Resume { offset }
        );
        cut(&open, &header, &stream, true);
        write_to(&path);
        assert_eq!(open().resume_offset(&stream), Resume::At(0));
        let admitted = open().admit(&header, &stream);
        if is_full {
            assert_eq!(admitted.unwrap(), Admission::Resume { offset: 0 });
        } else {
            let refused = admitted.unwrap_err().to_string();
            assert!(refused.contains("since the run was cut"), "{refused}");
            assert!(refused.contains("lvmsync sync NEW DEST"), "{refused}");
        }
        let mut forced = open();
        forced.policy.force = true;
        assert_eq!(
            forced.admit(&header, &stream).unwrap(),
            Admission::Resume { offset: 0 }
        );
        forced
            .complete(None, &Places::default(), &volume())
            .unwrap();
    }
}

#[test]
fn what_somebody_wrote_to_meanwhile_was_not_found_equal() {
    let directory = tempfile::tempdir().unwrap();
    let (path, open) = watched(directory.path());
    let (copy, stream) = compared_copy();
    let mut keeper = open();
    keeper.begin(&copy, &stream, Kept::default()).unwrap();
    keeper.durable(4096, &Places::default(), &volume()).unwrap();
    write_to(&path);
    keeper.put_back().unwrap();
    assert_eq!(open().resume_offset(&stream), Resume::Begin);
}

#[test]
fn a_second_run_that_writes_nothing_keeps_what_it_has_compared() {
    let directory = tempfile::tempdir().unwrap();
    let (_, open) = watched(directory.path());
    let (copy, stream) = compared_copy();
    let mut keeper = open();
    keeper.begin(&copy, &stream, Kept::default()).unwrap();
    keeper.durable(1024, &Places::default(), &volume()).unwrap();
    drop(keeper);
    let mut keeper = open();
    keeper.begin(&copy, &stream, Kept::default()).unwrap();
    keeper.durable(4096, &Places::default(), &volume()).unwrap();
    keeper.put_back().unwrap();
    assert_eq!(open().resume_offset(&stream), Resume::At(4096));
}
