//! The program as a service: `scanside serve` as a child on loopback, seen through `scanside status --json`.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A child that ends with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port of loopback that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// `scanside serve` with its state in a folder of the test.
pub struct Served {
    child: Running,
    config: PathBuf,
    /// State directory.
    pub state: PathBuf,
    /// Where it listens.
    pub port: u16,
}

impl Served {
    /// Starts the service: modality `MR1`, one archive at `archive`, two seconds of quiet. Returns once it listens.
    pub fn start(dir: &Path, archive_ae: &str, archive: &str) -> Served {
        Served::start_with(dir, archive_ae, archive, "", &[])
    }

    /// The same with further settings and environment.
    pub fn start_with(dir: &Path, archive_ae: &str, archive: &str, settings: &str, env: &[(String, String)]) -> Served {
        let state = dir.join("state");
        let config = dir.join("scanside.toml");
        std::fs::write(
            &config,
            format!(
                "[station]\nlisten = \"127.0.0.1:0\"\n[storage]\nstate_dir = {state:?}\nmin_free_mb = 64\n\
                 [[modality]]\nae_title = \"MR1\"\n[[archive]]\nae_title = \"{archive_ae}\"\naddress = \"{archive}\"\n\
                 [series]\nquiet_seconds = 2\n{settings}"
            ),
        )
        .unwrap();
        let log = std::fs::File::create(dir.join("serve.log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_scanside"))
            .args(["serve", "-c"])
            .arg(&config)
            .envs(env.iter().map(|(k, v)| (k, v)))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let child = Running(child);
        let line = BufReader::new(out).lines().next().and_then(Result::ok).unwrap_or_default();
        let port = line.strip_prefix("ready on 127.0.0.1:").and_then(|p| p.trim().parse().ok());
        let Some(port) = port else {
            panic!("not ready: {line:?}\n{}", std::fs::read_to_string(dir.join("serve.log")).unwrap_or_default())
        };
        Served { child, config, state, port }
    }

    /// Ends it as systemd does, by SIGTERM, and returns its exit code.
    pub fn stop(mut self) -> Option<i32> {
        let told = Command::new("kill").arg(self.child.0.id().to_string()).status().unwrap();
        assert!(told.success());
        self.child.0.wait().unwrap().code()
    }

    /// What `scanside status --json` prints.
    pub fn status(&self) -> Value {
        let out = Command::new(env!("CARGO_BIN_EXE_scanside"))
            .args(["status", "--json", "-c"])
            .arg(&self.config)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// Waits until the first job is over, wherever its objects are, and returns it.
    pub fn wait_for_job(&self) -> Value {
        let start = Instant::now();
        loop {
            let status = self.status();
            let job = status["jobs"].as_array().unwrap().iter().find(|j| j["state"] != "pending");
            if let Some(job) = job {
                return job.clone();
            }
            assert!(start.elapsed() < Duration::from_secs(600), "no end: {status:#}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until a job of the series has ended and all its objects were sent, and returns that job.
    pub fn wait_for(&self, series_uid: &str) -> Value {
        let start = Instant::now();
        loop {
            let status = self.status();
            let job = status["jobs"].as_array().unwrap().iter().find(|j| j["series_uid"] == series_uid);
            if let Some(job) = job
                && job["state"] != "pending"
                && job["deliveries"].as_array().unwrap().iter().all(|d| d["state"] == "sent")
            {
                return job.clone();
            }
            // Only a hang ends here: the machine may be slow.
            assert!(start.elapsed() < Duration::from_secs(600), "no end: {status:#}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
