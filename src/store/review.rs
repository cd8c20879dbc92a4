//! What people decided on results, and what served cases measured: the rows behind the site's gate and its drift alerts.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

/// Tables of this module, one migration.
pub const MIGRATION: &str = "
CREATE TABLE review (
    job_id INTEGER PRIMARY KEY REFERENCES job (id),
    adapter TEXT NOT NULL,
    pilot INTEGER NOT NULL,
    reason TEXT NOT NULL,
    verdict TEXT NOT NULL,
    score REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open','accepted','rejected')),
    created_ms INTEGER NOT NULL,
    decided_ms INTEGER,
    decided_by TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX review_decided ON review (adapter, state, decided_ms);
CREATE TABLE review_truth (
    job_id INTEGER NOT NULL REFERENCES job (id),
    structure TEXT NOT NULL,
    side TEXT NOT NULL,
    dice REAL NOT NULL,
    added_ms INTEGER NOT NULL,
    added_by TEXT NOT NULL,
    PRIMARY KEY (job_id, structure, side)
) STRICT, WITHOUT ROWID;
CREATE TABLE promotion (
    adapter TEXT PRIMARY KEY,
    promoted_ms INTEGER NOT NULL,
    sentence TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE served (
    adapter TEXT NOT NULL,
    structure TEXT NOT NULL,
    quantity TEXT NOT NULL,
    job_id INTEGER NOT NULL REFERENCES job (id),
    value REAL NOT NULL,
    PRIMARY KEY (adapter, structure, quantity, job_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE drift (
    adapter TEXT NOT NULL,
    structure TEXT NOT NULL,
    quantity TEXT NOT NULL,
    cases INTEGER NOT NULL,
    median REAL NOT NULL,
    expected REAL NOT NULL,
    z REAL NOT NULL,
    since_ms INTEGER,
    PRIMARY KEY (adapter, structure, quantity)
) STRICT, WITHOUT ROWID;
";

/// A result that waits for a person, or on which one decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Review {
    /// The job.
    pub job_id: i64,
    /// Its series.
    pub series_uid: String,
    /// sha256 of the adapter that made it, hex.
    pub adapter: String,
    /// Whether it was made while the site was in its pilot.
    pub pilot: bool,
    /// Why it waits.
    pub reason: String,
    /// SegEx verdict, `A` to `D`.
    pub verdict: String,
    /// SegEx score, 0 to 100.
    pub score: f64,
    /// `open`, `accepted` or `rejected`.
    pub state: String,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// When a person decided, Unix milliseconds.
    pub decided_ms: Option<i64>,
    /// Who decided.
    pub decided_by: String,
    /// What they said.
    pub note: String,
    /// Mean Dice over its structures against a corrected segmentation, where one was added.
    pub dice: Option<f64>,
}

const SELECT: &str = "SELECT r.*, j.series_uid AS series_uid,
    (SELECT avg(t.dice) FROM review_truth t WHERE t.job_id = r.job_id) AS dice
    FROM review r JOIN job j ON j.id = r.job_id WHERE j.superseded = 0";

fn review(row: &Row<'_>) -> rusqlite::Result<Review> {
    Ok(Review {
        job_id: row.get("job_id")?,
        series_uid: row.get("series_uid")?,
        adapter: row.get("adapter")?,
        pilot: row.get::<_, i64>("pilot")? != 0,
        reason: row.get("reason")?,
        verdict: row.get("verdict")?,
        score: row.get("score")?,
        state: row.get("state")?,
        created_ms: row.get("created_ms")?,
        decided_ms: row.get("decided_ms")?,
        decided_by: row.get("decided_by")?,
        note: row.get("note")?,
        dice: row.get("dice")?,
    })
}

/// A result that is to wait for a person.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// sha256 of the adapter, hex.
    pub adapter: String,
    /// Whether the site is in its pilot.
    pub pilot: bool,
    /// Why it waits.
    pub reason: String,
    /// SegEx verdict.
    pub verdict: String,
    /// SegEx score.
    pub score: f64,
}

/// Puts a result into the review queue; part of the transaction that ends its job.
///
/// # Errors
/// The database's.
pub fn wait(tx: &Transaction<'_>, job_id: i64, w: &Waiting, now_ms: i64) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT OR IGNORE INTO review (job_id, adapter, pilot, reason, verdict, score, created_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![job_id, w.adapter, i64::from(w.pilot), w.reason, w.verdict, w.score, now_ms],
    )?;
    Ok(())
}

/// Reviews, newest job first, at most `limit`; `open` leaves out what was decided.
///
/// # Errors
/// The database's.
pub fn list(conn: &Connection, open: bool, limit: usize) -> rusqlite::Result<Vec<Review>> {
    let only = if open { " AND r.state = 'open'" } else { "" };
    conn.prepare(&format!("{SELECT}{only} ORDER BY r.job_id DESC LIMIT ?1"))?
        .query_map([limit as i64], review)?
        .collect()
}

/// One review.
///
/// # Errors
/// The database's.
pub fn get(conn: &Connection, job_id: i64) -> rusqlite::Result<Option<Review>> {
    conn.query_row(&format!("{SELECT} AND r.job_id = ?1"), [job_id], review).optional()
}

/// The newest decisions on results of an adapter, at most `limit`.
///
/// # Errors
/// The database's.
pub fn decided(conn: &Connection, adapter: &str, limit: usize) -> rusqlite::Result<Vec<Review>> {
    conn.prepare(&format!(
        "{SELECT} AND r.adapter = ?1 AND r.state <> 'open' ORDER BY r.decided_ms DESC, r.job_id DESC LIMIT ?2"
    ))?
    .query_map(params![adapter, limit as i64], review)?
    .collect()
}

/// Every review of an adapter's results in order of time, at most the newest `limit`.
///
/// # Errors
/// The database's.
pub fn of_adapter(conn: &Connection, adapter: &str, limit: usize) -> rusqlite::Result<Vec<Review>> {
    let mut all: Vec<Review> = conn
        .prepare(&format!("{SELECT} AND r.adapter = ?1 ORDER BY r.job_id DESC LIMIT ?2"))?
        .query_map(params![adapter, limit as i64], review)?
        .collect::<rusqlite::Result<_>>()?;
    all.reverse();
    Ok(all)
}

/// Dice of a result against a person's correction, by structure; empty where there is none.
///
/// # Errors
/// The database's.
pub fn truths(conn: &Connection, job_id: i64) -> rusqlite::Result<Vec<TruthDice>> {
    conn.prepare("SELECT structure, side, dice FROM review_truth WHERE job_id = ?1 ORDER BY structure, side")?
        .query_map([job_id], |r| Ok(TruthDice { structure: r.get(0)?, side: r.get(1)?, dice: r.get(2)? }))?
        .collect()
}

/// Results that wait for a person.
///
/// # Errors
/// The database's.
pub fn open_count(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row(
        "SELECT count(*) FROM review r JOIN job j ON j.id = r.job_id WHERE r.state = 'open' AND j.superseded = 0",
        [],
        |r| r.get(0),
    )
}

/// A person's decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision<'a> {
    /// Whether the result is accepted.
    pub accepted: bool,
    /// Who decided; may be empty.
    pub by: &'a str,
    /// What they said; may be empty.
    pub note: &'a str,
    /// Whether an accepted result goes to the archives that it was held back from.
    pub release: bool,
}

/// Records a decision on a review. What was held back is queued where it is accepted and released, and stays held otherwise, so that
/// the decision can be changed; what was released before is on its way. Returns how many objects were released.
///
/// # Errors
/// The database's.
pub fn decide(conn: &mut Connection, job_id: i64, d: &Decision<'_>, now_ms: i64) -> rusqlite::Result<usize> {
    let tx = conn.transaction()?;
    tx.execute(
        "UPDATE review SET state = ?2, decided_ms = ?3, decided_by = ?4, note = ?5 WHERE job_id = ?1",
        params![job_id, if d.accepted { "accepted" } else { "rejected" }, now_ms, d.by, d.note],
    )?;
    let released = if d.accepted && d.release {
        tx.execute("UPDATE outbox SET state = 'pending', next_ms = 0 WHERE job_id = ?1 AND state = 'held'", [job_id])?
    } else {
        0
    };
    tx.commit()?;
    Ok(released)
}

/// Dice of one structure of a result against a person's correction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TruthDice {
    /// Structure key.
    pub structure: String,
    /// `right`, `left` or empty.
    pub side: String,
    /// Dice, 0 to 1.
    pub dice: f64,
}

/// Records the comparison of a result with a correction, in place of an earlier one.
///
/// # Errors
/// The database's.
pub fn add_truth(
    conn: &mut Connection,
    job_id: i64,
    dice: &[TruthDice],
    by: &str,
    now_ms: i64,
) -> rusqlite::Result<()> {
    let tx = conn.transaction()?;
    tx.execute("DELETE FROM review_truth WHERE job_id = ?1", [job_id])?;
    for d in dice {
        tx.execute(
            "INSERT INTO review_truth (job_id, structure, side, dice, added_ms, added_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![job_id, d.structure, d.side, d.dice, now_ms, by],
        )?;
    }
    tx.commit()
}

/// When an adapter was promoted from the pilot to production, and why.
///
/// # Errors
/// The database's.
pub fn promotion(conn: &Connection, adapter: &str) -> rusqlite::Result<Option<(i64, String)>> {
    conn.query_row("SELECT promoted_ms, sentence FROM promotion WHERE adapter = ?1", [adapter], |r| {
        Ok((r.get(0)?, r.get(1)?))
    })
    .optional()
}

/// Promotes an adapter; once is enough. Returns whether this call did it.
///
/// # Errors
/// The database's.
pub fn promote(conn: &Connection, adapter: &str, sentence: &str, now_ms: i64) -> rusqlite::Result<bool> {
    let n = conn.execute(
        "INSERT OR IGNORE INTO promotion (adapter, promoted_ms, sentence) VALUES (?1, ?2, ?3)",
        params![adapter, now_ms, sentence],
    )?;
    Ok(n == 1)
}

/// Remembers which adapter the daemon serves with, for `scanside status`.
///
/// # Errors
/// The database's.
pub fn set_adapter(conn: &Connection, sha256: &str) -> rusqlite::Result<()> {
    conn.execute(
        "INSERT INTO meta (key, value) VALUES ('adapter', ?1) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [sha256],
    )?;
    Ok(())
}

/// The adapter that the daemon serves, or last served, with.
///
/// # Errors
/// The database's.
pub fn adapter(conn: &Connection) -> rusqlite::Result<Option<String>> {
    conn.query_row("SELECT value FROM meta WHERE key = 'adapter'", [], |r| r.get(0)).optional()
}

/// What one case measured of one structure.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    /// Structure key.
    pub structure: String,
    /// What was measured.
    pub quantity: String,
    /// The value.
    pub value: f64,
}

/// Records what a case measured; part of the transaction that ends its job.
///
/// # Errors
/// The database's.
pub fn serve(tx: &Transaction<'_>, job_id: i64, adapter: &str, all: &[Served]) -> rusqlite::Result<()> {
    for s in all {
        tx.execute(
            "INSERT OR REPLACE INTO served (adapter, structure, quantity, job_id, value) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![adapter, s.structure, s.quantity, job_id, s.value],
        )?;
    }
    Ok(())
}

/// The newest values before a job, without superseded ones, at most `limit`.
///
/// # Errors
/// The database's.
pub fn newest(
    conn: &Connection,
    adapter: &str,
    structure: &str,
    quantity: &str,
    before_job: i64,
    limit: usize,
) -> rusqlite::Result<Vec<f64>> {
    conn.prepare(
        "SELECT s.value FROM served s JOIN job j ON j.id = s.job_id
         WHERE s.adapter = ?1 AND s.structure = ?2 AND s.quantity = ?3 AND s.job_id < ?4 AND j.superseded = 0
         ORDER BY s.job_id DESC LIMIT ?5",
    )?
    .query_map(params![adapter, structure, quantity, before_job, limit as i64], |r| r.get(0))?
    .collect()
}

/// How far the newest cases lie from the calibration set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// Structure key.
    pub structure: String,
    /// What was measured.
    pub quantity: String,
    /// Cases behind it.
    pub cases: i64,
    /// Their median.
    pub median: f64,
    /// The calibration set's mean.
    pub expected: f64,
    /// Distance in standard errors.
    pub z: f64,
    /// Since when there is an alert, Unix milliseconds.
    pub since_ms: Option<i64>,
}

/// The drift of every structure and quantity, alerts first, then by distance.
///
/// # Errors
/// The database's.
pub fn drifts(conn: &Connection, adapter: &str) -> rusqlite::Result<Vec<Drift>> {
    conn.prepare("SELECT * FROM drift WHERE adapter = ?1 ORDER BY since_ms IS NULL, abs(z) DESC, structure, quantity")?
        .query_map([adapter], |row| {
            Ok(Drift {
                structure: row.get("structure")?,
                quantity: row.get("quantity")?,
                cases: row.get("cases")?,
                median: row.get("median")?,
                expected: row.get("expected")?,
                z: row.get("z")?,
                since_ms: row.get("since_ms")?,
            })
        })?
        .collect()
}

/// Records the drift after a case; part of the transaction that ends its job.
///
/// # Errors
/// The database's.
pub fn set_drifts(tx: &Transaction<'_>, adapter: &str, all: &[Drift]) -> rusqlite::Result<()> {
    for d in all {
        tx.execute(
            "INSERT OR REPLACE INTO drift (adapter, structure, quantity, cases, median, expected, z, since_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![adapter, d.structure, d.quantity, d.cases, d.median, d.expected, d.z, d.since_ms],
        )?;
    }
    Ok(())
}
