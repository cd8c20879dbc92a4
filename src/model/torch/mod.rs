//! The torch interpreter: the network through libtorch, on an NVIDIA GPU (or, to be tested, on the CPU).
//!
//! The training host alone has it (feature `cuda`). Values, random masks and the optimiser's arithmetic are those of the eager
//! interpreter up to rounding; sums on a GPU run in no fixed order, so that two runs agree closely and not to the bit.

mod learn;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Reduction, Tensor as Torched};

use super::autograd::Autograd;
use super::ops::Ops;
use crate::engine::Tensor;

pub use learn::TorchLearner;

/// The interpreter: parameters on a device, and a random generator.
pub struct Torch {
    device: Device,
    /// libtorch's handles may go from thread to thread but not be shared; the lock makes the interpreter sharable.
    params: Mutex<HashMap<String, Torched>>,
    rng: Mutex<ChaCha8Rng>,
}

fn extents(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&n| n as i64).collect()
}

impl Torch {
    /// An interpreter over parameters that never change.
    pub fn frozen<'a>(device: Device, params: impl IntoIterator<Item = (&'a String, &'a Tensor)>) -> Self {
        let torch = Torch { device, params: Mutex::default(), rng: Mutex::new(ChaCha8Rng::seed_from_u64(0)) };
        let placed: HashMap<_, _> = params.into_iter().map(|(n, t)| (n.clone(), torch.place(t))).collect();
        *torch.params() = placed;
        torch
    }

    /// The device it runs on, as it is written into results.
    pub fn device_name(&self) -> String {
        match self.device {
            Device::Cuda(i) => format!("cuda:{i}"),
            _ => "cpu".into(),
        }
    }

    fn params(&self) -> MutexGuard<'_, HashMap<String, Torched>> {
        self.params.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, t: &Tensor) -> Torched {
        Torched::from_slice(&t.data).reshape(extents(&t.shape)).to_device(self.device)
    }
}

/// The values of a tensor on any device, row-major.
fn read(x: &Torched) -> Vec<f32> {
    let flat = x.detach().to_device(Device::Cpu).contiguous().reshape([-1]);
    let mut out = vec![0.0f32; flat.numel()];
    let count = out.len();
    flat.copy_data(&mut out, count);
    out
}

impl Ops for Torch {
    type T = Value;

    fn shape(&self, x: &Value) -> Vec<usize> {
        x.0.size().iter().map(|&n| n as usize).collect()
    }
    fn param(&self, name: &str) -> Value {
        match self.params().get(name) {
            Some(t) => Value(t.shallow_clone()),
            None => panic!("no parameter {name:?}: weights are checked before a network is built on them"),
        }
    }
    fn has_param(&self, name: &str) -> bool {
        self.params().contains_key(name)
    }
    fn constant(&self, shape: &[usize], data: Vec<f32>) -> Value {
        Value(Torched::from_slice(&data).reshape(extents(shape)).to_device(self.device))
    }
    fn conv2d(&self, x: &Value, w: &Value, b: Option<&Value>, stride: usize, pad: usize, groups: usize) -> Value {
        let (s, p) = (stride as i64, pad as i64);
        Value(x.0.conv2d(&w.0, b.map(|b| &b.0), [s, s], [p, p], [1, 1], groups as i64))
    }
    fn conv_transpose2x2(&self, x: &Value, w: &Value, b: &Value) -> Value {
        Value(x.0.conv_transpose2d(&w.0, Some(&b.0), [2, 2], [0, 0], [0, 0], 1, [1, 1]))
    }
    fn linear(&self, x: &Value, w: &Value, b: Option<&Value>) -> Value {
        Value(x.0.linear(&w.0, b.map(|b| &b.0)))
    }
    fn matmul(&self, a: &Value, b: &Value) -> Value {
        Value(a.0.matmul(&b.0))
    }
    fn add(&self, a: &Value, b: &Value) -> Value {
        Value(&a.0 + &b.0)
    }
    fn sub(&self, a: &Value, b: &Value) -> Value {
        Value(&a.0 - &b.0)
    }
    fn mul(&self, a: &Value, b: &Value) -> Value {
        Value(&a.0 * &b.0)
    }
    fn div(&self, a: &Value, b: &Value) -> Value {
        Value(&a.0 / &b.0)
    }
    fn scale(&self, x: &Value, k: f32) -> Value {
        Value(&x.0 * f64::from(k))
    }
    fn offset(&self, x: &Value, k: f32) -> Value {
        Value(&x.0 + f64::from(k))
    }
    fn gelu(&self, x: &Value) -> Value {
        Value(x.0.gelu("none"))
    }
    fn relu(&self, x: &Value) -> Value {
        Value(x.0.relu())
    }
    fn step(&self, x: &Value) -> Value {
        Value(x.0.detach().gt(0.0).to_kind(Kind::Float))
    }
    fn sigmoid(&self, x: &Value) -> Value {
        Value(x.0.sigmoid())
    }
    fn sin(&self, x: &Value) -> Value {
        Value(x.0.sin())
    }
    fn cos(&self, x: &Value) -> Value {
        Value(x.0.cos())
    }
    fn log(&self, x: &Value) -> Value {
        Value(x.0.log())
    }
    fn softmax(&self, x: &Value) -> Value {
        Value(x.0.softmax(-1, Kind::Float))
    }
    fn layer_norm(&self, x: &Value, gain: &Value, bias: &Value, eps: f32) -> Value {
        Value(x.0.layer_norm(gain.0.size(), Some(&gain.0), Some(&bias.0), f64::from(eps), true))
    }
    fn reshape(&self, x: &Value, shape: &[usize]) -> Value {
        Value(x.0.reshape(extents(shape)))
    }
    fn permute(&self, x: &Value, axes: &[usize]) -> Value {
        Value(x.0.permute(extents(axes)))
    }
    fn slice(&self, x: &Value, axis: usize, start: usize, end: usize) -> Value {
        Value(x.0.narrow(axis as i64, start as i64, (end - start) as i64))
    }
    fn concat(&self, xs: &[Value], axis: usize) -> Value {
        let all: Vec<&Torched> = xs.iter().map(|x| &x.0).collect();
        Value(Torched::cat(&all, axis as i64))
    }
    fn pad_end(&self, x: &Value, axis: usize, count: usize) -> Value {
        // libtorch counts pairs of (before, after) from the last axis.
        let last = x.0.dim() - 1;
        let mut pads = vec![0i64; 2 * (last - axis + 1)];
        if let Some(after) = pads.last_mut() {
            *after = count as i64;
        }
        Value(x.0.constant_pad_nd(pads))
    }
    fn expand(&self, x: &Value, shape: &[usize]) -> Value {
        Value(x.0.expand(extents(shape), false))
    }
    fn mean(&self, x: &Value, axes: &[usize]) -> Value {
        Value(x.0.mean_dim(extents(axes).as_slice(), true, Kind::Float))
    }
    fn sum(&self, x: &Value, axes: &[usize]) -> Value {
        Value(x.0.sum_dim_intlist(extents(axes).as_slice(), true, Kind::Float))
    }
    fn resize_bilinear(&self, x: &Value, height: usize, width: usize) -> Value {
        Value(x.0.upsample_bilinear2d([height as i64, width as i64], false, None, None))
    }
}

/// A tensor of the torch interpreter: a handle on values that lie on its device.
pub struct Value(Torched);

impl Clone for Value {
    fn clone(&self) -> Self {
        Value(self.0.shallow_clone())
    }
}

impl Autograd for Torch {
    fn no_grad<R>(&self, f: impl FnOnce(&Self) -> R) -> R {
        tch::no_grad(|| f(self))
    }
    fn reseed(&self, seed: u64) {
        *self.rng.lock().unwrap_or_else(PoisonError::into_inner) = ChaCha8Rng::seed_from_u64(seed);
    }
    fn dropout_mask(&self, shape: &[usize], p: f32) -> Value {
        let keep = 1.0 / (1.0 - p);
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let data = (0..shape.iter().product()).map(|_| if rng.random::<f32>() < p { 0.0 } else { keep }).collect();
        self.constant(shape, data)
    }
    fn bce_with_logits(&self, logits: &Value, target: &Value) -> Value {
        let none: Option<&Torched> = None;
        Value(logits.0.binary_cross_entropy_with_logits(&target.0.detach(), none, none, Reduction::None))
    }
    fn as_leaf(&self, x: &Value) -> Value {
        Value(x.0.detach().set_requires_grad(true))
    }
    fn backward_to(&self, loss: &Value, targets: &[&Value]) -> Vec<Option<Value>> {
        let wanted: Vec<&Torched> = targets.iter().map(|t| &t.0).collect();
        let found = Torched::run_backward(&[&loss.0], &wanted, true, false);
        found.into_iter().map(|g| g.defined().then(|| Value(g.detach()))).collect()
    }
    fn values(&self, x: &Value) -> Vec<f32> {
        read(&x.0)
    }
}
