//! Metrics, tables and pictures of a segmentation against ground truth.

pub mod metrics;
