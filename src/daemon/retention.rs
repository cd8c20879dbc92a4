//! Removes originals whose results were delivered and whose time has passed; nothing else is ever deleted. The daemon does it every
//! ten minutes; `scanside retention` does it on a box whose daemon is stopped.

use std::time::{Duration, Instant};

use super::Shared;
use crate::store::{Store, StoreError, instances};

const EVERY: Duration = Duration::from_secs(600);
/// Longest that a sweep may take before the task counts as hung.
const SILENCE: Duration = Duration::from_secs(600);

pub(super) fn run(shared: &Shared) {
    let mut last: Option<Instant> = None;
    let beat = shared.pulse.watch("retain", SILENCE);
    while !shared.stopping() {
        beat.beat();
        if last.is_none_or(|l| l.elapsed() >= EVERY) {
            match sweep(&shared.store, shared.config.storage.retention_hours) {
                Ok(0) => {}
                Ok(n) => {
                    log::info!("removed {n} originals whose results were delivered and whose retention has passed")
                }
                Err(e) => log::error!("originals cannot be removed: {e}"),
            }
            last = Some(Instant::now());
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// Originals looked at in one sweep.
const BATCH: usize = 500;

/// The latest end of a job, Unix milliseconds, that lets its originals go.
fn before_ms(store: &Store, retention_hours: u64) -> i64 {
    let keep_ms = i64::try_from(retention_hours.saturating_mul(3_600_000)).unwrap_or(i64::MAX);
    store.clock().now_ms().saturating_sub(keep_ms)
}

/// How many originals may go now, at most one sweep's worth.
///
/// # Errors
/// The database's.
pub fn may_go(store: &Store, retention_hours: u64) -> Result<usize, StoreError> {
    let before = before_ms(store, retention_hours);
    Ok(store.with_conn(|c| instances::removable(c, before, BATCH))?.len())
}

/// Removes what may go, at most 500 originals, and gives their number: first the file, then its row. A crash between leaves a row
/// without a file, which the next start reports; the other order would leave a file that the next start takes for one just received.
/// Two sweeps at once do not disturb each other.
///
/// # Errors
/// A file that cannot be removed; the database's.
pub fn sweep(store: &Store, retention_hours: u64) -> Result<usize, StoreError> {
    let before = before_ms(store, retention_hours);
    let old = store.with_conn(|c| instances::removable(c, before, BATCH))?;
    for (id, path) in &old {
        let file = store.dir().join(path);
        match std::fs::remove_file(&file) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(cause) => return Err(StoreError::Io { path: file, cause }),
        }
        store.with_conn(|c| instances::forget(c, *id))?;
    }
    Ok(old.len())
}
