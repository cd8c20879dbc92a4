//! From measurements to what ground truth would say: maps for the grades and the score, fitted on masks whose truth is known and
//! carried by an adapter.
//!
//! What can be measured depends on the mask: a model's result has passes, a mask from elsewhere may have a second result beside it
//! or nothing but the image, and a single slice has no neighbours. For each such list of measurements ([`lists`]) a ridge
//! regression on the standardised measurements and their squares turns them into one index for each criterion and one for the
//! score; cuts of the index, chosen to give the least squared error, make the grade or the verdict. Both are weighted so that every
//! grade that occurs counts alike in sum, up to [`MOST_WEIGHT`]. Every criterion is foretold from all measurements: a mask that is too
//! large (C3) shows in its contour (C1) and its shape (C4) before it shows in anything of its own.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::agree::auroc;
use super::features::{Feature, Features};
use super::regression::{Row, cuts, ridge};
use super::{Criterion, Verdict};

/// Version of the stored form; another is not used.
pub const CALIBRATION_VERSION: u32 = 2;
/// Masks below which a calibration is marked as of low confidence.
pub const FEW_MASKS: usize = 20;
/// Candidates below which a map is not fitted.
const LEAST: usize = 24;
/// Ridge penalties on standardised measurements and on their squares, as shares of the candidates. Squares help where many
/// subjects bend the curve, and mislead where few do, so they pay more.
const RIDGE: [f64; 2] = [0.1, 1.0];
/// A rare grade weighs at most this much more than a common one.
const MOST_WEIGHT: f64 = 4.0;
/// Standard deviations beyond which a measurement counts no further, by itself and squared.
const FARTHEST: [f64; 2] = [4.0, 3.0];
/// Scores from which verdicts C, B and A are given.
const VERDICTS: [f64; 3] = [45.0, 70.0, 85.0];
/// Most inputs, and most sets, of a stored calibration.
const MOST: usize = 64;

/// A mask whose grades are known.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Whose it is: candidates of one subject are never split between fitting and testing.
    pub subject: usize,
    /// What was measured without the truth.
    pub features: Features,
    /// What the truth says of each criterion, C1 to C8; none where it cannot be said.
    pub grades: [Option<u8>; 8],
    /// The score that the truth gives, 0 to 100.
    pub score: f64,
    /// The verdict that the truth gives.
    pub verdict: Verdict,
}

/// A number from standardised measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Weight of each measurement.
    pub weights: Vec<f32>,
    /// Weight of each measurement's square.
    pub squares: Vec<f32>,
    /// Constant.
    pub constant: f32,
}

impl Index {
    /// The index of measurements in standard deviations from their mean.
    fn of(&self, z: &[f64]) -> f64 {
        let expanded = expand(z);
        let all = self.weights.iter().chain(&self.squares);
        f64::from(self.constant) + expanded.iter().zip(all).map(|(x, w)| x * f64::from(*w)).sum::<f64>()
    }
}

/// Measurements and their squares, both bounded.
fn expand(z: &[f64]) -> Vec<f64> {
    let bounded = |v: &f64, k: usize| v.clamp(-FARTHEST[k], FARTHEST[k]);
    z.iter().map(|v| bounded(v, 0)).chain(z.iter().map(|v| bounded(v, 1).powi(2))).collect()
}

/// One criterion's map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GradeMap {
    /// The criterion.
    pub criterion: Criterion,
    /// Its index.
    pub index: Index,
    /// Index at which the grade rises to 2, 3, 4 and 5.
    pub cuts: [f32; 4],
}

/// Where the verdict rises to C, B and A in foretold scores; one scale for all sets, so that masks of different kinds can be ranked
/// together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerdictCuts(pub [f32; 3]);

impl VerdictCuts {
    /// The score, 0 to 100: what was foretold, stretched between the cuts so that they lie where the verdicts change.
    fn score(&self, v: f64) -> f64 {
        let cuts = self.0.map(f64::from);
        let low = cuts[0].min(25.0) - 25.0;
        let high = cuts[2].max(90.0) + 10.0;
        let knots = [low, cuts[0], cuts[1], cuts[2], high];
        let scores = [0.0, VERDICTS[0], VERDICTS[1], VERDICTS[2], 100.0];
        let k = cuts.iter().filter(|c| v >= **c).count();
        let width = knots[k + 1] - knots[k];
        let t = if width > 0.0 { ((v - knots[k]) / width).clamp(0.0, 1.0) } else { 0.0 };
        let score = scores[k] + t * (scores[k + 1] - scores[k]);
        // The upper end of a piece belongs to the next.
        if k < 3 { score.min(scores[k + 1] - 1e-6) } else { score }
    }
}

/// The maps that one list of measurements allows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapSet {
    /// The measurements; the set is used where all of them were taken.
    pub inputs: Vec<Feature>,
    /// Mean of each.
    pub mean: Vec<f32>,
    /// Standard deviation of each.
    pub spread: Vec<f32>,
    /// Candidates behind it.
    pub count: usize,
    /// The grades.
    pub grades: Vec<GradeMap>,
    /// Foretells the truth's score.
    pub score: Index,
}

impl MapSet {
    fn standard(&self, features: &Features) -> Option<Vec<f64>> {
        let each = self.inputs.iter().zip(&self.mean).zip(&self.spread);
        each.map(|((f, m), s)| Some((f.of(features)? - f64::from(*m)) / f64::from(*s))).collect()
    }

    fn foretell(&self, z: &[f64]) -> Foretold {
        let mut grades = [None; 8];
        for map in &self.grades {
            let index = map.index.of(z);
            let passed = map.cuts.iter().filter(|c| index >= f64::from(**c)).count();
            grades[map.criterion as usize] = Some(1 + passed as u8);
        }
        // Without passes there is nothing that could be stable.
        if !self.inputs.contains(&Feature::Agreement) {
            grades[Criterion::Stability as usize] = None;
        }
        Foretold { grades, score: self.score.of(z) }
    }
}

/// What a calibration foretells of one mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Foretold {
    /// The grades, C1 to C8; none where nothing was learnt of one, or where a mask brings nothing that it could be graded by.
    pub grades: [Option<u8>; 8],
    /// The score, 0 to 100, before caps.
    pub score: f64,
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
    /// Mean absolute error of the score, likewise.
    pub score_error: Option<f64>,
    /// How well the score parts what is usable as is from the rest (AUROC), likewise.
    pub usable: Option<f64>,
    /// The maps; those of more measurements go first.
    pub sets: Vec<MapSet>,
    /// Where the verdicts change.
    pub verdicts: VerdictCuts,
}

/// The lists of measurements, the richest first.
fn lists() -> Vec<Vec<Feature>> {
    use Feature::*;
    let image = [Edge, RelativeEdge, Step, Outliers, Unclaimed, Foreign, Rough, Topology, Anatomy];
    let between = [NeighbourLoss, AreaJump, Shift, Missing, WorstEdge, WorstAnatomy, WorstLoss];
    let passes = [SoftBand, Added, Dropped, Agreement, Iou, Certainty];
    let second = [SecondDice, SecondSurface, WorstSecond];
    let mut all = Vec::new();
    for further in [&passes[..], &second, &[]] {
        for volume in [true, false] {
            let mut one = image.to_vec();
            one.extend(further);
            one.extend(between.iter().filter(|_| volume));
            // One slice is its own worst.
            one.retain(|f| volume || *f != WorstSecond);
            all.push(one);
        }
    }
    all
}

impl SegexCalibration {
    /// Fits every map that the candidates allow; `masks` is the number of labelled masks that they were made of. The errors
    /// are those of each subject under the maps of all others.
    pub fn fit(candidates: &[Candidate], masks: usize) -> Self {
        let mut subjects: Vec<usize> = candidates.iter().map(|c| c.subject).collect();
        subjects.sort_unstable();
        subjects.dedup();
        let all: Vec<&Candidate> = candidates.iter().collect();
        let (sets, verdicts) = fit_all(&all);
        let mut out = SegexCalibration {
            version: CALIBRATION_VERSION,
            masks,
            subjects: subjects.len(),
            candidates: candidates.len(),
            error: [None; 8],
            score_error: None,
            usable: None,
            sets,
            verdicts,
        };
        if subjects.len() > 1 {
            let left_out: Vec<(&Candidate, Foretold)> = subjects
                .par_iter()
                .flat_map(|&s| {
                    let (own, others): (Vec<&Candidate>, Vec<&Candidate>) =
                        candidates.iter().partition(|c| c.subject == s);
                    let (sets, verdicts) = fit_all(&others);
                    let told = |c: &Candidate| foretell(&sets, verdicts, &c.features);
                    own.into_iter().filter_map(|c| Some((c, told(c)?))).collect::<Vec<_>>()
                })
                .collect();
            out.judge(&left_out);
        }
        out
    }

    fn judge(&mut self, left_out: &[(&Candidate, Foretold)]) {
        let mean = |v: Vec<f64>| (!v.is_empty()).then(|| v.iter().sum::<f64>() / v.len() as f64);
        for (k, error) in self.error.iter_mut().enumerate() {
            let off = |(c, f): &(&Candidate, Foretold)| Some(f64::from(c.grades[k]?.abs_diff(f.grades[k]?)));
            *error = mean(left_out.iter().filter_map(off).collect());
        }
        self.score_error = mean(left_out.iter().map(|(c, f)| (c.score - f.score).abs()).collect());
        let items: Vec<(f64, bool)> = left_out.iter().map(|(c, f)| (f.score, c.verdict == Verdict::A)).collect();
        self.usable = auroc(&items);
    }

    /// Grades and score of a mask; none where no map fits what was measured.
    pub fn foretell(&self, features: &Features) -> Option<Foretold> {
        foretell(&self.sets, self.verdicts, features)
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
        let whole = |i: &Index, n: usize| {
            let finite = |v: &[f32]| v.len() == n && v.iter().all(|w| w.is_finite());
            finite(&i.weights) && finite(&i.squares) && i.constant.is_finite()
        };
        let rising = |cuts: &[f32]| cuts.iter().all(|c| c.is_finite()) && cuts.windows(2).all(|c| c[0] <= c[1]);
        let sound = |s: &MapSet| {
            let n = s.inputs.len();
            let each = [&s.mean, &s.spread].iter().all(|v| v.len() == n && v.iter().all(|x| x.is_finite()));
            let grades = s.grades.iter().all(|g| whole(&g.index, n) && rising(&g.cuts));
            let score = whole(&s.score, n);
            n <= MOST && each && s.spread.iter().all(|x| *x > 0.0) && grades && s.grades.len() <= 8 && score
        };
        let broken = self.sets.len() > MOST || !self.sets.iter().all(sound) || !rising(&self.verdicts.0);
        broken.then(|| "SegEx calibration: a map of measurements is broken: calibrate again".into())
    }
}

fn foretell(sets: &[MapSet], verdicts: VerdictCuts, features: &Features) -> Option<Foretold> {
    let raw = raw(sets, features)?;
    Some(Foretold { score: verdicts.score(raw.score), ..raw })
}

/// Grades, and the score before it is stretched.
fn raw(sets: &[MapSet], features: &Features) -> Option<Foretold> {
    let usable = || sets.iter().filter_map(|s| Some((s, s.standard(features)?)));
    let (set, z) = usable().next()?;
    let mut out = set.foretell(&z);
    // Labelled slices that stand alone taught the first set nothing of what lies between slices: where the mask shows it, another
    // set that knows of it says C6 and half of the score.
    let knows = |s: &MapSet| s.inputs.contains(&Feature::NeighbourLoss);
    if !knows(set)
        && let Some((other, z)) = usable().find(|(s, _)| knows(s))
    {
        let further = other.foretell(&z);
        let between = Criterion::BetweenSlices as usize;
        out.grades[between] = further.grades[between];
        out.score = (out.score + further.score) / 2.0;
    }
    Some(out)
}

fn fit_all(candidates: &[&Candidate]) -> (Vec<MapSet>, VerdictCuts) {
    let sets: Vec<MapSet> = lists().into_iter().filter_map(|inputs| fit_set(inputs, candidates)).collect();
    // Verdicts as classes 1 (D) to 4 (A).
    let class = |c: &Candidate| 4 - c.verdict as u8;
    let (scores, classes): (Vec<f64>, Vec<u8>) =
        candidates.iter().filter_map(|c| Some((raw(&sets, &c.features)?.score, class(c)))).unzip();
    let cuts = class_cuts(&scores, &classes, &even_weights(&classes));
    (sets, VerdictCuts([cuts[0], cuts[1], cuts[2]].map(|c| c as f32)))
}

fn fit_set(inputs: Vec<Feature>, candidates: &[&Candidate]) -> Option<MapSet> {
    let rows: Vec<(Vec<f64>, &Candidate)> = candidates
        .iter()
        .filter_map(|c| Some((inputs.iter().map(|f| f.of(&c.features)).collect::<Option<Vec<f64>>>()?, *c)))
        .collect();
    if rows.len() < LEAST {
        return None;
    }
    let n = rows.len() as f64;
    let mean: Vec<f64> = (0..inputs.len()).map(|k| rows.iter().map(|r| r.0[k]).sum::<f64>() / n).collect();
    let spread: Vec<f64> = (0..inputs.len())
        .map(|k| (rows.iter().map(|r| (r.0[k] - mean[k]).powi(2)).sum::<f64>() / n).sqrt())
        // What never changes says nothing.
        .map(|sd| if sd > 1e-6 { sd } else { 1e6 })
        .collect();
    let expanded: Vec<(Vec<f64>, &Candidate)> = rows
        .iter()
        .map(|(x, c)| {
            let z: Vec<f64> = (0..x.len()).map(|k| (x[k] - mean[k]) / spread[k]).collect();
            (expand(&z), *c)
        })
        .collect();
    let some = |target: &dyn Fn(&Candidate) -> Option<f64>, class: &dyn Fn(&Candidate) -> Option<u8>| {
        let of = |(x, c): &(Vec<f64>, &Candidate)| Some(((x.clone(), target(c)?), class(c)?));
        let (rows, classes): (Vec<Row>, Vec<u8>) = expanded.iter().filter_map(of).unzip();
        fit_index(&rows, &classes, inputs.len())
    };
    let grades = Criterion::ALL
        .into_iter()
        .enumerate()
        .filter_map(|(k, criterion)| {
            let (index, cuts) = some(&|c| c.grades[k].map(f64::from), &|c| c.grades[k])?;
            Some(GradeMap { criterion, index, cuts: cuts.map(|c| c as f32) })
        })
        .collect();
    let (score, _) = some(&|c| Some(c.score), &|c| Some(4 - c.verdict as u8))?;
    let stored = |v: &[f64]| v.iter().map(|x| *x as f32).collect();
    Some(MapSet { mean: stored(&mean), spread: stored(&spread), inputs, count: rows.len(), grades, score })
}

/// The index of a target and its cuts between classes 1 to 5; every class that occurs weighs alike in sum, within bounds.
fn fit_index(rows: &[Row], classes: &[u8], inputs: usize) -> Option<(Index, [f64; 4])> {
    if rows.len() < LEAST {
        return None;
    }
    let weights = even_weights(classes);
    let penalties: Vec<f64> = RIDGE.iter().flat_map(|p| vec![*p; inputs]).collect();
    let (w, constant) = ridge(rows, &weights, &penalties)?;
    let of = |x: &[f64]| constant + x.iter().zip(&w).map(|(x, w)| x * w).sum::<f64>();
    let indices: Vec<f64> = rows.iter().map(|r| of(&r.0)).collect();
    let stored = |v: &[f64]| v.iter().map(|x| *x as f32).collect();
    let index = Index { weights: stored(&w[..inputs]), squares: stored(&w[inputs..]), constant: constant as f32 };
    Some((index, class_cuts(&indices, classes, &weights)))
}

/// Weights by which every class that occurs counts alike in sum, up to [`MOST_WEIGHT`].
fn even_weights(classes: &[u8]) -> Vec<f64> {
    let count = |g: u8| classes.iter().filter(|c| **c == g).count().max(1) as f64;
    let occurring = (1..=5).filter(|g| classes.contains(g)).count().max(1) as f64;
    let even = classes.len() as f64 / occurring;
    let weight: Vec<f64> = (0..=5).map(|g| (even / count(g)).clamp(1.0 / MOST_WEIGHT, MOST_WEIGHT)).collect();
    classes.iter().map(|c| weight[usize::from(*c).min(5)]).collect()
}

/// Cuts of a number between classes 1 to 5.
fn class_cuts(values: &[f64], classes: &[u8], weights: &[f64]) -> [f64; 4] {
    let mut sorted: Vec<(f64, f64, f64)> =
        values.iter().zip(classes).zip(weights).map(|((v, c), w)| (*v, f64::from(*c), *w)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    cuts(&sorted)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Candidates of single slices whose edge measurement follows the grade with noise.
    fn candidates(n: usize, noise: f64) -> Vec<Candidate> {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        (0..n)
            .map(|i| {
                let g = (i % 5 + 1) as u8;
                let v = f64::from(g) / 6.0 + noise * (rng.random::<f64>() - 0.5);
                let mut features = Features::default();
                for f in &lists()[5] {
                    features[*f as usize] = Some(rng.random::<f64>());
                }
                features[Feature::Edge as usize] = Some(v);
                features[Feature::Topology as usize] = Some(0.0);
                let score = 20.0 * f64::from(g);
                Candidate {
                    subject: i / 10,
                    features,
                    grades: [Some(g), None, None, None, Some(5), None, Some(g), Some(g)],
                    score,
                    verdict: Verdict::of(score),
                }
            })
            .collect()
    }

    #[test]
    fn a_measurement_that_follows_the_truth_is_learnt_and_unseen_subjects_are_graded_by_it() {
        let all = candidates(200, 0.02);
        let c = SegexCalibration::fit(&all, 40);
        assert_eq!((c.subjects, c.candidates, c.caution()), (20, 200, None));
        assert!(c.error[0].unwrap() < 0.1 && c.error[7].unwrap() < 0.1, "{:?}", c.error);
        assert!(c.score_error.unwrap() < 8.0 && c.usable.unwrap() > 0.99, "{:?} {:?}", c.score_error, c.usable);
        assert_eq!(c.error[1], None, "nothing was known of C2");
        let of = |f: &Features| c.foretell(f).unwrap();
        let first = of(&all[0].features);
        assert_eq!(first.grades[1], None);
        assert_eq!(first.grades[4], Some(5), "a grade that never varied stays what it was");
        assert_eq!(first.grades[6], None, "no passes, no stability");
        // A better edge is never graded worse, and the verdict is that of the score.
        let mut f = all[0].features;
        let mut last = (0, 0.0);
        for v in 15..=84 {
            f[Feature::Edge as usize] = Some(f64::from(v) / 100.0);
            let now = of(&f);
            assert!(now.grades[0].unwrap() >= last.0 && now.score >= last.1, "{now:?} after {last:?}");
            last = (now.grades[0].unwrap(), now.score);
        }
        assert!(last.0 == 5 && Verdict::of(last.1) == Verdict::A, "{last:?}");
        f[Feature::Edge as usize] = Some(0.17);
        assert_eq!(Verdict::of(of(&f).score), Verdict::D);
        // What was not measured cannot be graded.
        f[Feature::Edge as usize] = None;
        assert_eq!(c.foretell(&f), None);
        let noisy = SegexCalibration::fit(&candidates(200, 1.0), 12);
        assert!(noisy.error[0] > c.error[0] && noisy.usable < c.usable);
        assert!(noisy.caution().unwrap().contains("12 labelled masks only: low confidence"));
    }

    #[test]
    fn the_score_changes_verdict_at_its_cuts() {
        let m = VerdictCuts([50.0, 58.0, 61.0]);
        let verdicts =
            |m: VerdictCuts, at: &[f64]| -> Vec<Verdict> { at.iter().map(|v| Verdict::of(m.score(*v))).collect() };
        use Verdict::{A, B, C, D};
        assert_eq!(verdicts(m, &[-40.0, 49.9, 56.5, 57.9, 58.0, 60.9, 61.0, 300.0]), [D, D, C, C, B, B, A, A]);
        assert!(m.score(59.0) < m.score(59.5) && m.score(64.0) < 100.0);
        assert_eq!((m.score(-400.0), m.score(400.0)), (0.0, 100.0));
        // Without masks of a class its piece is empty.
        assert_eq!(verdicts(VerdictCuts([58.0, 58.0, 60.0]), &[57.9, 58.0, 60.0]), [D, B, A]);
    }

    #[test]
    fn it_is_read_back_as_written_and_nonsense_is_refused() {
        let mut c = SegexCalibration::fit(&candidates(60, 0.2), 12);
        let back: SegexCalibration = serde_json::from_str(&serde_json::to_string(&c).unwrap()).unwrap();
        assert_eq!(back.problem(), None);
        assert_eq!(back.sets, c.sets);
        c.sets[0].score.weights.pop();
        assert!(c.problem().unwrap().contains("calibrate again"));
        assert!(SegexCalibration { version: 9, ..back }.problem().unwrap().contains("version 9"));
        assert!(SegexCalibration::fit(&[], 0).sets.is_empty());
    }
}
