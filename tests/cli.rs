//! The command line from outside: help, listings, errors, exit codes, what is left behind.
//!
//! Everything here runs on files and needs neither root nor device-mapper.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lvmsync::changes::cow::Layout;
use lvmsync::changes::cow_build::store_of;

const CHUNK: usize = 4096;

/// A directory with `base.img`, `new.img` that differs in some chunks, and `store.img` that says which.
struct Dir {
    directory: tempfile::TempDir,
}

impl Dir {
    fn new() -> Self {
        Self::with(256, &[3, 200, 4, 77])
    }

    fn with(chunks: usize, changed: &[usize]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut base = vec![0; chunks * CHUNK];
        blake3::Hasher::new()
            .update(b"base")
            .finalize_xof()
            .fill(&mut base);
        let mut new = base.clone();
        for chunk in changed {
            new[chunk * CHUNK..][..CHUNK]
                .iter_mut()
                .for_each(|byte| *byte ^= 0xff);
        }
        let entries: Vec<(u64, &[u8])> = changed
            .iter()
            .map(|c| (*c as u64, &base[c * CHUNK..][..CHUNK]))
            .collect();
        let store = store_of(Layout::new(CHUNK as u64).unwrap(), entries).unwrap();
        let dir = Self { directory };
        for (name, bytes) in [
            ("base.img", &base),
            ("new.img", &new),
            ("copy.img", &base),
            ("store.img", &store),
        ] {
            fs::write(dir.path(name), bytes).unwrap();
        }
        dir
    }

    /// Another `copy.img`, which nothing is known of, with the content of the base.
    fn reset_copy(&self) {
        fs::remove_file(self.path("copy.img")).unwrap();
        fs::copy(self.path("base.img"), self.path("copy.img")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lvmsync"));
        command
            .current_dir(self.directory.path())
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .args(line.split_whitespace());
        command
    }

    /// Runs a line, without quoting: no argument here has a blank.
    fn run(&self, line: &str) -> Output {
        self.command(line).stdin(Stdio::null()).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{line}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Expects an exit code, words on stderr, nothing on stdout.
    #[track_caller]
    fn fails(&self, line: &str, code: i32, words: &[&str]) {
        let output = self.run(line);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        for word in words {
            assert!(
                stderr.contains(word),
                "{line}: {word:?} is not in: {stderr}"
            );
        }
        assert!(output.stdout.is_empty(), "{line}: {}", text(&output.stdout));
    }

    /// Makes the delta of the directory.
    fn delta(&self) -> Vec<u8> {
        self.ok("send --from cow:store.img new.img -o x.delta -q");
        self.read("x.delta")
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A stand-in for ssh that runs the command here.
    fn fake_ssh(&self, script: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path("fake-ssh");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        format!(
            "-e ./fake-ssh --remote-path {}",
            env!("CARGO_BIN_EXE_lvmsync")
        )
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn version_and_help_go_to_stdout() {
    let dir = Dir::new();
    assert_eq!(
        dir.ok("--version"),
        format!("lvmsync {}\n", env!("CARGO_PKG_VERSION"))
    );
    for verb in ["diff", "send", "apply", "compare", "inspect", "serve"] {
        assert!(
            dir.ok(&format!("{verb} --help"))
                .contains(&format!("Usage: lvmsync {verb}"))
        );
        assert!(dir.ok("--help").contains(verb));
    }
    assert!(dir.ok("--help").contains("Exit codes:"));
}

#[test]
fn wrong_usage_is_2_and_says_what_is_meant() {
    let dir = Dir::new();
    for (line, word) in [
        ("", "Usage"),
        ("send", "required"),
        ("send new.img", "required"),
        ("send new.img copy.img -o x", "cannot be used"),
        ("send new.img -z gzip -o x", "none, lz4, zstd"),
        ("send new.img --bwlimit fast -o x", "is not a size"),
        ("send new.img --undo u -o x", "--undo"),
        ("send new.img --format proto3 -z lz4 -o x", "compression"),
        ("send new.img -- -host:x", "must not begin with"),
        ("send new.img :x", "host is empty"),
        ("diff new.img", "--from"),
        ("apply x", "and then the volume: lvmsync apply FILE... DEST"),
        ("apply a b copy.img --undo u", "one by one"),
        ("view --stop a/b", "cannot be the name of a device"),
        ("view a --stop x", "cannot be used with"),
        (
            "view a --base copy.img --nbd unix:s --device x",
            "cannot be used with",
        ),
        ("view a --base copy.img --to x --store y", "--device"),
        (
            "view a --base copy.img --device x --chunk-size 1k",
            "power of two",
        ),
        ("apply a copy.img --preview", "is no logical volume"),
        ("apply --discard copy.img", "is no logical volume"),
        ("apply a --preview", "name files, and then the volume"),
        ("apply - copy.img --preview", "name files"),
        ("apply a b copy.img --preview --undo u", "lvmsync combine"),
        ("apply a copy.img --commit", "takes the volume alone"),
        ("apply copy.img --commit --discard", "cannot be used with"),
        ("apply copy.img --commit --undo u", "cannot be used with"),
        ("apply a copy.img --preview --verify", "cannot be used with"),
        ("apply a copy.img --preview --chunk-size 5k", "power of two"),
        ("apply a copy.img --snapshot-size 1G", "--preview"),
        ("--stdout -b back snap", "--snapback"),
        ("-q -v snap dest", "contradict"),
        ("snap", "no destination"),
        ("--apply x", "no destination"),
        ("a b c", "more than"),
    ] {
        dir.fails(line, 2, &[word]);
    }
    // Words before the verb that are no options of all verbs: the original's command line, and most likely not meant.
    let hint = "If you mean the verb `sync`, its options go behind it: lvmsync sync ...\n";
    for (line, word) in [
        ("-n sync new.img copy.img", "unexpected argument"),
        ("-d sync new.img copy.img", "more than a snapshot"),
    ] {
        dir.fails(line, 2, &[word, hint]);
    }
    let output = dir.run("sync new.img copy.img --bogus");
    assert!(!text(&output.stderr).contains("If you mean the verb"));
}

#[test]
fn a_dash_is_no_file_where_a_volume_is_meant() {
    let dir = Dir::new();
    let names = dir.names();
    for line in [
        "sync new.img -",
        "sync new.img - -n",
        "sync - copy.img",
        "sync host:new.img -",
        "compare new.img -",
        "compare - copy.img",
    ] {
        dir.fails(line, 2, &["`-` is no volume", "write ./-"]);
    }
    for line in ["send new.img -", "send --from cow:store.img new.img -"] {
        dir.fails(line, 2, &["--stdout", "write ./-"]);
    }
    assert_eq!(dir.names(), names);
    dir.ok("sync new.img ./-");
    dir.ok("compare ./- new.img");
    assert_eq!(dir.read("-"), dir.read("new.img"));
    // Where a delta is meant it is standard input.
    let delta = dir.delta();
    for line in ["apply - copy.img", "--apply - copy.img"] {
        dir.reset_copy();
        fs::write(dir.path("input"), &delta).unwrap();
        let input = fs::File::open(dir.path("input")).unwrap();
        let output = dir.command(line).stdin(input).output().unwrap();
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        assert_eq!(dir.read("copy.img"), dir.read("new.img"), "{line}");
    }
}

#[test]
fn diff_lists_extents_as_table_json_and_map() {
    let dir = Dir::new();
    let json = dir.ok("diff --from cow:store.img new.img --json");
    assert_eq!(
        json,
        "{\"volume_size\":1048576,\"granularity\":4096,\"extents\":[\
         {\"offset\":12288,\"length\":8192,\"kind\":\"data\"},\
         {\"offset\":315392,\"length\":4096,\"kind\":\"data\"},\
         {\"offset\":819200,\"length\":4096,\"kind\":\"data\"}]}\n"
    );
    let table = dir.ok("diff --from cow:store.img new.img");
    assert_eq!(table.lines().count(), 4);
    assert!(
        table
            .lines()
            .nth(1)
            .unwrap()
            .ends_with("12288             8192  data"),
        "{table}"
    );
    assert_eq!(
        dir.ok("diff --from cow:store.img new.img --map")
            .lines()
            .count(),
        16
    );
}

#[test]
fn send_apply_and_undo_on_files() {
    let dir = Dir::new();
    dir.ok("send --from cow:store.img new.img copy.img --undo u.delta");
    assert_eq!(dir.read("copy.img"), dir.read("new.img"));
    dir.ok("apply u.delta copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("base.img"));
    for codec in ["none", "lz4", "zstd", "zstd:12"] {
        dir.ok(&format!(
            "send --from cow:store.img new.img -o d --overwrite -z {codec}"
        ));
        dir.reset_copy();
        // Options may stand anywhere.
        dir.ok("apply d --verify copy.img -q");
        assert_eq!(dir.read("copy.img"), dir.read("new.img"), "{codec}");
    }
}

#[test]
fn a_delta_goes_through_a_pipe() {
    let dir = Dir::new();
    let sent = dir.run("send --from cow:store.img new.img --stdout");
    assert_eq!(sent.status.code(), Some(0));
    let mut apply = dir
        .command("apply - copy.img")
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    apply.stdin.take().unwrap().write_all(&sent.stdout).unwrap();
    assert!(apply.wait().unwrap().success());
    assert_eq!(dir.read("copy.img"), dir.read("new.img"));
}

#[test]
fn a_closed_pipe_fails_a_stream_and_not_a_listing() {
    let dir = Dir::with(2048, &(0..2000).collect::<Vec<_>>());
    let closed = |line: &str| {
        let mut child = dir
            .command(line)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        child.wait().unwrap().code()
    };
    assert_eq!(
        closed("send --from cow:store.img new.img --stdout"),
        Some(1)
    );
    assert_eq!(closed("diff --from cow:store.img new.img"), Some(0));
}

#[test]
fn a_full_copy_makes_its_file_and_keeps_it_sparse() {
    use std::os::unix::fs::MetadataExt;
    let dir = Dir::new();
    let file = fs::File::create(dir.path("sparse.img")).unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], 40 << 20).unwrap();
    dir.ok("send sparse.img made.img");
    dir.ok("send sparse.img -o full.delta");
    dir.ok("apply full.delta also.img");
    for name in ["made.img", "also.img"] {
        assert_eq!(dir.read(name), dir.read("sparse.img"));
        assert!(
            fs::metadata(dir.path(name)).unwrap().blocks() < 1000,
            "{name} is sparse"
        );
    }
    assert!(dir.read("full.delta").len() < 20_000);
    dir.fails(
        "send --from cow:store.img new.img no-such.img",
        1,
        &["no-such.img"],
    );
    dir.fails(
        "send new.img no-such-directory/x.img",
        1,
        &["no-such-directory"],
    );
}

#[test]
fn a_destination_without_its_directory_is_refused_by_the_name_of_that() {
    let dir = Dir::new();
    let ssh = dir.fake_ssh("shift; exec sh -c \"$*\"");
    let here = dir.path("").display().to_string();
    let names = dir.names();
    for (verb, end) in [
        ("sync", ""),
        ("send", ""),
        ("sync", "-n"),
        ("send", "-n"),
        ("sync", "--create"),
    ] {
        let fails = |destination: &str, code, word: &str| {
            dir.fails(
                &format!("{verb} new.img {destination} {end}"),
                code,
                &[word],
            );
            if destination.starts_with('/') {
                let far = format!("{verb} new.img host:{destination} {end} {ssh}");
                // A failure without a code of its own is the far end's.
                dir.fails(&far, if code == 1 { 7 } else { code }, &[word]);
            }
        };
        let there_is_none = format!("there is no directory {here}no");
        fails(&format!("{here}no/x.img"), 1, &there_is_none);
        fails("no/such/x.img", 1, "there is no directory no/such");
        // It may be a volume of a group, unless that is wished for.
        if end != "--create" {
            fails("backups/x.img", 1, "there is no directory backups");
        }
        for name in ["newdir/", "newdir/.", "newdir//"] {
            fails(name, 2, "is the name of a directory, and there is none");
            let name = format!("{here}{name}");
            fails(&name, 2, "is the name of a directory, and there is none");
        }
    }
    assert_eq!(dir.names(), names);
}

#[test]
fn refusals_are_5_and_leave_the_destination_alone() {
    let dir = Dir::new();
    dir.delta();
    fs::write(dir.path("small.img"), &dir.read("base.img")[..400_000]).unwrap();
    fs::write(dir.path("other.img"), vec![1; 1 << 20]).unwrap();
    fs::copy(dir.path("new.img"), dir.path("kept.img")).unwrap();
    std::os::unix::fs::symlink(dir.path("new.img"), dir.path("link.img")).unwrap();
    fs::hard_link(dir.path("new.img"), dir.path("hard.img")).unwrap();
    for (line, words) in [
        (
            "apply x.delta small.img",
            ["400000", "1048576", "--allow-smaller"],
        ),
        (
            "send --from cow:store.img new.img small.img",
            ["400000", "1048576", "--allow-smaller"],
        ),
        (
            "apply x.delta other.img",
            ["not in the state", "Nothing was written", "--force"],
        ),
        (
            "send --from cow:store.img new.img other.img",
            ["not in the state", "block at", "--force"],
        ),
        (
            "send --from cow:store.img new.img new.img",
            ["new.img", "is the source itself", ""],
        ),
        (
            "send new.img link.img",
            ["link.img", "is the source itself", ""],
        ),
        (
            "send new.img hard.img",
            ["hard.img", "is the source itself", ""],
        ),
        (
            "send new.img -o x.delta",
            ["x.delta", "exists", "--overwrite"],
        ),
    ] {
        let before = (
            dir.read("small.img"),
            dir.read("other.img"),
            dir.read("x.delta"),
        );
        dir.fails(line, 5, &words);
        assert!(
            before
                == (
                    dir.read("small.img"),
                    dir.read("other.img"),
                    dir.read("x.delta")
                ),
            "{line}"
        );
        assert_eq!(dir.read("new.img"), dir.read("kept.img"), "{line}");
    }
    dir.ok("apply x.delta small.img --allow-smaller");
    assert_eq!(dir.read("small.img"), dir.read("new.img")[..400_000]);
    dir.ok("apply x.delta other.img --force");
    assert_eq!(
        dir.read("other.img")[3 * CHUNK..5 * CHUNK],
        dir.read("new.img")[3 * CHUNK..5 * CHUNK]
    );
}

#[test]
fn a_destination_that_another_run_writes_is_refused() {
    let dir = Dir::new();
    dir.delta();
    let held = fs::File::options()
        .read(true)
        .write(true)
        .open(dir.path("copy.img"))
        .unwrap();
    held.lock().unwrap();
    dir.fails("apply x.delta copy.img", 5, &["copy.img"]);
    assert_eq!(dir.read("copy.img"), dir.read("base.img"));
}

#[test]
fn damage_is_6_wherever_it_is() {
    let dir = Dir::new();
    let delta = dir.delta();
    let places = [
        0,
        10,
        16,
        20,
        60,
        700,
        4000,
        delta.len() / 2,
        delta.len() - 100,
        delta.len() - 1,
    ];
    for place in places {
        let mut damaged = delta.clone();
        damaged[place] ^= 4;
        fs::write(dir.path("bad.delta"), &damaged).unwrap();
        dir.fails("apply bad.delta copy.img -n", 6, &["bad.delta"]);
        fs::write(dir.path("bad.delta"), &delta[..place]).unwrap();
        dir.fails("apply bad.delta copy.img -n", 6, &["bad.delta"]);
    }
    fs::write(dir.path("bad.delta"), [&delta[..], b"more"].concat()).unwrap();
    dir.fails("apply bad.delta copy.img", 6, &["follow the trailer"]);
    fs::write(dir.path("bad.delta"), "#!/bin/sh\n").unwrap();
    dir.fails("apply bad.delta copy.img", 6, &["not a delta"]);
    let output = dir.run("inspect bad.delta");
    assert_eq!(output.status.code(), Some(6));
    assert!(text(&output.stdout).contains("NOT SOUND"));
}

#[test]
fn a_damaged_store_is_4_and_names_the_way_out() {
    let dir = Dir::new();
    let store = dir.read("store.img");
    let mut invalid = store.clone();
    invalid[4] = 0;
    let mut magic = store.clone();
    magic[0] ^= 1;
    let mut beyond = store.clone();
    beyond[CHUNK..CHUNK + 8].copy_from_slice(&9_999u64.to_le_bytes());
    for bytes in [
        &invalid[..],
        &magic,
        &beyond,
        &store[..CHUNK * 3],
        &store[..100],
        &[],
    ] {
        fs::write(dir.path("store.img"), bytes).unwrap();
        dir.fails(
            "diff --from cow:store.img new.img --json",
            4,
            &["store.img"],
        );
        dir.fails(
            "send --from cow:store.img new.img copy.img",
            4,
            &["lvmsync sync new.img"],
        );
        // What was allowed is needed once more.
        let options = "--timeout 5 --allow-smaller --allow-in-use --create --atomic";
        dir.fails(
            &format!("send --from cow:store.img new.img copy.img {options} --undo u"),
            4,
            &[&format!(
                "To recover: lvmsync sync new.img copy.img {options}\n"
            )],
        );
    }
    assert_eq!(dir.read("copy.img"), dir.read("base.img"));
}

#[test]
fn inspect_tells_and_json_is_json() {
    let dir = Dir::new();
    dir.delta();
    let told = dir.ok("inspect x.delta");
    for word in [
        "format       4",
        "1.0 MiB (1048576 bytes)",
        "16.0 KiB in 3 frames",
        "sound",
    ] {
        assert!(told.contains(word), "{word} in {told}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&dir.ok("inspect --json --extents x.delta")).unwrap();
    assert_eq!(json["sound"], true);
    assert_eq!(json["header"]["volume_size"], 1 << 20);
    assert_eq!(json["data_bytes"], 4 * CHUNK);
    assert_eq!(json["extents"].as_array().unwrap().len(), 3);
    dir.ok("send --from cow:store.img new.img -o old.delta --format proto3");
    assert!(dir.ok("inspect old.delta").contains("format       3"));
}

#[test]
fn results_for_scripts() {
    let dir = Dir::new();
    let json = |line: &str| serde_json::from_str::<serde_json::Value>(&dir.ok(line)).unwrap();
    let sent = json("send --from cow:store.img new.img copy.img --json -q");
    assert_eq!(sent["volume_size"], 1 << 20);
    assert_eq!(sent["data_bytes"], 4 * CHUNK);
    assert_eq!(sent["extents"], 3);
    assert!(sent["seconds"].as_f64().unwrap() > 0.0);
    let again = json("send --from cow:store.img new.img copy.img --json -q");
    assert_eq!(again["data_bytes"], 0, "on record as there already");
    dir.reset_copy();
    let output = dir.run("send --from cow:store.img new.img copy.img --progress json");
    let lines = text(&output.stderr);
    let last = lines.lines().rfind(|line| line.starts_with('{')).unwrap();
    let progress: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(progress["event"], "progress");
    assert_eq!(progress["bytes_done"], 4 * CHUNK);
    let planned = json("send --from cow:store.img new.img copy.img -n --json");
    assert_eq!(planned["dry_run"], true);
    dir.delta();
    dir.reset_copy();
    assert_eq!(
        json("apply x.delta copy.img --json")["data_bytes"],
        4 * CHUNK
    );
}

#[test]
fn a_dry_run_writes_nothing() {
    let dir = Dir::new();
    dir.delta();
    let before = dir.names();
    dir.ok("send --from cow:store.img new.img copy.img -n --undo u");
    dir.ok("send --from cow:store.img new.img -o y.delta -n");
    dir.ok("apply x.delta copy.img --check --undo u");
    let ssh = dir.fake_ssh("shift; exec sh -c \"$*\"");
    dir.ok(&format!(
        "send --from cow:store.img new.img far:{} -n {ssh}",
        dir.path("copy.img").display()
    ));
    fs::remove_file(dir.path("fake-ssh")).unwrap();
    assert_eq!(dir.names(), before);
    assert_eq!(dir.read("copy.img"), dir.read("base.img"));
}

#[test]
fn quiet_is_quiet_and_verbose_is_not() {
    let dir = Dir::new();
    let stderr = |line: &str| text(&dir.run(line).stderr);
    assert_eq!(stderr("send --from cow:store.img new.img copy.img -q"), "");
    let said = stderr("send --from cow:store.img new.img copy.img");
    assert!(
        said.contains("sent") && said.contains("a full copy is 1.0 MiB"),
        "{said}"
    );
    assert!(!said.contains('\r'), "no bar in a pipe: {said}");
}

#[test]
fn through_a_remote_end() {
    let dir = Dir::new();
    let ssh = dir.fake_ssh("shift; exec sh -c \"$*\"");
    let copy = dir.path("copy.img");
    let undo = dir.path("u.delta");
    for codec in ["none", "lz4", "zstd"] {
        fs::copy(dir.path("base.img"), &copy).unwrap();
        let line = format!(
            "send --from cow:store.img new.img far:{} --undo {} --overwrite -z {codec} {ssh}",
            copy.display(),
            undo.display()
        );
        dir.ok(&line);
        assert_eq!(dir.read("copy.img"), dir.read("new.img"));
        dir.ok("apply u.delta copy.img");
        assert_eq!(dir.read("copy.img"), dir.read("base.img"));
    }
    dir.ok(&format!(
        "send new.img far:{} {ssh}",
        dir.path("made.img").display()
    ));
    assert_eq!(dir.read("made.img"), dir.read("new.img"));
}

#[test]
fn remote_failures_have_their_code_and_the_far_words() {
    let dir = Dir::new();
    let far = format!(
        "send --from cow:store.img new.img far:{}",
        dir.path("copy.img").display()
    );
    let ssh = dir.fake_ssh("echo 'Connection refused by host' >&2; exit 255");
    dir.fails(
        &format!("{far} {ssh}"),
        7,
        &["far", "Connection refused by host"],
    );
    let ssh = dir.fake_ssh("shift; exec sh -c \"no-such-program serve\"");
    dir.fails(
        &format!("{far} {ssh}"),
        7,
        &["was not found there", "--remote-path"],
    );
    let ssh = dir.fake_ssh("echo 'Welcome to far!'; sleep 1");
    dir.fails(
        &format!("{far} {ssh}"),
        7,
        &["Welcome to far!", "start-up files"],
    );
    let ssh = dir.fake_ssh("echo 'FATAL ERROR: No destination specified.' >&2; exit 1");
    dir.fails(&format!("{far} {ssh}"), 7, &["original", "--compat"]);
    let own = format!("send new.img far:{}", dir.path("new.img").display());
    let ssh = dir.fake_ssh("shift; exec sh -c \"$*\"");
    dir.fails(&format!("{own} {ssh}"), 5, &["is the source itself"]);
    fs::write(dir.path("small.img"), "x").unwrap();
    let ssh = dir.fake_ssh("shift; exec sh -c \"$*\"");
    let small = format!(
        "send --from cow:store.img new.img far:{} {ssh}",
        dir.path("small.img").display()
    );
    dir.fails(&small, 5, &["small.img", "--allow-smaller"]);
    dir.fails(
        &format!("send new.img far:/no/such/directory/x {ssh}"),
        7,
        &["/no/such/directory/x"],
    );
    assert_eq!(dir.read("copy.img"), dir.read("base.img"));
}

/// The far end as the original behaves: takes PROTO[3] on stdin, seeks and writes, knows no end mark.
#[test]
fn an_original_at_the_far_end_is_usable_with_compat() {
    let dir = Dir::new();
    let original = r#"
import sys, struct
assert sys.argv[1:3] == ['--apply', '-'], sys.argv
out = open(sys.argv[-1], 'r+b')
inp = sys.stdin.buffer
assert inp.readline().rstrip(b'\r\n') == b'lvmsync PROTO[3]'
while True:
    head = inp.read(12)
    if not head: break
    offset, length = struct.unpack('>QL', head)
    data = inp.read(length)
    out.seek(offset)
    out.write(data)
"#;
    fs::write(dir.path("original.py"), original).unwrap();
    dir.fake_ssh(&format!(
        "shift; set -- $*; shift; exec python3 {} \"$@\"",
        dir.path("original.py").display()
    ));
    let copy = dir.path("copy.img");
    dir.ok(&format!(
        "send --from cow:store.img new.img far:{} -e ./fake-ssh --compat",
        copy.display()
    ));
    assert_eq!(dir.read("copy.img"), dir.read("new.img"));
    dir.fake_ssh("echo 'APPLY FAILED.' >&2; exit 1");
    let line = format!(
        "send --from cow:store.img new.img far:{} -e ./fake-ssh --compat",
        copy.display()
    );
    dir.fails(&line, 7, &["APPLY FAILED."]);
}

#[test]
fn the_originals_streams_apply_and_a_cut_one_is_6() {
    let dir = Dir::new();
    dir.ok("send --from cow:store.img new.img -o s3 --format proto3");
    let stream = dir.read("s3");
    assert!(stream.starts_with(b"lvmsync PROTO[3]\n\0\0\0\0\0\0\x30\0\0\0\x20\0"));
    dir.ok("--apply s3 copy.img -b back");
    assert_eq!(dir.read("copy.img"), dir.read("new.img"));
    dir.ok("--apply back copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("base.img"));
    for cut in [5, 16, 20, 28, 30, 5000, stream.len() - 1] {
        fs::write(dir.path("cut"), &stream[..cut]).unwrap();
        dir.fails("apply cut copy.img", 6, &["cut"]);
    }
    // Records in any order, and one twice: the later wins, and the undo still knows the first content.
    let record = |chunk: usize, byte: u8| {
        let mut bytes = ((chunk * CHUNK) as u64).to_be_bytes().to_vec();
        bytes.extend((CHUNK as u32).to_be_bytes());
        bytes.extend([byte; CHUNK]);
        bytes
    };
    let odd = [
        b"lvmsync PROTO[3]\n".to_vec(),
        record(9, 1),
        record(2, 2),
        record(9, 3),
    ]
    .concat();
    fs::write(dir.path("odd"), odd).unwrap();
    dir.reset_copy();
    dir.ok("apply odd copy.img --undo odd.undo");
    assert_eq!(dir.read("copy.img")[9 * CHUNK..10 * CHUNK], [3; CHUNK]);
    dir.ok("apply odd.undo copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("base.img"));
}

#[test]
fn signals_end_with_130_and_leave_nothing_behind() {
    for signal in ["INT", "TERM", "HUP"] {
        let dir = Dir::with(4096, &(0..4000).collect::<Vec<_>>());
        let before = dir.names();
        for line in [
            "send --from cow:store.img new.img -o x.delta --bwlimit 500k",
            "send --from cow:store.img new.img --stdout --bwlimit 500k",
            "apply - copy.img",
        ] {
            // Whoever runs this test may ignore signals (nohup, a job in the background).
            let mut command = Command::new("env");
            command
                .current_dir(dir.directory.path())
                .arg("--default-signal=INT,TERM,HUP")
                .arg(env!("CARGO_BIN_EXE_lvmsync"))
                .args(line.split_whitespace())
                .env("LVMSYNC_STATE_DIR", dir.path("state"))
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            std::thread::sleep(Duration::from_millis(400));
            let kill = Command::new("kill")
                .arg(format!("-{signal}"))
                .arg(child.id().to_string())
                .status();
            assert!(kill.unwrap().success());
            let start = Instant::now();
            // Only ended by the signal: stdin stays open.
            let stdin = child.stdin.take();
            assert_eq!(child.wait().unwrap().code(), Some(130), "{line}");
            drop(stdin);
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{line}: {:?}",
                start.elapsed()
            );
            assert_eq!(dir.names(), before, "{line}");
        }
    }
}

#[test]
fn what_a_killed_run_left_is_taken_over() {
    let dir = Dir::with(4096, &(0..4000).collect::<Vec<_>>());
    let line = "send --from cow:store.img new.img -o x.delta --bwlimit 500k";
    let mut child = dir.command(line).stderr(Stdio::null()).spawn().unwrap();
    while !dir.path("x.delta.partial").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!dir.path("x.delta").exists());
    dir.ok("send --from cow:store.img new.img -o x.delta");
    assert!(!dir.path("x.delta.partial").exists());
    dir.ok("inspect x.delta");
}

#[test]
fn an_apply_that_fails_in_the_middle_leaves_an_undo_that_works() {
    let dir = Dir::with(4096, &(0..4000).collect::<Vec<_>>());
    dir.ok("send --from cow:store.img new.img -o x.delta");
    let delta = dir.read("x.delta");
    for part in [10, 50, 90] {
        dir.reset_copy();
        fs::write(dir.path("cut.delta"), &delta[..delta.len() * part / 100]).unwrap();
        let undo = format!("u{part}.partial");
        dir.fails(
            &format!("apply cut.delta copy.img --undo u{part}"),
            6,
            &["cut.delta"],
        );
        if dir.path(&undo).exists() {
            dir.ok(&format!("apply {undo} copy.img"));
        }
        assert!(dir.read("copy.img") == dir.read("base.img"), "{part} %");
    }
}

/// SIGKILL stands for the power cut: no destructor runs.
#[test]
fn the_undo_of_a_killed_apply_stays_and_brings_back_the_base() {
    let dir = Dir::with(12_000, &(0..11_900).collect::<Vec<_>>());
    let mut interrupted = 0;
    // A machine that is busy takes its time before it writes.
    for milliseconds in (300..6000).step_by(200) {
        if interrupted == 3 {
            break;
        }
        dir.reset_copy();
        fs::copy(dir.path("new.img"), dir.path("other.img")).unwrap();
        dir.ok("send --from cow:store.img other.img -o x.delta --overwrite");
        let line = "send --from cow:store.img new.img copy.img --undo way-back --bwlimit 40M";
        let mut child = dir.command(line).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        if dir.path("way-back").exists() {
            dir.ok("apply way-back copy.img");
        } else if dir.read("copy.img") != dir.read("base.img") {
            interrupted += 1;
            // What was not synced may be garbage after a power cut.
            let mut torn = dir.read("way-back.partial");
            torn.extend([0x5a; 3000]);
            fs::write(dir.path("way-back.partial"), &torn).unwrap();
            dir.fails(
                "apply x.delta copy.img",
                5,
                &["incomplete", "way-back copy.img"],
            );
            if interrupted % 2 == 0 {
                // Finished first, with the undo going on where it was; then taken back.
                dir.ok(line);
                assert!(dir.read("copy.img") == dir.read("new.img"));
            }
            dir.ok("apply way-back copy.img");
            // And without any record, by hand.
            if interrupted % 2 == 1 {
                assert!(!dir.path("way-back.partial").exists());
                fs::write(dir.path("torn"), &torn).unwrap();
                dir.fails("apply torn copy.img --force", 6, &["torn"]);
                dir.ok("apply --unfinished torn copy.img --force");
            }
        }
        assert!(
            dir.read("copy.img") == dir.read("base.img"),
            "after {milliseconds} ms"
        );
        let _ = fs::remove_file(dir.path("way-back"));
        let _ = fs::remove_file(dir.path("way-back.partial"));
    }
    assert!(interrupted > 0, "none of the kills came in the middle");
    dir.ok("send --from cow:store.img new.img -o x.delta --overwrite");
    dir.fails("apply --unfinished x.delta copy.img", 2, &["--unfinished"]);
}

/// Run again, a failed apply must not replace the way back by an undo of half-new content.
#[test]
fn the_undo_of_a_failed_apply_is_never_replaced() {
    let dir = Dir::with(6000, &(0..5900).collect::<Vec<_>>());
    let delta = dir.delta();
    fs::write(dir.path("cut.delta"), &delta[..delta.len() * 9 / 10]).unwrap();
    for again in [
        "apply x.delta copy.img --undo back",
        "apply x.delta copy.img --undo back --overwrite",
        "--apply x.delta copy.img --snapback back",
    ] {
        dir.reset_copy();
        dir.fails(
            "--apply cut.delta copy.img --snapback back",
            6,
            &["take it back: lvmsync apply ", "/back copy.img"],
        );
        assert!(dir.read("copy.img") != dir.read("base.img"));
        // By its record it is finished, and the undo goes on where it was.
        dir.ok(again);
        assert!(dir.read("copy.img") == dir.read("new.img"));
        dir.ok("apply back copy.img");
        assert!(dir.read("copy.img") == dir.read("base.img"));
        fs::remove_file(dir.path("back")).unwrap();
        // Without the record nobody can tell, and the way back is not replaced.
        dir.reset_copy();
        dir.fails(
            "--apply cut.delta copy.img --snapback back",
            6,
            &["take it back: lvmsync apply ", "/back copy.img"],
        );
        fs::remove_dir_all(dir.path("state")).unwrap();
        dir.fails(again, 5, &["back.partial", "the only way back"]);
        dir.ok("apply --unfinished back.partial copy.img");
        assert!(dir.read("copy.img") == dir.read("base.img"));
        fs::remove_file(dir.path("back.partial")).unwrap();
    }
}

#[test]
fn an_output_never_replaces_what_it_is_made_from() {
    let dir = Dir::new();
    dir.delta();
    let before = (
        dir.read("new.img"),
        dir.read("store.img"),
        dir.read("copy.img"),
    );
    for line in [
        "send --from cow:store.img new.img -o new.img --overwrite",
        "send --from cow:store.img new.img -o store.img --overwrite",
        "apply x.delta copy.img --undo copy.img --overwrite",
        "--apply x.delta copy.img --snapback copy.img",
        "send --from cow:store.img new.img copy.img --undo copy.img --overwrite",
    ] {
        dir.fails(line, 2, &["cannot"]);
        let after = (
            dir.read("new.img"),
            dir.read("store.img"),
            dir.read("copy.img"),
        );
        assert!(before == after, "{line}");
    }
    dir.ok("send new.img -o full.delta");
    let full = dir.read("full.delta");
    for line in [
        "apply full.delta full.delta",
        "--apply full.delta full.delta",
        "send --from cow:store.img new.img store.img --force --allow-smaller",
    ] {
        dir.fails(line, 5, &["is the source itself"]);
        assert!(
            full == dir.read("full.delta") && before.1 == dir.read("store.img"),
            "{line}"
        );
    }
    std::os::unix::fs::symlink(dir.path("base.img"), dir.path("y.delta.partial")).unwrap();
    dir.fails("send new.img -o y.delta", 1, &["y.delta.partial"]);
    assert_eq!(
        dir.read("base.img"),
        dir.read("copy.img"),
        "not through a link"
    );
}

#[test]
fn what_was_made_for_a_copy_that_failed_goes() {
    let dir = Dir::new();
    dir.ok("send new.img -o full.delta");
    let delta = dir.read("full.delta");
    fs::write(dir.path("cut.delta"), &delta[..delta.len() / 2]).unwrap();
    dir.fails("apply cut.delta made.img", 6, &["cut.delta"]);
    assert!(!dir.path("made.img").exists());
    dir.ok("send -n new.img made.img");
    assert!(!dir.path("made.img").exists());
    fs::write(dir.path("short.img"), &dir.read("new.img")[..5000]).unwrap();
    fs::write(dir.path("cut.delta"), &delta[..4200]).unwrap();
    dir.fails("apply cut.delta short.img --undo v", 6, &["cut.delta"]);
    assert_eq!(
        fs::metadata(dir.path("short.img")).unwrap().len(),
        5000,
        "as long as it was"
    );
    fs::write(dir.path("u"), "").unwrap();
    fs::write(dir.path("short.img"), &dir.read("new.img")[..5000]).unwrap();
    dir.fails("send new.img short.img --undo u", 5, &["--overwrite"]);
    assert_eq!(
        fs::metadata(dir.path("short.img")).unwrap().len(),
        5000,
        "not even its size"
    );
}

#[test]
fn the_undo_on_a_smaller_destination_fits_it() {
    let dir = Dir::new();
    dir.delta();
    fs::write(dir.path("small.img"), &dir.read("base.img")[..600_000]).unwrap();
    dir.ok("apply x.delta small.img --allow-smaller --undo u");
    dir.ok("apply u copy.img --force");
    assert_eq!(
        dir.read("copy.img").len(),
        1 << 20,
        "a larger one is not cut"
    );
    dir.ok("apply u small.img");
    assert_eq!(dir.read("small.img"), dir.read("base.img")[..600_000]);
}

#[test]
fn a_chain_is_checked_and_applied_in_order() {
    let dir = Dir::new();
    dir.delta();
    dir.ok("send new.img -o second.delta");
    dir.ok("apply x.delta second.delta copy.img --check");
    assert_eq!(dir.read("copy.img"), dir.read("base.img"));
    dir.ok("apply x.delta second.delta copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("new.img"));
}

#[test]
fn an_extended_origin_of_a_store_is_told_by_its_old_size() {
    let dir = Dir::new();
    let mut grown = dir.read("new.img");
    grown.extend([9; 10_000]);
    fs::write(dir.path("grown.img"), &grown).unwrap();
    let json = dir.ok("diff --from cow:store.img grown.img --base-size 1M --json");
    assert!(
        json.contains("{\"offset\":1048576,\"length\":10000,\"kind\":\"data\"}"),
        "{json}"
    );
    dir.ok("send --from cow:store.img grown.img copy.img --base-size 1M --undo u");
    assert_eq!(dir.read("copy.img"), grown);
    dir.ok("apply u copy.img");
    assert_eq!(
        dir.read("copy.img"),
        dir.read("base.img"),
        "and is as short as it was"
    );
    dir.fails(
        "diff --from cow:store.img new.img --base-size 2M",
        2,
        &["--base-size"],
    );
}

#[test]
fn outputs_are_private_and_never_replace_a_device() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new();
    dir.ok("send --from cow:store.img new.img -o x.delta");
    dir.ok("apply x.delta copy.img --undo u.delta");
    for name in ["x.delta", "u.delta"] {
        let mode = fs::metadata(dir.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    dir.fails(
        "send new.img -o /dev/null --overwrite",
        2,
        &["/dev/null", "--stdout"],
    );
    dir.fails(
        "apply x.delta copy.img --undo /dev/null --overwrite",
        2,
        &["/dev/null"],
    );
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn disk_full_is_1_and_the_partial_file_goes() {
    // /dev/full takes an open and fails every write.
    let dir = Dir::new();
    let output = dir
        .command("send --from cow:store.img new.img --stdout")
        .stdout(fs::File::options().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("standard output"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn paths_that_are_no_volumes_are_named() {
    let dir = Dir::new();
    fs::create_dir(dir.path("directory")).unwrap();
    dir.fails("send new.img directory", 2, &["a directory"]);
    dir.fails("send /dev/null copy.img", 2, &["/dev/null"]);
    dir.fails("send no-such.img copy.img", 1, &["no-such.img"]);
    dir.fails("apply no-such.delta copy.img", 1, &["no-such.delta"]);
    assert!(Path::new("/dev/null").exists());
}

/// `new.img` and `copy.img` differ in chunks 3, 4, 77 and 200.
const DIFFERENT: &str = "\"different_bytes\":16384,\"extents\":[\
     {\"offset\":12288,\"length\":8192},\
     {\"offset\":315392,\"length\":4096},\
     {\"offset\":819200,\"length\":4096}]}\n";

#[test]
fn compare_is_0_for_equal_3_for_different_and_lists_where() {
    let dir = Dir::new();
    let ssh = dir.fake_ssh("shift; exec sh -c \"$*\"");
    let here = |name: &str| dir.path(name).display().to_string();
    let far = |name: &str| format!("far:{} {ssh}", dir.path(name).display());
    for (copy, base) in [
        (here("copy.img"), here("base.img")),
        (far("copy.img"), far("base.img")),
    ] {
        let equal = dir.run(&format!("compare base.img {copy}"));
        let said = text(&equal.stderr);
        assert_eq!(equal.status.code(), Some(0), "{said}");
        assert!(
            equal.stdout.is_empty() && said.starts_with("equal: 1.0 MiB compared"),
            "{said}"
        );
        let different = dir.run(&format!("compare new.img {copy}"));
        let (said, table) = (text(&different.stderr), text(&different.stdout));
        assert_eq!(different.status.code(), Some(3), "{said}");
        assert!(
            said.starts_with("different: 16.0 KiB in 3 extents; 1.0 MiB compared"),
            "{said}"
        );
        assert_eq!(table.lines().count(), 4, "{table}");
        assert!(
            table
                .lines()
                .nth(1)
                .unwrap()
                .ends_with(" 12288             8192"),
            "{table}"
        );
        let json = dir.run(&format!("compare new.img {base} --json -q"));
        assert_eq!(json.status.code(), Some(3));
        let sizes =
            "{\"volume_size\":1048576,\"destination_size\":1048576,\"compared_bytes\":1048576,";
        assert_eq!(text(&json.stdout), format!("{sizes}{DIFFERENT}"));
        let map = dir.run(&format!("compare new.img {copy} --map"));
        assert_eq!(
            (map.status.code(), text(&map.stdout).lines().count()),
            (Some(3), 16)
        );
        for (source, code) in [("base.img", 0), ("new.img", 3)] {
            let quiet = dir.run(&format!("compare -q {source} {copy}"));
            assert_eq!(quiet.status.code(), Some(code));
            assert!(quiet.stdout.is_empty() && quiet.stderr.is_empty());
        }
    }
    let progress = dir.run("compare base.img copy.img --progress json");
    let lines = text(&progress.stderr);
    let last = lines.lines().rfind(|line| line.starts_with('{')).unwrap();
    let progress: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(
        (&progress["bytes_done"], &progress["bytes_total"]),
        (&(1 << 20).into(), &(1 << 20).into())
    );
}

#[test]
fn compare_changes_nothing_and_a_destination_in_use_may_be_compared() {
    let dir = Dir::new();
    let ssh = dir.fake_ssh("shift; exec sh -c \"$*\"");
    let before = dir.names();
    let lock = fs::File::open(dir.path("copy.img")).unwrap();
    lock.lock().unwrap();
    let mut permissions = lock.metadata().unwrap().permissions();
    permissions.set_readonly(true);
    lock.set_permissions(permissions).unwrap();
    dir.ok("compare base.img copy.img");
    dir.ok(&format!(
        "compare base.img far:{} {ssh}",
        dir.path("copy.img").display()
    ));
    assert_eq!(dir.names(), before);
    assert_eq!(dir.read("copy.img"), dir.read("base.img"));
}

#[test]
fn compare_only_looks_at_the_extents_of_a_delta() {
    let dir = Dir::new();
    let ssh = dir.fake_ssh("shift; exec sh -c \"$*\"");
    dir.delta();
    for far in [
        String::new(),
        format!("far:{}/", dir.directory.path().display()),
    ] {
        let line = |rest: &str| format!("compare {} {ssh}", rest.replace('@', &far));
        let json = dir.run(&line("new.img @copy.img --only x.delta --json"));
        assert_eq!(json.status.code(), Some(3));
        assert!(text(&json.stdout).ends_with(&format!("\"compared_bytes\":16384,{DIFFERENT}")));
        // What the delta leaves alone may be anything.
        let mut copy = dir.read("new.img");
        copy[0] ^= 1;
        fs::write(dir.path("other.img"), &copy).unwrap();
        dir.ok(&line("new.img @other.img --only x.delta"));
        // A zero extent counts as well.
        let mut zeroes = dir.read("base.img");
        zeroes[1 << 19..].fill(0);
        fs::write(dir.path("zeroes.img"), &zeroes).unwrap();
        dir.ok("send zeroes.img -o zeroes.delta --overwrite -q");
        assert!(dir.ok("inspect --extents zeroes.delta").contains("zero"));
        zeroes[(1 << 20) - 1] = 1;
        fs::write(dir.path("nearly.img"), &zeroes).unwrap();
        let json = dir.run(&line("zeroes.img @nearly.img --only zeroes.delta --json"));
        assert!(text(&json.stdout).ends_with("[{\"offset\":1044480,\"length\":4096}]}\n"));
        // The same with SRC where DEST was.
        let json = dir.run(&line("@new.img copy.img --only x.delta --json"));
        assert_eq!(json.status.code(), Some(3));
        assert!(text(&json.stdout).ends_with(&format!("\"compared_bytes\":16384,{DIFFERENT}")));
        dir.ok(&line("@new.img other.img --only x.delta"));
        fs::write(dir.path("small.img"), "x").unwrap();
        dir.fails(
            &line("@small.img copy.img --only x.delta"),
            2,
            &["1048576 bytes", "small.img has 1"],
        );
        dir.fails(&line("@new.img copy.img --only no-such"), 1, &["no-such"]);
    }
    fs::write(dir.path("small.img"), "x").unwrap();
    dir.fails(
        "compare small.img copy.img --only x.delta",
        2,
        &["1048576 bytes", "small.img has 1"],
    );
    let mut cut = dir.read("x.delta");
    cut.pop();
    fs::write(dir.path("cut"), cut).unwrap();
    dir.fails("compare new.img copy.img --only cut", 6, &["cut"]);
    dir.ok("send --from cow:store.img new.img -o s3 --format proto3");
    dir.fails("compare new.img copy.img --only s3", 6, &["version 4"]);
}

#[test]
fn a_shorter_destination_is_different_and_so_is_a_longer_file() {
    let dir = Dir::new();
    let ssh = dir.fake_ssh("shift; exec sh -c \"$*\"");
    let base = dir.read("base.img");
    fs::write(dir.path("short.img"), &base[..base.len() - 100]).unwrap();
    fs::write(dir.path("long.img"), [&base[..], &[0; 5]].concat()).unwrap();
    for far in [
        String::new(),
        format!("far:{}/", dir.directory.path().display()),
    ] {
        for (name, extent, words) in [
            (
                "short.img",
                "[{\"offset\":1048476,\"length\":100}]",
                "shorter by 100 bytes",
            ),
            (
                "long.img",
                "[{\"offset\":1048576,\"length\":5}]",
                "longer by 5 bytes",
            ),
        ] {
            let longer = dir.run(&format!("compare {far}{name} base.img --json {ssh}"));
            assert_eq!(longer.status.code(), Some(3));
            let output = dir.run(&format!("compare base.img {far}{name} --json {ssh}"));
            assert_eq!(output.status.code(), Some(3));
            assert!(
                text(&output.stdout).contains(extent),
                "{}",
                text(&output.stdout)
            );
            assert!(
                text(&output.stderr).contains(words),
                "{}",
                text(&output.stderr)
            );
        }
    }
}

#[test]
fn what_compare_cannot_do_has_its_code() {
    let dir = Dir::new();
    let ssh = dir.fake_ssh("shift; exec sh -c \"$*\"");
    dir.fails("compare new.img", 2, &["required"]);
    dir.fails(
        "compare new.img copy.img --json --map",
        2,
        &["cannot be used"],
    );
    dir.fails("compare new.img ./new.img", 2, &["same volume"]);
    dir.fails("compare new.img copy.img --compat", 2, &["cannot compare"]);
    dir.fails(
        "compare a:new.img copy.img --compat",
        2,
        &["cannot compare"],
    );
    dir.fails("compare a:new.img b:copy.img", 2, &["has to be here"]);
    dir.fails("compare no-such.img copy.img", 1, &["no-such.img"]);
    dir.fails("compare new.img no-such.img", 1, &["no-such.img"]);
    dir.fails(
        "compare new.img copy.img --only no-such.delta",
        1,
        &["no-such.delta"],
    );
    dir.fails(
        &format!("compare new.img far:/no/such/x {ssh}"),
        7,
        &["far: ", "/no/such/x"],
    );
    dir.fake_ssh("echo 'Connection refused by host' >&2; exit 255");
    dir.fails(
        &format!("compare new.img far:/x {ssh}"),
        7,
        &["Connection refused by host"],
    );
    // An lvmsync of before: its Hello has no such feature.
    let hello = r#"{"protocol_min":1,"protocol_max":1,"features":["apply"]}"#;
    let mut old = b"lvmsync session 1\n".to_vec();
    let mut header = vec![1, 0, 0, 0];
    header.extend((hello.len() as u32).to_le_bytes());
    header.extend(crc32c::crc32c(hello.as_bytes()).to_le_bytes());
    header.extend(crc32c::crc32c(&header).to_le_bytes());
    old.extend([&header[..], hello.as_bytes()].concat());
    fs::write(dir.path("old"), old).unwrap();
    dir.fake_ssh("cat old; cat > /dev/null");
    dir.fails(
        &format!("compare new.img far:/x {ssh}"),
        7,
        &["`compare`", "same release"],
    );
}

/// A destination that loses its end, and one whose far end is killed, in the middle of a compare.
#[test]
fn an_end_that_goes_away_in_the_middle_is_named() {
    let dir = Dir::new();
    for name in ["a.img", "b.img"] {
        let file = fs::File::create(dir.path(name)).unwrap();
        file.set_len(3 << 40).unwrap();
    }
    let ssh = dir.fake_ssh("shift; echo $$ > far.pid; exec $*");
    let far = dir.path("b.img").display().to_string();
    let far = format!("compare a.img far:{far} --retries 0 {ssh}");
    for (line, code, words) in [
        ("compare a.img b.img", 1, "of b.img: it is shorter than"),
        (far.as_str(), 7, "b.img: it is shorter than"),
        (far.as_str(), 7, "signal 9"),
        (far.as_str(), 130, "interrupted"),
        ("compare a.img b.img", 130, "interrupted"),
    ] {
        let _ = fs::remove_file(dir.path("far.pid"));
        let mut command = Command::new("env");
        command
            .current_dir(dir.directory.path())
            .arg("--default-signal=INT")
            .arg(env!("CARGO_BIN_EXE_lvmsync"))
            .args(line.split_whitespace());
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let kill = |signal: &str, id: &str| {
            assert!(
                Command::new("kill")
                    .args([signal, id])
                    .status()
                    .unwrap()
                    .success()
            );
        };
        match words {
            "interrupted" => kill("-INT", &child.id().to_string()),
            "signal 9" => kill("-KILL", text(&dir.read("far.pid")).trim()),
            _ => {
                let file = fs::File::options().write(true).open(dir.path("b.img"));
                file.unwrap().set_len(4096).unwrap();
            }
        }
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(said.contains(words), "{line}: {said}");
        let file = fs::File::options().write(true).open(dir.path("b.img"));
        file.unwrap().set_len(3 << 40).unwrap();
    }
}

#[test]
fn send_and_apply_verify_what_they_wrote() {
    let dir = Dir::new();
    let ssh = dir.fake_ssh("shift; exec sh -c \"$*\"");
    dir.delta();
    let far = format!("far:{} {ssh}", dir.path("copy.img").display());
    for line in [
        "send --from cow:store.img new.img copy.img".to_owned(),
        format!("send --from cow:store.img new.img {far}"),
        "send new.img copy.img".to_owned(),
        "apply x.delta copy.img".to_owned(),
    ] {
        fs::copy(dir.path("base.img"), dir.path("copy.img")).unwrap();
        let output = dir.run(&format!("{line} --verify --json"));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}: {said}");
        assert!(
            said.contains("verified: what was written reads back"),
            "{line}: {said}"
        );
        assert!(text(&output.stdout).contains("\"verified\":true"), "{line}");
        assert_eq!(dir.read("copy.img"), dir.read("new.img"));
    }
    assert!(
        !dir.ok("apply x.delta copy.img --force --json")
            .contains("verified")
    );
    // What is past the end of a smaller destination was left out, as asked.
    let base = dir.read("base.img");
    for far in [
        String::new(),
        format!("far:{}/", dir.directory.path().display()),
    ] {
        fs::write(dir.path("small.img"), &base[..700_000]).unwrap();
        dir.ok(&format!(
            "send --from cow:store.img new.img {far}small.img --allow-smaller --verify {ssh}"
        ));
    }
    for (line, word) in [
        ("send new.img -o x --verify", "cannot be used"),
        ("send new.img --stdout --verify", "cannot be used"),
        ("send new.img far:x --compat --verify", "cannot be used"),
        ("send new.img copy.img -n --verify", "cannot be used"),
        ("apply x.delta copy.img --check --verify", "cannot be used"),
        ("apply - copy.img --verify", "standard input"),
    ] {
        dir.fails(line, 2, &[word]);
    }
    dir.ok("send --from cow:store.img new.img -o s3 --format proto3");
    dir.fails("apply s3 copy.img --verify", 2, &["s3", "PROTO[3]"]);
}

/// The session that reads back finds what somebody else wrote after the one that wrote was done.
#[test]
fn what_does_not_read_back_is_3_and_says_where() {
    let dir = Dir::new();
    let copy = dir.path("copy.img");
    let spoil = "printf XX | dd of=copy.img bs=1 seek=315400 conv=notrunc 2>/dev/null";
    let ssh = dir.fake_ssh(&format!(
        "shift; [ -e second ] && {spoil}; touch second; exec sh -c \"$*\""
    ));
    let far = format!("far:{}", copy.display());
    let again = format!("sync new.img {far} {ssh} --verify");
    dir.fails(
        &format!("send --from cow:store.img new.img {far} --verify {ssh}"),
        3,
        &[
            "copy.img",
            "does not read back",
            "4096 bytes at 315392",
            &format!("make it equal: lvmsync {again}\n"),
        ],
    );
    dir.fake_ssh("shift; exec sh -c \"$*\"");
    dir.ok(&again);
    assert_eq!(dir.read("copy.img"), dir.read("new.img"));
}
