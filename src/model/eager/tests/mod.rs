//! Every operation: its value against a plain reference, its gradient against finite differences.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod forward;
mod gradients;
mod method;
mod network;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Eager, ParamStore, Var};

/// Reproducible values in -1..1.
pub(super) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

pub(super) fn random_var(seed: u64, shape: &[usize]) -> Var {
    Var::constant(shape, random(seed, shape.iter().product()))
}

pub(super) fn eager() -> Eager {
    Eager::new(ParamStore::new())
}

pub(super) fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(g) - w).abs() <= tolerance * (1.0 + w.abs()), "{what}[{i}]: {g} instead of {w}");
    }
}

/// Holds the gradients of `f` at random inputs (mapped by `prepare`) against central differences.
pub(super) fn check_at(
    what: &str,
    shapes: &[&[usize]],
    prepare: impl Fn(f32) -> f32,
    f: impl Fn(&Eager, &[Var]) -> Var,
) {
    const H: f32 = 1.0 / 256.0;
    let e = eager();
    let values: Vec<Vec<f32>> = shapes
        .iter()
        .enumerate()
        .map(|(i, s)| random(100 + i as u64, s.iter().product()).into_iter().map(&prepare).collect())
        .collect();
    let leaves: Vec<Var> = shapes.iter().zip(&values).map(|(s, v)| Var::leaf(s, v.clone())).collect();
    let y = f(&e, &leaves);
    assert!(y.data().iter().all(|v| v.is_finite()), "{what}: {y:?}");
    let seed = random_var(7, y.shape());
    let targets: Vec<&Var> = leaves.iter().collect();
    let analytic = e.vjp(&y, &seed, &targets);
    let value = |values: &[Vec<f32>]| -> f64 {
        let inputs: Vec<Var> = shapes.iter().zip(values).map(|(s, v)| Var::constant(s, v.clone())).collect();
        let y = e.no_grad(|e| f(e, &inputs));
        y.data().iter().zip(seed.data()).map(|(&y, &s)| f64::from(y) * f64::from(s)).sum()
    };
    for (i, grad) in analytic.iter().enumerate() {
        let grad = grad.as_ref().unwrap_or_else(|| panic!("{what}: the gradient to input {i} is cut"));
        assert_eq!(grad.shape(), shapes[i], "{what}: shape of gradient {i}");
        let len = values[i].len();
        // At most 64 positions, spread over the tensor.
        for at in (0..len).step_by(len.div_ceil(64)) {
            let mut moved = values.clone();
            moved[i][at] = values[i][at] + H;
            let up = value(&moved);
            moved[i][at] = values[i][at] - H;
            let down = value(&moved);
            let numeric = (up - down) / (2.0 * f64::from(H));
            let got = f64::from(grad.data()[at]);
            assert!(
                (got - numeric).abs() <= 3e-3 * (1.0 + numeric.abs()),
                "{what}: input {i} at {at}: gradient {got}, difference {numeric}"
            );
        }
    }
}

pub(super) fn check(what: &str, shapes: &[&[usize]], f: impl Fn(&Eager, &[Var]) -> Var) {
    check_at(what, shapes, |v| v, f);
}
