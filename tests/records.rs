//! Records of destinations from outside: wrong bases, incomplete destinations, resumed runs, `lvmsync state`.
//!
//! Everything here runs on files and needs neither root nor device-mapper.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod record_kit;

use std::fs;
use std::process::{Command, Stdio};

use record_kit::*;

#[test]
fn a_forgotten_increment_is_refused_by_the_record_and_without_one_by_the_samples() {
    let (dir, contents) = Dir::chain(3);
    let said = dir.ok("apply s1.delta copy.img");
    assert!(said.contains("rests on the sampled blocks alone"), "{said}");
    dir.fails(
        "apply s3.delta copy.img",
        5,
        &["vg/s1", "vg/s2", "on record since", "state adopt"],
    );
    assert!(dir.read("copy.img") == contents[1], "nothing was written");
    dir.ok("apply s2.delta s3.delta copy.img");
    assert!(dir.read("copy.img") == contents[3]);
    assert_eq!(dir.state("copy.img")["holds"]["name"], "vg/s3");

    // Without the record: the one that is missing changed a quarter of all blocks, so the chance that none of them
    // was sampled is 0.75 to the 128th.
    let states = [contents[0].clone(), every_fourth(&contents[0])];
    let mut last = states[1].clone();
    last[CHUNK * 9..][..CHUNK].fill(7);
    fs::write(dir.path("last.delta"), delta(2, &states[1], &last, &[9])).unwrap();
    fs::write(dir.path("fresh.img"), &states[0]).unwrap();
    dir.fails(
        "apply last.delta fresh.img",
        5,
        &["not in the state", "Nothing was written"],
    );
    assert!(dir.read("fresh.img") == states[0]);
    fs::write(dir.path("fresh.img"), &states[1]).unwrap();
    dir.ok("apply last.delta fresh.img");
    assert!(dir.read("fresh.img") == last);
}

/// Another state: every fourth block is different.
fn every_fourth(state: &[u8]) -> Vec<u8> {
    let mut next = state.to_vec();
    for chunk in next.chunks_mut(4 * CHUNK) {
        chunk[..CHUNK].iter_mut().for_each(|byte| *byte ^= 0x77);
    }
    next
}

#[test]
fn a_required_record_is_required() {
    let (dir, contents) = Dir::chain(1);
    dir.fails(
        "apply s1.delta copy.img --require-record",
        5,
        &["--require-record"],
    );
    assert!(dir.read("copy.img") == contents[0]);
    dir.ok("state adopt copy.img lvm:s0");
    dir.ok("apply s1.delta copy.img --require-record");
    assert!(dir.read("copy.img") == contents[1]);
}

#[test]
fn records_are_shown_adopted_and_forgotten() {
    let (dir, _) = Dir::chain(2);
    assert!(dir.ok("state show").contains("no destination"));
    dir.ok("apply s1.delta copy.img --undo back");
    let shown = dir.ok("state show copy.img");
    for word in ["vg/s1 (lvm:s1)", "since", "s1.delta", "back"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    assert_eq!(dir.state("copy.img")["status"], "complete");
    // By its identity, not by its name.
    fs::rename(dir.path("copy.img"), dir.path("moved.img")).unwrap();
    assert_eq!(dir.state("moved.img")["holds"]["id"], "lvm:s1");
    dir.fails("state show copy.img --json extra", 2, &["extra"]);
    dir.ok("state adopt moved.img s2.delta");
    assert_eq!(dir.state("moved.img")["holds"]["id"], "lvm:s2");
    dir.fails("apply s2.delta moved.img", 5, &["vg/s1", "vg/s2"]);
    dir.ok("state forget moved.img");
    assert!(dir.state("moved.img").is_null());
    dir.fails("state adopt moved.img nonsense", 1, &["nonsense"]);
}

#[test]
fn what_others_wrote_to_is_no_longer_what_the_record_says() {
    let (dir, contents) = Dir::chain(2);
    dir.ok("apply s1.delta copy.img");
    assert_eq!(dir.state("copy.img")["touched"], false);
    fs::write(dir.path("copy.img"), &contents[0]).unwrap();
    assert_eq!(dir.state("copy.img")["touched"], true);
    dir.fails(
        "apply s1.delta copy.img --require-record",
        5,
        &["other than lvmsync wrote"],
    );
    let said = dir.ok("apply s1.delta copy.img");
    assert!(said.contains("other than lvmsync wrote"), "{said}");
    assert!(dir.read("copy.img") == contents[1]);
    // Untouched: nothing to do, and nothing is done.
    let said = dir.ok("apply s1.delta copy.img");
    assert!(said.contains("already"), "{said}");
}

#[test]
fn a_damaged_record_is_refused_and_can_be_forgotten() {
    let (dir, contents) = Dir::chain(2);
    dir.ok("apply s1.delta copy.img");
    let record = fs::read_dir(dir.path("state/destinations"))
        .unwrap()
        .next()
        .unwrap();
    let record = record.unwrap().path();
    let mut bytes = fs::read(&record).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    fs::write(&record, bytes).unwrap();
    dir.fails(
        "apply s2.delta copy.img",
        5,
        &["record", "checksum", "state forget"],
    );
    assert!(dir.read("copy.img") == contents[1]);
    dir.ok("state forget copy.img");
    dir.ok("apply s2.delta copy.img");
    assert!(dir.read("copy.img") == contents[2]);
}

#[test]
fn where_no_record_can_be_kept_nothing_is_written() {
    let (dir, contents) = Dir::chain(1);
    fs::write(dir.path("state"), "a file where the directory should be").unwrap();
    dir.fails("apply s1.delta copy.img", 1, &["state", "--state-dir"]);
    assert!(dir.read("copy.img") == contents[0]);
    dir.ok("apply s1.delta copy.img --state-dir elsewhere");
    assert!(dir.path("elsewhere").is_dir());
}

#[test]
fn an_incomplete_destination_is_finished_or_taken_back_and_used_for_nothing_else() {
    let dir = Dir::with(10_000);
    let undo = dir.path("back");
    cut(&dir, &format!("--undo {}", undo.display()));
    let state = dir.state("copy.img");
    assert_eq!(state["status"], "incomplete");
    assert!(state["incomplete"]["durable_offset"].as_u64().unwrap() > 1 << 20);
    assert!(dir.ok("state show").contains("INCOMPLETE"));
    let ways_out = [
        "incomplete",
        "run the command that was cut again",
        "back copy.img",
    ];
    dir.fails("send copy.img -o x", 5, &ways_out);
    dir.fails("send --from cow:store.img copy.img -o x", 5, &ways_out);
    dir.fails("diff --from cow:store.img copy.img", 5, &ways_out);
    fs::copy(dir.path("new.img"), dir.path("new2.img")).unwrap();
    dir.fails("send --from cow:store.img new2.img copy.img", 5, &ways_out);

    dir.fails("send --from cow:copy.img new.img -o x", 5, &ways_out);
    dir.fails("diff --from cow:copy.img new.img", 5, &ways_out);
    // To compare is to find out; who does is told.
    let ssh = dir.fake_ssh("exec sh -c \"$*\"");
    let far = format!("far:{} {ssh}", dir.path("copy.img").display());
    let lines = [
        "compare -q new.img copy.img".to_owned(),
        "compare -q copy.img new.img".to_owned(),
        format!("compare -q new.img {far}"),
    ];
    for line in &lines {
        dir.fails(line, 3, &ways_out[..2]);
        dir.fails(line, 3, &["neither its old state nor its new one"]);
    }
    let output = dir.run("compare -q new.img base.img");
    assert_eq!(text(&output.stderr), "");

    dir.ok("apply back copy.img");
    assert!(dir.read("copy.img") == dir.read("base.img"));
    assert_eq!(dir.state("copy.img")["status"], "complete");
    assert!(!dir.path("back.partial").exists());
}

#[test]
fn what_mends_an_incomplete_source_is_a_sync_into_it() {
    let dir = Dir::with(10_000);
    cut(&dir, "");
    let ssh = dir.fake_ssh("exec sh -c \"$*\"");
    let here = dir.path("copy.img").display().to_string();
    let k = dir.path("k").display().to_string();
    let mended = "mends it: lvmsync sync NEW copy.img\n";
    let known = "holds: lvmsync state adopt --force copy.img STATE";
    for line in [
        "sync copy.img k",
        "sync copy.img k -n",
        "send copy.img k",
        "send copy.img -o x",
        "send --from cow:store.img copy.img k",
        "diff --from cow:store.img copy.img",
        &format!("sync copy.img far:{k} {ssh}"),
        &format!("send copy.img far:{k} {ssh}"),
        "invert s1.delta --base copy.img -o x",
    ] {
        dir.fails(line, 5, &[mended, known]);
    }
    dir.fails("compare -q copy.img new.img", 3, &[mended, known]);
    // What belongs to another machine says so.
    let program = env!("CARGO_BIN_EXE_lvmsync");
    let there = |command: &str| format!("./fake-ssh far '{program} {command}'");
    let mended = there(&format!("sync NEW {here}"));
    let known = there(&format!("state adopt --force {here} STATE"));
    let line = format!("sync far:{here} k {ssh}");
    dir.fails(&line, 5, &[&mended, &known]);
}

#[test]
fn the_ways_out_of_an_incomplete_source_name_the_state_directory() {
    let (dir, base, _) = large_chain();
    let state = "--state-dir elsewhere";
    for (undo, ways_out) in [
        (
            "",
            vec!["sync NEW copy.img", "state adopt --force copy.img STATE"],
        ),
        ("--undo u", vec!["/u copy.img"]),
    ] {
        dir.fails(&format!("apply cut.delta copy.img {undo} {state}"), 6, &[]);
        let ways_out: Vec<String> = ways_out
            .iter()
            .map(|way| format!("{way} {state}"))
            .collect();
        let ways_out: Vec<&str> = ways_out.iter().map(String::as_str).collect();
        for line in [
            "sync copy.img k",
            "send copy.img -o x",
            "send --from cow:copy.img s1.delta -o x",
            "invert s1.delta --base copy.img -o x",
        ] {
            dir.fails(&format!("{line} {state}"), 5, &ways_out);
        }
        fs::write(dir.path("copy.img"), &base).unwrap();
        dir.ok(&format!("state forget --force copy.img {state}"));
    }
}

#[test]
fn the_undo_on_record_is_meant_and_not_an_older_one_of_that_name() {
    let dir = Dir::with(10_000);
    let undo = dir.path("back");
    fs::write(&undo, noise(5000, "the undo of an older run")).unwrap();
    cut(&dir, &format!("--undo {} --overwrite", undo.display()));
    assert_eq!(dir.state("copy.img")["status"], "incomplete");
    dir.ok("apply back copy.img");
    assert!(dir.read("copy.img") == dir.read("base.img"));
}

/// The undo of a run that was cut has no end. Cut while it is applied, it still has none, and is good all the same.
#[test]
fn an_undo_without_its_end_that_was_cut_once_more_goes_on() {
    let dir = Dir::with(10_000);
    cut(&dir, &format!("--undo {}", dir.path("back").display()));
    let partial = dir.path("back.partial");
    let whole = dir.read("back.partial");
    let torn = [&whole[..], &[0x5a; 3000]].concat();
    fs::write(&partial, &torn).unwrap();
    let mut child = dir
        .command("apply back copy.img")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    while dir.state("copy.img")["incomplete"]["undo_of"].is_null()
        && child.try_wait().unwrap().is_none()
    {}
    child.kill().unwrap();
    child.wait().unwrap();
    if dir.state("copy.img")["status"] == "complete" {
        return; // it was too fast
    }
    dir.ok("apply back copy.img");
    assert!(dir.read("copy.img") == dir.read("base.img"));
    assert_eq!(dir.state("copy.img")["status"], "complete");
}

#[test]
fn the_same_command_goes_on_where_it_was_cut() {
    let dir = Dir::with(10_000);
    let undo = format!("--undo {}", dir.path("back").display());
    for undo in ["", &undo] {
        fs::remove_file(dir.path("copy.img")).unwrap();
        fs::copy(dir.path("base.img"), dir.path("copy.img")).unwrap();
        cut(&dir, undo);
        let durable = dir.state("copy.img")["incomplete"]["durable_offset"]
            .as_u64()
            .unwrap();
        let ssh = dir.fake_ssh("exec sh -c \"$*\"");
        let copy = dir.path("copy.img").display().to_string();
        let line = format!("send --from cow:store.img new.img far:{copy} {undo} -v --json {ssh}");
        let output = dir.run(&line);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(
            text(&output.stderr).contains("goes on at byte"),
            "{}",
            text(&output.stderr)
        );
        let sent: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let left = (10_000 * CHUNK) as u64 - durable;
        assert!(sent["bytes_sent"].as_u64().unwrap() < left + (64 << 10));
        assert!(dir.read("copy.img") == dir.read("new.img"));
        if !undo.is_empty() {
            dir.ok("apply back copy.img");
            assert!(dir.read("copy.img") == dir.read("base.img"));
        }
    }
}

#[test]
fn a_lost_connection_is_made_again() {
    let dir = Dir::with(4000);
    // The first connections end after so many bytes; the third lasts.
    let ssh = dir.fake_ssh(&format!(
        "n=$(cat calls 2>/dev/null || echo 0); echo $((n + 1)) > calls\n\
         case $n in 0|1) {} | sh -c \"$*\" ;; *) exec sh -c \"$*\" ;; esac",
        only(4_000_000)
    ));
    let line = format!(
        "send --from cow:store.img new.img far:{} {ssh}",
        dir.path("copy.img").display()
    );
    let said = dir.ok(&line);
    assert!(said.contains("trying again in 1 s"), "{said}");
    assert_eq!(text(&dir.read("calls")).trim(), "3");
    assert!(dir.read("copy.img") == dir.read("new.img"));
    assert_eq!(dir.state("copy.img")["status"], "complete");

    // One that was never there is not waited for, and refusals are final.
    let ssh = dir.fake_ssh("echo x >> calls2; exit 255");
    dir.fails(&format!("send new.img far:/nowhere {ssh}"), 7, &[]);
    assert_eq!(dir.read("calls2").len(), 2);
}

#[test]
fn after_a_lost_connection_a_refusal_is_final_unless_the_destination_is_held() {
    let dir = Dir::with(4000);
    let line = format!(
        "send --from cow:store.img new.img far:{}",
        dir.path("copy.img").display()
    );
    let second = |what: &str| {
        fs::remove_file(dir.path("calls")).unwrap_or_default();
        dir.fake_ssh(&format!(
            "n=$(cat calls 2>/dev/null || echo 0); echo $((n + 1)) > calls\n\
             case $n in 0) {} | sh -c \"$*\" ;; {what} ;; esac",
            only(4_000_000)
        ))
    };
    let ssh = second("*) exec sh -c \"$* --read-only\"");
    dir.fails(&format!("{line} {ssh}"), 5, &["read-only"]);
    assert_eq!(text(&dir.read("calls")).trim(), "2");

    let ssh = second("1) exec flock copy.img sh -c \"$*\" ;; *) exec sh -c \"$*\"");
    let said = dir.ok(&format!("{line} {ssh}"));
    assert!(said.contains("another process has locked it"), "{said}");
    assert_eq!(text(&dir.read("calls")).trim(), "3");
    assert!(dir.read("copy.img") == dir.read("new.img"));
}

#[test]
fn a_first_copy_has_its_name_only_when_it_is_whole() {
    let dir = Dir::with(2000);
    let far = dir.path("first.img");
    let ssh = dir.fake_ssh(&format!("{} | sh -c \"$*\"", only(3_000_000)));
    let line = format!("send new.img far:{} --retries 0", far.display());
    dir.fails(&format!("{line} {ssh}"), 7, &[]);
    assert!(!far.exists() && dir.path("first.img.partial").exists());
    assert_eq!(dir.state("first.img")["status"], "incomplete");
    let ssh = dir.fake_ssh("exec sh -c \"$*\"");
    let said = dir.ok(&format!("{line} {ssh} -v"));
    assert!(said.contains("goes on at byte"), "{said}");
    assert!(dir.read("first.img") == dir.read("new.img"));
    assert!(!dir.path("first.img.partial").exists());
    assert_eq!(dir.state("first.img")["status"], "complete");
}

#[test]
fn a_full_copy_that_is_there_already_is_said_to_be_there() {
    let dir = Dir::with(200);
    let ssh = dir.fake_ssh("exec sh -c \"$*\"");
    let far = dir.path("first.img");
    let line = format!("send new.img far:{} {ssh}", far.display());
    dir.ok(&line);
    assert!(dir.ok(&line).contains("already"));
    // Killed after the last word of the record and before the name: the same command gives the name.
    fs::rename(&far, dir.path("first.img.partial")).unwrap();
    dir.ok(&line);
    assert!(dir.read("first.img") == dir.read("new.img"));
    assert!(!dir.path("first.img.partial").exists());
    // Written by somebody else: copied anew.
    fs::write(&far, noise(200 * CHUNK, "somebody else")).unwrap();
    dir.ok(&line);
    assert!(dir.read("first.img") == dir.read("new.img"));
}

#[test]
fn what_is_left_of_a_larger_first_copy_is_no_part_of_a_smaller_one() {
    let dir = Dir::with(2000);
    let far = dir.path("first.img");
    let ssh = dir.fake_ssh(&format!("{} | sh -c \"$*\"", only(3_000_000)));
    let destination = format!("far:{} --retries 0", far.display());
    dir.fails(&format!("send new.img {destination} {ssh}"), 7, &[]);
    assert!(dir.path("first.img.partial").exists());
    fs::write(dir.path("small.img"), noise(300 * CHUNK, "small")).unwrap();
    let ssh = dir.fake_ssh("exec sh -c \"$*\"");
    dir.ok(&format!("send small.img {destination} {ssh}"));
    assert!(dir.read("first.img") == dir.read("small.img"));
}

#[test]
fn a_chain_that_was_cut_goes_on_in_its_middle() {
    let (dir, contents) = Dir::chain(3);
    dir.ok("apply s1.delta copy.img");
    let damaged = dir.read("s2.delta");
    fs::write(dir.path("s2.delta"), &damaged[..damaged.len() - 4200]).unwrap();
    dir.fails(
        "apply s1.delta s2.delta s3.delta copy.img",
        6,
        &["s2.delta"],
    );
    fs::write(dir.path("s2.delta"), damaged).unwrap();
    let said = dir.ok("apply s1.delta s2.delta s3.delta copy.img");
    assert!(said.contains("goes on at s2.delta"), "{said}");
    assert!(dir.read("copy.img") == contents[3]);
}

#[test]
fn a_file_that_is_written_while_it_is_read_is_no_state() {
    let dir = Dir::with(4000);
    let mut child = dir
        .command("send new.img -o x.delta --bwlimit 8M")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    fs::write(dir.path("new.img"), dir.read("base.img")).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(!dir.path("x.delta").exists());
}

#[test]
fn atomic_means_whole_or_not_at_all() {
    let dir = Dir::with(2000);
    dir.ok("send --from cow:store.img new.img -o x.delta");
    let delta = dir.read("x.delta");
    fs::write(dir.path("cut.delta"), &delta[..delta.len() - 10]).unwrap();
    dir.fails("apply cut.delta copy.img --atomic", 6, &["cut.delta"]);
    assert!(dir.read("copy.img") == dir.read("base.img"));
    assert!(dir.state("copy.img").is_null(), "nothing was begun");

    fs::create_dir(dir.path("room")).unwrap();
    let far = dir.path("copy.img").display().to_string();
    let ssh = dir.fake_ssh(&format!("{} | sh -c \"$*\"", only(3_000_000)));
    let room = dir.path("room").display().to_string();
    let line =
        format!("send --from cow:store.img new.img far:{far} --atomic --spool {room} --retries 0");
    dir.fails(&format!("{line} {ssh}"), 7, &[]);
    assert!(dir.read("copy.img") == dir.read("base.img"));
    // What came is not sent again, and goes when it has done its work.
    assert_eq!(fs::read_dir(dir.path("room")).unwrap().count(), 1);
    let ssh = dir.fake_ssh("exec sh -c \"$*\"");
    let said = dir.ok(&format!(
        "{line} -v {ssh} --undo {}",
        dir.path("back").display()
    ));
    assert!(said.contains("goes on at byte"), "{said}");
    assert!(dir.read("copy.img") == dir.read("new.img"));
    assert_eq!(fs::read_dir(dir.path("room")).unwrap().count(), 0);
    dir.ok("apply back copy.img --atomic");
    assert!(dir.read("copy.img") == dir.read("base.img"));
    dir.ok("send --from cow:store.img new.img copy.img --atomic");
    assert!(dir.read("copy.img") == dir.read("new.img"));
    dir.fails("apply x.delta copy.img --spool room", 2, &["--atomic"]);
    fs::remove_dir(dir.path("room")).unwrap();
    dir.ok("state forget copy.img");
    dir.fails(
        "apply x.delta copy.img --atomic --spool room --force",
        1,
        &["room"],
    );
}

/// Each connection carries a few megabytes more than half of what is missing.
#[test]
fn an_atomic_run_goes_on_over_many_connections() {
    let dir = Dir::with(8000);
    let far = dir.path("copy.img").display().to_string();
    let line = format!("send --from cow:store.img new.img far:{far} --atomic --json");
    let ssh = dir.fake_ssh(&format!("{} | sh -c \"$*\"", only(9_000_000)));
    let summary = dir.json(&format!("{line} --retries 6 {ssh}"));
    assert!(dir.read("copy.img") == dir.read("new.img"));
    // Fifteen chunks of sixteen.
    let changed = 7500 * CHUNK as u64;
    let wire = summary["wire_bytes"].as_u64().unwrap();
    assert!((changed..changed * 5 / 4).contains(&wire), "{summary}");
    assert_eq!(dir.spools(), 0);

    // What was kept is of another state once the source has changed, and nobody's content where the destination has.
    dir.ok("send base.img copy.img --force");
    let cut = format!("{line} --retries 0 {ssh}");
    dir.fails(&cut, 7, &[]);
    assert_eq!(dir.spools(), 1);
    let doctor = text(&dir.run("doctor --json").stdout);
    assert!(doctor.contains(".spool.partial"), "{doctor}");
    fs::write(dir.path("copy.img"), vec![7; 8000 * CHUNK]).unwrap();
    dir.fails(&cut, 5, &["copy.img"]);
    assert!(dir.read("copy.img") == vec![7; 8000 * CHUNK]);
    dir.ok("send base.img copy.img --force");
    let ssh = dir.fake_ssh("exec sh -c \"$*\"");
    dir.ok(&format!("{line} {ssh}"));
    assert!(dir.read("copy.img") == dir.read("new.img"));
    assert_eq!(dir.spools(), 0);
}

/// The same delta goes to two volumes, and the same name is given to both undos.
#[test]
fn the_undo_of_another_destination_is_never_replaced() {
    let dir = Dir::with(10_000);
    dir.ok("send --from cow:store.img new.img -o x.delta");
    fs::copy(dir.path("base.img"), dir.path("second.img")).unwrap();
    dir.ok("apply x.delta second.img");
    dir.ok("send base.img second.img --force");
    cut(&dir, &format!("--undo {}", dir.path("back").display()));
    let before = dir.read("back.partial");
    dir.fails(
        "apply x.delta second.img --undo back",
        5,
        &["back.partial", "the only way back"],
    );
    dir.fails(
        "apply x.delta second.img --undo back --overwrite",
        5,
        &["back.partial"],
    );
    assert!(dir.read("back.partial") == before);
    dir.ok("apply back copy.img");
    assert!(dir.read("copy.img") == dir.read("base.img"));
}

/// A restored image has the time of last write that the restoring program gave it: only its content tells.
#[test]
fn a_rollback_from_below_is_seen_by_what_the_last_run_wrote() {
    let (dir, contents) = Dir::chain(2);
    dir.ok("apply s1.delta copy.img");
    let modified = fs::metadata(dir.path("copy.img"))
        .unwrap()
        .modified()
        .unwrap();
    fs::write(dir.path("copy.img"), &contents[0]).unwrap();
    let file = fs::File::options()
        .write(true)
        .open(dir.path("copy.img"))
        .unwrap();
    file.set_modified(modified).unwrap();
    assert_eq!(dir.state("copy.img")["touched"], true);
    dir.fails(
        "apply s2.delta copy.img --require-record",
        5,
        &["other than lvmsync wrote"],
    );
    let said = dir.ok("apply s1.delta copy.img");
    assert!(said.contains("other than lvmsync wrote"), "{said}");
    assert!(dir.read("copy.img") == contents[1]);
}

#[test]
fn the_undo_of_a_forced_run_leads_back_to_what_was_really_there() {
    let (dir, contents) = Dir::chain(3);
    // With a record: s1 is held, and the delta begins from s2.
    dir.ok("apply s1.delta copy.img");
    dir.ok("apply s3.delta copy.img --force --undo forced");
    assert!(dir.read("copy.img") != contents[3]);
    assert!(dir.state("copy.img")["holds"].is_null());
    dir.ok("apply forced copy.img");
    assert!(dir.read("copy.img") == contents[1]);
    assert_eq!(dir.state("copy.img")["holds"]["name"], "vg/s1");
    dir.ok("apply s2.delta copy.img");
    assert!(dir.read("copy.img") == contents[2]);

    // Without one, and on what matches in no block.
    for forget in [false, true] {
        let other = noise(1 << 20, "another volume");
        fs::write(dir.path("other.img"), &other).unwrap();
        dir.fails("apply s1.delta other.img", 5, &["not in the state"]);
        dir.ok("apply s1.delta other.img --force --undo other.undo --overwrite");
        if forget {
            dir.ok("state forget other.img");
        }
        dir.ok("apply other.undo other.img");
        assert!(dir.read("other.img") == other);
        assert!(dir.state("other.img")["holds"].is_null());
        fs::remove_file(dir.path("other.img")).unwrap();
    }
}

#[test]
fn the_undo_of_a_full_copy_names_the_state_that_was_there_before() {
    let (dir, contents) = Dir::chain(2);
    dir.ok("apply s1.delta copy.img");
    fs::write(dir.path("new.img"), noise(1 << 20, "new")).unwrap();
    dir.ok("send new.img copy.img --undo back");
    assert!(dir.read("copy.img") == dir.read("new.img"));
    dir.ok("apply back copy.img");
    assert!(dir.read("copy.img") == contents[1]);
    assert_eq!(dir.state("copy.img")["holds"]["name"], "vg/s1");
    dir.ok("apply s2.delta copy.img --require-record");
    assert!(dir.read("copy.img") == contents[2]);
    // What somebody else has written since the record was made is not that state.
    fs::write(dir.path("copy.img"), noise(1 << 20, "somebody else")).unwrap();
    dir.ok("send new.img copy.img --undo back --overwrite");
    dir.ok("apply back copy.img");
    assert!(dir.read("copy.img") == noise(1 << 20, "somebody else"));
    assert!(dir.state("copy.img")["holds"].is_null());
}

#[test]
fn what_an_undo_that_was_cut_has_put_back_is_read_back() {
    let dir = Dir::with(10_000);
    for options in ["", "--unfinished"] {
        fs::write(dir.path("copy.img"), dir.read("base.img")).unwrap();
        cut(&dir, &format!("--undo {}", dir.path("back").display()));
        let torn = [&dir.read("back.partial")[..], &[0x5a; 3000]].concat();
        fs::write(dir.path("back.partial"), torn).unwrap();
        if !options.is_empty() {
            dir.ok("state forget copy.img --force");
        }
        let said = dir.ok(&format!("apply back copy.img --verify {options}"));
        assert!(said.contains("verified"), "{said}");
        assert!(dir.read("copy.img") == dir.read("base.img"));
        // Without a record nobody knows whether it has done its work.
        assert_eq!(dir.path("back.partial").exists(), !options.is_empty());
        fs::remove_file(dir.path("back.partial")).unwrap_or_default();
    }
}

#[test]
fn what_is_half_written_is_forgotten_or_adopted_only_by_force() {
    let dir = Dir::with(10_000);
    cut(&dir, &format!("--undo {}", dir.path("back").display()));
    for verb in ["state adopt copy.img lvm:s1", "state forget copy.img"] {
        dir.fails(verb, 5, &["incomplete", "back copy.img", "--force"]);
        assert_eq!(dir.state("copy.img")["status"], "incomplete");
    }
    let identity = dir.state("copy.img")["identity"].clone();
    let identity = identity.as_str().unwrap();
    dir.fails(&format!("state forget {identity}"), 5, &["incomplete"]);
    dir.ok("state adopt copy.img lvm:s1 --force");
    assert_eq!(dir.state("copy.img")["holds"]["id"], "lvm:s1");
    dir.ok("state forget copy.img");
    fs::remove_file(dir.path("back.partial")).unwrap();

    // What is gone is half-written no more.
    cut(&dir, "");
    fs::remove_file(dir.path("copy.img")).unwrap();
    dir.ok(&format!("state forget {}", dir.path("copy.img").display()));
}

#[test]
fn a_record_is_not_touched_while_a_run_is_under_way() {
    let dir = Dir::with(2000);
    let line = "send --from cow:store.img new.img copy.img --bwlimit 1M";
    let mut child = dir.command(line).spawn().unwrap();
    while dir.state("copy.img")["status"] != "incomplete" {
        assert!(child.try_wait().unwrap().is_none());
    }
    for verb in ["adopt copy.img lvm:s1 --force", "forget copy.img --force"] {
        dir.fails(
            &format!("state {verb}"),
            5,
            &["another process has locked it"],
        );
    }
    assert_eq!(dir.state("copy.img")["status"], "incomplete");
    child.kill().unwrap();
    child.wait().unwrap();
    dir.ok("state forget copy.img --force");
}

/// What a user is told to run is pasted into a shell as it is.
#[test]
fn the_command_that_takes_back_what_is_far_away_can_be_pasted() {
    let dir = Dir::with(10_000);
    let (copy, undo) = (dir.path("copy.img"), dir.path("mon day's"));
    let send = |ssh: &str, more: &str| {
        let line = format!("send --from cow:store.img {more} --retries 0 {ssh} --undo");
        let mut command = dir.command(&line);
        command.arg(&undo).output().unwrap()
    };
    let to = format!("far:{}", copy.display());
    let ssh = dir.fake_ssh(&format!("{} | sh -c \"$*\"", only(30_000_000)));
    let lost = send(&ssh, &format!("new.img {to}"));
    assert_eq!(lost.status.code(), Some(7));
    fs::copy(dir.path("new.img"), dir.path("new2.img")).unwrap();
    let ssh = dir.fake_ssh("exec sh -c \"$*\"");
    let refused = send(&ssh, &format!("new2.img {to}"));
    assert_eq!(refused.status.code(), Some(5));
    for said in [text(&lost.stderr), text(&refused.stderr)] {
        let command = said.lines().find_map(|line| {
            let (_, command) = line.split_once("ake it back: ")?;
            Some(command.to_owned())
        });
        let command = command.unwrap_or_else(|| panic!("no command in {said}"));
        assert!(command.starts_with("./fake-ssh far '"), "{command}");
        let words = shlex::split(&command).unwrap();
        assert_eq!(
            shlex::split(&words[2]).unwrap()[1..],
            ["apply", undo.to_str().unwrap(), copy.to_str().unwrap()]
        );
        let status = Command::new("sh")
            .args(["-c", &format!("{command} --check")])
            .current_dir(dir.directory.path())
            .env("LVMSYNC_STATE_DIR", dir.path("state"))
            .status()
            .unwrap();
        assert!(status.success() || status.code() == Some(6), "{command}");
    }
    let mut local = dir.command("send --from cow:store.img new2.img copy.img");
    let said = text(&local.output().unwrap().stderr);
    let quoted = format!(
        "lvmsync apply '{}' copy.img",
        undo.display().to_string().replace('\'', "'\\''")
    );
    assert!(said.contains(&quoted), "{said}");
}

#[test]
fn what_is_left_of_a_first_copy_is_told_by_the_name_that_it_will_have() {
    let dir = Dir::with(2000);
    let ssh = dir.fake_ssh(&format!("{} | sh -c \"$*\"", only(3_000_000)));
    let far = dir.path("first.img").display().to_string();
    dir.fails(&format!("send new.img far:{far} --retries 0 {ssh}"), 7, &[]);
    for line in [
        "send first.img.partial -o x",
        "send --from cow:first.img.partial new.img -o x",
        "state forget first.img",
    ] {
        let said = dir.fails(line, 5, &["incomplete"]);
        assert!(
            said.contains("first.img; if that is not wanted"),
            "{line}: {said}"
        );
        assert!(said.contains("first.img.partial"), "{said}");
    }
}

#[test]
fn a_name_that_is_no_text_is_refused_and_never_another_file() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let (dir, contents) = Dir::chain(1);
    let name = OsStr::from_bytes(b"na\xffme");
    let line = |line: &str, directory: &std::path::Path| {
        let mut command = dir.command(line);
        command.current_dir(directory).arg(name);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        assert!(
            text(&output.stderr).contains("UTF-8"),
            "{}",
            text(&output.stderr)
        );
    };
    let here = dir.directory.path();
    for verb in [
        "apply s1.delta",
        "apply s1.delta copy.img --undo",
        "send copy.img",
        "send copy.img new.img --undo",
        "send copy.img far:/new.img -e /nowhere --undo",
        "send copy.img far:/new.img -e /nowhere --atomic --spool",
        "send copy.img far:/new.img -e /nowhere --compat --undo",
        "compare copy.img",
        "state show",
    ] {
        line(verb, here);
    }
    // A directory that is no text: what needs no record of the path works there.
    let directory = here.join(name);
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("copy.img"), &contents[0]).unwrap();
    fs::write(directory.join("s1.delta"), dir.read("s1.delta")).unwrap();
    let run = |line: &str| {
        let mut command = dir.command(line);
        command
            .current_dir(&directory)
            .output()
            .unwrap()
            .status
            .code()
    };
    assert_eq!(run("apply s1.delta copy.img --undo back"), Some(2));
    assert_eq!(run("apply s1.delta copy.img"), Some(0));
    assert!(fs::read(directory.join("copy.img")).unwrap() == contents[1]);
    let names: Vec<_> = fs::read_dir(here)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains("na\u{fffd}me") || name.to_str().is_none()));
}

#[test]
fn a_copy_on_one_machine_that_was_killed_goes_on() {
    let dir = Dir::with(24_000);
    let undo = format!("--undo {}", dir.path("back").display());
    for undo in ["", &undo] {
        fs::write(dir.path("copy.img"), dir.read("base.img")).unwrap();
        let line = format!("send --from cow:store.img new.img copy.img {undo}");
        let mut child = dir
            .command(&format!("{line} --bwlimit 40M"))
            .spawn()
            .unwrap();
        let durable = loop {
            assert!(child.try_wait().unwrap().is_none(), "it was too fast");
            let at = dir.state("copy.img")["incomplete"]["durable_offset"].as_u64();
            if let Some(at) = at.filter(|at| *at > 0) {
                break at;
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            durable <= 80 << 20,
            "the first watermark comes after 64 MiB: {durable}"
        );
        let output = dir.run(&format!("{line} -v --json"));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(said.contains("goes on at byte"), "{said}");
        let sent: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let left = (24_000 * CHUNK) as u64 - durable;
        assert!(sent["bytes_sent"].as_u64().unwrap() <= left);
        assert!(dir.read("copy.img") == dir.read("new.img"));
        if !undo.is_empty() {
            dir.ok("apply back copy.img");
            assert!(dir.read("copy.img") == dir.read("base.img"));
        }
    }
}

#[test]
fn an_undo_that_was_cut_stays_where_it_was_given_for_another_destination() {
    let (dir, base, _) = large_chain();
    for options in ["", "--force"] {
        let other = format!("other{options}.img");
        fs::write(dir.path(&other), &base).unwrap();
        dir.ok(&format!("state adopt {other} lvm:s0"));
        dir.fails("apply cut.delta copy.img --undo back", 6, &[]);
        let whole = dir.read("back.partial");
        dir.run(&format!("apply back {other} {options}"));
        assert!(dir.path("back.partial").exists(), "{options}");
        assert!(dir.read("back.partial") == whole);
        assert!(dir.read(&other) == base);
        dir.ok("apply back copy.img");
        assert!(dir.read("copy.img") == base);
        assert!(!dir.path("back.partial").exists());
    }
    // The same delta was cut there, too: its undo is another one.
    fs::write(dir.path("third.img"), &base).unwrap();
    dir.fails("apply cut.delta copy.img --undo back", 6, &[]);
    let less = &dir.read("s1.delta")[..10 * MIB];
    fs::write(dir.path("cut.sooner"), less).unwrap();
    dir.fails("apply cut.sooner third.img", 6, &[]);
    dir.fails("apply back third.img", 5, &["another destination"]);
    dir.fails("apply back third.img --force", 6, &["back.partial"]);
    dir.ok("apply back third.img --force --unfinished");
    assert!(dir.state("third.img")["holds"].is_null());
    assert!(dir.path("back.partial").exists());
    dir.ok("apply back copy.img");
    assert!(dir.read("copy.img") == base);
}

#[test]
fn what_was_emptied_for_another_copy_is_not_gone_on_with() {
    let dir = Dir {
        directory: tempfile::tempdir().unwrap(),
    };
    let contents = |seed| {
        let mut bytes = noise(3 * MIB, seed);
        // As where a volume begins: what is looked at of a block is zero.
        for frame in bytes.chunks_mut(MIB) {
            frame[..CHUNK].fill(0);
        }
        bytes
    };
    let (one, two) = (contents("one"), contents("two"));
    let (first, second) = (
        large_delta(None, 1, &one, 0..3),
        large_delta(None, 2, &two, 0..3),
    );
    fs::write(dir.path("one.cut"), &first[..5 * MIB / 2]).unwrap();
    fs::write(dir.path("one.delta"), &first).unwrap();
    fs::write(dir.path("two.cut"), &second[..MIB / 2]).unwrap();
    dir.fails("apply one.cut new.img", 6, &[]);
    dir.fails("apply two.cut new.img", 6, &[]);
    dir.ok("apply one.delta new.img");
    assert!(dir.read("new.img") == one);
}

#[test]
fn a_file_that_another_run_made_longer_for_nothing_is_shortened_by_the_undo() {
    let (dir, base, _) = large_chain();
    let longer = noise(32 * MIB, "s1");
    let delta = large_delta(Some(&base), 1, &longer, 0..22);
    fs::write(dir.path("longer.cut"), &delta[..20 * MIB]).unwrap();
    dir.fails("apply longer.cut copy.img --undo back", 6, &[]);
    let full = large_delta(None, 2, &noise(40 * MIB, "s2"), 0..2);
    fs::write(dir.path("full.cut"), &full[..MIB / 2]).unwrap();
    dir.fails("apply full.cut copy.img", 6, &[]);
    dir.ok("apply back copy.img");
    assert_eq!(dir.read("copy.img").len(), base.len());
    assert!(dir.read("copy.img") == base);
}

#[test]
fn the_undo_of_what_only_made_a_file_longer_stays_when_the_run_fails_again() {
    let (dir, base, _) = large_chain();
    let longer = [base.clone(), noise(24 * MIB, "appended")].concat();
    let delta = large_delta(Some(&base), 1, &longer, 24..48);
    fs::write(dir.path("cut.delta"), &delta[..20 * MIB]).unwrap();
    fs::write(dir.path("cut.sooner"), &delta[..MIB / 2]).unwrap();
    let cut = |name: &str| dir.fails(&format!("apply {name} copy.img --undo back"), 6, &[]);
    cut("cut.delta");
    assert_eq!(dir.state("copy.img")["status"], "incomplete");
    // One that is made in another second would be another one.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    cut("cut.sooner");
    dir.ok("apply back copy.img");
    assert!(dir.read("copy.img") == base);
    // So is one that tells of another destination.
    cut("cut.delta");
    dir.fails("apply cut.sooner copy.img --force", 6, &[]);
    dir.ok("apply back copy.img");
    assert!(dir.read("copy.img") == base);
}

#[test]
fn an_undo_without_its_end_is_none_for_what_is_on_record_as_whole() {
    let (dir, base, target) = large_chain();
    dir.ok("apply s1.delta copy.img --undo back");
    let undo = dir.read("back");
    fs::write(dir.path("torn"), &undo[..10 * MIB]).unwrap();
    dir.fails("apply --unfinished torn copy.img", 5, &["on record"]);
    assert!(dir.read("copy.img") == target);
    assert_eq!(dir.state("copy.img")["holds"]["id"], "lvm:s1");
    dir.ok("apply --unfinished torn copy.img --force");
    assert!(dir.read("copy.img") != base);
    assert!(dir.state("copy.img")["holds"].is_null());
}

#[test]
fn an_undo_that_failed_on_its_way_is_found_again_beside_an_older_one_of_that_name() {
    let (dir, base, _) = large_chain();
    fs::write(dir.path("back"), noise(5000, "the undo of an older run")).unwrap();
    dir.fails("apply cut.delta copy.img --undo back --overwrite", 6, &[]);
    let whole = dir.read("back.partial");
    let mut damaged = whole.clone();
    damaged[8 * MIB] ^= 1;
    fs::write(dir.path("back.partial"), damaged).unwrap();
    dir.fails("apply back copy.img", 6, &[]);
    assert_eq!(dir.state("copy.img")["status"], "incomplete");
    fs::write(dir.path("back.partial"), whole).unwrap();
    dir.ok("apply back copy.img");
    assert!(dir.read("copy.img") == base);
}

#[test]
fn what_is_said_of_a_destination_is_said_with_atomic_as_well() {
    let dir = Dir::with(64);
    let said = dir.ok("send --from cow:store.img new.img copy.img --atomic");
    assert!(said.contains("rests on the sampled blocks alone"), "{said}");
    let mut other = dir.read("base.img");
    other.iter_mut().for_each(|byte| *byte ^= 0x11);
    fs::write(dir.path("other.img"), other).unwrap();
    dir.ok("state adopt other.img lvm:x");
    let said = dir.ok("send --from cow:store.img new.img other.img --atomic --force");
    assert!(said.contains("other.img"), "{said}");
}

#[test]
fn a_file_that_got_the_name_of_a_first_copy_meanwhile_stays() {
    let (dir, base, _) = large_chain();
    let mut child = dir
        .command("send copy.img new.img --bwlimit 12M")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while !dir.path("new.img.partial").exists() && child.try_wait().unwrap().is_none() {}
    fs::write(dir.path("new.img"), "somebody else's").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("new.img.partial"), "{said}");
    assert!(dir.read("new.img") == b"somebody else's");
    assert!(dir.read("new.img.partial") == base);
}

#[test]
fn what_is_half_written_under_another_name_takes_no_increment() {
    use lvmsync::record::{Incomplete, Record, store::StateDir};
    let (dir, contents) = Dir::chain(2);
    dir.ok("state adopt copy.img lvm:s0");
    let file = dir.state("copy.img")["identity"]
        .as_str()
        .unwrap()
        .to_owned();
    // As a loop device on it leaves it.
    let identity = format!("{file}:offset=0");
    let record = Record {
        identity: identity.clone(),
        name: "/dev/loop7".to_owned(),
        incomplete: Some(Incomplete::default()),
        ..Record::default()
    };
    let state = StateDir::choose(Some(&dir.path("state")));
    state.file_of(&identity).save(&record).unwrap();
    let words = ["shares its data with /dev/loop7", "incomplete"];
    dir.fails("apply s1.delta copy.img", 5, &words);
    dir.fails("apply s1.delta copy.img --check", 5, &words);
    assert!(dir.read("copy.img") == contents[0]);
    dir.ok("apply s1.delta copy.img --force");
    assert!(dir.read("copy.img") == contents[1]);
    fs::write(dir.path("full.img"), &contents[2]).unwrap();
    dir.ok("send full.img copy.img");
    assert!(dir.read("copy.img") == contents[2]);
}
