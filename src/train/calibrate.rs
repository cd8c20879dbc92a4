//! After training: where the classifier's logits say present.
//!
//! Five slices that all show a structure teach the classifier no absence, and its bias moves slowly; the bias is set here
//! from the logits themselves, so that probability 0.5 is the border.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::device::Device;
use super::sample::{Sample, augment};
use super::settings::TrainSettings;
use super::step::PRESENT;
use crate::engine::{EngineError, Tensor};
use crate::pipeline::to_input;

/// Most slices that are looked at, variations included.
const MOST: usize = 60;
/// Variations of each slice besides itself.
const VARIATIONS: usize = 3;

/// Moves `classifier.fc2.bias` so that each structure's border between absent and present lies at logit 0, as the network serves:
/// after gradient feedback where the adapter has it.
///
/// # Errors
/// [`EngineError`] as the network's interpreter says.
pub fn calibrate(
    base: &BTreeMap<String, Tensor>,
    adapter: &mut BTreeMap<String, Tensor>,
    samples: &[Sample],
    settings: &TrainSettings,
    device: Device,
) -> Result<(), EngineError> {
    // A U-Net has no classifier.
    if !adapter.contains_key("classifier.fc2.bias") {
        return Ok(());
    }
    let networks = device.networks_of(base, adapter, settings.input_size);
    let count = adapter.get("class_tokens").map_or(0, |t| t.shape[0]);
    let mut present = vec![Vec::new(); count];
    let mut absent = vec![Vec::new(); count];
    let step = samples.len().div_ceil(MOST / (VARIATIONS + 1)).max(1);
    for (i, sample) in samples.iter().enumerate().step_by(step) {
        for v in 0..=VARIATIONS {
            let seen = if v == 0 {
                sample.clone()
            } else {
                let seed = settings.seed ^ ((i * (VARIATIONS + 1) + v) as u64) << 20;
                augment(sample, &settings.augmentation, &mut ChaCha8Rng::seed_from_u64(seed))
            };
            let logits = networks.classify(&networks.encode(&to_input(&seen.grey))?)?.logits;
            for (k, &logit) in logits.iter().enumerate() {
                let n = seen.labels.data.iter().filter(|&&l| usize::from(l) == k + 1).count();
                // A sliver is neither.
                if n >= PRESENT {
                    present[k].push(logit);
                } else if n == 0 {
                    absent[k].push(logit);
                }
            }
        }
    }
    if let Some(bias) = adapter.get_mut("classifier.fc2.bias") {
        for (k, b) in bias.data.iter_mut().enumerate() {
            *b -= border(&mut present[k], &mut absent[k]);
        }
    }
    Ok(())
}

/// The logit between absent and present: with both, the middle of the widest gap among those cuts that err least (both
/// kinds weigh the same); with one kind alone, two standard deviations and a half beyond its last.
fn border(present: &mut [f32], absent: &mut [f32]) -> f32 {
    present.sort_by(f32::total_cmp);
    absent.sort_by(f32::total_cmp);
    match (present.first(), absent.last()) {
        (None, None) => 0.0,
        (Some(&least), None) => least - 2.0 * sd(present) - 0.5,
        (None, Some(&most)) => most + 2.0 * sd(absent) + 0.5,
        (Some(_), Some(_)) => {
            let mut all: Vec<f32> = present.iter().chain(absent.iter()).copied().collect();
            all.sort_by(f32::total_cmp);
            let (mut best, mut at) = ((f32::INFINITY, 0.0), 0.0);
            for pair in all.windows(2) {
                let cut = (pair[0] + pair[1]) / 2.0;
                let missed = present.iter().filter(|p| **p < cut).count() as f32 / present.len() as f32;
                let false_alarm = absent.iter().filter(|a| **a >= cut).count() as f32 / absent.len() as f32;
                let rank = (missed + false_alarm, pair[0] - pair[1]);
                if rank < best {
                    (best, at) = (rank, cut);
                }
            }
            at
        }
    }
}

fn sd(values: &[f32]) -> f32 {
    let n = values.len() as f32;
    let mean = values.iter().sum::<f32>() / n;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_parts_the_two_kinds() {
        assert_eq!(border(&mut [3.0, 2.0, 4.0], &mut [-2.0, -1.0]), 0.5);
        // One overlap: the cut that errs least, in the widest gap.
        let b = border(&mut [1.0, 2.0, 3.0, 5.0], &mut [1.5, -4.0, -3.0]);
        assert!((1.5..2.0).contains(&b) || (-3.0..1.0).contains(&b), "{b}");
        assert!(border(&mut [3.0, 2.0, 4.0], &mut []) < 1.0);
        assert!(border(&mut [], &mut [-3.0, -2.0]) > -1.0);
        assert_eq!(border(&mut [], &mut []), 0.0);
    }
}
