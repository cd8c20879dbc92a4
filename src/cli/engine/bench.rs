//! `scanside engine bench`: each part on TensorRT and on the CPU engine, in one run.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::{Subject, SubjectArgs, quantile};
use crate::engine::tensorrt::{Platform, TensorRtEngine};
use crate::engine::{Engine, EngineError, Tensor};
use crate::model::onnx::Graph;
use crate::pipeline::serving::TensorRtGraphs;

#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Timed runs of each part on the GPU
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Timed runs of each part on the CPU; 0 leaves it out
    #[arg(long, default_value_t = 5)]
    cpu_rounds: usize,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Milliseconds of one part, from host memory to host memory.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PartTimes {
    /// The part.
    pub part: String,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Median of the CPU engine with all cores; none where it was left out.
    pub cpu: Option<f64>,
}

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let subject = args.subject.load()?;
    let platform = subject.platform()?;
    let graphs = subject.graphs()?;
    let times = measure(&subject, &platform, &graphs, subject.config.engine.cuda_graph, args.rounds, args.cpu_rounds)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&times)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}, {}", platform.describe(), graphs.precision.word());
    for t in &times {
        let cpu = t.cpu.map_or(String::new(), |c| format!(", CPU engine {c:.1} ms, ratio {:.1}", c / t.p50));
        println!("{:<10} {:8.3} ms (p99 {:.3}){cpu}", t.part, t.p50, t.p99);
    }
    Ok(ExitCode::SUCCESS)
}

/// Times the three parts on plans that are there.
pub(super) fn measure(
    subject: &Subject,
    platform: &Platform,
    graphs: &TensorRtGraphs,
    cuda_graph: bool,
    rounds: usize,
    cpu_rounds: usize,
) -> anyhow::Result<Vec<PartTimes>> {
    let parts = graphs.load(&subject.plans, platform, cuda_graph).map_err(|e| anyhow::anyhow!(e))?;
    let mut all = Vec::new();
    for ((name, graph), (_, engine)) in graphs.graphs.parts().into_iter().zip(&parts.engines) {
        let gpu = time(engine.clone(), graph, subject, rounds)?;
        let cpu = if cpu_rounds > 0 {
            let engine = crate::engine::cpu::CpuEngine::load(name, graph.onnx.clone(), 0)?;
            Some(quantile(&time(Arc::new(engine), graph, subject, cpu_rounds)?, 0.5))
        } else {
            None
        };
        all.push(PartTimes { part: name.into(), p50: quantile(&gpu, 0.5), p99: quantile(&gpu, 0.99), cpu });
    }
    Ok(all)
}

/// The adapter's tensors as a graph takes them.
pub(super) fn fixed(graph: &Graph, subject: &Subject) -> Vec<(String, Tensor)> {
    let names = graph.adapter_inputs.iter();
    names.filter_map(|(n, s)| crate::pipeline::padded_to(&subject.adapter, n, s).map(|t| (n.clone(), t))).collect()
}

/// Inputs of a part, the same at every run.
pub(super) fn inputs(graph: &Graph) -> Vec<(String, Tensor)> {
    let wave = |shape: &[usize]| -> Vec<f32> {
        (0..shape.iter().product::<usize>()).map(|i| ((i % 977) as f32 / 488.0) - 1.0).collect()
    };
    let boxes = |shape: &[usize]| [0.1, 0.1, 0.9, 0.9].repeat(shape[0]);
    let value = |n: &str, s: &[usize]| if n == crate::model::onnx::BOXES { boxes(s) } else { wave(s) };
    graph.inputs.iter().map(|(n, s)| (n.clone(), Tensor::new(s, value(n, s)))).collect()
}

/// Sorted milliseconds of runs after some to warm up.
fn time<E: Engine + 'static>(
    engine: Arc<E>,
    graph: &Graph,
    subject: &Subject,
    rounds: usize,
) -> Result<Vec<f64>, EngineError> {
    let inputs = inputs(graph);
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let bound = (engine as Arc<dyn Engine>).bind(fixed(graph, subject))?;
    let warm = rounds.div_ceil(10).clamp(1, 10);
    let mut times = Vec::with_capacity(rounds);
    for i in 0..warm + rounds.max(1) {
        let started = Instant::now();
        bound.run(&given)?;
        if i >= warm {
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// As `time`, for one loaded plan.
pub(super) fn time_plan(
    engine: &Arc<TensorRtEngine>,
    graph: &Graph,
    subject: &Subject,
    rounds: usize,
) -> Result<Vec<f64>, EngineError> {
    time(engine.clone(), graph, subject, rounds)
}
