//! What a training run depends on, apart from the data.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::sample::Augmentation;

/// Settings of a run; equal settings, data and seed give the same adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Edge of the network's input, pixels, a multiple of 32.
    pub input_size: usize,
    /// LoRA rank in the image encoder's linears; 0 leaves it alone.
    pub encoder_rank: usize,
    /// LoRA rank in the mask decoder's linears; 0 leaves it alone.
    pub decoder_rank: usize,
    /// Base tensors whose name starts with one of these are trained whole.
    pub whole: Vec<String>,
    /// Optimiser steps, one slice each.
    pub steps: usize,
    /// Steps of linear warm-up.
    pub warm_up: usize,
    /// Peak learning rate of AdamW; a cosine takes it to 1 %.
    pub lr: f32,
    /// Factor on the learning rate of the classifier and the class tokens, which start from nothing.
    pub head_factor: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Gradients are scaled down to this norm.
    pub clip: f32,
    /// Dropout in the classifier's head.
    pub dropout: f32,
    /// Share of prompts that are jittered true boxes.
    pub true_boxes: f32,
    /// Share of prompts that are the whole crop; the rest are CAM boxes.
    pub whole_boxes: f32,
    /// Jitter of true boxes, standard deviation as a share of the box's edges.
    pub jitter: f32,
    /// Weight of each loss.
    pub weights: LossWeights,
    /// Random variations of the slices.
    pub augmentation: Augmentation,
    /// Seed of everything random.
    pub seed: u64,
}

/// Weight of each loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossWeights {
    /// 1 - Dice, mean over the structures present.
    pub dice: f32,
    /// Cross entropy of the softmax over background and structures, as they compete in the result.
    pub competition: f32,
    /// Binary cross entropy of each mask.
    pub mask: f32,
    /// Binary cross entropy of the classifier.
    pub classifier: f32,
    /// Binary cross entropy of the CAM before its ReLU against the mask. Where every slice shows every structure, the
    /// classifier's labels say nothing of place, and only this makes the CAM point.
    pub cam: f32,
    /// Squared error of the decoder's estimate of its own IoU.
    pub iou: f32,
}

impl Default for LossWeights {
    fn default() -> Self {
        LossWeights { dice: 1.0, competition: 1.0, mask: 0.5, classifier: 0.5, cam: 2.0, iou: 0.1 }
    }
}

impl Default for TrainSettings {
    fn default() -> Self {
        TrainSettings {
            input_size: 256,
            encoder_rank: 8,
            decoder_rank: 4,
            whole: vec!["mask_decoder.output_upscaling.".into(), "mask_decoder.mask_tokens.".into()],
            steps: 500,
            warm_up: 30,
            lr: 5e-4,
            head_factor: 10.0,
            weight_decay: 1e-4,
            clip: 5.0,
            dropout: 0.3,
            true_boxes: 0.25,
            whole_boxes: 0.05,
            jitter: 0.08,
            weights: LossWeights::default(),
            augmentation: Augmentation::default(),
            seed: 1,
        }
    }
}

impl TrainSettings {
    /// sha256 of the settings as JSON, hex: stands in the adapter and guards a checkpoint.
    pub fn sha256(&self) -> String {
        hex::encode(Sha256::digest(serde_json::to_vec(self).unwrap_or_default()))
    }

    /// Learning rate at a step.
    pub fn lr_at(&self, step: usize) -> f32 {
        let warm = ((step + 1) as f32 / self.warm_up.max(1) as f32).min(1.0);
        let t = step as f32 / self.steps.max(1) as f32;
        self.lr * warm * (0.01 + 0.99 * 0.5 * (1.0 + (std::f32::consts::PI * t).cos()))
    }
}
