//! What segments: base weights, adapter and engine, loaded once at start.

use std::path::{Path, PathBuf};

use crate::adapter::{Adapter, AdapterError, Reference};
use crate::config;
use crate::dicom::write::Identity;
use crate::model::weights::{self, BaseWeights, WeightsError};
use crate::pipeline::{EngineNetworks, NetworksError, PipelineError, Segmenter};

/// The adapter that comes with the program: trained on phantoms, for trying out only.
const PHANTOM_ADAPTER: &[u8] = include_bytes!("../../adapters/thigh-phantom.safetensors");

/// Why the model cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The base weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The graphs.
    #[error(transparent)]
    Networks(#[from] NetworksError),
    /// The pipeline.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

/// A segmenter with the identities that its results carry.
pub struct Model {
    /// Segments and grades.
    pub segmenter: Segmenter,
    /// Slices worked on at once.
    pub threads: usize,
    adapter: String,
    adapter_sha256: String,
    base_sha256: String,
    engine: String,
    /// What the adapter's calibration set looked like; may be empty.
    pub references: Vec<Reference>,
    /// Whether the adapter is the one that comes with the program.
    pub phantom_only: bool,
}

impl Model {
    /// Loads what the configuration names. Cached base weights are used as they are; nothing is fetched here.
    ///
    /// # Errors
    /// [`ModelError`], each with its remedy.
    pub fn load(settings: &config::Model) -> Result<Model, ModelError> {
        let path: PathBuf =
            if settings.weights.as_os_str().is_empty() { weights::cached_path()? } else { settings.weights.clone() };
        let base = weights::load(&path)?;
        Model::with_base(&base, &settings.adapter, settings.threads)
    }

    /// The same over base weights at hand; an empty adapter path means the phantom adapter.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn with_base(base: &BaseWeights, adapter: &Path, threads: usize) -> Result<Model, ModelError> {
        let phantom_only = adapter.as_os_str().is_empty();
        let adapter = if phantom_only { Adapter::from_bytes(PHANTOM_ADAPTER)? } else { Adapter::load(adapter)? };
        adapter.check(base.sha256())?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cores } else { threads };
        // One thread an engine and several slices at once: slices are independent, and this beats threads within one.
        let networks = EngineNetworks::cpu(base, &adapter, 1)?;
        let engine = crate::pipeline::Networks::identity(&networks);
        let segmenter = Segmenter::new(Box::new(networks), adapter.model_info()?)?;
        Ok(Model {
            segmenter,
            threads,
            adapter: format!("{} {}", adapter.meta.name, adapter.meta.version),
            adapter_sha256: adapter.sha256()?,
            base_sha256: base.sha256().to_string(),
            engine: format!("{} {} {}", engine.kind, engine.version, engine.precision),
            references: adapter.meta.reference,
            phantom_only,
        })
    }

    /// sha256 of the adapter, hex.
    pub fn adapter_sha256(&self) -> &str {
        &self.adapter_sha256
    }

    /// One line for logs and people.
    pub fn describe(&self) -> String {
        let caution = if self.phantom_only { " (phantom adapter: for trying out only)" } else { "" };
        format!("engine {}, adapter {}{caution}", self.engine, self.adapter)
    }

    /// What results say of who made them.
    pub fn identity(&self, station: &str) -> Identity {
        Identity {
            software: env!("CARGO_PKG_VERSION").into(),
            engine: self.engine.clone(),
            adapter: self.adapter.clone(),
            adapter_sha256: self.adapter_sha256.clone(),
            base_sha256: self.base_sha256.clone(),
            station: station.to_string(),
        }
    }
}
