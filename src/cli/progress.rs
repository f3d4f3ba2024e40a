//! Progress and warnings on stderr: a bar for people, lines of JSON for scripts, or nothing.
//!
//! Guarantees: nothing is drawn into a pipe unless it was asked for; a warning never tears the bar, and carries the ids of the
//! run that it belongs to.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tracing::Span;

use super::log::WORDS;
use super::output::message;
use crate::monitor::Monitor;

/// `--progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ProgressMode {
    /// A bar on a terminal, nothing elsewhere
    #[default]
    Auto,
    /// A bar, wherever stderr goes
    Bar,
    /// A JSON object a line, twice a second
    Json,
    /// Nothing
    None,
}

const JSON_EVERY: Duration = Duration::from_millis(500);

/// Talks to whoever started us.
pub(super) struct Terminal {
    bar: Option<ProgressBar>,
    json: Option<Arc<JsonLines>>,
    quiet: bool,
    verbose: bool,
    /// What words belong to.
    span: Span,
}

struct JsonLines {
    start: Instant,
    total: AtomicU64,
    done: AtomicU64,
    last: Mutex<Instant>,
}

#[derive(Serialize)]
struct JsonLine {
    event: &'static str,
    bytes_done: u64,
    bytes_total: u64,
    bytes_per_second: u64,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_left: Option<u64>,
}

impl Terminal {
    pub(super) fn new(mode: ProgressMode, quiet: bool, verbose: bool) -> Self {
        let bar = match mode {
            ProgressMode::Bar => true,
            ProgressMode::Auto => !quiet && std::io::stderr().is_terminal(),
            ProgressMode::Json | ProgressMode::None => false,
        };
        let json = (mode == ProgressMode::Json).then(|| {
            Arc::new(JsonLines {
                start: Instant::now(),
                total: AtomicU64::new(0),
                done: AtomicU64::new(0),
                last: Mutex::new(Instant::now()),
            })
        });
        let bar = bar.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
            let template = "{bar:30} {percent:>3}%  {binary_bytes} of {binary_total_bytes}  \
                            {binary_bytes_per_sec}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Self {
            bar,
            json,
            quiet,
            verbose,
            span: Span::none(),
        }
    }

    /// The same, for what belongs to `span`.
    pub(super) fn within(&self, span: &Span) -> Self {
        Self {
            bar: self.bar.clone(),
            json: self.json.clone(),
            span: span.clone(),
            ..*self
        }
    }

    /// Shows nothing.
    pub(super) fn silent() -> Self {
        Self::new(ProgressMode::None, true, false)
    }

    /// The summary at the end, unless quiet.
    pub(super) fn summary(&self, text: &str) {
        self.finish();
        if !self.quiet {
            message(text);
        }
    }

    /// Takes the bar away, and gives scripts the last figures.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if let Some(json) = &self.json {
            json.print();
        }
    }

    /// For threads that outlive a borrow: says a line without tearing the bar.
    pub(super) fn speaker(&self) -> Speaker {
        Speaker(self.bar.clone())
    }

    /// Takes the bar aside while `log` writes.
    pub(super) fn beside_bar(&self, log: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(log),
            None => log(),
        }
    }
}

/// Says lines on stderr, beside the bar.
#[derive(Clone)]
pub(super) struct Speaker(Option<ProgressBar>);

impl Speaker {
    /// One line, or several.
    pub(super) fn say(&self, text: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| message(text)),
            None => message(text),
        }
    }
}

impl Monitor for Terminal {
    fn plan(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            // Until something is planned there is nothing to draw.
            if bar.length() == Some(0) && bytes > 0 {
                bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
            }
            bar.inc_length(bytes);
        }
        if let Some(json) = &self.json {
            json.total.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
        if let Some(json) = &self.json {
            json.done.fetch_add(bytes, Ordering::Relaxed);
            json.print_when_due();
        }
    }

    fn warn(&self, text: &str) {
        self.beside_bar(|| tracing::warn!(target: WORDS, parent: &self.span, "{text}"));
    }

    fn remark(&self, text: &str) {
        if !self.quiet {
            self.beside_bar(|| tracing::info!(target: WORDS, parent: &self.span, "{text}"));
        }
    }

    fn note(&self, text: &str) {
        if self.verbose {
            self.beside_bar(|| tracing::info!(target: WORDS, parent: &self.span, "{text}"));
        }
    }
}

impl JsonLines {
    fn print_when_due(&self) {
        if let Ok(mut last) = self.last.try_lock()
            && last.elapsed() >= JSON_EVERY
        {
            *last = Instant::now();
            self.print();
        }
    }

    fn print(&self) {
        let bytes_done = self.done.load(Ordering::Relaxed);
        let bytes_total = self.total.load(Ordering::Relaxed);
        let elapsed = self.start.elapsed();
        let rate = super::summary::per_second(bytes_done, elapsed);
        let line = JsonLine {
            event: "progress",
            bytes_done,
            bytes_total,
            bytes_per_second: rate,
            seconds: elapsed.as_secs_f64(),
            seconds_left: bytes_total.saturating_sub(bytes_done).checked_div(rate),
        };
        if let Ok(text) = serde_json::to_string(&line) {
            message(&text);
        }
    }
}
