//! Agreement between observers over the reports of many cases.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::agree::{Interval, bootstrapped, icc_2_1, weighted_kappa};
use super::observe::ReportFile;
use super::{Criterion, Report, StructureReport};

/// Rounds of resampling cases.
const ROUNDS: usize = 1000;

/// Why agreement cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum AgreeError {
    /// One observer graded a structure twice.
    #[error("{observer} grades {structure} of case {case} twice: give each report once")]
    Twice {
        /// The observer.
        observer: String,
        /// The structure.
        structure: String,
        /// The case.
        case: String,
    },
    /// There is nobody to compare.
    #[error("the reports are all by {0}: give reports of two observers at least")]
    One(String),
}

/// Two observers on what both graded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairRow {
    /// The one.
    pub a: String,
    /// The other.
    pub b: String,
    /// `C1` to `C8`, or `verdict`.
    pub what: String,
    /// Structures that both graded.
    pub n: usize,
    /// Quadratic weighted kappa.
    pub kappa: Option<Interval>,
}

/// All observers together on what all graded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IccRow {
    /// `C1` to `C8`, or `score`.
    pub what: String,
    /// Structures that all graded.
    pub n: usize,
    /// ICC(2,1).
    pub icc: Option<Interval>,
}

/// How far observers agree; intervals by resampling cases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The observers.
    pub observers: Vec<String>,
    /// Cases.
    pub cases: usize,
    /// Seed of the resampling.
    pub seed: u64,
    /// Pair by pair.
    pub pairs: Vec<PairRow>,
    /// All together.
    pub all: Vec<IccRow>,
}

type Key = (String, String);

fn observer(r: &Report) -> String {
    match (r.with_ground_truth, r.calibrated) {
        (true, _) => format!("{} with ground truth", r.observer),
        (false, true) => format!("{}, calibrated", r.observer),
        (false, false) => r.observer.clone(),
    }
}

/// Compares all observers of the files; a structure is told by case, key and side.
///
/// # Errors
/// [`AgreeError`].
pub fn agreement(files: &[ReportFile], seed: u64) -> Result<Agreement, AgreeError> {
    let mut by: BTreeMap<String, BTreeMap<Key, &StructureReport>> = BTreeMap::new();
    let mut cases = BTreeSet::new();
    for file in files {
        for r in &file.reports {
            for s in &r.structures {
                let structure = format!("{} {}", s.structure.key, s.side.map_or("", |s| s.word()));
                cases.insert(file.case.clone());
                let key = (file.case.clone(), structure.trim().to_string());
                let own = by.entry(observer(r)).or_default();
                if let Some(twice) = own.insert(key.clone(), s) {
                    let structure = twice.structure.key.clone();
                    return Err(AgreeError::Twice { observer: observer(r), structure, case: key.0 });
                }
            }
        }
    }
    let observers: Vec<String> = by.keys().cloned().collect();
    if observers.len() < 2 {
        return Err(AgreeError::One(observers.into_iter().next().unwrap_or("nobody".into())));
    }
    let mut pairs = Vec::new();
    for (i, (a, of_a)) in by.iter().enumerate() {
        for (b, of_b) in by.iter().skip(i + 1) {
            for k in 0..=8 {
                let both = of_a.iter().filter_map(|(key, s)| {
                    let (x, y) = (grade(s, k)?, grade(of_b.get(key)?, k)?);
                    Some((key.0.clone(), (x, y)))
                });
                let cases = grouped(both);
                let grades = if k < 8 { 5 } else { 4 };
                pairs.push(PairRow {
                    a: a.clone(),
                    b: b.clone(),
                    what: if k < 8 { Criterion::ALL[k].id().into() } else { "verdict".into() },
                    n: cases.iter().map(Vec::len).sum(),
                    kappa: bootstrapped(&cases, ROUNDS, seed, |p| weighted_kappa(p, grades)),
                });
            }
        }
    }
    let all = (0..=8)
        .map(|k| {
            let first = &by[&observers[0]];
            let rows = first.keys().filter_map(|key| {
                let row: Option<Vec<f64>> = by
                    .values()
                    .map(|own| {
                        let s = own.get(key)?;
                        if k < 8 { grade(s, k).map(f64::from) } else { Some(s.score) }
                    })
                    .collect();
                Some((key.0.clone(), row?))
            });
            let cases = grouped(rows);
            IccRow {
                what: if k < 8 { Criterion::ALL[k].id().into() } else { "score".into() },
                n: cases.iter().map(Vec::len).sum(),
                icc: bootstrapped(&cases, ROUNDS, seed, icc_2_1),
            }
        })
        .collect();
    Ok(Agreement { cases: cases.len(), observers, seed, pairs, all })
}

/// Grade of criterion `k`, or with 8 the verdict from 1 (A) to 4.
fn grade(s: &StructureReport, k: usize) -> Option<u8> {
    match Criterion::ALL.get(k) {
        Some(c) => s.grade(*c),
        None => Some(s.verdict as u8 + 1),
    }
}

fn grouped<T>(items: impl Iterator<Item = (String, T)>) -> Vec<Vec<T>> {
    let mut out: BTreeMap<String, Vec<T>> = BTreeMap::new();
    for (case, item) in items {
        out.entry(case).or_default().push(item);
    }
    out.into_values().collect()
}

impl Agreement {
    /// As Markdown.
    pub fn markdown(&self) -> String {
        let cell = |i: &Option<Interval>| {
            i.map_or("–".into(), |i| format!("{:.2} ({:.2} to {:.2})", i.value, i.low, i.high))
        };
        let mut out = format!(
            "# Agreement between observers\n\n{} over {} cases; 95 % intervals by resampling cases, seed {}.\n\n\
             | observers | | structures | quadratic weighted kappa |\n|---|---|---:|---|\n",
            self.observers.join("; "),
            self.cases,
            self.seed
        );
        for r in &self.pairs {
            let _ = writeln!(out, "| {} – {} | {} | {} | {} |", r.a, r.b, r.what, r.n, cell(&r.kappa));
        }
        out.push_str("\n| all observers | structures | ICC(2,1) |\n|---|---:|---|\n");
        for r in &self.all {
            let _ = writeln!(out, "| {} | {} | {} |", r.what, r.n, cell(&r.icc));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segex::observe::{FILE_VERSION, Opinion, Shown};
    use crate::terms::structure;

    fn file(case: &str, observer: &str, grades: [u8; 2]) -> ReportFile {
        let structures = ["VL", "VM"]
            .iter()
            .zip(grades)
            .map(|(k, g)| {
                let shown =
                    Shown { structure: structure(k).unwrap(), side: None, label: 1, volume_mm3: 1.0, slices: 3 };
                let mut o = Opinion { grades: [Some(g); 8], ..Opinion::default() };
                o.grades[6] = None;
                o.report(&shown, "test")
            })
            .collect();
        let report = Report::new(observer.into(), false, false, structures);
        ReportFile { segex: FILE_VERSION, case: case.into(), reports: vec![report], problems: vec![] }
    }

    #[test]
    fn observers_are_compared_on_what_both_graded() {
        let files = [
            file("1", "device", [5, 3]),
            file("2", "device", [2, 4]),
            file("3", "device", [1, 1]),
            file("1", "person A", [5, 3]),
            file("2", "person A", [2, 4]),
            file("1", "person B", [1, 3]),
            file("2", "person B", [4, 2]),
        ];
        let a = agreement(&files, 1).unwrap();
        assert_eq!((a.observers.len(), a.cases, a.pairs.len(), a.all.len()), (3, 3, 27, 9));
        let c1 = &a.pairs[0];
        assert_eq!((c1.a.as_str(), c1.b.as_str(), c1.what.as_str(), c1.n), ("device", "person A", "C1", 4));
        assert_eq!(c1.kappa.unwrap().value, 1.0);
        assert!(a.pairs[9].kappa.unwrap().value < 0.5, "device and person B");
        assert_eq!((a.pairs[6].n, a.pairs[6].kappa), (0, None), "nobody graded C7");
        assert!(a.all[0].icc.unwrap().value < 1.0 && a.all[0].n == 4);
        assert!(a.markdown().contains("| device – person A | C1 | 4 | 1.00"));
        assert_eq!(a, agreement(&files, 1).unwrap());
    }

    #[test]
    fn the_same_report_twice_or_alone_is_an_error() {
        let one = [file("1", "device", [5, 3])];
        assert!(matches!(agreement(&one, 1), Err(AgreeError::One(_))));
        let twice = [file("1", "device", [5, 3]), file("1", "device", [5, 3])];
        assert!(agreement(&twice, 1).unwrap_err().to_string().contains("VL of case 1 twice"));
    }
}
