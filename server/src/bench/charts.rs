//! Charts as SVG within a page. Colours are the page's own, so that they follow light and dark.

use std::fmt::Write;

/// Points of one name.
pub struct Series {
    /// What the legend says.
    pub name: String,
    /// Where they are.
    pub points: Vec<(f64, f64)>,
}

/// How points are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Joined.
    Line,
    /// Each for itself.
    Dot,
}

/// What stands around the points.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Above.
    pub title: &'a str,
    /// Below.
    pub x: &'a str,
    /// Beside.
    pub y: &'a str,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
const N_TICKS: usize = 5;

/// Colours there are; more series begin anew.
pub const N_COLOURS: usize = 6;

/// A chart with both axes from zero.
pub fn chart(frame: Frame, mark: Mark, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|one| &one.points);
    let x_max = nice(points().map(|point| point.0).fold(0.0, f64::max));
    let y_max = nice(points().map(|point| point.1).fold(0.0, f64::max));
    let at_x = |x: f64| LEFT + x / x_max * (WIDTH - LEFT - RIGHT);
    let at_y = |y: f64| HEIGHT - BOTTOM - y / y_max * (HEIGHT - TOP - BOTTOM);
    let mut text = open(frame.title, HEIGHT);
    for idx in 0..=N_TICKS {
        let share = idx as f64 / N_TICKS as f64;
        let (x, y) = (at_x(share * x_max), at_y(share * y_max));
        put(
            &mut text,
            format_args!(
                "<line class=\"g\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                short(share * y_max),
                HEIGHT - BOTTOM + 16.0,
                short(share * x_max),
            ),
        );
    }
    put(
        &mut text,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(12 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 6.0,
            escaped(frame.x),
            (TOP + HEIGHT - BOTTOM) / 2.0,
            escaped(frame.y),
        ),
    );
    for (idx, one) in series.iter().enumerate() {
        let colour = idx % N_COLOURS;
        let places = one.points.iter().map(|&(x, y)| (at_x(x), at_y(y)));
        match mark {
            Mark::Line => {
                let path: Vec<String> = places.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                let path = path.join(" ");
                put(&mut text, format_args!("<polyline class=\"l c{colour}\" points=\"{path}\"/>"));
            }
            Mark::Dot => {
                for (x, y) in places {
                    let circle = format_args!(
                        "<circle class=\"d c{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\"/>"
                    );
                    put(&mut text, circle);
                }
            }
        }
    }
    text + "</svg>" + &legend(series.iter().map(|one| &*one.name))
}

/// Bars, each made of parts.
pub fn bars(title: &str, parts: &[&str], bars: &[(String, Vec<f64>)]) -> String {
    const ROW: f64 = 30.0;
    const WORDS: f64 = 240.0;
    let greatest = bars.iter().map(|(_, values)| values.iter().sum()).fold(0.0, f64::max);
    let scale = (WIDTH - WORDS - 90.0) / if greatest > 0.0 { greatest } else { 1.0 };
    let mut text = open(title, ROW * bars.len() as f64 + 8.0);
    for (idx, (name, values)) in bars.iter().enumerate() {
        let y = ROW * idx as f64 + 6.0;
        put(
            &mut text,
            format_args!(
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WORDS - 8.0,
                y + 14.0,
                escaped(name)
            ),
        );
        let mut x = WORDS;
        for (part_idx, value) in values.iter().enumerate() {
            let width = value * scale;
            put(
                &mut text,
                format_args!(
                    "<rect class=\"b c{}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
                     height=\"20\"><title>{}: {value:.2} ms</title></rect>",
                    part_idx % N_COLOURS,
                    escaped(parts[part_idx]),
                ),
            );
            x += width;
        }
        let sum: f64 = values.iter().sum();
        let total =
            format_args!("<text x=\"{:.1}\" y=\"{:.1}\">{sum:.1} ms</text>", x + 6.0, y + 14.0);
        put(&mut text, total);
    }
    text + "</svg>" + &legend(parts.iter().copied())
}

fn open(title: &str, height: f64) -> String {
    let title = escaped(title);
    format!(
        "<h3>{title}</h3><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"{title}\">"
    )
}

fn legend<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::from("<p class=\"legend\">");
    for (idx, name) in names.enumerate() {
        let colour = idx % N_COLOURS;
        put(&mut text, format_args!("<span><i class=\"k{colour}\"></i>{}</span> ", escaped(name)));
    }
    text + "</p>"
}

fn put(text: &mut String, words: std::fmt::Arguments) {
    text.write_fmt(words).expect("a string takes everything");
}

/// The least of 1, 2, 2.5, 5 times a power of ten that is not below it.
fn nice(value: f64) -> f64 {
    if !value.is_finite() || value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0];
    steps.into_iter().map(|step| step * power).find(|&top| top >= value).unwrap_or(10.0 * power)
}

fn short(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

/// Text that is no markup.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        let cases = [(0.0, 1.0), (0.7, 1.0), (1.0, 1.0), (1.1, 2.0), (2.2, 2.5), (30.0, 50.0)];
        for (value, top) in cases.into_iter().chain([(51.0, 100.0), (f64::NAN, 1.0)]) {
            assert_eq!(nice(value), top, "{value}");
        }
    }

    #[test]
    fn points_lie_where_they_should() {
        let series = [Series { name: "a<b".into(), points: vec![(0.0, 0.0), (10.0, 5.0)] }];
        let frame = Frame { title: "T", x: "s", y: "ms" };
        let text = chart(frame, Mark::Line, &series);
        let corners = "points=\"70.0,240.0 708.0,12.0\"";
        assert!(text.contains(corners), "from the lower left to the upper right: {text}");
        assert!(text.contains("a&lt;b") && !text.contains("a<b"));
    }

    #[test]
    fn parts_of_a_bar_are_in_proportion() {
        let text = bars("T", &["p", "q"], &[("one".into(), vec![1.0, 3.0])]);
        assert!(text.contains("width=\"97.5\"") && text.contains("width=\"292.5\""), "{text}");
        assert!(text.contains("4.0 ms"));
    }
}
