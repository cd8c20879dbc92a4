//! An adapter's own result of the same images, to lay beside a segmentation from elsewhere.

use std::path::Path;

use crate::config::Config;
use crate::daemon::Model;
use crate::image::LabelMap;
use crate::model::weights;
use crate::pipeline::{PipelineError, SegmentOptions, Segmentation};
use crate::series::SeriesVolume;
use crate::terms::Side;

/// A second result, and where it came from.
pub(super) struct Second {
    found: Segmentation,
}

impl Second {
    /// Runs the adapter on the series; in place of a result the reason why the pipeline refused.
    pub(super) fn run(adapter: &Path, config: &Config, series: &SeriesVolume) -> anyhow::Result<Result<Self, String>> {
        let base = if config.model.weights.as_os_str().is_empty() {
            weights::load_or_fetch(&mut |line| eprintln!("{line}"))?
        } else {
            weights::load(&config.model.weights)?
        };
        let model = Model::with_base(&base, adapter, config.model.threads)?;
        let options = SegmentOptions { threads: model.threads, ..SegmentOptions::default() };
        match model.segmenter.segment(&series.volume, series.header.laterality, &options, &|_| {}) {
            Ok(found) => Ok(Ok(Second { found })),
            Err(e @ PipelineError::NotThisTask { .. }) => Ok(Err(e.to_string())),
            Err(e) => Err(e.into()),
        }
    }

    /// Engine, its version and precision.
    pub(super) fn engine(&self) -> String {
        let e = &self.found.engine;
        format!("{} {} {}", e.kind, e.version, e.precision)
    }

    /// Who made it.
    pub(super) fn describe(&self) -> String {
        format!("{} ({})", self.found.adapter, self.engine())
    }

    /// What it has of a structure, as `label`; none where the adapter does not know the structure. A segment without a side takes
    /// what both legs have.
    pub(super) fn of(&self, key: &str, side: Option<Side>, label: u8) -> Option<LabelMap> {
        let known = |s: &&crate::pipeline::SegmentInfo| s.structure.key == key && (side.is_none() || s.side == side);
        let own: Vec<u8> = self.found.segments.iter().filter(known).map(|s| s.label).collect();
        if own.is_empty() {
            return None;
        }
        let map = &self.found.labels;
        let data = map.data.iter().map(|v| if own.contains(v) { label } else { 0 }).collect();
        Some(LabelMap { geometry: map.geometry.clone(), data })
    }
}
