//! `scanside segex`: grades segmentations, calibrates and validates the grades, and compares observers.

#[cfg(feature = "train")]
mod study;

use std::process::ExitCode;

use clap::{Args, Subcommand};

#[derive(Args, Debug)]
pub(super) struct SegexArgs {
    #[command(subcommand)]
    command: Job,
}

#[derive(Subcommand, Debug)]
enum Job {
    /// Calibrate an adapter's grades on labelled slices and synthetic damage; writes a calibrated copy of the adapter
    #[cfg(feature = "train")]
    Calibrate(study::CalibrateArgs),
    /// Hold grades without ground truth against grades with it, on subjects that were never trained on
    #[cfg(feature = "train")]
    Validate(study::ValidateArgs),
}

pub(super) fn run(args: &SegexArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        #[cfg(feature = "train")]
        Job::Calibrate(args) => study::calibrate(args),
        #[cfg(feature = "train")]
        Job::Validate(args) => study::validate(args),
    }
}
