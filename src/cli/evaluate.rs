//! `scanside evaluate`: how well an adapter segments volumes whose truth is known.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::adapter::Adapter;
use crate::evaluate::{Evaluation, Prompt, Table};
use crate::model::weights::{BaseWeights, load, load_or_fetch};
use crate::pipeline::{EngineNetworks, SegmentOptions, Segmenter};
use crate::train::{Case, EagerNetworks, Manifest, Use, load_cases};

/// Compare an adapter's masks with the truth: automatic as in serving, and with true boxes.
#[derive(Args, Debug)]
pub struct EvaluateArgs {
    /// Manifest; its `use = "test"` and `use = "both"` volumes are evaluated
    #[arg(long, short)]
    manifest: PathBuf,
    /// The adapter
    #[arg(long, short)]
    adapter: PathBuf,
    /// Write the table as PATH.md and PATH.json
    #[arg(long, short)]
    out: Option<PathBuf>,
    /// Heading of the table
    #[arg(long, default_value = "Evaluation")]
    title: String,
    /// A fact to stand above the table, e.g. --fact "commit=abc"
    #[arg(long = "fact", value_name = "NAME=VALUE")]
    facts: Vec<String>,
    /// Leave out the upper bound with true boxes
    #[arg(long)]
    no_true_box: bool,
    /// Also run MobileSAM without adaptation on true boxes, at this input size (slow; 1024 is its own)
    #[arg(long, value_name = "SIZE")]
    zero_shot: Option<usize>,
    /// NSD's tolerance, mm; default: 1 mm or one pixel, whichever is more
    #[arg(long)]
    tolerance: Option<f64>,
    /// Base weights (safetensors); default: the cache, fetched once where empty
    #[arg(long)]
    weights: Option<PathBuf>,
}

/// What [`evaluation_of`] runs besides the automatic result.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// Leave out true boxes.
    pub no_true_box: bool,
    /// Input size of the zero-shot comparison.
    pub zero_shot: Option<usize>,
    /// NSD's tolerance, mm.
    pub tolerance: Option<f64>,
    /// Facts to stand above the table.
    pub facts: Vec<(String, String)>,
}

/// Runs the command.
///
/// # Errors
/// One message with its remedy.
pub fn run(args: &EvaluateArgs) -> anyhow::Result<ExitCode> {
    let adapter = Adapter::load(&args.adapter)?;
    let base = base_weights(args.weights.as_deref())?;
    adapter.check(base.sha256())?;
    if let Some(size) = args.zero_shot {
        crate::model::network::check_image_size(size)?;
    }
    let facts: Option<Vec<(String, String)>> =
        args.facts.iter().map(|f| f.split_once('=').map(|(k, v)| (k.to_string(), v.to_string()))).collect();
    let facts = facts.context("--fact needs NAME=VALUE")?;
    let manifest = Manifest::load(&args.manifest)?;
    let cases = load_cases(&manifest, &adapter.meta.task, |e| e.usage != Use::Train)?;
    let setting =
        Setting { no_true_box: args.no_true_box, zero_shot: args.zero_shot, tolerance: args.tolerance, facts };
    let table = evaluation_of(&adapter, &base, &cases, &setting)?;
    print_table(&table, &args.title);
    if let Some(out) = &args.out {
        let write = |extension: &str, text: String| {
            let path = out.with_added_extension(extension);
            std::fs::write(&path, text).with_context(|| path.display().to_string())
        };
        write("md", table.markdown(&args.title))?;
        write("json", serde_json::to_string_pretty(&table)? + "\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The base weights from a file, or from the cache.
///
/// # Errors
/// What is wrong with them and what helps.
pub fn base_weights(path: Option<&Path>) -> anyhow::Result<BaseWeights> {
    Ok(match path {
        Some(path) => load(path)?,
        None => load_or_fetch(&mut |line| eprintln!("{line}"))?,
    })
}

/// Evaluates an adapter over cases.
///
/// # Errors
/// As [`Evaluation::run`].
pub fn evaluation_of(
    adapter: &Adapter,
    base: &BaseWeights,
    cases: &[Case],
    setting: &Setting,
) -> anyhow::Result<Table> {
    let meta = &adapter.meta;
    // The automatic result comes from the engine that serves; its parity with the eager interpreter is tested elsewhere.
    let segmenter = Segmenter::new(Box::new(EngineNetworks::cpu(base, adapter, 0)?), adapter.model_info()?)?;
    let direct = (!setting.no_true_box).then(|| EagerNetworks::new(base.tensors(), &adapter.tensors, meta.input_size));
    let zero_shot = setting.zero_shot.map(|size| EagerNetworks::base(base.tensors(), size));
    let options = SegmentOptions::default();
    let evaluation = Evaluation {
        task: &meta.task,
        crop: meta.crop,
        segmenter: &segmenter,
        options: &options,
        true_box: direct.as_ref().map(|n| n as _),
        zero_shot: zero_shot.as_ref(),
        tolerance_mm: setting.tolerance,
    };
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("evaluating {bar:30} {pos}/{len} {eta}")?);
    let outcomes = evaluation.run(cases, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let tested: Vec<&Case> = cases.iter().filter(|c| !c.test.is_empty()).collect();
    let slices: usize = tested.iter().map(|c| c.test.len()).sum();
    let mut facts = setting.facts.clone();
    let p = &meta.provenance;
    let mut fact = |k: &str, v: String| facts.push((k.into(), v));
    fact("adapter", format!("{} {}, sha256 {}", meta.name, meta.version, adapter.sha256()?));
    fact("trained", format!("{} slices of {} volumes, {} steps, seed {}", p.slices, p.volumes, p.steps, p.seed));
    fact("tested", format!("{slices} slices of {} volumes, input {} px", tested.len(), meta.input_size));
    if let Some(size) = setting.zero_shot {
        fact("zero-shot input", format!("{size} px, the same leg crop"));
    }
    let keys: Vec<String> = meta.task.structures.iter().map(|s| s.key.clone()).collect();
    Ok(Table::new(&outcomes, &keys, facts))
}

/// Prints a table and its mean.
pub fn print_table(table: &Table, title: &str) {
    println!("{}", table.markdown(title));
    for prompt in [Prompt::Automatic, Prompt::TrueBox] {
        if let Some(mean) = table.mean_dice(prompt) {
            println!("mean Dice over structures, {}: {mean:.3}", prompt.words());
        }
    }
}
