//! Clients that mean harm, against the real `lvmsync serve --allow`: raw bytes over pipes.
//!
//! Whatever they do, it ends within seconds, with a documented code, in little memory, and nothing outside the
//! allowed is touched. Servers that mean harm are in `hostile_server.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod hostile_kit;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use hostile_kit::{Peer, bytes, data, hello};
use lvmsync::delta::codec::Codec;
use lvmsync::delta::header::{Header, Planned, Source};
use lvmsync::delta::samples::Samples;
use lvmsync::delta::writer::DeltaWriter;
use lvmsync::extent::Extent;
use lvmsync::session::handshake::GREETING;
use lvmsync::session::message::{
    ApplyOptions, Done, HEADER_BYTES, Hello, MAX_PAYLOAD_BYTES, Message, OPERATION_APPLY,
    OPERATION_COMPARE, Open, Tag, header_for,
};

const SIZE: u64 = 1 << 20;

/// `in/`, which is allowed, and `out/`, which is not.
struct Dir {
    _held: tempfile::TempDir,
    root: PathBuf,
}

impl Dir {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        for name in ["in", "out", "undo", "out/vg"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let dir = Self {
            _held: directory,
            root,
        };
        fs::write(dir.path("in/a.img"), vec![1; SIZE as usize]).unwrap();
        fs::write(dir.path("out/a.img"), vec![2; SIZE as usize]).unwrap();
        fs::write(dir.path("out/vg/a.img"), vec![2; SIZE as usize]).unwrap();
        symlink(dir.path("out/a.img"), dir.path("in/link.img")).unwrap();
        symlink(dir.path("out"), dir.path("in/dir")).unwrap();
        symlink(dir.path("out/none.img"), dir.path("in/dangling.img")).unwrap();
        dir
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `lvmsync serve --allow DIR/in/*.img`, started where a relative name would find something.
    fn serve(&self, more: &[&str]) -> Peer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lvmsync"));
        command
            .arg("serve")
            .args(["--allow", &self.name("in/*.img")])
            .args(more);
        // What a forced command would find there means nothing.
        command.env(
            "SSH_ORIGINAL_COMMAND",
            "lvmsync serve --allow /**/* --permit in-use",
        );
        command.env("LVMSYNC_STATE_DIR", self.path("state"));
        Peer::start(command.current_dir(self.path("out")))
    }

    /// Everything but `in/a.img` is as it was.
    fn assert_untouched(&self) {
        assert_eq!(
            fs::read(self.path("out/a.img")).unwrap(),
            vec![2; SIZE as usize]
        );
        assert_eq!(
            fs::read(self.path("out/vg/a.img")).unwrap(),
            vec![2; SIZE as usize]
        );
        assert_eq!(names(&self.path("out")), ["a.img", "vg"]);
        assert_eq!(
            names(&self.path("in")),
            ["a.img", "dangling.img", "dir", "link.img"]
        );
        // Its own records, and nothing else.
        let mut root = names(&self.root);
        root.retain(|name| name != "state");
        assert_eq!(root, ["in", "out", "undo"]);
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn open_with(destination: &str, options: ApplyOptions) -> Vec<u8> {
    bytes(&Message::Open(Open {
        operation: OPERATION_APPLY.into(),
        destination: destination.into(),
        options,
        ..Open::default()
    }))
}

fn open(destination: &str) -> Vec<u8> {
    open_with(
        destination,
        ApplyOptions {
            create: true,
            ..ApplyOptions::default()
        },
    )
}

fn header(volume_size: u64) -> Header {
    Header {
        volume_size,
        base_size: None,
        base: None,
        target: None,
        source: Source::Full,
        granularity: 1,
        created: 0,
        codec: "none".into(),
        program: "hostile".into(),
        planned: Planned {
            extents: u64::MAX,
            data_bytes: u64::MAX,
            zero_bytes: u64::MAX,
        },
        list: None,
        run: None,
        undo_of: None,
        undo_for: None,
        from_offset: 0,
        required_features: vec![],
        features: vec![],
    }
}

/// A sound delta that writes one block of nines.
fn delta(volume_size: u64) -> Vec<u8> {
    let mut writer =
        DeltaWriter::new(Vec::new(), &header(volume_size), &Samples::default()).unwrap();
    writer
        .data(Extent::new(0, 4096).unwrap(), Codec::None, &[9; 4096])
        .unwrap();
    writer.finish().unwrap().1
}

fn end() -> Vec<u8> {
    bytes(&Message::End)
}

#[test]
fn an_allowed_destination_works() {
    let dir = Dir::new();
    for name in [
        dir.name("in/a.img"),
        dir.name("in/../in/a.img"),
        dir.name("in/dir/../in/a.img"),
    ] {
        let mut peer = dir.serve(&[]);
        peer.feed(&[hello(), open(&name), data(&delta(SIZE)), end()].concat());
        let ended = peer.end(true);
        assert!(
            matches!(ended.said().pop(), Some(Message::Done(_))),
            "{}",
            ended.stderr
        );
        assert_eq!(ended.code, Some(0));
    }
    assert_eq!(
        fs::read(dir.path("in/a.img")).unwrap()[..4097],
        [&[9; 4096][..], &[1]].concat()
    );
    let mut peer = dir.serve(&[]);
    peer.feed(
        &[
            hello(),
            open(&dir.name("in/new.img")),
            data(&delta(SIZE)),
            end(),
        ]
        .concat(),
    );
    assert_eq!(peer.end(true).code, Some(0));
    assert_eq!(fs::metadata(dir.path("in/new.img")).unwrap().len(), SIZE);
    fs::remove_file(dir.path("in/new.img")).unwrap();
    dir.assert_untouched();
}

#[test]
fn other_destinations_are_refused_in_the_same_words_whether_they_exist_or_not() {
    let dir = Dir::new();
    let mut names: Vec<String> = [
        "out/a.img",
        "out/none.img",
        "in/../out/a.img",
        "in/../out/none.img",
        "in/link.img",
        "in/dir/a.img",
        "in/dir/none.img",
        "none/none.img",
        "in/.hidden.img",
        "in/a.img/../../out/a.img",
        "in",
        "out",
        "in/sub/a.img",
    ]
    .iter()
    .map(|name| dir.name(name))
    .collect();
    // Relative names find something in the directory in which the server runs.
    for name in [
        "a.img",
        "./a.img",
        "vg/a.img",
        "./vg/a.img",
        "../in/a.img",
        "vg/none",
        "/dev/vg/none",
        "/dev/mapper/vg-none",
        "/dev/dm-0",
        "/dev/null",
        "/dev/stdin",
        "/proc/self/fd/1",
        "/proc/self/exe",
        "",
        "/",
        "~/x",
        "/etc/shadow",
        "/etc/none",
        "cow:store",
        "host:/x",
        "/dev/shm/x\u{202e}",
    ] {
        names.push(name.to_owned());
    }
    names.push(format!("/{}", "x/".repeat(8000)));
    for name in names {
        for dry_run in [false, true] {
            let options = ApplyOptions {
                create: true,
                force: true,
                dry_run,
                ..ApplyOptions::default()
            };
            let mut peer = dir.serve(&[]);
            peer.feed(
                &[
                    hello(),
                    open_with(&name, options),
                    data(&delta(SIZE)),
                    end(),
                ]
                .concat(),
            );
            let ended = peer.end(true);
            let text = ended.reported();
            assert_eq!(ended.code, Some(5), "{name}: {text}");
            assert!(
                ended
                    .said()
                    .iter()
                    .all(|message| message.tag() != Tag::Ready)
            );
            if name.len() < 5000 {
                assert_eq!(
                    text,
                    format!("{name}: this destination is not allowed here")
                );
            }
            assert!(
                !ended.stderr.contains("*.img"),
                "the list stays here: {}",
                ended.stderr
            );
        }
    }
    // Allowed by its name, and not there: a link that leads nowhere makes no file elsewhere.
    let mut peer = dir.serve(&[]);
    peer.feed(
        &[
            hello(),
            open(&dir.name("in/dangling.img")),
            data(&delta(SIZE)),
            end(),
        ]
        .concat(),
    );
    assert_ne!(peer.end(true).code, Some(0));
    assert_eq!(
        fs::read(dir.path("in/a.img")).unwrap(),
        vec![1; SIZE as usize]
    );
    dir.assert_untouched();
}

#[test]
fn other_wishes_are_refused_unless_they_are_permitted() {
    let dir = Dir::new();
    let undo_dir = dir.name("undo");
    let with_undo = ["--undo-dir", undo_dir.as_str()];
    let undo = |name: &str| ApplyOptions {
        undo: Some(name.into()),
        create: true,
        ..ApplyOptions::default()
    };
    let name = dir.name("in/a.img");
    let try_it = |more: &[&str], options: ApplyOptions| {
        let mut peer = dir.serve(more);
        peer.feed(
            &[
                hello(),
                open_with(&name, options),
                data(&delta(SIZE)),
                end(),
            ]
            .concat(),
        );
        peer.end(true)
    };
    let outside = dir.name("out/u");
    for (more, options, words) in [
        (&[][..], undo("u"), "--undo-dir"),
        (&with_undo[..], undo(&outside), "plain file name"),
        (&with_undo, undo("../out/u"), "plain file name"),
        (&with_undo, undo(".."), "plain file name"),
        (&with_undo, undo("x.partial"), "plain file name"),
        (
            &with_undo,
            ApplyOptions {
                overwrite: true,
                ..undo("u")
            },
            "--permit",
        ),
        (
            &[],
            ApplyOptions {
                allow_in_use: true,
                ..ApplyOptions::default()
            },
            "--permit",
        ),
        (&["--read-only"], ApplyOptions::default(), "--read-only"),
    ] {
        let ended = try_it(more, options.clone());
        let text = ended.reported();
        assert!(
            ended.code == Some(5) && text.contains(words),
            "{options:?}: {text}"
        );
    }
    assert_eq!(fs::read(&name).unwrap(), vec![1; SIZE as usize]);
    let dry_run = ApplyOptions {
        dry_run: true,
        ..ApplyOptions::default()
    };
    assert_eq!(try_it(&["--read-only"], dry_run).code, Some(0));
    assert_eq!(fs::read(&name).unwrap(), vec![1; SIZE as usize]);
    assert_eq!(try_it(&with_undo, undo("u")).code, Some(0));
    assert_eq!(names(&dir.path("undo")), ["u"]);
    let again = [&with_undo[..], &["--permit", "overwrite"]].concat();
    // By its record it is there already, and the undo leads back; written again it would be another undo.
    assert_eq!(try_it(&with_undo, undo("u")).code, Some(0));
    let forced = ApplyOptions {
        force: true,
        ..undo("u")
    };
    assert_eq!(
        try_it(&with_undo, forced.clone()).code,
        Some(5),
        "it exists"
    );
    assert_eq!(
        try_it(
            &again,
            ApplyOptions {
                overwrite: true,
                ..forced
            }
        )
        .code,
        Some(0)
    );
    dir.assert_untouched();
}

#[test]
fn messages_that_lie_or_come_out_of_order_end_the_session() {
    let dir = Dir::new();
    let good = open(&dir.name("in/a.img"));
    let stream = data(&delta(SIZE));
    let oversize = |tag: Tag, length: u32| {
        let mut header = header_for(tag, &[]).unwrap();
        header[4..8].copy_from_slice(&length.to_le_bytes());
        let crc = crc32c(&header[..12]);
        header[12..].copy_from_slice(&crc.to_le_bytes());
        header.to_vec()
    };
    let raw_json = |tag: Tag, json: &str| {
        [
            header_for(tag, json.as_bytes()).unwrap().to_vec(),
            json.as_bytes().to_vec(),
        ]
        .concat()
    };
    let nested = format!(
        "{{\"operation\":{}1{}}}",
        "[".repeat(30_000),
        "]".repeat(30_000)
    );
    let unknown = format!(
        "{{\"x\":{}1{},\"operation\":\"apply\"}}",
        "[".repeat(30_000),
        "]".repeat(30_000)
    );
    for (what, script) in [
        ("nothing", vec![]),
        ("noise", b"GET / HTTP/1.0\r\n\r\n".repeat(10)),
        ("zeroes", vec![0; 100_000]),
        ("a greeting back", [GREETING, &hello()].concat()),
        ("data first", stream.clone()),
        ("open first", good.clone()),
        ("two hellos", [hello(), hello(), good.clone()].concat()),
        ("data before open", [hello(), stream.clone()].concat()),
        ("a long hello", oversize(Tag::Hello, 64 * 1024 + 1)),
        ("an endless hello", oversize(Tag::Hello, u32::MAX)),
        (
            "endless data",
            [
                hello(),
                good.clone(),
                oversize(Tag::Data, MAX_PAYLOAD_BYTES as u32 + 1),
            ]
            .concat(),
        ),
        (
            "data to the limit that does not come",
            [
                hello(),
                good.clone(),
                oversize(Tag::Data, MAX_PAYLOAD_BYTES as u32),
            ]
            .concat(),
        ),
        (
            "an end with contents",
            [hello(), good.clone(), oversize(Tag::End, 1)].concat(),
        ),
        ("two opens", [hello(), good.clone(), good.clone()].concat()),
        (
            "hello in the stream",
            [hello(), good.clone(), hello()].concat(),
        ),
        (
            "what only servers say",
            [
                hello(),
                good.clone(),
                bytes(&Message::Done(Done::default())),
            ]
            .concat(),
        ),
        ("no end", [hello(), good.clone(), stream.clone()].concat()),
        ("end at once", [hello(), good.clone(), end()].concat()),
        (
            "bye",
            [hello(), good.clone(), bytes(&Message::bye("x"))].concat(),
        ),
        (
            "deep json",
            [hello(), raw_json(Tag::Open, &nested)].concat(),
        ),
        (
            "deep unknown json",
            [hello(), raw_json(Tag::Open, &unknown)].concat(),
        ),
        ("not json", [hello(), raw_json(Tag::Open, "\u{0}")].concat()),
        (
            "half a message",
            [hello(), good.clone()[..HEADER_BYTES + 3].to_vec()].concat(),
        ),
        (
            "an operation of its own",
            [
                hello(),
                raw_json(Tag::Open, r#"{"operation":"exec","destination":"/bin/sh"}"#),
            ]
            .concat(),
        ),
        (
            "needs",
            bytes(&Message::Hello(Hello::ours(&["everything"]))),
        ),
        (
            "the original's stream",
            [hello(), good.clone(), data(b"lvmsync PROTO[3]\n"), end()].concat(),
        ),
        (
            "garbage as a stream",
            [hello(), good.clone(), data(&[7; 100_000]), end()].concat(),
        ),
    ] {
        let mut peer = dir.serve(&[]);
        peer.feed(&script);
        let ended = peer.end(true);
        assert!(
            matches!(ended.code, Some(1..=7)),
            "{what}: {:?} {}",
            ended.code,
            ended.stderr
        );
        assert!(
            ended
                .said()
                .iter()
                .all(|message| message.tag() != Tag::Done),
            "{what}"
        );
    }
    dir.assert_untouched();
    // What follows the end of the stream is not read, and what was sent before Ready is only early.
    let mut peer = dir.serve(&[]);
    peer.feed(&[hello(), good, stream.clone(), end(), stream, hello()].concat());
    assert_eq!(peer.end(true).code, Some(0));
}

fn crc32c(bytes: &[u8]) -> u32 {
    // As in docs/protocol.md: the crate's own tables are not what is tested here.
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn a_client_that_holds_on_without_a_request_is_ended() {
    let dir = Dir::new();
    for ping in [false, true] {
        let mut peer = dir.serve(&["--timeout", "1"]);
        peer.feed(&hello());
        while ping && peer.feed(&bytes(&Message::Ping).repeat(1000)) {}
        let ended = peer.end(false);
        assert_eq!(ended.code, Some(7), "{}", ended.stderr);
        assert!(
            ended.stderr.contains("did not begin within 1 s"),
            "{}",
            ended.stderr
        );
    }
    // With a request it may hold its own destination, but not in silence.
    let mut peer = dir.serve(&["--timeout", "1"]);
    peer.feed(&[hello(), open(&dir.name("in/a.img"))].concat());
    let ended = peer.end(false);
    assert!(
        ended.reported().contains("--timeout") && ended.code == Some(7),
        "{}",
        ended.stderr
    );
    dir.assert_untouched();
}

#[test]
fn absurd_sizes_and_endless_streams_take_no_memory() {
    let dir = Dir::new();
    let name = dir.name("in/a.img");
    // A header that announces everything there is: the file may not grow to it, or grows as a hole.
    let mut peer = dir.serve(&[]);
    peer.feed(
        &[
            hello(),
            open(&name),
            data(&delta(i64::MAX as u64)),
            bytes(&Message::bye("x")),
        ]
        .concat(),
    );
    assert!(matches!(peer.end(true).code, Some(1..=7)));
    fs::write(&name, vec![1; SIZE as usize]).unwrap();
    // A million frames of one byte, all to be held back until their undo is durable.
    let undo_dir = dir.name("undo");
    let mut writer = DeltaWriter::new(Vec::new(), &header(SIZE), &Samples::default()).unwrap();
    for at in 0..SIZE {
        let extent = Extent::new(at, 1).unwrap();
        writer.data(extent, Codec::None, &[9]).unwrap();
    }
    let stream = data(&writer.finish().unwrap().1);
    let options = ApplyOptions {
        undo: Some("u".into()),
        ..ApplyOptions::default()
    };
    let mut peer = dir.serve(&["--undo-dir", &undo_dir]);
    peer.feed(&[hello(), open_with(&name, options), stream, end()].concat());
    let ended = peer.end(true);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    // Data without end, in the place of a delta and behind a good one.
    for start in [vec![], data(&delta(SIZE))] {
        let mut peer = dir.serve(&[]);
        peer.feed(&[hello(), open(&name), start].concat());
        let more = data(&vec![0; 1 << 20]);
        while peer.feed(&more) {}
        assert_eq!(peer.end(false).code, Some(6));
    }
    dir.assert_untouched();
}

#[test]
fn limits_that_mean_nothing_are_wrong_usage() {
    for more in [
        &["--allow", "x"][..],
        &["--allow", "/srv/**"],
        &["--allow", "/srv/../x"],
        &["--undo-dir", "/tmp"],
        &["--permit", "in-use"],
        &["--allow", "/x", "--permit", "everything"],
        // A glob that the shell has expanded.
        &["--allow", "/dev/vg/a", "/dev/vg/b"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lvmsync"));
        let ended = Peer::start(command.arg("serve").args(more)).end(true);
        assert_eq!(ended.code, Some(2), "{more:?}: {}", ended.stderr);
    }
}

/// Digests tell what a volume holds, so a comparison is held against the same limits.
#[test]
fn comparing_reads_nothing_that_is_not_allowed() {
    let dir = Dir::new();
    let compare = |name: &str| {
        let open = Message::Open(Open {
            operation: OPERATION_COMPARE.into(),
            destination: name.into(),
            ..Open::default()
        });
        let mut peer = dir.serve(&["--read-only"]);
        peer.feed(&[hello(), bytes(&open), end()].concat());
        peer.end(true)
    };
    assert_eq!(compare(&dir.name("in/a.img")).code, Some(0));
    for name in [
        "out/a.img",
        "in/link.img",
        "in/../out/a.img",
        "in/dir/a.img",
        "out/none.img",
    ] {
        assert_eq!(compare(&dir.name(name)).code, Some(5), "{name}");
    }
    dir.assert_untouched();
}
