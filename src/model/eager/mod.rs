//! The eager interpreter: computes at once on the CPU in f32 and keeps what a gradient needs.
//!
//! A reverse-mode tape with forward and backward passes written by hand. It records only where a gradient can reach: a frozen prefix
//! and frozen weights cost nothing. All sums run in a fixed order, so the same seed gives the same numbers on any number of threads.

mod adam;
mod buffer;
mod conv;
mod depthwise;
mod gemm;
mod layout;
mod learn;
mod linear;
mod loss;
mod norm;
mod params;
mod pointwise;
mod reduce;
mod resize;
mod shape;
mod simd;
mod tape;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::ops::Ops;
use buffer::Buf;

pub use adam::{Adam, AdamConfig, StateError};
pub use buffer::release_buffers;
pub use learn::EagerLearner;
pub use params::{Gradients, ParamStore};
pub use tape::Var;

/// The interpreter: parameters, a random generator, and whether it records.
///
/// ```
/// use scanside::engine::Tensor;
/// use scanside::model::eager::{Adam, AdamConfig, Eager, ParamStore, Var};
/// use scanside::model::ops::Ops;
///
/// let mut params = ParamStore::new();
/// params.insert_trainable("w", Tensor::new(&[1, 2], vec![0.0, 0.0]));
/// let mut eager = Eager::new(params);
/// let mut adam = Adam::new(AdamConfig { lr: 0.1, ..AdamConfig::default() });
/// for _ in 0..200 {
///     let y = eager.linear(&Var::constant(&[1, 2], vec![1.0, 3.0]), &eager.param("w"), None);
///     let error = eager.offset(&y, -5.0);
///     let loss = eager.sum_all(&eager.mul(&error, &error));
///     let gradients = eager.backward(&loss);
///     adam.step(eager.params_mut(), &gradients);
/// }
/// let w = eager.param("w");
/// assert!((w.data()[0] + 3.0 * w.data()[1] - 5.0).abs() < 1e-2);
/// ```
pub struct Eager {
    params: ParamStore,
    recording: AtomicBool,
    rng: Mutex<ChaCha8Rng>,
}

impl Eager {
    /// An interpreter over these parameters, recording, with seed 0.
    pub fn new(params: ParamStore) -> Self {
        Eager { params, recording: AtomicBool::new(true), rng: Mutex::new(ChaCha8Rng::seed_from_u64(0)) }
    }

    /// Starts the random generator (dropout) anew.
    pub fn reseed(&self, seed: u64) {
        *self.rng() = ChaCha8Rng::seed_from_u64(seed);
    }

    fn rng(&self) -> MutexGuard<'_, ChaCha8Rng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The parameters.
    pub fn params(&self) -> &ParamStore {
        &self.params
    }

    /// The parameters, for the optimiser.
    pub fn params_mut(&mut self) -> &mut ParamStore {
        &mut self.params
    }

    /// Runs `f` without recording: for evaluation, and for a prefix whose gradient is not wanted.
    pub fn no_grad<R>(&self, f: impl FnOnce(&Eager) -> R) -> R {
        /// Puts the former state back, also when `f` panics.
        struct Restore<'a>(&'a AtomicBool, bool);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.store(self.1, Ordering::Relaxed);
            }
        }
        let _restore = Restore(&self.recording, self.recording.swap(false, Ordering::Relaxed));
        f(self)
    }

    /// Gradients of a loss (one value) for every trainable parameter it depends on.
    ///
    /// # Panics
    /// When `loss` has more than one value.
    pub fn backward(&self, loss: &Var) -> Gradients {
        let seed = Arc::new(Buf::from_vec(vec![1.0]));
        assert_eq!(loss.data().len(), 1, "backward from shape {:?}", loss.shape());
        let mut found = tape::walk(loss, seed, None);
        let by_name = self.params.trainable().filter_map(|(name, var)| {
            let g = found.remove(&var.id()?)?;
            Some((name.to_owned(), g))
        });
        Gradients { by_name: by_name.collect() }
    }

    /// Gradients of a loss (one value) for tensors anywhere on its tape, themselves off the tape. Only the way to them is walked,
    /// and the tape stays for another walk. `None` where the loss does not depend on the tensor.
    ///
    /// # Panics
    /// When `loss` has more than one value.
    pub fn backward_to(&self, loss: &Var, targets: &[&Var]) -> Vec<Option<Var>> {
        assert_eq!(loss.data().len(), 1, "backward from shape {:?}", loss.shape());
        self.vjp(loss, &Var::constant(&[1], vec![1.0]), targets)
    }

    /// Gradients of `sum(y * seed)` for tensors on the tape of `y`; see [`Eager::backward_to`].
    ///
    /// # Panics
    /// When `seed` has not as many values as `y`.
    pub fn vjp(&self, y: &Var, seed: &Var, targets: &[&Var]) -> Vec<Option<Var>> {
        assert_eq!(y.data().len(), seed.data().len(), "seed for shape {:?}", y.shape());
        let ids: HashSet<u64> = targets.iter().filter_map(|t| t.id()).collect();
        let found = tape::walk(y, seed.value.clone(), Some(&ids));
        targets.iter().map(|t| found.get(&t.id()?).map(|g| Var::constant_shared(t.shape(), g.clone()))).collect()
    }

    fn outcome(
        &self,
        shape: &[usize],
        value: impl Into<Arc<Buf>>,
        inputs: &[&Var],
        back: impl Fn(Arc<Buf>, &mut tape::Sink<'_>) + Send + Sync + 'static,
    ) -> Var {
        Var::outcome(self.recording.load(Ordering::Relaxed), shape, value.into(), inputs, back)
    }
}

impl Ops for Eager {
    type T = Var;

    fn shape(&self, x: &Var) -> Vec<usize> {
        x.shape().to_vec()
    }
    fn param(&self, name: &str) -> Var {
        match self.params.get(name) {
            Some(var) => var.clone(),
            None => panic!("no parameter {name:?}: weights are checked before a network is built on them"),
        }
    }
    fn has_param(&self, name: &str) -> bool {
        self.params.get(name).is_some()
    }
    fn constant(&self, shape: &[usize], data: Vec<f32>) -> Var {
        Var::constant(shape, data)
    }
    fn conv2d(&self, x: &Var, w: &Var, b: Option<&Var>, stride: usize, pad: usize, groups: usize) -> Var {
        self.conv2d_op(x, w, b, stride, pad, groups)
    }
    fn conv_transpose2x2(&self, x: &Var, w: &Var, b: &Var) -> Var {
        self.conv_transpose2x2_op(x, w, b)
    }
    fn linear(&self, x: &Var, w: &Var, b: Option<&Var>) -> Var {
        self.linear_op(x, w, b)
    }
    fn matmul(&self, a: &Var, b: &Var) -> Var {
        self.matmul_op(a, b)
    }
    fn add(&self, a: &Var, b: &Var) -> Var {
        self.add_op(a, b, 1.0)
    }
    fn sub(&self, a: &Var, b: &Var) -> Var {
        self.add_op(a, b, -1.0)
    }
    fn mul(&self, a: &Var, b: &Var) -> Var {
        self.mul_op(a, b)
    }
    fn div(&self, a: &Var, b: &Var) -> Var {
        self.div_op(a, b)
    }
    fn scale(&self, x: &Var, k: f32) -> Var {
        self.scale_op(x, k)
    }
    fn offset(&self, x: &Var, k: f32) -> Var {
        self.offset_op(x, k)
    }
    fn gelu(&self, x: &Var) -> Var {
        self.gelu_op(x)
    }
    fn relu(&self, x: &Var) -> Var {
        self.relu_op(x)
    }
    fn step(&self, x: &Var) -> Var {
        Var::constant_shared(x.shape(), Arc::new(simd::map(x.data(), |x| if x > 0.0 { 1.0 } else { 0.0 })))
    }
    fn sigmoid(&self, x: &Var) -> Var {
        self.sigmoid_op(x)
    }
    fn sin(&self, x: &Var) -> Var {
        self.sin_op(x)
    }
    fn cos(&self, x: &Var) -> Var {
        self.cos_op(x)
    }
    fn log(&self, x: &Var) -> Var {
        self.log_op(x)
    }
    fn softmax(&self, x: &Var) -> Var {
        self.softmax_op(x)
    }
    fn layer_norm(&self, x: &Var, gain: &Var, bias: &Var, eps: f32) -> Var {
        self.layer_norm_op(x, gain, bias, eps)
    }
    fn reshape(&self, x: &Var, shape: &[usize]) -> Var {
        self.reshape_op(x, shape)
    }
    fn permute(&self, x: &Var, axes: &[usize]) -> Var {
        self.permute_op(x, axes)
    }
    fn slice(&self, x: &Var, axis: usize, start: usize, end: usize) -> Var {
        self.slice_op(x, axis, start, end)
    }
    fn concat(&self, xs: &[Var], axis: usize) -> Var {
        self.concat_op(xs, axis)
    }
    fn pad_end(&self, x: &Var, axis: usize, count: usize) -> Var {
        self.pad_end_op(x, axis, count)
    }
    fn expand(&self, x: &Var, shape: &[usize]) -> Var {
        self.expand_op(x, shape)
    }
    fn mean(&self, x: &Var, axes: &[usize]) -> Var {
        self.mean_op(x, axes)
    }
    fn sum(&self, x: &Var, axes: &[usize]) -> Var {
        self.sum_op(x, axes, 1.0)
    }
    fn resize_bilinear(&self, x: &Var, height: usize, width: usize) -> Var {
        self.resize_bilinear_op(x, height, width)
    }
}
