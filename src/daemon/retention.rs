//! Removes originals whose results were delivered and whose time has passed; nothing else is ever deleted.

use std::time::{Duration, Instant};

use super::Shared;
use crate::store::{StoreError, queue};

const EVERY: Duration = Duration::from_secs(600);
/// Longest that a sweep may take before the task counts as hung.
const SILENCE: Duration = Duration::from_secs(600);

pub(super) fn run(shared: &Shared) {
    let mut last: Option<Instant> = None;
    let beat = shared.pulse.watch("retain", SILENCE);
    while !shared.stopping() {
        beat.beat();
        if last.is_none_or(|l| l.elapsed() >= EVERY) {
            match sweep(shared) {
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

/// Removes what may go: first the file, then its row. A crash between leaves a row without a file, which the next start
/// reports; the other order would leave a file that the next start takes for one just received.
fn sweep(shared: &Shared) -> Result<usize, StoreError> {
    let keep_ms = i64::try_from(shared.config.storage.retention_hours.saturating_mul(3_600_000)).unwrap_or(i64::MAX);
    let before = shared.clock.now_ms().saturating_sub(keep_ms);
    let old = shared.store.with_conn(|c| queue::removable(c, before, 500))?;
    for (id, path) in &old {
        let file = shared.store.dir().join(path);
        match std::fs::remove_file(&file) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(cause) => return Err(StoreError::Io { path: file, cause }),
        }
        shared.store.with_conn(|c| queue::forget_instance(c, *id))?;
    }
    Ok(old.len())
}
