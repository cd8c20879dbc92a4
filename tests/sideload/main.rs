//! Adapter bundles on the running service: in by file and stick, tried, committed, taken back; lost power, full disk, refusals.
//!
//! `SCANSIDE_KILLS` sets how often the service is killed, `SCANSIDE_SWAPS` how often the adapter is changed under load.
#![allow(clippy::unwrap_used)]

#[path = "../common/bundle.rs"]
mod bundle;
mod full_disk;
mod journey;
mod kills;
mod kit;
mod refusals;
#[path = "../common/serve.rs"]
mod serve;
mod swaps;
