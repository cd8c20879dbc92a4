//! Whether served cases still look like the calibration set: area, intensity and SegEx score of each structure.
//!
//! For each structure and quantity the median of the newest N cases is held against the calibration set's mean m and
//! standard deviation s: `z = (median - m) / (s sqrt(pi / (2 N) + 1 / n))`, where pi / 2 is what the median of N cases is less
//! certain than their mean, and n is the size of the calibration set, whose own mean is uncertain too. With few labelled
//! slices s is drawn towards a prior. An alert begins at `drift.z` and ends below three quarters of it; a better score is none.
//! A structure that a case lacks has a score of 0 in it: one that vanishes is seen once half of the window's cases lack it.

use rusqlite::Connection;

use crate::adapter::{Reference, Spread, brightness, measure};
use crate::config;
use crate::image::Volume;
use crate::pipeline::Segmentation;
use crate::store::review::{self, Drift, Served};

/// Spread that is assumed before anything is seen: of ln area, of relative intensity, of the SegEx score.
const PRIOR_SD: [f64; 3] = [0.30, 0.05, 8.0];
/// As many values as the prior weighs.
const PRIOR_WEIGHT: f64 = 4.0;
/// An alert ends below this share of the bar at which it begins.
const CALM: f64 = 0.75;
/// What is measured.
const QUANTITIES: [&str; 3] = ["area", "intensity", "score"];

/// What a segmented case measures of each structure: the mean over its legs; a score of 0 for what it lacks.
pub fn served(volume: &Volume, s: &Segmentation, references: &[Reference]) -> Vec<Served> {
    let bright = brightness(volume);
    let mut keys: Vec<&str> = s.report.structures.iter().map(|r| r.structure.key.as_str()).collect();
    keys.dedup();
    keys.sort_unstable();
    keys.dedup();
    let mut out = lost(references, &keys);
    for key in keys {
        let of_key = || s.report.structures.iter().filter(|r| r.structure.key == key);
        let measured: Vec<[f64; 2]> =
            of_key().filter(|r| r.label > 0).filter_map(|r| measure(volume, &s.labels, r.label, bright)).collect();
        let scores: Vec<f64> = of_key().map(|r| r.score).collect();
        let columns =
            [measured.iter().map(|m| m[0]).collect::<Vec<_>>(), measured.iter().map(|m| m[1]).collect(), scores];
        for (quantity, values) in QUANTITIES.iter().zip(&columns) {
            if let Some(spread) = Spread::of(values) {
                out.push(Served { structure: key.into(), quantity: (*quantity).into(), value: spread.mean });
            }
        }
    }
    out
}

/// A score of 0 for each structure that a case lacks: neither found nor seen by the classifier, so that the report does not name it.
/// What most of the calibration set's legs lack too is no loss; what has no score there cannot be compared.
fn lost(references: &[Reference], found: &[&str]) -> Vec<Served> {
    let legs = references.iter().filter_map(|r| r.score).map(|s| s.count).max().unwrap_or(0);
    let usual = |r: &&Reference| r.score.is_some_and(|s| 2 * s.count > legs);
    references
        .iter()
        .filter(usual)
        .filter(|r| !found.contains(&r.key.as_str()))
        .map(|r| Served { structure: r.key.clone(), quantity: QUANTITIES[2].into(), value: 0.0 })
        .collect()
}

/// Distance of the newest cases from the calibration set in standard errors; `quantity` indexes [`QUANTITIES`].
fn distance(values: &[f64], reference: &Spread, quantity: usize) -> Option<(f64, f64)> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    if n == 0 || reference.count == 0 {
        return None;
    }
    let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
    let free = (reference.count - 1) as f64;
    let variance = (free * reference.sd.powi(2) + PRIOR_WEIGHT * PRIOR_SD[quantity].powi(2)) / (free + PRIOR_WEIGHT);
    let error = (variance * (std::f64::consts::FRAC_PI_2 / n as f64 + 1.0 / reference.count as f64)).sqrt();
    Some((median, (median - reference.mean) / error))
}

/// The drift with this case as the newest, and sentences about alerts that begin with it. Nothing is written.
///
/// # Errors
/// The database's.
pub fn look(
    conn: &Connection,
    settings: &config::Drift,
    references: &[Reference],
    adapter: &str,
    job_id: i64,
    now: &[Served],
    now_ms: i64,
) -> rusqlite::Result<(Vec<Drift>, Vec<String>)> {
    let (mut drifts, mut sentences) = (Vec::new(), Vec::new());
    if !settings.enabled {
        return Ok((drifts, sentences));
    }
    let before = review::drifts(conn, adapter)?;
    for s in now {
        let Some(q) = QUANTITIES.iter().position(|q| *q == s.quantity) else { continue };
        let Some(r) = references.iter().find(|r| r.key == s.structure) else { continue };
        let Some(reference) = [r.area, r.intensity, r.score][q] else { continue };
        let rest = settings.window.max(1) - 1;
        let mut values = review::newest(conn, adapter, &s.structure, &s.quantity, job_id, rest)?;
        values.push(s.value);
        let Some((median, z)) = distance(&values, &reference, q) else { continue };
        let since =
            before.iter().find(|d| d.structure == s.structure && d.quantity == s.quantity).and_then(|d| d.since_ms);
        let away = if q == 2 { -z } else { z.abs() };
        let bar = if since.is_some() { CALM * settings.z } else { settings.z };
        let alert = values.len() >= settings.least_cases && away >= bar;
        let drift = Drift {
            structure: s.structure.clone(),
            quantity: s.quantity.clone(),
            cases: values.len() as i64,
            median,
            expected: reference.mean,
            z,
            since_ms: if alert { since.or(Some(now_ms)) } else { None },
        };
        if alert && since.is_none() {
            sentences.push(format!(
                "drift begins: {}; check protocol, patients and model before relying on results",
                sentence(&drift)
            ));
        }
        drifts.push(drift);
    }
    Ok((drifts, sentences))
}

/// A drift in words.
pub fn sentence(d: &Drift) -> String {
    let what = match d.quantity.as_str() {
        // The median: most of the cases have no mask of it, or one that is worth nothing.
        "score" if d.median <= 0.0 => {
            return format!(
                "{} was not found, or has a SegEx score of 0, in most of the last {} cases; {:.0} is its score in the \
                 calibration set (z {:.1})",
                d.structure, d.cases, d.expected, d.z
            );
        }
        "area" => {
            let percent = ((d.median - d.expected).exp() - 1.0) * 100.0;
            let word = if percent < 0.0 { "smaller" } else { "larger" };
            format!("the cross-section of {} is {:.0} % {word}", d.structure, percent.abs())
        }
        "intensity" => format!("the brightness of {} is {:.2} instead of {:.2}", d.structure, d.median, d.expected),
        _ => format!("the SegEx score of {} is {:.0} instead of {:.0}", d.structure, d.median, d.expected),
    };
    format!("{what}, against the calibration set over the last {} cases (z {:.1})", d.cases, d.z)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;
    use crate::adapter::measure_slice;
    use crate::engine::EngineIdentity;
    use crate::image::phantom::{Phantom, PhantomOptions};
    use crate::segex::{Report, StructureReport, Verdict};
    use crate::store::queue;
    use crate::terms::{Side, Task, structure};

    fn task() -> Task {
        Task { name: "t".into(), structures: ["VL", "VM"].iter().filter_map(|k| structure(k)).collect() }
    }

    /// Made once: the tests serve the same ones.
    fn phantom(seed: u64) -> Phantom {
        static MADE: Mutex<BTreeMap<u64, Phantom>> = Mutex::new(BTreeMap::new());
        let options =
            PhantomOptions { seed, dims: [256, 128, 5], spacing: [1.953_125, 1.953_125, 15.0], ..Default::default() };
        MADE.lock().unwrap().entry(seed).or_insert_with(|| Phantom::new(&options)).clone()
    }

    /// Calibration from one slice each of five phantoms, as a site has it.
    fn references() -> Vec<Reference> {
        let cases: Vec<Phantom> = (1..6).map(phantom).collect();
        (0..2)
            .map(|k| {
                let all: Vec<[f64; 2]> = cases
                    .iter()
                    .enumerate()
                    .filter_map(|(i, p)| {
                        let truth = p.truth(&task(), Side::Right);
                        measure_slice(&p.volume, &truth, k as u8 + 1, i, brightness(&p.volume))
                    })
                    .collect();
                let column = |c: usize| Spread::of(&all.iter().map(|v| v[c]).collect::<Vec<_>>());
                let score = Spread::of(&[88.0, 90.0, 85.0, 92.0]);
                Reference { key: task().structures[k].key.clone(), area: column(0), intensity: column(1), score }
            })
            .collect()
    }

    /// Serves phantoms one after the other and tells which alerts begin at which case.
    fn run(cases: usize, change: impl Fn(usize, &mut Phantom, &mut f64)) -> (Vec<(usize, String)>, Vec<Drift>) {
        run_lacking(cases, |_| false, change)
    }

    /// The same with cases whose report does not name VM.
    fn run_lacking(
        cases: usize,
        lacks: impl Fn(usize) -> bool,
        change: impl Fn(usize, &mut Phantom, &mut f64),
    ) -> (Vec<(usize, String)>, Vec<Drift>) {
        let mut conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(queue::MIGRATION).unwrap();
        conn.execute_batch(review::MIGRATION).unwrap();
        let settings = config::Drift { window: 10, least_cases: 6, ..config::Drift::default() };
        let references = references();
        let mut begun = Vec::new();
        for case in 0..cases {
            let mut p = phantom(100 + case as u64);
            let mut score = 86.0;
            change(case, &mut p, &mut score);
            let reports = task().structures.into_iter().zip(1..).map(|(structure, label)| StructureReport {
                structure,
                side: Some(Side::Right),
                label,
                volume_mm3: 1.0,
                grades: Vec::new(),
                score,
                verdict: Verdict::B,
                remarks: Vec::new(),
            });
            let reports = reports.filter(|r| r.structure.key != "VM" || !lacks(case)).collect();
            let found = Segmentation {
                labels: p.truth(&task(), Side::Right),
                segments: Vec::new(),
                doubt: Vec::new(),
                report: Report::new("device".into(), false, false, reports),
                evidence: None,
                engine: EngineIdentity { kind: "cpu".into(), version: String::new(), precision: "fp32".into() },
                adapter: "a".into(),
                adapter_sha256: "a".into(),
                remarks: Vec::new(),
                times: Vec::new(),
            };
            let now = served(&p.volume, &found, &references);
            let job = queue::open_job(&mut conn, &format!("1.{case}"), &[case as i64], "quiet", 0, 0).unwrap().unwrap();
            let (drifts, said) = look(&conn, &settings, &references, "a", job.id, &now, 1_000 + case as i64).unwrap();
            let tx = conn.transaction().unwrap();
            review::serve(&tx, job.id, "a", &now).unwrap();
            review::set_drifts(&tx, "a", &drifts).unwrap();
            tx.commit().unwrap();
            begun.extend(said.into_iter().map(|s| (case, s)));
        }
        (begun, review::drifts(&conn, "a").unwrap())
    }

    #[test]
    fn phantoms_like_those_of_the_calibration_set_raise_no_alert() {
        let (begun, drifts) = run(16, |_, _, _| {});
        assert_eq!(begun, []);
        assert_eq!(drifts.len(), 6);
        assert!(drifts.iter().all(|d| d.since_ms.is_none() && d.z.abs() < 3.0 && d.cases == 10), "{drifts:?}");
    }

    #[test]
    fn another_contrast_is_seen_once_and_ends_when_it_ends() {
        // From case 4 to 15 muscle is as bright as half of fat: another sequence.
        let brighter = |case: usize, p: &mut Phantom, _: &mut f64| {
            if (4..16).contains(&case) {
                let top = brightness(&p.volume) as f32;
                p.volume.data.iter_mut().for_each(|v| *v = (*v / top).clamp(0.0, 1.0).powf(0.45) * top);
            }
        };
        let (begun, drifts) = run(14, brighter);
        let intensity: Vec<usize> =
            begun.iter().filter(|(_, s)| s.contains("brightness of VL")).map(|(c, _)| *c).collect();
        assert_eq!(intensity.len(), 1, "told once: {begun:?}");
        assert!((6..12).contains(&intensity[0]), "{begun:?}");
        assert!(begun.iter().all(|(_, s)| s.contains("brightness") && s.contains("check protocol")), "{begun:?}");
        assert!(drifts[0].since_ms.is_some() && drifts[0].quantity == "intensity" && drifts[0].z > 3.0);
        let (_, after) = run(28, brighter);
        assert!(after.iter().all(|d| d.since_ms.is_none()), "{after:?}");
    }

    #[test]
    fn smaller_muscles_and_falling_scores_are_seen_and_rising_ones_are_not() {
        let (begun, _) = run(14, |_, p, _| {
            // A third of the pixel's edges: a wrong spacing, or children.
            p.volume.geometry.spacing[0] *= 0.55;
            p.volume.geometry.spacing[1] *= 0.55;
        });
        assert!(begun.iter().any(|(_, s)| s.contains("cross-section of VL") && s.contains("smaller")), "{begun:?}");
        let (fell, _) = run(12, |_, _, score| *score = 60.0);
        assert!(fell.iter().any(|(_, s)| s.contains("SegEx score of VM is 60 instead of 89")), "{fell:?}");
        let (rose, _) = run(12, |_, _, score| *score = 100.0);
        assert_eq!(rose, []);
    }

    #[test]
    fn a_structure_that_vanishes_is_seen_and_one_that_single_series_lack_is_none() {
        let (begun, drifts) = run_lacking(12, |_| true, |_, _, _| {});
        let [(case, said)] = begun.as_slice() else { panic!("{begun:?}") };
        assert_eq!(*case, 5, "the least number of cases is six");
        let words = "drift begins: VM was not found, or has a SegEx score of 0, in most of the last 6 cases; 89 is its score in";
        assert!(said.starts_with(words), "{said}");
        assert_eq!(drifts.len(), 4, "three of VL and the score of VM: {drifts:?}");
        // A third of the series show no VM: too few for the median.
        let (begun, _) = run_lacking(14, |case| case % 3 == 0, |_, _, _| {});
        assert!(begun.iter().all(|(_, s)| !s.contains("score")), "{begun:?}");
    }

    #[test]
    fn what_the_calibration_set_mostly_lacks_is_no_loss() {
        let mut references = references();
        let keys = |r: &[Reference], found: &[&str]| -> Vec<String> {
            lost(r, found).into_iter().map(|s| s.structure).collect()
        };
        assert_eq!(keys(&references, &["VL"]), ["VM"]);
        assert_eq!(keys(&references, &["VL", "VM"]), [""; 0]);
        references[1].score = Spread::of(&[90.0, 91.0]);
        assert_eq!(keys(&references, &["VL"]), [""; 0], "two of four legs show it");
        references[1].score = None;
        assert_eq!(keys(&references, &["VL"]), [""; 0], "nothing to compare with");
        assert_eq!(keys(&[], &["VL"]), [""; 0]);
    }
}
