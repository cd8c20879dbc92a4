//! The service: wires the rooms into tasks; start-up sweep, shutdown, status.

mod assembler;
mod busy;
mod deliverer;
pub mod drift;
pub mod gate;
mod model;
mod pulse;
mod results;
pub mod retention;
pub mod sideload;
pub mod status;
mod worker;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{Archive, Config, EngineKind};
use crate::dicom::net::negotiate::{Acceptor, Caller, Callers, Classes};
use crate::dicom::net::scp::{Scp, ScpError, ScpOptions};
use crate::pipeline::SegmentOptions;
use crate::store::{Spool, Store, StoreError, outbox};

pub use model::{Model, ModelError, Release, adapter_at};
pub use pulse::Pulse;
pub use results::{ResultFiles, grades, result_key, source_of, write_results};

use busy::Busy;
use sideload::{Here, Models};

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The port.
    #[error(transparent)]
    Scp(#[from] ScpError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}; the system is out of resources")]
    Thread(std::io::Error),
}

/// Wakes a thread that waits, or lets it wait for at most a while.
#[derive(Default)]
pub(crate) struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    pub(crate) fn raise(&self) {
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until raised or for `at_most`; lowers the signal.
    pub(crate) fn wait(&self, at_most: Duration) {
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        if !*raised {
            raised = self.changed.wait_timeout(raised, at_most).unwrap_or_else(PoisonError::into_inner).0;
        }
        *raised = false;
    }
}

/// What the tasks share.
pub(crate) struct Shared {
    pub config: Config,
    pub clock: Clock,
    pub store: Store,
    /// What segments, and what may segment next.
    pub models: Models,
    /// Whether a series is in work.
    pub busy: Busy,
    /// Shared with what is being segmented.
    pub stop: Arc<AtomicBool>,
    /// Whether the tasks get on.
    pub pulse: Pulse,
    /// A job may be waiting.
    pub jobs: Signal,
    /// A bundle may have something to do.
    pub candidates: Signal,
    /// A delivery may be waiting; one per archive.
    pub deliveries: Vec<Signal>,
}

impl Shared {
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// How series are segmented: until the service stops.
    pub fn segmenting(&self, model: &Model) -> SegmentOptions {
        SegmentOptions { threads: model.threads, stop: self.stop.clone(), ..SegmentOptions::default() }
    }

    /// Where bundles are handled.
    pub fn here(&self) -> Here<'_> {
        Here { store: &self.store, clock: &self.clock, config: &self.config }
    }
}

/// Tells the log which engine serves and why no other, and keeps it for `scanside status`.
pub(crate) fn say_engine(store: &Store, config: &Config, model: &Model) -> Result<(), StoreError> {
    let report = model.engine();
    match (&report.refusal, config.engine.kind) {
        (Some(_), EngineKind::Tensorrt) => log::warn!("engine: {}", report.describe()),
        _ => log::info!("engine: {}", report.describe()),
    }
    let json = serde_json::to_string(&report).unwrap_or_default();
    store.with_conn(|c| crate::store::set_meta(c, status::ENGINE, &json))
}

/// Hands what waits for an archive whose address was changed to the new one, and tells of what waits for an archive that is not there.
fn readdress(store: &Store, config: &Config) -> Result<(), StoreError> {
    let keys = archive_keys(config);
    for (old, new, n) in store.with_conn(|c| outbox::readdress(c, &keys))? {
        log::warn!(
            "{n} objects that waited for {old} go to {new}: no [[archive]] has the old address, and one this AE title"
        );
    }
    for s in store.with_conn(|c| outbox::stranded(c, &keys))? {
        log::warn!("outbox: {}", s.sentence());
    }
    Ok(())
}

/// The keys of all archives of a configuration.
pub fn archive_keys(config: &Config) -> Vec<String> {
    config.archive.iter().map(archive_key).collect()
}

/// The key of an archive in the outbox: `AE@host:port`.
pub fn archive_key(archive: &Archive) -> String {
    format!("{}@{}", archive.ae_title, archive.address)
}

/// A running daemon.
pub struct Daemon {
    address: SocketAddr,
    scp: Scp,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Daemon {
    /// Sweeps the state directory, starts listening and working. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`DaemonError`]: state directory in use or unusable, port taken.
    pub async fn start(config: Config, model: Model, clock: Clock) -> Result<Daemon, DaemonError> {
        let store = Store::open(&config.storage.state_dir, clock.clone())?;
        let (spool, sweep) = Spool::open(&store, config.storage.min_free_mb << 20)?;
        log::info!("state directory {}: {sweep:?}", config.storage.state_dir.display());
        // Numbers of associations stay unique over restarts, so that a series knows which of its senders released.
        let last: i64 = store
            .with_conn(|c| c.query_row("SELECT coalesce(max(association_id), 0) FROM instances", [], |r| r.get(0)))?;
        let first_association = u64::try_from(last).unwrap_or(0) + 1;
        let models = Models::new(model);
        let model = models.begin(Here { store: &store, clock: &clock, config: &config })?;
        sideload::clean(&store)?;
        readdress(&store, &config)?;
        let events = spool.subscribe(4096);
        let options = ScpOptions {
            acceptor: Acceptor {
                ae_title: config.station.ae_title.clone(),
                callers: Callers::Listed(
                    config
                        .modality
                        .iter()
                        .map(|m| Caller { ae_title: m.ae_title.clone(), address: m.address })
                        .collect(),
                ),
                classes: Classes::Mr,
                max_pdu: config.receive.max_pdu_kb * 1024,
            },
            max_associations: config.receive.max_associations,
            idle: Duration::from_secs(config.receive.idle_seconds),
            max_object: config.receive.max_object_mb << 20,
            first_association,
        };
        let scp = Scp::bind(config.station.listen, options, Arc::new(spool)).await?;
        let address = scp.local_addr();
        log::info!(
            "listening on {address} as {}; {} sender(s) allowed, {} archive(s); {}",
            config.station.ae_title,
            config.modality.len(),
            config.archive.len(),
            model.describe()
        );
        let gate = store.with_conn(|c| gate::settle(c, &config.gate, model.adapter_sha256(), clock.now_ms()))?;
        log::info!("gate: {}", gate.sentence);
        if config.drift.enabled && model.references.is_empty() {
            log::warn!(
                "the adapter has no calibration statistics: drift is not watched; train it again with this version"
            );
        }
        let deliveries = config.archive.iter().map(|_| Signal::default()).collect();
        let shared = Arc::new(Shared {
            config,
            clock,
            store,
            models,
            busy: Busy::default(),
            stop: Arc::default(),
            pulse: Pulse::default(),
            jobs: Signal::default(),
            candidates: Signal::default(),
            deliveries,
        });
        let runtime = tokio::runtime::Handle::current();
        let mut threads = Vec::new();
        let mut spawn = |name: &str, body: Box<dyn FnOnce() + Send>| -> Result<(), DaemonError> {
            threads.push(std::thread::Builder::new().name(name.into()).spawn(body).map_err(DaemonError::Thread)?);
            Ok(())
        };
        let s = shared.clone();
        spawn("assemble", Box::new(move || assembler::run(&s, events, &runtime)))?;
        let s = shared.clone();
        spawn("work", Box::new(move || worker::run(&s)))?;
        for i in 0..shared.config.archive.len() {
            let s = shared.clone();
            spawn("deliver", Box::new(move || deliverer::run(&s, i)))?;
        }
        let s = shared.clone();
        spawn("adapters", Box::new(move || sideload::watch(&s)))?;
        let s = shared.clone();
        spawn("candidate", Box::new(move || sideload::try_candidates(&s)))?;
        let s = shared.clone();
        spawn("retain", Box::new(move || retention::run(&s)))?;
        Ok(Daemon { address, scp, shared, threads })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The state, for reading.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Whether its tasks make progress.
    pub fn pulse(&self) -> Pulse {
        self.shared.pulse.clone()
    }

    /// Takes no more associations, lets the objects under way be answered, and waits for the step in hand, of a series the slice: what
    /// is not done stays in the queue.
    pub async fn stop(self) {
        self.scp.shutdown(Duration::from_secs(10)).await;
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.jobs.raise();
        self.shared.candidates.raise();
        for s in &self.shared.deliveries {
            s.raise();
        }
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(move || {
            for t in threads {
                if t.join().is_err() {
                    log::error!("a task ended by a panic; its step stays in the queue");
                }
            }
        });
        let _ = joined.await;
    }
}
