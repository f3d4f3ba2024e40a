//! How many tests passed, from what the test runners print. Pure.

/// Tests that ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Adds up the summary lines of `cargo test`, or of nextest, which also shows what a failing test binary printed: the
/// summary in there counts the same tests.
pub(crate) fn counts(output: &str) -> Counts {
    let plain = without_colours(output);
    let of_nextest: Vec<&str> = plain.lines().filter_map(nextest_summary).collect();
    if of_nextest.is_empty() {
        let of_cargo = plain
            .lines()
            .filter_map(|line| line.strip_prefix("test result: "));
        return sum(of_cargo);
    }
    sum(of_nextest.into_iter())
}

fn nextest_summary(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("Summary [")?;
    rest.split_once("run: ").map(|(_, parts)| parts)
}

/// Adds up phrases such as "12 passed".
fn sum<'a>(summaries: impl Iterator<Item = &'a str>) -> Counts {
    let mut sum = Counts::default();
    for part in summaries.flat_map(|summary| summary.split([',', ';', '.', '('])) {
        let mut words = part.split_whitespace();
        let Some(number) = words.next().and_then(|word| word.parse::<u64>().ok()) else {
            continue;
        };
        match words.collect::<Vec<_>>().as_slice() {
            ["passed"] => sum.passed += number,
            ["failed"] | ["timed", "out"] | ["exec", "failed"] => sum.failed += number,
            _ => {}
        }
    }
    sum
}

/// Drops the sequences that colour a terminal: ESC, `[`, parameters, a letter.
fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            let _ = chars.by_ref().skip(1).find(char::is_ascii_alphabetic);
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::{Counts, counts};

    #[test]
    fn of_cargo_test() {
        let output = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s\n\
                      test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n";
        assert_eq!(
            counts(output),
            Counts {
                passed: 5,
                failed: 1
            }
        );
    }

    #[test]
    fn of_nextest() {
        let plain = "     Summary [   0.512s] 12 tests run: 9 passed (1 slow), 2 failed, 1 timed out, 3 skipped\n";
        assert_eq!(
            counts(plain),
            Counts {
                passed: 9,
                failed: 3
            }
        );
        let nested = format!(
            "    test result: FAILED. 0 passed; 1 failed; 0 ignored\ntest result: FAILED. 0 passed; 1 failed\n{plain}"
        );
        assert_eq!(counts(&nested), counts(plain));
        let coloured = "\u{1b}[32;1m     Summary\u{1b}[0m [   0.5s] \u{1b}[1m1\u{1b}[0m test run: \u{1b}[1m1\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, 0 skipped\n";
        assert_eq!(
            counts(coloured),
            Counts {
                passed: 1,
                failed: 0
            }
        );
    }
}
