//! `scanside retention`: what the daemon does every ten minutes, for a box whose daemon is stopped: patients' images do not stay because
//! a service does not run.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::ConfigArgs;
use crate::clock::Clock;
use crate::daemon::retention;
use crate::store::Store;

#[derive(Args, Debug)]
pub(super) struct RetentionArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only say how many would go
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &RetentionArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?.config;
    let storage = &config.storage;
    if !Store::is_in(&storage.state_dir) {
        println!("there is no state in {}: nothing was ever received", storage.state_dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    let store = Store::open_beside(&storage.state_dir, Clock::System)
        .with_context(|| format!("the state in {} cannot be changed", storage.state_dir.display()))?;
    let mut count = 0;
    if args.dry_run {
        count = retention::may_go(&store, storage.retention_hours)?;
    } else {
        loop {
            match retention::sweep(&store, storage.retention_hours)? {
                0 => break,
                n => count += n,
            }
        }
    }
    println!(
        "{count} originals {} whose results were delivered more than {} hours ago",
        if args.dry_run { "would be removed" } else { "removed" },
        storage.retention_hours
    );
    Ok(ExitCode::SUCCESS)
}
