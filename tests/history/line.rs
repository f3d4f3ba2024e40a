//! The command line: `combine`, `invert` and `inspect` of several, from outside.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lvmsync::change_list::ChangeListBuilder;
use lvmsync::delta::codec::Compression;
use lvmsync::delta::header::{Header, Source};
use lvmsync::delta::samples::Samples;
use lvmsync::extent::{Extent, Kind};
use lvmsync::volume::memory::MemoryVolume;

use crate::model::{Noise, header, state, write_delta};

const CHUNK: usize = 4096;
const CHUNKS: usize = 256;

/// A directory with a volume, `vg/copy`, in its first state, and what leads on from there: `mon.delta`, `tue.delta`,
/// `wed.delta`; `full.delta` is the first state.
pub(crate) struct Dir {
    directory: tempfile::TempDir,
    pub(crate) states: Vec<Vec<u8>>,
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Dir {
    pub(crate) fn new() -> Self {
        Self::with(CHUNKS)
    }

    fn with(chunks: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut noise = Noise::new(77);
        let mut first = vec![0; chunks * CHUNK];
        noise.fill(&mut first);
        let mut dir = Self {
            directory,
            states: vec![first],
        };
        // Some chunks of one day are changed again on the next.
        for (number, name) in ["mon", "tue", "wed"].into_iter().enumerate() {
            let old = dir.states[number].clone();
            let mut new = old.clone();
            let mut builder = ChangeListBuilder::default();
            for chunk in 0..chunks / 8 {
                let start = (chunk + number * chunks / 16) * CHUNK;
                let extent = Extent::new(start as u64, CHUNK as u64).unwrap();
                builder.push(extent, Kind::Data);
                noise.fill(&mut new[start..start + CHUNK]);
            }
            let changes = builder.finish();
            let samples = Samples::take(&MemoryVolume::new(old.clone()), &changes).unwrap();
            let header = header(number, &old, &new, Compression::Lz4);
            let delta = write_delta(&header, &samples, &changes, &new, 1 << 14, Compression::Lz4);
            dir.write(&format!("{name}.delta"), &delta);
            dir.states.push(new);
        }
        let first = &dir.states[0];
        let full = Header {
            source: Source::Full,
            base: None,
            base_size: None,
            target: Some(state(0)),
            ..header(0, first, first, Compression::None)
        };
        let whole = lvmsync::change_list::ChangeList::whole(first.len() as u64);
        let none = (&Samples::default(), Compression::None);
        let delta = write_delta(&full, none.0, &whole, first, 1 << 20, none.1);
        dir.write("full.delta", &delta);
        fs::create_dir(dir.path("vg")).unwrap();
        dir.write("vg/copy", first);
        dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lvmsync"));
        command
            .current_dir(self.directory.path())
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .args(line.split_whitespace())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}: {stderr}");
        text(&output.stdout)
    }

    /// Expects an exit code and words on stderr.
    #[track_caller]
    fn fails(&self, line: &str, code: i32, words: &[&str]) -> String {
        let output = self.run(line);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        for word in words {
            assert!(
                stderr.contains(word),
                "{line}: {word:?} is not in: {stderr}"
            );
        }
        text(&output.stdout)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "state")
            .collect();
        names.sort();
        names
    }

    fn reset(&self) {
        fs::remove_file(self.path("vg/copy")).unwrap();
        self.write("vg/copy", &self.states[0]);
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn combine_makes_one_delta_whatever_the_order_of_the_arguments() {
    let dir = Dir::new();
    let listed = dir.ok("combine wed.delta mon.delta tue.delta --check");
    assert_eq!(listed, "mon.delta\ntue.delta\nwed.delta\n");
    let told = json(&dir.ok("combine wed.delta mon.delta tue.delta -o week.delta --json"));
    assert_eq!(
        told["chain"],
        serde_json::json!(["mon.delta", "tue.delta", "wed.delta"])
    );
    assert_eq!(told["base"]["id"], "file:state-0");
    assert_eq!(told["target"]["id"], "file:state-3");
    // 32 chunks a day, of which 16 are changed again on the next.
    assert_eq!(told["data_bytes"], 64 * CHUNK);
    assert_eq!(told["delta_bytes"], dir.read("week.delta").len());
    dir.ok("inspect week.delta");
    dir.ok("apply week.delta vg/copy");
    assert!(dir.read("vg/copy") == dir.states[3]);
    dir.ok("combine full.delta mon.delta tue.delta -o newer.delta -q");
    dir.ok("apply newer.delta new.img");
    assert!(dir.read("new.img") == dir.states[2]);
    // What was made goes on in a chain.
    dir.ok("combine wed.delta newer.delta -o newest.delta -z zstd");
    dir.ok("apply newest.delta newest.img");
    assert!(dir.read("newest.img") == dir.states[3]);
    assert!(
        dir.ok("combine mon.delta -o one.delta --json")
            .contains("one.delta")
    );
}

#[test]
fn combine_refuses_what_is_no_chain_and_says_what_is_missing() {
    let dir = Dir::new();
    fs::copy(dir.path("mon.delta"), dir.path("again.delta")).unwrap();
    let before = dir.names();
    for (files, words) in [
        (
            "mon.delta wed.delta",
            &[
                "a link is missing between mon.delta and wed.delta",
                "vg/s1",
                "vg/s2",
            ][..],
        ),
        (
            "mon.delta again.delta",
            &["both begin from vg/s0", "both lead to vg/s1"],
        ),
        (
            "tue.delta full.delta",
            &["missing between full.delta and tue.delta", "inspect"],
        ),
    ] {
        dir.fails(&format!("combine {files} -o x.delta"), 5, words);
        dir.fails(&format!("combine {files} --check"), 5, words);
    }
    assert_eq!(dir.names(), before);
    dir.fails("combine mon.delta - -o x.delta", 2, &["in files"]);
    dir.fails("combine mon.delta vg -o x.delta", 2, &["in files"]);
    dir.fails(
        "combine mon.delta gone.delta -o x.delta",
        1,
        &["gone.delta"],
    );
    dir.fails("combine mon.delta tue.delta", 2, &["--output"]);
    dir.fails(
        "combine mon.delta tue.delta -o tue.delta --overwrite",
        2,
        &["cannot replace"],
    );
    dir.fails(
        "combine mon.delta tue.delta -o wed.delta",
        5,
        &["--overwrite"],
    );
    dir.ok("send vg/copy -o old.delta --format proto3");
    dir.fails(
        "combine old.delta mon.delta -o x.delta",
        5,
        &["PROTO[3]", "old.delta", "lvmsync apply"],
    );
    assert!(!dir.path("x.delta").exists());
    dir.ok("combine mon.delta tue.delta -o wed.delta --overwrite");
}

#[test]
fn a_damaged_part_is_6_with_file_and_offset_and_nothing_is_left() {
    let dir = Dir::new();
    let sound = dir.read("tue.delta");
    let before = dir.names();
    for at in [
        3,
        40,
        200,
        sound.len() / 2,
        sound.len() - 200,
        sound.len() - 5,
    ] {
        let mut bad = sound.clone();
        bad[at] ^= 0x10;
        dir.write("tue.delta", &bad);
        dir.fails(
            "combine mon.delta tue.delta wed.delta -o week.delta",
            6,
            &["tue.delta"],
        );
        assert_eq!(dir.names(), before, "{at}");
    }
    dir.write("tue.delta", &sound[..sound.len() / 3]);
    dir.fails(
        "combine mon.delta tue.delta -o x.delta",
        6,
        &["tue.delta", "byte"],
    );
    let table = dir.fails("inspect mon.delta tue.delta wed.delta", 6, &["tue.delta"]);
    assert!(
        table.contains("NOT SOUND: tue.delta") && table.contains("wed.delta"),
        "{table}"
    );
    let mut bad = sound.clone();
    bad[sound.len() / 2] ^= 1;
    dir.write("tue.delta", &bad);
    dir.ok("inspect mon.delta tue.delta wed.delta");
    let table = dir.fails(
        "inspect mon.delta tue.delta wed.delta --verify",
        6,
        &["tue.delta", "byte"],
    );
    assert!(table.contains("NO\n") && table.contains("yes\n"), "{table}");
}

#[test]
fn undos_combine_and_take_back_what_was_applied() {
    let dir = Dir::new();
    for day in ["mon", "tue", "wed"] {
        dir.ok(&format!("apply {day}.delta vg/copy --undo {day}.undo"));
    }
    dir.ok("combine mon.undo tue.undo wed.undo -o week.undo");
    // Not onto what it does not begin from.
    dir.ok("apply wed.undo vg/copy");
    dir.fails("apply week.undo vg/copy", 5, &["begins from"]);
    dir.ok("apply wed.delta vg/copy");
    dir.ok("apply week.undo vg/copy");
    assert!(dir.read("vg/copy") == dir.states[0]);
    assert!(dir.ok("state show vg/copy").contains("vg/s0"));
    // And from there it goes on.
    dir.ok("apply mon.delta tue.delta vg/copy");
    assert!(dir.read("vg/copy") == dir.states[2]);
    // Undos of two destinations are not one.
    fs::copy(dir.path("vg/copy"), dir.path("other.img")).unwrap();
    dir.ok("apply wed.delta other.img --undo other.undo");
    dir.fails(
        "combine other.undo tue.undo -o x.undo",
        5,
        &["another destination"],
    );
}

#[test]
fn invert_is_the_way_back_before_the_way_there() {
    let dir = Dir::new();
    let told = json(&dir.ok("invert mon.delta --base vg/copy -o mon.undo --json"));
    assert_eq!(told["target"]["id"], "file:state-0");
    dir.ok("apply mon.delta vg/copy");
    assert!(dir.read("vg/copy") == dir.states[1]);
    dir.ok("apply mon.undo vg/copy");
    assert!(dir.read("vg/copy") == dir.states[0]);
    // From a pipe, and onto another copy.
    let mut command = dir.command("invert - --base vg/copy -o pipe.undo");
    command.stdin(fs::File::open(dir.path("mon.delta")).unwrap());
    assert!(command.status().unwrap().success());
    dir.write("other.img", &dir.states[0]);
    dir.ok("apply mon.delta other.img");
    dir.ok("apply pipe.undo other.img");
    assert!(dir.read("other.img") == dir.states[0]);
    // Half-way it leads back as well.
    let undos = [
        "invert full.delta --base vg/copy -o full.undo",
        "inspect full.undo",
    ];
    for line in undos {
        dir.ok(line);
    }
}

#[test]
fn an_undo_that_was_made_before_takes_back_a_run_that_was_cut() {
    let dir = Dir::new();
    dir.ok("apply mon.delta vg/copy --undo mon.undo");
    dir.ok("invert tue.delta --base vg/copy -o tue.undo");
    dir.ok("combine mon.undo tue.undo -o both.undo");
    let delta = dir.read("tue.delta");
    dir.write("cut.delta", &delta[..delta.len() / 2]);
    for undo in ["tue.undo", "both.undo"] {
        dir.fails("apply cut.delta vg/copy", 6, &[]);
        assert!(dir.read("vg/copy") != dir.states[1]);
        // That of a run that was cut elsewhere may hold less.
        dir.fails("apply mon.undo vg/copy", 5, &["incomplete"]);
        dir.ok(&format!("apply {undo} vg/copy"));
        let state = if undo == "tue.undo" { 1 } else { 0 };
        assert!(dir.read("vg/copy") == dir.states[state], "{undo}");
    }
    // Made from another volume, it is not let onto a run that was cut here.
    dir.write("other.img", &dir.states[0]);
    dir.ok("invert mon.delta --base other.img -o other.undo");
    let delta = dir.read("mon.delta");
    dir.write("cut.delta", &delta[..delta.len() / 2]);
    dir.fails("apply cut.delta vg/copy", 6, &[]);
    dir.fails("apply other.undo vg/copy", 5, &["another destination"]);
}

#[test]
fn invert_refuses_what_is_not_the_base() {
    let dir = Dir::new();
    let before = dir.names();
    dir.fails(
        "invert tue.delta --base vg/copy -o x.undo",
        5,
        &["not in the state", "the block at"],
    );
    dir.write("short.img", &dir.states[0][..5000]);
    dir.fails(
        "invert mon.delta --base short.img -o x.undo",
        5,
        &["5000 bytes"],
    );
    dir.fails(
        "invert mon.delta --base vg/copy -o vg/copy --overwrite",
        2,
        &["cannot replace"],
    );
    dir.fails(
        "invert mon.delta --base vg/copy -o mon.delta --overwrite",
        2,
        &["cannot replace"],
    );
    dir.fails(
        "invert mon.delta --base vg/copy -o full.delta",
        5,
        &["--overwrite"],
    );
    dir.ok("send vg/copy -o old.delta --format proto3");
    dir.fails(
        "invert old.delta --base vg/copy -o x.undo",
        5,
        &["PROTO[3]"],
    );
    let mut bad = dir.read("mon.delta");
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    dir.write("bad.delta", &bad);
    dir.fails(
        "invert bad.delta --base vg/copy -o x.undo",
        6,
        &["bad.delta", "byte"],
    );
    // By its record: it holds what the delta leads to, or something else.
    dir.ok("apply mon.delta vg/copy");
    dir.fails("invert mon.delta --base vg/copy -o x.undo", 5, &["already"]);
    dir.fails(
        "invert wed.delta --base vg/copy -o x.undo",
        5,
        &["begins from vg/s2"],
    );
    dir.ok("invert tue.delta --base vg/copy -o tue.undo");
    for name in ["short.img", "old.delta", "bad.delta", "tue.undo"] {
        fs::remove_file(dir.path(name)).unwrap();
    }
    assert_eq!(dir.names(), before, "nothing is left of what was refused");
    // Half-written.
    dir.reset();
    let delta = dir.read("mon.delta");
    dir.write("cut.delta", &delta[..delta.len() - 100]);
    dir.fails("apply cut.delta vg/copy", 6, &[]);
    dir.fails(
        "invert mon.delta --base vg/copy -o x.undo",
        5,
        &["incomplete"],
    );
}

#[test]
fn inspect_of_several_is_a_table_in_the_order_of_the_states() {
    let dir = Dir::new();
    let table = dir.ok("inspect wed.delta full.delta tue.delta mon.delta");
    let places: Vec<_> = ["full.delta", "mon.delta", "tue.delta", "wed.delta"]
        .map(|name| table.find(name).unwrap())
        .into();
    assert!(places.is_sorted(), "{table}");
    for word in [
        "(full copy) → vg/s0",
        "vg/s1 → vg/s2",
        "2023-11-1",
        "lz4",
        "not read",
    ] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let table = dir.ok("inspect mon.delta tue.delta --verify");
    assert!(
        table.contains("yes") && !table.contains("not read"),
        "{table}"
    );
    let table = dir.ok("inspect mon.delta wed.delta");
    assert!(
        table.contains("gap: a link is missing between mon.delta and wed.delta"),
        "{table}"
    );
    fs::copy(dir.path("tue.delta"), dir.path("other.delta")).unwrap();
    let table = dir.ok("inspect mon.delta tue.delta other.delta");
    assert!(
        table.contains("fork: tue.delta and other.delta both begin from vg/s1"),
        "{table}"
    );
    dir.ok("send vg/copy -o old.delta --format proto3");
    let table = dir.ok("inspect mon.delta old.delta");
    assert!(table.contains("PROTO[3]"), "{table}");
    let told = json(&dir.ok("inspect wed.delta mon.delta old.delta --json"));
    assert_eq!(told["chain"], false);
    assert_eq!(told["gaps"].as_array().unwrap().len(), 1);
    assert_eq!(told["deltas"][0]["file"], "mon.delta");
    assert_eq!(told["deltas"][0]["sound"], serde_json::Value::Null);
    assert_eq!(told["deltas"][2]["format"], 3);
    let told = json(&dir.ok("inspect tue.delta mon.delta --json --verify"));
    assert_eq!(
        (&told["chain"], &told["deltas"][1]["sound"]),
        (&true.into(), &true.into())
    );
}

#[test]
fn a_map_has_a_row_for_each_delta_on_a_terminal_and_on_a_page() {
    let dir = Dir::new();
    let map = dir.ok("inspect tue.delta mon.delta wed.delta --map");
    let rows: Vec<&str> = map.lines().collect();
    assert_eq!(rows.len(), 4, "{map}");
    assert!(rows[1].starts_with("mon.delta |########   "), "{map}");
    assert!(rows[2].starts_with("tue.delta |    ########   "), "{map}");
    dir.ok("inspect mon.delta --map");
    for name in ["map.svg", "map.html"] {
        let said = dir.ok(&format!("inspect mon.delta wed.delta --map -o {name} -q"));
        assert_eq!(said, "");
        let page = text(&dir.read(name));
        for word in [
            "<svg xmlns",
            "<title>mon.delta",
            "offset 0 to 131072",
            "</svg>",
        ] {
            assert!(page.contains(word), "{name}: {word}");
        }
        assert!(
            !page.contains("http://") || !page.contains("<script"),
            "it stands alone"
        );
        dir.fails(
            &format!("inspect mon.delta --map -o {name}"),
            5,
            &["--overwrite"],
        );
    }
    dir.fails("inspect mon.delta --map -o map.png", 2, &[".svg or .html"]);
    dir.fails("inspect mon.delta -o map.svg", 2, &["--map"]);
    dir.fails("inspect mon.delta --map --json", 2, &["cannot be used"]);
}

#[test]
fn the_new_verbs_explain_themselves() {
    let dir = Dir::new();
    for verb in ["combine", "invert", "inspect"] {
        let help = dir.ok(&format!("{verb} --help"));
        assert!(help.contains(&format!("Usage: lvmsync {verb}")) && help.contains("Examples:"));
        assert!(dir.ok("--help").contains(verb));
    }
    dir.fails("combine", 2, &["required"]);
    dir.fails("invert mon.delta -o x", 2, &["--base"]);
}

#[test]
fn an_interrupted_combine_leaves_nothing_behind() {
    let dir = Dir::with(64 << 8);
    let before = dir.names();
    for wait in [5, 40, 120] {
        let mut command = Command::new("env");
        command
            .current_dir(dir.path(""))
            .arg("--default-signal=INT")
            .arg(env!("CARGO_BIN_EXE_lvmsync"))
            .args("combine mon.delta tue.delta wed.delta -z zstd:19 -o x.delta".split_whitespace())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        while !dir.path("x.delta.partial").exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(wait));
        let kill = Command::new("kill")
            .arg("-INT")
            .arg(child.id().to_string())
            .status();
        let code = child.wait().unwrap().code();
        if kill.unwrap().success() && code != Some(0) {
            assert_eq!(code, Some(130));
            assert_eq!(dir.names(), before);
        }
        let _ = fs::remove_file(dir.path("x.delta"));
    }
}
