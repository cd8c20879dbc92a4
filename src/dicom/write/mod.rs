//! What goes back to the archive: segmentation, SegEx reports for programs and for people, and a picture.
//!
//! Builders are pure: the same [`ResultInput`] gives the same bytes. UIDs come from [`uid::derive`], times from the input.

mod build;
mod file;
mod input;
mod sc;
mod seg;
mod sr;
mod text_sr;
pub mod uid;

pub(crate) use file::write_bytes;
pub use file::{WriteError, write_atomically};
pub use input::{
    GradeLine, Identity, RefusalText, ResultInput, SegmentReport, SegmentSpec, SourceAttribute, SourceSeries,
    SourceSlice,
};
pub use sc::secondary_capture;
pub use seg::{annotation, segmentation};
pub use sr::{SegReference, comprehensive_sr, comprehensive_sr_of};
pub use text_sr::{refusal_text, result_text};
