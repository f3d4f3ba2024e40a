//! Ways back: whatever was run in between, an undo that is called the way to a state leads to that state or is refused, and
//! what leads to no state known has no name on record.

#![allow(
    clippy::unwrap_used,
    reason = "tests: what does not hold fails the test"
)]

mod record_kit;

use std::fs;

use record_kit::*;

fn held(dir: &Dir) -> String {
    dir.state("copy.img")["holds"]["id"]
        .as_str()
        .unwrap_or("nothing")
        .to_owned()
}

/// As a mount of the copy would: somebody else writes to it.
fn write(dir: &Dir, chunk: usize) {
    let mut bytes = dir.read("copy.img");
    bytes[chunk * CHUNK + 1] ^= 0xff;
    fs::write(dir.path("copy.img"), bytes).unwrap();
}

#[test]
fn from_one_moment_of_an_origin_to_the_next_no_undo_is_called_the_way_to_the_snapshot() {
    let (dir, contents) = Dir::chain(1);
    dir.ok("apply s1.delta copy.img");
    let change = |bytes: &mut [u8], chunk: usize, seed: &str| {
        bytes[chunk * CHUNK..][..CHUNK].copy_from_slice(&noise(CHUNK, seed));
    };
    let s1 = &contents[1];
    let mut first = s1.clone();
    change(&mut first, 50, "first");
    let mut second = first.clone();
    change(&mut second, 51, "second");
    let write = |name: &str, target: &[u8], chunks: &[usize]| {
        fs::write(dir.path(name), nameless(name, 2, [s1, target], chunks)).unwrap();
    };
    write("o1", &first, &[50]);
    write("o2", &second, &[50, 51]);
    dir.ok("apply o1 copy.img --undo u1");
    assert_eq!(held(&dir), "nothing");
    dir.ok("apply o2 copy.img --undo u2");
    assert!(dir.read("copy.img") == second);
    dir.ok("apply u2 copy.img");
    assert!(dir.read("copy.img") == first);
    assert_eq!(held(&dir), "nothing", "it is not s1");
    dir.ok("apply u1 copy.img");
    assert!(dir.read("copy.img") == *s1);
    assert_eq!(
        held(&dir),
        "nothing",
        "whether it is the last one nobody knows"
    );
    // Not the newest first: what only the second one has written stays.
    dir.ok("state adopt copy.img lvm:s1");
    dir.ok("apply o1 copy.img --undo u3");
    dir.ok("apply o2 copy.img");
    dir.run("apply u3 copy.img");
    assert!(dir.read("copy.img") != *s1);
    assert_eq!(held(&dir), "nothing");
}

#[test]
fn an_undo_that_was_cut_tears_nothing_that_is_whole_by_now() {
    let (dir, base, target) = large_chain();
    dir.fails("apply cut.delta copy.img --undo back", 6, &[]);
    fs::write(dir.path("full.delta"), large_delta(None, 1, &target, 0..24)).unwrap();
    dir.ok("apply full.delta copy.img");
    assert_eq!(held(&dir), "lvm:s1");
    for line in [
        "apply back copy.img",
        "apply back.partial copy.img",
        "apply --unfinished back copy.img",
        "apply --check back copy.img",
    ] {
        dir.fails(line, 5, &["copy.img"]);
        assert!(dir.read("copy.img") == target, "{line}");
        assert_eq!(held(&dir), "lvm:s1", "{line}");
    }
    // Nor may another delta be given its place; and nothing is printed that is refused then.
    let said = dir.fails("apply s1.delta copy.img --undo back --force", 5, &[]);
    assert!(!said.contains("--unfinished"), "{said}");
    // Under another name it is taken for whole, and damaged; then it is not whole enough either.
    fs::rename(dir.path("back.partial"), dir.path("torn")).unwrap();
    dir.fails("apply torn copy.img", 6, &[]);
    dir.fails("apply --unfinished torn copy.img", 5, &["lvmsync sync"]);
    assert_eq!(dir.state("copy.img")["status"], "incomplete");
    dir.ok("apply --unfinished torn copy.img --force");
    assert!(dir.read("copy.img") != base);
    assert_eq!(held(&dir), "nothing");
}

#[test]
fn an_undo_that_lost_what_the_record_says_was_saved_is_damaged_whatever_is_asked() {
    let (dir, base, _) = large_chain();
    dir.fails("apply cut.delta copy.img --undo back", 6, &[]);
    let whole = dir.read("back.partial");
    let mut damaged = whole.clone();
    damaged[8 * MIB] ^= 1;
    fs::write(dir.path("back.partial"), &damaged).unwrap();
    for line in [
        "apply back copy.img",
        "apply --unfinished back.partial copy.img",
        "apply --unfinished back copy.img",
    ] {
        dir.fails(line, 6, &["back.partial"]);
        assert_eq!(dir.state("copy.img")["status"], "incomplete", "{line}");
        assert!(dir.read("back.partial") == damaged, "{line}");
    }
    // Sound again, it still leads back.
    fs::write(dir.path("back.partial"), &whole).unwrap();
    dir.ok("apply --unfinished back copy.img");
    assert!(dir.read("copy.img") == base);
    assert_eq!(held(&dir), "lvm:s0");
    // Whoever takes what there is all the same gets no state.
    dir.fails("apply cut.delta copy.img --undo second", 6, &[]);
    let mut damaged = dir.read("second.partial");
    damaged[8 * MIB] ^= 1;
    fs::write(dir.path("second.partial"), &damaged).unwrap();
    dir.ok("apply --unfinished second.partial copy.img --force");
    assert!(dir.read("copy.img") != base);
    assert_eq!(held(&dir), "nothing");
    assert!(dir.path("second.partial").exists());
}

#[test]
fn what_was_written_to_after_a_delta_was_applied_gets_no_undo_that_is_called_the_way_to_its_base() {
    let (dir, contents) = Dir::chain(1);
    dir.ok("apply s1.delta copy.img --undo u");
    let first = dir.read("u");
    // Into a block that was written, as a mount does with a superblock.
    write(&dir, 7);
    dir.fails(
        "apply s1.delta copy.img --undo u --overwrite",
        5,
        &["only way back", "--undo"],
    );
    assert!(dir.read("u") == first);
    let before = dir.read("copy.img");
    dir.ok("apply s1.delta copy.img --undo u2");
    dir.ok("apply u2 copy.img");
    assert!(dir.read("copy.img") == before);
    assert_eq!(held(&dir), "nothing", "it is not s0");
    dir.ok("apply u copy.img");
    assert!(dir.read("copy.img") == contents[0]);
}

#[test]
fn an_undo_is_made_beside_only_of_what_is_the_base_as_far_as_is_known() {
    let (dir, contents) = Dir::chain(1);
    dir.ok("apply s1.delta copy.img");
    write(&dir, 200);
    let checks = [
        "invert s1.delta --base copy.img -o u",
        "apply s1.delta copy.img --undo u",
        "apply --check s1.delta copy.img --undo u",
        "apply --atomic s1.delta copy.img --undo u",
    ];
    for line in checks {
        dir.fails(line, 5, &["state forget"]);
        assert!(!dir.path("u").exists(), "{line}");
    }
    // Put back from outside, it is perhaps the base; its undo promises nothing.
    fs::write(dir.path("copy.img"), &contents[0]).unwrap();
    let said = dir.ok("invert s1.delta --base copy.img -o u");
    assert!(said.contains("without an identity"), "{said}");
    dir.ok("apply s1.delta copy.img");
    dir.ok("apply u copy.img");
    assert!(dir.read("copy.img") == contents[0]);
    assert_eq!(held(&dir), "nothing");
}

#[test]
fn the_undo_of_the_first_of_two_runs_is_not_outgrown_by_the_second() {
    let (dir, base, target) = large_chain();
    // Something else than the base, outside of the first list, too.
    let other = noise(24 * MIB, "other");
    fs::write(dir.path("copy.img"), &other).unwrap();
    dir.ok("state adopt copy.img lvm:other");
    dir.ok("apply s1.delta copy.img --force --undo u");
    dir.fails("apply cut.delta copy.img --force", 6, &[]);
    let longer = large_delta(Some(&base), 1, &target, 0..23);
    fs::write(dir.path("longer.delta"), longer).unwrap();
    let said = dir.fails(
        "apply longer.delta copy.img --force",
        5,
        &["another one now"],
    );
    assert!(
        said.contains("/u copy.img"),
        "the way back is named: {said}"
    );
    dir.ok("apply u copy.img");
    assert!(dir.read("copy.img") == other);
    assert_eq!(held(&dir), "lvm:other");
}

#[test]
fn an_older_undo_of_the_same_delta_leads_to_no_state_by_its_name() {
    let (dir, contents) = Dir::chain(2);
    dir.ok("state adopt copy.img lvm:s0");
    dir.ok("apply s2.delta copy.img --force --undo u");
    dir.ok("apply u copy.img");
    assert!(dir.read("copy.img") == contents[0]);
    assert_eq!(held(&dir), "lvm:s0");
    dir.ok("apply s1.delta copy.img");
    dir.ok("apply s2.delta copy.img");
    assert_eq!(held(&dir), "lvm:s2");
    // By its samples it fits, and what it saved is the same in both; but nobody knows.
    dir.run("apply u copy.img");
    assert_ne!(held(&dir), "lvm:s0", "s1 is still in it");
    assert!(dir.read("copy.img") != contents[0]);
}

#[test]
fn what_was_forced_stays_no_state_whoever_writes_to_it() {
    let (dir, contents) = Dir::chain(3);
    dir.ok("state adopt copy.img lvm:s0");
    dir.ok("apply s2.delta copy.img --force");
    assert_eq!(held(&dir), "nothing");
    write(&dir, 14);
    // It has the samples that it has.
    let found = dir.read("copy.img");
    let mut next = found.clone();
    next[60 * CHUNK..][..CHUNK].fill(1);
    fs::write(dir.path("s3.delta"), delta(3, &found, &next, &[60])).unwrap();
    dir.ok("apply s3.delta copy.img");
    assert_eq!(held(&dir), "nothing", "s1 is not in it");
    let full = dir.path("full.img");
    fs::write(&full, &contents[3]).unwrap();
    dir.ok("sync full.img copy.img");
    assert!(dir.read("copy.img") == contents[3]);
    dir.ok("state adopt copy.img lvm:s0");
    assert_eq!(held(&dir), "lvm:s0");
}

#[test]
fn what_is_taken_back_to_a_mixture_is_one_again() {
    let (dir, contents) = Dir::chain(3);
    dir.ok("state adopt copy.img lvm:s0");
    dir.ok("apply s2.delta copy.img --force --undo u2");
    let mixture = dir.read("copy.img");
    let mut next = mixture.clone();
    next[60 * CHUNK..][..CHUNK].fill(1);
    fs::write(dir.path("s3.delta"), delta(3, &mixture, &next, &[60])).unwrap();
    dir.ok("apply s3.delta copy.img --undo u3");
    dir.ok("apply u3 copy.img");
    assert!(dir.read("copy.img") == mixture);
    dir.ok("apply s3.delta copy.img");
    assert_eq!(held(&dir), "nothing", "s1 is not in it");
    // Over a whole copy and back it is one, too.
    dir.ok("state adopt copy.img lvm:s0");
    fs::write(dir.path("copy.img"), &contents[0]).unwrap();
    dir.ok("state adopt copy.img lvm:s0");
    dir.ok("apply s2.delta copy.img --force");
    fs::write(dir.path("full.img"), &contents[3]).unwrap();
    dir.ok("send full.img copy.img --undo whole");
    dir.ok("apply whole copy.img");
    assert!(dir.read("copy.img") == mixture);
    dir.ok("apply s3.delta copy.img");
    assert_eq!(held(&dir), "nothing");
}

#[test]
fn an_older_undo_does_not_end_what_was_forced() {
    let (dir, _) = Dir::chain(2);
    dir.ok("state adopt copy.img lvm:s0");
    dir.ok("apply s1.delta copy.img --undo u");
    dir.ok("apply u copy.img");
    dir.ok("state adopt copy.img lvm:s5");
    dir.ok("apply s1.delta copy.img --force");
    dir.run("apply u copy.img");
    assert_eq!(held(&dir), "nothing");
}

#[test]
fn the_undo_of_a_repetition_that_was_cut_takes_all_of_it_back() {
    let (dir, base, target) = large_chain();
    dir.ok("state adopt copy.img lvm:s0");
    dir.ok("apply s1.delta copy.img --undo u");
    for options in ["--undo u", ""] {
        // Nobody can tell whether somebody wrote to it: renamed, it has another time of change.
        fs::rename(dir.path("copy.img"), dir.path("other.img")).unwrap();
        fs::rename(dir.path("other.img"), dir.path("copy.img")).unwrap();
        dir.fails(&format!("apply cut.delta copy.img {options}"), 6, &[]);
        assert_eq!(dir.state("copy.img")["status"], "incomplete", "{options}");
        // Damaged behind the place where the repetition was cut, it would leave the rest of the first run.
        let sound = dir.read("u");
        let mut damaged = sound.clone();
        let at = damaged.len() - MIB / 2;
        damaged[at] ^= 1;
        fs::write(dir.path("u"), damaged).unwrap();
        dir.fails("apply u copy.img", 6, &[]);
        assert_eq!(dir.state("copy.img")["status"], "incomplete", "{options}");
        fs::write(dir.path("u"), sound).unwrap();
        dir.ok("apply u copy.img");
        assert!(dir.read("copy.img") == base, "{options}");
        assert_eq!(held(&dir), "lvm:s0", "{options}");
        dir.ok("apply s1.delta copy.img --undo u --overwrite");
        assert!(dir.read("copy.img") == target);
    }
}

#[test]
fn a_repetition_that_was_cut_is_taken_back_by_the_undo_that_it_kept_itself() {
    let (dir, base, target) = large_chain();
    let full = large_delta(None, 1, &target, 0..24);
    fs::write(dir.path("cut.full"), &full[..20 * MIB]).unwrap();
    fs::write(dir.path("full"), full).unwrap();
    // A copy that somebody wrote to is copied once more; an increment, where the base was put back from below.
    for (whole, cut) in [("full", "cut.full"), ("s1.delta", "cut.delta")] {
        dir.ok("state forget copy.img");
        fs::write(dir.path("copy.img"), &base).unwrap();
        dir.ok(&format!("apply {whole} copy.img"));
        assert_eq!(held(&dir), "lvm:s1", "{whole}");
        fs::write(dir.path("copy.img"), &base).unwrap();
        write(&dir, 7);
        let drifted = dir.read("copy.img");
        dir.fails(
            &format!("apply {cut} copy.img --undo u"),
            6,
            &["apply", "/u copy.img"],
        );
        assert!(dir.read("copy.img") != drifted);
        // Shorter than what was overwritten, it is no way back.
        let sound = dir.read("u.partial");
        for torn in [9 * MIB, MIB] {
            fs::write(dir.path("u.partial"), &sound[..torn]).unwrap();
            dir.fails("apply u copy.img", 6, &[]);
            assert_eq!(dir.state("copy.img")["status"], "incomplete", "{whole}");
            fs::write(dir.path("u.partial"), &sound).unwrap();
        }
        dir.ok("apply u copy.img");
        assert!(dir.read("copy.img") == drifted, "{whole}");
        assert_eq!(dir.state("copy.img")["status"], "complete", "{whole}");
        assert_eq!(held(&dir), "nothing", "{whole}: nobody knows what that is");
        assert!(!dir.path("u.partial").exists(), "{whole}");
    }
}

#[test]
fn a_repetition_that_goes_on_makes_no_new_undo_of_what_the_first_run_wrote() {
    let (dir, _, target) = large_chain();
    dir.ok("apply s1.delta copy.img --undo u");
    fs::rename(dir.path("copy.img"), dir.path("other.img")).unwrap();
    fs::rename(dir.path("other.img"), dir.path("copy.img")).unwrap();
    dir.fails("apply cut.delta copy.img --undo u", 6, &[]);
    fs::remove_file(dir.path("u")).unwrap();
    dir.fails("apply s1.delta copy.img --undo u", 5, &["is gone"]);
    assert!(!dir.path("u").exists() && !dir.path("u.partial").exists());
    dir.ok("apply s1.delta copy.img");
    assert!(dir.read("copy.img") == target);
}

/// `copy.img`, which was made equal to `source.img` and keeps the undo `u` of that, and what it held before.
fn synced() -> (Dir, Vec<u8>) {
    let (dir, contents) = Dir::chain(1);
    fs::write(dir.path("source.img"), &contents[1]).unwrap();
    dir.ok("state adopt copy.img lvm:s0");
    dir.ok("sync source.img copy.img --undo u");
    (dir, contents[0].clone())
}

#[test]
fn an_undo_without_samples_goes_onto_no_other_volume() {
    let (dir, before) = synced();
    let source = dir.read("source.img");
    let victim = noise(source.len(), "victim");
    fs::write(dir.path("victim.img"), &victim).unwrap();
    for line in [
        "apply u victim.img",
        "apply u victim.img --undo v",
        "apply --check u victim.img",
        "apply --atomic u victim.img",
        "apply --unfinished u victim.img",
        "apply u source.img",
    ] {
        let expected = ["copy.img", "no samples", "Nothing was written", "--force"];
        dir.fails(line, 5, &expected);
        assert!(dir.read("victim.img") == victim, "{line}");
        assert!(dir.read("source.img") == source, "{line}");
        assert!(dir.state("victim.img").is_null(), "{line}");
        assert!(!dir.path("v").exists() && !dir.path("v.partial").exists());
    }
    // What is known to hold the state that it leads back from.
    dir.ok("sync source.img other.img");
    dir.ok("apply u other.img");
    assert!(dir.read("other.img") == before);
    // Unless somebody wrote to it since.
    dir.ok("sync source.img other.img");
    fs::write(dir.path("other.img"), &victim).unwrap();
    dir.fails("apply u other.img", 5, &["--force"]);
    assert!(dir.read("other.img") == victim);
    // Who knows better gets no state.
    fs::copy(dir.path("copy.img"), dir.path("known.img")).unwrap();
    dir.ok("apply u known.img --force --undo v");
    assert!(dir.read("known.img") == before);
    assert!(dir.state("known.img")["holds"].is_null());
    // Where the destination is on record no more its identity is still the one that the undo names.
    dir.ok("state forget copy.img");
    let said = dir.ok("apply u copy.img");
    assert!(said.contains("no samples"), "{said}");
    assert!(dir.read("copy.img") == before);
    assert_eq!(held(&dir), "nothing", "nothing says that it is s0");
}

#[test]
fn of_the_undo_that_is_on_record_nobody_has_to_be_told_that_it_may_not_fit() {
    let (dir, before) = synced();
    let untold = |said: &str| {
        for words in ["no samples", "sampled blocks"] {
            assert!(!said.contains(words), "{said}");
        }
    };
    untold(&dir.ok("apply --check u copy.img"));
    untold(&dir.ok("apply u copy.img"));
    assert!(dir.read("copy.img") == before);
    assert_eq!(held(&dir), "lvm:s0");
    // What somebody wrote since is another matter.
    dir.ok("sync source.img copy.img --undo u --overwrite");
    write(&dir, 200);
    let said = dir.ok("apply u copy.img");
    untold(&said);
    assert!(said.contains("other than lvmsync wrote"), "{said}");
    assert!(said.contains("stays"), "{said}");
    assert!(dir.read("copy.img") != before);
    assert_eq!(held(&dir), "nothing", "it is not s0");
}

#[test]
fn an_undo_that_was_made_beside_is_whole_or_none() {
    let (dir, base, _) = large_chain();
    dir.ok("state adopt copy.img lvm:s0");
    dir.ok("invert s1.delta --base copy.img -o made");
    dir.fails("apply cut.delta copy.img", 6, &[]);
    let whole = dir.read("made");
    fs::write(dir.path("short"), &whole[..whole.len() - 3 * MIB]).unwrap();
    for options in ["", "--unfinished"] {
        dir.fails(&format!("apply short copy.img {options}"), 6, &[]);
        assert_eq!(dir.state("copy.img")["status"], "incomplete", "{options}");
        dir.run("apply made copy.img");
        assert!(dir.read("copy.img") == base, "{options}");
        dir.fails("apply cut.delta copy.img", 6, &[]);
    }
}

#[test]
fn an_old_stream_on_what_is_half_written_keeps_no_undo() {
    let dir = Dir::with(64);
    dir.ok("state adopt copy.img lvm:s0");
    let record = |offset: u64, byte: u8| {
        let mut record = [&offset.to_be_bytes()[..], &4096u32.to_be_bytes()[..]].concat();
        record.extend([byte; CHUNK]);
        record
    };
    let mut stream = b"lvmsync PROTO[3]\n".to_vec();
    stream.extend(record(0, 1));
    stream.extend(record(8192, 2));
    let cut = stream.len() - 100;
    fs::write(dir.path("old"), &stream).unwrap();
    fs::write(dir.path("old.cut"), &stream[..cut]).unwrap();
    dir.fails("apply old.cut copy.img", 6, &[]);
    assert_eq!(dir.state("copy.img")["status"], "incomplete");
    dir.fails("apply old copy.img --undo u", 5, &["incomplete", "--undo"]);
    assert!(!dir.path("u").exists() && !dir.path("u.partial").exists());
    dir.ok("apply old copy.img");
    assert_eq!(held(&dir), "nothing");
}
