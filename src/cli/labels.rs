//! `scanside labels`: annotations before they are trained on.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::train::task_of;
use crate::terms::Task;
use crate::train::{Finding, Manifest, Severity, check};

#[derive(Args, Debug)]
pub(super) struct LabelsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Check grid, names, sides, listed slices, overlaps, holes and islands; exit code 1 on errors
    Check(CheckArgs),
}

#[derive(Args, Debug)]
struct CheckArgs {
    /// Manifest of the annotations
    #[arg(long, short)]
    manifest: PathBuf,
    /// Structures, e.g. VL,VM; default: the manifest's, else all that its label files name
    #[arg(long, value_delimiter = ',')]
    structures: Vec<String>,
}

pub(super) fn run(args: &LabelsArgs) -> anyhow::Result<ExitCode> {
    let What::Check(args) = &args.what;
    let manifest = Manifest::load(&args.manifest)?;
    let task = task_of(&args.structures, &manifest, &args.manifest)?;
    let findings = check(&manifest, &task);
    for f in &findings {
        println!("{f}");
    }
    let errors = errors(&findings);
    let keys: Vec<&str> = task.structures.iter().map(|s| s.key.as_str()).collect();
    let volumes = manifest.volume.iter().filter(|e| e.labels.is_some()).count();
    println!(
        "{volumes} volumes checked for {}: {errors} errors, {} warnings{}",
        keys.join(", "),
        findings.len() - errors,
        if errors == 0 { "; ready to train" } else { "" }
    );
    Ok(if errors > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn errors(findings: &[Finding]) -> usize {
    findings.iter().filter(|f| f.severity == Severity::Error).count()
}

/// Prints what is wrong with the annotations of a manifest; errors end the command.
///
/// # Errors
/// One message that counts them.
pub(super) fn refuse_errors(manifest: &Manifest, task: &Task) -> anyhow::Result<()> {
    let findings = check(manifest, task);
    for f in &findings {
        eprintln!("{f}");
    }
    match errors(&findings) {
        0 => Ok(()),
        n => bail!(
            "{n} errors in the annotations, listed above: nothing was trained; `scanside labels check` looks again"
        ),
    }
}
