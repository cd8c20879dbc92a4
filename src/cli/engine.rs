//! `scanside engine`: the plans that TensorRT runs on this box.

mod add;
mod bench;
mod build;
mod check;
mod list;
mod report;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::ConfigArgs;
use crate::adapter::Adapter;
use crate::config::{Config, Precision};
use crate::engine::tensorrt::{Plans, Platform};
use crate::model::weights::{self, BaseWeights};
use crate::pipeline::serving::{Refusal, TensorRtGraphs, plans_of, search_of};

/// Which command.
#[derive(Args, Debug)]
pub(super) struct EngineArgs {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand, Debug)]
enum Job {
    /// Build the plans of the encoder, the classifier and the decoder on this GPU
    Build(build::BuildArgs),
    /// Take a plan that trtexec built
    Add(add::AddArgs),
    /// List the plans and what each is for
    List(list::ListArgs),
    /// Hold TensorRT's masks against the CPU engine's; exit code 1 where it may not serve
    Verify(verify::VerifyArgs),
    /// Time each part on TensorRT and on the CPU engine
    Bench(bench::BenchArgs),
    /// Everything that is to be known of a GPU, part by part: builds, parity, times, adapter swaps, overlap
    CheckGpu(check::CheckArgs),
}

pub(super) fn run(args: &EngineArgs) -> anyhow::Result<ExitCode> {
    match &args.job {
        Job::Build(args) => build::run(args),
        Job::Add(args) => add::run(args),
        Job::List(args) => list::run(args),
        Job::Verify(args) => verify::run(args),
        Job::Bench(args) => bench::run(args),
        Job::CheckGpu(args) => check::run(args),
    }
}

/// What the plans are for; shared by the commands.
#[derive(Args, Debug, Clone)]
pub(super) struct SubjectArgs {
    /// The adapter whose shapes the graphs take; default: the configuration's, else the phantom adapter
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// In place of engine.precision: fp32, fp16, int8
    #[arg(long, value_parser = precision)]
    precision: Option<Precision>,
    #[command(flatten)]
    config: ConfigArgs,
}

fn precision(word: &str) -> Result<Precision, String> {
    [Precision::Fp32, Precision::Fp16, Precision::Int8]
        .into_iter()
        .find(|p| p.word() == word)
        .ok_or_else(|| "expected fp32, fp16 or int8".into())
}

/// Settings, weights and adapter of a command.
pub(super) struct Subject {
    pub config: Config,
    pub base: BaseWeights,
    pub adapter: Adapter,
    pub plans: Plans,
}

impl SubjectArgs {
    fn load(&self) -> anyhow::Result<Subject> {
        let mut config = self.config.load()?.config;
        if let Some(p) = self.precision {
            config.engine.precision = p;
        }
        let base = if config.model.weights.as_os_str().is_empty() {
            weights::load_or_fetch(&mut |line| eprintln!("{line}"))?
        } else {
            weights::load(&config.model.weights)?
        };
        let path = self.adapter.clone().unwrap_or_else(|| config.model.adapter.clone());
        let adapter = crate::daemon::adapter_at(&path)?;
        adapter.check(base.sha256())?;
        let plans = plans_of(&config.engine, &config.storage.state_dir);
        Ok(Subject { config, base, adapter, plans })
    }
}

impl Subject {
    fn graphs(&self) -> anyhow::Result<TensorRtGraphs> {
        Ok(TensorRtGraphs::new(&self.config.engine, &self.base, &self.adapter)?)
    }

    /// TensorRT on this machine, or the reason with its remedy.
    fn platform(&self) -> anyhow::Result<Platform> {
        Platform::open(&search_of(&self.config.engine)).map_err(|e| anyhow::anyhow!(Refusal::from(e)))
    }
}

/// The value below which a share of the sorted values lies.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(((last as f64) * share).round() as usize).copied().unwrap_or(f64::NAN)
}
