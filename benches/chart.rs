//! Plots as SVG: lines or grouped bars, several on one page.
//!
//! Written here because that is all we draw: the plotting crates bring fonts, bitmaps and a dozen
//! dependencies for the same few lines.

use std::fmt::Write;

#[derive(Debug, Clone)]
pub struct Chart {
    pub title: String,
    pub x_label: String,
    pub y_label: String,
    pub kind: Kind,
    /// A logarithmic y axis; all values must be above 0.
    pub logarithmic: bool,
    pub series: Vec<Series>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Points joined in the order of x.
    Lines,
    /// One group per category; a series' points have the category's index as x.
    Bars(Vec<String>),
}

#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 55.0;
const COLOURS: [&str; 8] = [
    "#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#7d4f9e", "#00798c", "#8d6b48", "#555555",
];

impl Chart {
    /// All charts below each other, as one SVG document.
    pub fn page(charts: &[Chart]) -> String {
        let height = HEIGHT * charts.len().max(1) as f64;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        for (i, chart) in charts.iter().enumerate() {
            let _ = writeln!(svg, "<g transform=\"translate(0 {})\">", i as f64 * HEIGHT);
            chart.draw(&mut svg);
            svg += "</g>\n";
        }
        svg + "</svg>\n"
    }

    fn draw(&self, svg: &mut String) {
        let (x_min, x_max) = self.x_range();
        let (y_min, y_max) = self.y_range();
        let width = WIDTH - LEFT - RIGHT;
        let height = HEIGHT - TOP - BOTTOM;
        let x_of = |x: f64| LEFT + (x - x_min) / (x_max - x_min) * width;
        let scale = |y: f64| if self.logarithmic { y.log10() } else { y };
        let y_of = |y: f64| {
            let share = (scale(y) - scale(y_min)) / (scale(y_max) - scale(y_min));
            TOP + (1.0 - share) * height
        };
        let text = |svg: &mut String, x: f64, y: f64, anchor: &str, words: &str| {
            let words = words.replace('&', "&amp;").replace('<', "&lt;");
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
            );
        };
        let _ = write!(svg, "<g font-weight=\"bold\">");
        text(svg, LEFT, 22.0, "start", &self.title);
        let _ = writeln!(svg, "</g>");
        for y in self.y_ticks(y_min, y_max) {
            let at = y_of(y);
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {at:.1}h{width}\" stroke=\"#dddddd\"/>"
            );
            text(svg, LEFT - 6.0, at + 4.0, "end", &short(y));
        }
        let bottom = HEIGHT - BOTTOM;
        text(svg, LEFT, TOP - 6.0, "start", &self.y_label);
        text(
            svg,
            LEFT + width / 2.0,
            bottom + 38.0,
            "middle",
            &self.x_label,
        );
        for (i, series) in self.series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            match &self.kind {
                Kind::Lines => {
                    let mut path = String::new();
                    for (n, &(x, y)) in series.points.iter().enumerate() {
                        let (x, y) = (x_of(x), y_of(y));
                        let _ = write!(path, "{}{x:.1} {y:.1}", if n == 0 { 'M' } else { 'L' });
                        let _ = writeln!(
                            svg,
                            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
                        );
                    }
                    let _ = writeln!(
                        svg,
                        "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
                    );
                }
                Kind::Bars(_) => {
                    let bar = 0.8 / self.series.len() as f64;
                    for &(x, y) in &series.points {
                        let left = x_of(x - 0.4 + bar * i as f64);
                        let wide = x_of(x + bar) - x_of(x);
                        let (top, tall) = (y_of(y), bottom - y_of(y));
                        let _ = writeln!(
                            svg,
                            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"{tall:.1}\" \
                             fill=\"{colour}\"/>"
                        );
                    }
                }
            }
            let (x, y) = (WIDTH - RIGHT + 14.0, TOP + 10.0 + 18.0 * i as f64);
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>",
                y - 9.0
            );
            text(svg, x + 16.0, y, "start", &series.name);
        }
        match &self.kind {
            Kind::Lines => {
                let mut xs: Vec<f64> = self.points().map(|(x, _)| x).collect();
                xs.sort_by(f64::total_cmp);
                xs.dedup();
                let every = xs.len().div_ceil(10).max(1);
                for x in xs.into_iter().step_by(every) {
                    text(svg, x_of(x), bottom + 18.0, "middle", &short(x));
                }
            }
            Kind::Bars(categories) => {
                for (i, name) in categories.iter().enumerate() {
                    text(svg, x_of(i as f64), bottom + 18.0, "middle", name);
                }
            }
        }
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {TOP}V{bottom}h{width}\" fill=\"none\" stroke=\"black\"/>"
        );
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.series.iter().flat_map(|it| it.points.iter().copied())
    }

    fn x_range(&self) -> (f64, f64) {
        if let Kind::Bars(categories) = &self.kind {
            return (-0.5, categories.len().max(1) as f64 - 0.5);
        }
        let min = self.points().map(|(x, _)| x).fold(f64::MAX, f64::min);
        let max = self.points().map(|(x, _)| x).fold(f64::MIN, f64::max);
        if min < max { (min, max) } else { (0.0, 1.0) }
    }

    fn y_range(&self) -> (f64, f64) {
        let max = self.points().map(|(_, y)| y).fold(f64::MIN, f64::max);
        let min = self.points().map(|(_, y)| y).fold(f64::MAX, f64::min);
        if self.logarithmic && min > 0.0 && min <= max {
            let floor = 10f64.powf(min.log10().floor());
            (floor, 10f64.powf(max.log10().ceil()).max(floor * 10.0))
        } else if max > 0.0 {
            (0.0, max * 1.05)
        } else {
            (0.0, 1.0)
        }
    }

    fn y_ticks(&self, min: f64, max: f64) -> Vec<f64> {
        if self.logarithmic {
            let (first, last) = (min.log10().round() as i32, max.log10().round() as i32);
            return (first..=last).map(|power| 10f64.powi(power)).collect();
        }
        // 1, 2 or 5 times a power of ten, so that there are 4 to 10 of them.
        let unit = 10f64.powf(max.log10().floor());
        let step = [0.1, 0.2, 0.5, 1.0]
            .map(|it| it * unit)
            .into_iter()
            .find(|step| max / step <= 10.0)
            .unwrap_or(unit);
        let ticks = (max / step).floor() as u32;
        (0..=ticks).map(|i| f64::from(i) * step).collect()
    }
}

/// 1500000 as `1.5M`.
fn short(number: f64) -> String {
    let (value, unit) = match number.abs() {
        it if it >= 1e9 => (number / 1e9, "G"),
        it if it >= 1e6 => (number / 1e6, "M"),
        it if it >= 1e4 => (number / 1e3, "k"),
        _ => (number, ""),
    };
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_every_point_bar_and_name() {
        let series = |name: &str| Series {
            name: name.to_string(),
            points: vec![(0.0, 1.0), (1.0, 2_500_000.0)],
        };
        let chart = |kind, logarithmic| Chart {
            title: "a < b".to_string(),
            x_label: "x".to_string(),
            y_label: "y".to_string(),
            kind,
            logarithmic,
            series: vec![series("one"), series("two")],
        };
        let bars = Kind::Bars(vec!["W1".to_string(), "W2".to_string()]);
        let page = Chart::page(&[chart(Kind::Lines, true), chart(bars, false)]);
        assert_eq!(page.matches("<circle").count(), 4);
        // A background, four bars, and a box for each of two names in two charts.
        assert_eq!(page.matches("<rect").count(), 1 + 4 + 4);
        assert!(page.contains("a &lt; b") && page.contains(">W2<") && page.contains(">2M<"));
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
