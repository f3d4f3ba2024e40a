//! Tests of what is admitted.

use super::*;
use crate::delta::header::State;
use crate::delta::header::tests::header as any_header;

fn state(name: &str) -> State {
    State {
        id: format!("lvm:{name}"),
        name: format!("vg/{name}"),
    }
}

fn delta(base: &str, target: &str) -> (Header, StreamId) {
    let mut header = any_header(1 << 20);
    header.base = Some(state(base));
    header.target = Some(state(target));
    (header, StreamId::from(format!("{base}-{target}")))
}

fn holding(name: &str) -> Record {
    Record {
        holds: Some(state(name)),
        ..Record::default()
    }
}

fn cut(base: &str, target: &str, undo: Option<&str>) -> Record {
    Record {
        incomplete: Some(Incomplete {
            stream: Some(StreamId::from(format!("{base}-{target}"))),
            base: Some(state(base)),
            target: Some(state(target)),
            durable_offset: 4096,
            undo: undo.map(str::to_owned),
            source: "cow".to_owned(),
            ..Incomplete::default()
        }),
        ..holding(base)
    }
}

fn decide(
    record: Option<&Record>,
    (header, stream): &(Header, StreamId),
) -> Result<Admission, Refusal> {
    admit(
        record,
        header,
        stream,
        Called::here("vg/copy"),
        Policy::default(),
    )
}

#[test]
fn a_chain_goes_on_and_a_gap_is_refused_with_both_states_named() {
    let record = holding("s1");
    assert_eq!(
        decide(Some(&record), &delta("s1", "s2")),
        Ok(Admission::Fresh { remark: None })
    );
    let refusal = decide(Some(&record), &delta("s2", "s3")).unwrap_err();
    assert!(
        refusal.reason.contains("vg/s1") && refusal.reason.contains("vg/s2"),
        "{refusal:?}"
    );
    let (header, stream) = delta("s2", "s3");
    let force = Policy {
        force: true,
        ..Policy::default()
    };
    assert!(matches!(
        admit(Some(&record), &header, &stream, Called::here("x"), force),
        Ok(Admission::Forced { .. })
    ));
}

#[test]
fn without_a_record_the_samples_decide_unless_one_is_required() {
    let (header, stream) = delta("s1", "s2");
    let Ok(Admission::Fresh {
        remark: Some(remark),
    }) = decide(None, &delta("s1", "s2"))
    else {
        panic!("not admitted")
    };
    assert!(remark.contains("sampled blocks alone"), "{remark}");
    let strict = Policy {
        require_record: true,
        ..Policy::default()
    };
    assert!(admit(None, &header, &stream, Called::here("x"), strict).is_err());
    assert!(
        admit(
            Some(&holding("s1")),
            &header,
            &stream,
            Called::here("x"),
            strict
        )
        .is_ok()
    );
    let mut full = header;
    (full.source, full.base) = (Source::Full, None);
    assert_eq!(
        admit(None, &full, &stream, Called::here("x"), strict),
        Ok(Admission::Fresh { remark: None })
    );
}

#[test]
fn what_is_incomplete_is_finished_undone_or_replaced_and_nothing_else() {
    let record = cut("s1", "s2", Some("/u/monday"));
    assert_eq!(
        decide(Some(&record), &delta("s1", "s2")),
        Ok(Admission::Resume { offset: 4096 })
    );

    let refusal = decide(Some(&record), &delta("s2", "s3")).unwrap_err();
    assert!(
        refusal.way_out.contains("lvmsync apply /u/monday vg/copy"),
        "{refusal:?}"
    );
    assert!(decide(Some(&record), &delta("s1", "s3")).is_err());

    let mut undo = delta("s2", "s1");
    undo.0.source = Source::Undo;
    undo.0.undo_of = Some("s1-s2".to_owned());
    assert_eq!(decide(Some(&record), &undo), Ok(Admission::UndoUnfinished));
    undo.0.undo_of = Some("s0-s1".to_owned());
    assert!(decide(Some(&record), &undo).is_err());

    let mut full = delta("s1", "s3");
    (full.0.source, full.0.base) = (Source::Full, None);
    assert!(matches!(
        decide(Some(&record), &full),
        Ok(Admission::Fresh { .. })
    ));
    assert!(admit_anonymous(Some(&record), Called::here("x"), Policy::default()).is_err());
    assert!(refuse_as_source(&record, Called::here("x")).is_some());
    assert!(refuse_as_source(&holding("s1"), Called::here("x")).is_none());
}

#[test]
fn an_incomplete_source_is_mended_by_a_sync_into_it_from_where_that_is_known() {
    let mends = |change: &dyn Fn(&mut Incomplete), source: &str| {
        let mut record = cut("s1", "s2", None);
        change(record.incomplete.as_mut().unwrap());
        let refusal = refuse_as_source(&record, Called::here("vg/copy")).unwrap();
        let line = format!("mends it: lvmsync sync {source} vg/copy\nIf you know");
        assert!(refusal.way_out.contains(&line), "{refusal:?}");
    };
    mends(&|_| {}, "vg/s2");
    // From another machine, or a file; back; or to what is called after a place that depends on where one is.
    mends(&|cut| cut.from = "vm:vg/s2".to_owned(), "NEW");
    mends(&|cut| cut.source = "undo".to_owned(), "NEW");
    mends(&|cut| cut.target = None, "NEW");
    let file = |cut: &mut Incomplete| cut.target.as_mut().unwrap().id = "file:1".to_owned();
    mends(&file, "NEW");
    // As a destination the sync that is asked for is the one into it.
    let refusal = decide(Some(&cut("s1", "s2", None)), &delta("s2", "s3")).unwrap_err();
    assert!(
        refusal.way_out.contains("lvmsync sync NEW DEST. If you"),
        "{refusal:?}"
    );
}

#[test]
fn what_is_done_already_is_not_done_again() {
    let mut record = holding("s2");
    record.stream = Some(StreamId::from("s1-s2".to_owned()));
    let (header, stream) = delta("s1", "s2");
    let with = |touched| {
        let policy = Policy {
            touched,
            ..Policy::default()
        };
        admit(Some(&record), &header, &stream, Called::here("x"), policy).unwrap()
    };
    assert!(matches!(with(Touched::No), Admission::Already { .. }));
    assert!(matches!(with(Touched::Unknown), Admission::Again { .. }));
    let Admission::Fresh {
        remark: Some(remark),
    } = with(Touched::Yes)
    else {
        panic!("not fresh")
    };
    assert!(remark.contains("sampled blocks alone"), "{remark}");
    let mut undo = delta("s2", "s1");
    undo.0.source = Source::Undo;
    undo.0.undo_of = Some("s1-s2".to_owned());
    assert_eq!(
        decide(Some(&record), &undo),
        Ok(Admission::Fresh { remark: None })
    );
    // What an undo of another run calls s1 is not written over what is called so already.
    assert!(matches!(
        decide(Some(&holding("s1")), &undo),
        Ok(Admission::Already { .. })
    ));
}

#[test]
fn an_older_undo_of_the_same_delta_is_not_the_one_that_was_kept() {
    // Forced, it names no base, and s0 is what there was when it was made.
    let mut old = delta("x", "s0");
    old.0.base = None;
    old.0.source = Source::Undo;
    old.0.undo_of = Some("s1-s2".to_owned());
    let mut record = holding("s2");
    record.stream = Some(StreamId::from("s1-s2".to_owned()));
    let rests = |record: &Record| match decide(Some(record), &old) {
        Ok(Admission::Fresh { remark }) => remark.is_some(),
        other => panic!("{other:?}"),
    };
    assert!(rests(&record), "the last run kept none");
    record.undo_stream = Some(StreamId::from("another".to_owned()));
    assert!(rests(&record), "the last run kept another one");
    record.undo_stream = Some(old.1.clone());
    assert!(!rests(&record), "it is the one");
    // The same where the last run was cut: it held s1.
    let mut record = cut("s1", "s2", None);
    let refusal = decide(Some(&record), &old).unwrap_err();
    assert!(refusal.reason.contains("did not keep"), "{refusal:?}");
    record.incomplete.as_mut().unwrap().undo_stream = Some(old.1.clone());
    assert_eq!(decide(Some(&record), &old), Ok(Admission::UndoUnfinished));
}

#[test]
fn the_undo_of_the_run_before_counts_for_the_one_that_repeats_it_without_one() {
    let mut record = cut("s1", "s2", None);
    let (mut header, stream) = delta("s1", "s2");
    record.stream = Some(stream.clone());
    record.undo = Some("/u/first.undo".to_owned());
    record.incomplete.as_mut().unwrap().list = Some("b3:short".to_owned());
    header.list = Some("b3:longer".to_owned());
    let again = (header, stream);
    let refusal = decide(Some(&record), &again).unwrap_err();
    assert!(refusal.way_out.contains("/u/first.undo"), "{refusal:?}");
    // Of another delta it is no way back from here.
    record.stream = None;
    assert!(matches!(
        decide(Some(&record), &again),
        Ok(Admission::Resume { .. })
    ));
}

#[test]
fn a_live_source_begins_anew_only_from_the_same_snapshot() {
    let mut record = cut("s1", "s2", None);
    if let Some(cut) = &mut record.incomplete {
        cut.target = None;
        cut.run = Some("origin 1".to_owned());
    }
    let mut live = delta("s1", "x");
    live.0.target = None;
    live.0.run = Some("origin 2".to_owned());
    assert!(matches!(
        decide(Some(&record), &live),
        Ok(Admission::Fresh { .. })
    ));
    // What was made of several may be older than what was cut.
    let features = vec![crate::delta::header::FEATURE_COMBINED.to_owned()];
    // A stored one may be older than the one that was cut, and lack what that one has written.
    let mut newer = record.clone();
    newer.incomplete.as_mut().unwrap().created = live.0.created + 1;
    assert!(decide(Some(&newer), &live).is_err());
    let mut combined = live.clone();
    combined.0.features = features;
    assert!(decide(Some(&record), &combined).is_err());
    let mut other = delta("s0", "x");
    other.0.target = None;
    other.0.run.clone_from(&live.0.run);
    assert!(decide(Some(&record), &other).is_err());
    // A snapshot that was written to has no name either, and its list may hold what the origin's does not.
    let mut written = live.clone();
    written.0.run = Some("3".to_owned());
    assert!(decide(Some(&record), &written).is_err());
    record.incomplete.as_mut().unwrap().run = Some("3".to_owned());
    assert!(decide(Some(&record), &live).is_err());
    record
        .incomplete
        .as_mut()
        .unwrap()
        .run
        .clone_from(&live.0.run);
    assert!(decide(Some(&record), &delta("s1", "s3")).is_err());
}

/// Between two snapshots, of which the newer one was activated anew: another identity, and the same states.
#[test]
fn a_snapshot_that_could_be_written_begins_anew_unless_an_undo_is_kept() {
    let mut later = delta("s1", "s2");
    later.1 = StreamId::from("of another activation".to_owned());
    later.0.run = Some("boot 1/2".to_owned());
    let anew = decide(Some(&cut("s1", "s2", None)), &later);
    assert!(
        matches!(anew, Ok(Admission::Fresh { remark: Some(_) })),
        "{anew:?}"
    );
    let refused = decide(Some(&cut("s1", "s2", Some("/u/undo"))), &later).unwrap_err();
    assert!(refused.reason.contains("activated anew"), "{refused:?}");
    assert!(refused.way_out.contains("apply /u/undo"), "{refused:?}");
    assert!(decide(Some(&cut("s1", "s3", None)), &later).is_err());

    // Done before, and asked for again: nothing says that it is another state by now, and nothing that it is not.
    let done = holding("s2");
    let policy = |touched, force| Policy {
        touched,
        force,
        ..Policy::default()
    };
    let called = Called::here("vg/copy");
    let again = |policy| admit(Some(&done), &later.0, &later.1, called, policy);
    let there = again(policy(Touched::No, false));
    assert!(matches!(there, Ok(Admission::Already { .. })), "{there:?}");
    let refused = again(policy(Touched::Unknown, false)).unwrap_err();
    assert!(refused.way_out.contains("lvmsync sync"), "{refused:?}");
    let forced = again(policy(Touched::Unknown, true));
    assert!(matches!(forced, Ok(Admission::Forced { .. })), "{forced:?}");
}

#[test]
fn what_was_written_since_an_era_begins_anew_unless_an_undo_is_kept() {
    let mut later = delta("era 7", "era 12");
    later.0.source = Source::Era;
    let of_era = |base, undo| {
        let mut record = cut(base, "era 9", undo);
        record.incomplete.as_mut().unwrap().source = "era".to_owned();
        record
    };
    let anew = decide(Some(&of_era("era 7", None)), &later);
    assert!(
        matches!(anew, Ok(Admission::Fresh { remark: Some(_) })),
        "{anew:?}"
    );
    // The undo of the first run would be that of the second, which finds half of the new state there.
    let refused = decide(Some(&of_era("era 7", Some("/u/undo"))), &later).unwrap_err();
    assert!(refused.way_out.contains("apply /u/undo"), "{refused:?}");
    assert!(!refused.way_out.contains("lvcreate"), "{refused:?}");
    // Of another era, another record, or from what is no record of eras.
    assert!(decide(Some(&of_era("era 6", None)), &later).is_err());
    assert!(decide(Some(&cut("era 7", "era 9", None)), &later).is_err());
    let mut newer = of_era("era 7", None);
    newer.incomplete.as_mut().unwrap().created = later.0.created + 1;
    assert!(decide(Some(&newer), &later).is_err());
    let mut combined = later.clone();
    combined.0.features = vec![crate::delta::header::FEATURE_COMBINED.to_owned()];
    assert!(decide(Some(&of_era("era 7", None)), &combined).is_err());
    let mut offline = later;
    offline.0.base = None;
    assert!(decide(Some(&of_era("era 7", None)), &offline).is_err());
}

#[test]
fn a_longer_list_goes_on_where_the_base_is_proven_or_no_undo_could_be_wrong() {
    let mut delta = delta("s1", "s2");
    delta.0.list = Some("b3:longer".to_owned());
    let resumed = Ok(Admission::Resume { offset: 4096 });
    let with = |forced, change: &dyn Fn(&mut Incomplete)| {
        let mut record = cut("s1", "s2", Some("/u/undo"));
        record.forced = forced;
        change(record.incomplete.as_mut().unwrap());
        decide(Some(&record), &delta)
    };
    assert_eq!(with(false, &|cut| cut.is_proven = true), resumed);
    for (forced, proven) in [(true, true), (true, false), (false, false)] {
        let refused = with(forced, &|cut| cut.is_proven = proven).unwrap_err();
        assert!(refused.way_out.contains("apply /u/undo"), "{refused:?}");
        let same = with(forced, &|cut| cut.list.clone_from(&delta.0.list));
        assert_eq!(same, resumed);
        assert_eq!(with(forced, &|cut| cut.undo = None), resumed);
    }
}

#[test]
fn what_was_applied_is_not_applied_with_another_list_unless_its_base_is_proven() {
    let mut delta = delta("s1", "s2");
    delta.0.list = Some("b3:longer".to_owned());
    let applied = |forced: bool, proven| Record {
        stream: Some(delta.1.clone()),
        list: Some("b3:list".to_owned()),
        undo: Some("/u/undo".to_owned()),
        holds: (!forced).then(|| state("s2")),
        forced,
        is_proven: proven,
        ..Record::default()
    };
    let decide = |record: &Record, touched, force| {
        let policy = Policy {
            touched,
            force,
            ..Policy::default()
        };
        let called = Called::here("vg/copy");
        admit(Some(record), &delta.0, &delta.1, called, policy)
    };
    // Nobody wrote to it, so nothing is written.
    let there = decide(&applied(false, false), Touched::No, false);
    assert!(matches!(there, Ok(Admission::Already { .. })), "{there:?}");
    let proven = decide(&applied(false, true), Touched::Unknown, false);
    assert!(matches!(proven, Ok(Admission::Again { .. })), "{proven:?}");
    for (forced, proven) in [(true, true), (true, false), (false, false)] {
        let record = applied(forced, proven);
        for (touched, force) in [(Touched::Unknown, false), (Touched::Yes, true)] {
            let refused = decide(&record, touched, force).unwrap_err();
            assert!(refused.way_out.contains("apply /u/undo"), "{refused:?}");
        }
        let same = Record {
            list: delta.0.list.clone(),
            ..record
        };
        assert!(decide(&same, Touched::Unknown, true).is_ok());
    }
}

#[test]
fn nothing_is_put_on_what_lvm_merges_a_preview_into_not_even_by_force() {
    let mut record = cut("s1", "s2", Some("/u/back"));
    record.incomplete.as_mut().unwrap().source = MERGE.to_owned();
    let mut full = delta("s1", "s2");
    full.0.base = None;
    full.0.source = Source::Full;
    let policy = Policy {
        force: true,
        ..Policy::default()
    };
    let called = Called::here("vg/copy");
    let refused = |result: Result<(), Refusal>| {
        let refusal = result.unwrap_err();
        assert!(refusal.reason.contains("LVM merges"), "{refusal:?}");
        assert_eq!(refusal.way_out, "Finish it: lvmsync apply --commit vg/copy");
    };
    for (header, stream) in [full, delta("s1", "s2"), delta("s2", "s3")] {
        let admitted = admit(Some(&record), &header, &stream, called, policy);
        refused(admitted.map(|_| ()));
    }
    refused(admit_anonymous(Some(&record), called, policy));
}
