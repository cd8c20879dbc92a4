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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        run(&ManualArgs { out: dir.path().to_path_buf() }).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join("man/man1").join(format!("{name}.1")));
        assert!(page("scanside").unwrap().contains("scanside\\-serve(1)"));
        for command in Cli::command().get_subcommands() {
            assert_eq!(page(&format!("scanside-{}", command.get_name())).is_ok(), !command.is_hide_set());
        }
        assert!(page("scanside-weights-fetch").unwrap().contains("checkpoint"));
        let bash = std::fs::read_to_string(dir.path().join("bash-completion/completions/scanside")).unwrap();
        assert!(bash.contains("--config"));
    }
}
