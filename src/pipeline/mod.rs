//! A volume in, masks and grades out: legs, prompts, decoding, post-processing.

mod compose;
mod crop;
mod engine_networks;
mod legs;
mod maps;
mod networks;
pub mod parity;
mod phantom_dicom;
pub mod probe;
mod prompt;
mod refine;
mod result;
mod segmenter;
pub mod serving;
mod tta;
mod work;

pub use compose::{CleanUp, Composed, clean_up, compose};
pub use crop::{Crop, CropRule, LegView, SAM_MEAN, SAM_STD, Window, leg_views, to_input};
pub use engine_networks::{EngineNetworks, Graphs, LoadedGraphs, NetworksError, padded_to};
pub use legs::{Leg, LegError, Legs, find_legs};
pub use networks::{ClassifierOutput, DecoderOutput, Networks, planes};
pub use phantom_dicom::{PhantomSeries, PhantomWriteError, write_dicom_series};
pub use prompt::{BoxPrompt, PromptRule, Prompting, cam_box, jitter, true_box};
pub use result::{SegmentInfo, Segmentation, StepTime};
pub use segmenter::{ModelInfo, PipelineError, Progress, SegmentOptions, Segmenter};
