//! `scanside again`: a series that has its result, or ended without one, is segmented once more from what the box still has.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::{ConfigArgs, JobsArgs, no_state};
use crate::clock::Clock;
use crate::store::{Store, queue};

#[derive(Args, Debug)]
pub(super) struct AgainArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    jobs: JobsArgs,
}

pub(super) fn run(args: &AgainArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?.config;
    let dir = &config.storage.state_dir;
    let store = Store::open_beside(dir, Clock::System).with_context(|| no_state(dir))?;
    let now = store.clock().now_ms();
    for &id in &args.jobs.ids {
        let job = store.with_conn(|c| queue::again(c, id, now))??;
        println!("job {id}: its series is segmented again as job {}, generation {}", job.id, job.generation);
    }
    if !Store::in_use(dir) {
        println!("no daemon runs on {}: it is done at the next start", dir.display());
    }
    Ok(ExitCode::SUCCESS)
}
