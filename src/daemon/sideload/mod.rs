//! Adapter bundles on a running box: they come in, are verified, tried and committed, and can be taken back.
//!
//! Whoever holds the state directory moves them: the service, or `scanside sideload` while there is no service. A command beside
//! the service only hands a file over (a synced file, then its row) or sets what is to serve (a row); the service looks at every
//! change of the database within a tenth of a second. Order of every step: the work, then its row; attempts are counted before.
//! 1. `received`: file and folder are synced before the row. Lost power before the row leaves a file that the next start removes.
//! 2. `verified`, `staged`, `parity-checked`: nothing but rows; lost power repeats the step.
//! 3. `probation` and a direct `committed` set what serves in the same transaction. The worker looks before every series.
//! 4. `committed`: the record of trust first, then the row. Lost power between repeats the row; the trust store then already
//!    refuses older versions, as it must.
//! 5. `refused`: the row, then the file is removed. Lost power between leaves a file that the next start removes.

mod candidate;
mod export;
mod gates;
mod probation;
mod receive;
mod serving;
mod shadow;
mod view;

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::adapter::bundle::{BoxFacts, Bundle as Opened, Purpose};
use crate::adapter::trust::TrustStore;
use crate::adapter::{Reason, Refused};
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::ModelError;
use crate::pipeline::serving::{PARITY, ServeError};
use crate::store::bundles::{self, Bundle, Event, Illegal, State, Why};
use crate::store::{Store, StoreError};

pub use candidate::Candidates;
pub(super) use candidate::run as try_candidates;
pub use export::{Feedback, FeedbackError, MAX_FEEDBACK, export};
pub(crate) use probation::{Probation, previous, take};
pub use receive::{DROP_SUFFIX, Received, drop_in, receive};
pub(crate) use receive::{give_state_to_owner, row};
pub(crate) use serving::Models;
pub use serving::roll_back_to;
pub(super) use serving::run as watch;
pub use view::Adapters;

/// Where bundles are handled: the state, the time, the settings.
#[derive(Clone, Copy)]
pub struct Here<'a> {
    /// The state directory.
    pub store: &'a Store,
    /// The time.
    pub clock: &'a Clock,
    /// The settings.
    pub config: &'a Config,
}

impl Here<'_> {
    fn now(&self) -> i64 {
        self.clock.now_ms()
    }

    fn trust(&self) -> TrustStore {
        TrustStore::new(self.store.dir())
    }

    /// Opens a bundle's file and holds it against this box: as new, as one on trial here, or as one that was committed here.
    fn open(&self, row: &Bundle, base_sha256: &str) -> Result<Opened, Refused> {
        let facts = BoxFacts::here(base_sha256, &self.config.station.site);
        let purpose = match row.state {
            State::Committed | State::RolledBack { committed: true } => Purpose::Serve,
            State::Probation { .. } | State::Shadow { .. } | State::ParityChecked => Purpose::GoOn,
            _ => Purpose::Install,
        };
        let opened = Opened::open(&row.file(self.store.dir()), &self.trust(), self.clock, &facts, purpose)?;
        if !row.identity.is_empty() && row.identity != opened.id() {
            return Err(Refused::new(
                Reason::ChangedFile,
                format!("the file of {} on this box is another bundle", row.title()),
                "sideload it again",
            ));
        }
        Ok(opened)
    }

    /// What passes, as the error that ends a step without an end for the bundle.
    fn not_now(&self, why: &Why) -> StoreError {
        let cause = std::io::Error::other(format!("{} [{}]; {}", why.sentence, why.code, why.remedy));
        StoreError::Io { path: self.trust().path(), cause }
    }

    /// Takes one step; `Ok(None)` where somebody else moved the bundle meanwhile.
    fn advance(&self, row: &Bundle, event: Event, why: &Why) -> Result<Option<State>, StoreError> {
        let now = self.now();
        match self.store.with_conn(|c| bundles::advance(c, row, event, why, now, |_| Ok(())))? {
            Ok(state) => {
                if state.word() != row.state.word() {
                    log::info!("bundle {}: {}", row.title(), state.word());
                }
                Ok(Some(state))
            }
            Err(Illegal::Moved(_)) => Ok(None),
            Err(illegal) => {
                log::error!("bundle {}: {illegal}", row.title());
                Ok(None)
            }
        }
    }

    /// Counts an attempt; false where it was begun too often, or somebody else moved the bundle.
    fn begin(&self, row: &mut Bundle) -> Result<Begun, StoreError> {
        let now = self.now();
        Ok(
            match self.store.with_conn(|c| bundles::advance(c, row, Event::Begin, &Why::default(), now, |_| Ok(())))? {
                Ok(state) => {
                    row.state = state;
                    Begun::Yes
                }
                Err(Illegal::Exhausted(_)) => Begun::TooOften,
                Err(_) => Begun::Moved,
            },
        )
    }

    /// Ends the life of a bundle that never served, and removes its file.
    fn refuse(&self, row: &Bundle, why: &Why) -> Result<(), StoreError> {
        if self.advance(row, Event::Refused, why)?.is_some() {
            log::warn!("bundle {} is refused [{}]: {}; {}", row.title(), why.code, why.sentence, why.remedy);
            self.remove(row)?;
        }
        Ok(())
    }

    /// Removes a file that no row needs any more: the same bytes may have come again, which the lock keeps from happening meanwhile.
    fn remove(&self, row: &Bundle) -> Result<(), StoreError> {
        let _lock = lock(self.store)?;
        let needed: i64 = self
            .store
            .with_conn(|c| c.query_row("SELECT count(*) FROM bundle WHERE path = ?1", [&row.path], |r| r.get(0)))?;
        if needed > 0 || row.path.is_empty() {
            return Ok(());
        }
        let path = row.file(self.store.dir());
        match std::fs::remove_file(&path) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Io { path, cause }),
            _ => Ok(()),
        }
    }

    /// Removes the files of bundles that going back no longer needs.
    fn prune(&self) -> Result<(), StoreError> {
        for old in self.store.with_conn(|c| bundles::prunable(c, self.config.sideload.keep))? {
            self.store.with_conn(|c| bundles::forget_file(c, old.id))?;
            self.remove(&old)?;
            log::info!(
                "bundle {}: its file is no longer kept (sideload.keep = {})",
                old.title(),
                self.config.sideload.keep
            );
        }
        Ok(())
    }
}

/// At start, while nobody hands a file over: removes what a crash left of files without a row.
///
/// # Errors
/// The folder cannot be read, or a file cannot be removed.
pub(super) fn clean(store: &Store) -> Result<(), StoreError> {
    let path = lock_path(store);
    let lock = open_lock(&path).map_err(|cause| StoreError::Io { path, cause })?;
    if lock.try_lock().is_err() {
        return Ok(());
    }
    let named = store.with_conn(|c| bundles::named_files(c))?;
    match bundles::sweep(&named, store.dir())? {
        0 => {}
        n => log::info!("removed {n} file(s) of bundles that no row names"),
    }
    Ok(())
}

/// Held while a file comes in or goes.
fn lock_path(store: &Store) -> PathBuf {
    store.dir().join(bundles::FOLDER).join("lock")
}

fn open_lock(path: &Path) -> std::io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

fn lock(store: &Store) -> Result<File, StoreError> {
    let path = lock_path(store);
    let io = |cause| StoreError::Io { path: path.clone(), cause };
    let file = open_lock(&path).map_err(io)?;
    file.lock().map_err(io)?;
    Ok(file)
}

/// Whether an attempt was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    Yes,
    TooOften,
    Moved,
}

/// Whether something is no fault of a bundle and passes: the disk is full, or the record of trust cannot be read or written.
fn passes(why: &Why) -> bool {
    [Reason::DiskFull, Reason::TrustUnwritable].iter().any(|r| r.name() == why.code)
}

/// Why no engine of this box may run an adapter, where that is what its model failed for.
fn engine_refused(e: &ModelError) -> Option<Refused> {
    let ModelError::Engine(ServeError::Refused(r)) = e else { return None };
    let reason = if r.code == PARITY { Reason::ParityFailed } else { Reason::Requirement };
    let sentence =
        format!("{} [{}], and the CPU engine is not allowed (engine.cpu_fallback = false)", r.sentence, r.code);
    Some(Refused::new(reason, sentence, r.remedy.clone()))
}

fn why_of(refused: &Refused) -> Why {
    Why::fault(refused.reason.name(), refused.sentence.clone(), refused.remedy.clone())
}
