//! The eager interpreter as training calls it.

use std::collections::BTreeMap;

use super::{Adam, AdamConfig, Eager, ParamStore, StateError, Var};
use crate::engine::Tensor;
use crate::model::autograd::{Autograd, Learner};

impl Autograd for Eager {
    fn no_grad<R>(&self, f: impl FnOnce(&Self) -> R) -> R {
        Eager::no_grad(self, f)
    }
    fn reseed(&self, seed: u64) {
        Eager::reseed(self, seed);
    }
    fn dropout_mask(&self, shape: &[usize], p: f32) -> Var {
        Eager::dropout_mask(self, shape, p)
    }
    fn bce_with_logits(&self, logits: &Var, target: &Var) -> Var {
        Eager::bce_with_logits(self, logits, target)
    }
    fn as_leaf(&self, x: &Var) -> Var {
        x.as_leaf()
    }
    fn backward_to(&self, loss: &Var, targets: &[&Var]) -> Vec<Option<Var>> {
        Eager::backward_to(self, loss, targets)
    }
    fn values(&self, x: &Var) -> Vec<f32> {
        x.data().to_vec()
    }
}

/// The eager interpreter and its optimiser.
pub struct EagerLearner {
    eager: Eager,
    adam: Adam,
}

impl EagerLearner {
    /// A learner over these parameters, with what an earlier one's [`Learner::state`] gave, if any.
    ///
    /// # Errors
    /// [`StateError`] when the state does not fit the parameters.
    pub fn new(
        params: ParamStore,
        config: AdamConfig,
        factors: Vec<(String, f32)>,
        state: Option<&BTreeMap<String, Tensor>>,
    ) -> Result<Self, StateError> {
        let mut adam = match state {
            Some(state) => Adam::from_tensors(config, &params, state)?,
            None => Adam::new(config),
        };
        adam.factors = factors;
        Ok(EagerLearner { eager: Eager::new(params), adam })
    }
}

impl Learner for EagerLearner {
    type Ops = Eager;

    fn ops(&self) -> &Eager {
        &self.eager
    }
    fn descend(&mut self, loss: &Var, lr: f32, clip: f32) -> f32 {
        let mut gradients = self.eager.backward(loss);
        let norm = gradients.norm();
        if norm > clip {
            gradients.scale(clip / norm);
        }
        self.adam.config.lr = lr;
        self.adam.step(self.eager.params_mut(), &gradients);
        norm
    }
    fn parameters(&self) -> BTreeMap<String, Tensor> {
        self.eager.params().to_tensors()
    }
    fn state(&self) -> BTreeMap<String, Tensor> {
        self.adam.to_tensors()
    }
}
