//! The network run by the eager interpreter, as the pipeline calls it: evaluation without an engine, and the zero-shot
//! base for comparison.

use std::collections::BTreeMap;

use super::init::parameters;
use crate::engine::{EngineError, EngineIdentity, Tensor};
use crate::image::Plane;
use crate::model::eager::{Eager, Var};
use crate::model::network::{classify, decode, encode};
use crate::model::ops::Ops;
use crate::pipeline::{ClassifierOutput, DecoderOutput, Networks, planes};

const NAME: &str = "eager";

/// Base and adapter in the eager interpreter.
pub struct EagerNetworks {
    eager: Eager,
    size: usize,
    structures: usize,
}

impl EagerNetworks {
    /// The network with an adapter's tensors, which must have passed [`crate::adapter::Adapter::check`].
    pub fn new(base: &BTreeMap<String, Tensor>, adapter: &BTreeMap<String, Tensor>, size: usize) -> Self {
        let structures = adapter.get("class_tokens").map_or(0, |t| t.shape[0]);
        EagerNetworks { eager: Eager::new(parameters(base, adapter)), size, structures }
    }

    /// The base alone: [`EagerNetworks::zero_shot`] decodes, nothing classifies.
    pub fn base(base: &BTreeMap<String, Tensor>, size: usize) -> Self {
        Self::new(base, &BTreeMap::new(), size)
    }

    /// Upstream SAM's own decoding of boxes, `[h, w]` logits for each.
    pub fn zero_shot(&self, embedding: &Tensor, boxes: &[[f32; 4]]) -> Vec<Plane<f32>> {
        self.eager.no_grad(|e| {
            let decoded = decode(e, &constant(embedding), &corners(boxes), None);
            let s = decoded.masks.shape();
            let (h, w) = (s[2], s[3]);
            decoded.masks.data().chunks(h * w).map(|c| Plane { width: w, height: h, data: c.to_vec() }).collect()
        })
    }
}

fn constant(t: &Tensor) -> Var {
    Var::constant(&t.shape, t.data.clone())
}

fn corners(boxes: &[[f32; 4]]) -> Var {
    Var::constant(&[boxes.len(), 4], boxes.iter().flatten().copied().collect())
}

impl Networks for EagerNetworks {
    fn input_size(&self) -> usize {
        self.size
    }
    fn structures(&self) -> usize {
        self.structures
    }
    fn encode(&self, image: &Tensor) -> Result<Tensor, EngineError> {
        Ok(self.eager.no_grad(|e| encode(e, &constant(image)).to_tensor()))
    }
    fn classify(&self, embedding: &Tensor) -> Result<ClassifierOutput, EngineError> {
        let c = self.eager.no_grad(|e| classify(e, &constant(embedding)));
        let cams = planes(&c.cam.to_tensor(), self.structures, NAME, "classifier")?;
        Ok(ClassifierOutput { logits: c.logits.data().to_vec(), cams })
    }
    fn decode(&self, embedding: &Tensor, boxes: &[[f32; 4]]) -> Result<DecoderOutput, EngineError> {
        let d =
            self.eager.no_grad(|e| decode(e, &constant(embedding), &corners(boxes), Some(&e.param("class_tokens"))));
        let masks = planes(&d.masks.to_tensor(), self.structures, NAME, "decoder")?;
        Ok(DecoderOutput { masks, iou: d.iou.data().to_vec() })
    }
    fn identity(&self) -> EngineIdentity {
        EngineIdentity { kind: NAME.into(), version: env!("CARGO_PKG_VERSION").into(), precision: "fp32".into() }
    }
}
