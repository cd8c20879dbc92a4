//! The TensorRT engine from end to end on a GPU that is none: build, add, list, verify, bench, check-gpu, serving, and everything that can
//! go wrong on a box. tests/standin-gpu plays driver and TensorRT; the program itself is the one that ships.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/bundle.rs"]
mod bundle;
#[path = "common/serve.rs"]
mod serve;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use scanside::adapter::Adapter;
use scanside::adapter::bundle::Unverified;
use scanside::adapter::trust::TrustStore;
use scanside::clock::Clock;
use scanside::model::weights::{BaseWeights, to_safetensors};
use scanside::store::Store;
use scanside::store::bundles::{self, Arrival, Event, Facts, Why};

/// A box with its libraries, weights, adapter and settings.
struct Station {
    dir: tempfile::TempDir,
}

fn standin() -> PathBuf {
    let path = std::env::current_exe().unwrap().parent().unwrap().join("libstandin_gpu.so");
    assert!(path.exists(), "{} was not built", path.display());
    path
}

impl Station {
    /// `libraries` are the names under which the stand-in is found.
    fn with(libraries: &[&str]) -> Station {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("lib")).unwrap();
        for name in libraries {
            std::os::unix::fs::symlink(standin(), dir.path().join("lib").join(name)).unwrap();
        }
        let base = BaseWeights::random(5);
        let meta = HashMap::from([("content_sha256".to_string(), base.sha256().to_string())]);
        std::fs::write(dir.path().join("base.safetensors"), to_safetensors(base.tensors(), meta).unwrap()).unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("adapters/thigh-phantom.safetensors");
        let mut adapter = Adapter::load(&shipped).unwrap();
        adapter.meta.base_sha256 = base.sha256().into();
        adapter.meta.input_size = 64;
        // Weights are random: everything counts as present, so that the decoder runs.
        adapter.meta.presence.iter_mut().for_each(|p| p.threshold = 0.0);
        adapter.tensors.get_mut("classifier.fc2.bias").unwrap().data.fill(20.0);
        adapter.save(&dir.path().join("adapter.safetensors")).unwrap();
        std::fs::write(dir.path().join("box.toml"), Station::settings(dir.path(), "")).unwrap();
        Station { dir }
    }

    fn new() -> Station {
        Station::with(&[
            "libcuda.so",
            "libnvinfer.so.8",
            "libnvinfer.so.10",
            "libnvinfer.so.11",
            "libnvonnxparser.so.8",
            "libnvonnxparser.so.10",
            "libnvonnxparser.so.11",
        ])
    }

    fn settings(dir: &Path, engine: &str) -> String {
        let file = |name: &str| dir.join(name).display().to_string();
        format!(
            "[storage]\nstate_dir = {:?}\nmin_free_mb = 64\n[model]\nweights = {:?}\nadapter = {:?}\n\
             [engine]\nkind = \"tensorrt\"\nprecision = \"fp32\"\nlibrary = {:?}\n{engine}",
            file("state"),
            file("base.safetensors"),
            file("adapter.safetensors"),
            file("lib")
        )
    }

    /// The station's adapter in version 2, a little different, for an input of so many pixels.
    fn second(&self, pixels: usize) -> Adapter {
        let mut adapter = Adapter::load(&self.path("adapter.safetensors")).unwrap();
        (adapter.meta.version, adapter.meta.input_size) = (2, pixels);
        for (_, tensor) in adapter.tensors.iter_mut().filter(|(name, _)| name.ends_with("lora_b")) {
            tensor.data.iter_mut().for_each(|v| *v *= 1.02);
        }
        adapter
    }

    /// Puts an adapter into a state folder as what came in a bundle, was committed, and is to serve.
    fn commit(&self, state: &Path, adapter: Adapter) {
        let (clock, host) = (Clock::System, bundle::Host::default());
        let mut draft = host.draft(adapter.meta.version);
        draft.evidence = bundle::evidence(&adapter);
        draft.parity = vec![bundle::parity(&adapter, 1)];
        draft.adapter = adapter.clone();
        let bytes = host.sign(&draft);
        let identity = Unverified::parse(bytes.clone()).unwrap().manifest.signed.id();
        let facts = Facts {
            name: "thigh".into(),
            version: 2,
            adapter_sha256: adapter.sha256().unwrap(),
            identity: identity.clone(),
            signer: "holder-4".into(),
            evidence: "{}".into(),
        };
        let store = Store::open(state, clock.clone()).unwrap();
        std::fs::create_dir_all(state.join(bundles::FOLDER)).unwrap();
        let path = format!("{}/two.bundle", bundles::FOLDER);
        std::fs::write(state.join(&path), &bytes).unwrap();
        let now = clock.now_ms();
        let done = store.with_conn(|c| {
            let arrival = bundles::receive(c, "two", &path, bytes.len() as u64, "two.bundle", now)?;
            let (Arrival::New(row) | Arrival::Known(row)) = arrival;
            let tx = c.transaction()?;
            bundles::set_facts(&tx, row.id, &facts)?;
            tx.commit()?;
            for event in [Event::Verified, Event::Staged, Event::ParityPassed, Event::Committed] {
                let seen = bundles::get(c, row.id)?.unwrap();
                let step = bundles::advance(c, &seen, event, &Why::default(), now, |tx| match event {
                    Event::Committed => bundles::serve(tx, Some(row.id), ("thigh 2", "", "holder-4"), "committed", now),
                    _ => Ok(()),
                })?;
                step.unwrap();
            }
            Ok(())
        });
        done.unwrap();
        let trust = TrustStore::new(state);
        trust.init(host.root().clone(), now).unwrap();
        trust.update(|s| s.commit("thigh", 2, &identity)).unwrap();
    }

    /// What the doctor says of a group.
    fn doctor(&self, faults: &str, group: &str) -> Value {
        let out = self.run("100300", faults, &["doctor", "--json"]);
        let all: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e} {}", words(&out)));
        all.into_iter().find(|c| c["group"] == group).unwrap_or_else(|| panic!("no {group}: {}", words(&out)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn env(&self, version: &str, faults: &str) -> Vec<(String, String)> {
        [
            ("LD_LIBRARY_PATH", self.path("lib").display().to_string()),
            ("SCANSIDE_STANDIN_VERSION", version.into()),
            ("SCANSIDE_STANDIN", faults.into()),
        ]
        .map(|(k, v)| (k.to_string(), v))
        .to_vec()
    }

    fn run(&self, version: &str, faults: &str, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_scanside"))
            .args(args)
            .arg("-c")
            .arg(self.path("box.toml"))
            .envs(self.env(version, faults))
            .output()
            .unwrap()
    }

    fn good(&self, version: &str, args: &[&str]) -> String {
        let out = self.run(version, "", args);
        assert!(out.status.success(), "{args:?}: {}", words(&out));
        String::from_utf8(out.stdout).unwrap()
    }

    /// The code with which TensorRT is refused.
    fn refusal(&self, version: &str, faults: &str) -> String {
        let out = self.run(version, faults, &["engine", "verify", "--json"]);
        assert_eq!(out.status.code(), Some(1), "{faults}: {}", words(&out));
        let v: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", words(&out)));
        assert_eq!((&v["passed"], &v["report"]["engine"]["kind"]), (&Value::Bool(false), &Value::from("cpu")));
        let r = &v["report"]["refusal"];
        assert!(!r["remedy"].as_str().unwrap().is_empty() && !r["sentence"].as_str().unwrap().is_empty(), "{r}");
        r["code"].as_str().unwrap().to_string()
    }
}

fn words(out: &Output) -> String {
    format!("{:?}\n{}{}", out.status, String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn cycle(version: &str, product: &str) {
    let station = Station::new();
    assert!(station.good(version, &["engine", "list"]).contains("no plan is in"));
    let built = station.good(version, &["engine", "build"]);
    assert_eq!(built.matches("fp32 built in").count(), 3, "{built}");
    assert!(station.good(version, &["engine", "build"]).contains("is there"), "a second time nothing is built");
    let list: Value = serde_json::from_str(&station.good(version, &["engine", "list", "--json"])).unwrap();
    let records = list.as_array().unwrap();
    assert_eq!(records.len(), 3);
    assert!(records.iter().all(|r| r["key"]["library"] == product && r["key"]["gpu"] == "Stand-in GPU"));
    let v: Value = serde_json::from_str(&station.good(version, &["engine", "verify", "--json"])).unwrap();
    let parity = &v["report"]["parity"];
    assert_eq!((&v["passed"], &v["report"]["engine"]["kind"]), (&Value::Bool(true), &Value::from("tensorrt")));
    assert!(v["report"]["engine"]["version"].as_str().unwrap().starts_with(product), "{v}");
    // Both sides compute with the same engine, LoRA padded on the one.
    assert!(parity["structures"].as_array().unwrap().iter().any(|s| s["pixels"].as_u64().unwrap() > 64), "{parity}");
    assert!(parity["structures"].as_array().unwrap().iter().all(|s| s["iou"].as_f64().unwrap() > 0.99), "{parity}");
    assert!(parity["logit_error"].as_f64().unwrap() < 0.01, "{parity}");
    let times: Value = serde_json::from_str(
        &station.good(version, &["engine", "bench", "--json", "--rounds", "5", "--cpu-rounds", "1"]),
    )
    .unwrap();
    assert!(times.as_array().unwrap().iter().all(|t| t["p99"].as_f64() >= t["p50"].as_f64() && t["cpu"].is_number()));
    // A plan from elsewhere: the decoder's file, under no key, taken for the decoder and for nothing else.
    let plans = station.path("state/engines");
    let mut files = std::fs::read_dir(&plans).unwrap().map(|f| f.unwrap().path());
    let decoder =
        files.find(|p| p.to_str().unwrap().contains("/decoder-") && p.extension().unwrap() == "plan").unwrap();
    let outside = station.path("decoder.plan");
    std::fs::copy(decoder, &outside).unwrap();
    let outside = outside.to_str().unwrap();
    assert!(
        station
            .good(version, &["engine", "add", outside, "--part", "decoder"])
            .contains("next: scanside engine verify")
    );
    assert!(station.good(version, &["engine", "list"]).contains("added"));
    let wrong = station.run(version, "", &["engine", "add", outside, "--part", "encoder"]);
    assert!(!wrong.status.success() && words(&wrong).contains("not one of this encoder"), "{}", words(&wrong));
    assert!(station.good(version, &["engine", "verify"]).contains("passed: TensorRT may serve"));
}

#[test]
fn the_whole_cycle_on_8_6_0() {
    cycle("8600", "TensorRT 8.6.0");
}

#[test]
fn the_whole_cycle_on_10_3() {
    cycle("100300", "TensorRT 10.3.0");
}

#[test]
fn the_whole_cycle_on_11_1() {
    cycle("110100", "TensorRT 11.1.0");
}

#[test]
fn every_fault_has_its_code_and_the_cpu_serves() {
    let station = Station::new();
    let v = "100300";
    assert_eq!(station.refusal(v, ""), "NO_PLAN");
    station.good(v, &["engine", "build"]);
    for (faults, code) in [
        ("no-device", "NO_GPU"),
        ("init:801", "DRIVER_FAILED"),
        ("old-driver", "OLD_DRIVER"),
        ("oom:100000", "GPU_MEMORY"),
        ("deserialize", "PLAN_REFUSED"),
        ("enqueue", "ENGINE_FAILED"),
        ("device", "ENGINE_FAILED"),
        ("parity", "PARITY"),
        ("nan", "PARITY"),
    ] {
        assert_eq!(station.refusal(v, faults), code, "{faults}");
    }
    assert_eq!(station.refusal("110100", ""), "NO_PLAN", "plans of 10.3 are none for 11.1");
    assert_eq!(station.refusal("70203", ""), "TENSORRT_VERSION");
    assert_eq!(station.refusal("120000", ""), "TENSORRT_VERSION");
    // What cannot be captured as a graph is enqueued one by one, and serves.
    for faults in ["capture", "capture-enqueue"] {
        let out = station.run(v, faults, &["engine", "verify"]);
        assert!(out.status.success() && words(&out).contains("cannot be captured"), "{}", words(&out));
    }
    // A plan that was changed on the disk.
    let plans = station.path("state/engines");
    let plan = std::fs::read_dir(&plans).unwrap().map(|f| f.unwrap().path()).find(|p| p.extension().unwrap() == "plan");
    std::fs::write(plan.unwrap(), b"something else of some length").unwrap();
    assert_eq!(station.refusal(v, ""), "PLAN_BROKEN");
    for (fault, says) in [("parse", "No importer registered"), ("build", "Could not find any implementation")] {
        let out = station.run(v, fault, &["engine", "build", "--force"]);
        assert!(!out.status.success() && words(&out).contains(says), "{}", words(&out));
    }
}

#[test]
fn without_a_driver_or_tensorrt_it_says_so() {
    if Path::new("/dev/nvidia0").exists() || Path::new("/dev/nvmap").exists() {
        println!("SKIPPED: this machine has a GPU, so the lack of a driver cannot be seen");
    } else {
        assert_eq!(Station::with(&["libnvinfer.so.10"]).refusal("100300", ""), "NO_DRIVER");
    }
    assert_eq!(Station::with(&["libcuda.so"]).refusal("100300", ""), "NO_TENSORRT");
}

#[test]
fn the_doctor_names_the_remedy() {
    let station = Station::new();
    let doctor = |faults: &str| -> Vec<Value> {
        let out = station.run("100300", faults, &["doctor", "--json"]);
        let all: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e} {}", words(&out)));
        all.into_iter().filter(|c| c["group"] == "engine").collect()
    };
    let none = doctor("");
    assert!(
        none[0]["ok"] == false && none[0]["remedy"].as_str().unwrap().contains("scanside engine build"),
        "{none:?}"
    );
    station.good("100300", &["engine", "build"]);
    let ready = doctor("");
    assert!(ready[0]["ok"] == true && ready[0]["what"].as_str().unwrap().contains("tensorrt"), "{ready:?}");
    let gone = doctor("no-device");
    assert!(gone[0]["remedy"].as_str().unwrap().contains("nvidia-smi"), "{gone:?}");
}

#[test]
fn where_the_cpu_may_not_serve_the_service_refuses_with_the_reason() {
    let station = Station::new();
    std::fs::write(station.path("box.toml"), Station::settings(station.dir.path(), "cpu_fallback = false\n")).unwrap();
    let out = station.run("100300", "", &["serve", "--set", "station.listen=\"127.0.0.1:0\""]);
    let says = words(&out);
    assert_eq!(out.status.code(), Some(1), "{says}");
    assert!(
        says.contains("no engine may serve") && says.contains("NO_PLAN") && says.contains("engine build"),
        "{says}"
    );
    assert!(says.contains("cpu_fallback = false"), "{says}");
}

#[test]
fn a_bundle_whose_masks_differ_is_served_by_the_cpu_where_it_may() {
    let station = Station::new();
    station.good("100300", &["engine", "build"]);
    // The configuration's adapter is remembered as sound, the bundle's is compared when it is loaded.
    station.good("100300", &["engine", "verify"]);
    station.commit(&station.path("state"), station.second(64));
    let model = station.doctor("", "model");
    assert!(model["ok"] == true && model["what"].as_str().unwrap().contains("engine tensorrt"), "{model}");
    let model = station.doctor("parity", "model");
    let what = model["what"].as_str().unwrap();
    assert!(model["ok"] == true && what.contains("engine cpu") && what.contains("from bundle thigh 2"), "{model}");
    let engine = station.doctor("parity", "engine");
    assert!(engine["ok"] == false && engine["remedy"].as_str().unwrap().contains("[PARITY]"), "{engine}");
    // Where the CPU may not serve, the reason is told as what it is.
    std::fs::write(station.path("box.toml"), Station::settings(station.dir.path(), "cpu_fallback = false\n")).unwrap();
    let model = station.doctor("parity", "model");
    let remedy = model["remedy"].as_str().unwrap();
    assert!(model["ok"] == false && remedy.contains("[parity-failed]"), "{model}");
    assert!(remedy.contains("engine.cpu_fallback = false"), "{model}");
}

#[test]
fn plans_are_built_for_the_bundle_that_serves() {
    let station = Station::new();
    let v = "100300";
    station.good(v, &["engine", "build"]);
    station.commit(&station.path("state"), station.second(128));
    let engine = station.doctor("", "engine");
    assert!(engine["ok"] == false && engine["remedy"].as_str().unwrap().contains("scanside engine build"), "{engine}");
    let built = station.good(v, &["engine", "build"]);
    assert_eq!(built.matches("fp32 built in").count(), 3, "{built}");
    assert!(built.contains("for adapter thigh-phantom 2:") && built.contains("is there"), "{built}");
    let engine = station.doctor("", "engine");
    assert!(engine["ok"] == true && engine["what"].as_str().unwrap().contains("tensorrt"), "{engine}");
    // The file itself can be named, before it is on the box.
    let bundle = station.path("state/bundles/two.bundle");
    let named = station.good(v, &["engine", "build", "--bundle", bundle.to_str().unwrap()]);
    assert!(named.contains("for adapter thigh-phantom 2:") && !named.contains("thigh-phantom 1"), "{named}");
    assert!(station.good(v, &["engine", "verify"]).contains("passed: TensorRT may serve"));
}

#[test]
fn status_says_the_engine_of_what_serves_now() {
    let station = Station::new();
    station.good("100300", &["engine", "build"]);
    let dir = tempfile::tempdir().unwrap();
    station.commit(&dir.path().join("state"), station.second(128));
    let served = serve_in(&station, dir.path(), "");
    assert_eq!(served.status()["engine"]["refusal"]["code"], "NO_PLAN", "no plan has its shapes");
    let back = Command::new(env!("CARGO_BIN_EXE_scanside"))
        .args(["adapters", "-c"])
        .arg(dir.path().join("scanside.toml"))
        .args(["rollback", "--factory"])
        .output()
        .unwrap();
    assert!(back.status.success(), "{}", words(&back));
    let start = Instant::now();
    while served.status()["engine"]["engine"]["kind"] != "tensorrt" {
        assert!(start.elapsed() < Duration::from_secs(600), "{:#}", served.status()["engine"]);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A service in a folder, on the station's libraries and plans.
fn serve_in(station: &Station, dir: &Path, faults: &str) -> serve::Served {
    let engine = Station::settings(station.dir.path(), &format!("plans = {:?}\n", station.path("state/engines")));
    let engine = engine.split_once("[model]").map(|(_, rest)| format!("[model]{rest}")).unwrap();
    serve::Served::start_with(dir, "PACS", "127.0.0.1:1", &engine, &station.env("100300", faults))
}

/// Sends a phantom to a service and gives its job when it is over, and the status then.
fn serve_one(station: &Station, faults: &str) -> (Value, Value) {
    let state = tempfile::tempdir().unwrap();
    let served = serve_in(station, state.path(), faults);
    let series = state.path().join("series");
    let made = Command::new(env!("CARGO_BIN_EXE_scanside")).args(["phantom", "--out"]).arg(&series).output().unwrap();
    assert!(made.status.success(), "{}", words(&made));
    let sent = Command::new(env!("CARGO_BIN_EXE_scanside"))
        .args(["send", "--from", "MR1", &format!("127.0.0.1:{}", served.port)])
        .arg(series.join("series"))
        .output()
        .unwrap();
    assert!(sent.status.success(), "{}", words(&sent));
    let job = served.wait_for_job();
    (job, served.status())
}

#[test]
fn every_result_says_which_engine_made_it() {
    let station = Station::new();
    station.good("100300", &["engine", "build"]);
    let engine = |job: &Value| -> String {
        assert_eq!(job["state"], "done", "{job:#}");
        let summary: Value = serde_json::from_str(job["summary"].as_str().unwrap()).unwrap();
        summary["engine"].as_str().unwrap().to_string()
    };
    let (job, status) = serve_one(&station, "");
    assert!(engine(&job).starts_with("tensorrt TensorRT 10.3.0 on Stand-in GPU"), "{job}");
    assert_eq!(
        (&status["engine"]["engine"]["kind"], &status["engine"]["refusal"]),
        (&Value::from("tensorrt"), &Value::Null)
    );
    // Without a GPU the CPU serves, and status says why.
    let (job, status) = serve_one(&station, "no-device");
    assert!(engine(&job).starts_with("cpu rten"), "{job}");
    assert_eq!(status["engine"]["refusal"]["code"], "NO_GPU");
    // A GPU that fails in the middle of a series: the series is done again on the CPU, whole.
    let (job, status) = serve_one(&station, "enqueue:7");
    assert!(engine(&job).starts_with("cpu rten") && job["attempts"].as_i64() == Some(2), "{job}");
    assert_eq!(status["engine"]["refusal"]["code"], "ENGINE_FAILED", "{status:#}");
    assert_eq!(status["engine"]["engine"]["kind"], "cpu");
}

#[test]
fn the_check_of_a_gpu_finds_a_sound_one_sound() {
    let station = Station::new();
    let out = station.path("check");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("engines/gpu-check.sh");
    let ran = Command::new(script)
        .arg(env!("CARGO_BIN_EXE_scanside"))
        .arg(station.path("lib"))
        .arg(&out)
        .args(["-c", station.path("box.toml").to_str().unwrap(), "--rounds", "10", "--swaps", "30"])
        .envs(station.env("8600", ""))
        // Only a hang is ended.
        .env("BUDGET", "3000")
        .env("PATIENCE", "40")
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", words(&ran));
    let report: Value = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    let parts = report["parts"].as_array().unwrap();
    let of = |name: &str| parts.iter().find(|p| p["part"] == name).unwrap();
    for p in parts {
        let left_out = p["part"].as_str().unwrap().ends_with("int8") || p["part"] == "peers";
        assert!(p["error"].is_null() && p["left_out"].is_string() == left_out, "{p:#}");
    }
    assert_eq!(of("parity-fp32")["data"]["passed"], true);
    let swaps = &of("swaps")["data"];
    assert_eq!((&swaps["swaps"], &swaps["lost_kib"]), (&Value::from(30), &Value::from(0)), "{swaps}");
    assert!(
        swaps["adapters_differ"].as_f64().unwrap() > 100.0 * swaps["worst_difference"].as_f64().unwrap(),
        "{swaps}"
    );
    assert!(of("latency-fp16")["data"]["parts"].as_array().unwrap().iter().all(|p| p["captured"] == true));
    // LoRA as inputs and the same adapter merged are one network.
    let merged = &of("merged")["data"]["parity"];
    assert!(merged["logit_error_relative"].as_f64().unwrap() < 0.05, "{merged}");
    // The series' labels are the CPU engine's, where both compute alike.
    assert!(of("series")["data"]["label_iou"].as_f64().unwrap() > 0.5, "{}", of("series"));
    let markdown = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(
        markdown.contains("| encoder | fp16 |") && markdown.contains("TensorRT 8.6.0 on Stand-in GPU"),
        "{markdown}"
    );
    // One part that fails costs itself only.
    let broken =
        station.run("8600", "oom:1000", &["engine", "check-gpu", "--part", "swaps", "--out", out.to_str().unwrap()]);
    assert_eq!(broken.status.code(), Some(1));
    let again = station.run("8600", "", &["engine", "check-gpu", "--part", "report", "--out", out.to_str().unwrap()]);
    assert!(
        again.status.success() && words(&again).contains("| swaps | FAILED: the GPU has no memory left"),
        "{}",
        words(&again)
    );
}
