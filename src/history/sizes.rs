//! The size of the volume along a chain of deltas.
//!
//! Pure. Guarantees: where two deltas call a state by one id they have to agree on its size; what is cut off in between is
//! known, and a chain that would leave a file of another length than its deltas one by one is refused.

use crate::delta::header::{Header, Source};
use crate::delta::samples::Samples;
use crate::error::{Error, Result};

/// A delta of the chain.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The file.
    pub name: &'a str,
    /// Its header.
    pub header: &'a Header,
    /// Its samples.
    pub samples: &'a Samples,
}

/// What becomes of the size of the volume along a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// At the end.
    pub volume_size: u64,
    /// The smallest in between, at the beginning or at the end.
    pub smallest: u64,
    /// What each delta has cut off, from and to. Where the volume grows again, zeroes are there.
    pub cut_off: Vec<Option<(u64, u64)>>,
}

/// Refuses what cannot be a part of anything.
pub fn refuse_fragment(name: &str, header: &Header) -> Result<()> {
    if header.source == Source::Compare {
        return Err(Error::refused(
            name,
            "this stream was made by comparing with a destination, and is for that one, in that session",
            "",
        ));
    }
    if header.from_offset > 0 {
        let reason = format!(
            "this is the part of a delta from byte {} on",
            header.from_offset
        );
        return Err(Error::refused(
            name,
            reason,
            "Make the delta once more, from its beginning.",
        ));
    }
    Ok(())
}

/// The sizes along the chain `parts`, for one delta that is to do what they do. Fails where one delta ends with another
/// size than the next begins with, and where one could not do the same.
pub fn sizes(parts: &[Part<'_>]) -> Result<Sizes> {
    let (sizes, is_longer) = agreed(parts)?;
    refuse_uneven(parts, is_longer, &sizes.cut_off)?;
    Ok(sizes)
}

/// The sizes along the chain `parts`, for whoever goes from state to state.
pub fn of_states(parts: &[Part<'_>]) -> Result<Sizes> {
    agreed(parts).map(|(sizes, _)| sizes)
}

/// The sizes, and whether an undo of the chain puts back more than its state had.
fn agreed(parts: &[Part<'_>]) -> Result<(Sizes, bool)> {
    let mut volume_size = parts.last().map_or(0, |part| part.header.volume_size);
    let mut smallest = volume_size;
    let mut is_longer = false;
    for part in parts {
        let header = part.header;
        let both = header.volume_size.min(header.base_size.unwrap_or(u64::MAX));
        smallest = smallest.min(both);
    }
    for pair in parts.windows(2) {
        let (ends, Some(begins)) = (pair[0].header.volume_size, pair[1].header.base_size) else {
            continue;
        };
        // On a larger device an undo puts back more than the state had in its day; what comes before leaves it alone.
        if ends > begins && pair[0].header.source == Source::Undo {
            volume_size = volume_size.max(ends);
            is_longer = true;
        } else if ends != begins {
            let reason = format!(
                "{} ends with a volume of {ends} bytes, and {} begins with one of {begins}, although both call it {}",
                pair[0].name,
                pair[1].name,
                crate::record::shown(pair[1].header.base.as_ref())
            );
            return Err(Error::refused(
                pair[1].name,
                reason,
                "Apply them one by one, each to what it is for.",
            ));
        }
    }
    let cut_off = |part: &Part<'_>| {
        let (from, to) = (part.header.volume_size, part.header.base_size?);
        (from < to).then_some((from, to))
    };
    let cut_off: Vec<_> = parts.iter().map(cut_off).collect();
    let sizes = Sizes {
        volume_size,
        smallest,
        cut_off,
    };
    Ok((sizes, is_longer))
}

/// An undo makes a file shorter that has just the size that the undo begins with. Of several, one that begins with more
/// than the first does may find a file that was longer than the volume all the time, and so may one behind an undo that
/// puts back more than its state had. One delta has one size to tell the file by, so it could not do the same.
fn refuse_uneven(
    parts: &[Part<'_>],
    is_longer: bool,
    cut_off: &[Option<(u64, u64)>],
) -> Result<()> {
    let first = parts.first().and_then(|part| part.header.base_size);
    let is_uneven = |(part, cut): (&Part<'_>, &Option<(u64, u64)>)| {
        let begins_with = cut.map(|(_, size)| size)?;
        let is_larger = is_longer || Some(begins_with) > first;
        (part.header.source == Source::Undo && is_larger).then(|| part.name.to_owned())
    };
    let Some(name) = parts.iter().zip(cut_off).find_map(is_uneven) else {
        return Ok(());
    };
    Err(Error::refused(
        name,
        "this undo makes a file shorter that another one may have made longer: one delta could not do both",
        "Apply them one by one.",
    ))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::delta::header::tests::header as some_header;
    use crate::error::ExitCode;

    pub(crate) fn undo(
        base_size: u64,
        volume_size: u64,
        of: &str,
        destination: Option<&str>,
    ) -> Header {
        Header {
            base_size: Some(base_size),
            source: Source::Undo,
            undo_of: Some(of.to_owned()),
            undo_for: destination.map(str::to_owned),
            ..some_header(volume_size)
        }
    }

    pub(crate) fn parts<'a>(headers: &'a [Header], samples: &'a Samples) -> Vec<Part<'a>> {
        headers
            .iter()
            .map(|header| Part {
                name: "x",
                header,
                samples,
            })
            .collect()
    }

    #[test]
    fn sizes_have_to_agree_but_for_undos_from_a_larger_device() {
        let samples = Samples::default();
        let mut grows = [some_header(4096), some_header(8192), some_header(8192)];
        grows[1].base_size = Some(4096);
        let found = sizes(&parts(&grows, &samples)).unwrap();
        assert_eq!((found.volume_size, found.smallest), (8192, 4096));
        assert_eq!(found.cut_off, [None, None, None]);
        grows[1].base_size = Some(8192);
        let error = sizes(&parts(&grows, &samples)).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Refused);

        let device = [undo(200, 200, "c", None), undo(100, 100, "b", None)];
        let found = sizes(&parts(&device, &samples)).unwrap();
        assert_eq!((found.volume_size, found.smallest), (200, 100));
        let file = [undo(200, 100, "c", None), undo(100, 100, "b", None)];
        let found = sizes(&parts(&file, &samples)).unwrap();
        assert_eq!(found.volume_size, 100);
        assert_eq!(found.cut_off, [Some((100, 200)), None]);
        // A file that was longer than the volume all the time would not become what it becomes one by one.
        for uneven in [
            [undo(150, 200, "c", None), undo(200, 100, "b", None)],
            [undo(200, 200, "c", None), undo(150, 100, "b", None)],
        ] {
            let error = sizes(&parts(&uneven, &samples)).unwrap_err();
            assert!(error.to_string().contains("could not do both"), "{error}");
        }
    }
}
