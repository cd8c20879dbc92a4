//! `engines/`: every manifest is whole, every graph has its sha256, a padded adapter gives the masks of the unpadded one, and the
//! committed recipe's masks agree with FP32's on phantoms that it was not made with.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(feature = "train")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use scanside::adapter::Adapter;
use scanside::engine::cpu::CpuEngine;
use scanside::model::network::{all_padded, engine_shapes};
use scanside::model::onnx::{EngineManifest, Graph, Precision, Recipe, emit_all};
use scanside::model::weights::{BaseWeights, MOBILE_SAM_SHA256, load_or_fetch};
use scanside::pipeline::EngineNetworks;
use scanside::pipeline::probe::{MaskTally, masks_of, phantom_images};
use scanside::train::{TrainSettings, fresh_adapter};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn base() -> BaseWeights {
    load_or_fetch(&mut |line| println!("{line}")).unwrap()
}

fn engines() -> Vec<(PathBuf, EngineManifest)> {
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(root().join("engines")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    folders.into_iter().map(|f| (f.clone(), EngineManifest::load(&f).unwrap())).collect()
}

#[test]
fn manifests_and_recipes_are_whole() {
    for (folder, m) in engines() {
        assert_eq!(folder.file_name().unwrap().to_str(), Some(m.name.as_str()));
        assert_eq!(m.base.sha256, MOBILE_SAM_SHA256);
        assert_eq!(m.base.checkpoint_sha256, scanside::model::weights::CHECKPOINT_SHA256);
        let recipe = m.recipe(&folder).unwrap();
        // As the program would write it: nothing in the file is without effect.
        assert_eq!(std::fs::read_to_string(folder.join(&m.recipe)).unwrap(), recipe.text(), "{}", m.name);
        assert!(recipe.kept().all(|(_, _, why)| why.len() > 10));
        let bytes: usize = recipe.graph.values().flatten().filter(|(_, l)| l.keep.is_none()).count();
        assert!(bytes > 10, "{}: {bytes} layers in bytes", m.name);
        for seeds in [&m.measured, &m.parity] {
            assert!(!seeds.phantoms.is_empty() && seeds.phantoms.iter().all(|s| !m.calibration.phantoms.contains(s)));
        }
    }
}

#[test]
fn engines_make_every_graph_with_its_hash() {
    let out =
        Command::new(root().join("engines/make.sh")).env("SCANSIDE", env!("CARGO_BIN_EXE_scanside")).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    println!("{said}");
    assert!(out.status.success());
    assert_eq!(said.matches("every graph has the manifest's sha256").count(), engines().len());
}

#[test]
fn a_wrong_hash_is_an_error_that_names_the_graph() {
    let (folder, m) = engines().remove(0);
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join(&m.name);
    std::fs::create_dir(&other).unwrap();
    std::fs::copy(folder.join(&m.recipe), other.join(&m.recipe)).unwrap();
    let text = std::fs::read_to_string(folder.join("manifest.toml")).unwrap();
    let known = &m.sha256["fp32/classifier.onnx"];
    std::fs::write(other.join("manifest.toml"), text.replace(known.as_str(), &"0".repeat(64))).unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_scanside"))
        .args(["export", "--precision", "fp32", "--check", "--engine"])
        .arg(&other)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("fp32/classifier.onnx") && !said.contains("encoder"), "{said}");
    // And a recipe of another size is refused.
    let text = text.replace(&format!("input_size = {}", m.input_size), "input_size = 320");
    std::fs::write(other.join("manifest.toml"), text).unwrap();
    let e = EngineManifest::load(&other).unwrap().recipe(&other).unwrap_err().to_string();
    assert!(e.contains("input size") && e.contains("quantise"), "{e}");
}

#[test]
fn an_engine_takes_what_training_makes() {
    let base = base();
    let settings = TrainSettings { encoder_rank: 5, decoder_rank: 5, ..TrainSettings::default() };
    let fresh = fresh_adapter(base.tensors(), 3, &settings);
    let shapes = fresh.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect();
    assert_eq!(engine_shapes(3, 5), shapes);
}

fn networks(graphs: &[Graph; 3], adapter: &Adapter) -> EngineNetworks {
    EngineNetworks::of(graphs, adapter, |g| Ok(Box::new(CpuEngine::load(&g.name, g.onnx.clone(), 2)?))).unwrap()
}

/// The shipped phantom adapter on the engine of its size: padding changes nothing, bytes change little.
#[test]
fn padded_and_quantised_masks_agree() {
    let base = base();
    let adapter = Adapter::load(&root().join("adapters/thigh-phantom.safetensors")).unwrap();
    let size = adapter.meta.input_size;
    let (folder, m) = engines().into_iter().find(|(_, m)| m.input_size == size).unwrap();
    assert_eq!(m.structures, adapter.meta.task.structures.len());
    let images: Vec<_> = m
        .parity
        .phantoms
        .iter()
        .flat_map(|&seed| phantom_images(seed, &m.parity.slices, adapter.meta.crop, size).unwrap())
        .collect();
    let shapes = adapter.tensors.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect();
    let own = networks(&emit_all(&base, &shapes, size).unwrap(), &adapter);
    let graphs = m.graphs(&base).unwrap();
    let wanted = engine_shapes(m.structures, m.max_rank);
    let larger = Adapter { tensors: all_padded(&adapter.tensors, &wanted, base.tensors()).unwrap(), ..adapter.clone() };
    let recipe = m.recipe(&folder).unwrap();
    let int8 = graphs.each_ref().map(|g| Precision::Int8.of(g, Some(&recipe)).unwrap());
    let (full, int8) = (networks(&graphs, &larger), networks(&int8, &larger));
    let (mut same, mut bytes) = (MaskTally::default(), MaskTally::default());
    for image in &images {
        let reference = masks_of(&own, image).unwrap();
        same.add(&reference, &masks_of(&full, image).unwrap());
        bytes.add(&reference, &masks_of(&int8, image).unwrap());
    }
    println!(
        "{} slices: padded to rank {} IoU {:.5}, INT8 by the recipe Dice {:.4}, IoU {:.4}, mask logits off by {:.1} %",
        images.len(),
        m.max_rank,
        same.iou(),
        bytes.dice(),
        bytes.iou(),
        100.0 * bytes.logit_error()
    );
    assert!(same.iou() > 0.9999 && same.logit_error() < 1e-4, "{}", same.logit_error());
    assert!(bytes.iou() >= 0.98, "what an engine needs to serve: {}", bytes.iou());
    assert!(bytes.logit_error() > 1e-4, "nothing is in bytes");
}

#[test]
fn quantise_needs_something_to_look_at() {
    let dir = tempfile::tempdir().unwrap();
    let run = |extra: &[&str]| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_scanside"));
        c.args(["quantise", "--adapter"]).arg(Path::new("adapters/thigh-phantom.safetensors")).current_dir(root());
        c.args(extra).arg("--out").arg(dir.path().join("r.toml"));
        let out = c.output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (ok, said) = run(&[]);
    assert!(!ok && said.contains("--engine"), "{said}");
    let (ok, said) = run(&["--engine", "tests"]);
    assert!(!ok && said.contains("manifest.toml"), "{said}");
    let (ok, said) = run(&["--engine", "engines/mobile-sam-256", "--rules", "best"]);
    assert!(!ok && said.contains("no rule"), "{said}");
    assert!(!dir.path().join("r.toml").exists());
    // A site's own volumes instead of phantoms, here phantoms again. Without time, every layer is kept and the file says so.
    let site = dir.path().join("site.toml");
    let tested =
        "structures = [\"VL\", \"VM\", \"VI\", \"RF\"]\n[[volume]]\nname = \"t\"\nphantom = 8\nuse = \"test\"\n";
    std::fs::write(&site, tested).unwrap();
    let (ok, said) = run(&["--manifest", site.to_str().unwrap()]);
    assert!(!ok && said.contains("those for testing left out"), "{said}");
    // The test volume is there, and is not looked at.
    std::fs::write(&site, format!("{tested}[[volume]]\nname = \"a\"\nphantom = 7\n")).unwrap();
    let (ok, said) =
        run(&["--manifest", site.to_str().unwrap(), "--slices", "2", "--rules", "min-max", "--minutes", "0"]);
    assert!(ok, "{said}");
    let recipe = Recipe::load(&dir.path().join("r.toml")).unwrap();
    assert!(recipe.made["slices"].contains("2 calibrated, 2 measured: slices of a site"), "{:?}", recipe.made);
    assert!(recipe.kept().count() > 60);
}
