//! `scanside sideload`: hands an adapter bundle to this box, from a file or a mounted stick.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use super::{ConfigArgs, no_state};
use crate::adapter::{Reason, Refused};
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::Model;
use crate::daemon::sideload::{self, Candidates, Here, Received};
use crate::store::bundles::{self, Arrival, Bundle, State};
use crate::store::{Store, StoreError};

/// How often the service's progress is looked at.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
pub(super) struct SideloadArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The bundle
    #[arg(required_unless_present = "drop", conflicts_with = "drop")]
    file: Option<PathBuf>,
    /// Take the bundles (*.bundle) of a mounted stick; what this box has seen before is left alone. Without DIR: empty the box's own
    /// drop folder, `drop` in the state directory
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    drop: Option<Option<PathBuf>>,
    /// The longest to wait for the parity check of a running service; seconds
    #[arg(long, default_value_t = 600)]
    wait: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What became of one file.
#[derive(Serialize)]
struct Outcome {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<Bundle>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Refused>,
    /// It was committed here and taken back since; only its file is whole again.
    file_again: bool,
}

pub(super) fn run(args: &SideloadArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?.config;
    let dir = &config.storage.state_dir;
    if !Store::is_in(dir) {
        bail!(no_state(dir));
    }
    let clock = Clock::System;
    // Whoever holds the state directory moves bundles on: this command, unless the service runs.
    let (store, service) = match Store::open(dir, clock.clone()) {
        Ok(store) => (store, false),
        Err(StoreError::Locked(_)) => (Store::open_beside(dir, clock.clone())?, true),
        Err(e) => return Err(e.into()),
    };
    let here = Here { store: &store, clock: &clock, config: &config };
    let received = match (&args.drop, &args.file) {
        (Some(Some(folder)), _) => sideload::drop_in(here, folder, false)?,
        (Some(None), _) => sideload::drop_in(here, &dir.join("drop"), true)?,
        (None, Some(file)) => vec![Received { from: file.clone(), outcome: sideload::receive(here, file) }],
        (None, None) => Vec::new(),
    };
    let rows = received.iter().filter_map(|r| r.outcome.as_ref().ok()).map(sideload::row);
    let waiting: Vec<i64> = rows.filter(|b| b.state.under_way()).map(|b| b.id).collect();
    if !waiting.is_empty() {
        let moved = if service { wait(&store, &waiting, Duration::from_secs(args.wait)) } else { work(here, &config) };
        sideload::give_state_to_owner(dir);
        moved?;
    }
    let mut outcomes = Vec::new();
    for r in received {
        let file = r.from.display().to_string();
        outcomes.push(match r.outcome {
            Ok(arrival) => {
                let known = matches!(arrival, Arrival::Known(_)) && args.drop.is_some();
                let came = sideload::row(&arrival);
                let file_again = !known && matches!(came.state, State::RolledBack { .. });
                let bundle = store.with_conn(|c| bundles::get(c, came.id))?;
                match &bundle {
                    _ if args.json => {}
                    Some(b) if file_again => {
                        println!("{file}: {}: its file is whole again; `{}` lets it serve", b.title(), b.rollback());
                    }
                    bundle => say(&file, bundle.as_ref(), known, service),
                }
                Outcome { file, bundle: bundle.filter(|_| !known), refused: None, file_again }
            }
            Err(refused) => {
                if !args.json {
                    eprintln!("scanside: {file}: {refused}");
                }
                Outcome { file, bundle: None, refused: Some(refused), file_again: false }
            }
        });
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
    } else if outcomes.is_empty() {
        let folder = args.drop.as_ref().and_then(Option::as_deref).unwrap_or(std::path::Path::new("the drop folder"));
        println!("no bundle in {}", folder.display());
    }
    Ok(outcomes.iter().map(code).find(|c| *c != 0).map_or(ExitCode::SUCCESS, ExitCode::from))
}

/// The exit code of one outcome: that of the refusal, 1 for another end, 0.
fn code(o: &Outcome) -> u8 {
    if let Some(r) = &o.refused {
        return r.reason.exit_code();
    }
    match &o.bundle {
        Some(b) if !o.file_again && matches!(b.state, State::Refused | State::RolledBack { .. }) => {
            Reason::ALL.iter().find(|r| r.name() == b.code).map_or(1, |r| r.exit_code())
        }
        _ => 0,
    }
}

fn say(file: &str, bundle: Option<&Bundle>, known: bool, service: bool) {
    let Some(b) = bundle else { return };
    let state = match b.state {
        _ if known => format!("was here before: {}", b.state.word()),
        State::Refused => {
            eprintln!("scanside: {}: {} [{}]; {}", b.title(), b.sentence, b.code, b.remedy);
            return;
        }
        State::ParityChecked | State::Staged { .. } | State::Received { .. } if !service => {
            format!("{}; the service goes on with it at its next start (systemctl start scanside)", b.state.word())
        }
        State::Received { .. } | State::Staged { .. } => format!("{}; the service goes on with it", b.state.word()),
        State::Verified => "verified; it waits until the candidate before it has come to its end".into(),
        state => state.word().to_string(),
    };
    let signer = if b.signer.is_empty() { String::new() } else { format!(", signed by {}", b.signer) };
    println!("{file}: {}{signer}: {state}", b.title());
    println!("  `scanside adapters` shows how it goes on");
}

/// Waits for the running service.
fn wait(store: &Store, ids: &[i64], at_most: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let rows = store.with_conn(|c| ids.iter().map(|id| bundles::get(c, *id)).collect::<Result<Vec<_>, _>>())?;
        let probation =
            store.with_conn(|c| bundles::under_way(c))?.iter().any(|b| matches!(b.state, State::Probation { .. }));
        let moving = |s: State| match s {
            State::Received { .. } | State::Staged { .. } => true,
            State::Verified => !probation,
            _ => false,
        };
        if !rows.iter().flatten().any(|b| moving(b.state)) || start.elapsed() > at_most {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// Does what the service would do, as far as it goes without series.
fn work(here: Here<'_>, config: &Config) -> anyhow::Result<()> {
    let model = Model::load(config)
        .context("the bundle is kept and waits; what it must be held against cannot be loaded here")?;
    let candidates = Candidates { here, model: &model, progress: &|_| {} };
    while candidates.step().context("the bundle is kept and waits for the service's next start")? {}
    Ok(())
}
