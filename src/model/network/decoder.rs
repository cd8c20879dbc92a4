//! Prompt encoder and mask decoder: boxes and class tokens in, mask logits out.

use super::layers::{LN_EPS, LN2D_EPS, linear_lora, norm, to_tokens};
use super::{DECODER_HEADS, EMBED, MASK_TOKENS, STRIDE};
use crate::model::ops::Ops;

/// What the mask decoder gives for M prompts.
pub struct Decoded<T> {
    /// Mask logits `[M,1,4h,4w]`: 0 is the border.
    pub masks: T,
    /// The decoder's own estimate of each mask's intersection over union, `[M,1]`.
    pub iou: T,
}

/// Decodes M prompts on one image.
///
/// `embedding` `[1 or M,256,h,w]`; `boxes` `[M,4]` as x0, y0, x1, y1 in 0..1 of the input square; `class_tokens`
/// `[M,256]`, or `None` for upstream SAM's own zero-shot decoding with `multimask_output=False`. Upstream moves a corner
/// to its pixel's centre; so does this.
pub fn decode<O: Ops>(ops: &O, embedding: &O::T, boxes: &O::T, class_tokens: Option<&O::T>) -> Decoded<O::T> {
    let s = ops.shape(embedding);
    let (h, w) = (s[2], s[3]);
    let m = ops.shape(boxes)[0];

    let mut tokens = vec![output_tokens(ops, m), box_tokens(ops, boxes, h, w)];
    if let Some(class) = class_tokens {
        let class = ops.reshape(class, &[m, 1, EMBED]);
        // The mask's own token learns its name as well, not only what it is asked.
        tokens[0] = ops.add(&tokens[0], &class);
        tokens.push(class);
    }
    let tokens = ops.concat(&tokens, 1);
    let no_mask = ops.reshape(&ops.param("prompt_encoder.no_mask_embed.weight"), &[EMBED]);
    // One image serves all prompts: it stays a batch of one until a prompt has written into it.
    let image = ops.add(&to_tokens(ops, embedding), &no_mask);
    let (tokens, image) = transformer(ops, &tokens, &image, &dense_position(ops, h, w));

    let token = |i: usize| ops.reshape(&ops.slice(&tokens, 1, i, i + 1), &[m, EMBED]);
    let kernel = mlp(ops, &token(1), "mask_decoder.output_hypernetworks_mlps.0", 3);
    let masks = upscaled_dot(ops, &image, &kernel, h, w);
    let iou = ops.slice(&mlp(ops, &token(0), "mask_decoder.iou_prediction_head", 3), 1, 0, 1);
    Decoded { masks, iou }
}

/// The IoU token and the mask tokens, `[M, 1+4, 256]`.
fn output_tokens<O: Ops>(ops: &O, m: usize) -> O::T {
    let tokens =
        ops.concat(&[ops.param("mask_decoder.iou_token.weight"), ops.param("mask_decoder.mask_tokens.weight")], 0);
    let n = 1 + MASK_TOKENS;
    ops.expand(&ops.reshape(&tokens, &[1, n, EMBED]), &[m, n, EMBED])
}

/// The two corners of each box, `[M,2,256]`.
fn box_tokens<O: Ops>(ops: &O, boxes: &O::T, h: usize, w: usize) -> O::T {
    let m = ops.shape(boxes)[0];
    let corners = ops.reshape(boxes, &[2 * m, 2]);
    let half_pixel = [0.5 / (w * STRIDE) as f32, 0.5 / (h * STRIDE) as f32];
    let centred = ops.add(&corners, &ops.constant(&[2], half_pixel.to_vec()));
    let code = fourier(ops, &ops.offset(&ops.scale(&centred, 2.0), -1.0));
    let code = ops.reshape(&code, &[m, 2, EMBED]);
    let labels = [2, 3].map(|i| ops.param(&format!("prompt_encoder.point_embeddings.{i}.weight")));
    ops.add(&code, &ops.concat(&labels, 0))
}

/// Position code of every cell of the embedding, `[1, h*w, 256]`.
fn dense_position<O: Ops>(ops: &O, h: usize, w: usize) -> O::T {
    let centre = |i: usize, n: usize| 2.0 * (i as f32 + 0.5) / n as f32 - 1.0;
    let grid = (0..h * w).flat_map(|i| [centre(i % w, w), centre(i / w, h)]).collect();
    let code = fourier(ops, &ops.constant(&[h * w, 2], grid));
    ops.reshape(&code, &[1, h * w, EMBED])
}

/// Random Fourier features of points `[P,2]` in -1..1: `[P,256]`, sines then cosines.
fn fourier<O: Ops>(ops: &O, points: &O::T) -> O::T {
    let frequencies = ops.param("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix");
    let phase = ops.scale(&ops.matmul(points, &frequencies), std::f32::consts::TAU);
    ops.concat(&[ops.sin(&phase), ops.cos(&phase)], 1)
}

/// Two layers of token/image attention and a last look of the tokens at the image. Gives tokens `[M,T,256]` and image
/// `[M,h*w,256]`.
fn transformer<O: Ops>(ops: &O, prompt: &O::T, image: &O::T, position: &O::T) -> (O::T, O::T) {
    let root = "mask_decoder.transformer";
    let mut tokens = prompt.clone();
    let mut image = image.clone();
    for layer in 0..2 {
        let name = format!("{root}.layers.{layer}");
        let part = |p: &str| format!("{name}.{p}");
        // The first layer has no position in its self-attention, and no residual either.
        tokens = if layer == 0 {
            attention(ops, &tokens, &tokens, &tokens, &part("self_attn"))
        } else {
            let q = ops.add(&tokens, prompt);
            ops.add(&tokens, &attention(ops, &q, &q, &tokens, &part("self_attn")))
        };
        tokens = norm(ops, &tokens, &part("norm1"), LN_EPS);

        let placed = ops.add(&image, position);
        let q = ops.add(&tokens, prompt);
        let seen = attention(ops, &q, &placed, &image, &part("cross_attn_token_to_image"));
        tokens = norm(ops, &ops.add(&tokens, &seen), &part("norm2"), LN_EPS);

        let hidden = ops.relu(&linear_lora(ops, &tokens, &part("mlp.lin1")));
        let mixed = linear_lora(ops, &hidden, &part("mlp.lin2"));
        tokens = norm(ops, &ops.add(&tokens, &mixed), &part("norm3"), LN_EPS);

        let k = ops.add(&tokens, prompt);
        let written = attention(ops, &placed, &k, &tokens, &part("cross_attn_image_to_token"));
        image = norm(ops, &ops.add(&image, &written), &part("norm4"), LN_EPS);
    }
    let q = ops.add(&tokens, prompt);
    let placed = ops.add(&image, position);
    let seen = attention(ops, &q, &placed, &image, &format!("{root}.final_attn_token_to_image"));
    tokens = norm(ops, &ops.add(&tokens, &seen), &format!("{root}.norm_final_attn"), LN_EPS);
    (tokens, image)
}

/// Multi-head attention `[B,Q,256]` on `[B,K,256]`. A side with a batch of one is projected once, then shared.
fn attention<O: Ops>(ops: &O, q: &O::T, k: &O::T, v: &O::T, name: &str) -> O::T {
    let q = linear_lora(ops, q, &format!("{name}.q_proj"));
    let k = linear_lora(ops, k, &format!("{name}.k_proj"));
    let v = linear_lora(ops, v, &format!("{name}.v_proj"));
    let batch = ops.shape(&q)[0].max(ops.shape(&k)[0]).max(ops.shape(&v)[0]);
    let inner = ops.shape(&q)[2];
    let d = inner / DECODER_HEADS;
    let heads = |x: &O::T, axes: &[usize]| {
        let s = ops.shape(x);
        let x = ops.permute(&ops.reshape(x, &[s[0], s[1], DECODER_HEADS, d]), axes);
        let mut shape = ops.shape(&x);
        if shape[0] == batch {
            return x;
        }
        shape[0] = batch;
        ops.expand(&x, &shape)
    };
    let q = ops.scale(&heads(&q, &[0, 2, 1, 3]), 1.0 / (d as f32).sqrt());
    let scores = ops.matmul(&q, &heads(&k, &[0, 2, 3, 1]));
    let out = ops.matmul(&ops.softmax(&scores), &heads(&v, &[0, 2, 1, 3]));
    let count = ops.shape(&out)[2];
    let out = ops.reshape(&ops.permute(&out, &[0, 2, 1, 3]), &[batch, count, inner]);
    linear_lora(ops, &out, &format!("{name}.out_proj"))
}

/// Perceptron with ReLU between layers, as upstream's `MLP`.
fn mlp<O: Ops>(ops: &O, x: &O::T, name: &str, layers: usize) -> O::T {
    let mut x = x.clone();
    for i in 0..layers {
        x = linear_lora(ops, &x, &format!("{name}.layers.{i}"));
        if i + 1 < layers {
            x = ops.relu(&x);
        }
    }
    x
}

/// Upscales the image four times and takes each pixel's product with the mask's kernel: `[M,h*w,256]` and `[M,32]` to
/// `[M,1,4h,4w]`.
///
/// A transposed convolution with kernel 2 and stride 2 is a linear layer to four sub-pixels. Kept as such, with channels
/// last, neither the convolutions nor their layer norm need a transposition; only the finished one-channel mask does.
fn upscaled_dot<O: Ops>(ops: &O, image: &O::T, kernel: &O::T, h: usize, w: usize) -> O::T {
    let up = "mask_decoder.output_upscaling";
    let m = ops.shape(image)[0];
    let (c1, c2) = (EMBED / 4, EMBED / 8);
    let x = subpixel_linear(ops, image, &format!("{up}.0"));
    let x = ops.reshape(&x, &[m, h * w * 4, c1]);
    let x = ops.gelu(&norm(ops, &x, &format!("{up}.1"), LN2D_EPS));
    let x = ops.gelu(&subpixel_linear(ops, &x, &format!("{up}.3")));
    let x = ops.reshape(&x, &[m, h * w * 16, c2]);
    let mask = ops.matmul(&x, &ops.reshape(kernel, &[m, c2, 1]));
    // [m, y, x, y1, x1, y2, x2] to rows (y y1 y2) and columns (x x1 x2).
    let mask = ops.permute(&ops.reshape(&mask, &[m, h, w, 2, 2, 2, 2]), &[0, 1, 3, 5, 2, 4, 6]);
    ops.reshape(&mask, &[m, 1, 4 * h, 4 * w])
}

/// Transposed 2x2 convolution `weight` `[C,O,2,2]` as a linear layer: `[.., C]` to `[.., 2*2*O]`.
fn subpixel_linear<O: Ops>(ops: &O, x: &O::T, name: &str) -> O::T {
    let w = ops.param(&format!("{name}.weight"));
    let s = ops.shape(&w);
    let (c, o) = (s[0], s[1]);
    let w = ops.reshape(&ops.permute(&w, &[2, 3, 1, 0]), &[4 * o, c]);
    let b = ops.reshape(&ops.param(&format!("{name}.bias")), &[1, o]);
    let b = ops.reshape(&ops.expand(&b, &[4, o]), &[4 * o]);
    ops.linear(x, &w, Some(&b))
}
