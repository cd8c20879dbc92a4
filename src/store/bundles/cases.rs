//! The cases that a candidate was tried on: in shadow beside the active adapter, on probation in its place.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

/// How a candidate was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Beside the active adapter; nothing left the box.
    Shadow,
    /// It served.
    Probation,
}

impl Stage {
    /// Its word, as stored.
    pub fn word(self) -> &'static str {
        match self {
            Stage::Shadow => "shadow",
            Stage::Probation => "probation",
        }
    }
}

/// Dice of one structure between candidate and active adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StructureDice {
    /// Structure key.
    pub structure: String,
    /// `right`, `left` or empty.
    pub side: String,
    /// Dice, 0 to 1.
    pub dice: f64,
}

/// What one adapter made of a case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Side {
    /// SegEx score, 0 to 100.
    pub score: Option<f64>,
    /// SegEx verdict, `A` to `D`; empty where there is none.
    pub verdict: String,
    /// Seconds of computing; none where it was interrupted.
    pub seconds: Option<f64>,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// How it was tried.
    pub stage: Stage,
    /// The job, a number of this box.
    pub job_id: i64,
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// Whether it says something of the candidate. As read by [`cases`], a case whose job a later generation of its series took the
    /// place of counts no longer, unless the candidate made no result of it: a series is one case, however often slices came late.
    pub counts: bool,
    /// Stable code of why the candidate made no result, or none that can be compared; empty where it did.
    pub problem: String,
    /// What the candidate made of it.
    pub candidate: Side,
    /// What the active adapter made of it; empty on probation. Without a score where it was of another scale: the grades of one of the
    /// two adapters are calibrated, the other's are not.
    pub active: Side,
    /// Agreement of the two; empty on probation.
    pub dice: Vec<StructureDice>,
}

impl Case {
    /// Mean Dice over the structures; none without any.
    pub fn mean_dice(&self) -> Option<f64> {
        (!self.dice.is_empty()).then(|| self.dice.iter().map(|d| d.dice).sum::<f64>() / self.dice.len() as f64)
    }
}

fn case(r: &Row<'_>) -> rusqlite::Result<Case> {
    let stage: String = r.get("stage")?;
    let dice: String = r.get("dice")?;
    let side = |score: &str, verdict: &str, seconds: &str| -> rusqlite::Result<Side> {
        Ok(Side { score: r.get(score)?, verdict: r.get(verdict)?, seconds: r.get(seconds)? })
    };
    Ok(Case {
        stage: if stage == "shadow" { Stage::Shadow } else { Stage::Probation },
        job_id: r.get("job_id")?,
        at_ms: r.get("at_ms")?,
        counts: r.get::<_, i64>("counted")? != 0,
        problem: r.get("problem")?,
        candidate: side("score", "verdict", "seconds")?,
        active: side("active_score", "active_verdict", "active_seconds")?,
        dice: serde_json::from_str(&dice).unwrap_or_default(),
    })
}

/// The cases of a bundle in order of time, at most the newest `limit`.
///
/// # Errors
/// The database's.
pub fn cases(conn: &Connection, bundle_id: i64, limit: usize) -> rusqlite::Result<Vec<Case>> {
    let mut all: Vec<Case> = conn
        // A case outlives the row of its job.
        .prepare(
            "SELECT c.*, c.counts <> 0 AND (coalesce(j.superseded, 0) = 0 OR c.problem <> '') AS counted
             FROM bundle_case c LEFT JOIN job j ON j.id = c.job_id
             WHERE c.bundle_id = ?1 ORDER BY c.at_ms DESC, c.stage, c.job_id DESC LIMIT ?2",
        )?
        .query_map(params![bundle_id, limit as i64], case)?
        .collect::<rusqlite::Result<_>>()?;
    all.reverse();
    Ok(all)
}

/// Records a case; part of the transaction of its step. A repeat takes the place of the first.
///
/// # Errors
/// The database's.
pub fn record_case(tx: &Transaction<'_>, bundle_id: i64, c: &Case) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT OR REPLACE INTO bundle_case (bundle_id, stage, job_id, at_ms, counts, problem, score, verdict, seconds,
         active_score, active_verdict, active_seconds, dice)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        params![
            bundle_id,
            c.stage.word(),
            c.job_id,
            c.at_ms,
            i64::from(c.counts),
            c.problem,
            c.candidate.score,
            c.candidate.verdict,
            c.candidate.seconds,
            c.active.score,
            c.active.verdict,
            c.active.seconds,
            serde_json::to_string(&c.dice).unwrap_or_else(|_| "[]".into()),
        ],
    )?;
    Ok(())
}

/// The oldest job that ended with a result since `since_ms` and on which a candidate was not tried in shadow yet.
///
/// # Errors
/// The database's.
pub fn untried(conn: &Connection, bundle_id: i64, since_ms: i64) -> rusqlite::Result<Option<i64>> {
    conn.query_row(
        "SELECT j.id FROM job j WHERE j.state = 'done' AND j.superseded = 0 AND j.finished_ms >= ?2
         AND NOT EXISTS (SELECT 1 FROM bundle_case c WHERE c.bundle_id = ?1 AND c.stage = 'shadow' AND c.job_id = j.id)
         ORDER BY j.id LIMIT 1",
        params![bundle_id, since_ms],
        |r| r.get(0),
    )
    .optional()
}
