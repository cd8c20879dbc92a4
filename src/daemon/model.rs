//! What segments: base weights, adapter and engine. Adapters of the same shapes run on the same loaded graphs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::adapter::bundle::Bundle;
use crate::adapter::{Adapter, AdapterError, Reference};
use crate::config;
use crate::dicom::write::Identity;
use crate::engine::EngineError;
use crate::model::weights::{self, BaseWeights, WeightsError};
use crate::pipeline::serving::{EngineReport, ServeError, ServingNetworks, beside, serving};
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
    /// The base weights are no longer those that this process began with.
    #[error("the base weights in {} were changed; start the service again", .0.display())]
    BaseChanged(PathBuf),
}

/// The signed bundle that an adapter came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Its row in the store.
    pub row: i64,
    /// Name and version of the release.
    pub title: String,
    /// sha256 of what was signed, hex.
    pub identity: String,
    /// Whose signatures.
    pub signer: String,
}

impl Release {
    fn words(&self) -> String {
        let identity = self.identity.get(..12).unwrap_or(&self.identity);
        let signer = if self.signer.is_empty() { "keys withdrawn since" } else { &self.signer };
        format!("{} ({identity}), signed by {signer}", self.title)
    }
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
    config: Arc<config::Config>,
    /// What the adapter's calibration set looked like; may be empty.
    pub references: Vec<Reference>,
    /// Whether the adapter is the one that comes with the program.
    pub phantom_only: bool,
    /// The bundle that the adapter came in; none for the one that the configuration names.
    pub release: Option<Release>,
}

impl Model {
    /// Loads what the configuration names. Cached base weights are used as they are; nothing is fetched here.
    ///
    /// # Errors
    /// [`ModelError`], each with its remedy.
    pub fn load(config: &config::Config) -> Result<Model, ModelError> {
        let base = weights::load(&path(&config.model.weights)?)?;
        Model::with_engine(&base, &config.model.adapter, config)
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
        let networks = ServingNetworks::new(chosen, &config.engine, base, &adapter);
        let mut model = Model::over(networks, &adapter, base.sha256(), Arc::new(config.clone()))?;
        model.phantom_only = phantom_only;
        Ok(model)
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

    /// The adapter of a verified bundle beside this model, on the same graphs where its tensors have the same shapes; else its
    /// own are made, which takes seconds.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn beside(&self, bundle: &Bundle, row: i64) -> Result<Model, ModelError> {
        let release = Release {
            row,
            title: format!("{} {}", bundle.name(), bundle.version()),
            identity: bundle.id().to_string(),
            signer: bundle.signers().join(", "),
        };
        Ok(self.with_adapter(bundle.adapter())?.released(release))
    }

    /// The adapter that comes with the program under another version, on the same graphs; for measuring.
    pub(crate) fn again(&self, version: u32) -> Result<Model, ModelError> {
        let mut adapter = Adapter::from_bytes(PHANTOM_ADAPTER)?;
        adapter.meta.version = version;
        self.with_adapter(&adapter)
    }

    /// The same, as what came in a bundle.
    pub(crate) fn released(mut self, release: Release) -> Model {
        self.release = Some(release);
        self
    }

    fn with_adapter(&self, adapter: &Adapter) -> Result<Model, ModelError> {
        adapter.check(&self.base_sha256)?;
        let networks = match self.networks.on_cpu_beside(adapter) {
            Some(shared) => shared?,
            None => {
                let path = path(&self.config.model.weights)?;
                let base = weights::load(&path)?;
                if base.sha256() != self.base_sha256 {
                    return Err(ModelError::BaseChanged(path));
                }
                let chosen = match beside(&self.networks, &self.config.engine, &base, adapter) {
                    Err(ServeError::Networks(NetworksError::Other { .. })) => {
                        serving(&self.config.engine, &self.config.storage.state_dir, &base, adapter, false)?
                    }
                    other => other?,
                };
                ServingNetworks::new(chosen, &self.config.engine, &base, adapter)
            }
        };
        Model::over(networks, adapter, &self.base_sha256, self.config.clone())
    }

    fn over(
        networks: Arc<ServingNetworks>,
        adapter: &Adapter,
        base: &str,
        config: Arc<config::Config>,
    ) -> Result<Model, ModelError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Model {
            segmenter: Segmenter::new(Box::new(networks.clone()), adapter.model_info()?)?,
            threads: if config.model.threads == 0 { cores } else { config.model.threads },
            adapter: format!("{} {}", adapter.meta.name, adapter.meta.version),
            adapter_sha256: adapter.sha256()?,
            base_sha256: base.to_string(),
            networks,
            config,
            references: adapter.meta.reference.clone(),
            phantom_only: false,
            release: None,
        })
    }

    /// Whether both run on the same loaded graphs.
    pub fn shares_graphs_with(&self, other: &Model) -> bool {
        self.networks.graphs().are(other.networks.graphs())
    }

    /// The bundle's row; none for the adapter that the configuration names.
    pub fn row(&self) -> Option<i64> {
        self.release.as_ref().map(|r| r.row)
    }

    /// Adapter name and version.
    pub fn adapter(&self) -> &str {
        &self.adapter
    }

    /// Engine, its version and precision, as they are now.
    pub fn engine_line(&self) -> String {
        let e = self.networks.identity();
        format!("{} {} {}", e.kind, e.version, e.precision)
    }

    /// Which engine serves, and why no other.
    pub fn engine(&self) -> EngineReport {
        self.networks.report()
    }

    /// Takes the CPU engine from the next attempt on, where that is allowed and another one failed; whether it did.
    pub fn fall_back(&self, cause: &EngineError) -> bool {
        self.networks.fall_back(cause)
    }

    /// sha256 of the base weights, hex.
    pub fn base_sha256(&self) -> &str {
        &self.base_sha256
    }

    /// sha256 of the adapter, hex.
    pub fn adapter_sha256(&self) -> &str {
        &self.adapter_sha256
    }

    /// One line for logs and people.
    pub fn describe(&self) -> String {
        let origin = match (&self.release, self.phantom_only) {
            (Some(r), _) => format!(" from bundle {}", r.words()),
            (None, true) => " (phantom adapter: for trying out only)".to_string(),
            (None, false) => String::new(),
        };
        format!("engine {}, adapter {}{origin}", self.engine_line(), self.adapter)
    }

    /// What results say of who made them.
    pub fn identity(&self, station: &str) -> Identity {
        Identity {
            software: env!("CARGO_PKG_VERSION").into(),
            engine: self.engine_line(),
            adapter: self.adapter.clone(),
            adapter_sha256: self.adapter_sha256.clone(),
            bundle: self.release.as_ref().map(Release::words).unwrap_or_default(),
            base_sha256: self.base_sha256.clone(),
            station: station.to_string(),
        }
    }
}

fn path(weights: &Path) -> Result<PathBuf, ModelError> {
    Ok(if weights.as_os_str().is_empty() { weights::cached_path()? } else { weights.to_path_buf() })
}

/// The adapter of a path, or the one that comes with the program for an empty path.
///
/// # Errors
/// [`AdapterError`].
pub fn adapter_at(path: &Path) -> Result<Adapter, AdapterError> {
    if path.as_os_str().is_empty() { Adapter::from_bytes(PHANTOM_ADAPTER) } else { Adapter::load(path) }
}
