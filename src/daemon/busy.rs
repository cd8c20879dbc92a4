//! Whether a series is in work, so that what is not for a patient gives way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Shared;

const LOOK: Duration = Duration::from_secs(1);

/// Whether a series is in work.
#[derive(Default)]
pub(crate) struct Busy {
    working: Mutex<bool>,
    changed: Condvar,
}

/// Ends the work when dropped.
pub(crate) struct Working<'a>(&'a Busy);

/// How long some work gives way before it goes on beside the series: on a box that never rests it would else never end.
pub(crate) struct Patience {
    most: Duration,
    waited_ms: AtomicU64,
}

impl Patience {
    /// At most so long, over all its threads.
    pub fn new(most: Duration) -> Patience {
        Patience { most, waited_ms: AtomicU64::new(0) }
    }

    /// Whether it gave way at all: then its own time says nothing.
    pub fn was_tried(&self) -> bool {
        self.waited_ms.load(Ordering::SeqCst) > 0
    }

    fn left(&self) -> Duration {
        self.most.saturating_sub(Duration::from_millis(self.waited_ms.load(Ordering::SeqCst)))
    }
}

impl Busy {
    fn working(&self) -> MutexGuard<'_, bool> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A series is in work until what is returned is dropped.
    pub fn begin(&self) -> Working<'_> {
        *self.working() = true;
        Working(self)
    }

    /// Waits while a series is in work and there is patience; `alive` is called meanwhile.
    pub fn give_way(&self, shared: &Shared, patience: &Patience, alive: &dyn Fn()) {
        let mut working = self.working();
        while *working && !shared.stopping() && !patience.left().is_zero() {
            alive();
            let start = Instant::now();
            working =
                self.changed.wait_timeout(working, LOOK.min(patience.left())).unwrap_or_else(PoisonError::into_inner).0;
            let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
            patience.waited_ms.fetch_add(ms, Ordering::SeqCst);
        }
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        *self.0.working() = false;
        self.0.changed.notify_all();
    }
}
