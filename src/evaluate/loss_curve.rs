//! The loss curve of a training run as a picture, from its CSV.

use std::collections::BTreeMap;

use crate::image::plot::{Axis, Plot, Series};

/// A column is smoothed over this share of the run.
const SMOOTH: usize = 40;

/// The curve as SVG: one line per column, each a running mean. The first line of the CSV names the columns, `step` is
/// counted from 1 and may start again in a new `phase` (a column of its own); of a step that was repeated after a resumption
/// the later line counts. The columns `gradient` and `lr` are left out: their scale is another.
///
/// Lines that are cut short or hold no numbers are passed over, so that the file of a running or killed run can be drawn.
pub fn loss_curve(csv: &str, title: &str) -> String {
    let mut lines = csv.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split(',').map(str::trim).collect();
    let place = |name: &str| names.iter().position(|n| *n == name);
    let mut rows: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    let mut phases: Vec<String> = Vec::new();
    if let Some(step_at) = place("step") {
        for line in lines {
            let cells: Vec<&str> = line.split(',').map(str::trim).collect();
            let Some(step) = cells.get(step_at).and_then(|c| c.parse().ok()).filter(|_| cells.len() == names.len())
            else {
                continue;
            };
            let phase = place("phase").map_or(String::new(), |p| cells[p].to_string());
            let number = phases.iter().position(|p| *p == phase).unwrap_or_else(|| {
                phases.push(phase);
                phases.len() - 1
            });
            rows.insert((number, step), cells.iter().map(|c| c.parse().unwrap_or(f64::NAN)).collect());
        }
    }
    let losses = (0..names.len()).filter(|&c| !["step", "phase", "gradient", "lr"].contains(&names[c]));
    let series: Vec<Series> = losses
        .filter(|&c| rows.values().any(|r| r[c].is_finite() && r[c] != 0.0))
        .map(|c| {
            let values: Vec<f64> = rows.values().map(|r| r[c]).collect();
            Series::line(names[c], smoothed(&values))
        })
        .collect();
    Plot {
        title: title.into(),
        x: Axis { label: "optimiser step".into(), ..Axis::default() },
        y: Axis { label: "loss, running mean".into(), ..Axis::default() },
        series,
        ..Plot::default()
    }
    .svg()
}

/// Running means over a window that ends at each step; few enough points that the file stays small.
fn smoothed(values: &[f64]) -> Vec<[f64; 2]> {
    let width = values.len().div_ceil(SMOOTH).max(1);
    let every = values.len().div_ceil(400).max(1);
    (0..values.len())
        .filter(|i| i % every == 0 || i + 1 == values.len())
        .filter_map(|i| {
            let window: Vec<f64> =
                values[(i + 1).saturating_sub(width)..=i].iter().copied().filter(|v| v.is_finite()).collect();
            (!window.is_empty()).then(|| [(i + 1) as f64, window.iter().sum::<f64>() / window.len() as f64])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_or_cut_file_gives_the_curve_of_the_whole_run() {
        let line = |i: usize| format!("{i},{},{}\n", 2.0 / i as f64, 5.0);
        let head = "step,total,gradient\n".to_string();
        let whole: String = head.clone() + &(1..=60).map(line).collect::<String>();
        let resumed: String = head + &(1..=40).chain(31..=60).map(line).collect::<String>() + "61,0.0";
        let svg = loss_curve(&whole, "T");
        assert_eq!(loss_curve(&resumed, "T"), svg);
        assert_eq!(svg.matches("stroke-linejoin").count(), 1, "the gradient's norm is no loss");
        assert_ne!(loss_curve(&whole.replace("10,0.2,", "10,0.9,"), "T"), svg);
    }

    #[test]
    fn phases_follow_each_other() {
        let csv = "phase,step,total\ncoarse,1,3\ncoarse,2,2\nfine,1,1\nfine,2,0.5\n";
        let svg = loss_curve(csv, "T");
        assert!(svg.contains(">4</text>"), "four steps in all: {svg}");
        assert!(loss_curve("", "T").contains("</svg>") && loss_curve("nothing", "T").contains("</svg>"));
    }
}
