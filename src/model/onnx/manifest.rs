//! What one engine's graphs are made from: `engines/<model>/manifest.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::recipe::{Precision, Recipe, RecipeError};
use super::{Graph, emit_all};
use crate::model::network::{NETWORK_VERSION, ShapeError, check_image_size, engine_shapes};
use crate::model::weights::BaseWeights;

/// Format of the file; another number is refused.
const FORMAT: u32 = 1;
/// Largest file that is read, bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Most structures and the highest rank of an engine.
const MAX_STRUCTURES: usize = 120;
const MAX_RANK: usize = 256;

/// Why an engine's graphs cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The manifest is not understood, or asks for what cannot be.
    #[error("engine manifest {}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The base weights are others.
    #[error(
        "the engine {name} is made from base weights {wanted}, these are {found}: `scanside weights fetch` gets the right ones"
    )]
    Base {
        /// The engine.
        name: String,
        /// sha256 that the manifest names.
        wanted: String,
        /// sha256 of the weights at hand.
        found: String,
    },
    /// Sizes.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
}

/// The base weights: where they come from and what they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseSource {
    /// Python source package that carries the checkpoint.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The checkpoint inside it.
    pub file: String,
    /// sha256 of the checkpoint, hex.
    pub checkpoint_sha256: String,
    /// sha256 of the weights as they are loaded, hex.
    pub sha256: String,
    /// Licence.
    pub licence: String,
}

/// Slices of phantoms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhantomSlices {
    /// The phantoms' seeds.
    pub phantoms: Vec<u64>,
    /// Slices of each, both legs.
    pub slices: Vec<usize>,
}

/// An engine's manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineManifest {
    /// Format of the file.
    pub format: u32,
    /// The engine's name, that of its folder.
    pub name: String,
    /// Version of the network's definition.
    pub network_version: u32,
    /// Edge of the network's input, pixels.
    pub input_size: usize,
    /// Structures that the graphs decode.
    pub structures: usize,
    /// Rank that LoRA's inputs have; an adapter of a lower one is padded with zeros.
    pub max_rank: usize,
    /// The precision recipe, a file beside this one.
    pub recipe: String,
    /// The base.
    pub base: BaseSource,
    /// Slices that ranges are calibrated on.
    pub calibration: PhantomSlices,
    /// Slices that layers are chosen on.
    pub measured: PhantomSlices,
    /// Slices on which an engine's masks are held against the CPU engine's before it serves.
    pub parity: PhantomSlices,
    /// sha256 of each graph by `precision/graph.onnx`.
    pub sha256: BTreeMap<String, String>,
}

impl EngineManifest {
    /// Reads `manifest.toml` of an engine's folder.
    ///
    /// # Errors
    /// [`ManifestError::Io`], [`ManifestError::Format`], [`ManifestError::Shape`].
    pub fn load(folder: &Path) -> Result<Self, ManifestError> {
        use std::io::Read;
        let path = folder.join("manifest.toml");
        let io = |source| ManifestError::Io { path: path.clone(), source };
        let bad = |problem: String| ManifestError::Format { path: path.clone(), problem };
        let mut text = String::new();
        std::fs::File::open(&path).map_err(io)?.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(bad(format!("larger than {} KiB, which no manifest is", MAX_BYTES >> 10)));
        }
        let m: EngineManifest = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        if m.format != FORMAT || m.network_version != NETWORK_VERSION {
            return Err(bad(format!(
                "is of format {} for network {}, this program has {FORMAT} and {NETWORK_VERSION}",
                m.format, m.network_version
            )));
        }
        check_image_size(m.input_size)?;
        if !(1..=MAX_STRUCTURES).contains(&m.structures) || !(1..=MAX_RANK).contains(&m.max_rank) {
            return Err(bad(format!(
                "{} structures and rank {}: 1 to {MAX_STRUCTURES} and 1 to {MAX_RANK} are possible",
                m.structures, m.max_rank
            )));
        }
        if Path::new(&m.recipe).file_name().is_none_or(|f| f != m.recipe.as_str()) {
            return Err(bad(format!("the recipe {:?} is no file beside the manifest", m.recipe)));
        }
        Ok(m)
    }

    /// The recipe beside the manifest, held against it.
    ///
    /// # Errors
    /// [`ManifestError::Recipe`].
    pub fn recipe(&self, folder: &Path) -> Result<Recipe, ManifestError> {
        let recipe = Recipe::load(&folder.join(&self.recipe))?;
        recipe.check(&self.base.sha256, self.input_size)?;
        Ok(recipe)
    }

    /// The graphs in FP32, with LoRA at the highest rank.
    ///
    /// # Errors
    /// [`ManifestError::Base`] for other base weights.
    pub fn graphs(&self, base: &BaseWeights) -> Result<[Graph; 3], ManifestError> {
        if !self.base.sha256.eq_ignore_ascii_case(base.sha256()) {
            return Err(ManifestError::Base {
                name: self.name.clone(),
                wanted: self.base.sha256.clone(),
                found: base.sha256().into(),
            });
        }
        Ok(emit_all(base, &engine_shapes(self.structures, self.max_rank), self.input_size)?)
    }
}

/// Name of a graph's file among those of all precisions.
pub fn file_name(precision: Precision, graph: &Graph) -> String {
    format!("{}/{}.onnx", precision.word(), graph.name)
}

/// sha256 of a graph's bytes, hex.
pub fn sha256(onnx: &[u8]) -> String {
    hex::encode(Sha256::digest(onnx))
}
