//! ONNX Runtime as a peer: a Python process that holds one graph and runs it once for each line it reads.

#[cfg(feature = "train")]
mod engine;

#[cfg(feature = "train")]
pub(super) use engine::OnnxRuntime;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};

use crate::engine::Tensor;

/// The peer's half, run by Python.
const WORKER: &str = include_str!("../../../tests/reference/ort_worker.py");

/// The process and its folder.
pub(super) struct Peer {
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
    /// Where values are exchanged; it goes with the process.
    #[cfg_attr(not(feature = "train"), expect(dead_code, reason = "only what compares values reads it"))]
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
