//! A volume in, masks and grades out: legs, prompts, decoding, post-processing.

mod crop;
mod legs;
mod phantom_dicom;
mod result;

pub use crop::{Crop, CropRule, LegView, SAM_MEAN, SAM_STD, Window, leg_views, to_input};
pub use legs::{Leg, LegError, Legs, find_legs};
pub use phantom_dicom::{PhantomSeries, PhantomWriteError, write_dicom_series};
pub use result::{SegmentInfo, Segmentation, StepTime};
