//! The whole job between real peers: dcmsend as the scanner, Orthanc as the archive, read back by dciodvfy and highdicom.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/serve.rs"]
mod serve;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const KINDS: [(&str, &str); 4] = [
    ("seg", "1.2.840.10008.5.1.4.1.1.66.4"),
    ("sr", "1.2.840.10008.5.1.4.1.1.88.34"),
    ("text", "1.2.840.10008.5.1.4.1.1.88.11"),
    ("sc", "1.2.840.10008.5.1.4.1.1.7"),
];

/// A real Orthanc that takes objects from SCANSIDE on loopback only.
struct Orthanc {
    _child: serve::Running,
    http: u16,
    dicom: u16,
}

impl Orthanc {
    fn start(program: &Path, dir: &Path) -> Orthanc {
        let (http, dicom) = (serve::free_port(), serve::free_port());
        let storage = dir.join("orthanc");
        let settings = json!({
            "StorageDirectory": storage, "IndexDirectory": storage, "Plugins": [],
            "HttpPort": http, "RemoteAccessAllowed": false, "AuthenticationEnabled": false, "KeepAlive": false,
            "DicomPort": dicom, "DicomAet": "ORTHANC", "DicomAlwaysAllowStore": false, "DicomCheckModalityHost": true,
            "DicomModalities": {"box": {"AET": "SCANSIDE", "Host": "127.0.0.1", "Port": 104}},
        });
        let config = dir.join("orthanc.json");
        std::fs::write(&config, settings.to_string()).unwrap();
        let log = std::fs::File::create(dir.join("orthanc.log")).unwrap();
        let child = Command::new(program).arg(&config).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let orthanc = Orthanc { _child: serve::Running(child), http, dicom };
        let start = Instant::now();
        while orthanc.get("/system").is_none() {
            assert!(
                start.elapsed() < Duration::from_secs(120),
                "Orthanc does not answer:\n{}",
                std::fs::read_to_string(dir.join("orthanc.log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        orthanc
    }

    /// The body of its answer, or `None` while it does not answer 200.
    fn get(&self, path: &str) -> Option<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let head = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
        let ok = answer.get(9..12) == Some(b"200");
        ok.then(|| answer.split_off(head + 4))
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.get(path).unwrap()).unwrap()
    }
}

/// A real subject's images, or a phantom's where there are no real ones.
fn images(dir: &Path) -> Vec<PathBuf> {
    let source = dir.join("source");
    std::fs::create_dir(&source).unwrap();
    let from = match common::data("thigh_oai_ufats/9001695.tar.xz") {
        Some(archive) => {
            let out = Command::new("tar").arg("xJf").arg(archive).arg("-C").arg(&source).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            source.join("9001695")
        }
        None => {
            eprintln!("a phantom stands for the real thigh");
            let out = Command::new(env!("CARGO_BIN_EXE_scanside")).args(["phantom", "--out"]).arg(&source).output();
            assert!(out.unwrap().status.success());
            source.join("series")
        }
    };
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(from).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
    files.sort();
    assert_eq!(files.len(), 15);
    files
}

#[test]
fn a_thigh_sent_by_dcmsend_arrives_in_orthanc_as_valid_results() {
    let (Some(program), Some(dcmsend), Some(dciodvfy)) =
        (common::peer("Orthanc"), common::peer("dcmsend"), common::peer("dciodvfy"))
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let files = images(dir.path());
    let orthanc = Orthanc::start(&program, dir.path());
    let served = serve::Served::start(dir.path(), "ORTHANC", &format!("127.0.0.1:{}", orthanc.dicom));

    let sent = Command::new(dcmsend)
        .args(["-aet", "MR1", "-aec", "SCANSIDE", "127.0.0.1", &served.port.to_string()])
        .args(&files)
        .output()
        .unwrap();
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    let first = dicom_object::open_file(&files[0]).unwrap();
    let series = first.element_by_name("SeriesInstanceUID").unwrap().to_str().unwrap().to_string();
    let job = served.wait_for(series.trim_end_matches(['\0', ' ']));
    assert_eq!(job["state"], "done", "{job:#}");
    assert_eq!(job["instances"], 15);

    // What Orthanc itself says it has: one object of each class, under the identifiers that the box says it sent.
    let mut have = BTreeMap::new();
    for id in orthanc.json("/instances").as_array().unwrap() {
        let id = id.as_str().unwrap();
        let tags = orthanc.json(&format!("/instances/{id}/simplified-tags"));
        let class = tags["SOPClassUID"].as_str().unwrap().to_string();
        have.insert(class, (id.to_string(), tags["SOPInstanceUID"].as_str().unwrap().to_string()));
    }
    assert_eq!(have.len(), 4, "{have:?}");
    let mut paths = BTreeMap::new();
    for (kind, class) in KINDS {
        let (id, instance) = have.get(class).unwrap_or_else(|| panic!("no {kind} in {have:?}"));
        let delivery = job["deliveries"].as_array().unwrap().iter().find(|d| d["kind"] == kind).unwrap();
        assert_eq!(delivery["sop_instance_uid"], *instance);
        let path = dir.path().join(format!("{kind}.dcm"));
        std::fs::write(&path, orthanc.get(&format!("/instances/{id}/file")).unwrap()).unwrap();
        let out = Command::new(&dciodvfy).arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        let errors: Vec<&str> = text.lines().filter(|l| l.starts_with("Error")).collect();
        // Its last line names the object's kind: without it, nothing was checked.
        assert!(errors.is_empty() && !text.trim().is_empty(), "{kind}: {text}");
        println!("{kind}: {instance}, dciodvfy: {} errors", errors.len());
        paths.insert(kind, path);
    }

    if let Some(python) = common::python_with("highdicom") {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers/archive_check.py");
        let out = Command::new(python).arg(script).args([&paths["seg"], &paths["sr"]]).args(&files).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        println!("{}", String::from_utf8_lossy(&out.stdout));
    }
}
