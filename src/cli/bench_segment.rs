//! `scanside bench segment`: the encoder beside ONNX Runtime on the same ONNX, alternately in one run.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;

use crate::engine::cpu::CpuEngine;
use crate::engine::{Engine, Tensor};
use crate::model::network::Shapes;
use crate::model::{onnx, weights};

/// The peer's half, run by Python.
const WORKER: &str = include_str!("../../tests/reference/ort_worker.py");

/// What to measure.
#[derive(Args, Debug, Clone)]
pub struct SegmentArgs {
    /// Sides of the input in pixels
    #[arg(long, value_delimiter = ',', default_value = "256,1024")]
    pub sizes: Vec<usize>,
    /// Threads of both sides
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Timed runs of each side
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
    /// Python with onnxruntime; without it only this project is timed
    #[arg(long, env = "SCANSIDE_PYTHON")]
    pub python: Option<PathBuf>,
    /// Also let rten print its time per operator
    #[arg(long)]
    pub profile: bool,
}

/// Seconds of both sides at one size.
#[derive(Clone, Copy, Debug)]
pub struct EncoderTime {
    /// Side of the input.
    pub size: usize,
    /// Ours, on rten.
    pub ours: Times,
    /// ONNX Runtime's, where there is one.
    pub onnx_runtime: Option<Times>,
}

/// Median and fastest run, in seconds. On a busy machine the fastest says more.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Median.
    pub median: f64,
    /// Fastest.
    pub best: f64,
}

impl Times {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        Some(Times { median: *values.get(values.len() / 2)?, best: *values.first()? })
    }
}

pub(super) fn run(args: &SegmentArgs) -> anyhow::Result<ExitCode> {
    for time in encoder(args)? {
        let ms = |t: Times| format!("{:.1} ms (fastest {:.1})", 1e3 * t.median, 1e3 * t.best);
        print!("encoder {0}x{0}, {1} thread(s): rten {2}", time.size, args.threads, ms(time.ours));
        match time.onnx_runtime {
            Some(peer) => println!(
                ", ONNX Runtime {}, ratio {:.2} (fastest {:.2})",
                ms(peer),
                time.ours.median / peer.median,
                time.ours.best / peer.best
            ),
            None => println!(),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Times the base encoder on both sides, alternately, after one run each to warm up.
///
/// # Errors
/// No weights, or the peer fails.
pub fn encoder(args: &SegmentArgs) -> anyhow::Result<Vec<EncoderTime>> {
    let base = weights::load_or_fetch(&mut |what| println!("{what}"))?;
    let mut times = Vec::new();
    for &size in &args.sizes {
        let graph = onnx::emit_encoder(&base, &Shapes::new(), size)?;
        let n = 3 * size * size;
        let image = Tensor::new(&[1, 3, size, size], (0..n).map(|i| ((i % 977) as f32 / 488.0) - 1.0).collect());
        let dir = tempfile::tempdir()?;
        let mut peer = match &args.python {
            Some(python) => Some(Peer::start(python, dir.path(), &graph.onnx, &image, args.threads)?),
            None => None,
        };
        let engine = CpuEngine::load(&graph.name, graph.onnx, args.threads)?;
        let inputs = [(onnx::IMAGE, &image)];
        if args.profile {
            engine.profile(&inputs)?;
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..=args.rounds.max(1) {
            let start = Instant::now();
            engine.run(&inputs)?;
            let mine = start.elapsed().as_secs_f64();
            let other = peer.as_mut().map(Peer::run).transpose()?;
            if round > 0 {
                ours.push(mine);
                theirs.extend(other);
            }
        }
        if let Some(ours) = Times::of(ours) {
            times.push(EncoderTime { size, ours, onnx_runtime: Times::of(theirs) });
        }
    }
    Ok(times)
}

/// ONNX Runtime in a Python process that runs once for each line it reads.
struct Peer {
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &Path, dir: &Path, onnx: &[u8], image: &Tensor, threads: usize) -> anyhow::Result<Self> {
        let (model, worker) = (dir.join("encoder.onnx"), dir.join("worker.py"));
        std::fs::write(&model, onnx)?;
        std::fs::write(&worker, WORKER)?;
        let raw: Vec<u8> = image.data.iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(dir.join(format!("{}.f32", onnx::IMAGE)), raw)?;
        let mut child = Command::new(python)
            .args([worker.as_os_str(), model.as_os_str(), threads.max(1).to_string().as_ref(), dir.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let ask = child.stdin.take().context("no pipe to the peer")?;
        let answer = BufReader::new(child.stdout.take().context("no pipe from the peer")?);
        let mut peer = Peer { child, ask, answer };
        let hello = peer.line()?;
        if !hello.starts_with("ready") {
            bail!("{} has no onnxruntime: pip install onnxruntime, or leave out --python", python.display());
        }
        Ok(peer)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.answer.read_line(&mut line)?;
        Ok(line)
    }

    /// Seconds of one run.
    fn run(&mut self) -> anyhow::Result<f64> {
        writeln!(self.ask, "run")?;
        let line = self.line()?;
        line.trim().parse().with_context(|| format!("the peer answered {line:?}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends when its input does; a stuck one must not outlive the measurement.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
