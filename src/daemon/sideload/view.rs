//! What serves, what is on its way, what went before: for `scanside adapters` and the status.

use std::fmt::Write;

use chrono::DateTime;
use serde::Serialize;
use serde_json::Value;

use super::candidate::MAX_CASES;
use crate::config::Sideload;
use crate::store::bundles::{self, Bundle, Case, Serving, Stage, State, Step};
use crate::store::{Store, StoreError};

/// Bundles and spans of serving shown.
const SHOWN: usize = 20;

/// A bundle with what it went through.
#[derive(Debug, Serialize)]
pub struct BundleView {
    /// Its row.
    #[serde(flatten)]
    pub bundle: Bundle,
    /// Its steps, oldest first.
    pub steps: Vec<Step>,
    /// The cases that it was tried on.
    pub cases: Vec<Case>,
}

/// The adapters of a box.
#[derive(Debug, Serialize)]
pub struct Adapters {
    /// What serves, or is to serve; none before the first start.
    pub serving: Option<Serving>,
    /// What going back would serve.
    pub previous: Option<Serving>,
    /// What is on its way, the candidate first.
    pub under_way: Vec<Bundle>,
    /// The newest bundle, where it was refused or taken back by itself: in words.
    pub alert: Option<String>,
    /// What served, newest first.
    pub history: Vec<Serving>,
    /// Bundles, newest first.
    pub bundles: Vec<BundleView>,
    /// Stage lengths: series in shadow, series on probation.
    pub lengths: [u32; 2],
}

/// A time for people, UTC.
pub(super) fn time(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms)
        .map_or_else(|| format!("{ms} ms"), |t| t.format("%Y-%m-%d %H:%M:%S").to_string())
}

impl Adapters {
    /// Reads them.
    ///
    /// # Errors
    /// The database's.
    pub fn read(store: &Store, settings: &Sideload) -> Result<Adapters, StoreError> {
        store.with_conn(|c| {
            let lengths = [settings.shadow_series, settings.probation_series];
            if !bundles::exist(c)? {
                let (serving, previous, alert) = (None, None, None);
                let (under_way, history, bundles) = (Vec::new(), Vec::new(), Vec::new());
                return Ok(Adapters { serving, previous, under_way, alert, history, bundles, lengths });
            }
            let mut under_way = bundles::under_way(c)?;
            under_way.sort_by_key(|b| !b.state.is_candidate());
            let mut all = Vec::new();
            for bundle in bundles::list(c, SHOWN)? {
                let steps = bundles::steps(c, bundle.id)?;
                let cases = bundles::cases(c, bundle.id, MAX_CASES)?;
                all.push(BundleView { bundle, steps, cases });
            }
            let serving = bundles::serving(c)?;
            // The newest bundle, or the one whose fall brought what serves now.
            let fell = |b: &BundleView| serving.as_ref().is_some_and(|s| s.since_ms == b.bundle.changed_ms);
            let alert = all.first().into_iter().chain(all.iter().filter(|b| fell(b))).find_map(|b| alert(&b.bundle));
            Ok(Adapters {
                serving,
                previous: bundles::previous(c)?,
                under_way,
                alert,
                history: bundles::servings(c, SHOWN)?,
                bundles: all,
                lengths,
            })
        })
    }

    /// The active adapter in words.
    pub fn active(&self) -> String {
        match &self.serving {
            None => "none yet; start `scanside serve` once".into(),
            Some(s) => {
                let origin = match s.bundle_id.and_then(|id| self.bundles.iter().find(|b| b.bundle.id == id)) {
                    Some(b) => {
                        let stage = if b.bundle.state == State::Committed { "" } else { ", on probation" };
                        format!("bundle {}, signed by {}{stage}", b.bundle.title(), s.signer)
                    }
                    None if s.bundle_id.is_some() => format!("a bundle signed by {}", s.signer),
                    None => "no bundle: the configuration's adapter".into(),
                };
                let taken = if s.taken_ms.is_none() { "; the service has not taken it yet" } else { "" };
                format!("{} ({:.12}), {origin}, since {} UTC{taken}", s.adapter, s.adapter_sha256, time(s.since_ms))
            }
        }
    }

    /// What is on its way in words; none where nothing is.
    pub fn candidate(&self) -> Option<String> {
        let b = self.under_way.first()?;
        // The row counts every case; what is judged are those that count.
        let of = |stage: Stage, row: u32, all: u32| {
            let view = self.bundles.iter().find(|v| v.bundle.id == b.id);
            let n = view.map_or(row as usize, |v| of_stage(&v.cases, stage).len());
            format!("{}: {n} of {all} series", b.state.word())
        };
        let stage = match b.state {
            State::Shadow { cases, .. } => of(Stage::Shadow, cases, self.lengths[0]),
            State::Probation { cases, .. } => of(Stage::Probation, cases, self.lengths[1]),
            State::Verified => "verified, waits for its turn".into(),
            state => state.word().into(),
        };
        Some(format!("{}, {stage}", b.title()))
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "active:    {}", self.active());
        let previous = self.previous.as_ref().map_or("nothing".into(), |p| match p.bundle_id {
            Some(_) => p.adapter.clone(),
            None => format!("{} (the configuration's adapter)", p.adapter),
        });
        let _ = writeln!(out, "going back would serve: {previous}");
        let _ = writeln!(out, "candidate: {}", self.candidate().unwrap_or_else(|| "none".into()));
        if let Some(alert) = &self.alert {
            let _ = writeln!(out, "ALERT:     {alert}");
        }
        let _ = writeln!(out, "bundles, newest first:");
        if self.bundles.is_empty() {
            let _ = writeln!(out, "  none came yet (scanside sideload FILE)");
        }
        for b in &self.bundles {
            let row = &b.bundle;
            let kept = if row.path.is_empty() { "" } else { ", kept" };
            let code = if row.code.is_empty() { String::new() } else { format!(" [{}]", row.code) };
            let _ = writeln!(
                out,
                "  {:<24} {}{code}{kept}, came {} UTC",
                row.title(),
                row.state.word(),
                time(row.received_ms)
            );
            if !row.signer.is_empty() {
                let _ = writeln!(
                    out,
                    "      signed by {}; bundle {:.12}, adapter {:.12}",
                    row.signer, row.identity, row.adapter_sha256
                );
            }
            if !row.sentence.is_empty() {
                let remedy = if row.remedy.is_empty() { String::new() } else { format!("; {}", row.remedy) };
                let _ = writeln!(out, "      {}{remedy}", row.sentence);
            }
            for (stage, cases) in [Stage::Shadow, Stage::Probation].map(|s| (s, of_stage(&b.cases, s))) {
                if !cases.is_empty() {
                    let _ = writeln!(out, "      {}: {}", stage.word(), summary(&cases));
                }
            }
            let evidence: Value = serde_json::from_str(&row.evidence).unwrap_or_default();
            if let Some(note) = evidence["note"].as_str().filter(|n| !n.is_empty()) {
                let _ = writeln!(out, "      note: {note}");
            }
        }
        let _ = writeln!(out, "what served, newest first:");
        for s in &self.history {
            let by = if s.signer.is_empty() { String::new() } else { format!(", signed by {}", s.signer) };
            let _ = writeln!(out, "  since {} UTC  {}{by}: {}", time(s.since_ms), s.adapter, s.reason);
        }
        out
    }
}

fn of_stage(cases: &[Case], stage: Stage) -> Vec<&Case> {
    cases.iter().filter(|c| c.stage == stage && c.counts).collect()
}

/// Cases in one line.
fn summary(cases: &[&Case]) -> String {
    let mean = |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let dice = mean(cases.iter().filter_map(|c| c.mean_dice()).collect());
    let own = mean(cases.iter().filter_map(|c| c.candidate.score).collect());
    let active = mean(cases.iter().filter_map(|c| c.active.score).collect());
    let seconds = mean(cases.iter().filter_map(|c| c.candidate.seconds).collect());
    let failed = cases.iter().filter(|c| !c.problem.is_empty()).count();
    let mut out = format!("{} series", cases.len());
    if let Some(d) = dice {
        let _ = write!(out, ", mean Dice to the active adapter {d:.3}");
    }
    if let Some(o) = own {
        let against = active.map_or(String::new(), |a| format!(" against {a:.0}"));
        let _ = write!(out, ", mean SegEx score {o:.0}{against}");
    }
    if let Some(s) = seconds {
        let _ = write!(out, ", {s:.1} s a series");
    }
    if failed > 0 {
        let _ = write!(out, ", {failed} without a result");
    }
    out
}

/// What a person must hear of the newest bundle: it did not come to serve, or was taken back by itself.
fn alert(b: &Bundle) -> Option<String> {
    let by_itself = match b.state {
        State::Refused => b.code != "superseded",
        State::RolledBack { .. } => b.code != "by-hand",
        _ => false,
    };
    by_itself.then(|| format!("{} is {} [{}]: {}; {}", b.title(), b.state.word(), b.code, b.sentence, b.remedy))
}
