//! Whether a series is in work, so that what is not for a patient gives way.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Shared;

const LOOK: Duration = Duration::from_secs(1);

/// Whether a series is in work, and for how long series were in all.
#[derive(Default)]
pub(crate) struct Busy {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    since: Option<Instant>,
    total: Duration,
}

/// Ends the work when dropped.
pub(crate) struct Working<'a>(&'a Busy);

impl Busy {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A series is in work until what is returned is dropped.
    pub fn begin(&self) -> Working<'_> {
        self.inner().since = Some(Instant::now());
        Working(self)
    }

    /// For how long series were in work so far.
    pub fn total(&self) -> Duration {
        let inner = self.inner();
        inner.total + inner.since.map_or(Duration::ZERO, |s| s.elapsed())
    }

    /// Waits while a series is in work; `alive` is called meanwhile.
    pub fn give_way(&self, shared: &Shared, alive: &dyn Fn()) {
        let mut inner = self.inner();
        while inner.since.is_some() && !shared.stopping() {
            alive();
            inner = self.changed.wait_timeout(inner, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.inner();
        if let Some(since) = inner.since.take() {
            inner.total += since.elapsed();
        }
        drop(inner);
        self.0.changed.notify_all();
    }
}
