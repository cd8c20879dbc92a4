//! Pseudo-labels: what a model is sure of on slices that nobody labelled.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::dataset::{Case, Data, Later};
use super::device::Device;
use super::manifest::DatasetError;
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

/// Why there are no pseudo-labels.
#[derive(Debug, thiserror::Error)]
pub enum PseudoError {
    /// The teacher cannot run.
    #[error("pseudo-labels: {0}")]
    Teacher(#[from] PipelineError),
    /// A volume without labels that was drawn.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

/// Segments the unlabelled slices with the teacher `tensors`, through the whole pipeline (passes, 3-D clean-up), and keeps what
/// it is sure of. A volume that the pipeline refuses gives none. `progress` hears volumes done of all.
///
/// # Errors
/// [`PseudoError`] where the model cannot run at all, or a volume is no longer there.
pub fn pseudo_labels(
    base: &BTreeMap<String, Tensor>,
    tensors: &BTreeMap<String, Tensor>,
    task: &Task,
    data: Data,
    rule: &PseudoRule,
    device: Device,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Sample>, PseudoError> {
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
    let wanted = drawn(data, rule);
    for (done, source) in wanted.iter().enumerate() {
        progress(done, wanted.len());
        let case = match *source {
            Source::Loaded(case) => Cow::Borrowed(case),
            Source::Later(later) => {
                Cow::Owned(Case { unlabelled: later.slices.clone(), ..Case::load(&later.entry, task)? })
            }
        };
        let Ok(views) = case.views(rule.crop, rule.size) else { continue };
        let options = SegmentOptions { passes: 1, jitter: 0.06, side: case.side, ..SegmentOptions::default() };
        let found = match segmenter.segment(&case.volume, case.hint, &options, &|_| {}) {
            Ok(found) => found,
            Err(PipelineError::NotThisTask { .. } | PipelineError::Legs(_)) => continue,
            Err(e) => return Err(e.into()),
        };
        let plane = case.volume.geometry.plane();
        for (l, view) in views.iter().enumerate().filter(|(l, _)| case.labelled(&views, *l)) {
            let mut own = vec![0u8; 256];
            for s in found.segments.iter().filter(|s| s.side == view.leg.side) {
                if let Some(k) = task.structures.iter().position(|t| t.key == s.structure.key) {
                    own[usize::from(s.label)] = k as u8 + 1;
                }
            }
            for &z in &case.unlabelled {
                let pixels = (z * plane..(z + 1) * plane).map(|i| {
                    let elsewhere = views.iter().enumerate().any(|(o, v)| o != l && v.leg.mask[i]);
                    (own[usize::from(found.labels.data[i])], found.doubt[i], elsewhere)
                });
                let Some(labels) = trusted(pixels, rule) else { continue };
                let [width, height, _] = case.volume.geometry.dims;
                let labels = view.crop.sample_labels(&Plane { width, height, data: labels });
                out.push(Sample { grey: view.grey(&case.volume, z), labels });
            }
        }
    }
    progress(wanted.len(), wanted.len());
    Ok(out)
}

/// Labels of a slice without its doubtful pixels; none where it shows nothing, or too much is doubtful. A pixel is its label, its doubt and
/// whether it lies in another leg, whose doubt says nothing of this one.
fn trusted(pixels: impl Iterator<Item = (u8, f32, bool)>, rule: &PseudoRule) -> Option<Vec<u8>> {
    let (mut labelled, mut doubtful) = (0usize, 0usize);
    let labels = pixels
        .map(|(label, doubt, elsewhere)| {
            labelled += usize::from(label > 0);
            if doubt > rule.doubt {
                doubtful += usize::from(!elsewhere);
                return IGNORE;
            }
            label
        })
        .collect();
    (labelled > 0 && doubtful as f32 <= rule.most_doubtful * labelled as f32).then_some(labels)
}

/// A volume with slices to look at.
enum Source<'a> {
    Loaded(&'a Case),
    Later(&'a Later),
}

/// The volumes that are looked at: at most as many as the rule says, drawn from all by its seed.
fn drawn<'a>(data: Data<'a>, rule: &PseudoRule) -> Vec<Source<'a>> {
    let mut all = Vec::new();
    let mut later = data.later.iter().peekable();
    for place in 0..=data.cases.len() {
        while let Some(l) = later.next_if(|l| l.after <= place) {
            all.extend((!l.slices.is_empty()).then_some(Source::Later(l)));
        }
        let case = data.cases.get(place);
        all.extend(case.filter(|c| !c.unlabelled.is_empty()).map(Source::Loaded));
    }
    all.shuffle(&mut ChaCha8Rng::seed_from_u64(rule.seed));
    all.truncate(rule.volumes);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_doubt_about_another_leg_is_not_this_ones() {
        let rule = PseudoRule {
            crop: CropRule::default(),
            teacher_size: 64,
            prompting: Prompting::default(),
            size: 64,
            volumes: 1,
            seed: 1,
            doubt: 0.6,
            most_doubtful: 0.5,
        };
        // 100 pixels of a structure, some of them in doubt, and an artefact in the other leg.
        let slice = |doubtful: usize, elsewhere: bool| {
            let own = (0..100).map(move |i| (1u8, if i < doubtful { 0.9 } else { 0.1 }, false));
            own.chain((0..90).map(move |_| (0u8, 0.9, elsewhere)))
        };
        let kept = trusted(slice(40, true), &rule).unwrap();
        assert_eq!(kept.iter().filter(|l| **l == IGNORE).count(), 130, "what is doubtful is not learnt from");
        assert_eq!(kept.iter().filter(|l| **l == 1).count(), 60);
        assert!(trusted(slice(51, true), &rule).is_none());
        assert!(trusted(slice(0, false), &rule).is_none());
        assert!(trusted([(0u8, 0.0, false)].into_iter(), &rule).is_none(), "nothing is shown");
    }
}
