//! The network as three engine graphs with an adapter's tensors as inputs.

use std::sync::Arc;

use super::networks::{ClassifierOutput, DecoderOutput, Networks, planes};
use crate::adapter::Adapter;
use crate::engine::cpu::CpuEngine;
use crate::engine::{Bound, Engine, EngineError, EngineIdentity, Tensor};
use crate::model::network::{ShapeError, Shapes, padded, rank_axis};
use crate::model::onnx::{BOXES, EMBEDDING, Graph, IMAGE, emit_classifier, emit_decoder, emit_encoder};
use crate::model::weights::BaseWeights;

/// A graph with an adapter's tensors fixed.
struct Part {
    bound: Box<dyn Bound>,
    name: &'static str,
}

impl Part {
    /// Runs the graph on its changing inputs; N outputs are expected.
    fn run<const N: usize>(&self, inputs: &[(&str, &Tensor)]) -> Result<[Tensor; N], EngineError> {
        let outputs = self.bound.run(inputs)?;
        let n = outputs.len();
        outputs.try_into().map_err(|_| self.failed(format!("it gave {n} outputs instead of {N}")))
    }

    fn failed(&self, cause: String) -> EngineError {
        EngineError::Run { engine: self.bound.identity().kind, graph: self.name.into(), cause }
    }
}

/// Why the graphs of an adapter could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// The adapter does not fit the network.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The engine refused a graph.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The graphs were made for adapters of other shapes.
    #[error("the loaded graphs are not for adapter {adapter}: {cause}")]
    Other {
        /// The adapter.
        adapter: String,
        /// What differs.
        cause: String,
    },
}

/// The three graphs for adapters of one set of shapes, written but not loaded.
#[derive(Clone, Debug)]
pub struct Graphs {
    /// Image to embedding.
    pub encoder: Graph,
    /// Embedding to presence and activation maps.
    pub classifier: Graph,
    /// Embedding and boxes to masks.
    pub decoder: Graph,
    /// S, edge of the input.
    pub size: usize,
    /// K, structures.
    pub structures: usize,
    /// Rank that LoRA's factors are padded to; 0 where they stay as they are.
    pub rank: usize,
    /// Shapes of the adapter's tensors, padded: every adapter that has them shares the graphs.
    pub shapes: Shapes,
}

impl Graphs {
    /// Writes the graphs for an adapter and every other one of its shapes. LoRA's factors are padded to `rank`, so that adapters of any
    /// lower rank share them; 0 leaves each its own.
    ///
    /// # Errors
    /// [`ShapeError`]: a tensor that does not fit.
    pub fn emit(base: &BaseWeights, adapter: &Adapter, rank: usize) -> Result<Self, ShapeError> {
        let size = adapter.meta.input_size;
        let shapes = padded_shapes(adapter, rank);
        Ok(Graphs {
            encoder: emit_encoder(base, &shapes, size)?,
            classifier: emit_classifier(base, &shapes, size)?,
            decoder: emit_decoder(base, &shapes, size)?,
            size,
            structures: adapter.meta.task.structures.len(),
            rank,
            shapes,
        })
    }

    /// The three by name, in the order of a run.
    pub fn parts(&self) -> [(&'static str, &Graph); 3] {
        [("encoder", &self.encoder), ("classifier", &self.classifier), ("decoder", &self.decoder)]
    }

    /// Loads each graph into an engine. What comes out serves any adapter of these shapes.
    ///
    /// # Errors
    /// `load`'s own.
    pub fn load<E>(
        &self,
        mut load: impl FnMut(&'static str, &Graph) -> Result<Arc<dyn Engine>, E>,
    ) -> Result<LoadedGraphs, E> {
        let mut part = |name: &'static str, graph: &Graph| -> Result<LoadedGraph, E> {
            Ok(LoadedGraph { engine: load(name, graph)?, fixed: graph.adapter_inputs.clone(), name })
        };
        Ok(LoadedGraphs {
            encoder: part("encoder", &self.encoder)?,
            classifier: part("classifier", &self.classifier)?,
            decoder: part("decoder", &self.decoder)?,
            size: self.size,
            structures: self.structures,
            rank: self.rank,
            shapes: self.shapes.clone(),
        })
    }

    /// Loads them into the embedded CPU engine; `threads` 0 means one per core.
    ///
    /// # Errors
    /// [`EngineError::Load`].
    pub fn load_cpu(&self, threads: usize) -> Result<LoadedGraphs, EngineError> {
        self.load(|name, graph| Ok(Arc::new(CpuEngine::load(name, graph.onnx.clone(), threads)?) as Arc<dyn Engine>))
    }
}

#[derive(Clone)]
struct LoadedGraph {
    engine: Arc<dyn Engine>,
    fixed: Shapes,
    name: &'static str,
}

impl LoadedGraph {
    /// Binds an adapter whose shapes were found to be the graph's.
    fn bind(&self, adapter: &Adapter) -> Result<Part, NetworksError> {
        let padded = |(n, shape): (&String, &Vec<usize>)| Some((n.clone(), padded_to(adapter, n, shape)?));
        let fixed = self.fixed.iter().filter_map(padded).collect();
        Ok(Part { bound: self.engine.clone().bind(fixed)?, name: self.name })
    }
}

/// The three graphs in an engine, without an adapter. Adapters of the same shapes share them: a further one costs its own tensors only.
#[derive(Clone)]
pub struct LoadedGraphs {
    encoder: LoadedGraph,
    classifier: LoadedGraph,
    decoder: LoadedGraph,
    size: usize,
    structures: usize,
    rank: usize,
    shapes: Shapes,
}

impl LoadedGraphs {
    /// Binds an adapter. The binding keeps its tensors for as long as it lives; a series that began with it ends with it, whatever is
    /// bound meanwhile. TensorRT has room for a dozen bindings.
    ///
    /// # Errors
    /// [`NetworksError::Other`] for an adapter of other shapes, which needs graphs of its own; [`NetworksError::Engine`].
    pub fn bind(&self, adapter: &Adapter) -> Result<EngineNetworks, NetworksError> {
        let other = |cause| NetworksError::Other { adapter: adapter.meta.name.clone(), cause };
        if adapter.meta.input_size != self.size {
            return Err(other(format!("its input has {} pixels, the graph's {}", adapter.meta.input_size, self.size)));
        }
        let shapes = padded_shapes(adapter, self.rank);
        if let Some((n, s)) = shapes.iter().find(|(n, s)| self.shapes.get(*n) != Some(s)) {
            let own = self.shapes.get(n).map_or("none".to_string(), |s| format!("{s:?}"));
            return Err(other(format!("its tensor {n} has the shape {s:?}, the graphs' {own}")));
        }
        if let Some(n) = self.shapes.keys().find(|n| !shapes.contains_key(*n)) {
            return Err(other(format!("it has no tensor {n}")));
        }
        Ok(EngineNetworks {
            encoder: self.encoder.bind(adapter)?,
            classifier: self.classifier.bind(adapter)?,
            decoder: self.decoder.bind(adapter)?,
            size: self.size,
            structures: self.structures,
        })
    }

    /// Whether these are the very same loaded graphs.
    pub fn are(&self, other: &LoadedGraphs) -> bool {
        Arc::ptr_eq(&self.encoder.engine, &other.encoder.engine)
    }

    /// What computes.
    pub fn identity(&self) -> EngineIdentity {
        self.encoder.engine.identity()
    }
}

fn padded_shapes(adapter: &Adapter, rank: usize) -> Shapes {
    adapter.tensors.iter().map(|(n, t)| (n.clone(), padded_shape(n, &t.shape, rank))).collect()
}

fn padded_shape(name: &str, shape: &[usize], rank: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(r) = rank_axis(name).and_then(|axis| shape.get_mut(axis)) {
        *r = (*r).max(rank);
    }
    shape
}

/// An adapter's tensor as a graph takes it; none where it has no such tensor, or one that cannot be padded to the shape.
pub fn padded_to(adapter: &Adapter, name: &str, shape: &[usize]) -> Option<Tensor> {
    padded(name, adapter.tensors.get(name)?, shape)
}

/// Encoder, classifier and decoder graphs for one adapter.
pub struct EngineNetworks {
    encoder: Part,
    classifier: Part,
    decoder: Part,
    size: usize,
    structures: usize,
}

impl EngineNetworks {
    /// Writes the three graphs for an adapter, loads them into the embedded CPU engine and binds the adapter; `threads` 0 means one per
    /// core. The adapter must have been held against the network before.
    ///
    /// # Errors
    /// [`NetworksError`]: a tensor that does not fit, or a graph that the engine refuses.
    pub fn cpu(base: &BaseWeights, adapter: &Adapter, threads: usize) -> Result<Self, NetworksError> {
        Graphs::emit(base, adapter, 0)?.load_cpu(threads)?.bind(adapter)
    }

    /// Encoder, classifier and decoder as they are, in whatever precision, each on the engine that `load` makes of it.
    ///
    /// # Errors
    /// What `load` says; [`EngineError::Load`] where the adapter lacks a tensor that a graph takes.
    pub fn of(
        [encoder, classifier, decoder]: &[Graph; 3],
        adapter: &Adapter,
        mut load: impl FnMut(&Graph) -> Result<Box<dyn Engine>, EngineError>,
    ) -> Result<Self, NetworksError> {
        let mut part = |name: &'static str, graph: &Graph| -> Result<Part, NetworksError> {
            let engine: Arc<dyn Engine> = Arc::from(load(graph)?);
            let mut fixed = Vec::with_capacity(graph.adapter_inputs.len());
            for (n, shape) in &graph.adapter_inputs {
                let tensor = padded_to(adapter, n, shape).ok_or_else(|| EngineError::Load {
                    engine: engine.identity().kind,
                    graph: name.into(),
                    cause: format!("adapter {} has no tensor {n} of a shape that fits {shape:?}", adapter.meta.name),
                })?;
                fixed.push((n.clone(), tensor));
            }
            Ok(Part { bound: engine.bind(fixed)?, name })
        };
        Ok(EngineNetworks {
            encoder: part("encoder", encoder)?,
            classifier: part("classifier", classifier)?,
            decoder: part("decoder", decoder)?,
            size: adapter.meta.input_size,
            structures: adapter.meta.task.structures.len(),
        })
    }
}

impl Networks for EngineNetworks {
    fn input_size(&self) -> usize {
        self.size
    }
    fn structures(&self) -> usize {
        self.structures
    }
    fn encode(&self, image: &Tensor) -> Result<Tensor, EngineError> {
        let [embedding] = self.encoder.run([(IMAGE, image)].as_slice())?;
        Ok(embedding)
    }
    fn classify(&self, embedding: &Tensor) -> Result<ClassifierOutput, EngineError> {
        let [logits, cam] = self.classifier.run([(EMBEDDING, embedding)].as_slice())?;
        if logits.len() != self.structures {
            return Err(self.classifier.failed(format!("{} logits for {} structures", logits.len(), self.structures)));
        }
        let engine = self.classifier.bound.identity().kind;
        Ok(ClassifierOutput {
            logits: logits.data,
            cams: planes(&cam, self.structures, &engine, self.classifier.name)?,
        })
    }
    fn decode(&self, embedding: &Tensor, boxes: &[[f32; 4]]) -> Result<DecoderOutput, EngineError> {
        let corners = Tensor { shape: vec![boxes.len(), 4], data: boxes.concat() };
        let [masks, iou] = self.decoder.run([(EMBEDDING, embedding), (BOXES, &corners)].as_slice())?;
        if iou.len() != self.structures {
            return Err(self.decoder.failed(format!("{} estimates for {} structures", iou.len(), self.structures)));
        }
        let engine = self.decoder.bound.identity().kind;
        Ok(DecoderOutput { masks: planes(&masks, self.structures, &engine, self.decoder.name)?, iou: iou.data })
    }
    fn identity(&self) -> EngineIdentity {
        self.encoder.bound.identity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_grow_along_the_rank_alone_and_a_higher_rank_stays() {
        assert_eq!(padded_shape("x.lora_a", &[2, 3], 5), [5, 3]);
        assert_eq!(padded_shape("x.lora_b", &[2, 2], 5), [2, 5]);
        assert_eq!(padded_shape("x.lora_a", &[2, 3], 1), [2, 3]);
        assert_eq!(padded_shape("class_tokens", &[2, 2], 9), [2, 2]);
    }

    /// Answers with fixed outputs after checking which inputs came.
    struct Fixed {
        inputs: Vec<&'static str>,
        outputs: Vec<Tensor>,
    }
    impl Bound for Fixed {
        fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError> {
            assert_eq!(inputs.iter().map(|i| i.0).collect::<Vec<_>>(), self.inputs);
            Ok(self.outputs.clone())
        }
        fn identity(&self) -> EngineIdentity {
            EngineIdentity { kind: "fixed".into(), version: "0".into(), precision: "fp32".into() }
        }
    }

    fn networks(masks: &[usize]) -> EngineNetworks {
        let part = |name, inputs: &[&'static str], outputs| Part {
            bound: Box::new(Fixed { inputs: inputs.to_vec(), outputs }),
            name,
        };
        EngineNetworks {
            encoder: part("encoder", &["image"], vec![Tensor::zeros(&[1, 256, 2, 2])]),
            classifier: part("classifier", &["embedding"], vec![Tensor::zeros(&[1, 2]), Tensor::zeros(&[1, 2, 2, 2])]),
            decoder: part("decoder", &["embedding", "boxes"], vec![Tensor::zeros(masks), Tensor::zeros(&[2, 1])]),
            size: 32,
            structures: 2,
        }
    }

    #[test]
    fn graphs_get_their_inputs_and_outputs_are_split() {
        let n = networks(&[2, 1, 8, 8]);
        let e = n.encode(&Tensor::zeros(&[1, 3, 32, 32])).unwrap();
        let c = n.classify(&e).unwrap();
        assert_eq!((c.logits.len(), c.cams.len(), c.cams[1].width), (2, 2, 2));
        let d = n.decode(&e, &[[0.0, 0.0, 1.0, 1.0]; 2]).unwrap();
        assert_eq!((d.masks.len(), d.masks[0].height, d.iou.len()), (2, 8, 2));
    }

    #[test]
    fn a_wrong_shape_and_a_missing_tensor_are_errors_that_name_the_graph() {
        let n = networks(&[3, 1, 8, 8]);
        let wrong = n.decode(&Tensor::zeros(&[1, 256, 2, 2]), &[[0.0; 4]; 2]).unwrap_err();
        assert!(wrong.to_string().contains("decoder"), "{wrong}");
    }
}
