//! What segmenting a volume yields, before DICOM.

use serde::{Deserialize, Serialize};

use crate::engine::EngineIdentity;
use crate::image::LabelMap;
use crate::segex::{Evidence, Report};
use crate::terms::{Side, Structure};

/// One segment: a structure on a side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// Value in the label map, equal to the DICOM segment number; from 1.
    pub label: u8,
    /// The structure.
    pub structure: Structure,
    /// The side, where the geometry or the header tells it.
    pub side: Option<Side>,
}

/// How long a step took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    /// `legs`, `encode`, `classify`, `decode`, `compose`, `assess`, ...
    pub step: String,
    /// Wall seconds.
    pub seconds: f64,
}

/// A segmented and graded volume.
#[derive(Clone, Debug)]
pub struct Segmentation {
    /// Labels on the source grid.
    pub labels: LabelMap,
    /// The segments, by label.
    pub segments: Vec<SegmentInfo>,
    /// How unsure each voxel is, 0 to 1: the larger of the entropy of its label and the share of passes that disagree; 1
    /// where clean-up took the label away.
    pub doubt: Vec<f32>,
    /// SegEx.
    pub report: Report,
    /// What SegEx looked at, where it was to be kept.
    pub evidence: Option<Evidence>,
    /// Which engine ran.
    pub engine: EngineIdentity,
    /// Which adapter: name and version.
    pub adapter: String,
    /// Content hash of the adapter (sha256, hex).
    pub adapter_sha256: String,
    /// Sentences a reader should see (partial coverage, gap, unknown side, ...).
    pub remarks: Vec<String>,
    /// Time of each step.
    pub times: Vec<StepTime>,
}
