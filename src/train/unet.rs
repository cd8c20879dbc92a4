//! The U-Net baseline: its start, its training step, and how the pipeline calls it.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::sample::Sample;
use super::settings::TrainSettings;
use super::step::{Outcome, PRESENT, mask_losses};
use crate::engine::{EngineError, EngineIdentity, Tensor};
use crate::image::Plane;
use crate::model::autograd::Autograd;
use crate::model::unet::{shapes, unet};
use crate::pipeline::{ClassifierOutput, DecoderOutput, Networks, to_input};

/// Evidence, in pixels of the mask, that makes a structure present: the U-Net has no classifier.
const LEAST: f32 = 24.0;

/// Fresh parameters: He initialisation for weights, 1 for gains, 0 for biases.
pub fn fresh_unet(structures: usize, base: usize, seed: u64) -> BTreeMap<String, Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    shapes(base, structures)
        .into_iter()
        .map(|(name, shape)| {
            let n: usize = shape.iter().product();
            let fan = shape.iter().skip(1).product::<usize>().max(1);
            let sd = (2.0 / fan as f32).sqrt();
            let data = match name.rsplit('.').next() {
                Some("gain") => vec![1.0; n],
                Some("bias") => vec![0.0; n],
                _ => (0..n)
                    .map(|_| sd * <StandardNormal as Distribution<f32>>::sample(&StandardNormal, &mut rng))
                    .collect(),
            };
            (name, Tensor::new(&shape, data))
        })
        .collect()
}

/// Runs one slice: the same Dice, competition and mask losses as the adapted model's.
pub(super) fn unet_step<A: Autograd>(ops: &A, sample: &Sample, settings: &TrainSettings) -> Outcome<A::T> {
    let image = to_input(&sample.grey);
    let logits = unet(ops, &ops.constant(&image.shape, image.data));
    let s = ops.shape(&logits);
    let asked: Vec<usize> = (0..s[1]).collect();
    let count = |k: usize| sample.labels.data.iter().filter(|&&v| usize::from(v) == k + 1).count();
    let present: Vec<usize> = asked.iter().copied().filter(|&k| count(k) >= PRESENT).collect();
    let masks = ops.reshape(&logits, &[s[1], 1, s[2], s[3]]);
    let parts = mask_losses(ops, &masks, sample, &asked, &present);
    let w = &settings.weights;
    let mut total = ops.scale(&parts.competition, w.competition);
    for (part, weight) in [(&parts.dice, w.dice), (&parts.mask, w.mask)] {
        total = ops.add(&total, &ops.scale(part, weight));
    }
    Outcome::of_masks(ops, total, parts)
}

/// A trained U-Net as the pipeline calls it. Its "embedding" is the stack of mask logits, boxes mean nothing to it, and a
/// structure is present where its mask has evidence.
pub struct UnetNetworks<A> {
    ops: A,
    size: usize,
    structures: usize,
}

impl<A> UnetNetworks<A> {
    /// For S x S inputs, over an interpreter that holds the trained parameters.
    pub(super) fn over(ops: A, tensors: &BTreeMap<String, Tensor>, size: usize) -> Self {
        UnetNetworks { ops, size, structures: tensors.get("unet.head.bias").map_or(0, Tensor::len) }
    }

    fn masks(&self, embedding: &Tensor) -> Vec<Plane<f32>> {
        let n = embedding.shape[2];
        embedding.data.chunks(n * n).map(|c| Plane { width: n, height: n, data: c.to_vec() }).collect()
    }
}

impl<A: Autograd + Send + Sync> Networks for UnetNetworks<A> {
    fn input_size(&self) -> usize {
        self.size
    }
    fn structures(&self) -> usize {
        self.structures
    }
    fn encode(&self, image: &Tensor) -> Result<Tensor, EngineError> {
        Ok(self.ops.no_grad(|e| e.to_tensor(&unet(e, &e.constant(&image.shape, image.data.clone())))))
    }
    fn classify(&self, embedding: &Tensor) -> Result<ClassifierOutput, EngineError> {
        let cams = self.masks(embedding);
        let area = |m: &Plane<f32>| m.data.iter().map(|v| 1.0 / (1.0 + (-v).exp())).sum::<f32>();
        Ok(ClassifierOutput { logits: cams.iter().map(|m| (area(m) - LEAST) / LEAST * 4.0).collect(), cams })
    }
    fn decode(&self, embedding: &Tensor, _: &[[f32; 4]]) -> Result<DecoderOutput, EngineError> {
        let masks = self.masks(embedding);
        let iou = vec![1.0; masks.len()];
        Ok(DecoderOutput { masks, iou })
    }
    fn identity(&self) -> EngineIdentity {
        EngineIdentity { kind: "u-net".into(), version: env!("CARGO_PKG_VERSION").into(), precision: "fp32".into() }
    }
}
