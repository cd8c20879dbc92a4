//! `scanside survey`: what an adapter makes of volumes without labels.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::evaluate::base_weights;
use crate::adapter::Adapter;
use crate::evaluate::{Surveyed, survey_markdown};
use crate::pipeline::{EngineNetworks, Segmenter};
use crate::train::{Case, Manifest};

/// Segment volumes that nobody has labelled and show how plausible the results are: refusals, grades, areas, symmetry.
#[derive(Args, Debug)]
pub(super) struct SurveyArgs {
    /// Manifest; all of its volumes are segmented, labelled or not
    #[arg(long, short)]
    manifest: PathBuf,
    /// The adapter
    #[arg(long, short)]
    adapter: PathBuf,
    /// Write PATH.md, PATH.json and, of each volume, PATH-NUMBER.svg (cross-sections along the limb)
    #[arg(long, short)]
    out: Option<PathBuf>,
    /// Write PATH-NUMBER.png too, the result over the images: pictures of patients
    #[arg(long, requires = "out")]
    pictures: bool,
    /// Heading
    #[arg(long, default_value = "Volumes without labels")]
    title: String,
    /// A fact to stand above the table, e.g. --fact "commit=abc"
    #[arg(long = "fact", value_name = "NAME=VALUE")]
    facts: Vec<String>,
    /// Base weights (safetensors); default: the cache, fetched once where empty
    #[arg(long)]
    weights: Option<PathBuf>,
}

pub(super) fn run(args: &SurveyArgs) -> anyhow::Result<ExitCode> {
    let facts: Option<Vec<(String, String)>> =
        args.facts.iter().map(|f| f.split_once('=').map(|(k, v)| (k.to_string(), v.to_string()))).collect();
    let mut facts = facts.context("--fact needs NAME=VALUE")?;
    if let Some(folder) = args.out.as_deref().and_then(Path::parent).filter(|p| !p.as_os_str().is_empty()) {
        ensure!(folder.is_dir(), "there is no folder {} to write the survey into", folder.display());
    }
    let adapter = Adapter::load(&args.adapter)?;
    let base = base_weights(args.weights.as_deref())?;
    adapter.check(base.sha256())?;
    let segmenter = Segmenter::new(Box::new(EngineNetworks::cpu(&base, &adapter, 1)?), adapter.model_info()?)?;
    let manifest = Manifest::load(&args.manifest)?;
    let p = &adapter.meta.provenance;
    facts.push((
        "adapter".into(),
        format!("{} {}, sha256 {}", adapter.meta.name, adapter.meta.version, adapter.sha256()?),
    ));
    facts.push(("trained".into(), format!("{} slices of {} volumes, seed {}", p.slices, p.volumes, p.seed)));
    let bar = ProgressBar::new(manifest.volume.len() as u64)
        .with_style(ProgressStyle::with_template("segmenting {bar:30} {pos}/{len} {eta}")?);
    let mut all = Vec::new();
    for (i, entry) in manifest.volume.iter().enumerate() {
        let case = Case::load(entry, &adapter.meta.task)?;
        let (surveyed, picture) =
            Surveyed::new(&case, &adapter.meta.task, &segmenter).with_context(|| case.name.clone())?;
        if let Some(out) = &args.out {
            let mut name = out.file_name().unwrap_or_default().to_os_string();
            name.push(format!("-{}", i + 1));
            let path = out.with_file_name(name);
            if surveyed.refusal.is_none() {
                save(&path.with_added_extension("svg"), &surveyed.plot().svg())?;
            }
            if let Some(picture) = picture.filter(|_| args.pictures) {
                let path = path.with_added_extension("png");
                picture.write_png(&path).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        all.push(surveyed);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let text = survey_markdown(&args.title, &facts, &all);
    println!("{text}");
    if let Some(out) = &args.out {
        save(&out.with_added_extension("md"), &text)?;
        save(&out.with_added_extension("json"), &(serde_json::to_string_pretty(&all)? + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn save(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
