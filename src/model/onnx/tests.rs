use super::*;
use crate::engine::cpu::CpuEngine;
use crate::engine::{Engine, Tensor};

/// A whole adapter for two structures, LoRA on one linear and one 1x1 convolution.
fn adapter() -> Shapes {
    let mut s = Shapes::new();
    s.insert("class_tokens".into(), vec![2, 256]);
    s.insert("classifier.fc1.weight".into(), vec![256, 256]);
    s.insert("classifier.fc1.bias".into(), vec![256]);
    s.insert("classifier.fc2.weight".into(), vec![2, 256]);
    s.insert("classifier.fc2.bias".into(), vec![2]);
    s.insert("image_encoder.layers.1.blocks.0.attn.qkv.lora_a".into(), vec![4, 128]);
    s.insert("image_encoder.layers.1.blocks.0.attn.qkv.lora_b".into(), vec![384, 4]);
    s.insert("image_encoder.layers.0.blocks.0.conv1.lora_a".into(), vec![4, 64]);
    s.insert("image_encoder.layers.0.blocks.0.conv1.lora_b".into(), vec![256, 4]);
    s.insert("mask_decoder.iou_token.weight".into(), vec![1, 256]);
    s
}

fn ramp(shape: &[usize], scale: f32) -> Tensor {
    let n = shape.iter().product();
    Tensor::new(shape, (0..n).map(|i: usize| scale * (i as f32 * 0.37).sin()).collect())
}

fn noise(shape: &[usize], scale: f32) -> Tensor {
    use rand::{Rng, SeedableRng};
    let n: usize = shape.iter().product();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(n as u64);
    Tensor::new(shape, (0..n).map(|_| scale * rng.random_range(-1.0..1.0f32)).collect())
}

fn run(graph: &Graph, adapter: &[(String, Tensor)], inputs: &[(&str, &Tensor)]) -> Vec<Tensor> {
    let engine = CpuEngine::load(graph.name.as_str(), graph.onnx.clone(), 1).unwrap();
    let mut all = inputs.to_vec();
    all.extend(adapter.iter().filter(|(n, _)| graph.adapter_inputs.contains_key(n)).map(|(n, t)| (n.as_str(), t)));
    engine.run(&all).unwrap()
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let base = BaseWeights::random(3);
    assert_eq!(emit_encoder(&base, &adapter(), 64).unwrap(), emit_encoder(&base, &adapter(), 64).unwrap());
    assert_eq!(emit_decoder(&base, &adapter(), 64).unwrap().onnx, emit_decoder(&base, &adapter(), 64).unwrap().onnx);
    let other = BaseWeights::random(4);
    assert_ne!(emit_encoder(&base, &adapter(), 64).unwrap().onnx, emit_encoder(&other, &adapter(), 64).unwrap().onnx);
}

#[test]
fn an_adapter_that_feeds_gradients_back_while_serving_is_refused() {
    let mut shapes = adapter();
    shapes.extend(crate::model::network::feedback_shapes());
    let refused = emit_classifier(&BaseWeights::random(3), &shapes, 64).unwrap_err().to_string();
    assert!(refused.contains("feedback.") && refused.contains("train-and-test"), "{refused}");
}

#[test]
fn adapter_tensors_are_inputs_and_only_where_read() {
    let base = BaseWeights::random(3);
    let encoder = emit_encoder(&base, &adapter(), 64).unwrap();
    let names: Vec<&str> = encoder.adapter_inputs.keys().map(String::as_str).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let decoder = emit_decoder(&base, &adapter(), 64).unwrap();
    let names: Vec<&str> = decoder.adapter_inputs.keys().map(String::as_str).collect();
    assert_eq!(names, ["class_tokens", "mask_decoder.iou_token.weight"]);
    assert!(emit_encoder(&base, &Shapes::from([("x".into(), vec![1])]), 64).is_err());
    assert!(emit_encoder(&base, &Shapes::new(), 100).is_err());
    assert!(emit_decoder(&base, &Shapes::new(), 64).is_err());
}

#[test]
fn lora_of_zero_changes_nothing_and_of_more_does() {
    let base = BaseWeights::random(5);
    let image = ramp(&[1, 3, 64, 64], 1.0);
    let plain = run(&emit_encoder(&base, &Shapes::new(), 64).unwrap(), &[], &[(IMAGE, &image)]);
    let graph = emit_encoder(&base, &adapter(), 64).unwrap();
    let tensors = |b: f32| -> Vec<(String, Tensor)> {
        adapter().iter().map(|(n, s)| (n.clone(), ramp(s, if n.ends_with("lora_b") { b } else { 0.1 }))).collect()
    };
    let difference = |b: f32| {
        let out = run(&graph, &tensors(b), &[(IMAGE, &image)]);
        out[0]
            .data
            .iter()
            .zip(&plain[0].data)
            .map(|(x, y)| (x - y).abs())
            .fold(0.0, |m: f32, d| if d.is_nan() { f32::INFINITY } else { m.max(d) })
    };
    assert!(difference(0.0) < 1e-5);
    assert!(difference(0.5) > 1e-3);
}

#[test]
fn cam_is_the_gradient_of_the_logit() {
    // CAM's weights are the logit's gradient on the embedding, averaged over positions: here by finite differences.
    let shapes = adapter();
    let graph = emit_classifier(&BaseWeights::random(6), &shapes, 64).unwrap();
    let engine = CpuEngine::load("classifier", graph.onnx.clone(), 1).unwrap();
    let tensors: Vec<(String, Tensor)> = shapes
        .iter()
        .filter(|(n, _)| graph.adapter_inputs.contains_key(*n))
        .map(|(n, s)| (n.clone(), noise(s, 0.2)))
        .collect();
    let run = |f: &Tensor| {
        let mut inputs = vec![(EMBEDDING, f)];
        inputs.extend(tensors.iter().map(|(n, t)| (n.as_str(), t)));
        engine.run(&inputs).unwrap()
    };
    let f = noise(&[1, 256, 4, 4], 1.0);
    let out = run(&f);
    assert_eq!((&out[0].shape[..], &out[1].shape[..]), (&[1, 2][..], &[1, 2, 4, 4][..]));
    let mut cam = [[0f64; 16]; 2];
    for c in 0..256 {
        // All positions of a channel share one gradient, so moving all of them by h moves the logit by 16 h dL/dF.
        let h = 1e-3;
        let moved = |sign: f32| {
            let mut g = f.clone();
            g.data[c * 16..(c + 1) * 16].iter_mut().for_each(|v| *v += sign * h);
            run(&g).remove(0)
        };
        let (up, down) = (moved(1.0), moved(-1.0));
        for (k, row) in cam.iter_mut().enumerate() {
            let alpha = f64::from(up.data[k] - down.data[k]) / f64::from(2.0 * h) / 16.0;
            for (p, value) in row.iter_mut().enumerate() {
                *value += alpha * f64::from(f.data[c * 16 + p]);
            }
        }
    }
    assert!(cam.as_flattened().iter().any(|&v| v > 0.05), "nothing to compare: {cam:?}");
    for (i, expected) in cam.as_flattened().iter().enumerate() {
        let found = f64::from(out[1].data[i]);
        assert!((found - expected.max(0.0)).abs() < 1e-2, "{i}: {found} {expected}");
    }
}

#[test]
fn wrong_inputs_are_named() {
    let graph = emit_zero_shot_decoder(&BaseWeights::random(1), 64, 1).unwrap();
    let engine = CpuEngine::load("decoder", graph.onnx, 1).unwrap();
    let (embedding, boxes) = (Tensor::zeros(&[1, 256, 4, 4]), Tensor::new(&[1, 4], vec![0.1, 0.2, 0.6, 0.7]));
    let out = engine.run(&[("boxes", &boxes), ("embedding", &embedding)]).unwrap();
    assert_eq!(out[0].shape, [1, 1, 16, 16]);
    assert_eq!(out[1].shape, [1, 1]);
    let e = engine.run(&[("embedding", &embedding)]).unwrap_err().to_string();
    assert!(e.contains("boxes is missing"), "{e}");
    let e = engine.run(&[("boxes", &embedding), ("embedding", &embedding)]).unwrap_err().to_string();
    assert!(e.contains("the graph takes [1, 4]"), "{e}");
    let e = engine.run(&[("x", &boxes)]).unwrap_err().to_string();
    assert!(e.contains("no input x"), "{e}");
}
