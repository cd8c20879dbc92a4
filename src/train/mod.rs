//! The training host: data sets, augmentation, losses, the loop.

pub mod labels;
