//! Header and samples of what several deltas make together.
//!
//! Pure. Guarantees: whatever is checked before the first of the deltas may be applied is checked before the
//! combination may be: it names the base of the first, and its samples are of blocks that none of the deltas touches.
//! What the deltas say of one state has to agree, and deltas that are no chain by their sizes or samples are refused.

use std::collections::BTreeMap;

use super::overlay::Overlay;
use super::sizes::{Part, Sizes};
use crate::PROGRAM;
use crate::delta::header::{Header, Planned, Source};
use crate::delta::samples::{BLOCK_BYTES, Sample, Samples};
use crate::delta::stream::StreamId;
use crate::error::{Error, Result};
use crate::extent::{Extent, Kind};

/// Samples that a combination takes: as many as any other delta.
const MOST_SAMPLES: usize = 128;

/// The header of the chain `parts`, whose surviving pieces are in `overlay`. `codec` is what was asked for, if anything.
pub fn header(
    parts: &[Part<'_>],
    sizes: &Sizes,
    overlay: &Overlay,
    codec: Option<String>,
) -> Result<Header> {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
        return Err(Error::Usage("name the deltas".to_owned()));
    };
    let (planned, list) = planned(overlay);
    let source = source(parts)?;
    let (undo_of, undo_for) = match source {
        Source::Undo => undoes(parts)?,
        _ => (None, None),
    };
    Ok(Header {
        volume_size: sizes.volume_size,
        base_size: first.header.base_size,
        base: first.header.base.clone(),
        target: last.header.target.clone(),
        source,
        granularity: granularity(parts),
        // When the last state was read: that of the combination is as old as that.
        created: last.header.created,
        codec: codec.unwrap_or_else(|| codecs(parts)),
        program: PROGRAM.to_owned(),
        planned,
        list: Some(list),
        run: run_of(parts),
        undo_of,
        undo_for,
        from_offset: 0,
        required_features: Vec::new(),
        features: vec![crate::delta::header::FEATURE_COMBINED.to_owned()],
    })
}

/// What no other combination has. It makes the same of the same deltas.
fn run_of(parts: &[Part<'_>]) -> Option<String> {
    let mut hasher = blake3::Hasher::new_derive_key("lvmsync 4 run of a combination");
    for part in parts {
        let stream = StreamId::of(part.header, part.samples);
        hasher.update(stream.as_str().as_bytes());
    }
    Some(format!("combined:{}", hasher.finalize().to_hex()))
}

/// A full copy that was brought up to date is a full copy. Undos together are an undo, which makes a file shorter where
/// it should. What was found in several ways is called what found the last of it.
fn source(parts: &[Part<'_>]) -> Result<Source> {
    let (undos, others): (Vec<&Part<'_>>, Vec<&Part<'_>>) = parts
        .iter()
        .partition(|part| part.header.source == Source::Undo);
    let Some(last) = others.last() else {
        return Ok(Source::Undo);
    };
    let shrinks = |part: &&&Part<'_>| {
        part.header
            .base_size
            .is_some_and(|size| size > part.header.volume_size)
    };
    if let Some(undo) = undos.iter().find(shrinks) {
        // Only an undo makes a file shorter, and this would be none.
        return Err(Error::refused(
            undo.name,
            format!(
                "this undo makes a file shorter, which it would not do as a part of one delta with {}, which is no undo",
                last.name
            ),
            "Combine the undos and the others apart, and apply both.",
        ));
    }
    if parts
        .first()
        .is_some_and(|first| first.header.source == Source::Full)
    {
        return Ok(Source::Full);
    }
    Ok(last.header.source)
}

/// What a chain of undos undoes, and where.
///
/// `undo_of` lets an undo onto a destination whose last run, whole or cut, was the delta that it names. The first undo of
/// the chain begins there, and so does the combination: it holds the old content of every extent of that delta, as
/// the first undo does, or of one that was older. The deltas that the others undo are none that the destination had
/// last, so naming one of them would let the combination onto what it does not begin from. `undo_for` guards the same
/// door: an undo that was saved elsewhere is not put on a run that was cut here. So all have to agree on it.
fn undoes(parts: &[Part<'_>]) -> Result<(Option<String>, Option<String>)> {
    let Some(first) = parts.first() else {
        return Ok((None, None));
    };
    let differs = |part: &&Part<'_>| part.header.undo_for != first.header.undo_for;
    if let Some(other) = parts.iter().find(differs) {
        return Err(Error::refused(
            other.name,
            format!(
                "this undo holds what another destination held than {} does",
                first.name
            ),
            "Combine the undos of each destination apart.",
        ));
    }
    Ok((first.header.undo_of.clone(), first.header.undo_for.clone()))
}

/// What all of them are multiples of.
fn granularity(parts: &[Part<'_>]) -> u64 {
    let divisor = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let all = parts.iter().map(|part| part.header.granularity);
    all.fold(0, divisor).max(1)
}

fn codecs(parts: &[Part<'_>]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for part in parts {
        let name = part.header.codec.as_str();
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

/// The plan, exact, and the digest of the list, as [`crate::change_list::ChangeList::digest`] has it.
fn planned(overlay: &Overlay) -> (Planned, String) {
    let mut planned = Planned::default();
    let mut hasher = blake3::Hasher::new();
    for (extent, kind) in coalesced(overlay) {
        planned.extents += 1;
        match kind {
            Kind::Data => planned.data_bytes += extent.length(),
            Kind::Zero => planned.zero_bytes += extent.length(),
        }
        hasher.update(&extent.offset().to_le_bytes());
        hasher.update(&extent.length().to_le_bytes());
        hasher.update(&[u8::from(kind == Kind::Zero)]);
    }
    (planned, format!("b3:{}", hasher.finalize().to_hex()))
}

/// The extents of the result: what follows on each other is one.
fn coalesced(overlay: &Overlay) -> impl Iterator<Item = (Extent, Kind)> + '_ {
    let mut pieces = overlay.pieces().iter().peekable();
    std::iter::from_fn(move || {
        let first = pieces.next()?;
        let mut extent = first.extent();
        while let Some(more) = pieces
            .next_if(|next| next.kind() == first.kind() && next.extent().offset() == extent.end())
        {
            extent = Extent::from_range(extent.offset(), more.extent().end())?;
        }
        Some((extent, first.kind()))
    })
}

/// Samples for the chain `parts`: those of all of them that lie in no extent of the result, and in every size that the
/// volume had. What no delta of a chain touches is in every state what it was in the first.
pub fn samples(parts: &[Part<'_>], sizes: &Sizes, overlay: &Overlay) -> Result<Samples> {
    if parts
        .first()
        .is_some_and(|first| first.header.is_full_copy())
    {
        return Ok(Samples::default());
    }
    let mut found: BTreeMap<u64, (Sample, &str)> = BTreeMap::new();
    for part in parts {
        for sample in part.samples.below(sizes.smallest).iter() {
            let block = Extent::new(sample.offset, BLOCK_BYTES);
            if block.is_none_or(|block| overlay.touches(block)) {
                continue;
            }
            let (known, name) = *found.entry(sample.offset).or_insert((sample, part.name));
            if known.digest != sample.digest {
                let reason = format!(
                    "{name} and {} do not agree on the block at {}, which none of the deltas changes: they are not \
                     of one volume, or one is missing in between",
                    part.name, sample.offset
                );
                return Err(Error::refused(part.name, reason, ""));
            }
        }
    }
    Ok(spread(
        found.into_values().map(|(sample, _)| sample).collect(),
    ))
}

/// At most [`MOST_SAMPLES`] of them, which lie as the others do.
fn spread(mut samples: Vec<Sample>) -> Samples {
    samples.sort_by_cached_key(|sample| *blake3::hash(&sample.offset.to_le_bytes()).as_bytes());
    samples.truncate(MOST_SAMPLES);
    Samples::of(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::header::State;
    use crate::delta::header::tests::header as some_header;
    use crate::error::ExitCode;
    use crate::history::sizes::sizes;
    use crate::history::sizes::tests::{parts, undo};

    #[test]
    fn the_undo_of_several_begins_where_the_first_one_does() {
        let samples = Samples::default();
        let make = |headers: &[Header]| {
            let parts = parts(headers, &samples);
            let sizes = sizes(&parts).unwrap();
            header(&parts, &sizes, &Overlay::new(sizes.volume_size), None)
        };
        let newest = undo(100, 100, "c", Some("here"));
        let oldest = undo(100, 100, "b", Some("here"));
        let made = make(&[newest.clone(), oldest]).unwrap();
        assert_eq!(made.source, Source::Undo);
        assert_eq!(made.undo_of.as_deref(), Some("c"));
        assert_eq!(made.undo_for.as_deref(), Some("here"));
        for elsewhere in [None, Some("there")] {
            let error = make(&[newest.clone(), undo(100, 100, "b", elsewhere)]).unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::Refused);
        }
        // With what is no undo it is none, and then it must not be one that makes a file shorter.
        let made = make(&[newest, some_header(100)]).unwrap();
        assert_eq!((made.source, made.undo_of), (Source::Cow, None));
        assert!(make(&[undo(200, 100, "c", None), some_header(100)]).is_err());
    }

    #[test]
    fn a_full_copy_stays_one_and_a_mixture_is_called_by_its_last() {
        let samples = Samples::default();
        let full = Header {
            source: Source::Full,
            base: None,
            base_size: None,
            ..some_header(100)
        };
        let thin = Header {
            source: Source::Thin,
            granularity: 65536,
            target: Some(State {
                id: "lvm:last".into(),
                name: String::new(),
            }),
            ..some_header(100)
        };
        let make = |headers: &[Header]| {
            let parts = parts(headers, &samples);
            let sizes = sizes(&parts).unwrap();
            header(&parts, &sizes, &Overlay::new(sizes.volume_size), None).unwrap()
        };
        let made = make(&[full, some_header(100), thin.clone()]);
        assert_eq!(
            (made.source, &made.base, made.base_size),
            (Source::Full, &None, None)
        );
        assert_eq!(made.target, thin.target);
        let made = make(&[some_header(100), thin]);
        assert_eq!((made.source, made.granularity), (Source::Thin, 4096));
        assert!(made.fits());
    }

    #[test]
    fn samples_that_contradict_each_other_are_no_chain() {
        let sample = |offset, byte| Sample {
            offset,
            digest: [byte; 16],
        };
        let headers = [some_header(1 << 20), some_header(1 << 20)];
        let first = Samples::of(vec![sample(0, 1), sample(8192, 2)]);
        let make = |second: Vec<Sample>| {
            let second = Samples::of(second);
            let parts = [
                Part {
                    name: "a",
                    header: &headers[0],
                    samples: &first,
                },
                Part {
                    name: "b",
                    header: &headers[1],
                    samples: &second,
                },
            ];
            let mut overlay = Overlay::new(1 << 20);
            overlay.zero(8192, 8193);
            samples(&parts, &sizes(&parts).unwrap(), &overlay)
        };
        let made = make(vec![sample(0, 1), sample(4096, 3), sample(8192, 9)]).unwrap();
        assert_eq!(made, Samples::of(vec![sample(0, 1), sample(4096, 3)]));
        let error = make(vec![sample(0, 7)]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("a and b do not agree on the block at 0"),
            "{error}"
        );
    }
}
