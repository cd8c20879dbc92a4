//! How well SegEx without ground truth foretells SegEx with it, on subjects that its calibration never saw.

use std::collections::BTreeMap;
use std::fmt::Write;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::segex_masks::{Made, StudyMask};
use crate::segex::agree::{Interval, auroc, bootstrapped, weighted_kappa};
use crate::segex::{Criterion, Measured, SegexCalibration, Verdict};

/// Rounds of resampling subjects.
const ROUNDS: usize = 500;

/// Agreement on one criterion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CriterionRow {
    /// `C1` to `C8`.
    pub criterion: String,
    /// Its name.
    pub name: String,
    /// Masks graded both ways.
    pub n: usize,
    /// Mean absolute error of the grade.
    pub error: Option<Interval>,
    /// Quadratic weighted kappa.
    pub kappa: Option<Interval>,
}

/// AUROC of the score among some masks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AcceptRow {
    /// Which masks.
    pub masks: String,
    /// How many.
    pub n: usize,
    /// Of them with verdict A against the truth.
    pub a: usize,
    /// For "usable as is": verdict A against the truth.
    pub auroc: Option<Interval>,
    /// For "minor edits at most": verdict A or B against the truth.
    pub auroc_b: Option<Interval>,
}

/// Mean scores of masks that came about alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DamageRow {
    /// What was done.
    pub masks: String,
    /// How many.
    pub n: usize,
    /// Mean score against the truth.
    pub truth: f64,
    /// Mean score without it.
    pub device: f64,
}

/// One way to grade, held against the truth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// How grades were calibrated.
    pub name: String,
    /// C1 to C8, and the score's error.
    pub criteria: Vec<CriterionRow>,
    /// Mean absolute error of the score, 0 to 100.
    pub score_error: Option<Interval>,
    /// Discrimination of what is usable.
    pub accept: Vec<AcceptRow>,
    /// Masks by verdict against the truth (rows A to D) and without it (columns).
    pub confusion: [[usize; 4]; 4],
    /// Weighted kappa of the verdict.
    pub verdict_kappa: Option<Interval>,
    /// Mean scores by damage.
    pub damages: Vec<DamageRow>,
}

/// The study: facts and arms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegexStudy {
    /// Facts to stand above the tables.
    pub facts: Vec<(String, String)>,
    /// Ways to grade.
    pub arms: Vec<Arm>,
}

/// A mask graded both ways.
#[derive(Clone)]
struct Both {
    made: Made,
    /// Whether a second result lay beside it.
    second: bool,
    truth: [Option<u8>; 8],
    device: [Option<u8>; 8],
    score: [f64; 2],
    verdict: [Verdict; 2],
}

/// Subjects in two halves by seed; each half is graded by a calibration fitted on the other.
pub fn halves(subjects: &[usize], seed: u64) -> [Vec<usize>; 2] {
    let mut all = subjects.to_vec();
    all.sort_unstable();
    all.dedup();
    all.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let second = all.split_off(all.len() / 2);
    [all, second]
}

/// A calibration from the masks of some subjects.
pub fn calibration_of(masks: &[StudyMask], of: impl Fn(usize) -> bool) -> SegexCalibration {
    let own = || masks.iter().filter(|m| of(m.subject));
    let candidates: Vec<_> = own().filter_map(StudyMask::candidate).collect();
    // Every labelled mask stands among them once as it is.
    let labelled = own().filter(|m| !m.made.result && m.made.damage.is_none() && !m.supposed).count();
    SegexCalibration::fit(&candidates, labelled)
}

impl Arm {
    /// Grades every mask by the calibration that `by` names for its subject (none: default cuts), and compares.
    pub fn new<'a>(
        name: &str,
        masks: &[StudyMask],
        by: impl Fn(usize) -> Option<&'a SegexCalibration>,
        seed: u64,
    ) -> Self {
        let mut subjects: BTreeMap<usize, Vec<Both>> = BTreeMap::new();
        for m in masks {
            let mut push = |second: bool, measured: &Measured| {
                let device = measured.report(by(m.subject));
                subjects.entry(m.subject).or_default().push(Both {
                    made: m.made,
                    second,
                    truth: Criterion::ALL.map(|c| m.truth.grade(c)),
                    device: Criterion::ALL.map(|c| device.grade(c)),
                    score: [m.truth.score, device.score],
                    verdict: [m.truth.verdict, device.verdict],
                });
            };
            push(false, &m.measured.alone());
            if !m.made.result {
                push(true, &m.measured);
            }
        }
        let everything: Vec<Vec<Both>> = subjects.into_values().collect();
        let only = |s: &Vec<Both>| s.iter().filter(|b| !b.second).cloned().collect();
        let all: Vec<Vec<Both>> = everything.iter().map(only).collect();
        let mut confusion = [[0; 4]; 4];
        for b in all.iter().flatten() {
            confusion[b.verdict[0] as usize][b.verdict[1] as usize] += 1;
        }
        let score_error = |v: &[Both]| mean(v.iter().map(|b| (b.score[0] - b.score[1]).abs()));
        let verdict = |v: &[Both]| {
            let pairs: Vec<(u8, u8)> = v.iter().map(|b| (b.verdict[0] as u8 + 1, b.verdict[1] as u8 + 1)).collect();
            weighted_kappa(&pairs, 4)
        };
        Arm {
            name: name.into(),
            criteria: (0..8).map(|k| criterion_row(&all, k, seed)).collect(),
            score_error: bootstrapped(&all, ROUNDS, seed, score_error),
            accept: accept_rows(&everything, seed),
            confusion,
            verdict_kappa: bootstrapped(&all, ROUNDS, seed, verdict),
            damages: damage_rows(&all),
        }
    }
}

fn criterion_row(all: &[Vec<Both>], k: usize, seed: u64) -> CriterionRow {
    let pairs: Vec<Vec<(u8, u8)>> =
        all.iter().map(|s| s.iter().filter_map(|b| Some((b.truth[k]?, b.device[k]?))).collect()).collect();
    let criterion = Criterion::ALL[k];
    CriterionRow {
        criterion: criterion.id().into(),
        name: criterion.name().into(),
        n: pairs.iter().map(Vec::len).sum(),
        error: bootstrapped(&pairs, ROUNDS, seed, |p| mean(p.iter().map(|(a, b)| f64::from(a.abs_diff(*b))))),
        kappa: bootstrapped(&pairs, ROUNDS, seed, |p| weighted_kappa(p, 5)),
    }
}

fn accept_rows(all: &[Vec<Both>], seed: u64) -> Vec<AcceptRow> {
    type Wanted = fn(&Both) -> bool;
    let kinds: [(&str, Wanted); 5] = [
        ("all: results, labels, and both damaged", |b| !b.second),
        ("results as they are", |b| b.made.result && b.made.damage.is_none()),
        ("results, as they are and damaged (with passes)", |b| b.made.result),
        ("labels, as they are and damaged (a mask from elsewhere, by the image alone)", |b| {
            !b.made.result && !b.second
        }),
        ("the same labels beside the adapter's own result", |b| b.second),
    ];
    kinds
        .iter()
        .map(|(name, wanted)| {
            let some: Vec<Vec<Both>> = all.iter().map(|s| s.iter().filter(|b| wanted(b)).cloned().collect()).collect();
            let at = |worst: Verdict| {
                bootstrapped(&some, ROUNDS, seed, move |v: &[Both]| {
                    auroc(&v.iter().map(|b| (b.score[1], b.verdict[0] <= worst)).collect::<Vec<_>>())
                })
            };
            AcceptRow {
                masks: (*name).into(),
                n: some.iter().map(Vec::len).sum(),
                a: some.iter().flatten().filter(|b| b.verdict[0] == Verdict::A).count(),
                auroc: at(Verdict::A),
                auroc_b: at(Verdict::B),
            }
        })
        .collect()
}

fn damage_rows(all: &[Vec<Both>]) -> Vec<DamageRow> {
    let mut groups: BTreeMap<Made, Vec<[f64; 2]>> = BTreeMap::new();
    for b in all.iter().flatten() {
        groups.entry(b.made).or_default().push(b.score);
    }
    let name = |m: &Made| {
        let what = m.damage.map_or("as they are".to_string(), |(d, level)| {
            let level = ["slight", "moderate", "gross"][level.min(2)];
            format!(
                "{}, {level}",
                serde_json::to_value(d).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
            )
        });
        format!("{}: {what}", if m.result { "results" } else { "labels" })
    };
    groups
        .iter()
        .map(|(m, v)| DamageRow {
            masks: name(m),
            n: v.len(),
            truth: mean(v.iter().map(|s| s[0])).unwrap_or(0.0),
            device: mean(v.iter().map(|s| s[1])).unwrap_or(0.0),
        })
        .collect()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0.0), |(s, n), v| (s + v, n + 1.0));
    (n > 0.0).then(|| sum / n)
}

fn cell(i: &Option<Interval>, digits: usize) -> String {
    i.map_or("–".into(), |i| format!("{:.digits$} ({:.digits$} to {:.digits$})", i.value, i.low, i.high))
}

impl SegexStudy {
    /// The study as Markdown: the last arm in full, the others in short.
    pub fn markdown(&self, title: &str) -> String {
        let mut out = format!("# {title}\n\n");
        for (k, v) in &self.facts {
            let _ = writeln!(out, "- {k}: {v}");
        }
        out.push_str("\nIn brackets: 95 % intervals by resampling subjects.\n\n## Ways to grade\n\n");
        out.push_str("| grades | AUROC usable as is (A) | AUROC A or B | score off by | verdict kappa | mean grade error | mean kappa |\n|---|---|---|---|---|---:|---:|\n");
        for a in &self.arms {
            let average = |f: &dyn Fn(&CriterionRow) -> Option<Interval>| {
                mean(a.criteria.iter().filter_map(f).map(|i| i.value)).map_or("–".into(), |v| format!("{v:.2}"))
            };
            let first = a.accept.first();
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} |",
                a.name,
                first.map_or("–".into(), |r| cell(&r.auroc, 3)),
                first.map_or("–".into(), |r| cell(&r.auroc_b, 3)),
                cell(&a.score_error, 1),
                cell(&a.verdict_kappa, 2),
                average(&|c| c.error),
                average(&|c| c.kappa)
            );
        }
        if let Some(a) = self.arms.last() {
            self.in_full(a, &mut out);
        }
        out
    }

    fn in_full(&self, a: &Arm, out: &mut String) {
        let _ = writeln!(out, "\n## {}\n", a.name);
        out.push_str("| criterion | masks | mean absolute error | weighted kappa |\n|---|---:|---|---|\n");
        for c in &a.criteria {
            let _ = writeln!(
                out,
                "| {} {} | {} | {} | {} |",
                c.criterion,
                c.name,
                c.n,
                cell(&c.error, 2),
                cell(&c.kappa, 2)
            );
        }
        out.push_str(
            "\n| masks | n | A by the truth | AUROC usable as is (A) | AUROC A or B |\n|---|---:|---:|---|---|\n",
        );
        for r in &a.accept {
            let _ =
                writeln!(out, "| {} | {} | {} | {} | {} |", r.masks, r.n, r.a, cell(&r.auroc, 3), cell(&r.auroc_b, 3));
        }
        out.push_str(
            "\nVerdicts: rows by the truth, columns without it.\n\n| | A | B | C | D |\n|---|---:|---:|---:|---:|\n",
        );
        for (v, row) in Verdict::ALL.iter().zip(&a.confusion) {
            let _ = writeln!(out, "| {v:?} | {} | {} | {} | {} |", row[0], row[1], row[2], row[3]);
        }
        out.push_str("\n| masks | n | mean score by the truth | without it |\n|---|---:|---:|---:|\n");
        for r in &a.damages {
            let _ = writeln!(out, "| {} | {} | {:.0} | {:.0} |", r.masks, r.n, r.truth, r.device);
        }
        out.push_str(
            "\nUsable as is: verdict A (score of 85 or more, no cap) when the mask is graded against the truth. The score that is \
             held against it never saw the truth. Results are graded with their passes, entropy and IoU estimates; a damaged \
             result as if the model had erred so with confidence: its passes are damaged alike and its doubt follows the damaged \
             contour. Labels are graded as a mask from elsewhere: in all figures but the last line above by the image alone. docs/segex.md has the definitions.\n",
        );
    }
}
