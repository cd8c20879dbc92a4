//! Adapter bundles on the running service: in by file and stick, tried, committed, taken back; lost power, full disk, refusals.
//!
//! `SCANSIDE_KILLS` and `SCANSIDE_FILLS` set how often the service is killed and its disk filled, `SCANSIDE_SWAP_SERIES` how many series come while the adapter changes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/bundle.rs"]
mod bundle;
mod full_disk;
mod journey;
mod kills;
mod kit;
mod lives;
mod refusals;
mod restarts;
#[path = "../common/serve.rs"]
mod serve;
mod swaps;
