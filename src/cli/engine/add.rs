//! `scanside engine add`: a plan that was built elsewhere on the same GPU and TensorRT, by trtexec for instance.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::SubjectArgs;
use crate::clock::Clock;
use crate::engine::tensorrt::{ServingOptions, TensorRtEngine, read_plan};
use crate::pipeline::serving::{Refusal, signature};

#[derive(Args, Debug)]
pub(super) struct AddArgs {
    /// The plan
    plan: PathBuf,
    /// Which part it is
    #[arg(long, value_parser = ["encoder", "classifier", "decoder"])]
    part: String,
    #[command(flatten)]
    subject: SubjectArgs,
}

pub(super) fn run(args: &AddArgs) -> anyhow::Result<ExitCode> {
    let subject = args.subject.load()?;
    let plan = read_plan(&args.plan)?;
    let platform = subject.platform()?;
    let graphs = subject.graphs()?;
    let Some((part, graph)) = graphs.graphs.parts().into_iter().find(|(n, _)| *n == args.part) else {
        bail!("there is no part {}", args.part)
    };
    // It is loaded once as it will be for serving: a plan of another version, GPU or graph is refused here and not at night.
    let options = ServingOptions { lanes: 1, cuda_graph: false, precision: graphs.precision.word().into() };
    TensorRtEngine::load(part, &plan, &platform.runtime, &platform.gpu, &signature(graph), &options)
        .map_err(|e| anyhow::anyhow!(Refusal::from(e)))
        .with_context(|| format!("{} is not taken", args.plan.display()))?;
    let key = graphs.key(&platform, part);
    subject.plans.keep(&key, &plan, 0.0, "added", Clock::System.now_ms())?;
    println!("{part} {}: {} KiB for {} on {}", key.precision, plan.len() >> 10, key.library, key.gpu);
    println!("next: scanside engine verify (the plan serves only once its masks agree with the CPU engine's)");
    Ok(ExitCode::SUCCESS)
}
