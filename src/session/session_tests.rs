//! Tests of the two ends against each other, through pipes in one process.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;

use proptest::prelude::*;

use super::SessionError;
use super::client::{Client, Outgoing, SessionEvents};
use super::handshake::GREETING;
use super::message::*;
use super::server::Server;
use crate::error::{Error, ExitCode};

/// A pipe for each direction, as with ssh: dropping a writer is the end of the other end's input.
fn ends() -> ((PipeReader, PipeWriter), (PipeReader, PipeWriter)) {
    let (client_reader, server_writer) = std::io::pipe().unwrap();
    let (server_reader, client_writer) = std::io::pipe().unwrap();
    (
        (client_reader, client_writer),
        (server_reader, server_writer),
    )
}

fn request() -> Open {
    Open {
        operation: OPERATION_APPLY.into(),
        destination: "vg/lv".into(),
        options: ApplyOptions {
            undo: Some("/tmp/u".into()),
            force: true,
            ..Default::default()
        },
        source: None,
        ..Open::default()
    }
}

fn ready() -> Ready {
    Ready {
        destination: "/dev/vg/lv".into(),
        size_bytes: 1 << 40,
        kind: "block".into(),
        ..Ready::default()
    }
}

type Served = Server<PipeReader, PipeWriter>;

/// Runs `serve` at one end after the handshake and the request, and `send` at the other.
fn session<S: Send + 'static, C>(
    serve: impl FnOnce(Served) -> S + Send + 'static,
    send: impl FnOnce(Outgoing<PipeWriter>) -> C,
    events: Arc<dyn SessionEvents>,
) -> (S, C) {
    let ((cr, cw), (sr, sw)) = ends();
    let far = thread::spawn(move || {
        let mut server = Server::accept(sr, sw).unwrap();
        assert_eq!(server.request().unwrap(), request());
        server.ready(ready()).unwrap();
        serve(server)
    });
    let client = Client::connect(cr, cw, &["undo"], events).unwrap();
    assert_eq!(client.agreed().protocol, 1);
    let (found, out) = client.open(request()).unwrap();
    assert_eq!(found, ready());
    let sent = send(out);
    (far.join().unwrap(), sent)
}

#[derive(Default)]
struct Heard(Mutex<(Vec<u64>, Vec<String>)>);

impl SessionEvents for Heard {
    fn acknowledged(&self, ack: &Ack) {
        self.0.lock().unwrap().0.push(ack.offset);
    }
    fn warning(&self, text: &str) {
        self.0.lock().unwrap().1.push(text.to_owned());
    }
}

fn stream(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

#[test]
fn a_stream_arrives_whole_and_done_comes_back() {
    let heard = Arc::new(Heard::default());
    let bytes = stream(3_000_001);
    let expected = bytes.clone();
    let (received, done) = session(
        |mut server| {
            let replies = server.replies();
            let mut received = Vec::new();
            let mut buffer = vec![0; 70_000];
            replies.warn("no record\x1b[2J").unwrap();
            loop {
                let n = server.read(&mut buffer).unwrap();
                if n == 0 {
                    break;
                }
                received.extend_from_slice(&buffer[..n]);
                let offset = received.len() as u64;
                replies
                    .ack(Ack {
                        offset,
                        ..Ack::default()
                    })
                    .unwrap();
            }
            assert_eq!(
                server.read(&mut buffer).unwrap(),
                0,
                "the end stays the end"
            );
            replies
                .done(Done {
                    frames: 7,
                    ..Done::default()
                })
                .unwrap();
            replies.ack(Ack::default()).unwrap(); // after the last word nothing is sent
            received
        },
        |mut out| {
            for piece in bytes.chunks(100_003) {
                out.write_all(piece).unwrap();
            }
            out.flush().unwrap();
            out.finish()
        },
        Arc::clone(&heard) as Arc<dyn SessionEvents>,
    );
    assert!(received == expected);
    assert_eq!(done.unwrap().frames, 7);
    let heard = heard.0.lock().unwrap();
    assert_eq!(heard.0.last(), Some(&3_000_001));
    assert_eq!(heard.1, ["no record\u{fffd}[2J"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Large pieces go past the buffers of both ends, and small ones through them.
    #[test]
    fn any_pieces_arrive_as_one_stream(
        writes in prop::collection::vec((0usize..600_000, any::<bool>()), 0..9),
        reads in prop::collection::vec(prop_oneof![1usize..5000, 200_000usize..700_000], 1..5),
    ) {
        let bytes = stream(writes.iter().map(|(length, _)| length).sum());
        let expected = bytes.clone();
        let (received, done) = session(
            move |mut server| {
                let (mut received, mut reads) = (Vec::new(), reads.iter().cycle());
                loop {
                    let mut buffer = vec![0xEE; *reads.next().unwrap()];
                    match server.read(&mut buffer).unwrap() {
                        0 => break,
                        read => received.extend_from_slice(&buffer[..read]),
                    }
                }
                server.replies().done(Done::default()).unwrap();
                received
            },
            |mut out| {
                let mut rest = bytes.as_slice();
                for (length, flushes) in writes {
                    let (piece, behind) = rest.split_at(length);
                    out.write_all(piece).unwrap();
                    rest = behind;
                    if flushes {
                        out.flush().unwrap();
                    }
                }
                out.finish()
            },
            Arc::new(Heard::default()),
        );
        prop_assert!(received == expected);
        prop_assert!(done.is_ok());
    }
}

#[test]
fn an_empty_stream_is_a_stream() {
    let (received, done) = session(
        |mut server| {
            let mut received = Vec::new();
            server.read_to_end(&mut received).unwrap();
            server.replies().done(Done::default()).unwrap();
            received
        },
        Outgoing::finish,
        Arc::new(()),
    );
    assert!(received.is_empty() && done.is_ok());
}

#[test]
fn a_remote_failure_in_the_middle_is_told_in_its_own_words_with_its_code() {
    for at_once in [true, false] {
        let (_, error) = session(
            move |mut server| {
                let mut some = [0; 1000];
                if !at_once {
                    server.read_exact(&mut some).unwrap();
                }
                let error = Error::refused("/dev/vg/lv", "line one\nline two", "way out");
                server.replies().fail(&error).unwrap();
            },
            |mut out| {
                let piece = vec![1; 1 << 20];
                let error = loop {
                    if let Err(error) = out.write_all(&piece) {
                        break error;
                    }
                };
                assert!(error.to_string().contains("line two"), "{error}");
                out.abort("local").unwrap()
            },
            Arc::new(()),
        );
        let error = error.into_error("host");
        assert_eq!(error.exit_code(), ExitCode::Refused);
        let text = error.to_string();
        assert!(
            text.contains("/dev/vg/lv: line one\nline two\nway out"),
            "{text}"
        );
    }
}

#[test]
fn a_failure_after_the_last_byte_is_not_success() {
    let (_, done) = session(
        |mut server| {
            std::io::copy(&mut server, &mut std::io::sink()).unwrap();
            let source = std::io::Error::from_raw_os_error(5);
            server
                .replies()
                .fail(&Error::io("cannot sync", source))
                .unwrap();
        },
        |mut out| {
            out.write_all(b"x").unwrap();
            out.finish()
        },
        Arc::new(()),
    );
    let error = done.unwrap_err().into_error("h");
    assert_eq!(error.exit_code(), ExitCode::Remote);
    assert!(error.to_string().contains("cannot sync: "), "{error}");
}

#[test]
fn a_client_that_stops_says_why_and_one_that_vanishes_is_noticed() {
    for farewell in [true, false] {
        let (failure, ()) = session(
            |mut server| {
                let error = std::io::copy(&mut server, &mut std::io::sink()).unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
                assert!(server.read(&mut [0; 1]).is_err(), "and stays an error");
                server.into_failure().unwrap()
            },
            move |mut out| {
                out.write_all(&[1; 1000]).unwrap();
                out.flush().unwrap();
                if farewell {
                    assert!(out.abort("the source\x07 broke").is_none());
                } else {
                    drop(out);
                }
            },
            Arc::new(()),
        );
        match failure {
            SessionError::Stopped {
                reason, code: 0, ..
            } => {
                assert!(farewell);
                assert_eq!(reason, "the source\u{fffd} broke");
            }
            SessionError::Closed { .. } => assert!(!farewell),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn what_a_sender_failed_of_has_its_code_and_is_never_success_nor_our_signal() {
    for (code, expected) in [
        (1, ExitCode::Failed),
        (4, ExitCode::TrackingLost),
        (130, ExitCode::Remote),
        (0, ExitCode::Remote),
        (99, ExitCode::Remote),
    ] {
        let (failure, ()) = session(
            |mut server| {
                std::io::copy(&mut server, &mut std::io::sink()).unwrap_err();
                server.into_failure().unwrap()
            },
            move |out| {
                let farewell = Message::bye_with(code, "the source broke", "vg/data");
                assert!(out.abort_with(&farewell).is_none());
            },
            Arc::new(()),
        );
        assert!(!failure.is_lost());
        assert_eq!(failure.recover(), Some("vg/data"));
        let error = failure.into_error("host");
        assert_eq!(error.exit_code(), expected, "{code}");
        let text = error.chain();
        assert!(
            text.starts_with("host: ") && text.contains("the source broke"),
            "{text}"
        );
    }
}

/// What a well-behaved server sends, message by message.
fn server_script() -> Vec<Vec<u8>> {
    vec![
        GREETING.to_vec(),
        Message::Hello(Hello::ours(&[])).encode().unwrap(),
        Message::Ready(ready()).encode().unwrap(),
        Message::Ack(Ack::default()).encode().unwrap(),
        Message::Done(Done::default()).encode().unwrap(),
    ]
}

fn client_script() -> Vec<Vec<u8>> {
    vec![
        Message::Hello(Hello::ours(&[])).encode().unwrap(),
        Message::Open(request()).encode().unwrap(),
        Message::Data(vec![1; 100]).encode().unwrap(),
        Message::End.encode().unwrap(),
    ]
}

/// A client against bytes from a script.
fn run_client(script: Vec<u8>) -> Result<Done, SessionError> {
    let ((cr, cw), (sr, mut sw)) = ends();
    let far = thread::spawn(move || {
        let _ = sw.write_all(&script);
        drop(sw);
        let mut sr = sr;
        let _ = std::io::copy(&mut sr, &mut std::io::sink());
    });
    let run = || {
        let client = Client::connect(cr, cw, &[], Arc::new(()))?;
        let (_, mut out) = client.open(request())?;
        match out.write_all(&[1; 100]) {
            Ok(()) => out.finish(),
            Err(_) => Err(out.abort("x").unwrap()),
        }
    };
    let result = run();
    far.join().unwrap();
    result
}

fn run_server(script: &[u8]) -> Result<Vec<u8>, SessionError> {
    let mut server = Server::accept(script, std::io::sink())?;
    server.request()?;
    server.ready(ready())?;
    let mut received = Vec::new();
    match server.read_to_end(&mut received) {
        Ok(_) => Ok(received),
        Err(_) => Err(server.into_failure().unwrap()),
    }
}

#[test]
fn a_peer_that_is_gone_at_any_byte_is_never_success() {
    let whole = server_script().concat();
    for length in 0..whole.len() {
        match run_client(whole[..length].to_vec()) {
            Err(SessionError::Closed { .. } | SessionError::NotASession { .. }) => {}
            other => panic!("at {length}: {other:?}"),
        }
    }
    let whole = client_script().concat();
    assert_eq!(run_server(&whole).unwrap(), [1; 100]);
    for length in 0..whole.len() {
        match run_server(&whole[..length]) {
            Err(SessionError::Closed { .. }) => {}
            other => panic!("at {length}: {other:?}"),
        }
    }
}

#[test]
fn every_flipped_bit_is_an_error() {
    let whole = client_script().concat();
    for bit in 0..whole.len() * 8 {
        let mut script = whole.clone();
        script[bit / 8] ^= 1 << (bit % 8);
        let error = run_server(&script).unwrap_err();
        assert!(
            matches!(
                error,
                SessionError::Message(_) | SessionError::Closed { .. }
            ),
            "bit {bit}: {error:?}"
        );
    }
}

#[test]
fn a_message_out_of_order_is_an_error_that_names_both() {
    let script = client_script();
    for (order, expected) in [
        (vec![1], "sent Open where Hello"),
        (vec![0, 0], "sent Hello where Open"),
        (vec![0, 2], "sent Data where Open"),
        (vec![0, 3], "sent End where Open"),
        (vec![0, 1, 1], "sent Open where Data or End"),
    ] {
        let bytes = order
            .iter()
            .flat_map(|i| script[*i].clone())
            .collect::<Vec<u8>>();
        let text = run_server(&bytes).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
    let script = server_script();
    for (order, expected) in [
        (vec![0, 2], "sent Ready where Hello"),
        (vec![0, 1, 3], "sent Ack where Ready"),
        (vec![0, 1, 4], "sent Done where Ready"),
        (vec![0, 1, 2, 2], "sent Ready where Ack or Done"),
    ] {
        let bytes = order.iter().flat_map(|i| script[*i].clone()).collect();
        let text = run_client(bytes).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn done_before_the_end_is_not_believed() {
    let (_, error) = session(
        |server| server.replies().done(Done::default()).unwrap(),
        |mut out| {
            loop {
                if out.write_all(&[0; 1 << 18]).is_err() {
                    break out.abort("x").unwrap();
                }
            }
        },
        Arc::new(()),
    );
    assert!(error.to_string().contains("Done before End"), "{error}");
}

#[test]
fn noise_before_the_greeting_is_shown() {
    let mut noise = b"Welcome to \x1b[1mhost\x1b[0m\n".to_vec();
    noise.extend(server_script().concat());
    let error = run_client(noise).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("Welcome to \u{fffd}[1mhost") && text.contains("start-up files"),
        "{text}"
    );
    assert!(text.len() < 800, "{text}");
}

#[test]
fn hellos_that_do_not_agree_end_the_session_on_both_sides() {
    let future = Hello {
        protocol_min: 2,
        protocol_max: 9,
        ..Hello::ours(&[])
    };
    let hello = Message::Hello(future).encode().unwrap();
    let error = run_client([GREETING, &hello].concat()).unwrap_err();
    assert!(error.to_string().contains("no common version"), "{error}");

    let needy = Message::Hello(Hello::ours(&["teleport"])).encode().unwrap();
    let mut written = Vec::new();
    let error = Server::accept(&needy[..], &mut written).err().unwrap();
    assert!(error.to_string().contains("`teleport`"), "{error}");
    let text = String::from_utf8_lossy(&written);
    assert!(text.contains("teleport"), "the client hears of it: {text}");
}

#[test]
fn an_unknown_operation_is_reported_by_name() {
    let open = Open {
        operation: "format\n".into(),
        ..request()
    };
    let (hello, open) = (Message::Hello(Hello::ours(&[])), Message::Open(open));
    let script = [hello.encode().unwrap(), open.encode().unwrap()].concat();
    let mut written = Vec::new();
    let mut server = Server::accept(&script[..], &mut written).unwrap();
    assert!(
        server
            .request()
            .unwrap_err()
            .to_string()
            .contains("`format")
    );
    drop(server);
    assert!(String::from_utf8_lossy(&written).contains("is not known"));
}

#[test]
fn an_error_is_never_success_whatever_its_code() {
    let failure = |code| {
        SessionError::Reported(Failure {
            held: false,
            code,
            message: "m".into(),
            recover: String::new(),
        })
    };
    assert_eq!(failure(0).into_error("h").exit_code(), ExitCode::Remote);
    assert_eq!(failure(99).into_error("h").exit_code(), ExitCode::Remote);
    assert_eq!(failure(6).into_error("h").exit_code(), ExitCode::Damaged);
}
