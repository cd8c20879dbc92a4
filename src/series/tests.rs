//! Assembly and matching on made-up headers; real series are in tests/series_real.rs.

use proptest::prelude::*;

use super::matching::{Rules, header_fits};
use super::stack::tests::slice;
use super::*;
use crate::dicom::read::InstanceHeader;

fn code(result: Result<SeriesPlan, Refusal>) -> &'static str {
    match result {
        Ok(_) => "OK",
        Err(r) => {
            assert!(r.sentence.len() > 10 && r.remedy.len() > 10, "{r}");
            r.code
        }
    }
}

fn series(n: usize) -> Vec<InstanceHeader> {
    (0..n).map(|i| slice(i, 5.0 * i as f64)).collect()
}

fn plain(h: &[InstanceHeader]) -> &'static str {
    code(assemble(h, &AssembleOptions::default()))
}

fn task(h: &[InstanceHeader]) -> &'static str {
    code(assemble_for(h, &Rules::default(), &AssembleOptions::default()))
}

/// A slice of an arbitrary even, possibly oblique stack.
fn placed(i: usize, tilt: f64, step: f64) -> InstanceHeader {
    let mut h = slice(i, 0.0);
    let (s, c) = tilt.sin_cos();
    let d = step * i as f64;
    // Turned about x: rows (0, c, s), normal (0, -s, c).
    h.frames[0].orientation = Some([1.0, 0.0, 0.0, 0.0, c, s]);
    h.frames[0].position = Some([-200.0, -100.0 - s * d, 30.0 + c * d]);
    h
}

proptest! {
    #[test]
    fn any_order_gives_the_same_volume(n in 3usize..40, step in 0.5f64..12.0, tilt in -1.5f64..1.5, seed in any::<u64>()) {
        let even: Vec<InstanceHeader> = (0..n).map(|i| placed(i, tilt, step)).collect();
        let mut mixed = even.clone();
        let mut s = seed;
        for i in (1..n).rev() {
            s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            mixed.swap(i, (s >> 33) as usize % (i + 1));
        }
        let plan = assemble(&mixed, &AssembleOptions::default()).unwrap();
        prop_assert!((plan.geometry.spacing[2] - step).abs() < 1e-6 * step.max(1.0));
        for (z, f) in plan.slices.iter().enumerate() {
            let p = plan.geometry.to_patient([0.0, 0.0, z as f64]);
            let q = f.frame().position.unwrap();
            for k in 0..3 {
                prop_assert!((p[k] - q[k]).abs() < 1e-6);
            }
        }
        let again = assemble(&even, &AssembleOptions::default()).unwrap();
        prop_assert_eq!(plan.geometry, again.geometry);
    }

    #[test]
    fn an_inner_slice_that_is_missing_is_a_gap(n in 5usize..40, step in 0.5f64..12.0, at in 0usize..1000) {
        let mut h: Vec<InstanceHeader> = (0..n).map(|i| placed(i, 0.1, step)).collect();
        let gone = 1 + at % (n - 2);
        h.remove(gone);
        prop_assert_eq!(plain(&h), "SERIES_GAP");
        let plan = assemble(&h, &AssembleOptions { allow_gaps: true, min_slices: 2, ..AssembleOptions::default() }).unwrap();
        prop_assert!(plan.partial && !plan.remarks.is_empty());
        prop_assert_eq!(plan.slices.len(), gone.max(n - 1 - gone));
    }
}

#[test]
fn every_second_slice_missing_is_told_by_the_header() {
    let mut h: Vec<InstanceHeader> = (0..8).map(|i| slice(i, 10.0 * i as f64)).collect();
    assert_eq!(plain(&h), "OK");
    for s in &mut h {
        s.frames[0].spacing_between_slices = Some(5.0);
    }
    assert_eq!(plain(&h), "SERIES_GAP");
    // A vendor that writes the gap between slices: 10 mm apart, 9 mm thick, 1 mm of gap.
    for s in &mut h {
        s.frames[0].spacing_between_slices = Some(1.0);
        s.frames[0].slice_thickness = Some(9.0);
    }
    assert_eq!(plain(&h), "OK");
}

#[test]
fn broken_series_are_refused_by_name() {
    let mut h = series(8);
    h[3].frames[0].position = Some([-200.0, -100.0, 17.0]);
    assert_eq!(plain(&h), "UNEVEN_SPACING");

    let mut h = series(8);
    h.push(slice(99, 15.0));
    assert_eq!(plain(&h), "DUPLICATE_POSITION");

    let mut h = series(8);
    h[2].series_uid = "2.25.77".into();
    assert_eq!(plain(&h), "MIXED_SERIES");

    let mut h = series(8);
    h[2].frames[0].position = None;
    assert_eq!(plain(&h), "NO_GEOMETRY");

    assert_eq!(plain(&series(1)), "TOO_FEW_SLICES");
    assert_eq!(plain(&[]), "NO_IMAGES");

    // Two legs, each with a field of view of its own.
    let mut h = series(16);
    for (i, s) in h.iter_mut().enumerate() {
        s.frames[0].position = Some([if i < 8 { -200.0 } else { 20.0 }, -100.0, 5.0 * (i % 8) as f64]);
    }
    assert_eq!(plain(&h), "SEVERAL_STACKS");

    let mut h = series(9);
    for (i, s) in h.iter_mut().enumerate() {
        s.frames[0].orientation = Some(
            [[1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, -1.0], [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]][i % 3],
        );
    }
    assert_eq!(plain(&h), "LOCALIZER");
}

#[test]
fn the_same_object_twice_is_taken_once() {
    let mut h = series(8);
    h.push(h[4].clone());
    let plan = assemble(&h, &AssembleOptions::default()).unwrap();
    assert_eq!(plan.slices.len(), 8);
    assert!(plan.remarks[0].contains("more than once"));
}

#[test]
fn contrasts_are_told_apart_and_the_one_that_fits_is_taken() {
    let two = |change: &dyn Fn(&mut InstanceHeader)| {
        let mut h = series(8);
        for i in 0..8 {
            let mut s = slice(100 + i, 5.0 * i as f64);
            change(&mut s);
            h.push(s);
        }
        h
    };
    let echoes = two(&|s| s.frames[0].echo_time = Some(80.0));
    assert_eq!(task(&echoes), "MIXED_CONTRAST");
    assert!(assemble(&echoes, &AssembleOptions::default()).unwrap_err().sentence.contains("echo time 80.0"));
    assert_eq!(task(&two(&|s| s.frames[0].temporal_position = Some(2))), "MIXED_CONTRAST");
    assert_eq!(task(&two(&|s| s.frames[0].acquisition_number = Some(2))), "MIXED_CONTRAST");
    let plan =
        assemble_for(&two(&|s| s.frames[0].image_type[2] = "P".into()), &Rules::default(), &AssembleOptions::default())
            .unwrap();
    assert_eq!(plan.slices.len(), 8);
    assert!(plan.slices.iter().all(|s| s.frame().image_type[2] == "M"));
    // An acquisition number that changes from slice to slice does not split a stack.
    let mut h = series(8);
    for (i, s) in h.iter_mut().enumerate() {
        s.frames[0].acquisition_number = Some(i as i64 % 2);
        s.frames[0].trigger_time = Some(i as f64);
    }
    assert_eq!(task(&h), "OK");
}

#[test]
fn what_is_no_thigh_is_refused_aloud() {
    let with = |change: &dyn Fn(&mut InstanceHeader)| {
        let mut h = series(8);
        h.iter_mut().for_each(change);
        task(&h)
    };
    assert_eq!(with(&|_| ()), "OK");
    assert_eq!(with(&|s| s.modality = "CT".into()), "MODALITY");
    assert_eq!(with(&|s| s.sop_class_uid = "1.2.840.10008.5.1.4.1.1.7".into()), "SOP_CLASS");
    assert_eq!(with(&|s| s.series_description = "ax t1 calf".into()), "BODY_PART");
    assert_eq!(with(&|s| s.series_description = "Localizer".into()), "LOCALIZER");
    assert_eq!(with(&|s| s.frames[0].b_value = Some(800.0)), "DIFFUSION");
    assert_eq!(with(&|s| s.frames[0].image_type[2] = "ADC".into()), "CONTRAST");
    assert_eq!(with(&|s| s.frames[0].pixel_spacing = Some([0.1, 0.1])), "FIELD_OF_VIEW");
    assert_eq!(
        with(&|s| {
            s.frames[0].orientation = Some([1.0, 0.0, 0.0, 0.0, 0.0, -1.0]);
            let z = s.frames[0].position.unwrap()[2];
            s.frames[0].position = Some([-200.0, z, 0.0]);
        }),
        "ORIENTATION"
    );
}

#[test]
fn body_part_words() {
    let rules = Rules::default();
    let with = |description: &str, part: &str, study: &str| {
        let mut h = slice(0, 0.0);
        h.series_description = description.into();
        h.body_part = part.into();
        h.study_description = study.into();
        match header_fits(&rules, &h) {
            Ok(Fit::Fits) => "fits",
            Ok(Fit::Uncertain(_)) => "uncertain",
            Err(r) => r.code,
        }
    };
    // Real thighs of the OAI say KNEE as the body part.
    assert_eq!(with("AX_T1_THIGH", "KNEE", ""), "fits");
    assert_eq!(with("t1_tse_tra_Oberschenkel", "", ""), "fits");
    assert_eq!(with("t1_tse_tra", "THIGH", ""), "fits");
    assert_eq!(with("t1_tse_tra", "", "MR^UPPER LEG"), "fits");
    assert_eq!(with("t1_tse_tra", "LEG", ""), "BODY_PART");
    assert_eq!(with("dixon_W", "LEG", ""), "BODY_PART");
    assert_eq!(with("t1 quads left", "LEG", ""), "fits");
    assert_eq!(with("t1_tse_tra", "EXTREMITY", ""), "uncertain");
    assert_eq!(with("t1_tse_tra", "", "KNEE"), "BODY_PART");
    assert_eq!(with("thigh and calves", "", ""), "uncertain");
    let own = Rules::new(&["Bein".into()], &[]);
    let mut h = slice(0, 0.0);
    h.series_description = "t1 tra bein".into();
    assert_eq!(header_fits(&own, &h), Ok(Fit::Fits));
}
