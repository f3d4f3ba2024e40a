//! Tests of messages as bytes: limits, pinned numbers, round trips, anything at all.

use proptest::prelude::*;

use super::message::*;

#[test]
fn lengths_are_capped_before_anything_is_allocated() {
    for (tag, length) in [
        (Tag::Data, MAX_PAYLOAD_BYTES + 1),
        (Tag::Open, MAX_CONTROL_BYTES + 1),
        (Tag::End, 1),
        (Tag::Ping, 1),
        (Tag::Digests, MAX_CONTROL_BYTES + 1),
    ] {
        let mut header = header_for(tag, &[]).unwrap();
        header[4..8].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        let crc = crc32c::crc32c(&header[..12]);
        header[12..].copy_from_slice(&crc.to_le_bytes());
        assert!(
            matches!(decode(&header), Err(MessageError::TooLong { .. })),
            "{tag:?}"
        );
    }
    assert!(Message::Data(vec![0; MAX_PAYLOAD_BYTES]).encode().is_ok());
    assert!(
        Message::Data(vec![0; MAX_PAYLOAD_BYTES + 1])
            .encode()
            .is_err()
    );
    let long = "\u{1}".repeat(1 << 20);
    for message in [
        Message::warning(&long),
        Message::failure(1, &long, false),
        Message::bye(&long),
    ] {
        assert!(message.encode().unwrap().len() <= HEADER_BYTES + MAX_CONTROL_BYTES);
    }
}

#[test]
fn type_numbers_and_a_whole_message_are_pinned() {
    let numbers: Vec<u8> = (0..=255)
        .filter(|n| Tag::from_number(*n).is_some())
        .collect();
    assert_eq!(numbers, (1..=13).collect::<Vec<u8>>());
    assert_eq!(Tag::from_number(4), Some(Tag::Data));
    let bytes = Message::Data(b"123456789".to_vec()).encode().unwrap();
    assert_eq!(
        bytes[..12],
        [4, 0, 0, 0, 9, 0, 0, 0, 0x83, 0x92, 0x06, 0xe3]
    );
    assert_eq!(&bytes[16..], b"123456789");
}

#[test]
fn unknown_fields_are_ignored_and_missing_ones_have_defaults() {
    let open =
        br#"{"operation":"apply","destination":"d","colour":1,"options":{"force":true,"x":[]}}"#;
    let mut bytes = header_for(Tag::Open, open).unwrap().to_vec();
    bytes.extend_from_slice(open);
    let Decoded::Complete { message, consumed } = decode(&bytes).unwrap() else {
        panic!("an Open");
    };
    let Message::Open(open) = *message else {
        panic!("not an Open")
    };
    assert_eq!(consumed, bytes.len());
    assert_eq!(
        open.options,
        ApplyOptions {
            force: true,
            ..ApplyOptions::default()
        }
    );
}

fn any_message() -> impl Strategy<Value = Message> {
    let text = "\\PC{0,40}";
    prop_oneof![
        (
            any::<u32>(),
            any::<u32>(),
            prop::collection::vec(text, 0..3)
        )
            .prop_map(|(a, b, names)| {
                let hello = Hello {
                    protocol_min: a,
                    protocol_max: b,
                    ..Hello::ours(&[])
                };
                Message::Hello(Hello {
                    requires: names,
                    ..hello
                })
            }),
        (text, any::<bool>(), prop::option::of(text)).prop_map(|(destination, force, undo)| {
            let options = ApplyOptions {
                undo,
                force,
                ..Default::default()
            };
            Message::Open(Open {
                operation: OPERATION_APPLY.into(),
                destination,
                options,
                source: None,
                ..Open::default()
            })
        }),
        (text, any::<u64>()).prop_map(|(destination, size_bytes)| {
            Message::Ready(Ready {
                destination,
                size_bytes,
                kind: "file".into(),
                ..Ready::default()
            })
        }),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Message::Data),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Message::Digests),
        Just(Message::End),
        Just(Message::Ping),
        any::<[u64; 3]>().prop_map(|[offset, frames, bytes]| Message::Ack(Ack {
            offset,
            frames,
            bytes
        })),
        text.prop_map(|text| Message::warning(&text)),
        (any::<u8>(), text, any::<bool>())
            .prop_map(|(code, text, held)| Message::failure(code, &text, held)),
        text.prop_map(|text| Message::bye(&text)),
        (any::<u64>(), prop::option::of(text)).prop_map(|(frames, undo)| Message::Done(Done {
            frames,
            undo,
            ..Done::default()
        })),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_itself(message in any_message(), cut in any::<prop::sample::Index>()) {
        let bytes = message.encode().unwrap();
        match decode(&bytes).unwrap() {
            Decoded::Complete { message: back, consumed } => {
                prop_assert_eq!(*back, message);
                prop_assert_eq!(consumed, bytes.len());
            }
            Decoded::Incomplete { .. } => prop_assert!(false, "it is whole"),
        }
        let cut = cut.index(bytes.len());
        match decode(&bytes[..cut]).unwrap() {
            Decoded::Incomplete { needed } => prop_assert!(needed > 0 && needed <= bytes.len() - cut),
            Decoded::Complete { .. } => prop_assert!(false, "it is cut"),
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        crate::fuzzing::fuzz_session(&bytes);
    }
}
