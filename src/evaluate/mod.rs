//! Metrics, statistics, tables and pictures of a segmentation against ground truth.

mod adapter;
mod html;
mod label_cost;
mod loss_curve;
pub mod metrics;
mod overlays;
mod run;
pub mod statistics;
mod table;

pub use adapter::{AdapterEvaluation, EvaluationSetting, evaluate_adapter};
pub use html::html;
pub use label_cost::{CostPoint, LabelCost, LabelCostError};
pub use loss_curve::loss_curve;
pub use overlays::overlays;
pub use run::{EvaluateError, Evaluated, Evaluation, Found, Outcome, Prompt, compare};
pub use table::{CaseRow, Row, Spread, Table, Trained};
