//! Signed metadata: canonical JSON, the signatures over it, and whether a role's threshold is met.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::key::KeyId;
use super::root::{Role, Root};
use super::signer::Signer;
use crate::adapter::{Reason, Refused};

/// Most signatures on one piece of metadata.
pub const MAX_SIGNATURES: usize = 32;

/// Metadata with its signatures, as TUF writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed<T> {
    /// Sorted by key.
    pub signatures: Vec<Signature>,
    /// What is signed: the canonical JSON of this.
    pub signed: T,
}

/// One signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Whose.
    pub keyid: KeyId,
    /// 64 bytes, hex in lower case.
    pub sig: String,
}

impl Signature {
    fn bytes(&self) -> Option<[u8; 64]> {
        let mut bytes = [0u8; 64];
        hex::decode_to_slice(&self.sig, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// Canonical JSON (OLPC's, as TUF signs it): sorted keys, no white space, no fractions. Our types hold none and their keys are
/// strings, so that this does not fail; should it, the empty result verifies as nothing.
pub fn canonical<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut out = serde_json::Serializer::with_formatter(&mut bytes, olpc_cjson::CanonicalFormatter::new());
    if let Err(e) = value.serialize(&mut out) {
        log::error!("metadata without a canonical form: {e}");
        bytes.clear();
    }
    bytes
}

impl<T: Serialize + DeserializeOwned> Signed<T> {
    /// Metadata that nobody has signed yet.
    pub fn new(signed: T) -> Self {
        Signed { signatures: Vec::new(), signed }
    }

    /// Reads metadata. Only the canonical form is taken: there is one way to write what was signed.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let read: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if read.signatures.len() > MAX_SIGNATURES {
            return Err(format!("{} signatures; {MAX_SIGNATURES} are the most", read.signatures.len()));
        }
        if read.signatures.windows(2).any(|w| w[0].keyid >= w[1].keyid) {
            return Err("signatures are not sorted by key, or one key signs twice".into());
        }
        if read.to_bytes() != bytes {
            return Err("not in canonical form".into());
        }
        Ok(read)
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical(self)
    }

    /// Adds a signature, or replaces the one of the same key.
    ///
    /// # Errors
    /// As [`Signer::sign`]; [`Reason::Signer`] where the signature does not fit the key.
    pub fn sign(&mut self, signer: &dyn Signer) -> Result<KeyId, Refused> {
        let message = canonical(&self.signed);
        let sig = signer.sign(&message)?;
        let public = signer.public();
        if !public.verifies(&message, &sig) {
            return Err(Refused::new(
                Reason::Signer,
                format!("the signature is not one of key {}", public.id().short()),
                "name the public key that belongs to the signer",
            ));
        }
        let keyid = public.id();
        self.signatures.retain(|s| s.keyid != keyid);
        self.signatures.push(Signature { keyid: keyid.clone(), sig: hex::encode(sig) });
        self.signatures.sort_by(|a, b| a.keyid.cmp(&b.keyid));
        Ok(keyid)
    }

    /// The keys of a root's role that signed, where they are enough. `what` names the metadata in sentences.
    ///
    /// # Errors
    /// [`Reason::Unsigned`], [`Reason::BadSignature`], [`Reason::RevokedKey`], [`Reason::WrongKey`],
    /// [`Reason::TooFewSignatures`].
    pub fn signed_by(&self, what: &str, root: &Root, role: &Role) -> Result<Vec<KeyId>, Refused> {
        let refuse = |reason, sentence: String, remedy: &str| Err(Refused::new(reason, sentence, remedy));
        if self.signatures.is_empty() {
            return refuse(
                Reason::Unsigned,
                format!("{what} carries no signature"),
                "have it signed with `scanside bundle sign` by the holders of release keys",
            );
        }
        let message = canonical(&self.signed);
        let (mut good, mut withdrawn, mut foreign) = (Vec::new(), Vec::new(), Vec::new());
        for s in &self.signatures {
            match root.keys.get(&s.keyid).filter(|_| role.keyids.contains(&s.keyid)) {
                Some(key) => {
                    if !s.bytes().is_some_and(|sig| key.public().verifies(&message, &sig)) {
                        return refuse(
                            Reason::BadSignature,
                            format!("{what}: the signature of key {} does not fit", root.name_of(&s.keyid)),
                            "it was changed after signing or the copy is damaged: copy it again from the training host",
                        );
                    }
                    good.push(s.keyid.clone());
                }
                None if root.scanside.revoked.contains_key(&s.keyid) => withdrawn.push(&s.keyid),
                None => foreign.push(&s.keyid),
            }
        }
        let needed = role.threshold as usize;
        if good.len() >= needed {
            return Ok(good);
        }
        let names = |ids: &[&KeyId]| ids.iter().map(|id| root.name_of(id)).collect::<Vec<_>>().join(", ");
        if !withdrawn.is_empty() {
            return refuse(
                Reason::RevokedKey,
                format!(
                    "{what} has {} of {needed} signatures that count; key {} was withdrawn",
                    good.len(),
                    names(&withdrawn)
                ),
                "do not use it; ask for one that is signed by today's keys",
            );
        }
        if good.is_empty() {
            return refuse(
                Reason::WrongKey,
                format!(
                    "{what} is signed by keys that this root (version {}) does not trust: {}",
                    root.version,
                    names(&foreign)
                ),
                "do not use it; if the keys were changed, carry the new root (a bundle made with it has it inside)",
            );
        }
        refuse(
            Reason::TooFewSignatures,
            format!("{what} has {} of {needed} signatures that are needed", good.len()),
            "have it signed by another holder of a release key (`scanside bundle sign`)",
        )
    }
}
