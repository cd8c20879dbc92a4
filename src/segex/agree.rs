//! How far observers agree: quadratic weighted kappa, ICC(2,1), and their intervals by resampling subjects.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::image::surface::quantile;

/// Quadratic weighted kappa (Cohen 1968) of pairs of grades from 1 to `grades`; none without pairs, or where both always gave
/// one and the same grade, so that chance alone would agree as well.
pub fn weighted_kappa(pairs: &[(u8, u8)], grades: u8) -> Option<f64> {
    let k = usize::from(grades);
    let mut seen = vec![0.0; k * k];
    let (mut rows, mut columns) = (vec![0.0; k], vec![0.0; k]);
    let mut n = 0.0;
    for &(a, b) in pairs.iter().filter(|(a, b)| (1..=grades).contains(a) && (1..=grades).contains(b)) {
        let (a, b) = (usize::from(a) - 1, usize::from(b) - 1);
        seen[a * k + b] += 1.0;
        rows[a] += 1.0;
        columns[b] += 1.0;
        n += 1.0;
    }
    let (mut observed, mut expected) = (0.0, 0.0);
    for a in 0..k {
        for b in 0..k {
            let w = (a as f64 - b as f64).powi(2);
            observed += w * seen[a * k + b];
            expected += w * rows[a] * columns[b];
        }
    }
    (expected > 0.0).then(|| 1.0 - observed * n / expected)
}

/// ICC(2,1) (Shrout and Fleiss 1979): two-way random effects, absolute agreement, a single observer. One row for each thing
/// graded, one column for each observer. None with fewer than two rows or columns, or where nothing varies.
pub fn icc_2_1(rows: &[Vec<f64>]) -> Option<f64> {
    let n = rows.len();
    let k = rows.first()?.len();
    if n < 2 || k < 2 || rows.iter().any(|r| r.len() != k) {
        return None;
    }
    let (nf, kf) = (n as f64, k as f64);
    let mean = rows.iter().flatten().sum::<f64>() / (nf * kf);
    let by_row: f64 = rows.iter().map(|r| (r.iter().sum::<f64>() / kf - mean).powi(2)).sum::<f64>() * kf;
    let by_column: f64 = (0..k).map(|j| (rows.iter().map(|r| r[j]).sum::<f64>() / nf - mean).powi(2)).sum::<f64>() * nf;
    let total: f64 = rows.iter().flatten().map(|v| (v - mean).powi(2)).sum();
    let (ms_rows, ms_columns) = (by_row / (nf - 1.0), by_column / (kf - 1.0));
    let ms_error = (total - by_row - by_column) / ((nf - 1.0) * (kf - 1.0));
    let below = ms_rows + (kf - 1.0) * ms_error + kf * (ms_columns - ms_error) / nf;
    (below.abs() > 1e-12).then(|| (ms_rows - ms_error) / below)
}

/// Area under the receiver operating characteristic: the chance that something accepted scores above something refused, ties
/// counted half. None where there is only one kind. Each item is its score and whether the truth accepts it.
pub fn auroc(items: &[(f64, bool)]) -> Option<f64> {
    let mut sorted: Vec<(f64, bool)> = items.iter().copied().filter(|i| i.0.is_finite()).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut sum, mut positives) = (0.0, 0.0, 0.0);
    let mut at = 0;
    while at < sorted.len() {
        let end = (at..sorted.len()).take_while(|&i| sorted[i].0 == sorted[at].0).count() + at;
        let good = sorted[at..end].iter().filter(|i| i.1).count() as f64;
        let bad = (end - at) as f64 - good;
        sum += good * (below + bad / 2.0);
        below += bad;
        positives += good;
        at = end;
    }
    (positives > 0.0 && below > 0.0).then(|| sum / (positives * below))
}

/// A figure with the 95 % interval that resampling subjects gives.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Interval {
    /// The figure over all subjects.
    pub value: f64,
    /// 2.5th percentile.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
}

/// A statistic over the items of all subjects, and its interval: whole subjects are drawn with replacement, `rounds` times;
/// rounds in which the statistic does not exist are left out. None where it does not exist over all.
pub fn bootstrapped<T: Clone>(
    subjects: &[Vec<T>],
    rounds: usize,
    seed: u64,
    statistic: impl Fn(&[T]) -> Option<f64>,
) -> Option<Interval> {
    let value = statistic(&subjects.concat())?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = Vec::new();
    let mut values: Vec<f64> = (0..rounds)
        .filter_map(|_| {
            drawn.clear();
            for _ in 0..subjects.len() {
                drawn.extend_from_slice(&subjects[rng.random_range(0..subjects.len())]);
            }
            statistic(&drawn)
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |q| quantile(&values, q).unwrap_or(value);
    Some(Interval { value, low: at(0.025), high: at(0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kappa_has_its_known_values() {
        let same: Vec<(u8, u8)> = (1..=5).map(|g| (g, g)).collect();
        assert_eq!(weighted_kappa(&same, 5), Some(1.0));
        let opposed: Vec<(u8, u8)> = (1..=5).map(|g| (g, 6 - g)).collect();
        assert_eq!(weighted_kappa(&opposed, 5), Some(-1.0));
        // By hand: the squared differences sum to 8, by chance to 27.75.
        let pairs = [(1, 1), (2, 3), (3, 3), (4, 5), (5, 4), (1, 2), (2, 2), (3, 1)];
        assert!((weighted_kappa(&pairs, 5).unwrap() - (1.0 - 8.0 / 27.75)).abs() < 1e-12);
        assert_eq!(weighted_kappa(&[(3, 3), (3, 3)], 5), None);
        assert_eq!(weighted_kappa(&[], 5), None);
    }

    #[test]
    fn icc_is_that_of_shrout_and_fleiss() {
        // Their table of six targets and four judges: ICC(2,1) = 0.29.
        let rows: Vec<Vec<f64>> = [
            [9.0, 2.0, 5.0, 8.0],
            [6.0, 1.0, 3.0, 2.0],
            [8.0, 4.0, 6.0, 8.0],
            [7.0, 1.0, 2.0, 6.0],
            [10.0, 5.0, 6.0, 9.0],
            [6.0, 2.0, 4.0, 7.0],
        ]
        .map(Vec::from)
        .to_vec();
        assert!((icc_2_1(&rows).unwrap() - 0.29).abs() < 0.005, "{:?}", icc_2_1(&rows));
        assert_eq!(icc_2_1(&[vec![1.0, 1.0], vec![1.0, 1.0]]), None);
        assert_eq!(icc_2_1(&rows[..1]), None);
    }

    #[test]
    fn auroc_counts_pairs_and_halves_ties() {
        assert_eq!(auroc(&[(1.0, false), (2.0, true)]), Some(1.0));
        assert_eq!(auroc(&[(1.0, true), (2.0, false)]), Some(0.0));
        assert_eq!(auroc(&[(1.0, true), (1.0, false)]), Some(0.5));
        assert_eq!(auroc(&[(0.1, false), (0.4, true), (0.35, false), (0.8, true), (0.4, false)]), Some(5.5 / 6.0));
        assert_eq!(auroc(&[(1.0, true)]), None);
    }

    #[test]
    fn intervals_repeat_by_seed_and_hold_the_value() {
        let subjects: Vec<Vec<f64>> = (0..10).map(|i| vec![f64::from(i); 3]).collect();
        let mean = |v: &[f64]| (!v.is_empty()).then(|| v.iter().sum::<f64>() / v.len() as f64);
        let a = bootstrapped(&subjects, 500, 7, mean).unwrap();
        assert_eq!(a, bootstrapped(&subjects, 500, 7, mean).unwrap());
        assert!(a.low < a.value && a.value < a.high && a.value == 4.5);
        assert_eq!(bootstrapped::<f64>(&[], 10, 1, mean), None);
    }
}
