//! Runs a model over labelled volumes and compares: automatic, with true boxes, and the base without adaptation.

use serde::{Deserialize, Serialize};

use super::metrics::{Agreement, agreement};
use crate::image::LabelMap;
use crate::pipeline::{
    CropRule, LegView, Networks, PipelineError, SegmentOptions, Segmenter, clean_up, compose, true_box,
};
use crate::terms::Task;
use crate::train::{Case, DatasetError, EagerNetworks};

/// How the decoder was prompted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prompt {
    /// By the classifier's activation maps, through the whole pipeline, as in serving.
    Automatic,
    /// By the true box of the truth, and told which structures are there: an upper bound, not a result.
    TrueBox,
    /// MobileSAM without any adaptation, by the true box, each structure by itself.
    ZeroShotTrueBox,
}

impl Prompt {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Prompt::Automatic => "automatic",
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
    /// Structure key.
    pub structure: String,
    /// How the decoder was prompted.
    pub prompt: Prompt,
    /// The figures.
    pub agreement: Agreement,
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
    /// The same network without the pipeline, for true boxes; none leaves them out.
    pub true_box: Option<&'a dyn Networks>,
    /// The base alone, for zero-shot; none leaves it out.
    pub zero_shot: Option<&'a EagerNetworks>,
    /// NSD's tolerance, mm; default: 1 mm or one pixel, whichever is more.
    pub tolerance_mm: Option<f64>,
}

impl Evaluation<'_> {
    /// Evaluates every case that has test slices; `progress` hears how many of how many are done.
    ///
    /// # Errors
    /// [`EvaluateError`]; a volume that the pipeline refuses counts as empty masks, it is no error.
    pub fn run(&self, cases: &[Case], progress: &mut dyn FnMut(usize, usize)) -> Result<Vec<Outcome>, EvaluateError> {
        let total = cases.iter().filter(|c| !c.test.is_empty()).count();
        if total == 0 {
            return Err(EvaluateError::Empty);
        }
        let mut out = Vec::new();
        for (done, (i, case)) in cases.iter().enumerate().filter(|(_, c)| !c.test.is_empty()).enumerate() {
            progress(done, total);
            self.case(i, case, &mut out)?;
        }
        progress(total, total);
        Ok(out)
    }

    fn case(&self, i: usize, case: &Case, out: &mut Vec<Outcome>) -> Result<(), EvaluateError> {
        let fail = |source| EvaluateError::Pipeline { volume: case.name.clone(), source };
        let size = self.true_box.map_or(256, Networks::input_size);
        let views = case.views(self.crop, size)?;
        let found = match self.segmenter.segment(&case.volume, case.hint, self.options, &|_| {}) {
            Ok(s) => Some(s),
            Err(PipelineError::NotThisTask { .. }) => None,
            Err(e) => return Err(fail(e)),
        };
        for l in (0..views.len()).filter(|&l| case.labelled(&views, l)) {
            let truth = case.truth_of(&views, l);
            for (k, s) in self.task.structures.iter().enumerate().filter(|(k, _)| case.known[*k]) {
                let label = found
                    .as_ref()
                    .and_then(|f| f.segments.iter().find(|i| i.structure.key == s.key && i.side == views[l].leg.side));
                let mask = match (&found, label) {
                    (Some(f), Some(info)) => f.labels.data.iter().map(|&v| v == info.label).collect(),
                    _ => vec![false; truth.data.len()],
                };
                out.push(self.compare(i, case, k, Prompt::Automatic, &mask, &truth));
            }
            if let Some(networks) = self.true_box {
                let labels = self.with_true_boxes(networks, case, &views, l, &truth).map_err(fail)?;
                for k in (0..self.task.structures.len()).filter(|&k| case.known[k]) {
                    let mask: Vec<bool> = labels.data.iter().map(|&v| usize::from(v) == k + 1).collect();
                    out.push(self.compare(i, case, k, Prompt::TrueBox, &mask, &truth));
                }
            }
            if let Some(base) = self.zero_shot {
                for (k, mask) in self.zero_shot(base, case, &views[l], &truth).map_err(fail)?.iter().enumerate() {
                    if case.known[k] {
                        out.push(self.compare(i, case, k, Prompt::ZeroShotTrueBox, mask, &truth));
                    }
                }
            }
        }
        Ok(())
    }

    fn compare(&self, i: usize, case: &Case, k: usize, prompt: Prompt, mask: &[bool], truth: &LabelMap) -> Outcome {
        let g = &truth.geometry;
        let truth: Vec<bool> = truth.data.iter().map(|&v| usize::from(v) == k + 1).collect();
        let tolerance = self.tolerance_mm.unwrap_or_else(|| g.spacing[0].max(g.spacing[1]).max(1.0));
        let slices = (case.test.len() < g.dims[2]).then_some(case.test.as_slice());
        Outcome {
            case: i,
            structure: self.task.structures[k].key.clone(),
            prompt,
            agreement: agreement(mask, &truth, g.dims, g.spacing, tolerance, slices),
        }
    }

    /// The pipeline's own decoding, composing and clean-up, but with the truth's boxes and presence.
    fn with_true_boxes(
        &self,
        networks: &dyn Networks,
        case: &Case,
        views: &[LegView],
        l: usize,
        truth: &LabelMap,
    ) -> Result<LabelMap, PipelineError> {
        let view = &views[l];
        let count = self.task.structures.len();
        let g = &case.volume.geometry;
        let mut out = LabelMap::empty(g.clone());
        for z in 0..g.dims[2] {
            let boxes = boxes_of(view, truth, z, count);
            let present: Vec<bool> = boxes.iter().map(Option::is_some).collect();
            if !present.contains(&true) {
                continue;
            }
            let embedding = networks.encode(&view.input(&case.volume, z))?;
            let corners: Vec<[f32; 4]> = boxes.iter().map(|b| b.unwrap_or([0.0, 0.0, 1.0, 1.0])).collect();
            let decoded = networks.decode(&embedding, &corners)?;
            let allowed = |i: usize| views.iter().enumerate().all(|(o, v)| o == l || !v.leg.mask[z * g.plane() + i]);
            let labels = compose(&view.crop, &decoded.masks, &present, allowed).labels;
            let [x0, y0, x1, _] = view.crop.window();
            for (i, label) in labels.into_iter().enumerate() {
                out.data[(z * g.dims[1] + y0 + i / (x1 - x0)) * g.dims[0] + x0 + i % (x1 - x0)] = label;
            }
        }
        clean_up(&mut out.data, g.dims, g.spacing, count as u8, &self.options.clean_up);
        Ok(out)
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
        for &z in &case.test {
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

fn boxes_of(view: &LegView, truth: &LabelMap, z: usize, count: usize) -> Vec<Option<[f32; 4]>> {
    let labels = view.crop.sample_labels(&truth.plane(z));
    (0..count).map(|k| true_box(&labels, k as u8 + 1)).collect()
}
