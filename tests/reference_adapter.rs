//! With an adapter, the three graphs give the same on rten, on ONNX Runtime and in the eager interpreter that trains.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use rand::{Rng, SeedableRng};
use scanside::engine::cpu::CpuEngine;
use scanside::engine::{Engine, Tensor};
use scanside::model::network::{Shapes, lora_targets};
use scanside::model::onnx::{self, Graph};
use scanside::model::weights::BaseWeights;

const SIZE: usize = 64;
const CELLS: usize = SIZE / 16;

fn noise(seed: u64, shape: &[usize], scale: f32) -> Tensor {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    Tensor::new(shape, (0..shape.iter().product()).map(|_| scale * rng.random_range(-1.0..1.0f32)).collect())
}

/// An adapter for three structures that uses every mechanism: LoRA on every target, replaced base weights, the head.
fn adapter() -> BTreeMap<String, Tensor> {
    let mut shapes = Shapes::new();
    for t in lora_targets() {
        shapes.insert(format!("{}.lora_a", t.name), vec![2, t.inputs]);
        shapes.insert(format!("{}.lora_b", t.name), vec![t.outputs, 2]);
    }
    for (name, shape) in [
        ("class_tokens", vec![3, 256]),
        ("classifier.fc1.weight", vec![256, 256]),
        ("classifier.fc1.bias", vec![256]),
        ("classifier.fc2.weight", vec![3, 256]),
        ("classifier.fc2.bias", vec![3]),
        ("mask_decoder.output_upscaling.0.weight", vec![256, 64, 2, 2]),
        ("mask_decoder.output_upscaling.0.bias", vec![64]),
        ("mask_decoder.transformer.layers.0.mlp.lin1.weight", vec![2048, 256]),
        ("image_encoder.layers.1.blocks.0.attn.attention_biases", vec![4, 49]),
        ("image_encoder.neck.1.weight", vec![256]),
        ("prompt_encoder.no_mask_embed.weight", vec![1, 256]),
    ] {
        shapes.insert(name.into(), shape);
    }
    shapes.iter().enumerate().map(|(i, (n, s))| (n.clone(), noise(i as u64, s, 0.15))).collect()
}

fn shapes(adapter: &BTreeMap<String, Tensor>) -> Shapes {
    adapter.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect()
}

fn graphs(base: &BaseWeights, adapter: &Shapes) -> [(Graph, Vec<(&'static str, Tensor)>); 3] {
    let embedding = noise(1001, &[1, 256, CELLS, CELLS], 1.0);
    let boxes = Tensor::new(&[3, 4], vec![0.1, 0.2, 0.5, 0.6, 0.0, 0.0, 1.0, 1.0, 0.4, 0.3, 0.8, 0.9]);
    [
        (
            onnx::emit_encoder(base, adapter, SIZE).expect("emitted"),
            vec![(onnx::IMAGE, noise(1000, &[1, 3, SIZE, SIZE], 2.0))],
        ),
        (onnx::emit_classifier(base, adapter, SIZE).expect("emitted"), vec![(onnx::EMBEDDING, embedding.clone())]),
        (
            onnx::emit_decoder(base, adapter, SIZE).expect("emitted"),
            vec![(onnx::EMBEDDING, embedding), (onnx::BOXES, boxes)],
        ),
    ]
}

fn with_adapter<'a>(
    graph: &Graph,
    inputs: &'a [(&'static str, Tensor)],
    adapter: &'a BTreeMap<String, Tensor>,
) -> Vec<(&'a str, &'a Tensor)> {
    let needed = adapter.iter().filter(|(n, _)| graph.adapter_inputs.contains_key(*n));
    inputs.iter().map(|(n, t)| (*n, t)).chain(needed.map(|(n, t)| (n.as_str(), t))).collect()
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let error = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0f32, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) });
    println!("{what}: largest value {size:.3}, max abs difference {error:.1e}");
    assert!(size > 0.01 && error < 2e-4 * (1.0 + size), "{what}: {error} of {size}");
}

fn run_ort(python: &Path, graph: &Graph, inputs: &[(&str, &Tensor)]) -> Vec<Vec<f32>> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let model = dir.path().join("model.onnx");
    std::fs::write(&model, &graph.onnx).expect("written");
    for (name, t) in inputs {
        let raw: Vec<u8> = t.data.iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(dir.path().join(format!("{name}.f32")), raw).expect("written");
    }
    let mut worker = Command::new(python)
        .arg("tests/reference/ort_worker.py")
        .args([model.as_os_str(), "1".as_ref(), dir.path().as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    writeln!(worker.stdin.take().expect("piped"), "run").expect("written");
    assert!(worker.wait().expect("ends").success());
    let read = |n: &String| {
        let bytes = std::fs::read(dir.path().join(format!("out.{n}.f32"))).expect("read");
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    graph.outputs.iter().map(read).collect()
}

#[test]
fn rten_and_onnx_runtime_agree_on_every_graph() {
    let Some(python) = common::python_with("onnxruntime") else { return };
    let (base, adapter) = (BaseWeights::random(11), adapter());
    for (graph, inputs) in graphs(&base, &shapes(&adapter)) {
        let inputs = with_adapter(&graph, &inputs, &adapter);
        let ours = CpuEngine::load(&graph.name, graph.onnx.clone(), 1).expect("loads").run(&inputs).expect("runs");
        let theirs = run_ort(&python, &graph, &inputs);
        for (i, name) in graph.outputs.iter().enumerate() {
            assert_close(&format!("{} {name}", graph.name), &ours[i].data, &theirs[i]);
        }
    }
}

#[cfg(feature = "train")]
#[test]
fn the_interpreter_that_trains_agrees_with_the_graphs_that_serve() {
    use scanside::model::eager::{Eager, ParamStore};
    use scanside::model::network;
    use scanside::model::ops::Ops;

    let (base, adapter) = (BaseWeights::random(11), adapter());
    let mut params = ParamStore::new();
    for (name, tensor) in base.tensors().iter().filter(|(n, _)| !adapter.contains_key(*n)) {
        params.insert_frozen(name.clone(), tensor.clone());
    }
    for (name, tensor) in &adapter {
        params.insert_trainable(name.clone(), tensor.clone());
    }
    let eager = Eager::new(params);
    for (graph, inputs) in graphs(&base, &shapes(&adapter)) {
        let vars: Vec<_> = inputs.iter().map(|(_, t)| eager.constant(&t.shape, t.data.clone())).collect();
        let trained = match graph.name.as_str() {
            "encoder" => vec![network::encode(&eager, &vars[0])],
            "classifier" => {
                let out = network::classify(&eager, &vars[0]);
                vec![out.logits, out.cam]
            }
            _ => {
                let out = network::decode(&eager, &vars[0], &vars[1], Some(&eager.param("class_tokens")));
                vec![out.masks, out.iou]
            }
        };
        let inputs = with_adapter(&graph, &inputs, &adapter);
        let served = CpuEngine::load(&graph.name, graph.onnx.clone(), 1).expect("loads").run(&inputs).expect("runs");
        for ((name, ours), theirs) in graph.outputs.iter().zip(&served).zip(&trained) {
            assert_eq!(ours.shape, theirs.shape(), "{} {name}", graph.name);
            assert_close(&format!("eager {} {name}", graph.name), theirs.data(), &ours.data);
        }
    }
}
