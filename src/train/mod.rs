//! The training host: data sets, augmentation, losses, the loop.

mod calibrate;
mod dataset;
mod init;
pub mod labels;
mod manifest;
mod networks;
mod run;
mod sample;
mod settings;
mod step;

pub use calibrate::calibrate;
pub use dataset::{Case, TrainingSet, load_cases, training_set};
pub use init::{fresh_adapter, parameters};
pub use manifest::{DatasetError, Entry, Manifest, Use};
pub use networks::EagerNetworks;
pub use run::{Progress, TrainError, train};
pub use sample::{Augmentation, Sample, augment};
pub use settings::{LossWeights, TrainSettings};
pub use step::{Losses, PRESENT, step};
