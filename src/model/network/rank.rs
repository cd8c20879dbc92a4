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

/// An adapter's tensors in the shapes that an engine takes: LoRA of a lower rank gets rows and columns of zeros, an absent pair
/// or position code is zeros, an absent replacement is the base's own. The network's results are the same.
///
/// # Errors
/// [`ShapeError::Unknown`] for a tensor that the engine has no input for, [`ShapeError::Mismatch`] for one that is larger,
/// [`ShapeError::Missing`] where nothing can stand for it.
pub fn padded(
    tensors: &BTreeMap<String, Tensor>,
    wanted: &Shapes,
    base: &BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>, ShapeError> {
    if let Some(name) = tensors.keys().find(|n| !wanted.contains_key(*n)) {
        return Err(ShapeError::Unknown { name: name.clone() });
    }
    let fit = |name: &String, shape: &Vec<usize>| -> Result<Tensor, ShapeError> {
        let lora = name.ends_with(".lora_a") || name.ends_with(".lora_b");
        let Some(t) = tensors.get(name) else {
            return match base.get(name) {
                Some(own) if own.shape == *shape => Ok(own.clone()),
                _ if lora || name.ends_with(".position.weight") => Ok(Tensor::zeros(shape)),
                _ => Err(ShapeError::Missing { name: name.clone() }),
            };
        };
        if t.shape == *shape {
            return Ok(t.clone());
        }
        let mismatch = || ShapeError::Mismatch { name: name.clone(), found: t.shape.clone(), expected: shape.clone() };
        let (&[rows, columns], &[all, width]) = (&t.shape[..], &shape[..]) else { return Err(mismatch()) };
        if !lora || rows > all || columns > width || columns == 0 {
            return Err(mismatch());
        }
        let mut out = Tensor::zeros(shape);
        for (to, from) in out.data.chunks_mut(width).zip(t.data.chunks(columns)) {
            to[..columns].copy_from_slice(from);
        }
        Ok(out)
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
        let p = padded(&own, &wanted, &base).unwrap();
        assert_eq!(p["x.lora_a"].data, [1.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(p["x.lora_b"].data, [3.0, 0.0, 0.0, 4.0, 0.0, 0.0]);
        assert_eq!((p["y.position.weight"].data[0], p["z.weight"].data[0]), (0.0, 7.0));
        let large = BTreeMap::from([("x.lora_a".to_string(), Tensor::zeros(&[4, 2]))]);
        assert!(matches!(padded(&large, &wanted, &base), Err(ShapeError::Mismatch { .. })));
        let strange = BTreeMap::from([("q".to_string(), Tensor::zeros(&[1]))]);
        assert!(matches!(padded(&strange, &wanted, &base), Err(ShapeError::Unknown { .. })));
        assert!(matches!(padded(&own, &wanted, &BTreeMap::new()), Err(ShapeError::Missing { .. })));
    }
}
