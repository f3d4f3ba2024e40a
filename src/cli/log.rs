//! The log: what is said of a step in one line, with the ids by which the lines of a run find each other.
//!
//! Guarantees: a line is written in one piece and without colours; in the journal of systemd it carries its priority, and what
//! has several lines carries it on each; ids come behind the first line as `name=value`, quoted where a value has blanks.

use std::fmt::{self, Write as _};
use std::io::{IsTerminal, Write as _};

use rustix::fs::fstat;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Words of a run: whoever says them has decided that they are to be seen.
pub(super) const WORDS: &str = "words";
/// Steps of a job: seen with `-v`, and wherever nobody sits before a terminal.
pub(super) const STEPS: &str = "steps";

/// Begins; a second beginning, in tests, changes nothing.
pub(super) fn start(verbose: u8, quiet: bool) {
    let level = match verbose {
        0 => Level::WARN,
        1 => Level::INFO,
        _ => Level::DEBUG,
    };
    let is_log = verbose > 0 || !std::io::stderr().is_terminal();
    let steps = match is_log && !quiet {
        true => Level::INFO,
        false => Level::WARN,
    };
    let filter = Targets::new()
        .with_default(level)
        .with_target(WORDS, Level::TRACE)
        .with_target(STEPS, steps);
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Lines {
            style: Style::of_stderr(),
            with_ids: is_log,
        })
        .fmt_fields(Ids)
        .with_ansi(false)
        .with_writer(std::io::stderr);
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init();
}

/// Why a run failed. It is said even where no log was begun.
pub(super) fn failure(text: &str) {
    let line = Style::of_stderr().line(Level::ERROR, text, "");
    // If stderr is gone, nobody can be told.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// For whom lines are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Style {
    /// People, and files.
    Plain,
    /// The journal, which reads priorities: sd-daemon(3).
    Journal,
}

impl Style {
    /// systemd says which file its journal listens to: `JOURNAL_STREAM` in systemd.exec(5).
    fn of_stderr() -> Self {
        let Some(said) = std::env::var_os("JOURNAL_STREAM") else {
            return Self::Plain;
        };
        match fstat(std::io::stderr()) {
            Ok(stat) if said.to_str() == Some(&format!("{}:{}", stat.st_dev, stat.st_ino)) => {
                Self::Journal
            }
            _ => Self::Plain,
        }
    }

    /// `text` with its `ids` behind its first line, ready to be written.
    fn line(self, level: Level, text: &str, ids: &str) -> String {
        let (priority, word) = match level {
            Level::ERROR => ("<3>", ""),
            Level::WARN => ("<4>", "warning: "),
            Level::INFO => ("<6>", ""),
            _ => ("<7>", ""),
        };
        let priority = match self {
            Self::Plain => "",
            Self::Journal => priority,
        };
        let mut line = format!("{priority}lvmsync: {word}");
        for (number, part) in text.lines().enumerate() {
            match number {
                0 => line.extend([part, ids]),
                _ => line.extend(["\n", priority, part]),
            }
        }
        line.push('\n');
        line
    }
}

/// Writes events.
struct Lines {
    style: Style,
    with_ids: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut found = Found::default();
        event.record(&mut found);
        let mut ids = String::new();
        if self.with_ids {
            for span in context.event_scope().into_iter().flatten() {
                if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                    ids.push_str(fields);
                }
            }
            ids.push_str(&found.ids);
        }
        let level = *event.metadata().level();
        writer.write_str(&self.style.line(level, &found.text, &ids))
    }
}

/// Writes the fields of spans.
struct Ids;

impl<'writer> FormatFields<'writer> for Ids {
    fn format_fields<R: tracing_subscriber::field::RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        let mut found = Found::default();
        fields.record(&mut found);
        writer.write_str(&found.ids)
    }
}

/// What was found in an event or a span.
#[derive(Default)]
struct Found {
    text: String,
    /// ` name=value` for each.
    ids: String,
}

impl Visit for Found {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut shown = String::new();
        // Writing to a string does not fail.
        let _ = write!(shown, "{value:?}");
        self.record_str(field, &shown);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.text);
            return;
        }
        let is_word = !value.is_empty()
            && value
                .chars()
                .all(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '='));
        let _ = match is_word {
            true => write!(self.ids, " {}={value}", field.name()),
            false => write!(self.ids, " {}={value:?}", field.name()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_carries_its_ids_behind_its_first_and_a_priority_on_each_in_the_journal() {
        let text = "data: refused\nThe way out: this";
        let line = |style: Style, level| style.line(level, text, " run=1");
        assert_eq!(
            line(Style::Plain, Level::WARN),
            "lvmsync: warning: data: refused run=1\nThe way out: this\n"
        );
        assert_eq!(
            line(Style::Journal, Level::ERROR),
            "<3>lvmsync: data: refused run=1\n<3>The way out: this\n"
        );
        assert_eq!(Style::Journal.line(Level::INFO, "x", ""), "<6>lvmsync: x\n");
    }

    /// What `say` writes with this style.
    fn written(style: Style, say: impl FnOnce()) -> String {
        use std::sync::{Arc, Mutex};
        #[derive(Clone, Default)]
        struct Kept(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = tracing_subscriber::fmt::layer()
            .event_format(Lines {
                style,
                with_ids: true,
            })
            .fmt_fields(Ids)
            .with_writer(move || writer.clone());
        let log = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(log, say);
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_event_has_the_ids_of_its_run_and_its_own() {
        let lines = written(Style::Plain, || {
            let run = tracing::error_span!(target: WORDS, "run", job = "data", run = "7f");
            tracing::info!(target: STEPS, parent: &run, bytes = 12, to = "a b", "data: {} is there", "x");
            let _entered = run.enter();
            tracing::warn!("full");
        });
        assert_eq!(
            lines,
            "lvmsync: data: x is there job=data run=7f bytes=12 to=\"a b\"\n\
             lvmsync: warning: full job=data run=7f\n"
        );
    }
}
