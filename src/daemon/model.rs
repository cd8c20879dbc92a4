//! What segments: base weights, adapter and engine, loaded once at start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::adapter::{Adapter, AdapterError, Reference};
use crate::config;
use crate::dicom::write::Identity;
use crate::engine::EngineError;
use crate::model::weights::{self, BaseWeights, WeightsError};
use crate::pipeline::serving::{EngineReport, ServeError, Serving, ServingNetworks, beside, serving};
use crate::pipeline::{Networks, NetworksError, PipelineError, Segmenter};

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
    /// The engine.
    #[error(transparent)]
    Engine(#[from] ServeError),
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
    networks: Arc<ServingNetworks>,
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
    pub fn load(config: &config::Config) -> Result<Model, ModelError> {
        let path: PathBuf = match &config.model.weights {
            none if none.as_os_str().is_empty() => weights::cached_path()?,
            path => path.clone(),
        };
        Model::with_engine(&weights::load(&path)?, &config.model.adapter, config)
    }

    /// The same over base weights and an adapter at hand; an empty adapter path means the phantom adapter.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn with_engine(base: &BaseWeights, adapter: &Path, config: &config::Config) -> Result<Model, ModelError> {
        let phantom_only = adapter.as_os_str().is_empty();
        let adapter = adapter_at(adapter)?;
        adapter.check(base.sha256())?;
        let chosen = serving(&config.engine, &config.storage.state_dir, base, &adapter, false)?;
        Model::of(base, adapter, phantom_only, chosen, config)
    }

    /// Another adapter beside this one, over the same loaded graphs where its shapes are theirs. This model is not touched: whoever
    /// exchanges the two does so between series.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn beside(&self, base: &BaseWeights, adapter: Adapter, config: &config::Config) -> Result<Model, ModelError> {
        adapter.check(base.sha256())?;
        let chosen = match beside(&self.networks, base, &adapter) {
            Err(ServeError::Networks(NetworksError::Other { .. })) => {
                serving(&config.engine, &config.storage.state_dir, base, &adapter, false)?
            }
            other => other?,
        };
        Model::of(base, adapter, false, chosen, config)
    }

    fn of(
        base: &BaseWeights,
        adapter: Adapter,
        phantom_only: bool,
        chosen: Serving,
        config: &config::Config,
    ) -> Result<Model, ModelError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if config.model.threads == 0 { cores } else { config.model.threads };
        let networks = ServingNetworks::new(chosen, &config.engine, base, &adapter);
        let segmenter = Segmenter::new(Box::new(networks.clone()), adapter.model_info()?)?;
        Ok(Model {
            segmenter,
            threads,
            adapter: format!("{} {}", adapter.meta.name, adapter.meta.version),
            adapter_sha256: adapter.sha256()?,
            base_sha256: base.sha256().to_string(),
            networks,
            references: adapter.meta.reference,
            phantom_only,
        })
    }

    /// The same on the embedded CPU engine.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn with_base(base: &BaseWeights, adapter: &Path, threads: usize) -> Result<Model, ModelError> {
        let mut config = config::Config::default();
        config.engine.kind = config::EngineKind::Cpu;
        config.model.threads = threads;
        Model::with_engine(base, adapter, &config)
    }

    /// Which engine serves, and why no other.
    pub fn engine(&self) -> EngineReport {
        self.networks.report()
    }

    /// Takes the CPU engine from the next attempt on, where that is allowed and another one failed; whether it did.
    pub fn fall_back(&self, cause: &EngineError) -> bool {
        self.networks.fall_back(cause)
    }

    /// sha256 of the adapter, hex.
    pub fn adapter_sha256(&self) -> &str {
        &self.adapter_sha256
    }

    /// One line for logs and people.
    pub fn describe(&self) -> String {
        let caution = if self.phantom_only { " (phantom adapter: for trying out only)" } else { "" };
        format!("engine {}, adapter {}{caution}", self.engine_line(), self.adapter)
    }

    fn engine_line(&self) -> String {
        let e = self.networks.identity();
        format!("{} {} {}", e.kind, e.version, e.precision)
    }

    /// What results say of who made them.
    pub fn identity(&self, station: &str) -> Identity {
        Identity {
            software: env!("CARGO_PKG_VERSION").into(),
            engine: self.engine_line(),
            adapter: self.adapter.clone(),
            adapter_sha256: self.adapter_sha256.clone(),
            base_sha256: self.base_sha256.clone(),
            station: station.to_string(),
        }
    }
}

/// The adapter of a path, or the one that comes with the program for an empty path.
///
/// # Errors
/// [`AdapterError`].
pub fn adapter_at(path: &Path) -> Result<Adapter, AdapterError> {
    if path.as_os_str().is_empty() { Adapter::from_bytes(PHANTOM_ADAPTER) } else { Adapter::load(path) }
}
