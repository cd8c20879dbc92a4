//! The largest adapter that an engine takes, and smaller ones brought to its shape.

use std::collections::BTreeMap;

use super::{EMBED, ShapeError, Shapes, expected_base_shapes, lora_targets, position_shapes};
use crate::engine::Tensor;

/// Base tensors whose names begin so are trained whole; all others that an adapter changes have LoRA.
pub const TRAINED_WHOLE: [&str; 2] = ["mask_decoder.output_upscaling.", "mask_decoder.mask_tokens."];

/// Shapes of an adapter as training makes it by default, with one rank throughout: what an engine's graphs take as inputs.
pub fn engine_shapes(structures: usize, rank: usize) -> Shapes {
    let whole = |name: &str| TRAINED_WHOLE.iter().any(|w| name.starts_with(w));
    let mut shapes: Shapes = expected_base_shapes().into_iter().filter(|(name, _)| whole(name)).collect();
    for t in lora_targets().into_iter().filter(|t| !t.convolution && !whole(&t.name)) {
        shapes.insert(format!("{}.lora_a", t.name), vec![rank, t.inputs]);
        shapes.insert(format!("{}.lora_b", t.name), vec![t.outputs, rank]);
    }
    shapes.extend(position_shapes());
    shapes.insert("class_tokens".into(), vec![structures, EMBED]);
    shapes.insert("classifier.fc1.weight".into(), vec![EMBED, EMBED]);
    shapes.insert("classifier.fc1.bias".into(), vec![EMBED]);
    shapes.insert("classifier.fc2.weight".into(), vec![structures, EMBED]);
    shapes.insert("classifier.fc2.bias".into(), vec![structures]);
    shapes
}

/// The axis of a LoRA factor that is its rank; none for any other tensor.
pub fn rank_axis(name: &str) -> Option<usize> {
    if name.ends_with(".lora_a") {
        Some(0)
    } else if name.ends_with(".lora_b") {
        Some(1)
    } else {
        None
    }
}

/// A LoRA factor with zeros up to a higher rank, which change nothing of the product; a tensor that has the shape already, as it is.
/// None where it cannot be brought to that shape so.
pub fn padded(name: &str, tensor: &Tensor, shape: &[usize]) -> Option<Tensor> {
    if tensor.shape == shape {
        return Some(tensor.clone());
    }
    let (&[rows, columns], &[all, width], axis) = (&tensor.shape[..], shape, rank_axis(name)?) else { return None };
    let only_rank_grows = if axis == 0 { columns == width && rows < all } else { rows == all && columns < width };
    if !only_rank_grows || columns == 0 {
        return None;
    }
    let mut out = Tensor::zeros(shape);
    for (to, from) in out.data.chunks_exact_mut(width).zip(tensor.data.chunks_exact(columns)) {
        to[..columns].copy_from_slice(from);
    }
    Some(out)
}

/// An adapter's tensors in the shapes that an engine takes: LoRA of a lower rank gets rows and columns of zeros, an absent pair
/// or position code is zeros, an absent replacement is the base's own. The network's results are the same.
///
/// # Errors
/// [`ShapeError::Unknown`] for a tensor that the engine has no input for, [`ShapeError::Mismatch`] for one that is larger,
/// [`ShapeError::Missing`] where nothing can stand for it.
pub fn all_padded(
    tensors: &BTreeMap<String, Tensor>,
    wanted: &Shapes,
    base: &BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>, ShapeError> {
    if let Some(name) = tensors.keys().find(|n| !wanted.contains_key(*n)) {
        return Err(ShapeError::Unknown { name: name.clone() });
    }
    let fit = |name: &String, shape: &Vec<usize>| -> Result<Tensor, ShapeError> {
        let Some(t) = tensors.get(name) else {
            return match base.get(name) {
                Some(own) if own.shape == *shape => Ok(own.clone()),
                _ if rank_axis(name).is_some() || name.ends_with(".position.weight") => Ok(Tensor::zeros(shape)),
                _ => Err(ShapeError::Missing { name: name.clone() }),
            };
        };
        padded(name, t, shape).ok_or_else(|| ShapeError::Mismatch {
            name: name.clone(),
            found: t.shape.clone(),
            expected: shape.clone(),
        })
    };
    wanted.iter().map(|(name, shape)| Ok((name.clone(), fit(name, shape)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_rank_gets_zeros_and_what_does_not_fit_is_named() {
        let wanted = Shapes::from([
            ("x.lora_a".into(), vec![3, 2]),
            ("x.lora_b".into(), vec![2, 3]),
            ("y.position.weight".into(), vec![1, 1]),
            ("z.weight".into(), vec![1]),
        ]);
        let base = BTreeMap::from([("z.weight".to_string(), Tensor::new(&[1], vec![7.0]))]);
        let own = BTreeMap::from([
            ("x.lora_a".to_string(), Tensor::new(&[1, 2], vec![1.0, 2.0])),
            ("x.lora_b".to_string(), Tensor::new(&[2, 1], vec![3.0, 4.0])),
        ]);
        let p = all_padded(&own, &wanted, &base).unwrap();
        assert_eq!(p["x.lora_a"].data, [1.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(p["x.lora_b"].data, [3.0, 0.0, 0.0, 4.0, 0.0, 0.0]);
        assert_eq!((p["y.position.weight"].data[0], p["z.weight"].data[0]), (0.0, 7.0));
        let large = BTreeMap::from([("x.lora_a".to_string(), Tensor::zeros(&[4, 2]))]);
        assert!(matches!(all_padded(&large, &wanted, &base), Err(ShapeError::Mismatch { .. })));
        let strange = BTreeMap::from([("q".to_string(), Tensor::zeros(&[1]))]);
        assert!(matches!(all_padded(&strange, &wanted, &base), Err(ShapeError::Unknown { .. })));
        assert!(matches!(all_padded(&own, &wanted, &BTreeMap::new()), Err(ShapeError::Missing { .. })));
    }
    #[test]
    fn only_the_rank_grows_and_the_product_stays() {
        let (a, b) =
            (Tensor::new(&[2, 3], (1..7).map(|v| v as f32).collect()), Tensor::new(&[2, 2], vec![1., 2., 3., 4.]));
        let (wide_a, wide_b) = (padded("x.lora_a", &a, &[5, 3]).unwrap(), padded("x.lora_b", &b, &[2, 5]).unwrap());
        let product = |a: &Tensor, b: &Tensor| -> Vec<f32> {
            let (r, n) = (a.shape[0], a.shape[1]);
            let at = |i: usize| (0..r).map(|k| b.data[i / n * r + k] * a.data[k * n + i % n]).sum();
            (0..b.shape[0] * n).map(at).collect()
        };
        assert_eq!(product(&a, &b), product(&wide_a, &wide_b));
        for shape in [&[1, 3][..], &[5, 4], &[2, 4], &[5]] {
            assert!(padded("x.lora_a", &a, shape).is_none(), "{shape:?}");
        }
        assert!(padded("x.lora_b", &b, &[3, 5]).is_none(), "another number of outputs");
        assert!(padded("class_tokens", &b, &[2, 5]).is_none(), "no LoRA");
        assert_eq!(padded("class_tokens", &b, &[2, 2]), Some(b));
    }
}
