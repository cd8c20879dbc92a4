//! `scanside engine build`: plans for this GPU, with the time that they will take.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Subject, SubjectArgs};
use crate::clock::Clock;
use crate::engine::tensorrt::{BuildOptions, PlanKey, PlanRecord, Platform};
use crate::pipeline::serving::TensorRtGraphs;

#[derive(Args, Debug)]
pub(super) struct BuildArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Build again what is there already
    #[arg(long)]
    force: bool,
    /// How thoroughly TensorRT looks for kernels, 0 to 5; default: its own choice, 3
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..=5))]
    level: Option<i32>,
    /// Take no kernels from cuBLAS and cuDNN, for a machine that lacks them
    #[arg(long)]
    own_kernels: bool,
}

/// How plans are built.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How {
    /// TensorRT's optimisation level.
    pub level: Option<i32>,
    /// Without cuBLAS and cuDNN.
    pub own_kernels: bool,
}

pub(super) fn run(args: &BuildArgs) -> anyhow::Result<ExitCode> {
    let subject = args.subject.load()?;
    let platform = subject.platform()?;
    println!("{}", platform.describe());
    let how = How { level: args.level, own_kernels: args.own_kernels };
    let mut done = Vec::new();
    missing(&subject, &platform, args.force, how, &mut done)?;
    for other in args.subject.others(&subject)? {
        missing(&other, &platform, args.force, how, &mut done)?;
    }
    println!("plans are in {}; next: scanside engine verify", subject.plans.folder().display());
    Ok(ExitCode::SUCCESS)
}

/// Builds what an adapter lacks; adapters of the same shapes have the same plans, which are told of once.
fn missing(
    subject: &Subject,
    platform: &Platform,
    force: bool,
    how: How,
    done: &mut Vec<PlanKey>,
) -> anyhow::Result<()> {
    let graphs = subject.graphs()?;
    let keys: Vec<(&str, PlanKey)> =
        graphs.graphs.parts().into_iter().map(|(p, _)| (p, graphs.key(platform, p))).collect();
    let new: Vec<(&str, PlanKey)> = keys.into_iter().filter(|(_, key)| !done.contains(key)).collect();
    if !new.is_empty() {
        println!("for adapter {} {}:", subject.adapter.meta.name, subject.adapter.meta.version);
    }
    for (part, key) in new {
        if !force && subject.plans.read(&key).is_ok() {
            println!("{part:<10} {} is there (--force builds it again)", key.precision);
        } else {
            let record = with_progress(subject, &key, || build(subject, platform, &graphs, part, how))?;
            println!("{part:<10} {} built in {:.0} s, {} KiB", key.precision, record.seconds, record.bytes >> 10);
        }
        done.push(key);
    }
    Ok(())
}

/// Builds and keeps one plan.
pub(super) fn build(
    subject: &Subject,
    platform: &Platform,
    graphs: &TensorRtGraphs,
    part: &str,
    how: How,
) -> anyhow::Result<PlanRecord> {
    let key = graphs.key(platform, part);
    let options = BuildOptions {
        level: how.level,
        own_kernels: how.own_kernels,
        timing_cache: subject.plans.timing(&key),
        half: key.precision != "fp32",
        int8: key.precision == "int8",
        ..BuildOptions::default()
    };
    let started = Instant::now();
    let mut builder = platform.builder()?;
    let plan = builder.build(graphs.onnx(part), &options).with_context(|| format!("building the {part}"))?;
    let seconds = started.elapsed().as_secs_f64();
    subject.plans.keep_timing(&key, &plan.timing_cache)?;
    Ok(subject.plans.keep(&key, &plan.plan, seconds, "built", Clock::System.now_ms())?)
}

/// Shows how long it has taken and how long it took before, while another thread builds.
fn with_progress<R: Send>(
    subject: &Subject,
    key: &PlanKey,
    work: impl FnOnce() -> anyhow::Result<R> + Send,
) -> anyhow::Result<R> {
    let before = subject.plans.estimate(key);
    let about = match before {
        Some(s) => format!("about {s:.0} s, as before"),
        None => "never built here: 1 to 30 minutes, by GPU".into(),
    };
    eprintln!("building the {} in {} ({about})", key.graph, key.precision);
    let bar = ProgressBar::new(before.unwrap_or(0.0).max(1.0) as u64);
    let style = if before.is_some() { "{msg:10} {wide_bar} {pos}/{len} s" } else { "{msg:10} {spinner} {pos} s" };
    bar.set_style(ProgressStyle::with_template(style)?);
    bar.set_message(key.graph.clone());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ticking = scope.spawn(|| {
            let started = Instant::now();
            while !over.load(Ordering::Relaxed) {
                bar.set_position(started.elapsed().as_secs());
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        // It only draws.
        let _ = ticking.join();
        bar.finish_and_clear();
        done
    })
}
