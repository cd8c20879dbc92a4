//! The parts that the method adds to the network: feedback, position codes, and the U-Net, each against finite differences.

use super::{random, random_var};
use crate::engine::Tensor;
use crate::model::eager::{Eager, ParamStore, Var};
use crate::model::network::{
    EMBED, Shapes, conv_adapter_shapes, encode, feedback, feedback_shapes, normalised, position_shapes,
};
use crate::model::ops::Ops;
use crate::model::unet;
use crate::model::weights::BaseWeights;

/// Holds the gradient of every trainable parameter of `store` against central differences at a few places, for the sum of
/// `f` weighted at random.
fn check_params(what: &str, store: &ParamStore, step: f32, f: impl Fn(&Eager) -> Var) {
    let e = Eager::new(store.clone());
    let y = f(&e);
    let n = y.data().len();
    let seed: Vec<f32> = random(7, n).iter().map(|v| v / (n as f32).sqrt()).collect();
    let weighted = |e: &Eager, y: &Var| e.sum_all(&e.mul(y, &Var::constant(y.shape(), seed.clone())));
    let gradients = e.backward(&weighted(&e, &y));
    assert_eq!(gradients.iter().count(), store.trainable().count(), "{what}: a parameter has no gradient");
    for (name, g) in gradients.iter() {
        assert!(g.iter().any(|v| v.abs() > 1e-7), "{what}: the gradient of {name} is zero");
        let mut moved = store.clone();
        for at in (0..g.len()).step_by(g.len().div_ceil(4)) {
            let old = moved.value_mut(name).unwrap()[at];
            let mut value = |v: f32| {
                moved.value_mut(name).unwrap()[at] = v;
                let y = Eager::new(moved.clone()).no_grad(&f);
                y.data().iter().zip(&seed).map(|(&y, &s)| f64::from(y) * f64::from(s)).sum::<f64>()
            };
            let numeric = (value(old + step) - value(old - step)) / (2.0 * f64::from(step));
            moved.value_mut(name).unwrap()[at] = old;
            let got = f64::from(g[at]);
            assert!(
                (got - numeric).abs() <= 2e-2 * (0.05 + numeric.abs()),
                "{what}: {name}[{at}]: {got}, not {numeric}"
            );
        }
    }
}

#[test]
fn feedback_has_the_gradient_of_its_differences_and_starts_as_nothing() {
    let mut store = ParamStore::new();
    for (i, (name, shape)) in feedback_shapes().into_iter().enumerate() {
        let data = random(i as u64, shape.iter().product()).iter().map(|v| v * 0.2).collect();
        store.insert_trainable(name, Tensor::new(&shape, data));
    }
    let f = random_var(40, &[1, EMBED, 3, 4]);
    let g = Var::constant(&[1, EMBED, 3, 4], normalised(&random(41, EMBED * 12)));
    store.value_mut("feedback.gamma").unwrap()[0] = 0.7;
    check_params("feedback", &store, 1e-2, |e| feedback(e, &f, &g));
    store.value_mut("feedback.gamma").unwrap()[0] = 0.0;
    assert_eq!(feedback(&Eager::new(store), &f, &g).data(), f.data());
}

#[test]
fn a_normalised_gradient_has_a_mean_square_of_one() {
    let g = normalised(&[3.0, -4.0, 0.0, 0.0]);
    assert!((g.iter().map(|v| v * v).sum::<f32>() / 4.0 - 1.0).abs() < 1e-6);
    assert_eq!(normalised(&[0.0; 3]), [0.0; 3]);
}

/// A random base with trainable additions: `shapes`, random, times `scale` of the name.
fn with(shapes: Shapes, scale: impl Fn(&str) -> f32) -> ParamStore {
    let mut p = ParamStore::new();
    BaseWeights::random(3).tensors().iter().for_each(|(n, t)| p.insert_frozen(n.clone(), t.clone()));
    for (i, (name, shape)) in shapes.into_iter().enumerate() {
        let by = scale(&name);
        let data = random(60 + i as u64, shape.iter().product()).iter().map(|v| v * by).collect();
        p.insert_trainable(name, Tensor::new(&shape, data));
    }
    p
}

/// Holds an addition to the encoder against finite differences with `on`, and against the base alone with `off`.
fn check_addition(what: &str, on: ParamStore, off: ParamStore) {
    let image = random_var(50, &[1, 3, 64, 64]);
    check_params(what, &on, 2e-2, |e| encode(e, &image));
    let plain = encode(&Eager::new(with(Shapes::new(), |_| 0.0)), &image);
    assert_eq!(encode(&Eager::new(off), &image).data(), plain.data());
    assert_ne!(encode(&Eager::new(on), &image).data(), plain.data());
}

#[test]
fn position_codes_have_the_gradient_of_their_differences_and_tell_left_from_right() {
    // Zero codes are none; with codes an even image is not even any more.
    check_addition("position", with(position_shapes(), |_| 0.3), with(position_shapes(), |_| 0.0));
}

#[test]
fn convolution_adapters_have_the_gradient_of_their_differences_and_start_as_nothing() {
    let up = |by: f32| move |name: &str| if name.ends_with("up.weight") { by } else { 0.3 };
    check_addition(
        "convolution adapters",
        with(conv_adapter_shapes(3), up(0.3)),
        with(conv_adapter_shapes(3), up(0.0)),
    );
}

#[test]
fn the_unet_has_the_gradient_of_its_differences() {
    let mut store = ParamStore::new();
    for (i, (name, shape)) in unet::shapes(2, 3).into_iter().enumerate() {
        let shift = if name.ends_with("gain") { 1.0 } else { 0.0 };
        let data = random(i as u64, shape.iter().product()).iter().map(|v| shift + v * 0.4).collect();
        store.insert_trainable(name, Tensor::new(&shape, data));
    }
    let image = random_var(50, &[1, 3, 64, 64]);
    assert_eq!(unet::unet(&Eager::new(store.clone()), &image).shape(), [1, 3, 64, 64]);
    // ReLU has kinks that a difference at one place steps over; along a tensor's own gradient they nearly even out.
    let e = Eager::new(store.clone());
    let y = unet::unet(&e, &image);
    let seed = random(7, y.data().len());
    let gradients = e.backward(&e.sum_all(&e.mul(&y, &Var::constant(y.shape(), seed.clone()))));
    assert_eq!(gradients.iter().count(), store.trainable().count());
    for (name, g) in gradients.iter() {
        let square: f64 = g.iter().map(|v| f64::from(v * v)).sum();
        let value = |h: f32| {
            let mut moved = store.clone();
            moved.value_mut(name).unwrap().iter_mut().zip(g).for_each(|(v, g)| *v += h * g);
            let y = Eager::new(moved).no_grad(|e| unet::unet(e, &image));
            y.data().iter().zip(&seed).map(|(&y, &s)| f64::from(y) * f64::from(s)).sum::<f64>()
        };
        let h = (1e-3 / square.sqrt()) as f32;
        let numeric = (value(h) - value(-h)) / (2.0 * f64::from(h));
        assert!((numeric - square).abs() <= 0.15 * square, "{name}: {square}, not {numeric}");
    }
}
