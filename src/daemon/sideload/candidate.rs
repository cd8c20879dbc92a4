//! Moves bundles from their arrival to their end: verification, parity, shadow, probation, commit.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::gates::{self, Judgement};
use super::serving::{Models, take_back};
use super::{Begun, Here, engine_refused, passes, shadow, why_of};
use crate::adapter::bundle::Bundle as Opened;
use crate::adapter::{Reason, Refused};
use crate::daemon::busy::Patience;
use crate::daemon::{Model, Shared};
use crate::pipeline::Progress;
use crate::pipeline::parity::LEAST_IOU;
use crate::store::bundles::{self, Bundle, Event, Facts, Stage, State, Why};
use crate::store::{StoreError, queue};

const LOOK: Duration = Duration::from_millis(500);
/// After an error of the store or the disk.
const PAUSE: Duration = Duration::from_secs(2);
/// A parity check gives way for so long at most: somebody stands before the box and waits.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest between two slices of a parity image or a series in shadow.
const SILENCE: Duration = Duration::from_secs(600);
/// Jobs whose time is usual.
const RECENT: usize = 20;
/// Most cases of a candidate that are judged.
pub(super) const MAX_CASES: usize = 4096;

/// Moves bundles as far as they go without a series.
pub struct Candidates<'a> {
    /// Where.
    pub here: Here<'a>,
    /// The model that bundles are made ready beside.
    pub model: &'a Model,
    /// Called between two slices.
    pub progress: &'a (dyn Fn(Progress) + Sync),
}

impl Candidates<'_> {
    /// Takes one step with the first bundle that has one; false where none has. It ends at `parity-checked`: what follows needs the
    /// service.
    ///
    /// # Errors
    /// The store's, a full disk, a record of trust that cannot be read or written. The bundle stays where it is and can be tried again
    /// without end.
    pub fn step(&self) -> Result<bool, StoreError> {
        let all = self.here.store.with_conn(|c| bundles::under_way(c))?;
        for row in &all {
            let moved = match row.state {
                State::Received { .. } => self.verify(row)?,
                State::Verified => self.stage(row, &all)?,
                State::Staged { .. } => self.parity(row)?,
                _ => false,
            };
            if moved {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn begin(&self, row: &mut Bundle, what: &str) -> Result<bool, StoreError> {
        Ok(match self.here.begin(row)? {
            Begun::Yes => true,
            Begun::Moved => false,
            Begun::TooOften => {
                let sentence = format!("{what} was begun {} times and never came to an end", bundles::MAX_ATTEMPTS);
                let why = Why::fault(
                    "gave-up",
                    sentence,
                    "see the journal for what ended it, mend that, and sideload it again",
                );
                self.here.refuse(row, &why)?;
                false
            }
        })
    }

    fn verify(&self, row: &Bundle) -> Result<bool, StoreError> {
        let mut row = row.clone();
        if !self.begin(&mut row, "verification")? {
            return Ok(true);
        }
        let opened = match self.here.open(&row, self.model.base_sha256()) {
            Ok(opened) => opened,
            Err(e) => return self.refused(&row, &e),
        };
        let evidence = json!({
            "note": opened.manifest().scanside.note,
            "issued": opened.manifest().scanside.issued,
            "expires": opened.manifest().expires,
            "evaluation": opened.evidence(),
        });
        let facts = Facts {
            name: opened.name().to_string(),
            version: opened.version(),
            adapter_sha256: opened.adapter().sha256().unwrap_or_default(),
            identity: opened.id().to_string(),
            signer: opened.signers().join(", "),
            evidence: evidence.to_string(),
        };
        let why = Why::said(format!("signed by {}", facts.signer));
        let now = self.here.now();
        let done = self.here.store.with_conn(|c| {
            bundles::advance(c, &row, Event::Verified, &why, now, |tx| bundles::set_facts(tx, row.id, &facts))
        })?;
        if done.is_ok() {
            log::info!("bundle {} {}: verified, {}", facts.name, facts.version, why.sentence);
        }
        Ok(true)
    }

    /// What no other file would mend is refused; a full disk is waited for, and such an attempt does not count.
    fn refused(&self, row: &Bundle, e: &Refused) -> Result<bool, StoreError> {
        let why = why_of(e);
        if passes(&why) {
            self.here.advance(row, Event::NoCase, &Why::default())?;
            return Err(self.here.not_now(&why));
        }
        self.here.refuse(row, &why)?;
        Ok(true)
    }

    /// One candidate at a time: a later arrival takes the place of one that does not serve yet, unless it is older, and waits for
    /// one that does.
    fn stage(&self, row: &Bundle, all: &[Bundle]) -> Result<bool, StoreError> {
        let rivals = all.iter().filter(|b| b.id != row.id && (b.state == State::Verified || b.state.is_candidate()));
        if let Some(newer) = rivals.clone().find(|b| b.name == row.name && b.version > row.version) {
            let sentence = format!("{} is older than {}, which is on its way", row.title(), newer.title());
            self.here.refuse(row, &Why::fault(Reason::OlderVersion.name(), sentence, "nothing is to be done"))?;
            return Ok(true);
        }
        if let Some(later) = rivals.clone().rfind(|b| b.state == State::Verified && b.id > row.id) {
            self.superseded(row, later)?;
            return Ok(true);
        }
        match rivals.clone().find(|b| b.state.is_candidate()) {
            Some(Bundle { state: State::Probation { .. }, .. }) => Ok(false),
            Some(other) => {
                self.superseded(other, row)?;
                Ok(true)
            }
            None => Ok(self.here.advance(row, Event::Staged, &Why::default())?.is_some()),
        }
    }

    fn superseded(&self, old: &Bundle, new: &Bundle) -> Result<(), StoreError> {
        let why =
            Why::fault("superseded", format!("{} came before it had served", new.title()), "nothing is to be done");
        self.here.refuse(old, &why)
    }

    fn parity(&self, row: &Bundle) -> Result<bool, StoreError> {
        let mut row = row.clone();
        if !self.begin(&mut row, "the parity check")? {
            return Ok(true);
        }
        // Again, as keys, time and version may have changed since.
        let opened = match self.here.open(&row, self.model.base_sha256()) {
            Ok(opened) => opened,
            Err(e) => return self.refused(&row, &e),
        };
        let model = match self.model.beside(&opened, row.id) {
            Ok(model) => model,
            Err(e) => {
                let made_anew = "have the bundle made anew on the training host";
                let e = engine_refused(&e).unwrap_or_else(|| Refused::new(Reason::Adapter, e.to_string(), made_anew));
                return self.refused(&row, &e);
            }
        };
        match parity(&opened, &model, self.progress) {
            Err(e) => self.refused(&row, &e),
            Ok(figures) => {
                let mut evidence: Value = serde_json::from_str(&row.evidence).unwrap_or_default();
                evidence["parity"] = figures;
                let why = Why::said("its parity images come out right on this box");
                let now = self.here.now();
                let done = self.here.store.with_conn(|c| {
                    bundles::advance(c, &row, Event::ParityPassed, &why, now, |tx| {
                        bundles::set_evidence(tx, row.id, &evidence.to_string())
                    })
                })?;
                if done.is_ok() {
                    log::info!("bundle {}: {}", row.title(), why.sentence);
                }
                Ok(true)
            }
        }
    }
}

/// Segments the bundle's own images with the engine that is to serve, and holds the masks against the bundle's.
fn parity(opened: &Opened, model: &Model, progress: &(dyn Fn(Progress) + Sync)) -> Result<Value, Refused> {
    let failed = |what: String| {
        Refused::new(
            Reason::ParityFailed,
            what,
            "this box computes something else than the host that made it: `scanside doctor`; the adapter before it serves on",
        )
    };
    let mut all = Vec::new();
    for case in opened.parity() {
        let found = model
            .segmenter
            .segment(&case.volume, None, &case.options(model.threads), progress)
            .map_err(|e| failed(format!("parity image {} was not segmented: {e}", case.seed)))?;
        for f in case.compare(&found) {
            let iou = f.dice / (2.0 - f.dice);
            if iou < LEAST_IOU || f.dice < case.least_dice {
                return Err(failed(format!(
                    "parity image {}: {} comes out with an IoU of {iou:.3}, {LEAST_IOU} is asked for",
                    case.seed, f.segment
                )));
            }
            all.push(json!({"image": case.seed, "segment": f.segment, "iou": iou}));
        }
    }
    Ok(json!({"engine": model.engine_line(), "least_iou": LEAST_IOU, "figures": all}))
}

/// What the service does with a candidate: shadow, probation, commit.
struct Trial<'a> {
    shared: &'a Shared,
    here: Here<'a>,
    models: &'a Models,
}

impl Trial<'_> {
    /// One step; false where there is nothing to do now.
    fn step(&self) -> Result<bool, StoreError> {
        let all = self.here.store.with_conn(|c| bundles::under_way(c))?;
        let Some(row) = all.into_iter().find(|b| b.state.is_candidate()) else { return Ok(false) };
        let s = &self.here.config.sideload;
        match row.state {
            State::ParityChecked => {
                // Ready before it may serve: the swap itself must not wait.
                if self.model(&row)?.is_none() {
                    return Ok(true);
                }
                match (s.shadow_series, s.probation_series) {
                    (0, 0) => self.commit(&row, &Why::said("committed without shadow and probation, as configured")),
                    (0, _) => self.probation(&row, &Why::said("on probation without shadow, as configured")),
                    _ => Ok(self.here.advance(&row, Event::ShadowBegan, &Why::default())?.is_some()),
                }
            }
            State::Shadow { .. } => self.shadow(row),
            State::Probation { .. } => judge_probation(self.shared, row.id),
            _ => Ok(false),
        }
    }

    /// The candidate's model, loaded; none where it was refused for that.
    fn model(&self, row: &Bundle) -> Result<Option<Arc<Model>>, StoreError> {
        if let Some(ready) = self.models.ready(row.id) {
            return Ok(Some(ready));
        }
        match self.models.load(self.here, row) {
            Ok(model) => {
                let model = Arc::new(model);
                self.models.hold(model.clone());
                Ok(Some(model))
            }
            Err(why) if passes(&why) => Err(self.here.not_now(&why)),
            Err(why) => {
                self.here.refuse(row, &why)?;
                Ok(None)
            }
        }
    }

    fn shadow(&self, mut row: Bundle) -> Result<bool, StoreError> {
        let cases = self.here.store.with_conn(|c| bundles::cases(c, row.id, MAX_CASES))?;
        match gates::shadow(&self.here.config.sideload, &cases) {
            Judgement::GoOn => {}
            Judgement::Failed(why) => {
                self.here.refuse(&row, &why)?;
                return Ok(true);
            }
            Judgement::Passed(why) => {
                if self.model(&row)?.is_none() {
                    return Ok(true);
                }
                return match self.here.config.sideload.probation_series {
                    0 => self.commit(&row, &why),
                    _ => self.probation(&row, &why),
                };
            }
        }
        let began = self.here.store.with_conn(|c| bundles::steps(c, row.id))?;
        let since = began.iter().rfind(|s| s.state == "shadow").map_or(i64::MAX, |s| s.at_ms);
        let Some(job) = self.here.store.with_conn(|c| bundles::untried(c, row.id, since))? else { return Ok(false) };
        let Some(model) = self.model(&row)? else { return Ok(true) };
        match self.here.begin(&mut row)? {
            Begun::Moved => return Ok(true),
            Begun::TooOften => {
                let why = Why::fault(
                    "gave-up",
                    format!("a series in shadow was begun {} times and never came to an end", bundles::MAX_ATTEMPTS),
                    "see the journal for what ended it; the adapter before it serves on",
                );
                self.here.refuse(&row, &why)?;
                return Ok(true);
            }
            Begun::Yes => {}
        }
        let Some(case) = shadow::run(self.shared, &model, job)? else {
            // The attempt is taken back: a stop is no fault of the candidate.
            self.here.advance(&row, Event::NoCase, &Why::default())?;
            return Ok(false);
        };
        let event = if case.counts { Event::Case } else { Event::NoCase };
        let now = self.here.now();
        let done = self.here.store.with_conn(|c| {
            bundles::advance(c, &row, event, &Why::default(), now, |tx| bundles::record_case(tx, row.id, &case))
        })?;
        match done {
            Ok(_) => log::info!(
                "bundle {} in shadow on job {job}: {}",
                row.title(),
                match (case.problem.as_str(), case.mean_dice()) {
                    ("", Some(d)) => format!("Dice {d:.3} to the active adapter, verdict {}", case.candidate.verdict),
                    ("", None) => "neither adapter found a structure".to_string(),
                    (problem, _) => format!("no result: {problem}"),
                }
            ),
            Err(e) => log::info!("bundle {}: {e}", row.title()),
        }
        Ok(true)
    }

    /// It begins to serve in the transaction that puts it on probation.
    fn probation(&self, row: &Bundle, why: &Why) -> Result<bool, StoreError> {
        self.serve(row, Event::ProbationBegan, why)
    }

    fn serve(&self, row: &Bundle, event: Event, why: &Why) -> Result<bool, StoreError> {
        let now = self.here.now();
        let done = self.here.store.with_conn(|c| {
            bundles::advance(c, row, event, why, now, |tx| {
                if bundles::serving(tx)?.is_some_and(|s| s.bundle_id == Some(row.id)) {
                    return Ok(());
                }
                let title = row.title();
                let who = (title.as_str(), row.adapter_sha256.as_str(), row.signer.as_str());
                bundles::serve(tx, Some(row.id), who, &why.sentence, now)
            })
        })?;
        if let Ok(state) = done {
            log::warn!("bundle {}: {}: {}", row.title(), state.word(), why.sentence);
            self.models.settle(self.here)?;
        }
        Ok(true)
    }

    fn commit(&self, row: &Bundle, why: &Why) -> Result<bool, StoreError> {
        commit(self.here, row)?;
        self.serve(row, Event::Committed, why)
    }
}

/// Records in the record of trust that a bundle is committed: no older version is taken from now on.
fn commit(here: Here<'_>, row: &Bundle) -> Result<(), StoreError> {
    let path = here.trust().path();
    here.trust()
        .update(|s| {
            s.commit(&row.name, row.version, &row.identity);
            s.see(here.now());
        })
        .map(|_| ())
        .map_err(|e| StoreError::Io { path, cause: std::io::Error::other(e.to_string()) })
}

/// Judges a bundle on probation: commits it, takes it back, or leaves it. False where it is left.
///
/// # Errors
/// The store's.
pub(crate) fn judge_probation(shared: &Shared, id: i64) -> Result<bool, StoreError> {
    let here = shared.here();
    let Some(row) = here.store.with_conn(|c| bundles::get(c, id))? else { return Ok(false) };
    if !matches!(row.state, State::Probation { .. }) {
        return Ok(false);
    }
    let cases = here.store.with_conn(|c| bundles::cases(c, id, MAX_CASES))?;
    let usual = match gates::usual_seconds(&cases) {
        Some(s) => Some(s),
        None => recent_seconds(here, &row.adapter_sha256)?,
    };
    match gates::probation(&here.config.sideload, &cases, usual) {
        Judgement::GoOn => Ok(false),
        Judgement::Failed(why) => {
            take_back(here, &row, &why)?;
            shared.models.settle(here)?;
            Ok(true)
        }
        Judgement::Passed(why) => Trial { shared, here, models: &shared.models }.commit(&row, &why),
    }
}

/// Median seconds of the newest results of other adapters.
fn recent_seconds(here: Here<'_>, not_of: &str) -> Result<Option<f64>, StoreError> {
    let jobs = here.store.with_conn(|c| queue::jobs(c, 10 * RECENT))?;
    let mut all: Vec<f64> = jobs
        .iter()
        .filter_map(|j| serde_json::from_str::<Value>(&j.summary).ok())
        .filter(|s| s["adapter_sha256"].as_str().is_some_and(|a| a != not_of))
        .filter_map(|s| seconds_of(&s))
        .take(RECENT)
        .collect();
    all.sort_by(f64::total_cmp);
    Ok(all.get(all.len() / 2).copied())
}

/// Seconds of computing, from a job's summary.
pub(super) fn seconds_of(summary: &Value) -> Option<f64> {
    let steps = summary["steps"].as_array()?;
    Some(steps.iter().filter_map(|s| s["seconds"].as_f64()).sum())
}

/// A case of a bundle on probation, from the summary of its job.
pub(crate) fn served_case(job_id: i64, summary: &Value, now_ms: i64) -> bundles::Case {
    bundles::Case {
        stage: Stage::Probation,
        job_id,
        at_ms: now_ms,
        counts: true,
        problem: String::new(),
        candidate: bundles::Side {
            score: summary["score"].as_f64(),
            verdict: summary["verdict"].as_str().unwrap_or_default().to_string(),
            seconds: seconds_of(summary),
        },
        active: bundles::Side::default(),
        dice: Vec::new(),
    }
}

/// Moves bundles while the service runs; gives way to series.
pub(in crate::daemon) fn run(shared: &Shared) {
    let beat = shared.pulse.watch("candidate", SILENCE);
    while !shared.stopping() {
        beat.beat();
        let here = shared.here();
        let patience = Patience::new(PATIENCE);
        let progress = |_: Progress| {
            beat.beat();
            shared.busy.give_way(shared, &patience, &|| beat.beat());
        };
        let first = Candidates { here, model: shared.models.factory(), progress: &progress }.step();
        // A bundle that waits for the disk keeps no other from its trial.
        let moved = match first {
            Ok(true) => Ok(true),
            rest => {
                (Trial { shared, here, models: &shared.models }).step().and_then(|m| if m { Ok(true) } else { rest })
            }
        };
        match moved {
            Ok(true) => {}
            Ok(false) => {
                if let Err(e) = here.prune() {
                    log::error!("old bundles cannot be removed: {e}");
                }
                shared.candidates.wait(LOOK);
            }
            Err(e) => {
                log::error!("a bundle cannot be moved on: {e}; tried again");
                shared.candidates.wait(PAUSE);
            }
        }
    }
}
