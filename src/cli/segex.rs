//! `scanside segex`: grades segmentations, calibrates and validates the grades, and compares observers.

mod grade;
mod observers;
mod second;
#[cfg(feature = "train")]
mod study;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

/// Grade a segmentation from elsewhere beside its series: scanside segex --series DIR --seg FILE
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct SegexArgs {
    #[command(subcommand)]
    job: Option<Job>,
    #[command(flatten)]
    subject: Option<grade::Subject>,
    #[command(flatten)]
    options: grade::GradeOptions,
}

#[derive(Subcommand, Debug)]
enum Job {
    /// Calibrate an adapter's grades on labelled slices and synthetic damage; writes a calibrated copy of the adapter
    #[cfg(feature = "train")]
    Calibrate(study::CalibrateArgs),
    /// Hold grades without ground truth against grades with it, on subjects that were never trained on
    #[cfg(feature = "train")]
    Validate(study::ValidateArgs),
    /// Write a form for a person to grade a segmentation, with a picture of each structure
    Form(grade::FormArgs),
    /// Take a filled form back as a report
    ReadForm(observers::ReadFormArgs),
    /// Agreement of observers over report files: weighted kappa and ICC(2,1)
    Agree(observers::AgreeArgs),
}

pub(super) fn run(args: &SegexArgs) -> anyhow::Result<ExitCode> {
    match &args.job {
        #[cfg(feature = "train")]
        Some(Job::Calibrate(args)) => study::calibrate(args),
        #[cfg(feature = "train")]
        Some(Job::Validate(args)) => study::validate(args),
        Some(Job::Form(args)) => grade::form(args),
        Some(Job::ReadForm(args)) => observers::read(args),
        Some(Job::Agree(args)) => observers::agree(args),
        None => {
            let subject = args.subject.as_ref();
            grade::run(subject.context("give --series and --seg, or one of the commands of --help")?, &args.options)
        }
    }
}
