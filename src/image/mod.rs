//! Volumes, masks and the grid they live on; knows pixels and millimetres, no DICOM.

mod geometry;
pub mod morphology;
mod overlay;
pub mod phantom;
pub mod plot;
mod render;
pub mod surface;
mod volume;

pub use geometry::Geometry;
pub use overlay::{Contours, Tile, sheet};
pub use render::{Legend, Rgb, montage};
pub use volume::{LabelMap, Plane, Volume};
