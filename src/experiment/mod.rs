//! Experiments: a plan of arms, the same draws of labelled slices for each, one result file per run, a report over all.

mod plan;
mod record;
mod report;
mod run;
mod split;

pub use plan::{Arm, Kind, Plan, PlanError, RunKey};
pub use record::{Record, RecordError, records};
pub use report::report;
pub use run::{ExperimentError, Lab, Told};
pub(crate) use run::{claim, peak_mib, tensors_path};
pub use split::{Draw, Split};
