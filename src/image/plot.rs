//! Small plots as SVG text: lines with bands, points, boxes with their values, bars; the same data give the same bytes.

use std::fmt::Write;

/// Colours told apart by most eyes (Okabe and Ito).
const COLOURS: [[u8; 3]; 8] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [230, 159, 0],
    [86, 180, 233],
    [90, 90, 90],
    [160, 140, 0],
];
/// Space left of, above, right of and below the field, pixels.
const MARGIN: [f64; 4] = [64.0, 34.0, 16.0, 48.0];
/// Width of a character of the 12 pixel font, about.
const CHARACTER: f64 = 6.6;
/// Height of a line of the legend.
const LINE: f64 = 17.0;

/// One axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// Least and largest value; default: the data's.
    pub range: Option<[f64; 2]>,
    /// Names at 0, 1, 2, ... instead of numbers; only along x.
    pub categories: Vec<String>,
    /// Decades rather than differences; needs values above 0.
    pub log: bool,
    /// Where ticks stand; default: at round numbers.
    pub ticks: Vec<f64>,
    /// Under each tick along x, the tick times the factor, with a unit.
    pub also: Option<(f64, String)>,
}

/// What a series looks like.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// A line through points (x, y); `band` holds the lower and upper end at each point, or nothing.
    Line {
        /// The points, by growing x.
        points: Vec<[f64; 2]>,
        /// Lower and upper end at each point.
        band: Vec<[f64; 2]>,
        /// Whether each point is marked.
        dots: bool,
    },
    /// Points (x, y).
    Points(Vec<[f64; 2]>),
    /// For each category a box from quartile to quartile with the median, whiskers to the last value within 1.5 times
    /// the box, and every value as a dot. Several series stand side by side.
    Boxes(Vec<Vec<f64>>),
    /// For each category a bar from 0. Several series stand side by side.
    Bars(Vec<f64>),
    /// A dashed line across the field at y.
    Level(f64),
}

/// Data under one name and colour.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name in the legend; nameless ones are left out of it.
    pub name: String,
    /// The data.
    pub mark: Mark,
}

impl Series {
    /// A line.
    pub fn line(name: &str, points: Vec<[f64; 2]>) -> Self {
        Series { name: name.into(), mark: Mark::Line { points, band: Vec::new(), dots: false } }
    }
    /// A line with marked points and a band; the band may be empty.
    pub fn banded(name: &str, points: Vec<[f64; 2]>, band: Vec<[f64; 2]>) -> Self {
        Series { name: name.into(), mark: Mark::Line { points, band, dots: true } }
    }
}

/// A plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// Heading.
    pub title: String,
    /// Along the foot.
    pub x: Axis,
    /// Along the left.
    pub y: Axis,
    /// The data, in the order of their colours.
    pub series: Vec<Series>,
    /// Width and height, pixels.
    pub size: [usize; 2],
}

impl Default for Plot {
    fn default() -> Self {
        Plot { title: String::new(), x: Axis::default(), y: Axis::default(), series: Vec::new(), size: [720, 400] }
    }
}

/// An axis with its place on the picture.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    fn new(axis: &Axis, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let fits = |v: &f64| v.is_finite() && (!axis.log || *v > 0.0);
        let (mut low, mut high) =
            values.filter(fits).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if let Some([l, h]) = axis.range.filter(|r| r.iter().all(fits) && r[0] < r[1]) {
            (low, high) = (l, h);
        } else if low > high {
            (low, high) = if axis.log { (1.0, 10.0) } else { (0.0, 1.0) };
        } else if axis.log {
            (low, high) = (low / 1.1, high * 1.1);
        } else {
            let room = if high > low { 0.04 * (high - low) } else { 0.5 * high.abs().max(1.0) };
            // An axis that starts at 0 has no reason to go below.
            low = if low >= 0.0 && low < room * 1.5 { 0.0 } else { low - room };
            high += room;
        }
        Scale { low, high, from, to, log: axis.log }
    }

    fn at(&self, v: f64) -> f64 {
        let share = if self.log {
            (v.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (v - self.low) / (self.high - self.low)
        };
        self.from + share.clamp(-0.5, 1.5) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        let inside = |v: &f64| *v >= self.low - 1e-9 * self.low.abs() && *v <= self.high + 1e-9 * self.high.abs();
        if self.log {
            let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
            let wide = (self.high / self.low).log10() > 2.5;
            let of =
                |e: i32| [1.0, 2.0, 5.0].into_iter().take(if wide { 1 } else { 3 }).map(move |m| m * 10f64.powi(e));
            return decades.flat_map(of).filter(inside).collect();
        }
        let span = self.high - self.low;
        let raw = span / 6.0;
        let base = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * base).find(|s| *s >= raw).unwrap_or(10.0 * base);
        let first = (self.low / step - 1e-9).ceil();
        // Counted by whole numbers: added-up steps would drift. Guarded: a step lost to rounding must not run for ever.
        (0..50).map(|i| (first + f64::from(i)) * step).take_while(inside).collect()
    }
}

impl Plot {
    /// The plot as an SVG document.
    pub fn svg(&self) -> String {
        let [width, height] = self.size.map(|s| s.max(160) as f64);
        let named: Vec<usize> = (0..self.series.len()).filter(|&i| !self.series[i].name.is_empty()).collect();
        let rows = self.legend_rows(&named, width);
        let top = MARGIN[1] + rows.len() as f64 * LINE;
        let foot = MARGIN[3] + if self.x.also.is_some() { 10.0 } else { 0.0 };
        let (left, right, bottom) = (MARGIN[0], width - MARGIN[2], height - foot);
        let x = self.x_scale(left, right);
        let y = Scale::new(&self.y, self.series.iter().flat_map(Series::ys), bottom, top.min(bottom - 40.0));

        let mut s = String::new();
        let title = escape(&self.title);
        let _ = write!(
            s,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" viewBox=\"0 0 {} {}\" role=\"img\" \
             aria-label=\"{title}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" fill=\"#222\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
            n(width),
            n(height),
            n(width),
            n(height)
        );
        let _ = writeln!(s, "<text x=\"{}\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{title}</text>", n(left));
        for (r, row) in rows.iter().enumerate() {
            for &(i, at) in row {
                let cy = MARGIN[1] + r as f64 * LINE;
                let _ = writeln!(
                    s,
                    "<rect x=\"{}\" y=\"{}\" width=\"11\" height=\"11\" fill=\"{}\"/><text x=\"{}\" y=\"{}\">{}</text>",
                    n(at),
                    n(cy - 5.0),
                    colour(i),
                    n(at + 15.0),
                    n(cy + 5.0),
                    escape(&self.series[i].name)
                );
            }
        }
        self.axes(&mut s, &x, &y);
        let beside: Vec<usize> =
            (0..self.series.len()).filter(|&i| matches!(self.series[i].mark, Mark::Boxes(_) | Mark::Bars(_))).collect();
        let mut field = String::new();
        for (i, series) in self.series.iter().enumerate() {
            let lane = beside.iter().position(|&b| b == i).map_or((0, 1), |place| (place, beside.len()));
            draw(&mut field, &series.mark, &colour(i), &x, &y, lane);
        }
        // Several plots may stand in one page, where names are shared: this one's is made from what it shows (FNV-1a).
        let id = s
            .bytes()
            .chain(field.bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let _ = writeln!(
            s,
            "<clipPath id=\"f{id:x}\"><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/></clipPath>\n\
             <g clip-path=\"url(#f{id:x})\">\n{field}</g>\n</svg>",
            n(left - 4.0),
            n(y.to - 6.0),
            n(right - left + 8.0),
            n(bottom - y.to + 12.0)
        );
        s
    }

    fn x_scale(&self, left: f64, right: f64) -> Scale {
        if self.x.categories.is_empty() {
            return Scale::new(&self.x, self.series.iter().flat_map(Series::xs), left, right);
        }
        Scale { low: -0.5, high: self.x.categories.len() as f64 - 0.5, from: left, to: right, log: false }
    }

    /// Which series stand in which row of the legend, and where.
    fn legend_rows(&self, named: &[usize], width: f64) -> Vec<Vec<(usize, f64)>> {
        // One series is explained by the title.
        if named.len() < 2 {
            return Vec::new();
        }
        let mut rows = vec![Vec::new()];
        let mut at = MARGIN[0];
        for &i in named {
            let wide = 15.0 + 18.0 + CHARACTER * self.series[i].name.chars().count() as f64;
            if at + wide > width && at > MARGIN[0] {
                rows.push(Vec::new());
                at = MARGIN[0];
            }
            if let Some(row) = rows.last_mut() {
                row.push((i, at));
            }
            at += wide;
        }
        rows
    }

    fn axes(&self, s: &mut String, x: &Scale, y: &Scale) {
        let ticks = |axis: &Axis, scale: &Scale| {
            let own = axis.ticks.iter().copied().filter(|t| *t >= scale.low && *t <= scale.high);
            if axis.ticks.is_empty() { scale.ticks() } else { own.collect() }
        };
        for v in ticks(&self.y, y) {
            let at = n(y.at(v));
            let _ = writeln!(
                s,
                "<path d=\"M{} {at}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{at}\" dy=\"4\" text-anchor=\"end\">{}</text>",
                n(x.from),
                n(x.to),
                n(x.from - 6.0),
                number(v)
            );
        }
        let foot = y.from;
        if self.x.categories.is_empty() {
            for v in ticks(&self.x, x) {
                let at = n(x.at(v));
                let _ = writeln!(
                    s,
                    "<path d=\"M{at} {}v5\" stroke=\"#222\"/><text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                    n(foot),
                    n(foot + 18.0),
                    number(v)
                );
                if let Some((factor, unit)) = &self.x.also {
                    let _ = writeln!(
                        s,
                        "<text x=\"{at}\" y=\"{}\" text-anchor=\"middle\" fill=\"#777\">{} {}</text>",
                        n(foot + 32.0),
                        number(v * factor),
                        escape(unit)
                    );
                }
            }
        }
        for (i, name) in self.x.categories.iter().enumerate() {
            let at = x.at(i as f64);
            let _ = writeln!(
                s,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                n(at),
                n(foot + 18.0),
                escape(name)
            );
        }
        let (mx, my) = (n((x.from + x.to) / 2.0), n((y.from + y.to) / 2.0));
        let _ = writeln!(
            s,
            "<path d=\"M{} {}V{}H{}\" fill=\"none\" stroke=\"#222\"/>\n\
             <text x=\"{mx}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
             <text x=\"16\" y=\"{my}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {my})\">{}</text>",
            n(x.from),
            n(y.to),
            n(foot),
            n(x.to),
            n(foot + if self.x.also.is_some() { 48.0 } else { 38.0 }),
            escape(&self.x.label),
            escape(&self.y.label)
        );
    }
}

impl Series {
    fn xs(&self) -> impl Iterator<Item = f64> + '_ {
        match &self.mark {
            Mark::Line { points, .. } | Mark::Points(points) => points.as_slice(),
            _ => &[],
        }
        .iter()
        .map(|p| p[0])
    }

    fn ys(&self) -> Vec<f64> {
        match &self.mark {
            Mark::Line { points, band, .. } => {
                points.iter().map(|p| p[1]).chain(band.iter().flat_map(|b| b.iter().copied())).collect()
            }
            Mark::Points(points) => points.iter().map(|p| p[1]).collect(),
            Mark::Boxes(groups) => groups.concat(),
            Mark::Bars(values) => values.iter().copied().chain([0.0]).collect(),
            Mark::Level(v) => vec![*v],
        }
    }
}

/// Draws one series; `lane` is its place among those that stand side by side, and how many those are.
fn draw(s: &mut String, mark: &Mark, colour: &str, x: &Scale, y: &Scale, lane: (usize, usize)) {
    let seen = |p: &[f64; 2]| p.iter().all(|v| v.is_finite());
    let dot = |s: &mut String, at: f64, up: f64, r: &str, opacity: &str| {
        let _ = writeln!(
            s,
            "<circle cx=\"{}\" cy=\"{}\" r=\"{r}\" fill=\"{colour}\" fill-opacity=\"{opacity}\"/>",
            n(at),
            n(up)
        );
    };
    let width = (x.at(1.0) - x.at(0.0)).abs() * 0.8 / lane.1 as f64;
    let middle = |i: usize| x.at(i as f64) + (lane.0 as f64 + 0.5 - lane.1 as f64 / 2.0) * width;
    match mark {
        Mark::Line { points, band, dots } => {
            let both: Vec<([f64; 2], [f64; 2])> =
                points.iter().copied().zip(band.iter().copied()).filter(|(p, b)| seen(p) && seen(b)).collect();
            if both.len() > 1 {
                let up = both.iter().map(|(p, b)| [p[0], b[1]]);
                let down = both.iter().rev().map(|(p, b)| [p[0], b[0]]);
                let _ = writeln!(
                    s,
                    "<path d=\"{}Z\" fill=\"{colour}\" fill-opacity=\"0.18\"/>",
                    path(up.chain(down), x, y)
                );
            } else if let [(p, b)] = both.as_slice() {
                let _ = writeln!(
                    s,
                    "<path d=\"M{} {}V{}\" stroke=\"{colour}\" stroke-opacity=\"0.5\"/>",
                    n(x.at(p[0])),
                    n(y.at(b[0])),
                    n(y.at(b[1]))
                );
            }
            let line = path(points.iter().copied().filter(seen), x, y);
            if !line.is_empty() {
                let _ = writeln!(
                    s,
                    "<path d=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" stroke-linejoin=\"round\"/>"
                );
            }
            for p in points.iter().filter(|p| *dots && seen(p)) {
                dot(s, x.at(p[0]), y.at(p[1]), "3.2", "1");
            }
        }
        Mark::Points(points) => {
            for p in points.iter().filter(|p| seen(p)) {
                dot(s, x.at(p[0]), y.at(p[1]), "2.6", "0.7");
            }
        }
        Mark::Boxes(groups) => {
            for (i, group) in groups.iter().enumerate() {
                let mut v: Vec<f64> = group.iter().copied().filter(|v| v.is_finite()).collect();
                v.sort_by(f64::total_cmp);
                boxed(s, &v, colour, y, middle(i), width);
                for (k, &value) in v.iter().enumerate() {
                    // Spread by the golden section: even, and the same every time.
                    let aside = ((k as f64 * 0.618_034).fract() - 0.5) * width * 0.5;
                    dot(s, middle(i) + aside, y.at(value), "1.8", "0.6");
                }
            }
        }
        Mark::Bars(values) => {
            for (i, &v) in values.iter().enumerate().filter(|(_, v)| v.is_finite()) {
                let (a, b) = (y.at(0.0), y.at(v));
                let _ = writeln!(
                    s,
                    "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{colour}\"/>",
                    n(middle(i) - width * 0.45),
                    n(a.min(b)),
                    n(width * 0.9),
                    n((a - b).abs())
                );
            }
        }
        Mark::Level(v) if v.is_finite() => {
            let _ = writeln!(
                s,
                "<path d=\"M{} {}H{}\" stroke=\"{colour}\" stroke-dasharray=\"5 4\"/>",
                n(x.from),
                n(y.at(*v)),
                n(x.to)
            );
        }
        Mark::Level(_) => {}
    }
}

/// Box and whiskers of sorted values round `middle`.
fn boxed(s: &mut String, sorted: &[f64], colour: &str, y: &Scale, middle: f64, width: f64) {
    let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else { return };
    let quantile = |f: f64| {
        let at = f * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        low + (high - low) * at.fract()
    };
    let [q1, q2, q3] = [0.25, 0.5, 0.75].map(quantile);
    let reach = 1.5 * (q3 - q1);
    let low = sorted.iter().copied().find(|v| *v >= q1 - reach).unwrap_or(least).min(q1);
    let high = sorted.iter().rev().copied().find(|v| *v <= q3 + reach).unwrap_or(most).max(q3);
    let half = width * 0.38;
    let _ = writeln!(
        s,
        "<path d=\"M{m} {}V{}M{m} {}V{}\" stroke=\"{colour}\"/><rect x=\"{l}\" y=\"{}\" width=\"{}\" height=\"{}\" \
         fill=\"{colour}\" fill-opacity=\"0.15\" stroke=\"{colour}\"/><path d=\"M{l} {}h{}\" stroke=\"{colour}\" \
         stroke-width=\"2\"/>",
        n(y.at(low)),
        n(y.at(q1)),
        n(y.at(q3)),
        n(y.at(high)),
        n(y.at(q3)),
        n(2.0 * half),
        n(y.at(q1) - y.at(q3)),
        n(y.at(q2)),
        n(2.0 * half),
        m = n(middle),
        l = n(middle - half),
    );
}

fn path(points: impl Iterator<Item = [f64; 2]>, x: &Scale, y: &Scale) -> String {
    let mut out = String::new();
    for p in points {
        let letter = if out.is_empty() { 'M' } else { 'L' };
        let _ = write!(out, "{letter}{} {}", n(x.at(p[0])), n(y.at(p[1])));
    }
    out
}

fn colour(i: usize) -> String {
    let [r, g, b] = COLOURS[i % COLOURS.len()];
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// A coordinate: a tenth of a pixel is enough.
fn n(v: f64) -> String {
    trim(format!("{v:.1}"))
}

/// A tick: as many digits as it needs, six at most.
fn number(v: f64) -> String {
    if v != 0.0 && !(1e-3..1e6).contains(&v.abs()) { format!("{v:e}") } else { trim(format!("{v:.6}")) }
}

fn trim(text: String) -> String {
    let short = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if short == "-0" { "0".into() } else { short.into() }
}

/// Text that is safe inside XML and HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of an attribute in order.
    fn attribute(svg: &str, tag: &str, name: &str) -> Vec<f64> {
        svg.split(&format!("<{tag} "))
            .skip(1)
            .filter_map(|t| t.split(&format!("{name}=\"")).nth(1)?.split('"').next()?.parse().ok())
            .collect()
    }

    #[test]
    fn a_value_stands_where_its_ticks_say() {
        let plot = Plot {
            x: Axis { range: Some([0.0, 10.0]), ..Axis::default() },
            y: Axis { range: Some([0.0, 1.0]), ..Axis::default() },
            series: vec![Series { name: String::new(), mark: Mark::Points(vec![[0.0, 0.0], [5.0, 0.5], [10.0, 1.0]]) }],
            ..Plot::default()
        };
        let svg = plot.svg();
        assert_eq!(attribute(&svg, "circle", "cx"), [64.0, 384.0, 704.0]);
        assert_eq!(attribute(&svg, "circle", "cy"), [352.0, 193.0, 34.0]);
        assert!(svg.contains("text-anchor=\"end\">0.2</text>") && !svg.contains("0.30000"), "{svg}");
        assert_eq!(svg, plot.svg());
    }

    #[test]
    fn a_box_shows_quartiles_and_leaves_outliers_beyond_the_whiskers() {
        let groups = vec![vec![1.0, 2.0, 3.0, 4.0, 5.0, 100.0], vec![]];
        let axis = Axis { categories: vec!["VL".into(), "VM".into()], ..Axis::default() };
        let y = Axis { range: Some([0.0, 110.0]), ..Axis::default() };
        let series = vec![Series { name: "automatic".into(), mark: Mark::Boxes(groups) }];
        let svg = Plot { x: axis, y, series, ..Plot::default() }.svg();
        assert_eq!(attribute(&svg, "circle", "cy").len(), 6);
        // 318 pixels for 110: the box from 2.25 to 4.75 is 7.2 high, its whiskers end at 1 and 5.
        assert!(svg.contains("height=\"7.2\" fill=\"#0072b2\""), "{svg}");
        assert!(svg.contains(&format!("V{}\" stroke", n(352.0 - 5.0 / 110.0 * 318.0))), "{svg}");
    }

    #[test]
    fn nothing_breaks_the_picture() {
        let odd = vec![[f64::NAN, 1.0], [1.0, f64::INFINITY], [2.0, 3.0]];
        let empty = Plot { title: "a < b & \"c\"".into(), ..Plot::default() }.svg();
        assert!(empty.contains("a &lt; b &amp; &quot;c&quot;") && empty.ends_with("</svg>\n"));
        let marks = [
            Mark::Line { points: odd.clone(), band: vec![[0.0, 1.0]; 3], dots: true },
            Mark::Points(odd),
            Mark::Boxes(vec![vec![f64::NAN]]),
            Mark::Bars(vec![f64::NAN, 0.4]),
            Mark::Level(f64::NAN),
            Mark::Level(0.0),
        ];
        for log in [false, true] {
            for mark in &marks {
                let axis = Axis { log, ..Axis::default() };
                let series = vec![Series { name: "s".into(), mark: mark.clone() }];
                let svg = Plot { x: axis.clone(), y: axis, series, ..Plot::default() }.svg();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{mark:?}: {svg}");
            }
        }
    }

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        let scale = |low, high, log| Scale { low, high, from: 0.0, to: 1.0, log };
        let close = |a: Vec<f64>, b: &[f64]| {
            assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9), "{a:?} {b:?}");
        };
        close(scale(0.0, 1.0, false).ticks(), &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        close(scale(0.83, 0.97, false).ticks(), &[0.85, 0.875, 0.9, 0.925, 0.95]);
        close(scale(4.0, 60.0, true).ticks(), &[5.0, 10.0, 20.0, 50.0]);
        assert!(scale(1.0, 1.0 + 1e-15, false).ticks().len() <= 50);
    }
}
