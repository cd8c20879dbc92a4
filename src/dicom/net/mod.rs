//! The DICOM network: DIMSE messages over the upper layer, the storage SCP and the storage SCU.
//!
//! Protocol logic stands apart from I/O: [`command`] and [`message`] know bytes, [`negotiate`] decides on associations,
//! [`scan`] judges a data set as it streams by. [`scp`] and [`scu`] move the bytes. PDUs other than P-DATA are coded by
//! `dicom-ul`; P-DATA is framed in [`wire`], bounded before anything is allocated and without copies.

pub mod archive;
pub mod command;
pub mod message;
pub mod negotiate;
pub mod part10;
pub mod scan;
pub mod scp;
pub mod scu;
pub mod status;
pub mod wire;

/// Our Implementation Class UID (derived from a UUID, PS3.5 B.2).
pub const IMPLEMENTATION_CLASS_UID: &str = "2.25.167513364713573014316478432215097562611";
/// Our Implementation Version Name. Without a version: the same object received by a newer program is the same file.
pub const IMPLEMENTATION_VERSION_NAME: &str = "SCANSIDE";

/// Verification SOP Class (C-ECHO).
pub const VERIFICATION: &str = "1.2.840.10008.1.1";
/// MR Image Storage.
pub const MR_IMAGE_STORAGE: &str = "1.2.840.10008.5.1.4.1.1.4";
/// Enhanced MR Image Storage.
pub const ENHANCED_MR_IMAGE_STORAGE: &str = "1.2.840.10008.5.1.4.1.1.4.1";
/// Legacy Converted Enhanced MR Image Storage.
pub const LEGACY_CONVERTED_ENHANCED_MR_IMAGE_STORAGE: &str = "1.2.840.10008.5.1.4.1.1.4.4";

/// Removes the padding that a UID may carry: trailing NUL and spaces on either side.
pub(crate) fn trim_uid(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_matches(|c: char| c == '\0' || c == ' ').to_string()
}

/// Whether this is 1 to 64 digits and dots that start with a digit (PS3.5 6.2, VR UI). Leading zeros of components, which
/// the standard forbids and senders use, are let through.
pub fn is_uid(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}
