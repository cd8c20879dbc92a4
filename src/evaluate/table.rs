//! Figures over volumes and of each case, as JSON and as Markdown tables. No volume is named unless asked for.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::metrics::{Agreement, Presence};
use super::run::{Outcome, Prompt};
use crate::segex::Verdict;
use crate::terms::Side;

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
    /// Slices of all legs with and without the structure.
    #[serde(default)]
    pub presence: Presence,
    /// SegEx verdicts A, B, C and D over `legs`; what has none was not found although it is there.
    #[serde(default)]
    pub verdicts: [usize; 4],
}

impl Row {
    /// Share of the legs that SegEx lets pass with minor edits at most (A or B); none where nothing was graded.
    pub fn usable(&self) -> Option<f64> {
        let [a, b, c, d] = self.verdicts;
        (a + b + c + d > 0).then(|| (a + b) as f64 / self.legs.max(1) as f64)
    }
}

/// One structure of one leg of one case under one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseRow {
    /// Number of the case in the manifest's order of evaluated volumes, from 1.
    pub case: usize,
    /// Its name, where names were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The leg's side, where known.
    pub side: Option<Side>,
    /// Structure key.
    pub structure: String,
    /// How the decoder was prompted.
    pub prompt: Prompt,
    /// The figures.
    #[serde(flatten)]
    pub agreement: Agreement,
    /// Slices with and without the structure.
    pub presence: Presence,
    /// SegEx's score, where graded.
    pub segex_score: Option<f64>,
    /// SegEx's verdict, where graded.
    pub verdict: Option<Verdict>,
}

/// What the evaluated adapter was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trained {
    /// Labelled slices, each leg by itself.
    pub slices: usize,
    /// Volumes that they come from.
    pub volumes: usize,
    /// Optimiser steps of the main phase.
    pub steps: usize,
    /// Seed.
    pub seed: u64,
}

/// The fact that says what NSD's tolerance was, where one was given.
pub(super) const TOLERANCE: &str = "NSD tolerance";

/// What is written down of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Facts in order: command, adapter, seed, counts.
    pub facts: Vec<(String, String)>,
    /// What the adapter was trained on, where there is one.
    #[serde(default)]
    pub trained: Option<Trained>,
    /// The figures.
    pub rows: Vec<Row>,
    /// The figures of each case; empty where only aggregates were to be written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cases: Vec<CaseRow>,
}

impl Table {
    /// Aggregates outcomes; structures in the order of `keys`, automatic first.
    pub fn new(outcomes: &[Outcome], keys: &[String], facts: Vec<(String, String)>) -> Self {
        let mut rows = Vec::new();
        for prompt in Prompt::ALL {
            for key in keys {
                let all: Vec<&Outcome> =
                    outcomes.iter().filter(|o| o.prompt == prompt && &o.structure == key).collect();
                if all.is_empty() {
                    continue;
                }
                let of: Vec<&Agreement> = all.iter().map(|o| &o.agreement).collect();
                let absent = of.iter().filter(|a| a.found + a.truth == 0).count();
                let mut verdicts = [0; 4];
                for o in all.iter().filter(|o| o.agreement.found + o.agreement.truth > 0) {
                    if let Some((_, verdict)) = o.segex {
                        verdicts[verdict as usize] += 1;
                    }
                }
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
                    presence: Presence::total(all.iter().map(|o| o.presence)),
                    verdicts,
                });
            }
        }
        let case = |o: &Outcome| CaseRow {
            case: o.case + 1,
            name: None,
            side: o.side,
            structure: o.structure.clone(),
            prompt: o.prompt,
            agreement: o.agreement.clone(),
            presence: o.presence,
            segex_score: o.segex.map(|s| s.0),
            verdict: o.segex.map(|s| s.1),
        };
        Table { facts, trained: None, rows, cases: outcomes.iter().map(case).collect() }
    }

    /// Writes names beside the numbers of the cases.
    pub fn name_cases(&mut self, names: &[&str]) {
        for row in &mut self.cases {
            row.name = names.get(row.case - 1).map(|n| (*n).to_string());
        }
    }

    /// Figures over all cases only: what may be shared where a single case's may not.
    pub fn aggregates(mut self) -> Self {
        self.cases.clear();
        self
    }

    /// Mean over structures of the mean Dice under a prompt.
    pub fn mean_dice(&self, prompt: Prompt) -> Option<f64> {
        let rows = self.rows.iter().filter(|r| r.prompt == prompt).map(|r| r.dice.map(|d| d.mean));
        Spread::of(rows).map(|s| s.mean)
    }

    /// NSD's tolerance in words: the one that was given, as the facts say, else the default.
    pub(super) fn tolerance(&self) -> &str {
        // The last: a fact of the same name from the command line stands before it.
        let given = self.facts.iter().rfind(|(k, _)| k == TOLERANCE);
        given.map_or("1 mm or one pixel, whichever is more", |(_, v)| v)
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
        self.presence_table(&mut out);
        let _ = writeln!(
            out,
            "\nWhole volumes, slices without the structure included. Surface: voxels with a face neighbour outside. HD95: the \
             larger of both directed 95th percentiles; ASSD over both surfaces; NSD at {}. \
             Missing: only one of truth and mask has the structure (Dice 0, no distance). docs/metrics.md has the conventions.",
            self.tolerance()
        );
        out
    }

    fn presence_table(&self, out: &mut String) {
        out.push_str(
            "\n| structure | prompt | slices with it: found | slices without it: left empty | SegEx A / B / C / D | A or B |\n\
             |---|---|---:|---:|---|---:|\n",
        );
        let share = |right: usize, wrong: usize, part: Option<f64>| {
            part.map_or("–".into(), |p| format!("{p:.3} ({right} of {})", right + wrong))
        };
        // With the true box it is told which structures are there.
        for r in self.rows.iter().filter(|r| matches!(r.prompt, Prompt::Automatic | Prompt::PromptFree)) {
            let p = &r.presence;
            let [a, b, c, d] = r.verdicts;
            let verdicts = r
                .usable()
                .map_or(["–".into(), "–".into()], |u| [format!("{a} / {b} / {c} / {d}"), format!("{u:.2}")]);
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} |",
                r.structure,
                r.prompt.words(),
                share(p.both, p.truth_only, p.sensitivity()),
                share(p.neither, p.found_only, p.specificity()),
                verdicts[0],
                verdicts[1]
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(case: usize, dice: Option<f64>, found: usize, truth: usize) -> Outcome {
        Outcome {
            case,
            side: Some(Side::Right),
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
            presence: Presence { both: 6, found_only: 1, truth_only: 2, neither: 3 },
            segex: dice.map(|d| (100.0 * d, if d > 0.5 { Verdict::B } else { Verdict::D })),
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
        assert!(
            text.contains("| VL | automatic | 0.750 (18 of 24) | 0.750 (9 of 12) | 0 / 1 / 0 / 1 | 0.50 |"),
            "{text}"
        );
        assert!(text.contains("NSD at 1 mm or one pixel, whichever is more. Missing"), "{text}");
        let back: Table = serde_json::from_str(&serde_json::to_string(&t).unwrap()).unwrap();
        assert_eq!(back, t);
        assert_eq!((t.cases.len(), t.cases[1].case, t.cases[1].verdict), (3, 2, Some(Verdict::D)));
        let shared = serde_json::to_value(t.aggregates()).unwrap();
        assert!(shared.get("cases").is_none());
        // What an earlier release wrote can still be read.
        let mut old = shared;
        old["rows"][0].as_object_mut().unwrap().remove("presence");
        old["rows"][0].as_object_mut().unwrap().remove("verdicts");
        old.as_object_mut().unwrap().remove("trained");
        assert_eq!(serde_json::from_value::<Table>(old).unwrap().rows[0].usable(), None);
    }

    #[test]
    fn the_tolerance_that_was_given_is_the_one_that_is_named() {
        let given = ("NSD tolerance".to_string(), "3 mm".to_string());
        let t = Table::new(&[outcome(0, Some(0.8), 5, 5)], &["VL".into()], vec![given]);
        for text in [t.markdown("T"), super::super::html::html("T", &t, None).unwrap()] {
            assert!(text.contains("NSD at 3 mm. Missing") && !text.contains("one pixel"), "{text}");
        }
    }
}
