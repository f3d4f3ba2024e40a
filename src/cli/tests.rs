//! Which command line is whose, and that every verb's help fits a terminal.

use super::*;
use clap::CommandFactory;

fn words(line: &str) -> Vec<OsString> {
    std::iter::once("lvmsync")
        .chain(line.split_whitespace())
        .map(OsString::from)
        .collect()
}

#[test]
fn the_command_definitions_are_sound() {
    Cli::command().debug_assert();
    classic::ClassicArgs::command().debug_assert();
}

#[test]
fn a_verb_makes_it_ours_and_anything_else_is_the_originals() {
    for line in [
        "send vg/s1 host:vg/x",
        "send --from vg/s1 vg/s2 -o x.delta -z zstd:9",
        "-v send vg/s1 vg/x",
        "--progress none send vg/s1 vg/x",
        "--progress=json -v send vg/s1 vg/x",
        "-q diff --from vg/s1 vg/s2",
        "apply a b c vg/x --undo u",
        "compare vg/s1 host:vg/x --only x.delta",
        "inspect x --json",
        "serve",
        "--state-dir /tmp/x serve",
        "--state-dir=/tmp/x -v sync a b",
        "--state-dir serve serve",
        "-vvv sync a b",
        "-vvvv -v --progress none diff --from vg/s1 vg/s2",
        "--state-dir /tmp/x state show",
        "--state-dir=/tmp/x -q state show vg/x",
        "-v track status",
        "-vvv track enable vg/x -n",
    ] {
        assert!(
            matches!(parse(words(line)), Ok(Parsed::Modern(_))),
            "{line}"
        );
    }
    for line in [
        "/dev/vg/snap host:/dev/vg/lv",
        "-v /dev/vg/snap --snapback /tmp/x host:/dev/vg/lv",
        "/dev/vg/snap host:/dev/vg/lv --snapback /tmp/x",
        "/dev/vg/snap --stdout",
        "--apply - /dev/vg/lv",
        "--app - /dev/vg/lv -b x",
        "-a changes -b back /dev/vg/lv",
        "--server /dev/vg/lv",
        "-r /dev/vg/s2 /dev/vg/s1 host:x -e ssh",
        "--no-verbose -d vg/snap vg/lv",
    ] {
        assert!(
            matches!(parse(words(line)), Ok(Parsed::Classic(_))),
            "{line}"
        );
    }
}

#[test]
fn a_verb_among_the_originals_words_may_be_meant() {
    for (line, verb) in [
        ("-n sync a b", Some("sync")),
        ("--json compare a b", Some("compare")),
        ("-d state show", Some("state")),
        ("vg/s1 sync b", Some("sync")),
        ("-v vg/s1 host:vg/x more", None),
        ("sync a b --bogus", None),
        ("-v sync --bogus", None),
        ("", None),
    ] {
        let hint = verb.map(|verb| {
            format!("If you mean the verb `{verb}`, its options go behind it: lvmsync {verb} ...")
        });
        assert_eq!(hint_at_verb(&words(line)), hint, "{line}");
    }
}

#[test]
fn the_originals_options_mean_what_they_meant() {
    let Ok(Parsed::Classic(args)) = parse(words("-d vg/s1 -r vg/s2 h:x -b back -e ssh_p")) else {
        panic!("not classic");
    };
    let shown = format!("{args:?}");
    for part in [
        "debug: true",
        "data_source: Some(\"vg/s2\")",
        "back",
        "ssh_p",
        "\"h:x\"",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn help_fits_a_terminal_and_shows_examples() {
    let mut command = Cli::command().term_width(80);
    command.build();
    for verb in command
        .get_subcommands_mut()
        .filter(|verb| !verb.is_hide_set())
    {
        let name = verb.get_name().to_owned();
        let help = verb.render_long_help().to_string();
        let too_wide = help.lines().find(|line| line.chars().count() > 112);
        assert_eq!(too_wide, None, "{name}");
        assert!(
            name == "serve" || name == "help" || help.contains("xample"),
            "{name}"
        );
    }
}
