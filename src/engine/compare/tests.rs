//! Comparing against a plain model, here and through a session in one process.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::blocks::cut;
use crate::extent::Change;
use crate::monitor::{Recording, Silent};
use crate::session::client::{Client, Outgoing};
use crate::session::handshake::{FEATURE_COMPARE, GREETING};
use crate::session::message::{Done, Hello, Message, OPERATION_COMPARE, Open, Ready, Tag};
use crate::session::transport::MessageReader;
use crate::volume::ReadAt;
use crate::volume::faulty::{FaultyVolume, OpKind};
use crate::volume::memory::MemoryVolume;

const BLOCK: usize = BLOCK_BYTES as usize;

fn list(extents: &[(u64, u64)]) -> ChangeList {
    let change = |(o, l): &(u64, u64)| Change {
        extent: Extent::new(*o, *l).unwrap(),
        kind: Kind::Data,
    };
    extents.iter().map(change).collect()
}

/// The blocks of `extents` in which two byte vectors differ.
fn model(one: &[u8], other: &[u8], extents: &ChangeList) -> ChangeList {
    let mut differing = ChangeListBuilder::default();
    for change in extents.iter() {
        for block in cut(change.extent, BLOCK_BYTES) {
            let range = block.offset() as usize..block.end() as usize;
            if one[range.clone()] != other[range] {
                differing.push(block, Kind::Data);
            }
        }
    }
    differing.finish()
}

fn side(volume: &dyn ReadAt) -> Side<'_> {
    Side { volume, name: "v" }
}

type Ends = ((PipeReader, PipeWriter), (PipeReader, PipeWriter));

fn ends() -> Ends {
    let (client_reader, server_writer) = io::pipe().unwrap();
    let (server_reader, client_writer) = io::pipe().unwrap();
    (
        (client_reader, client_writer),
        (server_reader, server_writer),
    )
}

fn open() -> Open {
    let mut open: Open = serde_json::from_str(r#"{"operation":"","destination":"v"}"#).unwrap();
    open.operation = OPERATION_COMPARE.to_owned();
    open
}

type Connected = std::result::Result<Outgoing<PipeWriter>, SessionError>;

fn connect(cr: PipeReader, cw: PipeWriter) -> Connected {
    let client = Client::connect(cr, cw, &[FEATURE_COMPARE], Arc::new(()))?;
    Ok(client.open(open())?.1)
}

/// The far end as `serve` runs it.
fn serve(sr: PipeReader, sw: PipeWriter, volume: &dyn ReadAt) -> std::result::Result<(), Failed> {
    let mut server = Server::accept(sr, sw)?;
    assert_eq!(server.request()?, open());
    let size_bytes = volume.size_bytes();
    let ready = Ready {
        size_bytes,
        ..Ready::default()
    };
    server.ready(ready)?;
    let result = answer(&mut server, side(volume), &Cancel::new());
    match &result {
        Ok(()) => server.replies().done(Done::default())?,
        Err(Failed::Here(error)) => server.replies().fail(error)?,
        Err(Failed::There(_)) => {}
    }
    result
}

fn through_a_session(
    extents: &ChangeList,
    near: &dyn ReadAt,
    far: &dyn ReadAt,
    monitor: &dyn Monitor,
) -> std::result::Result<ChangeList, Failed> {
    let ((cr, cw), (sr, sw)) = ends();
    thread::scope(|scope| {
        let far_end = scope.spawn(move || serve(sr, sw, far));
        let out = connect(cr, cw)?;
        let mut so_far = SoFar::default();
        let cancel = Cancel::new();
        compare_there(extents, &mut so_far, side(near), out, &cancel, monitor)?;
        far_end.join().unwrap()?;
        Ok(so_far.differing())
    })
}

#[derive(Debug, Clone)]
struct Case {
    one: Vec<u8>,
    other: Vec<u8>,
    extents: ChangeList,
}

fn case() -> impl Strategy<Value = Case> {
    let size = 1usize..5 << 20;
    let flips = prop::collection::vec(
        (any::<prop::sample::Index>(), 1usize..20_000, any::<bool>()),
        0..12,
    );
    let extents = prop::collection::vec(
        (any::<prop::sample::Index>(), 1u64..2 << 20, any::<bool>()),
        0..12,
    );
    (size, flips, prop::option::of(extents)).prop_map(|(size, flips, extents)| {
        let one: Vec<u8> = (0..size).map(|n| (n / 97) as u8).collect();
        let mut other = one.clone();
        for (at, length, single) in flips {
            let start = at.index(size);
            let end = (start + if single { 1 } else { length }).min(size);
            other[start..end].iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        let size = size as u64;
        let part = |(at, length, small): (prop::sample::Index, u64, bool)| {
            let offset = at.index(size as usize) as u64;
            let length = if small { length % 300 + 1 } else { length };
            (offset, length.min(size - offset))
        };
        let extents = extents.map_or_else(
            || ChangeList::whole(size),
            |parts| list(&parts.into_iter().map(part).collect::<Vec<_>>()),
        );
        Case {
            one,
            other,
            extents,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(256) / 2 + 1))]

    #[test]
    fn what_differs_is_exactly_what_is_found(case in case()) {
        let expected = model(&case.one, &case.other, &case.extents);
        let (one, other) = (MemoryVolume::new(case.one), MemoryVolume::new(case.other));
        let monitor = Recording::default();
        let found =
            compare_here(&case.extents, side(&one), side(&other), &Cancel::new(), &monitor).unwrap();
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!(monitor.progress().1, case.extents.total_bytes());
        let monitor = Recording::default();
        let found = through_a_session(&case.extents, &one, &other, &monitor).unwrap();
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!(monitor.progress().1, case.extents.total_bytes());
        let monitor = Recording::default();
        let [one, other] = [one, other].map(|volume| Device::of(volume.bytes()));
        let found = through_a_session(&case.extents, &one, &other, &monitor).unwrap();
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!(monitor.progress().1, case.extents.total_bytes());
    }
}

/// Long stretches without a difference, of which little is told, around blocks that differ.
#[test]
fn what_differs_after_a_long_stretch_is_found_in_its_place() {
    let size = (90 << 20) + 777;
    let one = vec![5; size];
    for places in [
        &[0, size - 1][..],
        &[size - 1],
        &[17 << 20, 33 << 20, 34 << 20, (66 << 20) + 9999],
        &[31 << 20, 32 << 20],
        &[],
    ] {
        let mut other = one.clone();
        places.iter().for_each(|place| other[*place] = 6);
        let whole = ChangeList::whole(size as u64);
        let expected = model(&one, &other, &whole);
        let [a, b] = [&one, &other].map(|bytes| MemoryVolume::new(bytes.clone()));
        let monitor = Recording::default();
        let found = compare_here(&whole, side(&a), side(&b), &Cancel::new(), &monitor).unwrap();
        assert_eq!(found, expected, "{places:?}");
        assert_eq!(monitor.progress().1, size as u64, "{places:?}");
    }
}

/// Read past any page cache, as it says, and counts what was read.
struct Device {
    volume: MemoryVolume,
    read_bytes: AtomicU64,
}

impl Device {
    fn of(bytes: Vec<u8>) -> Self {
        Self {
            volume: MemoryVolume::new(bytes),
            read_bytes: AtomicU64::new(0),
        }
    }

    fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }
}

impl ReadAt for Device {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_bytes
            .fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.volume.read_exact_at(buffer, offset)
    }

    fn enough_at_once(&self, _: Extent) -> u64 {
        PIECE_BYTES
    }
}

#[test]
fn a_closer_look_at_a_device_reads_nothing_again() {
    let size = (60 << 20) + 200_000;
    let one: Vec<u8> = (0..size).map(|n| (n / 97) as u8).collect();
    for every in [8 << 20, 3_000_000, 400_000, 70_000, 5000, 1] {
        let mut other = one.clone();
        other.iter_mut().step_by(every).for_each(|byte| *byte ^= 1);
        let whole = ChangeList::whole(size as u64);
        let expected = model(&one, &other, &whole);
        let (near, far) = (Device::of(one.clone()), Device::of(other));
        let found = through_a_session(&whole, &near, &far, &Silent).unwrap();
        assert_eq!(found, expected, "every {every}");
        // A machine that stands still for a moment looks like a long way, and what was asked for then may be read again.
        for read_bytes in [near.read_bytes(), far.read_bytes()] {
            let again = read_bytes - size as u64;
            assert!(again < size as u64 / 50, "every {every}: {again} again");
        }
    }
}

/// More requests than may be under way, each with an answer that fills a pipe.
#[test]
fn neither_end_waits_for_the_other_for_ever() {
    let size = 200 << 20;
    let one = MemoryVolume::new(vec![1; size]);
    let other = MemoryVolume::new(vec![2; size]);
    let whole = ChangeList::whole(size as u64);
    let found = through_a_session(&whole, &one, &other, &Silent).unwrap();
    assert_eq!(found, whole);
    // The same with as many extents as fit a request.
    let many: Vec<(u64, u64)> = (0..size as u64 / 8192)
        .map(|n| (n * 8192 + 1, 4096))
        .collect();
    let many = list(&many);
    let found = through_a_session(&many, &one, &other, &Silent).unwrap();
    assert_eq!(found, many);
}

#[test]
fn a_read_that_fails_names_its_volume_on_either_end() {
    let bytes = vec![1; 20 << 20];
    let good = MemoryVolume::new(bytes.clone());
    let place = Extent::new(17 << 20, 1).unwrap();
    let bad = FaultyVolume::new(MemoryVolume::new(bytes)).fail_touching(OpKind::Read, place, 5);
    let whole = ChangeList::whole(20 << 20);
    let cancel = Cancel::new();
    for (one, other) in [(&good as &dyn ReadAt, &bad as &dyn ReadAt), (&bad, &good)] {
        let error = compare_here(&whole, side(one), side(other), &cancel, &Silent).unwrap_err();
        assert!(error.to_string().contains("at 17825792 of v"), "{error}");
    }
    let Err(Failed::Here(error)) = through_a_session(&whole, &bad, &good, &Silent) else {
        panic!("the near end failed");
    };
    assert!(error.to_string().contains("at 17825792 of v"), "{error}");
    let Err(Failed::There(error)) = through_a_session(&whole, &good, &bad, &Silent) else {
        panic!("the far end failed");
    };
    assert!(error.to_string().contains("at 17825792 of v"), "{error}");
}

#[test]
fn a_cancelled_compare_is_interrupted() {
    let one = MemoryVolume::new(vec![1; 4 << 20]);
    let cancel = Cancel::new();
    cancel.cancel();
    let whole = ChangeList::whole(4 << 20);
    let error = compare_here(&whole, side(&one), side(&one), &cancel, &Silent).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
}

#[test]
fn what_became_equal_meanwhile_still_counts() {
    let pieces = [(0, 8192), (16_384, 8192)].map(|(o, l)| Extent::new(o, l).unwrap());
    let question = Question {
        window: 0,
        is_first: false,
        request: Request {
            block: BLOCK_BYTES,
            extents: pieces.to_vec(),
        },
    };
    let (ours, mut theirs) = (vec![[0; 32]; 4], vec![[0; 32]; 4]);
    theirs[3] = [1; 32];
    let mut differing = ChangeListBuilder::default();
    let found = look_closer(&question, &ours, &theirs, &mut differing);
    let nothing_more = Found {
        differing: 1,
        closer: None,
    };
    assert_eq!(found, nothing_more);
    assert_eq!(differing.finish(), list(&[(0, 8192), (20_480, 4096)]));
}

/// A client that asks what it may not, or stops.
fn asked(request: Option<Vec<u8>>, end: bool) -> SessionError {
    let ((cr, mut cw), (sr, sw)) = ends();
    let volume = MemoryVolume::new(vec![0; 3 * BLOCK]);
    let far = thread::spawn(move || serve(sr, sw, &volume));
    let hello = Message::Hello(Hello::ours(&[]));
    let request = request.map(Message::Ask);
    let messages = [hello, Message::Open(open())].into_iter().chain(request);
    for message in messages.chain(end.then_some(Message::End)) {
        // A far end that has ended reads no more, and what this one says then does not matter.
        match cw.write_all(&message.encode().unwrap()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result.unwrap(),
        }
    }
    drop(cw);
    let result = far.join().unwrap();
    drop(cr);
    match result {
        Err(Failed::There(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_far_end_believes_no_request() {
    let request = |offset, length| Request {
        block: BLOCK_BYTES,
        extents: vec![Extent::new(offset, length).unwrap()],
    };
    let whole = request(0, 100).encode();
    for cut in 0..whole.len() {
        let error = asked(Some(whole[..cut].to_vec()), true);
        let is_it = matches!(error, SessionError::Request(_));
        assert!(is_it, "{cut}: {error:?}");
    }
    let error = asked(None, false);
    assert!(error.to_string().contains("Ask or End"), "{error}");
    let beyond = request(2 * BLOCK_BYTES, BLOCK_BYTES + 1).encode();
    let error = asked(Some(beyond), true);
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert!(text.contains("end within 12288"), "{text}");
}

/// A server from a script, which begins when it is asked first.
fn scripted(sr: PipeReader, mut sw: PipeWriter, answers: Vec<Message>, asked_first: bool) {
    let mut say = |message: Message| sw.write_all(&message.encode().unwrap());
    let mut reader = MessageReader::new(sr);
    let mut wait_for = |tag| while reader.expect("one").unwrap().tag() != tag {};
    say(Message::Hello(Hello::ours(&[]))).unwrap();
    wait_for(Tag::Open);
    say(Message::Ready(Ready::default())).unwrap();
    if asked_first {
        wait_for(Tag::Ask);
    }
    let says_nothing = answers.is_empty();
    for answer in answers {
        let _ = say(answer);
    }
    if says_nothing {
        drop(sw);
    }
    while let Ok(Some(_)) = reader.next_message() {}
}

/// The stream of a client that has such a server.
fn opened(cr: PipeReader, cw: PipeWriter) -> Connected {
    let greeted = io::Cursor::new(GREETING).chain(cr);
    let client = Client::connect(greeted, cw, &[FEATURE_COMPARE], Arc::new(()))?;
    Ok(client.open(open())?.1)
}

#[test]
fn the_near_end_believes_no_answer() {
    let digests = |n: usize| Message::Digests(vec![0; n]);
    let near = MemoryVolume::new(vec![0; 20 << 20]);
    for (answers, word) in [
        (vec![], "closed while waiting for Done"),
        (vec![digests(0)], "0 bytes of digests where 128"),
        (vec![digests(127)], "127 bytes of digests"),
        (vec![digests(160)], "160 bytes of digests"),
        (vec![Message::Done(Done::default())], "sent Done before End"),
        (vec![Message::End], "sent End where Ack or Done"),
    ] {
        let ((cr, cw), (sr, sw)) = ends();
        let far = thread::spawn(move || scripted(sr, sw, answers, true));
        let whole = ChangeList::whole(20 << 20);
        let out = opened(cr, cw).unwrap();
        let (mut so_far, cancel) = (SoFar::default(), Cancel::new());
        let found = compare_there(&whole, &mut so_far, side(&near), out, &cancel, &Silent);
        far.join().unwrap();
        let Err(Failed::There(error)) = found else {
            panic!("{word}: {found:?}");
        };
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[test]
fn digests_that_nobody_asked_for_end_the_session() {
    let ((cr, cw), (sr, sw)) = ends();
    let unasked = vec![Message::Digests(vec![0; 32])];
    let far = thread::spawn(move || scripted(sr, sw, unasked, false));
    let error = opened(cr, cw).unwrap().finish().unwrap_err();
    far.join().unwrap();
    let text = error.to_string();
    assert!(text.contains("sent Digests where Ack or Done"), "{text}");
}
