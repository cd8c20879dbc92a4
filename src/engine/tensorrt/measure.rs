//! What a plan that serves costs, by the GPU's own clock: its three steps one by one, and how lanes overlap.

use std::sync::Arc;

use serde::Serialize;

use super::cuda::{Event, GpuError};
use super::serving::{Held, ServingError, TensorRtEngine};
use crate::engine::{EngineError, Tensor};

/// Milliseconds of one run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Steps {
    /// Copying inputs to the device.
    pub upload: f32,
    /// The network.
    pub compute: f32,
    /// Copying outputs back.
    pub download: f32,
}

/// When one run did what, in milliseconds since the first began.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Span {
    /// Which lane.
    pub lane: usize,
    /// Begin of the upload, of the computation, of the download, and the end.
    pub at: [f32; 4],
}

/// Something of an adapter bound to measure.
pub struct Measured {
    held: Held,
}

impl Measured {
    /// Binds an adapter's tensors.
    ///
    /// # Errors
    /// As [`crate::engine::Engine::bind`].
    pub fn new(engine: &Arc<TensorRtEngine>, fixed: &[(String, Tensor)]) -> Result<Self, EngineError> {
        Ok(Measured { held: engine.clone().hold(fixed)? })
    }

    /// Runs one after the other, each timed in its three steps.
    ///
    /// # Errors
    /// [`ServingError`].
    pub fn steps(&self, inputs: &[(&str, &Tensor)], rounds: usize) -> Result<Vec<Steps>, ServingError> {
        Ok(self
            .spans(inputs, rounds, 1)?
            .into_iter()
            .map(|s| Steps { upload: s.at[1] - s.at[0], compute: s.at[2] - s.at[1], download: s.at[3] - s.at[2] })
            .collect())
    }

    /// Runs over several lanes at once: each waits for its own former run alone.
    ///
    /// # Errors
    /// [`ServingError`].
    pub fn spans(&self, inputs: &[(&str, &Tensor)], rounds: usize, lanes: usize) -> Result<Vec<Span>, ServingError> {
        let engine = &self.held.engine;
        let gpu = &engine.gpu;
        let lost = |e: EngineError| GpuError::Failed { what: "measuring", cause: e.to_string() };
        let mut taken: Vec<_> = (0..lanes.clamp(1, engine.lanes())).map(|_| engine.lane()).collect();
        for t in &mut taken {
            engine.fill(t.get().map_err(lost)?, inputs).map_err(lost)?;
        }
        let mut marks: Vec<[Event; 4]> = Vec::with_capacity(rounds);
        for i in 0..rounds {
            let events =
                [Event::new(gpu, true)?, Event::new(gpu, true)?, Event::new(gpu, true)?, Event::new(gpu, true)?];
            if let Some(former) = i.checked_sub(taken.len()).and_then(|f| marks.get(f)) {
                former[3].wait()?;
            }
            let lane = i % taken.len();
            let lane = taken[lane].get().map_err(lost)?;
            let enqueued = engine.enqueue(lane, self.held.set, |i, stream| events[i].record(stream));
            if enqueued.is_err() {
                // Nothing may be in flight when lanes go back.
                for t in &mut taken {
                    let _ = t.get().map_err(lost)?.stream.wait();
                }
                enqueued?;
            }
            marks.push(events);
        }
        for t in &mut taken {
            t.get().map_err(lost)?.stream.wait()?;
        }
        let Some(first) = marks.first() else { return Ok(Vec::new()) };
        let mut spans = Vec::with_capacity(rounds);
        for (i, events) in marks.iter().enumerate() {
            let mut at = [0f32; 4];
            for (t, e) in at.iter_mut().zip(events) {
                *t = e.since(&first[0])?;
            }
            spans.push(Span { lane: i % taken.len(), at });
        }
        Ok(spans)
    }
}

/// Milliseconds in which one lane copied while another computed.
pub fn overlap(spans: &[Span]) -> f32 {
    let mut sum = 0.0;
    for a in spans {
        for b in spans.iter().filter(|b| b.lane != a.lane) {
            for copy in [[b.at[0], b.at[1]], [b.at[2], b.at[3]]] {
                sum += (copy[1].min(a.at[2]) - copy[0].max(a.at[1])).max(0.0);
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_copy_beside_another_lanes_computation_overlaps() {
        let a = Span { lane: 0, at: [0.0, 1.0, 5.0, 6.0] };
        assert_eq!(overlap(&[a, Span { lane: 0, at: [2.0, 3.0, 4.0, 4.5] }]), 0.0);
        // Its upload lies within a's computation, its download after it; a's download within its computation.
        assert_eq!(overlap(&[a, Span { lane: 1, at: [2.0, 3.0, 9.0, 10.0] }]), 2.0);
        assert_eq!(overlap(&[a, Span { lane: 1, at: [6.0, 7.0, 9.0, 10.0] }]), 0.0);
    }
}
