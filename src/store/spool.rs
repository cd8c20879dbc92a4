//! Received objects as files: written as they stream in, durable before they are acknowledged.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use rustix::fs::{CWD, RenameFlags, renameat_with, statvfs};
use sha2::{Digest, Sha256};

use super::commit::{self, Events, Pending};
use super::db::{Store, StoreError, io};
use super::instances::{Inserted, Instance};
use super::sweep::{self, SweepReport};
use crate::dicom::net::part10;
use crate::dicom::net::scp::{End, Incoming, Parents, Sink, StoreRequest};
use crate::dicom::net::status::{OUT_OF_RESOURCES, PROCESSING_FAILURE, Refusal};

/// What happened at the door, for whoever assembles series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// An object is durable.
    Stored {
        /// Its row.
        instance_id: i64,
        /// Its series.
        series_uid: String,
        /// Who sent it.
        calling_ae: String,
        /// The association it came on.
        association_id: i64,
        /// When, Unix milliseconds.
        received_ms: i64,
        /// The same bytes had been received before; nothing is new.
        duplicate: bool,
    },
    /// An association ended; nothing more comes on it.
    AssociationEnded {
        /// Its number.
        association_id: i64,
        /// Who had called.
        calling_ae: String,
        /// Released in order, not broken.
        released: bool,
    },
    /// Events were dropped because nobody took them: look into the database.
    Lagged,
}

/// The spool: a [`Sink`] for the storage SCP. Cheap to clone.
#[derive(Clone)]
pub struct Spool {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    incoming: PathBuf,
    objects: PathBuf,
    min_free: u64,
    next: AtomicU64,
    committer: SyncSender<Pending>,
    events: Events,
}

impl Spool {
    /// Sweeps the spool after whatever ended the last run, and starts the committer. Objects are refused while less than
    /// `min_free` bytes are free on its disk.
    ///
    /// # Errors
    /// The spool or the database cannot be read.
    pub fn open(store: &Store, min_free: u64) -> Result<(Spool, SweepReport), StoreError> {
        let report = sweep::run(store)?;
        let objects = store.dir().join("spool/objects");
        let events = Events::default();
        let committer = commit::spawn(store.clone(), objects.clone(), events.clone()).map_err(io(&objects))?;
        let inner = Inner {
            store: store.clone(),
            incoming: store.dir().join("spool/incoming"),
            objects,
            min_free,
            next: AtomicU64::new(0),
            committer,
            events,
        };
        Ok((Spool { inner: Arc::new(inner) }, report))
    }

    /// From now on, what is received; a former subscriber gets nothing more. Never holds up receiving: a subscriber that
    /// falls `capacity` behind gets [`Received::Lagged`].
    pub fn subscribe(&self, capacity: usize) -> tokio::sync::mpsc::Receiver<Received> {
        self.inner.events.subscribe(capacity)
    }

    /// The store behind the spool.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }
}

/// A refusal for a failed write. A full disk is the usual cause, and the sender may try again.
fn cannot_write(e: &std::io::Error) -> Refusal {
    log::error!("the spool cannot be written: {e}");
    match e.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Refusal::new(OUT_OF_RESOURCES, "the disk is full")
        }
        _ => Refusal::new(OUT_OF_RESOURCES, "the spool cannot be written"),
    }
}

impl Sink for Spool {
    fn begin(&self, request: &StoreRequest) -> Result<Box<dyn Incoming>, Refusal> {
        let inner = &self.inner;
        let disk = statvfs(&inner.incoming).map_err(|e| cannot_write(&e.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < inner.min_free {
            log::error!(
                "objects are refused: {} MiB are free, {} are kept free (storage.min_free_mb)",
                free >> 20,
                inner.min_free >> 20
            );
            return Err(Refusal::new(OUT_OF_RESOURCES, "the disk is full"));
        }
        let number = inner.next.fetch_add(1, Ordering::Relaxed);
        let temporary = inner.incoming.join(format!("{}-{number}.part", request.association));
        let file = File::create(&temporary).map_err(|e| cannot_write(&e))?;
        let mut object = Object {
            inner: inner.clone(),
            request: request.clone(),
            file,
            temporary: Some(temporary),
            hash: Sha256::new(),
            size: 0,
        };
        object.append(&part10::head(&request.sop_class, &request.sop_instance, &request.transfer_syntax))?;
        Ok(Box::new(object))
    }

    fn ended(&self, association: u64, calling_ae: &str, end: End) {
        self.inner.events.send(Received::AssociationEnded {
            association_id: association as i64,
            calling_ae: calling_ae.to_string(),
            released: end == End::Released,
        });
    }
}

struct Object {
    inner: Arc<Inner>,
    request: StoreRequest,
    file: File,
    /// `None` once it has its final name.
    temporary: Option<PathBuf>,
    hash: Sha256,
    size: u64,
}

impl Incoming for Object {
    fn append(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|e| cannot_write(&e))
    }

    fn finish(mut self: Box<Self>, parents: &Parents) -> Result<(), Refusal> {
        let sha256 = hex::encode(std::mem::take(&mut self.hash).finalize());
        let name = format!("{sha256}.dcm");
        let file = self.place(&self.inner.objects.join(&name)).map_err(|e| cannot_write(&e))?;
        let (synced, wait_synced) = commit::oneshot();
        let (done, wait_done) = commit::oneshot();
        let pending = Pending {
            instance: Instance {
                id: 0,
                sop_instance_uid: self.request.sop_instance.clone(),
                sop_class_uid: self.request.sop_class.clone(),
                series_uid: parents.series.clone(),
                study_uid: parents.study.clone(),
                sha256,
                path: format!("spool/objects/{name}"),
                size: self.size as i64,
                calling_ae: self.request.calling_ae.clone(),
                transfer_syntax: self.request.transfer_syntax.clone(),
                received_ms: self.inner.store.clock().now_ms(),
                association_id: self.request.association as i64,
                flags: 0,
            },
            synced: wait_synced,
            done,
        };
        let stopped = || Refusal::new(PROCESSING_FAILURE, "the box is stopping");
        self.inner.committer.send(pending).map_err(|_| stopped())?;
        let _ = synced.send(file.sync_all());
        match wait_done.recv().map_err(|_| stopped())? {
            Ok(Inserted::New(_)) => Ok(()),
            Ok(Inserted::Duplicate(id)) => {
                log::info!("an object was received again with the same bytes (row {id})");
                Ok(())
            }
            Ok(Inserted::Conflict(id)) => {
                log::warn!("row {id} has the SOP Instance UID of another object but other bytes; both are kept");
                Ok(())
            }
            Err(e) => {
                log::error!("an object could not be made durable: {e}");
                Err(Refusal::new(OUT_OF_RESOURCES, "the object could not be made durable"))
            }
        }
    }
}

impl Object {
    /// Gives the file its final name; returns it, to be synced. A file that is there already is replaced, whatever it looks like: it may be
    /// rotten, or have lost bytes in a sync that failed, of which the system tells once.
    fn place(&mut self, to: &Path) -> std::io::Result<File> {
        let Some(from) = &self.temporary else { return self.file.try_clone() };
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.temporary = None;
                self.file.try_clone()
            }
            // Synced before it takes the place: what was answered for the other one holds at every moment.
            Err(rustix::io::Errno::EXIST) => {
                self.file.sync_all()?;
                std::fs::rename(from, to)?;
                self.temporary = None;
                self.file.try_clone()
            }
            Err(e) => Err(e.into()),
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}
