//! FP16 and INT8 graphs beside the FP32 ones they are made of: masks must agree on ONNX Runtime and on the embedded engine, and NVIDIA's
//! parser and builder must take them (tests/tensorrt_nvidia.rs). Phantoms and the shipped phantom adapter; real data is evidence's part.
#![cfg(feature = "train")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use scanside::engine::cpu::CpuEngine;
use scanside::engine::{Engine, Tensor};
use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::model::onnx::precision::{PrecisionError, quantisable, to_half, to_int8, with_outputs};
use scanside::model::onnx::{Graph, IMAGE, emit_encoder};
use scanside::model::weights::{BaseWeights, load_or_fetch};
use scanside::pipeline::{CropRule, leg_views, to_input};

struct Setting {
    adapter: scanside::adapter::Adapter,
    graph: Graph,
    images: Vec<Tensor>,
}

fn setting() -> Setting {
    let base: BaseWeights = load_or_fetch(&mut |line| println!("{line}")).unwrap();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("adapters/thigh-phantom.safetensors");
    let adapter = scanside::adapter::Adapter::load(&path).unwrap();
    let shapes = adapter.tensors.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect();
    let size = adapter.meta.input_size;
    let graph = emit_encoder(&base, &shapes, size).unwrap();
    let phantom = Phantom::new(&PhantomOptions { seed: 40, ..PhantomOptions::default() });
    let (views, _) = leg_views(&phantom.volume, CropRule::default(), size, None).unwrap();
    let images = [3, 7, 11].map(|z| to_input(&views[0].grey(&phantom.volume, z))).to_vec();
    Setting { adapter, graph, images }
}

impl Setting {
    fn inputs<'a>(&'a self, image: &'a Tensor) -> Vec<(&'a str, &'a Tensor)> {
        let further = self.graph.adapter_inputs.keys().map(|n| (n.as_str(), &self.adapter.tensors[n]));
        [(IMAGE, image)].into_iter().chain(further).collect()
    }

    fn ranges(&self) -> BTreeMap<String, f32> {
        let wanted: BTreeSet<String> =
            quantisable(&self.graph.onnx).unwrap().into_iter().map(|q| q.activation).collect();
        let open = with_outputs(&self.graph.onnx, &wanted).unwrap();
        let engine = CpuEngine::load("open", open, 2).unwrap();
        let further: Vec<&String> = wanted.iter().filter(|n| **n != IMAGE).collect();
        let mut ranges = BTreeMap::new();
        for image in &self.images {
            let out = engine.run(&self.inputs(image)).unwrap();
            let largest = |t: &Tensor| t.data.iter().fold(0f32, |m, v| m.max(v.abs()));
            let seen = further.iter().zip(&out[1..]).map(|(n, t)| ((*n).clone(), largest(t)));
            for (n, v) in seen.chain([(IMAGE.to_string(), largest(image))]) {
                let r = ranges.entry(n).or_insert(0f32);
                *r = r.max(v);
            }
        }
        ranges
    }
}

fn off(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape, b.shape);
    let (mut d, mut n) = (0.0, 0.0);
    for (x, y) in a.data.iter().zip(&b.data) {
        d += f64::from(x - y).powi(2);
        n += f64::from(*x).powi(2);
    }
    (d / n).sqrt()
}

#[test]
fn int8_on_the_embedded_engine_stays_near_and_keeps_what_it_is_told_to() {
    let s = setting();
    let ranges = s.ranges();
    let all = quantisable(&s.graph.onnx).unwrap();
    assert!(all.len() > 40, "{}", all.len());
    let full = CpuEngine::load("fp32", s.graph.onnx.clone(), 2).unwrap();
    let wanted = full.run(&s.inputs(&s.images[0])).unwrap();
    let with = |keep: &BTreeSet<String>| {
        let onnx = to_int8(&s.graph.onnx, &ranges, keep).unwrap();
        let engine = CpuEngine::load("int8", onnx.clone(), 2).unwrap();
        (off(&wanted[0], &engine.run(&s.inputs(&s.images[0])).unwrap()[0]), onnx.len())
    };
    let (error, bytes) = with(&BTreeSet::new());
    println!(
        "INT8: relative error of the embedding {error:.4}, {} KiB of {} KiB",
        bytes >> 10,
        s.graph.onnx.len() >> 10
    );
    // Bytes everywhere cost this encoder much; that is why layers are chosen by measurement.
    assert!(error < 0.6 && error > 1e-4, "{error}");
    assert!(bytes * 2 < s.graph.onnx.len(), "weights are a quarter");
    let names: BTreeSet<String> = all.iter().map(|q| q.node.clone()).collect();
    let (none, _) = with(&names);
    assert!(none < 1e-6, "nothing is quantised: {none}");
    let half: BTreeSet<String> = all.iter().take(all.len() / 2).map(|q| q.node.clone()).collect();
    assert!(with(&half).0 < error);
    // A calibration of another graph is refused by name.
    let e = to_int8(&s.graph.onnx, &BTreeMap::new(), &BTreeSet::new()).unwrap_err();
    assert!(matches!(&e, PrecisionError::Range { .. }) && e.to_string().contains("calibrate"), "{e}");
    assert!(to_half(b"\xff\xff no graph").is_err() && to_int8(b"", &ranges, &BTreeSet::new()).is_err());
}

#[test]
fn onnx_runtime_agrees_on_every_precision() {
    let Some(python) = common::python_with("onnxruntime") else { return };
    let s = setting();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let int8 = to_int8(&s.graph.onnx, &s.ranges(), &BTreeSet::new()).unwrap();
    let engine = CpuEngine::load("int8", int8.clone(), 2).unwrap();
    let ours = [
        CpuEngine::load("fp32", s.graph.onnx.clone(), 2).unwrap().run(&s.inputs(&s.images[0])).unwrap().remove(0),
        engine.run(&s.inputs(&s.images[0])).unwrap().remove(0),
    ];
    let both = to_half(&int8).unwrap();
    for (name, onnx) in
        [("fp32", s.graph.onnx.clone()), ("fp16", to_half(&s.graph.onnx).unwrap()), ("int8", int8), ("both", both)]
    {
        std::fs::write(file(&format!("{name}.onnx")), onnx).unwrap();
    }
    for (name, t) in s.inputs(&s.images[0]) {
        let bytes: Vec<u8> = t.data.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape: Vec<String> = t.shape.iter().map(usize::to_string).collect();
        std::fs::write(file(&format!("{}.{}.in", name.replace('/', "+"), shape.join("x"))), bytes).unwrap();
    }
    let script = r#"
import sys, glob, os, numpy as np, onnx, onnxruntime as ort
d = sys.argv[1]
feed = {}
for f in glob.glob(d + '/*.in'):
    name, shape, _ = os.path.basename(f).rsplit('.', 2)
    feed[name.replace('+', '/')] = np.fromfile(f, np.float32).reshape([int(v) for v in shape.split('x')])
for p in ('fp32', 'fp16', 'int8', 'both'):
    path = f'{d}/{p}.onnx'
    onnx.checker.check_model(path, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    out = ort.InferenceSession(path, options, providers=['CPUExecutionProvider']).run(None, feed)[0]
    assert out.dtype == np.float32, out.dtype
    out.tofile(f'{d}/{p}.out')
"#;
    let out = std::process::Command::new(python).args(["-c", script]).arg(dir.path()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let theirs = |name: &str| {
        let bytes = std::fs::read(file(&format!("{name}.out"))).unwrap();
        let data = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Tensor { shape: ours[0].shape.clone(), data }
    };
    let [full, half, byte, both] = ["fp32", "fp16", "int8", "both"].map(theirs);
    let errors = [off(&ours[0], &full), off(&full, &half), off(&ours[1], &byte), off(&full, &byte), off(&full, &both)];
    println!(
        "against ONNX Runtime: fp32 {:.1e}, fp16 beside fp32 {:.1e}, int8 {:.1e}, int8 beside fp32 {:.1e}, int8 in fp16 beside fp32 {:.1e}",
        errors[0], errors[1], errors[2], errors[3], errors[4]
    );
    assert!(errors[0] < 1e-4, "fp32 {errors:?}");
    assert!(errors[1] < 2e-2, "fp16 {errors:?}");
    // A sum that ends on the other side of a tie flips a byte, and thirty layers carry it on: engines agree on bytes only so far,
    // and much better with each other than with FP32.
    assert!(errors[2] < 0.5 * errors[3] && errors[3] < 0.6 && errors[4] < 1.2 * errors[3], "int8 {errors:?}");
}
