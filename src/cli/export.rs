//! `scanside export`: the network's graphs as ONNX files, the same bytes from the same base, shapes, recipe and precision.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::adapter::Adapter;
use crate::model::network::engine_shapes;
use crate::model::onnx::{EngineManifest, Graph, Precision, Recipe, emit_all, file_name, sha256};
use crate::model::weights::{load, load_or_fetch};

/// Write encoder, classifier and decoder as ONNX and print each file's sha256.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Folder of an engine (engines/...): its manifest says sizes, rank and recipe
    #[arg(long, conflicts_with_all = ["adapter", "structures", "recipe", "size"], required_unless_present_any = ["adapter", "structures"])]
    engine: Option<PathBuf>,
    /// Graphs for this adapter's own tensors
    #[arg(long, short, conflicts_with = "structures")]
    adapter: Option<PathBuf>,
    /// Graphs for any adapter of so many structures
    #[arg(long)]
    structures: Option<usize>,
    /// With --structures: rank of LoRA's inputs; adapters of lower rank are padded
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Edge of the input, pixels; default: the adapter's, else 448
    #[arg(long)]
    size: Option<usize>,
    /// Precisions: fp32, fp16, int8 (bytes and FP32), int8-fp16 (bytes and FP16)
    #[arg(long, value_delimiter = ',', default_value = "fp32,fp16,int8,int8-fp16")]
    precision: Vec<Precision>,
    /// Which layers are in bytes, with their ranges; `scanside quantise` makes it
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Folder for PRECISION/encoder.onnx, classifier.onnx and decoder.onnx; without it only the hashes are printed
    #[arg(long, short)]
    out: Option<PathBuf>,
    /// With --engine: fail unless every hash is the manifest's
    #[arg(long, requires = "engine")]
    check: bool,
    /// Base weights (safetensors); default: the cache, fetched once where empty
    #[arg(long)]
    weights: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// One message with its remedy.
pub fn run(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    let base = match &args.weights {
        Some(path) => load(path)?,
        None => load_or_fetch(&mut |line| eprintln!("{line}"))?,
    };
    let manifest = args.engine.as_deref().map(EngineManifest::load).transpose()?;
    let needs = args.precision.iter().any(|p| p.is_int8());
    let (graphs, recipe) = match (&args.engine, &manifest) {
        (Some(folder), Some(m)) => (m.graphs(&base)?, needs.then(|| m.recipe(folder)).transpose()?),
        _ => {
            let (shapes, own) = match (&args.adapter, args.structures) {
                (Some(path), _) => {
                    let adapter = Adapter::load(path)?;
                    adapter.check(base.sha256())?;
                    (
                        adapter.tensors.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect(),
                        adapter.meta.input_size,
                    )
                }
                (None, Some(k @ 1..=120)) if (1..=256).contains(&args.rank) => (engine_shapes(k, args.rank), 448),
                _ => bail!("--structures takes 1 to 120, --rank 1 to 256"),
            };
            let size = args.size.unwrap_or(own);
            let recipe = args.recipe.as_deref().filter(|_| needs).map(Recipe::load).transpose()?;
            if let Some(r) = &recipe {
                r.check(base.sha256(), size)?;
            }
            (emit_all(&base, &shapes, size)?, recipe)
        }
    };
    let mut wrong = Vec::new();
    for &precision in &args.precision {
        for graph in &graphs {
            let made = precision.of(graph, recipe.as_ref())?;
            let (name, hash) = (file_name(precision, graph), sha256(&made.onnx));
            println!("\"{name}\" = \"{hash}\"");
            if let Some(out) = &args.out {
                write(out, &name, &made)?;
            }
            if let Some(m) = manifest.as_ref().filter(|_| args.check) {
                match m.sha256.get(&name) {
                    Some(known) if *known == hash => {}
                    Some(known) => wrong.push(format!("{name} has {hash}, the manifest {known}")),
                    None => wrong.push(format!("the manifest does not know {name}")),
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "the graphs are not those of the manifest:\n{}", wrong.join("\n"));
    Ok(ExitCode::SUCCESS)
}

fn write(out: &Path, name: &str, graph: &Graph) -> anyhow::Result<()> {
    let path = out.join(name);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    std::fs::write(&path, &graph.onnx).with_context(|| format!("cannot write {}", path.display()))
}
