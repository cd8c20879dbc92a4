//! A volume in, masks and grades out: legs, prompts, decoding, post-processing.

mod crop;
mod legs;
mod result;

pub use crop::{Crop, CropRule, LegView, SAM_MEAN, SAM_STD, Window, leg_views, to_input};
pub use legs::{Leg, LegError, Legs, find_legs};
pub use result::{SegmentInfo, Segmentation, StepTime};
