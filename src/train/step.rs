//! One training step: forward through encoder, classifier and decoder, the losses, the gradients.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::sample::{IGNORE, Sample};
use super::settings::{Feedback, TrainSettings};
use crate::image::Plane;
use crate::model::autograd::Autograd;
use crate::model::network::{EMBED, classify_with_dropout, decode, encode, feedback, normalised};
use crate::pipeline::{PromptRule, cam_box, jitter, to_input, true_box};

/// Pixels that a structure must have in a slice to count as present.
pub const PRESENT: usize = 16;

/// Logit of a structure's place where the CAM has no evidence. A structure covers a few percent of the crop; without this
/// prior the evidence itself would have to be negative nearly everywhere, and with it the classifier's logit, which is its
/// mean.
const CAM_PRIOR: f32 = -3.0;

/// The losses of a step, unweighted.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Losses {
    /// The weighted sum.
    pub total: f32,
    /// 1 - Dice.
    pub dice: f32,
    /// Cross entropy of the competition between structures.
    pub competition: f32,
    /// Binary cross entropy of the masks.
    pub mask: f32,
    /// Binary cross entropy of the classifier.
    pub classifier: f32,
    /// Binary cross entropy of the CAM.
    pub cam: f32,
}

/// What a step comes to: the loss to descend, and its parts.
pub struct Outcome<T> {
    /// The weighted sum.
    pub total: T,
    /// Classifier, CAM, and where the decoder was asked: Dice, competition, mask; unweighted, one value each.
    parts: Vec<T>,
}

impl<T: Clone> Outcome<T> {
    pub(super) fn of_masks<A: Autograd<T = T>>(ops: &A, total: T, masks: MaskLosses<T>) -> Self {
        let none = ops.constant(&[1], vec![0.0]);
        Outcome { total, parts: vec![none.clone(), none, masks.dice, masks.competition, masks.mask] }
    }

    /// The values, read at once: a GPU is waited for only here.
    pub fn losses<A: Autograd<T = T>>(&self, ops: &A) -> Losses {
        let one = |x: &T| ops.reshape(x, &[1]);
        let all: Vec<T> = std::iter::once(&self.total).chain(&self.parts).map(one).collect();
        let values = ops.values(&ops.concat(&all, 0));
        let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
        Losses { total: at(0), classifier: at(1), cam: at(2), dice: at(3), competition: at(4), mask: at(5) }
    }
}

/// Share of each cell of a `n x n` grid that each structure covers, `[K, n, n]`.
fn coverage(labels: &Plane<u8>, structures: &[usize], n: usize) -> Vec<f32> {
    let cell = labels.width / n;
    let area = (cell * cell) as f32;
    let mut out = vec![0.0; structures.len() * n * n];
    for (i, &k) in structures.iter().enumerate() {
        for y in 0..n * cell {
            for x in 0..n * cell {
                if usize::from(labels.at(x, y)) == k + 1 {
                    out[(i * n + y / cell) * n + x / cell] += 1.0 / area;
                }
            }
        }
    }
    out
}

/// Share of each cell of a `n x n` grid of which something is known, `[n, n]`.
fn known(labels: &Plane<u8>, n: usize) -> Vec<f32> {
    coverage(labels, &[usize::from(IGNORE) - 1], n).into_iter().map(|v| 1.0 - v).collect()
}

/// Runs one slice. `rng` drives prompts and dropout.
pub fn step<A: Autograd>(ops: &A, sample: &Sample, settings: &TrainSettings, rng: &mut ChaCha8Rng) -> Outcome<A::T> {
    let w = &settings.weights;
    let tokens = ops.param("class_tokens");
    let structures = ops.shape(&tokens)[0];
    let counts: Vec<usize> =
        (0..structures).map(|k| sample.labels.data.iter().filter(|&&v| usize::from(v) == k + 1).count()).collect();
    let present: Vec<usize> = (0..structures).filter(|&k| counts[k] >= PRESENT).collect();

    let image = to_input(&sample.grey);
    let embedding = encode(ops, &ops.constant(&image.shape, image.data));
    let grid = ops.shape(&embedding)[2];
    ops.reseed(rng.random());
    let mask = ops.dropout_mask(&[1, EMBED], settings.dropout);
    let look = |embedding: &A::T| classify_with_dropout(ops, embedding, Some(&mask));
    let classified = match settings.feedback {
        Feedback::Off => look(&embedding),
        // First pass: its masks' loss asks; the classifier answers on what is seen then.
        _ => look(&fed_back(ops, &embedding, &look(&embedding).cam, sample, &tokens, &present, settings, rng)),
    };

    let target: Vec<f32> = (0..structures).map(|k| f32::from(u8::from(counts[k] >= PRESENT))).collect();
    let target = ops.constant(&[1, structures], target);
    let classifier = ops.mean_all(&ops.bce_with_logits(&classified.logits, &target));

    let all: Vec<usize> = (0..structures).collect();
    let shape = [1, structures, grid, grid];
    let covered = ops.constant(&shape, coverage(&sample.labels, &all, grid));
    let known_cells = ops.constant(&[1, 1, grid, grid], known(&sample.labels, grid));
    // The evidence is a mean over positions; its sum has the scale of a logit.
    let evidence = ops.offset(&ops.scale(&classified.evidence, (grid * grid) as f32), CAM_PRIOR);
    let cam = ops.mean_all(&ops.mul(&ops.bce_with_logits(&evidence, &covered), &known_cells));

    let mut total = ops.add(&ops.scale(&classifier, w.classifier), &ops.scale(&cam, w.cam));
    let mut parts = vec![classifier, cam];
    let asked = if settings.negatives { all } else { present.clone() };
    if !present.is_empty() {
        let boxes = prompts(ops, sample, &classified.cam, &asked, settings, rng);
        let chosen: Vec<A::T> = asked.iter().map(|&k| ops.slice(&tokens, 0, k, k + 1)).collect();
        let decoded = decode(ops, &embedding, &ops.constant(&[asked.len(), 4], boxes), Some(&ops.concat(&chosen, 0)));
        let masks = mask_losses(ops, &decoded.masks, sample, &asked, &present);
        let error = ops.sub(&decoded.iou, &masks.iou);
        let iou = ops.mean_all(&ops.mul(&error, &error));
        for (part, weight) in
            [(&masks.dice, w.dice), (&masks.competition, w.competition), (&masks.mask, w.mask), (&iou, w.iou)]
        {
            total = ops.add(&total, &ops.scale(part, weight));
        }
        parts.extend([masks.dice, masks.competition, masks.mask]);
    }
    Outcome { total, parts }
}

/// The embedding after gradient feedback from a first pass of the decoder.
#[allow(clippy::too_many_arguments)]
fn fed_back<A: Autograd>(
    ops: &A,
    embedding: &A::T,
    cam: &A::T,
    sample: &Sample,
    tokens: &A::T,
    present: &[usize],
    settings: &TrainSettings,
    rng: &mut ChaCha8Rng,
) -> A::T {
    if present.is_empty() {
        return embedding.clone();
    }
    let leaf = ops.as_leaf(embedding);
    let boxes = prompts(ops, sample, cam, present, settings, rng);
    let chosen: Vec<A::T> = present.iter().map(|&k| ops.slice(tokens, 0, k, k + 1)).collect();
    let boxes = ops.constant(&[present.len(), 4], boxes);
    let decoded = decode(ops, &leaf, &boxes, Some(&ops.concat(&chosen, 0)));
    let loss = mask_losses(ops, &decoded.masks, sample, present, present).dice;
    match ops.backward_to(&loss, &[&leaf]).into_iter().next().flatten() {
        Some(g) => feedback(ops, embedding, &ops.constant(&ops.shape(embedding), normalised(&ops.values(&g)))),
        None => embedding.clone(),
    }
}

/// One box per present structure, `[M, 4]`: jittered true boxes, CAM boxes, whole crops, in the shares of the settings.
fn prompts<A: Autograd>(
    ops: &A,
    sample: &Sample,
    cam: &A::T,
    present: &[usize],
    settings: &TrainSettings,
    rng: &mut ChaCha8Rng,
) -> Vec<f32> {
    let shape = ops.shape(cam);
    let (h, w) = (shape[2], shape[3]);
    let draw: f32 = rng.random();
    let rule = PromptRule::default();
    // Read only where it is looked at: a GPU would have to be waited for.
    let mut seen = None;
    let mut boxes = Vec::with_capacity(present.len() * 4);
    for &k in present {
        let corners = if draw < settings.true_boxes {
            true_box(&sample.labels, k as u8 + 1).map(|b| jitter(b, settings.jitter, rng))
        } else if draw < settings.true_boxes + settings.whole_boxes {
            None
        } else {
            let seen = seen.get_or_insert_with(|| ops.values(cam));
            let map = Plane { width: w, height: h, data: seen[k * h * w..(k + 1) * h * w].to_vec() };
            Some(cam_box(&map, &rule).corners)
        };
        boxes.extend(corners.unwrap_or([0.0, 0.0, 1.0, 1.0]));
    }
    boxes
}

pub(super) struct MaskLosses<T> {
    pub dice: T,
    pub competition: T,
    pub mask: T,
    /// IoU of each mask with the truth, `[M, 1]`; no gradient flows through it.
    pub iou: T,
}

/// Losses of mask logits `[M, 1, g, g]` of the structures `asked` on a grid of half the crop's resolution; Dice counts
/// those that are `present`.
pub(super) fn mask_losses<A: Autograd>(
    ops: &A,
    masks: &A::T,
    sample: &Sample,
    asked: &[usize],
    present: &[usize],
) -> MaskLosses<A::T> {
    let m = asked.len();
    let n = sample.labels.width / 2;
    let logits = ops.reshape(&ops.resize_bilinear(masks, n, n), &[m, n * n]);
    let truth = coverage(&sample.labels, asked, n);
    let sure = known(&sample.labels, n);
    let weight = ops.constant(&[1, n * n], sure.clone());
    let target = ops.constant(&[m, n * n], truth.clone());

    let mask = ops.mean_all(&ops.mul(&ops.bce_with_logits(&logits, &target), &weight));
    let p = ops.mul(&ops.sigmoid(&logits), &weight);
    let both = ops.sum(&ops.mul(&p, &target), &[1]);
    let sum = ops.add(&ops.sum(&p, &[1]), &ops.sum(&target, &[1]));
    let dice = ops.div(&ops.offset(&ops.scale(&both, 2.0), 1.0), &ops.offset(&sum, 1.0));
    let counted: Vec<f32> = asked.iter().map(|k| f32::from(u8::from(present.contains(k)))).collect();
    let dice = ops.sum_all(&ops.mul(&dice, &ops.constant(&[m, 1], counted)));
    let dice = ops.offset(&ops.scale(&dice, -1.0 / present.len().max(1) as f32), 1.0);

    // Background competes with logit 0, as it does when labels are composed.
    let background = ops.constant(&[1, n * n], vec![0.0; n * n]);
    let scores = ops.permute(&ops.concat(&[background, logits.clone()], 0), &[1, 0]);
    let mut share = vec![0.0f32; n * n * (m + 1)];
    for i in 0..n * n {
        let mut rest = sure[i];
        for k in 0..m {
            share[i * (m + 1) + k + 1] = truth[k * n * n + i];
            rest -= truth[k * n * n + i];
        }
        share[i * (m + 1)] = rest.max(0.0);
    }
    let log = ops.log(&ops.offset(&ops.softmax(&scores), 1e-7));
    let hit = ops.sum_all(&ops.mul(&log, &ops.constant(&[n * n, m + 1], share)));
    let competition = ops.scale(&hit, -1.0 / (n * n) as f32);

    // Counts of pixels, exact in f32.
    let hit = truth.iter().map(|&t| f32::from(u8::from(t >= 0.5))).collect();
    let hit = ops.constant(&[m, n * n], hit);
    let said = ops.step(&logits);
    let inter = ops.sum(&ops.mul(&said, &hit), &[1]);
    let union = ops.sub(&ops.add(&ops.sum(&said, &[1]), &ops.sum(&hit, &[1])), &inter);
    let union = ops.offset(&ops.relu(&ops.offset(&union, -1.0)), 1.0);
    let iou = ops.div(&inter, &union);
    MaskLosses { dice, competition, mask, iou }
}
