//! Makes a bundle from its parts, and signs one.

use super::container::{ADAPTER, Archive, EVIDENCE, MANIFEST};
use super::evidence::Evidence;
use super::facts::Requires;
use super::manifest::{About, FORMAT, Manifest};
use super::parity::ParityCase;
use super::verify::Unverified;
use crate::adapter::trust::{Chain, KeyId, Signed, Signer, Stamp};
use crate::adapter::{Adapter, AdapterError, Refused};

/// Why a bundle was not made.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Bounds and form, which the maker keeps as the reader does.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A part cannot go into a bundle.
    #[error("the bundle cannot be made: {0}")]
    Part(String),
}

/// The parts of a bundle. The same parts give the same bytes.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The adapter, held against its base.
    pub adapter: Adapter,
    /// What was measured of it.
    pub evidence: Evidence,
    /// Parity images.
    pub parity: Vec<ParityCase>,
    /// All roots from the first, so that a box with any of them follows.
    pub roots: Chain,
    /// Line of releases.
    pub name: String,
    /// Version in that line.
    pub version: u32,
    /// When it was made.
    pub issued: Stamp,
    /// Until when boxes install it.
    pub expires: Stamp,
    /// What boxes must have.
    pub requires: Requires,
    /// Sites; `*` for all.
    pub sites: Vec<String>,
    /// What changed.
    pub note: String,
}

impl Draft {
    /// The bytes of the bundle, unsigned.
    ///
    /// # Errors
    /// [`DraftError`]: what a reader would refuse is not made.
    pub fn to_bytes(&self) -> Result<Vec<u8>, DraftError> {
        let meta = &self.adapter.meta;
        let mut files =
            vec![(ADAPTER.to_string(), self.adapter.to_bytes()?), (EVIDENCE.to_string(), self.evidence.to_bytes())];
        for (i, case) in self.parity.iter().enumerate() {
            files.push((format!("parity/{}.safetensors", i + 1), case.to_bytes().map_err(DraftError::Part)?));
        }
        for root in self.roots.roots() {
            files.push((format!("roots/{}.json", root.signed.version), root.to_bytes()));
        }
        let about = About {
            adapter: format!("{} {}", meta.name, meta.version),
            base_sha256: meta.base_sha256.clone(),
            format: FORMAT,
            issued: self.issued,
            name: self.name.clone(),
            network_version: meta.network_version,
            note: self.note.clone(),
            requires: self.requires.clone(),
            sites: self.sites.iter().cloned().collect(),
        };
        let manifest = Manifest::new(about, self.version, self.expires, &files);
        manifest.check().map_err(DraftError::Part)?;
        files.push((MANIFEST.to_string(), Signed::new(manifest).to_bytes()));
        let bytes = Archive::write(&files)?;
        Unverified::parse(bytes.clone())?.contents()?;
        Ok(bytes)
    }
}

impl Unverified {
    /// Signs the manifest; the bytes of the bundle with this signature, and whose it is. Everything in the bundle is held against the
    /// manifest first: nobody signs what a box would refuse.
    ///
    /// # Errors
    /// As [`Unverified::contents`] and [`Signed::sign`].
    pub fn sign(&self, signer: &dyn Signer) -> Result<(Vec<u8>, KeyId), Refused> {
        self.contents()?;
        let mut manifest = self.manifest.clone();
        let key = manifest.sign(signer)?;
        let names = self.archive.names().filter(|n| *n != MANIFEST);
        let mut files: Vec<(String, Vec<u8>)> =
            names.filter_map(|n| Some((n.to_string(), self.archive.get(n)?.to_vec()))).collect();
        files.push((MANIFEST.to_string(), manifest.to_bytes()));
        Ok((Archive::write(&files)?, key))
    }
}
