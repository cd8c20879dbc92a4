//! Runs an ONNX graph. Knows tensors, not medicine.

pub mod cpu;
mod tensor;
#[allow(unsafe_code)]
pub mod tensorrt;

pub use tensor::Tensor;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What ran, as written into every result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineIdentity {
    /// `cpu` or `tensorrt`.
    pub kind: String,
    /// Library and version, e.g. `rten 0.27.0`.
    pub version: String,
    /// `fp32`, `fp16`, `int8`.
    pub precision: String,
}

/// Why an engine could not load or run a graph.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The graph was refused.
    #[error("engine {engine} cannot load the graph {graph}: {cause}")]
    Load {
        /// Engine name.
        engine: String,
        /// Graph name.
        graph: String,
        /// The library's own words.
        cause: String,
    },
    /// A run failed.
    #[error("engine {engine} failed while running {graph}: {cause}")]
    Run {
        /// Engine name.
        engine: String,
        /// Graph name.
        graph: String,
        /// The library's own words.
        cause: String,
    },
}

/// A loaded graph. Inputs and outputs are named; all are f32.
pub trait Engine: Send + Sync {
    /// Runs the graph once. Every graph input must be given; outputs come in the graph's order.
    ///
    /// # Errors
    /// [`EngineError::Run`] when an input is missing, has another shape, or the library fails.
    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError>;
    /// What this engine is.
    fn identity(&self) -> EngineIdentity;
    /// Fixes some of the inputs: an adapter's tensors, which stay from image to image. Several bindings of one graph can exist; each keeps
    /// its own tensors for as long as it lives, so a run that began with one adapter ends with it.
    ///
    /// # Errors
    /// [`EngineError::Load`]: the graph has no such input, or the engine has no place for a further binding.
    fn bind(self: Arc<Self>, fixed: Vec<(String, Tensor)>) -> Result<Box<dyn Bound>, EngineError>;
}

/// A graph with some of its inputs fixed.
pub trait Bound: Send + Sync {
    /// Runs the graph once on the inputs that are not fixed.
    ///
    /// # Errors
    /// As [`Engine::run`].
    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError>;
    /// What computes.
    fn identity(&self) -> EngineIdentity;
}

/// A binding for engines that compute where the tensors are: the fixed inputs are given at every run.
pub struct OnHost<E> {
    engine: Arc<E>,
    fixed: Vec<(String, Tensor)>,
}

impl<E: Engine> OnHost<E> {
    /// Binds.
    pub fn new(engine: Arc<E>, fixed: Vec<(String, Tensor)>) -> Self {
        OnHost { engine, fixed }
    }
}

impl<E: Engine> Bound for OnHost<E> {
    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError> {
        let mut all = inputs.to_vec();
        all.extend(self.fixed.iter().map(|(n, t)| (n.as_str(), t)));
        self.engine.run(&all)
    }
    fn identity(&self) -> EngineIdentity {
        self.engine.identity()
    }
}

/// A loaded graph that several share.
impl<E: Engine + ?Sized> Engine for Arc<E> {
    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError> {
        (**self).run(inputs)
    }
    fn identity(&self) -> EngineIdentity {
        (**self).identity()
    }
    fn bind(self: Arc<Self>, fixed: Vec<(String, Tensor)>) -> Result<Box<dyn Bound>, EngineError> {
        E::bind((*self).clone(), fixed)
    }
}
