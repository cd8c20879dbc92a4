//! ONNX Runtime as a peer: a Python process that holds one graph and runs it once for each line it reads.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};

use crate::engine::{Bound, Engine, EngineError, EngineIdentity, OnHost, Tensor};

/// The peer's half, run by Python.
const WORKER: &str = include_str!("../../tests/reference/ort_worker.py");
/// Most values of an output that is read.
const MAX_VALUES: usize = 1 << 28;

/// The process and its folder.
pub(super) struct Peer {
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
    version: String,
}

impl Peer {
    /// Starts the process with a graph; `inputs` are all of them, with the values of the first run.
    pub(super) fn start(
        python: &Path,
        onnx: &[u8],
        inputs: &[(&str, &Tensor)],
        threads: usize,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (model, worker) = (folder.path().join("graph.onnx"), folder.path().join("worker.py"));
        std::fs::write(&model, onnx)?;
        std::fs::write(&worker, WORKER)?;
        inputs.iter().try_for_each(|(n, t)| write(folder.path(), n, t))?;
        let mut child = Command::new(python)
            .args([
                worker.as_os_str(),
                model.as_os_str(),
                threads.max(1).to_string().as_ref(),
                folder.path().as_os_str(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let ask = child.stdin.take().context("no pipe to the peer")?;
        let answer = BufReader::new(child.stdout.take().context("no pipe from the peer")?);
        let mut peer = Peer { child, ask, answer, folder, version: String::new() };
        let hello = peer.line()?;
        let Some(version) = hello.strip_prefix("ready") else {
            bail!(
                "{} has no onnxruntime, or it refused the graph: pip install onnxruntime, or leave out --python",
                python.display()
            );
        };
        peer.version = version.trim().to_string();
        Ok(peer)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.answer.read_line(&mut line)?;
        Ok(line)
    }

    /// Seconds of one run.
    pub(super) fn run(&mut self) -> anyhow::Result<f64> {
        writeln!(self.ask, "run")?;
        let line = self.line()?;
        line.trim().parse().with_context(|| format!("the peer answered {line:?}"))
    }

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

fn write(folder: &Path, name: &str, tensor: &Tensor) -> anyhow::Result<()> {
    let raw: Vec<u8> = tensor.data.iter().flat_map(|v| v.to_le_bytes()).collect();
    Ok(std::fs::write(folder.join(format!("{name}.f32")), raw)?)
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends when its input does; a stuck one must not outlive the measurement.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A graph on ONNX Runtime's CPU provider, for comparison; never for serving. Runs wait for each other.
pub(super) struct OnnxRuntime {
    peer: Mutex<Peer>,
    graph: String,
    precision: &'static str,
    changing: Vec<String>,
    version: String,
}

impl OnnxRuntime {
    /// `constant` are the inputs that every run has alike, the rest (`changing`, with their shapes) come with each.
    pub(super) fn load(
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
