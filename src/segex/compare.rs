//! Grades against ground truth: the eight criteria measured on a mask and the truth.

use super::measure::{Measure, Region};
use super::score::{Cuts, Graded, graded};
use super::{Criterion, Grade, Report, StructureReport};
use crate::image::LabelMap;
use crate::image::morphology::{Connectivity, components, contour, distance, fill_holes};
use crate::image::surface::{hd95, surface_distances};
use crate::terms::{Side, Structure};

/// One structure to compare.
#[derive(Clone, Copy, Debug)]
pub struct ComparedStructure<'a> {
    /// The structure.
    pub structure: &'a Structure,
    /// Its side, where known.
    pub side: Option<Side>,
    /// Its label in the result; 0 where the result has none.
    pub label: u8,
    /// Its label in the truth; 0 where the truth has none.
    pub truth: u8,
}

/// All that grading against ground truth looks at.
pub struct CompareInput<'a> {
    /// The result.
    pub labels: &'a LabelMap,
    /// The truth, on the same grid.
    pub truth: &'a LabelMap,
    /// Binary entropy of the result's chosen label, 0 to 1, per voxel, for C7; may be empty.
    pub entropy: &'a [f32],
    /// The structures.
    pub structures: &'a [ComparedStructure<'a>],
}

const SURFACE: Cuts = Cuts::at_least([0.95, 0.90, 0.80, 0.60]);
/// A surface as far off as this, mm, is graded 3 at best.
const FAR_MM: f64 = 10.0;
const SHARE: Cuts = Cuts::at_least([0.95, 0.90, 0.80, 0.65]);
const ANATOMY: Cuts = Cuts::at_most([0.05, 0.10, 0.20, 0.40]);
const TOPOLOGY: Cuts = Cuts::at_most([0.05, 0.15, 0.35, 0.75]);
const BETWEEN: Cuts = Cuts::at_most([0.05, 0.10, 0.20, 0.40]);
const CONFIDENCE: Cuts = Cuts::at_most([0.05, 0.10, 0.15, 0.25]);
const BURDEN: Cuts = Cuts::at_most([0.05, 0.15, 0.40, 0.70]);
/// Pieces and holes smaller than this, square millimetres, are not counted: nobody would correct them.
const SPECK_MM2: f64 = 5.0;

/// Grades a result against the truth by C1 to C8, each structure over the volume. A structure that neither has is left out.
///
/// C1: surface Dice at the larger of 1 mm and one pixel, at most 3 where HD95 is above 10 mm. C2: recall. C3: precision.
/// C4: the larger of the relative volume error and the distance of the centroids over the truth's equivalent radius.
/// C5: mean over slices of the differences in pieces and in holes. C6: mean over neighbouring slices of the larger of the
/// errors in the change of area (relative) and of centroid (over the equivalent radius). C7: expected calibration error of
/// the voxels' confidence. C8: contour of the truth that has to be drawn, over its whole contour.
pub fn compare(input: &CompareInput) -> Report {
    let structures = input.structures.iter().filter_map(|s| structure(input, s)).collect();
    Report::new("device".into(), false, true, structures)
}

fn structure(input: &CompareInput, s: &ComparedStructure) -> Option<StructureReport> {
    let has = |map: &LabelMap, label: u8, i: usize| label > 0 && map.data[i] == label;
    let g = &input.labels.geometry;
    let region = Region::round(g, 2, |i| has(input.labels, s.label, i) || has(input.truth, s.truth, i))?;
    let cut = |map: &LabelMap, label: u8| -> Vec<bool> {
        region.cut(&map.data, g.dims).map(|&l| label > 0 && l == label).collect()
    };
    let pair = Pair {
        found: region.with(cut(input.labels, s.label)),
        truth: region.with(cut(input.truth, s.truth)),
        pixel: g.spacing[0].max(g.spacing[1]),
        single: g.dims[2] == 1,
    };
    let what =
        Graded { structure: s.structure, side: s.side, label: s.label, volume_mm3: pair.found.total() * g.voxel_mm3() };
    if pair.found.total() == 0.0 {
        return Some(what.redo("the mask is empty", "the mask is empty, but the truth has the structure".into()));
    }
    if pair.truth.total() == 0.0 {
        return Some(what.redo("the truth is empty", "the truth does not have the structure".into()));
    }
    let entropy: Vec<f32> =
        if input.entropy.is_empty() { vec![] } else { region.cut(input.entropy, g.dims).copied().collect() };
    let mut remarks = Vec::new();
    let (recall, precision) = pair.overlap();
    let grades = vec![
        pair.boundary(&mut remarks),
        graded(Criterion::Completeness, SHARE, recall, "recall: share of the truth that the mask has"),
        graded(Criterion::OverSegmentation, SHARE, precision, "precision: share of the mask that is true"),
        graded(
            Criterion::Anatomy,
            ANATOMY,
            pair.anatomy(),
            "the larger of relative volume error and centroid distance over the equivalent radius",
        ),
        graded(Criterion::Topology, TOPOLOGY, pair.topology(), "difference in pieces and holes per slice"),
        graded(
            Criterion::BetweenSlices,
            BETWEEN,
            pair.between(),
            "error in the change of area and centroid between neighbouring slices",
        ),
        graded(
            Criterion::Stability,
            CONFIDENCE,
            pair.confidence(&entropy),
            "expected calibration error of the voxels' confidence",
        ),
        graded(Criterion::EditBurden, BURDEN, pair.burden(), "added path length over the truth's contour"),
    ];
    Some(what.report(grades, None, remarks))
}

/// A mask and the truth in one box.
struct Pair {
    found: Region,
    truth: Region,
    /// The larger pixel spacing, mm.
    pixel: f64,
    /// Whether the volume is one slice, above and below which nothing is known.
    single: bool,
}

impl Pair {
    fn tolerance(&self) -> f64 {
        self.pixel.max(1.0) + 1e-6
    }

    fn planes(&self) -> impl Iterator<Item = (usize, &[bool], &[bool])> {
        let n = self.found.plane();
        let z0 = self.found.start[2];
        self.found.mask.chunks(n).zip(self.truth.mask.chunks(n)).enumerate().map(move |(z, (f, t))| (z0 + z, f, t))
    }

    /// Radius of the circle of the truth's mean area over the slices that have it, mm.
    fn radius(&self) -> f64 {
        let areas: Vec<usize> = self.truth.areas().into_iter().filter(|n| *n > 0).collect();
        let mean = areas.iter().sum::<usize>() as f64 / areas.len().max(1) as f64;
        (mean * self.truth.spacing[0] * self.truth.spacing[1] / std::f64::consts::PI).sqrt().max(1e-6)
    }

    fn boundary(&self, remarks: &mut Vec<String>) -> Grade {
        let r = &self.found;
        let (there, back) = surface_distances(&r.mask, &self.truth.mask, r.dims, r.spacing, |z| !self.single || z == 0);
        let tolerance = self.tolerance();
        let share = |z: Option<usize>| {
            let (mut n, mut near) = (0.0, 0.0);
            for (_, d) in there.iter().chain(&back).filter(|v| z.is_none_or(|z| v.0 == z)) {
                n += 1.0;
                near += f64::from(u8::from(*d <= tolerance));
            }
            (n > 0.0).then(|| near / n)
        };
        let slices = (0..r.dims[2]).filter_map(|z| Some((r.start[2] + z, share(Some(z))?))).collect();
        let m = Measure { value: share(None), slices };
        let mut grade = graded(Criterion::Boundary, SURFACE, m, "surface Dice at 1 mm or one pixel, whichever is more");
        if let (Some(mm), Some(g)) = (hd95(&there, &back), &mut grade.grade)
            && mm > FAR_MM
            && *g > 3
        {
            *g = 3;
            remarks.push(format!("the surface is up to {mm:.0} mm off (HD95): C1 is 3 at best"));
        }
        grade
    }

    /// Recall and precision.
    fn overlap(&self) -> (Measure, Measure) {
        let (mut recall, mut precision) = (Measure::default(), Measure::default());
        let mut sums = [0.0; 3];
        for (z, f, t) in self.planes() {
            let count = |it: &mut dyn Iterator<Item = bool>| it.filter(|v| *v).count() as f64;
            let a = count(&mut f.iter().copied());
            let b = count(&mut t.iter().copied());
            let both = count(&mut f.iter().zip(t).map(|(a, b)| *a && *b));
            for (s, v) in sums.iter_mut().zip([a, b, both]) {
                *s += v;
            }
            if b > 0.0 {
                recall.slices.push((z, both / b));
            }
            if a > 0.0 {
                precision.slices.push((z, both / a));
            }
        }
        recall.value = Some(sums[2] / sums[1].max(1.0));
        precision.value = Some(sums[2] / sums[0].max(1.0));
        (recall, precision)
    }

    fn anatomy(&self) -> Measure {
        let radius = self.radius();
        let error = |a: f64, b: f64, p: [f64; 2], q: [f64; 2]| {
            ((a - b).abs() / b).max((p[0] - q[0]).hypot(p[1] - q[1]) / radius)
        };
        let (fa, ta) = (self.found.areas(), self.truth.areas());
        let whole = |r: &Region, areas: &[usize]| {
            let mut sum = [0.0; 2];
            for (z, n) in areas.iter().enumerate().filter(|(_, n)| **n > 0) {
                let c = r.centroid(z);
                sum = [sum[0] + c[0] * *n as f64, sum[1] + c[1] * *n as f64];
            }
            sum.map(|v| v / r.total().max(1.0))
        };
        let slices = (0..ta.len())
            .filter(|&z| fa[z] > 0 && ta[z] > 0)
            .map(|z| {
                let e = error(fa[z] as f64, ta[z] as f64, self.found.centroid(z), self.truth.centroid(z));
                (self.found.start[2] + z, e)
            })
            .collect();
        let (p, q) = (whole(&self.found, &fa), whole(&self.truth, &ta));
        Measure { value: Some(error(self.found.total(), self.truth.total(), p, q)), slices }
    }

    fn topology(&self) -> Measure {
        let r = &self.found;
        let least = SPECK_MM2 / (r.spacing[0] * r.spacing[1]);
        let dims = [r.dims[0], r.dims[1], 1];
        let counted = |mask: &[bool]| {
            components(mask, dims, Connectivity::Corners).sizes.iter().filter(|n| **n as f64 >= least).count() as f64
        };
        let slices: Vec<(usize, f64)> = self
            .planes()
            .filter(|(_, f, t)| f.contains(&true) || t.contains(&true))
            .map(|(z, f, t)| {
                let holes = |mask: &[bool]| {
                    let mut filled = mask.to_vec();
                    fill_holes(&mut filled, dims);
                    counted(&filled.iter().zip(mask).map(|(f, m)| *f && !*m).collect::<Vec<_>>())
                };
                (z, (counted(f) - counted(t)).abs() + (holes(f) - holes(t)).abs())
            })
            .collect();
        let n = slices.len().max(1) as f64;
        Measure { value: Some(slices.iter().map(|v| v.1).sum::<f64>() / n), slices }
    }

    fn between(&self) -> Measure {
        let (fa, ta) = (self.found.areas(), self.truth.areas());
        let radius = self.radius();
        let mut worst = vec![0f64; ta.len()];
        let (mut sum, mut pairs) = (0.0, 0.0);
        for z in 1..ta.len() {
            let (t0, t1, f0, f1) = (ta[z - 1] as f64, ta[z] as f64, fa[z - 1] as f64, fa[z] as f64);
            if t0 + t1 == 0.0 && f0 + f1 == 0.0 {
                continue;
            }
            let mut error = ((f1 - f0) - (t1 - t0)).abs() / t0.max(t1).max(1.0);
            if [t0, t1, f0, f1].iter().all(|v| *v > 0.0) {
                let moved = |r: &Region| {
                    let (p, q) = (r.centroid(z - 1), r.centroid(z));
                    [q[0] - p[0], q[1] - p[1]]
                };
                let (f, t) = (moved(&self.found), moved(&self.truth));
                error = error.max((f[0] - t[0]).hypot(f[1] - t[1]) / radius);
            }
            let error = error.min(1.0);
            sum += error;
            pairs += 1.0;
            worst[z - 1] = worst[z - 1].max(error);
            worst[z] = worst[z].max(error);
        }
        let z0 = self.found.start[2];
        Measure {
            value: (pairs > 0.0).then(|| sum / pairs),
            slices: worst.into_iter().enumerate().map(|(z, v)| (z0 + z, v)).collect(),
        }
    }

    /// Expected calibration error over ten bins of confidence from 0.5 to 1; of the mask, the truth and what was doubted.
    fn confidence(&self, entropy: &[f32]) -> Measure {
        const BINS: usize = 10;
        if entropy.is_empty() {
            return Measure::default();
        }
        let error = |bins: &[[f64; 3]; BINS]| {
            let n: f64 = bins.iter().map(|b| b[0]).sum();
            (n > 0.0).then(|| bins.iter().map(|b| (b[1] - b[2]).abs()).sum::<f64>() / n)
        };
        let mut all = [[0.0; 3]; BINS];
        let mut slices = Vec::new();
        for ((z, f, t), h) in self.planes().zip(entropy.chunks(self.found.plane())) {
            let mut own = [[0.0; 3]; BINS];
            for i in (0..f.len()).filter(|&i| f[i] || t[i] || h[i] > 0.1) {
                let p = confidence_of(f64::from(h[i]));
                let bin = &mut own[(((p - 0.5) * 2.0 * BINS as f64) as usize).min(BINS - 1)];
                bin[0] += 1.0;
                bin[1] += p;
                bin[2] += f64::from(u8::from(f[i] == t[i]));
            }
            slices.extend(error(&own).map(|e| (z, e)));
            all.iter_mut().zip(own).for_each(|(a, o)| (0..3).for_each(|k| a[k] += o[k]));
        }
        Measure { value: error(&all), slices }
    }

    /// Added path length over the truth's contour: in each slice, pixels of the truth's contour farther than the tolerance
    /// from the mask's contour.
    fn burden(&self) -> Measure {
        let r = &self.found;
        let dims = [r.dims[0], r.dims[1], 1];
        let (mut sum, mut all, mut slices) = (0.0, 0.0, Vec::new());
        for (z, f, t) in self.planes() {
            let rim = contour(t, dims);
            let n = rim.iter().filter(|c| **c).count() as f64;
            if n == 0.0 {
                continue;
            }
            let d = distance(&contour(f, dims), dims, r.spacing);
            let far = (0..rim.len()).filter(|&i| rim[i] && f64::from(d[i]) > self.tolerance()).count() as f64;
            sum += far;
            all += n;
            slices.push((z, far / n));
        }
        Measure { value: (all > 0.0).then(|| sum / all), slices }
    }
}

/// The probability, from 0.5, whose binary entropy this is.
fn confidence_of(entropy: f64) -> f64 {
    let h = |p: f64| if p >= 1.0 { 0.0 } else { -(p * p.log2() + (1.0 - p) * (1.0 - p).log2()) };
    let (mut low, mut high) = (0.5, 1.0);
    for _ in 0..20 {
        let mid = (low + high) / 2.0;
        if h(mid) > entropy { low = mid } else { high = mid }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Geometry;
    use crate::segex::Verdict;
    use crate::terms::structure;

    const DIMS: [usize; 3] = [60, 50, 6];

    /// A disc of `r` mm about (x, y) on the slices of `z`.
    fn disc(x: f64, y: f64, r: f64, z: std::ops::Range<usize>) -> LabelMap {
        let g = Geometry::axial(DIMS, [1.0, 1.0, 5.0]);
        let mut m = LabelMap::empty(g.clone());
        for i in (0..g.voxels()).filter(|i| z.contains(&(i / g.plane()))) {
            let (a, b) = ((i % 60) as f64, (i / 60 % 50) as f64);
            m.data[i] = u8::from((a - x).hypot(b - y) <= r);
        }
        m
    }

    fn graded_with(found: &LabelMap, truth: &LabelMap, entropy: &[f32]) -> StructureReport {
        let s = structure("VL").unwrap();
        let structures = [ComparedStructure { structure: &s, side: None, label: 1, truth: 1 }];
        let mut r = compare(&CompareInput { labels: found, truth, entropy, structures: &structures });
        assert!(r.with_ground_truth && !r.calibrated);
        r.structures.remove(0)
    }

    #[test]
    fn a_mask_is_perfect_against_itself() {
        let t = disc(30.0, 25.0, 12.0, 0..6);
        let r = graded_with(&t, &t, &vec![0.0; t.data.len()]);
        assert!(r.grades.iter().all(|g| g.grade == Some(5)), "{:?}", r.grades);
        assert_eq!((r.score, r.verdict), (100.0, Verdict::A));
        assert!(r.grades.iter().all(|g| g.slices.is_empty()));
    }

    #[test]
    fn each_damage_lowers_its_criteria_and_names_its_slices() {
        let t = disc(30.0, 25.0, 12.0, 0..6);
        let of = |m: &LabelMap, c| graded_with(m, &t, &[]).grade(c).unwrap();
        let small = disc(30.0, 25.0, 9.0, 0..6);
        // The end slices' faces are surface too, and most of them agree.
        assert!(of(&small, Criterion::Boundary) <= 2 && of(&small, Criterion::EditBurden) == 1);
        // (9 / 12)^2 = 0.56 of the area.
        assert_eq!((of(&small, Criterion::Completeness), of(&small, Criterion::OverSegmentation)), (1, 5));
        assert_eq!(of(&small, Criterion::Anatomy), 1);
        let large = disc(30.0, 25.0, 15.0, 0..6);
        assert_eq!((of(&large, Criterion::Completeness), of(&large, Criterion::OverSegmentation)), (5, 1));
        let mut pierced = t.clone();
        for (i, l) in pierced.data.iter_mut().enumerate().filter(|(i, _)| i / 3000 == 2) {
            if ((i % 60) as f64 - 30.0).hypot((i / 60 % 50) as f64 - 25.0) < 3.0 {
                *l = 0;
            }
        }
        let r = graded_with(&pierced, &t, &[]);
        let g = r.grades.iter().find(|g| g.criterion == Criterion::Topology).unwrap();
        assert_eq!((g.grade, g.slices.as_slice()), (Some(3), [2].as_slice()));
        let mut dropped = t.clone();
        dropped.data[3000..6000].fill(0);
        let r = graded_with(&dropped, &t, &[]);
        let g = r.grades.iter().find(|g| g.criterion == Criterion::BetweenSlices).unwrap();
        assert!(g.grade <= Some(2) && g.slices.contains(&1));
        assert_eq!(graded_with(&t, &t, &[]).grade(Criterion::Stability), None, "nothing to calibrate without entropy");
    }

    #[test]
    fn c1_is_three_at_best_where_the_surface_is_far_off() {
        let t = disc(20.0, 25.0, 14.0, 0..6);
        let mut stray = t.clone();
        // A thin spur far away: few surface voxels in all, yet more than one in twenty.
        for z in 0..6 {
            (0..16).for_each(|k| stray.data[z * 3000 + (25 + k % 2) * 60 + 50 + k / 2] = 1);
        }
        let r = graded_with(&stray, &t, &[]);
        assert!(r.grades[0].value > 0.8, "{}", r.grades[0].value);
        assert_eq!(r.grade(Criterion::Boundary), Some(3));
        let near = disc(20.4, 25.0, 14.0, 0..6);
        assert!(graded_with(&near, &t, &[]).grade(Criterion::Boundary) >= Some(4));
    }

    #[test]
    fn confidence_that_is_not_kept_is_graded_down() {
        let (t, m) = (disc(30.0, 25.0, 12.0, 0..6), disc(34.0, 25.0, 12.0, 0..6));
        let sure = vec![0.0; t.data.len()];
        let honest: Vec<f32> = t.data.iter().zip(&m.data).map(|(a, b)| if a == b { 0.0 } else { 1.0 }).collect();
        let of = |h: &[f32]| graded_with(&m, &t, h).grades[6].value;
        assert!(of(&sure) > 0.2, "{}", of(&sure));
        // Doubt where it errs: half of those voxels may be wrong, all are.
        assert!(of(&honest) < 0.75 * of(&sure), "{} {}", of(&honest), of(&sure));
        assert!((confidence_of(1.0) - 0.5).abs() < 0.01 && confidence_of(0.0) > 0.999);
    }

    #[test]
    fn what_only_one_side_has_is_to_redo() {
        let t = disc(30.0, 25.0, 12.0, 0..6);
        let none = LabelMap::empty(t.geometry.clone());
        for (a, b) in [(&none, &t), (&t, &none)] {
            let r = graded_with(a, b, &[]);
            assert_eq!((r.verdict, r.score), (Verdict::D, 0.0));
        }
        let s = structure("VL").unwrap();
        let structures = [ComparedStructure { structure: &s, side: None, label: 1, truth: 1 }];
        let r = compare(&CompareInput { labels: &none, truth: &none, entropy: &[], structures: &structures });
        assert!(r.structures.is_empty());
    }
}
