//! Opening the state directory: lock, identity, SQLite with migrations.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};

use super::{bundles, queue, review};
use crate::clock::Clock;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the directory.
    #[error(
        "the state directory {} is in use by another scanside; stop it, or name another storage.state_dir",
        .0.display()
    )]
    Locked(PathBuf),
    /// Directory and database do not belong together.
    #[error("the state directory {} and its database do not belong together: {problem}", dir.display())]
    Identity {
        /// The state directory.
        dir: PathBuf,
        /// What does not fit, and the remedy.
        problem: String,
    },
    /// A newer program wrote the database.
    #[error(
        "the database in {} has schema {found}, this program knows up to {known}; run the newer scanside",
        dir.display()
    )]
    Newer {
        /// The state directory.
        dir: PathBuf,
        /// Its schema number.
        found: i64,
        /// The newest schema this program knows.
        known: i64,
    },
    /// An older program wrote the database.
    #[error(
        "the database in {} has schema {found}, this program needs {known}; start `scanside serve` of this version once",
        dir.display()
    )]
    Older {
        /// The state directory.
        dir: PathBuf,
        /// Its schema number.
        found: i64,
        /// The schema this program needs.
        known: i64,
    },
    /// A file operation failed.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        cause: std::io::Error,
    },
    /// The database's own failure.
    #[error("database: {0}")]
    Sql(#[from] rusqlite::Error),
}

pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError + '_ {
    move |cause| StoreError::Io { path: path.to_path_buf(), cause }
}

/// Schema changes in order; the database's `user_version` counts those applied. Never edit one that was released.
const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE instances (
    id INTEGER PRIMARY KEY,
    sop_instance_uid TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    series_uid TEXT NOT NULL,
    study_uid TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    calling_ae TEXT NOT NULL,
    transfer_syntax TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    association_id INTEGER NOT NULL,
    flags INTEGER NOT NULL DEFAULT 0,
    UNIQUE (sop_instance_uid, sha256)
) STRICT;
CREATE INDEX instances_by_series ON instances (series_uid);
",
    queue::MIGRATION,
    review::MIGRATION,
    bundles::MIGRATION,
    queue::OUTBOX_BY_JOB,
    queue::TROUBLES,
];

/// File of the database.
const DATABASE: &str = "scanside.db";

struct Inner {
    dir: PathBuf,
    clock: Clock,
    conn: Mutex<Connection>,
    /// Held as long as the store lives; `None` for a reader.
    _lock: Option<File>,
}

/// The state directory, opened. Cheap to clone; safe to use from several threads.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl Store {
    /// Opens, and creates where it is missing, the state directory for the one process that writes.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another process has it; [`StoreError::Identity`] where directory and database were
    /// not made together; [`StoreError::Newer`]; file and database errors.
    pub fn open(dir: &Path, clock: Clock) -> Result<Store, StoreError> {
        for sub in ["", "spool", "spool/incoming", "spool/objects", "spool/quarantine", bundles::FOLDER] {
            let path = dir.join(sub);
            std::fs::create_dir_all(&path).map_err(io(&path))?;
        }
        let lock_path = dir.join("lock");
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(dir.to_path_buf())),
            Err(TryLockError::Error(cause)) => return Err(StoreError::Io { path: lock_path, cause }),
        }
        let db_path = dir.join(DATABASE);
        let database_is_new = !db_path.exists();
        let mut conn = Connection::open(&db_path)?;
        prepare(&mut conn)?;
        migrate(&mut conn, dir)?;
        check_identity(&conn, dir, database_is_new)?;
        let inner = Inner { dir: dir.to_path_buf(), clock, conn: Mutex::new(conn), _lock: Some(lock) };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Whether a state directory has a database: it has none until it was opened once.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(DATABASE).exists()
    }

    /// Opens an existing state directory for reading, while another process may be writing.
    ///
    /// # Errors
    /// There is no database, or it cannot be read.
    pub fn open_read_only(dir: &Path, clock: Clock) -> Result<Store, StoreError> {
        let path = dir.join(DATABASE);
        std::fs::metadata(&path).map_err(io(&path))?;
        let conn = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        conn.busy_timeout(Duration::from_secs(10))?;
        let inner = Inner { dir: dir.to_path_buf(), clock, conn: Mutex::new(conn), _lock: None };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Opens an existing state directory to change a few rows beside the process that holds it: a person's decisions.
    ///
    /// # Errors
    /// There is no database, it is of another version, or it cannot be opened for writing.
    pub fn open_beside(dir: &Path, clock: Clock) -> Result<Store, StoreError> {
        let path = dir.join(DATABASE);
        std::fs::metadata(&path).map_err(io(&path))?;
        let mut conn = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        prepare(&mut conn)?;
        let found: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0))?;
        let known = MIGRATIONS.len() as i64;
        let dir = dir.to_path_buf();
        match found.cmp(&known) {
            std::cmp::Ordering::Less => return Err(StoreError::Older { dir, found, known }),
            std::cmp::Ordering::Greater => return Err(StoreError::Newer { dir, found, known }),
            std::cmp::Ordering::Equal => {}
        }
        Ok(Store { inner: Arc::new(Inner { dir, clock, conn: Mutex::new(conn), _lock: None }) })
    }

    /// Whether some process holds the state directory: the service, mostly.
    pub fn in_use(dir: &Path) -> bool {
        let lock = OpenOptions::new().write(true).open(dir.join("lock"));
        lock.is_ok_and(|l| matches!(l.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// The state directory.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The clock that stamps rows.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Runs `f` with the connection. One caller at a time: keep it short, and do not call it from within `f`.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn with_conn<T>(&self, f: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        Ok(f(&mut self.conn())?)
    }

    fn conn(&self) -> MutexGuard<'_, Connection> {
        // A transaction left open by a panic was rolled back when it was dropped: the connection is still sound.
        self.inner.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn prepare(conn: &mut Connection) -> rusqlite::Result<()> {
    conn.busy_timeout(Duration::from_secs(10))?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", "ON")?;
    // A person's decision is written beside the daemon: a transaction that reads first and writes then must wait for the
    // other one at its beginning, where waiting helps.
    conn.set_transaction_behavior(TransactionBehavior::Immediate);
    Ok(())
}

fn migrate(conn: &mut Connection, dir: &Path) -> Result<(), StoreError> {
    let found: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    let known = MIGRATIONS.len() as i64;
    if !(0..=known).contains(&found) {
        return Err(StoreError::Newer { dir: dir.to_path_buf(), found, known });
    }
    for (i, sql) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        let tx = conn.transaction()?;
        tx.execute_batch(sql)?;
        tx.pragma_update(None, "user_version", i as i64 + 1)?;
        tx.commit()?;
    }
    Ok(())
}

fn check_identity(conn: &Connection, dir: &Path, database_is_new: bool) -> Result<(), StoreError> {
    let path = dir.join("store-id");
    let in_database: Option<String> =
        conn.query_row("SELECT value FROM meta WHERE key = 'store-id'", [], |r| r.get(0)).optional()?;
    let in_directory = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text.trim().to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(cause) => return Err(StoreError::Io { path, cause }),
    };
    let refuse = |problem: &str| {
        // A refused directory is left as it was found.
        if database_is_new {
            for name in ["scanside.db", "scanside.db-wal", "scanside.db-shm"] {
                let _ = std::fs::remove_file(dir.join(name));
            }
        }
        Err(StoreError::Identity { dir: dir.to_path_buf(), problem: problem.to_string() })
    };
    match (in_directory, in_database) {
        (Some(a), Some(b)) if a == b => Ok(()),
        (Some(_), Some(_)) => refuse("their identities differ; was a disk swapped? Mount the right one"),
        (Some(_), None) if !spool_is_empty(dir)? => {
            refuse("the spool has objects and the database is missing or new; restore scanside.db, or move spool/ away")
        }
        (Some(id), None) => store_id_in_database(conn, &id),
        // Also the state after a crash between the row and the file, on the very first start.
        (None, Some(id)) if spool_is_empty(dir)? => write_durably(&path, &id),
        (None, Some(_)) => refuse("the file store-id is missing beside a filled spool; restore it from the backup"),
        (None, None) if !spool_is_empty(dir)? => {
            refuse("the spool has objects and no identity; move spool/ away, or restore scanside.db and store-id")
        }
        (None, None) => {
            let id = new_identity()?;
            store_id_in_database(conn, &id)?;
            write_durably(&path, &id)
        }
    }
}

fn store_id_in_database(conn: &Connection, id: &str) -> Result<(), StoreError> {
    conn.execute("INSERT INTO meta (key, value) VALUES ('store-id', ?1)", [id])?;
    Ok(())
}

fn spool_is_empty(dir: &Path) -> Result<bool, StoreError> {
    let objects = dir.join("spool/objects");
    Ok(std::fs::read_dir(&objects).map_err(io(&objects))?.next().is_none())
}

/// An identity must differ between boxes that start from the same image, so it comes from the system, not from a seed.
fn new_identity() -> Result<String, StoreError> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0u8; 16];
    File::open(source).and_then(|mut f| f.read_exact(&mut bytes)).map_err(io(source))?;
    Ok(hex::encode(bytes))
}

fn write_durably(path: &Path, text: &str) -> Result<(), StoreError> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(io(path))
}

/// Remembers a value under a key, in place of an earlier one.
///
/// # Errors
/// The database's.
pub fn set_meta(conn: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    conn.execute(sql, [key, value]).map(|_| ())
}

/// What is remembered under a key.
///
/// # Errors
/// The database's.
pub fn meta(conn: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    conn.query_row("SELECT value FROM meta WHERE key = ?1", [key], |r| r.get(0)).optional()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Result<Store, StoreError> {
        Store::open(dir, Clock::manual(1_000))
    }

    #[test]
    fn a_second_process_is_refused_and_a_reader_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        let message = open(dir.path()).err().unwrap().to_string();
        assert!(message.contains("in use by another scanside"), "{message}");
        let reader = Store::open_read_only(dir.path(), Clock::System).unwrap();
        let n: i64 = reader.with_conn(|c| c.query_row("SELECT count(*) FROM instances", [], |r| r.get(0))).unwrap();
        assert_eq!(n, 0);
        drop(first);
        assert!(open(dir.path()).is_ok());
    }

    #[test]
    fn a_decision_is_written_beside_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Store::open_beside(dir.path(), Clock::System).is_err());
        let daemon = open(dir.path()).unwrap();
        let person = Store::open_beside(dir.path(), Clock::System).unwrap();
        person.with_conn(|c| c.execute("INSERT INTO meta (key, value) VALUES ('a', 'b')", [])).unwrap();
        let seen: String =
            daemon.with_conn(|c| c.query_row("SELECT value FROM meta WHERE key = 'a'", [], |r| r.get(0))).unwrap();
        assert_eq!(seen, "b");
        daemon.with_conn(|c| c.pragma_update(None, "user_version", 1)).unwrap();
        assert!(matches!(Store::open_beside(dir.path(), Clock::System), Err(StoreError::Older { found: 1, .. })));
    }

    #[test]
    fn a_swapped_database_is_refused() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        drop(open(a.path()).unwrap());
        drop(open(b.path()).unwrap());
        std::fs::copy(b.path().join("scanside.db"), a.path().join("scanside.db")).unwrap();
        let e = open(a.path()).err().unwrap();
        assert!(matches!(&e, StoreError::Identity { .. }) && e.to_string().contains("differ"), "{e}");
    }

    #[test]
    fn a_lost_database_beside_objects_is_refused_and_nothing_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()).unwrap());
        std::fs::write(dir.path().join("spool/objects/x.dcm"), b"x").unwrap();
        std::fs::remove_file(dir.path().join("scanside.db")).unwrap();
        assert!(matches!(open(dir.path()), Err(StoreError::Identity { .. })));
        assert!(matches!(open(dir.path()), Err(StoreError::Identity { .. })), "refused again");
        assert!(dir.path().join("spool/objects/x.dcm").exists());
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        store.with_conn(|c| c.pragma_update(None, "user_version", 999)).unwrap();
        drop(store);
        assert!(matches!(open(dir.path()), Err(StoreError::Newer { found: 999, .. })));
    }
}
