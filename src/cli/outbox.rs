//! `scanside outbox`: what becomes of objects that an archive refused for good, or that wait for an archive which is no longer there.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::{ConfigArgs, JobsArgs, no_state};
use crate::clock::Clock;
use crate::daemon::archive_keys;
use crate::store::{Store, outbox};

#[derive(Args, Debug)]
pub(super) struct OutboxArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Send again what an archive refused for good
    Retry(JobsArgs),
    /// Give up what an archive refused for good, and what waits for an archive that is not configured: it is not sent, its files stay in
    /// results/JOB, and the originals may go when their time has passed
    Drop(JobsArgs),
}

pub(super) fn run(args: &OutboxArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?.config;
    let dir = &config.storage.state_dir;
    let store = Store::open_beside(dir, Clock::System).with_context(|| no_state(dir))?;
    let keys = archive_keys(&config);
    match &args.what {
        What::Retry(jobs) => {
            for &id in &jobs.ids {
                match store.with_conn(|c| outbox::retry(c, id))? {
                    0 => {
                        bail!("no archive refused anything of job {id}; `scanside status` shows where its objects are")
                    }
                    n => println!("job {id}: {n} objects go to the archives again"),
                }
            }
            for s in store.with_conn(|c| outbox::stranded(c, &keys))? {
                println!("{}", s.sentence());
            }
        }
        What::Drop(jobs) => {
            for &id in &jobs.ids {
                let gone = store.with_conn(|c| outbox::give_up(c, id, &keys))?;
                if gone.is_empty() {
                    bail!(
                        "nothing of job {id} was refused by an archive or waits for one that is not configured; \
                         `scanside status` shows where its objects are"
                    );
                }
                for d in gone {
                    println!("job {id}: {} ({}) is not sent to {}", d.kind, d.path, d.archive);
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
