//! A graph on ONNX Runtime as an engine, to compare its values with ours.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};

use super::{Peer, write};
use crate::engine::{Bound, Engine, EngineError, EngineIdentity, OnHost, Tensor};

/// Most values of an output that is read.
const MAX_VALUES: usize = 1 << 28;

impl Peer {
    /// Outputs of one run, with these inputs instead of the former ones.
    fn infer(&mut self, inputs: &[(&str, &Tensor)]) -> anyhow::Result<Vec<Tensor>> {
        inputs.iter().try_for_each(|(n, t)| write(self.folder.path(), n, t))?;
        let names: Vec<&str> = inputs.iter().map(|(n, _)| *n).collect();
        writeln!(self.ask, "infer {}", names.join(" "))?;
        let line = self.line()?;
        line.split_whitespace()
            .map(|word| {
                let (name, shape) = word.split_once('=').with_context(|| format!("the peer answered {line:?}"))?;
                let shape = shape.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
                let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= MAX_VALUES);
                let bytes = std::fs::read(self.folder.path().join(format!("out.{name}.f32")))?;
                if count != Some(bytes.len() / 4) {
                    bail!("the peer's output {name} has {} bytes for {shape:?}", bytes.len());
                }
                let data = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                Ok(Tensor { shape, data })
            })
            .collect()
    }
}

/// A graph on ONNX Runtime's CPU provider, for comparison; never for serving. Runs wait for each other.
pub(in crate::cli) struct OnnxRuntime {
    peer: Mutex<Peer>,
    graph: String,
    precision: &'static str,
    changing: Vec<String>,
    version: String,
}

impl OnnxRuntime {
    /// `constant` are the inputs that every run has alike, the rest (`changing`, with their shapes) come with each.
    pub(in crate::cli) fn load(
        python: &Path,
        graph: &crate::model::onnx::Graph,
        constant: &[(&str, &Tensor)],
        threads: usize,
        precision: &'static str,
    ) -> anyhow::Result<Self> {
        let empty: Vec<(String, Tensor)> = graph.inputs.iter().map(|(n, s)| (n.clone(), Tensor::zeros(s))).collect();
        let mut inputs: Vec<(&str, &Tensor)> = empty.iter().map(|(n, t)| (n.as_str(), t)).collect();
        inputs.extend(constant);
        let peer = Peer::start(python, &graph.onnx, &inputs, threads)?;
        let version = format!("ONNX Runtime {}", peer.version);
        let changing = graph.inputs.iter().map(|(n, _)| n.clone()).collect();
        Ok(OnnxRuntime { peer: Mutex::new(peer), graph: graph.name.clone(), precision, changing, version })
    }
}

impl Engine for OnnxRuntime {
    fn bind(self: Arc<Self>, fixed: Vec<(String, Tensor)>) -> Result<Box<dyn Bound>, EngineError> {
        Ok(Box::new(OnHost::new(self, fixed)))
    }
    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError> {
        let own: Vec<(&str, &Tensor)> =
            inputs.iter().filter(|(n, _)| self.changing.iter().any(|c| c == n)).copied().collect();
        let mut peer = self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        peer.infer(&own).map_err(|e| EngineError::Run {
            engine: "onnxruntime".into(),
            graph: self.graph.clone(),
            cause: format!("{e:#}"),
        })
    }

    fn identity(&self) -> EngineIdentity {
        EngineIdentity { kind: "onnxruntime".into(), version: self.version.clone(), precision: self.precision.into() }
    }
}
