//! `scanside serve`: the daemon.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{ConfigArgs, notify};
use crate::clock::Clock;
use crate::daemon::{Daemon, Model};

#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?.config;
    if config.modality.is_empty() {
        log::warn!("no [[modality]] is configured: every sender will be rejected");
    }
    let model = Model::load(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let daemon = Daemon::start(config, model, Clock::System).await?;
        // For scripts that asked for port 0, and for people who look whether it is up.
        println!("ready on {}", daemon.local_addr());
        notify::ready(&format!("listening on {}", daemon.local_addr()));
        let life = tokio::spawn(notify::live(daemon.pulse(), daemon.store().clone()));
        stopped().await?;
        log::info!("stopping: what is not done stays in the queue");
        notify::stopping();
        life.abort();
        daemon.stop().await;
        anyhow::Ok(())
    })?;
    runtime.shutdown_timeout(Duration::from_secs(5));
    Ok(ExitCode::SUCCESS)
}

async fn stopped() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
