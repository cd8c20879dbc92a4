//! The statistics of the evidence are SciPy's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::process::Command;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scanside::evaluate::statistics::{bootstrap_mean_ci, wilcoxon_signed_rank};

/// Runs a script on JSON given as its argument; its last line is JSON.
fn scipy(script: &str, input: &serde_json::Value) -> Option<serde_json::Value> {
    let python = common::python_with("scipy")?;
    let out = Command::new(python).args(["-W", "ignore", "-c", script, &input.to_string()]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(serde_json::from_slice(&out.stdout).unwrap())
}

#[test]
fn the_signed_rank_test_is_scipys() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut sets: Vec<Vec<f64>> = Vec::new();
    for n in [1, 2, 5, 12, 27, 50, 51, 135, 400] {
        for shift in [0.0, 0.3] {
            sets.push((0..n).map(|_| rng.random_range(-1.0..1.0) + shift).collect());
            // Ties and zeros.
            sets.push((0..n).map(|_| f64::from(rng.random_range(-3i32..6)) + shift * 10.0).collect());
        }
    }
    // Without ties SciPy is exact up to 50; with ties it is asked for all 2^n signs where that can be done.
    let script = "
import sys, json, numpy as np
from scipy.stats import wilcoxon, PermutationMethod
out = []
for d in json.loads(sys.argv[1]):
    d = np.array(d); d = d[d != 0]
    tied = len(set(np.abs(d))) < len(d)
    if len(d) == 0: out.append(None); continue
    if len(d) > 50: r = wilcoxon(d, method='asymptotic')
    elif not tied: r = wilcoxon(d, method='exact')
    elif len(d) <= 12: r = wilcoxon(d, method=PermutationMethod(n_resamples=np.inf))
    else: r = wilcoxon(d, method=PermutationMethod(n_resamples=20000, rng=np.random.default_rng(1)))
    out.append([float(r.statistic), float(r.pvalue), bool(tied and 12 < len(d) <= 50)])
print(json.dumps(out))";
    let Some(theirs) = scipy(script, &serde_json::json!(sets)) else { return };
    let mut compared = 0;
    for (d, r) in sets.iter().zip(theirs.as_array().unwrap()) {
        let Some(r) = r.as_array() else { continue };
        let ours = wilcoxon_signed_rank(d);
        let (statistic, p, sampled) = (r[0].as_f64().unwrap(), r[1].as_f64().unwrap(), r[2].as_bool().unwrap());
        // A permutation test reports the sum of the positive ranks, which may be the larger of the two.
        let least = statistic.min((ours.n * (ours.n + 1)) as f64 / 2.0 - statistic);
        assert!((ours.statistic - least).abs() < 1e-9, "{d:?}: {ours:?}, SciPy {r:?}");
        // 20 000 random signs know p to about a hundredth.
        let tolerance = if sampled { 0.015 } else { 1e-9 * p.max(1e-3) };
        assert!((ours.p - p).abs() < tolerance, "n {}: {ours:?}, SciPy {r:?}", d.len());
        compared += 1;
    }
    assert!(compared >= 34);
}

#[test]
fn the_interval_is_scipys() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let values: Vec<f64> = (0..40).map(|_| rng.random_range(0.0f64..1.0).powi(3)).collect();
    let script = "
import sys, json, numpy as np
from scipy.stats import bootstrap
r = bootstrap((np.array(json.loads(sys.argv[1])),), np.mean, n_resamples=40000, method='percentile', confidence_level=0.9,
              rng=np.random.default_rng(2)).confidence_interval
print(json.dumps([float(r.low), float(r.high)]))";
    let Some(theirs) = scipy(script, &serde_json::json!(values)) else { return };
    let groups: Vec<Vec<f64>> = values.iter().map(|v| vec![*v]).collect();
    let (low, high) = bootstrap_mean_ci(&groups, 0.9, 40_000, 1);
    // Two random samples of 40 000 rounds each.
    assert!((low - theirs[0].as_f64().unwrap()).abs() < 2e-3, "{low} {high} {theirs}");
    assert!((high - theirs[1].as_f64().unwrap()).abs() < 2e-3, "{low} {high} {theirs}");
}
