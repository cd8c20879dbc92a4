//! SegEx: grades a segmentation by eight criteria, with and without ground truth. Knows masks and images only.

mod assess;
pub mod measure;
mod report;
mod shape;

pub use assess::{LegInput, SegexInput, StructureInput, assess};
pub use report::{Criterion, Grade, Report, StructureReport, Verdict};
pub use shape::{FEATURES, LegFrame, Shape, ShapeStatistics, shape};
