//! The same adapter on the same labelled volumes in several precisions and on several engines: Dice lost, masks changed.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::evaluate::{EvaluateError, Evaluated, Evaluation, Prompt, Spread};
use crate::pipeline::{Networks, PipelineError, SegmentOptions, Segmenter};
use crate::train::Case;

/// One engine in one precision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// As the table calls it, e.g. `int8, ranges of the site`.
    pub name: String,
    /// What loads it; the caller's own key.
    pub key: usize,
}

/// What one variant lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// The variant.
    pub name: String,
    /// Engine, version, precision, as it states them.
    pub engine: crate::engine::EngineIdentity,
    /// Mean Dice with the truth over structures and legs.
    pub dice: f64,
    /// Mean Dice of the first variant less this one's, over volumes.
    pub lost: Spread,
    /// Most that one volume lost.
    pub most: f64,
    /// The structure that lost most, and how much.
    pub worst: (String, f64),
    /// Mean Dice of the masks with the first variant's, over structures.
    pub same: f64,
    /// Seconds for all volumes, on a machine that may have done other things too.
    pub seconds: f64,
}

/// All variants beside the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Volumes.
    pub volumes: usize,
    /// Slices with a truth.
    pub slices: usize,
    /// The first is the reference.
    pub rows: Vec<Loss>,
}

/// Makes a variant's networks.
pub type Load<'a> = dyn FnMut(&Variant) -> Result<Box<dyn Networks>, PipelineError> + 'a;

/// Runs the whole pipeline with each variant; `load` makes its networks, `tell` hears variant, volumes done and their number.
///
/// # Errors
/// [`EvaluateError`]; [`EvaluateError::Empty`] where no variant or no volume is given.
pub fn compare(
    adapter: &Adapter,
    cases: &[Case],
    options: &SegmentOptions,
    variants: &[Variant],
    load: &mut Load<'_>,
    tell: &mut dyn FnMut(&Variant, usize, usize),
) -> Result<Comparison, EvaluateError> {
    let unusable = |source| EvaluateError::Pipeline { volume: format!("(adapter {})", adapter.meta.name), source };
    let model = |e: crate::adapter::AdapterError| unusable(PipelineError::Model(e.to_string()));
    let keys: Vec<&str> = adapter.meta.task.structures.iter().map(|s| s.key.as_str()).collect();
    let mut reference: Option<Evaluated> = None;
    let mut rows = Vec::new();
    for variant in variants {
        let networks = load(variant).map_err(unusable)?;
        let engine = networks.identity();
        let segmenter = Segmenter::new(networks, adapter.model_info().map_err(model)?).map_err(unusable)?;
        let evaluation = Evaluation {
            task: &adapter.meta.task,
            crop: adapter.meta.crop,
            segmenter: &segmenter,
            options,
            prompts: &[Prompt::Automatic],
            direct: None,
            base: None,
            tolerance_mm: None,
            keep: true,
        };
        let begin = Instant::now();
        let evaluated = evaluation.run(cases, &mut |done, total| tell(variant, done, total))?;
        let seconds = begin.elapsed().as_secs_f64();
        let first = reference.get_or_insert_with(|| evaluated.clone());
        let dice = |e: &Evaluated, wanted: &dyn Fn(usize, &str) -> bool| {
            let own = e.outcomes.iter().filter(|o| wanted(o.case, &o.structure)).map(|o| o.agreement.dice);
            Spread::of(own).map(|s| s.mean)
        };
        let lost = |wanted: &dyn Fn(usize, &str) -> bool| Some(dice(first, wanted)? - dice(&evaluated, wanted)?);
        let by_case = (0..cases.len()).map(|i| lost(&|case, _| case == i));
        let most = by_case.clone().flatten().fold(f64::NEG_INFINITY, f64::max);
        let by_structure = keys.iter().filter_map(|k| Some(((*k).to_string(), lost(&|_, s| s == *k)?)));
        rows.push(Loss {
            name: variant.name.clone(),
            engine,
            dice: dice(&evaluated, &|_, _| true).ok_or(EvaluateError::Empty)?,
            lost: Spread::of(by_case).ok_or(EvaluateError::Empty)?,
            most,
            worst: by_structure.max_by(|a, b| a.1.total_cmp(&b.1)).ok_or(EvaluateError::Empty)?,
            same: same(first, &evaluated, keys.len()),
            seconds,
        });
    }
    if rows.is_empty() {
        return Err(EvaluateError::Empty);
    }
    let slices = cases.iter().map(|c| c.test.len()).sum();
    Ok(Comparison { volumes: cases.iter().filter(|c| !c.test.is_empty()).count(), slices, rows })
}

/// Mean Dice over structures of two results, voxels counted over all volumes.
fn same(a: &Evaluated, b: &Evaluated, structures: usize) -> f64 {
    let mut counts = vec![[0u64; 2]; structures + 1];
    for (a, b) in a.found.iter().zip(&b.found) {
        for (&x, &y) in a.labels.data.iter().zip(&b.labels.data) {
            for l in [x, y] {
                counts[usize::from(l)][1] += 1;
            }
            if x == y {
                counts[usize::from(x)][0] += 2;
            }
        }
    }
    let seen: Vec<f64> = counts[1..].iter().filter(|c| c[1] > 0).map(|c| c[0] as f64 / c[1] as f64).collect();
    if seen.is_empty() { 1.0 } else { seen.iter().sum::<f64>() / seen.len() as f64 }
}

impl Comparison {
    /// The table.
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "| engine | precision | Dice | Dice lost (mean ± sd over volumes; most) | structure that lost most | masks' Dice with the first row |\n\
             |---|---|---:|---|---|---:|\n",
        );
        for r in &self.rows {
            out.push_str(&format!(
                "| {} | {} | {:.4} | {:+.4} ± {:.4}; {:+.4} | {} {:+.4} | {:.4} |\n",
                r.engine.version, r.name, r.dice, r.lost.mean, r.lost.sd, r.most, r.worst.0, r.worst.1, r.same
            ));
        }
        out
    }
}
