//! `lvmsync view` from outside: help, errors, exit codes, bytes to stdout and files.

use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use lvmsync::change_list::ChangeListBuilder;
use lvmsync::delta::codec::Compression;
use lvmsync::delta::samples::Samples;
use lvmsync::delta::stored::StoredDelta;
use lvmsync::extent::{Extent, Kind};
use lvmsync::volume::memory::MemoryVolume;

use crate::bench::{Dir, SIZE, text};
use crate::model::{header, write_delta};

#[test]
fn cat_gives_the_bytes_that_were_asked_for() {
    let dir = Dir::new();
    let chain = "lvmsync view tue.delta mon.delta --base base";
    assert!(dir.ok(&format!("{chain} --cat 0:")) == dir.states[2]);
    assert!(dir.ok(&format!("{chain} --cat 4k:1M")) == dir.states[2][4096..4096 + (1 << 20)]);
    assert!(dir.ok("lvmsync view full.delta mon.delta --cat 5:70000") == dir.states[1][5..70_005]);
    assert!(dir.ok(&format!("{chain} --cat 6M:")).is_empty());
    dir.fails(
        &format!("{chain} --cat 6M:1"),
        2,
        &["ends past the state", "6291456 bytes"],
    );
    for wrong in ["5", "x:1", "1:-1", "1:1:1"] {
        dir.fails(&format!("{chain} --cat {wrong}"), 2, &["--cat"]);
    }
    assert!(
        dir.read("base") == dir.states[0],
        "nothing is written to the base"
    );
}

#[test]
fn to_writes_a_sparse_file_that_appears_when_it_is_whole() {
    let dir = Dir::new();
    let before = dir.names();
    let line = "lvmsync view mon.delta tue.delta wed.delta --base base --to state.img";
    dir.ok(line);
    assert!(dir.read("state.img") == dir.states[3]);
    let found = std::fs::metadata(dir.path("state.img")).unwrap();
    let zeroes = dir.states[3]
        .chunks(4096)
        .filter(|block| block.iter().all(|b| *b == 0))
        .count();
    assert!(
        found.blocks() * 512 <= (SIZE - zeroes * 4096 / 2) as u64,
        "{} blocks",
        found.blocks()
    );
    assert_eq!(found.mode() & 0o777, 0o600);
    dir.fails(line, 5, &["this file exists", "--overwrite"]);
    dir.write("state.img", b"old");
    dir.ok(&format!("{line} --overwrite"));
    assert!(dir.read("state.img") == dir.states[3]);
    std::fs::remove_file(dir.path("state.img")).unwrap();
    assert_eq!(dir.names(), before);
    dir.fails(
        "lvmsync view mon.delta --base base --to mon.delta --overwrite",
        2,
        &["one of the deltas"],
    );
    dir.fails(
        "lvmsync view mon.delta --base base --to base --overwrite",
        2,
        &["is the base"],
    );
    dir.fails(
        "lvmsync view mon.delta --base base --to /dev/null",
        2,
        &["not a regular file", "lvmsync apply"],
    );
}

#[test]
fn an_undo_shows_the_state_before() {
    let dir = Dir::new();
    dir.ok("lvmsync apply mon.delta base --undo mon.undo -q");
    dir.ok("lvmsync apply tue.delta base --undo tue.undo -q");
    assert!(dir.ok("lvmsync view tue.undo --base base --cat 0:") == dir.states[1]);
    assert!(dir.ok("lvmsync view mon.undo tue.undo --base base --cat 0:") == dir.states[0]);
    assert!(dir.ok("lvmsync view wed.delta --base base --cat 0:") == dir.states[3]);
    assert!(dir.read("base") == dir.states[2]);
}

#[test]
fn what_is_no_chain_and_no_base_is_refused() {
    let dir = Dir::new();
    dir.fails(
        "lvmsync view mon.delta wed.delta --base base --cat 0:1",
        5,
        &["a link is missing between mon.delta and wed.delta"],
    );
    std::fs::copy(dir.path("mon.delta"), dir.path("again.delta")).unwrap();
    dir.fails(
        "lvmsync view mon.delta again.delta --base base --cat 0:1",
        5,
        &["both begin from"],
    );
    dir.fails("lvmsync view mon.delta --cat 0:1", 2, &["--base", "vg/s0"]);
    dir.fails("lvmsync view mon.delta --base base", 2, &["--cat"]);
    dir.fails(
        "lvmsync view mon.delta --base nothing --cat 0:1",
        1,
        &["nothing"],
    );
    dir.fails(
        "lvmsync view none.delta --base base --cat 0:1",
        1,
        &["none.delta"],
    );
    // Another state, by the sampled blocks.
    dir.write(
        "other",
        &dir.states[0]
            .iter()
            .map(|byte| byte ^ 1)
            .collect::<Vec<_>>(),
    );
    let line = "lvmsync view mon.delta --base other --cat 0:1";
    dir.fails(
        line,
        5,
        &["not in the state that mon.delta begins from", "--force"],
    );
    assert_eq!(dir.ok(&format!("{line} --force")).len(), 1);
    // One that is too small.
    dir.write("short", &dir.states[0][..SIZE - 4096]);
    dir.fails(
        "lvmsync view mon.delta --base short --cat 0:1",
        5,
        &["it has 6287360 bytes", "--force"],
    );
    // One that is there already, by the record.
    dir.ok("lvmsync apply mon.delta base -q");
    let line = "lvmsync view mon.delta --base base --cat 0:1";
    dir.fails(line, 5, &["on record since", "Leave that delta out"]);
    dir.fails(
        "lvmsync view wed.delta --base base --cat 0:1",
        5,
        &["begins from"],
    );
    dir.fails(
        "lvmsync view mon.delta --base base --nbd tcp:0.0.0.0:0",
        5,
        &["--allow-network", "ssh"],
    );
    dir.fails(
        "lvmsync view mon.delta --base base --nbd vsock:1",
        2,
        &["unix:PATH"],
    );
    dir.fails(
        "lvmsync view mon.delta --base base --cat 0:1 --overlay x",
        2,
        &["--nbd"],
    );
}

#[test]
fn a_base_that_a_run_writes_to_is_refused_and_readers_share_it() {
    let dir = Dir::new();
    let line = "lvmsync view mon.delta --base base --cat 0:4k";
    let file = std::fs::File::open(dir.path("base")).unwrap();
    file.lock_shared().unwrap();
    dir.ok(line);
    file.lock().unwrap();
    dir.fails(line, 5, &["another process holds it"]);
    file.unlock().unwrap();
    let serving = dir.serve("lvmsync view mon.delta --base base --nbd unix:sock");
    dir.ok(line);
    dir.fails("lvmsync apply mon.delta base", 5, &["base"]);
    serving.end();
}

#[test]
fn a_damaged_frame_is_named_and_only_what_touches_it_fails() {
    let dir = Dir::new();
    let bytes = dir.read("mon.delta");
    let stored = StoredDelta::open(MemoryVolume::new(bytes.clone())).unwrap();
    let frame = stored
        .frames()
        .map(Result::unwrap)
        .filter(|frame| frame.stored_length > 0)
        .nth(9)
        .unwrap();
    let mut bad = bytes;
    bad[frame.at as usize + 33] ^= 1;
    dir.write("mon.delta", &bad);
    let offset = frame.extent.offset();
    let line = "lvmsync view mon.delta --base base";
    let at = frame.at.to_string();
    let output = dir.run(&format!("{line} --cat {offset}:1"));
    assert_eq!(output.status.code(), Some(6));
    let said = text(&output.stderr);
    assert!(said.contains("mon.delta") && said.contains(&at), "{said}");
    dir.fails(&format!("{line} --to state.img"), 6, &["mon.delta", &at]);
    assert!(!dir.names().iter().any(|name| name.starts_with("state.img")));
    let before = offset as usize;
    assert!(dir.ok(&format!("{line} --cat 0:{before}")) == dir.states[1][..before]);
    // Cut short it does not open.
    dir.write("mon.delta", &bad[..bad.len() - 1]);
    dir.fails(&format!("{line} --cat 0:1"), 6, &["mon.delta"]);
}

#[test]
fn the_help_shows_how() {
    let dir = Dir::new();
    let help = text(&dir.ok("lvmsync view --help"));
    for word in [
        "--base",
        "--cat",
        "--to",
        "--nbd",
        "--overlay",
        "Examples:",
        "Ctrl-C",
    ] {
        assert!(help.contains(word), "{word}");
    }
    assert!(text(&dir.ok("lvmsync --help")).contains("view"));
}

#[test]
fn a_thousand_files_open_in_a_moment_whatever_the_shell_allows() {
    let dir = Dir::new();
    let old = vec![0; 64 << 10];
    let mut new = old.clone();
    for number in 0..1000 {
        let before = new.clone();
        let start = number % 16 * 4096;
        new[start..start + 4096].fill(number as u8);
        let mut changes = ChangeListBuilder::default();
        changes.push(Extent::new(start as u64, 4096).unwrap(), Kind::Data);
        let header = header(number, &before, &new, Compression::None);
        let none = Samples::default();
        let changes = changes.finish();
        let delta = write_delta(&header, &none, &changes, &new, 1 << 20, Compression::None);
        dir.write(&format!("{number}.day"), &delta);
    }
    dir.write("old", &old);
    let line = "ulimit -Sn 256; exec lvmsync view *.day --base old -v --cat 0:";
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_lvmsync"));
    let path = std::env::var("PATH").unwrap();
    let start = Instant::now();
    let mut command = dir.command("sh -c");
    let path = format!("{}:{path}", program.parent().unwrap().display());
    let output = command.arg(line).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout == new);
    let said = text(&output.stderr);
    let after = said.split("open after ").nth(1).unwrap();
    let seconds: f64 = after.split(' ').next().unwrap().parse().unwrap();
    eprintln!("open after {seconds} s, ended after {:?}", start.elapsed());
    // Debug builds on a machine that does other things, too.
    assert!(seconds < 5.0, "{said}");
}
