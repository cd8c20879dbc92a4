//! Which structures are in the slice, and where the classifier looked: multi-label head and closed-form GradCAM.

use super::EMBED;
use super::layers::linear_lora;
use crate::model::ops::Ops;

/// What the classifier gives for K structures.
pub struct Classified<T> {
    /// One logit per structure, `[N,K]`.
    pub logits: T,
    /// GradCAM of each logit on the embedding, not normalised, `[N,K,h,w]`, at least 0.
    pub cam: T,
    /// The same before its ReLU: where a structure is spoken for and against. Training supervises it.
    pub evidence: T,
}

/// Global average pool, linear, ReLU, linear, from `embedding` `[N,256,h,w]`.
///
/// The head is small enough for GradCAM in closed form: `cam_k = relu(sum_c alpha_kc F_c)` with
/// `alpha_k = (W2[k] * step(z)) W1 / (h w)`, the mean over positions of the logit's gradient on F. No backward pass is
/// needed to serve it.
pub fn classify<O: Ops>(ops: &O, embedding: &O::T) -> Classified<O::T> {
    classify_with_dropout(ops, embedding, None)
}

/// The same with a dropout mask `[N,256]` over the hidden units: 0, or 1/(1-p) where kept. For training.
pub fn classify_with_dropout<O: Ops>(ops: &O, embedding: &O::T, dropout: Option<&O::T>) -> Classified<O::T> {
    let s = ops.shape(embedding);
    let (n, h, w) = (s[0], s[2], s[3]);
    let pooled = ops.reshape(&ops.mean(embedding, &[2, 3]), &[n, EMBED]);
    let z = linear_lora(ops, &pooled, "classifier.fc1");
    let hidden = ops.relu(&z);
    let logits = linear_lora(ops, &dropout.map_or(hidden.clone(), |d| ops.mul(&hidden, d)), "classifier.fc2");

    let w1 = ops.param("classifier.fc1.weight");
    let w2 = ops.param("classifier.fc2.weight");
    let k = ops.shape(&w2)[0];
    let open = ops.reshape(&ops.step(&z), &[n, 1, EMBED]);
    let through = ops.mul(&ops.reshape(&w2, &[1, k, EMBED]), &open);
    let alpha = ops.matmul(&ops.reshape(&through, &[n * k, EMBED]), &w1);
    let alpha = ops.scale(&ops.reshape(&alpha, &[n, k, EMBED]), 1.0 / (h * w) as f32);
    let evidence = ops.matmul(&alpha, &ops.reshape(embedding, &[n, EMBED, h * w]));
    let evidence = ops.reshape(&evidence, &[n, k, h, w]);
    Classified { logits, cam: ops.relu(&evidence), evidence }
}
