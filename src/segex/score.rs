//! From measurements to grades, and from grades to a score and a verdict; the same with and without ground truth.

use super::measure::Measure;
use super::{Criterion, Grade, StructureReport, Verdict};
use crate::terms::{Side, Structure};

/// Cuts between the grades 5, 4, 3, 2 and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cuts {
    /// In the order 5|4, 4|3, 3|2, 2|1.
    pub at: [f64; 4],
    /// Whether large is good.
    pub rising: bool,
}

impl Cuts {
    /// Large is good.
    pub const fn at_least(at: [f64; 4]) -> Self {
        Cuts { at, rising: true }
    }
    /// Small is good.
    pub const fn at_most(at: [f64; 4]) -> Self {
        Cuts { at, rising: false }
    }
    /// 1 to 5.
    pub fn grade(&self, v: f64) -> u8 {
        let passed = |cut: f64| if self.rising { v >= cut } else { v <= cut };
        5 - self.at.iter().take_while(|c| !passed(**c)).count() as u8
    }
}

/// Slices named with a grade.
pub(super) const NAMED: usize = 5;

/// A grade from a measurement; the slices are those that would be graded 3 or worse by themselves, worst first.
pub(super) fn graded(criterion: Criterion, cuts: Cuts, m: Measure, words: &str) -> Grade {
    let mut bad: Vec<(usize, f64)> = m.slices.into_iter().filter(|(_, v)| cuts.grade(*v) <= 3).collect();
    bad.sort_by(|a, b| if cuts.rising { a.1.total_cmp(&b.1) } else { b.1.total_cmp(&a.1) });
    Grade {
        criterion,
        grade: m.value.map(|v| cuts.grade(v)),
        value: m.value.unwrap_or(0.0),
        measure: words.into(),
        slices: bad.into_iter().take(NAMED).map(|(z, _)| z).collect(),
    }
}

/// `25 x sum w (g - 1) / sum w` over the criteria that could be measured, and its verdict.
pub(super) fn score(grades: &[Grade]) -> (f64, Verdict) {
    let (sum, weight) = grades
        .iter()
        .filter_map(|g| g.grade.map(|v| (g.criterion.weight() * f64::from(v - 1), g.criterion.weight())))
        .fold((0.0, 0.0), |(a, b), (v, w)| (a + v, b + w));
    let score = if weight > 0.0 { 25.0 * sum / weight } else { 0.0 };
    (score, Verdict::of(score))
}

/// What is graded: a structure's name, side, label and volume.
pub(super) struct Graded<'a> {
    pub structure: &'a Structure,
    pub side: Option<Side>,
    pub label: u8,
    pub volume_mm3: f64,
}

impl Graded<'_> {
    /// The report of grades: score (that of the grades unless one was foretold), verdict, and the cap of C at best where C3, C4
    /// or C5 is 1.
    pub fn report(self, grades: Vec<Grade>, foretold: Option<f64>, mut remarks: Vec<String>) -> StructureReport {
        let (score, mut verdict) = foretold.map_or_else(|| score(&grades), |s| (s, Verdict::of(s)));
        if let Some(g) = grades.iter().find(|g| {
            matches!(g.criterion, Criterion::OverSegmentation | Criterion::Anatomy | Criterion::Topology)
                && g.grade == Some(1)
        }) {
            verdict = verdict.max(Verdict::C);
            remarks.push(format!("{} ({}) is graded 1: major edits at best", g.criterion.name(), g.criterion.id()));
        }
        StructureReport {
            structure: self.structure.clone(),
            side: self.side,
            label: self.label,
            volume_mm3: self.volume_mm3,
            grades,
            score,
            verdict,
            remarks,
        }
    }

    /// The report of a mask that is to be redone without further ado; `why` stands as every grade's measure.
    pub fn redo(self, why: &str, remark: String) -> StructureReport {
        let grade = |&criterion: &Criterion| Grade {
            criterion,
            grade: None,
            value: 0.0,
            measure: why.into(),
            slices: Vec::new(),
        };
        StructureReport {
            structure: self.structure.clone(),
            side: self.side,
            label: self.label,
            volume_mm3: self.volume_mm3,
            grades: Criterion::ALL.iter().map(grade).collect(),
            score: 0.0,
            verdict: Verdict::D,
            remarks: vec![remark],
        }
    }
}
