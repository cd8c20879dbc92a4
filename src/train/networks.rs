//! The network run by the eager interpreter, as the pipeline calls it: evaluation without an engine, and the zero-shot
//! base for comparison.

use std::collections::BTreeMap;

use super::init::parameters;
use super::unet::UnetNetworks;
use crate::engine::{EngineError, EngineIdentity, Tensor};
use crate::image::Plane;
use crate::model::eager::{Eager, Var};
use crate::model::network::{classify, decode, encode, feedback, normalised};
use crate::model::ops::Ops;
use crate::pipeline::{ClassifierOutput, DecoderOutput, Networks, PromptRule, cam_box, planes};

const NAME: &str = "eager";

/// The trained network as the pipeline calls it: the adapted base, or the U-Net where the tensors are one's.
pub fn networks_of(
    base: &BTreeMap<String, Tensor>,
    tensors: &BTreeMap<String, Tensor>,
    size: usize,
) -> Box<dyn Networks> {
    if tensors.contains_key("unet.head.weight") {
        Box::new(UnetNetworks::new(tensors, size))
    } else {
        Box::new(EagerNetworks::new(base, tensors, size))
    }
}

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

    /// Gradient feedback without truth: the surrogate loss is one minus the Dice of each mask with itself above its threshold.
    fn fed_back(&self, embedding: &Var, cam: &Var) -> Result<Var, EngineError> {
        let e = &self.eager;
        let cams = planes(&cam.to_tensor(), self.structures, NAME, "classifier")?;
        let boxes: Vec<[f32; 4]> = cams.iter().map(|c| cam_box(c, &PromptRule::default()).corners).collect();
        let leaf = embedding.as_leaf();
        let masks = decode(e, &leaf, &corners(&boxes), Some(&e.param("class_tokens"))).masks;
        let n = masks.data().len() / self.structures.max(1);
        let p = e.reshape(&e.sigmoid(&masks), &[self.structures, n]);
        let hard = p.data().iter().map(|&v| f32::from(u8::from(v > 0.5))).collect();
        let hard = Var::constant(&[self.structures, n], hard);
        let both = e.sum(&e.mul(&p, &hard), &[1]);
        let sum = e.add(&e.sum(&p, &[1]), &e.sum(&hard, &[1]));
        let dice = e.div(&e.offset(&e.scale(&both, 2.0), 1.0), &e.offset(&sum, 1.0));
        let loss = e.offset(&e.scale(&e.mean_all(&dice), -1.0), 1.0);
        Ok(match e.backward_to(&loss, &[&leaf]).into_iter().next().flatten() {
            Some(g) => e.no_grad(|e| feedback(e, embedding, &Var::constant(embedding.shape(), normalised(g.data())))),
            None => embedding.clone(),
        })
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
        let embedding = constant(embedding);
        let mut c = self.eager.no_grad(|e| classify(e, &embedding));
        // An adapter that carries the feedback's tensors was trained to use it; others have had them taken out.
        if self.eager.has_param("feedback.gamma") {
            let fed = self.fed_back(&embedding, &c.cam)?;
            c = self.eager.no_grad(|e| classify(e, &fed));
        }
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
