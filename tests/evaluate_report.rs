//! An evaluation says what the masks are: with a network that reads painted intensities, every figure is known beforehand.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use scanside::engine::{EngineError, EngineIdentity, Tensor};
use scanside::evaluate::{Evaluated, Evaluation, Prompt, Table, html, overlays};
use scanside::image::{Geometry, LabelMap, Plane, Volume};
use scanside::pipeline::{ClassifierOutput, CropRule, DecoderOutput, ModelInfo, Networks, SegmentOptions, Segmenter};
use scanside::terms::{Side, Task, structure};
use scanside::train::{Case, Manifest, load_cases};

const S: usize = 256;
/// Intensities of the structures VL and VM; the leg is 300, its rim 1200.
const PAINT: [f32; 2] = [600.0, 900.0];
const TOP: f32 = 1200.0;
const KEYS: [&str; 2] = ["VL", "VM"];

/// Packs the image into the embedding and reads structures off it, inside the box it is given.
struct Painted;

fn is(v: f32, k: usize) -> bool {
    (v - PAINT[k] / TOP * 255.0).abs() < 12.0
}

impl Networks for Painted {
    fn input_size(&self) -> usize {
        S
    }
    fn structures(&self) -> usize {
        PAINT.len()
    }
    fn encode(&self, image: &Tensor) -> Result<Tensor, EngineError> {
        Ok(Tensor::new(&[1, 256, 16, 16], image.data[..S * S].iter().map(|v| v * 58.395 + 123.675).collect()))
    }
    fn classify(&self, embedding: &Tensor) -> Result<ClassifierOutput, EngineError> {
        let mut out = ClassifierOutput { logits: Vec::new(), cams: Vec::new() };
        for k in 0..PAINT.len() {
            let mut cam = Plane::filled(16, 16, 0.0f32);
            for (i, _) in embedding.data.iter().enumerate().filter(|(_, v)| is(**v, k)) {
                cam.data[i / S / 16 * 16 + i % S / 16] += 1.0;
            }
            out.logits.push(if cam.data.iter().sum::<f32>() > 900.0 { 6.0 } else { -6.0 });
            out.cams.push(cam);
        }
        Ok(out)
    }
    fn decode(&self, embedding: &Tensor, boxes: &[[f32; 4]]) -> Result<DecoderOutput, EngineError> {
        let mask = |(k, b): (usize, &[f32; 4])| {
            let mut mask = Plane::filled(64, 64, -6.0f32);
            for (i, m) in mask.data.iter_mut().enumerate() {
                let (x, y) = (i % 64, i / 64);
                let (u, v) = ((x as f32 + 0.5) / 64.0, (y as f32 + 0.5) / 64.0);
                let inside = u > b[0] - 0.05 && u < b[2] + 0.05 && v > b[1] - 0.05 && v < b[3] + 0.05;
                let n = (0..16).filter(|j| is(embedding.data[(y * 4 + j / 4) * S + x * 4 + j % 4], k)).count();
                *m = if inside { n as f32 * 12.0 / 16.0 - 6.0 } else { -6.0 };
            }
            mask
        };
        Ok(DecoderOutput { masks: boxes.iter().enumerate().map(mask).collect(), iou: vec![0.95; boxes.len()] })
    }
    fn identity(&self) -> EngineIdentity {
        EngineIdentity { kind: "painted".into(), version: "1".into(), precision: "fp32".into() }
    }
}

fn task() -> Task {
    Task { name: "painted".into(), structures: KEYS.iter().filter_map(|k| structure(k)).collect() }
}

/// Two legs of 8 slices, VL on all of them and VM on the upper five.
fn painted() -> (Volume, LabelMap) {
    let mut g = Geometry::axial([400, 220, 8], [1.0, 1.0, 5.0]);
    g.origin = [-200.0, -110.0, 0.0];
    let mut truth = LabelMap::empty(g.clone());
    let data = (0..g.voxels())
        .map(|i| {
            let p = g.to_patient([(i % 400) as f64, (i / 400 % 220) as f64, 0.0]);
            let outwards = if p[0] < 0.0 { -1.0 } else { 1.0 };
            let (dx, dy) = (p[0] * outwards - 100.0, p[1]);
            let r = (dx / 82.0).hypot(dy / 75.0);
            if r < 1.0 && (dx - 35.0).hypot(dy + 10.0) < 22.0 {
                truth.data[i] = 1;
                return PAINT[0];
            }
            if r < 1.0 && (dx + 30.0).hypot(dy - 15.0) < 18.0 && i / 88_000 >= 3 {
                truth.data[i] = 2;
                return PAINT[1];
            }
            if r >= 1.0 {
                2.0
            } else if r > 0.93 {
                TOP
            } else {
                300.0
            }
        })
        .collect();
    (Volume { geometry: g, data }, truth)
}

/// The painted volume as a case of one right leg, from a manifest's phantom.
fn case(name: &str) -> Case {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    std::fs::write(&path, "structures = [\"VL\", \"VM\"]\n[[volume]]\nphantom = 1\nuse = \"test\"\n").unwrap();
    let mut case = load_cases(&Manifest::load(&path).unwrap(), &task(), |_| true).unwrap().remove(0);
    (case.volume, case.truth) = painted();
    (case.name, case.side, case.test) = (name.into(), Some(Side::Right), (0..8).collect());
    case
}

fn evaluate(cases: &[Case], prompts: &[Prompt]) -> Evaluated {
    let info = ModelInfo {
        task: task(),
        crop: CropRule::default(),
        adapter: "painted 1".into(),
        adapter_sha256: "00".into(),
        shapes: Vec::new(),
        presence: Vec::new(),
        prompting: scanside::pipeline::Prompting { cam: true, whole: false, refine: false, gate: true, crops: 0 },
        segex: None,
    };
    let (task, options) = (task(), SegmentOptions::default());
    let evaluation = Evaluation {
        task: &task,
        crop: CropRule::default(),
        segmenter: &Segmenter::new(Box::new(Painted), info).unwrap(),
        options: &options,
        prompts,
        direct: Some(&Painted),
        base: None,
        tolerance_mm: None,
        keep: true,
    };
    evaluation.run(cases, &mut |_, _| {}).unwrap()
}

#[test]
fn every_prompt_finds_what_is_painted_and_nothing_of_the_other_leg() {
    let prompts = [Prompt::Automatic, Prompt::PromptFree, Prompt::TrueBox];
    let out = evaluate(&[case("a")], &prompts);
    assert_eq!(out.outcomes.len(), 6);
    for o in &out.outcomes {
        let half = painted().1.count(if o.structure == "VL" { 1 } else { 2 }) / 2;
        assert_eq!((o.side, o.agreement.truth), (Some(Side::Right), half));
        assert!(o.agreement.dice.unwrap() > 0.95 && o.agreement.hd95_mm.unwrap() < 3.0, "{o:?}");
        let (with, without) = if o.structure == "VL" { (8, 0) } else { (5, 3) };
        assert_eq!((o.presence.both, o.presence.neither, o.presence.slices()), (with, without, 8), "{o:?}");
        assert_eq!(o.segex.is_some(), o.prompt == Prompt::Automatic);
    }
    assert_eq!(evaluate(&[case("a")], &prompts[1..2]).found.len(), 0);
}

#[test]
fn what_the_network_cannot_see_and_a_refused_volume_count_against_it() {
    let mut blind = case("blind");
    // The truth says VM on every slice; the images show it on five.
    let plane = blind.truth.geometry.plane();
    for z in 0..3 {
        let upper = blind.truth.data[4 * plane..5 * plane].to_vec();
        blind.truth.data[z * plane..(z + 1) * plane].copy_from_slice(&upper);
    }
    let mut refused = case("refused");
    refused.volume.data.iter_mut().filter(|v| **v > 301.0 && **v < TOP).for_each(|v| *v = 300.0);
    let cases = [case("seen"), blind, refused];
    let out = evaluate(&cases, &[Prompt::Automatic]);
    let of = |case: usize, key: &str| out.outcomes.iter().find(|o| o.case == case && o.structure == key).unwrap();
    let vm = of(1, "VM");
    assert_eq!((vm.presence.sensitivity(), vm.presence.specificity()), (Some(5.0 / 8.0), None));
    assert!((vm.agreement.dice.unwrap() - 10.0 / 13.0).abs() < 0.05 && vm.agreement.hd95_mm == Some(15.0), "{vm:?}");
    assert_eq!((of(2, "VL").agreement.dice, of(2, "VL").segex), (Some(0.0), None));

    let keys = KEYS.map(String::from);
    let mut table = Table::new(&out.outcomes, &keys, Vec::new());
    let vl = &table.rows[0];
    assert_eq!((vl.legs, vl.missing, vl.dice.unwrap().n, vl.hd95_mm.unwrap().n), (3, 1, 3, 2));
    // Two of three were graded; the one that was not found is not usable.
    assert_eq!(vl.verdicts.iter().sum::<usize>(), 2);
    assert!(vl.usable().unwrap() <= 2.0 / 3.0);

    let picture = overlays(&keys, &cases, &out.outcomes, &out.found).unwrap();
    assert_eq!((picture.width, picture.data.len()), (640, 640 * picture.height * 3));
    let page = html("T", &table, Some(&picture)).unwrap();
    assert!(page.contains("data:image/png;base64,") && !page.contains("blind"));
    table.name_cases(&cases.iter().map(|c| c.name.as_str()).collect::<Vec<_>>());
    assert!(html("T", &table, None).unwrap().contains("2 right, blind"));
}
