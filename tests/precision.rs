//! FP16 and INT8 graphs beside the FP32 ones they are made of: masks must agree on ONNX Runtime and on the embedded engine, and NVIDIA's
//! parser and builder must take them (tests/tensorrt_nvidia.rs). Phantoms and the shipped phantom adapter; real data is evidence's part.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(feature = "train")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use prost::Message;
use scanside::adapter::Adapter;
use scanside::engine::cpu::CpuEngine;
use scanside::engine::{Engine, Tensor};
use scanside::image::Plane;
use scanside::model::onnx::calibrate::{Observer, RangeRule};
use scanside::model::onnx::precision::{PrecisionError, quantisable, to_half, to_int8};
use scanside::model::onnx::proto::{FLOAT, FLOAT16, INT64, ModelProto};
use scanside::model::onnx::{EngineManifest, Graph, IMAGE, Precision, Recipe, RecipeError, emit_all};
use scanside::model::weights::{BaseWeights, load_or_fetch};
use scanside::pipeline::probe::{MaskTally, first_boxes, phantom_images};
use scanside::pipeline::{EngineNetworks, Networks, planes};
use scanside::precision::{SearchSetting, Slices, Told, search};

struct Setting {
    base: BaseWeights,
    adapter: Adapter,
    graphs: [Graph; 3],
    images: Vec<Tensor>,
}

fn setting() -> Setting {
    let base: BaseWeights = load_or_fetch(&mut |line| println!("{line}")).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let adapter = Adapter::load(&root.join("adapters/thigh-phantom.safetensors")).unwrap();
    let shapes = adapter.tensors.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect();
    let graphs = emit_all(&base, &shapes, adapter.meta.input_size).unwrap();
    let images = phantom_images(40, &[3, 7, 11], adapter.meta.crop, adapter.meta.input_size).unwrap()[..3].to_vec();
    Setting { base, adapter, graphs, images }
}

impl Setting {
    fn inputs<'a>(&'a self, image: &'a Tensor) -> Vec<(&'a str, &'a Tensor)> {
        let further = self.graphs[0].adapter_inputs.keys().map(|n| (n.as_str(), &self.adapter.tensors[n]));
        [(IMAGE, image)].into_iter().chain(further).collect()
    }

    fn ranges(&self, rule: RangeRule) -> BTreeMap<String, f32> {
        let mut observer = Observer::new(&self.graphs[0], 2).unwrap();
        for image in &self.images {
            observer.run(&self.inputs(image)).unwrap();
        }
        observer.into_calibration().ranges(rule).unwrap()
    }

    fn recipe(&self) -> Recipe {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("engines/mobile-sam-256");
        let recipe = EngineManifest::load(&folder).unwrap().recipe(&folder).unwrap();
        recipe.check(self.base.sha256(), self.adapter.meta.input_size).unwrap();
        recipe
    }

    fn networks(&self, precision: Precision, recipe: &Recipe) -> EngineNetworks {
        let graphs = self.graphs.each_ref().map(|g| precision.of(g, Some(recipe)).unwrap());
        EngineNetworks::of(&graphs, &self.adapter, |g| {
            Ok(Box::new(CpuEngine::load(&g.name, g.onnx.clone(), 2)?.stating(precision.word())))
        })
        .unwrap()
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
    let encoder = &s.graphs[0];
    let ranges = s.ranges(RangeRule::MinMax);
    assert_eq!(ranges, s.ranges(RangeRule::MinMax), "the same images give the same ranges");
    let all = quantisable(&encoder.onnx).unwrap();
    assert!(all.len() > 40, "{}", all.len());
    let names: BTreeSet<&str> = all.iter().map(|q| q.layer.as_str()).collect();
    assert_eq!(names.len(), all.len(), "a layer's name is its own");
    assert!(names.contains("image_encoder.layers.1.blocks.0.attn.qkv") && names.contains("image_encoder.neck.0"));
    let full = CpuEngine::load("fp32", encoder.onnx.clone(), 2).unwrap();
    let wanted = full.run(&s.inputs(&s.images[0])).unwrap();
    let with = |keep: &BTreeSet<String>| {
        let onnx = to_int8(&encoder.onnx, &ranges, keep).unwrap();
        let engine = CpuEngine::load("int8", onnx.clone(), 2).unwrap();
        (off(&wanted[0], &engine.run(&s.inputs(&s.images[0])).unwrap()[0]), onnx.len())
    };
    let (error, bytes) = with(&BTreeSet::new());
    println!(
        "INT8: relative error of the embedding {error:.4}, {} KiB of {} KiB",
        bytes >> 10,
        encoder.onnx.len() >> 10
    );
    // Bytes everywhere cost this encoder much; that is why layers are chosen by measurement.
    assert!(error < 0.6 && error > 1e-4, "{error}");
    assert!(bytes * 2 < encoder.onnx.len(), "weights are a quarter");
    let (none, _) = with(&all.iter().map(|q| q.node.clone()).collect());
    assert!(none < 1e-6, "nothing is quantised: {none}");
    let half: BTreeSet<String> = all.iter().take(all.len() / 2).map(|q| q.node.clone()).collect();
    assert!(with(&half).0 < error);
    // A calibration of another graph is refused by name.
    let e = to_int8(&encoder.onnx, &BTreeMap::new(), &BTreeSet::new()).unwrap_err();
    assert!(matches!(&e, PrecisionError::Range { .. }) && e.to_string().contains("calibrate"), "{e}");
    assert!(to_half(b"\xff\xff no graph").is_err() && to_int8(b"", &ranges, &BTreeSet::new()).is_err());
    // And so is a recipe that lacks a layer.
    let mut recipe = s.recipe();
    recipe.graph.get_mut("encoder").unwrap().remove("image_encoder.neck.0");
    let e = Precision::Int8.of(encoder, Some(&recipe)).unwrap_err();
    assert!(matches!(&e, RecipeError::Layer { layer, .. } if layer == "image_encoder.neck.0"), "{e}");
    assert!(matches!(Precision::Int8Fp16.of(encoder, None), Err(RecipeError::None)));
}

/// Follows element types through a graph: which operators work in FP32 and which in FP16.
fn types(onnx: &[u8]) -> BTreeMap<String, BTreeSet<i32>> {
    let graph = ModelProto::decode(onnx).unwrap().graph.unwrap();
    let mut of: BTreeMap<String, i32> = graph.initializer.iter().map(|t| (t.name.clone(), t.data_type)).collect();
    of.extend(graph.input.iter().map(|i| (i.name.clone(), FLOAT)));
    let mut seen: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    for n in &graph.node {
        let reads: Vec<i32> = n.input.iter().filter(|i| !i.is_empty()).map(|i| of[i]).filter(|t| *t != INT64).collect();
        let to = n.attribute.iter().find(|a| a.name == "to").map(|a| a.i as i32);
        let gives = match n.op_type.as_str() {
            "Cast" => to.unwrap(),
            "Greater" => 9,
            "QuantizeLinear" => 3,
            "DequantizeLinear" => FLOAT,
            _ => reads[0],
        };
        if !["Cast", "QuantizeLinear", "DequantizeLinear"].contains(&n.op_type.as_str()) {
            assert!(reads.iter().all(|t| *t == reads[0]), "{} reads {reads:?}", n.name);
            seen.entry(n.op_type.clone()).or_default().extend(reads);
        }
        of.extend(n.output.iter().map(|o| (o.clone(), gives)));
    }
    for o in &graph.output {
        assert_eq!(of[&o.name], FLOAT, "{}", o.name);
    }
    seen
}

#[test]
fn normalisation_and_softmax_stay_in_fp32() {
    let s = setting();
    let recipe = s.recipe();
    for precision in [Precision::Fp16, Precision::Int8Fp16] {
        for graph in &s.graphs {
            let seen = types(&precision.of(graph, Some(&recipe)).unwrap().onnx);
            println!("{} {}: {seen:?}", graph.name, precision.word());
            for wide in ["LayerNormalization", "Softmax", "ReduceMean"] {
                if let Some(t) = seen.get(wide) {
                    assert_eq!(t, &BTreeSet::from([FLOAT]), "{wide} of the {}", graph.name);
                }
            }
            for narrow in ["Add", "MatMul"] {
                assert_eq!(seen[narrow], BTreeSet::from([FLOAT16]), "{narrow} of the {}", graph.name);
            }
        }
        let encoder = types(&precision.of(&s.graphs[0], Some(&recipe)).unwrap().onnx);
        assert!(encoder.contains_key("LayerNormalization") && encoder.contains_key("Softmax"));
    }
    // FP32 stays as it is, byte for byte.
    assert_eq!(Precision::Fp32.of(&s.graphs[0], None).unwrap(), s.graphs[0]);
}

#[test]
fn a_search_finds_what_hurts_and_says_why() {
    let s = setting();
    let slices = Slices { calibration: s.images[..1].to_vec(), measured: s.images[1..2].to_vec() };
    let setting = SearchSetting {
        rules: vec![RangeRule::MinMax, RangeRule::LeastError],
        ranking: 1,
        minutes: 0.0,
        ..SearchSetting::default()
    };
    let mut told = Vec::new();
    // No time: every layer is kept, and the reason says so.
    let found = search(&s.base, &s.adapter, &slices, &setting, &mut |t| told.push(t)).unwrap();
    let total: usize = found.recipe.graph.values().map(BTreeMap::len).sum();
    assert_eq!(found.recipe.kept().count(), total);
    assert!(found.recipe.kept().all(|(_, _, why)| why.contains("time was up")));
    assert_eq!(found.dice, 1.0);
    assert_eq!(told.iter().filter(|t| matches!(t, Told::Rule(..))).count(), 2);
    // The file is read back as it was.
    let text = found.recipe.text();
    assert_eq!(Recipe::parse(&text, "x").unwrap(), found.recipe);
    let none = Slices { calibration: Vec::new(), ..slices.clone() };
    assert!(search(&s.base, &s.adapter, &none, &setting, &mut |_| ()).unwrap_err().to_string().contains("calibration"));
    let broken = Slices {
        calibration: vec![Tensor { data: vec![f32::NAN; s.images[0].data.len()], ..s.images[0].clone() }],
        ..slices
    };
    let e = search(&s.base, &s.adapter, &broken, &setting, &mut |_| ()).unwrap_err().to_string();
    assert!(e.contains("not finite"), "{e}");
}

#[test]
fn recipes_from_elsewhere_are_refused_in_words() {
    let text = setting().recipe().text();
    for (from, to, word) in [
        ("format = 1", "format = 9", "format 9"),
        ("range = ", "range = -", "the range of"),
        ("range = ", "range = nan, was = ", "unknown field"),
        ("keep = \"", "keep = \"\", reason = \"", "unknown field"),
        ("[made]", "[mad]", "unknown field"),
    ] {
        let e = Recipe::parse(&text.replace(from, to), "recipe.toml").unwrap_err().to_string();
        assert!(e.contains(word) && e.contains("recipe.toml"), "{to}: {e}");
    }
    assert!(Recipe::parse(&"#".repeat(2 << 20), "x").unwrap_err().to_string().contains("KiB"));
    let recipe = Recipe::parse(&text, "x").unwrap();
    let e = recipe.check("0123", 256).unwrap_err().to_string();
    assert!(e.contains("base weights") && e.contains("quantise"), "{e}");
}

/// The masks of encoder and decoder in each precision, on ONNX Runtime and here.
#[test]
fn onnx_runtime_agrees_on_every_precision() {
    let Some(python) = common::python_with("onnxruntime") else { return };
    let s = setting();
    let recipe = s.recipe();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let full = s.networks(Precision::Fp32, &recipe);
    let embedding = full.encode(&s.images[0]).unwrap();
    let boxes = first_boxes(&full, &embedding).unwrap();
    let all = Tensor { shape: vec![boxes.len(), 4], data: boxes.concat() };
    for precision in Precision::ALL {
        for graph in &s.graphs {
            let made = precision.of(graph, Some(&recipe)).unwrap();
            std::fs::write(file(&format!("{}-{}.onnx", graph.name, precision.word())), &made.onnx).unwrap();
        }
    }
    let given = s.adapter.tensors.iter().map(|(n, t)| (n.as_str(), t)).chain([(IMAGE, &s.images[0]), ("boxes", &all)]);
    for (name, t) in given {
        let bytes: Vec<u8> = t.data.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape: Vec<String> = t.shape.iter().map(usize::to_string).collect();
        std::fs::write(file(&format!("{name}.{}.in", shape.join("x"))), bytes).unwrap();
    }
    let script = r#"
import sys, glob, os, numpy as np, onnx, onnxruntime as ort
d = sys.argv[1]
feed = {}
for f in glob.glob(d + '/*.in'):
    name, shape, _ = os.path.basename(f).rsplit('.', 2)
    feed[name] = np.fromfile(f, np.float32).reshape([int(v) for v in shape.split('x')])
def run(graph, precision, **more):
    path = f'{d}/{graph}-{precision}.onnx'
    onnx.checker.check_model(path, full_check=True)
    session = ort.InferenceSession(path, providers=['CPUExecutionProvider'])
    given = {i.name: {**feed, **more}[i.name] for i in session.get_inputs()}
    out = session.run(None, given)
    assert all(o.dtype == np.float32 for o in out)
    return out
for p in ('fp32', 'fp16', 'int8', 'int8-fp16'):
    embedding = run('encoder', p)[0]
    run('classifier', p, embedding=embedding)
    embedding.tofile(f'{d}/{p}.embedding')
    run('decoder', p, embedding=embedding)[0].tofile(f'{d}/{p}.masks')
"#;
    let out = std::process::Command::new(python).args(["-c", script]).arg(dir.path()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let count = boxes.len();
    let edge = s.adapter.meta.input_size / 4;
    let theirs = |name: &str, shape: &[usize]| {
        let bytes = std::fs::read(file(name)).unwrap();
        let data = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Tensor::new(shape, data)
    };
    let masks = |word: &str| {
        planes(&theirs(&format!("{word}.masks"), &[count, 1, edge, edge]), count, "ort", "decoder").unwrap()
    };
    let ours = |precision: Precision| {
        let n = s.networks(precision, &recipe);
        assert_eq!(n.identity().precision, precision.word());
        n.decode(&n.encode(&s.images[0]).unwrap(), &boxes).unwrap().masks
    };
    let agree = |what: &str, a: &[Plane<f32>], b: &[Plane<f32>]| {
        let mut t = MaskTally::default();
        t.add(a, b);
        println!("{what}: mask IoU {:.4}, logits off by {:.2e}", t.iou(), t.logit_error());
        t
    };
    let (full, int8) = (ours(Precision::Fp32), ours(Precision::Int8));
    let same = agree("FP32, ONNX Runtime and rten", &full, &masks("fp32"));
    assert!(same.iou() > 0.999 && same.logit_error() < 1e-3);
    assert!(off(&embedding, &theirs("fp32.embedding", &embedding.shape)) < 1e-4);
    let half = agree("FP16 on ONNX Runtime beside FP32", &full, &masks("fp16"));
    assert!(half.iou() > 0.99, "{}", half.iou());
    assert!(half.logit_error() > 1e-5, "the graph is not in FP16 at all");
    for (what, found) in [
        ("INT8 on rten beside FP32", &int8),
        ("INT8 on ONNX Runtime beside FP32", &masks("int8")),
        ("INT8 in FP16 on ONNX Runtime beside FP32", &masks("int8-fp16")),
    ] {
        let t = agree(what, &full, found);
        assert!(t.iou() > 0.97 && t.logit_error() > 1e-4, "{what}: {}", t.iou());
    }
    // A sum that ends on the other side of a tie flips a byte, and many layers carry it on: engines agree on bytes only so far.
    assert!(agree("INT8, ONNX Runtime and rten", &int8, &masks("int8")).iou() > 0.97);
}
