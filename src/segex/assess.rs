//! Grades without ground truth: measurements against cuts, a score and a verdict.
//!
//! Without a calibration the cuts are defaults set on phantoms and on eight real thighs whose true masks were eroded and
//! dilated by 3 mm (boundary: true 0.61-0.84, spoilt 0.29-0.67), and the report says that it is not calibrated.

use super::calibration::SegexCalibration;
use super::features::{Feature, Features};
use super::measure::{self, Between, Edges, Measure, Region};
use super::rim::{Rim, likeness, rim};
use super::score::{Cuts, Graded, NAMED, graded};
use super::shape::{LegFrame, ShapeStatistics, shape};
use super::{Criterion, Grade, Report, StructureReport};
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
#[derive(Clone)]
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
    /// Voxels on each slice that another segment claims too; empty where segments cannot overlap.
    pub overlap: &'a [usize],
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
    /// A second result of the same images with the same labels, beside which a mask from elsewhere is laid.
    pub second: Option<&'a LabelMap>,
    /// The legs.
    pub legs: Vec<LegInput<'a>>,
    /// The structures.
    pub structures: Vec<StructureInput<'a>>,
    /// Shapes of the labelled slices; may be empty.
    pub shapes: &'a [ShapeStatistics],
    /// From measurements to the grades that ground truth would give; none where the adapter has not been calibrated.
    pub calibration: Option<&'a SegexCalibration>,
}

const BOUNDARY: Cuts = Cuts::at_least([0.62, 0.50, 0.38, 0.26]);
const COMPLETENESS: Cuts = Cuts::at_most([0.05, 0.10, 0.20, 0.40]);
const OVER: Cuts = Cuts::at_most([0.05, 0.10, 0.20, 0.40]);
const ANATOMY: Cuts = Cuts::at_most([1.3, 1.7, 2.2, 3.0]);
const TOPOLOGY: Cuts = Cuts::at_most([0.01, 0.03, 0.08, 0.20]);
const BETWEEN: Cuts = Cuts::at_most([0.20, 0.30, 0.40, 0.55]);
const STABILITY: Cuts = Cuts::at_least([0.95, 0.90, 0.85, 0.75]);
const BURDEN: Cuts = Cuts::at_most([0.05, 0.15, 0.40, 0.70]);
/// A soft band up to this wide, mm, is what partial volume alone gives.
const SHARP_MM: f64 = 2.5;
/// What each further millimetre of the soft band takes from C1's measurement.
const SOFT_PER_MM: f64 = 0.04;
/// Share of outlying intensities that a clean muscle shows: fat streaks and vessels.
const CLEAN_OUTLIERS: f64 = 0.05;
/// A neighbour's area may differ by this much before C6 falls by one.
const AREA_JUMP: f64 = 0.5;
/// A centroid may move this far between slices 5 mm apart before C6 falls by one, millimetres.
const SHIFT_MM: f64 = 10.0;
/// Labelled slices below which shapes are marked as few.
const FEW_SHAPES: usize = 20;

/// Grades every structure by C1 to C8 without ground truth, calibrated where a calibration is given.
pub fn assess(input: &SegexInput) -> Report {
    let edges = edge_strengths(input);
    let structures: Vec<StructureReport> =
        input.structures.iter().map(|s| measured(input, s, &edges).report(input.calibration)).collect();
    Report::new("device".into(), input.calibration.is_some(), false, structures)
}

/// The edge strength of each leg of an input.
pub fn edge_strengths(input: &SegexInput) -> Vec<f32> {
    input.legs.iter().map(|l| measure::edge_strength(input.volume, l.mask)).collect()
}

/// What was measured on one structure's mask.
#[derive(Clone, Debug)]
pub struct Measured {
    structure: Structure,
    side: Option<Side>,
    label: u8,
    volume_mm3: f64,
    /// Slices on which the classifier sees the structure.
    present: usize,
    edges: Edges,
    soft: Measure,
    added: Measure,
    dropped: Measure,
    same: Measure,
    outliers: Measure,
    overlap: Measure,
    anatomy: Measure,
    shapes: Option<usize>,
    topology: Measure,
    between: Between,
    iou: Measure,
    certain: Measure,
    rim: Rim,
    likeness: [Measure; 2],
}

/// Measures one structure; `edges` are those of [`edge_strengths`].
pub fn measured(input: &SegexInput, s: &StructureInput, edges: &[f32]) -> Measured {
    let region = if s.label == 0 { None } else { Region::of(input.labels, s.label) };
    let mut m = Measured {
        structure: s.structure.clone(),
        side: s.side,
        label: s.label,
        volume_mm3: 0.0,
        present: s.presence.iter().filter(|p| **p >= 0.5).count(),
        edges: Edges::default(),
        soft: Measure::default(),
        added: Measure::default(),
        dropped: Measure::default(),
        same: Measure::default(),
        outliers: Measure::default(),
        overlap: Measure::default(),
        anatomy: Measure::default(),
        shapes: None,
        topology: Measure::default(),
        between: Between::default(),
        iou: Measure::default(),
        certain: Measure::default(),
        rim: Rim::default(),
        likeness: Default::default(),
    };
    let Some(region) = region else { return m };
    let dims = input.labels.geometry.dims;
    m.volume_mm3 = region.total() * input.labels.geometry.voxel_mm3();
    m.edges = measure::boundary(&region, input.volume, edges.get(s.leg).copied().unwrap_or(0.0));
    m.soft = measure::soft_band(&region, input.entropy, dims);
    [m.added, m.dropped, m.same] = measure::agreement(input.labels, input.passes, s.label);
    m.outliers = measure::outliers(&region, input.volume);
    m.overlap = measure::overlap(&region, s.overlap);
    (m.anatomy, m.shapes) = anatomy(input, s, &region);
    m.topology = measure::topology(&region);
    m.between = measure::between(&region);
    m.iou = estimate(s, &region);
    m.certain = certainty(input, &region);
    m.rim = rim(input.labels, s.label, input.volume, input.legs.get(s.leg).map_or(&[], |l| l.mask));
    if let Some(other) = input.second {
        m.likeness = likeness(input.labels, other, s.label);
    }
    m
}

impl Measured {
    /// The measurements as numbers, in the order of [`Feature::ALL`].
    pub fn features(&self) -> Features {
        let mut f = Features::default();
        let mut set = |k: Feature, v: Option<f64>| f[k as usize] = v;
        set(Feature::Edge, self.edges.strength.value);
        set(Feature::RelativeEdge, self.edges.relative.value);
        set(Feature::SoftBand, self.soft.value);
        set(Feature::Added, self.added.value);
        set(Feature::Dropped, self.dropped.value);
        set(Feature::Outliers, self.outliers.value);
        set(Feature::Overlap, self.overlap.value);
        set(Feature::Anatomy, self.anatomy.value);
        set(Feature::Topology, self.topology.value);
        let pairs = self.between.loss.value;
        set(Feature::NeighbourLoss, pairs);
        set(Feature::AreaJump, pairs.map(|_| self.between.jump));
        set(Feature::Shift, pairs.map(|_| self.between.shift_mm));
        set(Feature::Missing, pairs.map(|_| self.between.missing.len() as f64));
        set(Feature::Agreement, self.same.value);
        set(Feature::Iou, self.iou.value);
        set(Feature::Certainty, self.certain.value);
        let least = |m: &Measure| m.slices.iter().map(|s| s.1).min_by(f64::total_cmp);
        let largest = |m: &Measure| m.slices.iter().map(|s| s.1).max_by(f64::total_cmp);
        set(Feature::Unclaimed, self.rim.unclaimed.value);
        set(Feature::Foreign, self.rim.foreign.value);
        set(Feature::Rough, self.rim.rough.value);
        set(Feature::Step, self.rim.step.value);
        set(Feature::WorstEdge, least(&self.edges.relative));
        set(Feature::WorstAnatomy, largest(&self.anatomy));
        set(Feature::WorstLoss, pairs.and_then(|_| largest(&self.between.loss)));
        set(Feature::SecondDice, self.likeness[0].value);
        set(Feature::SecondSurface, self.likeness[1].value);
        set(Feature::WorstSecond, least(&self.likeness[1]));
        f
    }

    /// The same without the second result, as if there had been none.
    pub fn alone(&self) -> Self {
        Measured { likeness: Default::default(), ..self.clone() }
    }

    /// Whether the mask has no voxel.
    pub fn is_empty(&self) -> bool {
        self.volume_mm3 == 0.0
    }

    /// Grades, score and verdict; by the default cuts without a calibration.
    pub fn report(&self, calibration: Option<&SegexCalibration>) -> StructureReport {
        let what =
            Graded { structure: &self.structure, side: self.side, label: self.label, volume_mm3: self.volume_mm3 };
        if self.is_empty() {
            let remark = format!("the mask is empty, but the classifier sees the structure on {} slices", self.present);
            return what.redo("the mask is empty", remark);
        }
        let mut remarks = Vec::new();
        let mut grades = vec![
            self.boundary(),
            self.completeness(),
            self.over(),
            self.anatomy(&mut remarks),
            graded(
                Criterion::Topology,
                TOPOLOGY,
                self.topology.clone(),
                "share outside the largest component plus share of holes",
            ),
            self.between(&mut remarks),
            self.stability(),
        ];
        grades.push(burden(&grades));
        let mut score = None;
        if let Some(c) = calibration {
            let foretold = c.foretell(&self.features());
            for g in &mut grades {
                // What a calibration had nothing to learn from keeps its default cuts.
                if let Some(grade) = foretold.and_then(|f| f.grades[g.criterion as usize]) {
                    g.grade = Some(grade);
                }
                // No calibration ever saw segments that overlap.
                if let (Criterion::OverSegmentation, Some(share)) = (g.criterion, self.overlap.value) {
                    g.grade = g.grade.map(|v| v.min(OVER.grade(share)));
                }
                if g.grade.is_some_and(|g| g > 3) {
                    g.slices.clear();
                }
            }
            score = foretold.map(|f| f.score);
            remarks.extend(c.caution());
        }
        what.report(grades, score, remarks)
    }

    fn boundary(&self) -> Grade {
        let soft = |v: Option<f64>| v.map_or(0.0, |mm| SOFT_PER_MM * (mm - SHARP_MM).max(0.0));
        let of = |z: usize| self.soft.slices.iter().find(|s| s.0 == z).map(|s| s.1);
        let m = Measure {
            value: self.edges.strength.value.map(|v| v - soft(self.soft.value)),
            slices: self.edges.strength.slices.iter().map(|&(z, v)| (z, v - soft(of(z)))).collect(),
        };
        let words =
            "mean gradient along the contour over the leg's 95th percentile, less for a soft band beyond 2.5 mm";
        graded(Criterion::Boundary, BOUNDARY, m, words)
    }

    fn completeness(&self) -> Grade {
        if self.added.value.is_some() || self.rim.unclaimed.value.is_none() {
            let words = "pixels that an augmented pass adds, over the mask";
            return graded(Criterion::Completeness, COMPLETENESS, self.added.clone(), words);
        }
        // Only a calibration knows how much of its like a structure has beside it, so this has no default cuts.
        Grade {
            criterion: Criterion::Completeness,
            grade: None,
            value: self.rim.unclaimed.value.unwrap_or(0.0),
            measure: "share of the 3 mm outside that looks like the structure and that no label claims".into(),
            slices: Vec::new(),
        }
    }

    fn over(&self) -> Grade {
        let excess = |v: f64| (v - CLEAN_OUTLIERS).max(0.0);
        let at = |m: &Measure, z: usize| m.slices.iter().find(|d| d.0 == z).map_or(0.0, |d| d.1);
        let slices = self
            .outliers
            .slices
            .iter()
            .map(|&(z, v)| (z, excess(v) + at(&self.dropped, z) + at(&self.overlap, z)))
            .collect();
        let parts = [self.dropped.value, self.outliers.value.map(excess), self.overlap.value];
        let value = parts.iter().any(Option::is_some).then(|| parts.iter().flatten().sum());
        graded(
            Criterion::OverSegmentation,
            OVER,
            Measure { value, slices },
            "pixels that not every pass keeps, outlying intensities beyond 5 % and overlap with other segments, over the mask",
        )
    }

    fn anatomy(&self, remarks: &mut Vec<String>) -> Grade {
        let words =
            "Mahalanobis distance per feature of size, place, eccentricity and solidity from the labelled slices";
        match self.shapes {
            None => {
                let none = "no shapes of labelled slices to compare with";
                graded(Criterion::Anatomy, ANATOMY, Measure::default(), none)
            }
            Some(count) => {
                if count < FEW_SHAPES {
                    remarks.push(format!("anatomy is compared with {count} labelled slices only: low confidence"));
                }
                graded(Criterion::Anatomy, ANATOMY, self.anatomy.clone(), words)
            }
        }
    }

    fn between(&self, remarks: &mut Vec<String>) -> Grade {
        let b = &self.between;
        let words = "loss of overlap between neighbouring slices (1 - Dice, per 5 mm)";
        let mut g = graded(Criterion::BetweenSlices, BETWEEN, b.loss.clone(), words);
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

    fn stability(&self) -> Grade {
        // The passes are what was asked; the estimate and the entropy count half.
        let parts = [(self.same.value, 1.0), (self.iou.value, 0.5), (self.certain.value, 0.5)];
        let (sum, weight) =
            parts.iter().filter_map(|(v, w)| v.map(|v| (v * w, w))).fold((0.0, 0.0), |(a, b), (v, w)| (a + v, b + w));
        let m = Measure {
            value: (weight > 0.0).then(|| sum / weight),
            slices: if self.same.slices.is_empty() { self.iou.slices.clone() } else { self.same.slices.clone() },
        };
        let words = "agreement of the augmented passes, the decoder's IoU estimate and certainty";
        graded(Criterion::Stability, STABILITY, m, words)
    }
}

/// C4 over the slices, and the labelled slices behind it.
fn anatomy(input: &SegexInput, s: &StructureInput, region: &Region) -> (Measure, Option<usize>) {
    let (Some(statistics), Some(leg)) = (input.shapes.iter().find(|x| x.key == s.structure.key), input.legs.get(s.leg))
    else {
        return (Measure::default(), None);
    };
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
    (Measure { value: (!slices.is_empty()).then_some(value), slices }, Some(statistics.count))
}

/// The decoder's estimate of its IoU over the slices of the mask.
fn estimate(s: &StructureInput, region: &Region) -> Measure {
    let slices: Vec<(usize, f64)> = region
        .areas()
        .iter()
        .enumerate()
        .filter(|(_, n)| **n > 0)
        .filter_map(|(z, _)| Some((region.start[2] + z, f64::from(s.iou.get(region.start[2] + z)?.clamp(0.0, 1.0)))))
        .collect();
    let value = (!slices.is_empty()).then(|| slices.iter().map(|v| v.1).sum::<f64>() / slices.len() as f64);
    Measure { value, slices }
}

/// One less the mean entropy inside the mask.
fn certainty(input: &SegexInput, region: &Region) -> Measure {
    if input.entropy.is_empty() {
        return Measure::default();
    }
    let inside = region.cut(input.entropy, input.labels.geometry.dims).zip(&region.mask).filter(|(_, m)| **m);
    let (sum, n) = inside.fold((0.0, 0.0), |(a, n), (e, _)| (a + f64::from(*e), n + 1.0));
    Measure { value: Some(1.0 - sum / f64::max(n, 1.0)), slices: Vec::new() }
}

/// C8 from C1 to C7: the weighted mean shortfall from 5, raised so that small shortfalls weigh little.
fn burden(grades: &[Grade]) -> Grade {
    let (sum, weight) = grades
        .iter()
        .filter_map(|g| g.grade.map(|v| (g.criterion.weight() * f64::from(5 - v) / 4.0, g.criterion.weight())))
        .fold((0.0, 0.0), |(a, b), (v, w)| (a + v, b + w));
    let value = (weight > 0.0).then(|| (sum / weight).powf(1.5));
    let words = "predicted share of the contour to redraw, from C1 to C7";
    graded(Criterion::EditBurden, BURDEN, Measure { value, slices: Vec::new() }, words)
}
