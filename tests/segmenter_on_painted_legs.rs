//! The pipeline from a volume to graded labels with a network that reads painted intensities, so that every step but the
//! network itself is held against known truth: sides, mirroring, grids, presence, refusals, numbering, grading.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use scanside::engine::{EngineError, EngineIdentity, Tensor};
use scanside::image::{Geometry, LabelMap, Plane, Volume};
use scanside::pipeline::{
    ClassifierOutput, CropRule, DecoderOutput, ModelInfo, Networks, PipelineError, SegmentOptions, Segmenter,
};
use scanside::segex::Verdict;
use scanside::terms::{Side, Task, structure};

const S: usize = 256;
/// Intensities that stand for the structures; the leg is 300, its brightest 1200.
const PAINT: [f32; 2] = [600.0, 900.0];
const TOP: f32 = 1200.0;

/// Packs the image into the embedding ([1, 256, 16, 16] holds 256 x 256 pixels) and reads structures off it.
struct Painted;

impl Painted {
    fn grey(embedding: &Tensor) -> Vec<f32> {
        embedding.data.clone()
    }
    fn is(v: f32, k: usize) -> bool {
        (v - PAINT[k] / TOP * 255.0).abs() < 12.0
    }
}

impl Networks for Painted {
    fn input_size(&self) -> usize {
        S
    }
    fn structures(&self) -> usize {
        PAINT.len()
    }
    fn encode(&self, image: &Tensor) -> Result<Tensor, EngineError> {
        assert_eq!(image.shape, [1, 3, S, S]);
        Ok(Tensor::new(&[1, 256, 16, 16], image.data[..S * S].iter().map(|v| v * 58.395 + 123.675).collect()))
    }
    fn classify(&self, embedding: &Tensor) -> Result<ClassifierOutput, EngineError> {
        let grey = Self::grey(embedding);
        let mut out = ClassifierOutput { logits: Vec::new(), cams: Vec::new() };
        for k in 0..PAINT.len() {
            let mut cam = Plane::filled(16, 16, 0.0f32);
            for (i, v) in grey.iter().enumerate() {
                if Self::is(*v, k) {
                    cam.data[i / S / 16 * 16 + i % S / 16] += 1.0;
                }
            }
            out.logits.push(if cam.data.iter().sum::<f32>() > 900.0 { 4.0 } else { -4.0 });
            out.cams.push(cam);
        }
        Ok(out)
    }
    fn decode(&self, embedding: &Tensor, boxes: &[[f32; 4]]) -> Result<DecoderOutput, EngineError> {
        let grey = Self::grey(embedding);
        let mut out = DecoderOutput { masks: Vec::new(), iou: vec![0.95; boxes.len()] };
        for (k, b) in boxes.iter().enumerate() {
            let mut mask = Plane::filled(64, 64, -6.0f32);
            for (i, m) in mask.data.iter_mut().enumerate() {
                let (x, y) = (i % 64, i / 64);
                let (u, v) = ((x as f32 + 0.5) / 64.0, (y as f32 + 0.5) / 64.0);
                // A prompt that misses the structure finds nothing.
                if u < b[0] - 0.05 || u > b[2] + 0.05 || v < b[1] - 0.05 || v > b[3] + 0.05 {
                    continue;
                }
                let n = (0..16).filter(|j| Self::is(grey[(y * 4 + j / 4) * S + x * 4 + j % 4], k)).count();
                *m = n as f32 * 12.0 / 16.0 - 6.0;
            }
            out.masks.push(mask);
        }
        Ok(out)
    }
    fn identity(&self) -> EngineIdentity {
        EngineIdentity { kind: "painted".into(), version: "1".into(), precision: "fp32".into() }
    }
}

/// Two legs; structure 1 lateral, structure 2 medial and only on the upper slices.
fn volume(flip_x: bool) -> (Volume, LabelMap) {
    let mut g = Geometry::axial([400, 220, 8], [1.0, 1.0, 5.0]);
    g.origin = [-200.0, -110.0, 0.0];
    if flip_x {
        g.axes[0] = [-1.0, 0.0, 0.0];
        g.axes[2] = [0.0, 0.0, -1.0];
        g.origin[0] = 199.0;
    }
    let mut labels = LabelMap::empty(g.clone());
    let data = (0..g.voxels())
        .map(|i| {
            let (x, y, z) = (i % 400, i / 400 % 220, i / 88_000);
            let p = g.to_patient([x as f64, y as f64, z as f64]);
            for (leg, centre) in [-100.0, 100.0].into_iter().enumerate() {
                let outwards = if leg == 0 { -1.0 } else { 1.0 };
                let (dx, dy) = ((p[0] - centre) * outwards, p[1]);
                let r = (dx / 82.0).hypot(dy / 75.0);
                if r >= 1.0 {
                    continue;
                }
                if (dx - 35.0).hypot(dy + 10.0) < 22.0 {
                    labels.data[i] = 1 + 2 * leg as u8;
                    return PAINT[0];
                }
                if (dx + 30.0).hypot(dy - 15.0) < 18.0 && z >= 3 {
                    labels.data[i] = 2 + 2 * leg as u8;
                    return PAINT[1];
                }
                return if r > 0.93 { TOP } else { 300.0 };
            }
            2.0
        })
        .collect();
    (Volume { geometry: g, data }, labels)
}

fn segmenter() -> Segmenter {
    let task = Task { name: "painted".into(), structures: ["VL", "VM"].iter().filter_map(|k| structure(k)).collect() };
    let model = ModelInfo {
        task,
        crop: CropRule::default(),
        adapter: "painted 1".into(),
        adapter_sha256: "00".into(),
        shapes: Vec::new(),
        presence: Vec::new(),
        prompting: scanside::pipeline::Prompting { cam: true, whole: false, refine: false, gate: true, crops: 0 },
        segex: None,
    };
    Segmenter::new(Box::new(Painted), model).unwrap()
}

fn dice(a: &LabelMap, b: &LabelMap, label: u8) -> f64 {
    let both = a.data.iter().zip(&b.data).filter(|(x, y)| **x == label && **y == label).count() as f64;
    2.0 * both / (a.count(label) + b.count(label)) as f64
}

#[test]
fn painted_structures_come_back_on_the_right_side() {
    for flip in [false, true] {
        let (volume, truth) = volume(flip);
        let steps = std::sync::Mutex::new(Vec::new());
        let out = segmenter()
            .segment(&volume, None, &SegmentOptions::default(), &|p| {
                if p.done == p.total {
                    steps.lock().unwrap().push(p.step);
                }
            })
            .unwrap();
        let names: Vec<_> = out.segments.iter().map(|s| (s.label, s.structure.key.as_str(), s.side)).collect();
        let (r, l) = (Some(Side::Right), Some(Side::Left));
        assert_eq!(names, [(1, "VL", r), (2, "VM", r), (3, "VL", l), (4, "VM", l)]);
        for label in 1..=4 {
            let d = dice(&truth, &out.labels, label);
            assert!(d > 0.93, "flip {flip} label {label}: Dice {d}");
        }
        assert_eq!(out.labels.geometry, volume.geometry);
        assert_eq!(out.report.structures.len(), 4);
        assert!(!out.report.calibrated && !out.report.with_ground_truth);
        assert!(out.report.structures.iter().all(|s| s.verdict <= Verdict::B), "{:#?}", out.report);
        assert_eq!(*steps.lock().unwrap(), ["encode", "decode"]);
        assert!(out.times.iter().map(|t| t.step.as_str()).eq(["legs", "encode", "decode", "clean", "assess"]));
        assert!(out.remarks.is_empty(), "{:?}", out.remarks);
    }
}

#[test]
fn the_same_input_gives_the_same_labels_with_any_number_of_threads() {
    let (volume, _) = volume(false);
    let run = |threads| {
        let options = SegmentOptions { threads, ..SegmentOptions::default() };
        segmenter().segment(&volume, None, &options, &|_| ()).unwrap()
    };
    let (a, b) = (run(1), run(3));
    assert_eq!(a.labels, b.labels);
    assert_eq!(a.report, b.report);
}

#[test]
fn a_stop_ends_the_work_before_the_next_slice() {
    let (volume, _) = volume(false);
    let options = SegmentOptions { threads: 1, ..SegmentOptions::default() };
    let done = std::sync::Mutex::new(Vec::new());
    let outcome = segmenter().segment(&volume, None, &options, &|p| {
        if p.step == "encode" {
            done.lock().unwrap().push((p.done, p.total));
            options.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    });
    assert!(matches!(outcome, Err(PipelineError::Stopped)));
    assert_eq!(*done.lock().unwrap(), [(1, 16)]);
}

#[test]
fn what_shows_none_of_the_structures_is_refused() {
    let (mut volume, _) = volume(false);
    volume.data.iter_mut().for_each(|v| *v = if PAINT.contains(v) { 300.0 } else { *v });
    let Err(refusal) = segmenter().segment(&volume, None, &SegmentOptions::default(), &|_| ()) else {
        panic!("not refused");
    };
    assert!(matches!(refusal, PipelineError::NotThisTask { seen: 0, slices: 8, .. }), "{refusal}");
    assert!(refusal.to_string().contains("painted"));
}

#[test]
fn a_leg_without_structures_is_left_out_aloud_and_numbers_stay_dense() {
    let (mut volume, _) = volume(false);
    for (i, v) in volume.data.iter_mut().enumerate() {
        if i % 400 < 200 && PAINT.contains(v) {
            *v = 300.0;
        }
    }
    let out = segmenter().segment(&volume, None, &SegmentOptions::default(), &|_| ()).unwrap();
    assert_eq!(
        out.segments.iter().map(|s| (s.label, s.side)).collect::<Vec<_>>(),
        [(1, Some(Side::Left)), (2, Some(Side::Left))]
    );
    assert_eq!(out.labels.data.iter().copied().max(), Some(2));
    assert!(out.remarks.iter().any(|r| r.contains("right leg was left out")), "{:?}", out.remarks);
}

#[test]
fn a_network_for_another_task_is_refused() {
    let task = Task { name: "other".into(), structures: structure("VL").into_iter().collect() };
    let model = ModelInfo {
        task,
        crop: CropRule::default(),
        adapter: String::new(),
        adapter_sha256: String::new(),
        shapes: Vec::new(),
        presence: Vec::new(),
        prompting: scanside::pipeline::Prompting { cam: true, whole: false, refine: false, gate: true, crops: 0 },
        segex: None,
    };
    assert!(matches!(Segmenter::new(Box::new(Painted), model), Err(PipelineError::Model(_))));
}
