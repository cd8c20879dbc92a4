//! What an adapter says of itself.

use serde::{Deserialize, Serialize};

use super::Reference;
use crate::pipeline::{CropRule, Prompting};
use crate::segex::{SegexCalibration, ShapeStatistics};
use crate::terms::Task;

/// What an adapter is, what it needs and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterMeta {
    /// Format of the file: [`super::FORMAT`].
    pub format: u32,
    /// Stable name, e.g. `thigh-phantom`.
    pub name: String,
    /// Grows with every release of this name.
    pub version: u32,
    /// Version of the network's definition that it was trained with.
    pub network_version: u32,
    /// sha256 of the base weights' source, hex.
    pub base_sha256: String,
    /// The structures, in the order of class tokens and logits.
    pub task: Task,
    /// Edge of the network's input, pixels.
    pub input_size: usize,
    /// How the input square is laid over a leg.
    pub crop: CropRule,
    /// How the decoder is asked.
    pub prompting: Prompting,
    /// Low-rank updates.
    pub lora: Lora,
    /// When a structure is taken as present, in the task's order.
    pub presence: Vec<Presence>,
    /// Shape of each structure over the labelled slices, for SegEx C4; may be empty.
    pub shape: Vec<ShapeStatistics>,
    /// What the calibration set looked like, for drift; empty in adapters that were made before it was kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reference: Vec<Reference>,
    /// From SegEx's measurements to the grades that ground truth would give; `scanside segex calibrate` makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segex: Option<SegexCalibration>,
    /// How it was made.
    pub provenance: Provenance,
}

/// Rank of the low-rank updates; alpha / rank is folded into B.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Rank in the image encoder; 0 where it is not adapted.
    pub encoder_rank: usize,
    /// Rank in the mask decoder; 0 where it is not adapted.
    pub decoder_rank: usize,
}

/// The classifier's threshold for one structure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Presence {
    /// Structure key.
    pub key: String,
    /// A slice shows the structure where the classifier's probability reaches this.
    pub threshold: f32,
}

/// How an adapter was made. Counts only: nothing that could name a patient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Version of this program.
    pub tool: String,
    /// Seed of the run.
    pub seed: u64,
    /// Optimiser steps of the main phase; the coarse one and that with pseudo-labels come on top.
    pub steps: usize,
    /// Volumes with at least one labelled slice.
    pub volumes: usize,
    /// Labelled slices used.
    pub slices: usize,
    /// sha256 of the training settings, hex.
    pub settings_sha256: String,
    /// A sentence for people: what the data were.
    pub note: String,
}

impl Provenance {
    /// What it was trained on, and how long, in words.
    pub fn words(&self) -> String {
        format!("{} slices of {} volumes, {} steps in the main phase", self.slices, self.volumes, self.steps)
    }
}
