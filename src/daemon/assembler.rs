//! Watches what arrives and opens a job once a series' evidence is enough.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::Receiver;

use super::Shared;
use crate::dicom::read::{InstanceHeader, read_header};
use crate::series::completion::{Arrivals, Decision, Timing, decide};
use crate::store::instances::{self, Instance};
use crate::store::{Received, StoreError, queue};

/// Longest sleep between looks at the database, milliseconds.
const LOOK_MS: i64 = 1_000;
/// Longest that a look may take before the task counts as hung.
const SILENCE: Duration = Duration::from_secs(120);
/// Headers kept in memory while their series are open.
const MAX_CACHED: usize = 20_000;

/// What is remembered between looks.
#[derive(Default)]
struct Memory {
    /// Associations that ended in order. One that broke never promises that all was sent.
    released: HashSet<i64>,
    headers: HashMap<i64, Option<InstanceHeader>>,
    /// Series that need no look before this time, by UID, with the newest arrival that this was decided for.
    until: HashMap<String, (i64, i64)>,
}

pub(super) fn run(shared: &Shared, mut events: Receiver<Received>, runtime: &Handle) {
    let mut memory = Memory::default();
    let beat = shared.pulse.watch("assemble", SILENCE);
    while !shared.stopping() {
        beat.beat();
        let wait = match look(shared, &mut memory) {
            Ok(next) => (next - shared.clock.now_ms()).clamp(20, LOOK_MS),
            Err(e) => {
                log::error!("series cannot be looked at: {e}");
                LOOK_MS
            }
        };
        let wait = Duration::from_millis(wait.unsigned_abs());
        // Take everything that is there, so that a burst is looked at once.
        match runtime.block_on(async { tokio::time::timeout(wait, events.recv()).await }) {
            Ok(Some(event)) => {
                note(&mut memory, event);
                while let Ok(event) = events.try_recv() {
                    note(&mut memory, event);
                }
            }
            Ok(None) => std::thread::sleep(wait),
            Err(_) => {}
        }
    }
}

fn note(memory: &mut Memory, event: Received) {
    match event {
        Received::AssociationEnded { association_id, released: true, .. } => {
            memory.released.insert(association_id);
            // Whoever waited for this may be complete now.
            memory.until.clear();
        }
        Received::Lagged => memory.until.clear(),
        _ => {}
    }
}

/// Looks at every series with instances that no job has; returns when to look again.
fn look(shared: &Shared, memory: &mut Memory) -> Result<i64, StoreError> {
    let now = shared.clock.now_ms();
    let mut next = now + LOOK_MS;
    let open = shared.store.with_conn(|c| instances::series(c, true))?;
    if open.is_empty() {
        memory.headers.clear();
        memory.until.clear();
        return Ok(next);
    }
    for series in open {
        if let Some((until, last)) = memory.until.get(&series.series_uid)
            && *last == series.last_ms
            && now < *until
        {
            next = next.min(*until);
            continue;
        }
        let rows = shared.store.with_conn(|c| instances::of_series(c, &series.series_uid))?;
        match ready(shared, memory, &series.calling_ae, &rows, series.fresh_ms, now) {
            Decision::Complete(reason) => {
                let ids: Vec<i64> = rows.iter().map(|r| r.id).collect();
                let last = rows.iter().map(|r| r.received_ms).max().unwrap_or(now);
                // A series that was only sent again, in another transfer syntax or with another header, has its result.
                let job = shared.store.with_conn(|c| {
                    if queue::join_job(c, &series.series_uid, &rows)? {
                        log::info!("series {}: objects came again, none of them is new", series.series_uid);
                        return Ok(None);
                    }
                    queue::open_job(c, &series.series_uid, &ids, reason.word(), shared.clock.now_ms(), last)
                })?;
                if let Some(job) = job {
                    log::info!(
                        "series {} complete with {} objects ({}): job {}, generation {}",
                        series.series_uid,
                        ids.len(),
                        reason.word(),
                        job.id,
                        job.generation
                    );
                }
                for id in ids {
                    memory.headers.remove(&id);
                }
                memory.until.remove(&series.series_uid);
                shared.jobs.raise();
            }
            Decision::Wait { until_ms } => {
                next = next.min(until_ms);
                memory.until.insert(series.series_uid, (until_ms, series.last_ms));
            }
        }
    }
    Ok(next)
}

/// Decides on a series from its objects; `fresh_ms` is the arrival of the first that no job has.
fn ready(
    shared: &Shared,
    memory: &mut Memory,
    calling_ae: &str,
    rows: &[Instance],
    fresh_ms: i64,
    now: i64,
) -> Decision {
    if memory.headers.len() > MAX_CACHED {
        memory.headers.clear();
    }
    let mut headers = Vec::with_capacity(rows.len());
    // What led to no result is no evidence that what comes again is whole.
    for row in rows.iter().filter(|r| r.flags & instances::FRUITLESS == 0) {
        let header = memory.headers.entry(row.id).or_insert_with(|| read_header(&row.file(shared.store.dir())).ok());
        // What cannot be read is judged by the job; here only silence can complete such a series.
        headers.extend(header.clone());
    }
    let associations: HashSet<i64> = rows.iter().map(|r| r.association_id).collect();
    let open = associations.iter().filter(|a| !memory.released.contains(a)).count();
    let arrivals = Arrivals {
        // Of this generation: a late slice must not find its waiting time over because its series began long ago.
        first_ms: fresh_ms,
        last_ms: rows.iter().map(|r| r.received_ms).max().unwrap_or(now),
        associations: associations.len(),
        open,
    };
    let own = shared.config.modality.iter().find(|m| m.ae_title == calling_ae).and_then(|m| m.quiet_seconds);
    let timing = Timing::of(&shared.config.series, own);
    decide(&headers, &arrivals, &timing, now)
}
