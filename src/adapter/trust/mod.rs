//! Who may release what a box serves: keys, roles with thresholds, roots that replace each other, and what the box remembers.
//!
//! The metadata are The Update Framework's (TUF 1.0): a root names the keys of each role and how many of them must sign, and
//! every new root is signed by the old keys and by the new ones. A bundle's manifest is TUF targets metadata. The four-file
//! repository around them (timestamp, snapshot, mirrors) needs a network that a box does not have: what those two guard against,
//! an old state shown again, is met by the version and the time that [`TrustState`] remembers and by the manifest's expiry.

mod envelope;
mod key;
mod root;
mod signer;
mod stamp;
mod state;
mod store;

pub use envelope::{MAX_SIGNATURES, Signature, Signed, canonical};
pub use key::{Key, KeyId, PublicKey, SecretKey};
pub use root::{
    Chain, KEPT_NAMES, MAX_KEYS, MAX_ROOT_BYTES, Revoked, Role, RoleName, Root, RootNotes, RootRoles, SPEC_VERSION,
    fingerprint,
};
pub use signer::{CommandSigner, Signer};
pub use stamp::Stamp;
pub(crate) use state::{CLOCK_TOLERANCE_MS, time};
pub use state::{Committed, Line, TrustState};
pub use store::TrustStore;
pub(crate) use store::write_durably;
