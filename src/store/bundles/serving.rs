//! What serves, and what served when: the newest row is what every series must be segmented with.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

/// A span of time in which one adapter served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// Row id.
    pub id: i64,
    /// The bundle; none for the adapter that the configuration names.
    pub bundle_id: Option<i64>,
    /// Adapter name and version.
    pub adapter: String,
    /// sha256 of the adapter, hex.
    pub adapter_sha256: String,
    /// Whose signature it serves by; empty for the configuration's.
    pub signer: String,
    /// Since when it is to serve, Unix milliseconds.
    pub since_ms: i64,
    /// Why.
    pub reason: String,
    /// When the service took it, Unix milliseconds.
    pub taken_ms: Option<i64>,
}

fn row(r: &Row<'_>) -> rusqlite::Result<Serving> {
    Ok(Serving {
        id: r.get("id")?,
        bundle_id: r.get("bundle_id")?,
        adapter: r.get("adapter")?,
        adapter_sha256: r.get("adapter_sha256")?,
        signer: r.get("signer")?,
        since_ms: r.get("since_ms")?,
        reason: r.get("reason")?,
        taken_ms: r.get("taken_ms")?,
    })
}

/// What is to serve; none before the first start.
///
/// # Errors
/// The database's.
pub fn serving(conn: &Connection) -> rusqlite::Result<Option<Serving>> {
    conn.query_row("SELECT * FROM serving ORDER BY id DESC LIMIT 1", [], row).optional()
}

/// What served, newest first, at most `limit`.
///
/// # Errors
/// The database's.
pub fn servings(conn: &Connection, limit: usize) -> rusqlite::Result<Vec<Serving>> {
    conn.prepare("SELECT * FROM serving ORDER BY id DESC LIMIT ?1")?.query_map([limit as i64], row)?.collect()
}

/// What going back would serve: the newest adapter before the present one that may still serve. A bundle must be committed and
/// its file kept; the configuration's adapter may always serve.
///
/// # Errors
/// The database's.
pub fn previous(conn: &Connection) -> rusqlite::Result<Option<Serving>> {
    conn.query_row(
        "SELECT s.* FROM serving s LEFT JOIN bundle b ON b.id = s.bundle_id
         WHERE s.bundle_id IS NOT (SELECT bundle_id FROM serving ORDER BY id DESC LIMIT 1)
         AND (s.bundle_id IS NULL OR (b.state = 'committed' AND b.path <> '')) ORDER BY s.id DESC LIMIT 1",
        [],
        row,
    )
    .optional()
}

/// Sets what is to serve from now on.
///
/// # Errors
/// The database's.
pub fn serve(
    tx: &Transaction<'_>,
    bundle_id: Option<i64>,
    (adapter, adapter_sha256, signer): (&str, &str, &str),
    reason: &str,
    now_ms: i64,
) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT INTO serving (bundle_id, adapter, adapter_sha256, signer, since_ms, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![bundle_id, adapter, adapter_sha256, signer, now_ms, reason],
    )?;
    Ok(())
}

/// Says that the service took what is to serve, and which adapter that really is.
///
/// # Errors
/// The database's.
pub fn confirm(conn: &Connection, id: i64, (adapter, sha256): (&str, &str), now_ms: i64) -> rusqlite::Result<()> {
    conn.execute(
        "UPDATE serving SET taken_ms = ?2, adapter = ?3, adapter_sha256 = ?4 WHERE id = ?1 AND taken_ms IS NULL",
        params![id, now_ms, adapter, sha256],
    )?;
    Ok(())
}
