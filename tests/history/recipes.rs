//! Every recipe in `docs/history.md` works as it stands there.

use std::process::{Command, Stdio};

use crate::line::{Dir, text};

const DOCUMENT: &str = include_str!("../../docs/history.md");

/// The blocks of commands, but for those that need LVM.
fn recipes() -> Vec<Vec<&'static str>> {
    let blocks = DOCUMENT.split("```").skip(1).step_by(2);
    let blocks = blocks.filter(|block| !block.starts_with("text\n"));
    let lines = |block: &'static str| {
        block
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect()
    };
    blocks.map(lines).collect()
}

/// Runs a recipe where there is what it needs, and gives the directory.
fn run(recipe: &[&str]) -> Dir {
    let dir = Dir::new();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_lvmsync"));
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    for line in recipe {
        assert!(line.starts_with("lvmsync "), "{line}");
        let output = Command::new("sh")
            .args(["-c", line])
            .current_dir(dir.path(""))
            .env("PATH", &path)
            .env("LVMSYNC_STATE_DIR", dir.path("state"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    }
    dir
}

#[test]
fn every_recipe_does_what_it_says() {
    let recipes = recipes();
    assert_eq!(recipes.len(), 5);
    let fold = run(&recipes[0]);
    assert!(
        fold.read("vg/copy") == fold.states[3],
        "as mon, tue and wed would do"
    );
    let full = run(&recipes[1]);
    assert!(full.read("new.img") == full.states[2], "a newer full copy");
    let look = run(&recipes[2]);
    assert!(look.path("week.html").exists());
    let back = run(&recipes[3]);
    assert!(
        back.read("vg/copy") == back.states[0],
        "vg/copy is what it was"
    );
    let days = run(&recipes[4]);
    assert!(
        days.read("vg/copy") == days.states[0],
        "tue and mon are taken back"
    );
}
