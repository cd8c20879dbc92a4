//! `scanside engine`: the plans that TensorRT runs on this box.

mod add;
mod bench;
mod build;
mod check;
mod list;
mod report;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use rusqlite::Connection;

use super::ConfigArgs;
use crate::adapter::Adapter;
use crate::adapter::bundle::{Unverified, read_file};
use crate::clock::Clock;
use crate::config::{Config, Precision};
use crate::engine::tensorrt::{Plans, Platform};
use crate::model::weights::{self, BaseWeights};
use crate::pipeline::serving::{Refusal, TensorRtGraphs, plans_of, search_of};
use crate::store::{Store, bundles};

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
    /// The adapter whose shapes the graphs take; default: that of the bundle that serves, else the configuration's, else the phantom adapter
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// The same from a bundle's file, e.g. before it is sideloaded; nobody's signature is asked for here
    #[arg(long, value_name = "FILE", conflicts_with = "adapter")]
    bundle: Option<PathBuf>,
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
        let adapter = match (&self.adapter, &self.bundle) {
            (Some(path), _) => crate::daemon::adapter_at(path)?,
            (None, Some(file)) => adapter_of(file)?,
            (None, None) => match on_box(&config, |c| bundles::serving_bundle(c))?.flatten() {
                Some(row) => adapter_of(&row.file(&config.storage.state_dir))?,
                None => crate::daemon::adapter_at(&config.model.adapter)?,
            },
        };
        adapter.check(base.sha256())?;
        let plans = plans_of(&config.engine, &config.storage.state_dir);
        Ok(Subject { config, base, adapter, plans })
    }

    /// What else may come to serve on this box: the bundle on trial, and the configuration's adapter. None where an adapter was named.
    fn others(&self, of: &Subject) -> anyhow::Result<Vec<Subject>> {
        if self.adapter.is_some() || self.bundle.is_some() {
            return Ok(Vec::new());
        }
        let config = &of.config;
        let candidate = on_box(config, |c| bundles::candidate(c))?.flatten();
        let mut adapters: Vec<Adapter> =
            candidate.map(|row| adapter_of(&row.file(&config.storage.state_dir))).transpose()?.into_iter().collect();
        adapters.push(crate::daemon::adapter_at(&config.model.adapter)?);
        let other = |adapter: Adapter| {
            adapter.check(of.base.sha256())?;
            Ok(Subject { config: config.clone(), base: of.base.clone(), adapter, plans: of.plans.clone() })
        };
        adapters.into_iter().map(other).collect()
    }
}

/// The adapter in a bundle's file, as the bundle's own manifest says it is.
fn adapter_of(file: &Path) -> anyhow::Result<Adapter> {
    let (adapter, _, _) = Unverified::parse(read_file(file)?)?.contents()?;
    Ok(adapter)
}

/// Asks the rows of this box; none where it has no state yet.
fn on_box<T>(config: &Config, ask: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> anyhow::Result<Option<T>> {
    let dir = &config.storage.state_dir;
    if !Store::is_in(dir) {
        return Ok(None);
    }
    let asked = Store::open_read_only(dir, Clock::System).and_then(|s| s.with_conn(ask));
    asked.map(Some).context("what serves cannot be read; run this as the service's user, or name --adapter")
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
