//! The results as a picture: a bar for each ratio, with the line that it should reach, and time over size. Pure.
//!
//! Written by hand, because a plotting library would be more to keep than these few shapes.

use super::{Bar, Figure};
use std::fmt::Write;

const WIDTH: f64 = 1200.0;
/// Where words end and bars begin.
const LEFT: f64 = 640.0;
const RIGHT: f64 = 1120.0;
const ROW: f64 = 20.0;
const TOP: f64 = 50.0;
const PLOT: f64 = 300.0;

const MET: &str = "#2e7d32";
const MISSED: &str = "#c62828";
const FREE: &str = "#78909c";

/// Something that grows: size in GiB, time in seconds.
pub(crate) struct Series {
    pub(crate) title: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// What the hardware takes for the same.
    pub(crate) limit: Vec<(f64, f64)>,
}

/// The whole picture.
pub(crate) fn draw(figures: &[Figure], series: &[Series]) -> String {
    let mut body = String::new();
    let mut y = bars(&mut body, figures);
    for series in series.iter().filter(|series| series.points.len() > 1) {
        y = plot(&mut body, series, y);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{y}\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// Ratios span three orders of magnitude, so their scale is logarithmic. Returns where the next thing may begin.
fn bars(body: &mut String, figures: &[Figure]) -> f64 {
    let shown: Vec<(&Figure, f64)> = figures
        .iter()
        .filter_map(|figure| Some((figure, figure.value.filter(|value| *value > 0.0)?)))
        .collect();
    let limits = shown.iter().filter_map(|(figure, _)| figure.bar.limit());
    let all = shown.iter().map(|(_, value)| *value).chain(limits);
    let (low, high) = all.fold((0.1_f64, 10.0_f64), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let (low, high) = (low.log10().floor(), high.log10().ceil());
    let x = |value: f64| LEFT + (value.log10() - low) / (high - low) * (RIGHT - LEFT);
    text(
        body,
        (10.0, 24.0),
        "start",
        "Ratios (logarithmic), and where each should be",
    );
    let mut y = TOP;
    for (figure, value) in &shown {
        let colour = match figure.met() {
            Some(true) => MET,
            Some(false) => MISSED,
            None => FREE,
        };
        let label = format!("{}: {}", figure.bench, figure.what);
        text(body, (LEFT - 8.0, y + 14.0), "end", &label);
        let (from, to) = (x(value.min(1.0)), x(value.max(1.0)));
        shape(
            body,
            format_args!(
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\" fill=\"{colour}\"/>",
                y + 3.0,
                (to - from).max(1.0)
            ),
        );
        if let Some(limit) = figure.bar.limit() {
            let (at, words) = (x(limit), figure.bar.words());
            shape(
                body,
                format_args!(
                    "<line class=\"bar\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{y:.1}\" y2=\"{:.1}\" stroke=\"black\" \
                     stroke-width=\"2\"><title>{words}</title></line>",
                    y + ROW
                ),
            );
        }
        text(
            body,
            (RIGHT + 8.0, y + 14.0),
            "start",
            &format!("{value:.2}"),
        );
        y += ROW;
    }
    let mut decade = low;
    while decade <= high {
        let at = x(10_f64.powf(decade));
        line(body, (at, TOP), (at, y), "#cfd8dc");
        text(
            body,
            (at, y + 16.0),
            "middle",
            &format!("{}", 10_f64.powf(decade)),
        );
        decade += 1.0;
    }
    y + 40.0
}

/// Time over size, with a dashed line from nothing to the largest: so it would look if it were linear.
fn plot(body: &mut String, series: &Series, top: f64) -> f64 {
    let all = || series.points.iter().chain(&series.limit);
    let most = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(0.0, f64::max);
    let (size, time) = (most(|p| p.0), most(|p| p.1));
    let (left, right, bottom) = (80.0, 720.0, top + 30.0 + PLOT);
    let x = |gib: f64| left + gib / size * (right - left);
    let y = |seconds: f64| bottom - seconds / time * PLOT;
    text(body, (10.0, top + 14.0), "start", &series.title);
    line(body, (left, bottom), (right, bottom), "black");
    line(body, (left, bottom), (left, bottom - PLOT), "black");
    text(body, (left - 6.0, bottom), "end", "0");
    text(
        body,
        (left - 6.0, bottom - PLOT + 8.0),
        "end",
        &format!("{time:.2} s"),
    );
    for (gib, _) in &series.points {
        line(body, (x(*gib), bottom), (x(*gib), bottom + 4.0), "black");
    }
    text(
        body,
        (right, bottom + 18.0),
        "middle",
        &format!("{size} GiB"),
    );
    if let Some((gib, seconds)) = series.points.last() {
        shape(
            body,
            format_args!(
                "<line x1=\"{left:.1}\" y1=\"{bottom:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{FREE}\" \
                 stroke-dasharray=\"6 4\"/>",
                x(*gib),
                y(*seconds)
            ),
        );
    }
    for (curve, colour) in [(&series.limit, FREE), (&series.points, MET)] {
        let mut path = String::new();
        for (gib, seconds) in curve {
            let (x, y) = (x(*gib), y(*seconds));
            let _ = write!(path, "{x:.1},{y:.1} ");
            shape(
                body,
                format_args!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"><title>{gib} GiB: {seconds:.3} s\
                     </title></circle>"
                ),
            );
        }
        shape(
            body,
            format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.trim_end()
            ),
        );
    }
    bottom + 40.0
}

fn line(body: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    shape(
        body,
        format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
            from.0, from.1, to.0, to.1
        ),
    );
}

fn text(body: &mut String, at: (f64, f64), anchor: &str, words: &str) {
    shape(
        body,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            at.0,
            at.1,
            escaped(words)
        ),
    );
}

/// Writing to a string cannot fail.
fn shape(body: &mut String, shape: std::fmt::Arguments<'_>) {
    let _ = writeln!(body, "{shape}");
}

fn escaped(words: &str) -> String {
    words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

impl Bar {
    fn limit(&self) -> Option<f64> {
        match *self {
            Bar::AtMost(limit) | Bar::AtLeast(limit) => Some(limit),
            Bar::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MET, MISSED, Series, draw};
    use crate::bench::{Bar, Figure};

    fn figure(value: Option<f64>, bar: Bar) -> Figure {
        Figure {
            bench: "b",
            what: "a < b & c".to_owned(),
            value,
            bar,
            ..Figure::default()
        }
    }

    #[test]
    fn each_ratio_has_a_bar_and_each_limit_a_line() {
        let figures = [
            figure(Some(0.9), Bar::AtLeast(0.85)),
            figure(Some(1000.0), Bar::None),
            figure(Some(2.0), Bar::AtMost(1.0)),
            figure(None, Bar::None),
        ];
        let svg = draw(&figures, &[]);
        assert_eq!(svg.matches("height=\"14\"").count(), 3);
        assert_eq!(svg.matches("class=\"bar\"").count(), 2);
        assert_eq!(svg.matches(MET).count(), 1);
        assert_eq!(svg.matches(MISSED).count(), 1);
        assert!(svg.contains("b: a &lt; b &amp; c"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn growth_is_a_line_through_its_points() {
        let series = Series {
            title: "t".to_owned(),
            points: vec![(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)],
            limit: vec![(1.0, 0.5), (4.0, 2.0)],
        };
        let svg = draw(&[], &[series]);
        // Linear: equal steps right and up, and the end in the corner.
        let points = "points=\"240.0,345.0 400.0,270.0 720.0,120.0\"";
        assert!(svg.contains(points), "{svg}");
        assert!(svg.contains("points=\"240.0,382.5 720.0,270.0\""), "{svg}");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn nothing_measured_is_still_a_picture() {
        let svg = draw(&[], &[]);
        assert!(svg.starts_with("<svg") && !svg.contains("NaN"));
    }
}
