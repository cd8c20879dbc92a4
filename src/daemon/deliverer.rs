//! Sends the outbox to one archive, with back-off and without end.

use std::path::PathBuf;
use std::time::Duration;

use super::{Shared, archive_key};
use crate::dicom::net::scu::{ScuOptions, Sent, Target, send};
use crate::store::StoreError;
use crate::store::outbox::{self, Attempt, Delivery, back_off_ms};

/// Objects per association.
const BATCH: usize = 32;
/// Longest that a batch may take before the task counts as hung; every step of an association has a timeout of its own.
const SILENCE: Duration = Duration::from_secs(1800);
/// Longest sleep between looks at the outbox.
const LOOK: Duration = Duration::from_secs(1);

pub(super) fn run(shared: &Shared, index: usize) {
    let archive = &shared.config.archive[index];
    let key = archive_key(archive);
    let target = Target {
        ae_title: archive.ae_title.clone(),
        address: archive.address.clone(),
        calling_ae: shared.config.station.ae_title.clone(),
    };
    let beat = shared.pulse.watch(&format!("deliver to archive {}", index + 1), SILENCE);
    while !shared.stopping() {
        beat.beat();
        match round(shared, &key, &target) {
            Ok(0) => shared.deliveries[index].wait(LOOK),
            Ok(_) => {}
            Err(e) => {
                log::error!("the outbox cannot be read or written: {e}");
                shared.deliveries[index].wait(LOOK);
            }
        }
    }
}

/// One association's worth; returns how many were tried.
fn round(shared: &Shared, key: &str, target: &Target) -> Result<usize, StoreError> {
    let now = shared.clock.now_ms();
    let due: Vec<Delivery> = shared.store.with_conn(|c| outbox::due(c, key, now, BATCH))?;
    if due.is_empty() {
        return Ok(0);
    }
    let files: Vec<PathBuf> = due.iter().map(|d| shared.store.dir().join(&d.path)).collect();
    let outcomes = send(&files, target, &ScuOptions::default());
    let now = shared.clock.now_ms();
    for (d, outcome) in due.iter().zip(&outcomes) {
        let attempt = match &outcome.sent {
            Sent::Stored(status) => {
                log::info!(scanside_job = d.job_id; "{} of job {} is at {key} (status {status:04X})", d.kind, d.job_id);
                Attempt::Sent
            }
            Sent::Transient(why) => {
                let at = now + back_off_ms(d.attempts);
                log::warn!(
                    scanside_job = d.job_id;
                    "{} of job {} not delivered to {key}: {why}; again in {} s",
                    d.kind,
                    d.job_id,
                    (at - now) / 1000
                );
                Attempt::Retry(at, why.clone())
            }
            Sent::Permanent(why) => {
                log::error!(scanside_job = d.job_id; "{} of job {} refused by {key} for good: {why}", d.kind, d.job_id);
                Attempt::Failed(why.clone())
            }
        };
        shared.store.with_conn(|c| outbox::record_attempt(c, d.id, &attempt, now))?;
    }
    Ok(due.len())
}
