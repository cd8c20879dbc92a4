//! Scanside: a scanner-side appliance that segments MR series, grades its own result and returns both over DICOM.
//!
//! Rooms are layered; a lower room never imports a higher one. See ARCHITECTURE.md for the map.
#![deny(unsafe_code)]
#![warn(missing_docs)]

// Floor 0: plain values.
pub mod clock;
pub mod config;
pub mod image;
pub mod terms;
// Floor 1: the wire and the objects.
pub mod dicom;
// Floor 2: engines, series, label files, durable state.
pub mod engine;
pub mod labels;
pub mod series;
pub mod store;
// Floor 3: the network and the grading.
pub mod model;
pub mod segex;
// Floor 4: a volume in, masks and grades out.
pub mod adapter;
pub mod pipeline;
// Floor 5: the training host.
#[cfg(feature = "train")]
pub mod evaluate;
#[cfg(feature = "train")]
pub mod precision;
#[cfg(feature = "train")]
pub mod train;
// Floor 6: experiments over the training host.
#[cfg(feature = "train")]
pub mod experiment;
// Floor 7: the service. Floor 8: the commands.
pub mod cli;
pub mod daemon;
