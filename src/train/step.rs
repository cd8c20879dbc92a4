//! One training step: forward through encoder, classifier and decoder, the losses, the gradients.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::sample::{IGNORE, Sample};
use super::settings::{Feedback, TrainSettings};
use crate::image::Plane;
use crate::model::eager::{Eager, Gradients, Var};
use crate::model::network::{EMBED, classify_with_dropout, decode, encode, feedback, normalised};
use crate::model::ops::Ops;
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

/// Runs one slice and returns its losses and gradients. `rng` drives prompts and dropout.
pub fn step(eager: &Eager, sample: &Sample, settings: &TrainSettings, rng: &mut ChaCha8Rng) -> (Losses, Gradients) {
    let w = &settings.weights;
    let tokens = eager.param("class_tokens");
    let structures = tokens.shape()[0];
    let counts: Vec<usize> =
        (0..structures).map(|k| sample.labels.data.iter().filter(|&&v| usize::from(v) == k + 1).count()).collect();
    let present: Vec<usize> = (0..structures).filter(|&k| counts[k] >= PRESENT).collect();

    let image = to_input(&sample.grey);
    let embedding = encode(eager, &Var::constant(&image.shape, image.data));
    let grid = embedding.shape()[2];
    eager.reseed(rng.random());
    let mask = eager.dropout_mask(&[1, EMBED], settings.dropout);
    let look = |embedding: &Var| classify_with_dropout(eager, embedding, Some(&mask));
    let classified = match settings.feedback {
        Feedback::Off => look(&embedding),
        // First pass: its masks' loss asks; the classifier answers on what is seen then.
        _ => look(&fed_back(eager, &embedding, &look(&embedding).cam, sample, &tokens, &present, settings, rng)),
    };

    let target: Vec<f32> = (0..structures).map(|k| f32::from(u8::from(counts[k] >= PRESENT))).collect();
    let target = Var::constant(&[1, structures], target);
    let classifier = eager.mean_all(&eager.bce_with_logits(&classified.logits, &target));

    let all: Vec<usize> = (0..structures).collect();
    let shape = [1, structures, grid, grid];
    let covered = Var::constant(&shape, coverage(&sample.labels, &all, grid));
    let known_cells = Var::constant(&[1, 1, grid, grid], known(&sample.labels, grid));
    // The evidence is a mean over positions; its sum has the scale of a logit.
    let evidence = eager.offset(&eager.scale(&classified.evidence, (grid * grid) as f32), CAM_PRIOR);
    let cam = eager.mean_all(&eager.mul(&eager.bce_with_logits(&evidence, &covered), &known_cells));

    let mut total = eager.add(&eager.scale(&classifier, w.classifier), &eager.scale(&cam, w.cam));
    let mut losses = Losses { classifier: classifier.item(), cam: cam.item(), ..Losses::default() };
    let asked = if settings.negatives { all } else { present.clone() };
    if !present.is_empty() {
        let boxes = prompts(sample, &classified.cam, &asked, settings, rng);
        let chosen: Vec<Var> = asked.iter().map(|&k| eager.slice(&tokens, 0, k, k + 1)).collect();
        let decoded =
            decode(eager, &embedding, &Var::constant(&[asked.len(), 4], boxes), Some(&eager.concat(&chosen, 0)));
        let parts = mask_losses(eager, &decoded.masks, sample, &asked, &present);
        losses.dice = parts.dice.item();
        losses.competition = parts.competition.item();
        losses.mask = parts.mask.item();
        let error = eager.sub(&decoded.iou, &parts.iou);
        let iou = eager.mean_all(&eager.mul(&error, &error));
        for (part, weight) in
            [(&parts.dice, w.dice), (&parts.competition, w.competition), (&parts.mask, w.mask), (&iou, w.iou)]
        {
            total = eager.add(&total, &eager.scale(part, weight));
        }
    }
    losses.total = total.item();
    (losses, eager.backward(&total))
}

/// The embedding after gradient feedback from a first pass of the decoder.
#[allow(clippy::too_many_arguments)]
fn fed_back(
    eager: &Eager,
    embedding: &Var,
    cam: &Var,
    sample: &Sample,
    tokens: &Var,
    present: &[usize],
    settings: &TrainSettings,
    rng: &mut ChaCha8Rng,
) -> Var {
    if present.is_empty() {
        return embedding.clone();
    }
    let leaf = embedding.as_leaf();
    let boxes = prompts(sample, cam, present, settings, rng);
    let chosen: Vec<Var> = present.iter().map(|&k| eager.slice(tokens, 0, k, k + 1)).collect();
    let boxes = Var::constant(&[present.len(), 4], boxes);
    let decoded = decode(eager, &leaf, &boxes, Some(&eager.concat(&chosen, 0)));
    let loss = mask_losses(eager, &decoded.masks, sample, present, present).dice;
    match eager.backward_to(&loss, &[&leaf]).into_iter().next().flatten() {
        Some(g) => feedback(eager, embedding, &Var::constant(embedding.shape(), normalised(g.data()))),
        None => embedding.clone(),
    }
}

/// One box per present structure, `[M, 4]`: jittered true boxes, CAM boxes, whole crops, in the shares of the settings.
fn prompts(sample: &Sample, cam: &Var, present: &[usize], settings: &TrainSettings, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let (h, w) = (cam.shape()[2], cam.shape()[3]);
    let draw: f32 = rng.random();
    let rule = PromptRule::default();
    let mut boxes = Vec::with_capacity(present.len() * 4);
    for &k in present {
        let corners = if draw < settings.true_boxes {
            true_box(&sample.labels, k as u8 + 1).map(|b| jitter(b, settings.jitter, rng))
        } else if draw < settings.true_boxes + settings.whole_boxes {
            None
        } else {
            let map = Plane { width: w, height: h, data: cam.data()[k * h * w..(k + 1) * h * w].to_vec() };
            Some(cam_box(&map, &rule).corners)
        };
        boxes.extend(corners.unwrap_or([0.0, 0.0, 1.0, 1.0]));
    }
    boxes
}

pub(super) struct MaskLosses {
    pub dice: Var,
    pub competition: Var,
    pub mask: Var,
    /// IoU of each mask with the truth, `[M, 1]`, constant.
    pub iou: Var,
}

/// Losses of mask logits `[M, 1, g, g]` of the structures `asked` on a grid of half the crop's resolution; Dice counts
/// those that are `present`.
pub(super) fn mask_losses(
    eager: &Eager,
    masks: &Var,
    sample: &Sample,
    asked: &[usize],
    present: &[usize],
) -> MaskLosses {
    let m = asked.len();
    let n = sample.labels.width / 2;
    let logits = eager.reshape(&eager.resize_bilinear(masks, n, n), &[m, n * n]);
    let truth = coverage(&sample.labels, asked, n);
    let sure = known(&sample.labels, n);
    let weight = Var::constant(&[1, n * n], sure.clone());
    let target = Var::constant(&[m, n * n], truth.clone());

    let mask = eager.mean_all(&eager.mul(&eager.bce_with_logits(&logits, &target), &weight));
    let p = eager.mul(&eager.sigmoid(&logits), &weight);
    let both = eager.sum(&eager.mul(&p, &target), &[1]);
    let sum = eager.add(&eager.sum(&p, &[1]), &eager.sum(&target, &[1]));
    let dice = eager.div(&eager.offset(&eager.scale(&both, 2.0), 1.0), &eager.offset(&sum, 1.0));
    let counted: Vec<f32> = asked.iter().map(|k| f32::from(u8::from(present.contains(k)))).collect();
    let dice = eager.sum_all(&eager.mul(&dice, &Var::constant(&[m, 1], counted)));
    let dice = eager.offset(&eager.scale(&dice, -1.0 / present.len().max(1) as f32), 1.0);

    // Background competes with logit 0, as it does when labels are composed.
    let background = Var::constant(&[1, n * n], vec![0.0; n * n]);
    let scores = eager.permute(&eager.concat(&[background, logits.clone()], 0), &[1, 0]);
    let mut share = vec![0.0f32; n * n * (m + 1)];
    for i in 0..n * n {
        let mut rest = sure[i];
        for k in 0..m {
            share[i * (m + 1) + k + 1] = truth[k * n * n + i];
            rest -= truth[k * n * n + i];
        }
        share[i * (m + 1)] = rest.max(0.0);
    }
    let log = eager.log(&eager.offset(&eager.softmax(&scores), 1e-7));
    let hit = eager.sum_all(&eager.mul(&log, &Var::constant(&[n * n, m + 1], share)));
    let competition = eager.scale(&hit, -1.0 / (n * n) as f32);

    let iou = (0..m)
        .map(|k| {
            let (mut inter, mut union) = (0usize, 0usize);
            for i in 0..n * n {
                let (a, b) = (logits.data()[k * n * n + i] > 0.0, truth[k * n * n + i] >= 0.5);
                inter += usize::from(a && b);
                union += usize::from(a || b);
            }
            inter as f32 / union.max(1) as f32
        })
        .collect();
    MaskLosses { dice, competition, mask, iou: Var::constant(&[m, 1], iou) }
}
