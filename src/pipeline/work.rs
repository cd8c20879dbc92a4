//! Work on many slices at once, and the time that each step took.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use super::StepTime;
use super::segmenter::{PipelineError, SegmentOptions};

/// Works on items with as many threads as the options say, keeping their order; the first error ends the work, and so does
/// [`SegmentOptions::stop`].
pub(super) fn parallel<T: Sync, R: Send>(
    items: &[T],
    options: &SegmentOptions,
    done: impl Fn(usize) + Sync,
    work: impl Fn(&T) -> Result<R, PipelineError> + Sync,
) -> Result<Vec<R>, PipelineError> {
    let next = AtomicUsize::new(0);
    let finished = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let results: Mutex<Vec<(usize, Result<R, PipelineError>)>> = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..options.threads.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { break };
                    let stopped = options.stop.load(Ordering::SeqCst);
                    let r = if stopped { Err(PipelineError::Stopped) } else { work(item) };
                    let worked = r.is_ok();
                    results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((i, r));
                    if worked {
                        done(finished.fetch_add(1, Ordering::Relaxed) + 1);
                    } else {
                        over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, r)| r).collect()
}

/// Times the steps of a run.
pub(super) struct Stopwatch {
    last: Instant,
    /// What each step took.
    pub times: Vec<StepTime>,
}

impl Stopwatch {
    /// Starts.
    pub fn new() -> Self {
        Stopwatch { last: Instant::now(), times: Vec::new() }
    }
    /// Ends a step.
    pub fn lap(&mut self, step: &str) {
        let now = Instant::now();
        self.times.push(StepTime { step: step.into(), seconds: (now - self.last).as_secs_f64() });
        self.last = now;
    }
}
