//! The network as three engine graphs with an adapter's tensors as inputs. The graphs know no adapter: adapters of the same shapes
//! run on the same ones, so that changing the adapter is a matter of other inputs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::networks::{ClassifierOutput, DecoderOutput, Networks, planes};
use crate::adapter::Adapter;
use crate::engine::cpu::CpuEngine;
use crate::engine::{Engine, EngineError, EngineIdentity, Tensor};
use crate::model::network::ShapeError;
use crate::model::onnx::{BOXES, EMBEDDING, Graph, IMAGE, emit_classifier, emit_decoder, emit_encoder};
use crate::model::weights::BaseWeights;

/// A loaded graph and the adapter tensors that it takes at every run. Cheap to clone.
#[derive(Clone)]
pub struct Part {
    engine: Arc<dyn Engine>,
    adapter: Arc<[(String, Tensor)]>,
    name: &'static str,
}

impl Part {
    /// A graph with those of an adapter's tensors that it names as inputs.
    ///
    /// # Errors
    /// [`EngineError::Load`] where the adapter lacks one of `wanted`.
    pub fn new<'a>(
        name: &'static str,
        engine: Box<dyn Engine>,
        wanted: impl IntoIterator<Item = &'a str>,
        adapter: &BTreeMap<String, Tensor>,
    ) -> Result<Self, EngineError> {
        Part::over(name, engine.into(), wanted, adapter)
    }

    fn over<'a>(
        name: &'static str,
        engine: Arc<dyn Engine>,
        wanted: impl IntoIterator<Item = &'a str>,
        adapter: &BTreeMap<String, Tensor>,
    ) -> Result<Self, EngineError> {
        let adapter = wanted
            .into_iter()
            .map(|n| match adapter.get(n) {
                Some(t) => Ok((n.to_string(), t.clone())),
                None => Err(EngineError::Load {
                    engine: engine.identity().kind,
                    graph: name.into(),
                    cause: format!("the adapter has no tensor {n}"),
                }),
            })
            .collect::<Result<_, _>>()?;
        Ok(Part { engine, adapter, name })
    }

    /// The same graph with another adapter's tensors.
    fn with(&self, adapter: &BTreeMap<String, Tensor>) -> Result<Self, EngineError> {
        Part::over(self.name, self.engine.clone(), self.adapter.iter().map(|(n, _)| n.as_str()), adapter)
    }

    /// Runs the graph on its changing inputs; `count` outputs are expected.
    fn run<const N: usize>(&self, inputs: &[(&str, &Tensor)]) -> Result<[Tensor; N], EngineError> {
        let mut all: Vec<(&str, &Tensor)> = inputs.to_vec();
        all.extend(self.adapter.iter().map(|(n, t)| (n.as_str(), t)));
        let outputs = self.engine.run(&all)?;
        let n = outputs.len();
        outputs.try_into().map_err(|_| self.failed(format!("it gave {n} outputs instead of {N}")))
    }

    fn failed(&self, cause: String) -> EngineError {
        EngineError::Run { engine: self.engine.identity().kind, graph: self.name.into(), cause }
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
}

/// Encoder, classifier and decoder graphs for one task. Cheap to clone.
#[derive(Clone)]
pub struct EngineNetworks {
    encoder: Part,
    classifier: Part,
    decoder: Part,
    size: usize,
    structures: usize,
}

impl EngineNetworks {
    /// The three graphs for S x S inputs and K structures.
    pub fn new(encoder: Part, classifier: Part, decoder: Part, size: usize, structures: usize) -> Self {
        EngineNetworks { encoder, classifier, decoder, size, structures }
    }

    /// Emits the three graphs for an adapter and loads them into the embedded CPU engine; `threads` 0 means one per core.
    /// The adapter must have been held against the network before.
    ///
    /// # Errors
    /// [`NetworksError`]: a tensor that does not fit, or a graph that the engine refuses.
    pub fn cpu(base: &BaseWeights, adapter: &Adapter, threads: usize) -> Result<Self, NetworksError> {
        let shapes = adapter.tensors.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect();
        let size = adapter.meta.input_size;
        let part = |name: &'static str, graph: Graph| -> Result<Part, NetworksError> {
            let engine = CpuEngine::load(name, graph.onnx, threads)?;
            let wanted = graph.adapter_inputs.keys().map(String::as_str);
            Ok(Part::new(name, Box::new(engine), wanted, &adapter.tensors)?)
        };
        Ok(EngineNetworks {
            encoder: part("encoder", emit_encoder(base, &shapes, size)?)?,
            classifier: part("classifier", emit_classifier(base, &shapes, size)?)?,
            decoder: part("decoder", emit_decoder(base, &shapes, size)?)?,
            size,
            structures: adapter.meta.task.structures.len(),
        })
    }
}

impl EngineNetworks {
    /// The same graphs with another adapter's tensors; none where that adapter needs graphs of its own. It must have been held
    /// against the network before.
    ///
    /// # Errors
    /// [`EngineError`] as [`Part::new`].
    pub fn with_adapter(&self, adapter: &Adapter) -> Option<Result<Self, EngineError>> {
        let parts = [&self.encoder, &self.classifier, &self.decoder];
        let taken: BTreeMap<&str, &[usize]> =
            parts.iter().flat_map(|p| p.adapter.iter()).map(|(n, t)| (n.as_str(), t.shape.as_slice())).collect();
        let given = adapter.tensors.iter().map(|(n, t)| (n.as_str(), t.shape.as_slice()));
        let same = taken == given.collect()
            && self.size == adapter.meta.input_size
            && self.structures == adapter.meta.task.structures.len();
        let [encoder, classifier, decoder] = same.then(|| parts.map(|p| p.with(&adapter.tensors)))?;
        Some((|| Ok(EngineNetworks::new(encoder?, classifier?, decoder?, self.size, self.structures)))())
    }

    /// Whether both run on the same loaded graphs.
    pub fn shares_graphs_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.encoder.engine, &other.encoder.engine)
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
        let engine = self.classifier.engine.identity().kind;
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
        let engine = self.decoder.engine.identity().kind;
        Ok(DecoderOutput { masks: planes(&masks, self.structures, &engine, self.decoder.name)?, iou: iou.data })
    }
    fn identity(&self) -> EngineIdentity {
        self.encoder.engine.identity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with fixed outputs after checking which inputs came.
    struct Fixed {
        inputs: Vec<&'static str>,
        outputs: Vec<Tensor>,
    }
    impl Engine for Fixed {
        fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError> {
            assert_eq!(inputs.iter().map(|i| i.0).collect::<Vec<_>>(), self.inputs);
            Ok(self.outputs.clone())
        }
        fn identity(&self) -> EngineIdentity {
            EngineIdentity { kind: "fixed".into(), version: "0".into(), precision: "fp32".into() }
        }
    }

    fn networks(masks: &[usize]) -> EngineNetworks {
        let adapter: BTreeMap<String, Tensor> =
            [("class_tokens", 2), ("a.lora_a", 1)].map(|(n, k)| (n.to_string(), Tensor::zeros(&[k, 256]))).into();
        let part = |name, wanted: &[&'static str], own: &[&'static str], outputs| {
            let inputs = own.iter().chain(wanted).copied().collect();
            Part::new(name, Box::new(Fixed { inputs, outputs }), wanted.iter().copied(), &adapter).unwrap()
        };
        EngineNetworks::new(
            part("encoder", &["a.lora_a"], &["image"], vec![Tensor::zeros(&[1, 256, 2, 2])]),
            part("classifier", &[], &["embedding"], vec![Tensor::zeros(&[1, 2]), Tensor::zeros(&[1, 2, 2, 2])]),
            part(
                "decoder",
                &["class_tokens"],
                &["embedding", "boxes"],
                vec![Tensor::zeros(masks), Tensor::zeros(&[2, 1])],
            ),
            32,
            2,
        )
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
        let engine = Box::new(Fixed { inputs: Vec::new(), outputs: Vec::new() });
        let Err(missing) = Part::new("encoder", engine, ["x.lora_a"], &BTreeMap::new()) else { panic!("accepted") };
        assert!(missing.to_string().contains("x.lora_a"), "{missing}");
    }
}
