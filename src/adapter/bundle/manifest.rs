//! The manifest: TUF targets metadata with what a box compares with itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::container::{ADAPTER, EVIDENCE, MANIFEST, bound};
use super::facts::Requires;
use crate::adapter::trust::{SPEC_VERSION, Signed, Stamp, canonical};

/// Format of bundles; another number is refused.
pub(super) const FORMAT: u32 = 1;
/// Longest name, site or feature.
const MAX_WORD: usize = 64;
/// Most sites or features.
const MAX_WORDS: usize = 256;
/// Longest note, characters.
const MAX_NOTE: usize = 2000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum TargetsType {
    #[serde(rename = "targets")]
    Targets,
}

/// Hashes of a file, as TUF writes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hashes {
    sha256: String,
}

/// Length and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    hashes: Hashes,
    /// Bytes.
    pub length: u64,
}

impl Target {
    /// Of a file's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Target { hashes: Hashes { sha256: hex::encode(Sha256::digest(bytes)) }, length: bytes.len() as u64 }
    }

    /// sha256 of the file, hex.
    pub fn sha256(&self) -> &str {
        &self.hashes.sha256
    }
}

/// What a bundle is and which boxes may take it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Name and version of the adapter inside, for people.
    pub adapter: String,
    /// sha256 of the base weights' source, hex.
    pub base_sha256: String,
    /// Format of the bundle.
    pub format: u32,
    /// When it was made: a box whose clock is before this has a wrong clock.
    pub issued: Stamp,
    /// Name of the line of releases; versions are compared within it.
    pub name: String,
    /// Version of the network's definition.
    pub network_version: u32,
    /// What changed, in the maker's words.
    pub note: String,
    /// What the box must have.
    pub requires: Requires,
    /// Sites that may take it; `*` alone for all.
    pub sites: BTreeSet<String>,
}

/// What is signed of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    #[serde(rename = "_type")]
    kind: TargetsType,
    /// After this no box installs it any more.
    pub expires: Stamp,
    /// What it is.
    pub scanside: About,
    spec_version: String,
    /// Every file but the manifest.
    pub targets: BTreeMap<String, Target>,
    /// Grows with every release of this name.
    pub version: u32,
}

impl Manifest {
    /// A manifest over files.
    pub fn new(about: About, version: u32, expires: Stamp, files: &[(String, Vec<u8>)]) -> Self {
        let targets = files.iter().map(|(name, bytes)| (name.clone(), Target::of(bytes))).collect();
        Manifest {
            kind: TargetsType::Targets,
            expires,
            scanside: about,
            spec_version: SPEC_VERSION.into(),
            targets,
            version,
        }
    }

    /// Identity of the bundle: sha256 of what is signed, hex. Further signatures do not change it.
    pub fn id(&self) -> String {
        hex::encode(Sha256::digest(canonical(self)))
    }

    /// What is wrong with it by itself.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        let a = &self.scanside;
        if a.format != FORMAT {
            return Err(format!("it is of format {}, this program reads {FORMAT}", a.format));
        }
        if self.spec_version.split('.').next() != SPEC_VERSION.split('.').next() {
            return Err(format!("it follows TUF {}, this program {SPEC_VERSION}", self.spec_version));
        }
        if self.version == 0 || self.expires <= a.issued {
            return Err("its version is 0, or it expires before it was issued".into());
        }
        let word = |w: &str| {
            !w.is_empty() && w.len() <= MAX_WORD && w.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if !word(&a.name) {
            return Err("its name is not made of letters, digits, - _ and .".into());
        }
        let all = a.sites.len() == 1 && a.sites.contains("*");
        if a.sites.is_empty() || a.sites.len() > MAX_WORDS || !(all || a.sites.iter().all(|s| word(s))) {
            return Err("its sites are neither * nor a list of names".into());
        }
        if a.requires.features.len() > MAX_WORDS || !a.requires.features.iter().all(|f| word(f)) {
            return Err("its required features are malformed".into());
        }
        if a.requires.version().is_none() {
            return Err(format!("it requires scanside {:?}, which is no version", a.requires.scanside));
        }
        let text = |t: &str, most: usize| t.chars().count() <= most && !t.chars().any(|c| c.is_control() && c != '\n');
        if !text(&a.note, MAX_NOTE) || !text(&a.adapter, 2 * MAX_WORD) {
            return Err("its note or its adapter's name is too long or unprintable".into());
        }
        let hash = |h: &str| h.len() == 64 && h.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !hash(&a.base_sha256) {
            return Err("the base's sha256 is malformed".into());
        }
        for (name, t) in &self.targets {
            if name == MANIFEST || bound(name).is_none_or(|most| t.length > most) || !hash(t.sha256()) {
                return Err(format!(
                    "it lists {name:.100?}, which no bundle has, or with a length or hash that none has"
                ));
            }
        }
        match [ADAPTER, EVIDENCE, "parity/1.safetensors"].iter().find(|n| !self.targets.contains_key(**n)) {
            Some(missing) => Err(format!("it lists no {missing}")),
            None => Ok(()),
        }
    }

    /// Reads a manifest file, signatures unverified.
    ///
    /// # Errors
    /// A sentence.
    pub fn read(bytes: &[u8]) -> Result<Signed<Manifest>, String> {
        let manifest: Signed<Manifest> = Signed::from_bytes(bytes)?;
        manifest.signed.check()?;
        Ok(manifest)
    }
}
