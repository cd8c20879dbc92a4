//! Layers that several parts of the network share.

use crate::model::ops::Ops;

/// `x W^T + b` for the layer `name` (`name.weight`, `name.bias`), plus `(x A^T) B^T` where the adapter carries
/// `name.lora_a` `[r, in]` and `name.lora_b` `[out, r]`. A 1x1 convolution's weight `[out, in, 1, 1]` is taken as
/// `[out, in]`. `x` is `[.., in]`, the result `[.., out]`. The bias is optional upstream and so here.
pub fn linear_lora<O: Ops>(ops: &O, x: &O::T, name: &str) -> O::T {
    let mut w = ops.param(&format!("{name}.weight"));
    let shape = ops.shape(&w);
    if shape.len() == 4 {
        w = ops.reshape(&w, &shape[..2]);
    }
    let bias_name = format!("{name}.bias");
    let bias = ops.has_param(&bias_name).then(|| ops.param(&bias_name));
    let y = ops.linear(x, &w, bias.as_ref());
    match lora(ops, name) {
        None => y,
        Some((a, b)) => ops.add(&y, &ops.linear(&ops.linear(x, &a, None), &b, None)),
    }
}

/// The same for a 1x1 convolution over `[N,C,H,W]`.
pub(super) fn pointwise_lora<O: Ops>(ops: &O, x: &O::T, name: &str) -> O::T {
    let y = conv(ops, x, name, 1, 0, 1);
    match lora(ops, name) {
        None => y,
        Some((a, b)) => {
            let as_conv = |w: &O::T| {
                let s = ops.shape(w);
                ops.reshape(w, &[s[0], s[1], 1, 1])
            };
            let low = ops.conv2d(x, &as_conv(&a), None, 1, 0, 1);
            ops.add(&y, &ops.conv2d(&low, &as_conv(&b), None, 1, 0, 1))
        }
    }
}

fn lora<O: Ops>(ops: &O, name: &str) -> Option<(O::T, O::T)> {
    let (a, b) = (format!("{name}.lora_a"), format!("{name}.lora_b"));
    (ops.has_param(&a) && ops.has_param(&b)).then(|| (ops.param(&a), ops.param(&b)))
}

/// Convolution `name.weight`, `name.bias` (optional), without LoRA.
pub(super) fn conv<O: Ops>(ops: &O, x: &O::T, name: &str, stride: usize, pad: usize, groups: usize) -> O::T {
    let w = ops.param(&format!("{name}.weight"));
    let bias_name = format!("{name}.bias");
    let bias = ops.has_param(&bias_name).then(|| ops.param(&bias_name));
    ops.conv2d(x, &w, bias.as_ref(), stride, pad, groups)
}

/// Layer normalisation over the last axis. Upstream's `LayerNorm2d` is the same over channels, with eps 1e-6.
pub(super) fn norm<O: Ops>(ops: &O, x: &O::T, name: &str, eps: f32) -> O::T {
    ops.layer_norm(x, &ops.param(&format!("{name}.weight")), &ops.param(&format!("{name}.bias")), eps)
}

/// PyTorch's default eps of `nn.LayerNorm`.
pub(super) const LN_EPS: f32 = 1e-5;
/// Eps of SAM's `LayerNorm2d`.
pub(super) const LN2D_EPS: f32 = 1e-6;

/// `[N,C,H,W]` to `[N,H*W,C]`.
pub(super) fn to_tokens<O: Ops>(ops: &O, x: &O::T) -> O::T {
    let s = ops.shape(x);
    ops.permute(&ops.reshape(x, &[s[0], s[1], s[2] * s[3]]), &[0, 2, 1])
}

/// `[N,h*w,C]` to `[N,C,h,w]`.
pub(super) fn to_image<O: Ops>(ops: &O, x: &O::T, h: usize, w: usize) -> O::T {
    let s = ops.shape(x);
    ops.reshape(&ops.permute(x, &[0, 2, 1]), &[s[0], s[2], h, w])
}
