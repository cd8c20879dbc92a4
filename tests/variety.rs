//! Every file of the variety set is decoded equal to pydicom, or refused with a reason that names the cause.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use scanside::dicom::read::{ReadError, decode_frames, read_header};
use sha2::{Digest, Sha256};

/// Files that decode today; one fewer is a loss.
const AT_LEAST: usize = 153;

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, out) } else { out.push(path) }
    }
}

fn checksums(path: &Path) -> Result<Vec<String>, ReadError> {
    let header = read_header(path)?;
    let frames = decode_frames(path)?;
    assert_eq!(header.number_of_frames as usize, frames.len());
    Ok(frames
        .iter()
        .map(|f| {
            assert_eq!(f.stored.len(), f.rows * f.columns);
            let bytes: Vec<u8> = f.stored.iter().flat_map(|v| v.to_le_bytes()).collect();
            hex::encode(Sha256::digest(&bytes))
        })
        .collect())
}

#[test]
fn every_file_decodes_as_pydicom_does_or_is_refused_with_its_cause() {
    let Some(root) = common::data("dicom_variety") else { return };
    let Some(python) = common::python_with("pydicom, pylibjpeg") else { return };
    let temp = tempfile::tempdir().unwrap();
    let mut sources = Vec::new();
    files(&root, &mut sources);
    sources.sort();
    let mut paths = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        if source.extension().is_some_and(|e| e == "gz") {
            let mut bytes = Vec::new();
            let file = std::fs::File::open(source).unwrap();
            flate2::read::GzDecoder::new(file).take(1 << 30).read_to_end(&mut bytes).unwrap();
            let path = temp.path().join(format!("{i}.dcm"));
            std::fs::write(&path, bytes).unwrap();
            paths.push(path);
        } else if source.extension().is_none_or(|e| e != "md" && e != "txt" && e != "tsv" && e != "json") {
            paths.push(source.clone());
        }
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers/pixels.py");
    let out = Command::new(python).arg(script).args(&paths).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let mut peer: BTreeMap<PathBuf, serde_json::Value> = BTreeMap::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let v: serde_json::Value = serde_json::from_str(line).unwrap();
        peer.insert(PathBuf::from(v["path"].as_str().unwrap()), v);
    }
    let (mut decoded, mut refused, mut wrong) = (0, 0, Vec::new());
    println!("{:<60} {:>6}  {:<22} pydicom", "file", "frames", "outcome");
    for path in &paths {
        let name: String = path.file_name().unwrap().to_string_lossy().chars().take(58).collect();
        let theirs = &peer[path];
        let frames: Option<Vec<&str>> =
            theirs["frames"].as_array().map(|f| f.iter().map(|f| f["sha256"].as_str().unwrap()).collect());
        let word = if frames.is_some() { "decodes" } else { theirs["error"].as_str().unwrap_or("?") };
        match checksums(path) {
            Ok(ours) => {
                println!("{name:<60} {:>6}  {:<22} {word}", ours.len(), "decoded");
                decoded += 1;
                if frames.as_deref() != Some(&ours.iter().map(String::as_str).collect::<Vec<_>>()[..]) {
                    wrong.push(format!("{name}: differs from pydicom ({word})"));
                }
            }
            Err(e) => {
                println!("{name:<60} {:>6}  {:<22} {word}\n    {}", "-", e.cause.code(), e.cause);
                refused += 1;
                // What pydicom reads as a grey image of 8 bits or more and we refuse needs a reason of its own.
                let justified = ["COLOUR", "BAD_VALUE"].contains(&e.cause.code());
                if frames.is_some() && !justified {
                    wrong.push(format!("{name}: pydicom decodes it, we refuse: {}", e.cause));
                }
                assert!(e.cause.to_string().len() > 20, "{name}: {e}");
            }
        }
    }
    println!("{decoded} decoded, {refused} refused with a reason, of {}", paths.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(decoded >= AT_LEAST, "only {decoded} decode");
}
