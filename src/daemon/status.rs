//! One screen of state, read from the database: what came, what became of it, what waits. No patient data.

use std::fmt::Write;

use serde::Serialize;

use super::drift;
use super::gate::Gate;
use super::sideload::Adapters;
use crate::config::Config;
use crate::pipeline::serving::EngineReport;
use crate::store::outbox::{self, Delivery, Stranded};
use crate::store::queue::{self, Job, JobState};
use crate::store::review::{self, Drift};
use crate::store::{Store, StoreError, instances};

/// Where the database keeps which engine serves.
pub(super) const ENGINE: &str = "engine";
/// Newest jobs shown unless more are asked for; as many older ones that want somebody.
pub const SHOWN: usize = 20;

/// The state.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Unix milliseconds of this look.
    pub at_ms: i64,
    /// Series whose images are still coming: UID, objects, milliseconds since the newest.
    pub open: Vec<OpenSeries>,
    /// Which engine serves, and why no other; none before the first start with this version.
    pub engine: Option<EngineReport>,
    /// The adapter that serves, in words.
    pub adapter: String,
    /// The bundle that is on its way, in words.
    pub candidate: Option<String>,
    /// The newest bundle, where it was refused or taken back by itself.
    pub adapter_alert: Option<String>,
    /// Where the site's gate stands; none before the first start with this version.
    pub gate: Option<Gate>,
    /// Alerts on drift, in words.
    pub alerts: Vec<String>,
    /// How far served cases lie from the calibration set, farthest first.
    pub drift: Vec<Drift>,
    /// Newest jobs first.
    pub jobs: Vec<JobStatus>,
    /// Older jobs that wait, failed, or whose objects an archive refused or has not yet taken; newest first.
    pub unsettled: Vec<JobStatus>,
    /// How many such jobs are older still.
    pub unsettled_hidden: i64,
    /// How many jobs there are in all.
    pub jobs_in_all: i64,
    /// Outbox rows by state.
    pub outbox: Vec<(String, i64)>,
    /// What waits for archives that are not configured.
    pub stranded: Vec<Stranded>,
    /// Free space in the state directory, MiB.
    pub free_mb: Option<u64>,
}

/// A series that is still open.
#[derive(Debug, Serialize)]
pub struct OpenSeries {
    /// Series Instance UID.
    pub series_uid: String,
    /// Objects that no job has yet.
    pub pending: i64,
    /// Milliseconds since the newest.
    pub quiet_ms: i64,
}

/// A job with its deliveries.
#[derive(Debug, Serialize)]
pub struct JobStatus {
    /// Its row.
    #[serde(flatten)]
    pub job: Job,
    /// Where its objects are.
    pub deliveries: Vec<Delivery>,
}

/// The state in one line, for `systemctl status`.
///
/// # Errors
/// The database's.
pub fn line(store: &Store) -> Result<String, StoreError> {
    let open = store.with_conn(|c| instances::series(c, true))?.len();
    let waiting = store.with_conn(|c| queue::waiting(c))?;
    let outbox = store.with_conn(|c| outbox::counts(c))?;
    let count = |state: &str| outbox.iter().find(|(s, _)| s == state).map_or(0, |(_, n)| *n);
    let failed = match count("failed") {
        0 => String::new(),
        n => format!(", {n} refused by the archive"),
    };
    Ok(format!("{open} series coming in, {waiting} jobs to do, {} objects to deliver{failed}", count("pending")))
}

impl Status {
    /// Reads the state, with the `newest` jobs.
    ///
    /// # Errors
    /// The database's.
    pub fn read(store: &Store, config: &Config, newest: usize) -> Result<Status, StoreError> {
        let at_ms = store.clock().now_ms();
        let open = store.with_conn(|c| instances::series(c, true))?;
        let with_deliveries = |jobs: Vec<Job>| -> Result<Vec<JobStatus>, StoreError> {
            jobs.into_iter()
                .map(|job| Ok(JobStatus { deliveries: store.with_conn(|c| outbox::deliveries(c, job.id))?, job }))
                .collect()
        };
        let jobs = store.with_conn(|c| queue::jobs(c, newest))?;
        let before = jobs.last().map_or(i64::MAX, |j| j.id);
        let (unsettled, all) = store.with_conn(|c| queue::unsettled(c, before, SHOWN))?;
        let unsettled_hidden = all - unsettled.len() as i64;
        let adapters = Adapters::read(store, &config.sideload)?;
        // A state directory of an earlier version has no such tables until the daemon has started once.
        let adapter = store.with_conn(|c| review::adapter(c))?;
        let gate = adapter.as_deref().map(|a| store.with_conn(|c| Gate::read(c, &config.gate, a))).transpose()?;
        let drift = match &adapter {
            Some(a) => store.with_conn(|c| review::drifts(c, a))?,
            None => Vec::new(),
        };
        let stranded = match &adapter {
            Some(_) => store.with_conn(|c| outbox::stranded(c, &super::archive_keys(config)))?,
            None => Vec::new(),
        };
        let engine = store.with_conn(|c| crate::store::meta(c, ENGINE))?;
        Ok(Status {
            at_ms,
            engine: engine.and_then(|e| serde_json::from_str(&e).ok()),
            adapter: adapters.active(),
            candidate: adapters.candidate(),
            adapter_alert: adapters.alert,
            gate,
            alerts: drift.iter().filter(|d| d.since_ms.is_some()).map(drift::sentence).collect(),
            drift,
            open: open
                .into_iter()
                .map(|s| OpenSeries { series_uid: s.series_uid, pending: s.pending, quiet_ms: at_ms - s.last_ms })
                .collect(),
            jobs: with_deliveries(jobs)?,
            unsettled: with_deliveries(unsettled)?,
            unsettled_hidden,
            jobs_in_all: store.with_conn(|c| queue::count(c))?,
            outbox: store.with_conn(|c| outbox::counts(c))?,
            stranded,
            free_mb: rustix::fs::statvfs(&config.storage.state_dir).ok().map(|s| (s.f_bavail * s.f_frsize) >> 20),
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "open series: {}", self.open.len());
        for s in &self.open {
            let _ = writeln!(out, "  {}  {} objects, quiet for {} s", s.series_uid, s.pending, s.quiet_ms / 1000);
        }
        let _ = writeln!(out, "adapter: {}", self.adapter);
        if let Some(candidate) = &self.candidate {
            let _ = writeln!(out, "candidate: {candidate}");
        }
        if let Some(alert) = &self.adapter_alert {
            let _ = writeln!(out, "ADAPTER: {alert}");
        }
        let counts: Vec<String> = self.outbox.iter().map(|(s, n)| format!("{n} {s}")).collect();
        let _ = writeln!(out, "outbox: {}", if counts.is_empty() { "empty".into() } else { counts.join(", ") });
        for s in &self.stranded {
            let _ = writeln!(out, "OUTBOX: {}", s.sentence());
        }
        if let Some(engine) = &self.engine {
            let _ = writeln!(out, "engine: {}", engine.describe());
        }
        if let Some(gate) = &self.gate {
            let _ = writeln!(out, "gate: {}", gate.sentence);
        }
        for alert in &self.alerts {
            let _ = writeln!(out, "DRIFT: {alert}");
        }
        if self.alerts.is_empty()
            && let Some(d) = self.drift.first()
        {
            let _ = writeln!(out, "drift: none; farthest: {}", drift::sentence(d));
        }
        if let Some(mb) = self.free_mb {
            let _ = writeln!(out, "free space: {mb} MiB");
        }
        let _ = match self.jobs_in_all {
            0 => writeln!(out, "newest jobs:\n  none yet"),
            n => writeln!(out, "newest jobs ({} of {n}):", self.jobs.len()),
        };
        self.jobs.iter().for_each(|j| j.text(&mut out));
        if !self.unsettled.is_empty() {
            let _ = writeln!(out, "older jobs that wait or failed:");
            self.unsettled.iter().for_each(|j| j.text(&mut out));
        }
        if self.unsettled_hidden > 0 {
            let _ = writeln!(out, "  and {} more (status --jobs N shows the newest N)", self.unsettled_hidden);
        }
        out
    }
}

impl JobStatus {
    /// For people: what became of it, its remarks, where its objects are.
    fn text(&self, out: &mut String) {
        let job = &self.job;
        let _ = write!(
            out,
            "  {:>4}  {}  generation {}, {} objects: ",
            job.id, job.series_uid, job.generation, job.instances
        );
        let summary: serde_json::Value = serde_json::from_str(&job.summary).unwrap_or_default();
        let line = match job.state {
            JobState::Pending if job.attempts == 0 => "waiting".to_string(),
            JobState::Pending => format!(
                "in work, attempt {}{}",
                job.attempts,
                if job.sentence.is_empty() { String::new() } else { format!(": {}", job.sentence) }
            ),
            JobState::Done => format!(
                "verdict {}, score {:.0}{}, {:.1} s",
                summary["verdict"].as_str().unwrap_or("?"),
                summary["score"].as_f64().unwrap_or(0.0),
                match (summary["pilot"].as_bool(), summary["needs_review"].as_bool()) {
                    (Some(true), _) => ", pilot",
                    (_, Some(true)) => ", needs review",
                    _ => "",
                },
                summary["seconds"].as_f64().unwrap_or(0.0)
            ),
            JobState::Refused => format!("refused, {}: {}", job.code, job.sentence),
            JobState::Failed => format!("failed, {}: {}", job.code, job.sentence),
        };
        let _ = writeln!(out, "{line}{}", if job.superseded { " (superseded)" } else { "" });
        for remark in summary["remarks"].as_array().into_iter().flatten() {
            let _ = writeln!(out, "        note: {}", remark.as_str().unwrap_or_default());
        }
        for d in &self.deliveries {
            let more = match d.state.as_str() {
                "pending" if d.attempts > 0 => format!(" after {} attempts: {}", d.attempts, d.last_error),
                "failed" => format!(": {}", d.last_error),
                _ => String::new(),
            };
            let _ = writeln!(out, "        {:<5} {} {}{more}", d.kind, d.state, d.archive);
        }
    }
}
