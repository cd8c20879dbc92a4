//! The network's gradients, end to end, against PyTorch's on the same architecture, weights and loss. The reference was written by
//! `tests/peers/train_step.py --reference`; no Python is needed here.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use scanside::engine::Tensor;
use scanside::model::eager::{Eager, ParamStore, Var};
use scanside::model::network;
use scanside::model::ops::Ops;

const SIZE: usize = 128;
const STRUCTURES: usize = 3;
const RANK: usize = 4;

/// CRC-32 as in zlib.
fn crc32(text: &str) -> u32 {
    !text.bytes().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
    })
}

/// Numbers in -1..1 from a name and an index: the same integer hash as in the script.
fn values(name: &str, count: usize) -> Vec<f32> {
    let seed = crc32(name);
    (0..count as u32)
        .map(|i| {
            let mut x = i.wrapping_mul(2_654_435_761).wrapping_add(seed);
            x ^= x >> 15;
            x = x.wrapping_mul(2_246_822_519);
            x ^= x >> 13;
            (x >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

fn tensor(name: &str, shape: &[usize]) -> Tensor {
    let v = values(name, shape.iter().product());
    let k = (3.0f32 / shape[1..].iter().product::<usize>() as f32).sqrt();
    let data = match shape.len() {
        _ if name == "class_tokens" || name.contains("gaussian_matrix") => v,
        1 => v.iter().map(|v| 0.1 * v + f32::from(u8::from(name.ends_with(".weight")))).collect(),
        _ => v.iter().map(|v| v * k).collect(),
    };
    Tensor::new(shape, data)
}

fn store() -> ParamStore {
    let mut store = ParamStore::new();
    for (name, shape) in network::expected_base_shapes() {
        let tensor = tensor(&name, &shape);
        if name.starts_with("image_encoder.") || name.contains("gaussian_matrix") {
            store.insert_frozen(name, tensor);
        } else {
            store.insert_trainable(name, tensor);
        }
    }
    let mut trainable: Vec<(String, Vec<usize>)> = vec![
        ("class_tokens".into(), vec![STRUCTURES, 256]),
        ("classifier.fc1.weight".into(), vec![256, 256]),
        ("classifier.fc1.bias".into(), vec![256]),
        ("classifier.fc2.weight".into(), vec![STRUCTURES, 256]),
        ("classifier.fc2.bias".into(), vec![STRUCTURES]),
    ];
    for t in network::lora_targets() {
        if t.name.starts_with("image_encoder.") && t.name.contains(".attn.") {
            trainable.push((format!("{}.lora_a", t.name), vec![RANK, t.inputs]));
            trainable.push((format!("{}.lora_b", t.name), vec![t.outputs, RANK]));
        }
    }
    for (name, shape) in trainable {
        let tensor = tensor(&name, &shape);
        store.insert_trainable(name, tensor);
    }
    store
}

#[test]
fn every_gradient_of_a_training_step_is_pytorchs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/train_step_gradients.json");
    let reference: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();

    let e = Eager::new(store());
    let image = values("image", 3 * SIZE * SIZE).iter().map(|v| 2.0 * v).collect();
    let corners: Vec<f32> = values("boxes", 2 * STRUCTURES).iter().map(|v| (0.5 + 0.5 * v) * 0.6).collect();
    let boxes = corners.chunks(2).flat_map(|c| [c[0], c[1], c[0] + 0.3, c[1] + 0.3]).collect();
    let coin = |name: &str, n: usize| values(name, n).iter().map(|&v| f32::from(u8::from(v > 0.0))).collect();
    let side = SIZE / 4;
    let present = Var::constant(&[1, STRUCTURES], coin("present", STRUCTURES));
    let truth = Var::constant(&[STRUCTURES, 1, side, side], coin("truth", STRUCTURES * side * side));

    let f = network::encode(&e, &Var::constant(&[1, 3, SIZE, SIZE], image));
    let want: Vec<f64> = reference["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    for (got, want) in f.data().iter().step_by(f.data().len() / 16).zip(&want) {
        assert!((f64::from(*got) - want).abs() < 1e-3, "embedding {got} instead of {want}");
    }
    let classes = network::classify(&e, &f).logits;
    let boxes = Var::constant(&[STRUCTURES, 4], boxes);
    let masks = network::decode(&e, &f, &boxes, Some(&e.param("class_tokens"))).masks;
    let p = e.sigmoid(&masks);
    let both = e.sum(&e.mul(&p, &truth), &[2, 3]);
    let either = e.add(&e.sum(&p, &[2, 3]), &e.sum(&truth, &[2, 3]));
    let dice = e.div(&e.offset(&e.scale(&both, 2.0), 1.0), &e.offset(&either, 1.0));
    let dice = e.offset(&e.scale(&e.mean_all(&dice), -1.0), 1.0);
    let loss = e.add(&e.mean_all(&e.bce_with_logits(&classes, &present)), &e.scale(&dice, 0.8));
    let loss = e.add(&loss, &e.scale(&e.mean_all(&e.bce_with_logits(&masks, &truth)), 0.2));
    let want = reference["loss"].as_f64().unwrap();
    assert!((f64::from(loss.item()) - want).abs() < 1e-4 * want.abs(), "loss {} instead of {want}", loss.item());

    let gradients = e.backward(&loss);
    let expected = reference["gradients"].as_object().unwrap();
    let mut worst = 0.0f64;
    for (name, want) in expected {
        let got = gradients.get(name).unwrap_or_else(|| panic!("no gradient reaches {name}"));
        let norm = want["norm"].as_f64().unwrap();
        let got_norm = got.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let mut error = (got_norm - norm).abs() / norm;
        // Single values are held against the size of a typical one: f32 sums differ in the last digits.
        let typical = norm / (got.len() as f64).sqrt();
        for (at, value) in want["at"].as_array().unwrap().iter().zip(want["values"].as_array().unwrap()) {
            let (got, want) = (f64::from(got[at.as_u64().unwrap() as usize]), value.as_f64().unwrap());
            error = error.max((got - want).abs() / (want.abs() + typical));
        }
        if error > worst {
            worst = error;
            eprintln!("{name}: relative error {error:.1e}");
        }
        // A bias before a softmax over keys moves no output; its gradient is rounding alone.
        assert!(error < 5e-3 || name.ends_with("k_proj.bias"), "{name}: relative error {error}");
    }
    for (name, g) in gradients.iter() {
        assert!(expected.contains_key(name) || g.iter().all(|&v| v == 0.0), "{name} has a gradient only here");
    }
    assert!(expected.len() > 120, "{} gradients in the reference", expected.len());
}
