//! A plan behind [`Engine`]: page-locked buffers, device memory, CUDA graphs, and several sets of adapters' tensors on the device.
//!
//! A run takes a lane: a stream with an execution context and buffers of its own, so that one image is copied while another is computed.
//! An adapter's tensors lie in a set of their own. A binding holds its set while it lives and every run names it, so an update is written
//! into a free set and a series never sees half of one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::cuda::{ALIGNMENT, Event, Gpu, GpuError, Graph, Memory, Pinned, Stream};
use super::runtime::{Context, DataType, Runtime, TensorInfo};
use super::{Dims, TrtError};
use crate::engine::{Bound, Engine, EngineError, EngineIdentity, Tensor};

/// Name of this engine in results and messages.
pub const NAME: &str = "tensorrt";
/// Adapters whose tensors lie on the device at once: the one that serves, the configuration's, a candidate, and those that are kept ready
/// for going back. A set takes a few megabytes.
const SETS: usize = 12;
/// Most lanes.
const MOST_LANES: usize = 8;

/// How a plan serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingOptions {
    /// Runs at once.
    pub lanes: usize,
    /// Whether runs are captured as CUDA graphs, which spares the launch of each kernel.
    pub cuda_graph: bool,
    /// As written into results: `fp32`, `fp16`, `int8`.
    pub precision: String,
}

/// What a plan must take and give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// Inputs that change with each image, with their shapes.
    pub inputs: Vec<(String, Vec<usize>)>,
    /// Inputs that an adapter fixes.
    pub fixed: Vec<(String, Vec<usize>)>,
    /// Outputs, in the graph's order.
    pub outputs: Vec<String>,
}

/// Why a plan does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The GPU.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// TensorRT.
    #[error(transparent)]
    TensorRt(#[from] TrtError),
    /// The plan is of another graph.
    #[error("the plan is not one of this {graph}: {difference}; build it again")]
    Signature {
        /// The graph.
        graph: String,
        /// What differs.
        difference: String,
    },
}

/// A tensor and where it lies in its memory.
#[derive(Clone, Debug)]
struct Place {
    name: String,
    shape: Vec<usize>,
    offset: usize,
}

impl Place {
    fn values(&self) -> usize {
        self.shape.iter().product()
    }
    fn bytes(&self) -> usize {
        4 * self.values()
    }
    fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.bytes()
    }
}

/// Places one after the other, each aligned as TensorRT wants it, and the bytes of all.
fn places(tensors: &[(String, Vec<usize>)]) -> (Vec<Place>, usize) {
    let mut offset = 0usize;
    let all = tensors
        .iter()
        .map(|(name, shape)| {
            let place = Place { name: name.clone(), shape: shape.clone(), offset };
            offset += place.bytes().next_multiple_of(ALIGNMENT);
            place
        })
        .collect();
    (all, offset)
}

/// A stream with all that a run needs.
pub(super) struct Lane {
    pub(super) stream: Arc<Stream>,
    /// Passed when the last run is over.
    done: Event,
    /// By set.
    graphs: Vec<Option<Graph>>,
    /// The set that the context's addresses name.
    bound: Option<usize>,
    context: Context,
    pub(super) host_in: Pinned,
    pub(super) host_out: Pinned,
    device_in: Memory,
    device_out: Memory,
}

/// Where an adapter's tensors lie.
struct Sets {
    memory: Vec<Memory>,
    taken: Mutex<[bool; SETS]>,
    /// Copies to a set; one at a time.
    loader: Mutex<(Stream, Pinned)>,
    bytes: usize,
}

/// A plan that serves.
pub struct TensorRtEngine {
    graph: String,
    identity: EngineIdentity,
    inputs: Vec<Place>,
    fixed: Vec<Place>,
    outputs: Vec<Place>,
    bytes_in: usize,
    bytes_out: usize,
    lanes: usize,
    idle: Mutex<Vec<Lane>>,
    returned: Condvar,
    sets: Sets,
    graphs: AtomicBool,
    pub(super) gpu: Arc<Gpu>,
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TensorRtEngine {
    /// Makes a plan ready: deserialises it, holds it against what the graph takes and gives, takes its memory.
    ///
    /// # Errors
    /// [`ServingError`]: TensorRT refuses the plan, it is of another graph, the memory is short.
    pub fn load(
        graph: &str,
        plan: &[u8],
        runtime: &Arc<Runtime>,
        gpu: &Arc<Gpu>,
        wanted: &Signature,
        options: &ServingOptions,
    ) -> Result<TensorRtEngine, ServingError> {
        gpu.enter()?;
        let engine = runtime.deserialize(plan)?;
        let outputs = check(graph, &engine.tensors()?, wanted)?;
        let (inputs, bytes_in) = places(&wanted.inputs);
        let (fixed, bytes_fixed) = places(&wanted.fixed);
        let (outputs, bytes_out) = places(&outputs);
        let mut lanes = Vec::new();
        for _ in 0..options.lanes.clamp(1, MOST_LANES) {
            lanes.push(Lane {
                stream: Arc::new(Stream::new(gpu)?),
                done: Event::new(gpu, false)?,
                graphs: std::iter::repeat_with(|| None).take(SETS).collect(),
                bound: None,
                context: engine.context()?,
                host_in: Pinned::new(gpu, bytes_in)?,
                host_out: Pinned::new(gpu, bytes_out)?,
                device_in: Memory::new(gpu, bytes_in, "inputs")?,
                device_out: Memory::new(gpu, bytes_out, "outputs")?,
            });
        }
        let set = || Memory::new(gpu, bytes_fixed, "an adapter's tensors");
        Ok(TensorRtEngine {
            graph: graph.into(),
            identity: EngineIdentity {
                kind: NAME.into(),
                version: format!("{} on {gpu}", runtime.version()),
                precision: options.precision.clone(),
            },
            inputs,
            fixed,
            outputs,
            bytes_in,
            bytes_out,
            lanes: lanes.len(),
            idle: Mutex::new(lanes),
            returned: Condvar::new(),
            sets: Sets {
                memory: std::iter::repeat_with(set).take(SETS).collect::<Result<_, _>>()?,
                taken: Mutex::new([false; SETS]),
                loader: Mutex::new((Stream::new(gpu)?, Pinned::new(gpu, bytes_fixed)?)),
                bytes: bytes_fixed,
            },
            graphs: AtomicBool::new(options.cuda_graph),
            gpu: gpu.clone(),
        })
    }

    /// Runs at once.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Whether runs are captured as CUDA graphs. It is turned off where the plan cannot be.
    pub fn uses_graphs(&self) -> bool {
        self.graphs.load(Ordering::Relaxed)
    }

    fn refused(&self, cause: impl ToString) -> EngineError {
        EngineError::Load { engine: NAME.into(), graph: self.graph.clone(), cause: cause.to_string() }
    }

    fn failed(&self, cause: impl ToString) -> EngineError {
        EngineError::Run { engine: NAME.into(), graph: self.graph.clone(), cause: cause.to_string() }
    }

    /// Takes a lane, waiting for one.
    pub(super) fn lane(&self) -> Taken<'_> {
        let mut idle = locked(&self.idle);
        loop {
            if let Some(lane) = idle.pop() {
                return Taken { engine: self, lane: Some(lane) };
            }
            idle = self.returned.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts the inputs into a lane's page-locked memory.
    pub(super) fn fill(&self, lane: &mut Lane, inputs: &[(&str, &Tensor)]) -> Result<(), EngineError> {
        if let Some((name, _)) = inputs.iter().find(|(n, _)| !self.inputs.iter().any(|p| p.name == *n)) {
            return Err(self.failed(format!("it has no input {name} that changes")));
        }
        for place in &self.inputs {
            let given = inputs.iter().find(|(n, _)| *n == place.name);
            let (_, tensor) = given.ok_or_else(|| self.failed(format!("the input {} is missing", place.name)))?;
            put(place, tensor, lane.host_in.bytes_mut()).map_err(|e| self.failed(e))?;
        }
        Ok(())
    }

    /// Enqueues one run, from page-locked memory to page-locked memory; `marks` are called between its three steps.
    pub(super) fn enqueue(
        &self,
        lane: &mut Lane,
        set: usize,
        mut mark: impl FnMut(usize, &Stream) -> Result<(), GpuError>,
    ) -> Result<(), ServingError> {
        self.gpu.enter()?;
        self.point(lane, set)?;
        // SAFETY: all memory belongs to the lane and to this engine, which outlive the run: the lane goes back only after the stream was
        // waited for (`Taken`, `run_on`), and it is not touched meanwhile. The addresses are those of live memory (`point`).
        unsafe {
            mark(0, &lane.stream)?;
            lane.stream.upload(&lane.host_in, &lane.device_in, self.bytes_in)?;
            mark(1, &lane.stream)?;
            lane.context.enqueue(lane.stream.raw())?;
            mark(2, &lane.stream)?;
            lane.stream.download(&lane.device_out, &mut lane.host_out, self.bytes_out)?;
            mark(3, &lane.stream)?;
        }
        Ok(())
    }

    /// Lets the lane's context read the adapter of a set.
    fn point(&self, lane: &mut Lane, set: usize) -> Result<(), ServingError> {
        if lane.bound == Some(set) {
            return Ok(());
        }
        lane.bound = None;
        let adapter = self.sets.memory[set].address();
        let all = [
            (&self.inputs, lane.device_in.address()),
            (&self.fixed, adapter),
            (&self.outputs, lane.device_out.address()),
        ];
        for (places, start) in all {
            for p in places {
                // SAFETY: the memory holds the tensor at this offset (`places`), is aligned, and lives as long as the engine; an output
                // is written by this lane alone.
                unsafe { lane.context.set_address(&p.name, start + p.offset as u64)? };
            }
        }
        lane.bound = Some(set);
        Ok(())
    }

    /// One run on a lane, its inputs filled in already.
    fn run_on(&self, lane: &mut Lane, set: usize) -> Result<(), ServingError> {
        self.gpu.enter()?;
        let enqueued = match &mut lane.graphs[set] {
            Some(graph) => graph.launch().map_err(ServingError::from),
            None => self.enqueue(lane, set, |_, _| Ok(())),
        };
        let recorded = lane.done.record(&lane.stream);
        // Whatever failed: nothing of this run may be in flight when the lane goes back.
        let waited = if recorded.is_ok() { lane.done.wait() } else { lane.stream.wait() };
        enqueued?;
        waited?;
        recorded?;
        if lane.graphs[set].is_none() && self.uses_graphs() {
            self.capture(lane, set);
        }
        Ok(())
    }

    /// Captures a run that went well once, as TensorRT wants it, so that the next ones are one launch each.
    fn capture(&self, lane: &mut Lane, set: usize) {
        let stream = lane.stream.clone();
        // SAFETY: the graph refers to memory of the lane and of the set; it is dropped with the lane, and the sets live as long as the
        // engine, whose lanes are dropped before them.
        let graph = unsafe { stream.capture(|| self.enqueue(lane, set, |_, _| Ok(()))) };
        match graph {
            Ok(graph) => lane.graphs[set] = Some(graph),
            Err(e) => {
                self.graphs.store(false, Ordering::Relaxed);
                log::warn!("{}: runs cannot be captured as CUDA graphs and are enqueued one by one: {e}", self.graph);
            }
        }
    }

    fn outputs_of(&self, lane: &Lane) -> Vec<Tensor> {
        self.outputs
            .iter()
            .map(|p| {
                let bytes = lane.host_out.bytes().get(p.range()).unwrap_or_default();
                let data = bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
                Tensor { shape: p.shape.clone(), data }
            })
            .collect()
    }

    /// Takes a free set.
    fn take_set(&self) -> Result<SetOf<'_>, EngineError> {
        let mut taken = locked(&self.sets.taken);
        let free = taken
            .iter()
            .position(|t| !t)
            .ok_or_else(|| self.refused(format!("all {SETS} places for adapters are in use")))?;
        taken[free] = true;
        Ok(SetOf { engine: self, set: free })
    }

    /// Copies an adapter's tensors into a set that was just taken.
    fn load_set(&self, set: usize, fixed: &[(&str, &Tensor)]) -> Result<(), EngineError> {
        if let Some((name, _)) = fixed.iter().find(|(n, _)| !self.fixed.iter().any(|p| p.name == *n)) {
            return Err(self.refused(format!("it has no input {name} that an adapter fixes")));
        }
        let mut loader = locked(&self.sets.loader);
        let (stream, staging) = &mut *loader;
        for place in &self.fixed {
            let given = fixed.iter().find(|(n, _)| *n == place.name);
            let (_, t) = given.ok_or_else(|| self.refused(format!("the adapter has no tensor {}", place.name)))?;
            put(place, t, staging.bytes_mut()).map_err(|e| self.refused(e))?;
        }
        let copied = self.gpu.enter().and_then(|()| {
            // SAFETY: nobody runs with this set, which was just taken; the copy is waited for before the lock on the staging memory ends.
            let started = unsafe { stream.upload(staging, &self.sets.memory[set], self.sets.bytes) };
            stream.wait().and(started)
        });
        copied.map_err(|e| self.refused(e))
    }

    /// One run with the adapter of a set, on the next lane that is free.
    fn run_with(&self, set: usize, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError> {
        let mut taken = self.lane();
        let lane = taken.get()?;
        self.fill(lane, inputs)?;
        self.run_on(lane, set).map_err(|e| self.failed(e))?;
        Ok(self.outputs_of(lane))
    }

    /// As [`Engine::bind`], for those who measure.
    pub(super) fn hold(self: Arc<Self>, fixed: &[(String, Tensor)]) -> Result<Held, EngineError> {
        let all: Vec<(&str, &Tensor)> = fixed.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let set = self.take_set()?;
        self.load_set(set.set, &all)?;
        let index = set.keep();
        Ok(Held { engine: self, set: index })
    }
}

/// Writes a tensor's values to its place.
fn put(place: &Place, tensor: &Tensor, into: &mut [u8]) -> Result<(), String> {
    if tensor.shape != place.shape || tensor.data.len() != place.values() {
        return Err(format!(
            "the input {} has the shape {:?}, the plan takes {:?}",
            place.name, tensor.shape, place.shape
        ));
    }
    let target = into.get_mut(place.range()).ok_or("an input lies outside its memory")?;
    for (bytes, v) in target.chunks_exact_mut(4).zip(&tensor.data) {
        bytes.copy_from_slice(&v.to_ne_bytes());
    }
    Ok(())
}

/// Holds a plan's inputs and outputs against what the graph has; gives the outputs with their shapes, in the graph's order.
fn check(graph: &str, found: &[TensorInfo], wanted: &Signature) -> Result<Vec<(String, Vec<usize>)>, ServingError> {
    let other = |difference: String| ServingError::Signature { graph: graph.into(), difference };
    let shape = |d: &Dims| -> Option<Vec<usize>> { d.0.iter().map(|v| usize::try_from(*v).ok()).collect() };
    for t in found {
        if t.kind != DataType::F32 {
            return Err(other(format!("{} has elements of type {:?} instead of 32-bit floats", t.name, t.kind)));
        }
        let known = if t.input {
            wanted.inputs.iter().chain(&wanted.fixed).any(|(n, _)| *n == t.name)
        } else {
            wanted.outputs.contains(&t.name)
        };
        if !known {
            return Err(other(format!("it has an {} {}", if t.input { "input" } else { "output" }, t.name)));
        }
    }
    for (name, s) in wanted.inputs.iter().chain(&wanted.fixed) {
        let t = found.iter().find(|t| t.input && t.name == *name);
        let t = t.ok_or_else(|| other(format!("it lacks the input {name}")))?;
        if shape(&t.shape).as_ref() != Some(s) {
            return Err(other(format!("its input {name} has the shape {:?} instead of {s:?}", t.shape.0)));
        }
    }
    wanted
        .outputs
        .iter()
        .map(|name| {
            let t = found.iter().find(|t| !t.input && t.name == *name);
            let t = t.ok_or_else(|| other(format!("it lacks the output {name}")))?;
            let s = shape(&t.shape)
                .ok_or_else(|| other(format!("its output {name} has the open shape {:?}", t.shape.0)))?;
            Ok((name.clone(), s))
        })
        .collect()
}

/// A lane that goes back when it is dropped.
pub(super) struct Taken<'a> {
    engine: &'a TensorRtEngine,
    lane: Option<Lane>,
}

impl Taken<'_> {
    /// The lane.
    pub(super) fn get(&mut self) -> Result<&mut Lane, EngineError> {
        self.lane.as_mut().ok_or_else(|| self.engine.failed("a lane was lost"))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take() {
            locked(&self.engine.idle).push(lane);
            self.engine.returned.notify_one();
        }
    }
}

/// A set that was taken; free again when this is dropped.
struct SetOf<'a> {
    engine: &'a TensorRtEngine,
    set: usize,
}

impl SetOf<'_> {
    /// Leaves it taken.
    fn keep(self) -> usize {
        let set = self.set;
        std::mem::forget(self);
        set
    }
}

impl Drop for SetOf<'_> {
    fn drop(&mut self) {
        locked(&self.engine.sets.taken)[self.set] = false;
    }
}

/// An adapter's tensors on the device; their set is free again when this is dropped.
pub(super) struct Held {
    pub(super) engine: Arc<TensorRtEngine>,
    pub(super) set: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        locked(&self.engine.sets.taken)[self.set] = false;
    }
}

impl Bound for Held {
    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError> {
        self.engine.run_with(self.set, inputs)
    }

    fn identity(&self) -> EngineIdentity {
        self.engine.identity.clone()
    }
}

impl Engine for TensorRtEngine {
    /// Takes an adapter's tensors at every run, into a set that must be free.
    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError> {
        let (changing, fixed): (Vec<_>, Vec<_>) =
            inputs.iter().copied().partition(|(n, _)| self.inputs.iter().any(|p| p.name == *n));
        let set = self.take_set()?;
        self.load_set(set.set, &fixed)?;
        self.run_with(set.set, &changing)
    }

    fn identity(&self) -> EngineIdentity {
        self.identity.clone()
    }

    fn bind(self: Arc<Self>, fixed: Vec<(String, Tensor)>) -> Result<Box<dyn Bound>, EngineError> {
        Ok(Box::new(self.hold(&fixed)?))
    }
}
