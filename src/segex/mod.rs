//! SegEx: grades a segmentation by eight criteria, with and without ground truth. Knows masks and images only.

mod report;

pub use report::{Criterion, Grade, Report, StructureReport, Verdict};
