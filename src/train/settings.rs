//! What a training run depends on, apart from the data.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::sample::Augmentation;
use crate::model::network::{MAX_RANK, TRAINED_WHOLE, check_image_size};
use crate::pipeline::Prompting;

/// Settings of a run; equal settings, data and seed give the same adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Channels of a U-Net that is trained from nothing instead, as a baseline; 0 adapts the base.
    pub unet: usize,
    /// Edge of the network's input, pixels, a multiple of 32.
    pub input_size: usize,
    /// LoRA rank in the image encoder's linears; 0 leaves it alone.
    pub encoder_rank: usize,
    /// LoRA rank in the mask decoder's linears; 0 leaves it alone.
    pub decoder_rank: usize,
    /// Channels of convolution adapters after the encoder's attention blocks, the baseline to LoRA; 0: none.
    // Left out where it is off, so that settings written before it existed keep their hash.
    #[serde(skip_serializing_if = "is_zero")]
    pub conv_adapters: usize,
    /// Base tensors whose name starts with one of these are trained whole.
    pub whole: Vec<String>,
    /// Tell the encoder where in the crop each cell lies.
    pub position: bool,
    /// Optimiser steps, one slice each.
    pub steps: usize,
    /// Labelled slices (a leg each) up to which `steps` holds: with more, the main phase grows with the square root of their
    /// number, up to twice; 0: it never grows.
    // Left out at its default, so that settings written before it existed keep their hash.
    #[serde(skip_serializing_if = "is_ten")]
    pub steps_hold: usize,
    /// Steps of linear warm-up.
    pub warm_up: usize,
    /// Peak learning rate of AdamW; a cosine takes it to 1 %.
    pub lr: f32,
    /// Factor on the learning rate of the classifier and the class tokens, which start from nothing.
    pub head_factor: f32,
    /// Factor on the learning rate of the position codes.
    pub position_factor: f32,
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
    /// Gradient feedback into the classifier.
    pub feedback: Feedback,
    /// Tell the decoder which structure is meant; without it a box alone speaks.
    pub class_tokens: bool,
    /// How the decoder is asked when the adapter serves.
    pub prompting: Prompting,
    /// Ask the decoder for absent structures too, whose masks must stay empty.
    pub negatives: bool,
    /// Steps of the last phase, on labelled and pseudo-labelled slices; 0 leaves it out.
    pub pseudo_steps: usize,
    /// Factor on the learning rate of that phase.
    pub pseudo_lr: f32,
    /// Most volumes that are pseudo-labelled; more cost time and teach little new.
    pub pseudo_volumes: usize,
    /// Share of steps on pseudo-labelled slices, where there are any.
    pub pseudo_share: f32,
    /// Pixels of pseudo-labels with more doubt than this are not learnt from.
    pub pseudo_doubt: f32,
    /// Edge of the input in the first phase, pixels; 0 leaves the phase out.
    pub coarse_size: usize,
    /// Steps of the first phase, on labelled slices alone.
    pub coarse_steps: usize,
    /// Seed of everything random.
    pub seed: u64,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn is_ten(n: &usize) -> bool {
    *n == 10
}

/// Gradient feedback: the segmentation's gradient on the embedding asks what the classifier looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feedback {
    /// None.
    #[default]
    Off,
    /// While training, from the true loss.
    Train,
    /// While training, and while serving from a surrogate: Dice of the mask with itself at its threshold.
    TrainAndTest,
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
            unet: 0,
            input_size: 448,
            encoder_rank: 8,
            decoder_rank: 3,
            conv_adapters: 0,
            whole: TRAINED_WHOLE.map(String::from).to_vec(),
            position: true,
            steps: 900,
            steps_hold: 10,
            warm_up: 30,
            lr: 5e-4,
            head_factor: 10.0,
            position_factor: 4.0,
            weight_decay: 1e-4,
            clip: 5.0,
            dropout: 0.3,
            true_boxes: 0.20,
            whole_boxes: 0.25,
            jitter: 0.08,
            feedback: Feedback::Off,
            class_tokens: true,
            prompting: Prompting::default(),
            negatives: true,
            pseudo_steps: 300,
            pseudo_lr: 0.5,
            pseudo_volumes: 10,
            pseudo_share: 0.6,
            pseudo_doubt: 0.6,
            coarse_size: 224,
            coarse_steps: 500,
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

    /// Whether these settings end in an adapter that serves; asked before anything is trained.
    ///
    /// # Errors
    /// One sentence that names the setting and the remedy.
    pub fn check(&self) -> Result<(), String> {
        if self.steps == 0 {
            return Err("steps = 0 trains nothing: give the main phase steps".into());
        }
        if self.unet > 0 {
            return Err(format!(
                "unet = {} trains a baseline that is no adapter: set it to 0, or compare with it by `scanside experiment`",
                self.unet
            ));
        }
        if self.feedback == Feedback::TrainAndTest {
            return Err(
                "feedback = \"train-and-test\" makes an adapter that no engine serves: use \"off\" or \"train\", or \
                        measure it by `scanside experiment`"
                    .into(),
            );
        }
        for (name, rank) in [("encoder_rank", self.encoder_rank), ("decoder_rank", self.decoder_rank)] {
            if rank > MAX_RANK {
                return Err(format!("{name} = {rank} is too much: give 0 to {MAX_RANK}"));
            }
        }
        check_image_size(self.input_size).map_err(|e| format!("input_size: {e}"))?;
        if self.coarse_size > 0 {
            check_image_size(self.coarse_size)
                .map_err(|e| format!("coarse_size: {e}; 0 leaves the first phase out"))?;
        }
        Ok(())
    }

    /// Scales the steps of all phases so that they are `total` together; at least one in the main phase.
    pub fn scale_steps(&mut self, total: usize) {
        let coarse = if self.coarse_size > 0 { self.coarse_steps } else { 0 };
        let share = total as f64 / (coarse + self.steps + self.pseudo_steps).max(1) as f64;
        let scaled = |n: usize| (n as f64 * share).round() as usize;
        (self.coarse_steps, self.pseudo_steps) = (scaled(coarse), scaled(self.pseudo_steps));
        self.steps = scaled(self.steps).max(1);
    }

    /// Steps of the main phase with so many labelled slices.
    pub fn steps_for(&self, slices: usize) -> usize {
        let growth = (slices as f64 / self.steps_hold.max(1) as f64).sqrt().clamp(1.0, 2.0);
        if self.steps_hold == 0 { self.steps } else { (self.steps as f64 * growth).round() as usize }
    }

    /// Learning rate at a step.
    pub fn lr_at(&self, step: usize) -> f32 {
        let warm = ((step + 1) as f32 / self.warm_up.max(1) as f32).min(1.0);
        let t = step as f32 / self.steps.max(1) as f32;
        self.lr * warm * (0.01 + 0.99 * 0.5 * (1.0 + (std::f32::consts::PI * t).cos()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_end_in_an_adapter_is_refused_before_it_is_trained() {
        let refused = |change: fn(&mut TrainSettings)| {
            let mut s = TrainSettings::default();
            change(&mut s);
            s.check().unwrap_err()
        };
        assert_eq!(TrainSettings::default().check(), Ok(()));
        assert!(refused(|s| s.steps = 0).starts_with("steps = 0"));
        assert!(refused(|s| s.unet = 16).contains("experiment"));
        assert!(refused(|s| s.feedback = Feedback::TrainAndTest).contains("train-and-test"));
        assert!(refused(|s| s.encoder_rank = 257).starts_with("encoder_rank = 257"));
        assert!(refused(|s| s.decoder_rank = 300).starts_with("decoder_rank = 300"));
        assert!(refused(|s| s.input_size = 100).starts_with("input_size"));
        assert!(refused(|s| s.coarse_size = 200).starts_with("coarse_size"));
    }

    #[test]
    fn more_slices_get_more_steps_up_to_twice() {
        let s = TrainSettings { steps: 900, ..TrainSettings::default() };
        assert_eq!([1, 5, 10].map(|n| s.steps_for(n)), [900; 3]);
        assert_eq!([20, 40, 500].map(|n| s.steps_for(n)), [1273, 1800, 1800]);
        let exact = TrainSettings { steps_hold: 0, ..s.clone() };
        assert_eq!(exact.steps_for(500), 900);
        // A default that is left out does not change the hash of what was trained before it existed.
        let text = serde_json::to_string(&s).unwrap();
        assert!(!text.contains("steps_hold") && !text.contains("conv_adapters"));
        assert!(serde_json::to_string(&exact).unwrap().contains("steps_hold"));
    }
}
