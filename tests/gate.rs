//! The site's gate and its drift alerts, on the running service: nothing leaves in the pilot but to the researcher, a person's
//! decisions bring the site into production, and a changed scanner is told of.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/serve.rs"]
mod serve;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dicom_core::value::PrimitiveValue;
use dicom_core::{DataElement, Tag, VR};
use dicom_object::open_file;
use scanside::adapter::{Adapter, Reference, Spread};
use scanside::dicom::net::archive::Folder;
use scanside::dicom::net::negotiate::{Acceptor, Callers, Classes};
use scanside::dicom::net::scp::{Scp, ScpOptions};
use scanside::dicom::net::scu::{ScuOptions, Sent, Target, send};
use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::pipeline::write_dicom_series;
use serde_json::Value;

struct Archive {
    folder: Arc<Folder>,
    scp: Scp,
}

fn archive(runtime: &tokio::runtime::Runtime, dir: &Path, ae: &str) -> Archive {
    let folder = Arc::new(Folder::new(&dir.join(ae)).unwrap());
    let acceptor =
        Acceptor { ae_title: ae.into(), callers: Callers::Anybody, classes: Classes::AnyStorage, max_pdu: 256 * 1024 };
    let options = ScpOptions {
        acceptor,
        max_associations: 4,
        idle: Duration::from_secs(60),
        max_object: 1 << 28,
        first_association: 1,
    };
    let scp = runtime.block_on(Scp::bind(SocketAddr::from(([127, 0, 0, 1], 0)), options, folder.clone())).unwrap();
    Archive { folder, scp }
}

struct Site {
    dir: tempfile::TempDir,
    config: PathBuf,
    pacs: Archive,
    lab: Archive,
    port: u16,
    _child: serve::Running,
    _runtime: tokio::runtime::Runtime,
}

impl Site {
    /// The service with two archives, the second the researcher's, and more settings.
    fn start(more: &str) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (pacs, lab) = (archive(&runtime, dir.path(), "PACS"), archive(&runtime, dir.path(), "LAB"));
        let config = dir.path().join("box.toml");
        let text = format!(
            "[station]\nlisten = \"127.0.0.1:0\"\n[storage]\nstate_dir = {:?}\nmin_free_mb = 64\n[[modality]]\n\
             ae_title = \"MR1\"\n[[archive]]\nae_title = \"PACS\"\naddress = \"{}\"\n[[archive]]\nae_title = \"LAB\"\n\
             address = \"{}\"\nresearcher = true\n[series]\nquiet_seconds = 2\n{more}",
            dir.path().join("state"),
            pacs.scp.local_addr(),
            lab.scp.local_addr()
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(dir.path().join("serve.log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_scanside"))
            .args(["serve", "-c"])
            .arg(&config)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let child = serve::Running(child);
        let line = BufReader::new(out).lines().next().and_then(Result::ok).unwrap_or_default();
        let port = line.strip_prefix("ready on 127.0.0.1:").and_then(|p| p.trim().parse().ok());
        let log = || std::fs::read_to_string(dir.path().join("serve.log")).unwrap_or_default();
        let port = port.unwrap_or_else(|| panic!("not ready: {line:?}\n{}", log()));
        Site { dir, config, pacs, lab, port, _child: child, _runtime: runtime }
    }

    fn scanside(&self, args: &[&str]) -> Output {
        let command = args[0];
        Command::new(env!("CARGO_BIN_EXE_scanside"))
            .arg(command)
            .arg("-c")
            .arg(&self.config)
            .args(&args[1..])
            .output()
            .unwrap()
    }

    fn said(&self, args: &[&str]) -> String {
        let out = self.scanside(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.said(&["status", "--json"])).unwrap()
    }

    /// Sends a small phantom and waits until its job has ended; its number and row.
    fn serve(&self, seed: u64, change: impl Fn(&mut u16)) -> (i64, Value) {
        let options =
            PhantomOptions { seed, dims: [256, 128, 6], spacing: [1.953_125, 1.953_125, 12.5], ..Default::default() };
        let series =
            write_dicom_series(&self.dir.path().join(format!("s{seed}")), &Phantom::new(&options), &options).unwrap();
        for file in &series.files {
            let mut object = open_file(file).unwrap();
            let bytes = object.element_by_name("PixelData").unwrap().to_bytes().unwrap().to_vec();
            let mut pixels: Vec<u16> = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
            pixels.iter_mut().for_each(&change);
            object.put(DataElement::new(Tag(0x7fe0, 0x0010), VR::OW, PrimitiveValue::U16(pixels.into())));
            object.write_to_file(file).unwrap();
        }
        let target = Target {
            ae_title: "SCANSIDE".into(),
            address: format!("127.0.0.1:{}", self.port),
            calling_ae: "MR1".into(),
        };
        for outcome in send(&series.files, &target, &ScuOptions::default()) {
            assert!(matches!(outcome.sent, Sent::Stored(0)), "{outcome:?}");
        }
        let job = self.until(|status| {
            let job =
                status["jobs"].as_array().unwrap().iter().find(|j| j["series_uid"] == series.series_uid.as_str())?;
            (job["state"] != "pending").then(|| job.clone())
        });
        assert_eq!(job["state"], "done", "{job:#}");
        (job["id"].as_i64().unwrap(), job)
    }

    /// Waits until the status says something; only a hang ends it.
    fn until<T>(&self, what: impl Fn(&Value) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            let status = self.status();
            if let Some(t) = what(&status) {
                return t;
            }
            assert!(start.elapsed() < Duration::from_secs(300), "no end: {status:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn deliveries(&self, id: i64) -> Vec<(String, String)> {
        let status = self.status();
        let job = status["jobs"].as_array().unwrap().iter().find(|j| j["id"] == id).unwrap().clone();
        let word = |d: &Value, k: &str| d[k].as_str().unwrap().to_string();
        let all = job["deliveries"].as_array().unwrap();
        all.iter().map(|d| (word(d, "archive")[..3].to_string(), word(d, "state"))).collect()
    }
}

fn summary(job: &Value) -> Value {
    serde_json::from_str(job["summary"].as_str().unwrap()).unwrap()
}

#[test]
fn a_pilot_holds_everything_until_people_accepted_enough() {
    let site = Site::start(
        "[gate]\nmode = \"pilot\"\naccept_cases = 2\naccept_share = 1.0\nleast_score = 0\nleast_verdict = \"D\"\n\
         least_dice = 0.9\ndice_cases = 1\npromote = \"automatic\"\n",
    );
    let (first, job) = site.serve(501, |_| {});
    assert_eq!(summary(&job)["pilot"], true);
    assert!(summary(&job)["remarks"][0].as_str().unwrap().starts_with("Pilot:"), "{job:#}");
    let states = site.deliveries(first);
    assert!(states.len() == 8 && states.iter().all(|(_, s)| s == "held"), "{states:?}");
    let status = site.status();
    assert_eq!((status["gate"]["stage"].as_str(), status["gate"]["open"].as_i64()), (Some("pilot"), Some(1)));
    assert!(site.said(&["status"]).contains("gate: pilot, results stay on this box; 0 of 2 cases decided"));
    let list = site.said(&["review", "list"]);
    assert!(
        list.contains(&format!("{first:>5}  ")) && list.contains("pilot") && list.contains("montage.png"),
        "{list}"
    );

    // The reviewer's correction is the result itself: Dice 1.
    let seg = site.dir.path().join(format!("state/results/{first}/seg.dcm"));
    let id = first.to_string();
    let said = site.said(&["review", "add", &id, "--truth", seg.to_str().unwrap(), "--by", "MM"]);
    assert!(said.contains("VL   right Dice 1.000") && said.contains("VL   left  Dice 1.000"), "{said}");
    let said = site.said(&["review", "accept", &id, "--by", "MM"]);
    assert!(
        said.contains("it stays on this box") && said.contains("1 of 2 cases decided, 1 passed, Dice 1.000"),
        "{said}"
    );
    // Accepted and not released: it stays, so that --release can still send it.
    assert_eq!(site.deliveries(first), states);

    let (second, _) = site.serve(502, |_| {});
    let said = site.said(&["review", "reject", &second.to_string(), "--note", "VM too small"]);
    assert!(
        said.contains("rejected") && said.contains("2 of 2 cases decided, 1 passed") && said.contains("bar not met"),
        "{said}"
    );
    // A second look is allowed.
    let said = site.said(&["review", "accept", &second.to_string(), "--by", "MM"]);
    assert!(said.contains("production, promoted from the pilot"), "{said}");
    assert!(site.pacs.folder.taken().is_empty() && site.lab.folder.taken().is_empty(), "nothing left in the pilot");

    let (third, job) = site.serve(503, |_| {});
    assert_eq!(summary(&job)["pilot"], false);
    site.until(|_| site.deliveries(third).iter().all(|(_, s)| s == "sent").then_some(()));
    assert_eq!((site.pacs.folder.taken().len(), site.lab.folder.taken().len()), (4, 4));
    let out = site.scanside(&["review", "accept", "99"]);
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("there is no job 99"));
}

#[test]
fn a_pilot_may_go_to_the_researcher_alone_and_below_the_bar_is_held_and_released() {
    let site = Site::start("[gate]\nmode = \"pilot\"\npilot_to = \"researcher\"\naccept_cases = 1\nleast_score = 0\n");
    let (id, _) = site.serve(504, |_| {});
    site.until(|_| {
        let states = site.deliveries(id);
        states.iter().filter(|(a, _)| a == "LAB").all(|(_, s)| s == "sent").then_some(())
    });
    assert_eq!((site.pacs.folder.taken().len(), site.lab.folder.taken().len()), (0, 4));
    let seg = site.lab.folder.taken().into_iter().find(|t| t.sop_class.ends_with("66.4")).unwrap();
    let object = open_file(&seg.path).unwrap();
    let description = object.element_by_name("SeriesDescription").unwrap().to_str().unwrap().into_owned();
    assert!(description.contains("needs review"), "{description}");
    site.said(&["review", "accept", &id.to_string(), "--release"]);
    site.until(|_| site.deliveries(id).iter().all(|(_, s)| s == "sent").then_some(()));
    assert_eq!(site.pacs.folder.taken().len(), 4);
    // The bar may be met; without automatic promotion the status only says so.
    let gate = site.status()["gate"].clone();
    assert_eq!(gate["stage"], "pilot");
    drop(site);

    let site = Site::start("[results]\nbar = 100\nbelow_bar = \"hold\"\n");
    let (id, job) = site.serve(505, |_| {});
    assert_eq!(summary(&job)["needs_review"], true);
    assert!(summary(&job)["remarks"][0].as_str().unwrap().contains("this site's bar is a score of 100"), "{job:#}");
    site.until(|_| {
        let states = site.deliveries(id);
        let of = |w: &str| states.iter().filter(|(_, s)| s == w).count();
        ((of("held"), of("sent")) == (6, 2)).then_some(())
    });
    assert!(site.said(&["review", "list"]).contains("below the bar"));
    let said = site.said(&["review", "accept", &id.to_string(), "--by", "MM"]);
    assert!(said.contains("6 objects go to the archives"), "{said}");
    site.until(|_| site.deliveries(id).iter().all(|(_, s)| s == "sent").then_some(()));
    assert!(site.said(&["review", "list"]).contains("no result waits"));
    assert!(site.said(&["review", "list", "--all"]).contains("accepted by MM"));
}

#[test]
fn a_changed_contrast_is_told_once_in_the_result_and_stays_in_the_status() {
    let dir = tempfile::tempdir().unwrap();
    let mut adapter =
        Adapter::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/adapters/thigh-phantom.safetensors"))).unwrap();
    // As training leaves it, for the phantoms' contrast: muscle has about 0.28 of fat's signal.
    let spread = |mean: f64, sd: f64| Some(Spread { count: 20, mean, sd });
    adapter.meta.reference = adapter
        .meta
        .task
        .structures
        .iter()
        .map(|s| Reference { key: s.key.clone(), area: None, intensity: spread(0.28, 0.03), score: None })
        .collect();
    let path = dir.path().join("site.safetensors");
    adapter.save(&path).unwrap();
    let site = Site::start(&format!("[model]\nadapter = {path:?}\n[drift]\nwindow = 3\nleast_cases = 2\nz = 3.0\n"));
    let (_, job) = site.serve(511, |_| {});
    let told = |job: &Value| {
        let s = summary(job);
        s["remarks"].as_array().unwrap().iter().filter(|r| r.as_str().unwrap().starts_with("drift begins")).count()
    };
    assert_eq!(told(&job), 0);
    assert_eq!(site.status()["alerts"].as_array().unwrap().len(), 0);
    // Another sequence: muscle nearly half as bright as fat.
    let brighter = |p: &mut u16| *p = ((f64::from(*p) / 2500.0).powf(0.5) * 2500.0) as u16;
    let mut counts = Vec::new();
    for seed in 512..515 {
        counts.push(told(&site.serve(seed, brighter).1));
    }
    let structures = adapter.meta.task.structures.len();
    assert_eq!(counts.iter().sum::<usize>(), structures, "each structure is told once: {counts:?}");
    let status = site.status();
    assert_eq!(status["alerts"].as_array().unwrap().len(), structures, "{status:#}");
    assert!(status["drift"][0]["z"].as_f64().unwrap() > 3.0);
    assert!(site.said(&["status"]).contains("DRIFT: the brightness of"));
    let log = std::fs::read_to_string(site.dir.path().join("serve.log")).unwrap();
    assert_eq!(log.matches("drift begins").count(), structures, "{log}");
}
