//! The training host: data sets, augmentation, losses, the loop.

mod calibrate;
mod check;
mod dataset;
mod init;
mod manifest;
mod networks;
mod propose;
mod run;
mod sample;
mod settings;
mod step;

pub use crate::labels;
pub use calibrate::calibrate;
pub use check::{Finding, Severity, check};
pub use dataset::{Assigned, Case, Meaning, TrainingSet, load_cases, resolve, training_set};
pub use init::{fresh_adapter, parameters};
pub use manifest::{DatasetError, Entry, Manifest, Use};
pub use networks::EagerNetworks;
pub use propose::{Candidates, Pick, Stratum, propose};
pub use run::{Progress, TrainError, train};
pub use sample::{Augmentation, Sample, augment};
pub use settings::{LossWeights, TrainSettings};
pub use step::{Losses, PRESENT, step};
