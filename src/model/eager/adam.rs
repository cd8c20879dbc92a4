//! Adam, with decoupled weight decay (AdamW) where asked for.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::params::{Gradients, ParamStore};
use super::simd::{CHUNK, wide};
use crate::engine::Tensor;

/// The optimiser's constants.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AdamConfig {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the root of the squared mean.
    pub eps: f32,
    /// Decoupled weight decay per step, times the learning rate; 0 is plain Adam.
    pub weight_decay: f32,
}

impl Default for AdamConfig {
    fn default() -> Self {
        AdamConfig { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// Adam with its moments.
#[derive(Clone, Debug)]
pub struct Adam {
    /// Constants; the learning rate may be changed between steps.
    pub config: AdamConfig,
    /// Factors on the learning rate of parameters whose name starts so; the first that fits holds.
    pub factors: Vec<(String, f32)>,
    moments: BTreeMap<String, Moments>,
}

#[derive(Clone, Debug)]
struct Moments {
    /// Steps that this parameter has taken.
    steps: u32,
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// A saved optimiser state that does not fit.
#[derive(Debug, thiserror::Error)]
#[error("the optimiser state lacks or misshapes {0:?}; start training anew or use the checkpoint that belongs to it")]
pub struct StateError(String);

impl StateError {
    /// The part that is missing or misshaped.
    #[cfg(feature = "cuda")]
    pub(crate) fn of(part: String) -> Self {
        StateError(part)
    }
}

impl Adam {
    /// An optimiser that has taken no step.
    pub fn new(config: AdamConfig) -> Self {
        Adam { config, factors: Vec::new(), moments: BTreeMap::new() }
    }

    /// One step of every parameter that has a gradient.
    pub fn step(&mut self, params: &mut ParamStore, gradients: &Gradients) {
        let c = self.config;
        for (name, g) in gradients.iter() {
            let Some(value) = params.value_mut(name) else { continue };
            let m = self.moments.entry(name.to_owned()).or_insert_with(|| Moments {
                steps: 0,
                mean: vec![0.0; g.len()],
                square: vec![0.0; g.len()],
            });
            m.steps += 1;
            let t = f64::from(m.steps);
            let correct_mean = 1.0 - f64::from(c.beta1).powf(t);
            let correct_square = (1.0 - f64::from(c.beta2).powf(t)).sqrt();
            let factor = self.factors.iter().find(|(p, _)| name.starts_with(p.as_str())).map_or(1.0, |(_, f)| *f);
            let lr = c.lr * factor;
            let rate = (f64::from(lr) / correct_mean) as f32;
            let root = (1.0 / correct_square) as f32;
            let keep = 1.0 - lr * c.weight_decay;
            let moments = m.mean.par_chunks_mut(CHUNK).zip(m.square.par_chunks_mut(CHUNK));
            value.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(moments).for_each(
                |((value, g), (mean, square))| {
                    wide(
                        #[inline(always)]
                        || {
                            let moments = mean.iter_mut().zip(square);
                            for ((x, &g), (mean, square)) in value.iter_mut().zip(g).zip(moments) {
                                *mean = c.beta1 * *mean + (1.0 - c.beta1) * g;
                                *square = c.beta2 * *square + (1.0 - c.beta2) * g * g;
                                *x = *x * keep - rate * *mean / (square.sqrt() * root + c.eps);
                            }
                        },
                    );
                },
            );
        }
    }

    /// The state for a checkpoint: `<name>.mean`, `<name>.square` and `<name>.steps` of each parameter stepped so far.
    pub fn to_tensors(&self) -> BTreeMap<String, Tensor> {
        let mut out = BTreeMap::new();
        for (name, m) in &self.moments {
            let shape = [m.mean.len()];
            out.insert(format!("{name}.mean"), Tensor::new(&shape, m.mean.clone()));
            out.insert(format!("{name}.square"), Tensor::new(&shape, m.square.clone()));
            // As two halves: f32 counts exactly only to 2^24.
            let halves = vec![(m.steps >> 16) as f32, (m.steps & 0xffff) as f32];
            out.insert(format!("{name}.steps"), Tensor::new(&[2], halves));
        }
        out
    }

    /// The optimiser as it was when [`Adam::to_tensors`] was called.
    ///
    /// # Errors
    /// When a part is missing or has another size than the parameter of that name in `params`.
    pub fn from_tensors(
        config: AdamConfig,
        params: &ParamStore,
        state: &BTreeMap<String, Tensor>,
    ) -> Result<Self, StateError> {
        let mut moments = BTreeMap::new();
        for name in state.keys().filter_map(|k| k.strip_suffix(".steps")) {
            let len = params.trainable().find(|(n, _)| *n == name).map(|(_, v)| v.data().len());
            let part = |suffix: &str, len: usize| {
                let key = format!("{name}.{suffix}");
                match state.get(&key) {
                    Some(t) if t.len() == len => Ok(t.data.clone()),
                    _ => Err(StateError(key)),
                }
            };
            let len = len.ok_or_else(|| StateError(name.to_owned()))?;
            let halves = part("steps", 2)?;
            let steps = ((halves[0] as u32) << 16) | halves[1] as u32;
            moments.insert(name.to_owned(), Moments { steps, mean: part("mean", len)?, square: part("square", len)? });
        }
        Ok(Adam { config, factors: Vec::new(), moments })
    }
}
