//! Instances into a volume: grouping, completion evidence, task matching, geometry.
//!
//! ```no_run
//! let series = scanside::series::load_dir(std::path::Path::new("thigh"))?;
//! println!("{} slices", series.slices.len());
//! # Ok::<(), scanside::series::SeriesError>(())
//! ```
//!
//! Known limit: Canon 4-D series that give every slice a SeriesInstanceUID of its own arrive here as series of one
//! slice each and are refused as such.

mod assemble;
pub mod completion;
mod load;
pub mod matching;
mod refusal;
mod stack;
#[cfg(test)]
mod tests;

pub use assemble::{AssembleOptions, SeriesPlan, assemble, assemble_for, stacks};
pub use load::{Scan, SeriesError, SeriesVolume, SliceSource, load, load_dir, scan_dir};
pub use matching::{Fit, Rules, fits};
pub use refusal::Refusal;
pub use stack::{FrameRef, Stack};
