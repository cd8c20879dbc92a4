//! The whole adaptation: a coarse phase on the labelled slices, pseudo-labels on the others, a fine phase on both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::calibrate::calibrate;
use super::dataset::{Data, TrainingSet, training_set};
use super::device::Device;
use super::manifest::DatasetError;
use super::pseudo::{PseudoError, PseudoRule, pseudo_labels};
use super::run::{Material, Progress, TrainError, train};
use super::settings::{Feedback, TrainSettings};
use crate::engine::{EngineError, Tensor};
use crate::pipeline::{CropRule, Prompting};
use crate::terms::Task;

/// Names of the phases, which are also the extensions of their checkpoints.
pub const PHASES: [&str; 3] = ["coarse", "fine", "pseudo"];

/// Why an adaptation stopped.
#[derive(Debug, thiserror::Error)]
pub enum AdaptError {
    /// The data set.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The pseudo-labels.
    #[error(transparent)]
    Pseudo(#[from] PseudoError),
    /// The network while its presence is calibrated.
    #[error(transparent)]
    Network(#[from] EngineError),
}

/// What an adaptation tells while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A phase begins: its name.
    Phase(&'static str),
    /// A training step.
    Step(Progress),
    /// Volumes pseudo-labelled, of all.
    Labelling(usize, usize),
    /// Pseudo-labelled slices that were kept.
    Kept(usize),
}

/// Adapter tensors and the labelled slices they came from.
#[derive(Clone, Debug)]
pub struct Adapted {
    /// The adapter's tensors.
    pub tensors: BTreeMap<String, Tensor>,
    /// The labelled slices.
    pub set: TrainingSet,
    /// Pseudo-labelled slices used.
    pub pseudo: usize,
}

/// Adapts the base to the labelled slices of `data`. With `checkpoint`, a run that was killed goes on where it stopped and
/// ends the same; each phase keeps its own file beside it.
///
/// # Errors
/// [`AdaptError`].
#[allow(clippy::too_many_arguments)]
pub fn adapt<'a>(
    base: &BTreeMap<String, Tensor>,
    task: &Task,
    data: impl Into<Data<'a>>,
    rule: CropRule,
    settings: &TrainSettings,
    device: Device,
    checkpoint: Option<&Path>,
    tell: &mut dyn FnMut(Event),
) -> Result<Adapted, AdaptError> {
    let structures = task.structures.len();
    let data = data.into();
    let cases = data.cases;
    let set = training_set(cases, task, rule, settings.input_size)?;
    let file = |phase: &str| -> Option<PathBuf> { checkpoint.map(|p| p.with_added_extension(phase)) };
    let mut start = None;
    if settings.coarse_size > 0 && settings.coarse_steps > 0 {
        tell(Event::Phase("coarse"));
        let phase =
            TrainSettings { steps: settings.coarse_steps, input_size: settings.coarse_size, ..settings.clone() };
        let coarse = training_set(cases, task, rule, phase.input_size)?;
        let material = Material { structures, labelled: &coarse.samples, pseudo: &[], start: None };
        start =
            Some(train(base, &material, &phase, device, file("coarse").as_deref(), &mut |p| tell(Event::Step(*p)))?);
    }
    tell(Event::Phase("fine"));
    let material = Material { structures, labelled: &set.samples, pseudo: &[], start: start.as_ref() };
    let phase = TrainSettings { steps: settings.steps_for(set.samples.len()), ..settings.clone() };
    let mut tensors = train(base, &material, &phase, device, file("fine").as_deref(), &mut |p| tell(Event::Step(*p)))?;
    let mut pseudo = Vec::new();
    if settings.pseudo_steps > 0 && data.unlabelled() > 0 {
        tell(Event::Phase("pseudo-labels"));
        let rule = PseudoRule {
            crop: rule,
            teacher_size: settings.input_size,
            // Further crops would cost the teacher more time than they bring.
            prompting: Prompting { crops: 0, ..settings.prompting },
            size: settings.input_size,
            doubt: settings.pseudo_doubt,
            volumes: settings.pseudo_volumes,
            seed: settings.seed,
            most_doubtful: 0.5,
        };
        let mut teacher = tensors.clone();
        calibrate(base, &mut teacher, &set.samples, settings, device)?;
        pseudo = pseudo_labels(base, &teacher, task, data, &rule, device, &mut |a, b| tell(Event::Labelling(a, b)))?;
        tell(Event::Kept(pseudo.len()));
        tell(Event::Phase("pseudo"));
        let phase =
            TrainSettings { steps: settings.pseudo_steps, lr: settings.lr * settings.pseudo_lr, ..settings.clone() };
        let material = Material { structures, labelled: &set.samples, pseudo: &pseudo, start: Some(&tensors) };
        tensors = train(base, &material, &phase, device, file("pseudo").as_deref(), &mut |p| tell(Event::Step(*p)))?;
    }
    if settings.feedback != Feedback::TrainAndTest {
        tensors.retain(|name, _| !name.starts_with("feedback."));
    }
    calibrate(base, &mut tensors, &set.samples, settings, device)?;
    Ok(Adapted { tensors, set, pseudo: pseudo.len() })
}
