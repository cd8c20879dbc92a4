//! One screen of state, read from the database: what came, what became of it, what waits. No patient data.

use std::fmt::Write;

use serde::Serialize;

use crate::config::Config;
use crate::store::queue::{self, Delivery, Job, JobState};
use crate::store::{Store, StoreError, instances};

/// Jobs shown.
const SHOWN: usize = 20;

/// The state.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Unix milliseconds of this look.
    pub at_ms: i64,
    /// Series whose images are still coming: UID, objects, milliseconds since the newest.
    pub open: Vec<OpenSeries>,
    /// Newest jobs first.
    pub jobs: Vec<JobStatus>,
    /// Outbox rows by state.
    pub outbox: Vec<(String, i64)>,
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

impl Status {
    /// Reads the state.
    ///
    /// # Errors
    /// The database's.
    pub fn read(store: &Store, config: &Config) -> Result<Status, StoreError> {
        let at_ms = store.clock().now_ms();
        let open = store.with_conn(|c| instances::series(c, true))?;
        let jobs = store.with_conn(|c| queue::jobs(c, SHOWN))?;
        let mut with = Vec::with_capacity(jobs.len());
        for job in jobs {
            let deliveries = store.with_conn(|c| queue::deliveries(c, job.id))?;
            with.push(JobStatus { job, deliveries });
        }
        Ok(Status {
            at_ms,
            open: open
                .into_iter()
                .map(|s| OpenSeries { series_uid: s.series_uid, pending: s.pending, quiet_ms: at_ms - s.last_ms })
                .collect(),
            jobs: with,
            outbox: store.with_conn(|c| queue::outbox_counts(c))?,
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
        let counts: Vec<String> = self.outbox.iter().map(|(s, n)| format!("{n} {s}")).collect();
        let _ = writeln!(out, "outbox: {}", if counts.is_empty() { "empty".into() } else { counts.join(", ") });
        if let Some(mb) = self.free_mb {
            let _ = writeln!(out, "free space: {mb} MiB");
        }
        let _ = writeln!(out, "newest jobs:");
        if self.jobs.is_empty() {
            let _ = writeln!(out, "  none yet");
        }
        for j in &self.jobs {
            let job = &j.job;
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
                    if summary["needs_review"].as_bool() == Some(true) { ", needs review" } else { "" },
                    summary["seconds"].as_f64().unwrap_or(0.0)
                ),
                JobState::Refused => format!("refused, {}: {}", job.code, job.sentence),
                JobState::Failed => format!("failed, {}: {}", job.code, job.sentence),
            };
            let _ = writeln!(out, "{line}{}", if job.superseded { " (superseded)" } else { "" });
            for remark in summary["remarks"].as_array().into_iter().flatten() {
                let _ = writeln!(out, "        note: {}", remark.as_str().unwrap_or_default());
            }
            for d in &j.deliveries {
                let more = match d.state.as_str() {
                    "pending" if d.attempts > 0 => format!(" after {} attempts: {}", d.attempts, d.last_error),
                    "failed" => format!(": {}", d.last_error),
                    _ => String::new(),
                };
                let _ = writeln!(out, "        {:<5} {} {}{more}", d.kind, d.state, d.archive);
            }
        }
        out
    }
}
