//! Folds each batch normalisation into the convolution before it.

use std::collections::BTreeMap;

use crate::engine::Tensor;

/// PyTorch's default eps of `BatchNorm2d`.
const EPS: f64 = 1e-5;

/// Turns `X.c.weight` with `X.bn.weight|bias|running_mean|running_var` into `X.weight` and `X.bias`. Computed in f64.
pub(super) fn fold_batch_norms(mut tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, String> {
    let layers: Vec<String> = tensors.keys().filter_map(|k| k.strip_suffix(".c.weight")).map(str::to_string).collect();
    for layer in layers {
        let mut part = |suffix: &str| {
            let name = format!("{layer}.{suffix}");
            tensors.remove(&name).ok_or(format!("the tensor {name} is missing"))
        };
        let mut conv = part("c.weight")?;
        let (gain, shift) = (part("bn.weight")?, part("bn.bias")?);
        let (mean, var) = (part("bn.running_mean")?, part("bn.running_var")?);
        let channels = conv.shape.first().copied().unwrap_or(0);
        if channels == 0 || [&gain, &shift, &mean, &var].iter().any(|t| t.shape != [channels]) {
            return Err(format!("the batch normalisation of {layer} does not fit its convolution"));
        }
        let per_channel = conv.data.len() / channels;
        let mut bias = Vec::with_capacity(channels);
        for (o, weights) in conv.data.chunks_mut(per_channel).enumerate() {
            let factor = f64::from(gain.data[o]) / (f64::from(var.data[o]) + EPS).sqrt();
            for w in weights {
                *w = (f64::from(*w) * factor) as f32;
            }
            bias.push((f64::from(shift.data[o]) - f64::from(mean.data[o]) * factor) as f32);
        }
        tensors.insert(format!("{layer}.weight"), conv);
        tensors.insert(format!("{layer}.bias"), Tensor { shape: vec![channels], data: bias });
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_equals_applied() {
        let t = |shape: &[usize], data: &[f32]| Tensor::new(shape, data.to_vec());
        let raw = BTreeMap::from([
            ("x.c.weight".to_string(), t(&[2, 1, 1, 1], &[3.0, -2.0])),
            ("x.bn.weight".to_string(), t(&[2], &[0.5, 2.0])),
            ("x.bn.bias".to_string(), t(&[2], &[1.0, -1.0])),
            ("x.bn.running_mean".to_string(), t(&[2], &[0.2, 0.4])),
            ("x.bn.running_var".to_string(), t(&[2], &[4.0, 0.25])),
        ]);
        let folded = fold_batch_norms(raw.clone()).unwrap();
        for (o, (w, (g, (b, (m, v))))) in
            [(3.0, (0.5, (1.0, (0.2, 4.0)))), (-2.0, (2.0, (-1.0, (0.4, 0.25))))].into_iter().enumerate()
        {
            let applied = (1.7 * w - m) / (v + 1e-5f32).sqrt() * g + b;
            let ours = 1.7 * folded["x.weight"].data[o] + folded["x.bias"].data[o];
            assert!((applied - ours).abs() < 1e-5);
        }
        let mut short = raw;
        short.remove("x.bn.bias");
        assert!(fold_batch_norms(short).unwrap_err().contains("x.bn.bias"));
    }
}
