//! SegEx without ground truth on known truth and on masks spoilt in known ways: good masks are graded well, and each kind
//! of damage lowers the criterion that is meant to see it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use scanside::image::morphology::{dilate, erode};
use scanside::image::phantom::{Phantom, PhantomLegs, PhantomOptions};
use scanside::image::{LabelMap, Plane};
use scanside::pipeline::{CropRule, LegView, leg_views};
use scanside::segex::{
    Criterion, LegInput, Report, SegexInput, ShapeStatistics, StructureInput, Verdict, assess, shape,
};
use scanside::terms::{Side, Task, structure};

const KEYS: [&str; 4] = ["VL", "VM", "RF", "ST"];

fn task() -> Task {
    Task { name: "t".into(), structures: KEYS.iter().filter_map(|k| structure(k)).collect() }
}

struct Case {
    phantom: Phantom,
    truth: LabelMap,
    views: Vec<LegView>,
    shapes: Vec<ShapeStatistics>,
}

fn phantom(seed: u64) -> Phantom {
    Phantom::new(&PhantomOptions {
        seed,
        legs: PhantomLegs::One(Side::Right),
        dims: [224, 224, 9],
        spacing: [0.976_562_5, 0.976_562_5, 5.0],
    })
}

fn plane_mask(plane: &Plane<u8>, label: u8) -> Vec<bool> {
    plane.data.iter().map(|&l| l == label).collect()
}

/// Shapes from other phantoms, as an adapter would carry them.
fn case() -> Case {
    let mut shapes: Vec<Vec<_>> = vec![Vec::new(); KEYS.len()];
    for seed in 100..104 {
        let p = phantom(seed);
        let truth = p.truth(&task(), Side::Right);
        let (views, _) = leg_views(&p.volume, CropRule::default(), 256, None).unwrap();
        let frame = views[0].frame(&p.volume.geometry);
        for z in [1, 4, 7] {
            let plane = truth.plane(z);
            for (k, list) in shapes.iter_mut().enumerate() {
                list.extend(shape(&plane_mask(&plane, k as u8 + 1), plane.width, [0, 0], &frame));
            }
        }
    }
    let shapes = shapes.iter().zip(KEYS).filter_map(|(s, k)| ShapeStatistics::fit(k, s)).collect();
    let phantom = phantom(3);
    let truth = phantom.truth(&task(), Side::Right);
    let (views, _) = leg_views(&phantom.volume, CropRule::default(), 256, None).unwrap();
    Case { phantom, truth, views, shapes }
}

fn grade(case: &Case, labels: &LabelMap, passes: &[LabelMap]) -> Report {
    let task = task();
    let ones = vec![1.0; labels.geometry.dims[2]];
    assess(&SegexInput {
        volume: &case.phantom.volume,
        labels,
        passes,
        entropy: &[],
        second: None,
        legs: case.views.iter().map(|v| LegInput { mask: &v.leg.mask, frame: v.frame(&labels.geometry) }).collect(),
        structures: task
            .structures
            .iter()
            .enumerate()
            .map(|(k, structure)| StructureInput {
                structure,
                side: Some(Side::Right),
                label: k as u8 + 1,
                leg: 0,
                presence: &ones,
                iou: &[],
                overlap: &[],
            })
            .collect(),
        shapes: &case.shapes,
        calibration: None,
    })
}

fn of(report: &Report, k: usize, c: Criterion) -> u8 {
    report.structures[k].grades.iter().find(|g| g.criterion == c).and_then(|g| g.grade).unwrap()
}

/// Replaces label 1 by a changed mask; gains take background only.
fn with(case: &Case, change: impl Fn(&[bool], [usize; 3], [f64; 3]) -> Vec<bool>) -> LabelMap {
    let g = &case.truth.geometry;
    let mask: Vec<bool> = case.truth.data.iter().map(|&l| l == 1).collect();
    let new = change(&mask, g.dims, g.spacing);
    let data = case
        .truth
        .data
        .iter()
        .zip(&new)
        .map(|(&l, &m)| {
            if m {
                1
            } else if l == 1 {
                0
            } else {
                l
            }
        })
        .collect();
    LabelMap { geometry: g.clone(), data }
}

/// In each slice only: the slices are far apart.
fn flat(s: [f64; 3]) -> [f64; 3] {
    [s[0], s[1], 1000.0]
}

#[test]
fn truth_is_graded_well_and_each_damage_lowers_its_criterion() {
    let case = case();
    let near = [case.truth.clone(), with(&case, |m, d, s| erode(m, d, flat(s), 0.1))];
    let good = grade(&case, &case.truth, &[case.truth.clone(), case.truth.clone()]);
    for s in &good.structures {
        let line: Vec<_> =
            s.grades.iter().map(|g| (g.criterion.id(), g.grade, (g.value * 100.0).round() / 100.0)).collect();
        eprintln!("{} {:.0} {:?} {line:?} {:?}", s.structure.key, s.score, s.verdict, s.remarks);
    }
    assert!(good.structures.iter().all(|s| s.verdict <= Verdict::B), "true masks are at most minor edits");
    let base = |c| of(&good, 0, c);

    // The contour 4 mm off the edge.
    let eroded = grade(&case, &with(&case, |m, d, s| erode(m, d, flat(s), 4.0)), &[]);
    assert!(of(&eroded, 0, Criterion::Boundary) < base(Criterion::Boundary));
    // A leak into everything around.
    let leak = grade(&case, &with(&case, |m, d, s| dilate(m, d, flat(s), 8.0)), &[]);
    assert!(of(&leak, 0, Criterion::OverSegmentation) < base(Criterion::OverSegmentation));
    assert!(leak.structures[0].score < good.structures[0].score);
    // A mask in another place.
    let shifted =
        grade(&case, &with(&case, |m, d, _| (0..m.len()).map(|i| i % d[0] >= 60 && m[i - 60]).collect()), &[]);
    assert!(of(&shifted, 0, Criterion::Anatomy) <= 2 && of(&shifted, 0, Criterion::Anatomy) < base(Criterion::Anatomy));
    // Holes.
    let pierced = grade(
        &case,
        &with(&case, |m, d, s| {
            let core = erode(m, d, flat(s), 4.0);
            m.iter().zip(&core).map(|(m, c)| *m && !*c).collect()
        }),
        &[],
    );
    assert!(of(&pierced, 0, Criterion::Topology) < base(Criterion::Topology));
    // A slice dropped.
    let plane = case.truth.geometry.plane();
    let dropped =
        grade(&case, &with(&case, |m, _, _| m.iter().enumerate().map(|(i, m)| *m && i / plane != 4).collect()), &[]);
    assert!(of(&dropped, 0, Criterion::BetweenSlices) <= 2);
    let g = dropped.structures[0].grades.iter().find(|g| g.criterion == Criterion::BetweenSlices).unwrap();
    assert_eq!(g.slices.first(), Some(&4));
    // Passes that disagree.
    let unstable = grade(&case, &case.truth, &near);
    assert!(of(&unstable, 0, Criterion::Stability) <= base(Criterion::Stability));
    let wild = [
        case.truth.clone(),
        with(&case, |m, d, s| dilate(m, d, flat(s), 6.0)),
        with(&case, |m, d, s| erode(m, d, flat(s), 4.0)),
    ];
    let wild = grade(&case, &case.truth, &wild);
    for c in [Criterion::Completeness, Criterion::OverSegmentation, Criterion::Stability] {
        assert!(of(&wild, 0, c) < base(c), "{c:?}");
    }
    for (name, report) in [
        ("eroded", &eroded),
        ("leak", &leak),
        ("shifted", &shifted),
        ("pierced", &pierced),
        ("dropped", &dropped),
        ("wild", &wild),
    ] {
        let s = &report.structures[0];
        let line: Vec<_> =
            s.grades.iter().map(|g| (g.criterion.id(), g.grade, (g.value * 100.0).round() / 100.0)).collect();
        eprintln!("{name} {:.0} {:?} {line:?} {:?}", s.score, s.verdict, s.remarks);
        assert!(s.score < good.structures[0].score, "{name}");
        assert!(of(report, 0, Criterion::EditBurden) <= base(Criterion::EditBurden));
    }
}

#[test]
fn an_empty_mask_where_the_structure_is_expected_is_to_redo() {
    let case = case();
    let mut labels = case.truth.clone();
    labels.data.iter_mut().for_each(|l| *l = if *l == 2 { 0 } else { *l });
    let report = grade(&case, &labels, &[]);
    assert_eq!((report.structures[1].verdict, report.structures[1].score), (Verdict::D, 0.0));
    assert_eq!(report.verdict, Verdict::D);
    assert!(report.structures[1].remarks[0].contains("empty"));
    assert_eq!(report.structures[0].grades.len(), 8);
}
