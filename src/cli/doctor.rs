//! `scanside doctor`: what is ready, what is not, and the next command.

use std::net::TcpListener;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::ConfigArgs;
use crate::clock::Clock;
use crate::config::{Config, EngineKind};
use crate::daemon::Model;
use crate::daemon::sideload::{Here, Models};
use crate::dicom::net::scu::{ScuOptions, Target, echo};
use crate::store::bundles;
use crate::store::{Store, StoreError};

#[derive(Args, Debug)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// One check.
#[derive(Serialize)]
struct Check {
    group: &'static str,
    ok: bool,
    what: String,
    /// The cause and the exact next step.
    remedy: String,
}

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let checks = match args.config.load() {
        Ok(effective) => look(&effective.config),
        Err(e) => vec![failed("configuration", "readable and valid", e.to_string())],
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        let mut group = "";
        for c in &checks {
            if c.group != group {
                group = c.group;
                println!("{group}");
            }
            println!("  {} {}", if c.ok { "[ OK ]" } else { "[FAIL]" }, c.what);
            if !c.ok {
                println!("         {}", c.remedy);
            }
        }
    }
    Ok(if checks.iter().all(|c| c.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn passed(group: &'static str, what: impl Into<String>) -> Check {
    Check { group, ok: true, what: what.into(), remedy: String::new() }
}

fn failed(group: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { group, ok: false, what: what.into(), remedy: remedy.into() }
}

fn look(config: &Config) -> Vec<Check> {
    let mut checks = vec![passed("configuration", "readable and valid")];
    checks.push(if config.modality.is_empty() {
        failed("configuration", "someone may send", "list the scanner under [[modality]] with its ae_title")
    } else {
        passed("configuration", format!("{} sender(s) may send", config.modality.len()))
    });
    checks.push(if config.archive.is_empty() {
        failed("configuration", "results have a destination", "list the archive under [[archive]]")
    } else {
        passed("configuration", format!("{} archive(s)", config.archive.len()))
    });
    let dir = &config.storage.state_dir;
    let probe = std::fs::create_dir_all(dir).and_then(|()| tempfile::tempfile_in(dir).map(|_| ()));
    checks.push(match probe {
        Ok(()) => passed("storage", format!("{} is writable", dir.display())),
        Err(e) => failed(
            "storage",
            format!("{} is writable", dir.display()),
            format!("{e}; fix owner and mode, or set storage.state_dir"),
        ),
    });
    if let Ok(s) = rustix::fs::statvfs(dir) {
        let free = (s.f_bavail * s.f_frsize) >> 20;
        let what = format!("{free} MiB free, {} needed", config.storage.min_free_mb);
        checks.push(if free >= config.storage.min_free_mb {
            passed("storage", what)
        } else {
            failed("storage", what, "free space on this disk; until then every object is answered 0xA700")
        });
    }
    let listen = config.station.listen;
    checks.push(match TcpListener::bind(listen) {
        Ok(_) => passed("network", format!("{listen} can be listened on")),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
            let own = Target {
                ae_title: config.station.ae_title.clone(),
                address: listen.to_string(),
                calling_ae: config.modality.first().map_or("DOCTOR", |m| m.ae_title.as_str()).into(),
            };
            match echo(&own, &quick()) {
                Ok(()) => passed("network", format!("{listen} answers C-ECHO: the daemon runs")),
                Err(e) => failed(
                    "network",
                    format!("{listen} is free or ours"),
                    format!("another program has the port ({e}); stop it, or set station.listen"),
                ),
            }
        }
        Err(e) => failed("network", format!("{listen} can be listened on"), format!("{e}; check station.listen")),
    });
    for a in &config.archive {
        let target = Target {
            ae_title: a.ae_title.clone(),
            address: a.address.clone(),
            calling_ae: config.station.ae_title.clone(),
        };
        let what = format!("archive {} at {} answers C-ECHO", a.ae_title, a.address);
        checks.push(match echo(&target, &quick()) {
            Ok(()) => passed("network", what),
            Err(e) => failed("network", what, e.to_string()),
        });
    }
    let model = Model::load(config).map_err(|e| e.to_string()).and_then(|factory| serving(config, factory));
    checks.extend(model.as_ref().ok().map(|m| engine(config, m)));
    checks.push(match model {
        Ok(m) if m.phantom_only => failed(
            "model",
            "an adapter for patients",
            "the phantom adapter is for trying out only; train one with `scanside train` and set model.adapter",
        ),
        Ok(m) => passed("model", m.describe()),
        Err(remedy) => failed("model", "weights and adapter load", remedy),
    });
    checks
}

/// The model that serves: that of a bundle where one does, else the configuration's.
fn serving(config: &Config, factory: Model) -> Result<Model, String> {
    let dir = &config.storage.state_dir;
    if !Store::is_in(dir) {
        return Ok(factory);
    }
    let clock = Clock::System;
    let unread = |e: StoreError| format!("what serves cannot be read: {e}; run this as the service's user or as root");
    let store = Store::open_read_only(dir, clock.clone()).map_err(unread)?;
    let Some(row) = store.with_conn(|c| bundles::serving_bundle(c)).map_err(unread)? else { return Ok(factory) };
    let here = Here { store: &store, clock: &clock, config };
    Models::new(factory)
        .load(here, &row)
        .map_err(|why| format!("bundle {}: {} [{}]; {}", row.title(), why.sentence, why.code, why.remedy))
}

/// The engine that would serve. On a box without a GPU the CPU engine is no failure unless TensorRT was asked for.
fn engine(config: &Config, model: &Model) -> Check {
    let report = model.engine();
    match report.refusal {
        Some(r) if config.engine.kind == EngineKind::Tensorrt => failed(
            "engine",
            format!("TensorRT serves (the CPU engine would: {})", report.engine.version),
            format!("{} [{}]; {}", r.sentence, r.code, r.remedy),
        ),
        _ => passed("engine", report.describe()),
    }
}

fn quick() -> ScuOptions {
    ScuOptions { connect: Duration::from_secs(3), answer: Duration::from_secs(5), ..ScuOptions::default() }
}
