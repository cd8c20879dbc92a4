//! AdamW on the device, over all trainable parameters at once.

use std::collections::{BTreeMap, HashMap};

use tch::{Device, Kind, Tensor as Torched};

use super::{Torch, Value, read};
use crate::engine::Tensor;
use crate::model::autograd::Learner;
use crate::model::eager::{AdamConfig, StateError};

/// The torch interpreter and its optimiser. The trainable parameters are views of one flat tensor, so that a step of the optimiser is a
/// dozen kernels and not a dozen for each of some hundred parameters.
pub struct TorchLearner {
    torch: Torch,
    config: AdamConfig,
    parameters: Vec<Parameter>,
    /// All values, and Adam's moments, one after the other.
    values: Torched,
    mean: Torched,
    square: Torched,
    /// For each value, which parameter it belongs to.
    owner: Torched,
}

struct Parameter {
    name: String,
    shape: Vec<usize>,
    leaf: Torched,
    /// Factor on the learning rate.
    factor: f32,
    /// Steps that this parameter has taken.
    steps: u32,
}

impl TorchLearner {
    /// A learner on `device` over frozen `base` parameters and trainable ones, which go before those of the same name; with what an
    /// earlier one's [`Learner::state`] gave, if any.
    ///
    /// # Errors
    /// [`StateError`] when the state does not fit the parameters.
    pub fn new(
        device: Device,
        base: &BTreeMap<String, Tensor>,
        trainable: &BTreeMap<String, Tensor>,
        config: AdamConfig,
        factors: &[(String, f32)],
        state: Option<&BTreeMap<String, Tensor>>,
    ) -> Result<Self, StateError> {
        let torch = Torch::frozen(device, base.iter().filter(|(n, _)| !trainable.contains_key(*n)));
        let total: usize = trainable.values().map(Tensor::len).sum();
        let (mut flat, mut mean, mut square) =
            (Vec::with_capacity(total), Vec::with_capacity(total), Vec::with_capacity(total));
        let mut owner = Vec::with_capacity(total);
        let mut steps = Vec::with_capacity(trainable.len());
        for (i, (name, t)) in trainable.iter().enumerate() {
            let saved = state.map(|s| saved_state(s, name, t.len())).transpose()?.flatten();
            let (m, s, n) = saved.unwrap_or_else(|| (vec![0.0; t.len()], vec![0.0; t.len()], 0));
            flat.extend_from_slice(&t.data);
            mean.extend(m);
            square.extend(s);
            owner.extend(std::iter::repeat_n(i as i64, t.len()));
            steps.push(n);
        }
        let on = |v: &[f32]| Torched::from_slice(v).to_device(device);
        let values = on(&flat);
        let mut at = 0;
        let mut parameters = Vec::with_capacity(trainable.len());
        for ((name, t), steps) in trainable.iter().zip(steps) {
            let view = values.narrow(0, at, t.len() as i64).view(super::extents(&t.shape).as_slice());
            at += t.len() as i64;
            let leaf = view.detach().set_requires_grad(true);
            let factor = factors.iter().find(|(p, _)| name.starts_with(p.as_str())).map_or(1.0, |(_, f)| *f);
            parameters.push(Parameter { name: name.clone(), shape: t.shape.clone(), leaf, factor, steps });
        }
        let leaves: HashMap<_, _> = parameters.iter().map(|p| (p.name.clone(), p.leaf.shallow_clone())).collect();
        torch.params().extend(leaves);
        let owner = Torched::from_slice(&owner).to_device(device);
        Ok(TorchLearner { mean: on(&mean), square: on(&square), torch, config, parameters, values, owner })
    }

    /// Slices of a flat tensor by parameter.
    fn split(&self, flat: &Torched) -> Vec<Vec<f32>> {
        let all = read(flat);
        let mut rest = &all[..];
        let mut out = Vec::with_capacity(self.parameters.len());
        for p in &self.parameters {
            let (mine, others) = rest.split_at(p.shape.iter().product());
            out.push(mine.to_vec());
            rest = others;
        }
        out
    }
}

/// The moments and the steps of one parameter; none if it never took a step.
#[allow(clippy::type_complexity)]
fn saved_state(
    state: &BTreeMap<String, Tensor>,
    name: &str,
    len: usize,
) -> Result<Option<(Vec<f32>, Vec<f32>, u32)>, StateError> {
    let part = |suffix: &str, len: usize| {
        let key = format!("{name}.{suffix}");
        match state.get(&key) {
            Some(t) if t.len() == len => Ok(t.data.clone()),
            _ => Err(StateError::of(key)),
        }
    };
    if !state.contains_key(&format!("{name}.steps")) {
        return Ok(None);
    }
    let halves = part("steps", 2)?;
    Ok(Some((part("mean", len)?, part("square", len)?, ((halves[0] as u32) << 16) | halves[1] as u32)))
}

impl Learner for TorchLearner {
    type Ops = Torch;

    fn ops(&self) -> &Torch {
        &self.torch
    }

    fn descend(&mut self, loss: &Value, lr: f32, clip: f32) -> f32 {
        let leaves: Vec<&Torched> = self.parameters.iter().map(|p| &p.leaf).collect();
        let found = Torched::run_backward(&[&loss.0], &leaves, false, false);
        tch::no_grad(|| {
            // One row each: rate, root, kept share, whether the parameter has a gradient.
            let count = self.parameters.len();
            let mut rows = vec![0.0f32; 4 * count];
            let mut parts = Vec::with_capacity(count);
            let c = self.config;
            for (i, (p, g)) in self.parameters.iter_mut().zip(&found).enumerate() {
                let live = g.defined();
                if live {
                    p.steps += 1;
                    parts.push(g.reshape([-1]));
                } else {
                    parts.push(Torched::zeros([p.leaf.numel() as i64], (Kind::Float, p.leaf.device())));
                }
                let t = f64::from(p.steps.max(1));
                let lr = lr * p.factor;
                rows[i] = (f64::from(lr) / (1.0 - f64::from(c.beta1).powf(t))) as f32;
                rows[count + i] = (1.0 / (1.0 - f64::from(c.beta2).powf(t)).sqrt()) as f32;
                rows[2 * count + i] = if live { 1.0 - lr * c.weight_decay } else { 1.0 };
                rows[3 * count + i] = f32::from(u8::from(live));
            }
            let gradient = Torched::cat(&parts, 0);
            let norm = gradient.norm();
            let norm_value = norm.double_value(&[]) as f32;
            let gradient = if norm_value > clip { gradient * f64::from(clip / norm_value) } else { gradient };
            let rows = Torched::from_slice(&rows).reshape([4, count as i64]).to_device(self.values.device());
            let each = rows.index_select(1, &self.owner);
            let (rate, root, keep, live) = (each.get(0), each.get(1), each.get(2), each.get(3));
            let (b1, b2) = (f64::from(c.beta1), f64::from(c.beta2));
            // m <- b m + (1 - b) g, where there is a gradient.
            self.mean += (&gradient - &self.mean) * (1.0 - b1) * &live;
            self.square += (&gradient * &gradient - &self.square) * (1.0 - b2) * &live;
            let step = rate * &self.mean / (self.square.sqrt() * root + f64::from(c.eps)) * live;
            let next = &self.values * keep - step;
            self.values.copy_(&next);
            norm_value
        })
    }

    fn parameters(&self) -> BTreeMap<String, Tensor> {
        let split = self.split(&self.values);
        self.parameters.iter().zip(split).map(|(p, v)| (p.name.clone(), Tensor::new(&p.shape, v))).collect()
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        let mut out = BTreeMap::new();
        let (mean, square) = (self.split(&self.mean), self.split(&self.square));
        for ((p, mean), square) in self.parameters.iter().zip(mean).zip(square).filter(|((p, _), _)| p.steps > 0) {
            let shape = [mean.len()];
            out.insert(format!("{}.mean", p.name), Tensor::new(&shape, mean));
            out.insert(format!("{}.square", p.name), Tensor::new(&shape, square));
            // As two halves: f32 counts exactly only to 2^24.
            let halves = vec![(p.steps >> 16) as f32, (p.steps & 0xffff) as f32];
            out.insert(format!("{}.steps", p.name), Tensor::new(&[2], halves));
        }
        out
    }
}
