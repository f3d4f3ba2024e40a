//! Round trips and damage: a delta is either read whole and right, or refused.

use proptest::prelude::*;

use super::*;
use crate::change_list::ChangeList;
use crate::delta::codec::{Codec, Compression, Compressor};
use crate::delta::header::tests::header;
use crate::delta::writer::{DeltaWriter, TRAILER_RECORD_BYTES};
use crate::volume::memory::MemoryVolume;

/// Frames as `(extent, None for zero)`.
type Frames = Vec<(Extent, Option<Vec<u8>>)>;

fn write(
    volume_size: u64,
    samples: &Samples,
    frames: &Frames,
    compression: Compression,
) -> Vec<u8> {
    let mut compressor = Compressor::new(compression).unwrap();
    let mut stored = Vec::new();
    let mut writer = DeltaWriter::new(Vec::new(), &header(volume_size), samples).unwrap();
    for (extent, data) in frames {
        match data {
            None => writer.zero(*extent).unwrap(),
            Some(data) => match compressor.compress(data, &mut stored) {
                Some(codec) => writer.data(*extent, codec, &stored).unwrap(),
                None => writer.data(*extent, Codec::None, data).unwrap(),
            },
        }
    }
    let (counts, bytes) = writer.finish().unwrap();
    assert_eq!(counts.trailer_at + TRAILER_RECORD_BYTES, bytes.len() as u64);
    bytes
}

fn read(bytes: &[u8]) -> Result<Frames, FormatError> {
    let mut reader = DeltaReader::new(bytes)?;
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        let data = match frame.kind {
            Kind::Zero => None,
            Kind::Data => {
                let mut data = vec![0; usize::try_from(frame.extent.length()).unwrap()];
                reader.payload(&mut data)?;
                Some(data)
            }
        };
        frames.push((frame.extent, data));
    }
    Ok(frames)
}

fn skip_payloads(bytes: &[u8]) -> Result<u64, FormatError> {
    let mut reader = DeltaReader::new(bytes)?;
    while reader.next_frame()?.is_some() {}
    Ok(reader.position())
}

fn small() -> (Vec<u8>, Frames) {
    let extent = |o, l| Extent::new(o, l).unwrap();
    let frames = vec![
        (extent(0, 64), Some(vec![7; 64])),
        (extent(4096, 8192), None),
        (extent(20000, 100), Some((0..100).collect())),
    ];
    let changes: ChangeList = frames
        .iter()
        .map(|(extent, _)| crate::extent::Change {
            extent: *extent,
            kind: Kind::Data,
        })
        .collect();
    let base = MemoryVolume::new((0..65536u32).map(|n| (n / 7) as u8).collect());
    let samples = Samples::take(&base, &changes).unwrap();
    assert!(!samples.is_empty());
    (write(65536, &samples, &frames, Compression::Lz4), frames)
}

#[test]
fn a_delta_without_frames_is_whole() {
    let bytes = write(4096, &Samples::default(), &vec![], Compression::None);
    assert_eq!(read(&bytes).unwrap(), vec![]);
}

#[test]
fn every_flipped_bit_is_refused() {
    let (bytes, frames) = small();
    assert_eq!(read(&bytes).unwrap(), frames);
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        read(&damaged).expect_err(&format!("bit {bit}"));
        skip_payloads(&damaged).expect_err(&format!("bit {bit}, payloads skipped"));
    }
}

#[test]
fn every_truncation_and_every_extra_byte_is_refused() {
    let (bytes, _) = small();
    for length in 0..bytes.len() {
        let error = read(&bytes[..length]).unwrap_err();
        assert!(
            matches!(error, FormatError::Truncated { .. }),
            "{length}: {error}"
        );
    }
    let error = read(&[&bytes[..], b"x"].concat()).unwrap_err();
    assert!(matches!(error, FormatError::Trailing { .. }), "{error}");
    assert!(read(&bytes.repeat(2)).is_err());
}

#[test]
fn exchanged_repeated_and_missing_frames_are_refused() {
    // Whole records with right checksums in wrong places: only order, counts and digest can tell.
    let extent = |n: u64| Extent::new(n * 4096, 4096).unwrap();
    let frames: Frames = (0..4)
        .map(|n| (extent(n), Some(vec![n as u8 + 1; 4096])))
        .collect();
    let bytes = write(1 << 20, &Samples::default(), &frames, Compression::None);
    let mut reader = DeltaReader::new(&bytes[..]).unwrap();
    let mut places = Vec::new();
    while let Some(frame) = reader.next_frame().unwrap() {
        places.push(frame.at as usize);
    }
    let record = |n: usize| &bytes[places[n]..places[n] + 32 + 4096];
    let (start, end) = (&bytes[..places[0]], &bytes[places[3] + 32 + 4096..]);
    let arrange = |order: &[usize]| {
        let mut all = start.to_vec();
        order.iter().for_each(|n| all.extend_from_slice(record(*n)));
        all.extend_from_slice(end);
        all
    };
    assert!(read(&arrange(&[0, 1, 2, 3])).is_ok());
    for order in [
        &[0, 2, 1, 3][..],
        &[0, 1, 3],
        &[0, 1, 1, 2, 3],
        &[1, 2, 3],
        &[3, 2, 1, 0],
        &[],
    ] {
        assert!(read(&arrange(order)).is_err(), "{order:?}");
    }
}

/// Where the first record of a kind begins.
fn place_of(kind: RecordType, delta: &[u8]) -> usize {
    let is_it = |bytes: &[u8]| {
        let record = RecordHeader::decode(bytes.first_chunk().unwrap(), 0);
        record.is_ok_and(|record| record.kind == kind)
    };
    delta.windows(RECORD_HEADER_BYTES).position(is_it).unwrap()
}

#[test]
fn positions_ascend_among_the_frames_of_a_sync_and_stand_nowhere_else() {
    let extent = Extent::new(8192, 4096).unwrap();
    let full = Header {
        source: Source::Full,
        base: None,
        ..header(1 << 20)
    };
    let header = full.by_comparing();
    let written = |positions: [u64; 2]| {
        let mut writer = DeltaWriter::new(Vec::new(), &header, &Samples::default()).unwrap();
        writer.position(positions[0])?;
        writer.zero(extent)?;
        writer.position(positions[1])?;
        Ok::<_, std::io::Error>(writer.finish()?.1)
    };
    let bytes = written([8192, 1 << 20]).unwrap();
    let mut reader = DeltaReader::new(&bytes[..]).unwrap();
    let items: Vec<Item> = std::iter::from_fn(|| reader.next_item().unwrap()).collect();
    assert!(
        matches!(items[..], [Item::Position(8192), Item::Frame(frame), Item::Position(end)]
            if frame.extent == extent && end == 1 << 20),
        "{items:?}"
    );
    assert_eq!(
        read(&bytes).unwrap(),
        [(extent, None)],
        "who wants frames alone"
    );
    for wrong in [[8193, 1 << 20], [0, 12_287], [0, (1 << 20) + 1]] {
        assert!(written(wrong).is_err(), "{wrong:?}");
    }
    // A record is its own checksum, so what a writer refuses can be made all the same.
    let place = place_of(RecordType::Position, &bytes);
    for wrong in [12_289, (1 << 20) + 1, u64::MAX] {
        let mut bytes = bytes.clone();
        let record = RecordHeader::position(wrong).encode();
        bytes[place..place + 32].copy_from_slice(&record);
        let read = DeltaReader::new(&bytes[..]).and_then(|mut reader| {
            reader.next_item()?;
            reader.next_item()
        });
        assert!(read.is_err(), "{wrong}");
    }
    // Without the feature there are none.
    let plain = write(
        1 << 20,
        &Samples::default(),
        &vec![(extent, None)],
        Compression::None,
    );
    let place = place_of(RecordType::Zero, &plain);
    let mut bytes = plain[..place].to_vec();
    bytes.extend(RecordHeader::position(0).encode());
    bytes.extend(&plain[place..]);
    assert!(matches!(read(&bytes), Err(FormatError::OutOfOrder { .. })));
}

#[test]
fn a_frame_past_the_end_of_the_volume_is_refused_by_both_ends() {
    let extent = Extent::new(4096, 4096).unwrap();
    let mut writer = DeltaWriter::new(Vec::new(), &header(8191), &Samples::default()).unwrap();
    assert!(writer.zero(extent).is_err());
    let (bytes, _) = small();
    // The same frames under a header that says the volume is smaller.
    let old = header(65536).encode();
    let new = String::from_utf8(old.clone())
        .unwrap()
        .replace("65536", "20001");
    let at = MAGIC_LINE.len();
    let record = RecordHeader::control(RecordType::Header, new.as_bytes());
    let damaged = [
        &bytes[..at],
        &record.encode(),
        new.as_bytes(),
        &bytes[at + 32 + old.len()..],
    ]
    .concat();
    let error = read(&damaged).unwrap_err();
    assert!(error.to_string().contains("20001"), "{error}");
}

fn frames_in(volume_size: u64) -> impl Strategy<Value = Frames> {
    prop::collection::vec(
        (
            1u64..300_000,
            1u64..300_000,
            any::<bool>(),
            any::<u8>(),
            any::<bool>(),
        ),
        0..30,
    )
    .prop_map(move |steps| {
        let mut frames = Vec::new();
        let mut position = 0;
        for (gap, length, zero, byte, even) in steps {
            position += if even { 0 } else { gap };
            let Some(extent) = Extent::from_range(position, (position + length).min(volume_size))
            else {
                break;
            };
            position = extent.end();
            let noise = |n: u64| {
                if even {
                    byte
                } else {
                    (n as u8).wrapping_mul(byte)
                }
            };
            frames.push((
                extent,
                (!zero).then(|| (0..extent.length()).map(noise).collect()),
            ));
        }
        frames
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn what_was_written_is_read(
        frames in frames_in(4 << 20),
        compression in prop::sample::select(vec![
            Compression::None, Compression::Lz4, Compression::Zstd(1)]),
    ) {
        let bytes = write(4 << 20, &Samples::default(), &frames, compression);
        prop_assert_eq!(read(&bytes).unwrap(), frames);
        prop_assert_eq!(skip_payloads(&bytes).unwrap(), bytes.len() as u64);
    }
}
