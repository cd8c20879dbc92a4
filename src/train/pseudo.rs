//! Pseudo-labels: what a model is sure of on slices that nobody labelled.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::dataset::Case;
use super::device::Device;
use super::sample::{IGNORE, Sample};
use crate::engine::Tensor;
use crate::image::Plane;
use crate::pipeline::{CropRule, ModelInfo, PipelineError, Prompting, SegmentOptions, Segmenter};
use crate::terms::Task;

/// How pseudo-labels are made.
#[derive(Clone, Copy, Debug)]
pub struct PseudoRule {
    /// Crop, as in serving.
    pub crop: CropRule,
    /// Edge of the teacher's input, pixels.
    pub teacher_size: usize,
    /// How the teacher is asked.
    pub prompting: Prompting,
    /// Edge of the samples, pixels.
    pub size: usize,
    /// Most volumes that are labelled; which, the seed says.
    pub volumes: usize,
    /// Seed of the choice.
    pub seed: u64,
    /// Pixels with more doubt than this are left out of the loss.
    pub doubt: f32,
    /// A slice with a larger share of doubtful pixels among those labelled is left out.
    pub most_doubtful: f32,
}

/// Segments the unlabelled slices with the teacher `tensors`, through the whole pipeline (passes, 3-D clean-up), and keeps what
/// it is sure of. A volume that the pipeline refuses gives none. `progress` hears volumes done of all.
///
/// # Errors
/// [`PipelineError`] where the model cannot run at all.
pub fn pseudo_labels(
    base: &BTreeMap<String, Tensor>,
    tensors: &BTreeMap<String, Tensor>,
    task: &Task,
    cases: &[Case],
    rule: &PseudoRule,
    device: Device,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Sample>, PipelineError> {
    let networks = device.networks_of(base, tensors, rule.teacher_size);
    let model = ModelInfo {
        task: task.clone(),
        crop: rule.crop,
        adapter: "teacher".into(),
        adapter_sha256: String::new(),
        shapes: Vec::new(),
        presence: Vec::new(),
        prompting: rule.prompting,
        segex: None,
    };
    let segmenter = Segmenter::new(networks, model)?;

    let mut out = Vec::new();
    let mut wanted: Vec<&Case> = cases.iter().filter(|c| !c.unlabelled.is_empty()).collect();
    wanted.shuffle(&mut ChaCha8Rng::seed_from_u64(rule.seed));
    wanted.truncate(rule.volumes);
    for (done, case) in wanted.iter().enumerate() {
        progress(done, wanted.len());
        let Ok(views) = case.views(rule.crop, rule.size) else { continue };
        let options = SegmentOptions { passes: 1, jitter: 0.06, side: case.side, ..SegmentOptions::default() };
        let found = match segmenter.segment(&case.volume, case.hint, &options, &|_| {}) {
            Ok(found) => found,
            Err(PipelineError::NotThisTask { .. } | PipelineError::Legs(_)) => continue,
            Err(e) => return Err(e),
        };
        let plane = case.volume.geometry.plane();
        for (_, view) in views.iter().enumerate().filter(|(l, _)| case.labelled(&views, *l)) {
            let mut own = vec![0u8; 256];
            for s in found.segments.iter().filter(|s| s.side == view.leg.side) {
                if let Some(k) = task.structures.iter().position(|t| t.key == s.structure.key) {
                    own[usize::from(s.label)] = k as u8 + 1;
                }
            }
            for &z in &case.unlabelled {
                let range = z * plane..(z + 1) * plane;
                let mut labelled = 0usize;
                let mut doubtful = 0usize;
                let labels: Vec<u8> = range
                    .map(|i| {
                        let label = own[usize::from(found.labels.data[i])];
                        labelled += usize::from(label > 0);
                        if found.doubt[i] > rule.doubt {
                            doubtful += 1;
                            return IGNORE;
                        }
                        label
                    })
                    .collect();
                if labelled == 0 || doubtful as f32 > rule.most_doubtful * labelled as f32 {
                    continue;
                }
                let [width, height, _] = case.volume.geometry.dims;
                let labels = view.crop.sample_labels(&Plane { width, height, data: labels });
                out.push(Sample { grey: view.grey(&case.volume, z), labels });
            }
        }
    }
    progress(wanted.len(), wanted.len());
    Ok(out)
}
