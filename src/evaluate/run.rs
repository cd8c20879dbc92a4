//! Runs a model over labelled volumes and compares: automatic, prompt-free, with true boxes, the base without adaptation.

use serde::{Deserialize, Serialize};

use super::metrics::{Agreement, Presence, Slices, agreement};
use crate::image::LabelMap;
use crate::pipeline::{
    CropRule, LegView, Networks, PipelineError, SegmentOptions, Segmentation, Segmenter, clean_up, compose, true_box,
};
use crate::segex::Verdict;
use crate::terms::{Side, Task};
use crate::train::{Case, DatasetError, EagerNetworks};

/// How the decoder was prompted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prompt {
    /// By the classifier's activation maps, through the whole pipeline, as in serving.
    Automatic,
    /// By the whole crop as every structure's box; the classifier says which are there.
    PromptFree,
    /// By the true box of the truth, and told which structures are there: an upper bound, not a result.
    TrueBox,
    /// MobileSAM without any adaptation, by the true box, each structure by itself.
    ZeroShotTrueBox,
}

impl Prompt {
    /// All, in the order of tables.
    pub const ALL: [Prompt; 4] = [Prompt::Automatic, Prompt::PromptFree, Prompt::TrueBox, Prompt::ZeroShotTrueBox];

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Prompt::Automatic => "automatic",
            Prompt::PromptFree => "prompt-free",
            Prompt::TrueBox => "true box (upper bound)",
            Prompt::ZeroShotTrueBox => "MobileSAM zero-shot, true box",
        }
    }
}

/// One structure of one leg of one volume.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Place of the case in the list.
    pub case: usize,
    /// The leg's side, where known.
    pub side: Option<Side>,
    /// Structure key.
    pub structure: String,
    /// How the decoder was prompted.
    pub prompt: Prompt,
    /// The figures.
    pub agreement: Agreement,
    /// Slices with and without the structure.
    pub presence: Presence,
    /// SegEx's score and verdict on the whole structure as served, without the truth; automatic only.
    pub segex: Option<(f64, Verdict)>,
}

/// The automatic result of one leg beside the truth.
#[derive(Clone, Debug)]
pub struct Found {
    /// Place of the case in the list.
    pub case: usize,
    /// The leg's side, where known.
    pub side: Option<Side>,
    /// Structure `k` of the task is `k + 1`.
    pub labels: LabelMap,
    /// The truth of this leg, likewise.
    pub truth: LabelMap,
}

/// What an evaluation yields.
#[derive(Clone, Debug, Default)]
pub struct Evaluated {
    /// One for each case, leg, structure and prompt.
    pub outcomes: Vec<Outcome>,
    /// The automatic results, where they were to be kept.
    pub found: Vec<Found>,
}

/// Why an evaluation stopped.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The data set.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The engine or the model.
    #[error("volume {volume}: {source}")]
    Pipeline {
        /// Name in the manifest.
        volume: String,
        /// Why.
        source: PipelineError,
    },
    /// Nothing to evaluate.
    #[error("no volume of the manifest is for testing: give `use = \"test\"` or `use = \"both\"`")]
    Empty,
}

/// What to run.
pub struct Evaluation<'a> {
    /// The structures.
    pub task: &'a Task,
    /// The adapter's crop.
    pub crop: CropRule,
    /// The whole pipeline.
    pub segmenter: &'a Segmenter,
    /// As in serving.
    pub options: &'a SegmentOptions,
    /// What to run; [`Prompt::PromptFree`] and [`Prompt::TrueBox`] need `direct`, [`Prompt::ZeroShotTrueBox`] needs `base`.
    pub prompts: &'a [Prompt],
    /// The same network without the pipeline.
    pub direct: Option<&'a dyn Networks>,
    /// The base alone.
    pub base: Option<&'a EagerNetworks>,
    /// NSD's tolerance, mm; default: 1 mm or one pixel, whichever is more.
    pub tolerance_mm: Option<f64>,
    /// Keep the automatic results, for pictures.
    pub keep: bool,
}

impl Evaluation<'_> {
    /// Evaluates every case that has test slices; `progress` hears how many of how many are done.
    ///
    /// # Errors
    /// [`EvaluateError`]; a volume in which the adapter does not find its task counts as empty masks, it is no error.
    pub fn run(&self, cases: &[Case], progress: &mut dyn FnMut(usize, usize)) -> Result<Evaluated, EvaluateError> {
        let total = cases.iter().filter(|c| !c.test.is_empty()).count();
        if total == 0 {
            return Err(EvaluateError::Empty);
        }
        let mut out = Evaluated::default();
        for (done, (i, case)) in cases.iter().enumerate().filter(|(_, c)| !c.test.is_empty()).enumerate() {
            progress(done, total);
            self.case(i, case, &mut out)?;
        }
        progress(total, total);
        Ok(out)
    }

    fn wants(&self, prompt: Prompt) -> bool {
        self.prompts.contains(&prompt)
    }

    fn case(&self, i: usize, case: &Case, out: &mut Evaluated) -> Result<(), EvaluateError> {
        let fail = |source| EvaluateError::Pipeline { volume: case.name.clone(), source };
        let size = self.direct.map_or(256, Networks::input_size);
        let views = case.views(self.crop, size)?;
        // The other leg's truth is not known: it need not be segmented.
        let options = SegmentOptions { side: case.side, ..self.options.clone() };
        let found = if self.wants(Prompt::Automatic) {
            match self.segmenter.segment(&case.volume, case.hint, &options, &|_| {}) {
                Ok(s) => Some(s),
                Err(PipelineError::NotThisTask { .. }) => None,
                Err(e) => return Err(fail(e)),
            }
        } else {
            None
        };
        for l in (0..views.len()).filter(|&l| case.labelled(&views, l)) {
            let truth = case.truth_of(&views, l);
            let side = views[l].leg.side;
            let with = |prompt, labels: &LabelMap| {
                compare(self.task, (i, case), side, prompt, &truth, self.tolerance_mm, |k| mask_of(labels, k))
            };
            if self.wants(Prompt::Automatic) {
                let mut labels = LabelMap::empty(truth.geometry.clone());
                if let Some(f) = &found {
                    let own = renumbering(self.task, f, side);
                    labels.data.iter_mut().zip(&f.labels.data).for_each(|(o, v)| *o = own[usize::from(*v)]);
                }
                let mut outcomes = with(Prompt::Automatic, &labels);
                for o in &mut outcomes {
                    let rows = found.iter().flat_map(|f| &f.report.structures);
                    let row = rows.into_iter().find(|r| r.structure.key == o.structure && r.side == side);
                    o.segex = row.map(|r| (r.score, r.verdict));
                }
                out.outcomes.extend(outcomes);
                if self.keep {
                    out.found.push(Found { case: i, side, labels, truth: truth.clone() });
                }
            }
            if let Some(networks) = self.direct {
                for (prompt, labels) in self.direct(networks, case, &views, l, &truth).map_err(fail)? {
                    out.outcomes.extend(with(prompt, &labels));
                }
            }
            if let (Some(base), true) = (self.base, self.wants(Prompt::ZeroShotTrueBox)) {
                let mut masks = self.zero_shot(base, case, &views[l], &truth).map_err(fail)?;
                out.outcomes.extend(compare(
                    self.task,
                    (i, case),
                    side,
                    Prompt::ZeroShotTrueBox,
                    &truth,
                    self.tolerance_mm,
                    |k| std::mem::take(&mut masks[k]),
                ));
            }
        }
        Ok(())
    }

    /// The pipeline's own decoding, composing and clean-up in one pass, with other prompts than its own.
    fn direct(
        &self,
        networks: &dyn Networks,
        case: &Case,
        views: &[LegView],
        l: usize,
        truth: &LabelMap,
    ) -> Result<Vec<(Prompt, LabelMap)>, PipelineError> {
        let wanted = [Prompt::PromptFree, Prompt::TrueBox].into_iter().filter(|p| self.wants(*p));
        let g = &case.volume.geometry;
        let mut out: Vec<(Prompt, LabelMap)> = wanted.map(|p| (p, LabelMap::empty(g.clone()))).collect();
        if out.is_empty() {
            return Ok(out);
        }
        let view = &views[l];
        let count = self.task.structures.len();
        let embeddings =
            (0..g.dims[2]).map(|z| networks.encode(&view.input(&case.volume, z))).collect::<Result<Vec<_>, _>>()?;
        let seen = match self.wants(Prompt::PromptFree) {
            true => self.classified(networks, &embeddings)?,
            false => Vec::new(),
        };
        for (prompt, labels) in &mut out {
            for (z, embedding) in embeddings.iter().enumerate() {
                let whole = [0.0, 0.0, 1.0, 1.0];
                let boxes: Vec<Option<[f32; 4]>> = match prompt {
                    Prompt::TrueBox => boxes_of(view, truth, z, count),
                    _ => seen[z].iter().map(|p| p.then_some(whole)).collect(),
                };
                let present: Vec<bool> = boxes.iter().map(Option::is_some).collect();
                if !present.contains(&true) {
                    continue;
                }
                let corners: Vec<[f32; 4]> = boxes.iter().map(|b| b.unwrap_or(whole)).collect();
                let decoded = networks.decode(embedding, &corners)?;
                let allowed =
                    |i: usize| views.iter().enumerate().all(|(o, v)| o == l || !v.leg.mask[z * g.plane() + i]);
                let composed = compose(&view.crop, &decoded.masks, &present, allowed).labels;
                let [x0, y0, x1, _] = view.crop.window();
                for (i, label) in composed.into_iter().enumerate() {
                    labels.data[(z * g.dims[1] + y0 + i / (x1 - x0)) * g.dims[0] + x0 + i % (x1 - x0)] = label;
                }
            }
            clean_up(&mut labels.data, g.dims, g.spacing, count as u8, &self.options.clean_up);
        }
        Ok(out)
    }

    /// Which structures the classifier sees on each slice, smoothed over neighbours as the pipeline does.
    fn classified(
        &self,
        networks: &dyn Networks,
        embeddings: &[crate::engine::Tensor],
    ) -> Result<Vec<Vec<bool>>, PipelineError> {
        let probability = |logit: &f32| 1.0 / (1.0 + (-logit).exp());
        let all: Vec<Vec<f32>> = embeddings
            .iter()
            .map(|e| Ok(networks.classify(e)?.logits.iter().map(probability).collect()))
            .collect::<Result<_, PipelineError>>()?;
        let thresholds = &self.segmenter.model().presence;
        let last = all.len().saturating_sub(1);
        Ok((0..all.len())
            .map(|z| {
                (0..self.task.structures.len())
                    .map(|k| {
                        let p = |z: usize| all[z].get(k).copied().unwrap_or(0.0);
                        let smooth = 0.25 * p(z.saturating_sub(1)) + 0.5 * p(z) + 0.25 * p((z + 1).min(last));
                        smooth >= thresholds.get(k).copied().unwrap_or(self.options.presence)
                    })
                    .collect()
            })
            .collect())
    }

    fn zero_shot(
        &self,
        base: &EagerNetworks,
        case: &Case,
        view: &LegView,
        truth: &LabelMap,
    ) -> Result<Vec<Vec<bool>>, PipelineError> {
        let g = &case.volume.geometry;
        let large = LegView { crop: view.crop.resized(base.input_size()), ..view.clone() };
        let mut out = vec![vec![false; g.voxels()]; self.task.structures.len()];
        // Every slice that has labels: a mask that ends at the slices that count would have a surface there.
        for z in 0..g.dims[2] {
            let boxes = boxes_of(view, truth, z, out.len());
            let (which, corners): (Vec<usize>, Vec<[f32; 4]>) =
                boxes.iter().enumerate().filter_map(|(k, b)| Some((k, (*b)?))).unzip();
            if which.is_empty() {
                continue;
            }
            let embedding = base.encode(&large.input(&case.volume, z))?;
            for (k, logits) in which.into_iter().zip(base.zero_shot(&embedding, &corners)) {
                let plane = large.crop.restore(&logits, -1.0);
                for (o, v) in out[k][z * g.plane()..(z + 1) * g.plane()].iter_mut().zip(plane.data) {
                    *o = v > 0.0;
                }
            }
        }
        Ok(out)
    }
}

/// Compares the masks of one leg with its truth, for each structure that the case's labels tell about.
///
/// `case` is the case and its place in the list; `truth` has structure `k` of the task as `k + 1` and nothing of another leg
/// ([`Case::truth_of`]); `mask` gives the mask of structure `k` on the same grid. Only the case's test slices count. NSD's
/// tolerance is by default 1 mm or one pixel, whichever is more.
pub fn compare(
    task: &Task,
    (i, case): (usize, &Case),
    side: Option<Side>,
    prompt: Prompt,
    truth: &LabelMap,
    tolerance_mm: Option<f64>,
    mut mask: impl FnMut(usize) -> Vec<bool>,
) -> Vec<Outcome> {
    let g = &truth.geometry;
    let tolerance = tolerance_mm.unwrap_or_else(|| g.spacing[0].max(g.spacing[1]).max(1.0));
    let slices = (case.test.len() < g.dims[2]).then_some(case.test.as_slice());
    let known: Vec<usize> = case.train.iter().chain(&case.test).copied().collect();
    (0..task.structures.len())
        .filter(|&k| case.known[k])
        .map(|k| {
            let (found, truth) = (mask(k), mask_of(truth, k));
            Outcome {
                case: i,
                side,
                structure: task.structures[k].key.clone(),
                prompt,
                agreement: agreement(
                    &found,
                    &truth,
                    g.dims,
                    g.spacing,
                    tolerance,
                    slices.map(|counted| Slices { counted, known: &known }),
                ),
                presence: Presence::of(&found, &truth, g.plane(), slices),
                segex: None,
            }
        })
        .collect()
}

fn mask_of(labels: &LabelMap, k: usize) -> Vec<bool> {
    labels.data.iter().map(|&v| usize::from(v) == k + 1).collect()
}

/// From the labels of a result to those of a task, `k + 1`, for one side; what belongs elsewhere becomes background.
pub(super) fn renumbering(task: &Task, found: &Segmentation, side: Option<Side>) -> Vec<u8> {
    let mut own = vec![0u8; 256];
    for s in found.segments.iter().filter(|s| s.side == side) {
        if let Some(k) = task.structures.iter().position(|t| t.key == s.structure.key) {
            own[usize::from(s.label)] = k as u8 + 1;
        }
    }
    own
}

fn boxes_of(view: &LegView, truth: &LabelMap, z: usize, count: usize) -> Vec<Option<[f32; 4]>> {
    let labels = view.crop.sample_labels(&truth.plane(z));
    (0..count).map(|k| true_box(&labels, k as u8 + 1)).collect()
}
