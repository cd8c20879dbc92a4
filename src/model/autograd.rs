//! What training needs beyond the network's operations: gradients, random masks, losses, an optimiser.
//!
//! Training is written over these traits, as the network is over [`Ops`]: [`super::eager`] implements them on the CPU and needs nothing
//! else, `super::torch` (feature `cuda`) through libtorch, on an NVIDIA GPU.

use std::collections::BTreeMap;

use super::ops::Ops;
use crate::engine::Tensor;

/// An interpreter that computes at once and keeps what a gradient needs.
pub trait Autograd: Ops {
    /// Runs `f` without recording: for evaluation, and for what no gradient is wanted of.
    fn no_grad<R>(&self, f: impl FnOnce(&Self) -> R) -> R;
    /// Starts the random generator of [`Autograd::dropout_mask`] anew. Every interpreter draws the same numbers.
    fn reseed(&self, seed: u64);
    /// A mask of that shape: 0 with probability `p`, else `1 / (1 - p)`.
    fn dropout_mask(&self, shape: &[usize], p: f32) -> Self::T;
    /// Binary cross entropy of each logit against a target in 0..1, same shape, not reduced. No gradient to the target.
    fn bce_with_logits(&self, logits: &Self::T, target: &Self::T) -> Self::T;
    /// The same values as a new leaf: gradients stop here and are kept.
    fn as_leaf(&self, x: &Self::T) -> Self::T;
    /// Gradients of a loss (one value) for tensors anywhere on its tape, themselves off the tape, which stays for another walk.
    /// `None` where the loss does not depend on the tensor.
    fn backward_to(&self, loss: &Self::T, targets: &[&Self::T]) -> Vec<Option<Self::T>>;
    /// The values, row-major, copied out.
    fn values(&self, x: &Self::T) -> Vec<f32>;

    /// A copy outside the tape.
    fn to_tensor(&self, x: &Self::T) -> Tensor {
        Tensor::new(&self.shape(x), self.values(x))
    }
    /// Sum of all values, as a tensor of shape `[1]`.
    fn sum_all(&self, x: &Self::T) -> Self::T {
        let n = self.shape(x).iter().product();
        self.sum(&self.reshape(x, &[n]), &[0])
    }
    /// Mean of all values, as a tensor of shape `[1]`.
    fn mean_all(&self, x: &Self::T) -> Self::T {
        let n = self.shape(x).iter().product();
        self.mean(&self.reshape(x, &[n]), &[0])
    }
}

/// An interpreter with trainable parameters and their optimiser, AdamW.
pub trait Learner {
    /// The interpreter.
    type Ops: Autograd;

    /// The interpreter, over the parameters as they are now.
    fn ops(&self) -> &Self::Ops;
    /// One step down the loss's gradient, scaled to a norm of at most `clip`, at the learning rate `lr`. Gives the norm before
    /// clipping. A parameter that the loss does not depend on stays as it is.
    fn descend(&mut self, loss: &<Self::Ops as Ops>::T, lr: f32, clip: f32) -> f32;
    /// Copies of the trainable parameters.
    fn parameters(&self) -> BTreeMap<String, Tensor>;
    /// The optimiser's state for a checkpoint: `<name>.mean`, `<name>.square` and `<name>.steps` of each parameter stepped so far.
    fn state(&self) -> BTreeMap<String, Tensor>;
}
