//! Gradient feedback: the segmentation's gradient asks, by cross attention, what the classifier should look at.

use super::EMBED;
use super::layers::{to_image, to_tokens};
use super::shapes::Shapes;
use crate::model::ops::Ops;

/// Width of the attention.
pub const FEEDBACK: usize = 64;

/// The parameters' shapes: queries from the gradient, keys and values from the embedding, one output, one gate.
pub fn feedback_shapes() -> Shapes {
    let mut s = Shapes::new();
    for p in ["q", "k", "v"] {
        s.insert(format!("feedback.{p}.weight"), vec![FEEDBACK, EMBED]);
    }
    s.insert("feedback.out.weight".into(), vec![EMBED, FEEDBACK]);
    s.insert("feedback.gamma".into(), vec![1]);
    s
}

/// `F' = F + gamma Wo(A Wv F)`, `A = softmax((Wq G)(Wk F)^T / sqrt d)`, over the cells of the embedding `F` `[1,256,h,w]`; `G` is
/// the segmentation loss's gradient on F, cut from the tape and normalised to a mean square of 1. Our definition (the published
/// code has no feedback): one head of width 64; gamma starts at 0, so that the first step is without it.
pub fn feedback<O: Ops>(ops: &O, embedding: &O::T, gradient: &O::T) -> O::T {
    let s = ops.shape(embedding);
    let tokens = to_tokens(ops, embedding);
    let project = |x: &O::T, p: &str| ops.linear(x, &ops.param(&format!("feedback.{p}.weight")), None);
    let q = ops.scale(&project(&to_tokens(ops, gradient), "q"), 1.0 / (FEEDBACK as f32).sqrt());
    let k = ops.permute(&project(&tokens, "k"), &[0, 2, 1]);
    let seen = ops.matmul(&ops.softmax(&ops.matmul(&q, &k)), &project(&tokens, "v"));
    let out = ops.mul(&project(&seen, "out"), &ops.reshape(&ops.param("feedback.gamma"), &[1, 1, 1]));
    ops.add(embedding, &to_image(ops, &out, s[2], s[3]))
}

/// Normalises a gradient to a mean square of 1.
pub fn normalised(gradient: &[f32]) -> Vec<f32> {
    let mean = gradient.iter().map(|v| f64::from(v * v)).sum::<f64>() / gradient.len().max(1) as f64;
    let scale = if mean > 0.0 { (1.0 / mean.sqrt()) as f32 } else { 0.0 };
    gradient.iter().map(|v| v * scale).collect()
}
