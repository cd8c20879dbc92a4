//! A small U-Net: the opponent that an adapted foundation model has to beat on the same slices. Never served.

use super::ops::Ops;

/// Resolutions of the U-Net: the input's, and half of it each further level.
pub const LEVELS: usize = 5;
/// Channels of a level, times the width of the first.
const GROWTH: [usize; LEVELS] = [1, 2, 4, 8, 12];
/// Eps of the instance normalisation.
const EPS: f32 = 1e-5;

/// The parameters' names and shapes for `base` channels at full resolution and K structures; a weight `[O,C,k,k]` stands before
/// its gain and bias.
pub fn shapes(base: usize, structures: usize) -> Vec<(String, Vec<usize>)> {
    let mut out = Vec::new();
    let mut block = |name: String, input: usize, output: usize| {
        for (i, c) in [input, output].into_iter().enumerate() {
            out.push((format!("{name}.{i}.weight"), vec![output, c, 3, 3]));
            out.push((format!("{name}.{i}.gain"), vec![1, output, 1, 1]));
            out.push((format!("{name}.{i}.bias"), vec![1, output, 1, 1]));
        }
    };
    let width = |level: usize| base * GROWTH[level];
    for level in 0..LEVELS {
        block(format!("unet.down.{level}"), if level == 0 { 1 } else { width(level - 1) }, width(level));
    }
    for level in (0..LEVELS - 1).rev() {
        block(format!("unet.up.{level}"), width(level) + width(level + 1), width(level));
    }
    out.push(("unet.head.weight".into(), vec![structures, base, 1, 1]));
    out.push(("unet.head.bias".into(), vec![structures]));
    out
}

/// Mask logits `[N,K,S,S]` of images `[N,3,S,S]`, S a multiple of 16; of the three equal channels one is read. Background competes
/// with logit 0.
pub fn unet<O: Ops>(ops: &O, image: &O::T) -> O::T {
    let mut x = ops.slice(image, 1, 0, 1);
    let mut skips = Vec::with_capacity(LEVELS);
    for level in 0..LEVELS {
        x = block(ops, &x, &format!("unet.down.{level}"), if level == 0 { 1 } else { 2 });
        skips.push(x.clone());
    }
    for level in (0..LEVELS - 1).rev() {
        let skip = &skips[level];
        let s = ops.shape(skip);
        let up = ops.resize_bilinear(&x, s[2], s[3]);
        x = block(ops, &ops.concat(&[skip.clone(), up], 1), &format!("unet.up.{level}"), 1);
    }
    ops.conv2d(&x, &ops.param("unet.head.weight"), Some(&ops.param("unet.head.bias")), 1, 0, 1)
}

/// Two 3x3 convolutions with instance normalisation and ReLU; the first one strides.
fn block<O: Ops>(ops: &O, x: &O::T, name: &str, stride: usize) -> O::T {
    let mut x = x.clone();
    for i in 0..2 {
        let y = ops.conv2d(&x, &ops.param(&format!("{name}.{i}.weight")), None, if i == 0 { stride } else { 1 }, 1, 1);
        let s = ops.shape(&y);
        let plane = s[2] * s[3];
        let (one, zero) = (ops.constant(&[plane], vec![1.0; plane]), ops.constant(&[plane], vec![0.0; plane]));
        let y = ops.layer_norm(&ops.reshape(&y, &[s[0] * s[1], plane]), &one, &zero, EPS);
        let y = ops.mul(&ops.reshape(&y, &s), &ops.param(&format!("{name}.{i}.gain")));
        x = ops.relu(&ops.add(&y, &ops.param(&format!("{name}.{i}.bias"))));
    }
    x
}
