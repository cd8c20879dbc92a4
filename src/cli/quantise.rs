//! `scanside quantise`: calibrates INT8 and finds out which layers it hurts.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::evaluate::base_weights;
use crate::adapter::Adapter;
use crate::engine::Tensor;
use crate::model::onnx::calibrate::RangeRule;
use crate::model::onnx::{EngineManifest, PhantomSlices, Recipe};
use crate::pipeline::CropRule;
use crate::pipeline::probe::phantom_images;
use crate::precision::{SearchSetting, Slices, Told, search};
use crate::train::{Case, Entry, Manifest, Use, load_cases};

/// Calibrate INT8, measure what it does to the masks, and write the recipe: ranges, and the layers that stay wide with the reason.
#[derive(Args, Debug)]
pub struct QuantiseArgs {
    /// The adapter to measure with; a recipe serves every adapter of its base
    #[arg(long, short)]
    adapter: PathBuf,
    /// Folder of an engine: its manifest names the input size and the phantoms
    #[arg(long, short, required_unless_present = "manifest")]
    engine: Option<PathBuf>,
    /// A site's volumes instead of phantoms: calibrated on the even slices, measured on the odd ones; what is for testing is left out
    #[arg(long, short, conflicts_with = "engine")]
    manifest: Option<PathBuf>,
    /// With --manifest: slices of each volume
    #[arg(long, default_value_t = 6)]
    slices: usize,
    /// Rules to choose from: min-max, percentile-P, least-error, entropy
    #[arg(long, value_delimiter = ',', default_value = "min-max,percentile-99.99,percentile-99.9,least-error,entropy")]
    rules: Vec<RangeRule>,
    /// Most that the masks may lose, in mean Dice with FP32's
    #[arg(long, default_value_t = SearchSetting::default().bound)]
    bound: f64,
    /// Slices on which each layer is tried alone
    #[arg(long, default_value_t = SearchSetting::default().ranking)]
    ranking: usize,
    /// Minutes after which no further layer is tried
    #[arg(long, default_value_t = SearchSetting::default().minutes)]
    minutes: f64,
    /// Threads, 0 for one per core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// A former recipe of the same adapter and slices: what it measured of layers alone is taken from it
    #[arg(long, value_name = "RECIPE")]
    known: Option<PathBuf>,
    /// The recipe to write
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
pub fn run(args: &QuantiseArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.bound.is_finite() && args.bound >= 0.0, "--bound {} is no loss of Dice", args.bound);
    let base = base_weights(args.weights.as_deref())?;
    let mut adapter = Adapter::load(&args.adapter)?;
    adapter.check(base.sha256())?;
    let (slices, from) = match (&args.engine, &args.manifest) {
        (Some(folder), _) => {
            let m = EngineManifest::load(folder)?;
            // The adapter's tensors do not depend on the size.
            adapter.meta.input_size = m.input_size;
            let images = |p: &PhantomSlices| images_of(p, adapter.meta.crop, m.input_size);
            let s = Slices { calibration: images(&m.calibration)?, measured: images(&m.measured)? };
            (s, "phantoms of the engine's manifest")
        }
        (None, Some(path)) => (site(path, &adapter, args.slices)?, "slices of a site"),
        (None, None) => anyhow::bail!("--engine or --manifest is missing"),
    };
    let setting = SearchSetting {
        rules: args.rules.clone(),
        bound: args.bound,
        ranking: args.ranking,
        minutes: args.minutes,
        threads: args.threads,
        known: args.known.as_deref().map(Recipe::load).transpose()?,
    };
    if let Some(known) = &setting.known {
        known.check(base.sha256(), adapter.meta.input_size)?;
    }
    let (calibrated, measured) = (slices.calibration.len(), slices.measured.len());
    println!("{calibrated} slices to calibrate with, {measured} to measure on, input {} px", adapter.meta.input_size);
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {eta}")?);
    let step = |done: usize, total: usize, what: &str| {
        bar.set_length(total as u64);
        bar.set_message(what.to_string());
        bar.set_position(done as u64);
    };
    let mut found = search(&base, &adapter, &slices, &setting, &mut |told| match told {
        Told::Calibrating(done, total) => step(done, total, "calibrating"),
        Told::Alone(done, total, ..) if bar.is_hidden() && done % 10 != 0 && done != total => {}
        Told::Alone(done, total, layer, share) if bar.is_hidden() => {
            println!("layer {done} of {total}, {layer}: {:.2} % of the mask logits", 100.0 * share);
        }
        Told::Alone(done, total, ..) => step(done, total, "layers alone"),
        Told::Rule(rule, dice, error) => bar.suspend(|| {
            println!(
                "{}: all in bytes, Dice with FP32 {dice:.4}, mask logits off by {:.1} %",
                rule.word(),
                100.0 * error
            );
        }),
        Told::Kept(kept, dice) => bar.suspend(|| println!("{kept} layers kept: Dice with FP32 {dice:.4}")),
    })?;
    bar.finish_and_clear();
    let mut made = |name: &str, value: String| found.recipe.made.insert(name.into(), value);
    made("slices", format!("{calibrated} calibrated, {measured} measured: {from}"));
    for (rule, dice, error) in &found.rules {
        made(
            &format!("all in bytes, {}", rule.word()),
            format!("Dice {dice:.4}, mask logits off by {:.1} %", 100.0 * error),
        );
    }
    made("largest value inside", format!("{:.3e}; FP16 ends at 65504", found.largest));
    std::fs::write(&args.out, found.recipe.text()).with_context(|| format!("cannot write {}", args.out.display()))?;
    println!(
        "wrote {}: Dice {:.4} with FP32, {} layers kept",
        args.out.display(),
        found.dice,
        found.recipe.kept().count()
    );
    Ok(ExitCode::SUCCESS)
}

fn images_of(p: &PhantomSlices, crop: CropRule, size: usize) -> anyhow::Result<Vec<Tensor>> {
    let mut all = Vec::new();
    for &seed in &p.phantoms {
        all.extend(phantom_images(seed, &p.slices, crop, size).with_context(|| format!("phantom {seed}"))?);
    }
    Ok(all)
}

/// Up to `count` evenly spaced slices of a volume, without those that an entry of the manifest evaluates.
fn chosen(case: &Case, manifest: &Manifest, count: usize) -> Vec<usize> {
    let entries: Vec<&Entry> = manifest.volume.iter().filter(|e| e.series() == case.series).collect();
    let all: Vec<usize> = (0..case.volume.geometry.dims[2]).filter(|&z| !entries.iter().any(|e| e.tests(z))).collect();
    let count = count.max(1).min(all.len());
    (0..count).filter_map(|i| all.get((2 * i + 1) * all.len() / (2 * count)).copied()).collect()
}

/// Evenly spaced slices of every volume of a site's manifest, by turns for calibration and for measuring. What the manifest is
/// evaluated on decides nothing.
fn site(path: &std::path::Path, adapter: &Adapter, count: usize) -> anyhow::Result<Slices> {
    let manifest = Manifest::load(path)?;
    let mut out = Slices { calibration: Vec::new(), measured: Vec::new() };
    for case in load_cases(&manifest, &adapter.meta.task, |e| e.usage != Use::Test)? {
        let views = case.views(adapter.meta.crop, adapter.meta.input_size)?;
        let slices = chosen(&case, &manifest, count);
        for view in views.iter().enumerate().filter(|(l, _)| case.labelled(&views, *l)).map(|(_, v)| v) {
            for (i, &z) in slices.iter().enumerate() {
                let to = if i % 2 == 0 { &mut out.calibration } else { &mut out.measured };
                to.push(view.input(&case.volume, z));
            }
        }
    }
    ensure!(
        !out.calibration.is_empty() && !out.measured.is_empty(),
        "the manifest {} has no two slices of a volume to look at, those for testing left out: give volumes with another use than \
         \"test\", and --slices 2 or more",
        path.display()
    );
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_testing_is_not_looked_at() {
        let task = crate::terms::Task { name: "t".into(), structures: Vec::new() };
        let manifest = |volumes: &str| -> Manifest { toml::from_str(volumes).unwrap() };
        let both = manifest("[[volume]]\nphantom = 7\nslices = [1, 4, 6]\nuse = \"both\"\n");
        let case = Case::load(&both.volume[0], &task).unwrap();
        assert_eq!(chosen(&case, &both, 2), [1, 6]);
        assert_eq!(chosen(&case, &both, 6), [1, 4, 6], "its other slices are evaluated");
        let all = case.volume.geometry.dims[2];
        let train = manifest("[[volume]]\nphantom = 7\nslices = [1, 4, 6]\n");
        assert_eq!(chosen(&case, &train, 2), [all / 4, 3 * all / 4], "of all slices: nothing is evaluated on them");
        assert_eq!(chosen(&case, &train, 1000), (0..all).collect::<Vec<_>>());
        let apart = manifest(
            "[[volume]]\nphantom = 7\nslices = [1]\n\n[[volume]]\nphantom = 7\nslices = [4]\nuse = \"test\"\n",
        );
        assert!(!chosen(&case, &apart, 1000).contains(&4), "another entry evaluates it");
    }
}
