//! Group commit: rows of many objects in one transaction, while their files are being synced.
//!
//! Three things must be durable before an object is acknowledged: its bytes, its directory entry, its row. They are
//! made so at the same time instead of one after the other. After a power cut some may be there without the rest; such
//! an object was never acknowledged. `synced-upto` in the database names the last row whose batch was seen whole, so that
//! the start-up sweep knows which rows to distrust.

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::mpsc::error::TrySendError;

use super::db::{Store, StoreError};
use super::instances::{self, Inserted, Instance};
use super::spool::Received;

/// Objects that one transaction takes at most.
const MAX_BATCH: usize = 64;

/// An object whose file is in place and whose sync is under way.
pub(super) struct Pending {
    pub instance: Instance,
    /// Tells whether the file was synced.
    pub synced: Receiver<std::io::Result<()>>,
    /// Gets the outcome once everything is durable.
    pub done: SyncSender<Result<Inserted, String>>,
}

/// Sends what was received to the assembler, without ever waiting for it.
#[derive(Clone, Default)]
pub(super) struct Events(Arc<Mutex<Option<Subscriber>>>);

struct Subscriber {
    sender: tokio::sync::mpsc::Sender<Received>,
    lagging: bool,
}

impl Events {
    pub fn subscribe(&self, capacity: usize) -> tokio::sync::mpsc::Receiver<Received> {
        let (sender, receiver) = tokio::sync::mpsc::channel(capacity.max(2));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Subscriber { sender, lagging: false });
        receiver
    }

    pub fn send(&self, event: Received) {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Subscriber { sender, lagging }) = guard.as_mut() else { return };
        // What does not fit is replaced by one call to look into the database, as soon as there is room again.
        if *lagging {
            match sender.try_send(Received::Lagged) {
                Ok(()) => *lagging = false,
                Err(_) => return,
            }
        }
        match sender.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => *lagging = true,
            Err(TrySendError::Closed(_)) => *guard = None,
        }
    }
}

/// Commits batches until every sender is gone.
pub(super) fn run(store: &Store, objects: &PathBuf, queue: &Receiver<Pending>, events: &Events) {
    let mut synced_upto = 0;
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        while batch.len() < MAX_BATCH {
            match queue.try_recv() {
                Ok(next) => batch.push(next),
                Err(_) => break,
            }
        }
        let (rows, directory) = std::thread::scope(|scope| {
            // A rename is only there for good once its directory is synced.
            let directory = scope.spawn(|| File::open(objects).and_then(|d| d.sync_all()));
            let rows = store.with_conn(|conn| insert(conn, &batch, synced_upto));
            (rows, directory.join().unwrap_or_else(|_| Err(std::io::Error::other("the directory sync failed"))))
        });
        settle(store, batch, rows, directory, events, &mut synced_upto);
    }
}

fn insert(conn: &mut Connection, batch: &[Pending], synced_upto: i64) -> rusqlite::Result<Vec<Inserted>> {
    let tx = conn.transaction()?;
    let inserted = batch.iter().map(|p| instances::insert(&tx, &p.instance)).collect::<rusqlite::Result<Vec<_>>>()?;
    if synced_upto > 0 {
        set_synced_upto(&tx, synced_upto)?;
    }
    tx.commit()?;
    Ok(inserted)
}

/// Records that every row up to this one has its file.
pub(super) fn set_synced_upto(conn: &Connection, id: i64) -> rusqlite::Result<()> {
    conn.prepare(
        "INSERT INTO meta (key, value) VALUES ('synced-upto', ?1) ON CONFLICT (key) DO UPDATE SET value = ?1",
    )?
    .execute([id.to_string()])?;
    Ok(())
}

/// Waits for the files' syncs and answers everybody.
fn settle(
    store: &Store,
    batch: Vec<Pending>,
    rows: Result<Vec<Inserted>, StoreError>,
    directory: std::io::Result<()>,
    events: &Events,
    synced_upto: &mut i64,
) {
    let failed = match (&rows, &directory) {
        (Err(e), _) => Some(e.to_string()),
        (_, Err(e)) => Some(format!("spool directory: {e}")),
        _ => None,
    };
    let rows = rows.unwrap_or_default();
    let mut taken_back = Vec::new();
    for (i, pending) in batch.into_iter().enumerate() {
        let synced = match pending.synced.recv() {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err("the file's sync was not finished".to_string()),
        };
        let problem = failed.clone().or(synced.err());
        let outcome = match (problem, rows.get(i)) {
            // Its row was that of the copy before it in this batch, and went with it.
            (None, Some(Inserted::Duplicate(id))) if taken_back.contains(id) => {
                Err("the same object, received at the same time, could not be synced".to_string())
            }
            (None, Some(row)) => Ok(*row),
            (Some(e), _) => {
                if let Some(Inserted::New(id) | Inserted::Conflict(id)) = rows.get(i) {
                    taken_back.push(*id);
                    // The row must not outlive the refusal. Should this fail too, the sweep distrusts the row.
                    let removed = store.with_conn(|c| c.execute("DELETE FROM instances WHERE id = ?1", [*id]));
                    if let Err(e) = removed {
                        log::error!("row {id} of a refused object could not be removed: {e}");
                    }
                }
                Err(e)
            }
            (None, None) => Err("no row was written".to_string()),
        };
        if let Ok(Inserted::New(id) | Inserted::Conflict(id)) = outcome {
            *synced_upto = (*synced_upto).max(id);
        }
        // Told before answered: whoever has the answer may rely on the event, and the end of an association
        // never comes before its last object.
        if let Ok(row) = outcome {
            let i = &pending.instance;
            let (id, duplicate) = match row {
                Inserted::New(id) | Inserted::Conflict(id) => (id, false),
                Inserted::Duplicate(id) => (id, true),
            };
            events.send(Received::Stored {
                instance_id: id,
                series_uid: i.series_uid.clone(),
                calling_ae: i.calling_ae.clone(),
                association_id: i.association_id,
                received_ms: i.received_ms,
                duplicate,
            });
        }
        let _ = pending.done.send(outcome);
    }
}

/// Starts the committer; it ends when the returned sender and its clones are gone.
pub(super) fn spawn(store: Store, objects: PathBuf, events: Events) -> std::io::Result<SyncSender<Pending>> {
    let (sender, queue) = std::sync::mpsc::sync_channel(MAX_BATCH);
    std::thread::Builder::new().name("commit".into()).spawn(move || run(&store, &objects, &queue, &events))?;
    Ok(sender)
}

/// A channel for one value.
pub(super) fn oneshot<T>() -> (SyncSender<T>, Receiver<T>) {
    std::sync::mpsc::sync_channel(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_copy_is_not_acknowledged_on_a_row_that_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Clock::manual(1)).unwrap();
        let (mut batch, mut answers) = (Vec::new(), Vec::new());
        // The same object twice at the same time; the first one's sync fails.
        for synced in [Err(std::io::Error::other("EIO")), Ok(())] {
            let (tell, wait_synced) = oneshot();
            let (done, answer) = oneshot();
            tell.send(synced).unwrap();
            let instance = Instance {
                id: 0,
                sop_instance_uid: "1.2.3".into(),
                sop_class_uid: "1.2.840.10008.5.1.4.1.1.4".into(),
                series_uid: "1.2".into(),
                study_uid: "1".into(),
                sha256: "a".into(),
                path: "spool/objects/a.dcm".into(),
                size: 1,
                calling_ae: "MR1".into(),
                transfer_syntax: "1.2.840.10008.1.2.1".into(),
                received_ms: 1,
                association_id: 1,
                flags: 0,
            };
            batch.push(Pending { instance, synced: wait_synced, done });
            answers.push(answer);
        }
        let rows = store.with_conn(|c| insert(c, &batch, 0));
        settle(&store, batch, rows, Ok(()), &Events::default(), &mut 0);
        assert!(answers.iter().all(|a| a.recv().unwrap().is_err()));
        assert!(store.with_conn(|c| instances::of_series(c, "1.2")).unwrap().is_empty());
    }
}
