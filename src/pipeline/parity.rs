//! Whether an engine may serve: its masks against the CPU engine's on the same images.

use serde::{Deserialize, Serialize};

use super::crop::{CropRule, leg_views};
use super::legs::LegError;
use super::networks::Networks;
use super::prompt::{PromptRule, cam_box};
use crate::engine::{EngineError, EngineIdentity, Tensor};
use crate::image::Plane;
use crate::image::phantom::{Phantom, PhantomOptions};

/// Least intersection over union of every structure's masks.
pub const LEAST_IOU: f64 = 0.98;
/// A structure whose masks cover fewer pixels than this over all images says nothing.
const LEAST_PIXELS: usize = 64;
/// Seeds of the phantoms; no adapter was trained on them.
const SEEDS: [u64; 2] = [0x5ca1_ab1e, 0xba5e_ba11];

/// What became of one structure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StructureParity {
    /// Intersection over union of both engines' masks, pixels of all images taken together.
    pub iou: f64,
    /// Pixels of the union.
    pub pixels: usize,
}

/// An engine beside the CPU engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parity {
    /// What was judged.
    pub engine: EngineIdentity,
    /// What it was held against.
    pub reference: EngineIdentity,
    /// Images.
    pub images: usize,
    /// By structure, in the task's order.
    pub structures: Vec<StructureParity>,
    /// Mask logits that are not finite numbers.
    pub not_finite: usize,
    /// Largest difference of a mask logit.
    pub logit_error: f64,
    /// Root mean square of the differences over that of the reference's logits.
    pub logit_error_relative: f64,
    /// Largest difference of a presence logit.
    pub presence_error: f64,
}

impl Parity {
    /// The worst structure that says something: its place and its IoU.
    pub fn worst(&self) -> Option<(usize, f64)> {
        let telling = self.structures.iter().enumerate().filter(|(_, s)| s.pixels >= LEAST_PIXELS);
        telling.map(|(k, s)| (k, s.iou)).min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Why the engine may not serve; none where it may.
    pub fn problem(&self) -> Option<String> {
        if self.not_finite > 0 {
            return Some(format!("{} of its mask logits are not finite numbers", self.not_finite));
        }
        match self.worst() {
            None => Some("no structure shows on the parity images, so they prove nothing".into()),
            Some((k, iou)) if iou < LEAST_IOU => Some(format!(
                "its masks of structure {} agree with the CPU engine's by {iou:.4} (IoU), {LEAST_IOU} is the least; largest logit \
                 error {:.3}",
                k + 1,
                self.logit_error
            )),
            Some(_) => None,
        }
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let worst = self.worst().map_or("nothing to compare".into(), |(_, iou)| format!("least mask IoU {iou:.4}"));
        format!(
            "{worst} over {} images, mask logit error {:.3} at most ({:.2e} relative), presence logit error {:.3} at most",
            self.images, self.logit_error, self.logit_error_relative, self.presence_error
        )
    }
}

/// The parity images that every box has: slices of phantoms as the network sees them, `[1, 3, S, S]`.
///
/// # Errors
/// [`LegError`] where the crop rule fits no phantom.
pub fn phantom_images(crop: CropRule, size: usize) -> Result<Vec<Tensor>, LegError> {
    let mut images = Vec::new();
    for seed in SEEDS {
        let phantom = Phantom::new(&PhantomOptions {
            seed,
            dims: [384, 192, 6],
            spacing: [1.3, 1.3, 12.5],
            ..Default::default()
        });
        let (views, _) = leg_views(&phantom.volume, crop, size, None)?;
        images.extend(views.iter().flat_map(|v| [1, 4].map(|z| v.input(&phantom.volume, z))));
    }
    Ok(images)
}

/// Both engines' masks and presence, each by its own activation maps, and with the whole crop as the box: what serving asks.
///
/// # Errors
/// Either engine's.
pub fn compare(
    reference: &dyn Networks,
    candidate: &dyn Networks,
    images: &[Tensor],
    progress: &dyn Fn(usize),
) -> Result<Parity, EngineError> {
    let k = reference.structures();
    let mut sums = Sums::new(k);
    for (i, image) in images.iter().enumerate() {
        progress(i);
        let [a, b] = [reference, candidate].map(|n| answers(n, image));
        sums.add(&a?, &b?);
    }
    progress(images.len());
    Ok(sums.parity(reference.identity(), candidate.identity(), images.len()))
}

struct Answers {
    presence: Vec<f32>,
    /// By prompt, then structure.
    masks: Vec<Vec<Plane<f32>>>,
}

fn answers(networks: &dyn Networks, image: &Tensor) -> Result<Answers, EngineError> {
    const WHOLE: [f32; 4] = [0.0, 0.0, 1.0, 1.0];
    let embedding = networks.encode(image)?;
    let seen = networks.classify(&embedding)?;
    let boxes: Vec<_> = seen.cams.iter().map(|c| cam_box(c, &PromptRule::default()).corners).collect();
    let whole = vec![WHOLE; networks.structures()];
    let masks = vec![networks.decode(&embedding, &boxes)?.masks, networks.decode(&embedding, &whole)?.masks];
    Ok(Answers { presence: seen.logits, masks })
}

struct Sums {
    both: Vec<usize>,
    either: Vec<usize>,
    not_finite: usize,
    largest: f64,
    presence: f64,
    error: f64,
    energy: f64,
}

impl Sums {
    fn new(structures: usize) -> Self {
        let none = vec![0; structures];
        Sums { both: none.clone(), either: none, not_finite: 0, largest: 0.0, presence: 0.0, error: 0.0, energy: 0.0 }
    }

    fn add(&mut self, reference: &Answers, candidate: &Answers) {
        for (a, b) in reference.presence.iter().zip(&candidate.presence) {
            // A logit that is no number differs by all.
            let d = f64::from(a - b).abs();
            self.presence = self.presence.max(if d.is_finite() { d } else { f64::MAX });
        }
        for (a, b) in reference.masks.iter().zip(&candidate.masks) {
            for (k, (a, b)) in a.iter().zip(b).enumerate() {
                for (&x, &y) in a.data.iter().zip(&b.data) {
                    self.both[k] += usize::from(x > 0.0 && y > 0.0);
                    self.either[k] += usize::from(x > 0.0 || y > 0.0);
                    if !y.is_finite() {
                        self.not_finite += 1;
                        continue;
                    }
                    let d = f64::from(x - y);
                    self.largest = self.largest.max(d.abs());
                    self.error += d * d;
                    self.energy += f64::from(x).powi(2);
                }
            }
        }
    }

    fn parity(self, reference: EngineIdentity, engine: EngineIdentity, images: usize) -> Parity {
        let iou = |both: usize, either: usize| if either == 0 { 1.0 } else { both as f64 / either as f64 };
        let pairs = self.both.iter().zip(&self.either);
        Parity {
            engine,
            reference,
            images,
            structures: pairs.map(|(&b, &e)| StructureParity { iou: iou(b, e), pixels: e }).collect(),
            not_finite: self.not_finite,
            logit_error: self.largest,
            logit_error_relative: if self.energy > 0.0 { (self.error / self.energy).sqrt() } else { 0.0 },
            presence_error: self.presence,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::networks::{ClassifierOutput, DecoderOutput};
    use super::*;

    /// A disc of a radius as mask of each of two structures.
    struct Discs {
        radius: f32,
        value: f32,
    }
    impl Networks for Discs {
        fn input_size(&self) -> usize {
            64
        }
        fn structures(&self) -> usize {
            2
        }
        fn encode(&self, _: &Tensor) -> Result<Tensor, EngineError> {
            Ok(Tensor::zeros(&[1]))
        }
        fn classify(&self, _: &Tensor) -> Result<ClassifierOutput, EngineError> {
            let cam = Plane { width: 2, height: 2, data: vec![0.0, 1.0, 0.0, 0.0] };
            Ok(ClassifierOutput { logits: vec![self.value; 2], cams: vec![cam.clone(), cam] })
        }
        fn decode(&self, _: &Tensor, _: &[[f32; 4]]) -> Result<DecoderOutput, EngineError> {
            let at = |i: usize| ((i % 64) as f32 - 32.0).hypot((i / 64) as f32 - 32.0);
            let disc = |r: f32| Plane {
                width: 64,
                height: 64,
                data: (0..64 * 64).map(|i| if at(i) < r { self.value } else { -1.0 }).collect(),
            };
            Ok(DecoderOutput { masks: vec![disc(self.radius), disc(20.0)], iou: vec![1.0; 2] })
        }
        fn identity(&self) -> EngineIdentity {
            EngineIdentity { kind: "discs".into(), version: "1".into(), precision: "fp32".into() }
        }
    }

    fn held(radius: f32, value: f32) -> Parity {
        let image = [Tensor::zeros(&[1]), Tensor::zeros(&[1])];
        compare(&Discs { radius: 20.0, value: 1.0 }, &Discs { radius, value }, &image, &|_| ()).unwrap()
    }

    #[test]
    fn masks_decide_and_the_worst_structure_counts() {
        let same = held(20.0, 1.5);
        assert_eq!((same.problem(), same.worst().unwrap().1), (None, 1.0));
        assert!((same.logit_error - 0.5).abs() < 1e-6 && (same.presence_error - 0.5).abs() < 1e-6);
        let other = held(18.0, 1.0);
        assert!(other.worst().unwrap().0 == 0 && (0.75..0.85).contains(&other.worst().unwrap().1), "{other:?}");
        let says = other.problem().unwrap();
        assert!(says.contains("structure 1") && says.contains("0.98"), "{says}");
    }

    #[test]
    fn what_proves_nothing_and_what_is_no_number_do_not_pass() {
        let nothing = compare(
            &Discs { radius: 20.0, value: -1.0 },
            &Discs { radius: 5.0, value: -1.0 },
            &[Tensor::zeros(&[1])],
            &|_| (),
        );
        assert!(nothing.unwrap().problem().unwrap().contains("prove nothing"));
        assert!(held(20.0, f32::NAN).problem().unwrap().contains("not finite"));
    }

    #[test]
    fn the_phantoms_show_both_legs_and_do_not_change() {
        let images = phantom_images(CropRule::default(), 64).unwrap();
        assert_eq!((images.len(), &images[0].shape[..]), (8, &[1, 3, 64, 64][..]));
        assert_eq!(images, phantom_images(CropRule::default(), 64).unwrap());
        assert!(images.iter().all(|i| i.data.iter().any(|v| *v > 0.5)), "each has bright pixels");
    }
}
