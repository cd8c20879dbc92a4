//! Metrics, statistics, tables and pictures of a segmentation against ground truth.

mod adapter;
mod html;
mod label_cost;
mod loss_curve;
pub mod metrics;
mod overlays;
mod run;
mod segex_masks;
mod segex_study;
pub mod statistics;
mod survey;
mod table;

pub use adapter::{AdapterEvaluation, EvaluationSetting, evaluate_adapter};
pub use html::html;
pub use label_cost::{CostPoint, LabelCost, LabelCostError};
pub use loss_curve::loss_curve;
pub use overlays::overlays;
pub use run::{EvaluateError, Evaluated, Evaluation, Found, Outcome, Prompt, compare};
pub use segex_masks::{Made, MaskMaker, Masks, Study, StudyMask};
pub use segex_study::{AcceptRow, Arm, CriterionRow, DamageRow, SegexStudy, calibration_of, halves};
pub use survey::{Course, Surveyed, SurveyedStructure, survey_markdown};
pub use table::{CaseRow, Row, Spread, Table, Trained};
