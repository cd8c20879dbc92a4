//! What the calibration set looks like to a trained adapter, kept in it for drift.

use crate::adapter::{Adapter, AdapterError, Reference, Spread, brightness, measure_slice};
use crate::image::LabelMap;
use crate::model::weights::BaseWeights;
use crate::pipeline::{EngineNetworks, NetworksError, PipelineError, SegmentOptions, Segmenter};

use super::dataset::Case;
use super::manifest::DatasetError;

/// Most volumes that are segmented for their scores: more cost time and tell little more.
const SCORED: usize = 5;

/// Why the calibration set could not be described.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// A volume.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The engine.
    #[error(transparent)]
    Networks(#[from] NetworksError),
    /// The pipeline.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

/// Area and intensity of each structure on the labelled slices, and the SegEx scores that the adapter gets on up to five of
/// their volumes, segmented as in serving.
///
/// # Errors
/// [`ReferenceError`]; a volume that the adapter refuses to segment has no score and is no error.
pub fn reference(adapter: &Adapter, base: &BaseWeights, cases: &[Case]) -> Result<Vec<Reference>, ReferenceError> {
    let keys: Vec<String> = adapter.meta.task.structures.iter().map(|s| s.key.clone()).collect();
    let mut areas = vec![Vec::new(); keys.len()];
    let mut greys = vec![Vec::new(); keys.len()];
    for case in cases.iter().filter(|c| !c.train.is_empty()) {
        let views = case.views(adapter.meta.crop, adapter.meta.input_size)?;
        let bright = brightness(&case.volume);
        for (l, view) in views.iter().enumerate().filter(|(l, _)| case.labelled(&views, *l)) {
            let mut truth: LabelMap = case.truth_of(&views, l);
            // The labels of this leg alone.
            truth.data.iter_mut().zip(&view.leg.mask).filter(|(_, m)| !**m).for_each(|(t, _)| *t = 0);
            for &z in &case.train {
                for k in 0..keys.len() {
                    if let Some([area, grey]) = measure_slice(&case.volume, &truth, k as u8 + 1, z, bright) {
                        areas[k].push(area);
                        greys[k].push(grey);
                    }
                }
            }
        }
    }
    let mut scores = vec![Vec::new(); keys.len()];
    let segmenter = Segmenter::new(Box::new(EngineNetworks::cpu(base, adapter, 1)?), adapter.model_info()?)?;
    for case in cases.iter().filter(|c| !c.train.is_empty()).take(SCORED) {
        let report = match segmenter.segment(&case.volume, case.hint, &SegmentOptions::default(), &|_| {}) {
            Ok(s) => s.report,
            Err(PipelineError::NotThisTask { .. }) => continue,
            Err(e) => return Err(e.into()),
        };
        let of_leg =
            report.structures.iter().filter(|r| case.side.is_none() || r.side.is_none() || r.side == case.side);
        for r in of_leg {
            if let Some(k) = keys.iter().position(|k| *k == r.structure.key) {
                scores[k].push(r.score);
            }
        }
    }
    Ok(keys
        .into_iter()
        .enumerate()
        .map(|(k, key)| Reference {
            key,
            area: Spread::of(&areas[k]),
            intensity: Spread::of(&greys[k]),
            score: Spread::of(&scores[k]),
        })
        .collect())
}
