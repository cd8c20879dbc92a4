//! Compressed by DCMTK, decoded here: lossless syntaxes equal the original, lossy ones DCMTK's own decoding. And no
//! spoilt file makes a decoder panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scanside::dicom::read::{decode_frames, read_header};

fn run(program: &str, arguments: &[&str], from: &Path, to: &Path) -> bool {
    let Some(program) = common::peer(program) else { return false };
    let out = Command::new(program).args(arguments).arg(from).arg(to).output().unwrap();
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    true
}

fn sources() -> Vec<PathBuf> {
    let Some(root) = common::data("dicom_variety") else { return Vec::new() };
    let p = root.join("robyoung+dicom-test-files/data/pydicom");
    // Signed 16 bits; unsigned 12 bits in ten frames.
    vec![p.join("MR_small.dcm"), p.join("emri_small.dcm")]
}

#[test]
fn lossless_syntaxes_give_the_original_back() {
    let temp = tempfile::tempdir().unwrap();
    for source in sources() {
        let original = decode_frames(&source).unwrap();
        let to = temp.path().join("x.dcm");
        let mut cases: Vec<(&str, Vec<&str>)> = vec![
            ("dcmcrle", vec![]),
            ("dcmcjpeg", vec!["+e1"]),
            ("dcmcjpls", vec!["+el"]),
            ("dcmconv", vec!["+te"]),
            ("dcmconv", vec!["+ti"]),
            ("dcmconv", vec!["+tb"]),
            ("dcmconv", vec!["+td"]),
        ];
        for predictor in ["1", "2", "3", "4", "5", "6", "7"] {
            cases.push(("dcmcjpeg", vec!["+el", "+sv", predictor]));
        }
        for (program, arguments) in cases {
            if run(program, &arguments, &source, &to) {
                assert_eq!(decode_frames(&to).unwrap(), original, "{program} {arguments:?} {}", source.display());
                assert!(read_header(&to).unwrap().has_pixels);
            }
        }
    }
}

#[test]
fn lossy_syntaxes_decode_as_the_reference_does() {
    let temp = tempfile::tempdir().unwrap();
    for source in sources() {
        let (to, back) = (temp.path().join("x.dcm"), temp.path().join("y.dcm"));
        // DCMTK's near-lossless encoder takes no signed values.
        let unsigned = !read_header(&source).unwrap().signed;
        for near in ["1", "3", "10"].into_iter().filter(|_| unsigned) {
            if run("dcmcjpls", &["+en", "+md", near], &source, &to) && run("dcmdjpls", &[], &to, &back) {
                assert_eq!(decode_frames(&to).unwrap(), decode_frames(&back).unwrap(), "near {near}");
            }
        }
        // Two inverse cosine transforms may round apart by one.
        if run("dcmcjpeg", &["+eb"], &source, &to) && run("dcmdjpeg", &[], &to, &back) {
            let (a, b) = (decode_frames(&to).unwrap(), decode_frames(&back).unwrap());
            assert_eq!(a.len(), b.len());
            for (a, b) in a.iter().zip(&b) {
                assert!(a.stored.iter().zip(&b.stored).all(|(x, y)| (x - y).abs() <= 1));
                assert!(a.stored.iter().any(|v| *v > 20), "the image is not black");
            }
        }
    }
}

#[test]
fn spoilt_files_are_refused_or_read_but_never_panic() {
    let Some(root) = common::data("dicom_variety") else { return };
    let p = root.join("robyoung+dicom-test-files/data/pydicom");
    let temp = tempfile::tempdir().unwrap();
    let to = temp.path().join("x.dcm");
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let (mut read, mut refused) = (0, 0);
    for name in [
        "MR_small.dcm",
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_jp2klossless.dcm",
        "image_dfl.dcm",
        "emri_small_jpeg_ls_lossless.dcm",
    ] {
        let whole = std::fs::read(p.join(name)).unwrap();
        for round in 0..250 {
            let mut bytes = whole.clone();
            for _ in 0..rng.random_range(1..12) {
                let at = rng.random_range(132..bytes.len());
                bytes[at] = rng.random();
            }
            if round % 5 == 0 {
                bytes.truncate(rng.random_range(0..whole.len()));
            }
            std::fs::write(&to, &bytes).unwrap();
            let header = read_header(&to);
            match decode_frames(&to) {
                Ok(frames) => {
                    assert!(header.is_ok());
                    assert!(frames.iter().all(|f| f.stored.len() == f.rows * f.columns));
                    read += 1;
                }
                Err(e) => {
                    assert!(!e.cause.code().is_empty());
                    refused += 1;
                }
            }
        }
    }
    println!("{read} spoilt files still read, {refused} refused");
    assert!(refused > 100);
}
