//! The three parts of the network as the pipeline calls them, whoever computes them.

use crate::engine::{EngineError, EngineIdentity, Tensor};
use crate::image::Plane;

/// What the classifier says of one slice.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassifierOutput {
    /// One logit per structure of the task.
    pub logits: Vec<f32>,
    /// One class activation map per structure, `[h, w]`, not normalised.
    pub cams: Vec<Plane<f32>>,
}

/// What the decoder says of one slice.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderOutput {
    /// One plane of mask logits per structure, `[4h, 4w]`.
    pub masks: Vec<Plane<f32>>,
    /// The decoder's own estimate of each mask's IoU.
    pub iou: Vec<f32>,
}

/// The network with its adapter for one task of K structures. Engine graphs implement it to serve, the eager
/// interpreter to evaluate while training.
pub trait Networks: Send + Sync {
    /// Edge of the square input, S pixels.
    fn input_size(&self) -> usize;
    /// K, the structures of the task.
    fn structures(&self) -> usize;
    /// `[1, 3, S, S]` to the embedding `[1, 256, S/16, S/16]`.
    ///
    /// # Errors
    /// [`EngineError`] as the engine says.
    fn encode(&self, image: &Tensor) -> Result<Tensor, EngineError>;
    /// Presence and activation maps from an embedding.
    ///
    /// # Errors
    /// [`EngineError`] as the engine says.
    fn classify(&self, embedding: &Tensor) -> Result<ClassifierOutput, EngineError>;
    /// Masks from an embedding and one box per structure (x0, y0, x1, y1 in 0..1 of the input).
    ///
    /// # Errors
    /// [`EngineError`] as the engine says.
    fn decode(&self, embedding: &Tensor, boxes: &[[f32; 4]]) -> Result<DecoderOutput, EngineError>;
    /// What computes.
    fn identity(&self) -> EngineIdentity;
}

/// Splits `[1 or K, K or 1, h, w]`, K planes in all, into planes.
///
/// # Errors
/// [`EngineError::Run`] naming `graph` where the shape does not hold `count` planes.
pub fn planes(t: &Tensor, count: usize, engine: &str, graph: &str) -> Result<Vec<Plane<f32>>, EngineError> {
    match t.shape.as_slice() {
        [a, b, h, w] if a * b == count && *h > 0 && *w > 0 => {
            Ok(t.data.chunks(h * w).map(|c| Plane { width: *w, height: *h, data: c.to_vec() }).collect())
        }
        other => Err(EngineError::Run {
            engine: engine.into(),
            graph: graph.into(),
            cause: format!("the output has shape {other:?}, expected {count} planes"),
        }),
    }
}
