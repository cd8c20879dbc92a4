//! INT8 by measurement: calibration over slices, what each layer's bytes do to the masks, and how precisions compare on real data.

mod compare;
mod search;

pub use compare::{Comparison, Loss, Variant, compare};
pub use search::{Found, QuantiseError, SearchSetting, Slices, Told, search};
