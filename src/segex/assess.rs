//! Grades without ground truth: measurements against cuts, a score and a verdict.
//!
//! The cuts are defaults set on phantoms and on eight real thighs whose true masks were eroded and dilated by 3 mm
//! (boundary: true 0.61-0.84, spoilt 0.29-0.67); they are not calibrated, and every report made
//! with them says so.

use super::measure::{self, Measure, Region};
use super::shape::{LegFrame, ShapeStatistics, shape};
use super::{Criterion, Grade, Report, StructureReport, Verdict};
use crate::image::{LabelMap, Volume};
use crate::terms::{Side, Structure};

/// A leg: where it is and how it lies.
pub struct LegInput<'a> {
    /// The leg's voxels on the volume's grid.
    pub mask: &'a [bool],
    /// Its box and orientation.
    pub frame: LegFrame,
}

/// One structure to grade.
pub struct StructureInput<'a> {
    /// The structure.
    pub structure: &'a Structure,
    /// Its side, where known.
    pub side: Option<Side>,
    /// Its label in the label map; 0 where the mask is empty and it has none.
    pub label: u8,
    /// Its leg, an index into [`SegexInput::legs`].
    pub leg: usize,
    /// The classifier's probability of presence on each slice; empty where unknown.
    pub presence: &'a [f32],
    /// The decoder's own estimate of its IoU on each slice; empty where unknown.
    pub iou: &'a [f32],
}

/// All that grading without ground truth looks at.
pub struct SegexInput<'a> {
    /// The image.
    pub volume: &'a Volume,
    /// The result.
    pub labels: &'a LabelMap,
    /// Results of the augmented passes, with the same labels; may be empty.
    pub passes: &'a [LabelMap],
    /// Binary entropy of the chosen label, 0 to 1, per voxel; may be empty.
    pub entropy: &'a [f32],
    /// The legs.
    pub legs: Vec<LegInput<'a>>,
    /// The structures.
    pub structures: Vec<StructureInput<'a>>,
    /// Shapes of the labelled slices; may be empty.
    pub shapes: &'a [ShapeStatistics],
}

/// Cuts between the grades 5, 4, 3, 2 and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cuts {
    at: [f64; 4],
    rising: bool,
}

impl Cuts {
    /// Large is good.
    const fn at_least(at: [f64; 4]) -> Self {
        Cuts { at, rising: true }
    }
    /// Small is good.
    const fn at_most(at: [f64; 4]) -> Self {
        Cuts { at, rising: false }
    }
    fn grade(&self, v: f64) -> u8 {
        let passed = |cut: f64| if self.rising { v >= cut } else { v <= cut };
        5 - self.at.iter().take_while(|c| !passed(**c)).count() as u8
    }
}

const BOUNDARY: Cuts = Cuts::at_least([0.62, 0.50, 0.38, 0.26]);
const COMPLETENESS: Cuts = Cuts::at_most([0.05, 0.10, 0.20, 0.40]);
const OVER: Cuts = Cuts::at_most([0.05, 0.10, 0.20, 0.40]);
const ANATOMY: Cuts = Cuts::at_most([1.3, 1.7, 2.2, 3.0]);
const TOPOLOGY: Cuts = Cuts::at_most([0.01, 0.03, 0.08, 0.20]);
const BETWEEN: Cuts = Cuts::at_most([0.20, 0.30, 0.40, 0.55]);
const STABILITY: Cuts = Cuts::at_least([0.95, 0.90, 0.85, 0.75]);
const BURDEN: Cuts = Cuts::at_most([0.05, 0.15, 0.40, 0.70]);
/// Share of outlying intensities that a clean muscle shows: fat streaks and vessels.
const CLEAN_OUTLIERS: f64 = 0.05;
/// A neighbour's area may differ by this much before C6 falls by one.
const AREA_JUMP: f64 = 0.5;
/// A centroid may move this far between slices 5 mm apart before C6 falls by one, millimetres.
const SHIFT_MM: f64 = 10.0;
/// Slices named with a grade.
const NAMED: usize = 5;

/// Grades every structure by C1 to C8 without ground truth. The report is marked as not calibrated.
pub fn assess(input: &SegexInput) -> Report {
    let edges: Vec<f32> = input.legs.iter().map(|l| measure::edge_strength(input.volume, l.mask)).collect();
    let structures: Vec<StructureReport> =
        input.structures.iter().map(|s| grade_structure(input, s, edges.get(s.leg).copied().unwrap_or(0.0))).collect();
    let n = structures.len().max(1) as f64;
    Report {
        observer: "device".into(),
        calibrated: false,
        with_ground_truth: false,
        score: structures.iter().map(|s| s.score).sum::<f64>() / n,
        verdict: structures.iter().map(|s| s.verdict).max().unwrap_or(Verdict::D),
        structures,
    }
}

fn grade_structure(input: &SegexInput, s: &StructureInput, edge: f32) -> StructureReport {
    let region = if s.label == 0 { None } else { Region::of(input.labels, s.label) };
    let Some(region) = region else { return empty(s) };
    let mut remarks = Vec::new();
    let mut grades = vec![graded(
        Criterion::Boundary,
        BOUNDARY,
        measure::boundary(&region, input.volume, edge),
        "mean gradient along the contour over the leg's 95th percentile",
    )];
    let [added, dropped, same] = measure::agreement(input.labels, input.passes, s.label);
    grades.push(graded(
        Criterion::Completeness,
        COMPLETENESS,
        added,
        "pixels that an augmented pass adds, over the mask",
    ));
    grades.push(over(&region, input, dropped));
    grades.push(anatomy(input, s, &region, &mut remarks));
    grades.push(graded(
        Criterion::Topology,
        TOPOLOGY,
        measure::topology(&region),
        "share outside the largest component plus share of holes",
    ));
    grades.push(between(&region, &mut remarks));
    grades.push(stability(input, s, &region, same));
    grades.push(burden(&grades));
    let (score, mut verdict) = score(&grades);
    if let Some(g) = grades.iter().find(|g| {
        matches!(g.criterion, Criterion::OverSegmentation | Criterion::Anatomy | Criterion::Topology)
            && g.grade == Some(1)
    }) {
        if verdict < Verdict::C {
            verdict = Verdict::C;
        }
        remarks.push(format!("{} ({}) is graded 1: major edits at best", g.criterion.name(), g.criterion.id()));
    }
    let voxels = region.mask.iter().filter(|&&m| m).count() as f64;
    StructureReport {
        structure: s.structure.clone(),
        side: s.side,
        label: s.label,
        volume_mm3: voxels * input.labels.geometry.voxel_mm3(),
        grades,
        score,
        verdict,
        remarks,
    }
}

fn empty(s: &StructureInput) -> StructureReport {
    let present = s.presence.iter().filter(|p| **p >= 0.5).count();
    StructureReport {
        structure: s.structure.clone(),
        side: s.side,
        label: s.label,
        volume_mm3: 0.0,
        grades: Criterion::ALL
            .iter()
            .map(|&criterion| Grade {
                criterion,
                grade: None,
                value: 0.0,
                measure: "the mask is empty".into(),
                slices: Vec::new(),
            })
            .collect(),
        score: 0.0,
        verdict: Verdict::D,
        remarks: vec![format!("the mask is empty, but the classifier sees the structure on {present} slices")],
    }
}

/// A grade from a measurement; the slices are those that would be graded 3 or worse by themselves, worst first.
fn graded(criterion: Criterion, cuts: Cuts, m: Measure, words: &str) -> Grade {
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

fn over(region: &Region, input: &SegexInput, dropped: Measure) -> Grade {
    let outliers = measure::outliers(region, input.volume);
    let excess = |v: f64| (v - CLEAN_OUTLIERS).max(0.0);
    let slices = outliers
        .slices
        .iter()
        .map(|&(z, v)| (z, excess(v) + dropped.slices.iter().find(|d| d.0 == z).map_or(0.0, |d| d.1)))
        .collect();
    let value = match (dropped.value, outliers.value) {
        (None, None) => None,
        (a, b) => Some(a.unwrap_or(0.0) + excess(b.unwrap_or(0.0))),
    };
    graded(
        Criterion::OverSegmentation,
        OVER,
        Measure { value, slices },
        "pixels that not every pass keeps plus outlying intensities beyond 5 %, over the mask",
    )
}

fn anatomy(input: &SegexInput, s: &StructureInput, region: &Region, remarks: &mut Vec<String>) -> Grade {
    let words = "Mahalanobis distance per feature of size, place, eccentricity and solidity from the labelled slices";
    let (Some(statistics), Some(leg)) = (input.shapes.iter().find(|x| x.key == s.structure.key), input.legs.get(s.leg))
    else {
        return graded(Criterion::Anatomy, ANATOMY, Measure::default(), "no shapes of labelled slices to compare with");
    };
    if statistics.count < 20 {
        remarks.push(format!("anatomy is compared with {} labelled slices only: low confidence", statistics.count));
    }
    let start = [region.start[0], region.start[1]];
    let slices: Vec<(usize, f64)> = region
        .mask
        .chunks(region.plane())
        .enumerate()
        .filter_map(|(z, plane)| {
            let f = shape(plane, region.dims[0], start, &leg.frame)?;
            Some((region.start[2] + z, statistics.distance(&f)))
        })
        .collect();
    let n = slices.len().max(1) as f64;
    let value = (slices.iter().map(|(_, d)| d * d).sum::<f64>() / n).sqrt();
    graded(Criterion::Anatomy, ANATOMY, Measure { value: (!slices.is_empty()).then_some(value), slices }, words)
}

fn between(region: &Region, remarks: &mut Vec<String>) -> Grade {
    let b = measure::between(region);
    let mut g = graded(
        Criterion::BetweenSlices,
        BETWEEN,
        b.loss,
        "loss of overlap between neighbouring slices (1 - Dice, per 5 mm)",
    );
    if let Some(grade) = &mut g.grade {
        if b.jump > AREA_JUMP {
            *grade = grade.saturating_sub(1).max(1);
            remarks.push(format!("the area jumps by {:.0} % between neighbouring slices", 100.0 * b.jump));
        }
        if b.shift_mm > SHIFT_MM {
            *grade = grade.saturating_sub(1).max(1);
            remarks.push(format!("the centroid jumps by {:.0} mm between neighbouring slices", b.shift_mm));
        }
        if !b.missing.is_empty() {
            *grade = (*grade).min(2);
            remarks.push(format!("missing on {} inner slices", b.missing.len()));
            g.slices.splice(0..0, b.missing.iter().copied().take(NAMED));
            g.slices.truncate(NAMED);
        }
    }
    g
}

fn stability(input: &SegexInput, s: &StructureInput, region: &Region, same: Measure) -> Grade {
    let areas = region.areas();
    let iou: Vec<(usize, f64)> = areas
        .iter()
        .enumerate()
        .filter(|(_, n)| **n > 0)
        .filter_map(|(z, _)| Some((region.start[2] + z, f64::from(s.iou.get(region.start[2] + z)?.clamp(0.0, 1.0)))))
        .collect();
    let estimate = (!iou.is_empty()).then(|| iou.iter().map(|v| v.1).sum::<f64>() / iou.len() as f64);
    let certain = (!input.entropy.is_empty()).then(|| {
        let inside = region.cut(input.entropy, input.labels.geometry.dims).zip(&region.mask).filter(|(_, m)| **m);
        let (sum, n) = inside.fold((0.0, 0.0), |(a, n), (e, _)| (a + f64::from(*e), n + 1.0));
        1.0 - sum / f64::max(n, 1.0)
    });
    // The passes are what was asked; the estimate and the entropy count half.
    let parts = [(same.value, 1.0), (estimate, 0.5), (certain, 0.5)];
    let (sum, weight) =
        parts.iter().filter_map(|(v, w)| v.map(|v| (v * w, w))).fold((0.0, 0.0), |(a, b), (v, w)| (a + v, b + w));
    let m = Measure {
        value: (weight > 0.0).then(|| sum / weight),
        slices: if same.slices.is_empty() { iou } else { same.slices },
    };
    graded(
        Criterion::Stability,
        STABILITY,
        m,
        "agreement of the augmented passes, the decoder's IoU estimate and certainty",
    )
}

/// C8 from C1 to C7: the weighted mean shortfall from 5, raised so that small shortfalls weigh little.
fn burden(grades: &[Grade]) -> Grade {
    let (sum, weight) = grades
        .iter()
        .filter_map(|g| g.grade.map(|v| (g.criterion.weight() * f64::from(5 - v) / 4.0, g.criterion.weight())))
        .fold((0.0, 0.0), |(a, b), (v, w)| (a + v, b + w));
    let value = (weight > 0.0).then(|| (sum / weight).powf(1.5));
    graded(
        Criterion::EditBurden,
        BURDEN,
        Measure { value, slices: Vec::new() },
        "predicted share of the contour to redraw, from C1 to C7",
    )
}

/// `25 x sum w (g - 1) / sum w` over the criteria that could be measured, and its verdict.
fn score(grades: &[Grade]) -> (f64, Verdict) {
    let (sum, weight) = grades
        .iter()
        .filter_map(|g| g.grade.map(|v| (g.criterion.weight() * f64::from(v - 1), g.criterion.weight())))
        .fold((0.0, 0.0), |(a, b), (v, w)| (a + v, b + w));
    let score = if weight > 0.0 { 25.0 * sum / weight } else { 0.0 };
    let verdict = match score {
        s if s >= 85.0 => Verdict::A,
        s if s >= 70.0 => Verdict::B,
        s if s >= 45.0 => Verdict::C,
        _ => Verdict::D,
    };
    (score, verdict)
}
