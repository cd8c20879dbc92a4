//! Metrics, tables and pictures of a segmentation against ground truth.

pub mod metrics;
mod run;
pub mod statistics;
mod table;

pub use run::{EvaluateError, Evaluation, Outcome, Prompt};
pub use table::{Row, Spread, Table};
