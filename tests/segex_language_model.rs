//! The language model as an observer, against a server of our own that writes down all it gets: no patient data leaves.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use base64::Engine;
use dicom_core::VR;
use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::labels::{NamedLabel, write_seg_nrrd};
use scanside::pipeline::write_dicom_series;
use scanside::segex::observe::ReportFile;
use scanside::terms::{Side, Task, structure};

/// A server that answers every request with the same text, and what it was sent.
struct Stub {
    port: u16,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Stub {
    fn new(status: &'static str, body: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut all = Vec::new();
                let mut part = [0; 65536];
                while let Ok(n) = stream.read(&mut part) {
                    all.extend_from_slice(&part[..n]);
                    if n == 0 || complete(&all) {
                        break;
                    }
                }
                kept.lock().unwrap().push(all);
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nlocation: http://127.0.0.1:{port}/elsewhere\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
            }
        });
        Stub { port, seen }
    }

    fn says(content: &str) -> Self {
        Stub::new("200 OK", serde_json::json!({ "choices": [{ "message": { "content": content } }] }).to_string())
    }

    fn requests(&self) -> Vec<Vec<u8>> {
        self.seen.lock().unwrap().clone()
    }
}

fn complete(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|w| w == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    match length {
        Some(n) => request.len() >= end + 4 + n,
        None => request.ends_with(b"0\r\n\r\n"),
    }
}

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = PhantomOptions { seed: 8, ..PhantomOptions::default() };
        let phantom = Phantom::new(&options);
        write_dicom_series(&dir.path().join("DOE_JANE_19500101"), &phantom, &options).unwrap();
        let task = Task { name: "t".into(), structures: ["VL", "VM"].iter().filter_map(|k| structure(k)).collect() };
        let truth = phantom.truth(&task, Side::Right);
        let named: Vec<NamedLabel> = (1..=2)
            .map(|label| NamedLabel {
                label,
                structure: task.structures[usize::from(label) - 1].clone(),
                side: Some(Side::Right),
            })
            .collect();
        write_seg_nrrd(&truth, &named, &dir.path().join("Doe_Jane.seg.nrrd")).unwrap();
        Site { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, url: &str, more: &[&str]) -> Output {
        std::fs::write(self.path("key"), "sk-site-key\n").unwrap();
        let config = format!(
            "[segex.observer]\nurl = {url:?}\nmodel = \"vision-7b\"\ntimeout_seconds = 20\nkey_file = {:?}\n",
            self.path("key")
        );
        std::fs::write(self.path("box.toml"), config).unwrap();
        Command::new(env!("CARGO_BIN_EXE_scanside"))
            .args(["segex", "--language-model", "--series"])
            .arg(self.path("DOE_JANE_19500101"))
            .arg("--seg")
            .arg(self.path("Doe_Jane.seg.nrrd"))
            .arg("--out")
            .arg(self.path("graded"))
            .arg("-c")
            .arg(self.path("box.toml"))
            .args(more)
            // A proxy of the environment must not get the pictures.
            .env("http_proxy", "http://127.0.0.1:9")
            .env("HTTP_PROXY", "http://127.0.0.1:9")
            .env("ALL_PROXY", "http://127.0.0.1:9")
            .output()
            .unwrap()
    }

    fn file(&self) -> ReportFile {
        ReportFile::load(&self.path("graded.json")).unwrap()
    }
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// Every text value of every header of a series that names a person, an object, a place, a time or a study.
fn identifying(series: &Path) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for entry in std::fs::read_dir(series).unwrap() {
        let path = entry.unwrap().path();
        let object = dicom_object::open_file(&path).unwrap();
        for e in object.iter() {
            const TEXT: [VR; 10] = [VR::PN, VR::LO, VR::SH, VR::UI, VR::DA, VR::TM, VR::DT, VR::ST, VR::LT, VR::AS];
            if TEXT.contains(&e.vr())
                && let Ok(v) = e.to_str()
            {
                out.extend(v.split(['^', '\\', ' ', '\0']).filter(|p| p.len() >= 4).map(String::from));
            }
        }
        out.insert(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    out
}

const GOOD: &str = r#"{"grades": {"C1": 4, "C2": 5, "C8": 2}, "slices": {"C8": [2]}, "remark": "tight"}"#;

#[test]
fn pixels_and_outline_leave_and_nothing_else() {
    let (site, stub) = (Site::new(), Stub::says(GOOD));
    let out = site.run(&format!("http://127.0.0.1:{}/v1", stub.port), &[]);
    assert!(out.status.success(), "{}", said(&out));
    let requests = stub.requests();
    assert_eq!(requests.len(), 2, "one for each structure");
    let secrets = identifying(&site.path("DOE_JANE_19500101"));
    assert!(secrets.len() > 15, "{secrets:?}");
    for request in &requests {
        let text = String::from_utf8_lossy(request);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{head}");
        assert!(head.to_ascii_lowercase().contains(&format!("host: 127.0.0.1:{}", stub.port)), "{head}");
        assert!(head.contains("Bearer sk-site-key"));
        let start = body.find("base64,").unwrap() + 7;
        let end = start + body[start..].find('"').unwrap();
        let png = base64::engine::general_purpose::STANDARD.decode(&body[start..end]).unwrap();
        // All but the pixels themselves, as text.
        let words = format!("{head}{}{}", &body[..start], &body[end..]);
        // Words that are ours: what is asked, of what. "Thigh" is the task, whatever the header says.
        let ours = ["thigh", "axial", "vastus"];
        for s in secrets.iter().filter(|s| !ours.contains(&s.to_lowercase().as_str())) {
            assert!(!words.to_lowercase().contains(&s.to_lowercase()), "{s:?} left the box:\n{words}");
        }
        for s in ["Doe", "DOE", "1950", ".dcm", "nrrd", site.dir.path().to_str().unwrap()] {
            assert!(!words.contains(s), "{s} left the box");
        }
        assert_eq!(chunks(&png), BTreeSet::from(["IHDR".into(), "IDAT".into(), "IEND".into()]), "text in the picture");
        assert!(body.contains("vision-7b") && body.contains("Vastus"));
    }
    let file = site.file();
    assert_eq!(file.reports.len(), 2);
    let r = &file.reports[1];
    assert_eq!((r.observer.as_str(), r.structures.len()), ("language model vision-7b", 2));
    assert_eq!(
        (r.structures[0].grades[7].grade, r.structures[0].grades[7].slices.as_slice()),
        (Some(2), [1].as_slice())
    );
    assert!(std::fs::read_to_string(site.path("graded.md")).unwrap().contains("language model vision-7b"));
}

/// Types of a PNG's chunks.
fn chunks(png: &[u8]) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let mut at = 8;
    while at + 8 <= png.len() {
        let n = u32::from_be_bytes(png[at..at + 4].try_into().unwrap()) as usize;
        out.insert(String::from_utf8_lossy(&png[at + 4..at + 8]).into_owned());
        at += 12 + n;
    }
    out
}

#[test]
fn a_server_that_babbles_redirects_or_is_away_is_told_and_the_device_has_graded() {
    let site = Site::new();
    let babbler = Stub::says("What a lovely thigh!");
    let redirect = Stub::new("302 Found", String::new());
    let broken = Stub::new("500 Oops", "{}".into());
    let junk = Stub::new("200 OK", "<html>".into());
    let endless = Stub::new("200 OK", " ".repeat(1 << 20));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (port, why) in [
        (babbler.port, "not the JSON asked for"),
        (redirect.port, "302"),
        (broken.port, "status 500"),
        (junk.port, "no chat completion"),
        (endless.port, "read to its end"),
        (nobody, "cannot be asked"),
    ] {
        let out = site.run(&format!("http://127.0.0.1:{port}"), &[]);
        assert!(!out.status.success() && said(&out).contains(why), "{why}: {}", said(&out));
        let file = site.file();
        assert_eq!((file.reports.len(), file.reports[0].structures.len()), (1, 2), "the device's grades stay");
        assert!(file.problems[0].contains(why), "{:?}", file.problems);
    }
    assert_eq!(redirect.requests().len(), 1, "a redirect is not followed");
}

#[test]
fn pictures_do_not_leave_the_private_network() {
    let site = Site::new();
    let out = site.run("http://192.0.2.1:8000/v1", &[]);
    assert!(!out.status.success() && said(&out).contains("not on a private network"), "{}", said(&out));
    assert_eq!(site.file().reports.len(), 1);
}
