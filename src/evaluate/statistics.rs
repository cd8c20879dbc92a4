//! Statistics of paired results: signed-rank test, correction for many tests, intervals by resampling whole clusters.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use crate::image::surface::quantile;

/// Up to so many differences the distribution of the statistic is counted out, ties included; beyond, it is normal.
pub const EXACT_UP_TO: usize = 50;

/// A Wilcoxon signed-rank test.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct WilcoxonResult {
    /// The smaller of the two rank sums.
    pub statistic: f64,
    /// Two-sided p; 1 where no difference is left.
    pub p: f64,
    /// Differences that are not 0.
    pub n: usize,
}

/// The two-sided signed-rank test of paired differences against a median of 0.
///
/// Differences of 0 are dropped (Wilcoxon's own rule) and so are those that are no number; ties share their mean rank.
/// Exact up to [`EXACT_UP_TO`] differences, given the ranks as they are, ties included; beyond, the normal approximation
/// with the variance corrected for ties and no correction for continuity.
pub fn wilcoxon_signed_rank(differences: &[f64]) -> WilcoxonResult {
    let mut d: Vec<f64> = differences.iter().copied().filter(|d| d.is_finite() && *d != 0.0).collect();
    d.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let n = d.len();
    if n == 0 {
        return WilcoxonResult { statistic: 0.0, p: 1.0, n };
    }
    // Twice the rank is a whole number for ties too.
    let mut twice = vec![0usize; n];
    let mut ties = 0.0;
    let mut from = 0;
    while from < n {
        let to = (from..n).take_while(|&i| d[i].abs() == d[from].abs()).count() + from;
        twice[from..to].fill(from + 1 + to);
        let t = (to - from) as f64;
        ties += t * t * t - t;
        from = to;
    }
    let all: usize = twice.iter().sum();
    let positive: usize = d.iter().zip(&twice).filter(|(d, _)| **d > 0.0).map(|(_, r)| r).sum();
    let least = positive.min(all - positive);
    let p = if n <= EXACT_UP_TO {
        // ways[s]: in how many of the 2^n ways to give signs the positive ranks sum to s / 2.
        let mut ways = vec![0.0f64; all + 1];
        ways[0] = 1.0;
        for &r in &twice {
            for s in (r..=all).rev() {
                ways[s] += ways[s - r];
            }
        }
        2.0 * ways[..=least].iter().sum::<f64>() / 2f64.powi(n as i32)
    } else {
        let m = n as f64;
        let sd = ((m * (m + 1.0) * (2.0 * m + 1.0) - ties / 2.0) / 24.0).sqrt();
        erfc((least as f64 / 2.0 - m * (m + 1.0) / 4.0).abs() / sd / std::f64::consts::SQRT_2)
    };
    WilcoxonResult { statistic: least as f64 / 2.0, p: p.min(1.0), n }
}

/// p values corrected by Holm's step-down method, in the order given; a p that is no number stays so and is not counted.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).filter(|&i| !p[i].is_nan()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut out = vec![f64::NAN; p.len()];
    let mut most = 0.0f64;
    for (rank, &i) in order.iter().enumerate() {
        most = most.max((p[i] * (order.len() - rank) as f64).min(1.0));
        out[i] = most;
    }
    out
}

/// The interval of a mean over clustered values: whole groups (subjects, say) are drawn with replacement, and the mean
/// of all values drawn is taken, `rounds` times; the interval spans the middle `level` (0.95, say) of those means.
///
/// Both ends are no number where there is no value or no round. Same seed, same interval.
pub fn bootstrap_mean_ci(groups: &[Vec<f64>], level: f64, rounds: usize, seed: u64) -> (f64, f64) {
    let sums: Vec<(f64, f64)> =
        groups.iter().filter(|g| !g.is_empty()).map(|g| (g.iter().sum(), g.len() as f64)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    interval(level, if sums.is_empty() { 0 } else { rounds }, || {
        let (mut sum, mut count) = (0.0, 0.0);
        for _ in 0..sums.len() {
            let (s, n) = sums[rng.random_range(0..sums.len())];
            sum += s;
            count += n;
        }
        Some(sum / count)
    })
}

/// A value of one subject under one draw of the labelled slices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crossed {
    /// The subject.
    pub subject: usize,
    /// The draw.
    pub draw: usize,
    /// The figure.
    pub value: f64,
}

/// The interval of a mean over values that share both subjects and draws: subjects and draws are drawn with replacement
/// each by themselves, and a value counts as often as its subject times its draw (Owen 2007, the pigeonhole bootstrap).
/// It says what new subjects and new draws would give; one draw alone has no spread between draws.
///
/// Both ends are no number where there is no value or no round. Same seed, same interval.
pub fn bootstrap_crossed_mean_ci(values: &[Crossed], level: f64, rounds: usize, seed: u64) -> (f64, f64) {
    let place = |all: BTreeSet<usize>| -> BTreeMap<usize, usize> { all.into_iter().zip(0..).collect() };
    let subjects = place(values.iter().map(|v| v.subject).collect());
    let draws = place(values.iter().map(|v| v.draw).collect());
    let cells: Vec<(usize, usize, f64)> =
        values.iter().map(|v| (subjects[&v.subject], draws[&v.draw], v.value)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut weights = |n: usize| {
        let mut w = vec![0.0; n];
        (0..n).for_each(|_| w[rng.random_range(0..n)] += 1.0);
        w
    };
    interval(level, if cells.is_empty() { 0 } else { rounds }, || {
        let (a, b) = (weights(subjects.len()), weights(draws.len()));
        let (mut sum, mut count) = (0.0, 0.0);
        for &(s, d, v) in &cells {
            sum += a[s] * b[d] * v;
            count += a[s] * b[d];
        }
        // Where not every subject has every draw, a round may hit no value at all.
        (count > 0.0).then_some(sum / count)
    })
}

/// Differences `a - b` of the values that share a key; what only one side has is left out.
pub fn paired_differences<K: Ord + Clone>(a: &BTreeMap<K, f64>, b: &BTreeMap<K, f64>) -> BTreeMap<K, f64> {
    a.iter().filter_map(|(k, v)| Some((k.clone(), v - b.get(k)?))).collect()
}

fn interval(level: f64, rounds: usize, mut mean: impl FnMut() -> Option<f64>) -> (f64, f64) {
    let mut means: Vec<f64> = (0..rounds).filter_map(|_| mean()).collect();
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - level) / 2.0;
    (quantile(&means, tail).unwrap_or(f64::NAN), quantile(&means, 1.0 - tail).unwrap_or(f64::NAN))
}

/// The complementary error function for x >= 0: its power series below 2, its continued fraction above.
fn erfc(x: f64) -> f64 {
    let scale = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x < 2.0 {
        let (mut term, mut sum, mut k) = (x, x, 1.0);
        while term > sum * 1e-17 {
            term *= 2.0 * x * x / (2.0 * k + 1.0);
            sum += term;
            k += 1.0;
        }
        return 1.0 - 2.0 * scale * sum;
    }
    // From the far end: x + (1/2) / (x + (2/2) / (x + (3/2) / ...)).
    scale / (1..=120).rev().fold(x, |f, k| x + f64::from(k) / 2.0 / f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_gains_in_a_row_give_the_least_p_that_five_can_give() {
        let r = wilcoxon_signed_rank(&[0.1, 0.2, 0.3, 0.4, 0.5]);
        assert_eq!((r.statistic, r.p, r.n), (0.0, 2.0 / 32.0, 5));
        // Zeros say nothing; ties share ranks: |1|, |1| have 1.5 each, and both signs opposed cannot be told from chance.
        let r = wilcoxon_signed_rank(&[0.0, 1.0, -1.0, f64::NAN]);
        assert_eq!((r.statistic, r.p, r.n), (1.5, 1.0, 2));
        assert_eq!(wilcoxon_signed_rank(&[0.0]), WilcoxonResult { statistic: 0.0, p: 1.0, n: 0 });
    }

    #[test]
    fn holm_steps_down_and_never_falls() {
        let all = holm(&[0.01, 0.04, 0.03, f64::NAN, 0.005]);
        for (got, want) in all.iter().zip([0.03, 0.06, 0.06, f64::NAN, 0.02]) {
            assert!((got - want).abs() < 1e-12 || (got.is_nan() && want.is_nan()), "{all:?}");
        }
        assert_eq!(holm(&[0.7, 0.9]), [1.0, 1.0]);
    }

    #[test]
    fn an_interval_is_repeatable_and_as_wide_as_its_clusters_are_apart() {
        let apart: Vec<Vec<f64>> = (0..12).map(|i| vec![f64::from(i); 10]).collect();
        let (low, high) = bootstrap_mean_ci(&apart, 0.95, 4000, 3);
        assert_eq!((low, high), bootstrap_mean_ci(&apart, 0.95, 4000, 3));
        // The mean of 12 clusters has standard error sd / sqrt(12), whatever the values inside: 3.452 / 3.464.
        assert!(
            (low - (5.5 - 1.96 * 0.9965)).abs() < 0.15 && (high - (5.5 + 1.96 * 0.9965)).abs() < 0.15,
            "{low} {high}"
        );
        let loose: Vec<Vec<f64>> = apart.concat().into_iter().map(|v| vec![v]).collect();
        let (l, h) = bootstrap_mean_ci(&loose, 0.95, 4000, 3);
        assert!(h - l < 0.5 * (high - low), "clusters were not kept together");
        assert!(bootstrap_mean_ci(&[vec![]], 0.95, 100, 1).0.is_nan());
    }

    #[test]
    fn draws_that_differ_widen_the_crossed_interval() {
        let cells = |effect: f64| -> Vec<Crossed> {
            (0..100)
                .map(|i| Crossed { subject: i / 5, draw: i % 5, value: (i / 5 % 2) as f64 + effect * (i % 5) as f64 })
                .collect()
        };
        let width = |v: &[Crossed]| {
            let (l, h) = bootstrap_crossed_mean_ci(v, 0.95, 2000, 7);
            h - l
        };
        let by_subject: Vec<Vec<f64>> = cells(0.0).chunks(5).map(|c| c.iter().map(|v| v.value).collect()).collect();
        let (l, h) = bootstrap_mean_ci(&by_subject, 0.95, 2000, 7);
        // Without an effect of the draw it is the interval over subjects.
        assert!((width(&cells(0.0)) - (h - l)).abs() < 0.06);
        assert!(width(&cells(1.0)) > 3.0 * (h - l));
        assert!(bootstrap_crossed_mean_ci(&[], 0.95, 10, 1).0.is_nan());
    }

    #[test]
    fn only_what_both_have_is_compared() {
        let a = BTreeMap::from([(1, 0.9), (2, 0.8), (3, 0.7)]);
        let b = BTreeMap::from([(2, 0.5), (3, 0.7), (4, 0.1)]);
        let d = paired_differences(&a, &b);
        assert_eq!(d.keys().copied().collect::<Vec<_>>(), [2, 3]);
        assert!((d[&2] - 0.3).abs() < 1e-12);
    }

    #[test]
    fn the_error_function_has_its_known_values() {
        for (x, want) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (2.0, 0.004_677_734_981_047_266),
            (5.0, 1.537_459_794_428_035e-12),
        ] {
            assert!((erfc(x) / want - 1.0).abs() < 1e-12, "{x}: {}", erfc(x));
        }
    }
}
