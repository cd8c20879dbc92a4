//! The rows of received objects.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, params};

/// Another object with this SOP Instance UID but other bytes is there as well.
pub const CONFLICT: i64 = 1;
/// The file is gone or damaged.
pub const MISSING: i64 = 2;
/// It was used by a generation that ended without a result: a copy that came since goes before it.
pub const FRUITLESS: i64 = 4;

/// A received object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Row id, in order of arrival; 0 before it is inserted.
    pub id: i64,
    /// SOP Instance UID.
    pub sop_instance_uid: String,
    /// SOP Class UID.
    pub sop_class_uid: String,
    /// Series Instance UID.
    pub series_uid: String,
    /// Study Instance UID.
    pub study_uid: String,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
    /// File, relative to the state directory.
    pub path: String,
    /// Bytes of the file.
    pub size: i64,
    /// Who sent it; empty where that was lost.
    pub calling_ae: String,
    /// Transfer Syntax UID.
    pub transfer_syntax: String,
    /// Arrival, Unix milliseconds.
    pub received_ms: i64,
    /// Association it came on; 0 where that was lost.
    pub association_id: i64,
    /// [`CONFLICT`], [`MISSING`], [`FRUITLESS`].
    pub flags: i64,
}

impl Instance {
    /// The file within this state directory.
    pub fn file(&self, state_dir: &Path) -> PathBuf {
        state_dir.join(&self.path)
    }
}

fn instance(row: &Row<'_>) -> rusqlite::Result<Instance> {
    Ok(Instance {
        id: row.get("id")?,
        sop_instance_uid: row.get("sop_instance_uid")?,
        sop_class_uid: row.get("sop_class_uid")?,
        series_uid: row.get("series_uid")?,
        study_uid: row.get("study_uid")?,
        sha256: row.get("sha256")?,
        path: row.get("path")?,
        size: row.get("size")?,
        calling_ae: row.get("calling_ae")?,
        transfer_syntax: row.get("transfer_syntax")?,
        received_ms: row.get("received_ms")?,
        association_id: row.get("association_id")?,
        flags: row.get("flags")?,
    })
}

/// What inserting came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// A new row with this id.
    New(i64),
    /// A new row with this id; other bytes with the same SOP Instance UID are there.
    Conflict(i64),
    /// The same bytes are there already.
    Duplicate(i64),
}

/// Inserts an object, or finds that it is there. To be called within a transaction.
///
/// # Errors
/// The database's.
pub fn insert(conn: &Connection, i: &Instance) -> rusqlite::Result<Inserted> {
    let mut others = conn.prepare("SELECT id, sha256, flags FROM instances WHERE sop_instance_uid = ?1")?;
    let others: Vec<(i64, String, i64)> = others
        .query_map([&i.sop_instance_uid], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    if let Some((id, _, flags)) = others.iter().find(|(_, sha256, _)| *sha256 == i.sha256) {
        if flags & MISSING != 0 {
            // It was lost and has come again.
            conn.execute(
                "UPDATE instances SET flags = flags & ~?2, path = ?3, size = ?4 WHERE id = ?1",
                params![id, MISSING, i.path, i.size],
            )?;
        }
        return Ok(Inserted::Duplicate(*id));
    }
    let conflict = !others.is_empty();
    if conflict {
        conn.execute(
            "UPDATE instances SET flags = flags | ?2 WHERE sop_instance_uid = ?1",
            params![i.sop_instance_uid, CONFLICT],
        )?;
    }
    conn.prepare(
        "INSERT INTO instances (sop_instance_uid, sop_class_uid, series_uid, study_uid, sha256, path, size, calling_ae,
         transfer_syntax, received_ms, association_id, flags) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)",
    )?
    .execute(params![
        i.sop_instance_uid,
        i.sop_class_uid,
        i.series_uid,
        i.study_uid,
        i.sha256,
        i.path,
        i.size,
        i.calling_ae,
        i.transfer_syntax,
        i.received_ms,
        i.association_id,
        i.flags | if conflict { CONFLICT } else { 0 },
    ])?;
    let id = conn.last_insert_rowid();
    Ok(if conflict { Inserted::Conflict(id) } else { Inserted::New(id) })
}

/// The objects of a series in order of arrival.
///
/// # Errors
/// The database's.
pub fn of_series(conn: &Connection, series_uid: &str) -> rusqlite::Result<Vec<Instance>> {
    conn.prepare("SELECT * FROM instances WHERE series_uid = ?1 ORDER BY id")?
        .query_map([series_uid], instance)?
        .collect()
}

/// The objects of a job in order of arrival.
///
/// # Errors
/// The database's.
pub fn of_job(conn: &Connection, job_id: i64) -> rusqlite::Result<Vec<Instance>> {
    conn.prepare(
        "SELECT i.* FROM instances i JOIN job_instance j ON j.instance_id = i.id WHERE j.job_id = ?1 ORDER BY i.id",
    )?
    .query_map([job_id], instance)?
    .collect()
}

/// Of rows in order of arrival, those that are used: whose file is there and, of several with one SOP Instance UID, the first
/// to have arrived. Where no result came of the first ([`FRUITLESS`]), the next that came since; the last, where none did of any.
pub fn used(rows: &[Instance]) -> Vec<&Instance> {
    let mut seen = HashSet::new();
    let there = || rows.iter().filter(|r| r.flags & MISSING == 0);
    let fresh = there().filter(|r| r.flags & FRUITLESS == 0);
    let fruitless = there().rev().filter(|r| r.flags & FRUITLESS != 0);
    let mut all: Vec<&Instance> = fresh.chain(fruitless).filter(|r| seen.insert(r.sop_instance_uid.as_str())).collect();
    all.sort_by_key(|r| r.id);
    all
}

/// Notes whether the objects that a generation used led to a result; part of the transaction that ends it.
///
/// # Errors
/// The database's.
pub fn set_fruitless(conn: &Connection, used: &[&Instance], fruitless: bool) -> rusqlite::Result<()> {
    for row in used {
        conn.execute(
            "UPDATE instances SET flags = (flags & ~?2) | ?3 WHERE id = ?1",
            params![row.id, FRUITLESS, if fruitless { FRUITLESS } else { 0 }],
        )?;
    }
    Ok(())
}

/// Whether objects that led to no result gave way to what came again.
pub fn gave_way(rows: &[Instance]) -> bool {
    let used: HashSet<i64> = used(rows).iter().map(|r| r.id).collect();
    rows.iter().any(|r| r.flags & (MISSING | FRUITLESS) == FRUITLESS && !used.contains(&r.id))
}

/// Rows whose file is there and that are not [`used`]: what came again with other content.
pub fn copies(rows: &[Instance]) -> usize {
    rows.iter().filter(|r| r.flags & MISSING == 0).count() - used(rows).len()
}

/// One object by its row id.
///
/// # Errors
/// The database's.
pub fn by_id(conn: &Connection, id: i64) -> rusqlite::Result<Option<Instance>> {
    conn.query_row("SELECT * FROM instances WHERE id = ?1", [id], instance).optional()
}

/// A series as far as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesSummary {
    /// Series Instance UID.
    pub series_uid: String,
    /// Study Instance UID (of one of its objects).
    pub study_uid: String,
    /// Who sent its newest object.
    pub calling_ae: String,
    /// Objects.
    pub instances: i64,
    /// Objects that no job has taken up.
    pub pending: i64,
    /// Arrival of the first object that no job has taken up, Unix milliseconds; of the first of all where there is none.
    pub fresh_ms: i64,
    /// Objects flagged as conflicting.
    pub conflicts: i64,
    /// Arrival of the first and of the newest object, Unix milliseconds.
    pub first_ms: i64,
    /// See `first_ms`.
    pub last_ms: i64,
    /// Association of the newest object.
    pub association_id: i64,
}

/// Series, those with the newest arrivals first; `only_pending`: those with objects that no job has taken up.
///
/// # Errors
/// The database's.
pub fn series(conn: &Connection, only_pending: bool) -> rusqlite::Result<Vec<SeriesSummary>> {
    // SQLite takes the bare columns from the row that has the maximum.
    let sql = format!(
        "SELECT series_uid, study_uid, calling_ae, association_id, count(*) AS instances,
         sum(NOT EXISTS (SELECT 1 FROM job_instance j WHERE j.instance_id = i.id)) AS pending,
         coalesce((SELECT min(f.received_ms) FROM instances f WHERE f.series_uid = i.series_uid AND NOT EXISTS
            (SELECT 1 FROM job_instance j WHERE j.instance_id = f.id)), min(received_ms)) AS fresh_ms,
         sum(flags & {CONFLICT} != 0) AS conflicts, min(received_ms) AS first_ms, max(received_ms) AS last_ms
         FROM instances i GROUP BY series_uid {} ORDER BY last_ms DESC",
        if only_pending { "HAVING pending > 0" } else { "" }
    );
    conn.prepare(&sql)?
        .query_map([], |r| {
            Ok(SeriesSummary {
                series_uid: r.get("series_uid")?,
                study_uid: r.get("study_uid")?,
                calling_ae: r.get("calling_ae")?,
                instances: r.get("instances")?,
                pending: r.get("pending")?,
                fresh_ms: r.get("fresh_ms")?,
                conflicts: r.get("conflicts")?,
                first_ms: r.get("first_ms")?,
                last_ms: r.get("last_ms")?,
                association_id: r.get("association_id")?,
            })
        })?
        .collect()
}

/// See [`removable`].
fn removable_sql() -> String {
    let undecided = super::outbox::UNDECIDED;
    format!(
        "SELECT i.id, i.path FROM instances i WHERE
         EXISTS (SELECT 1 FROM job_instance ji WHERE ji.instance_id = i.id)
         AND NOT EXISTS (
            SELECT 1 FROM job_instance ji JOIN job j ON j.id = ji.job_id WHERE ji.instance_id = i.id AND (
                j.finished_ms IS NULL OR j.finished_ms >= ?1 OR (j.state = 'failed' AND j.superseded = 0)
                OR (j.superseded = 0 AND EXISTS (SELECT 1 FROM review r WHERE r.job_id = j.id
                    AND (r.state = 'open' OR r.decided_ms >= ?1)))
                OR EXISTS (SELECT 1 FROM outbox o WHERE o.job_id = j.id
                    AND (o.state IN ('pending', 'failed') OR {undecided} OR coalesce(o.sent_ms, 0) >= ?1))
            )
         ) ORDER BY i.id LIMIT ?2"
    )
}

/// Originals (row id and path) that may be removed: every job that used them has ended, its results were delivered, and a person decided
/// on what was to be reviewed, before `before_ms`; and nothing of those jobs waits for, or was refused by, an archive. A superseded
/// result waits for no person.
///
/// # Errors
/// The database's.
pub fn removable(conn: &Connection, before_ms: i64, limit: usize) -> rusqlite::Result<Vec<(i64, String)>> {
    conn.prepare(&removable_sql())?
        .query_map(params![before_ms, limit as i64], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect()
}

/// Forgets an original whose file is gone. The jobs that used it keep their results.
///
/// # Errors
/// The database's.
pub fn forget(conn: &mut Connection, id: i64) -> rusqlite::Result<()> {
    let tx = conn.transaction()?;
    tx.execute("DELETE FROM job_instance WHERE instance_id = ?1", [id])?;
    tx.execute("DELETE FROM instances WHERE id = ?1", [id])?;
    tx.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::store::{Store, queue};

    #[test]
    fn the_wait_counts_from_the_first_object_that_no_job_has() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Clock::System).unwrap();
        store
            .with_conn(|c| {
                for (id, at) in [(1, 100), (2, 200), (3, 900), (4, 950)] {
                    c.execute(
                        "INSERT INTO instances VALUES (?1, '1.' || ?1, 'c', 's', 't', 'h', 'p', 1, 'AE', 'x', ?2, 7, 0)",
                        (id, at),
                    )?;
                }
                let of = |c: &Connection| series(c, false).map(|all| (all[0].first_ms, all[0].fresh_ms, all[0].pending));
                assert_eq!(of(c)?, (100, 100, 4));
                // Two slices came late: what they wait for began with the first of them.
                queue::open_job(c, "s", &[1, 2], "quiet", 300, 200)?;
                assert_eq!(of(c)?, (100, 900, 2));
                queue::open_job(c, "s", &[1, 2, 3, 4], "late", 990, 950)?;
                assert_eq!(of(c)?, (100, 100, 0));
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn retention_does_not_read_the_whole_outbox_for_every_original() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Clock::manual(1)).unwrap();
        let plan: Vec<String> = store
            .with_conn(|c| {
                c.prepare(&format!("EXPLAIN QUERY PLAN {}", removable_sql()))?
                    .query_map([0, 1], |r| r.get("detail"))?
                    .collect()
            })
            .unwrap();
        assert!(plan.iter().any(|p| p.contains("SEARCH o ") && p.contains("outbox_by_job")), "{plan:#?}");
        assert!(
            !plan.iter().any(|p| p.contains("SCAN o") || p.contains("SCAN j") || p.contains("SCAN r")),
            "{plan:#?}"
        );
    }

    fn row(id: i64, sop: &str, flags: i64) -> Instance {
        Instance {
            id,
            sop_instance_uid: sop.into(),
            sop_class_uid: "c".into(),
            series_uid: "s".into(),
            study_uid: "t".into(),
            sha256: format!("h{id}"),
            path: format!("p{id}"),
            size: 1,
            calling_ae: "AE".into(),
            transfer_syntax: "x".into(),
            received_ms: id,
            association_id: 7,
            flags,
        }
    }

    #[test]
    fn of_copies_the_first_that_is_there_is_used() {
        let rows = [
            row(1, "1.1", CONFLICT),
            row(2, "1.2", CONFLICT | MISSING),
            row(3, "1.1", CONFLICT),
            row(4, "1.2", CONFLICT),
            row(5, "1.3", 0),
            row(6, "1.4", MISSING),
        ];
        let ids: Vec<i64> = used(&rows).iter().map(|r| r.id).collect();
        assert_eq!(ids, [1, 4, 5]);
        assert_eq!(copies(&rows), 1);
    }

    #[test]
    fn what_led_to_no_result_gives_way_to_what_came_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Clock::System).unwrap();
        store
            .with_conn(|c| {
                let arrives = |c: &Connection, id: i64, sop: &str| insert(c, &row(id, sop, 0));
                let ids = |c: &Connection| -> rusqlite::Result<Vec<i64>> {
                    Ok(used(&of_series(c, "s")?).iter().map(|r| r.id).collect())
                };
                let end = |c: &Connection, fruitless: bool| set_fruitless(c, &used(&of_series(c, "s")?), fruitless);
                for (id, sop) in [(1, "1.1"), (2, "1.2")] {
                    arrives(c, id, sop)?;
                }
                queue::open_job(c, "s", &[1, 2], "quiet", 0, 0)?.unwrap();
                end(c, true)?;
                assert_eq!(ids(c)?, [1, 2], "they are all there is");
                assert!(!gave_way(&of_series(c, "s")?));
                // One comes again: it is used, and still nothing comes of it, because of the other.
                arrives(c, 3, "1.1")?;
                assert_eq!(ids(c)?, [2, 3]);
                let rows = of_series(c, "s")?;
                assert!(gave_way(&rows) && !queue::join_job(c, "s", &rows)?, "it takes a further generation");
                end(c, true)?;
                // Then the other: the good one of the first pair is not forgotten.
                arrives(c, 4, "1.2")?;
                assert_eq!(ids(c)?, [3, 4]);
                queue::open_job(c, "s", &[1, 2, 3, 4], "quiet", 0, 0)?.unwrap();
                end(c, false)?;
                // What has led to a result stays, whatever comes.
                arrives(c, 5, "1.1")?;
                assert_eq!(ids(c)?, [3, 4]);
                let rows = of_series(c, "s")?;
                assert!(queue::join_job(c, "s", &rows)?);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn copies_alone_join_the_generation_that_uses_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Clock::System).unwrap();
        store
            .with_conn(|c| {
                let arrives = |c: &Connection, id: i64, sop: &str| insert(c, &row(id, sop, 0));
                arrives(c, 1, "1.1")?;
                arrives(c, 2, "1.2")?;
                let rows = of_series(c, "s")?;
                assert!(!queue::join_job(c, "s", &rows)?, "there is no generation yet");
                let job = queue::open_job(c, "s", &[1, 2], "quiet", 10, 2)?.unwrap();
                assert_eq!(arrives(c, 3, "1.2")?, Inserted::Conflict(3));
                let rows = of_series(c, "s")?;
                assert!(queue::join_job(c, "s", &rows)?);
                assert_eq!((of_job(c, job.id)?.len(), series(c, true)?.len()), (3, 0));
                // A slice that nobody had yet is another matter.
                arrives(c, 4, "1.3")?;
                let rows = of_series(c, "s")?;
                assert!(!queue::join_job(c, "s", &rows)?);
                // And so is a copy of what was lost.
                queue::open_job(c, "s", &[1, 2, 3, 4], "late", 20, 4)?;
                c.execute("UPDATE instances SET flags = flags | ?1 WHERE id = 1", [MISSING])?;
                arrives(c, 5, "1.1")?;
                let rows = of_series(c, "s")?;
                assert!(!queue::join_job(c, "s", &rows)?);
                Ok(())
            })
            .unwrap();
    }
}
