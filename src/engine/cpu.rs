//! The embedded CPU engine: rten.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rten::{Dimension, Model, ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView, ValueView};
use rten_tensor::prelude::*;

use super::{Bound, Engine, EngineError, EngineIdentity, OnHost, Tensor};

/// Version of the library, as written into results.
const RTEN: &str = "rten 0.27.0";
const NAME: &str = "cpu";
/// A graph larger than this is refused: the largest of ours has 45 MB.
const MAX_GRAPH: usize = 512 << 20;

/// A graph loaded into rten.
pub struct CpuEngine {
    graph: String,
    model: Model,
    inputs: Vec<Input>,
    outputs: Vec<NodeId>,
    threads: usize,
    precision: String,
}

struct Input {
    name: String,
    node: NodeId,
    shape: Vec<usize>,
}

impl CpuEngine {
    /// Loads an ONNX graph with static shapes. `graph` names it in errors; a run works with `threads` of them, 0 means one per
    /// core. Runs at once have threads of their own.
    ///
    /// # Errors
    /// [`EngineError::Load`] when rten refuses the graph, or an input has no static shape.
    pub fn load(graph: &str, onnx: Vec<u8>, threads: usize) -> Result<Self, EngineError> {
        let refuse = |cause: String| EngineError::Load { engine: NAME.to_string(), graph: graph.to_string(), cause };
        if onnx.len() > MAX_GRAPH {
            return Err(refuse(format!("{} bytes; {MAX_GRAPH} are the limit", onnx.len())));
        }
        let model = ModelOptions::with_all_ops().prepack_weights(true).load(onnx).map_err(|e| refuse(e.to_string()))?;
        let mut inputs = Vec::new();
        for (i, &node) in model.input_ids().iter().enumerate() {
            let name = model.node_info(node).and_then(|n| n.name().map(str::to_string));
            let name = name.ok_or_else(|| refuse(format!("input {i} has no name")))?;
            let dims = model.input_shape(i).unwrap_or_default();
            let shape: Option<Vec<usize>> =
                dims.iter().map(|d| if let Dimension::Fixed(n) = d { Some(*n) } else { None }).collect();
            let shape = shape.ok_or_else(|| refuse(format!("input {name} has no static shape")))?;
            inputs.push(Input { name, node, shape });
        }
        let outputs = model.output_ids().to_vec();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cores } else { threads.min(cores) };
        Ok(CpuEngine { graph: graph.to_string(), model, inputs, outputs, threads, precision: "fp32".into() })
    }

    /// States the precision that the graph's maker gave it, for [`Engine::identity`]; otherwise `fp32`.
    pub fn stating(self, precision: &str) -> Self {
        CpuEngine { precision: precision.into(), ..self }
    }

    /// Names and shapes of the inputs, in the graph's order.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.inputs.iter().map(|i| (i.name.as_str(), &i.shape[..]))
    }

    fn failed(&self, cause: impl ToString) -> EngineError {
        EngineError::Run { engine: NAME.to_string(), graph: self.graph.clone(), cause: cause.to_string() }
    }

    fn run_with(&self, inputs: &[(&str, &Tensor)], options: RunOptions) -> Result<Vec<Tensor>, EngineError> {
        if let Some((name, _)) = inputs.iter().find(|(n, _)| !self.inputs.iter().any(|i| i.name == *n)) {
            return Err(self.failed(format!("it has no input {name}")));
        }
        let mut values: Vec<(NodeId, ValueOrView)> = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            let (_, tensor) = inputs
                .iter()
                .find(|(n, _)| *n == input.name)
                .ok_or_else(|| self.failed(format!("the input {} is missing", input.name)))?;
            if tensor.shape != input.shape || tensor.data.len() != input.shape.iter().product::<usize>() {
                return Err(self.failed(format!(
                    "the input {} has the shape {:?}, the graph takes {:?}",
                    input.name, tensor.shape, input.shape
                )));
            }
            let view = ValueView::from_shape(&tensor.shape[..], &tensor.data[..]).map_err(|e| self.failed(e))?;
            values.push((input.node, view.into()));
        }
        let outputs = with_pool(self.threads, |pool| {
            self.model.run(values, &self.outputs, Some(options.with_thread_pool(Some(pool))))
        });
        let outputs = outputs.map_err(|e| self.failed(e))?;
        outputs.into_iter().map(|v| self.tensor(v)).collect()
    }

    fn tensor(&self, value: Value) -> Result<Tensor, EngineError> {
        let value: rten_tensor::Tensor<f32> =
            value.into_tensor().ok_or_else(|| self.failed("an output is no f32 tensor"))?;
        Ok(Tensor { shape: value.shape().to_vec(), data: value.into_data() })
    }

    /// Runs once while rten prints how long each kind of operator took, to standard output. For development.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn profile(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError> {
        self.run_with(inputs, RunOptions::default().with_timing(true).with_timing_by_shape(true))
    }
}

impl Engine for CpuEngine {
    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError> {
        self.run_with(inputs, RunOptions::default())
    }

    fn identity(&self) -> EngineIdentity {
        EngineIdentity { kind: NAME.into(), version: RTEN.into(), precision: self.precision.clone() }
    }

    fn bind(self: Arc<Self>, fixed: Vec<(String, Tensor)>) -> Result<Box<dyn Bound>, EngineError> {
        if let Some((name, _)) = fixed.iter().find(|(n, _)| !self.inputs.iter().any(|i| i.name == *n)) {
            let cause = format!("it has no input {name}");
            return Err(EngineError::Load { engine: NAME.into(), graph: self.graph.clone(), cause });
        }
        Ok(Box::new(OnHost::new(self, fixed)))
    }
}

/// Threads that no run uses, by the number of them. rten runs a graph inside its pool, so two runs that shared one would wait for
/// each other: every run under way has a pool of its own, and there are as many as there ever were runs at once.
static IDLE: Mutex<BTreeMap<usize, Vec<Arc<ThreadPool>>>> = Mutex::new(BTreeMap::new());

/// Calls with a pool of so many threads that is nobody else's meanwhile.
fn with_pool<R>(threads: usize, run: impl FnOnce(Arc<ThreadPool>) -> R) -> R {
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = idle().get_mut(&threads).and_then(Vec::pop);
    let pool = taken.unwrap_or_else(|| Arc::new(ThreadPool::with_num_threads(threads)));
    let result = run(pool.clone());
    idle().entry(threads).or_default().push(pool);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_at_once_have_threads_of_their_own() {
        // Two runs that each wait for the other: with one pool of one thread they would wait for ever.
        let meet = std::sync::Barrier::new(2);
        let pools: Vec<usize> = std::thread::scope(|scope| {
            let both = [0, 1].map(|_| {
                scope.spawn(|| {
                    with_pool(1, |pool| {
                        pool.run(|| meet.wait());
                        Arc::as_ptr(&pool) as usize
                    })
                })
            });
            both.map(|t| t.join().unwrap()).to_vec()
        });
        assert_ne!(pools[0], pools[1]);
        // And the next one takes one that is idle.
        assert!(with_pool(1, |pool| pools.contains(&(Arc::as_ptr(&pool) as usize))));
    }

    #[test]
    fn what_is_no_graph_is_refused() {
        for bytes in [vec![], b"hello".to_vec(), vec![0x08, 0x08, 0xff, 0xff, 0xff]] {
            assert!(matches!(CpuEngine::load("x", bytes, 1), Err(EngineError::Load { .. })));
        }
    }
}
