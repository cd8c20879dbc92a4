//! The training host: data sets, augmentation, losses, the loop.

mod init;
pub mod labels;
mod run;
mod sample;
mod settings;
mod step;

pub use init::{fresh_adapter, parameters};
pub use run::{Progress, TrainError, train};
pub use sample::{Augmentation, Sample, augment};
pub use settings::{LossWeights, TrainSettings};
pub use step::{Losses, PRESENT, step};
