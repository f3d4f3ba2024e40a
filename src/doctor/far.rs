//! Findings on another machine: can it be reached, is there an lvmsync, and does it know what this one knows?
//!
//! Guarantees: pure; what it said on its stderr is shown in full.

use super::facts::{Far, FarEnd, FarFailure};
use super::{Check, word};
use crate::session::handshake::FEATURES;

const SESSION: &str = "far.session";

/// What the facts mean.
pub(super) fn findings(far: &Far) -> Vec<Check> {
    let mut checks = match &far.outcome {
        Ok(end) => answered(far, end),
        Err(failure) => vec![failed(far, failure)],
    };
    // Of a failure they are a part already.
    if far.outcome.is_ok() && !far.words.is_empty() {
        checks.push(Check::note(
            "far.words",
            format!(
                "it wrote to stderr while the session began:\n{}",
                far.words.join("\n")
            ),
        ));
    }
    checks
}

fn failed(far: &Far, failure: &FarFailure) -> Check {
    let check = Check::problem(SESSION, format!("{}: {}", far.host, failure.reason));
    let by_hand = format!("{} {}", far.shell, word(&far.host));
    check.way_out(if failure.noise {
        format!(
            "{by_hand} true   # must print nothing: mend what does in that login's start-up files"
        )
    } else {
        format!("{by_hand}   # see for yourself what happens")
    })
}

fn answered(far: &Far, end: &FarEnd) -> Vec<Check> {
    let host = &far.host;
    let hello = &end.hello;
    let ours = env!("CARGO_PKG_VERSION");
    let took = format!("{:.2} s", end.took.as_secs_f64());
    let mut checks = vec![Check::ok(
        SESSION,
        format!(
            "{host}: answers; login, start and greeting took {took}; protocol {}",
            end.protocol
        ),
    )];
    let version = hello.speaker();
    checks.push(if hello.program == "lvmsync" && hello.version == ours {
        Check::ok(
            "far.version",
            format!("{host}: {version}, the same as here"),
        )
    } else {
        Check::note(
            "far.version",
            format!("{host}: {version}; here it is lvmsync {ours}. They understand each other"),
        )
    });
    let missing: Vec<&str> = FEATURES
        .iter()
        .copied()
        .filter(|feature| !hello.has(feature))
        .collect();
    checks.push(if missing.is_empty() {
        Check::ok(
            "far.features",
            format!("{host}: knows {}", hello.features.join(", ")),
        )
    } else {
        Check::warning(
            "far.features",
            format!(
                "{host}: does not know {}, so what needs that is refused; it knows {}",
                missing.join(", "),
                hello.features.join(", ")
            ),
        )
        .way_out(format!("Install lvmsync {ours} there."))
    });
    checks
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use crate::session::message::Hello;
    use std::time::Duration;

    fn far(outcome: Result<FarEnd, FarFailure>) -> Far {
        Far {
            host: "backup".into(),
            shell: "ssh -p 2222".into(),
            outcome,
            words: vec![],
        }
    }

    fn end(hello: Hello) -> Far {
        far(Ok(FarEnd {
            hello,
            protocol: 1,
            took: Duration::from_millis(312),
        }))
    }

    #[test]
    fn the_same_release_is_in_order() {
        let mut far = end(Hello::ours(&[]));
        let checks = findings(&far);
        assert!(
            checks.iter().all(|check| check.status == Status::Ok),
            "{checks:?}"
        );
        assert!(checks[0].found.contains("0.31 s"), "{checks:?}");
        far.words = vec!["Welcome".into()];
        let checks = findings(&far);
        let last = checks.last().unwrap();
        assert!(last.status == Status::Note && last.found.ends_with("Welcome"));
    }

    #[test]
    fn another_release_and_what_it_does_not_know_are_named() {
        let old = Hello {
            version: "3.9.0".into(),
            features: vec!["apply".into()],
            ..Hello::ours(&[])
        };
        let checks = findings(&end(old));
        assert_eq!(checks[1].status, Status::Note);
        assert!(checks[1].found.contains("3.9.0"), "{checks:?}");
        assert_eq!(checks[2].status, Status::Warning);
        assert!(checks[2].found.contains("undo"), "{checks:?}");
    }

    #[test]
    fn a_failure_is_told_in_the_far_ends_words() {
        let failure = |noise| {
            let reason =
                "lvmsync was not found there.\nIt said:\nsh: lvmsync: not found".to_owned();
            findings(&far(Err(FarFailure { reason, noise }))).remove(0)
        };
        let check = failure(false);
        assert_eq!(check.status, Status::Problem);
        assert!(check.found.ends_with("sh: lvmsync: not found"), "{check:?}");
        assert!(check.way_out.unwrap().starts_with("ssh -p 2222 backup "));
        let way_out = failure(true).way_out.unwrap();
        assert!(way_out.contains("ssh -p 2222 backup true"), "{way_out}");
    }
}
