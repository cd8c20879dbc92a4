//! `scanside bench precision`: Dice that FP16 and INT8 cost on labelled volumes, on the embedded engine and on ONNX Runtime.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::evaluate::base_weights;
use super::onnx_runtime::OnnxRuntime;
use crate::adapter::Adapter;
use crate::engine::cpu::CpuEngine;
use crate::engine::{Engine, EngineError, Tensor};
use crate::model::onnx::{Graph, Precision, Recipe, emit_all};
use crate::pipeline::{EngineNetworks, Networks, PipelineError, SegmentOptions};
use crate::precision::{Variant, compare};
use crate::train::{Manifest, load_cases};

/// What to compare.
#[derive(Args, Debug)]
pub struct PrecisionArgs {
    /// Manifest; its test volumes are segmented, automatically, as in serving
    #[arg(long, short)]
    manifest: PathBuf,
    /// The adapter
    #[arg(long, short)]
    adapter: PathBuf,
    /// Recipes of INT8, each as NAME=FILE
    #[arg(long = "recipe", value_name = "NAME=FILE")]
    recipes: Vec<String>,
    /// Python with onnxruntime; without it the embedded engine alone, which has no FP16
    #[arg(long, env = "SCANSIDE_PYTHON")]
    python: Option<PathBuf>,
    /// Most volumes
    #[arg(long, default_value_t = 6)]
    volumes: usize,
    /// Further crops of each slice, instead of the adapter's own number: each costs another run of the encoder
    #[arg(long)]
    crops: Option<u8>,
    /// Threads of ONNX Runtime
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Most mean Dice that INT8 on the embedded engine may lose before the command fails
    #[arg(long, default_value_t = 0.01)]
    bound: f64,
    /// Write PATH.md and PATH.json: figures over all volumes only
    #[arg(long, short)]
    out: Option<PathBuf>,
    /// A fact to stand above the table, e.g. --fact "commit=abc"
    #[arg(long = "fact", value_name = "NAME=VALUE")]
    facts: Vec<String>,
    /// Base weights (safetensors); default: the cache, fetched once where empty
    #[arg(long)]
    weights: Option<PathBuf>,
}

/// One row of the plan.
struct Row {
    runtime: bool,
    precision: Precision,
    recipe: Option<usize>,
}

pub(super) fn run(args: &PrecisionArgs) -> anyhow::Result<ExitCode> {
    let base = base_weights(args.weights.as_deref())?;
    let mut adapter = Adapter::load(&args.adapter)?;
    adapter.check(base.sha256())?;
    let sha256 = adapter.sha256()?;
    if let Some(crops) = args.crops {
        adapter.meta.prompting.crops = crops;
    }
    let size = adapter.meta.input_size;
    let recipes = args
        .recipes
        .iter()
        .map(|r| {
            let (name, path) = r.split_once('=').context("--recipe needs NAME=FILE")?;
            let recipe = Recipe::load(path.as_ref())?;
            recipe.check(base.sha256(), size)?;
            Ok((name.to_string(), recipe))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut manifest = Manifest::load(&args.manifest)?;
    manifest.volume.retain(|e| e.usage.tested());
    manifest.volume.truncate(args.volumes);
    let cases = load_cases(&manifest, &adapter.meta.task, |_| true)?;
    let shapes = adapter.tensors.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect();
    let graphs = emit_all(&base, &shapes, size)?;

    let mut rows = vec![Row { runtime: false, precision: Precision::Fp32, recipe: None }];
    let all: Vec<usize> = (0..recipes.len()).collect();
    rows.extend(all.iter().map(|i| Row { runtime: false, precision: Precision::Int8, recipe: Some(*i) }));
    if args.python.is_some() {
        let of = |precision, recipe| Row { runtime: true, precision, recipe };
        rows.extend([of(Precision::Fp32, None), of(Precision::Fp16, None)]);
        rows.extend(all.iter().flat_map(|i| [Precision::Int8, Precision::Int8Fp16].map(|p| of(p, Some(*i)))));
    }
    let variants: Vec<Variant> = rows
        .iter()
        .enumerate()
        .map(|(key, r)| {
            let recipe = r.recipe.map(|i| format!(", {}", recipes[i].0)).unwrap_or_default();
            Variant { name: format!("{}{recipe}", r.precision.word()), key }
        })
        .collect();
    let mut load = |v: &Variant| -> Result<Box<dyn Networks>, PipelineError> {
        let row = &rows[v.key];
        let recipe = row.recipe.map(|i| &recipes[i].1);
        let made: Result<Vec<Graph>, _> = graphs.iter().map(|g| row.precision.of(g, recipe)).collect();
        let made: [Graph; 3] = made
            .map_err(|e| PipelineError::Model(e.to_string()))?
            .try_into()
            .map_err(|_| PipelineError::Model("three graphs are expected".into()))?;
        let networks = EngineNetworks::of(&made, &adapter, |g| match args.python.as_deref().filter(|_| row.runtime) {
            // Several slices are worked on at once, each on one thread, as the daemon does.
            None => Ok(Box::new(CpuEngine::load(&g.name, g.onnx.clone(), 1)?.stating(row.precision.word()))),
            Some(python) => {
                let own: Vec<(&str, &Tensor)> =
                    g.adapter_inputs.keys().filter_map(|n| Some((n.as_str(), adapter.tensors.get(n)?))).collect();
                let loaded = OnnxRuntime::load(python, g, &own, args.threads, row.precision.word());
                let engine: Box<dyn Engine> = Box::new(loaded.map_err(|e| EngineError::Load {
                    engine: "onnxruntime".into(),
                    graph: g.name.clone(),
                    cause: format!("{e:#}"),
                })?);
                Ok(engine)
            }
        });
        Ok(Box::new(networks.map_err(|e| PipelineError::Model(e.to_string()))?))
    };
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {eta}")?);
    let comparison =
        compare(&adapter, &cases, &SegmentOptions::default(), &variants, &mut load, &mut |v, done, total| {
            bar.set_length(total as u64);
            bar.set_message(v.name.clone());
            bar.set_position(done as u64);
            if bar.is_hidden() {
                eprintln!("{}: {done} of {total}", v.name);
            }
        })?;
    bar.finish_and_clear();

    let p = &adapter.meta.provenance;
    let mut facts: Vec<(String, String)> = args
        .facts
        .iter()
        .map(|f| f.split_once('=').map(|(k, v)| (k.to_string(), v.to_string())).context("--fact needs NAME=VALUE"))
        .collect::<anyhow::Result<_>>()?;
    let mut fact = |name: &str, value: String| facts.push((name.into(), value));
    fact("adapter", format!("{} {}, sha256 {sha256}", adapter.meta.name, adapter.meta.version));
    fact("trained", format!("{}, seed {}", p.words(), p.seed));
    fact(
        "tested",
        format!(
            "{} slices of {} volumes, input {size} px, {} further crops",
            comparison.slices, comparison.volumes, adapter.meta.prompting.crops
        ),
    );
    for (name, r) in &recipes {
        for (what, value) in &r.made {
            fact(&format!("{name}: {what}"), value.clone());
        }
    }
    let mut page = String::from("# Dice that precision costs\n\n");
    facts.iter().for_each(|(k, v)| page.push_str(&format!("- {k}: {v}\n")));
    page.push_str(&format!("\n{}", comparison.markdown()));
    page.push_str("\nDice over whole volumes, mean over structures and legs; lost: beside the first row, volume by volume. Outputs are FP32 in every precision.\n");
    for (name, r) in &recipes {
        let kept: Vec<_> = r.kept().collect();
        page.push_str(&format!("\nKept from bytes by {name} ({} layers):\n\n", kept.len()));
        kept.iter().for_each(|(graph, layer, why)| page.push_str(&format!("- {graph}, `{layer}`: {why}\n")));
    }
    println!("{page}");
    if let Some(out) = &args.out {
        let json = serde_json::json!({ "facts": facts, "comparison": comparison });
        for (extension, text) in [("md", page), ("json", serde_json::to_string_pretty(&json)? + "\n")] {
            let path = out.with_added_extension(extension);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    for (_, found) in rows.iter().zip(&comparison.rows).filter(|(r, _)| r.precision.is_int8() && !r.runtime) {
        ensure!(
            found.lost.mean <= args.bound,
            "{} loses {:.4} mean Dice, more than {}",
            found.name,
            found.lost.mean,
            args.bound
        );
    }
    Ok(ExitCode::SUCCESS)
}
