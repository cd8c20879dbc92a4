//! An evaluation of one adapter: the engine that serves it, the tables and the picture.

use super::overlays::overlays;
use super::run::{EvaluateError, Evaluation, Outcome, Prompt};
use super::table::{TOLERANCE, Table, Trained};
use crate::adapter::Adapter;
use crate::image::Rgb;
use crate::model::weights::BaseWeights;
use crate::pipeline::{EngineNetworks, Networks, PipelineError, SegmentOptions, Segmenter};
use crate::train::{Case, EagerNetworks};

/// What to evaluate and how to tell it.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluationSetting {
    /// How the decoder is prompted, each by itself.
    pub prompts: Vec<Prompt>,
    /// Input size of the zero-shot comparison, a multiple of 32.
    pub zero_shot_size: usize,
    /// NSD's tolerance, mm; default: 1 mm or one pixel, whichever is more.
    pub tolerance_mm: Option<f64>,
    /// Facts to stand above the table.
    pub facts: Vec<(String, String)>,
    /// Draw the overlays.
    pub overlays: bool,
    /// Write the cases' names beside their figures.
    pub names: bool,
}

impl Default for EvaluationSetting {
    fn default() -> Self {
        EvaluationSetting {
            prompts: vec![Prompt::Automatic, Prompt::TrueBox],
            zero_shot_size: 1024,
            tolerance_mm: None,
            facts: Vec::new(),
            overlays: false,
            names: false,
        }
    }
}

/// An adapter's evaluation.
#[derive(Clone, Debug)]
pub struct AdapterEvaluation {
    /// The figures.
    pub table: Table,
    /// The outcomes behind them.
    pub outcomes: Vec<Outcome>,
    /// Truth and result as outlines, where asked for and where there is any.
    pub overlays: Option<Rgb>,
}

/// Evaluates an adapter on the test slices of cases; `progress` hears how many cases of how many are done.
///
/// # Errors
/// As [`Evaluation::run`]; the engine's own as that of a volume named after the adapter.
pub fn evaluate_adapter(
    adapter: &Adapter,
    base: &BaseWeights,
    cases: &[Case],
    setting: &EvaluationSetting,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<AdapterEvaluation, EvaluateError> {
    let meta = &adapter.meta;
    let unusable = |source| EvaluateError::Pipeline { volume: format!("(adapter {})", meta.name), source };
    let wants = |p: Prompt| setting.prompts.contains(&p);
    // The automatic result comes from the engine that serves; its parity with the eager interpreter is tested elsewhere.
    let engine = EngineNetworks::cpu(base, adapter, 0).map_err(|e| unusable(PipelineError::Model(e.to_string())))?;
    let info = adapter.model_info().map_err(|e| unusable(PipelineError::Model(e.to_string())))?;
    let segmenter = Segmenter::new(Box::new(engine), info).map_err(unusable)?;
    let direct = (wants(Prompt::PromptFree) || wants(Prompt::TrueBox))
        .then(|| EagerNetworks::new(base.tensors(), &adapter.tensors, meta.input_size));
    let zero_shot = wants(Prompt::ZeroShotTrueBox).then(|| EagerNetworks::base(base.tensors(), setting.zero_shot_size));
    let options = SegmentOptions::default();
    let evaluation = Evaluation {
        task: &meta.task,
        crop: meta.crop,
        segmenter: &segmenter,
        options: &options,
        prompts: &setting.prompts,
        direct: direct.as_ref().map(|n| n as &dyn Networks),
        base: zero_shot.as_ref(),
        tolerance_mm: setting.tolerance_mm,
        keep: setting.overlays,
    };
    let evaluated = evaluation.run(cases, progress)?;

    let tested: Vec<&Case> = cases.iter().filter(|c| !c.test.is_empty()).collect();
    let slices: usize = tested.iter().map(|c| c.test.len()).sum();
    let mut facts = setting.facts.clone();
    let p = &meta.provenance;
    let mut fact = |k: &str, v: String| facts.push((k.into(), v));
    let sha256 = adapter.sha256().map_err(|e| unusable(PipelineError::Model(e.to_string())))?;
    fact("adapter", format!("{} {}, sha256 {sha256}", meta.name, meta.version));
    fact("trained", format!("{}, seed {}", p.words(), p.seed));
    fact("tested", format!("{slices} slices of {} volumes, input {} px", tested.len(), meta.input_size));
    if let Some(mm) = setting.tolerance_mm {
        fact(TOLERANCE, format!("{mm} mm"));
    }
    if wants(Prompt::ZeroShotTrueBox) {
        fact("zero-shot input", format!("{} px, the same leg crop", setting.zero_shot_size));
    }
    let keys: Vec<String> = meta.task.structures.iter().map(|s| s.key.clone()).collect();
    let mut table = Table::new(&evaluated.outcomes, &keys, facts);
    table.trained = Some(Trained { slices: p.slices, volumes: p.volumes, steps: p.steps, seed: p.seed });
    if setting.names {
        let names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
        table.name_cases(&names);
    }
    let overlays = if setting.overlays { overlays(&keys, cases, &evaluated.outcomes, &evaluated.found) } else { None };
    Ok(AdapterEvaluation { table, outcomes: evaluated.outcomes, overlays })
}
