//! Which engine serves: TensorRT where this machine has it and its masks agree with the CPU engine's, the CPU engine otherwise and aloud.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::engine_networks::{EngineNetworks, Graphs, LoadedGraphs, NetworksError};
use super::networks::{ClassifierOutput, DecoderOutput, Networks};
use super::parity::{Parity, compare, phantom_images};
use crate::adapter::Adapter;
use crate::config::{self, EngineKind, Precision};
use crate::engine::tensorrt::{
    PlanError, PlanKey, PlanRecord, Plans, Platform, Search, ServingError, ServingOptions, Signature, TensorRtEngine,
    Unusable,
};
use crate::engine::{Engine, EngineError, EngineIdentity, Tensor};
use crate::model::onnx::Graph;
use crate::model::onnx::precision::{PrecisionError, to_half};
use crate::model::weights::BaseWeights;

/// Runs at once of each graph: one is computed while another is copied.
const LANES: usize = 2;
/// Largest ONNX file that is read.
const MOST_ONNX: u64 = 512 << 20;

/// Why TensorRT does not serve, with the next step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A stable word: `NO_DRIVER`, `NO_GPU`, `NO_TENSORRT`, `TENSORRT_VERSION`, `NO_PLAN`, `PLAN_BROKEN`, `PLAN_REFUSED`, `GPU_MEMORY`,
    /// `PARITY`, `ENGINE_FAILED`, ...
    pub code: String,
    /// What is the case.
    pub sentence: String,
    /// The next step.
    pub remedy: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}]; {}", self.sentence, self.code, self.remedy)
    }
}

impl Refusal {
    fn new(code: &str, sentence: impl ToString, remedy: impl Into<String>) -> Self {
        Refusal { code: code.into(), sentence: sentence.to_string(), remedy: remedy.into() }
    }
}

impl From<Unusable> for Refusal {
    fn from(e: Unusable) -> Self {
        Refusal::new(e.code(), &e, e.remedy())
    }
}

/// The code of masks that are not the CPU engine's.
pub const PARITY: &str = "PARITY";
const PRECISION: &str =
    "set engine.precision = \"fp32\" and build again; `scanside engine verify` shows every structure";
const BUILD: &str = "run `scanside engine build` on this box";

impl From<PlanError> for Refusal {
    fn from(e: PlanError) -> Self {
        match &e {
            PlanError::Missing { .. } => Refusal::new("NO_PLAN", &e, BUILD),
            PlanError::Broken { .. } => Refusal::new("PLAN_BROKEN", &e, "run `scanside engine build --force`"),
            _ => Refusal::new("PLAN_BROKEN", &e, "let the service's user read the folder of plans"),
        }
    }
}

impl From<ServingError> for Refusal {
    fn from(e: ServingError) -> Self {
        match e {
            ServingError::Gpu(e) => Unusable::Gpu(e).into(),
            e => Refusal::new("PLAN_REFUSED", &e, "run `scanside engine build --force` on this box"),
        }
    }
}

/// What serves, and why nothing else does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineReport {
    /// What serves.
    pub engine: EngineIdentity,
    /// Why TensorRT does not, where it was asked for or could have been.
    pub refusal: Option<Refusal>,
    /// TensorRT beside the CPU engine, where it was compared.
    pub parity: Option<Parity>,
}

impl EngineReport {
    /// One line for people.
    pub fn describe(&self) -> String {
        let EngineIdentity { kind, version, precision } = &self.engine;
        let because = self.refusal.as_ref().map_or(String::new(), |r| format!("; TensorRT does not serve: {r}"));
        let parity = match (&self.parity, kind.as_str()) {
            (Some(p), "tensorrt") => format!("; {}", p.describe()),
            _ => String::new(),
        };
        format!("{kind} {version} {precision}{parity}{because}")
    }
}

/// Why nothing can serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The graphs.
    #[error(transparent)]
    Networks(#[from] NetworksError),
    /// TensorRT does not serve, and the CPU may not.
    #[error("no engine may serve: {0}. The CPU engine is not allowed (engine.cpu_fallback = false)")]
    Refused(Refusal),
}

/// The graphs as they are given to TensorRT.
#[derive(Clone, Debug)]
pub struct TensorRtGraphs {
    /// As emitted, in FP32; they say what goes in and out.
    pub graphs: Graphs,
    /// ONNX of each part in the precision that is asked for.
    pub onnx: BTreeMap<&'static str, Vec<u8>>,
    /// That precision.
    pub precision: Precision,
}

/// Why the graphs cannot be had in a precision.
#[derive(Debug, thiserror::Error)]
pub enum GraphsError {
    /// The adapter does not fit the network.
    #[error(transparent)]
    Shape(#[from] crate::model::network::ShapeError),
    /// The precision.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// A file of `engine.graphs`.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// INT8 without calibrated graphs.
    #[error(
        "int8 needs calibrated graphs: name the folder with encoder.onnx, classifier.onnx, decoder.onnx in engine.graphs"
    )]
    NoGraphs,
}

impl TensorRtGraphs {
    /// Writes the graphs for an adapter's shapes. Files in `engine.graphs` take the place of those that are made here.
    ///
    /// # Errors
    /// [`GraphsError`].
    pub fn new(settings: &config::Engine, base: &BaseWeights, adapter: &Adapter) -> Result<Self, GraphsError> {
        let graphs = Graphs::emit(base, adapter, settings.max_rank)?;
        let mut onnx = BTreeMap::new();
        for (name, graph) in graphs.parts() {
            let given = from_folder(&settings.graphs, name)?;
            let bytes = match (given, settings.precision) {
                (Some(bytes), _) => bytes,
                (None, Precision::Fp32) => graph.onnx.clone(),
                (None, Precision::Fp16) => to_half(&graph.onnx)?,
                (None, Precision::Int8) => return Err(GraphsError::NoGraphs),
            };
            onnx.insert(name, bytes);
        }
        Ok(TensorRtGraphs { graphs, onnx, precision: settings.precision })
    }

    /// The ONNX of a part.
    pub fn onnx(&self, part: &str) -> &[u8] {
        self.onnx.get(part).map_or(&[], Vec::as_slice)
    }

    /// The key of a part's plan.
    pub fn key(&self, platform: &Platform, part: &str) -> PlanKey {
        PlanKey::new(platform, part, self.onnx(part), self.precision.word(), self.graphs.rank)
    }

    /// Loads a plan for each part.
    ///
    /// # Errors
    /// [`Refusal`]: a plan is missing or broken, TensorRT refuses it, the memory is short.
    pub fn load(&self, plans: &Plans, platform: &Platform, cuda_graph: bool) -> Result<TensorRtParts, Refusal> {
        let options = ServingOptions { lanes: LANES, cuda_graph, precision: self.precision.word().into() };
        let mut parts = TensorRtParts { records: Vec::new(), engines: Vec::new() };
        for (name, graph) in self.graphs.parts() {
            let (record, plan) = plans.read(&self.key(platform, name))?;
            let signature = signature(graph);
            let engine = TensorRtEngine::load(name, &plan, &platform.runtime, &platform.gpu, &signature, &options)?;
            parts.records.push(record);
            parts.engines.push((name, Arc::new(engine)));
        }
        Ok(parts)
    }
}

/// What TensorRT loaded.
pub struct TensorRtParts {
    /// The plans' records.
    pub records: Vec<PlanRecord>,
    /// The engines by part.
    pub engines: Vec<(&'static str, Arc<TensorRtEngine>)>,
}

impl TensorRtParts {
    /// The engines as graphs to bind adapters to.
    ///
    /// # Errors
    /// [`EngineError::Load`] where a part is not there.
    pub fn graphs(&self, graphs: &Graphs) -> Result<LoadedGraphs, EngineError> {
        graphs.load(|name, _| {
            let found = self.engines.iter().find(|(n, _)| *n == name);
            let (_, engine) = found.ok_or_else(|| EngineError::Load {
                engine: "tensorrt".into(),
                graph: name.into(),
                cause: "it was not loaded".into(),
            })?;
            Ok(engine.clone() as Arc<dyn Engine>)
        })
    }
}

/// What a plan of a graph must take and give.
pub fn signature(graph: &Graph) -> Signature {
    Signature {
        inputs: graph.inputs.clone(),
        fixed: graph.adapter_inputs.iter().map(|(n, s)| (n.clone(), s.clone())).collect(),
        outputs: graph.outputs.clone(),
    }
}

fn from_folder(folder: &Path, part: &str) -> Result<Option<Vec<u8>>, GraphsError> {
    if folder.as_os_str().is_empty() {
        return Ok(None);
    }
    let path = folder.join(format!("{part}.onnx"));
    let io = |source| GraphsError::Io { path: path.clone(), source };
    let bytes = std::fs::metadata(&path).map_err(io)?.len();
    if bytes > MOST_ONNX {
        return Err(io(std::io::Error::other(format!("{bytes} bytes; {MOST_ONNX} are the limit"))));
    }
    std::fs::read(&path).map(Some).map_err(io)
}

/// Where plans lie: `engine.plans`, or `engines` in the state directory.
pub fn plans_of(settings: &config::Engine, state_dir: &Path) -> Plans {
    if settings.plans.as_os_str().is_empty() {
        Plans::new(&state_dir.join("engines"))
    } else {
        Plans::new(&settings.plans)
    }
}

/// Where TensorRT is looked for.
pub fn search_of(settings: &config::Engine) -> Search {
    let folder = (!settings.library.as_os_str().is_empty()).then(|| settings.library.clone());
    Search { folder, lean: false, rtx: false }
}

/// Compares a bound TensorRT with the CPU engine on the phantoms.
///
/// # Errors
/// Either engine's, and a phantom that the adapter's crop does not fit.
pub fn parity_of(
    candidate: &dyn Networks,
    base: &BaseWeights,
    adapter: &Adapter,
    images: &[Tensor],
    progress: &dyn Fn(usize),
) -> Result<Parity, NetworksError> {
    let reference = EngineNetworks::cpu(base, adapter, 0)?;
    Ok(compare(&reference, candidate, images, progress)?)
}

/// The name under which a parity is remembered: everything that it depends on.
fn parity_name(parts: &TensorRtParts, platform: &Platform, base: &BaseWeights, adapter: &str) -> String {
    let mut hash = Sha256::new();
    let driver = platform.gpu.driver().to_string();
    let fixed = [env!("CARGO_PKG_VERSION"), base.sha256(), adapter, &driver];
    for part in fixed.into_iter().chain(parts.records.iter().map(|r| r.plan_sha256.as_str())) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    format!("parity-{}.json", &hex::encode(hash.finalize())[..16])
}

/// What serves an adapter.
pub struct Serving {
    /// The networks.
    pub networks: EngineNetworks,
    /// The graphs that they are bound to: another adapter of the same shapes can be bound beside.
    pub graphs: LoadedGraphs,
    /// What serves and why.
    pub report: EngineReport,
}

/// Chooses the engine for an adapter and makes it ready. `fresh` compares with the CPU engine even where that is remembered.
///
/// # Errors
/// [`ServeError`]: the adapter does not fit, or TensorRT does not serve and the CPU may not.
pub fn serving(
    settings: &config::Engine,
    state_dir: &Path,
    base: &BaseWeights,
    adapter: &Adapter,
    fresh: bool,
) -> Result<Serving, ServeError> {
    let refusal = match settings.kind {
        EngineKind::Cpu => None,
        EngineKind::Auto | EngineKind::Tensorrt => match tensorrt(settings, state_dir, base, adapter, fresh) {
            Ok(serving) => return Ok(serving),
            Err(refused) => Some(refused),
        },
    };
    if let Some(refused) = &refusal
        && !settings.cpu_fallback
    {
        return Err(ServeError::Refused(refused.refusal.clone()));
    }
    let (refusal, parity) = refusal.map_or((None, None), |r| (Some(r.refusal), r.parity));
    on_cpu(base, adapter, refusal, parity)
}

/// The CPU engine for an adapter, with what is to be said of TensorRT.
fn on_cpu(
    base: &BaseWeights,
    adapter: &Adapter,
    refusal: Option<Refusal>,
    parity: Option<Parity>,
) -> Result<Serving, ServeError> {
    // One thread an engine and several slices at once: slices are independent, and this beats threads within one.
    let graphs =
        Graphs::emit(base, adapter, 0).map_err(NetworksError::from)?.load_cpu(1).map_err(NetworksError::from)?;
    let networks = graphs.bind(adapter)?;
    let report = EngineReport { engine: graphs.identity(), refusal, parity };
    Ok(Serving { networks, graphs, report })
}

/// Why TensorRT does not serve, and the comparison where it came to one.
struct Refused {
    refusal: Refusal,
    parity: Option<Parity>,
}

/// TensorRT for an adapter, or why not.
fn tensorrt(
    settings: &config::Engine,
    state_dir: &Path,
    base: &BaseWeights,
    adapter: &Adapter,
    fresh: bool,
) -> Result<Serving, Box<Refused>> {
    let alone = |refusal: Refusal| Box::new(Refused { refusal, parity: None });
    let platform = Platform::open(&search_of(settings)).map_err(|e| alone(e.into()))?;
    let wanted = TensorRtGraphs::new(settings, base, adapter)
        .map_err(|e| alone(Refusal::new("GRAPHS", &e, "check engine.precision and engine.graphs")))?;
    let plans = plans_of(settings, state_dir);
    let parts = wanted.load(&plans, &platform, settings.cuda_graph).map_err(alone)?;
    let failed = |e: &dyn std::fmt::Display| Refusal::new("ENGINE_FAILED", e, "run `scanside engine verify`");
    let graphs = parts.graphs(&wanted.graphs).map_err(|e| alone(failed(&e)))?;
    let networks = graphs.bind(adapter).map_err(|e| alone(failed(&e)))?;
    let name = adapter.sha256().map(|s| parity_name(&parts, &platform, base, &s)).map_err(|e| alone(failed(&e)))?;
    let remembered: Option<Parity> = if fresh { None } else { plans.recall(&name) };
    let parity = match remembered.filter(|p| p.engine == networks.identity()) {
        Some(parity) => parity,
        None => {
            let images = phantom_images(adapter.meta.crop, adapter.meta.input_size).map_err(|e| alone(failed(&e)))?;
            let parity = parity_of(&networks, base, adapter, &images, &|_| ()).map_err(|e| alone(failed(&e)))?;
            // Only costs the comparison at the next start; the folder may be the administrator's.
            if let Err(e) = plans.write_record(&name, &parity) {
                log::info!("the comparison with the CPU engine is not remembered: {e}");
            }
            parity
        }
    };
    if let Some(problem) = parity.problem() {
        return Err(Box::new(Refused { refusal: Refusal::new(PARITY, problem, PRECISION), parity: Some(parity) }));
    }
    let report = EngineReport { engine: graphs.identity(), refusal: None, parity: Some(parity) };
    Ok(Serving { networks, graphs, report })
}

/// Another adapter on the graphs that serve, beside the one that serves: it costs its tensors' memory and, on TensorRT, a comparison with the
/// CPU engine. What serves is not touched; two adapters can be bound at once on TensorRT. Where its masks do not agree, the CPU engine serves
/// it and says so.
///
/// # Errors
/// [`NetworksError::Other`] for an adapter of other shapes, which [`serving`] has graphs or a refusal for; [`ServeError::Refused`] where its
/// masks do not agree and the CPU may not serve.
pub fn beside(
    current: &ServingNetworks,
    settings: &config::Engine,
    base: &BaseWeights,
    adapter: &Adapter,
) -> Result<Serving, ServeError> {
    let former = current.report();
    let graphs = current.graphs().clone();
    if graphs.identity() != former.engine {
        // The GPU failed and the CPU engine took over: its graphs are what serves.
        let graphs = Graphs::emit(base, adapter, 0).map_err(NetworksError::from)?;
        let graphs = graphs.load_cpu(1).map_err(NetworksError::from)?;
        let networks = graphs.bind(adapter)?;
        return Ok(Serving { networks, graphs, report: EngineReport { parity: None, ..former } });
    }
    let networks = graphs.bind(adapter)?;
    if former.engine.kind == "cpu" {
        return Ok(Serving { networks, graphs, report: former });
    }
    let refused = |refusal: Refusal, parity| match settings.cpu_fallback {
        true => on_cpu(base, adapter, Some(refusal), parity),
        false => Err(ServeError::Refused(refusal)),
    };
    let images = match phantom_images(adapter.meta.crop, adapter.meta.input_size) {
        Ok(images) => images,
        Err(e) => return refused(Refusal::new(PARITY, e, "the adapter's crop rule fits no phantom"), None),
    };
    let parity = parity_of(&networks, base, adapter, &images, &|_| ())?;
    if let Some(problem) = parity.problem() {
        return refused(Refusal::new(PARITY, problem, PRECISION), Some(parity));
    }
    let report = EngineReport { engine: graphs.identity(), refusal: None, parity: Some(parity) };
    Ok(Serving { networks, graphs, report })
}

/// Networks that serve, and can be exchanged for the CPU engine's between two series when the GPU fails.
pub struct ServingNetworks {
    current: RwLock<Arc<EngineNetworks>>,
    report: RwLock<EngineReport>,
    graphs: LoadedGraphs,
    /// What the CPU engine is made from; none where it may not serve or serves already.
    fallback: Option<(BaseWeights, Adapter)>,
}

impl ServingNetworks {
    /// What was chosen. The CPU engine is kept in reach where it is allowed and something else serves.
    pub fn new(serving: Serving, settings: &config::Engine, base: &BaseWeights, adapter: &Adapter) -> Arc<Self> {
        let other = serving.report.engine.kind != "cpu";
        Arc::new(ServingNetworks {
            current: RwLock::new(Arc::new(serving.networks)),
            report: RwLock::new(serving.report),
            graphs: serving.graphs,
            fallback: (other && settings.cpu_fallback).then(|| (base.clone(), adapter.clone())),
        })
    }

    /// Another adapter on the CPU engine's graphs that serve here, for the cost of its tensors; none where another engine serves, or the
    /// adapter needs graphs of its own: [`beside`] and [`serving`] then make it ready.
    pub fn on_cpu_beside(&self, adapter: &Adapter) -> Option<Result<Arc<Self>, ServeError>> {
        let report = self.report();
        if report.engine.kind != "cpu" || self.graphs.identity() != report.engine {
            return None;
        }
        match self.graphs.bind(adapter) {
            Ok(networks) => Some(Ok(Arc::new(ServingNetworks {
                current: RwLock::new(Arc::new(networks)),
                report: RwLock::new(report),
                graphs: self.graphs.clone(),
                fallback: None,
            }))),
            Err(NetworksError::Other { .. }) => None,
            Err(e) => Some(Err(e.into())),
        }
    }

    /// The graphs, to bind another adapter of the same shapes.
    pub fn graphs(&self) -> &LoadedGraphs {
        &self.graphs
    }

    /// What serves and why.
    pub fn report(&self) -> EngineReport {
        self.report.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the CPU engine from the next series on, because the other one failed. Returns whether it did: not where the CPU may not
    /// serve, or serves already.
    pub fn fall_back(&self, cause: &EngineError) -> bool {
        let Some((base, adapter)) = &self.fallback else { return false };
        if self.report().engine.kind == "cpu" {
            return false;
        }
        let networks = match EngineNetworks::cpu(base, adapter, 1) {
            Ok(networks) => networks,
            Err(e) => {
                log::error!("the CPU engine cannot take over: {e}");
                return false;
            }
        };
        let refusal = Refusal::new(
            "ENGINE_FAILED",
            cause,
            "look into the journal, run `scanside engine verify`, then restart the service",
        );
        log::error!("the CPU engine takes over until the next start: {refusal}");
        let mut report = self.report.write().unwrap_or_else(PoisonError::into_inner);
        report.engine = networks.identity();
        report.refusal = Some(refusal);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(networks);
        true
    }

    fn current(&self) -> Arc<EngineNetworks> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Networks for Arc<ServingNetworks> {
    fn input_size(&self) -> usize {
        self.current().input_size()
    }
    fn structures(&self) -> usize {
        self.current().structures()
    }
    fn encode(&self, image: &Tensor) -> Result<Tensor, EngineError> {
        self.current().encode(image)
    }
    fn classify(&self, embedding: &Tensor) -> Result<ClassifierOutput, EngineError> {
        self.current().classify(embedding)
    }
    fn decode(&self, embedding: &Tensor, boxes: &[[f32; 4]]) -> Result<DecoderOutput, EngineError> {
        self.current().decode(embedding, boxes)
    }
    fn identity(&self) -> EngineIdentity {
        self.current().identity()
    }
}
