//! Tests of what is allowed, as text.

use super::*;
use crate::error::ExitCode;
use crate::session::message::{ApplyOptions, CreateVolume};
use proptest::prelude::*;

fn policy(globs: &[&str]) -> Policy {
    let globs: Vec<String> = globs.iter().map(|glob| (*glob).to_owned()).collect();
    Policy::new(&globs, false, None, Permits::default()).unwrap()
}

fn open(options: ApplyOptions) -> Open {
    Open {
        operation: OPERATION_APPLY.into(),
        destination: "vg/lv".into(),
        options,
        ..Open::default()
    }
}

const LVM: &str = "LVM-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

#[test]
fn globs_match_canonical_names_and_no_wildcard_matches_a_slash() {
    for (glob, name, matches) in [
        ("/dev/vg/backup-*", "/dev/vg/backup-a", true),
        ("/dev/vg/backup-*", "/dev/vg/backup-", true),
        ("/dev/vg/backup-*", "/dev/vg/data", false),
        ("/dev/vg/backup-*", "/dev/vg/backup-a/x", false),
        ("/dev/vg/backup-*", "/dev/vg2/backup-a", false),
        ("vg/backup-?", "/dev/vg/backup-a", true),
        ("vg/backup-?", "/dev/vg/backup-", false),
        ("vg/*", "/dev/vg/lv", true),
        ("vg*/lv", "/dev/vg1/lv", true),
        ("/srv/*/x", "/srv/a/x", true),
        ("/srv/*/x", "/srv/a/b/x", false),
        ("/srv?x", "/srv/x", false),
        ("/srv[!a]x", "/srv/x", false),
        ("/srv/[ab]", "/srv/b", true),
        ("/srv/*", "/srv/.profile", false),
        ("/srv/.*", "/srv/.profile", true),
        ("/srv/A", "/srv/a", false),
        ("/dev/mapper/vg-lv", "/dev/vg/lv", true),
        ("/dev/mapper/my--vg-a", "/dev/my-vg/a", true),
        ("/dev/mapper/crypt*", "/dev/mapper/crypt1", true),
        ("/dev/mapper/vg-*", "/dev/vg/lv", false),
    ] {
        assert_eq!(policy(&[glob]).allows(name), matches, "{glob} {name}");
    }
    assert!(policy(&["/a", "/b"]).allows("/b"));
    assert!(policy(&[]).allows("/anything") && !policy(&[]).is_restricted());
}

#[test]
fn globs_that_can_never_match_are_told_at_once() {
    for glob in [
        "",
        "lv",
        "a/b/c",
        "./x",
        "../x",
        "/srv/../x",
        "/srv//x",
        "/srv/",
        "/",
        "/srv/**",
        "/srv/[",
        "/a***b",
    ] {
        let error = Policy::new(&[glob.to_owned()], false, None, Permits::default()).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Usage, "{glob}");
    }
}

#[test]
fn names_are_volumes_or_absolute_paths() {
    for (name, expected) in [
        ("vg/lv", Some("/dev/vg/lv")),
        ("/srv/x", Some("/srv/x")),
        ("/srv/../etc/x", Some("/srv/../etc/x")),
        ("./vg/lv", None),
        ("../x", None),
        ("./x", None),
        ("x", None),
        ("", None),
        ("vg/a/b", None),
        ("vg/..", None),
        ("~/x", None),
        ("/srv/a\nb", None),
        ("/srv/a\0b", None),
    ] {
        assert_eq!(absolute(name).as_deref(), expected, "{name:?}");
    }
    assert_eq!(absolute(&format!("/{}", "a".repeat(5000))), None);
}

#[test]
fn a_device_has_one_name_whatever_it_was_called() {
    let hidden = format!("{LVM}-cow");
    for (path, mapped, expected) in [
        ("/dev/dm-3", Some(("my--vg-lv", LVM)), Some("/dev/my-vg/lv")),
        (
            "/dev/dm-4",
            Some(("crypt", "CRYPT-LUKS2-x")),
            Some("/dev/mapper/crypt"),
        ),
        ("/dev/dm-4", Some(("a-b", "")), Some("/dev/mapper/a-b")),
        ("/dev/dm-5", Some(("vg-lv-cow", hidden.as_str())), None),
        ("/dev/dm-5", Some(("vg-lv-real", LVM)), None),
        ("/dev/dm-6", Some(("vg-lv", "LVM-odd")), None),
        ("/dev/sda1", None, Some("/dev/sda1")),
        ("/srv/x", None, Some("/srv/x")),
    ] {
        assert_eq!(canonical(path, mapped).as_deref(), expected, "{mapped:?}");
    }
    let parent = Some(Path::new("/real"));
    for (path, expected) in [
        ("/dev/vg/lv", Some("/dev/vg/lv")),
        ("/dev/mapper/vg-lv", Some("/dev/vg/lv")),
        ("/link/x", Some("/real/x")),
        ("/link/..", None),
        ("/", None),
    ] {
        assert_eq!(
            canonical_of_absent(path, parent).as_deref(),
            expected,
            "{path}"
        );
    }
    assert_eq!(canonical_of_absent("/a/b", None), None);
}

#[test]
fn a_server_that_only_reads_takes_dry_runs_and_what_is_known_to_read() {
    let policy = Policy::new(&[], true, None, Permits::default()).unwrap();
    let error = policy.check(&open(ApplyOptions::default())).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Refused);
    let dry_run = ApplyOptions {
        dry_run: true,
        ..ApplyOptions::default()
    };
    policy.check(&open(dry_run.clone())).unwrap();
    for (operation, allowed) in [("compare", true), ("format", false), ("", false)] {
        let asked = Open {
            operation: operation.into(),
            ..open(dry_run.clone())
        };
        assert_eq!(policy.check(&asked).is_ok(), allowed, "{operation}");
    }
}

#[test]
fn wishes_beside_the_destination_are_bounded() {
    let with = |undo: Option<&str>, overwrite, allow_in_use| ApplyOptions {
        undo: undo.map(str::to_owned),
        overwrite,
        allow_in_use,
        ..ApplyOptions::default()
    };
    let bare = policy(&["/a"]);
    let both = Policy::new(
        &["/a".to_owned()],
        false,
        Some("/undo".into()),
        Permits {
            in_use: true,
            overwrite: true,
            create: true,
            read: true,
            snapshot: true,
        },
    );
    let both = both.unwrap();
    let making = ApplyOptions {
        create_volume: Some(CreateVolume::default()),
        ..ApplyOptions::default()
    };
    for (wish, bare_allows, both_allow) in [
        (with(None, false, false), true, true),
        (making, false, true),
        // There is no undo that it could concern: the original's command line always asks for it.
        (with(None, true, false), true, true),
        (with(None, false, true), false, true),
        (with(Some("u"), false, false), false, true),
        (with(Some("u"), true, false), false, true),
        (with(Some("/etc/x"), false, false), false, false),
        (with(Some("../x"), false, false), false, false),
        (with(Some(".."), false, false), false, false),
        (with(Some(".x"), false, false), false, false),
        (with(Some(""), false, false), false, false),
        (with(Some("x.partial"), false, false), false, false),
        (with(Some("a\0"), false, false), false, false),
    ] {
        let wanted = open(wish);
        for (policy, allowed) in [(&bare, bare_allows), (&both, both_allow)] {
            match policy.check(&wanted) {
                Ok(_) => assert!(allowed, "{wanted:?}"),
                Err(error) => {
                    assert!(!allowed, "{wanted:?}: {error}");
                    assert_eq!(error.exit_code(), ExitCode::Refused);
                }
            }
        }
    }
    let path = both.check(&open(with(Some("u"), false, false))).unwrap();
    assert_eq!(path, Some("/undo/u".into()));
    let free = policy(&[])
        .check(&open(with(Some("/etc/x"), true, true)))
        .unwrap();
    assert_eq!(
        free,
        Some("/etc/x".into()),
        "a server without limits has none"
    );
}

#[test]
fn a_refusal_tells_only_the_name() {
    let text = not_allowed("/etc/shadow").chain();
    assert_eq!(text, "/etc/shadow: this destination is not allowed here");
}

#[test]
fn a_class_across_parts_is_no_glob() {
    for glob in ["/a/[!/]", "/a/[b/c]x", "/[/]", "vg/[!/]"] {
        let made = Policy::new(&[glob.to_owned()], false, None, Permits::default());
        assert!(made.is_err(), "{glob}");
    }
}

proptest! {
    #[test]
    fn what_is_allowed_has_as_many_parts_as_its_glob(
        glob in "/[ab*?]{1,4}(/[ab*?\\[\\]!]{1,4}){0,2}", name in "(/[ab.]{0,3}){1,4}",
    ) {
        let Ok(policy) = Policy::new(std::slice::from_ref(&glob), false, None, Permits::default()) else {
            return Ok(());
        };
        if policy.allows(&name) {
            prop_assert_eq!(glob.matches('/').count(), name.matches('/').count());
            prop_assert!(!name.split('/').any(|part| part == ".."), "{} {}", glob, name);
        }
    }

    #[test]
    fn an_undo_never_leaves_its_directory(name in "[./a\\\\-]{0,6}") {
        let policy = Policy::new(&["/a".to_owned()], false, Some("/undo".into()), Permits::default()).unwrap();
        let wish = ApplyOptions { undo: Some(name), ..ApplyOptions::default() };
        if let Ok(Some(path)) = policy.check(&open(wish)) {
            prop_assert_eq!(path.parent(), Some(Path::new("/undo")));
            prop_assert!(path.file_name().is_some());
        }
    }

    #[test]
    fn any_text_can_be_asked_for(text in "\\PC{0,30}") {
        let _ = (absolute(&text), spellings(&text), canonical_of_absent(&text, None));
        let _ = canonical("/x", Some((&text, &text)));
    }
}

#[test]
fn content_is_given_away_only_where_that_is_permitted() {
    let pull = Open {
        operation: OPERATION_PULL.into(),
        ..open(ApplyOptions::default())
    };
    let with = |read, globs: &[String], read_only| {
        let permits = Permits {
            read,
            ..Permits::default()
        };
        Policy::new(globs, read_only, None, permits)
            .unwrap()
            .check(&pull)
    };
    let globs = ["vg/*".to_owned()];
    let error = with(false, &globs, false).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Refused);
    for read_only in [true, false] {
        assert!(with(true, &globs, read_only).is_ok());
    }
    assert!(with(false, &[], false).is_ok(), "no limits");
    assert!(with(false, &[], true).is_err(), "digests only");
    assert!(with(true, &[], true).is_ok());
}

#[test]
fn a_snapshot_is_made_for_a_client_only_where_there_are_no_limits_or_it_is_permitted() {
    let with = |globs: &[&str], read_only, snapshot| {
        let globs: Vec<String> = globs.iter().map(|glob| (*glob).to_owned()).collect();
        let permits = Permits {
            read: true,
            snapshot,
            ..Permits::default()
        };
        Policy::new(&globs, read_only, None, permits).unwrap()
    };
    for (globs, read_only, snapshot, allowed) in [
        (&[][..], false, false, true),
        (&[][..], true, false, false),
        (&[][..], true, true, true),
        (&["vg/*"][..], false, false, false),
        (&["vg/*"][..], false, true, true),
        (&["vg/*"][..], true, true, true),
    ] {
        let result = with(globs, read_only, snapshot).check_snapshot("vg/data");
        assert_eq!(result.is_ok(), allowed, "{globs:?} {read_only} {snapshot}");
        if let Err(error) = result {
            assert_eq!(error.exit_code(), ExitCode::Refused);
            for way_out in ["--permit snapshot", "--no-snapshot"] {
                assert!(error.chain().contains(way_out), "{}", error.chain());
            }
        }
    }
}
