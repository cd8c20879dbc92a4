//! `scanside bench`: this project beside its peers, in one run, as ratios.

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Which benchmark.
#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: Bench,
}

#[derive(Subcommand, Debug)]
enum Bench {
    /// One training step, beside PyTorch's on the same architecture
    #[cfg(feature = "train")]
    TrainStep(super::bench_train::TrainStepArgs),
}

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        #[cfg(feature = "train")]
        Bench::TrainStep(ref args) => super::bench_train::run(args),
    }
}
