//! What was found, as a table for people, as JSON for programs, and as a picture. Pure but for the writing of it.

use super::svg::{self, Series};
use super::{Bar, Figure, failed};
use crate::Done;
use crate::table::table;
use lvmsync::units::Bytes;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// What none of our processes may pass.
const MEMORY_BYTES: u64 = 64 << 20;

/// Prints the table and writes the files. Missed bars are a failure.
pub(super) fn report(figures: &[Figure], series: &[Series], directory: &Path) -> Done {
    print!("\n{}", table(&rows(figures)));
    let (data, picture) = (
        directory.join("results.json"),
        directory.join("results.svg"),
    );
    let text = format!("{:#}\n", as_json(figures, series));
    fs::write(&data, text).map_err(failed(&data))?;
    fs::write(&picture, svg::draw(figures, series)).map_err(failed(&picture))?;
    println!("also in {} and {}", data.display(), picture.display());
    let missed = figures.iter().any(|figure| figure.met() == Some(false));
    Ok(if missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// For each benchmark with lines of ours: the most memory of all of them.
pub(super) fn memory(figures: &[Figure]) -> Vec<Figure> {
    let mut peaks: Vec<(&'static str, u64)> = Vec::new();
    for figure in figures.iter().filter(|figure| figure.ours) {
        let peak = figure.usage.map_or(0, |usage| usage.peak);
        match peaks.iter_mut().find(|(bench, _)| *bench == figure.bench) {
            Some((_, most)) => *most = peak.max(*most),
            None => peaks.push((figure.bench, peak)),
        }
    }
    let figure = |(bench, peak)| Figure {
        bench,
        what: "peak memory of lvmsync, either end / 64 MiB".to_owned(),
        measured: Bytes(peak).to_string(),
        #[expect(
            clippy::cast_precision_loss,
            reason = "a ratio of two figures far below 2^52"
        )]
        value: Some(peak as f64 / MEMORY_BYTES as f64),
        bar: Bar::AtMost(1.0),
        ..Figure::default()
    };
    peaks.into_iter().map(figure).collect()
}

fn rows(figures: &[Figure]) -> Vec<Vec<String>> {
    let heading = [
        "bench", "what", "measured", "CPU", "memory", "wire", "ratio", "bar", "met",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for figure in figures {
        let usage = figure.usage;
        let cell = |text: Option<String>| text.unwrap_or_default();
        rows.push(vec![
            figure.bench.to_owned(),
            figure.what.clone(),
            figure.measured.clone(),
            cell(usage.map(|usage| format!("{:.2} s", usage.cpu.as_secs_f64()))),
            cell(usage.map(|usage| Bytes(usage.peak).to_string())),
            cell(usage.and_then(|usage| Some(Bytes(usage.wire?).to_string()))),
            cell(figure.value.map(|value| format!("{value:.2}"))),
            figure.bar.words(),
            cell(
                figure
                    .met()
                    .map(|met| if met { "yes" } else { "NO" }.to_owned()),
            ),
        ]);
    }
    rows
}

fn as_json(figures: &[Figure], series: &[Series]) -> Value {
    let line = |figure: &Figure| {
        let mut line = json!({
            "bench": figure.bench, "what": figure.what, "measured": figure.measured,
            "value": figure.value, "bar": figure.bar.words(), "met": figure.met(),
        });
        if let Some(usage) = figure.usage {
            line["ours"] = json!(figure.ours);
            line["seconds"] = json!(usage.time.as_secs_f64());
            line["cpu_seconds"] = json!(usage.cpu.as_secs_f64());
            line["peak_bytes"] = json!(usage.peak);
            line["wire_bytes"] = json!(usage.wire);
        }
        line
    };
    let growth = |series: &Series| {
        let points = |curve: &[(f64, f64)]| {
            let point = |(gib, seconds): &(f64, f64)| json!({"gib": gib, "seconds": seconds});
            curve.iter().map(point).collect::<Value>()
        };
        json!({
            "title": series.title, "points": points(&series.points), "limit": points(&series.limit),
        })
    };
    json!({
        "lines": figures.iter().map(line).collect::<Value>(),
        "growth": series.iter().map(growth).collect::<Value>(),
    })
}

#[cfg(test)]
mod tests {
    use super::{as_json, memory, rows};
    use crate::bench::measure::Sample;
    use crate::bench::svg::Series;
    use crate::bench::{Bar, Figure};
    use std::time::Duration;

    fn line(ours: bool, peak: u64) -> Figure {
        Figure {
            bench: "sync-ssh",
            what: "x".to_owned(),
            measured: "1.500 s".to_owned(),
            usage: Some(Sample {
                time: Duration::from_millis(1500),
                cpu: Duration::from_millis(2250),
                peak,
                wire: Some(2048),
            }),
            ours,
            value: Some(0.789),
            bar: Bar::AtLeast(0.85),
        }
    }

    #[test]
    fn memory_is_the_most_of_ours_and_of_nobody_else() {
        let lines = [
            line(true, 16 << 20),
            line(true, 32 << 20),
            line(false, 1 << 40),
        ];
        let found = memory(&lines);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].value, Some(0.5));
        assert_eq!(found[0].met(), Some(true));
        assert_eq!(memory(&[line(true, 65 << 20)])[0].met(), Some(false));
        assert!(memory(&[line(false, 1)]).is_empty());
    }

    #[test]
    fn a_line_says_all_that_was_measured() {
        let rows = rows(&[line(true, 16 << 20)]);
        assert_eq!(
            rows[1],
            [
                "sync-ssh",
                "x",
                "1.500 s",
                "2.25 s",
                "16.0 MiB",
                "2.0 KiB",
                "0.79",
                "at least 0.85",
                "NO"
            ]
        );
    }

    #[test]
    fn json_has_numbers() {
        let series = Series {
            title: "t".to_owned(),
            points: vec![(1.0, 0.5)],
            limit: vec![],
        };
        let json = as_json(&[line(true, 7), Figure::default()], &[series]);
        let first = &json["lines"][0];
        assert_eq!(first["seconds"], 1.5);
        assert_eq!(first["cpu_seconds"], 2.25);
        assert_eq!(first["peak_bytes"], 7);
        assert_eq!(first["wire_bytes"], 2048);
        assert_eq!(first["met"], false);
        assert!(json["lines"][1].get("seconds").is_none());
        assert_eq!(json["growth"][0]["points"][0]["gib"], 1.0);
    }
}
