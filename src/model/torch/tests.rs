//! The torch interpreter, on the CPU, against the eager one: values, gradients, the optimiser.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Device;

use super::{Torch, TorchLearner};
use crate::engine::Tensor;
use crate::model::autograd::{Autograd, Learner};
use crate::model::eager::{AdamConfig, Eager, EagerLearner, ParamStore};
use crate::model::ops::Ops;

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Tensor::new(shape, (0..shape.iter().product()).map(|_| rng.random_range(-1.0f32..1.0)).collect())
}

/// One operation or a few, from leaves to a tensor.
type Case<A> =
    (&'static str, Vec<Vec<usize>>, fn(&A, &[<A as crate::model::ops::Ops>::T]) -> <A as crate::model::ops::Ops>::T);

/// Every operation of the trait, over any interpreter.
fn cases<A: Autograd>() -> Vec<Case<A>> {
    vec![
        ("conv2d", vec![vec![1, 4, 6, 7], vec![6, 2, 3, 3], vec![6]], |o, v| {
            o.conv2d(&v[0], &v[1], Some(&v[2]), 2, 1, 2)
        }),
        ("depthwise", vec![vec![1, 4, 6, 6], vec![4, 1, 3, 3]], |o, v| o.conv2d(&v[0], &v[1], None, 1, 1, 4)),
        ("conv_transpose2x2", vec![vec![1, 3, 4, 5], vec![3, 2, 2, 2], vec![2]], |o, v| {
            o.conv_transpose2x2(&v[0], &v[1], &v[2])
        }),
        ("linear", vec![vec![2, 3, 5], vec![4, 5], vec![4]], |o, v| o.linear(&v[0], &v[1], Some(&v[2]))),
        ("matmul", vec![vec![2, 3, 5], vec![2, 5, 4]], |o, v| o.matmul(&v[0], &v[1])),
        ("add", vec![vec![2, 3], vec![3]], |o, v| o.add(&v[0], &v[1])),
        ("sub", vec![vec![2, 3], vec![2, 1]], |o, v| o.sub(&v[0], &v[1])),
        ("mul", vec![vec![2, 3], vec![3]], |o, v| o.mul(&v[0], &v[1])),
        ("div", vec![vec![2, 3], vec![3]], |o, v| o.div(&v[0], &o.offset(&v[1], 3.0))),
        ("scale", vec![vec![4]], |o, v| o.offset(&o.scale(&v[0], -2.5), 0.5)),
        ("gelu", vec![vec![9]], |o, v| o.gelu(&v[0])),
        ("relu", vec![vec![9]], |o, v| o.relu(&v[0])),
        ("step", vec![vec![9]], |o, v| o.mul(&o.step(&v[0]), &v[0])),
        ("sigmoid", vec![vec![9]], |o, v| o.sigmoid(&v[0])),
        ("sin", vec![vec![9]], |o, v| o.add(&o.sin(&v[0]), &o.cos(&o.scale(&v[0], 2.0)))),
        ("log", vec![vec![9]], |o, v| o.log(&o.offset(&v[0], 2.0))),
        ("softmax", vec![vec![3, 7]], |o, v| o.softmax(&v[0])),
        ("layer_norm", vec![vec![3, 8], vec![8], vec![8]], |o, v| o.layer_norm(&v[0], &v[1], &v[2], 1e-5)),
        ("permute", vec![vec![2, 3, 4]], |o, v| o.reshape(&o.permute(&v[0], &[2, 0, 1]), &[8, 3])),
        ("slice", vec![vec![2, 5]], |o, v| o.slice(&v[0], 1, 1, 4)),
        ("concat", vec![vec![2, 3], vec![2, 2]], |o, v| o.concat(&[v[0].clone(), v[1].clone()], 1)),
        ("pad_end", vec![vec![2, 3, 4]], |o, v| o.pad_end(&o.pad_end(&v[0], 1, 2), 2, 1)),
        ("expand", vec![vec![1, 3]], |o, v| o.expand(&v[0], &[4, 3])),
        ("mean", vec![vec![2, 3, 4]], |o, v| o.mean(&v[0], &[0, 2])),
        ("sum", vec![vec![2, 3, 4]], |o, v| o.sum(&v[0], &[1])),
        ("mean_all", vec![vec![2, 3]], |o, v| o.mean_all(&v[0])),
        ("resize_bilinear", vec![vec![1, 2, 3, 4]], |o, v| o.resize_bilinear(&v[0], 7, 5)),
        ("bce_with_logits", vec![vec![6], vec![6]], |o, v| o.bce_with_logits(&o.scale(&v[0], 9.0), &o.sigmoid(&v[1]))),
    ]
}

/// Value, and gradients of the sum of squares, of one case.
fn run<A: Autograd>(ops: &A, case: &Case<A>) -> (Vec<usize>, Vec<f32>, Vec<Option<Vec<f32>>>) {
    let leaves: Vec<A::T> =
        case.1.iter().enumerate().map(|(i, s)| ops.as_leaf(&ops.constant(s, random(50 + i as u64, s).data))).collect();
    let y = (case.2)(ops, &leaves);
    let loss = ops.sum_all(&ops.mul(&y, &y));
    let gradients = ops.backward_to(&loss, &leaves.iter().collect::<Vec<_>>());
    (ops.shape(&y), ops.values(&y), gradients.iter().map(|g| g.as_ref().map(|g| ops.values(g))).collect())
}

fn assert_close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 2e-5 * (1.0 + w.abs()), "{what}[{i}]: {g} instead of {w}");
    }
}

#[test]
fn every_operation_and_its_gradient_are_the_eager_interpreters() {
    let eager = Eager::new(ParamStore::new());
    let torch = Torch::frozen(Device::Cpu, []);
    for (ours, theirs) in cases::<Eager>().iter().zip(&cases::<Torch>()) {
        let (want, got) = (run(&eager, ours), run(&torch, theirs));
        assert_eq!(got.0, want.0, "{}: shape", ours.0);
        assert_close(&got.1, &want.1, ours.0);
        for (i, (g, w)) in got.2.iter().zip(&want.2).enumerate() {
            match (g, w) {
                (Some(g), Some(w)) => assert_close(g, w, &format!("{}: gradient {i}", ours.0)),
                // A target that takes no gradient, and a step's input.
                (None, None) => {}
                (g, w) => panic!("{}: gradient {i} is {} instead of {}", ours.0, g.is_some(), w.is_some()),
            }
        }
    }
    assert_eq!(
        torch.values(&torch.dropout_mask(&[40], 0.3)),
        eager.values(&Autograd::dropout_mask(&eager, &[40], 0.3))
    );
}

fn start() -> BTreeMap<String, Tensor> {
    ["a", "b", "idle"].iter().enumerate().map(|(i, n)| (n.to_string(), random(i as u64, &[3, 4]))).collect()
}

/// Some steps on two of three parameters, one of which rests every other step; the checkpoint is taken and put back halfway.
fn descend<L: Learner>(make: impl Fn(&BTreeMap<String, Tensor>, Option<&BTreeMap<String, Tensor>>) -> L) -> Vec<f32> {
    let mut learner = make(&start(), None);
    let mut norms = Vec::new();
    for i in 0..12 {
        if i == 6 {
            learner = make(&learner.parameters(), Some(&learner.state()));
        }
        let ops = learner.ops();
        let fixed = ops.param("fixed");
        let mut y = ops.matmul(&ops.param("a"), &fixed);
        if i % 2 == 0 {
            y = ops.add(&y, &ops.matmul(&ops.param("b"), &fixed));
        }
        let loss = ops.sum_all(&ops.mul(&y, &ops.sin(&y)));
        norms.push(learner.descend(&loss, 0.05, 1.0));
    }
    learner.parameters().into_values().flat_map(|t| t.data).chain(norms).collect()
}

#[test]
fn the_optimiser_is_the_eager_interpreters() {
    let fixed = BTreeMap::from([("fixed".to_string(), random(9, &[4, 3]))]);
    let config = AdamConfig { weight_decay: 0.1, ..AdamConfig::default() };
    let factors = vec![("b".to_string(), 3.0)];
    let ours = descend(|tensors, state| {
        let mut params = ParamStore::new();
        params.insert_frozen("fixed", fixed["fixed"].clone());
        tensors.iter().for_each(|(n, t)| params.insert_trainable(n.clone(), t.clone()));
        EagerLearner::new(params, config, factors.clone(), state).unwrap()
    });
    let theirs =
        descend(|tensors, state| TorchLearner::new(Device::Cpu, &fixed, tensors, config, &factors, state).unwrap());
    assert_close(&theirs, &ours, "parameters and norms");
    let idle = start()["idle"].data.clone();
    assert_eq!(theirs[24..36], idle, "a parameter without a gradient stays as it is");
}

#[test]
fn a_state_of_another_shape_is_refused() {
    let mut state = BTreeMap::new();
    for part in ["mean", "square", "steps"] {
        state.insert(format!("a.{part}"), Tensor::zeros(&[2]));
    }
    let refused = TorchLearner::new(Device::Cpu, &BTreeMap::new(), &start(), AdamConfig::default(), &[], Some(&state));
    assert!(refused.err().unwrap().to_string().contains("a.mean"));
}
