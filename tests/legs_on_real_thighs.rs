//! Leg finding and crops on real thigh series: the right leg's crop holds every labelled voxel of all subjects.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::Read;
use std::path::Path;
use std::process::Command;

use dicom_object::open_file;
use scanside::image::{Geometry, LabelMap, Volume};
use scanside::pipeline::{CropRule, leg_views};
use scanside::terms::Side;

fn subject(archive: &Path) -> (Volume, LabelMap) {
    let dir = tempfile::tempdir().unwrap();
    let ok = Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(dir.path()).status().unwrap();
    assert!(ok.success(), "tar {}", archive.display());
    let mut slices = Vec::new();
    let mut label = None;
    let mut stack = vec![dir.path().to_path_buf()];
    while let Some(d) = stack.pop() {
        for entry in std::fs::read_dir(d).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
            } else if path.extension().is_some_and(|e| e == "nrrd") {
                label = Some(path);
            } else if let Ok(o) = open_file(&path) {
                let position = o.element_by_name("ImagePositionPatient").unwrap().to_multi_float64().unwrap();
                let spacing = o.element_by_name("PixelSpacing").unwrap().to_multi_float64().unwrap();
                let rows = o.element_by_name("Rows").unwrap().to_int::<usize>().unwrap();
                let columns = o.element_by_name("Columns").unwrap().to_int::<usize>().unwrap();
                let bytes = o.element_by_name("PixelData").unwrap().to_bytes().unwrap().to_vec();
                let pixels: Vec<f32> =
                    bytes.chunks_exact(2).map(|b| f32::from(u16::from_le_bytes([b[0], b[1]]))).collect();
                slices.push((position, spacing, rows, columns, pixels));
            }
        }
    }
    slices.sort_by(|a, b| a.0[2].total_cmp(&b.0[2]));
    let (position, spacing, rows, columns, _) = &slices[0];
    let step = slices[1].0[2] - position[2];
    let mut geometry = Geometry::axial([*columns, *rows, slices.len()], [spacing[1], spacing[0], step]);
    geometry.origin = [position[0], position[1], position[2]];
    let labels = nrrd(&label.unwrap(), &geometry);
    let data = slices.iter().flat_map(|s| s.4.iter().copied()).collect();
    (Volume { geometry, data }, labels)
}

fn nrrd(path: &Path, geometry: &Geometry) -> LabelMap {
    let bytes = std::fs::read(path).unwrap();
    let split = bytes.windows(2).position(|w| w == b"\n\n").unwrap();
    let header = String::from_utf8_lossy(&bytes[..split]).into_owned();
    let field = |name: &str| header.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_string());
    let mut raw = Vec::new();
    match field("encoding:").as_deref() {
        Some("raw") => raw.extend_from_slice(&bytes[split + 2..]),
        Some("gzip" | "gz") => {
            flate2::read::MultiGzDecoder::new(&bytes[split + 2..]).read_to_end(&mut raw).unwrap();
        }
        other => panic!("{}: encoding {other:?}", path.display()),
    }
    let wide = raw.len() / geometry.voxels();
    assert_eq!(raw.len(), wide * geometry.voxels());
    LabelMap { geometry: geometry.clone(), data: raw.chunks_exact(wide).map(|c| c[0]).collect() }
}

#[test]
fn the_right_legs_crop_holds_all_labels() {
    let Some(dir) = common::data("thigh_oai_ufats") else { return };
    let mut archives: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    archives.sort();
    let mut bad = Vec::new();
    for archive in archives.iter().filter(|p| p.to_string_lossy().ends_with(".tar.xz")) {
        let (volume, labels) = subject(archive);
        let name = archive.file_name().unwrap().to_string_lossy().into_owned();
        let (views, remarks) = match leg_views(&volume, CropRule::default(), 256, None) {
            Ok(v) => v,
            Err(e) => {
                bad.push(format!("{name}: {e}"));
                continue;
            }
        };
        eprintln!(
            "{name}: {:?} {remarks:?}",
            views.iter().map(|v| (v.leg.side, v.leg.bounds, v.crop.mm.round())).collect::<Vec<_>>()
        );
        if views.iter().map(|v| v.leg.side).collect::<Vec<_>>() != [Some(Side::Right), Some(Side::Left)] {
            bad.push(format!("{name}: not a right and a left leg"));
            continue;
        }
        let right = &views[0];
        let (w, plane) = (volume.geometry.dims[0], volume.geometry.plane());
        let (mut outside, mut unmasked, mut all) = (0, 0, 0);
        for (i, _) in labels.data.iter().enumerate().filter(|(_, l)| **l > 0) {
            let [u, v] = right.crop.to_square((i % plane % w) as f64, (i % plane / w) as f64);
            all += 1;
            outside += usize::from(!(0.0..=1.0).contains(&u) || !(0.0..=1.0).contains(&v));
            unmasked += usize::from(!right.leg.mask[i]);
        }
        if outside > 0 || unmasked * 200 > all {
            bad.push(format!(
                "{name}: of {all} labelled voxels {outside} lie outside the crop, {unmasked} outside the leg"
            ));
        }
        // There and back at the crop's resolution loses little: the boundary only.
        let z = volume.geometry.dims[2] / 2;
        let truth = labels.plane(z);
        let back = right.crop.restore_labels(&right.crop.sample_labels(&truth));
        let wrong = truth.data.iter().zip(&back.data).filter(|(a, b)| a != b).count();
        let area = truth.data.iter().filter(|&&l| l > 0).count();
        assert!(wrong * 20 < area, "{name}: {wrong} of {area} pixels change on the round trip");
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}
