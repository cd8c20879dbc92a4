//! The parameters of a run: frozen base, fresh adapter tensors.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::settings::{Feedback, TrainSettings};
use crate::engine::Tensor;
use crate::model::eager::ParamStore;
use crate::model::network::{EMBED, conv_adapter_shapes, feedback_shapes, lora_targets, position_shapes};

/// Fresh adapter tensors for `structures` structures over base tensors: LoRA pairs (A ~ N(0, 0.02), B = 0, so that the
/// first forward pass is the base's own), class tokens, classifier, and copies of what is trained whole.
pub fn fresh_adapter(
    base: &BTreeMap<String, Tensor>,
    structures: usize,
    settings: &TrainSettings,
) -> BTreeMap<String, Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let mut normal = |shape: &[usize], sd: f32| {
        let n = shape.iter().product();
        Tensor::new(
            shape,
            (0..n)
                .map(|_| {
                    let v: f32 = StandardNormal.sample(&mut rng);
                    v * sd
                })
                .collect(),
        )
    };
    let mut out = BTreeMap::new();
    for target in lora_targets() {
        let whole = settings.whole.iter().any(|w| target.name.starts_with(w.as_str()));
        if target.convolution || whole {
            continue;
        }
        let rank =
            if target.name.starts_with("image_encoder.") { settings.encoder_rank } else { settings.decoder_rank };
        if rank > 0 {
            out.insert(format!("{}.lora_a", target.name), normal(&[rank, target.inputs], 0.02));
            out.insert(format!("{}.lora_b", target.name), Tensor::zeros(&[target.outputs, rank]));
        }
    }
    if settings.feedback != Feedback::Off {
        for (name, shape) in feedback_shapes() {
            let sd =
                if name.ends_with("gamma") { 0.0 } else { 1.0 / (shape.last().copied().unwrap_or(1) as f32).sqrt() };
            out.insert(name, normal(&shape, sd));
        }
    }
    if settings.conv_adapters > 0 {
        for (name, shape) in conv_adapter_shapes(settings.conv_adapters) {
            // The way back starts at nothing, so that the first forward pass is the base's own.
            let sd = if name.ends_with("up.weight") {
                0.0
            } else {
                1.0 / (shape[1..].iter().product::<usize>() as f32).sqrt()
            };
            out.insert(name, normal(&shape, sd));
        }
    }
    if settings.position {
        out.extend(position_shapes().into_iter().map(|(name, shape)| (name, Tensor::zeros(&shape))));
    }
    for (name, tensor) in base {
        if settings.whole.iter().any(|w| name.starts_with(w.as_str())) {
            out.insert(name.clone(), tensor.clone());
        }
    }
    // He initialisation for the ReLU layer; class tokens at the scale of SAM's own prompt embeddings.
    let he = (2.0 / EMBED as f32).sqrt();
    let said = if settings.class_tokens { 0.1 } else { 0.0 };
    out.insert("class_tokens".into(), normal(&[structures, EMBED], said));
    out.insert("classifier.fc1.weight".into(), normal(&[EMBED, EMBED], he));
    out.insert("classifier.fc1.bias".into(), Tensor::zeros(&[EMBED]));
    out.insert("classifier.fc2.weight".into(), normal(&[structures, EMBED], 1.0 / (EMBED as f32).sqrt()));
    out.insert("classifier.fc2.bias".into(), Tensor::zeros(&[structures]));
    out
}

/// Base tensors frozen, adapter tensors trainable.
pub fn parameters(base: &BTreeMap<String, Tensor>, adapter: &BTreeMap<String, Tensor>) -> ParamStore {
    let mut params = ParamStore::new();
    for (name, tensor) in base {
        if !adapter.contains_key(name) {
            params.insert_frozen(name.clone(), tensor.clone());
        }
    }
    for (name, tensor) in adapter {
        params.insert_trainable(name.clone(), tensor.clone());
    }
    params
}
