//! The signed bundle: one file that carries an adapter from the training host to a box, with all that the box must hold against it.
//!
//! A bundle is an uncompressed tar of at most [`container::MAX_BUNDLE`] bytes: `manifest.json` first, then the files that it lists,
//! sorted. The manifest is TUF targets metadata: version, expiry, length and sha256 of every file, and what the box compares with
//! itself (base weights, network, requirements, sites). The same inputs give the same bytes, and there is one way only to write them:
//! a reader makes every header anew and takes no other. docs/bundles.md tells operators the same.
//!
//! [`Bundle::open`] is the one way in for a box: it reads the file once, within bounds, into memory, and what was verified there is
//! what is used, whatever becomes of the USB stick meanwhile.

mod container;
mod diff;
mod evidence;
mod facts;
mod make;
mod manifest;
mod parity;
mod verify;

pub use container::{Archive, MAX_BUNDLE, read_file};
pub use diff::{Change, differences};
pub use evidence::{Evidence, EvidenceFigure, EvidenceRow};
pub use facts::{BoxFacts, FEATURES, Purpose, Requires};
pub use make::{Draft, DraftError};
pub use manifest::{About, Manifest, Target};
pub use parity::{LEAST_DICE, LEAST_VOXELS, ParityCase, ParityFigure, make_parity, untold};
pub use verify::{Bundle, Checked, Unverified, verify};
