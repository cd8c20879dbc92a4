//! `scanside experiment`: runs a plan of experiments and reports on them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};

use super::evaluate::base_weights;
use crate::experiment::{Lab, Plan, Record, RunKey, Told, claim, records, report, tensors_path};
use crate::train::{Device, Event, PHASES};

/// Run a plan of experiments; report on what was run.
#[derive(Args, Debug)]
pub struct ExperimentArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Run what the plan lists and has no result yet; goes on where it was stopped
    Run(RunArgs),
    /// Tables, tests and plots from the results
    Report(ReportArgs),
    /// Write a draw's data as a manifest, and an arm's settings, for `scanside train`
    Manifest(ManifestArgs),
}

#[derive(Args, Debug)]
struct RunArgs {
    /// The plan
    #[arg(long)]
    plan: PathBuf,
    /// Folder with one folder per subject (DICOM files, NRRD/<subject>-label.nrrd)
    #[arg(long)]
    subjects: PathBuf,
    /// Folder of results, one JSON per run
    #[arg(long, short)]
    out: PathBuf,
    /// Folder for checkpoints and claims
    #[arg(long)]
    work: PathBuf,
    /// This machine's part of the plan, e.g. 1/3
    #[arg(long, value_parser = shard_of, default_value = "1/1")]
    shard: (usize, usize),
    /// Only these arms
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Stop before a run that begins later than this many minutes from now
    #[arg(long)]
    minutes: Option<f64>,
    /// Where to compute: cpu, or cuda, cuda:1, ... (feature `cuda`)
    #[arg(long, default_value_t)]
    device: Device,
    /// Commit of the program, kept in the results
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// Base weights (safetensors); default: the cache, fetched once where empty
    #[arg(long)]
    weights: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct ReportArgs {
    /// The plan
    #[arg(long)]
    plan: PathBuf,
    /// Folder of results
    #[arg(long)]
    runs: PathBuf,
    /// Writes PATH.md and plots beside it
    #[arg(long, short)]
    out: PathBuf,
}

#[derive(Args, Debug)]
struct ManifestArgs {
    /// The plan
    #[arg(long)]
    plan: PathBuf,
    /// Folder with one folder per subject (DICOM files, NRRD/<subject>-label.nrrd)
    #[arg(long)]
    subjects: PathBuf,
    /// The arm
    #[arg(long)]
    arm: String,
    /// Labelled slices
    #[arg(long)]
    slices: usize,
    /// Number of the draw
    #[arg(long, default_value_t = 0)]
    draw: usize,
    /// Writes PATH.toml (manifest, with the subjects' folders as they were given) and PATH-settings.toml
    #[arg(long, short)]
    out: PathBuf,
    /// Base weights (safetensors); default: the cache, fetched once where empty
    #[arg(long)]
    weights: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// One message with its remedy.
pub fn run(args: &ExperimentArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Run(a) => execute(a),
        What::Report(a) => {
            let plan = Plan::load(&a.plan)?;
            let written = report(&plan, &records(&a.runs)?, &a.out).context("the report")?;
            written.iter().for_each(|p| println!("wrote {}", p.display()));
            Ok(ExitCode::SUCCESS)
        }
        What::Manifest(a) => manifest(a),
    }
}

fn manifest(args: &ManifestArgs) -> anyhow::Result<ExitCode> {
    let plan = Plan::load(&args.plan)?;
    let arm = plan.arm.iter().find(|a| a.name == args.arm);
    let arm = arm.with_context(|| format!("the plan has no arm {}", args.arm))?;
    let base = base_weights(args.weights.as_deref())?;
    // Paths in a manifest are relative to the manifest, not to where this command was called.
    let subjects = std::path::absolute(&args.subjects).with_context(|| args.subjects.display().to_string())?;
    let lab = Lab::new(&plan, &base, &subjects, Device::Cpu)?;
    let key = RunKey { arm: arm.name.clone(), slices: args.slices, draw: args.draw };
    let settings = args
        .out
        .with_file_name(format!("{}-settings.toml", args.out.file_name().unwrap_or_default().to_string_lossy()));
    for (path, text) in [
        (args.out.with_added_extension("toml"), toml::to_string(&lab.manifest(&key)?)?),
        (settings, toml::to_string(&lab.settings(arm, &key)?)?),
    ] {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn execute(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let plan = Plan::load(&args.plan)?;
    for folder in [&args.out, &args.work] {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    for name in &args.only {
        ensure!(plan.arm.iter().any(|a| &a.name == name), "the plan has no arm {name}");
    }
    let base = base_weights(args.weights.as_deref())?;
    let lab = Lab::new(&plan, &base, &args.subjects, args.device)?;
    let (mine, shards) = args.shard;
    let keys: Vec<_> = plan
        .runs()
        .into_iter()
        .enumerate()
        .filter(|(i, k)| i % shards == mine - 1 && (args.only.is_empty() || args.only.contains(&k.arm)))
        .map(|(_, k)| k)
        .collect();
    let begin = Instant::now();
    let (mut done, mut skipped) = (0usize, 0usize);
    for (i, key) in keys.iter().enumerate() {
        let result = args.out.join(key.stem()).with_added_extension("json");
        let arm = plan.arm.iter().find(|a| a.name == key.arm).context("an arm of the plan")?;
        let waits = arm
            .tensors_of
            .as_ref()
            .is_some_and(|of| !tensors_path(&args.work, &RunKey { arm: of.clone(), ..key.clone() }).exists());
        let held = args.work.join(key.stem()).with_added_extension("claim");
        if result.exists() {
            let made = Record::load(&result)?;
            ensure!(
                made.settings_sha256 == lab.settings(arm, key)?.sha256(),
                "{} was made with other settings than the plan has now: remove it to run it again",
                result.display()
            );
        }
        if result.exists() || waits || !claim(&held)? {
            skipped += 1;
            continue;
        }
        let minutes = begin.elapsed().as_secs_f64() / 60.0;
        if args.minutes.is_some_and(|m| minutes > m) {
            let _ = std::fs::remove_file(&held);
            eprintln!("time is up: {done} runs made, {} left; the same command goes on", keys.len() - i);
            break;
        }
        // Known once a run was made.
        let left = if done > 0 {
            format!(" ({minutes:.0} min so far, about {:.0} left)", minutes / done as f64 * (keys.len() - i) as f64)
        } else {
            String::new()
        };
        eprintln!("[{}/{}] {}{left}", i + 1, keys.len(), key.stem());
        let record = lab.run(arm, key, &args.commit, &args.work, &mut |t| match t {
            Told::Training(Event::Step(p)) if p.step % 100 == 0 => {
                eprintln!("  step {}/{}: loss {:.3}", p.step, p.steps, p.losses.total);
            }
            Told::Training(Event::Phase(name)) => eprintln!("  {name}"),
            Told::Training(Event::Kept(n)) => eprintln!("  {n} pseudo-labelled slices"),
            _ => {}
        });
        let record = match record {
            Ok(r) => r,
            Err(e) => {
                let _ = std::fs::remove_file(&held);
                return Err(e).with_context(|| key.stem());
            }
        };
        record.save(&result)?;
        let _ = std::fs::remove_file(&held);
        for phase in PHASES {
            let _ = std::fs::remove_file(args.work.join(key.stem()).with_added_extension(phase));
        }
        done += 1;
        let mean = crate::evaluate::Prompt::ALL.iter().find_map(|p| record.table.mean_dice(*p));
        eprintln!("  mean Dice {:.3}, trained in {:.0} s", mean.unwrap_or(f64::NAN), record.train_seconds);
    }
    println!("{done} runs made, {skipped} were there or held by another process, {} in all", keys.len());
    Ok(ExitCode::SUCCESS)
}

fn shard_of(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('/').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match parts {
        Some((i, n)) if (1..=n).contains(&i) => Ok((i, n)),
        _ => Err(format!("{text:?} is no part such as 1/3")),
    }
}
