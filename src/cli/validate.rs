//! `scanside validate`: is this configuration usable?

use std::process::ExitCode;

use clap::Args;

use super::ConfigArgs;

#[derive(Args, Debug)]
pub(super) struct ValidateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print every value in force and where it came from
    #[arg(long)]
    print: bool,
}

pub(super) fn run(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let effective = args.config.load()?;
    if args.print {
        print!("{}", effective.describe());
    }
    let config = &effective.config;
    if config.modality.is_empty() {
        println!("note: no [[modality]] is listed, so nobody may send");
    }
    if config.archive.is_empty() {
        println!("note: no [[archive]] is listed, so results stay in {}", config.storage.state_dir.display());
    }
    println!("configuration is valid");
    Ok(ExitCode::SUCCESS)
}
