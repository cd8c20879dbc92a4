//! A volume in, masks and grades out: legs, prompts, decoding, post-processing.

mod result;

pub use result::{SegmentInfo, Segmentation, StepTime};
