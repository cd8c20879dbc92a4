//! Ranges of activations for INT8, from the values that a graph's tensors take over calibration images.
//!
//! Magnitudes are counted in bins whose width is a power of two and grows with the largest value: two bins then become one
//! exactly, so the counts, and every range that follows from them, do not depend on the order of the images.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Graph;
use super::precision::{BYTE, PrecisionError, quantisable, with_outputs};
use crate::engine::cpu::CpuEngine;
use crate::engine::{Engine, EngineError, Tensor};

/// Bins of magnitudes: thirty for each step of a byte.
const BINS: usize = 1 << LOG_BINS;
const LOG_BINS: i32 = 12;
/// Least exponent of a bin's width; smaller values count as zero.
const LEAST_EXPONENT: i32 = -100;
/// Bins that the entropy rule works on, and the steps that a byte has for magnitudes.
const ENTROPY_BINS: usize = 2048;
const STEPS: usize = 128;

/// From the values of a tensor to the magnitude that the largest byte stands for; what is larger is clipped.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RangeRule {
    /// The largest magnitude seen: nothing is clipped.
    MinMax,
    /// The magnitude below which so many percent of the values lie.
    Percentile(f64),
    /// The one with the least squared error of rounding and clipping together.
    LeastError,
    /// The one whose 128 steps keep most of the distribution (least Kullback-Leibler divergence), as TensorRT's calibrator did.
    Entropy,
}

impl RangeRule {
    /// In a word, as the command line has it.
    pub fn word(self) -> String {
        match self {
            RangeRule::MinMax => "min-max".into(),
            RangeRule::Percentile(p) => format!("percentile-{p}"),
            RangeRule::LeastError => "least-error".into(),
            RangeRule::Entropy => "entropy".into(),
        }
    }
}

impl std::str::FromStr for RangeRule {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let percent = word.strip_prefix("percentile-").and_then(|p| p.parse::<f64>().ok());
        match (word, percent) {
            ("min-max", _) => Ok(RangeRule::MinMax),
            ("least-error", _) => Ok(RangeRule::LeastError),
            ("entropy", _) => Ok(RangeRule::Entropy),
            (_, Some(p)) if p > 0.0 && p <= 100.0 => Ok(RangeRule::Percentile(p)),
            _ => Err(format!("no rule {word:?}: min-max, percentile-99.99, least-error or entropy")),
        }
    }
}

/// Why there are no ranges.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// No value of a tensor was seen.
    #[error("no value of {0} was seen: calibrate with at least one image")]
    Empty(String),
    /// A tensor holds what no range can cover.
    #[error("{0} holds a value that is not finite: the graph, the adapter or an image is broken")]
    NotFinite(String),
    /// The graph.
    #[error(transparent)]
    Graph(#[from] PrecisionError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Magnitudes of one tensor over all images.
#[derive(Clone, Debug, PartialEq)]
struct Histogram {
    /// Bin `i` counts magnitudes from `i` to `i + 1` times two to this power.
    exponent: i32,
    counts: Vec<u64>,
    largest: f32,
    seen: u64,
}

impl Histogram {
    fn new() -> Self {
        Histogram { exponent: LEAST_EXPONENT, counts: vec![0; BINS], largest: 0.0, seen: 0 }
    }

    /// Counts values; none where one is not finite.
    fn observe(&mut self, values: &[f32]) -> Option<()> {
        let largest = values.iter().try_fold(0f32, |m, v| v.is_finite().then(|| m.max(v.abs())))?;
        // The exponent of the number itself: floor(log2), exact.
        let power = ((largest.to_bits() >> 23) & 0xff) as i32 - 127;
        let exponent = (power + 1 - LOG_BINS).max(LEAST_EXPONENT);
        if exponent > self.exponent {
            // More than every bin at once makes all of them the first one.
            let shift = (exponent - self.exponent).min(LOG_BINS);
            let mut counts = vec![0; BINS];
            self.counts.iter().enumerate().for_each(|(i, c)| counts[i >> shift] += c);
            (self.counts, self.exponent) = (counts, exponent);
        }
        let per_bin = 2f32.powi(-self.exponent);
        values.iter().for_each(|v| self.counts[((v.abs() * per_bin) as usize).min(BINS - 1)] += 1);
        self.largest = self.largest.max(largest);
        self.seen += values.len() as u64;
        Some(())
    }

    fn edge(&self, bin: usize) -> f64 {
        bin as f64 * 2f64.powi(self.exponent)
    }

    fn range(&self, rule: RangeRule) -> f32 {
        let clipped = match rule {
            RangeRule::MinMax => return self.largest,
            RangeRule::Percentile(p) => self.percentile(p),
            RangeRule::LeastError => self.least_error(),
            RangeRule::Entropy => self.entropy(),
        };
        (clipped as f32).min(self.largest)
    }

    fn percentile(&self, percent: f64) -> f64 {
        let wanted = self.seen as f64 * percent / 100.0;
        let mut below = 0;
        for (i, c) in self.counts.iter().enumerate() {
            below += c;
            if below as f64 >= wanted {
                return self.edge(i + 1);
            }
        }
        self.edge(BINS)
    }

    fn least_error(&self) -> f64 {
        // Sums over the bins below each: of the counts, and of the middles' first and second moments.
        let mut sums = vec![[0f64; 3]; BINS + 1];
        for (i, &c) in self.counts.iter().enumerate() {
            let (x, c) = (i as f64 + 0.5, c as f64);
            let before = sums[i];
            sums[i + 1] = [before[0] + c, before[1] + c * x, before[2] + c * x * x];
        }
        let error = |clip: usize| {
            let t = clip as f64;
            let step = t / f64::from(BYTE);
            let part = |from: usize, to: usize| [0, 1, 2].map(|k| sums[to][k] - sums[from][k]);
            // Less than half a step becomes zero; between, the error is even over a step; above, it is what is cut off.
            let least = ((step / 2.0) as usize).min(clip);
            let (small, middle, above) = (part(0, least), part(least, clip), part(clip, BINS));
            small[2] + middle[0] * step * step / 12.0 + above[2] - 2.0 * t * above[1] + t * t * above[0]
        };
        let best = (1..=BINS).min_by(|a, b| error(*a).total_cmp(&error(*b)));
        self.edge(best.unwrap_or(BINS))
    }

    fn entropy(&self) -> f64 {
        let each = BINS / ENTROPY_BINS;
        let counts: Vec<f64> = self.counts.chunks(each).map(|c| c.iter().sum::<u64>() as f64).collect();
        let divergence = |clip: usize| -> f64 {
            let above: f64 = counts[clip..].iter().sum();
            let within: f64 = counts[..clip].iter().sum();
            let mut difference = 0.0;
            for step in 0..STEPS {
                let (from, to) = (step * clip / STEPS, (step + 1) * clip / STEPS);
                let used = counts[from..to].iter().filter(|c| **c > 0.0).count() as f64;
                let mean = counts[from..to].iter().sum::<f64>() / used.max(1.0);
                for (i, &own) in counts[from..to].iter().enumerate() {
                    let p = if from + i + 1 == clip { own + above } else { own };
                    if p > 0.0 {
                        // What is clipped falls on the last bin; where that was empty, it says nothing else.
                        let q = if own > 0.0 { mean } else { f64::MIN_POSITIVE };
                        difference += p / (within + above) * ((p / (within + above)) / (q / within.max(1.0))).ln();
                    }
                }
            }
            difference
        };
        let best = (STEPS..=ENTROPY_BINS).min_by(|a, b| divergence(*a).total_cmp(&divergence(*b)));
        self.edge(best.unwrap_or(ENTROPY_BINS) * each)
    }
}

/// What the tensors of a graph held over the images so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    tensors: BTreeMap<String, Histogram>,
}

impl Calibration {
    /// Nothing seen yet of the tensors of these names.
    pub fn new(tensors: impl IntoIterator<Item = String>) -> Self {
        Calibration { tensors: tensors.into_iter().map(|t| (t, Histogram::new())).collect() }
    }

    /// Counts values of a tensor.
    ///
    /// # Errors
    /// [`CalibrationError::NotFinite`]; what was seen before stays.
    pub fn observe(&mut self, tensor: &str, values: &[f32]) -> Result<(), CalibrationError> {
        let seen = self.tensors.entry(tensor.to_string()).or_insert_with(Histogram::new);
        seen.observe(values).ok_or_else(|| CalibrationError::NotFinite(tensor.into()))
    }

    /// The range of each tensor by a rule.
    ///
    /// # Errors
    /// [`CalibrationError::Empty`] where nothing of a tensor, or no tensor at all, was seen.
    pub fn ranges(&self, rule: RangeRule) -> Result<BTreeMap<String, f32>, CalibrationError> {
        if self.tensors.is_empty() {
            return Err(CalibrationError::Empty("any tensor".into()));
        }
        let range = |(name, h): (&String, &Histogram)| match h.seen {
            0 => Err(CalibrationError::Empty(name.clone())),
            _ => Ok((name.clone(), h.range(rule))),
        };
        self.tensors.iter().map(range).collect()
    }

    /// Values of a tensor that were seen.
    pub fn seen(&self, tensor: &str) -> u64 {
        self.tensors.get(tensor).map_or(0, |h| h.seen)
    }

    /// The largest magnitude of all tensors; FP16 ends at 65504.
    pub fn largest(&self) -> f32 {
        self.tensors.values().fold(0.0, |m, h| m.max(h.largest))
    }
}

/// Runs a graph on the embedded CPU engine and watches what its quantisable layers read.
pub struct Observer {
    engine: CpuEngine,
    watched: Vec<String>,
    inputs: BTreeSet<String>,
    own: usize,
    calibration: Calibration,
}

impl Observer {
    /// Opens an FP32 graph. `threads` as in [`CpuEngine::load`].
    ///
    /// # Errors
    /// [`CalibrationError::Graph`], [`CalibrationError::Engine`].
    pub fn new(graph: &Graph, threads: usize) -> Result<Self, CalibrationError> {
        let wanted: BTreeSet<String> = quantisable(&graph.onnx)?.into_iter().map(|q| q.activation).collect();
        let engine = CpuEngine::load(&graph.name, with_outputs(&graph.onnx, &wanted)?, threads)?;
        let inputs: BTreeSet<String> = graph.inputs.iter().map(|(n, _)| n.clone()).collect();
        let calibration = Calibration::new(wanted.iter().cloned());
        let watched = wanted.into_iter().filter(|n| !inputs.contains(n) && !graph.outputs.contains(n)).collect();
        Ok(Observer { engine, watched, inputs, own: graph.outputs.len(), calibration })
    }

    /// Runs once, counts what is seen inside, and gives the graph's own outputs.
    ///
    /// # Errors
    /// [`CalibrationError::NotFinite`], [`CalibrationError::Engine`].
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, CalibrationError> {
        let mut out = self.engine.run(inputs)?;
        let inside = out.split_off(self.own.min(out.len()));
        for (name, tensor) in self.watched.iter().zip(&inside) {
            self.calibration.observe(name, &tensor.data)?;
        }
        for (name, tensor) in inputs.iter().filter(|(n, _)| self.inputs.contains(*n)) {
            if self.calibration.tensors.contains_key(*name) {
                self.calibration.observe(name, &tensor.data)?;
            }
        }
        Ok(out)
    }

    /// What was seen.
    pub fn into_calibration(self) -> Calibration {
        self.calibration
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: [RangeRule; 4] =
        [RangeRule::MinMax, RangeRule::Percentile(99.9), RangeRule::LeastError, RangeRule::Entropy];

    fn range(batches: &[&[f32]], rule: RangeRule) -> f32 {
        let mut c = Calibration::default();
        batches.iter().for_each(|b| c.observe("x", b).unwrap());
        c.ranges(rule).unwrap()["x"]
    }

    proptest! {
        // The entropy rule tries two thousand ranges each time.
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn neither_order_nor_batches_matter(
            mut values in prop::collection::vec(-1e4f32..1e4, 2..300), small in 1e-6f32..1.0, cut in 0.0..1.0f64,
        ) {
            values.iter_mut().step_by(3).for_each(|v| *v *= small);
            let (a, b) = values.split_at((cut * values.len() as f64) as usize);
            for rule in RULES {
                let whole = range(&[&values], rule);
                prop_assert_eq!(whole, range(&[b, a], rule));
                prop_assert_eq!(whole, range(&[a, b], rule));
            }
        }

        #[test]
        fn a_factor_on_the_values_is_a_factor_on_the_range(
            values in prop::collection::vec(-9f32..9.0, 2..300), power in -20i32..20, any in 0.1f32..10.0,
        ) {
            prop_assume!(values.iter().any(|v| v.abs() > 1e-3));
            let times = |f: f32| values.iter().map(|v| v * f).collect::<Vec<_>>();
            for rule in RULES {
                let own = range(&[&values], rule);
                // Exactly by powers of two; otherwise as fine as bins are.
                let two = 2f32.powi(power);
                prop_assert_eq!(range(&[&times(two)], rule), own * two);
                prop_assert_eq!(range(&[&times(-1.0)], rule), own);
            }
            let largest = range(&[&values], RangeRule::MinMax);
            let bin = largest * any / 1000.0;
            let p = RangeRule::Percentile(50.0);
            prop_assert!((range(&[&times(any)], p) - range(&[&values], p) * any).abs() <= 2.0 * bin);
        }

        #[test]
        fn a_range_lies_between_nothing_and_the_largest(values in prop::collection::vec(-1e3f32..1e3, 1..200)) {
            let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            for rule in RULES {
                let r = range(&[&values], rule);
                prop_assert!(r >= 0.0 && r <= largest, "{rule:?} {r} {largest}");
            }
            prop_assert_eq!(range(&[&values], RangeRule::MinMax), largest);
        }
    }

    #[test]
    fn one_far_value_is_clipped_by_those_rules_that_clip() {
        // 100000 values spread as a bell, and one a thousand times as large.
        let mut values: Vec<f32> = (1..100_000).map(|i| ((i as f32 / 100_000.0) - 0.5) * 2.0).collect();
        values.iter_mut().for_each(|v| *v = v.powi(3));
        values.push(1000.0);
        assert_eq!(range(&[&values], RangeRule::MinMax), 1000.0);
        assert!(range(&[&values], RangeRule::Percentile(99.9)) < 1.5);
        assert!(range(&[&values], RangeRule::Entropy) < 500.0);
        // The square of the one value weighs more than those of all others: this rule clips where many values are large.
        let least = range(&[&values], RangeRule::LeastError);
        assert!(least > 900.0, "{least}");
    }

    #[test]
    fn the_least_error_is_the_least() {
        // The quantiles of Laplace's distribution: with so many values the largest lie far out, and clipping them pays.
        let values: Vec<f32> = (0..200_000).map(|i| -((i as f32 + 0.5) / 200_000.0).ln()).collect();
        let error = |range: f32| -> f64 {
            let step = range / BYTE;
            let round = |v: &f32| (v / step).round().clamp(-BYTE, BYTE) * step;
            values.iter().map(|v| f64::from(v - round(v)).powi(2)).sum()
        };
        let found = error(range(&[&values], RangeRule::LeastError));
        let largest = range(&[&values], RangeRule::MinMax);
        let best = (1..100).map(|i| error(largest * i as f32 / 100.0)).fold(f64::INFINITY, f64::min);
        assert!(found <= 1.05 * best, "{found} {best}");
        assert!(found < 0.9 * error(largest), "the rule gains nothing: {found} {}", error(largest));
    }

    #[test]
    fn nothing_and_what_is_not_finite_are_refused_by_name() {
        let empty = Calibration::new(["Conv/3".to_string()]).ranges(RangeRule::MinMax).unwrap_err();
        assert!(matches!(&empty, CalibrationError::Empty(n) if n == "Conv/3"), "{empty}");
        assert!(matches!(Calibration::default().ranges(RangeRule::MinMax), Err(CalibrationError::Empty(_))));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut c = Calibration::default();
            c.observe("Add/1", &[1.0]).unwrap();
            let before = c.clone();
            let e = c.observe("Add/1", &[0.5, bad, 2.0]).unwrap_err();
            assert!(e.to_string().contains("Add/1"), "{e}");
            assert_eq!(c, before, "nothing of a broken batch stays");
        }
        // All zeros are a range of nothing, which the quantiser knows how to divide by.
        assert_eq!(range(&[&[0.0; 9]], RangeRule::LeastError), 0.0);
    }

    #[test]
    fn rules_have_words() {
        for rule in RULES {
            assert_eq!(rule.word().parse::<RangeRule>(), Ok(rule));
        }
        for wrong in ["", "percentile", "percentile-0", "percentile-101", "percentile-nan", "kl"] {
            assert!(wrong.parse::<RangeRule>().is_err(), "{wrong}");
        }
    }
}
