//! The recipes in `docs/view.md` work as they stand there.

use std::process::Command;

use lvmsync::change_list::ChangeListBuilder;
use lvmsync::delta::codec::Compression;
use lvmsync::delta::samples::Samples;
use lvmsync::extent::{Extent, Kind};
use lvmsync::volume::memory::MemoryVolume;

use crate::bench::{Dir, Serving, text};
use crate::model::{header, write_delta};

const DOCUMENT: &str = include_str!("../../docs/view.md");

/// The blocks of commands, without the usage and without what is marked as text.
fn recipes() -> Vec<Vec<&'static str>> {
    let blocks = DOCUMENT.split("```").skip(1).step_by(2);
    let blocks = blocks.filter(|block| !block.starts_with("text")).skip(1);
    blocks
        .map(|block| {
            block
                .lines()
                .filter(|line| !line.trim().is_empty())
                .collect()
        })
        .collect()
}

/// Runs the lines; what ends in `&` goes on.
fn run(dir: &Dir, recipe: &[&str]) -> Vec<Serving> {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_lvmsync"));
    let path = std::env::var("PATH").unwrap();
    let path = format!(
        "{}:{path}:/usr/sbin:/sbin",
        program.parent().unwrap().display()
    );
    let mut serving = Vec::new();
    for line in recipe {
        if let Some(line) = line.strip_suffix('&') {
            serving.push(dir.serve(line));
            continue;
        }
        let output = Command::new("sh")
            .args(["-c", line])
            .current_dir(dir.path(""))
            .env("PATH", &path)
            .env("LVMSYNC_STATE_DIR", dir.path("state"))
            .output()
            .unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(
            output.status.success() && !said.contains("failed"),
            "{line}: {said}"
        );
    }
    serving
}

/// Four days of a filesystem with one file that changes, and the undos of the last two.
fn week() -> (Dir, Vec<Vec<u8>>) {
    let dir = Dir::new();
    let mut days = Vec::new();
    let tool = |line: &str| {
        let output = Command::new("sh")
            .args(["-c", line])
            .env(
                "PATH",
                format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()),
            )
            .current_dir(dir.path(""))
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    };
    tool("mkdir -p tree/etc vg && truncate -s 6M day.img && mke2fs -q -F -t ext4 -d tree day.img");
    for day in ["tue", "wed", "thu"] {
        std::fs::write(dir.path("hosts.new"), day.repeat(2000)).unwrap();
        if day != "tue" {
            tool("debugfs -w -R 'rm /etc/hosts' day.img");
        }
        tool("debugfs -w -R 'write hosts.new /etc/hosts' day.img");
        days.push(dir.read("day.img"));
    }
    dir.write("vg/copy", &days[0]);
    for (number, name) in ["wed", "thu"].into_iter().enumerate() {
        let (old, new) = (&days[number], &days[number + 1]);
        let mut changes = ChangeListBuilder::default();
        for (chunk, (before, after)) in old.chunks(4096).zip(new.chunks(4096)).enumerate() {
            if before != after {
                let extent = Extent::new(chunk as u64 * 4096, 4096).unwrap();
                changes.push(extent, Kind::Data);
            }
        }
        let changes = changes.finish();
        let samples = Samples::take(&MemoryVolume::new(old.clone()), &changes).unwrap();
        let header = header(number, old, new, Compression::Lz4);
        let delta = write_delta(&header, &samples, &changes, new, 1 << 20, Compression::Lz4);
        dir.write("day.delta", &delta);
        dir.ok(&format!(
            "lvmsync apply day.delta vg/copy --undo {name}.undo -q"
        ));
    }
    assert!(dir.read("vg/copy") == days[2]);
    (dir, days)
}

#[test]
fn every_recipe_does_what_it_says() {
    let recipes = recipes();
    assert_eq!(recipes.len(), 3);
    let (dir, days) = week();
    run(&dir, &recipes[0]);
    assert_eq!(text(&dir.read("hosts")), "tue".repeat(2000));
    let serving = run(&dir, &recipes[1]);
    assert!(dir.read("copy.img") == days[0]);
    serving.into_iter().for_each(|serving| drop(serving.end()));
    let serving = run(&dir, &recipes[2]);
    serving.into_iter().for_each(|serving| drop(serving.end()));
    assert!(!dir.path("try.tmp").exists());
    assert!(
        dir.read("vg/copy") == days[2],
        "nothing was written to the base"
    );
}
