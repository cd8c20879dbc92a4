//! Adapter bundles on this box: one row each, every step of its life, the cases it was tried on, and what served when.
//!
//! A row changes by [`advance`] alone, which holds the step against the state machine within the transaction that writes it.
//! Files lie in `bundles/` of the state directory. Order of writes: a file is whole and synced before the row that names it; it
//! is removed after the row that no longer names it. A crash between leaves a file without a row, which [`sweep`] removes.

mod cases;
mod serving;
mod state;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::db::io;

pub use cases::{Case, Side, Stage, StructureDice, cases, record_case, untried};
pub use serving::{Serving, confirm, previous, serve, serving, servings};
pub use state::{EVENTS, Event, Illegal, MAX_ATTEMPTS, State};

/// Folder of the bundles' files in the state directory.
pub const FOLDER: &str = "bundles";
/// Names of files being received.
pub const PART: &str = ".part";

/// Tables of this module, one migration.
pub const MIGRATION: &str = "
CREATE TABLE bundle (
    id INTEGER PRIMARY KEY,
    sha256 TEXT NOT NULL,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    source TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('received','verified','staged','parity-checked','shadow','probation','committed',
        'rolled-back','refused')),
    attempts INTEGER NOT NULL DEFAULT 0,
    cases INTEGER NOT NULL DEFAULT 0,
    ever_committed INTEGER NOT NULL DEFAULT 0,
    name TEXT NOT NULL DEFAULT '',
    version INTEGER NOT NULL DEFAULT 0,
    adapter_sha256 TEXT NOT NULL DEFAULT '',
    identity TEXT NOT NULL DEFAULT '',
    signer TEXT NOT NULL DEFAULT '',
    code TEXT NOT NULL DEFAULT '',
    sentence TEXT NOT NULL DEFAULT '',
    remedy TEXT NOT NULL DEFAULT '',
    received_ms INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    evidence TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE INDEX bundle_state ON bundle (state);
CREATE TABLE bundle_step (
    id INTEGER PRIMARY KEY,
    bundle_id INTEGER NOT NULL REFERENCES bundle (id),
    at_ms INTEGER NOT NULL,
    state TEXT NOT NULL,
    sentence TEXT NOT NULL
) STRICT;
CREATE INDEX bundle_step_of ON bundle_step (bundle_id);
CREATE TABLE bundle_case (
    bundle_id INTEGER NOT NULL REFERENCES bundle (id),
    stage TEXT NOT NULL CHECK (stage IN ('shadow','probation')),
    job_id INTEGER NOT NULL REFERENCES job (id),
    at_ms INTEGER NOT NULL,
    counts INTEGER NOT NULL,
    problem TEXT NOT NULL,
    score REAL,
    verdict TEXT NOT NULL,
    seconds REAL,
    active_score REAL,
    active_verdict TEXT NOT NULL,
    active_seconds REAL,
    dice TEXT NOT NULL,
    PRIMARY KEY (bundle_id, stage, job_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE serving (
    id INTEGER PRIMARY KEY,
    bundle_id INTEGER REFERENCES bundle (id),
    adapter TEXT NOT NULL,
    adapter_sha256 TEXT NOT NULL,
    signer TEXT NOT NULL,
    since_ms INTEGER NOT NULL,
    reason TEXT NOT NULL,
    taken_ms INTEGER
) STRICT;
";

/// A bundle's row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bundle {
    /// Row id.
    pub id: i64,
    /// sha256 of the bundle's file, hex.
    pub sha256: String,
    /// Its file, relative to the state directory; empty once it was removed.
    pub path: String,
    /// Bytes.
    pub size: i64,
    /// The name of the file that came, without its folder.
    pub source: String,
    /// Where it stands.
    #[serde(flatten)]
    pub state: State,
    /// Name of its line of releases; empty until verified.
    pub name: String,
    /// Its version in that line; 0 until verified.
    pub version: u32,
    /// sha256 of the adapter itself, hex; empty until verified.
    pub adapter_sha256: String,
    /// sha256 of what was signed, hex; empty until verified.
    pub identity: String,
    /// Whose signatures were accepted.
    pub signer: String,
    /// Stable code of a refusal or a roll-back.
    pub code: String,
    /// It in words.
    pub sentence: String,
    /// What to do about it.
    pub remedy: String,
    /// Arrival, Unix milliseconds.
    pub received_ms: i64,
    /// Its last step, Unix milliseconds.
    pub changed_ms: i64,
    /// What the bundle and its parity check say of it, JSON without patient data.
    pub evidence: String,
}

impl Bundle {
    /// `thigh 3`: name and version; the file's name while they are not known.
    pub fn title(&self) -> String {
        if self.name.is_empty() { self.source.clone() } else { format!("{} {}", self.name, self.version) }
    }

    /// The command that lets it serve again.
    pub fn rollback(&self) -> String {
        format!("scanside adapters rollback {}:{}", self.name, self.version)
    }

    /// Its file.
    pub fn file(&self, state_dir: &Path) -> PathBuf {
        state_dir.join(&self.path)
    }
}

fn bundle(row: &Row<'_>) -> rusqlite::Result<Bundle> {
    let word: String = row.get("state")?;
    let state = State::of(&word, row.get("attempts")?, row.get("cases")?, row.get::<_, i64>("ever_committed")? != 0);
    Ok(Bundle {
        id: row.get("id")?,
        sha256: row.get("sha256")?,
        path: row.get("path")?,
        size: row.get("size")?,
        source: row.get("source")?,
        // The table's own check leaves no other word; a row that nobody can read never serves.
        state: state.unwrap_or(State::Refused),
        name: row.get("name")?,
        version: row.get("version")?,
        adapter_sha256: row.get("adapter_sha256")?,
        identity: row.get("identity")?,
        signer: row.get("signer")?,
        code: row.get("code")?,
        sentence: row.get("sentence")?,
        remedy: row.get("remedy")?,
        received_ms: row.get("received_ms")?,
        changed_ms: row.get("changed_ms")?,
        evidence: row.get("evidence")?,
    })
}

/// What became of a file that was handed over.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrival {
    /// It has a row of its own now.
    New(Bundle),
    /// The same bytes are on their way, or were committed here, already.
    Known(Bundle),
}

/// Notes a bundle whose file is whole and synced at `path`.
///
/// # Errors
/// The database's.
pub fn receive(
    conn: &mut Connection,
    sha256: &str,
    path: &str,
    size: u64,
    source: &str,
    now_ms: i64,
) -> rusqlite::Result<Arrival> {
    let tx = conn.transaction()?;
    if let Some(known) = of_file(&tx, sha256)?.filter(|b| b.state.under_way()) {
        return Ok(Arrival::Known(known));
    }
    tx.execute(
        "INSERT INTO bundle (sha256, path, size, source, state, received_ms, changed_ms)
         VALUES (?1, ?2, ?3, ?4, 'received', ?5, ?5)",
        params![sha256, path, i64::try_from(size).unwrap_or(i64::MAX), source, now_ms],
    )?;
    let id = tx.last_insert_rowid();
    step(&tx, id, now_ms, "received", "")?;
    let made = tx.query_row("SELECT * FROM bundle WHERE id = ?1", [id], bundle)?;
    tx.commit()?;
    Ok(Arrival::New(made))
}

fn step(tx: &Transaction<'_>, id: i64, now_ms: i64, state: &str, sentence: &str) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT INTO bundle_step (bundle_id, at_ms, state, sentence) VALUES (?1, ?2, ?3, ?4)",
        params![id, now_ms, state, sentence],
    )?;
    Ok(())
}

/// The newest row of a file's bytes.
///
/// # Errors
/// The database's.
pub fn of_file(conn: &Connection, sha256: &str) -> rusqlite::Result<Option<Bundle>> {
    conn.query_row("SELECT * FROM bundle WHERE sha256 = ?1 ORDER BY id DESC LIMIT 1", [sha256], bundle).optional()
}

/// The newest row of a file's bytes that was committed here, whether it was taken back since or not.
///
/// # Errors
/// The database's.
pub fn committed_of_file(conn: &Connection, sha256: &str) -> rusqlite::Result<Option<Bundle>> {
    conn.query_row(
        "SELECT * FROM bundle WHERE sha256 = ?1 AND ever_committed = 1 AND state IN ('committed', 'rolled-back')
         ORDER BY id DESC LIMIT 1",
        [sha256],
        bundle,
    )
    .optional()
}

/// One bundle.
///
/// # Errors
/// The database's.
pub fn get(conn: &Connection, id: i64) -> rusqlite::Result<Option<Bundle>> {
    conn.query_row("SELECT * FROM bundle WHERE id = ?1", [id], bundle).optional()
}

/// The bundle that is to serve; none where the configuration's adapter is, or in a state directory from before there were bundles.
///
/// # Errors
/// The database's.
pub fn serving_bundle(conn: &Connection) -> rusqlite::Result<Option<Bundle>> {
    if !exist(conn)? {
        return Ok(None);
    }
    let id = serving(conn)?.and_then(|s| s.bundle_id);
    Ok(id.map(|id| get(conn, id)).transpose()?.flatten().filter(|b| b.state.may_serve()))
}

/// The bundle on trial, from its staging on; none as for [`serving_bundle`].
///
/// # Errors
/// The database's.
pub fn candidate(conn: &Connection) -> rusqlite::Result<Option<Bundle>> {
    if !exist(conn)? {
        return Ok(None);
    }
    Ok(under_way(conn)?.into_iter().find(|b| b.state.is_candidate()))
}

/// Whether the database has these tables: not in a state directory of an earlier version, until the service has started once.
///
/// # Errors
/// The database's.
pub fn exist(conn: &Connection) -> rusqlite::Result<bool> {
    conn.query_row("SELECT count(*) FROM sqlite_master WHERE name = 'bundle'", [], |r| r.get::<_, i64>(0))
        .map(|n| n > 0)
}

/// Every bundle, newest first, at most `limit`.
///
/// # Errors
/// The database's.
pub fn list(conn: &Connection, limit: usize) -> rusqlite::Result<Vec<Bundle>> {
    conn.prepare("SELECT * FROM bundle ORDER BY id DESC LIMIT ?1")?.query_map([limit as i64], bundle)?.collect()
}

/// Bundles that have not come to an end, oldest first.
///
/// # Errors
/// The database's.
pub fn under_way(conn: &Connection) -> rusqlite::Result<Vec<Bundle>> {
    conn.prepare("SELECT * FROM bundle WHERE state NOT IN ('committed', 'rolled-back', 'refused') ORDER BY id")?
        .query_map([], bundle)?
        .collect()
}

/// A step in the life of a bundle: time, state that it led to, sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// The state's word.
    pub state: String,
    /// Why.
    pub sentence: String,
}

/// Every step of a bundle, oldest first.
///
/// # Errors
/// The database's.
pub fn steps(conn: &Connection, id: i64) -> rusqlite::Result<Vec<Step>> {
    conn.prepare("SELECT at_ms, state, sentence FROM bundle_step WHERE bundle_id = ?1 ORDER BY id")?
        .query_map([id], |r| Ok(Step { at_ms: r.get(0)?, state: r.get(1)?, sentence: r.get(2)? }))?
        .collect()
}

/// Why a step is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Why {
    /// Stable code; empty where nothing is wrong.
    pub code: String,
    /// In words.
    pub sentence: String,
    /// What to do; empty where nothing is wrong.
    pub remedy: String,
}

impl Why {
    /// A sentence without a fault.
    pub fn said(sentence: impl Into<String>) -> Why {
        Why { sentence: sentence.into(), ..Why::default() }
    }

    /// A fault.
    pub fn fault(code: &str, sentence: impl Into<String>, remedy: impl Into<String>) -> Why {
        Why { code: code.into(), sentence: sentence.into(), remedy: remedy.into() }
    }
}

/// Takes a bundle from the state it was seen in to the next, and writes the rows of `also`, in one transaction.
///
/// # Errors
/// The database's; within, [`Illegal`]: a step that does not exist, or somebody else moved the bundle. Nothing is written then.
pub fn advance(
    conn: &mut Connection,
    seen: &Bundle,
    event: Event,
    why: &Why,
    now_ms: i64,
    also: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<Result<State, Illegal>> {
    let tx = conn.transaction()?;
    let done = advance_within(&tx, seen, event, why, now_ms)?;
    if done.is_ok() {
        also(&tx)?;
        tx.commit()?;
    }
    Ok(done)
}

/// [`advance`] as a part of a larger transaction.
///
/// # Errors
/// As [`advance`].
pub fn advance_within(
    tx: &Transaction<'_>,
    seen: &Bundle,
    event: Event,
    why: &Why,
    now_ms: i64,
) -> rusqlite::Result<Result<State, Illegal>> {
    let found = tx.query_row("SELECT * FROM bundle WHERE id = ?1", [seen.id], bundle)?.state;
    if found != seen.state {
        return Ok(Err(Illegal::Moved(found)));
    }
    let next = match found.after(event) {
        Ok(next) => next,
        Err(illegal) => return Ok(Err(illegal)),
    };
    let (word, attempts, cases, committed) = next.columns();
    tx.execute(
        "UPDATE bundle SET state = ?2, attempts = ?3, cases = ?4, ever_committed = max(ever_committed, ?5), changed_ms = ?6,
         path = CASE WHEN ?2 = 'refused' THEN '' ELSE path END WHERE id = ?1",
        params![seen.id, word, attempts, cases, i64::from(committed), now_ms],
    )?;
    // An attempt or a case within a state leaves what was said of how it came there.
    if word != found.word() {
        tx.execute(
            "UPDATE bundle SET code = ?2, sentence = ?3, remedy = ?4 WHERE id = ?1",
            params![seen.id, why.code, why.sentence, why.remedy],
        )?;
        step(tx, seen.id, now_ms, word, &why.sentence)?;
    }
    Ok(Ok(next))
}

/// What verification learnt of a bundle.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Name of its line of releases.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// sha256 of the adapter, hex.
    pub adapter_sha256: String,
    /// sha256 of what was signed, hex.
    pub identity: String,
    /// Whose signatures were accepted.
    pub signer: String,
    /// JSON for people and the training host; no patient data.
    pub evidence: String,
}

/// Records what verification learnt; part of the transaction of its step.
///
/// # Errors
/// The database's.
pub fn set_facts(tx: &Transaction<'_>, id: i64, f: &Facts) -> rusqlite::Result<()> {
    tx.execute(
        "UPDATE bundle SET name = ?2, version = ?3, adapter_sha256 = ?4, identity = ?5, signer = ?6, evidence = ?7
         WHERE id = ?1",
        params![id, f.name, f.version, f.adapter_sha256, f.identity, f.signer, f.evidence],
    )?;
    Ok(())
}

/// Replaces what is known of a bundle beyond its columns.
///
/// # Errors
/// The database's.
pub fn set_evidence(tx: &Transaction<'_>, id: i64, evidence: &str) -> rusqlite::Result<()> {
    tx.execute("UPDATE bundle SET evidence = ?2 WHERE id = ?1", params![id, evidence])?;
    Ok(())
}

/// Bundles whose files may go: neither under way, nor serving, nor what went before it, nor among the `keep` that changed last.
///
/// # Errors
/// The database's.
pub fn prunable(conn: &Connection, keep: usize) -> rusqlite::Result<Vec<Bundle>> {
    let mut kept: BTreeSet<i64> = serving(conn)?.and_then(|s| s.bundle_id).into_iter().collect();
    kept.extend(previous(conn)?.and_then(|s| s.bundle_id));
    let ended: Vec<Bundle> = conn
        .prepare(
            "SELECT * FROM bundle WHERE state IN ('committed', 'rolled-back') AND path <> ''
                  ORDER BY changed_ms DESC, id DESC",
        )?
        .query_map([], bundle)?
        .collect::<rusqlite::Result<_>>()?;
    // Those that failed their probation never come back, so they take no place from those that may.
    let (back, failed): (Vec<_>, Vec<_>) =
        ended.into_iter().partition(|b| b.state != State::RolledBack { committed: false });
    let old = back.into_iter().skip(keep).chain(failed);
    Ok(old.filter(|b| !kept.contains(&b.id)).collect())
}

/// Says that a bundle's file is no longer kept.
///
/// # Errors
/// The database's.
pub fn forget_file(conn: &Connection, id: i64) -> rusqlite::Result<()> {
    conn.execute("UPDATE bundle SET path = '' WHERE id = ?1", [id])?;
    Ok(())
}

/// Says that the file of a bundle that was committed lies at `path` again. One that was no longer kept counts as changed now, so that it
/// is not the first to go.
///
/// # Errors
/// The database's.
pub fn keep_file(conn: &Connection, id: i64, path: &str, now_ms: i64) -> rusqlite::Result<()> {
    conn.execute(
        "UPDATE bundle SET path = ?2, changed_ms = ?3 WHERE id = ?1 AND path = ''",
        params![id, path, now_ms],
    )?;
    Ok(())
}

/// Files that rows name, relative to the state directory.
///
/// # Errors
/// The database's.
pub fn named_files(conn: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    conn.prepare("SELECT path FROM bundle WHERE path <> ''")?.query_map([], |r| r.get(0))?.collect()
}

/// Removes files that no row names: what a crash, or a stick pulled out, left behind. Only while nobody receives. Returns how many.
///
/// # Errors
/// The folder cannot be read, or a file cannot be removed.
pub fn sweep(named: &BTreeSet<String>, state_dir: &Path) -> Result<usize, StoreError> {
    let folder = state_dir.join(FOLDER);
    let mut removed = 0;
    for entry in std::fs::read_dir(&folder).map_err(io(&folder))? {
        let path = entry.map_err(io(&folder))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let ours = name.ends_with(PART) || name.ends_with(".bundle");
        if ours && !named.contains(&format!("{FOLDER}/{name}")) {
            std::fs::remove_file(&path).map_err(io(&path))?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests;
