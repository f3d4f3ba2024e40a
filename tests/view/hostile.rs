//! Clients that lie, stop, or say anything: they end their own connection, and nothing else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::bench::{Dir, Serving};
use crate::model::Noise;

const OPTION: &[u8] = b"IHAVEOPT";

fn connect(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream
}

/// In transmission, with simple replies.
fn begun(path: &Path) -> UnixStream {
    let mut stream = connect(path);
    stream.write_all(&[0, 0, 0, 3]).unwrap();
    stream
        .write_all(&[OPTION, &[0, 0, 0, 1, 0, 0, 0, 0]].concat())
        .unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

fn request(command: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13, 0, 0];
    bytes.extend(command.to_be_bytes());
    bytes.extend(77u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// The error of a simple reply.
fn error(stream: &mut UnixStream) -> u32 {
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], [0x67, 0x44, 0x66, 0x98]);
    assert_eq!(reply[8..], 77u64.to_be_bytes());
    u32::from_be_bytes(reply[4..8].try_into().unwrap())
}

/// The other end has nothing more to say.
fn ended(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn setup() -> (Dir, Serving) {
    let dir = Dir::new();
    let serving = dir.serve("lvmsync view mon.delta --base base --nbd unix:sock");
    (dir, serving)
}

#[test]
fn each_wrong_request_has_its_error_and_the_connection_goes_on() {
    let (dir, serving) = setup();
    let mut stream = begun(&dir.path("sock"));
    let size = dir.states[1].len() as u64;
    stream
        .write_all(&[request(1, 0, 5), b"hello".to_vec()].concat())
        .unwrap();
    assert_eq!(error(&mut stream), 1, "EPERM");
    for (command, offset, length, expected) in [
        (4, 0, 4096, 1),
        (6, 0, 4096, 1),
        (0, size - 1, 2, 22),
        (0, u64::MAX, 1, 22),
        (0, 0, u32::MAX, 75),
        (7, 0, 1, 22),
        (77, 0, 1, 95),
        (3, 0, 0, 0),
        (5, 0, 4096, 0),
    ] {
        stream.write_all(&request(command, offset, length)).unwrap();
        assert_eq!(error(&mut stream), expected, "{command} {offset} {length}");
    }
    stream.write_all(&request(0, 10, 100)).unwrap();
    assert_eq!(error(&mut stream), 0);
    let mut data = [0; 100];
    stream.read_exact(&mut data).unwrap();
    assert!(data == dir.states[1][10..110]);
    stream.write_all(&request(2, 0, 0)).unwrap();
    assert!(ended(&mut stream));
    serving.end();
}

#[test]
fn what_is_no_protocol_ends_the_connection() {
    let (dir, serving) = setup();
    let path = dir.path("sock");
    for flags in [[0xff; 4], [0, 0, 0, 4]] {
        let mut stream = connect(&path);
        stream.write_all(&flags).unwrap();
        assert!(ended(&mut stream));
    }
    let mut stream = connect(&path);
    stream
        .write_all(b"\0\0\0\x03GET / HTTP/1.1\r\n\r\n")
        .unwrap();
    assert!(ended(&mut stream));
    // An option of 4 GiB.
    let mut stream = connect(&path);
    let option = [&[0, 0, 0, 3][..], OPTION, &[0, 0, 0, 7], &[0xff; 4]].concat();
    stream.write_all(&option).unwrap();
    assert!(ended(&mut stream));
    // A write of 4 GiB.
    let mut stream = begun(&path);
    stream.write_all(&request(1, 0, u32::MAX)).unwrap();
    assert!(ended(&mut stream));
    let mut stream = begun(&path);
    stream.write_all(&[7; 28]).unwrap();
    assert!(ended(&mut stream));
    // One that goes away in the middle of a reply.
    let mut stream = begun(&path);
    stream.write_all(&request(0, 0, 6 << 20)).unwrap();
    drop(stream);
    let mut noise = Noise::new(5);
    for round in 0..200 {
        let mut stream = if round % 2 == 0 {
            connect(&path)
        } else {
            begun(&path)
        };
        let mut bytes = vec![0; 1 + noise.below(200) as usize];
        noise.fill(&mut bytes);
        if round % 4 == 0 {
            bytes.splice(0..0, [&[0, 0, 0, 3][..], OPTION].concat());
        }
        let _ = stream.write_all(&bytes);
    }
    dir.ok(&format!("nbdcopy {} copied", serving.uri));
    assert!(dir.read("copied") == dir.states[1]);
    serving.end();
}

#[test]
fn a_silent_client_is_given_up_in_its_negotiation_and_keeps_nobody_from_ending() {
    let (dir, serving) = setup();
    let path = dir.path("sock");
    let start = Instant::now();
    let mut silent = connect(&path);
    // One that trickles gets no more time.
    let mut trickling = connect(&path);
    let trickle = std::thread::spawn(move || {
        while trickling.write_all(&[0]).is_ok() && start.elapsed() < Duration::from_secs(18) {
            std::thread::sleep(Duration::from_millis(1500));
        }
        start.elapsed()
    });
    assert!(ended(&mut silent));
    assert!(
        start.elapsed() > Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
    assert!(trickle.join().unwrap() < Duration::from_secs(16));
    // Idle ones may be, until the end; one that does not read its reply, too.
    let _idle = begun(&path);
    let mut full = begun(&path);
    full.write_all(&request(0, 0, 6 << 20)).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    serving.end();
}
