//! Takes jobs: assembles, segments, grades, writes the result, and ends the job in one transaction with its outbox rows.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::gate::{self, Stage};
use super::model::Model;
use super::results::{ResultFiles, needs_review, reasons, result_key, write_refusal, write_results};
use super::sideload::{self, Probation};
use super::{Shared, drift};
use crate::config::BelowBar;
use crate::dicom::read::{InstanceHeader, ReadCause, ReadError, read_header};
use crate::dicom::write::WriteError;
use crate::pipeline::{PipelineError, Segmentation};
use crate::series::{AssembleOptions, Refusal, Rules, SeriesError, SeriesVolume, assemble_for, load};
use crate::store::StoreError;
use crate::store::instances::{self, Instance};
use crate::store::outbox::back_off_ms;
use crate::store::queue::{self, Ending, Job, JobState, Output};
use crate::store::review::{self, Drift, Served, Waiting};

/// A job is given up after this many errors. Troubles of the box are none.
const MAX_ERRORS: i64 = 4;
/// And after this many attempts that were no trouble of the box: one that takes the process down with it leaves no error. Power cuts are
/// not the job's fault, so this is generous.
const MAX_ATTEMPTS: i64 = 40;
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries to write into a database that cannot be written.
const UNWRITABLE: Duration = Duration::from_secs(10);
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
    /// The system could not read an original, which says nothing about what is in it.
    #[error(transparent)]
    Read(ReadError),
    /// The engine failed and another one takes over.
    #[error("{0}")]
    Engine(String),
    #[error("{0}")]
    Other(String),
    /// The model made no result, by the fault of engine or adapter.
    #[error("{sentence}")]
    Model {
        code: &'static str,
        sentence: String,
        /// Whether it was a GPU that failed: its graphs have fixed shapes, so that no series makes it fail.
        device: bool,
    },
    /// The service stops.
    #[error("it was stopped with the service and begins anew with it")]
    Stopped,
    /// As `Model`, of an adapter that was on probation and serves no more.
    #[error("{0}; its adapter was on probation and was taken back")]
    TakenBack(String),
}

impl Trouble {
    /// Whether it says something about the box and nothing about the series: another attempt may succeed however many did not.
    fn of_the_box(&self) -> bool {
        match self {
            Trouble::Store(_) | Trouble::Read(_) | Trouble::Engine(_) | Trouble::Stopped => true,
            Trouble::Write(WriteError::Io { .. }) => true,
            Trouble::Model { device, .. } => *device,
            Trouble::Write(WriteError::Encode { .. }) | Trouble::Other(_) | Trouble::TakenBack(_) => false,
        }
    }
}

/// Whether a job has failed too often to be tried again.
fn hopeless(job: &Job) -> bool {
    job.errors >= MAX_ERRORS || job.attempts - job.troubles > MAX_ATTEMPTS
}

const NOT_RECOGNISED: &str = "NOT_RECOGNISED";

/// What a job came to.
enum Outcome {
    Done(Box<(SeriesVolume, Segmentation)>),
    Refused(Refusal),
}

pub(super) fn run(shared: &Shared) {
    let beat = shared.pulse.watch(TASK, SILENCE);
    while !shared.stopping() {
        beat.beat();
        // What is to serve cannot be taken now, as the task that watches it says: no series is begun, and none is to blame for it.
        if shared.models.settle(shared.here()).is_err() {
            shared.jobs.wait(LOOK);
            continue;
        }
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
        let working = shared.busy.begin();
        if let Err(trouble) = attempt(shared, &job) {
            put_back(shared, &job, &trouble);
        }
        drop(working);
        shared.candidates.raise();
        for s in &shared.deliveries {
            s.raise();
        }
    }
}

fn put_back(shared: &Shared, job: &Job, trouble: &Trouble) {
    let of_the_box = trouble.of_the_box();
    let wait = match trouble {
        // What another adapter serves now is no reason to wait, nor is a restart.
        Trouble::TakenBack(_) | Trouble::Stopped => 0,
        _ => back_off_ms(if of_the_box { job.troubles } else { job.errors }),
    };
    let why = trouble.to_string();
    if matches!(trouble, Trouble::Stopped) {
        log::info!(scanside_job = job.id; "job {}: {why}", job.id);
    } else {
        let stays = match of_the_box {
            true => format!("a trouble of this box, which is no reason to give up; again in {} s", wait / 1000),
            false => "it stays in the queue".to_string(),
        };
        log::error!(scanside_job = job.id; "job {}, attempt {}: {why}; {stays}", job.id, job.attempts);
    }
    let put = if of_the_box { queue::postpone_job } else { queue::retry_job };
    let again = shared.clock.now_ms() + wait;
    // Without this row the next attempt would begin at once and count as one that ended with the process.
    while let Err(e) = shared.store.with_conn(|c| put(c, job.id, again, &why)) {
        log::error!("job {} cannot be put back: {e}", job.id);
        shared.pulse.beat(TASK);
        shared.jobs.wait(UNWRITABLE);
        if shared.stopping() {
            return;
        }
    }
}

/// One attempt at a job, with the adapter that served when it began.
struct Attempt<'a> {
    shared: &'a Shared,
    job: &'a Job,
    model: Arc<Model>,
    /// Where that adapter is on probation.
    probation: Option<Probation>,
    started: Instant,
}

fn attempt(shared: &Shared, job: &Job) -> Result<(), Trouble> {
    let (model, probation) = sideload::take(shared)?;
    let this = Attempt { shared, job, model, probation, started: Instant::now() };
    let done = work(&this);
    if let Some(p) = &this.probation {
        // A full disk, or images that came meanwhile, are no fault of the adapter; what has become a case is one already.
        p.no_fault(shared)?;
    }
    done
}

fn work(this: &Attempt<'_>) -> Result<(), Trouble> {
    let (shared, job) = (this.shared, this.job);
    let rows = shared.store.with_conn(|c| instances::of_job(c, job.id))?;
    let used = instances::used(&rows);
    let (headers, broken) = headers(shared, &used);
    let identity = this.model.identity(&shared.config.station.ae_title);
    let hashes: Vec<String> = used.iter().map(|r| r.sha256.clone()).collect();
    let results = &shared.config.results;
    let adapter = this.model.adapter_sha256();
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
    let outcome = if hopeless(job) {
        Outcome::Refused(Refusal::new(
            "GAVE_UP",
            format!("Segmentation failed {} times in {} attempts", job.errors, job.attempts - 1),
            format!(
                "See the box's journal; the images are kept on the box, and `scanside again {}` tries them once more",
                job.id
            ),
        ))
    } else if let Some(e) = broken {
        Outcome::Refused(unreadable(e)?)
    } else {
        let done = process(shared, &this.model, job, &headers).and_then(|o| second_opinion(this, o, &headers));
        match (done, &this.probation) {
            (Ok(outcome), _) => outcome,
            (Err(Trouble::Model { code, sentence, .. }), Some(p)) => {
                p.failed(shared, job.id, code)?;
                return Err(Trouble::TakenBack(sentence));
            }
            (Err(trouble), _) => return Err(trouble),
        }
    };
    end(this, outcome, headers.first(), &files, &rows)?;
    if let Some(p) = &this.probation {
        p.judge(shared)?;
    }
    Ok(())
}

/// A series that an adapter on probation does not recognise is shown to the one before it: a candidate that turns patients' series
/// away has failed.
fn second_opinion(this: &Attempt<'_>, outcome: Outcome, headers: &[InstanceHeader]) -> Result<Outcome, Trouble> {
    let unknown = matches!(&outcome, Outcome::Refused(r) if r.code == NOT_RECOGNISED);
    if !unknown || this.probation.is_none() {
        return Ok(outcome);
    }
    let Some(before) = sideload::previous(this.shared)? else { return Ok(outcome) };
    match process(this.shared, &before, this.job, headers)? {
        Outcome::Done(_) => Err(Trouble::Model {
            code: "not-recognised",
            sentence: "the adapter on probation does not recognise a series that the one before it does".into(),
            device: false,
        }),
        Outcome::Refused(_) => Ok(outcome),
    }
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
        this: &Attempt<'_>,
        volume: &SeriesVolume,
        s: &Segmentation,
        files: &ResultFiles<'_>,
    ) -> Result<Kept, Trouble> {
        let (shared, job, adapter) = (this.shared, this.job, this.model.adapter_sha256());
        let references = &this.model.references;
        let served = drift::served(&volume.volume, s, references);
        let (drifts, alerts) = shared.store.with_conn(|c| {
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

/// The refusal of a series with an image that cannot be decoded. Where the system could not read the file, that is a trouble of the box
/// and no refusal; a file that is gone does not come back by waiting.
fn unreadable(e: ReadError) -> Result<Refusal, Trouble> {
    match &e.cause {
        ReadCause::Io(io) if io.raw_os_error().is_some() && io.kind() != std::io::ErrorKind::NotFound => {
            Err(Trouble::Read(e))
        }
        // Without the path: it names a file of the spool, which means nothing to a reader.
        cause => Ok(Refusal::new(
            "UNREADABLE",
            format!("An image cannot be decoded: {cause}"),
            "Send the series again, uncompressed",
        )),
    }
}

/// Reads a series again from the originals of a job that is done; within, why it cannot be.
///
/// # Errors
/// The database's.
pub(super) fn volume_again(shared: &Shared, job_id: i64) -> Result<Result<SeriesVolume, String>, StoreError> {
    let rows = shared.store.with_conn(|c| instances::of_job(c, job_id))?;
    let used = instances::used(&rows);
    let (headers, broken) = headers(shared, &used);
    if let Some(e) = broken {
        return Ok(Err(e.cause.to_string()));
    }
    Ok(match caught(|| volume(shared, &headers)) {
        Ok(Ok(Ok(v))) => Ok(v),
        Ok(Ok(Err(refusal))) => Err(refusal.sentence),
        Ok(Err(trouble)) => Err(trouble.to_string()),
        Err(panicked) => Err(panicked),
    })
}

/// Assembles and reads a series.
fn volume(shared: &Shared, headers: &[InstanceHeader]) -> Result<Result<SeriesVolume, Refusal>, Trouble> {
    let series = &shared.config.series;
    let rules = Rules::new(&series.include_words, &series.exclude_words);
    let options = AssembleOptions { allow_gaps: series.allow_gaps, ..AssembleOptions::default() };
    let plan = match assemble_for(headers, &rules, &options) {
        Ok(plan) => plan,
        Err(refusal) => return Ok(Err(refusal)),
    };
    match load(&plan) {
        Ok(v) => Ok(Ok(v)),
        Err(SeriesError::Refused(r)) => Ok(Err(r)),
        Err(SeriesError::Read(e)) => Ok(Err(unreadable(e)?)),
        Err(e) => Err(Trouble::Other(e.to_string())),
    }
}

/// A decoder or the network may panic on input nobody thought of: that is this job's failure, not the daemon's.
fn caught<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|_| "the step panicked".to_string())
}

fn process(shared: &Shared, model: &Model, job: &Job, headers: &[InstanceHeader]) -> Result<Outcome, Trouble> {
    let volume = match caught(|| volume(shared, headers)).map_err(Trouble::Other)?? {
        Ok(v) => v,
        Err(refusal) => return Ok(Outcome::Refused(refusal)),
    };
    let options = shared.segmenting(model);
    let hint = volume.header.laterality;
    let progress = |p: crate::pipeline::Progress| {
        shared.pulse.beat(TASK);
        log::debug!("job {}: {} {}/{}", job.id, p.step, p.done, p.total);
    };
    let done = caught(|| model.segmenter.segment(&volume.volume, hint, &options, &progress));
    match done.map_err(|sentence| Trouble::Model { code: "panic", sentence, device: false })? {
        Ok(s) => Ok(Outcome::Done(Box::new((volume, s)))),
        // The engine's fault and not the adapter's, where another engine takes over.
        Err(PipelineError::Engine(e)) if model.fall_back(&e) => {
            super::say_engine(&shared.store, &shared.config, model)?;
            Err(Trouble::Engine(e.to_string()))
        }
        Err(PipelineError::Engine(e)) => {
            let device = model.engine().engine.kind != "cpu";
            Err(Trouble::Model { code: "engine", sentence: e.to_string(), device })
        }
        Err(PipelineError::Stopped) => Err(Trouble::Stopped),
        Err(PipelineError::Model(sentence)) => Err(Trouble::Model { code: "engine", sentence, device: false }),
        // What the picture shows is not what the task is for.
        Err(e) => Ok(Outcome::Refused(Refusal::new(
            NOT_RECOGNISED,
            e.to_string(),
            "Check that the series shows the thigh's whole cross-section; if it does, adapt the model to this site",
        ))),
    }
}

fn end(
    this: &Attempt<'_>,
    outcome: Outcome,
    header: Option<&InstanceHeader>,
    files: &ResultFiles<'_>,
    rows: &[Instance],
) -> Result<(), Trouble> {
    let (shared, job, started) = (this.shared, this.job, this.started);
    let root = shared.store.dir();
    let stage = if files.pilot { Stage::Pilot } else { Stage::Production };
    let mut routes = gate::routes(&shared.config.archive, stage, &shared.config.gate);
    let adapter = this.model.adapter_sha256();
    let mut kept = Kept::default();
    let (state, code, sentence, mut summary, outputs): (_, &str, String, _, Vec<Output>) = match &outcome {
        Outcome::Done(done) => {
            let (volume, s) = done.as_ref();
            let mut volume = volume.clone();
            let copies = instances::copies(rows);
            if copies > 0 {
                let which = match instances::gave_way(rows) {
                    true => "what came after an attempt without a result was used",
                    false => "the first were used",
                };
                volume
                    .remarks
                    .push(format!("{copies} object(s) came again with the same identifier and other content; {which}"));
            }
            if job.generation > 1 {
                volume.remarks.push(format!(
                    "generation {}: more images of the series arrived; this replaces the earlier result",
                    job.generation
                ));
            }
            kept = Kept::of(this, &volume, s, files)?;
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
                "calibrated": s.report.calibrated,
                "needs_review": needs_review(&s.report, files.bar),
                "pilot": files.pilot,
                "structures": structures,
                "remarks": reasons(&s.report, files).iter().chain(&volume.remarks).chain(&s.remarks).collect::<Vec<_>>(),
                "steps": s.times,
            });
            (JobState::Done, "", String::new(), summary, outputs)
        }
        Outcome::Refused(r) => {
            let mut sentence = format!("{}; {}", r.sentence, r.remedy);
            let outputs = match header.map(|h| write_refusal(h, r, files, root)) {
                None => Vec::new(),
                // No later attempt can encode it either, and a job must end: it is told in status and journal alone.
                Some(Err(e @ WriteError::Encode { .. })) if r.code == "GAVE_UP" => {
                    log::error!(scanside_job = job.id; "job {}: its refusal goes to no archive: {e}", job.id);
                    sentence.push_str("; no report of this could be written for the archive");
                    Vec::new()
                }
                Some(written) => written?,
            };
            // There is nothing to review: where results are held, the reason stays in the status.
            routes.retain(|r| !r.hold);
            let state = if r.code == "GAVE_UP" { JobState::Failed } else { JobState::Refused };
            (state, r.code, sentence, json!({}), outputs)
        }
    };
    summary["engine"] = json!(files.identity.engine);
    summary["adapter"] = json!(files.identity.adapter);
    summary["adapter_sha256"] = json!(files.identity.adapter_sha256);
    if let Some(r) = &this.model.release {
        let stage = if this.probation.is_some() { "probation" } else { "committed" };
        summary["bundle"] = json!({"release": r.title, "identity": r.identity, "signer": r.signer, "stage": stage});
    }
    summary["seconds"] = json!(started.elapsed().as_secs_f64());
    let ending = Ending { state, code, sentence: &sentence, summary: &summary.to_string() };
    let now = shared.clock.now_ms();
    shared.store.with_conn(|c| {
        queue::finish_job(c, job.id, &ending, &outputs, &routes, now, |tx| {
            instances::set_fruitless(tx, &instances::used(rows), state != JobState::Done)?;
            if let Some(w) = &kept.waiting {
                review::wait(tx, job.id, w, now)?;
            }
            review::serve(tx, job.id, adapter, &kept.served)?;
            review::set_drifts(tx, adapter, &kept.drifts)?;
            match &this.probation {
                Some(p) => p.ended(tx, job.id, (state == JobState::Done).then_some(&summary), now),
                None => Ok(()),
            }
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

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};
    use std::path::Path;

    use rusqlite::Connection;

    use super::*;

    fn read(io: Error) -> ReadError {
        ReadError::new(Path::new("spool/objects/a.dcm"), ReadCause::Io(io))
    }

    #[test]
    fn an_image_that_the_system_cannot_read_is_no_unreadable_image() {
        // EIO, EMFILE.
        for code in [5, 24] {
            let trouble = unreadable(read(Error::from_raw_os_error(code))).unwrap_err();
            assert!(matches!(trouble, Trouble::Read(_)) && trouble.of_the_box(), "{trouble}");
        }
        // ENOENT: the file is gone. And what a decoder says of the bytes is about the bytes.
        for io in [Error::from_raw_os_error(2), Error::from(ErrorKind::UnexpectedEof)] {
            assert_eq!(unreadable(read(io)).unwrap().code, "UNREADABLE");
        }
        let cause = ReadError::new(Path::new("spool/objects/a.dcm"), ReadCause::NotDicom);
        assert!(!unreadable(cause).unwrap().sentence.contains("spool"));
    }

    #[test]
    fn troubles_of_the_box_are_told_from_those_of_a_series() {
        let path = || Path::new("x").to_path_buf();
        let model = |device| Trouble::Model { code: "engine", sentence: "failed".into(), device };
        for trouble in [
            Trouble::Store(StoreError::Io { path: path(), cause: Error::from_raw_os_error(28) }),
            Trouble::Write(WriteError::Io { path: path(), cause: Error::from_raw_os_error(30) }),
            Trouble::Engine("the GPU is gone".into()),
            model(true),
        ] {
            assert!(trouble.of_the_box(), "{trouble:?}");
        }
        for trouble in [
            Trouble::Write(WriteError::Encode { what: "seg".into(), cause: "too long".into() }),
            Trouble::Other("the step panicked".into()),
            Trouble::TakenBack("failed".into()),
            model(false),
        ] {
            assert!(!trouble.of_the_box(), "{trouble:?}");
        }
    }

    #[test]
    fn a_job_is_given_up_for_its_errors_and_deaths_alone() {
        let mut c = Connection::open_in_memory().unwrap();
        c.execute_batch(queue::MIGRATION).unwrap();
        c.execute_batch(queue::TROUBLES).unwrap();
        let id = queue::open_job(&mut c, "1.2", &[1], "quiet", 1, 1).unwrap().unwrap().id;
        for n in 0..100 {
            let job = queue::take_job(&mut c, n).unwrap().unwrap();
            assert!(!hopeless(&job), "{job:?}");
            queue::postpone_job(&c, id, n, "the disk is full").unwrap();
        }
        // These end with the process.
        for _ in 0..MAX_ATTEMPTS {
            assert!(!hopeless(&queue::take_job(&mut c, 100).unwrap().unwrap()));
        }
        assert!(hopeless(&queue::take_job(&mut c, 100).unwrap().unwrap()));
        c.execute("UPDATE job SET attempts = 104", []).unwrap();
        for n in 0..MAX_ERRORS {
            assert_eq!(queue::get_job(&c, id).unwrap().unwrap().errors, n);
            queue::retry_job(&c, id, 100, "the step panicked").unwrap();
        }
        assert!(hopeless(&queue::get_job(&c, id).unwrap().unwrap()));
    }
}
