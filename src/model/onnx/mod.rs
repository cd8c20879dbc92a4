//! Writes the network as ONNX graphs: opset 17, static shapes, LayerNormalization as one node.
//!
//! Base weights are initializers, adapter tensors are graph inputs. The same input gives the same bytes.

pub mod calibrate;
mod emitter;
mod manifest;
pub mod precision;
pub mod proto;
mod recipe;

pub use emitter::{Emitter, Value};
pub use manifest::{BaseSource, EngineManifest, ManifestError, PhantomSlices, file_name, sha256};
pub use recipe::{FORMAT as RECIPE_FORMAT, Layer, Layers, Precision, Recipe, RecipeError};

use std::collections::BTreeMap;

use crate::model::network::{self, EMBED, STRIDE, ShapeError, Shapes};
use crate::model::ops::Ops;
use crate::model::weights::BaseWeights;

/// Name of the encoder's image input, `[1,3,S,S]`.
pub const IMAGE: &str = "image";
/// Name of the embedding: output of the encoder, input of the others, `[1,256,S/16,S/16]`.
pub const EMBEDDING: &str = "embedding";
/// Name of the decoder's box input, `[M,4]`, x0 y0 x1 y1 in 0..1.
pub const BOXES: &str = "boxes";

/// A graph ready for an engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// `encoder`, `classifier` or `decoder`.
    pub name: String,
    /// The serialised model.
    pub onnx: Vec<u8>,
    /// Inputs that change with each image, with their shapes, in order.
    pub inputs: Vec<(String, Vec<usize>)>,
    /// Names of the adapter tensors that are inputs as well, with their shapes; all must be given at every run.
    pub adapter_inputs: Shapes,
    /// Names of the outputs, in order.
    pub outputs: Vec<String>,
}

/// The encoder for S x S images: `image` to `embedding`. `adapter` holds the shapes of the adapter's tensors; empty for
/// the base alone.
///
/// # Errors
/// [`ShapeError`] when the size or an adapter tensor does not fit.
pub fn emit_encoder(base: &BaseWeights, adapter: &Shapes, size: usize) -> Result<Graph, ShapeError> {
    network::check_image_size(size)?;
    network::check_deltas(adapter)?;
    let e = Emitter::new(base, adapter);
    let image = e.input(IMAGE, &[1, 3, size, size]);
    let embedding = network::encode(&e, &image);
    Ok(e.finish("encoder", &[(EMBEDDING, embedding)]))
}

/// The classifier on the embedding of S x S images, K structures: `embedding` to `logits` `[1,K]` and `cam`
/// `[1,K,S/16,S/16]`.
///
/// # Errors
/// [`ShapeError`] when the size does not fit, or the adapter has no whole classifier or feeds gradients back.
pub fn emit_classifier(base: &BaseWeights, adapter: &Shapes, size: usize) -> Result<Graph, ShapeError> {
    network::check_image_size(size)?;
    network::check_adapter_shapes(adapter, structures(adapter)?)?;
    // A graph without it would be another classifier than the one that was trained.
    if let Some(name) = adapter.keys().find(|n| n.starts_with("feedback.")) {
        return Err(ShapeError::Feedback { name: name.clone() });
    }
    let e = Emitter::new(base, adapter);
    let embedding = e.input(EMBEDDING, &[1, EMBED, size / STRIDE, size / STRIDE]);
    let out = network::classify(&e, &embedding);
    Ok(e.finish("classifier", &[("logits", out.logits), ("cam", out.cam)]))
}

/// The mask decoder for K structures, one prompt each: `embedding`, `boxes` `[K,4]` to `masks` `[K,1,S/4,S/4]` and `iou`
/// `[K,1]`. The class tokens are the adapter's.
///
/// # Errors
/// [`ShapeError`] when the size does not fit or the adapter is not whole.
pub fn emit_decoder(base: &BaseWeights, adapter: &Shapes, size: usize) -> Result<Graph, ShapeError> {
    network::check_image_size(size)?;
    let k = structures(adapter)?;
    network::check_adapter_shapes(adapter, k)?;
    Ok(decoder(base, adapter, size, k, true))
}

/// Upstream's decoder without adapter, for M boxes: the same inputs and outputs as [`emit_decoder`].
///
/// # Errors
/// [`ShapeError`] when the size does not fit.
pub fn emit_zero_shot_decoder(base: &BaseWeights, size: usize, prompts: usize) -> Result<Graph, ShapeError> {
    network::check_image_size(size)?;
    Ok(decoder(base, &BTreeMap::new(), size, prompts.max(1), false))
}

/// Encoder, classifier and decoder of an adapter in FP32; [`Precision::of`] makes other precisions of them.
///
/// # Errors
/// [`ShapeError`] when the size does not fit or the adapter is not whole.
pub fn emit_all(base: &BaseWeights, adapter: &Shapes, size: usize) -> Result<[Graph; 3], ShapeError> {
    Ok([emit_encoder(base, adapter, size)?, emit_classifier(base, adapter, size)?, emit_decoder(base, adapter, size)?])
}

fn decoder(base: &BaseWeights, adapter: &Shapes, size: usize, prompts: usize, class_tokens: bool) -> Graph {
    let e = Emitter::new(base, adapter);
    let embedding = e.input(EMBEDDING, &[1, EMBED, size / STRIDE, size / STRIDE]);
    let boxes = e.input(BOXES, &[prompts, 4]);
    let tokens = class_tokens.then(|| e.param("class_tokens"));
    let out = network::decode(&e, &embedding, &boxes, tokens.as_ref());
    e.finish("decoder", &[("masks", out.masks), ("iou", out.iou)])
}

fn structures(adapter: &Shapes) -> Result<usize, ShapeError> {
    let tokens = adapter.get("class_tokens").and_then(|s| s.first()).copied();
    tokens.filter(|&k| k > 0).ok_or_else(|| ShapeError::Missing { name: "class_tokens".into() })
}

#[cfg(test)]
mod tests;
