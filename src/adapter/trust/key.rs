//! Ed25519 keys: public ones as TUF and OpenSSL write them, secret ones in files that nobody else may read.

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use rand::TryRngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::envelope::canonical;
use crate::adapter::{Reason, Refused};

/// Largest key file that is read, bytes.
const MAX_KEY_FILE: u64 = 16 << 10;

/// The identity of a key: sha256 over its canonical JSON, hex.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(String);

impl KeyId {
    /// The whole identity, 64 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first digits, as people compare them.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl TryFrom<String> for KeyId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if digits { Ok(KeyId(text)) } else { Err("a key identity is 64 hexadecimal digits in lower case".into()) }
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> String {
        id.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// A public key as TUF writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    keytype: Ed25519Word,
    keyval: KeyValue,
    scheme: Ed25519Word,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Ed25519Word {
    #[serde(rename = "ed25519")]
    Ed25519,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyValue {
    public: PublicKey,
}

impl Key {
    /// The key of a public key.
    pub fn new(public: PublicKey) -> Self {
        Key { keytype: Ed25519Word::Ed25519, keyval: KeyValue { public }, scheme: Ed25519Word::Ed25519 }
    }

    /// Its identity.
    pub fn id(&self) -> KeyId {
        KeyId(hex::encode(Sha256::digest(canonical(self))))
    }

    /// The public key.
    pub fn public(&self) -> &PublicKey {
        &self.keyval.public
    }
}

/// A point that verifies signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(VerifyingKey);

impl TryFrom<String> for PublicKey {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| "a public key is 64 hexadecimal digits".to_string())?;
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("a public key is written in lower case".into());
        }
        PublicKey::from_bytes(&bytes).ok_or_else(|| "no ed25519 public key".into())
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        hex::encode(key.0.as_bytes())
    }
}

impl PublicKey {
    /// From its 32 bytes; none where they are no point, or one of the few that fit any message.
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        VerifyingKey::from_bytes(bytes).ok().filter(|k| !k.is_weak()).map(PublicKey)
    }

    /// Reads a PEM file (`BEGIN PUBLIC KEY`), as `scanside keys generate` and `openssl pkey -pubout` write it.
    ///
    /// # Errors
    /// [`Reason::KeyFile`].
    pub fn load(path: &Path) -> Result<Self, Refused> {
        let bad = |what: String| {
            Refused::new(
                Reason::KeyFile,
                format!("public key {}: {what}", path.display()),
                "name the .pub.pem file that `scanside keys generate` wrote",
            )
        };
        let text = read_text(path).map_err(|e| bad(e.to_string()))?;
        let key = VerifyingKey::from_public_key_pem(text.trim()).map_err(|e| bad(format!("no ed25519 key ({e})")))?;
        PublicKey::from_bytes(key.as_bytes()).ok_or_else(|| bad("a weak key".into()))
    }

    /// The text of its PEM file.
    ///
    /// # Errors
    /// [`Reason::KeyFile`] where it cannot be encoded, which does not happen for a valid key.
    pub fn to_pem(&self) -> Result<String, Refused> {
        self.0.to_public_key_pem(LineEnding::LF).map_err(|e| {
            Refused::new(Reason::KeyFile, format!("the public key cannot be encoded ({e})"), "generate another")
        })
    }

    /// Whether `signature` was made of `message` by the secret half. Strict: no second form of a signature is taken.
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    }

    /// Its identity.
    pub fn id(&self) -> KeyId {
        Key::new(self.clone()).id()
    }
}

/// A key that signs. It is wiped from memory when dropped and never printed.
pub struct SecretKey(SigningKey);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public().id().short())
    }
}

impl SecretKey {
    /// A new key from the system's randomness: the one thing that must not come from a seed.
    ///
    /// # Errors
    /// [`Reason::KeyFile`] where the system has none to give.
    pub fn generate() -> Result<Self, Refused> {
        let mut seed = [0u8; 32];
        rand::rngs::OsRng.try_fill_bytes(&mut seed).map_err(|e| {
            Refused::new(Reason::KeyFile, format!("the system gives no randomness ({e})"), "repeat on another machine")
        })?;
        Ok(SecretKey::from_seed(&seed))
    }

    /// A key from its 32 secret bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        SecretKey(SigningKey::from_bytes(seed))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// Reads a PEM file (PKCS#8, `BEGIN PRIVATE KEY`), as `scanside keys generate` and `openssl genpkey -algorithm ed25519`
    /// write it.
    ///
    /// # Errors
    /// [`Reason::KeyFile`] where group or others may read it, and where it is no such key.
    pub fn load(path: &Path) -> Result<Self, Refused> {
        let bad = |what: String, remedy: String| {
            Refused::new(Reason::KeyFile, format!("secret key {}: {what}", path.display()), remedy)
        };
        let io = |e: std::io::Error| bad(e.to_string(), "check the path and who may read it".into());
        let file = std::fs::File::open(path).map_err(io)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Of the open file: what was checked is what is read.
            let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(bad(
                    format!("mode {mode:03o} lets others at it"),
                    format!("`chmod 600 {}`; if others may have read it, replace the key", path.display()),
                ));
            }
        }
        let mut text = String::new();
        file.take(MAX_KEY_FILE).read_to_string(&mut text).map_err(io)?;
        let key = SigningKey::from_pkcs8_pem(text.trim()).map_err(|e| {
            bad(
                format!("no unencrypted ed25519 key in PKCS#8 PEM ({e})"),
                "make one with `scanside keys generate`, or sign by a command with --signer".into(),
            )
        })?;
        Ok(SecretKey(key))
    }

    /// Writes the key to a new file of mode 600; one that is there already is left alone.
    ///
    /// # Errors
    /// [`Reason::KeyFile`], [`Reason::DiskFull`].
    pub fn save(&self, path: &Path) -> Result<(), Refused> {
        let io = |e: std::io::Error| Refused::io(Reason::KeyFile, format!("secret key {}", path.display()), &e);
        // Without the public half, which OpenSSL 3.0 does not read in a private key's file.
        let alone = KeypairBytes { secret_key: self.0.to_bytes(), public_key: None };
        let pem = alone.to_pkcs8_pem(LineEnding::LF).map_err(|e| {
            Refused::new(Reason::KeyFile, format!("the key cannot be encoded ({e})"), "generate another")
        })?;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(io)?;
        file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(io)
    }
}

fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_KEY_FILE).read_to_string(&mut text)?;
    Ok(text)
}
