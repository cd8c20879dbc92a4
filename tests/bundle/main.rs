//! Signed bundles: what a box refuses, and that nothing else gets through.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/bundle.rs"]
mod fixture;
#[path = "../../fuzz/targets.rs"]
mod targets;

mod ceremony;
mod hostile;
mod peers;
mod properties;
mod refusals;
mod trust;
