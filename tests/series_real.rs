//! Real series: every OAI thigh assembles to its grid whatever the order of its files; a calf and other parts of the
//! body are refused in words.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::process::Command;

use scanside::dicom::read::{InstanceHeader, decode_frame, read_header};
use scanside::series::{
    AssembleOptions, Fit, Refusal, Rules, SeriesPlan, assemble, assemble_for, load, load_dir, scan_dir, stacks,
};

fn unpack(archive: &Path, into: &Path) {
    let status = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(into).status().unwrap();
    assert!(status.success(), "tar cannot unpack {}", archive.display());
}

fn for_task(headers: &[InstanceHeader]) -> Result<SeriesPlan, Refusal> {
    assemble_for(headers, &Rules::default(), &AssembleOptions::default())
}

#[test]
fn every_real_thigh_assembles_whatever_the_order_of_its_files() {
    let Some(root) = common::data("thigh_oai_ufats") else { return };
    let mut archives: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "xz"))
        .collect();
    archives.sort();
    assert_eq!(archives.len(), 32);
    let (mut reversed, mut up) = (0, 0);
    for archive in archives {
        let temp = tempfile::tempdir().unwrap();
        unpack(&archive, temp.path());
        let scan = scan_dir(temp.path()).unwrap();
        assert!(scan.broken.is_empty());
        assert_eq!(scan.skipped, 1, "the label file is no DICOM");
        assert_eq!(scan.series.len(), 1);
        let mut headers = scan.series.into_values().next().unwrap();
        let by_name = for_task(&headers).unwrap();
        assert_eq!(by_name.geometry.dims, [512, 256, 15]);
        assert!((by_name.geometry.spacing[2] - 5.0).abs() < 1e-3, "{:?}", by_name.geometry.spacing);
        assert_eq!(by_name.geometry.axes, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        for (z, s) in by_name.slices.iter().enumerate() {
            let (p, q) = (by_name.geometry.to_patient([0.0, 0.0, z as f64]), s.frame().position.unwrap());
            assert!((0..3).all(|k| (p[k] - q[k]).abs() < 0.02), "{p:?} {q:?}");
        }
        let z: Vec<f64> = headers.iter().map(|h| h.frames[0].position.unwrap()[2]).collect();
        if z.is_sorted() {
            up += 1
        } else {
            reversed += 1
        }
        headers.reverse();
        headers.swap(2, 11);
        assert_eq!(for_task(&headers).unwrap().geometry, by_name.geometry);
        // The decoded volume holds each slice at its place.
        let volume = load_dir(temp.path()).unwrap();
        assert_eq!(volume.slices.len(), 15);
        assert!(volume.remarks.iter().any(|r| r.contains("1 file(s)")));
        for (z, s) in volume.slices.iter().enumerate().step_by(7) {
            assert_eq!(volume.volume.plane(z).data, decode_frame(&s.path, 1).unwrap().rescaled());
        }
        assert!(volume.header.verbatim.iter().any(|e| e.tag.0 == 0x0010));
        // A slice lost on the way.
        headers.retain(|h| h.frames[0].position != by_name.slices[6].frame().position);
        let refusal = for_task(&headers).unwrap_err();
        assert_eq!(refusal.code, "SERIES_GAP");
        assert!(refusal.sentence.contains("gap of 1 slice"), "{refusal}");
        let partial = AssembleOptions { allow_gaps: true, ..AssembleOptions::default() };
        assert_eq!(assemble_for(&headers, &Rules::default(), &partial).unwrap().slices.len(), 8);
    }
    println!("{up} subjects in growing, {reversed} in another order of their files");
    assert!(reversed > 0, "the set holds subjects in reversed order");
}

#[test]
fn a_real_calf_is_unrolled_but_refused() {
    let Some(root) = common::data("calf_dicom_xa60_myoqmri") else { return };
    let scan = scan_dir(&root).unwrap();
    for headers in scan.series.values() {
        let refusal = for_task(headers).unwrap_err();
        println!("{refusal}");
        assert_eq!(refusal.code, "BODY_PART");
        assert!(refusal.sentence.contains("lower leg"));
    }
    let dixon = read_header(&root.join("dixon_W_018.dcm")).unwrap();
    assert!(dixon.is_enhanced());
    assert_eq!(dixon.frames.len(), 150);
    let plan = assemble(std::slice::from_ref(&dixon), &AssembleOptions::default()).unwrap();
    assert_eq!(plan.geometry.dims, [256, 104, 150]);
    let volume = load(&plan).unwrap();
    assert!(volume.slices.iter().all(|s| s.multi_frame && s.sop_instance_uid == dixon.sop_instance_uid));
    for (z, s) in volume.slices.iter().enumerate().step_by(50) {
        assert_eq!(volume.volume.plane(z).data, decode_frame(&s.path, s.frame).unwrap().rescaled());
    }
    // Several echoes in one series: told apart by their echo time.
    let echoes: Vec<InstanceHeader> = ["mese_echo_image0001.dcm", "mese_echo_image0017.dcm"]
        .iter()
        .map(|f| read_header(&root.join(f)).unwrap())
        .collect();
    let refusal = assemble(&echoes, &AssembleOptions::default()).unwrap_err();
    assert_eq!(refusal.code, "MIXED_CONTRAST", "{refusal}");
    assert!(refusal.sentence.contains("echo time 187.0"), "{refusal}");
}

#[test]
fn no_other_real_series_passes_for_a_thigh() {
    let Some(root) = common::data("dicom_variety") else { return };
    let scan = scan_dir(&root).unwrap();
    let mut codes = std::collections::BTreeMap::new();
    for headers in scan.series.values() {
        match for_task(headers) {
            Err(r) => *codes.entry(r.code).or_insert(0) += 1,
            // A series whose headers say nothing of the body is left to the picture, never passed as a thigh.
            Ok(plan) => {
                assert!(plan.remarks.iter().any(|r| r.contains("picture decides")), "{:?}", headers[0].path);
                *codes.entry("left to the picture").or_insert(0) += 1;
            }
        }
        if let Ok((list, _)) = stacks(headers) {
            for s in list {
                assert_ne!(scanside::series::fits(&Rules::default(), &s), Ok(Fit::Fits), "{:?}", headers[0].path);
            }
        }
    }
    println!("{} series: {codes:?}", scan.series.len());
    assert!(codes.len() > 2);
}
