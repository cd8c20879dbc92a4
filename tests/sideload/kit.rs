//! A box with an archive, and a training host that signs releases of the phantom adapter.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use scanside::adapter::Adapter;
use scanside::adapter::bundle::make_parity;
use scanside::adapter::trust::TrustStore;
use scanside::clock::Clock;
use scanside::dicom::net::archive::{Folder, open_to_all};
use scanside::dicom::net::scp::Scp;
use scanside::dicom::net::scu::{ScuOptions, Sent, Target, send};
use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::model::weights;
use scanside::pipeline::{Graphs, LoadedGraphs, PhantomSeries, Segmenter, write_dicom_series};
use scanside::store::Store;
use serde_json::Value;

use crate::bundle::Host;
use crate::serve::Running;

/// How long anything may take before the test counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(900);
/// Short stages whose figures decide nothing.
pub const SHORT: &str = "[sideload]\nshadow_series = 1\nshadow_least_dice = 0.0\nshadow_lost_score = 100\nprobation_series = 1\n\
                         probation_least_verdict = \"D\"\nmost_slowdown = 0\n";
/// No stages.
pub const NONE: &str = "[sideload]\nshadow_series = 0\nprobation_series = 0\n";

/// A number from the environment.
pub fn count(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|k| k.parse().ok()).unwrap_or(otherwise)
}

/// The training host: its keys, the graphs that its releases share.
pub struct Releases {
    pub host: Host,
    graphs: LoadedGraphs,
    made: Mutex<BTreeMap<u32, Vec<u8>>>,
}

pub fn releases() -> &'static Releases {
    static ONE: OnceLock<Releases> = OnceLock::new();
    ONE.get_or_init(|| {
        let base = weights::load_or_fetch(&mut |line| eprintln!("{line}")).unwrap();
        let graphs = Graphs::emit(&base, &phantom_adapter(), 0).unwrap().load_cpu(1).unwrap();
        Releases { host: Host::new(1), graphs, made: Mutex::default() }
    })
}

pub fn phantom_adapter() -> Adapter {
    Adapter::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/adapters/thigh-phantom.safetensors"))).unwrap()
}

impl Releases {
    /// The phantom adapter, a little different with every version.
    pub fn adapter(&self, version: u32) -> Adapter {
        let mut adapter = phantom_adapter();
        adapter.meta.version = version;
        for (name, tensor) in &mut adapter.tensors {
            if name.ends_with("lora_b") {
                tensor.data.iter_mut().for_each(|v| *v *= 1.0 + 0.02 * version as f32);
            }
        }
        adapter
    }

    /// One that sees its structures nowhere.
    pub fn blind(&self, version: u32) -> Adapter {
        let mut adapter = self.adapter(version);
        adapter.tensors.get_mut("classifier.fc2.bias").unwrap().data.fill(-1000.0);
        adapter
    }

    pub fn segmenter(&self, adapter: &Adapter) -> Segmenter {
        let networks = self.graphs.bind(adapter).unwrap();
        Segmenter::new(Box::new(networks), adapter.model_info().unwrap()).unwrap()
    }

    /// A signed release of an adapter with parity images made by it.
    pub fn sign(&self, adapter: Adapter, version: u32) -> Vec<u8> {
        let parity = make_parity(&self.segmenter(&adapter), &[1], 2).unwrap();
        let mut draft = self.host.draft(version);
        draft.evidence = crate::bundle::evidence(&adapter);
        (draft.adapter, draft.parity) = (adapter, parity);
        self.host.sign(&draft)
    }

    /// A good release.
    pub fn bundle(&self, version: u32) -> Vec<u8> {
        let mut made = self.made.lock().unwrap();
        made.entry(version).or_insert_with(|| self.sign(self.adapter(version), version)).clone()
    }
}

/// A box, its archive and its service.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub state: PathBuf,
    pub config: PathBuf,
    pub port: u16,
    _pacs: Arc<Folder>,
    service: Option<Running>,
    _scp: Scp,
    _runtime: tokio::runtime::Runtime,
}

impl Site {
    /// A box that trusts the training host and serves the configuration's adapter.
    pub fn start(more: &str) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        Site::start_in(dir, state, more)
    }

    pub fn start_in(dir: tempfile::TempDir, state: PathBuf, more: &str) -> Site {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let pacs = Arc::new(Folder::new(&dir.path().join("PACS")).unwrap());
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let scp = runtime.block_on(Scp::bind(loopback, open_to_all("PACS"), pacs.clone())).unwrap();
        let config = dir.path().join("box.toml");
        let text = format!(
            "[station]\nlisten = \"127.0.0.1:0\"\n[storage]\nstate_dir = {state:?}\nmin_free_mb = 1\n[[modality]]\n\
             ae_title = \"MR1\"\n[[archive]]\nae_title = \"PACS\"\naddress = \"{}\"\n[series]\nquiet_seconds = 1\n{more}",
            scp.local_addr()
        );
        std::fs::write(&config, text).unwrap();
        let mut site = Site { dir, state, config, port: 0, _pacs: pacs, service: None, _scp: scp, _runtime: runtime };
        site.run();
        let root = releases().host.root().clone();
        TrustStore::new(&site.state).init(root, Clock::System.now_ms()).unwrap();
        site
    }

    /// Starts the service and waits until it listens.
    pub fn run(&mut self) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("serve.log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_scanside"))
            .args(["serve", "-c"])
            .arg(&self.config)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        self.service = Some(Running(child));
        let line = BufReader::new(out).lines().next().and_then(Result::ok).unwrap_or_default();
        let port = line.strip_prefix("ready on 127.0.0.1:").and_then(|p| p.trim().parse().ok());
        self.port = port.unwrap_or_else(|| panic!("not ready: {line:?}\n{}", self.log()));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.service = None;
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("serve.log")).unwrap_or_default()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scanside"));
        command.arg(args[0]).arg("-c").arg(&self.config).args(&args[1..]);
        command
    }

    pub fn scanside(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a command that succeeds prints.
    pub fn said(&self, args: &[&str]) -> String {
        let out = self.scanside(args);
        let all = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{args:?}: {all}\n{}", self.log());
        all
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&String::from_utf8(self.scanside(&["status", "--json"]).stdout).unwrap()).unwrap()
    }

    /// `scanside adapters --json` and its exit code.
    pub fn adapters(&self) -> (Value, i32) {
        let out = self.scanside(&["adapters", "--json"]);
        (serde_json::from_slice(&out.stdout).unwrap(), out.status.code().unwrap())
    }

    /// State of the newest bundle.
    pub fn newest(&self) -> String {
        let (a, _) = self.adapters();
        a["bundles"][0]["state"].as_str().unwrap_or("none").to_string()
    }

    /// The service's rows, read beside it.
    pub fn store(&self) -> Store {
        Store::open_read_only(&self.state, Clock::System).unwrap()
    }

    /// A file with a bundle's bytes.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn sideload(&self, path: &Path) -> Output {
        self.scanside(&["sideload", path.to_str().unwrap()])
    }

    /// A good release, handed over and past its parity check.
    pub fn take(&self, version: u32) {
        let path = self.file(&format!("thigh-{version}.bundle"), &releases().bundle(version));
        self.said(&["sideload", path.to_str().unwrap()]);
    }

    /// Waits until something holds.
    pub fn until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(t) = look() {
                return t;
            }
            assert!(start.elapsed() < PATIENCE, "never: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends a small phantom; every object must be taken.
    pub fn send(&self, seed: u64) -> PhantomSeries {
        let series = phantom_series(&self.dir.path().join(format!("s{seed}")), seed);
        for outcome in send(&series.files, &self.target(), &ScuOptions::default()) {
            assert!(matches!(outcome.sent, Sent::Stored(0)), "{outcome:?}");
        }
        series
    }

    pub fn target(&self) -> Target {
        Target { ae_title: "SCANSIDE".into(), address: format!("127.0.0.1:{}", self.port), calling_ae: "MR1".into() }
    }

    /// Sends a small phantom and waits for its result: the job's number and summary.
    pub fn serve(&self, seed: u64) -> (i64, Value) {
        let series = self.send(seed);
        self.until("a result", || {
            let status = self.status();
            let jobs = status["jobs"].as_array()?;
            let job = jobs.iter().find(|j| j["series_uid"] == series.series_uid.as_str() && j["state"] != "pending")?;
            assert_eq!(job["state"], "done", "{job:#}\n{}", self.log());
            Some((job["id"].as_i64()?, serde_json::from_str(job["summary"].as_str()?).ok()?))
        })
    }

    /// Files of bundles on the box.
    pub fn kept(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.state.join("bundles"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n != "lock")
            .collect();
        names.sort();
        names
    }
}

pub fn phantom_options(seed: u64) -> PhantomOptions {
    PhantomOptions { seed, dims: [256, 128, 4], spacing: [1.953_125, 1.953_125, 18.0], ..PhantomOptions::default() }
}

pub fn phantom_series(dir: &Path, seed: u64) -> PhantomSeries {
    let options = phantom_options(seed);
    write_dicom_series(dir, &Phantom::new(&options), &options).unwrap()
}
