//! One slice through the whole network, for comparing engines and precisions by their masks.

use super::crop::{CropRule, leg_views, to_input};
use super::legs::LegError;
use super::networks::Networks;
use super::prompt::{PromptRule, cam_box};
use crate::engine::{EngineError, Tensor};
use crate::image::Plane;
use crate::image::phantom::{Phantom, PhantomOptions};

/// The whole crop as a box.
const WHOLE: [f32; 4] = [0.0, 0.0, 1.0, 1.0];

/// Boxes from the classifier's activation maps, as the pipeline asks first.
///
/// # Errors
/// As the engine says.
pub fn first_boxes(networks: &dyn Networks, embedding: &Tensor) -> Result<Vec<[f32; 4]>, EngineError> {
    let rule = PromptRule::default();
    Ok(networks.classify(embedding)?.cams.iter().map(|c| cam_box(c, &rule).corners).collect())
}

/// Mask logits of each structure `[S/4, S/4]` from an embedding: the mean of what the decoder says to these boxes and to the
/// whole crop, as the pipeline's first round has it.
///
/// # Errors
/// As the engine says.
pub fn masks_from(
    networks: &dyn Networks,
    embedding: &Tensor,
    boxes: &[[f32; 4]],
) -> Result<Vec<Plane<f32>>, EngineError> {
    let mut masks = networks.decode(embedding, boxes)?.masks;
    let other = networks.decode(embedding, &vec![WHOLE; boxes.len()])?.masks;
    for (m, o) in masks.iter_mut().zip(&other) {
        m.data.iter_mut().zip(&o.data).for_each(|(a, b)| *a = (*a + b) / 2.0);
    }
    Ok(masks)
}

/// Mask logits of each structure for an image `[1,3,S,S]`: encoder, classifier, boxes, decoder.
///
/// # Errors
/// As the engine says.
pub fn masks_of(networks: &dyn Networks, image: &Tensor) -> Result<Vec<Plane<f32>>, EngineError> {
    let embedding = networks.encode(image)?;
    let boxes = first_boxes(networks, &embedding)?;
    masks_from(networks, &embedding, &boxes)
}

/// Network inputs `[1,3,S,S]` of some slices of a phantom, right leg first: images that can be had anywhere and are nobody's.
///
/// # Errors
/// [`LegError`] where the phantom's legs are not found; a slice beyond the phantom is left out.
pub fn phantom_images(seed: u64, slices: &[usize], crop: CropRule, size: usize) -> Result<Vec<Tensor>, LegError> {
    let phantom = Phantom::new(&PhantomOptions { seed, ..PhantomOptions::default() });
    let count = phantom.volume.geometry.dims[2];
    let (views, _) = leg_views(&phantom.volume, crop, size, None)?;
    Ok(views
        .iter()
        .flat_map(|view| slices.iter().filter(|z| **z < count).map(|&z| to_input(&view.grey(&phantom.volume, z))))
        .collect())
}

/// How masks agree with reference masks over slices: each structure's pixels are counted over all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MaskTally {
    /// Pixels of each structure in both, in the reference, in the other.
    pixels: Vec<[u64; 3]>,
    /// Squared logits of the reference, squared differences.
    squares: [f64; 2],
}

impl MaskTally {
    /// Adds one slice's mask logits. Where structures compete, the highest logit above zero has the pixel.
    pub fn add(&mut self, reference: &[Plane<f32>], other: &[Plane<f32>]) {
        self.pixels.resize(self.pixels.len().max(reference.len()), [0; 3]);
        let (a, b) = (winners(reference), winners(other));
        for (a, b) in a.into_iter().zip(b) {
            match (a, b) {
                (Some(a), Some(b)) if a == b => self.pixels[a].iter_mut().for_each(|n| *n += 1),
                _ => {
                    for (own, place) in [(a, 1), (b, 2)] {
                        if let Some(counts) = own.and_then(|k| self.pixels.get_mut(k)) {
                            counts[place] += 1;
                        }
                    }
                }
            }
        }
        for (r, o) in reference.iter().zip(other) {
            for (x, y) in r.data.iter().zip(&o.data) {
                self.squares[0] += f64::from(*x).powi(2);
                self.squares[1] += f64::from(x - y).powi(2);
            }
        }
    }

    /// Mean Dice over the structures that either has.
    pub fn dice(&self) -> f64 {
        self.mean(|[both, a, b]| 2.0 * both / (a + b))
    }

    /// Mean intersection over union over the structures that either has.
    pub fn iou(&self) -> f64 {
        self.mean(|[both, a, b]| both / (a + b - both))
    }

    /// Root mean square difference of the logits, as a share of the reference's.
    pub fn logit_error(&self) -> f64 {
        (self.squares[1] / self.squares[0].max(f64::MIN_POSITIVE)).sqrt()
    }

    fn mean(&self, of: impl Fn([f64; 3]) -> f64) -> f64 {
        let seen: Vec<f64> = self.pixels.iter().filter(|p| p[1] + p[2] > 0).map(|p| of(p.map(|n| n as f64))).collect();
        if seen.is_empty() { 1.0 } else { seen.iter().sum::<f64>() / seen.len() as f64 }
    }
}

/// The structure that has each pixel.
fn winners(masks: &[Plane<f32>]) -> Vec<Option<usize>> {
    let n = masks.first().map_or(0, |m| m.data.len());
    (0..n)
        .map(|i| {
            let best = masks.iter().enumerate().max_by(|a, b| a.1.data[i].total_cmp(&b.1.data[i]));
            // A logit that is no number is in no mask.
            best.filter(|(_, m)| m.data[i] > 0.0).map(|(k, _)| k)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(data: &[f32]) -> Plane<f32> {
        Plane { width: data.len(), height: 1, data: data.to_vec() }
    }

    #[test]
    fn agreement_counts_pixels_of_each_structure() {
        let reference = [plane(&[1.0, 1.0, -1.0, -1.0]), plane(&[-1.0, -1.0, 2.0, -1.0])];
        let mut same = MaskTally::default();
        same.add(&reference, &reference);
        assert_eq!((same.dice(), same.iou(), same.logit_error()), (1.0, 1.0, 0.0));
        // The second structure takes one pixel of the first.
        let other = [plane(&[1.0, 1.0, -1.0, -1.0]), plane(&[-1.0, 3.0, 2.0, -1.0])];
        let mut t = MaskTally::default();
        t.add(&reference, &other);
        let two_thirds = 2.0 / 3.0;
        assert!((t.dice() - two_thirds).abs() < 1e-12 && (t.iou() - 0.5).abs() < 1e-12, "{t:?}");
        assert!((t.logit_error() - (16.0f64 / 11.0).sqrt()).abs() < 1e-12);
        // What is no number agrees with nothing.
        let broken = [plane(&[f32::NAN; 4]), plane(&[f32::NAN; 4])];
        let mut t = MaskTally::default();
        t.add(&reference, &broken);
        assert_eq!(t.dice(), 0.0);
        assert_eq!(MaskTally::default().dice(), 1.0);
    }

    #[test]
    fn a_phantom_gives_the_same_images_again() {
        let images = |seed| phantom_images(seed, &[2, 99], CropRule::default(), 64).unwrap();
        assert_eq!(images(5).len(), 2);
        assert_eq!(images(5)[0].shape, [1, 3, 64, 64]);
        assert_eq!(images(5), images(5));
        assert_ne!(images(5), images(6));
    }
}
