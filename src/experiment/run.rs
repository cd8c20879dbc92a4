//! One run: the draw's data, the training, the evaluation, the result file.

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::plan::{Arm, Kind, Plan, RunKey};
use super::record::{Record, RecordError};
use super::split::Split;
use crate::engine::Tensor;
use crate::evaluate::{EvaluateError, Evaluation, Prompt, Table, Trained};
use crate::model::weights::{BaseWeights, from_safetensors, to_safetensors};
use crate::pipeline::{CropRule, ModelInfo, Networks, PipelineError, Prompting, SegmentOptions, Segmenter};
use crate::terms::Task;
use crate::train::{
    AdaptError, Case, DatasetError, Device, EagerNetworks, Entry, Event, Manifest, TrainSettings, Use, adapt,
};

/// Input size of the zero-shot base.
const ZERO_SHOT: usize = 1024;

/// Why an experiment stopped.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// Files.
    #[error("{}: {problem}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The plan.
    #[error("plan: {0}")]
    Plan(String),
    /// A subject's data.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Training.
    #[error(transparent)]
    Adapt(#[from] AdaptError),
    /// Evaluation.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// The model.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A result file.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// Training.
    Training(Event),
    /// Cases evaluated, of all.
    Evaluating(usize, usize),
}

/// A plan with its subjects and its base.
pub struct Lab<'a> {
    plan: &'a Plan,
    task: Task,
    base: &'a BaseWeights,
    device: Device,
    subjects: Vec<PathBuf>,
    split: Split,
}

impl<'a> Lab<'a> {
    /// `folder` holds one folder per subject: DICOM files in it, labels under `NRRD/<subject>-label.nrrd`.
    ///
    /// # Errors
    /// [`ExperimentError`] where there are too few subjects.
    pub fn new(plan: &'a Plan, base: &'a BaseWeights, folder: &Path, device: Device) -> Result<Self, ExperimentError> {
        let io = |problem: String| ExperimentError::Io { path: folder.into(), problem };
        let mut subjects = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|e| io(e.to_string()))? {
            let path = entry.map_err(|e| io(e.to_string()))?.path();
            if label_file(&path).is_some_and(|l| l.is_file()) {
                subjects.push(path);
            }
        }
        subjects.sort();
        if subjects.len() <= plan.test {
            return Err(io(format!(
                "{} subjects with NRRD/<subject>-label.nrrd are too few for {} to test on: unpack the data there",
                subjects.len(),
                plan.test
            )));
        }
        let split = Split::new(subjects.len(), plan.test, plan.seed);
        let task = plan.task().map_err(ExperimentError::Plan)?;
        Ok(Lab { plan, task, base, device, subjects, split })
    }

    fn entry(&self, subject: usize, usage: Use, slices: Option<Vec<usize>>) -> Entry {
        let folder = &self.subjects[subject];
        Entry {
            // Cases are numbered in whatever is written; a name would be a patient's.
            name: format!("subject {subject}"),
            images: Some(folder.clone()),
            labels: label_file(folder),
            phantom: None,
            map: self.plan.map.clone(),
            offset: None,
            slices,
            side: Some(self.plan.side),
            usage,
        }
    }

    fn load(&self, subject: usize, usage: Use, slices: Option<Vec<usize>>) -> Result<Case, ExperimentError> {
        Ok(Case::load(&self.entry(subject, usage, slices), &self.task)?)
    }

    /// The draw's cases: labelled slices, and every other slice of the pool without its labels.
    fn pool(&self, key: &RunKey) -> Result<Vec<Case>, ExperimentError> {
        let mut cases = Vec::new();
        let mut depth = BTreeMap::new();
        for &s in &self.split.pool {
            let case = self.load(s, Use::Unlabelled, None)?;
            depth.insert(s, case.unlabelled.len());
            cases.push((s, case));
        }
        let draw = self.split.draw(key.slices, key.draw, self.plan.seed, |s| depth.get(&s).copied().unwrap_or(0));
        for (s, case) in &mut cases {
            let mine: Vec<usize> = draw.slices.iter().filter(|(d, _)| d == s).map(|(_, z)| *z).collect();
            if mine.is_empty() {
                case.truth.data.fill(0);
            } else {
                case.unlabelled.retain(|z| !mine.contains(z));
                case.train = mine;
            }
        }
        Ok(cases.into_iter().map(|(_, c)| c).collect())
    }

    /// The data of a draw as a manifest for `scanside train`: its labelled slices, the pool's other slices without labels, and
    /// the test subjects. Subjects are named by their number.
    ///
    /// # Errors
    /// [`ExperimentError::Dataset`].
    pub fn manifest(&self, key: &RunKey) -> Result<Manifest, ExperimentError> {
        let pool = self.pool(key)?;
        let drawn = self.split.pool.iter().zip(&pool).map(|(&s, case)| {
            let train = !case.train.is_empty();
            self.entry(s, if train { Use::Train } else { Use::Unlabelled }, train.then(|| case.train.clone()))
        });
        let test = self.split.test.iter().map(|&s| self.entry(s, Use::Test, None));
        Ok(Manifest {
            note: format!("{} labelled slices, draw {} of the plan with seed {}", key.slices, key.draw, self.plan.seed),
            structures: self.plan.structures.clone(),
            volume: drawn.chain(test).collect(),
        })
    }

    /// The settings of an arm's run: the arm's own, and a seed of the plan, the number of slices and the draw.
    ///
    /// # Errors
    /// [`ExperimentError::Plan`].
    pub fn settings(&self, arm: &Arm, key: &RunKey) -> Result<TrainSettings, ExperimentError> {
        let mut settings = self.plan.settings(arm).map_err(ExperimentError::Plan)?;
        settings.seed = self.plan.seed ^ ((key.slices as u64) << 32) ^ key.draw as u64;
        Ok(settings)
    }

    /// Runs one arm on one draw. `work` holds checkpoints.
    ///
    /// # Errors
    /// [`ExperimentError`].
    pub fn run(
        &self,
        arm: &Arm,
        key: &RunKey,
        commit: &str,
        work: &Path,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Record, ExperimentError> {
        let settings = self.settings(arm, key)?;
        let begin = Instant::now();
        let mut pseudo = 0;
        let mut volumes = 0;
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        if let Some(of) = &arm.tensors_of {
            tensors = load_tensors(&tensors_path(work, &RunKey { arm: of.clone(), ..key.clone() }))?;
        } else if arm.kind == Kind::Train {
            let cases = self.pool(key)?;
            let checkpoint = work.join(key.stem());
            let adapted = adapt(
                self.base.tensors(),
                &self.task,
                &cases,
                CropRule::default(),
                &settings,
                self.device,
                Some(&checkpoint),
                &mut |e| {
                    tell(Told::Training(e));
                },
            )?;
            (pseudo, volumes, tensors) = (adapted.pseudo, adapted.set.volumes, adapted.tensors);
            save_tensors(&tensors_path(work, key), &tensors)?;
        }
        let train_seconds = begin.elapsed().as_secs_f64();
        let parameters = tensors.values().map(Tensor::len).sum();
        let whole: usize = self.base.tensors().values().map(Tensor::len).sum();
        let mut table = self.evaluate(arm, key, &tensors, &settings, tell)?;
        table.trained = (arm.kind == Kind::Train).then_some(Trained {
            slices: key.slices,
            volumes,
            steps: settings.coarse_steps + settings.steps_for(key.slices) + settings.pseudo_steps,
            seed: settings.seed,
        });
        Ok(Record {
            key: key.clone(),
            kind: arm.kind,
            device: self.device.to_string(),
            seed: settings.seed,
            commit: commit.into(),
            settings_sha256: settings.sha256(),
            settings,
            train_seconds,
            threads: std::env::var("RAYON_NUM_THREADS")
                .ok()
                .and_then(|v| v.parse().ok())
                .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
            peak_mib: peak_mib(),
            parameters,
            share: parameters as f64 / whole.max(1) as f64,
            pseudo,
            table,
        })
    }

    fn evaluate(
        &self,
        arm: &Arm,
        key: &RunKey,
        tensors: &BTreeMap<String, Tensor>,
        settings: &TrainSettings,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Table, ExperimentError> {
        let cases: Vec<Case> =
            self.split.test.iter().map(|&s| self.load(s, Use::Test, None)).collect::<Result<_, _>>()?;
        let zero_shot = (arm.kind == Kind::ZeroShot).then(|| EagerNetworks::base(self.base.tensors(), ZERO_SHOT));
        let prompts: &[Prompt] = match (arm.kind, key.draw < arm.bounds) {
            (Kind::ZeroShot, _) => &[Prompt::ZeroShotTrueBox],
            (_, true) => &[Prompt::Automatic, Prompt::PromptFree, Prompt::TrueBox],
            (_, false) => &[Prompt::Automatic],
        };
        let networks = self.device.networks_of(self.base.tensors(), tensors, settings.input_size);
        let direct = self.device.networks_of(self.base.tensors(), tensors, settings.input_size);
        let options = SegmentOptions { passes: 1, ..SegmentOptions::default() };
        let outcomes = if arm.kind == Kind::ZeroShot {
            // Nothing is segmented automatically: any network of the right width stands in.
            let stand_in = StandIn(self.task.structures.len());
            let segmenter = Segmenter::new(Box::new(stand_in), self.model(settings.prompting))?;
            self.evaluation(&segmenter, &options, prompts, None, zero_shot.as_ref()).run(&cases, &mut |a, b| {
                tell(Told::Evaluating(a, b));
            })?
        } else {
            let segmenter = Segmenter::new(networks, self.model(settings.prompting))?;
            self.evaluation(&segmenter, &options, prompts, Some(direct.as_ref()), None).run(&cases, &mut |a, b| {
                tell(Told::Evaluating(a, b));
            })?
        };
        let keys: Vec<String> = self.task.structures.iter().map(|s| s.key.clone()).collect();
        Ok(Table::new(&outcomes.outcomes, &keys, Vec::new()))
    }

    fn model(&self, prompting: Prompting) -> ModelInfo {
        ModelInfo {
            task: self.task.clone(),
            crop: CropRule::default(),
            adapter: "experiment".into(),
            adapter_sha256: String::new(),
            shapes: Vec::new(),
            presence: Vec::new(),
            prompting,
            segex: None,
        }
    }

    fn evaluation<'e>(
        &'e self,
        segmenter: &'e Segmenter,
        options: &'e SegmentOptions,
        prompts: &'e [Prompt],
        direct: Option<&'e dyn Networks>,
        base: Option<&'e EagerNetworks>,
    ) -> Evaluation<'e> {
        Evaluation {
            task: &self.task,
            crop: CropRule::default(),
            segmenter,
            options,
            prompts,
            direct,
            base,
            tolerance_mm: None,
            keep: false,
        }
    }
}

/// Takes the place of a network where none is asked.
struct StandIn(usize);

impl Networks for StandIn {
    fn input_size(&self) -> usize {
        32
    }
    fn structures(&self) -> usize {
        self.0
    }
    fn encode(&self, _: &Tensor) -> Result<Tensor, crate::engine::EngineError> {
        Err(none())
    }
    fn classify(&self, _: &Tensor) -> Result<crate::pipeline::ClassifierOutput, crate::engine::EngineError> {
        Err(none())
    }
    fn decode(&self, _: &Tensor, _: &[[f32; 4]]) -> Result<crate::pipeline::DecoderOutput, crate::engine::EngineError> {
        Err(none())
    }
    fn identity(&self) -> crate::engine::EngineIdentity {
        crate::engine::EngineIdentity { kind: "none".into(), version: String::new(), precision: String::new() }
    }
}

fn none() -> crate::engine::EngineError {
    crate::engine::EngineError::Run {
        engine: "none".into(),
        graph: "none".into(),
        cause: "the zero-shot arm has no adapted network".into(),
    }
}

fn label_file(subject: &Path) -> Option<PathBuf> {
    let name = subject.file_name()?.to_string_lossy().into_owned();
    Some(subject.join("NRRD").join(format!("{name}-label.nrrd")))
}

/// Peak resident memory of this process, MiB; 0 where the system does not tell.
pub(crate) fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Where a run leaves its tensors for arms that evaluate them in another way.
pub(crate) fn tensors_path(work: &Path, key: &RunKey) -> PathBuf {
    work.join(key.stem()).with_added_extension("safetensors")
}

fn save_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<(), ExperimentError> {
    let fail = |problem: String| ExperimentError::Io { path: path.into(), problem };
    let bytes = to_safetensors(tensors, HashMap::new()).map_err(|e| fail(e.to_string()))?;
    std::fs::write(path, bytes).map_err(|e| fail(e.to_string()))
}

fn load_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, ExperimentError> {
    let fail = |problem: String| ExperimentError::Io { path: path.into(), problem };
    let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    from_safetensors(path, &bytes).map_err(|e| fail(e.to_string()))
}

/// Claims a run for this process; none where another one holds it. The claim is the file; removing it gives it up.
///
/// # Errors
/// [`ExperimentError::Io`].
pub(crate) fn claim(path: &Path) -> Result<bool, ExperimentError> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut f) => {
            let _ = write!(f, "{}", std::process::id());
            Ok(true)
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            let holder = std::fs::read_to_string(path).unwrap_or_default();
            // A holder that is gone left its claim behind; one on another machine cannot be seen, so shards share no folder.
            let gone = holder.parse::<u32>().is_ok_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
            if gone {
                let _ = std::fs::remove_file(path);
                return claim(path);
            }
            Ok(false)
        }
        Err(e) => Err(ExperimentError::Io { path: path.into(), problem: e.to_string() }),
    }
}
