//! The seeds in `fuzz/seeds`: every one is run by the unit tests, and they are written here.
//!
//! `cargo test --lib write_seeds -- --ignored` writes them again after a change of the format. An input that a fuzzer
//! has found goes there too, under a name that says what it showed.

use std::path::PathBuf;

use super::*;
use crate::change_list::ChangeList;
use crate::changes::cow::Layout;
use crate::changes::cow_build::store_of;
use crate::delta::codec::{Compression, Compressor};
use crate::delta::header::tests::header;
use crate::fuzzing::thin::sketch;
use crate::session::compare_wire::Request;
use crate::session::handshake::FEATURE_COMPARE;
use crate::session::message::{Hello, Message, Tag, header_for};
use crate::volume::memory::MemoryVolume;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 11] = [
    ("cow_store", crate::fuzzing::fuzz_cow),
    ("delta_record", fuzz_record),
    ("delta_stream", fuzz_delta),
    ("proto3", fuzz_proto3),
    ("header", fuzz_header),
    ("session", crate::fuzzing::fuzz_session),
    ("receive", crate::fuzzing::fuzz_receive),
    ("state_record", crate::fuzzing::fuzz_state_record),
    ("thin_metadata", crate::fuzzing::fuzz_thin),
    ("nbd", crate::fuzzing::fuzz_nbd),
    ("era_metadata", crate::fuzzing::fuzz_era),
];

fn directory(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz", "seeds", target]
        .iter()
        .collect()
}

/// A source package has no `fuzz` directory, and nothing to run.
#[test]
fn committed_inputs_hold() {
    for (name, target) in TARGETS {
        for entry in std::fs::read_dir(directory(name))
            .into_iter()
            .flatten()
            .flatten()
        {
            target(&std::fs::read(entry.path()).unwrap());
        }
    }
}

#[test]
fn damage_is_put_right_before_it_is_tried() {
    let whole = stream(Compression::None);
    for at in [24, 60, whole.len() - 100, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x40;
        assert!(read_delta(&damaged).is_err(), "byte {at}");
        fuzz_delta(&damaged);
    }
    let mut checksums = whole.clone();
    let last = whole.len() - 1;
    checksums[last] ^= 1;
    assert_eq!(with_right_checksums(&checksums), whole);
    assert_eq!(with_right_checksums(&whole), whole);
}

#[test]
#[ignore = "writes into fuzz/seeds"]
fn write_seeds() {
    let write = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(directory(target)).unwrap();
        std::fs::write(directory(target).join(name), bytes).unwrap();
    };
    write("delta_stream", "plain", &stream(Compression::None));
    write("delta_stream", "lz4", &stream(Compression::Lz4));
    write("delta_stream", "zstd", &stream(Compression::Zstd(3)));
    write("delta_stream", "empty", &empty_stream());

    let whole = stream(Compression::None);
    for (name, record) in records(&whole) {
        write("delta_record", name, record);
    }
    let json = header(1 << 20).encode();
    write("header", "every_key", &json);
    write(
        "header",
        "full_copy",
        br#"{"volume_size": 4096, "source": "full"}"#,
    );
    write(
        "header",
        "unknown",
        br#"{"volume_size":1,"source":"undo","x":[{"y":null}],"features":["z"]}"#,
    );

    write(
        "proto3",
        "records",
        &write_proto3(&[(20480, vec![7; 600]), (0, vec![1; 12])]),
    );
    write(
        "proto3",
        "across_a_mebibyte",
        &write_proto3(&[((1 << 20) - 100, vec![3; 200])]),
    );

    for (name, message) in [
        ("end", Message::End),
        ("ping", Message::Ping),
        ("data", Message::Data(stream(Compression::None))),
    ] {
        write("session", name, &message.encode().unwrap());
    }
    let open = br#"{"operation":"compare","destination":"v"}"#;
    let mut compare = Message::Hello(Hello::ours(&[FEATURE_COMPARE]))
        .encode()
        .unwrap();
    compare.extend(header_for(Tag::Open, open).unwrap());
    compare.extend(open);
    let request = Request {
        block: 4096,
        extents: [(0, 5000), (8192, 1)]
            .map(|(o, l)| Extent::new(o, l).unwrap())
            .to_vec(),
    };
    for message in [Message::Data(request.encode()), Message::End] {
        compare.extend(message.encode().unwrap());
    }
    write("session", "compare", &compare);

    for (name, flags, delta) in [
        ("plain", 1, stream(Compression::None)),
        ("smaller", 3, stream(Compression::Zstd(3))),
        ("refused", 0, stream(Compression::Lz4)),
        (
            "original",
            0,
            write_proto3(&[
                (20480, vec![7; 600]),
                (0, vec![1; 12]),
                (20000, vec![2; 900]),
            ]),
        ),
    ] {
        write("receive", name, &[&[flags][..], &delta].concat());
    }
    let record = crate::record::Record::default().encode();
    let json = record.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    write("state_record", "file", &record);
    write("state_record", "json", &record[json..]);
    write("session", "compare_request", &request.encode());

    // Two areas of 32, and a few of the usual size: data chunks would make the second too long for a seed.
    for (name, chunk_bytes, exceptions) in [("two_areas", 512, 35), ("usual", 4096, 3)] {
        let layout = Layout::new(chunk_bytes).unwrap();
        let chunks: Vec<u64> = (0..exceptions).map(|n| n * 7 % 4099).collect();
        let store = store_of(layout, chunks.iter().map(|chunk| (*chunk, &b""[..]))).unwrap();
        write("cow_store", name, &store);
    }

    let pool = crate::fuzzing::thin::tests::pool().image();
    for (name, root) in [("live", 0), ("snapshot", 1)] {
        write("thin_metadata", name, &sketch(root, &pool));
    }
    write("nbd", "modern", &crate::fuzzing::nbd::tests::modern());
    write(
        "nbd",
        "old_and_writing",
        &crate::fuzzing::nbd::tests::old_and_writing(),
    );
    let device = crate::fuzzing::era::tests::device().image();
    for (name, root) in [("live", 0), ("snapshot", 1)] {
        write("era_metadata", name, &sketch(root, &device));
    }
}

/// A delta with samples, data, a gap and zeroes.
fn stream(compression: Compression) -> Vec<u8> {
    let frames = [
        (8192, Some(vec![5; 3000])),
        (12_000, None),
        (40_960, Some((0..200).collect::<Vec<u8>>())),
    ];
    let extent = |offset, length: usize| Extent::new(offset, length as u64).unwrap();
    let changes: ChangeList = std::iter::once(crate::extent::Change {
        extent: extent(8192, 40_000),
        kind: Kind::Data,
    })
    .collect();
    let samples = Samples::take(&MemoryVolume::new(vec![9; 1 << 16]), &changes).unwrap();
    let mut compressor = Compressor::new(compression).unwrap();
    let mut stored = Vec::new();
    let mut writer = DeltaWriter::new(Vec::new(), &header(1 << 16), &samples).unwrap();
    for (offset, data) in &frames {
        let Some(data) = data else {
            writer.zero(extent(*offset, 5000)).unwrap();
            continue;
        };
        match compressor.compress(data, &mut stored) {
            Some(codec) => writer
                .data(extent(*offset, data.len()), codec, &stored)
                .unwrap(),
            None => writer
                .data(extent(*offset, data.len()), Codec::None, data)
                .unwrap(),
        }
    }
    writer.finish().unwrap().1
}

fn empty_stream() -> Vec<u8> {
    let writer = DeltaWriter::new(Vec::new(), &header(4096), &Samples::default()).unwrap();
    writer.finish().unwrap().1
}

/// Each record of a delta with its payload.
fn records(delta: &[u8]) -> Vec<(&'static str, &[u8])> {
    let mut found = Vec::new();
    let mut at = MAGIC_LINE.len();
    while let Some(bytes) = delta[at..].first_chunk::<RECORD_HEADER_BYTES>() {
        let record = RecordHeader::decode(bytes, 0).unwrap();
        let end = at + RECORD_HEADER_BYTES + record.stored_length as usize;
        let name = match record.kind {
            RecordType::Header => "header",
            RecordType::Samples => "samples",
            RecordType::Data => "data",
            RecordType::Zero => "zero",
            RecordType::Position => "position",
            RecordType::Index => "index",
            RecordType::Trailer => "trailer",
        };
        found.push((name, &delta[at..end]));
        at = end;
    }
    found
}
