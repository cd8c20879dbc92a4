//! Signed bundles: what a box refuses, and that nothing else gets through.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/bundle.rs"]
mod fixture;

mod ceremony;
mod hostile;
mod peers;
mod properties;
mod refusals;
mod trust;
