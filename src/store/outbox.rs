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

/// What a held row `o` of a job `j` fulfils as long as a person has yet to decide on it: on a superseded result nobody can, and what was
/// decided stays on the box unless the decision is changed.
pub(super) const UNDECIDED: &str = "(o.state = 'held' AND j.superseded = 0
    AND NOT EXISTS (SELECT 1 FROM review r WHERE r.job_id = j.id AND r.state <> 'open'))";

/// Objects that wait for an archive which the configuration does not name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stranded {
    /// The archive's key: `AE@host:port`.
    pub archive: String,
    /// How many wait, for the archive or for a person's decision.
    pub objects: i64,
}

impl Stranded {
    /// For people, with the remedy.
    pub fn sentence(&self) -> String {
        format!(
            "{} object(s) wait for {}, which no [[archive]] names; list it again and restart the service (with a new address under \
             the same AE title they go there), or give them up with `scanside outbox drop JOB`",
            self.objects, self.archive
        )
    }
}

/// The AE title within an archive's key. It may hold an `@` itself, the address may not.
fn ae_title(key: &str) -> &str {
    key.rsplit_once('@').map_or(key, |(title, _)| title)
}

/// Hands what waits for an archive that is not configured to the one configured archive with the same AE title, where there is exactly
/// one: the archive's address was changed. Gives the old key, the new one and the number of objects.
///
/// # Errors
/// The database's.
pub fn readdress(conn: &mut Connection, configured: &[String]) -> rusqlite::Result<Vec<(String, String, usize)>> {
    let tx = conn.transaction()?;
    let waiting: Vec<String> = tx
        .prepare("SELECT DISTINCT archive FROM outbox WHERE state IN ('pending', 'held')")?
        .query_map([], |r| r.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut moved = Vec::new();
    for old in waiting.into_iter().filter(|k| !configured.contains(k)) {
        let mut same = configured.iter().filter(|k| ae_title(k) == ae_title(&old));
        let (Some(new), None) = (same.next(), same.next()) else { continue };
        let n = tx.execute(
            "UPDATE OR IGNORE outbox SET archive = ?2, next_ms = 0 WHERE archive = ?1 AND state IN ('pending', 'held')",
            [&old, new],
        )?;
        // What was left is the same object on its way to the same archive a second time.
        tx.execute("DELETE FROM outbox WHERE archive = ?1 AND state IN ('pending', 'held')", [&old])?;
        moved.push((old, new.clone(), n));
    }
    tx.commit()?;
    Ok(moved)
}

/// What waits for archives that are not configured, by archive.
///
/// # Errors
/// The database's.
pub fn stranded(conn: &Connection, configured: &[String]) -> rusqlite::Result<Vec<Stranded>> {
    let all: Vec<Stranded> = conn
        .prepare(&format!(
            "SELECT o.archive, count(*) FROM outbox o JOIN job j ON j.id = o.job_id
             WHERE o.state = 'pending' OR {UNDECIDED} GROUP BY o.archive ORDER BY o.archive"
        ))?
        .query_map([], |r| Ok(Stranded { archive: r.get(0)?, objects: r.get(1)? }))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(all.into_iter().filter(|s| !configured.contains(&s.archive)).collect())
}

/// Queues again what an archive refused for good; gives how many objects.
///
/// # Errors
/// The database's.
pub fn retry(conn: &Connection, job_id: i64) -> rusqlite::Result<usize> {
    conn.execute("UPDATE outbox SET state = 'pending', next_ms = 0 WHERE job_id = ?1 AND state = 'failed'", [job_id])
}

/// Gives up what an archive refused for good and what waits for an archive that is not configured: their rows go and are returned, the
/// files stay.
///
/// # Errors
/// The database's.
pub fn give_up(conn: &mut Connection, job_id: i64, configured: &[String]) -> rusqlite::Result<Vec<Delivery>> {
    let tx = conn.transaction()?;
    let hopeless = |d: &Delivery| match d.state.as_str() {
        "failed" => true,
        "pending" | "held" => !configured.contains(&d.archive),
        _ => false,
    };
    let given_up: Vec<Delivery> = deliveries(&tx, job_id)?.into_iter().filter(hopeless).collect();
    for d in &given_up {
        tx.execute("DELETE FROM outbox WHERE id = ?1", [d.id])?;
    }
    tx.commit()?;
    Ok(given_up)
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
    use crate::store::review;

    fn db() -> Connection {
        let c = Connection::open_in_memory().unwrap();
        c.execute_batch(queue::MIGRATION).unwrap();
        c.execute_batch(review::MIGRATION).unwrap();
        c
    }

    /// A job with one object for each of the archives, held or not.
    fn job_for(c: &mut Connection, series: &str, archives: &[&str], hold: bool) -> i64 {
        job_over(c, series, &[1], archives, hold)
    }

    fn job_over(c: &mut Connection, series: &str, objects: &[i64], archives: &[&str], hold: bool) -> i64 {
        let job = queue::open_job(c, series, objects, "quiet", 10, 9).unwrap().unwrap();
        let ending = Ending { state: JobState::Done, code: "", sentence: "", summary: "{}" };
        let object = Output {
            kind: "seg".into(),
            sop_instance_uid: format!("2.{series}"),
            path: "r/seg.dcm".into(),
            held: false,
        };
        let routes: Vec<Route> = archives.iter().map(|a| Route { archive: (*a).into(), hold }).collect();
        queue::finish_job(c, job.id, &ending, &[object], &routes, 20, |_| Ok(())).unwrap();
        job.id
    }

    fn states(c: &Connection, job: i64) -> Vec<(String, String)> {
        deliveries(c, job).unwrap().into_iter().map(|d| (d.archive, d.state)).collect()
    }

    fn pair(archive: &str, state: &str) -> (String, String) {
        (archive.to_string(), state.to_string())
    }

    #[test]
    fn what_a_former_generation_held_does_not_stand_in_the_way_of_the_same_object() {
        let mut c = db();
        let rejected = job_for(&mut c, "1.1", &["PACS"], true);
        // Retention took the originals; they came again and made the same object.
        let again = job_over(&mut c, "1.1", &[2], &["PACS"], true);
        assert_eq!((states(&c, rejected), states(&c, again)), (vec![], vec![pair("PACS", "held")]));
        // What was sent stays, and is not sent twice.
        let sent = job_for(&mut c, "1.2", &["PACS"], false);
        let d = due(&c, "PACS", 20, 1).unwrap().remove(0);
        record_attempt(&c, d.id, &Attempt::Sent, 20).unwrap();
        let again = job_over(&mut c, "1.2", &[2], &["PACS"], false);
        assert_eq!((states(&c, sent), states(&c, again)), (vec![pair("PACS", "sent")], vec![]));
    }

    #[test]
    fn a_changed_address_takes_what_waits_along() {
        let mut c = db();
        let job = job_for(&mut c, "1.1", &["PACS@127.0.0.1:1"], false);
        let held = job_for(&mut c, "1.2", &["PACS@127.0.0.1:1"], true);
        // Waits for its next attempt at the wrong address; at the right one it is due at once.
        let d = due(&c, "PACS@127.0.0.1:1", 20, 1).unwrap().remove(0);
        record_attempt(&c, d.id, &Attempt::Retry(600_000, "no route".into()), 20).unwrap();
        let new = ["PACS@10.0.0.5:104".to_string(), "LAB@10.0.0.6:104".to_string()];
        let moved = readdress(&mut c, &new).unwrap();
        assert_eq!(moved, [("PACS@127.0.0.1:1".to_string(), new[0].clone(), 2)]);
        assert_eq!(states(&c, job), [pair("PACS@10.0.0.5:104", "pending")]);
        assert_eq!(states(&c, held), [pair("PACS@10.0.0.5:104", "held")]);
        assert_eq!(due(&c, "PACS@10.0.0.5:104", 20, 10).unwrap().len(), 1);
        assert!(stranded(&c, &new).unwrap().is_empty());
        assert!(readdress(&mut c, &new).unwrap().is_empty(), "once is enough");
    }

    #[test]
    fn an_object_does_not_wait_twice_for_one_archive() {
        let mut c = db();
        let both = job_for(&mut c, "1.1", &["PACS@a:1", "PACS@b:2"], false);
        let moved = readdress(&mut c, &["PACS@b:2".to_string()]).unwrap();
        assert_eq!(moved, [("PACS@a:1".to_string(), "PACS@b:2".to_string(), 0)]);
        assert_eq!(states(&c, both), [pair("PACS@b:2", "pending")]);
    }

    #[test]
    fn what_no_archive_can_be_meant_for_is_told_and_stays() {
        let mut c = db();
        let first = job_for(&mut c, "1.1", &["PACS@a:1"], false);
        job_for(&mut c, "1.2", &["OLD@a:1"], false);
        let sent = due(&c, "OLD@a:1", 20, 1).unwrap().remove(0);
        record_attempt(&c, sent.id, &Attempt::Sent, 30).unwrap();
        // Two have the AE title: neither is taken for the one that was meant.
        let two = ["PACS@b:2".to_string(), "PACS@c:3".to_string()];
        assert!(readdress(&mut c, &two).unwrap().is_empty());
        assert_eq!(states(&c, first), [pair("PACS@a:1", "pending")]);
        assert_eq!(stranded(&c, &two).unwrap(), [Stranded { archive: "PACS@a:1".into(), objects: 1 }]);
        let said = stranded(&c, &two).unwrap()[0].sentence();
        assert!(said.starts_with("1 object(s) wait for PACS@a:1") && said.contains("[[archive]]"), "{said}");
        // On a superseded result nobody decides: it waits for nothing.
        let held = job_for(&mut c, "1.3", &["OLD@a:1"], true);
        assert_eq!(stranded(&c, &two).unwrap().len(), 2);
        queue::open_job(&mut c, "1.3", &[1, 2], "late", 40, 39).unwrap();
        assert_eq!(stranded(&c, &two).unwrap().len(), 1, "job {held}");
    }

    #[test]
    fn what_was_refused_for_good_is_tried_again_or_given_up() {
        let mut c = db();
        let job = job_for(&mut c, "1.1", &["A@h:1", "B@h:2", "C@h:3"], false);
        let refuse = |c: &Connection| {
            let d = due(c, "A@h:1", 100, 1).unwrap().remove(0);
            record_attempt(c, d.id, &Attempt::Failed("no such class".into()), 100).unwrap();
        };
        refuse(&c);
        assert_eq!(states(&c, job)[0], pair("A@h:1", "failed"));
        assert_eq!(retry(&c, job).unwrap(), 1);
        assert_eq!(retry(&c, job).unwrap(), 0, "once is enough");
        refuse(&c);
        // B is not configured any more; what waits for C is none of this.
        let gone = give_up(&mut c, job, &["A@h:1".to_string(), "C@h:3".to_string()]).unwrap();
        assert_eq!(gone.iter().map(|d| d.archive.as_str()).collect::<Vec<_>>(), ["A@h:1", "B@h:2"]);
        assert_eq!(states(&c, job), [pair("C@h:3", "pending")]);
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
