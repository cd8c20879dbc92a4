//! `scanside segex read-form` and `scanside segex agree`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::grade::{folder_of, save};
use crate::segex::observe::{ReportFile, read_form};
use crate::segex::{agreement, markdown};

#[derive(Args, Debug)]
pub(super) struct ReadFormArgs {
    /// The filled form
    form: PathBuf,
    /// Where to write the report (JSON); default: beside the form
    #[arg(long, short)]
    out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct AgreeArgs {
    /// Report files of two observers or more, over as many cases as there are
    #[arg(required = true, value_name = "JSON")]
    reports: Vec<PathBuf>,
    /// Write PATH.md and PATH.json
    #[arg(long, short)]
    out: Option<PathBuf>,
    /// Decides the resampling of cases
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) fn read(args: &ReadFormArgs) -> anyhow::Result<ExitCode> {
    let file = read_form(&args.form)?;
    let out = args.out.clone().unwrap_or_else(|| args.form.with_extension("json"));
    folder_of(&out)?;
    save(&out, &(serde_json::to_string_pretty(&file)? + "\n"))?;
    for r in &file.reports {
        println!("{}", markdown(r));
    }
    println!("wrote {}", out.display());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn agree(args: &AgreeArgs) -> anyhow::Result<ExitCode> {
    let files = args.reports.iter().map(|p| ReportFile::load(p)).collect::<Result<Vec<_>, _>>()?;
    let found = agreement(&files, args.seed)?;
    println!("{}", found.markdown());
    if let Some(out) = &args.out {
        folder_of(out)?;
        save(&out.with_added_extension("md"), &found.markdown())?;
        save(&out.with_added_extension("json"), &(serde_json::to_string_pretty(&found)? + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
