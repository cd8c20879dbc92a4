//! Logs go to the journal under systemd and to standard error elsewhere.

/// Starts logging; `SCANSIDE_LOG` sets the level (`warn`, `info`, `debug`), `info` unless told otherwise.
pub(super) fn init() {
    let wanted = std::env::var("SCANSIDE_LOG").unwrap_or_else(|_| "info".into());
    let level = wanted.parse().unwrap_or(log::LevelFilter::Info);
    #[cfg(target_os = "linux")]
    if systemd_journal_logger::connected_to_journal()
        && let Ok(journal) = systemd_journal_logger::JournalLog::new()
        && journal.with_syslog_identifier("scanside".into()).install().is_ok()
    {
        log::set_max_level(level);
        return;
    }
    // Libraries stay quiet unless they warn: dicom-rs logs element values at lower levels, and those are patient data.
    let _ = env_logger::Builder::new()
        .filter_level(log::LevelFilter::Warn)
        .filter_module("scanside", level)
        .format_target(false)
        .try_init();
}
