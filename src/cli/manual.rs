//! `scanside manual` (hidden): man pages and shell completions for the package, from the same definitions that parse the command line.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

#[derive(Args, Debug)]
pub(super) struct ManualArgs {
    /// Folder to write, laid out as installed under usr/share
    #[arg(long, short)]
    out: PathBuf,
}

pub(super) fn run(args: &ManualArgs) -> anyhow::Result<ExitCode> {
    let man = args.out.join("man/man1");
    std::fs::create_dir_all(&man).with_context(|| man.display().to_string())?;
    // One page for each command, hidden ones left out: scanside-weights-fetch.1.
    clap_mangen::generate_to(Cli::command(), &man).with_context(|| man.display().to_string())?;
    for (shell, folder, name) in [
        (Shell::Bash, "bash-completion/completions", "scanside"),
        (Shell::Zsh, "zsh/vendor-completions", "_scanside"),
        (Shell::Fish, "fish/vendor_completions.d", "scanside.fish"),
    ] {
        let folder = args.out.join(folder);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let path = folder.join(name);
        let mut file = File::create(&path).with_context(|| path.display().to_string())?;
        clap_complete::generate(shell, &mut Cli::command(), "scanside", &mut file);
    }
    Ok(ExitCode::SUCCESS)
}
