//! Figures over volumes, as JSON and as a Markdown table. Aggregates only: no volume is named.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::metrics::Agreement;
use super::run::{Outcome, Prompt};

/// Mean and spread of a figure over legs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation; 0 for one value.
    pub sd: f64,
    /// Least value.
    pub min: f64,
    /// Values behind it.
    pub n: usize,
}

impl Spread {
    /// Of the values that there are; none where there is none.
    pub fn of(values: impl Iterator<Item = Option<f64>>) -> Option<Self> {
        let v: Vec<f64> = values.flatten().collect();
        if v.is_empty() {
            return None;
        }
        let n = v.len();
        let mean = v.iter().sum::<f64>() / n as f64;
        let sd = (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n.max(2) - 1) as f64).sqrt();
        Some(Spread { mean, sd, min: v.iter().copied().fold(f64::INFINITY, f64::min), n })
    }
}

/// One structure under one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Structure key.
    pub structure: String,
    /// How the decoder was prompted.
    pub prompt: Prompt,
    /// Legs in which the truth or the mask has the structure.
    pub legs: usize,
    /// Legs in which neither has it: rightly absent, in no mean.
    pub absent: usize,
    /// Legs in which only one of the two has it: Dice 0, in no mean of a distance.
    pub missing: usize,
    /// Dice.
    pub dice: Option<Spread>,
    /// Intersection over union.
    pub iou: Option<Spread>,
    /// HD95, mm.
    pub hd95_mm: Option<Spread>,
    /// ASSD, mm.
    pub assd_mm: Option<Spread>,
    /// Normalised surface Dice.
    pub nsd: Option<Spread>,
}

/// What is written down of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Facts in order: command, adapter, seed, counts.
    pub facts: Vec<(String, String)>,
    /// The figures.
    pub rows: Vec<Row>,
}

impl Table {
    /// Aggregates outcomes; structures in the order of `keys`, automatic first.
    pub fn new(outcomes: &[Outcome], keys: &[String], facts: Vec<(String, String)>) -> Self {
        let mut rows = Vec::new();
        for prompt in [Prompt::Automatic, Prompt::TrueBox, Prompt::ZeroShotTrueBox] {
            for key in keys {
                let of: Vec<&Agreement> = outcomes
                    .iter()
                    .filter(|o| o.prompt == prompt && &o.structure == key)
                    .map(|o| &o.agreement)
                    .collect();
                if of.is_empty() {
                    continue;
                }
                let absent = of.iter().filter(|a| a.found + a.truth == 0).count();
                rows.push(Row {
                    structure: key.clone(),
                    prompt,
                    legs: of.len() - absent,
                    absent,
                    missing: of.iter().filter(|a| (a.found == 0) != (a.truth == 0)).count(),
                    dice: Spread::of(of.iter().map(|a| a.dice)),
                    iou: Spread::of(of.iter().map(|a| a.iou)),
                    hd95_mm: Spread::of(of.iter().map(|a| a.hd95_mm)),
                    assd_mm: Spread::of(of.iter().map(|a| a.assd_mm)),
                    nsd: Spread::of(of.iter().map(|a| a.nsd)),
                });
            }
        }
        Table { facts, rows }
    }

    /// Mean over structures of the mean Dice under a prompt.
    pub fn mean_dice(&self, prompt: Prompt) -> Option<f64> {
        let rows = self.rows.iter().filter(|r| r.prompt == prompt).map(|r| r.dice.map(|d| d.mean));
        Spread::of(rows).map(|s| s.mean)
    }

    /// The table in Markdown, with the facts above and the conventions below.
    pub fn markdown(&self, title: &str) -> String {
        let mut out = format!("# {title}\n\n");
        for (k, v) in &self.facts {
            let _ = writeln!(out, "- {k}: {v}");
        }
        out.push_str(
            "\n| structure | prompt | legs | Dice (mean ± sd, least) | IoU | HD95 mm | ASSD mm | NSD | missing |\n\
             |---|---|---:|---|---:|---:|---:|---:|---:|\n",
        );
        let cell = |s: &Option<Spread>, digits: usize| s.map_or("–".into(), |s| format!("{:.*}", digits, s.mean));
        for r in &self.rows {
            let dice = r.dice.map_or("–".into(), |d| match d.n {
                1 => format!("{:.3}", d.mean),
                _ => format!("{:.3} ± {:.3}, {:.3}", d.mean, d.sd, d.min),
            });
            let _ = writeln!(
                out,
                "| {} | {} | {} | {dice} | {} | {} | {} | {} | {} |",
                r.structure,
                r.prompt.words(),
                r.legs,
                cell(&r.iou, 3),
                cell(&r.hd95_mm, 1),
                cell(&r.assd_mm, 2),
                cell(&r.nsd, 3),
                r.missing
            );
        }
        out.push_str(
            "\nWhole volumes, slices without the structure included. Surface: voxels with a face neighbour outside. HD95: the \
             larger of both directed 95th percentiles; ASSD over both surfaces; NSD at 1 mm or one pixel, whichever is more. \
             Missing: only one of truth and mask has the structure (Dice 0, no distance).\n",
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(case: usize, dice: Option<f64>, found: usize, truth: usize) -> Outcome {
        Outcome {
            case,
            structure: "VL".into(),
            prompt: Prompt::Automatic,
            agreement: Agreement {
                found,
                truth,
                dice,
                iou: dice.map(|d| d / (2.0 - d)),
                hd95_mm: None,
                assd_mm: None,
                nsd: dice,
            },
        }
    }

    #[test]
    fn a_missed_structure_counts_as_zero_and_an_absent_one_does_not_count() {
        let all = [outcome(0, Some(0.8), 5, 5), outcome(1, Some(0.0), 0, 5), outcome(2, None, 0, 0)];
        let t = Table::new(&all, &["VL".into()], vec![("seed".into(), "1".into())]);
        let r = &t.rows[0];
        assert_eq!((r.legs, r.absent, r.missing, r.dice.unwrap().n), (2, 1, 1, 2));
        assert!((r.dice.unwrap().mean - 0.4).abs() < 1e-12);
        assert!((t.mean_dice(Prompt::Automatic).unwrap() - 0.4).abs() < 1e-12);
        let text = t.markdown("T");
        assert!(text.contains("| VL | automatic | 2 | 0.400 ± 0.566, 0.000 |") && text.contains("- seed: 1"), "{text}");
        let back: Table = serde_json::from_str(&serde_json::to_string(&t).unwrap()).unwrap();
        assert_eq!(back.rows.len(), 1);
    }
}
