//! SegEx: grades a segmentation by eight criteria, with and without ground truth. Knows masks and images only.

pub mod agree;
mod assess;
mod calibration;
mod compare;
mod corrupt;
mod evidence;
mod features;
pub mod measure;
pub mod observe;
mod observers;
mod regression;
mod report;
mod rim;
mod score;
mod shape;
mod text;

pub use assess::{LegInput, Measured, SegexInput, StructureInput, assess, edge_strengths, measured};
pub use calibration::{CALIBRATION_VERSION, Candidate, FEW_MASKS, Foretold, SegexCalibration};
pub use compare::{CompareInput, ComparedStructure, compare};
pub use corrupt::{Corruption, Damage, LEVELS};
pub use evidence::{Evidence, StructureEvidence, moved_entropy};
pub use features::{FEATURE_COUNT, Feature, Features};
pub use observers::{AgreeError, Agreement, IccRow, PairRow, agreement};
pub use report::{Criterion, Grade, Report, StructureReport, Verdict};
pub use shape::{FEATURES, LegFrame, Shape, ShapeStatistics, shape};
pub use text::markdown;
