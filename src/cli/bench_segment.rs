//! `scanside bench segment`: the encoder beside ONNX Runtime on the same ONNX, alternately in one run.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;

use super::onnx_runtime::Peer;
use crate::engine::cpu::CpuEngine;
use crate::engine::{Engine, Tensor};
use crate::model::network::Shapes;
use crate::model::{onnx, weights};

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
        let mut peer = match &args.python {
            Some(python) => Some(Peer::start(python, &graph.onnx, &[(onnx::IMAGE, &image)], args.threads)?),
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
