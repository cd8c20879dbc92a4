//! What systemd hears of the daemon: that it is ready, what it does, that it lives, that it stops. Silent elsewhere.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::daemon::{Pulse, status};
use crate::store::Store;

/// Tells systemd, where it listens; that it could not be told is no reason to stop.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        log::debug!("systemd was not told: {e}");
    }
}

/// The daemon listens.
pub(super) fn ready(words: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(words)]);
}

/// The daemon stops in order.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: what is not done stays in the queue")]);
}

/// Feeds systemd's watchdog while every task makes progress, and keeps the status line of `systemctl status` true. Ends never; where no
/// watchdog is set, it only keeps the line.
pub(super) async fn live(pulse: Pulse, store: Store) {
    let every =
        sd_notify::watchdog_enabled().map_or(Duration::from_secs(10), |w| (w / 3).max(Duration::from_millis(50)));
    let mut told = String::new();
    loop {
        tokio::time::sleep(every).await;
        if let Some((task, since)) = pulse.stalled() {
            log::error!(
                "the task {task} has made no progress for {} s: systemd's watchdog is not fed",
                since.as_secs()
            );
            continue;
        }
        tell(&[NotifyState::Watchdog]);
        let line = status::line(&store).unwrap_or_else(|e| format!("the store cannot be read: {e}"));
        if line != told {
            tell(&[NotifyState::Status(&line)]);
            told = line;
        }
    }
}
