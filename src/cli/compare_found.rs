//! What a comparison found, and how it is told: as a table, as JSON, in a sentence.
//!
//! Guarantees: what only one of both volumes has counts as different, but for the end of a longer device.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use super::summary::{per_second, shown_seconds};
use crate::change_list::{ChangeList, ChangeListBuilder};
use crate::comparand::Compared;
use crate::error::Result;
use crate::extent::{Extent, Kind};
use crate::monitor::Monitor;
use crate::units::{Bytes, count};

/// What was found.
pub(super) struct Found {
    pub(super) volume_size: u64,
    pub(super) destination_size: u64,
    /// What a longer file has past the end of the other; in `differing`, too.
    pub(super) tail_bytes: u64,
    pub(super) compared_bytes: u64,
    pub(super) differing: ChangeList,
}

/// How long both are.
pub(super) struct Sizes {
    pub(super) source: u64,
    pub(super) destination: u64,
    pub(super) is_file: bool,
}

/// What a comparison is of, and what differs without a look.
pub(super) struct Plan {
    sizes: Sizes,
    tail_bytes: u64,
    compared_bytes: u64,
    /// What only one of both has.
    missing: ChangeList,
}

impl Sizes {
    /// What both have of `only`, or of everything, which is to be compared, and the rest.
    pub(super) fn plan(self, only: Option<&Arc<ChangeList>>) -> (Arc<ChangeList>, Plan) {
        let extents = only.map_or_else(|| Arc::new(ChangeList::whole(self.source)), Arc::clone);
        let mut missing = ChangeListBuilder::default();
        let beyond = |extent: Extent| {
            Extent::from_range(extent.offset().max(self.destination), extent.end())
        };
        for extent in extents.iter().filter_map(|change| beyond(change.extent)) {
            missing.push(extent, Kind::Data);
        }
        // A device is as long as it was made; a file that is longer is another file.
        let tail = Extent::from_range(self.source, self.destination);
        let tail = tail.filter(|_| only.is_none() && self.is_file);
        if let Some(tail) = tail {
            missing.push(tail, Kind::Data);
        }
        let extents = clipped(&extents, self.destination);
        let plan = Plan {
            tail_bytes: tail.map_or(0, Extent::length),
            compared_bytes: extents.total_bytes(),
            missing: missing.finish(),
            sizes: self,
        };
        (extents, plan)
    }
}

impl Plan {
    /// With what was found, and vouched for.
    pub(super) fn found(self, mut compared: Compared, monitor: &dyn Monitor) -> Result<Found> {
        compared.differing = compared.differing.union(self.missing);
        let differing = compared.vouched(monitor)?;
        Ok(Found {
            volume_size: self.sizes.source,
            destination_size: self.sizes.destination,
            tail_bytes: self.tail_bytes,
            compared_bytes: self.compared_bytes,
            differing,
        })
    }
}

/// What of it is before `size_bytes`. A long list is there twice only if it has to be.
pub(super) fn clipped(extents: &Arc<ChangeList>, size_bytes: u64) -> Arc<ChangeList> {
    match extents.iter().last() {
        Some(last) if last.extent.end() > size_bytes => {
            Arc::new(ChangeList::clone(extents).clip(size_bytes))
        }
        _ => Arc::clone(extents),
    }
}

/// Extent by extent, so that memory does not grow with the listing.
pub(super) fn write_json(out: &mut dyn Write, found: &Found) -> io::Result<()> {
    write!(
        out,
        r#"{{"volume_size":{},"destination_size":{},"compared_bytes":{},"different_bytes":{},"extents":["#,
        found.volume_size,
        found.destination_size,
        found.compared_bytes,
        found.differing.total_bytes()
    )?;
    let mut separator = "";
    for change in found.differing.iter() {
        let (offset, length) = (change.extent.offset(), change.extent.length());
        write!(out, r#"{separator}{{"offset":{offset},"length":{length}}}"#)?;
        separator = ",";
    }
    out.write_all(b"]}\n")
}

pub(super) fn write_table(out: &mut dyn Write, differing: &ChangeList) -> io::Result<()> {
    writeln!(out, "{:>20} {:>16}", "OFFSET", "LENGTH")?;
    for change in differing.iter() {
        let extent = change.extent;
        writeln!(out, "{:>20} {:>16}", extent.offset(), extent.length())?;
    }
    Ok(())
}

pub(super) fn sentence(found: &Found, elapsed: Duration) -> String {
    let differing = &found.differing;
    let compared = format!(
        "{} compared in {} ({}/s)",
        Bytes(found.compared_bytes),
        shown_seconds(elapsed),
        Bytes(per_second(found.compared_bytes, elapsed))
    );
    let mut text = if differing.is_empty() {
        format!("equal: {compared}")
    } else {
        format!(
            "different: {} in {}; {compared}",
            Bytes(differing.total_bytes()),
            count(differing.len() as u64, "extent")
        )
    };
    let (size, destination) = (found.volume_size, found.destination_size);
    if destination < size {
        text.push_str(&format!(
            "; the destination is shorter by {} bytes",
            size - destination
        ));
    } else if destination > size {
        text.push_str(&format!(
            "; the destination is longer by {} bytes",
            destination - size
        ));
        if differing
            .iter()
            .last()
            .is_none_or(|last| last.extent.end() <= size)
        {
            text.push_str(", which do not count");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Silent;

    fn found(sizes: (u64, u64), is_file: bool, only: Option<&[(u64, u64)]>) -> Found {
        let only = only.map(|extents| {
            let mut list = ChangeListBuilder::default();
            for (offset, length) in extents {
                list.push(Extent::new(*offset, *length).unwrap(), Kind::Data);
            }
            Arc::new(list.finish())
        });
        let sizes = Sizes {
            source: sizes.0,
            destination: sizes.1,
            is_file,
        };
        let equal = Compared {
            differing: ChangeList::default(),
            changed: Vec::new(),
        };
        let (_, plan) = sizes.plan(only.as_ref());
        plan.found(equal, &Silent).unwrap()
    }

    fn extents(found: &Found) -> Vec<(u64, u64)> {
        let pair = |extent: Extent| (extent.offset(), extent.length());
        found
            .differing
            .iter()
            .map(|change| pair(change.extent))
            .collect()
    }

    #[test]
    fn a_longer_device_is_equal_and_a_longer_file_or_anything_shorter_is_not() {
        let device = found((100, 160), false, None);
        assert_eq!((extents(&device), device.compared_bytes), (vec![], 100));
        let text = sentence(&device, Duration::from_secs(1));
        assert!(text.starts_with("equal: 100 B"), "{text}");
        assert!(
            text.ends_with("longer by 60 bytes, which do not count"),
            "{text}"
        );
        let file = found((100, 160), true, None);
        assert_eq!(extents(&file), [(100, 60)]);
        let text = sentence(&file, Duration::from_secs(1));
        assert!(text.ends_with("longer by 60 bytes"), "{text}");
        for is_file in [true, false] {
            let short = found((100, 60), is_file, None);
            assert_eq!(
                (extents(&short), short.compared_bytes),
                (vec![(60, 40)], 60)
            );
            let none = found((100, 0), is_file, None);
            assert_eq!((extents(&none), none.compared_bytes), (vec![(0, 100)], 0));
        }
        assert!(found((0, 0), true, None).differing.is_empty());
    }

    #[test]
    fn of_a_delta_only_its_extents_count() {
        let list = [(10, 5), (50, 20), (80, 5)];
        assert_eq!(extents(&found((100, 160), true, Some(&list))), []);
        let short = found((100, 60), true, Some(&list));
        assert_eq!(extents(&short), [(60, 10), (80, 5)]);
        assert_eq!(short.compared_bytes, 15);
        assert_eq!(extents(&found((100, 80), true, Some(&list))), [(80, 5)]);
    }

    #[test]
    fn json_is_what_the_manual_says() {
        let mut out = Vec::new();
        write_json(&mut out, &found((100, 60), false, None)).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"volume_size\":100,\"destination_size\":60,\"compared_bytes\":60,\"different_bytes\":40,\
             \"extents\":[{\"offset\":60,\"length\":40}]}\n"
        );
    }
}
