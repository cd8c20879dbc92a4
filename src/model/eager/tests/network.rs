//! The tape as a whole: a composed network, determinism, what is recorded and what is not, the optimiser.

use super::{check, eager, random, random_var};
use crate::engine::Tensor;
use crate::model::eager::{Adam, AdamConfig, Eager, ParamStore, Var};
use crate::model::ops::Ops;

/// A small network with a convolution stem, a windowed attention with LoRA, an MLP and a mask head.
fn store(seed: u64) -> ParamStore {
    let mut p = ParamStore::new();
    let tensor = |s: u64, shape: &[usize]| {
        let len = shape.iter().product();
        let k = 1.0 / (len as f32 / shape[0] as f32).sqrt();
        Tensor::new(shape, random(seed + s, len).iter().map(|v| v * k).collect())
    };
    let frozen: [(&str, &[usize]); 9] = [
        ("stem.weight", &[8, 3, 3, 3]),
        ("dw.weight", &[8, 1, 3, 3]),
        ("qkv.weight", &[24, 8]),
        ("qkv.bias", &[24]),
        ("norm.weight", &[8]),
        ("norm.bias", &[8]),
        ("mlp.weight", &[16, 8]),
        ("up.weight", &[8, 4, 2, 2]),
        ("up.bias", &[4]),
    ];
    for (i, (name, shape)) in frozen.into_iter().enumerate() {
        p.insert_frozen(name, tensor(i as u64, shape));
    }
    p.insert_trainable("qkv.lora_a", tensor(20, &[2, 8]));
    p.insert_trainable("qkv.lora_b", tensor(21, &[24, 2]));
    p.insert_trainable("head.weight", tensor(22, &[8, 16]));
    p.insert_trainable("token", tensor(23, &[1, 4]));
    p
}

fn forward(e: &Eager, image: &Var) -> Var {
    let p = |n: &str| e.param(n);
    let x = e.gelu(&e.conv2d(image, &p("stem.weight"), None, 2, 1, 1));
    let x = e.add(&x, &e.conv2d(&x, &p("dw.weight"), None, 1, 1, 8));
    let [n, c, h, w] = e.shape(&x)[..] else { unreachable!() };
    let tokens = e.reshape(&e.permute(&x, &[0, 2, 3, 1]), &[n, h * w, c]);
    let normed = e.layer_norm(&tokens, &p("norm.weight"), &p("norm.bias"), 1e-5);
    let lora = e.linear(&e.linear(&normed, &p("qkv.lora_a"), None), &p("qkv.lora_b"), None);
    let qkv = e.add(&e.linear(&normed, &p("qkv.weight"), Some(&p("qkv.bias"))), &lora);
    let part = |i: usize| {
        let x = e.reshape(&e.slice(&qkv, 2, i * c, (i + 1) * c), &[n, h * w, 2, c / 2]);
        e.permute(&x, &[0, 2, 1, 3])
    };
    let scores = e.scale(&e.matmul(&part(0), &e.permute(&part(1), &[0, 1, 3, 2])), 0.5);
    let mixed = e.permute(&e.matmul(&e.softmax(&scores), &part(2)), &[0, 2, 1, 3]);
    let tokens = e.add(&tokens, &e.reshape(&mixed, &[n, h * w, c]));
    let hidden = e.gelu(&e.linear(&tokens, &p("mlp.weight"), None));
    let tokens = e.add(&tokens, &e.linear(&hidden, &p("head.weight"), None));
    let map = e.reshape(&e.permute(&tokens, &[0, 2, 1]), &[n, c, h, w]);
    let up = e.conv_transpose2x2(&map, &p("up.weight"), &p("up.bias"));
    let flat = e.reshape(&up, &[n, 4, 4 * h * w]);
    let mask = e.matmul(&e.expand(&p("token"), &[n, 1, 4]), &flat);
    e.resize_bilinear(&e.reshape(&mask, &[n, 1, 2 * h, 2 * w]), 4 * h, 4 * w)
}

fn loss(e: &Eager, image: &Var) -> Var {
    e.mean_all(&e.sigmoid(&forward(e, image)))
}

#[test]
fn composed_network_has_the_gradient_of_its_differences() {
    let image = random_var(50, &[2, 3, 12, 16]);
    let e = Eager::new(store(1));
    let gradients = e.backward(&e.scale(&loss(&e, &image), 50.0));
    // Not silently cut: every trainable parameter has a gradient that is not all zero.
    assert_eq!(gradients.iter().count(), 4);
    for (name, g) in gradients.iter() {
        assert!(g.iter().any(|v| v.abs() > 1e-6), "{name} has no gradient");
        let mut moved = store(1);
        for at in (0..g.len()).step_by(g.len().div_ceil(8)) {
            let old = moved.value_mut(name).unwrap()[at];
            let mut value = |v: f32| {
                moved.value_mut(name).unwrap()[at] = v;
                let e = Eager::new(moved.clone());
                let y = e.no_grad(|e| forward(e, &image));
                let n = y.data().len() as f64;
                y.data().iter().map(|&v| 1.0 / (1.0 + (-f64::from(v)).exp())).sum::<f64>() / n * 50.0
            };
            let (up, down) = (value(old + 0.01), value(old - 0.01));
            value(old);
            let numeric = (up - down) / 0.02;
            assert!(
                (f64::from(g[at]) - numeric).abs() < 3e-3 * (1.0 + numeric.abs()),
                "{name}[{at}]: {} {numeric}",
                g[at]
            );
        }
    }
    check("the image", &[&[1, 3, 8, 8]], forward_of);
}

fn forward_of(_: &Eager, v: &[Var]) -> Var {
    forward(&Eager::new(store(1)), &v[0])
}

#[test]
fn the_same_bits_on_any_number_of_threads_and_at_every_repeat() {
    let image = random_var(50, &[2, 3, 128, 128]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let e = Eager::new(store(1));
            let l = loss(&e, &image);
            let bits = || {
                let g = e.backward(&l);
                g.iter().flat_map(|(_, g)| g.iter().map(|v| v.to_bits())).collect::<Vec<u32>>()
            };
            let first = bits();
            assert_eq!(first, bits(), "backward twice");
            (l.item().to_bits(), first)
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
    assert_eq!(one, run(3));
}

#[test]
fn only_what_a_gradient_can_reach_is_recorded() {
    let e = Eager::new(store(1));
    let image = random_var(50, &[1, 3, 8, 8]);
    let frozen = e.conv2d(&image, &e.param("stem.weight"), None, 2, 1, 1);
    assert!(!frozen.requires_grad());
    assert!(loss(&e, &image).requires_grad());
    assert!(!e.no_grad(|e| loss(e, &image)).requires_grad());
    assert!(loss(&e, &image).requires_grad(), "recording again after no_grad");
    let w = e.param("token");
    assert!(!e.scale(&w, 2.0).detach().requires_grad());
    assert!(!e.step(&w).requires_grad());
}

#[test]
fn gradients_of_intermediate_tensors() {
    let e = eager();
    let (x, other) = (Var::leaf(&[2], vec![1.0, 2.0]), Var::leaf(&[2], vec![0.0, 0.0]));
    let f = e.mul(&x, &x);
    let y = e.sum_all(&e.mul(&f, &f));
    let grads = e.backward_to(&y, &[&f, &x, &other]);
    assert_eq!(grads[0].as_ref().unwrap().data(), [2.0, 8.0]);
    assert_eq!(grads[1].as_ref().unwrap().data(), [4.0, 32.0]);
    assert!(grads[2].is_none());
    assert!(!grads[0].as_ref().unwrap().requires_grad());
    // A new leaf stops the walk.
    let cut = f.as_leaf();
    let y = e.sum_all(&e.mul(&cut, &cut));
    let grads = e.backward_to(&y, &[&cut, &x]);
    assert_eq!(grads[0].as_ref().unwrap().data(), [2.0, 8.0]);
    assert!(grads[1].is_none());
}

#[test]
fn a_long_chain_is_freed_without_deep_recursion() {
    let e = eager();
    let mut x = Var::leaf(&[1], vec![0.0]);
    let start = x.clone();
    for _ in 0..200_000 {
        x = e.offset(&x, 1.0);
    }
    assert_eq!(x.item(), 200_000.0);
    assert_eq!(e.backward_to(&x, &[&start])[0].as_ref().unwrap().item(), 1.0);
    drop(x);
}

#[test]
fn trainable_goes_before_frozen_and_clones_are_apart() {
    let mut p = store(1);
    assert!(p.unfreeze("mlp.weight") && !p.unfreeze("none"));
    let mut other = p.clone();
    other.value_mut("mlp.weight").unwrap()[0] = 9.0;
    assert_ne!(p.get("mlp.weight").unwrap().data()[0], 9.0);
    assert_eq!(other.get("mlp.weight").unwrap().data()[0], 9.0);
    assert!(p.value_mut("stem.weight").is_none(), "frozen stays frozen");
    let e = Eager::new(other);
    let g = e.backward(&loss(&e, &random_var(50, &[1, 3, 8, 8])));
    assert!(g.get("mlp.weight").unwrap().iter().any(|v| *v != 0.0));
}

#[test]
fn adam_follows_its_definition_and_resumes_exactly() {
    let config = AdamConfig { lr: 0.05, weight_decay: 0.1, ..AdamConfig::default() };
    let mut p = ParamStore::new();
    p.insert_trainable("w", Tensor::new(&[2], vec![1.0, -2.0]));
    let mut e = Eager::new(p);
    let mut adam = Adam::new(config);
    // The published recurrences, in f64.
    let (mut w, mut m, mut v) = ([1.0f64, -2.0], [0.0f64; 2], [0.0f64; 2]);
    for t in 1..=30 {
        let x = e.param("w");
        let loss = e.sum_all(&e.mul(&e.mul(&x, &x), &x));
        let g = e.backward(&loss);
        adam.step(e.params_mut(), &g);
        for i in 0..2 {
            let g = 3.0 * w[i] * w[i];
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            let (mh, vh) = (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.999f64.powi(t)));
            w[i] = w[i] * (1.0 - 0.05 * 0.1) - 0.05 * mh / (vh.sqrt() + 1e-8);
        }
        super::assert_close(e.param("w").data(), &w, 2e-4, "adam");
        if t == 15 {
            let saved = adam.to_tensors();
            adam = Adam::from_tensors(config, e.params(), &saved).unwrap();
            assert_eq!(adam.to_tensors(), saved);
        }
    }
    let mut broken = adam.to_tensors();
    broken.remove("w.mean");
    let error = Adam::from_tensors(config, e.params(), &broken).unwrap_err().to_string();
    assert!(error.contains("w.mean"), "{error}");
}

#[test]
fn gradients_add_scale_and_measure() {
    let e = Eager::new(store(1));
    let l = loss(&e, &random_var(50, &[1, 3, 8, 8]));
    let one = e.backward(&l);
    let mut two = one.clone();
    two.add(&one);
    assert!((two.norm() - 2.0 * one.norm()).abs() < 1e-6);
    two.scale(0.5);
    assert_eq!(two.get("token"), one.get("token"));
}
