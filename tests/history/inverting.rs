//! The undo that is made before is the undo that would have been made.

use lvmsync::cancel::Cancel;
use lvmsync::delta::codec::Compression;
use lvmsync::delta::header::Header;
use lvmsync::delta::reader::DeltaReader;
use lvmsync::delta::stream::StreamId;
use lvmsync::engine::undo::Undoes;
use lvmsync::error::{ExitCode, Result};
use lvmsync::history::invert::{Base, Known, Options, invert};
use lvmsync::monitor::Silent;
use lvmsync::volume::memory::MemoryVolume;
use proptest::prelude::*;

use crate::model::{apply, frames, histories};

fn inverted(delta: &[u8], base: &[u8]) -> Result<Vec<u8>> {
    let volume = MemoryVolume::new(base.to_vec());
    let mut out = Vec::new();
    let known = |header: &Header, samples: &_| {
        Ok(Known {
            holds: header.base.clone(),
            undoes: Undoes {
                stream: StreamId::of(header, samples),
                destination: None,
            },
        })
    };
    let base = Base {
        volume: &volume,
        name: "base",
    };
    let options = Options {
        compression: Compression::Lz4,
        cancel: &Cancel::new(),
        monitor: &Silent,
    };
    let undo = &mut out;
    let place = (move || Ok(undo), "undo");
    invert(delta, "delta", &base, known, place, &|| Ok(()), &options)?;
    Ok(out)
}

proptest! {
    // Many pairs are of one state alone, or not told apart by samples.
    #![proptest_config(ProptestConfig {
        max_global_rejects: 1 << 16,
        ..ProptestConfig::with_cases(48)
    })]

    #[test]
    fn inverted_then_applied_is_the_identity(history in histories(1, true)) {
        let (base, delta) = (&history.states[0], &history.deltas[0]);
        let before = inverted(delta, base).unwrap();
        let volume = MemoryVolume::new(base.clone());
        let mut meanwhile = Vec::new();
        apply(delta, &volume, Some(&mut meanwhile)).unwrap();
        // Frame by frame what the apply has saved; only the moment is another.
        prop_assert!(frames(&before) == frames(&meanwhile));
        let header = |bytes: &[u8]| Header {
            created: 0,
            ..DeltaReader::new(bytes).unwrap().header().clone()
        };
        let of_apply = header(&meanwhile);
        let (ours, theirs) = (header(&before), Header { base_size: of_apply.base_size, ..of_apply });
        prop_assert_eq!(ours, theirs);
        apply(&before, &volume, None).unwrap();
        prop_assert!(volume.bytes() == *base);
    }

    #[test]
    fn a_volume_in_another_state_is_refused(history in histories(2, false)) {
        prop_assume!(history.deltas.len() == 2);
        let samples = DeltaReader::new(&history.deltas[1][..]).unwrap().samples().clone();
        let wrong = MemoryVolume::new(history.states[0].clone());
        prop_assume!(samples.first_mismatch(&wrong).unwrap().is_some());
        let error = inverted(&history.deltas[1], &history.states[0]).unwrap_err();
        prop_assert_eq!(error.exit_code(), ExitCode::Refused);
        prop_assert!(error.to_string().contains("not in the state"));
    }
}

#[test]
fn a_volume_that_is_too_small_and_a_delta_that_is_cut_are_refused() {
    let base = vec![5; 8192];
    let mut new = base.clone();
    new[..4096].fill(6);
    let header = crate::model::header(0, &base, &new, Compression::None);
    let mut changes = lvmsync::change_list::ChangeListBuilder::default();
    changes.push(
        lvmsync::extent::Extent::new(0, 4096).unwrap(),
        lvmsync::extent::Kind::Data,
    );
    let changes = changes.finish();
    let samples = lvmsync::delta::samples::Samples::default();
    let delta = crate::model::write_delta(
        &header,
        &samples,
        &changes,
        &new,
        1 << 20,
        Compression::None,
    );
    let error = inverted(&delta, &base[..4096]).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Refused);
    for cut in (20..delta.len()).step_by(101) {
        let error = inverted(&delta[..cut], &base).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Damaged, "{cut}");
    }
    assert!(inverted(&delta, &base).is_ok());
}
