//! Lives of releases that are struck in every state, and what must hold after them whatever the stroke was.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scanside::adapter::trust::TrustStore;
use scanside::store::bundles::{self, State};
use scanside::store::queue::{self, JobState};

use crate::kit::{PATIENCE, Site, releases};

/// The states in which the stroke is to fall, in turn.
const STATES: [&str; 7] = ["received", "verified", "staged", "parity-checked", "shadow", "probation", "committed"];
/// The steps of a life in order, as `docs/sideload.md` draws them.
const NEXT: [(&str, &[&str]); 8] = [
    ("received", &["verified", "refused"]),
    ("verified", &["staged", "refused"]),
    ("staged", &["parity-checked", "refused"]),
    ("parity-checked", &["shadow", "refused"]),
    ("shadow", &["probation", "refused"]),
    ("probation", &["committed", "rolled-back"]),
    ("committed", &["rolled-back"]),
    ("rolled-back", &["committed"]),
];

/// What came of it.
pub struct Lives {
    /// States of the newest bundle at the strokes.
    pub struck: BTreeMap<String, usize>,
    pub sent: Vec<String>,
}

/// Hands release after release over, and calls `stroke` in every state in turn, a random time after it was seen. The stroke gets the command
/// that hands the bundle over, and the service runs again when it returns.
pub fn lead(site: &mut Site, strokes: usize, seed: u64, stroke: &mut dyn FnMut(&mut Site, &mut Child, usize)) -> Lives {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut struck: BTreeMap<String, usize> = BTreeMap::new();
    let mut version = 2;
    let mut bundle = site.file("thigh-2.bundle", &releases().bundle(version));
    let mut series_seed = 800;
    let mut sent = Vec::new();
    for n in 0..strokes {
        let target = STATES[n % STATES.len()];
        // A new release once the last one has come to its end, or past where the stroke is to fall: it takes that one's place.
        let newest = site.newest();
        let place = STATES.iter().position(|s| *s == newest);
        let past = newest == "committed" || place.is_none_or(|at| at > n % STATES.len());
        if newest != "none" && past {
            version += 1;
            bundle = site.file(&format!("thigh-{version}.bundle"), &releases().bundle(version));
        }
        let mut command = site.command(&["sideload", bundle.to_str().unwrap()]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Series are needed to come as far as that.
        let series = matches!(target, "shadow" | "probation" | "committed");
        let start = Instant::now();
        let store = site.store();
        let mut next = Duration::ZERO;
        loop {
            let rows = store.with_conn(|c| bundles::list(c, 1)).unwrap();
            let at = rows.first().map_or("none", |b| b.state.word());
            let there = at == target && (rows[0].version == version || target == "received");
            let ended = rows.first().is_some_and(|b| b.version == version && !b.state.under_way());
            if there || ended || start.elapsed() > PATIENCE / 3 {
                break;
            }
            // Not faster than they are segmented: what is tried gives way to them.
            if series && start.elapsed() >= next && store.with_conn(|c| queue::waiting(c)).unwrap() == 0 {
                series_seed += 1;
                sent.push(site.send(series_seed).series_uid);
                next = start.elapsed() + Duration::from_secs(12);
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        std::thread::sleep(Duration::from_micros(rng.random_range(0..if series { 3_000_000 } else { 60_000 })));
        let at = site.store().with_conn(|c| bundles::list(c, 1)).unwrap().first().map_or("none", |b| b.state.word());
        *struck.entry(at.to_string()).or_default() += 1;
        stroke(site, &mut child, n);
        let _ = child.kill();
        let _ = child.wait();
    }
    Lives { struck, sent }
}

/// Everything comes to its end, every step was a legal one, and files, rows, trust and results agree.
pub fn end_well(site: &Site, lives: &mut Lives) -> String {
    let mut seed = 1900;
    let start = Instant::now();
    let mut asked = Instant::now() - Duration::from_secs(60);
    loop {
        let under_way = site.store().with_conn(|c| bundles::under_way(c)).unwrap();
        let waiting = site.store().with_conn(|c| queue::waiting(c)).unwrap();
        if under_way.is_empty() && waiting == 0 {
            break;
        }
        let needs = under_way.iter().any(|b| matches!(b.state, State::Shadow { .. } | State::Probation { .. }));
        if needs && waiting == 0 && asked.elapsed() > Duration::from_secs(20) {
            seed += 1;
            lives.sent.push(site.send(seed).series_uid);
            asked = Instant::now();
        }
        assert!(start.elapsed() < PATIENCE, "stuck: {under_way:#?}\n{}", site.log());
        std::thread::sleep(Duration::from_millis(200));
    }

    let store = site.store();
    let rows = store.with_conn(|c| bundles::list(c, 1000)).unwrap();
    for b in &rows {
        let steps: Vec<String> =
            store.with_conn(|c| bundles::steps(c, b.id)).unwrap().into_iter().map(|s| s.state).collect();
        assert_eq!(steps[0], "received", "{b:#?}");
        for pair in steps.windows(2) {
            let ways = NEXT.iter().find(|(from, _)| *from == pair[0]).unwrap().1;
            assert!(ways.contains(&pair[1].as_str()), "{steps:?}");
        }
        // A life ends where power was lost only if it was lost three times in the same step.
        assert!(b.state == State::Committed || b.code == "gave-up" || b.code == "superseded", "{b:#?}");
    }
    // No file without a row, no row without its file.
    let named: BTreeSet<String> =
        rows.iter().filter(|b| !b.path.is_empty()).map(|b| b.path.trim_start_matches("bundles/").to_string()).collect();
    assert_eq!(named.into_iter().collect::<Vec<_>>(), site.kept());
    // The record of trust and the rows agree, and what serves may serve.
    let newest = rows.iter().filter(|b| b.state == State::Committed).map(|b| b.version).max();
    assert_eq!(TrustStore::new(&site.state).load().unwrap().version("thigh"), newest);
    let serving = store.with_conn(|c| bundles::serving(c)).unwrap().unwrap();
    let of = rows.iter().find(|b| Some(b.id) == serving.bundle_id);
    assert!(of.is_none_or(|b| b.state.may_serve()) && serving.taken_ms.is_some(), "{serving:?}");
    // Every series has a result, by an adapter that might serve then.
    let known: BTreeSet<String> =
        store.with_conn(|c| bundles::servings(c, 1000)).unwrap().into_iter().map(|s| s.adapter_sha256).collect();
    let jobs = store.with_conn(|c| queue::jobs(c, 1000)).unwrap();
    for uid in &lives.sent {
        let job =
            jobs.iter().find(|j| &j.series_uid == uid && !j.superseded).unwrap_or_else(|| panic!("no job of {uid}"));
        assert_eq!(job.state, JobState::Done, "{job:#?}");
        let summary: serde_json::Value = serde_json::from_str(&job.summary).unwrap();
        assert!(known.contains(summary["adapter_sha256"].as_str().unwrap()), "{summary:#}");
    }
    format!(
        "{:?}; {} bundles, {} committed, {} series, each with one result",
        lives.struck,
        rows.len(),
        rows.iter().filter(|b| b.state == State::Committed).count(),
        lives.sent.len()
    )
}
