//! Change lists against a plain model, and the two ways in which they are held against each other.

use super::builder::COMPACT_FROM;
use super::*;
use proptest::prelude::*;

fn extent(offset: u64, length: u64) -> Extent {
    Extent::new(offset, length).unwrap()
}

/// The model: one cell a byte; 1 is zero, 2 is data.
fn paint(cells: &mut [u8], pushes: &[(u64, u64, bool)]) {
    for &(offset, length, is_data) in pushes {
        for cell in &mut cells[offset as usize..(offset + length) as usize] {
            *cell = (*cell).max(1 + u8::from(is_data));
        }
    }
}

fn build(pushes: &[(u64, u64, bool)]) -> ChangeList {
    let kind = |is_data| if is_data { Kind::Data } else { Kind::Zero };
    pushes
        .iter()
        .map(|&(o, l, d)| Change {
            extent: extent(o, l),
            kind: kind(d),
        })
        .collect()
}

fn cells_of(list: &ChangeList, size: usize) -> Vec<u8> {
    let mut cells = vec![0; size];
    for change in list.iter() {
        for cell in &mut cells[change.extent.offset() as usize..change.extent.end() as usize] {
            assert_eq!(*cell, 0, "disjoint");
            *cell = if change.kind == Kind::Data { 2 } else { 1 };
        }
    }
    cells
}

fn pushes() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
    prop::collection::vec((0u64..200, 1u64..40, any::<bool>()), 0..40)
}

/// Sorted, and no two neighbours that could be one.
fn joined(list: &ChangeList) -> bool {
    list.iter().zip(list.iter().skip(1)).all(|(one, next)| {
        one.extent.end() < next.extent.offset()
            || (one.extent.end() == next.extent.offset() && one.kind != next.kind)
    })
}

proptest! {
    #[test]
    fn a_list_is_what_was_pushed(pushes in pushes()) {
        let mut model = vec![0; 256];
        paint(&mut model, &pushes);
        let list = build(&pushes);
        prop_assert_eq!(cells_of(&list, 256), model);
        prop_assert!(joined(&list), "sorted and coalesced: {:?}", list);
    }

    #[test]
    fn union_clip_unchanged_and_touches_follow_the_model(
        a in pushes(), b in pushes(), size in 0u64..256, at in 0u64..250, length in 1u64..6,
    ) {
        let mut model = vec![0; 256];
        paint(&mut model, &a);
        paint(&mut model, &b);
        let list = build(&a).union(build(&b));
        prop_assert_eq!(cells_of(&list, 256), model.clone());
        let touched = model[at as usize..(at + length) as usize].iter().any(|c| *c > 0);
        prop_assert_eq!(list.touches(extent(at, length)), touched);
        let mut gaps = vec![0; 256];
        for gap in list.unchanged(size) {
            for cell in &mut gaps[gap.offset() as usize..gap.end() as usize] { *cell += 1; }
        }
        for (position, cell) in model.iter().enumerate() {
            let expected = u8::from(*cell == 0 && (position as u64) < size);
            prop_assert_eq!(gaps[position], expected, "at {}", position);
        }
        model[size as usize..].fill(0);
        prop_assert_eq!(cells_of(&list.clip(size), 256), model);
    }
}

/// The same list as a bitmap, whether or not that is smaller.
fn as_bits(words: &[u64], chunk_bytes: u64, size: u64) -> ChangeList {
    let mut chunks = ChunkBits::new(chunk_bytes, words.to_vec());
    chunks.clip(size);
    ChangeList {
        extents: chunks.count_extents(),
        data_bytes: chunks.bytes(),
        zero_bytes: 0,
        form: Form::Chunks(chunks),
    }
}

fn as_extents(words: &[u64], chunk_bytes: u64, size: u64) -> ChangeList {
    let mut builder = ChangeListBuilder::default();
    for chunk in 0..words.len() as u64 * 64 {
        if words[chunk as usize / 64] >> (chunk % 64) & 1 == 1 {
            builder.push(extent(chunk * chunk_bytes, chunk_bytes), Kind::Data);
        }
    }
    builder.finish().clip(size)
}

fn words() -> impl Strategy<Value = Vec<u64>> {
    let word = prop_oneof![
        Just(0),
        Just(u64::MAX),
        any::<u64>(),
        any::<u64>(),
        (0u32..64).prop_map(|n| u64::MAX << n),
        (0u32..64).prop_map(|n| u64::MAX >> n)
    ];
    prop::collection::vec(word, 0..6)
}

proptest! {
    #[test]
    fn bits_and_extents_are_the_same_list(
        words in words(), other in words(), chunk_bytes in prop_oneof![Just(4u64), Just(8), Just(12)],
        (size, smaller, tail) in (0u64..3200, 0u64..3200, 0u64..40), pushes in pushes(),
        (at, length, n) in (0u64..3200, 1u64..900, 0usize..70),
    ) {
        let bits = as_bits(&words, chunk_bytes, size);
        let list = as_extents(&words, chunk_bytes, size);
        let same = |bits: &ChangeList, list: &ChangeList| -> Result<(), TestCaseError> {
            prop_assert!(matches!(list.form, Form::Packed(_)));
            prop_assert!(bits.iter().eq(list.iter()), "{:?} {:?}", bits, list);
            prop_assert_eq!((bits.len(), bits.total_bytes()), (list.len(), list.total_bytes()));
            prop_assert_eq!(bits.bytes(Kind::Data), list.bytes(Kind::Data));
            prop_assert!(joined(bits));
            Ok(())
        };
        same(&bits, &list)?;
        prop_assert_eq!(bits.touches(extent(at, length)), list.touches(extent(at, length)));
        let end = at + length;
        prop_assert_eq!(bits.bytes_between(at, end), list.bytes_between(at, end));
        let below = |end| list.clone().clip(end).total_bytes();
            prop_assert_eq!(list.bytes_between(at, end), below(end) - below(at));
        let (mut one, mut two) = (bits.iter(), list.iter());
        while let Some(change) = one.nth(n) {
            prop_assert_eq!(Some(change), two.nth(n));
        }
        prop_assert_eq!(two.nth(n), None);
        prop_assert_eq!((one.next(), one.nth(n)), (None, None));
        let size_now = size + tail;
        prop_assert!(bits.unchanged(size_now).eq(list.unchanged(size_now)));
        for block in [4, 8, 5] {
            let all = list.unchanged_blocks(size_now, block, u64::MAX);
            let model: Vec<u64> = list.unchanged(size_now).flat_map(|gap| {
                (gap.offset().next_multiple_of(block)..).step_by(block as usize)
                    .take_while(move |start| start + block <= gap.end())
            }).collect();
            prop_assert_eq!(&all, &model);
            for most in [1, 7, 100, u64::MAX] {
                let found = list.unchanged_blocks(size_now, block, most);
                prop_assert!(found.len() as u64 <= most);
                prop_assert_eq!(bits.unchanged_blocks(size_now, block, most), found);
            }
        }
        same(&bits.clone().clip(smaller), &list.clone().clip(smaller))?;
        for more in [as_extents(&other, chunk_bytes, size), as_extents(&other, 4, smaller), build(&pushes),
            ChangeList::whole(size)] {
            let all = list.clone().union(more.clone());
            prop_assert!(bits.clone().union(more.clone()).iter().eq(all.iter()));
            prop_assert!(more.union(bits.clone()).iter().eq(all.iter()));
        }
        for more in [as_bits(&other, chunk_bytes, size), as_bits(&other, chunk_bytes, smaller)] {
            let all = list.clone().union(more.iter().collect());
            prop_assert!(bits.clone().union(more).iter().eq(all.iter()));
        }
    }
}

#[test]
fn the_smaller_form_is_used() {
    let scattered = ChangeList::from_chunks(4096, vec![0x5555_5555_5555_5555; 1000]);
    assert!(matches!(scattered.form, Form::Chunks(_)));
    assert_eq!(scattered.len(), 32_000);
    let run = ChangeList::from_chunks(4096, vec![u64::MAX; 1000]);
    assert!(matches!(run.form, Form::Packed(_)));
    assert_eq!(run, ChangeList::whole(64_000 * 4096));
    let both = scattered.union(run.clone());
    assert_eq!(both, run);
    assert!(matches!(both.form, Form::Packed(_)));
}

#[test]
fn chunks_past_the_largest_offset_are_cut() {
    let list = ChangeList::from_chunks(1 << 60, vec![0b10_1100_0001]);
    let max = crate::extent::MAX_OFFSET;
    let expected = [(0, 1 << 60), (6 << 60, max - (6 << 60))];
    let expected: ChangeList = expected
        .map(|(o, l)| Change {
            extent: extent(o, l),
            kind: Kind::Data,
        })
        .into_iter()
        .collect();
    assert_eq!(list, expected);
}

#[test]
fn memory_follows_distinct_extents_not_pushes() {
    let mut builder = ChangeListBuilder::default();
    for round in 0..40u64 {
        for chunk in 0..10_000u64 {
            let scattered = chunk.wrapping_mul(7919).wrapping_add(round) % 10_000;
            builder.push(extent(scattered * 8192, 4096), Kind::Data);
        }
    }
    assert!(
        builder.packed.capacity() <= 2 * COMPACT_FROM,
        "{}",
        builder.packed.capacity()
    );
    assert_eq!(builder.finish().len(), 10_000);
}
