//! Whether the daemon's tasks make progress, for systemd's watchdog: a process that runs but does nothing must be restarted too.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is known of one task.
struct Task {
    name: String,
    limit: Duration,
    last: Instant,
}

/// The tasks' signs of life.
#[derive(Clone, Default)]
pub struct Pulse(Arc<Mutex<Vec<Task>>>);

/// One task's side of it; dropped when the task ends, which ends the watch.
pub(super) struct Beat {
    pulse: Pulse,
    name: String,
}

impl Pulse {
    /// Watches a task that must beat at least once within `limit`.
    pub(super) fn watch(&self, name: &str, limit: Duration) -> Beat {
        self.watch_at(name, limit, Instant::now())
    }

    fn watch_at(&self, name: &str, limit: Duration, now: Instant) -> Beat {
        self.tasks(|t| t.push(Task { name: name.into(), limit, last: now }));
        Beat { pulse: self.clone(), name: name.into() }
    }

    /// Says that a task is alive and has got on.
    pub(super) fn beat(&self, name: &str) {
        self.beat_at(name, Instant::now());
    }

    fn beat_at(&self, name: &str, now: Instant) {
        self.tasks(|all| all.iter_mut().filter(|t| t.name == name).for_each(|t| t.last = now));
    }

    /// The first task that has not beaten within its limit, and for how long it has not.
    pub fn stalled(&self) -> Option<(String, Duration)> {
        self.stalled_at(Instant::now())
    }

    fn stalled_at(&self, now: Instant) -> Option<(String, Duration)> {
        self.tasks(|all| {
            let since = |t: &Task| now.saturating_duration_since(t.last);
            all.iter().find(|t| since(t) > t.limit).map(|t| (t.name.clone(), since(t)))
        })
    }

    fn tasks<T>(&self, f: impl FnOnce(&mut Vec<Task>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Beat {
    /// Says that the task is alive and has got on.
    pub(super) fn beat(&self) {
        self.pulse.beat(&self.name);
    }
}

impl Drop for Beat {
    /// A task that ends by a panic keeps its watch, so that its silence is noticed.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.pulse.tasks(|all| all.retain(|t| t.name != self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_beyond_its_own_limit_is_noticed_and_named() {
        let pulse = Pulse::default();
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let _quick = pulse.watch_at("work", Duration::from_secs(60), start);
        let slow = pulse.watch_at("deliver 0", Duration::from_secs(600), start);
        assert_eq!(pulse.stalled_at(at(60)), None);
        assert_eq!(pulse.stalled_at(at(61)), Some(("work".into(), Duration::from_secs(61))));
        pulse.beat_at("work", at(61));
        assert_eq!(pulse.stalled_at(at(120)), None);
        pulse.beat_at("work", at(590));
        assert_eq!(pulse.stalled_at(at(601)).unwrap().0, "deliver 0");
        // A task that ended in order is watched no more.
        drop(slow);
        assert_eq!(pulse.stalled_at(at(601)), None);
    }

    #[test]
    fn a_task_that_dies_by_a_panic_is_noticed() {
        let pulse = Pulse::default();
        let other = pulse.clone();
        let ended = std::thread::spawn(move || {
            let _beat = other.watch_at("work", Duration::ZERO, Instant::now());
            panic!("for the test");
        });
        assert!(ended.join().is_err());
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(pulse.stalled().unwrap().0, "work");
    }
}
