//! A delta that is applied in two rounds, because it is more than the engine holds until old content is saved; and
//! whether the record of what became of it tells the truth.

use lvmsync::change_list::ChangeList;
use lvmsync::delta::codec::Codec;
use lvmsync::delta::header::{Header, Planned, Source, State};
use lvmsync::delta::samples::Samples;
use lvmsync::delta::writer::DeltaWriter;
use lvmsync::extent::{Change, Extent, Kind};
use lvmsync::volume::memory::MemoryVolume;

use super::{Tool, content, wrong_blocks};

const BLOCK: usize = 4096;
/// Of the volume. Most of it changes, more than the 16 MiB that the engine holds.
pub(crate) const SIZE: usize = 22 << 20;

pub(crate) fn noise(length: usize, seed: &str) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(seed.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// The old content, the new one, and the delta between them: of each mebibyte most changes, and some of it to zeroes.
pub(crate) fn contents() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let old = noise(SIZE, "old");
    let mut new = old.clone();
    let mut changes = Vec::new();
    for begin in (0..SIZE).step_by(1 << 20) {
        for (piece, kind) in [
            (0..700, Kind::Data),
            (700..760, Kind::Zero),
            (800..900, Kind::Data),
        ] {
            let range = begin + (piece.start << 10)..begin + (piece.end << 10);
            match kind {
                Kind::Data => new[range.clone()]
                    .copy_from_slice(&noise(range.len(), &format!("{}", range.start))),
                Kind::Zero => new[range.clone()].fill(0),
            }
            let extent = Extent::from_range(range.start as u64, range.end as u64).unwrap();
            changes.push(Change { extent, kind });
        }
    }
    let list: ChangeList = changes.iter().copied().collect();
    let state = |name: &str| {
        Some(State {
            id: format!("lvm:{name}"),
            name: name.to_owned(),
        })
    };
    let header = Header {
        volume_size: SIZE as u64,
        base_size: Some(SIZE as u64),
        base: state("s1"),
        target: state("s2"),
        source: Source::Cow,
        granularity: BLOCK as u64,
        created: 1_700_000_000,
        codec: "none".to_owned(),
        program: "test".to_owned(),
        planned: Planned::default(),
        list: Some(list.digest()),
        run: None,
        undo_of: None,
        undo_for: None,
        from_offset: 0,
        required_features: vec![],
        features: vec![],
    };
    let samples = Samples::take(&MemoryVolume::new(old.clone()), &list).unwrap();
    let mut writer = DeltaWriter::new(Vec::new(), &header, &samples).unwrap();
    for Change { extent, kind } in changes {
        let range = extent.offset() as usize..extent.end() as usize;
        match kind {
            Kind::Data => writer.data(extent, Codec::None, &new[range]).unwrap(),
            Kind::Zero => writer.zero(extent).unwrap(),
        };
    }
    (old, new, writer.finish().unwrap().1)
}

/// Holds the record of `destination` against what it holds: the old content, the new one, or both while the record
/// says incomplete; then it is the new one as far as the record says durable. Returns what the record says.
#[track_caller]
pub(crate) fn truth(
    tool: &Tool,
    destination: &str,
    options: &str,
    (old, new): (&[u8], &[u8]),
    when: &str,
) -> String {
    let found = content(device(destination));
    let run = tool
        .run(&format!("state show {destination} --json {options}"))
        .ok();
    let records: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let record = &records[0];
    let status = record["status"].as_str().unwrap_or("none").to_owned();
    let when = format!("{when}: on record: {record:#}");
    if status == "incomplete" {
        let mut pieces = found.chunks(512).zip(old.chunks(512).zip(new.chunks(512)));
        assert!(
            pieces.all(|(found, (old, new))| found == old || found == new),
            "{when}\nneither old nor new"
        );
        let (durable, undoes) = (
            &record["incomplete"]["durable_offset"],
            &record["incomplete"]["undo_of"],
        );
        let durable = durable.as_u64().unwrap() as usize;
        let leads_to = if undoes.is_null() { new } else { old };
        assert_eq!(
            wrong_blocks(&found[..durable], &leads_to[..durable]),
            0,
            "{when}\nnot durable"
        );
        return status;
    }
    let is_new = record["holds"]["name"]
        .as_str()
        .is_some_and(|name| name.ends_with("s2"));
    let expected = if is_new { new } else { old };
    assert_eq!(
        wrong_blocks(&found, expected),
        0,
        "{when}\nit does not hold that"
    );
    status
}

/// The path of `group/volume`, or of what is a path already.
fn device(name: &str) -> String {
    if name.starts_with('/') {
        name.to_owned()
    } else {
        format!("/dev/{name}")
    }
}
