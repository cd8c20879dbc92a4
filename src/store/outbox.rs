//! The outbox: objects on their way to the archives, each tried until it is taken or refused for good. Its rows are made with the job's
//! ending, in one transaction ([`super::queue::finish_job`]).

use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

/// An object on its way to an archive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delivery {
    /// Row id.
    pub id: i64,
    /// The job that made it.
    pub job_id: i64,
    /// `seg`, `sr`, `text`, `sc`.
    pub kind: String,
    /// Its SOP Instance UID.
    pub sop_instance_uid: String,
    /// Its file, relative to the state directory.
    pub path: String,
    /// The archive's key: `AE@host:port`.
    pub archive: String,
    /// `pending`, `sent`, `committed`, `held` or `failed`.
    pub state: String,
    /// How often it was tried.
    pub attempts: i64,
    /// Next attempt, Unix milliseconds.
    pub next_ms: i64,
    /// When the archive took it, Unix milliseconds.
    pub sent_ms: Option<i64>,
    /// What the last attempt said.
    pub last_error: String,
}

fn delivery(row: &Row<'_>) -> rusqlite::Result<Delivery> {
    Ok(Delivery {
        id: row.get("id")?,
        job_id: row.get("job_id")?,
        kind: row.get("kind")?,
        sop_instance_uid: row.get("sop_instance_uid")?,
        path: row.get("path")?,
        archive: row.get("archive")?,
        state: row.get("state")?,
        attempts: row.get("attempts")?,
        next_ms: row.get("next_ms")?,
        sent_ms: row.get("sent_ms")?,
        last_error: row.get("last_error")?,
    })
}

/// Deliveries to one archive that are due, oldest first, at most `limit`.
///
/// # Errors
/// The database's.
pub fn due(conn: &Connection, archive: &str, now_ms: i64, limit: usize) -> rusqlite::Result<Vec<Delivery>> {
    conn.prepare(
        "SELECT * FROM outbox WHERE state = 'pending' AND archive = ?1 AND next_ms <= ?2 ORDER BY id LIMIT ?3",
    )?
    .query_map(params![archive, now_ms, limit as i64], delivery)?
    .collect()
}

/// What became of an attempt to deliver.
#[derive(Clone, Debug, PartialEq)]
pub enum Attempt {
    /// The archive took it.
    Sent,
    /// Try again at this time (Unix milliseconds).
    Retry(i64, String),
    /// The archive refuses it for good.
    Failed(String),
}

/// Records an attempt.
///
/// # Errors
/// The database's.
pub fn record_attempt(conn: &Connection, id: i64, attempt: &Attempt, now_ms: i64) -> rusqlite::Result<()> {
    let (state, next, sent, error) = match attempt {
        Attempt::Sent => ("sent", 0, Some(now_ms), ""),
        Attempt::Retry(at, error) => ("pending", *at, None, error.as_str()),
        Attempt::Failed(error) => ("failed", 0, None, error.as_str()),
    };
    conn.execute(
        "UPDATE outbox SET state = ?2, attempts = attempts + 1, next_ms = ?3, sent_ms = ?4, last_error = ?5
         WHERE id = ?1 AND state = 'pending'",
        params![id, state, next, sent, error],
    )?;
    Ok(())
}

/// Delay before attempt `attempts + 1`, milliseconds: 2 s, doubling to 10 minutes. Attempts have no end: an archive
/// that was away for a week-end gets everything on Monday.
pub fn back_off_ms(attempts: i64) -> i64 {
    2_000i64.saturating_mul(1 << attempts.clamp(0, 20)).min(600_000)
}

/// Everything in the outbox of one job.
///
/// # Errors
/// The database's.
pub fn deliveries(conn: &Connection, job_id: i64) -> rusqlite::Result<Vec<Delivery>> {
    conn.prepare("SELECT * FROM outbox WHERE job_id = ?1 ORDER BY id")?.query_map([job_id], delivery)?.collect()
}

/// Number of outbox rows by state.
///
/// # Errors
/// The database's.
pub fn counts(conn: &Connection) -> rusqlite::Result<Vec<(String, i64)>> {
    conn.prepare("SELECT state, count(*) FROM outbox GROUP BY state ORDER BY state")?
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::queue::{self, Ending, JobState, Output, Route};

    fn db() -> Connection {
        let c = Connection::open_in_memory().unwrap();
        c.execute_batch(queue::MIGRATION).unwrap();
        c
    }

    #[test]
    fn deliveries_are_retried_with_growing_delay() {
        let mut c = db();
        let j = queue::open_job(&mut c, "1.2", &[1], "quiet", 10, 9).unwrap().unwrap();
        let ending = Ending { state: JobState::Done, code: "", sentence: "", summary: "{}" };
        let object =
            Output { kind: "seg".into(), sop_instance_uid: "2.25.1".into(), path: "r/1/seg.dcm".into(), held: false };
        let archive = Route { archive: "A@h:1".into(), hold: false };
        queue::finish_job(&mut c, j.id, &ending, &[object], &[archive], 20, |_| Ok(())).unwrap();
        let d = due(&c, "A@h:1", 20, 10).unwrap().remove(0);
        record_attempt(&c, d.id, &Attempt::Retry(20 + back_off_ms(0), "refused".into()), 20).unwrap();
        assert!(due(&c, "A@h:1", 2_019, 10).unwrap().is_empty());
        assert_eq!(deliveries(&c, j.id).unwrap()[0].next_ms, 2_020);
        let d = due(&c, "A@h:1", 2_020, 10).unwrap().remove(0);
        assert_eq!((d.attempts, d.last_error.as_str()), (1, "refused"));
        record_attempt(&c, d.id, &Attempt::Sent, 3_000).unwrap();
        assert_eq!(counts(&c).unwrap(), vec![("sent".to_string(), 1)]);
        assert!(back_off_ms(1) > back_off_ms(0) && back_off_ms(60) == 600_000);
    }
}
