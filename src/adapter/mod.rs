//! Adapters: what training makes and the appliance serves, one safetensors file of tensors and provenance; and the signed bundles
//! that carry them to a box.
//!
//! The file is an ordinary `.safetensors`; the JSON of [`AdapterMeta`] stands under `scanside` in its `__metadata__`.
//! The same adapter always gives the same bytes, so the sha256 of the file is the adapter's identity.

pub mod bundle;
mod check;
mod meta;
mod reference;
mod refusal;
pub mod trust;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::engine::Tensor;
use crate::model::network::ShapeError;
use crate::pipeline::ModelInfo;

pub use check::TRAINABLE_SHARE;
pub use meta::{AdapterMeta, Lora, Presence, Provenance};
pub use reference::{Reference, Spread, brightness, measure, measure_slice};
pub use refusal::{Reason, Refused};

/// Format of the file; another number is refused.
pub const FORMAT: u32 = 2;
/// Largest file that is read, bytes.
pub const MAX_BYTES: u64 = 64 << 20;
/// Most tensors in a file.
const MAX_TENSORS: usize = 4096;
/// Key of our JSON in the file's metadata.
const META_KEY: &str = "scanside";

/// Why an adapter was refused.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The file could not be read or written.
    #[error("adapter {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than any adapter.
    #[error("adapter {}: larger than {} MiB, which no adapter of this release is: a wrong file?", path.display(), MAX_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not a safetensors file, or one without our metadata.
    #[error("not an adapter: {0}; make one with `scanside train`")]
    Format(String),
    /// Made for other base weights.
    #[error(
        "adapter {name} was trained on base weights {wanted}, these are {found}: fetch the base it names or train it again"
    )]
    Base {
        /// The adapter.
        name: String,
        /// sha256 that the adapter names.
        wanted: String,
        /// sha256 of the weights at hand.
        found: String,
    },
    /// A tensor does not fit the network.
    #[error("adapter {name}: tensor {tensor} {problem}")]
    Tensor {
        /// The adapter.
        name: String,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The tensors do not fit the network.
    #[error("adapter {name} does not fit the network: {cause}")]
    Shape {
        /// The adapter.
        name: String,
        /// What does not fit.
        cause: ShapeError,
    },
    /// The metadata contradicts itself or leaves its bounds.
    #[error("adapter {name}: {problem}")]
    Meta {
        /// The adapter.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

/// A trained adapter: LoRA, class tokens, classifier and decoder deltas for one task.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// What it is, what it needs, where it came from.
    pub meta: AdapterMeta,
    /// Its tensors by name; see [`Adapter::check`] for the names.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Adapter {
    /// Reads an adapter file. The tensors are not yet held against a network: see [`Adapter::check`].
    ///
    /// # Errors
    /// [`AdapterError`] where the file is missing, too large, or not an adapter of this format.
    pub fn load(path: &Path) -> Result<Self, AdapterError> {
        let io = |source| AdapterError::Io { path: path.into(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(io)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(AdapterError::TooLarge { path: path.into() });
        }
        Self::from_bytes(&bytes)
    }

    /// Reads an adapter from the bytes of its file.
    ///
    /// # Errors
    /// [`AdapterError::Format`], [`AdapterError::Meta`] or [`AdapterError::Tensor`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AdapterError> {
        let bad = |e: String| AdapterError::Format(e);
        if bytes.len() as u64 > MAX_BYTES {
            return Err(bad(format!("{} bytes are more than any adapter has", bytes.len())));
        }
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| bad(format!("no safetensors file ({e})")))?;
        let json = header
            .metadata()
            .as_ref()
            .and_then(|m| m.get(META_KEY))
            .ok_or_else(|| bad("a safetensors file without this project's metadata".into()))?;
        let meta: AdapterMeta = serde_json::from_str(json).map_err(|e| bad(format!("metadata: {e}")))?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| bad(format!("no safetensors file ({e})")))?;
        if file.len() > MAX_TENSORS {
            return Err(bad(format!("{} tensors are more than any adapter has", file.len())));
        }
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let problem =
                |problem: String| AdapterError::Tensor { name: meta.name.clone(), tensor: name.to_string(), problem };
            if view.dtype() != Dtype::F32 {
                return Err(problem(format!("is {:?}; only F32 is served", view.dtype())));
            }
            let data: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            if data.iter().any(|v| !v.is_finite()) {
                return Err(problem("holds values that are not finite".into()));
            }
            tensors.insert(name.to_string(), Tensor::new(view.shape(), data));
        }
        let adapter = Adapter { meta, tensors };
        adapter.check_meta()?;
        Ok(adapter)
    }

    /// The bytes of the file; equal adapters give equal bytes.
    ///
    /// # Errors
    /// [`AdapterError::Format`] where the adapter cannot be written (never for one that passed [`Adapter::check`]).
    pub fn to_bytes(&self) -> Result<Vec<u8>, AdapterError> {
        let bad = |e: String| AdapterError::Format(e);
        let json = serde_json::to_string(&self.meta).map_err(|e| bad(e.to_string()))?;
        let raw: Vec<(&String, &Tensor, Vec<u8>)> =
            self.tensors.iter().map(|(n, t)| (n, t, t.data.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
        let mut views = Vec::with_capacity(raw.len());
        for (name, tensor, bytes) in &raw {
            let view =
                TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).map_err(|e| bad(format!("{name}: {e}")))?;
            views.push((name.as_str(), view));
        }
        let metadata = Some([(META_KEY.to_string(), json)].into());
        safetensors::serialize(views, metadata).map_err(|e| bad(e.to_string()))
    }

    /// Writes the file beside its place and renames it there, so that a reader never sees half of it.
    ///
    /// # Errors
    /// [`AdapterError`] where it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), AdapterError> {
        let io = |source| AdapterError::Io { path: path.into(), source };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
        std::io::Write::write_all(&mut file, &self.to_bytes()?).map_err(io)?;
        file.as_file().sync_all().map_err(io)?;
        // A temporary file is private; an adapter is read by the service's own user.
        #[cfg(unix)]
        std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(io)?;
        file.persist(path).map_err(|e| io(e.error))?;
        Ok(())
    }

    /// sha256 of the file, hex: the adapter's identity.
    ///
    /// # Errors
    /// As [`Adapter::to_bytes`].
    pub fn sha256(&self) -> Result<String, AdapterError> {
        Ok(hex::encode(Sha256::digest(self.to_bytes()?)))
    }

    /// What the pipeline needs to know of it.
    ///
    /// # Errors
    /// As [`Adapter::to_bytes`].
    pub fn model_info(&self) -> Result<ModelInfo, AdapterError> {
        Ok(ModelInfo {
            task: self.meta.task.clone(),
            crop: self.meta.crop,
            adapter: format!("{} {}", self.meta.name, self.meta.version),
            adapter_sha256: self.sha256()?,
            shapes: self.meta.shape.clone(),
            presence: self.meta.presence.iter().map(|p| p.threshold).collect(),
            prompting: self.meta.prompting,
            segex: self.meta.segex.clone(),
        })
    }

    /// Number of values that training set.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(Tensor::len).sum()
    }
}

#[cfg(test)]
mod tests;
