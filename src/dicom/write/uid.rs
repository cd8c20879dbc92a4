//! UIDs derived from what an object is made of, so that a repeat makes the same object.

use sha2::{Digest, Sha256};

/// A UID under 2.25 (a 128-bit number in decimal, PS3.5 B.2) from a role and its inputs. The inputs are separated by
/// their lengths, so that moving a character from one to the next gives another UID.
pub fn derive(role: &str, inputs: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in std::iter::once(&role).chain(inputs) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    from_sha256(hash.finalize().into())
}

/// The UID of the first 128 bits of a SHA-256, marked as a custom UUID (RFC 9562, version 8), as PS3.5 asks of numbers
/// under 2.25.
pub fn from_sha256(digest: [u8; 32]) -> String {
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    format!("2.25.{}", u128::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::derive;
    use proptest::prelude::*;

    #[test]
    fn a_boundary_between_inputs_matters() {
        assert_ne!(derive("seg", &["ab", "c"]), derive("seg", &["a", "bc"]));
        assert_ne!(derive("seg", &["a"]), derive("sr", &["a"]));
        assert_eq!(derive("seg", &["a"]), derive("seg", &["a"]));
    }

    proptest! {
        #[test]
        fn every_uid_is_valid(role in ".{0,40}", input in ".{0,80}") {
            let uid = derive(&role, &[&input]);
            prop_assert!(uid.len() <= 64);
            prop_assert!(uid.split('.').all(|c| !c.is_empty() && c.bytes().all(|b| b.is_ascii_digit())
                && (c == "0" || !c.starts_with('0'))));
        }
    }
}
