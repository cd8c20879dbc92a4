//! The image encoder: TinyViT-5M and SAM's neck. Blocks work on `[N, h*w, C]`.

use super::layers::{LN_EPS, LN2D_EPS, conv, linear_lora, norm, pointwise_lora, to_image, to_tokens};
use super::{DEPTHS, DIMS, HEADS, WINDOWS};
use crate::model::ops::Ops;

/// Embeds an image. `image` `[N,3,S,S]` normalised by SAM's mean and standard deviation, S a multiple of 32;
/// gives `[N,256,S/16,S/16]`. There is no absolute position in TinyViT, so any such S will do.
pub fn encode<O: Ops>(ops: &O, image: &O::T) -> O::T {
    encode_from_stem(ops, &encode_stem(ops, image))
}

/// The convolutional stem alone (patch embedding and first stage): `[N,3,S,S]` to `[N,(S/8)^2,128]`. Training can cache
/// its result where no adapter tensor lies inside it.
pub fn encode_stem<O: Ops>(ops: &O, image: &O::T) -> O::T {
    let p = "image_encoder.patch_embed.seq";
    let x = ops.gelu(&conv(ops, image, &format!("{p}.0"), 2, 1, 1));
    let mut x = conv(ops, &x, &format!("{p}.2"), 2, 1, 1);
    for block in 0..DEPTHS[0] {
        x = mbconv(ops, &x, &format!("image_encoder.layers.0.blocks.{block}"));
    }
    merge(ops, &x, 0)
}

/// The attention stages and the neck: what follows [`encode_stem`].
pub fn encode_from_stem<O: Ops>(ops: &O, stem: &O::T) -> O::T {
    let mut x = stem.clone();
    for stage in 1..4 {
        x = placed(ops, &x, &format!("image_encoder.layers.{stage}.position"));
        for block in 0..DEPTHS[stage] {
            x = vit_block(
                ops,
                &x,
                &format!("image_encoder.layers.{stage}.blocks.{block}"),
                HEADS[stage],
                WINDOWS[stage],
            );
        }
        if stage < 3 {
            let edge = edge_of(ops, &x);
            x = merge(ops, &to_image(ops, &x, edge, edge), stage);
        }
    }
    let edge = edge_of(ops, &x);
    x = placed(ops, &x, "image_encoder.neck.position");
    // The neck's 1x1 convolution and LayerNorm2d are a linear and a layer norm while channels come last.
    let x = linear_lora(ops, &x, "image_encoder.neck.0");
    let x = norm(ops, &x, "image_encoder.neck.1", LN2D_EPS);
    let x = conv(ops, &to_image(ops, &x, edge, edge), "image_encoder.neck.2", 1, 1, 1);
    let x = norm(ops, &to_tokens(ops, &x), "image_encoder.neck.3", LN2D_EPS);
    to_image(ops, &x, edge, edge)
}

/// Features of a place: what [`placed`] maps to channels.
pub const PLACE: usize = 14;

/// Adds where in the crop each token lies, `[N,h*w,C]`, where the adapter carries `name.weight` `[C, PLACE]`.
///
/// TinyViT's attention knows distances only, in absolute value: left and right of a cell look alike, and nothing tells where
/// in the image it is. A muscle's name depends on both, and a leg crop always shows the leg in the same place.
fn placed<O: Ops>(ops: &O, x: &O::T, name: &str) -> O::T {
    let weight = format!("{name}.weight");
    if !ops.has_param(&weight) {
        return x.clone();
    }
    let edge = edge_of(ops, x);
    let at = |i: usize| 2.0 * (i as f32 + 0.5) / edge as f32 - 1.0;
    let mut features = Vec::with_capacity(edge * edge * PLACE);
    for i in 0..edge * edge {
        let (u, v) = (at(i % edge), at(i / edge));
        features.extend([u, v]);
        for t in [u, v] {
            for k in 1..=3u8 {
                let phase = std::f32::consts::FRAC_PI_2 * f32::from(k) * t;
                features.extend([phase.sin(), phase.cos()]);
            }
        }
    }
    let code = ops.linear(&ops.constant(&[1, edge * edge, PLACE], features), &ops.param(&weight), None);
    ops.add(x, &code)
}

/// Edge of a square grid of tokens `[N, edge^2, C]`.
fn edge_of<O: Ops>(ops: &O, tokens: &O::T) -> usize {
    ops.shape(tokens)[1].isqrt()
}

/// Inverted bottleneck with a residual, `[N,C,H,W]`.
fn mbconv<O: Ops>(ops: &O, x: &O::T, name: &str) -> O::T {
    let hidden = 4 * DIMS[0];
    let y = ops.gelu(&pointwise_lora(ops, x, &format!("{name}.conv1")));
    let y = ops.gelu(&conv(ops, &y, &format!("{name}.conv2"), 1, 1, hidden));
    let y = pointwise_lora(ops, &y, &format!("{name}.conv3"));
    ops.gelu(&ops.add(&y, x))
}

/// Patch merging after `stage`: `[N,C,H,W]` to `[N, L, C']`; the last one keeps the resolution.
fn merge<O: Ops>(ops: &O, x: &O::T, stage: usize) -> O::T {
    let name = format!("image_encoder.layers.{stage}.downsample");
    let stride = if stage == 2 { 1 } else { 2 };
    let y = ops.gelu(&pointwise_lora(ops, x, &format!("{name}.conv1")));
    let y = ops.gelu(&conv(ops, &y, &format!("{name}.conv2"), stride, 1, DIMS[stage + 1]));
    to_tokens(ops, &pointwise_lora(ops, &y, &format!("{name}.conv3")))
}

/// One block: windowed attention, depthwise convolution, MLP. `[N,L,C]`.
fn vit_block<O: Ops>(ops: &O, x: &O::T, name: &str, heads: usize, window: usize) -> O::T {
    let edge = edge_of(ops, x);
    let x = ops.add(x, &windowed_attention(ops, x, &format!("{name}.attn"), edge, heads, window));
    let channels = ops.shape(&x)[2];
    let local = conv(ops, &to_image(ops, &x, edge, edge), &format!("{name}.local_conv"), 1, 1, channels);
    let x = to_tokens(ops, &local);
    let y = norm(ops, &x, &format!("{name}.mlp.norm"), LN_EPS);
    let y = ops.gelu(&linear_lora(ops, &y, &format!("{name}.mlp.fc1")));
    let x = ops.add(&x, &linear_lora(ops, &y, &format!("{name}.mlp.fc2")));
    conv_adapted(ops, &x, &format!("{name}.adapter"), edge)
}

/// Adds a convolution adapter's bottleneck (`name.down.weight` `[r,C]`, `name.depth.weight` `[r,1,3,3]`, `name.up.weight`
/// `[C,r]`) where the adapter carries one: the baseline to LoRA. `[N,L,C]`.
fn conv_adapted<O: Ops>(ops: &O, x: &O::T, name: &str, edge: usize) -> O::T {
    let weight = |part: &str| format!("{name}.{part}.weight");
    if !ops.has_param(&weight("down")) {
        return x.clone();
    }
    let y = ops.linear(x, &ops.param(&weight("down")), None);
    let channels = ops.shape(&y)[2];
    let y = conv(ops, &to_image(ops, &y, edge, edge), &format!("{name}.depth"), 1, 1, channels);
    let y = ops.linear(&to_tokens(ops, &ops.gelu(&y)), &ops.param(&weight("up")), None);
    ops.add(x, &y)
}

/// Attention inside windows. As upstream, the grid is padded with zeros BEFORE the layer norm and padded cells are
/// attended to: no mask. `[N,L,C]` to `[N,L,C]`.
fn windowed_attention<O: Ops>(ops: &O, x: &O::T, name: &str, edge: usize, heads: usize, window: usize) -> O::T {
    let s = ops.shape(x);
    let (n, c) = (s[0], s[2]);
    let pad = (window - edge % window) % window;
    let (padded, count) = (edge + pad, (edge + pad) / window);
    let area = window * window;

    let mut grid = ops.reshape(x, &[n, edge, edge, c]);
    if pad > 0 {
        grid = ops.pad_end(&ops.pad_end(&grid, 2, pad), 1, pad);
    }
    let windows = if count > 1 {
        let split = ops.reshape(&grid, &[n, count, window, count, window, c]);
        ops.permute(&split, &[0, 1, 3, 2, 4, 5])
    } else {
        grid
    };
    let windows = ops.reshape(&windows, &[n * count * count, area, c]);
    let out = attention(ops, &windows, name, heads, window);
    let out = if count > 1 {
        let split = ops.reshape(&out, &[n, count, count, window, window, c]);
        ops.permute(&split, &[0, 1, 3, 2, 4, 5])
    } else {
        out
    };
    let mut out = ops.reshape(&out, &[n, padded, padded, c]);
    if pad > 0 {
        out = ops.slice(&ops.slice(&out, 1, 0, edge), 2, 0, edge);
    }
    ops.reshape(&out, &[n, edge * edge, c])
}

/// Multi-head attention with a learned bias per offset inside the window. `[B, window^2, C]`.
fn attention<O: Ops>(ops: &O, x: &O::T, name: &str, heads: usize, window: usize) -> O::T {
    let s = ops.shape(x);
    let (b, n, c) = (s[0], s[1], s[2]);
    let d = c / heads;
    let x = norm(ops, x, &format!("{name}.norm"), LN_EPS);
    let qkv = linear_lora(ops, &x, &format!("{name}.qkv"));
    // Upstream's rows of qkv are ordered head, then q|k|v, then channel.
    let qkv = ops.permute(&ops.reshape(&qkv, &[b, n, heads, 3, d]), &[3, 0, 2, 1, 4]);
    let part = |i: usize| ops.reshape(&ops.slice(&qkv, 0, i, i + 1), &[b, heads, n, d]);
    let (q, k, v) = (part(0), part(1), part(2));
    let q = ops.scale(&q, (d as f32).powf(-0.5));
    let scores = ops.matmul(&q, &ops.permute(&k, &[0, 1, 3, 2]));
    let scores = ops.add(&scores, &offset_bias(ops, name, heads, window));
    let out = ops.matmul(&ops.softmax(&scores), &v);
    let out = ops.reshape(&ops.permute(&out, &[0, 2, 1, 3]), &[b, n, c]);
    linear_lora(ops, &out, &format!("{name}.proj"))
}

/// Spreads `attention_biases` `[heads, window^2]`, one per `(|dy|, |dx|)`, to `[heads, window^2, window^2]`.
///
/// A gather, written as two small products with a 0/1 matrix so that it needs no operation of its own and keeps a
/// gradient; with frozen biases every runtime folds it.
fn offset_bias<O: Ops>(ops: &O, name: &str, heads: usize, window: usize) -> O::T {
    let biases = ops.param(&format!("{name}.attention_biases"));
    let mut spread = vec![0.0; window * window * window];
    for i in 0..window {
        for j in 0..window {
            spread[i.abs_diff(j) * window * window + i * window + j] = 1.0;
        }
    }
    let spread = ops.constant(&[window, window * window], spread);
    // [heads * dy, dx] x [dx, x1 x2], then the same for y.
    let by_x = ops.matmul(&ops.reshape(&biases, &[heads * window, window]), &spread);
    let by_x = ops.permute(&ops.reshape(&by_x, &[heads, window, window * window]), &[0, 2, 1]);
    let by_x = ops.reshape(&by_x, &[heads * window * window, window]);
    let by_xy = ops.reshape(&ops.matmul(&by_x, &spread), &[heads, window, window, window, window]);
    // [heads, x1, x2, y1, y2] to [heads, (y1 x1), (y2 x2)].
    let ordered = ops.permute(&by_xy, &[0, 3, 1, 4, 2]);
    ops.reshape(&ordered, &[heads, window * window, window * window])
}
