//! How much quality more labelling buys: several evaluations against the slices and the minutes that their labels took.

use std::fmt::Write;

use super::run::Prompt;
use super::table::{Spread, Table};
use crate::image::plot::{Axis, Plot, Series};

/// Why no curve can be drawn.
#[derive(Debug, thiserror::Error)]
pub enum LabelCostError {
    /// An evaluation that does not say what it was trained on.
    #[error(
        "{0} does not say how many slices its adapter was trained on: run `scanside evaluate --out` again with this release"
    )]
    NotTrained(String),
    /// An evaluation without an automatic result.
    #[error("{0} has no automatic result: evaluate with --prompts automatic")]
    NotAutomatic(String),
    /// Evaluations that cannot be compared.
    #[error(
        "{0} evaluates other structures than {1}: a curve needs the same structures, and the same test volumes, throughout"
    )]
    Structures(String, String),
    /// No evaluation at all.
    #[error("no evaluation is given: name the JSON files that `scanside evaluate --out` wrote")]
    Empty,
    /// A minute count that is none.
    #[error("{0} minutes per slice make no sense: give a number above 0")]
    Minutes(f64),
}

/// All evaluations of the same number of labelled slices.
#[derive(Clone, Debug, PartialEq)]
pub struct CostPoint {
    /// Labelled slices, each leg by itself.
    pub slices: usize,
    /// Mean Dice over structures, automatic: over the evaluations, each counted once.
    pub dice: Spread,
    /// Highest and lowest evaluation's mean Dice.
    pub dice_range: [f64; 2],
    /// Share of structures that SegEx lets pass with minor edits at most, those not found counted as not; none where nothing was graded.
    pub usable: Option<Spread>,
    /// Lowest and highest evaluation's share.
    pub usable_range: Option<[f64; 2]>,
    /// Mean Dice of each structure, over the evaluations that have it.
    pub structures: Vec<(String, f64)>,
}

/// Quality against labelled slices.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelCost {
    /// Minutes that labelling one leg on one slice takes, all structures: an assumption, stated wherever minutes stand.
    pub minutes_per_slice: f64,
    /// By growing number of slices.
    pub points: Vec<CostPoint>,
}

impl LabelCost {
    /// From evaluations, each with what it is called in messages.
    ///
    /// # Errors
    /// [`LabelCostError`] naming the evaluation that cannot be used.
    pub fn new(evaluations: &[(String, Table)], minutes_per_slice: f64) -> Result<Self, LabelCostError> {
        if !(minutes_per_slice.is_finite() && minutes_per_slice > 0.0) {
            return Err(LabelCostError::Minutes(minutes_per_slice));
        }
        let mut all = Vec::new();
        for (name, table) in evaluations {
            if let Some((first, _)) = evaluations.first().filter(|(_, t)| keys(t) != keys(table)) {
                return Err(LabelCostError::Structures(name.clone(), first.clone()));
            }
            let trained = table.trained.ok_or_else(|| LabelCostError::NotTrained(name.clone()))?;
            let dice = table.mean_dice(Prompt::Automatic).ok_or_else(|| LabelCostError::NotAutomatic(name.clone()))?;
            all.push((trained.slices, dice, table));
        }
        let mut counts: Vec<usize> = all.iter().map(|a| a.0).collect();
        counts.sort_unstable();
        counts.dedup();
        let mut points = Vec::new();
        for slices in counts {
            let of: Vec<(f64, &Table)> = all.iter().filter(|a| a.0 == slices).map(|a| (a.1, a.2)).collect();
            let usable: Vec<f64> = of.iter().filter_map(|(_, t)| usable(t)).collect();
            let dice: Vec<f64> = of.iter().map(|(d, _)| *d).collect();
            let Some(spread) = Spread::of(dice.iter().copied().map(Some)) else { continue };
            points.push(CostPoint {
                slices,
                dice: spread,
                dice_range: range(&dice),
                usable: Spread::of(usable.iter().copied().map(Some)),
                usable_range: (!usable.is_empty()).then(|| range(&usable)),
                structures: structures(&of),
            });
        }
        if points.is_empty() { Err(LabelCostError::Empty) } else { Ok(LabelCost { minutes_per_slice, points }) }
    }

    /// The curve as SVG: means with the range between evaluations.
    pub fn svg(&self) -> String {
        let x = |p: &CostPoint| p.slices as f64;
        let mut series = vec![Series::banded(
            "mean Dice, automatic",
            self.points.iter().map(|p| [x(p), p.dice.mean]).collect(),
            self.points.iter().map(|p| p.dice_range).collect(),
        )];
        let graded: Vec<(&CostPoint, Spread, [f64; 2])> =
            self.points.iter().filter_map(|p| Some((p, p.usable?, p.usable_range?))).collect();
        if !graded.is_empty() {
            series.push(Series::banded(
                "share of structures with SegEx A or B",
                graded.iter().map(|(p, u, _)| [x(p), u.mean]).collect(),
                graded.iter().map(|(_, _, r)| *r).collect(),
            ));
        }
        Plot {
            title: "What more labelling buys".into(),
            x: Axis {
                label: format!("labelled slices, and minutes of labelling at {} a slice", self.minutes_per_slice),
                log: self.points.len() > 1,
                ticks: self.points.iter().map(x).collect(),
                also: Some((self.minutes_per_slice, "min".into())),
                ..Axis::default()
            },
            y: Axis { label: "mean Dice; share".into(), range: Some([0.0, 1.0]), ..Axis::default() },
            series,
            ..Plot::default()
        }
        .svg()
    }

    /// The curve as Markdown: one row per number of slices.
    pub fn markdown(&self) -> String {
        let keys: Vec<&String> =
            self.points.first().map(|p| p.structures.iter().map(|s| &s.0).collect()).unwrap_or_default();
        let mut out = format!(
            "# What more labelling buys\n\n- assumption: {} minutes to label one leg on one slice, all structures\n\
             - quality: automatic results on volumes that were not trained on; mean over evaluations, lowest to highest\n\n\
             | labelled slices | minutes | evaluations | mean Dice | gain in Dice per further hour | SegEx A or B |",
            self.minutes_per_slice
        );
        out.extend(keys.iter().map(|k| format!(" {k} |")));
        out.push_str("\n|---:|---:|---:|---|---:|---|");
        out.push_str(&"---:|".repeat(keys.len()));
        out.push('\n');
        let span = |s: &Spread, [low, high]: [f64; 2]| match s.n {
            1 => format!("{:.3}", s.mean),
            _ => format!("{:.3} ({low:.3} to {high:.3})", s.mean),
        };
        for (i, p) in self.points.iter().enumerate() {
            let minutes = |p: &CostPoint| p.slices as f64 * self.minutes_per_slice;
            let gain = i.checked_sub(1).map(|j| &self.points[j]).map_or("–".into(), |before| {
                format!("{:+.3}", (p.dice.mean - before.dice.mean) / ((minutes(p) - minutes(before)) / 60.0))
            });
            let usable = p.usable.as_ref().zip(p.usable_range).map_or("–".into(), |(u, r)| span(u, r));
            let _ = write!(
                out,
                "| {} | {:.0} | {} | {} | {gain} | {usable} |",
                p.slices,
                minutes(p),
                p.dice.n,
                span(&p.dice, p.dice_range)
            );
            for key in &keys {
                let dice = p.structures.iter().find(|s| &s.0 == *key).map_or("–".into(), |s| format!("{:.3}", s.1));
                let _ = write!(out, " {dice} |");
            }
            out.push('\n');
        }
        out
    }
}

/// Share of all structures with verdict A or B, automatic; none where nothing at all was graded. A structure that was not found counts
/// as not usable, also where it was found on no leg, so that its row has no verdict.
fn usable(table: &Table) -> Option<f64> {
    let rows: Vec<_> = table.rows.iter().filter(|r| r.prompt == Prompt::Automatic).collect();
    if rows.iter().all(|r| r.usable().is_none()) {
        return None;
    }
    let legs: usize = rows.iter().map(|r| r.legs).sum();
    let good: usize = rows.iter().map(|r| r.verdicts[0] + r.verdicts[1]).sum();
    (legs > 0).then(|| good as f64 / legs as f64)
}

fn keys(table: &Table) -> Vec<&str> {
    table.rows.iter().filter(|r| r.prompt == Prompt::Automatic).map(|r| r.structure.as_str()).collect()
}

fn structures(evaluations: &[(f64, &Table)]) -> Vec<(String, f64)> {
    let mut out: Vec<(String, Vec<f64>)> = Vec::new();
    for row in evaluations.iter().flat_map(|(_, t)| &t.rows).filter(|r| r.prompt == Prompt::Automatic) {
        let Some(dice) = row.dice else { continue };
        match out.iter_mut().find(|(k, _)| *k == row.structure) {
            Some((_, all)) => all.push(dice.mean),
            None => out.push((row.structure.clone(), vec![dice.mean])),
        }
    }
    out.into_iter().map(|(k, all)| (k, all.iter().sum::<f64>() / all.len() as f64)).collect()
}

fn range(values: &[f64]) -> [f64; 2] {
    values.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[l, h], v| [l.min(*v), h.max(*v)])
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{Agreement, Presence};
    use super::super::run::Outcome;
    use super::super::table::Trained;
    use super::*;
    use crate::segex::Verdict;

    fn evaluation(slices: usize, seed: u64, dice: [f64; 2], verdicts: [Verdict; 2]) -> (String, Table) {
        let outcome = |k: usize| Outcome {
            case: 0,
            side: None,
            structure: ["VL", "VM"][k].into(),
            prompt: Prompt::Automatic,
            agreement: Agreement {
                found: 1,
                truth: 1,
                dice: Some(dice[k]),
                iou: None,
                hd95_mm: None,
                assd_mm: None,
                nsd: None,
            },
            presence: Presence::default(),
            segex: Some((50.0, verdicts[k])),
        };
        let mut table = Table::new(&[outcome(0), outcome(1)], &["VL".into(), "VM".into()], Vec::new());
        table.trained = Some(Trained { slices, volumes: 1, steps: 1, seed });
        (format!("{slices}-{seed}.json"), table)
    }

    #[test]
    fn the_curve_states_what_an_hour_of_labelling_buys() {
        use Verdict::{A, B, C, D};
        let all = [
            evaluation(20, 1, [0.9, 0.9], [A, B]),
            evaluation(5, 1, [0.8, 0.9], [B, C]),
            evaluation(5, 2, [0.7, 0.8], [C, D]),
        ];
        let curve = LabelCost::new(&all, 6.0).unwrap();
        assert_eq!(curve.points.iter().map(|p| p.slices).collect::<Vec<_>>(), [5, 20]);
        let p = &curve.points[0];
        assert!((p.dice.mean - 0.8).abs() < 1e-12 && (p.dice_range[0] - 0.75).abs() < 1e-12);
        assert_eq!((p.usable.unwrap().mean, p.usable_range), (0.25, Some([0.0, 0.5])));
        let text = curve.markdown();
        // 0.1 in 15 slices of 6 minutes.
        assert!(
            text.contains("| 5 | 30 | 2 | 0.800 (0.750 to 0.850) | – | 0.250 (0.000 to 0.500) | 0.750 | 0.850 |"),
            "{text}"
        );
        assert!(text.contains("| 20 | 120 | 1 | 0.900 | +0.067 | 1.000 | 0.900 | 0.900 |"), "{text}");
        let svg = curve.svg();
        assert!(svg.contains(">30 min<") && svg.contains(">120 min<") && svg.contains("at 6 a slice"), "{svg}");
    }

    #[test]
    fn a_structure_that_is_never_found_is_not_usable() {
        let outcome = |structure: &str, found: usize, segex: Option<(f64, Verdict)>| Outcome {
            case: 0,
            side: None,
            structure: structure.into(),
            prompt: Prompt::Automatic,
            agreement: Agreement {
                found,
                truth: 5,
                dice: Some(if found > 0 { 0.9 } else { 0.0 }),
                iou: None,
                hd95_mm: None,
                assd_mm: None,
                nsd: None,
            },
            presence: Presence::default(),
            segex,
        };
        let share = |vl: Option<(f64, Verdict)>| {
            let all = [outcome("VL", 5, vl), outcome("VM", 0, None)];
            let mut table = Table::new(&all, &["VL".into(), "VM".into()], Vec::new());
            table.trained = Some(Trained { slices: 5, volumes: 1, steps: 1, seed: 1 });
            LabelCost::new(&[("5.json".into(), table)], 6.0).unwrap().points[0].usable.map(|u| u.mean)
        };
        assert_eq!(share(Some((90.0, Verdict::A))), Some(0.5));
        assert_eq!(share(None), None, "nothing was graded");
    }

    #[test]
    fn what_cannot_be_placed_is_named() {
        let mut bad = evaluation(5, 1, [0.8, 0.9], [Verdict::A; 2]);
        bad.1.trained = None;
        let message = LabelCost::new(&[bad], 6.0).unwrap_err().to_string();
        assert!(message.contains("5-1.json") && message.contains("evaluate"), "{message}");
        let mut other = evaluation(20, 1, [0.8, 0.9], [Verdict::A; 2]);
        other.1.rows.remove(1);
        let message =
            LabelCost::new(&[evaluation(5, 1, [0.8, 0.9], [Verdict::A; 2]), other], 6.0).unwrap_err().to_string();
        assert!(message.contains("20-1.json evaluates other structures than 5-1.json"), "{message}");
        assert!(matches!(LabelCost::new(&[], 6.0), Err(LabelCostError::Empty)));
        assert!(matches!(LabelCost::new(&[], 0.0), Err(LabelCostError::Minutes(_))));
    }
}
