//! The training loop: slices in random order, progress, checkpoints that resume to the very same adapter.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use super::device::Device;
use super::init::{fresh_adapter, parameters};
use super::sample::{Sample, augment};
use super::settings::TrainSettings;
use super::step::{Losses, step};
use super::unet::{fresh_unet, unet_step};
use crate::engine::Tensor;
use crate::model::autograd::Learner;
use crate::model::eager::{AdamConfig, EagerLearner, StateError};
use crate::model::network::{NETWORK_VERSION, position_shapes};

/// Steps between checkpoints.
const CHECKPOINT_EVERY: usize = 50;

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// There is nothing to learn from.
    #[error("no labelled slices: label at least one slice, or check the manifest's slices and structures")]
    NoSamples,
    /// A loss is not a number.
    #[error("the loss became {loss} at step {step}: lower the learning rate (lr)")]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// The checkpoint cannot be read or written.
    #[error("checkpoint {}: {problem}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong and what helps.
        problem: String,
    },
}

/// What a step reports.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Steps done, from 1.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Losses of this step.
    pub losses: Losses,
    /// Norm of the gradient before clipping.
    pub gradient: f32,
}

/// What a run learns from and where it starts.
#[derive(Clone, Copy, Debug)]
pub struct Material<'a> {
    /// Structures of the task.
    pub structures: usize,
    /// Labelled slices.
    pub labelled: &'a [Sample],
    /// Pseudo-labelled slices; may be empty.
    pub pseudo: &'a [Sample],
    /// Tensors to start from; a fresh adapter where there are none.
    pub start: Option<&'a BTreeMap<String, Tensor>>,
}

/// Trains adapter tensors: one phase at one size.
///
/// Every step draws from a generator seeded by the run's seed and the step's number, so a run that is resumed from
/// `checkpoint` ends with the same tensors as one that was never interrupted.
///
/// # Errors
/// [`TrainError`].
pub fn train(
    base: &BTreeMap<String, Tensor>,
    material: &Material,
    settings: &TrainSettings,
    device: Device,
    checkpoint: Option<&Path>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<BTreeMap<String, Tensor>, TrainError> {
    let Material { structures, labelled, start: from, .. } = *material;
    if labelled.is_empty() {
        return Err(TrainError::NoSamples);
    }
    let identity = identity(base, material, settings, device);
    let config = AdamConfig { lr: settings.lr, weight_decay: settings.weight_decay, ..AdamConfig::default() };
    let saved = match checkpoint {
        Some(path) if path.exists() => Some(Saved::read(path, &identity)?),
        _ => None,
    };
    let fresh = || match settings.unet {
        0 => fresh_adapter(base, structures, settings),
        width => fresh_unet(structures, width, settings.seed),
    };
    let (done, tensors, state) = match saved {
        Some(s) => (s.step, s.params, Some(s.adam)),
        None => (0, from.cloned().unwrap_or_else(fresh), None),
    };
    let unfit = |e: StateError| TrainError::Checkpoint {
        path: checkpoint.map(Path::to_path_buf).unwrap_or_default(),
        problem: e.to_string(),
    };
    let factors = factors(settings);
    let run = Run { material, settings, done, checkpoint, identity: &identity };
    #[cfg(feature = "cuda")]
    if let Some(device) = device.torch() {
        let learner = crate::model::torch::TorchLearner::new(device, base, &tensors, config, &factors, state.as_ref());
        return run.go(learner.map_err(unfit)?, progress);
    }
    let learner = EagerLearner::new(parameters(base, &tensors), config, factors, state.as_ref()).map_err(unfit)?;
    run.go(learner, progress)
}

/// Factors on the learning rate, by the start of a parameter's name; the first that fits holds.
fn factors(settings: &TrainSettings) -> Vec<(String, f32)> {
    let mut factors = Vec::new();
    if !settings.class_tokens {
        factors.push(("class_tokens".into(), 0.0));
    }
    factors.extend(["classifier.", "class_tokens"].map(|p| (p.to_string(), settings.head_factor)));
    factors.extend(position_shapes().into_keys().map(|name| (name, settings.position_factor)));
    factors
}

/// A phase under way.
struct Run<'a> {
    material: &'a Material<'a>,
    settings: &'a TrainSettings,
    /// Steps that a checkpoint already holds.
    done: usize,
    checkpoint: Option<&'a Path>,
    identity: &'a str,
}

impl Run<'_> {
    fn go<L: Learner>(
        &self,
        mut learner: L,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let Run { settings, .. } = *self;
        let Material { labelled, pseudo, .. } = *self.material;
        for i in self.done..settings.steps {
            let mut rng = ChaCha8Rng::seed_from_u64(settings.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ i as u64);
            let slice = if !pseudo.is_empty() && rng.random::<f32>() < settings.pseudo_share {
                &pseudo[rng.random_range(0..pseudo.len())]
            } else {
                &labelled[pick(settings.seed, i, labelled.len())]
            };
            let sample = augment(slice, &settings.augmentation, &mut rng);
            let outcome = match settings.unet {
                0 => step(learner.ops(), &sample, settings, &mut rng),
                _ => unet_step(learner.ops(), &sample, settings),
            };
            let losses = outcome.losses(learner.ops());
            if !losses.total.is_finite() {
                return Err(TrainError::Diverged { step: i, loss: losses.total });
            }
            let gradient = learner.descend(&outcome.total, settings.lr_at(i), settings.clip);
            progress(&Progress { step: i + 1, steps: settings.steps, losses, gradient });
            if let Some(path) = self.checkpoint
                && ((i + 1) % CHECKPOINT_EVERY == 0 || i + 1 == settings.steps)
            {
                Saved { step: i + 1, params: learner.parameters(), adam: learner.state() }
                    .write(path, self.identity)?;
            }
        }
        Ok(learner.parameters())
    }
}

/// Which slice a step takes: every slice once per epoch, in another order each time.
fn pick(seed: u64, step: usize, samples: usize) -> usize {
    let mut order: Vec<usize> = (0..samples).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed.rotate_left(17) ^ (step / samples) as u64));
    order[step % samples]
}

/// Base, network, settings, device and data as one hash: a checkpoint of another run must not be resumed.
fn identity(base: &BTreeMap<String, Tensor>, material: &Material, settings: &TrainSettings, device: Device) -> String {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(NETWORK_VERSION.to_le_bytes());
    for (name, t) in base {
        hash.update(name);
        t.data.iter().for_each(|v| hash.update(v.to_le_bytes()));
    }
    hash.update(settings.sha256());
    if device != Device::Cpu {
        hash.update(device.to_string());
    }
    hash.update(material.structures.to_le_bytes());
    for s in material.labelled.iter().chain(material.pseudo) {
        for v in &s.grey.data {
            hash.update(v.to_le_bytes());
        }
        hash.update(&s.labels.data);
    }
    for (name, t) in material.start.into_iter().flatten() {
        hash.update(name);
        t.data.iter().for_each(|v| hash.update(v.to_le_bytes()));
    }
    hex::encode(hash.finalize())
}

struct Saved {
    step: usize,
    params: BTreeMap<String, Tensor>,
    adam: BTreeMap<String, Tensor>,
}

impl Saved {
    fn write(&self, path: &Path, identity: &str) -> Result<(), TrainError> {
        let fail = |problem: String| TrainError::Checkpoint { path: path.to_path_buf(), problem };
        let named = self.params.iter().map(|(n, t)| (format!("param/{n}"), t));
        let raw: Vec<(String, &Tensor, Vec<u8>)> = named
            .chain(self.adam.iter().map(|(n, t)| (format!("adam/{n}"), t)))
            .map(|(n, t)| (n, t, t.data.iter().flat_map(|v| v.to_le_bytes()).collect()))
            .collect();
        let mut views = Vec::with_capacity(raw.len());
        for (name, t, bytes) in &raw {
            views.push((
                name.as_str(),
                TensorView::new(Dtype::F32, t.shape.clone(), bytes).map_err(|e| fail(e.to_string()))?,
            ));
        }
        let meta = HashMap::from([("step".into(), self.step.to_string()), ("identity".into(), identity.to_string())]);
        let bytes = safetensors::serialize(views, Some(meta)).map_err(|e| fail(e.to_string()))?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| fail(e.to_string()))?;
        std::io::Write::write_all(&mut file, &bytes).map_err(|e| fail(e.to_string()))?;
        // Or a power cut could leave the name on an empty file.
        file.as_file().sync_all().map_err(|e| fail(e.to_string()))?;
        file.persist(path).map_err(|e| fail(e.to_string()))?;
        Ok(())
    }

    fn read(path: &Path, identity: &str) -> Result<Saved, TrainError> {
        let fail = |problem: String| TrainError::Checkpoint { path: path.to_path_buf(), problem };
        let broken = |e: String| fail(format!("cannot be read ({e}); remove it to train this phase again"));
        let bytes = std::fs::read(path).map_err(|e| broken(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
        let meta = header.metadata().clone().unwrap_or_default();
        if meta.get("identity").map(String::as_str) != Some(identity) {
            return Err(fail(
                "belongs to other settings, data, base weights or another release; remove it and those of the later phases beside \
                 it to start anew, or name another with --checkpoint"
                    .into(),
            ));
        }
        let step = meta.get("step").and_then(|s| s.parse().ok()).ok_or_else(|| broken("it names no step".into()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| broken(e.to_string()))?;
        let mut saved = Saved { step, params: BTreeMap::new(), adam: BTreeMap::new() };
        for (name, view) in file.iter() {
            let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let tensor = Tensor::new(view.shape(), data);
            match name.split_once('/') {
                Some(("param", n)) => saved.params.insert(n.to_string(), tensor),
                Some(("adam", n)) => saved.adam.insert(n.to_string(), tensor),
                _ => return Err(broken(format!("unknown tensor {name}"))),
            };
        }
        Ok(saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_takes_every_slice_once() {
        for epoch in 0..3 {
            let mut seen: Vec<usize> = (0..7).map(|i| pick(5, epoch * 7 + i, 7)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..7).collect::<Vec<_>>());
        }
        assert_ne!(
            (0..7).map(|i| pick(5, i, 7)).collect::<Vec<_>>(),
            (7..14).map(|i| pick(5, i, 7)).collect::<Vec<_>>()
        );
    }
}
