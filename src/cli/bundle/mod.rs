//! `scanside bundle`: makes, signs, shows, compares and verifies bundles.

#[cfg(feature = "train")]
mod make;
mod show;
#[cfg(feature = "train")]
mod sign;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::ConfigArgs;
use crate::adapter::Refused;
use crate::adapter::bundle::{BoxFacts, Bundle, Purpose, Unverified, differences, read_file};
use crate::adapter::trust::TrustStore;
use crate::clock::Clock;
use crate::model::weights;

#[derive(Args, Debug)]
pub(super) struct BundleArgs {
    #[command(subcommand)]
    command: BundleCommand,
}

#[derive(Subcommand, Debug)]
enum BundleCommand {
    /// Put an adapter, its evidence and parity images into one file, unsigned
    #[cfg(feature = "train")]
    Make(Box<make::MakeArgs>),
    /// Add a signature
    #[cfg(feature = "train")]
    Sign(sign::SignArgs),
    /// Show what a person needs to know before trusting it: who signed, what it holds, evidence, expiry
    Inspect(show::InspectArgs),
    /// Show what differs between two bundles
    Diff(DiffArgs),
    /// Hold a bundle against this box: what it trusts, its clock, its versions. Installs nothing; each refusal has its exit code
    Verify(VerifyArgs),
}

#[derive(Args, Debug)]
struct DiffArgs {
    /// The one before
    before: PathBuf,
    /// The one after
    after: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct VerifyArgs {
    /// The bundle
    file: PathBuf,
    /// As JSON, on standard output, refused or not
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &BundleArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        #[cfg(feature = "train")]
        BundleCommand::Make(args) => make::run(args),
        #[cfg(feature = "train")]
        BundleCommand::Sign(args) => sign::run(args),
        BundleCommand::Inspect(args) => show::run(args),
        BundleCommand::Diff(args) => diff(args),
        BundleCommand::Verify(args) => verify(args),
    }
}

/// A bundle's parts without any trust.
fn open_unverified(path: &Path) -> Result<Unverified, Refused> {
    Unverified::parse(read_file(path)?)
}

fn diff(args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let open = |p: &Path| open_unverified(p).with_context(|| p.display().to_string());
    let changes = differences(&open(&args.before)?, &open(&args.after)?)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&changes)?);
    } else {
        show::print_changes(&changes);
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?.config;
    let store = TrustStore::new(&config.storage.state_dir);
    // Without trust nothing else need be read.
    let base = store.load().map_err(anyhow::Error::from).and_then(|_| {
        let path = &config.model.weights;
        let path = if path.as_os_str().is_empty() { weights::cached_path()? } else { path.clone() };
        Ok(weights::load(&path)?)
    });
    let outcome = base.and_then(|base| {
        let facts = BoxFacts::here(base.sha256(), &config.station.site);
        Ok(Bundle::open(&args.file, &store, &Clock::System, &facts, Purpose::Install)?)
    });
    match outcome {
        Ok(bundle) => {
            let m = bundle.manifest();
            if args.json {
                let value = serde_json::json!({ "accepted": true, "id": bundle.id(), "name": bundle.name(),
                    "version": bundle.version(), "signed_by": bundle.signers(), "expires": m.expires });
                println!("{value:#}");
            } else {
                println!("{} {} may be installed on this box", bundle.name(), bundle.version());
                println!("signed by {}; expires {}", bundle.signers().join(", "), m.expires);
                println!("next: `scanside sideload` stages it; its parity images run there");
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => match error.downcast_ref::<Refused>() {
            Some(refused) if args.json => {
                let value = serde_json::json!({ "accepted": false, "reason": refused.reason,
                    "exit_code": refused.reason.exit_code(), "sentence": refused.sentence, "remedy": refused.remedy });
                println!("{value:#}");
                Ok(ExitCode::from(refused.reason.exit_code()))
            }
            _ => Err(error),
        },
    }
}
