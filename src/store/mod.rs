//! The spool and the work queue: files and SQLite. Knows UIDs as opaque keys.
//!
//! A state directory holds:
//! - `lock`: held by the one process that writes,
//! - `store-id`: the identity that the database repeats, so that a swapped disk is seen,
//! - `scanside.db`: the database,
//! - `spool/incoming`: objects being received, removed at start,
//! - `spool/objects`: objects received, named by their content's SHA-256,
//! - `spool/quarantine`: files nobody can account for,
//! - `bundles`: adapter bundles that came, named by their content's SHA-256.

pub mod bundles;
mod commit;
mod db;
pub mod instances;
pub mod outbox;
pub mod queue;
pub mod review;
pub mod spool;
mod sweep;

pub use db::{Store, StoreError, meta, set_meta};
pub use instances::{Instance, SeriesSummary};
pub use spool::{Received, Spool};
pub use sweep::SweepReport;
