//! Named parameters: the frozen base, shared, and the trainable adapter; and gradients by those names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Var;
use super::buffer::Buf;
use super::simd;
use crate::engine::Tensor;

/// Parameters by name. Cloning shares the values; a trainable value is copied when one clone changes it.
#[derive(Clone, Default, Debug)]
pub struct ParamStore {
    frozen: HashMap<String, Var>,
    trainable: BTreeMap<String, Var>,
}

impl ParamStore {
    /// An empty store.
    pub fn new() -> Self {
        ParamStore::default()
    }

    /// Adds a parameter that never changes and costs no gradient.
    pub fn insert_frozen(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.frozen.insert(name.into(), Var::constant(&tensor.shape, tensor.data));
    }

    /// Adds a parameter to be trained. It goes before a frozen one of the same name.
    pub fn insert_trainable(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.trainable.insert(name.into(), Var::leaf(&tensor.shape, tensor.data));
    }

    /// Makes a frozen parameter trainable, from its present value. False if there is none of that name.
    pub fn unfreeze(&mut self, name: &str) -> bool {
        let found = self.frozen.get(name).map(Var::as_leaf);
        let there = found.is_some();
        if let Some(var) = found {
            self.trainable.insert(name.to_owned(), var);
        }
        there
    }

    /// The parameter of that name: the trainable one, else the frozen one.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.trainable.get(name).or_else(|| self.frozen.get(name))
    }

    /// Names of the frozen parameters, in no order.
    pub fn frozen_names(&self) -> impl Iterator<Item = &str> {
        self.frozen.keys().map(String::as_str)
    }

    /// Trainable parameters in the order of their names.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.trainable.iter().map(|(n, v)| (n.as_str(), v))
    }

    /// Number of trainable values.
    pub fn trainable_len(&self) -> usize {
        self.trainable.values().map(|v| v.data().len()).sum()
    }

    /// Copies of the trainable parameters: the adapter.
    pub fn to_tensors(&self) -> BTreeMap<String, Tensor> {
        self.trainable.iter().map(|(n, v)| (n.clone(), v.to_tensor())).collect()
    }

    /// The values of a trainable parameter, to be changed in place. The leaf stays the same leaf.
    pub fn value_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        self.trainable.get_mut(name).map(|v| &mut v.value_mut()[..])
    }
}

/// Gradients of a loss, by parameter name.
#[derive(Clone, Default, Debug)]
pub struct Gradients {
    pub(super) by_name: BTreeMap<String, Arc<Buf>>,
}

impl Gradients {
    /// The gradient of that parameter; none if the loss does not depend on it.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.by_name.get(name).map(|g| &g[..])
    }

    /// All gradients in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.by_name.iter().map(|(n, g)| (n.as_str(), &g[..]))
    }

    /// Euclidean norm over all gradients.
    pub fn norm(&self) -> f32 {
        self.by_name.values().map(|g| f64::from(simd::dot(g, g))).sum::<f64>().sqrt() as f32
    }

    /// Multiplies every gradient by `k`.
    pub fn scale(&mut self, k: f32) {
        for g in self.by_name.values_mut() {
            *g = Arc::new(simd::map(g, |g| g * k));
        }
    }

    /// Adds other gradients: accumulation over several images.
    pub fn add(&mut self, other: &Gradients) {
        for (name, g) in &other.by_name {
            match self.by_name.get_mut(name) {
                Some(mine) => *mine = Arc::new(simd::map2(mine, g, |a, b| a + b)),
                None => {
                    self.by_name.insert(name.clone(), g.clone());
                }
            }
        }
    }
}
