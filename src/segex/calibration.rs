//! From measurements to the grades that ground truth would give: one small monotone map for each criterion, fitted on masks
//! whose truth is known, carried by an adapter.
//!
//! For each criterion a ridge regression turns its measurements (one to four numbers; C8: those of C1 to C7) into one index
//! that grows with the grade, and four cuts of that index, chosen to give the least squared error, turn it into a grade. Both
//! are weighted so that every grade that occurs counts alike in sum, up to [`MOST_WEIGHT`].

use serde::{Deserialize, Serialize};

use super::Criterion;
use super::features::{Feature, Features};

/// Version of the stored form; another is not used.
pub const CALIBRATION_VERSION: u32 = 1;
/// Masks below which a calibration is marked as of low confidence.
pub const FEW_MASKS: usize = 20;
/// Candidates below which a map is not fitted.
const LEAST: usize = 12;
/// Ridge penalty on standardised measurements, as a share of the candidates.
const RIDGE: f64 = 0.02;
/// A rare grade weighs at most this much more than a common one.
const MOST_WEIGHT: f64 = 4.0;

/// Measurements of a mask as a map takes them, and the grade.
type Row = (Vec<f64>, f64);

/// A mask whose grades are known.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Whose it is: candidates of one subject are never split between fitting and testing.
    pub subject: usize,
    /// What was measured without the truth.
    pub features: Features,
    /// What the truth says of each criterion, C1 to C8; none where it cannot be said.
    pub grades: [Option<u8>; 8],
}

/// A fitted map of one criterion from some measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GradeMap {
    /// The criterion.
    pub criterion: Criterion,
    /// Its inputs; the map is used where all of them were taken.
    pub inputs: Vec<Feature>,
    /// Weight of each input.
    pub weights: Vec<f64>,
    /// Constant of the index.
    pub constant: f64,
    /// Index at which the grade rises to 2, 3, 4 and 5.
    pub cuts: [f64; 4],
    /// Candidates behind it.
    pub count: usize,
}

impl GradeMap {
    /// The index; none where an input is missing.
    pub fn index(&self, features: &Features) -> Option<f64> {
        let mut sum = self.constant;
        for (f, w) in self.inputs.iter().zip(&self.weights) {
            sum += w * f.of(features)?;
        }
        Some(sum)
    }

    /// The grade; none where an input is missing.
    pub fn grade(&self, features: &Features) -> Option<u8> {
        let index = self.index(features)?;
        Some(1 + self.cuts.iter().filter(|c| index >= **c).count() as u8)
    }
}

/// Fitted maps and what they were fitted on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegexCalibration {
    /// [`CALIBRATION_VERSION`].
    pub version: u32,
    /// Labelled masks behind it: structures of volumes, or of single slices.
    pub masks: usize,
    /// Subjects behind it.
    pub subjects: usize,
    /// Masks made of them: results, corrupted results, corrupted labels.
    pub candidates: usize,
    /// Mean absolute error of each criterion's grade, C1 to C8, each subject left out in turn; none where it was not fitted
    /// or there is one subject only.
    pub error: [Option<f64>; 8],
    /// The maps; of one criterion those with more inputs go first.
    pub maps: Vec<GradeMap>,
}

/// The measurements of one criterion, the richest list first.
fn inputs(criterion: Criterion) -> Vec<Vec<Feature>> {
    use Feature::*;
    match criterion {
        Criterion::Boundary => vec![vec![Edge, RelativeEdge, SoftBand], vec![Edge, RelativeEdge]],
        Criterion::Completeness => vec![vec![Added, Agreement]],
        Criterion::OverSegmentation => vec![vec![Dropped, Outliers], vec![Outliers, Overlap], vec![Outliers]],
        Criterion::Anatomy => vec![vec![Anatomy]],
        Criterion::Topology => vec![vec![Topology]],
        Criterion::BetweenSlices => vec![vec![NeighbourLoss, AreaJump, Shift, Missing]],
        Criterion::Stability => vec![vec![Agreement, Iou, Certainty], vec![Agreement, Certainty]],
        Criterion::EditBurden => {
            let served = [SoftBand, Added, Dropped, Agreement, Iou, Certainty];
            let between = [NeighbourLoss, AreaJump, Shift, Missing];
            let mut all = Vec::new();
            for with_passes in [true, false] {
                for with_anatomy in [true, false] {
                    for with_between in [true, false] {
                        let mut one = vec![Edge, RelativeEdge, Outliers, Topology];
                        one.extend(served.iter().filter(|_| with_passes));
                        one.extend([Anatomy].iter().filter(|_| with_anatomy));
                        one.extend(between.iter().filter(|_| with_between));
                        all.push(one);
                    }
                }
            }
            all
        }
    }
}

impl SegexCalibration {
    /// Fits every map that the candidates allow; `masks` is the number of labelled masks that they were made of. The error
    /// is that of each subject under the maps of all others.
    pub fn fit(candidates: &[Candidate], masks: usize) -> Self {
        let mut subjects: Vec<usize> = candidates.iter().map(|c| c.subject).collect();
        subjects.sort_unstable();
        subjects.dedup();
        let all: Vec<&Candidate> = candidates.iter().collect();
        let mut out = SegexCalibration {
            version: CALIBRATION_VERSION,
            masks,
            subjects: subjects.len(),
            candidates: candidates.len(),
            error: [None; 8],
            maps: fit_maps(&all),
        };
        if subjects.len() > 1 {
            let mut sums = [(0.0, 0.0); 8];
            for s in subjects {
                let (own, others): (Vec<&Candidate>, Vec<&Candidate>) = candidates.iter().partition(|c| c.subject == s);
                let maps = fit_maps(&others);
                for c in own {
                    for (k, sum) in sums.iter_mut().enumerate() {
                        if let (Some(g), Some(t)) = (grade_of(&maps, Criterion::ALL[k], &c.features), c.grades[k]) {
                            sum.0 += f64::from(g.abs_diff(t));
                            sum.1 += 1.0;
                        }
                    }
                }
            }
            out.error = sums.map(|(sum, n)| (n > 0.0).then(|| sum / n));
        }
        out
    }

    /// The grade of a criterion; none where no map fits what was measured.
    pub fn grade(&self, criterion: Criterion, features: &Features) -> Option<u8> {
        grade_of(&self.maps, criterion, features)
    }

    /// What a reader has to know of a calibration on few masks.
    pub fn caution(&self) -> Option<String> {
        (self.masks < FEW_MASKS)
            .then(|| format!("grades are calibrated on {} labelled masks only: low confidence", self.masks))
    }

    /// What is wrong with a stored calibration, if anything.
    pub fn problem(&self) -> Option<String> {
        if self.version != CALIBRATION_VERSION {
            return Some(format!(
                "SegEx calibration is of version {}, this program reads {CALIBRATION_VERSION}: calibrate again",
                self.version
            ));
        }
        let bad = |m: &GradeMap| {
            m.inputs.len() != m.weights.len()
                || !m.constant.is_finite()
                || m.weights.iter().any(|w| !w.is_finite())
                || m.cuts.iter().any(|c| !c.is_finite())
                || m.cuts.windows(2).any(|c| c[0] > c[1])
        };
        let wrong = self.maps.iter().find(|m| bad(m)).or_else(|| self.maps.get(256));
        wrong.map(|m| format!("SegEx calibration: the map of {} is broken: calibrate again", m.criterion.id()))
    }
}

fn grade_of(maps: &[GradeMap], criterion: Criterion, features: &Features) -> Option<u8> {
    maps.iter().filter(|m| m.criterion == criterion).find_map(|m| m.grade(features))
}

fn fit_maps(candidates: &[&Candidate]) -> Vec<GradeMap> {
    let mut maps = Vec::new();
    for (k, criterion) in Criterion::ALL.into_iter().enumerate() {
        for inputs in inputs(criterion) {
            let rows: Vec<Row> = candidates
                .iter()
                .filter_map(|c| {
                    let x: Option<Vec<f64>> = inputs.iter().map(|f| f.of(&c.features)).collect();
                    Some((x?, f64::from(c.grades[k]?)))
                })
                .collect();
            maps.extend(fit_map(criterion, inputs, &rows));
        }
    }
    maps
}

fn fit_map(criterion: Criterion, inputs: Vec<Feature>, rows: &[Row]) -> Option<GradeMap> {
    if rows.len() < LEAST {
        return None;
    }
    let count = |g: f64| rows.iter().filter(|r| r.1 == g).count().max(1) as f64;
    let occurring = (1..=5).filter(|g| rows.iter().any(|r| r.1 == f64::from(*g))).count() as f64;
    let even = rows.len() as f64 / occurring;
    let weights: Vec<f64> = rows.iter().map(|r| (even / count(r.1)).clamp(1.0 / MOST_WEIGHT, MOST_WEIGHT)).collect();
    let (w, constant) = ridge(rows, &weights)?;
    let index = |x: &[f64]| constant + x.iter().zip(&w).map(|(x, w)| x * w).sum::<f64>();
    let mut sorted: Vec<(f64, f64, f64)> = rows.iter().zip(&weights).map(|(r, w)| (index(&r.0), r.1, *w)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let cuts = cuts(&sorted);
    Some(GradeMap { criterion, inputs, weights: w, constant, cuts, count: rows.len() })
}

/// Weighted ridge regression on standardised inputs: weights and constant for the inputs as they are.
fn ridge(rows: &[Row], weights: &[f64]) -> Option<(Vec<f64>, f64)> {
    let n: f64 = weights.iter().sum();
    let d = rows.first()?.0.len();
    let mean_of = |f: &dyn Fn(&Row) -> f64| rows.iter().zip(weights).map(|(r, w)| w * f(r)).sum::<f64>() / n;
    let mean: Vec<f64> = (0..d).map(|k| mean_of(&|r| r.0[k])).collect();
    let sd: Vec<f64> = (0..d).map(|k| mean_of(&|r| (r.0[k] - mean[k]).powi(2)).sqrt()).collect();
    let target = mean_of(&|r| r.1);
    // What never changes says nothing.
    let scale = |k: usize, v: f64| if sd[k] > 1e-9 { (v - mean[k]) / sd[k] } else { 0.0 };
    let mut a = vec![vec![0.0; d + 1]; d];
    for (r, w) in rows.iter().zip(weights) {
        let x: Vec<f64> = (0..d).map(|k| scale(k, r.0[k])).collect();
        for i in 0..d {
            for j in 0..d {
                a[i][j] += w * x[i] * x[j] / n;
            }
            a[i][d] += w * x[i] * (r.1 - target) / n;
        }
    }
    for (i, row) in a.iter_mut().enumerate() {
        row[i] += RIDGE;
    }
    let beta = solve(a)?;
    let w: Vec<f64> = (0..d).map(|k| if sd[k] > 1e-9 { beta[k] / sd[k] } else { 0.0 }).collect();
    let constant = target - w.iter().zip(&mean).map(|(w, m)| w * m).sum::<f64>();
    Some((w, constant))
}

/// Gaussian elimination with pivoting of `[A | b]`; none for a singular matrix.
fn solve(mut a: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let d = a.len();
    for c in 0..d {
        let pivot = (c..d).max_by(|&i, &j| a[i][c].abs().total_cmp(&a[j][c].abs()))?;
        if a[pivot][c].abs() < 1e-12 {
            return None;
        }
        a.swap(c, pivot);
        let row = a[c].clone();
        for r in (0..d).filter(|&r| r != c) {
            let f = a[r][c] / row[c];
            a[r].iter_mut().zip(&row).for_each(|(v, p)| *v -= f * p);
        }
    }
    Some((0..d).map(|i| a[i][d] / a[i][i]).collect())
}

/// The four cuts of a sorted index (index, grade, weight) that give the least weighted squared error of the grade: the best
/// way to divide the row into five pieces, some of which may be empty.
fn cuts(sorted: &[(f64, f64, f64)]) -> [f64; 4] {
    let n = sorted.len();
    // least[g][i]: error of the first i with grades up to g + 1; from[g][i]: where grade g + 1 begins in it.
    let mut least = vec![vec![0.0f64; n + 1]; 5];
    let mut from = vec![vec![0usize; n + 1]; 5];
    for g in 0..5 {
        let cost = |i: usize| sorted[i].2 * (sorted[i].1 - (g + 1) as f64).powi(2);
        for i in 1..=n {
            // Equal indices are never parted.
            let may_begin = i == 1 || sorted[i - 1].0 > sorted[i - 2].0;
            let stay = least[g][i - 1] + cost(i - 1);
            let begin = if g > 0 && may_begin { least[g - 1][i - 1] + cost(i - 1) } else { f64::INFINITY };
            let (mut best, mut start) = if begin < stay { (begin, i - 1) } else { (stay, from[g][i - 1]) };
            // No piece of this grade at all.
            if g > 0 && (i == n || sorted[i].0 > sorted[i - 1].0) && least[g - 1][i] <= best {
                (best, start) = (least[g - 1][i], i);
            }
            least[g][i] = best;
            from[g][i] = start;
        }
    }
    let mut out = [0.0; 4];
    let mut end = n;
    for g in (1..5).rev() {
        let start = from[g][end].min(end);
        out[g - 1] = match (start.checked_sub(1).map(|i| sorted[i].0), sorted.get(start).map(|s| s.0)) {
            (Some(a), Some(b)) => (a + b) / 2.0,
            // Never reached, or always: one unit beyond what was seen.
            (Some(a), None) => a + 1.0,
            (None, Some(b)) => b - 1.0,
            (None, None) => 0.0,
        };
        end = start;
    }
    out
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn cuts_part_grades_that_can_be_parted() {
        let row = |all: &[(f64, f64)]| all.iter().map(|&(i, g)| (i, g, 1.0)).collect::<Vec<_>>();
        let c = cuts(&row(&[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 5.0)]));
        assert_eq!(c, [0.5, 1.5, 2.5, 3.5]);
        // Only 2 and 4 occur: 3 gets no piece, 5 is never reached, 1 lies below all.
        let c = cuts(&row(&[(0.0, 2.0), (1.0, 2.0), (2.0, 4.0), (3.0, 4.0)]));
        assert_eq!((c[1], c[2]), (1.5, 1.5));
        assert!(c[0] < 0.0 && c[3] > 3.0, "{c:?}");
        // Equal indices stay together.
        let c = cuts(&row(&[(1.0, 1.0), (1.0, 5.0), (1.0, 5.0)]));
        assert!(c.iter().all(|c| *c != 1.0), "{c:?}");
    }

    /// Candidates whose edge measurement follows the grade with noise.
    fn candidates(n: usize, noise: f64) -> Vec<Candidate> {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        (0..n)
            .map(|i| {
                let g = (i % 5 + 1) as u8;
                let v = f64::from(g) / 6.0 + noise * (rng.random::<f64>() - 0.5);
                let mut features = Features::default();
                features[Feature::Edge as usize] = Some(v);
                features[Feature::RelativeEdge as usize] = Some(rng.random::<f64>());
                features[Feature::Outliers as usize] = Some(0.1);
                features[Feature::Topology as usize] = Some(0.0);
                Candidate {
                    subject: i / 10,
                    features,
                    grades: [Some(g), None, None, None, Some(5), None, None, Some(g)],
                }
            })
            .collect()
    }

    #[test]
    fn a_measurement_that_follows_the_truth_is_learnt_and_unseen_subjects_are_graded_by_it() {
        let all = candidates(200, 0.02);
        let c = SegexCalibration::fit(&all, 40);
        assert_eq!((c.subjects, c.candidates, c.caution()), (20, 200, None));
        assert!(c.error[0].unwrap() < 0.02 && c.error[7].unwrap() < 0.02, "{:?}", c.error);
        assert_eq!(c.error[1], None, "nothing was known of C2");
        assert_eq!(c.grade(Criterion::Completeness, &all[0].features), None);
        // A grade that never varied stays what it was.
        assert_eq!(c.grade(Criterion::Topology, &all[0].features), Some(5));
        // A better measurement is never graded worse.
        let mut f = all[0].features;
        let mut last = 0;
        for v in 0..=100 {
            f[Feature::Edge as usize] = Some(f64::from(v) / 100.0);
            let g = c.grade(Criterion::Boundary, &f).unwrap();
            assert!(g >= last);
            last = g;
        }
        assert_eq!(last, 5);
        let noisy = SegexCalibration::fit(&candidates(200, 1.0), 12);
        assert!(noisy.error[0] > c.error[0]);
        assert!(noisy.caution().unwrap().contains("12 labelled masks only: low confidence"));
    }

    #[test]
    fn it_is_read_back_as_written_and_nonsense_is_refused() {
        let mut c = SegexCalibration::fit(&candidates(60, 0.2), 12);
        let back: SegexCalibration = serde_json::from_str(&serde_json::to_string(&c).unwrap()).unwrap();
        assert_eq!((back.problem(), &back), (None, &c));
        c.maps[0].weights.pop();
        assert!(c.problem().unwrap().contains("C1"));
        assert!(SegexCalibration { version: 9, ..back }.problem().unwrap().contains("version 9"));
        assert!(SegexCalibration::fit(&[], 0).maps.is_empty());
    }
}
