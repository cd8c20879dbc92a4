//! Takes jobs: assembles, segments, grades, writes the result, and ends the job in one transaction with its outbox rows.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use serde_json::json;

use super::gate::{self, Stage};
use super::results::{ResultFiles, needs_review, reasons, result_key, write_refusal, write_results};
use super::{Shared, drift};
use crate::config::BelowBar;
use crate::dicom::read::{InstanceHeader, ReadError, read_header};
use crate::dicom::write::WriteError;
use crate::pipeline::{PipelineError, SegmentOptions, Segmentation};
use crate::series::{AssembleOptions, Refusal, Rules, SeriesError, SeriesVolume, assemble_for, load};
use crate::store::StoreError;
use crate::store::instances::{self, CONFLICT, Instance, MISSING};
use crate::store::queue::{self, Ending, Job, JobState, Output, back_off_ms};
use crate::store::review::{self, Drift, Served, Waiting};

/// A job is given up after this many errors.
const MAX_ERRORS: i64 = 4;
/// And after this many attempts: one that takes the process down with it leaves no error. Power cuts are not the job's
/// fault, so this is generous.
const MAX_ATTEMPTS: i64 = 40;
const LOOK: Duration = Duration::from_secs(1);
const TASK: &str = "work";
/// Longest between two slices, or two steps, before the task counts as hung: the slowest step on the slowest engine takes a tenth.
const SILENCE: Duration = Duration::from_secs(300);

/// Why a job could not be done now.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{0}")]
    Other(String),
}

/// What a job came to.
enum Outcome {
    Done(Box<(SeriesVolume, Segmentation)>),
    Refused(Refusal),
}

pub(super) fn run(shared: &Shared) {
    let beat = shared.pulse.watch(TASK, SILENCE);
    while !shared.stopping() {
        beat.beat();
        let taken = shared.store.with_conn(|c| queue::take_job(c, shared.clock.now_ms()));
        let job = match taken {
            Ok(Some(job)) => job,
            Ok(None) => {
                shared.jobs.wait(LOOK);
                continue;
            }
            Err(e) => {
                log::error!("the queue cannot be read: {e}");
                shared.jobs.wait(LOOK);
                continue;
            }
        };
        if let Err(trouble) = attempt(shared, &job) {
            put_back(shared, &job, &trouble.to_string());
        }
        for s in &shared.deliveries {
            s.raise();
        }
    }
}

fn put_back(shared: &Shared, job: &Job, why: &str) {
    let again = shared.clock.now_ms() + back_off_ms(job.errors);
    log::error!(scanside_job = job.id; "job {}, attempt {}: {why}; it stays in the queue", job.id, job.attempts);
    if let Err(e) = shared.store.with_conn(|c| queue::retry_job(c, job.id, again, why)) {
        log::error!("job {} cannot be put back: {e}", job.id);
    }
}

fn attempt(shared: &Shared, job: &Job) -> Result<(), Trouble> {
    let started = Instant::now();
    let rows = shared.store.with_conn(|c| instances::of_job(c, job.id))?;
    let used: Vec<&Instance> = rows.iter().filter(|r| r.flags & (CONFLICT | MISSING) == 0).collect();
    let (headers, broken) = headers(shared, &used);
    let identity = shared.model.identity(&shared.config.station.ae_title);
    let hashes: Vec<String> = used.iter().map(|r| r.sha256.clone()).collect();
    let results = &shared.config.results;
    let adapter = shared.model.adapter_sha256();
    let gate = shared.store.with_conn(|c| gate::settle(c, &shared.config.gate, adapter, shared.clock.now_ms()))?;
    let mut settings = format!("{:?} {:?}", results, shared.config.series.allow_gaps);
    if gate.stage == Stage::Pilot {
        settings.push_str(" pilot");
    }
    let dir = shared.store.dir().join(format!("results/{}", job.id));
    let files = ResultFiles {
        dir: &dir,
        identity: &identity,
        created_ms: job.created_ms,
        key: result_key(&hashes, &identity, &settings),
        bar: results.bar,
        // In the pilot everything is held or for the researcher, who sees all of it.
        hold_below_bar: results.below_bar == BelowBar::Hold && gate.stage == Stage::Production,
        pilot: gate.stage == Stage::Pilot,
        series_number: results.series_number,
    };
    let outcome = if job.errors >= MAX_ERRORS || job.attempts > MAX_ATTEMPTS {
        Outcome::Refused(Refusal::new(
            "GAVE_UP",
            format!("Segmentation failed {} times in {} attempts", job.errors, job.attempts - 1),
            "See the box's journal; the images are kept on the box",
        ))
    } else if let Some(e) = broken {
        Outcome::Refused(unreadable(&e))
    } else {
        // A decoder or the network may panic on input nobody thought of: that is this job's failure, not the daemon's.
        match catch_unwind(AssertUnwindSafe(|| process(shared, job, &headers))) {
            Ok(done) => done?,
            Err(_) => return Err(Trouble::Other("the step panicked".into())),
        }
    };
    let conflicts = rows.iter().filter(|r| r.flags & CONFLICT != 0).count();
    end(shared, job, outcome, headers.first(), &files, conflicts, started)
}

/// What is kept of a result besides its objects.
#[derive(Default)]
struct Kept {
    /// Its place in the review queue, where it has one.
    waiting: Option<Waiting>,
    served: Vec<Served>,
    drifts: Vec<Drift>,
    /// Sentences about drift that begins with this case.
    alerts: Vec<String>,
}

impl Kept {
    fn of(
        shared: &Shared,
        job: &Job,
        volume: &SeriesVolume,
        s: &Segmentation,
        files: &ResultFiles<'_>,
    ) -> Result<Kept, Trouble> {
        let adapter = shared.model.adapter_sha256();
        let served = drift::served(&volume.volume, s);
        let (drifts, alerts) = shared.store.with_conn(|c| {
            let references = &shared.model.references;
            // A repeat of this step must say the same, so the alert counts from the job's own time.
            drift::look(c, &shared.config.drift, references, adapter, job.id, &served, job.created_ms)
        })?;
        let held = needs_review(&s.report, files.bar) && files.hold_below_bar;
        let reason = match (files.pilot, held) {
            (true, _) => Some("pilot"),
            (false, true) => Some("below the bar"),
            (false, false) => None,
        };
        let waiting = reason.map(|reason| Waiting {
            adapter: adapter.to_string(),
            pilot: files.pilot,
            reason: reason.to_string(),
            verdict: format!("{:?}", s.report.verdict),
            score: s.report.score,
        });
        Ok(Kept { waiting, served, drifts, alerts })
    }
}

fn headers(shared: &Shared, rows: &[&Instance]) -> (Vec<InstanceHeader>, Option<ReadError>) {
    let mut good = Vec::with_capacity(rows.len());
    let mut broken = None;
    for row in rows {
        match read_header(&row.file(shared.store.dir())) {
            Ok(h) => good.push(h),
            Err(e) => broken = broken.or(Some(e)),
        }
    }
    (good, broken)
}

fn unreadable(e: &ReadError) -> Refusal {
    // Without the path: it names a file of the spool, which means nothing to a reader.
    Refusal::new(
        "UNREADABLE",
        format!("An image cannot be decoded: {}", e.cause),
        "Send the series again, uncompressed",
    )
}

fn process(shared: &Shared, job: &Job, headers: &[InstanceHeader]) -> Result<Outcome, Trouble> {
    let series = &shared.config.series;
    let rules = Rules::new(&series.include_words, &series.exclude_words);
    let options = AssembleOptions { allow_gaps: series.allow_gaps, ..AssembleOptions::default() };
    let plan = match assemble_for(headers, &rules, &options) {
        Ok(plan) => plan,
        Err(refusal) => return Ok(Outcome::Refused(refusal)),
    };
    let volume = match load(&plan) {
        Ok(v) => v,
        Err(SeriesError::Refused(r)) => return Ok(Outcome::Refused(r)),
        Err(SeriesError::Read(e)) => return Ok(Outcome::Refused(unreadable(&e))),
        Err(e) => return Err(Trouble::Other(e.to_string())),
    };
    let options = SegmentOptions { threads: shared.model.threads, ..SegmentOptions::default() };
    let hint = volume.header.laterality;
    let progress = |p: crate::pipeline::Progress| {
        shared.pulse.beat(TASK);
        log::debug!("job {}: {} {}/{}", job.id, p.step, p.done, p.total);
    };
    match shared.model.segmenter.segment(&volume.volume, hint, &options, &progress) {
        Ok(s) => Ok(Outcome::Done(Box::new((volume, s)))),
        Err(PipelineError::Engine(e)) => {
            if shared.model.fall_back(&e) {
                super::say_engine(&shared.store, &shared.config, &shared.model)?;
            }
            Err(Trouble::Other(e.to_string()))
        }
        Err(PipelineError::Model(e)) => Err(Trouble::Other(e)),
        // What the picture shows is not what the task is for.
        Err(e) => Ok(Outcome::Refused(Refusal::new(
            "NOT_RECOGNISED",
            e.to_string(),
            "Check that the series shows the thigh's whole cross-section; if it does, adapt the model to this site",
        ))),
    }
}

fn end(
    shared: &Shared,
    job: &Job,
    outcome: Outcome,
    header: Option<&InstanceHeader>,
    files: &ResultFiles<'_>,
    conflicts: usize,
    started: Instant,
) -> Result<(), Trouble> {
    let root = shared.store.dir();
    let stage = if files.pilot { Stage::Pilot } else { Stage::Production };
    let mut routes = gate::routes(&shared.config.archive, stage, &shared.config.gate);
    let adapter = shared.model.adapter_sha256();
    let mut kept = Kept::default();
    let (state, code, sentence, mut summary, outputs): (_, &str, String, _, Vec<Output>) = match &outcome {
        Outcome::Done(done) => {
            let (volume, s) = done.as_ref();
            let mut volume = volume.clone();
            if conflicts > 0 {
                volume.remarks.push(format!(
                    "{conflicts} object(s) came again with the same identifier and other content; the first were used"
                ));
            }
            if job.generation > 1 {
                volume.remarks.push(format!(
                    "generation {}: more images of the series arrived; this replaces the earlier result",
                    job.generation
                ));
            }
            kept = Kept::of(shared, job, &volume, s, files)?;
            volume.remarks.extend(kept.alerts.iter().cloned());
            let outputs = write_results(&volume, s, files, root)?;
            let structures: Vec<_> = s
                .report
                .structures
                .iter()
                .map(|r| {
                    json!({"structure": r.structure.key, "side": r.side.map(|s| s.word()), "score": r.score,
                        "verdict": format!("{:?}", r.verdict), "volume_ml": r.volume_mm3 / 1000.0})
                })
                .collect();
            let summary = json!({
                "verdict": format!("{:?}", s.report.verdict),
                "score": s.report.score,
                "needs_review": needs_review(&s.report, files.bar),
                "pilot": files.pilot,
                "structures": structures,
                "remarks": reasons(&s.report, files).iter().chain(&volume.remarks).chain(&s.remarks).collect::<Vec<_>>(),
                "steps": s.times,
            });
            (JobState::Done, "", String::new(), summary, outputs)
        }
        Outcome::Refused(r) => {
            let outputs = match header {
                Some(h) => write_refusal(h, r, files, root)?,
                None => Vec::new(),
            };
            // There is nothing to review: where results are held, the reason stays in the status.
            routes.retain(|r| !r.hold);
            let state = if r.code == "GAVE_UP" { JobState::Failed } else { JobState::Refused };
            (state, r.code, format!("{}; {}", r.sentence, r.remedy), json!({}), outputs)
        }
    };
    summary["engine"] = json!(files.identity.engine);
    summary["adapter"] = json!(files.identity.adapter);
    summary["adapter_sha256"] = json!(files.identity.adapter_sha256);
    summary["seconds"] = json!(started.elapsed().as_secs_f64());
    let ending = Ending { state, code, sentence: &sentence, summary: &summary.to_string() };
    let now = shared.clock.now_ms();
    shared.store.with_conn(|c| {
        queue::finish_job(c, job.id, &ending, &outputs, &routes, now, |tx| {
            if let Some(w) = &kept.waiting {
                review::wait(tx, job.id, w, now)?;
            }
            review::serve(tx, job.id, adapter, &kept.served)?;
            review::set_drifts(tx, adapter, &kept.drifts)
        })
    })?;
    for alert in &kept.alerts {
        log::warn!(scanside_job = job.id; "job {}: {alert}", job.id);
    }
    match state {
        JobState::Done => log::info!(
            scanside_job = job.id;
            "job {}: verdict {}, score {:.0}, {:.1} s, {} objects queued",
            job.id,
            summary["verdict"].as_str().unwrap_or("?"),
            summary["score"].as_f64().unwrap_or(0.0),
            started.elapsed().as_secs_f64(),
            outputs.len()
        ),
        _ => log::warn!(scanside_job = job.id; "job {}: not segmented: {code}: {sentence}", job.id),
    }
    Ok(())
}
