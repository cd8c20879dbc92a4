//! `scanside status`: one screen of what came, what became of it, what waits.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::{ConfigArgs, no_state};
use crate::clock::Clock;
use crate::daemon::status::{self, SHOWN, Status};
use crate::store::Store;

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// One line, as systemctl status shows it
    #[arg(long, conflicts_with = "json")]
    line: bool,
    /// How many of the newest jobs; older ones that wait or failed are shown beside them
    #[arg(long, value_name = "N", default_value_t = SHOWN as u64, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    jobs: u64,
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?.config;
    let dir = &config.storage.state_dir;
    let store = Store::open_read_only(dir, Clock::System).with_context(|| no_state(dir))?;
    if args.line {
        println!("{}", status::line(&store)?);
        return Ok(ExitCode::SUCCESS);
    }
    let status = Status::read(&store, &config, args.jobs as usize)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", status.text());
    }
    Ok(ExitCode::SUCCESS)
}
