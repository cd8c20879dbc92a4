//! `scanside adapters`: which adapter serves, how a new one gets on, and going back.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::{ConfigArgs, no_state};
use crate::clock::Clock;
use crate::daemon::sideload::{self, Adapters, Here};
use crate::store::{Store, bundles};

/// Exit code where the newest bundle was refused, or taken back by itself.
const ALERT: u8 = 3;
/// The longest that going back waits for the service.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
pub(super) struct AdaptersArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand, Debug)]
enum What {
    /// What serves, what is on its way, what served when (the same as no subcommand)
    List,
    /// Serve what served before, or a kept version, from the next series on
    Rollback {
        /// VERSION or NAME:VERSION; default: what served before
        version: Option<String>,
        /// The adapter that the configuration names
        #[arg(long, conflicts_with = "version")]
        factory: bool,
        /// Who decides, for the record
        #[arg(long, default_value = "")]
        by: String,
    },
    /// Write what this box learnt of its bundles, without patient data, for the training host
    Export {
        /// The file; it must not be there
        file: PathBuf,
    },
}

pub(super) fn run(args: &AdaptersArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?.config;
    let dir = &config.storage.state_dir;
    match &args.what {
        None | Some(What::List) => {
            let store = Store::open_read_only(dir, Clock::System).with_context(|| no_state(dir))?;
            let adapters = Adapters::read(&store, &config.sideload)?;
            if args.json {
                println!("{}", serde_json::to_string_pretty(&adapters)?);
            } else {
                print!("{}", adapters.text());
            }
            Ok(if adapters.alert.is_some() { ExitCode::from(ALERT) } else { ExitCode::SUCCESS })
        }
        Some(What::Rollback { version, factory, by }) => {
            let store = Store::open_beside(dir, Clock::System).with_context(|| no_state(dir))?;
            let to = if *factory { Some(None) } else { version.as_deref().map(Some) };
            let by = by.trim();
            let why = if by.is_empty() { String::new() } else { format!(" ({by})") };
            let clock = Clock::System;
            let started = Instant::now();
            let set = sideload::roll_back_to(Here { store: &store, clock: &clock, config: &config }, to, &why)?;
            let set = match set {
                Ok(set) => set,
                Err(sentence) => bail!("{sentence}"),
            };
            if !Store::in_use(dir) {
                println!("set; the service serves it from its next start on");
                return Ok(ExitCode::SUCCESS);
            }
            loop {
                let now = store.with_conn(|c| bundles::serving(c))?.context("nothing is to serve")?;
                if now.id != set.id {
                    bail!("{}; see `scanside adapters`", now.reason);
                }
                if now.taken_ms.is_some() {
                    println!(
                        "{} serves from the next series on ({:.2} s)",
                        now.adapter,
                        started.elapsed().as_secs_f64()
                    );
                    return Ok(ExitCode::SUCCESS);
                }
                if started.elapsed() > PATIENCE {
                    bail!(
                        "it is set, and the service has not taken it within {} s; see its journal",
                        PATIENCE.as_secs()
                    );
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Some(What::Export { file }) => {
            let store = Store::open_read_only(dir, Clock::System).with_context(|| no_state(dir))?;
            let feedback = sideload::export(&store)?;
            write_new(file, &(serde_json::to_string_pretty(&feedback)? + "\n"))?;
            let cases: usize =
                feedback.adapters.iter().map(|a| a.shadow.len() + a.probation.len() + a.reviews.len()).sum();
            println!(
                "{}: {} adapters, {cases} cases and reviews, no patient data",
                file.display(),
                feedback.adapters.len()
            );
            println!("  on the training host: scanside evaluate --feedback {}", file.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("cannot write {}; name a file that is not there", path.display()))?;
    // A stick is pulled out as soon as the command is back.
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(|| path.display().to_string())
}
