//! The listing of `diff --json`.
//!
//! Guarantees: one JSON object, written as it is made, so that memory does not grow with it. By hand, because
//! there may be millions of extents: numbers and two fixed words need no escaping, and a serializer takes many
//! times as long. What was written before is copied: all but the last digits of the offset.

use std::io::{self, Write};

use crate::change_list::ChangeList;
use crate::extent::{Change, Kind};

/// Text that is gathered before it is written.
const GATHER_BYTES: usize = 64 << 10;
/// Room for `,{"offset":` and all but the last eight of twenty digits.
const HEAD_BYTES: usize = 32;
const DIGITS: usize = 8;
/// One more than what has so many digits.
const LOW_END: u64 = 10_u64.pow(8);
/// Room for `,"length":`, twenty digits and `,"kind":"data"}`.
const TAIL_BYTES: usize = 64;
/// Tails that are kept: scattered chunks make extents of one length, two, three.
const TAILS: usize = 64;
const ENTRY_BYTES: usize = HEAD_BYTES + DIGITS + TAIL_BYTES;

pub(super) fn write_json(
    out: &mut dyn Write,
    changes: &ChangeList,
    volume_size: u64,
    granularity: u64,
) -> io::Result<()> {
    write!(
        out,
        r#"{{"volume_size":{volume_size},"granularity":{granularity},"extents":["#
    )?;
    let mut text = vec![0; GATHER_BYTES + ENTRY_BYTES];
    let mut used = 0;
    let mut head = Head::of(0);
    let mut tails: [Tail; TAILS] = std::array::from_fn(|_| Tail::of(0, Kind::Data));
    // No comma before the first one.
    let mut skip = 1;
    for Change { extent, kind } in changes.iter() {
        let (high, low) = (extent.offset() / LOW_END, extent.offset() % LOW_END);
        if high != head.high {
            head = Head::of(high);
        }
        let tail = &mut tails[Tail::place(extent.length())];
        if (extent.length(), kind) != (tail.length, tail.kind) {
            *tail = Tail::of(extent.length(), kind);
        }
        text[used..][..HEAD_BYTES].copy_from_slice(&head.text.bytes);
        used += head.text.length;
        let digits = eight_digits(low);
        // Zeroes lead only where more digits stand before them.
        let zeroes = if high == 0 {
            leading_zeroes(&digits)
        } else {
            0
        };
        text[used..][..DIGITS].copy_from_slice(&digits);
        if zeroes > 0 {
            text[used..][..DIGITS].rotate_left(zeroes);
        }
        used += DIGITS - zeroes;
        text[used..][..TAIL_BYTES].copy_from_slice(&tail.text.bytes);
        used += tail.text.length;
        if used >= GATHER_BYTES {
            out.write_all(&text[skip..used])?;
            (used, skip) = (0, 0);
        }
    }
    if used > 0 {
        out.write_all(&text[skip..used])?;
    }
    out.write_all(b"]}\n")
}

/// A text in room of a fixed size, because copying that much is one or two instructions.
struct Fixed<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Fixed<N> {
    /// What does not fit would be cut; the constants above leave room for everything.
    fn of(text: &str) -> Self {
        let length = text.len().min(N);
        let mut bytes = [0; N];
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        Self { bytes, length }
    }
}

/// An entry up to the last eight digits of its offset.
struct Head {
    high: u64,
    text: Fixed<HEAD_BYTES>,
}

impl Head {
    fn of(high: u64) -> Self {
        let text = match high {
            0 => Fixed::of(r#",{"offset":"#),
            _ => Fixed::of(&format!(r#",{{"offset":{high}"#)),
        };
        Self { high, text }
    }
}

/// An entry from its length on.
struct Tail {
    length: u64,
    kind: Kind,
    text: Fixed<TAIL_BYTES>,
}

impl Tail {
    /// Where a tail is kept: lengths that are small multiples of one chunk have different places.
    #[allow(clippy::cast_possible_truncation, reason = "six bits are left")]
    fn place(length: u64) -> usize {
        (length.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize
    }

    fn of(length: u64, kind: Kind) -> Self {
        let text = format!(r#","length":{length},"kind":"{}"}}"#, kind.word());
        Self {
            length,
            kind,
            text: Fixed::of(&text),
        }
    }
}

/// A number below 10^8 with all its zeroes: halves, quarters and eighths of it side by side in one word.
fn eight_digits(number: u64) -> [u8; DIGITS] {
    let fours = (number / 10_000) | ((number % 10_000) << 32);
    let hundreds = ((fours * 10_486) >> 20) & 0x7f_0000_007f;
    let twos = hundreds | ((fours - hundreds * 100) << 16);
    let tens = ((twos * 103) >> 10) & 0x000f_000f_000f_000f;
    let ones = tens | ((twos - tens * 10) << 8);
    (ones | 0x3030_3030_3030_3030).to_le_bytes()
}

/// Not the last one, which is the number if it is 0.
fn leading_zeroes(digits: &[u8; DIGITS]) -> usize {
    digits[..DIGITS - 1]
        .iter()
        .take_while(|digit| **digit == b'0')
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{Extent, MAX_OFFSET};

    fn list(extents: &[(u64, u64, Kind)]) -> ChangeList {
        let change = |(o, l, kind): &(u64, u64, Kind)| Change {
            extent: Extent::new(*o, *l).unwrap(),
            kind: *kind,
        };
        extents.iter().map(change).collect()
    }

    fn json(changes: &ChangeList) -> String {
        let mut out = Vec::new();
        write_json(&mut out, changes, 1 << 20, 4096).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_is_what_the_manual_says() {
        let changes = list(&[(4096, 8192, Kind::Data), (65536, 512, Kind::Zero)]);
        assert_eq!(
            json(&changes),
            "{\"volume_size\":1048576,\"granularity\":4096,\"extents\":[\
             {\"offset\":4096,\"length\":8192,\"kind\":\"data\"},\
             {\"offset\":65536,\"length\":512,\"kind\":\"zero\"}]}\n"
        );
        assert_eq!(
            json(&ChangeList::default()),
            "{\"volume_size\":1048576,\"granularity\":4096,\"extents\":[]}\n"
        );
    }

    #[test]
    fn numbers_are_written_as_the_library_does() {
        let numbers = (0..=8)
            .map(|power| 10_u64.pow(power))
            .flat_map(|power| [power - 1, power, power * 9 / 2])
            .filter(|number| *number < LOW_END);
        for number in numbers.chain((0..LOW_END).step_by(999)) {
            assert_eq!(eight_digits(number), format!("{number:08}").as_bytes());
        }
    }

    #[test]
    fn every_entry_of_a_long_list_can_be_read() {
        let mut extents = vec![(0, 1, Kind::Data)];
        for power in 1..=18 {
            let number = 10_u64.pow(power);
            extents.extend([
                (number - 1, 1, Kind::Zero),
                (number, number, Kind::Data),
                (number + number / 2 * 3, 7, Kind::Data),
            ]);
        }
        extents.extend((1..20_000).map(|n| (2 * 10_u64.pow(18) + n * 4_444_444, 4096, Kind::Data)));
        extents.push((MAX_OFFSET - 3, 3, Kind::Zero));
        let changes = list(&extents);
        let value: serde_json::Value = serde_json::from_str(&json(&changes)).unwrap();
        let read = value["extents"].as_array().unwrap().iter().map(|entry| {
            let number = |name: &str| entry[name].as_u64().unwrap();
            let extent = (number("offset"), number("length"));
            (extent, entry["kind"].as_str().unwrap().to_owned())
        });
        let expected = changes.iter().map(|change| {
            let extent = (change.extent.offset(), change.extent.length());
            (extent, change.kind.word().to_owned())
        });
        assert!(read.eq(expected));
    }
}
