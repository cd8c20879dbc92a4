//! The training host: data sets, augmentation, losses, the loop.

mod adapt;
mod calibrate;
mod check;
mod dataset;
mod device;
mod init;
mod manifest;
mod networks;
mod propose;
mod pseudo;
mod reference;
mod run;
mod sample;
mod settings;
mod step;
mod unet;

pub use crate::labels;
pub use adapt::{AdaptError, Adapted, Event, PHASES, adapt};
pub use calibrate::calibrate;
pub use check::{Finding, Severity, check};
pub use dataset::{
    Assigned, Case, Data, Later, Meaning, TrainingSet, load_cases, load_training, resolve, shapes_of, training_set,
};
pub use device::{Device, DeviceError};
pub use init::{fresh_adapter, parameters};
pub use manifest::{DatasetError, Entry, Manifest, Use};
pub use networks::{EagerNetworks, TrainedNetworks};
pub use propose::{Candidates, Pick, Stratum, propose};
pub use pseudo::{PseudoRule, pseudo_labels};
pub use reference::{ReferenceError, reference};
pub use run::{Material, Progress, TrainError, train};
pub use sample::{Augmentation, IGNORE, Sample, augment};
pub use settings::{Feedback, LossWeights, TrainSettings};
pub use step::{Losses, Outcome, PRESENT, step};
pub use unet::{UnetNetworks, fresh_unet};
