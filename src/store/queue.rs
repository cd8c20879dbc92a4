//! The work queue: every step of a series is a row, so that a crash resumes where it stopped. Its objects on their way: [`super::outbox`].
//!
//! A job is one generation of one series: `pending` until its results are written, then `done` or `refused`, in one
//! transaction with the outbox rows of its objects. A late slice makes a new generation; the job before it is
//! `superseded`. Order of writes: result files (synced) first, then the rows that name them; a crash between leaves files
//! that the repeated, identical step overwrites.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::instances::{self, Instance};

/// Tables of this module, one migration.
pub const MIGRATION: &str = "
CREATE TABLE job (
    id INTEGER PRIMARY KEY,
    series_uid TEXT NOT NULL,
    generation INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending','done','refused','failed')),
    superseded INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL,
    instances INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    errors INTEGER NOT NULL DEFAULT 0,
    created_ms INTEGER NOT NULL,
    last_received_ms INTEGER NOT NULL,
    not_before_ms INTEGER NOT NULL DEFAULT 0,
    finished_ms INTEGER,
    code TEXT NOT NULL DEFAULT '',
    sentence TEXT NOT NULL DEFAULT '',
    summary TEXT NOT NULL DEFAULT '{}',
    UNIQUE (series_uid, generation)
) STRICT;
CREATE INDEX job_state ON job (state, not_before_ms);
CREATE TABLE job_instance (
    job_id INTEGER NOT NULL REFERENCES job (id),
    instance_id INTEGER NOT NULL,
    PRIMARY KEY (job_id, instance_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_instance_by_instance ON job_instance (instance_id);
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY,
    job_id INTEGER NOT NULL REFERENCES job (id),
    kind TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    path TEXT NOT NULL,
    archive TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending','sent','committed','held','failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    next_ms INTEGER NOT NULL DEFAULT 0,
    sent_ms INTEGER,
    last_error TEXT NOT NULL DEFAULT '',
    UNIQUE (sop_instance_uid, archive)
) STRICT;
CREATE INDEX outbox_due ON outbox (state, archive, next_ms);
";

/// A job's objects are looked for with every original that retention looks at; one more migration.
pub const OUTBOX_BY_JOB: &str = "CREATE INDEX outbox_by_job ON outbox (job_id);";

/// Troubles of the box are counted apart from errors; one more migration.
pub const TROUBLES: &str = "ALTER TABLE job ADD COLUMN troubles INTEGER NOT NULL DEFAULT 0;";

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for, or is in, segmentation.
    Pending,
    /// Results written and queued.
    Done,
    /// Must not be segmented; the reason is written and queued.
    Refused,
    /// Gave up after the attempts allowed; an operator must look.
    Failed,
}

impl JobState {
    fn word(self) -> &'static str {
        match self {
            JobState::Pending => "pending",
            JobState::Done => "done",
            JobState::Refused => "refused",
            JobState::Failed => "failed",
        }
    }
    fn of(word: &str) -> JobState {
        match word {
            "done" => JobState::Done,
            "refused" => JobState::Refused,
            "failed" => JobState::Failed,
            _ => JobState::Pending,
        }
    }
}

/// A job's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Row id.
    pub id: i64,
    /// The source series.
    pub series_uid: String,
    /// 1 for the first result of a series, then one more for every late addition.
    pub generation: i64,
    /// Where it stands.
    pub state: JobState,
    /// Whether a later generation took its place.
    pub superseded: bool,
    /// Why the series was taken as complete.
    pub reason: String,
    /// Number of source instances.
    pub instances: i64,
    /// How often it was begun.
    pub attempts: i64,
    /// How often it ended in an error.
    pub errors: i64,
    /// How often it ended in a trouble of the box, which says nothing about the job; the other attempts ended with the process.
    pub troubles: i64,
    /// Creation, Unix milliseconds: the content time of its results, so that a repeat makes the same objects.
    pub created_ms: i64,
    /// Arrival of its last instance, Unix milliseconds.
    pub last_received_ms: i64,
    /// End, Unix milliseconds.
    pub finished_ms: Option<i64>,
    /// Stable code of a refusal or failure.
    pub code: String,
    /// The refusal or failure in words, with the remedy.
    pub sentence: String,
    /// What the result says, JSON without patient data: verdict, score, engine, adapter, times.
    pub summary: String,
}

fn job(row: &Row<'_>) -> rusqlite::Result<Job> {
    Ok(Job {
        id: row.get("id")?,
        series_uid: row.get("series_uid")?,
        generation: row.get("generation")?,
        state: JobState::of(&row.get::<_, String>("state")?),
        superseded: row.get::<_, i64>("superseded")? != 0,
        reason: row.get("reason")?,
        instances: row.get("instances")?,
        attempts: row.get("attempts")?,
        errors: row.get("errors")?,
        // A database of an earlier version, opened for reading, has none.
        troubles: row.get("troubles").unwrap_or(0),
        created_ms: row.get("created_ms")?,
        last_received_ms: row.get("last_received_ms")?,
        finished_ms: row.get("finished_ms")?,
        code: row.get("code")?,
        sentence: row.get("sentence")?,
        summary: row.get("summary")?,
    })
}

/// Opens the next generation of a series over the given instance rows, superseding the one before.
///
/// Returns `None`, and changes nothing, when the newest generation already covers exactly these instances.
///
/// # Errors
/// The database's.
pub fn open_job(
    conn: &mut Connection,
    series_uid: &str,
    instance_ids: &[i64],
    reason: &str,
    now_ms: i64,
    last_received_ms: i64,
) -> rusqlite::Result<Option<Job>> {
    let tx = conn.transaction()?;
    let newest = newest(&tx, series_uid)?;
    if let Some((id, _)) = newest {
        let mut want = instance_ids.to_vec();
        want.sort_unstable();
        if ids_of(&tx, id)? == want {
            return Ok(None);
        }
    }
    let before = newest.map(|(_, generation)| generation);
    let made = next_generation(&tx, series_uid, before, instance_ids, reason, now_ms, last_received_ms)?;
    tx.commit()?;
    Ok(Some(made))
}

/// The instance rows of a job, in order of their ids.
fn ids_of(conn: &Connection, job_id: i64) -> rusqlite::Result<Vec<i64>> {
    conn.prepare("SELECT instance_id FROM job_instance WHERE job_id = ?1 ORDER BY instance_id")?
        .query_map([job_id], |r| r.get(0))?
        .collect()
}

/// Opens the generation after `before`, the newest, and supersedes that one; part of a transaction.
fn next_generation(
    tx: &Transaction<'_>,
    series_uid: &str,
    before: Option<i64>,
    instance_ids: &[i64],
    reason: &str,
    now_ms: i64,
    last_received_ms: i64,
) -> rusqlite::Result<Job> {
    if before.is_some() {
        // A generation that has not started yet will never be missed: its work is part of the new one.
        tx.execute("UPDATE job SET superseded = 1 WHERE series_uid = ?1", [series_uid])?;
        tx.execute(
            "UPDATE job SET state = 'failed', code = 'SUPERSEDED', finished_ms = ?2,
             sentence = 'more instances of the series arrived before this generation was segmented'
             WHERE series_uid = ?1 AND state = 'pending'",
            params![series_uid, now_ms],
        )?;
        // Nobody can decide on a former generation, and what it held would stand in the way of the same objects of this one.
        tx.execute(
            "DELETE FROM outbox WHERE state = 'held' AND job_id IN (SELECT id FROM job WHERE series_uid = ?1)",
            [series_uid],
        )?;
    }
    let generation = before.map_or(1, |g| g + 1);
    tx.execute(
        "INSERT INTO job (series_uid, generation, state, reason, instances, created_ms, last_received_ms)
         VALUES (?1, ?2, 'pending', ?3, ?4, ?5, ?6)",
        params![series_uid, generation, reason, instance_ids.len() as i64, now_ms, last_received_ms],
    )?;
    let id = tx.last_insert_rowid();
    for instance in instance_ids {
        tx.execute("INSERT INTO job_instance (job_id, instance_id) VALUES (?1, ?2)", [id, *instance])?;
    }
    tx.query_row("SELECT * FROM job WHERE id = ?1", [id], job)
}

/// Why a series is not segmented again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAgain {
    /// No such row.
    #[error("there is no job {0}; `scanside status --jobs 100` shows more of them")]
    Unknown(i64),
    /// A later generation took its place.
    #[error("job {0} was superseded by job {1}: name that one")]
    Superseded(i64, i64),
    /// It has not ended.
    #[error("job {0} waits to be segmented already")]
    Waits(i64),
    /// Retention removed some of its objects.
    #[error("{1} of the {2} images of job {0} were removed after storage.retention_hours: send the series again")]
    Removed(i64, i64, i64),
}

/// Opens a further generation over the objects of a job that has ended, for a person who asks for it: after a fault was mended, or to have
/// the series from another adapter.
///
/// # Errors
/// The database's; [`NotAgain`] within.
pub fn again(conn: &mut Connection, job_id: i64, now_ms: i64) -> rusqlite::Result<Result<Job, NotAgain>> {
    let tx = conn.transaction()?;
    let Some(before) = get_job(&tx, job_id)? else { return Ok(Err(NotAgain::Unknown(job_id))) };
    if let Some((newest, _)) = newest(&tx, &before.series_uid)?.filter(|(id, _)| *id != job_id) {
        return Ok(Err(NotAgain::Superseded(job_id, newest)));
    }
    if before.state == JobState::Pending {
        return Ok(Err(NotAgain::Waits(job_id)));
    }
    let ids = ids_of(&tx, job_id)?;
    let gone = before.instances - ids.len() as i64;
    // Copies that came since are its objects too.
    if gone > 0 {
        return Ok(Err(NotAgain::Removed(job_id, gone, before.instances)));
    }
    let Job { series_uid, generation, last_received_ms, .. } = &before;
    let reason = "a person asked for it";
    let made = next_generation(&tx, series_uid, Some(*generation), &ids, reason, now_ms, *last_received_ms)?;
    tx.commit()?;
    Ok(Ok(made))
}

/// Id and number of a series' newest generation.
fn newest(conn: &Connection, series_uid: &str) -> rusqlite::Result<Option<(i64, i64)>> {
    conn.query_row(
        "SELECT id, generation FROM job WHERE series_uid = ?1 ORDER BY generation DESC LIMIT 1",
        [series_uid],
        |r| Ok((r.get(0)?, r.get(1)?)),
    )
    .optional()
}

/// Gives all objects of a series to its newest generation where nothing that is used changes by them: where they are what it
/// has and copies of that. True where it was so, and no further generation is needed.
///
/// # Errors
/// The database's.
pub fn join_job(conn: &mut Connection, series_uid: &str, rows: &[Instance]) -> rusqlite::Result<bool> {
    let tx = conn.transaction()?;
    let Some((id, _)) = newest(&tx, series_uid)? else { return Ok(false) };
    let ids = |rows: &[Instance]| -> Vec<i64> { instances::used(rows).iter().map(|r| r.id).collect() };
    if ids(&instances::of_job(&tx, id)?) != ids(rows) {
        return Ok(false);
    }
    for row in rows {
        tx.execute("INSERT OR IGNORE INTO job_instance (job_id, instance_id) VALUES (?1, ?2)", [id, row.id])?;
    }
    tx.commit()?;
    Ok(true)
}

/// Takes the oldest job that is due and counts the attempt, durably, before any work: a job that kills the process is
/// seen to have been tried.
///
/// # Errors
/// The database's.
pub fn take_job(conn: &mut Connection, now_ms: i64) -> rusqlite::Result<Option<Job>> {
    let tx = conn.transaction()?;
    let found = tx
        .query_row(
            "SELECT * FROM job WHERE state = 'pending' AND not_before_ms <= ?1 ORDER BY id LIMIT 1",
            [now_ms],
            job,
        )
        .optional()?;
    if let Some(j) = &found {
        tx.execute("UPDATE job SET attempts = attempts + 1 WHERE id = ?1", [j.id])?;
    }
    tx.commit()?;
    Ok(found.map(|mut j| {
        j.attempts += 1;
        j
    }))
}

/// Puts a job back after an error, to be tried again at `not_before_ms`.
///
/// # Errors
/// The database's.
pub fn retry_job(conn: &Connection, id: i64, not_before_ms: i64, sentence: &str) -> rusqlite::Result<()> {
    conn.execute(
        "UPDATE job SET not_before_ms = ?2, sentence = ?3, errors = errors + 1 WHERE id = ?1 AND state = 'pending'",
        params![id, not_before_ms, sentence],
    )?;
    Ok(())
}

/// Puts a job back after a trouble of the box, to be tried again at `not_before_ms`; it is no error of the job.
///
/// # Errors
/// The database's.
pub fn postpone_job(conn: &Connection, id: i64, not_before_ms: i64, sentence: &str) -> rusqlite::Result<()> {
    conn.execute(
        "UPDATE job SET not_before_ms = ?2, sentence = ?3, troubles = troubles + 1 WHERE id = ?1 AND state = 'pending'",
        params![id, not_before_ms, sentence],
    )?;
    Ok(())
}

/// An object made by a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// `seg`, `sr`, `text`, `sc`.
    pub kind: String,
    /// Its SOP Instance UID.
    pub sop_instance_uid: String,
    /// Its file, relative to the state directory.
    pub path: String,
    /// Kept on the box until an operator releases it.
    pub held: bool,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub struct Ending<'a> {
    /// `Done`, `Refused` or `Failed`.
    pub state: JobState,
    /// Stable code; empty when done.
    pub code: &'a str,
    /// Words for a person.
    pub sentence: &'a str,
    /// JSON, without patient data.
    pub summary: &'a str,
}

/// An archive that a job's objects are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its key: `AE@host:port`.
    pub archive: String,
    /// Whether everything waits on the box until a person releases it.
    pub hold: bool,
}

/// Ends a job, queues its objects for every archive, and writes the rows of `also`, in one transaction. Repeating it is
/// harmless; of a superseded generation nothing is queued or written.
///
/// # Errors
/// The database's.
pub fn finish_job(
    conn: &mut Connection,
    id: i64,
    ending: &Ending<'_>,
    outputs: &[Output],
    routes: &[Route],
    now_ms: i64,
    also: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let tx = conn.transaction()?;
    let changed = tx.execute(
        "UPDATE job SET state = ?2, code = ?3, sentence = ?4, summary = ?5, finished_ms = ?6
         WHERE id = ?1 AND state = 'pending'",
        params![id, ending.state.word(), ending.code, ending.sentence, ending.summary, now_ms],
    )?;
    // A generation that was superseded while it ran must not deliver.
    if changed == 1 {
        for output in outputs {
            for route in routes {
                tx.execute(
                    "INSERT OR IGNORE INTO outbox (job_id, kind, sop_instance_uid, path, archive, state)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        id,
                        output.kind,
                        output.sop_instance_uid,
                        output.path,
                        route.archive,
                        if output.held || route.hold { "held" } else { "pending" }
                    ],
                )?;
            }
        }
        also(&tx)?;
    }
    tx.commit()
}

/// Jobs, newest first, at most `limit`.
///
/// # Errors
/// The database's.
pub fn jobs(conn: &Connection, limit: usize) -> rusqlite::Result<Vec<Job>> {
    conn.prepare("SELECT * FROM job ORDER BY id DESC LIMIT ?1")?.query_map([limit as i64], job)?.collect()
}

/// What a row of `job` that asks for somebody fulfils: it waits, it failed, or an archive refused or has not yet taken one of its objects.
const UNSETTLED: &str = "(state = 'pending' OR (state = 'failed' AND code <> 'SUPERSEDED')
    OR id IN (SELECT job_id FROM outbox WHERE state IN ('pending', 'failed')))";

/// Jobs older than `before` (a row id) that wait, failed, or whose objects an archive refused or has not yet taken: newest first, at most
/// `limit`, and how many there are.
///
/// # Errors
/// The database's.
pub fn unsettled(conn: &Connection, before: i64, limit: usize) -> rusqlite::Result<(Vec<Job>, i64)> {
    let jobs = conn
        .prepare(&format!("SELECT * FROM job WHERE id < ?1 AND {UNSETTLED} ORDER BY id DESC LIMIT ?2"))?
        .query_map(params![before, limit as i64], job)?
        .collect::<rusqlite::Result<_>>()?;
    let count = format!("SELECT count(*) FROM job WHERE id < ?1 AND {UNSETTLED}");
    Ok((jobs, conn.query_row(&count, [before], |r| r.get(0))?))
}

/// One job.
///
/// # Errors
/// The database's.
pub fn get_job(conn: &Connection, id: i64) -> rusqlite::Result<Option<Job>> {
    conn.query_row("SELECT * FROM job WHERE id = ?1", [id], job).optional()
}

/// Number of jobs that are not done.
///
/// # Errors
/// The database's.
pub fn waiting(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row("SELECT count(*) FROM job WHERE state = 'pending'", [], |r| r.get(0))
}

/// Number of jobs, whatever became of them.
///
/// # Errors
/// The database's.
pub fn count(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row("SELECT count(*) FROM job", [], |r| r.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::outbox::{Attempt, deliveries, due, record_attempt};

    fn db() -> Connection {
        let c = Connection::open_in_memory().unwrap();
        c.execute_batch(MIGRATION).unwrap();
        c
    }

    fn done() -> Ending<'static> {
        Ending { state: JobState::Done, code: "", sentence: "", summary: "{}" }
    }

    fn to(archive: &str) -> Route {
        Route { archive: archive.into(), hold: false }
    }

    fn seg() -> Output {
        Output { kind: "seg".into(), sop_instance_uid: "2.25.1".into(), path: "r/1/seg.dcm".into(), held: false }
    }

    #[test]
    fn the_same_instances_make_no_second_generation() {
        let mut c = db();
        let first = open_job(&mut c, "1.2", &[1, 2], "quiet", 10, 9).unwrap().unwrap();
        assert_eq!(first.generation, 1);
        assert!(open_job(&mut c, "1.2", &[2, 1], "quiet", 11, 9).unwrap().is_none());
        let second = open_job(&mut c, "1.2", &[1, 2, 3], "late slice", 12, 11).unwrap().unwrap();
        assert_eq!(second.generation, 2);
        let all = jobs(&c, 10).unwrap();
        assert!(all[1].superseded && all[1].state == JobState::Failed && !all[0].superseded);
    }

    #[test]
    fn a_job_that_ended_is_done_again_on_request() {
        let mut c = db();
        c.execute_batch(TROUBLES).unwrap();
        let first = open_job(&mut c, "1.2", &[1, 2], "quiet", 10, 9).unwrap().unwrap();
        assert_eq!(again(&mut c, first.id, 20).unwrap(), Err(NotAgain::Waits(first.id)));
        assert_eq!(again(&mut c, 99, 20).unwrap(), Err(NotAgain::Unknown(99)));
        let gave_up = Ending { state: JobState::Failed, code: "GAVE_UP", ..done() };
        finish_job(&mut c, first.id, &gave_up, &[], &[], 20, |_| Ok(())).unwrap();
        let second = again(&mut c, first.id, 30).unwrap().unwrap();
        assert_eq!((second.generation, second.instances, second.attempts), (2, 2, 0));
        assert_eq!((ids_of(&c, second.id).unwrap(), second.last_received_ms), (vec![1, 2], 9));
        assert!(get_job(&c, first.id).unwrap().unwrap().superseded);
        assert_eq!(take_job(&mut c, 30).unwrap().unwrap().id, second.id);
        finish_job(&mut c, second.id, &done(), &[seg()], &[to("A@h:1")], 40, |_| Ok(())).unwrap();
        assert_eq!(again(&mut c, first.id, 50).unwrap(), Err(NotAgain::Superseded(first.id, second.id)));
        // The same objects, made once more, go nowhere twice.
        let third = again(&mut c, second.id, 50).unwrap().unwrap();
        finish_job(&mut c, third.id, &done(), &[seg()], &[to("A@h:1")], 60, |_| Ok(())).unwrap();
        assert_eq!(due(&c, "A@h:1", 100, 10).unwrap().len(), 1);
        c.execute("DELETE FROM job_instance WHERE instance_id = 1", []).unwrap();
        assert_eq!(again(&mut c, third.id, 70).unwrap(), Err(NotAgain::Removed(third.id, 1, 2)));
        assert_eq!(count(&c).unwrap(), 3);
    }

    #[test]
    fn an_attempt_is_counted_before_the_work() {
        let mut c = db();
        open_job(&mut c, "1.2", &[1], "quiet", 10, 9).unwrap();
        assert_eq!(take_job(&mut c, 20).unwrap().unwrap().attempts, 1);
        // The process died; the next start takes it again.
        let j = take_job(&mut c, 20).unwrap().unwrap();
        assert_eq!(j.attempts, 2);
        assert_eq!(j.errors, 0);
        retry_job(&c, j.id, 100, "disk").unwrap();
        assert!(take_job(&mut c, 99).unwrap().is_none());
        assert_eq!(take_job(&mut c, 100).unwrap().unwrap().errors, 1);
        // A trouble of the box is counted apart.
        c.execute_batch(TROUBLES).unwrap();
        postpone_job(&c, j.id, 200, "disk full").unwrap();
        assert!(take_job(&mut c, 199).unwrap().is_none());
        let j = take_job(&mut c, 200).unwrap().unwrap();
        assert_eq!((j.attempts, j.errors, j.troubles, j.sentence.as_str()), (4, 1, 1, "disk full"));
    }

    #[test]
    fn finishing_twice_queues_once() {
        let mut c = db();
        let j = open_job(&mut c, "1.2", &[1], "quiet", 10, 9).unwrap().unwrap();
        let routes = [to("A@h:1"), to("B@h:2")];
        finish_job(&mut c, j.id, &done(), &[seg()], &routes, 20, |_| Ok(())).unwrap();
        finish_job(&mut c, j.id, &done(), &[seg()], &routes, 21, |_| panic!("written twice")).unwrap();
        assert_eq!(deliveries(&c, j.id).unwrap().len(), 2);
        assert!(take_job(&mut c, 1000).unwrap().is_none());
    }

    #[test]
    fn a_superseded_generation_does_not_deliver() {
        let mut c = db();
        let first = open_job(&mut c, "1.2", &[1], "quiet", 10, 9).unwrap().unwrap();
        open_job(&mut c, "1.2", &[1, 2], "late", 12, 11).unwrap();
        finish_job(&mut c, first.id, &done(), &[seg()], &[to("A@h:1")], 20, |_| Ok(())).unwrap();
        assert!(deliveries(&c, first.id).unwrap().is_empty());
    }

    #[test]
    fn an_old_job_that_asks_for_somebody_stays_in_sight() {
        let mut c = db();
        let mut finished = |uid: &str, archive: &str| {
            let j = open_job(&mut c, uid, &[1], "quiet", 10, 9).unwrap().unwrap();
            let object = Output { sop_instance_uid: format!("{uid}.1"), ..seg() };
            finish_job(&mut c, j.id, &done(), &[object], &[to(archive)], 20, |_| Ok(())).unwrap();
            j.id
        };
        let (taken, refused, waits) = (finished("1.1", "A@h:1"), finished("1.2", "B@h:2"), finished("1.3", "C@h:3"));
        let newest = finished("1.4", "A@h:1");
        for (archive, attempt) in [("A@h:1", Attempt::Sent), ("B@h:2", Attempt::Failed("no such class".into()))] {
            for d in due(&c, archive, 20, 10).unwrap() {
                record_attempt(&c, d.id, &attempt, 30).unwrap();
            }
        }
        // Superseded by a second generation, which is the newest of all.
        open_job(&mut c, "1.5", &[1], "quiet", 40, 39).unwrap();
        open_job(&mut c, "1.5", &[1, 2], "late", 42, 41).unwrap();
        let ids = |(jobs, all): (Vec<Job>, i64)| (jobs.iter().map(|j| j.id).collect::<Vec<_>>(), all);
        assert_eq!(ids(unsettled(&c, newest + 2, 10).unwrap()), (vec![waits, refused], 2));
        assert_eq!(ids(unsettled(&c, newest + 2, 1).unwrap()), (vec![waits], 2), "bounded, and the rest is counted");
        assert_eq!(ids(unsettled(&c, refused, 10).unwrap()), (vec![], 0), "{taken} was taken");
        assert_eq!(count(&c).unwrap(), 6);
    }
}
