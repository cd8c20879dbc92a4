//! `scanside segex calibrate` and `scanside segex validate`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::grade::{folder_of, save};
use crate::adapter::{Adapter, Reference};
use crate::cli::evaluate::base_weights;
use crate::evaluate::{Arm, MaskMaker, Masks, SegexStudy, Study, StudyMask, calibration_of, halves};
use crate::model::weights::BaseWeights;
use crate::pipeline::{EngineNetworks, Segmenter};
use crate::segex::{Criterion, SegexCalibration};
use crate::train::{Case, Manifest, Use, load_cases, reference};

#[derive(Args, Debug)]
pub(super) struct CalibrateArgs {
    /// The adapter
    #[arg(long, short)]
    adapter: PathBuf,
    /// Manifest; the labelled slices of its `use = "train"` and `use = "both"` volumes are used
    #[arg(long, short)]
    manifest: PathBuf,
    /// Where to write the calibrated copy of the adapter
    #[arg(long, short)]
    out: PathBuf,
    /// Decides the damages that are done to the masks
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write one line for each mask, its measurements and grades, as JSON lines (subjects by number)
    #[arg(long, value_name = "FILE")]
    masks: Option<PathBuf>,
    /// Base weights (safetensors); default: the cache, fetched once where empty
    #[arg(long)]
    weights: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct ValidateArgs {
    /// The adapter
    #[arg(long, short)]
    adapter: PathBuf,
    /// Manifest; grades are validated on its `use = "test"` volumes, and its training slices give the calibration that a site
    /// with those slices alone would have
    #[arg(long, short)]
    manifest: PathBuf,
    /// Write PATH.md and PATH.json (figures over all subjects, no name)
    #[arg(long, short)]
    out: Option<PathBuf>,
    /// Decides the damages, the halves and the resampling
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Heading
    #[arg(long, default_value = "SegEx without ground truth against SegEx with it")]
    title: String,
    /// A fact to stand above the tables, e.g. --fact "commit=abc"
    #[arg(long = "fact", value_name = "NAME=VALUE")]
    facts: Vec<String>,
    /// Write one line for each mask, its measurements and grades, as JSON lines (subjects by number)
    #[arg(long, value_name = "FILE")]
    masks: Option<PathBuf>,
    /// Base weights (safetensors); default: the cache, fetched once where empty
    #[arg(long)]
    weights: Option<PathBuf>,
}

/// An adapter with the pipeline that serves it.
struct Served {
    base: BaseWeights,
    adapter: Adapter,
    segmenter: Segmenter,
}

impl Served {
    fn load(path: &Path, weights: Option<&Path>) -> anyhow::Result<Self> {
        let adapter = Adapter::load(path)?;
        let base: BaseWeights = base_weights(weights)?;
        adapter.check(base.sha256())?;
        let engine = EngineNetworks::cpu(&base, &adapter, 1)?;
        let segmenter = Segmenter::new(Box::new(engine), adapter.model_info()?)?;
        Ok(Served { base, adapter, segmenter })
    }

    fn masks(&self, cases: &[Case], seed: u64, study: Study) -> anyhow::Result<Masks> {
        let meta = &self.adapter.meta;
        let maker = MaskMaker {
            task: &meta.task,
            crop: meta.crop,
            size: meta.input_size,
            segmenter: &self.segmenter,
            shapes: &meta.shape,
            seed,
        };
        let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("masks {bar:30} {pos}/{len} {eta}")?);
        let masks = maker.masks(cases, study, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        Ok(masks)
    }
}

pub(super) fn calibrate(args: &CalibrateArgs) -> anyhow::Result<ExitCode> {
    for path in [Some(&args.out), args.masks.as_ref()].into_iter().flatten() {
        folder_of(path)?;
    }
    let mut served = Served::load(&args.adapter, args.weights.as_deref())?;
    let manifest = Manifest::load(&args.manifest)?;
    let cases = load_cases(&manifest, &served.adapter.meta.task, |e| e.usage != Use::Test)?;
    let masks = served.masks(&cases, args.seed, Study::Calibration)?;
    ensure!(masks.labelled > 0, "the manifest's training slices show none of the adapter's structures");
    if let Some(path) = &args.masks {
        save(path, &lines(&masks)?)?;
    }
    let calibration = calibration_of(&masks.masks, |_| true);
    ensure!(!calibration.sets.is_empty(), "too few labelled masks to calibrate on: label at least two slices whole");
    print!("{}", describe(&calibration));
    served.adapter.meta.segex = Some(calibration);
    // Drift holds served scores against these: both must be of the same scale.
    let measured = reference(&served.adapter, &served.base, &cases)?;
    let meta = &mut served.adapter.meta;
    meta.reference = rescored(std::mem::take(&mut meta.reference), measured);
    served.adapter.save(&args.out)?;
    println!("wrote {}, sha256 {}", args.out.display(), served.adapter.sha256()?);
    Ok(ExitCode::SUCCESS)
}

/// Drift's reference with the scores of a calibrated adapter. Area and intensity stay what training measured; an adapter without a
/// reference takes the whole. What was not scored anew has no score, as one of the former scale would be compared with the new.
fn rescored(mut before: Vec<Reference>, measured: Vec<Reference>) -> Vec<Reference> {
    if before.is_empty() {
        return measured;
    }
    for r in &mut before {
        r.score = measured.iter().find(|m| m.key == r.key).and_then(|m| m.score);
    }
    before
}

fn describe(c: &SegexCalibration) -> String {
    let mut out =
        format!("calibrated on {} labelled masks of {} subjects, {} candidates\n", c.masks, c.subjects, c.candidates);
    for (criterion, error) in Criterion::ALL.iter().zip(c.error) {
        let maps = c.sets.iter().flat_map(|s| &s.grades).filter(|m| m.criterion == *criterion).count();
        let error = error.map_or("not measured".into(), |e| format!("{e:.2} of a grade, subject left out"));
        let line = if maps == 0 { "keeps its default cuts".into() } else { format!("mean error {error}") };
        out.push_str(&format!("{} {:<18} {line}\n", criterion.id(), criterion.name()));
    }
    if let (Some(score), Some(usable)) = (c.score_error, c.usable) {
        out.push_str(&format!("score off by {score:.1}, AUROC for usable as is {usable:.3}, subject left out\n"));
    }
    out.extend(c.caution().map(|c| c + "\n"));
    out
}

pub(super) fn validate(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let facts: Option<Vec<(String, String)>> =
        args.facts.iter().map(|f| f.split_once('=').map(|(k, v)| (k.to_string(), v.to_string()))).collect();
    let mut facts = facts.context("--fact needs NAME=VALUE")?;
    for path in [&args.out, &args.masks].into_iter().flatten() {
        folder_of(path)?;
    }
    let served = Served::load(&args.adapter, args.weights.as_deref())?;
    let manifest = Manifest::load(&args.manifest)?;
    let task = &served.adapter.meta.task;
    let labelled = load_cases(&manifest, task, |e| e.usage == Use::Train)?;
    let unseen = load_cases(&manifest, task, |e| e.usage == Use::Test)?;
    ensure!(unseen.len() >= 4, "grades are validated on `use = \"test\"` volumes; the manifest has {}", unseen.len());
    let site = served.masks(&labelled, args.seed, Study::Calibration)?;
    let masks = served.masks(&unseen, args.seed, Study::Validation)?;
    let subjects: Vec<usize> = masks.masks.iter().map(|m| m.subject).collect();
    let [first, second] = halves(&subjects, args.seed);
    let fitted = [&first, &second].map(|half| calibration_of(&masks.masks, |s| half.contains(&s)));
    let by_other_half = |s: usize| Some(if first.contains(&s) { &fitted[1] } else { &fitted[0] });
    let site_calibration = calibration_of(&site.masks, |_| true);
    let mut arms = vec![Arm::new("default cuts, not calibrated", &masks.masks, |_| None, args.seed)];
    if let Some(own) = &served.adapter.meta.segex {
        let name = format!("the adapter's own calibration ({} masks)", own.masks);
        arms.push(Arm::new(&name, &masks.masks, |_| Some(own), args.seed));
    }
    if site.labelled > 0 {
        let name = format!("calibrated on the training slices ({} masks)", site.labelled);
        arms.push(Arm::new(&name, &masks.masks, |_| Some(&site_calibration), args.seed));
    }
    let name = format!("calibrated on the other half's subjects ({} and {} masks)", fitted[1].masks, fitted[0].masks);
    arms.push(Arm::new(&name, &masks.masks, by_other_half, args.seed));

    let p = &served.adapter.meta.provenance;
    let meta = &served.adapter.meta;
    facts.extend([
        ("adapter".into(), format!("{} {}, sha256 {}", meta.name, meta.version, served.adapter.sha256()?)),
        ("trained".into(), format!("{}, seed {}", p.words(), p.seed)),
        (
            "validated".into(),
            format!(
                "{} masks made of {} labelled ones, {} unseen subjects in halves of {} and {}, seed {}",
                masks.masks.len(),
                masks.labelled,
                first.len() + second.len(),
                first.len(),
                second.len(),
                args.seed
            ),
        ),
    ]);
    let study = SegexStudy { facts, arms };
    println!("{}", study.markdown(&args.title));
    if let Some(out) = &args.out {
        save(&out.with_added_extension("md"), &study.markdown(&args.title))?;
        save(&out.with_added_extension("json"), &(serde_json::to_string_pretty(&study)? + "\n"))?;
    }
    if let Some(path) = &args.masks {
        save(path, &lines(&masks)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One line of JSON for each mask: its measurements, and what the truth says.
fn lines(masks: &Masks) -> Result<String, serde_json::Error> {
    let line = |m: &StudyMask| {
        let line = serde_json::json!({
            "subject": m.subject,
            "structure": m.truth.structure.key,
            "result": m.made.result,
            "supposed": m.supposed,
            "damage": m.made.damage,
            "features": m.measured.features(),
            "truth": Criterion::ALL.map(|c| m.truth.grade(c)),
            "score": m.truth.score,
            "verdict": m.truth.verdict,
        });
        Ok(serde_json::to_string(&line)? + "\n")
    };
    masks.masks.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Spread;

    #[test]
    fn the_reference_takes_the_scores_of_the_calibrated_grades_and_nothing_else() {
        let of = |key: &str, value: f64| {
            let spread = Spread::of(&[value]);
            Reference { key: key.into(), area: spread, intensity: spread, score: spread }
        };
        let all = rescored(vec![of("VL", 1.0), of("VM", 2.0)], vec![of("VL", 3.0), of("RF", 4.0)]);
        assert_eq!(all[0], Reference { score: Spread::of(&[3.0]), ..of("VL", 1.0) });
        assert_eq!(all[1], Reference { score: None, ..of("VM", 2.0) });
        assert_eq!(all.len(), 2);
        assert_eq!(rescored(Vec::new(), vec![of("VL", 3.0)]), [of("VL", 3.0)]);
    }
}
