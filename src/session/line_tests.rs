//! Tests of deadlines and pings, over pipes and sockets in one process.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::SessionError;
use super::client::Client;
use super::handshake::GREETING;
use super::line::{Line, LineReader, LineWriter, Silence, ping_interval};
use super::message::*;
use super::server::Server;
use super::transport::MessageWriter;
use crate::cancel::Cancel;
use crate::error::ExitCode;

const TIMEOUT: Duration = Duration::from_millis(400);
/// Nothing here may take so long, however busy the machine is.
const FAR_TOO_LONG: Duration = Duration::from_secs(15);

fn line(timeout: Duration) -> Line {
    Line::new(Cancel::new(), Some(timeout))
}

type Ends = (
    (PipeReader, PipeWriter), // the client's
    (PipeReader, PipeWriter), // the server's
);

fn ends() -> Ends {
    let (client_reader, server_writer) = std::io::pipe().unwrap();
    let (server_reader, client_writer) = std::io::pipe().unwrap();
    (
        (client_reader, client_writer),
        (server_reader, server_writer),
    )
}

type LineClient = Client<LineReader<PipeReader>, LineWriter<PipeWriter>>;
type LineServer = Server<LineReader<PipeReader>, LineWriter<PipeWriter>>;

fn connect(
    line: &Line,
    (reader, writer): (PipeReader, PipeWriter),
) -> Result<LineClient, SessionError> {
    line.begins();
    let (reader, writer) = (line.reader(reader), line.own_writer(writer));
    let client = Client::connect_within(reader, writer, &[], Arc::new(()), line.timeout())?;
    line.has_begun();
    Ok(client)
}

fn accept(
    line: &Line,
    (reader, writer): (PipeReader, PipeWriter),
) -> Result<(LineServer, Open), SessionError> {
    line.begins();
    let (reader, writer) = (line.reader(reader), line.writer(writer));
    let mut server = Server::accept_within(reader, writer, line.timeout())?;
    let open = server.request()?;
    line.has_begun();
    server.keep_alive();
    Ok((server, open))
}

fn request() -> Open {
    Open {
        operation: OPERATION_APPLY.into(),
        destination: "vg/lv".into(),
        ..Open::default()
    }
}

/// Says hello and nothing more; what it is sent stays where it is. The pipes stay open.
fn greet_and_fall_silent(mut writer: &PipeWriter) {
    writer.write_all(GREETING).unwrap();
    let hello = Message::Hello(Hello::ours(&[])).encode().unwrap();
    writer.write_all(&hello).unwrap();
}

fn assert_silent(error: &SessionError, words: &str) {
    assert!(matches!(error, SessionError::Silent { .. }), "{error:?}");
    assert!(error.is_lost());
    let text = error.to_string();
    assert!(text.contains(words) && text.contains("--timeout"), "{text}");
}

#[test]
fn a_silent_server_is_given_up_wherever_it_falls_silent() {
    // Before the greeting.
    let (client, server) = ends();
    let start = Instant::now();
    let error = connect(&line(TIMEOUT), client).err().unwrap();
    assert_silent(&error, "within 0.4 s: the greeting");
    assert!(start.elapsed() >= TIMEOUT, "{:?}", start.elapsed());
    drop(server);
    // Before Ready.
    let (client, server) = ends();
    greet_and_fall_silent(&server.1);
    let error = connect(&line(TIMEOUT), client)
        .unwrap()
        .open(request())
        .err()
        .unwrap();
    assert_silent(&error, "for 0.4 s while waiting for Ready");
    drop(server);
    // Before Done.
    let (client, server) = ends();
    greet_and_fall_silent(&server.1);
    (&server.1)
        .write_all(&Message::Ready(Ready::default()).encode().unwrap())
        .unwrap();
    let (_, out) = connect(&line(TIMEOUT), client)
        .unwrap()
        .open(request())
        .unwrap();
    let error = out.finish().unwrap_err();
    assert_silent(&error, "for 0.4 s while waiting for Done");
    assert!(start.elapsed() < FAR_TOO_LONG);
    assert_eq!(error.into_error("h").exit_code(), ExitCode::Remote);
}

#[test]
fn a_silent_client_is_given_up_wherever_it_falls_silent() {
    let hello = Message::Hello(Hello::ours(&[])).encode().unwrap();
    let open = Message::Open(request()).encode().unwrap();
    let start = Instant::now();
    for (said, words) in [
        (vec![], "within 0.4 s: Hello"),
        (hello.clone(), "within 0.4 s: Open"),
        ([&hello[..], &open[..7]].concat(), "within 0.4 s: Open"),
    ] {
        let (client, server) = ends();
        (&client.1).write_all(&said).unwrap();
        let error = accept(&line(TIMEOUT), server).err().unwrap();
        assert_silent(&error, words);
    }
    let (client, server) = ends();
    (&client.1).write_all(&[hello, open].concat()).unwrap();
    let (mut server, _) = accept(&line(TIMEOUT), server).unwrap();
    let error = server.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert_silent(
        &server.into_failure().unwrap(),
        "0.4 s while waiting for Data or End",
    );
    assert!(start.elapsed() < FAR_TOO_LONG);
}

#[test]
fn a_client_that_only_pings_does_not_hold_a_server_that_waits_for_open() {
    let (client, server) = ends();
    let pings = thread::spawn(move || {
        let hello = Message::Hello(Hello::ours(&[])).encode().unwrap();
        (&client.1).write_all(&hello).unwrap();
        let ping = Message::Ping.encode().unwrap().repeat(100);
        let start = Instant::now();
        // Until the server is gone.
        while start.elapsed() < FAR_TOO_LONG && (&client.1).write_all(&ping).is_ok() {}
        start.elapsed()
    });
    let error = accept(&line(TIMEOUT), server).err().unwrap();
    assert_silent(&error, "within 0.4 s: Open");
    assert!(pings.join().unwrap() < FAR_TOO_LONG);
}

#[test]
fn a_busy_end_that_pings_is_never_given_up() {
    let (client, server) = ends();
    // The server's own timeout is long: it learns from the client's Hello how often it has to ping.
    let far = thread::spawn(move || {
        let (mut server, _) = accept(&line(Duration::from_secs(60)), server).unwrap();
        thread::sleep(3 * TIMEOUT); // opens something big
        server.ready(Ready::default()).unwrap();
        thread::sleep(3 * TIMEOUT); // reads nothing: the client's pipe fills up
        let read = std::io::copy(&mut server, &mut std::io::sink()).unwrap();
        thread::sleep(3 * TIMEOUT); // syncs
        server.replies().done(Done::default()).unwrap();
        read
    });
    let client = connect(&line(TIMEOUT), client).unwrap();
    let (_, mut out) = client.open(request()).unwrap();
    let data = vec![7; 1 << 20];
    out.write_all(&data).unwrap();
    out.finish().unwrap();
    assert_eq!(far.join().unwrap(), 1 << 20);
}

#[test]
fn a_client_whose_source_hangs_is_not_given_up() {
    let (client, server) = ends();
    let far = thread::spawn(move || {
        let (mut server, _) = accept(&line(TIMEOUT), server).unwrap();
        server.ready(Ready::default()).unwrap();
        let read = std::io::copy(&mut server, &mut std::io::sink()).unwrap();
        server.replies().done(Done::default()).unwrap();
        read
    });
    let client = connect(&line(Duration::from_secs(60)), client).unwrap();
    let (_, mut out) = client.open(request()).unwrap();
    for _ in 0..2 {
        thread::sleep(3 * TIMEOUT);
        out.write_all(&[1; 1000]).unwrap();
    }
    out.finish().unwrap();
    assert_eq!(far.join().unwrap(), 2000);
}

/// Fills what nobody reads until it fails.
fn fill(out: &mut impl Write) -> std::io::Error {
    loop {
        if let Err(error) = out.write_all(&[1; 100_000]) {
            return error;
        }
    }
}

#[test]
fn a_write_that_nobody_reads_ends_at_the_deadline() {
    let start = Instant::now();
    let (_held, writer) = std::io::pipe().unwrap();
    let error = fill(&mut line(TIMEOUT).own_writer(writer));
    assert_eq!(
        Silence::of(&error).map(|silence| silence.waited),
        Some(TIMEOUT)
    );
    let (_held, writer) = std::io::pipe().unwrap();
    let error = fill(&mut line(TIMEOUT).writer(writer));
    assert!(Silence::of(&error).is_some(), "{error}");
    let (_held, socket) = UnixStream::pair().unwrap();
    let error = fill(&mut line(TIMEOUT).writer(socket));
    assert!(Silence::of(&error).is_some(), "{error}");

    // A client in the middle of its stream: it says why, and does not wait once more to say goodbye.
    let (client, server) = ends();
    greet_and_fall_silent(&server.1);
    (&server.1)
        .write_all(&Message::Ready(Ready::default()).encode().unwrap())
        .unwrap();
    let (_, mut out) = connect(&line(TIMEOUT), client)
        .unwrap()
        .open(request())
        .unwrap();
    fill(&mut out);
    assert_silent(
        &out.abort("x").unwrap(),
        "nothing was heard of the far end for 0.4 s",
    );
    // A server whose answers nobody reads.
    let (client, server) = ends();
    let said = [Message::Hello(Hello::ours(&[])), Message::Open(request())];
    for message in said {
        (&client.1).write_all(&message.encode().unwrap()).unwrap();
    }
    let (server, _) = accept(&line(TIMEOUT), server).unwrap();
    let replies = server.replies();
    let error = loop {
        if let Err(error) = replies.warn(&"w".repeat(5000)) {
            break error;
        }
    };
    assert_silent(&error, "it to read what is sent");
    assert!(
        replies.done(Done::default()).is_err(),
        "half a message went out"
    );
    assert!(start.elapsed() < FAR_TOO_LONG);
}

#[test]
fn a_write_that_nobody_reads_ends_at_a_cancel() {
    let start = Instant::now();
    for own in [true, false] {
        let (_held, writer) = std::io::pipe().unwrap();
        let cancel = Cancel::new();
        let line = Line::new(cancel.clone(), None);
        let canceller = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            cancel.cancel();
        });
        let mut out = if own {
            line.own_writer(writer)
        } else {
            line.writer(writer)
        };
        let error = fill(&mut out);
        assert!(error.to_string().contains("interrupted"), "{error}");
        canceller.join().unwrap();
    }
    assert!(start.elapsed() < FAR_TOO_LONG);
}

#[test]
fn the_last_words_of_a_cancelled_run_go_out_if_there_is_room() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    let mut out = Line::new(cancel, None).writer(writer);
    out.write_all(b"bye").unwrap();
    drop(out);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bye");
}

#[test]
fn an_inherited_output_keeps_its_flags_and_everything_arrives() {
    use rustix::fs::{OFlags, fcntl_getfl};
    use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};
    for once_more in [false, true] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let inherited = writer.try_clone().unwrap();
        let writer = File::from(OwnedFd::from(writer));
        let mut out = match once_more {
            true => line(FAR_TOO_LONG).shared_writer(writer),
            false => line(FAR_TOO_LONG).writer(writer),
        };
        assert_eq!(out.is_own(), once_more);
        let before = fcntl_getpipe_size(&reader).unwrap();
        out.write_all(&[]).unwrap();
        assert_eq!(fcntl_getpipe_size(&reader), Ok(before), "not for little");
        // More than the widest pipe holds.
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let sender = thread::spawn(move || out.write_all(&sent).unwrap());
        assert!(!fcntl_getfl(&inherited).unwrap().contains(OFlags::NONBLOCK));
        let mut received = vec![0; 3_000_000];
        reader.read_exact(&mut received).unwrap();
        sender.join().unwrap();
        let other = std::io::pipe().unwrap().0;
        if fcntl_setpipe_size(&other, 1 << 20).is_ok() {
            assert_eq!(fcntl_getpipe_size(&reader), Ok(1 << 20));
        }
        assert!(
            received
                .iter()
                .enumerate()
                .all(|(i, byte)| usize::from(*byte) == i % 251)
        );
        drop(inherited);
        assert_eq!(
            reader.read(&mut received).unwrap(),
            0,
            "nobody else has it open"
        );
    }
}

#[test]
fn an_inherited_output_that_nobody_reads_any_more_is_closed() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut out = line(FAR_TOO_LONG).shared_writer(File::from(OwnedFd::from(writer)));
    let error = out.write_all(b"bye").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn an_end_to_read_from_never_becomes_one_to_write_to() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let mut out = line(FAR_TOO_LONG).shared_writer(File::from(OwnedFd::from(reader)));
    assert!(!out.is_own());
    assert!(out.write_all(b"bye").is_err());
}

#[test]
fn a_pipe_to_read_from_is_wide_when_much_comes_through_it() {
    use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};
    let (reader, mut writer) = std::io::pipe().unwrap();
    let before = fcntl_getpipe_size(&writer).unwrap();
    let mut input = line(FAR_TOO_LONG).reader(reader);
    writer.write_all(&[1; 2000]).unwrap();
    assert!(input.read(&mut [0; 64 << 10]).unwrap() > 0);
    assert_eq!(fcntl_getpipe_size(&writer), Ok(before));
    writer.write_all(&[1; 2000]).unwrap();
    assert!(input.read(&mut [0; 65 << 10]).unwrap() > 0);
    let other = std::io::pipe().unwrap().0;
    if fcntl_setpipe_size(&other, 1 << 20).is_ok() {
        assert_eq!(fcntl_getpipe_size(&writer), Ok(1 << 20));
    }
}

#[test]
fn pings_come_four_times_in_the_shorter_timeout() {
    let s = Duration::from_secs;
    assert_eq!(ping_interval(None, None), s(15));
    assert_eq!(ping_interval(Some(s(60)), None), s(15));
    assert_eq!(ping_interval(Some(s(600)), Some(s(8))), s(2));
    assert_eq!(ping_interval(Some(s(600)), Some(s(600))), s(15));
    assert_eq!(
        ping_interval(None, Some(Duration::from_millis(1))),
        Duration::from_millis(50)
    );
}

#[test]
fn a_ping_does_not_follow_the_last_word() {
    let ((mut reader, client_writer), server) = ends();
    for message in [
        Message::Hello(Hello::ours(&[]).with_timeout(Some(TIMEOUT))),
        Message::Open(request()),
    ] {
        (&client_writer)
            .write_all(&message.encode().unwrap())
            .unwrap();
    }
    let (server, _) = accept(&line(TIMEOUT), server).unwrap();
    thread::sleep(TIMEOUT);
    server.replies().done(Done::default()).unwrap();
    thread::sleep(TIMEOUT);
    drop(server);
    let mut said = Vec::new();
    reader.read_to_end(&mut said).unwrap();
    let mut rest = &said[GREETING.len()..];
    let mut tags = Vec::new();
    while let Ok(Decoded::Complete { message, consumed }) = decode(rest) {
        tags.push(message.tag());
        rest = &rest[consumed..];
    }
    assert!(rest.is_empty());
    assert_eq!(tags.last(), Some(&Tag::Done));
    assert!(tags.contains(&Tag::Ping), "{tags:?}");
}

#[test]
fn nothing_follows_a_message_that_was_cut() {
    /// Takes a few bytes, then nothing for once, then everything.
    struct Hiccup(usize);
    impl Write for Hiccup {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += 1;
            match self.0 {
                1 => Ok(bytes.len().min(5)),
                2 => Err(std::io::Error::other("no room")),
                _ => Ok(bytes.len()),
            }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut writer = MessageWriter::new(Hiccup(0));
    assert!(writer.send(&Message::warning("w")).is_err());
    let error = writer.send(&Message::End).unwrap_err();
    assert!(error.is_lost(), "{error:?}");
    assert!(
        writer
            .clone()
            .send_data_in_place(&mut [0; 20], &[])
            .is_err()
    );
}

#[test]
fn a_message_in_two_parts_is_one_however_little_the_output_takes() {
    /// Takes so much at a time, and is interrupted in between.
    struct Slow(Vec<u8>, usize, bool);
    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.2 = !self.2;
            if self.2 {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            let taken = bytes.len().min(self.1);
            self.0.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }
        fn write_vectored(&mut self, parts: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
            let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
            self.write(&parts.concat())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let expected = Message::Data((0..90).collect()).encode().unwrap();
    for (waiting, at_a_time) in [(0, 1), (0, 200), (1, 17), (50, 3), (89, 105), (90, 5)] {
        let mut slow = Slow(Vec::new(), at_a_time, false);
        let mut buffer = vec![0; HEADER_BYTES];
        buffer.extend(0..waiting);
        let rest: Vec<u8> = (waiting..90).collect();
        let mut writer = MessageWriter::new(&mut slow);
        writer.send_data_in_place(&mut buffer, &rest).unwrap();
        assert_eq!(writer.traffic().bytes(), expected.len() as u64);
        drop(writer);
        assert_eq!(
            slow.0, expected,
            "{waiting} and the rest, {at_a_time} at a time"
        );
    }
}
