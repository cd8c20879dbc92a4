//! `scanside evaluate`: how well an adapter segments volumes whose truth is known, and what more labelling would buy.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::adapter::Adapter;
use crate::daemon::sideload::Feedback;
use crate::evaluate::{AdapterEvaluation, EvaluationSetting, LabelCost, Prompt, Table, evaluate_adapter, html};
use crate::model::weights::{BaseWeights, load, load_or_fetch};
use crate::train::{Case, Manifest, load_cases};

/// Compare an adapter's masks with the truth: automatic as in serving, prompt-free, with true boxes, without adaptation.
#[derive(Args, Debug)]
pub struct EvaluateArgs {
    /// Manifest; its `use = "test"` and `use = "both"` volumes are evaluated
    #[arg(long, short, required_unless_present_any = ["label_cost", "feedback"])]
    manifest: Option<PathBuf>,
    /// The adapter
    #[arg(long, short, required_unless_present_any = ["label_cost", "feedback"])]
    adapter: Option<PathBuf>,
    /// Write PATH.html (with overlays), PATH.md and PATH.json; pictures and figures of patients: keep them where the images
    /// may be kept
    #[arg(long, short)]
    out: Option<PathBuf>,
    /// Heading
    #[arg(long, default_value = "Evaluation")]
    title: String,
    /// A fact to stand above the table, e.g. --fact "commit=abc"
    #[arg(long = "fact", value_name = "NAME=VALUE")]
    facts: Vec<String>,
    /// What prompts the decoder: automatic (as in serving), prompt-free (the whole crop as every box), true-box (an upper
    /// bound), zero-shot (MobileSAM without adaptation on true boxes; slow)
    #[arg(long, value_delimiter = ',', value_parser = prompt_of, default_value = "automatic,true-box")]
    prompts: Vec<Prompt>,
    /// Input size of zero-shot, a multiple of 32; 1024 is MobileSAM's own
    #[arg(long, value_name = "SIZE", default_value_t = 1024)]
    zero_shot_size: usize,
    /// NSD's tolerance, mm; default: 1 mm or one pixel, whichever is more
    #[arg(long)]
    tolerance: Option<f64>,
    /// Write the manifest's names of the volumes beside their figures; default: numbers
    #[arg(long)]
    names: bool,
    /// Write figures over all volumes only, no page and no picture: what may be shared
    #[arg(long, conflicts_with = "names")]
    aggregates: bool,
    /// Base weights (safetensors); default: the cache, fetched once where empty
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Instead of evaluating, draw quality against labelling from PATH.json files of evaluations; writes OUT.svg and OUT.md
    #[arg(long, value_name = "JSON", num_args = 1.., requires = "out", conflicts_with_all = ["manifest", "adapter"])]
    label_cost: Vec<PathBuf>,
    /// What a box says of its adapters (`scanside adapters export`): printed and added to PATH.md; without a manifest, by itself
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "label_cost")]
    feedback: Vec<PathBuf>,
    /// With --label-cost: minutes that labelling one leg on one slice takes, all structures
    #[arg(long, value_name = "MINUTES", default_value_t = 6.0)]
    minutes_per_slice: f64,
}

/// Runs the command.
///
/// # Errors
/// One message with its remedy.
pub fn run(args: &EvaluateArgs) -> anyhow::Result<ExitCode> {
    if let Some(out) = args.out.as_ref().filter(|_| !args.label_cost.is_empty()) {
        return label_cost(&args.label_cost, args.minutes_per_slice, out);
    }
    let answers = args.feedback.iter().map(|f| Feedback::load(f)).collect::<Result<Vec<_>, _>>()?;
    if args.manifest.is_none() && !answers.is_empty() {
        let adapter = args.adapter.as_deref().map(Adapter::load).transpose()?;
        let text = sections(&answers, adapter.as_ref())?;
        println!("{text}");
        if let Some(out) = &args.out {
            write(out, "md", &format!("# {}\n\n{text}", args.title))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let adapter = Adapter::load(args.adapter.as_ref().context("--adapter is missing")?)?;
    let base = base_weights(args.weights.as_deref())?;
    adapter.check(base.sha256())?;
    crate::model::network::check_image_size(args.zero_shot_size)?;
    let facts: Option<Vec<(String, String)>> =
        args.facts.iter().map(|f| f.split_once('=').map(|(k, v)| (k.to_string(), v.to_string()))).collect();
    if let Some(folder) = args.out.as_deref().and_then(Path::parent).filter(|p| !p.as_os_str().is_empty()) {
        ensure!(folder.is_dir(), "there is no folder {} to write the evaluation into", folder.display());
    }
    let setting = EvaluationSetting {
        prompts: args.prompts.clone(),
        zero_shot_size: args.zero_shot_size,
        tolerance_mm: args.tolerance,
        facts: facts.context("--fact needs NAME=VALUE")?,
        overlays: args.out.is_some() && !args.aggregates,
        names: args.names,
    };
    let manifest = Manifest::load(args.manifest.as_ref().context("--manifest is missing")?)?;
    let cases = load_cases(&manifest, &adapter.meta.task, |e| e.usage.tested())?;
    let evaluation = evaluation_of(&adapter, &base, &cases, &setting)?;
    print_table(&evaluation.table, &args.title);
    let from_boxes = sections(&answers, Some(&adapter))?;
    print!("{from_boxes}");
    if let Some(out) = &args.out {
        write_report(evaluation, &args.title, out, args.aggregates)?;
        if !from_boxes.is_empty() {
            let path = out.with_added_extension("md");
            let report = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            write(out, "md", &format!("{report}\n{from_boxes}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What boxes say, of one adapter where one is given.
fn sections(answers: &[Feedback], adapter: Option<&Adapter>) -> anyhow::Result<String> {
    let sha = adapter.map(Adapter::sha256).transpose()?;
    Ok(answers.iter().map(|a| a.markdown(sha.as_deref())).collect::<Vec<_>>().join("\n"))
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

/// Evaluates an adapter over cases, with a bar on a terminal.
///
/// # Errors
/// As [`evaluate_adapter`].
pub fn evaluation_of(
    adapter: &Adapter,
    base: &BaseWeights,
    cases: &[Case],
    setting: &EvaluationSetting,
) -> anyhow::Result<AdapterEvaluation> {
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("evaluating {bar:30} {pos}/{len} {eta}")?);
    let evaluation = evaluate_adapter(adapter, base, cases, setting, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    Ok(evaluation)
}

/// Prints a table and its means.
pub fn print_table(table: &Table, title: &str) {
    println!("{}", table.markdown(title));
    for prompt in Prompt::ALL {
        if let Some(mean) = table.mean_dice(prompt) {
            println!("mean Dice over structures, {}: {mean:.3}", prompt.words());
        }
    }
}

/// Writes OUT.html, OUT.md and OUT.json; only the last two and no single case with `aggregates`.
///
/// # Errors
/// The file that cannot be written.
pub fn write_report(evaluation: AdapterEvaluation, title: &str, out: &Path, aggregates: bool) -> anyhow::Result<()> {
    let mut table = evaluation.table;
    if aggregates {
        table = table.aggregates();
    } else {
        write(out, "html", &html(title, &table, evaluation.overlays.as_ref())?)?;
    }
    write(out, "md", &table.markdown(title))?;
    write(out, "json", &(serde_json::to_string_pretty(&table)? + "\n"))
}

fn write(out: &Path, extension: &str, text: &str) -> anyhow::Result<()> {
    let path = out.with_added_extension(extension);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn label_cost(files: &[PathBuf], minutes: f64, out: &Path) -> anyhow::Result<ExitCode> {
    let read = |path: &PathBuf| -> anyhow::Result<(String, Table)> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
        let table = serde_json::from_slice(&bytes)
            .with_context(|| format!("{name} is not what `scanside evaluate --out` writes as JSON"))?;
        Ok((name, table))
    };
    let evaluations = files.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let curve = LabelCost::new(&evaluations, minutes)?;
    println!("{}", curve.markdown());
    write(out, "md", &curve.markdown())?;
    write(out, "svg", &curve.svg())?;
    Ok(ExitCode::SUCCESS)
}

fn prompt_of(word: &str) -> Result<Prompt, String> {
    Ok(match word.trim() {
        "automatic" => Prompt::Automatic,
        "prompt-free" => Prompt::PromptFree,
        "true-box" => Prompt::TrueBox,
        "zero-shot" => Prompt::ZeroShotTrueBox,
        other => return Err(format!("no prompt {other:?}: automatic, prompt-free, true-box or zero-shot")),
    })
}
