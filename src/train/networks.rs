//! The network run by the eager interpreter, as the pipeline calls it: evaluation without an engine, and the zero-shot
//! base for comparison.

use std::collections::BTreeMap;

use super::init::parameters;
use crate::engine::{EngineError, EngineIdentity, Tensor};
use crate::image::Plane;
use crate::model::autograd::Autograd;
use crate::model::eager::Eager;
use crate::model::network::{classify, decode, encode, feedback, normalised};
use crate::pipeline::{ClassifierOutput, DecoderOutput, Networks, PromptRule, cam_box, planes};

const NAME: &str = "eager";

/// Base and adapter in an interpreter.
pub struct TrainedNetworks<A> {
    ops: A,
    size: usize,
    structures: usize,
}

/// Base and adapter in the eager interpreter.
pub type EagerNetworks = TrainedNetworks<Eager>;

impl EagerNetworks {
    /// The network with an adapter's tensors, which must have passed [`crate::adapter::Adapter::check`].
    pub fn new(base: &BTreeMap<String, Tensor>, adapter: &BTreeMap<String, Tensor>, size: usize) -> Self {
        Self::over(Eager::new(parameters(base, adapter)), adapter, size)
    }

    /// The base alone: [`TrainedNetworks::zero_shot`] decodes, nothing classifies.
    pub fn base(base: &BTreeMap<String, Tensor>, size: usize) -> Self {
        Self::new(base, &BTreeMap::new(), size)
    }
}

impl<A: Autograd> TrainedNetworks<A> {
    /// Over an interpreter that holds base and adapter.
    pub(super) fn over(ops: A, adapter: &BTreeMap<String, Tensor>, size: usize) -> Self {
        TrainedNetworks { ops, size, structures: adapter.get("class_tokens").map_or(0, |t| t.shape[0]) }
    }

    /// Gradient feedback without truth: the surrogate loss is one minus the Dice of each mask with itself above its threshold.
    fn fed_back(&self, embedding: &A::T, cam: &A::T) -> Result<A::T, EngineError> {
        let e = &self.ops;
        let cams = planes(&e.to_tensor(cam), self.structures, NAME, "classifier")?;
        let boxes: Vec<[f32; 4]> = cams.iter().map(|c| cam_box(c, &PromptRule::default()).corners).collect();
        let leaf = e.as_leaf(embedding);
        let masks = decode(e, &leaf, &corners(e, &boxes), Some(&e.param("class_tokens"))).masks;
        let n = e.shape(&masks).iter().product::<usize>() / self.structures.max(1);
        let p = e.reshape(&e.sigmoid(&masks), &[self.structures, n]);
        let hard = e.step(&e.offset(&p, -0.5));
        let both = e.sum(&e.mul(&p, &hard), &[1]);
        let sum = e.add(&e.sum(&p, &[1]), &e.sum(&hard, &[1]));
        let dice = e.div(&e.offset(&e.scale(&both, 2.0), 1.0), &e.offset(&sum, 1.0));
        let loss = e.offset(&e.scale(&e.mean_all(&dice), -1.0), 1.0);
        Ok(match e.backward_to(&loss, &[&leaf]).into_iter().next().flatten() {
            Some(g) => e.no_grad(|e| {
                let asked = e.constant(&e.shape(embedding), normalised(&e.values(&g)));
                feedback(e, embedding, &asked)
            }),
            None => embedding.clone(),
        })
    }

    /// Upstream SAM's own decoding of boxes, `[h, w]` logits for each.
    pub fn zero_shot(&self, embedding: &Tensor, boxes: &[[f32; 4]]) -> Vec<Plane<f32>> {
        self.ops.no_grad(|e| {
            let decoded = decode(e, &constant(e, embedding), &corners(e, boxes), None);
            let s = e.shape(&decoded.masks);
            let (h, w) = (s[2], s[3]);
            e.values(&decoded.masks).chunks(h * w).map(|c| Plane { width: w, height: h, data: c.to_vec() }).collect()
        })
    }
}

fn constant<A: Autograd>(ops: &A, t: &Tensor) -> A::T {
    ops.constant(&t.shape, t.data.clone())
}

fn corners<A: Autograd>(ops: &A, boxes: &[[f32; 4]]) -> A::T {
    ops.constant(&[boxes.len(), 4], boxes.iter().flatten().copied().collect())
}

impl<A: Autograd + Send + Sync> Networks for TrainedNetworks<A> {
    fn input_size(&self) -> usize {
        self.size
    }
    fn structures(&self) -> usize {
        self.structures
    }
    fn encode(&self, image: &Tensor) -> Result<Tensor, EngineError> {
        Ok(self.ops.no_grad(|e| e.to_tensor(&encode(e, &constant(e, image)))))
    }
    fn classify(&self, embedding: &Tensor) -> Result<ClassifierOutput, EngineError> {
        let embedding = constant(&self.ops, embedding);
        let mut c = self.ops.no_grad(|e| classify(e, &embedding));
        // An adapter that carries the feedback's tensors was trained to use it; others have had them taken out.
        if self.ops.has_param("feedback.gamma") {
            let fed = self.fed_back(&embedding, &c.cam)?;
            c = self.ops.no_grad(|e| classify(e, &fed));
        }
        let cams = planes(&self.ops.to_tensor(&c.cam), self.structures, NAME, "classifier")?;
        Ok(ClassifierOutput { logits: self.ops.values(&c.logits), cams })
    }
    fn decode(&self, embedding: &Tensor, boxes: &[[f32; 4]]) -> Result<DecoderOutput, EngineError> {
        let d = self
            .ops
            .no_grad(|e| decode(e, &constant(e, embedding), &corners(e, boxes), Some(&e.param("class_tokens"))));
        let masks = planes(&self.ops.to_tensor(&d.masks), self.structures, NAME, "decoder")?;
        Ok(DecoderOutput { masks, iou: self.ops.values(&d.iou) })
    }
    fn identity(&self) -> EngineIdentity {
        EngineIdentity { kind: NAME.into(), version: env!("CARGO_PKG_VERSION").into(), precision: "fp32".into() }
    }
}
